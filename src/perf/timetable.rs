//! When each message of a run at a rate is due, and how late it then was.
//!
//! Owns the arithmetic between a message's number and its time. A latency counts from when the
//! message was due, not from when it was written: otherwise each stall of the broker would hold
//! back the very messages that would have measured it (coordinated omission).

use std::time::{Duration, Instant};

use super::block::Stamp;
use super::latency::Latencies;

/// The times of all producers' messages, from the start of the run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timetable {
    /// Messages per second of each producer.
    pub(crate) rate: f64,
    /// Producers, who take turns.
    pub(crate) producers: usize,
    /// What is due before belongs to the warm-up.
    pub(crate) counts_from: Duration,
}

impl Timetable {
    /// When a message is due.
    pub(crate) fn due(&self, stamp: Stamp) -> Duration {
        let turn = f64::from(stamp.producer) / self.producers as f64;
        seconds((stamp.sequence as f64 + turn) / self.rate)
    }

    /// How many messages of a producer are due after `elapsed`.
    pub(crate) fn due_by(&self, producer: u32, elapsed: Duration) -> u64 {
        let turn = f64::from(producer) / self.producers as f64;
        // Below 0, before the first is due, the conversion gives 0.
        (elapsed.as_secs_f64() * self.rate - turn + 1.0) as u64
    }

    /// How many messages of each producer are due within `elapsed`, its end not included.
    pub(crate) fn count_within(&self, elapsed: Duration) -> u64 {
        (elapsed.as_secs_f64() * self.rate).ceil() as u64
    }
}

/// What does not fit is as good as never.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// One thread's record of how late messages were.
pub(crate) struct Lateness {
    timetable: Timetable,
    began: Instant,
    now: Duration,
    /// How late they were.
    pub(crate) latencies: Latencies,
}

impl Lateness {
    /// An empty record of a run that began at `began`.
    pub(crate) fn new(timetable: Timetable, began: Instant) -> Self {
        Self { timetable, began, now: Duration::ZERO, latencies: Latencies::new() }
    }

    /// Looks at the clock, once for all messages of a read or write.
    pub(crate) fn look(&mut self) {
        self.now = self.began.elapsed();
    }

    /// Notes a message that was there at the last look.
    #[inline]
    pub(crate) fn note(&mut self, stamp: Stamp) {
        let due = self.timetable.due(stamp);
        if due >= self.timetable.counts_from {
            self.latencies.record(self.now.saturating_sub(due));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: Timetable =
        Timetable { rate: 1000.0, producers: 4, counts_from: Duration::from_millis(2) };

    #[test]
    fn producers_take_turns() {
        let due = |producer, sequence| TABLE.due(Stamp { producer, sequence });
        assert_eq!(due(0, 0), Duration::ZERO);
        assert_eq!(due(1, 0), Duration::from_micros(250));
        assert_eq!(due(3, 2), Duration::from_micros(2750));
        assert_eq!(TABLE.due_by(0, Duration::ZERO), 1);
        assert_eq!(TABLE.due_by(3, Duration::ZERO), 0);
        assert_eq!(TABLE.due_by(3, Duration::from_micros(760)), 1);
        assert_eq!(TABLE.due_by(0, Duration::from_micros(999)), 1);
        assert_eq!(TABLE.due_by(0, Duration::from_micros(2001)), 3);
        assert_eq!(TABLE.count_within(Duration::from_secs(2)), 2000);
        let slow = Timetable { rate: 1e-300, ..TABLE };
        assert_eq!(slow.due(Stamp { producer: 0, sequence: 1 }), Duration::MAX);
    }

    #[test]
    fn lateness_counts_from_when_a_message_was_due() {
        let mut late = Lateness::new(TABLE, Instant::now());
        late.now = Duration::from_millis(12);
        late.note(Stamp { producer: 0, sequence: 1 });
        assert_eq!(late.latencies.count(), 0, "of the warm-up");
        // A message that a stalled broker took and gave at once is late all the same.
        late.note(Stamp { producer: 0, sequence: 2 });
        assert_eq!(late.latencies.count(), 1);
        let mut report = crate::perf::report::Report::default();
        late.latencies.report(&mut report, "");
        assert!(report.json().contains("\"max_us\":10"), "{}", report.json());
    }
}
