//! When a producer may publish how much: its count, its rate and, in a timed run, how late it was.
//!
//! Owns the pace. It does no IO and never sleeps.

use std::time::{Duration, Instant};

use super::block::Stamp;
use super::latency::Latencies;
use super::link::{FINISH_TIMEOUT, POLL};
use super::timetable::{Lateness, Timetable};

/// The shortest sleep of a producer that keeps to a rate: what is due meanwhile goes together.
const PAUSE_MIN: Duration = Duration::from_millis(1);

/// The same where the time of each message counts: more often, the generator would take the cores
/// that the broker needs.
const PROMPT_PAUSE_MIN: Duration = Duration::from_micros(50);

/// How long a producer waits for the broker where the run counts on all that was published: it may
/// be far behind.
pub(crate) const WHOLE_TIMEOUT: Duration = Duration::from_secs(60);

/// What a producer is to do.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    /// Messages to send; unlimited when `None`.
    pub(crate) count: Option<u64>,
    /// When messages are due; as soon as possible when `None`.
    pub(crate) timetable: Option<Timetable>,
    /// Whether the run is about how late messages are.
    pub(crate) is_timed: bool,
    /// Outstanding publishes with confirms; no confirms when `None`.
    pub(crate) window: Option<u64>,
    /// Whether bodies carry stamps.
    pub(crate) is_stamped: bool,
}

impl Pace {
    /// Whether the run counts on all that was published.
    pub(crate) fn must_arrive(&self) -> bool {
        self.count.is_some() || self.is_stamped
    }

    /// A record for a timed run.
    pub(crate) fn lateness(&self, began: Instant) -> Option<Lateness> {
        let timetable = self.timetable.filter(|_| self.is_timed)?;
        Some(Lateness::new(timetable, began))
    }

    /// How long the broker may hold the last bytes back.
    pub(crate) fn patience(&self) -> Duration {
        if self.must_arrive() { WHOLE_TIMEOUT } else { FINISH_TIMEOUT }
    }
}

/// What a timed producer knows in the end.
pub(crate) struct Sent {
    /// From when messages were due to when they were written.
    pub(crate) late: Latencies,
    /// From when messages were due to when they were confirmed.
    pub(crate) confirmed: Latencies,
}

/// How many messages may go now.
#[derive(Debug, PartialEq)]
pub(crate) enum Room {
    /// So many.
    Now(u64),
    /// None before this time has passed.
    Wait(Duration),
    /// None ever again.
    Done,
}

/// Count and rate over time.
pub(crate) struct Schedule {
    producer: u32,
    began: Instant,
    count: u64,
    timetable: Option<Timetable>,
    pause_min: Duration,
    /// When messages were written last.
    written: Option<Duration>,
    lateness: Option<Lateness>,
}

impl Schedule {
    /// The schedule of a producer in a run that began at `began`.
    pub(crate) fn new(pace: &Pace, producer: u32, began: Instant) -> Self {
        Self {
            producer,
            began,
            count: pace.count.unwrap_or(u64::MAX),
            timetable: pace.timetable,
            pause_min: if pace.is_timed { PROMPT_PAUSE_MIN } else { PAUSE_MIN },
            written: None,
            lateness: pace.lateness(began),
        }
    }

    /// How many messages may go now after `sent`, at most `most`.
    pub(crate) fn room(&self, sent: u64, most: u64) -> Room {
        let left = self.count - sent;
        if left == 0 {
            return Room::Done;
        }
        let Some(timetable) = self.timetable else { return Room::Now(left.min(most)) };
        self.room_at(timetable, self.began.elapsed(), sent, left.min(most))
    }

    fn room_at(&self, timetable: Timetable, elapsed: Duration, sent: u64, most: u64) -> Room {
        let due = timetable.due_by(self.producer, elapsed);
        // Whoever writes without a pause writes ever smaller pieces.
        let since = self.written.map_or(Duration::MAX, |written| elapsed.saturating_sub(written));
        if due > sent && due - sent < most && since < self.pause_min {
            return Room::Wait(self.pause_min - since);
        }
        if due > sent {
            return Room::Now((due - sent).min(most));
        }
        let next = timetable.due(Stamp { producer: self.producer, sequence: sent });
        Room::Wait(next.saturating_sub(elapsed).clamp(self.pause_min, POLL))
    }

    /// Notes how late the first message of a write is; the others of the write are less so.
    pub(crate) fn note(&mut self, sequence: u64) {
        self.written = Some(self.began.elapsed());
        if let Some(lateness) = &mut self.lateness {
            lateness.look();
            lateness.note(Stamp { producer: self.producer, sequence });
        }
    }

    /// The record of a timed run.
    pub(crate) fn sent(self, confirms: Option<(u32, Lateness)>) -> Option<Sent> {
        let late = self.lateness?.latencies;
        let confirmed = confirms.map_or_else(Latencies::new, |(_, lateness)| lateness.latencies);
        Some(Sent { late, confirmed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(rate: f64, is_timed: bool) -> (Schedule, Timetable) {
        let timetable = Timetable { rate, producers: 1, counts_from: Duration::ZERO };
        let pace = Pace { timetable: Some(timetable), is_timed, ..PACE };
        (Schedule::new(&pace, 0, Instant::now()), timetable)
    }

    const PACE: Pace =
        Pace { count: Some(10), timetable: None, is_timed: false, window: None, is_stamped: false };

    #[test]
    fn a_rate_is_kept_whatever_was_sent_before() {
        let second = Duration::from_secs(1);
        let (fast, timetable) = schedule(1000.0, false);
        assert_eq!(fast.room_at(timetable, second, 900, 500), Room::Now(101));
        assert_eq!(fast.room_at(timetable, second, 0, 500), Room::Now(500));
        let (slow, timetable) = schedule(100.0, false);
        let Room::Wait(pause) = slow.room_at(timetable, second, 102, 500) else {
            panic!("too fast")
        };
        assert!((0.019..0.021).contains(&pause.as_secs_f64()));
    }

    #[test]
    fn a_timed_producer_sleeps_less() {
        for (is_timed, pause) in [(false, PAUSE_MIN), (true, PROMPT_PAUSE_MIN)] {
            let (schedule, timetable) = schedule(1e6, is_timed);
            let room = schedule.room_at(timetable, Duration::from_secs(1), 1_000_001, 500);
            assert_eq!(room, Room::Wait(pause));
        }
    }

    #[test]
    fn what_is_due_goes_together() {
        let (mut schedule, timetable) = schedule(1e6, true);
        schedule.written = Some(Duration::from_secs(1));
        let room = |micros, most| {
            let elapsed = Duration::from_secs(1) + Duration::from_micros(micros);
            schedule.room_at(timetable, elapsed, 1_000_001, most)
        };
        assert_eq!(room(30, 500), Room::Wait(Duration::from_micros(20)));
        assert_eq!(room(30, 30), Room::Now(30), "no more would go together");
        assert_eq!(room(50, 500), Room::Now(50));
    }

    #[test]
    fn a_count_ends_the_schedule() {
        let schedule = Schedule::new(&PACE, 0, Instant::now());
        assert_eq!(schedule.room(0, 8), Room::Now(8));
        assert_eq!(schedule.room(8, 8), Room::Now(2));
        assert_eq!(schedule.room(10, 8), Room::Done);
    }
}
