//! A consumer: one connection, one thread that reads, counts and acknowledges.
//!
//! Owns the rhythm of acks. Messages are counted without looking at them; in a verified run each
//! delivery's tag and stamp go into a [`Ledger`], in a timed run its lateness into a histogram.

use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use super::block::Stamp;
use super::board::Board;
use super::ears::Ears;
use super::inbox::Inbox;
use super::latency::Latencies;
use super::ledger::Ledger;
use super::link::{CHANNEL, FINISH_TIMEOUT, Link, POLL, PerfError, closing_frame};
use super::socket::Socket;
use super::timetable::{Lateness, Timetable};
use super::walk::Sink;
use crate::codec::encode;

/// Bytes per read at most.
const BUFFER_BYTES: usize = 256 << 10;

/// How a consumer takes messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taking {
    /// Acknowledge after so many deliveries; automatic acknowledgement when `None`.
    pub(crate) ack_every: Option<u64>,
    /// Unsettled deliveries at most; 0 for no limit.
    pub(crate) prefetch: u16,
    /// Messages per second at most; unlimited when `None`.
    pub(crate) rate: Option<f64>,
    /// The number of producers whose stamps are checked; `None` to look at nothing.
    pub(crate) verified_producers: Option<usize>,
    /// The number of priorities that go round.
    pub(crate) priorities: u8,
    /// When messages were due, in a timed run.
    pub(crate) timetable: Option<Timetable>,
}

/// What a consumer saw.
pub(crate) struct Seen {
    /// The consumer's number.
    pub(crate) consumer: usize,
    /// Which messages, in a verified run.
    pub(crate) ledger: Option<Ledger>,
    /// How late they were, in a timed run.
    pub(crate) latencies: Option<Latencies>,
}

/// One consumer, connected and consuming.
pub(crate) struct Consumer {
    name: String,
    worker: usize,
    number: usize,
    taking: Taking,
    socket: Socket,
    inbox: Inbox,
}

impl Consumer {
    /// Starts to consume from `queue`.
    pub(crate) fn new(
        mut link: Link,
        worker: usize,
        number: usize,
        taking: Taking,
        queue: &str,
    ) -> Result<Self, PerfError> {
        link.consume(queue, taking.prefetch, taking.ack_every.is_none())?;
        let (socket, leftover) = link.into_parts();
        let inbox = Inbox::new(socket.clone(), leftover, BUFFER_BYTES);
        Ok(Self { name: format!("consumer-{number}"), worker, number, taking, socket, inbox })
    }

    /// The thread's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Another handle of the socket, to end a thread that hangs in it.
    pub(crate) fn socket(&self) -> Socket {
        self.socket.clone()
    }

    /// Consumes until the board says stop; returns what was seen.
    pub(crate) fn run(self, board: &Board) -> Seen {
        let (name, consumer) = (self.name.clone(), self.number);
        let ears = Ears::new(board, &name);
        let Taking { verified_producers, priorities, timetable, .. } = self.taking;
        let (seen, done) = if verified_producers.is_none() && timetable.is_none() {
            let seen = Seen { consumer, ledger: None, latencies: None };
            (seen, self.take(board, &mut Counting(ears)))
        } else {
            let ledger = verified_producers.map(|producers| Ledger::new(producers, priorities));
            let lateness = timetable.map(|timetable| Lateness::new(timetable, board.began()));
            let mut sink = Looking { ears, ledger, lateness, next_tag: 1, is_redelivered: false };
            let done = self.take(board, &mut sink);
            let latencies = sink.lateness.map(|lateness| lateness.latencies);
            (Seen { consumer, ledger: sink.ledger, latencies }, done)
        };
        if let Err(error) = done {
            board.fail(&name, error);
        }
        seen
    }

    fn take<S: Sink + Listening>(self, board: &Board, sink: &mut S) -> Result<(), PerfError> {
        let Self { worker, taking, socket, mut inbox, .. } = self;
        let mut acks = Acks::new(taking.ack_every);
        let began = Instant::now();
        while board.is_running() {
            let is_some = inbox.read(sink)?;
            if let Some(error) = sink.take_error() {
                return Err(error);
            }
            board.tally(worker).delivered.store(inbox.deliveries(), Relaxed);
            if let Some(rate) = taking.rate {
                let due = Duration::try_from_secs_f64(inbox.deliveries() as f64 / rate);
                work(board, began, due.unwrap_or(Duration::MAX));
            }
            // With nothing coming, the broker may be waiting for the acks of an unfinished batch.
            let frames =
                if is_some { acks.due(inbox.deliveries()) } else { acks.rest(inbox.deliveries()) };
            socket.send(frames)?;
        }
        // What is left is a courtesy to the broker: failures no longer count.
        let _ = socket.set_write_timeout(FINISH_TIMEOUT);
        let _ = socket.send(acks.rest(inbox.deliveries()));
        if socket.send(&closing_frame()).is_ok() {
            inbox.await_close(FINISH_TIMEOUT);
        }
        socket.shut_down();
        Ok(())
    }
}

/// Spends the time that messages take at a rate: until `due` after `began`, or the end of the run.
fn work(board: &Board, began: Instant, due: Duration) {
    while board.is_running()
        && let Some(rest) = due.checked_sub(began.elapsed())
        && !rest.is_zero()
    {
        thread::sleep(rest.min(POLL));
    }
}

/// Which acks are due. A channel has one consumer, so that its tags count deliveries from 1.
struct Acks {
    every: u64,
    acked: u64,
    frames: Vec<u8>,
}

impl Acks {
    fn new(every: Option<u64>) -> Self {
        Self { every: every.unwrap_or(u64::MAX), acked: 0, frames: Vec::new() }
    }

    /// One frame for each full batch: as many acks as a client would send that acknowledges
    /// every so many messages.
    fn due(&mut self, delivered: u64) -> &[u8] {
        self.frames.clear();
        while delivered - self.acked >= self.every {
            self.acked += self.every;
            encode::put_ack(&mut self.frames, CHANNEL, self.acked, true);
        }
        &self.frames
    }

    /// One frame for all that is not acknowledged yet.
    fn rest(&mut self, delivered: u64) -> &[u8] {
        self.frames.clear();
        if self.every < u64::MAX && delivered > self.acked {
            self.acked = delivered;
            encode::put_ack(&mut self.frames, CHANNEL, self.acked, true);
        }
        &self.frames
    }
}

/// A sink that keeps the first error.
trait Listening {
    fn take_error(&mut self) -> Option<PerfError>;
}

/// Looks at no message.
struct Counting<'a>(Ears<'a>);

impl Sink for Counting<'_> {
    #[inline(always)]
    fn delivery(&mut self, _payload: &[u8]) {}
    #[inline(always)]
    fn body(&mut self, _body: &[u8]) {}
    fn method(&mut self, _channel: u16, payload: &[u8]) {
        self.0.hear(payload);
    }
}

impl Listening for Counting<'_> {
    fn take_error(&mut self) -> Option<PerfError> {
        self.0.error.take()
    }
}

/// Looks at each message.
struct Looking<'a> {
    ears: Ears<'a>,
    ledger: Option<Ledger>,
    lateness: Option<Lateness>,
    next_tag: u64,
    is_redelivered: bool,
}

impl Sink for Looking<'_> {
    fn received(&mut self) {
        if let Some(lateness) = &mut self.lateness {
            lateness.look();
        }
    }
    fn delivery(&mut self, payload: &[u8]) {
        // class, method, consumer tag (short string), delivery tag, redelivered, ...
        let after = payload.get(4).map_or(0, |&length| 5 + usize::from(length));
        let fields = payload.get(after..).and_then(|rest| rest.first_chunk::<9>());
        let Some(&[a, b, c, d, e, f, g, h, redelivered]) = fields else {
            self.ears.error = Some(PerfError::Protocol("a truncated basic.deliver".into()));
            return;
        };
        let tag = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        if tag != self.next_tag {
            let text = format!("delivery tag {tag} where {} is due", self.next_tag);
            self.ears.error = Some(PerfError::Protocol(text));
        }
        self.next_tag = tag.wrapping_add(1);
        self.is_redelivered = redelivered & 1 != 0;
    }
    fn body(&mut self, body: &[u8]) {
        let stamp = Stamp::read(body);
        if let (Some(stamp), Some(lateness)) = (stamp, &mut self.lateness) {
            lateness.note(stamp);
        }
        if let Some(ledger) = &mut self.ledger {
            ledger.note(stamp, self.is_redelivered);
        }
    }
    fn method(&mut self, _channel: u16, payload: &[u8]) {
        self.ears.hear(payload);
    }
}

impl Listening for Looking<'_> {
    fn take_error(&mut self) -> Option<PerfError> {
        self.ears.error.take()
    }
}

/// One message after the other through the broker: a publish, then a wait for its delivery.
pub(crate) struct Echo<'a> {
    /// Writes publishes.
    pub(crate) publishing: &'a Socket,
    /// Reads deliveries.
    pub(crate) inbox: Inbox,
    /// For notices.
    pub(crate) board: &'a Board,
}

impl Echo<'_> {
    /// The time from the write to the delivery, or an error after `timeout`.
    pub(crate) fn once(&mut self, bytes: &[u8], timeout: Duration) -> Result<Duration, PerfError> {
        let expected = self.inbox.deliveries() + 1;
        let mut sink = Counting(Ears::new(self.board, "ping-pong"));
        let began = Instant::now();
        self.publishing.send(bytes)?;
        while self.inbox.deliveries() < expected {
            let is_some = self.inbox.read(&mut sink)?;
            if let Some(error) = sink.take_error() {
                return Err(error);
            }
            if !is_some && began.elapsed() > timeout {
                return Err(PerfError::Late("deliver a message"));
            }
        }
        Ok(began.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_go_out_in_full_batches_and_the_rest_on_demand() {
        let mut acks = Acks::new(Some(10));
        assert!(acks.due(9).is_empty());
        let one = acks.due(10).len();
        assert_eq!(acks.due(35).len(), 2 * one);
        assert_eq!(acks.acked, 30);
        assert_eq!(acks.rest(35).len(), one);
        assert!(acks.rest(35).is_empty());
        let mut automatic = Acks::new(None);
        assert!(automatic.due(1_000_000).is_empty() && automatic.rest(1_000_000).is_empty());
    }

    #[test]
    fn a_rate_takes_its_time_until_the_run_ends() {
        let (board, began) = (Board::new(0), Instant::now());
        work(&board, began, Duration::from_millis(120));
        assert!(began.elapsed() >= Duration::from_millis(120));
        board.stop();
        work(&board, began, Duration::MAX);
    }

    #[test]
    fn tags_and_stamps_of_deliveries_are_read() {
        let board = Board::new(1);
        let ears = Ears::new(&board, "consumer-0");
        let (ledger, lateness) = (Some(Ledger::new(1, 1)), None);
        let mut sink = Looking { ears, ledger, lateness, next_tag: 1, is_redelivered: false };
        let mut payload = vec![0, 60, 0, 60, 2, b'c', b't'];
        payload.extend_from_slice(&1u64.to_be_bytes());
        payload.extend_from_slice(&[1, 0, 1, b'q']);
        sink.delivery(&payload);
        assert!(sink.is_redelivered && sink.take_error().is_none());
        sink.delivery(&payload);
        assert!(sink.take_error().is_some());
        sink.delivery(&payload[..9]);
        assert!(sink.take_error().is_some());
    }
}
