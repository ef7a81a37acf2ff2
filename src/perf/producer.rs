//! A producer: one connection, one thread that writes blocks as fast as it may.
//!
//! Owns the pace (count, rate, confirm window) and the producer's socket. Without confirms a
//! second thread sleeps in a read, to hear of blocking and errors; with confirms the producer
//! itself reads whenever its window is nearly full.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use super::block::{Block, Shape, Stamp};
use super::board::Board;
use super::inbox::Inbox;
use super::link::{Link, Notice, POLL, PerfError, closing_frame, is_timeout};
use super::walk::Sink;
use super::window::Window;
use crate::codec::hot::{self, Settle};

/// Bytes per write: large enough that system calls do not count, small enough for the cache.
const BLOCK_BYTES: usize = 128 << 10;

/// How long a producer waits for outstanding confirms, and for the answer to its close.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// The same where the run counts on all that was published: a broker may be far behind.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(60);

/// What a producer is to do.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    /// Messages to send; unlimited when `None`.
    pub(crate) count: Option<u64>,
    /// Messages per second; unlimited when `None`.
    pub(crate) rate: Option<f64>,
    /// Outstanding publishes with confirms; no confirms when `None`.
    pub(crate) window: Option<u64>,
    /// Whether bodies carry stamps.
    pub(crate) is_verified: bool,
}

impl Pace {
    /// Whether the run counts on all that was published.
    fn must_arrive(&self) -> bool {
        self.count.is_some() || self.is_verified
    }

    /// How long the broker may hold the last bytes back.
    fn patience(&self) -> Duration {
        if self.must_arrive() { WHOLE_TIMEOUT } else { FINISH_TIMEOUT }
    }
}

/// One producer, connected and ready.
pub(crate) struct Producer {
    name: String,
    worker: usize,
    number: u32,
    pace: Pace,
    stream: TcpStream,
    inbox: Inbox,
    block: Block,
}

impl Producer {
    /// Takes a connection over, to publish messages of one shape.
    pub(crate) fn new(
        mut link: Link,
        worker: usize,
        number: u32,
        pace: Pace,
        shape: &Shape,
    ) -> Result<Self, PerfError> {
        if pace.window.is_some() {
            link.select_confirms()?;
        }
        let window = pace.window.unwrap_or(u64::MAX);
        let messages_max = usize::try_from(window).unwrap_or(usize::MAX);
        let block = Block::new(shape, BLOCK_BYTES, messages_max);
        let (stream, leftover) = link.into_parts();
        stream.set_write_timeout(Some(POLL))?;
        let inbox = Inbox::new(stream.try_clone()?, leftover, 64 << 10);
        Ok(Self { name: format!("producer-{number}"), worker, number, pace, stream, inbox, block })
    }

    /// The thread's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Another handle of the socket, to end a thread that hangs in it.
    pub(crate) fn socket(&self) -> Result<TcpStream, PerfError> {
        Ok(self.stream.try_clone()?)
    }

    /// Publishes until the count is reached or the board says stop.
    pub(crate) fn run(self, board: &Arc<Board>) {
        let name = self.name.clone();
        let done = match self.pace.window {
            Some(_) => self.run_confirmed(board),
            None => self.run_unconfirmed(board),
        };
        if let Err(error) = done {
            board.fail(&name, error);
        }
    }

    fn run_unconfirmed(self, board: &Arc<Board>) -> Result<(), PerfError> {
        let Self { name, worker, number, pace, stream, mut inbox, mut block } = self;
        let watched = Arc::clone(board);
        let watch_name = name.clone();
        let watch = thread::Builder::new().name(format!("{name}-in")).spawn(move || {
            if let Err(error) = watch(&mut inbox, &watched, &watch_name)
                && watched.is_publishing()
            {
                watched.fail(&watch_name, error);
            }
            inbox
        })?;
        let mut schedule = Schedule::new(&pace);
        let mut sent = 0;
        let mut is_whole = true;
        while is_whole && board.is_publishing() {
            let room = schedule.room(sent, block.messages() as u64);
            match room {
                Room::Done => break,
                Room::Wait(pause) => thread::sleep(pause),
                Room::Now(count) => {
                    let whole = publish(&mut block, &pace, number, sent, count, &stream, board)?;
                    is_whole = whole == count;
                    sent += whole;
                    board.tally(worker).published.store(sent, Relaxed);
                }
            }
        }
        // A broker may hold the socket back; only whole frames may be followed by a close, and
        // the close-ok tells that all before it was taken.
        let is_closing = is_whole && write_closing(&stream, &pace, board)?;
        if is_closing && pace.must_arrive() {
            let deadline = Instant::now() + WHOLE_TIMEOUT;
            while !watch.is_finished() && board.is_running() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(5));
            }
        }
        let patience = Instant::now() + FINISH_TIMEOUT;
        while is_closing && !watch.is_finished() && Instant::now() < patience {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = stream.shutdown(Shutdown::Both);
        drop(watch.join());
        Ok(())
    }

    fn run_confirmed(self, board: &Arc<Board>) -> Result<(), PerfError> {
        let Self { name, worker, number, pace, stream, mut inbox, mut block } = self;
        let limit = pace.window.unwrap_or(1);
        // Reading and writing in quarters keeps the broker busy while a quarter is on its way.
        let step = (limit / 4).max(1);
        let mut schedule = Schedule::new(&pace);
        let mut confirms = Confirms::new(board, worker, &name);
        let mut sent = 0;
        let mut is_whole = true;
        while is_whole && board.is_publishing() {
            let free = limit - confirms.window.outstanding();
            if free < step {
                confirms.read(&mut inbox)?;
                continue;
            }
            match schedule.room(sent, free.min(block.messages() as u64)) {
                Room::Done => break,
                Room::Wait(pause) => confirms.wait(&mut inbox, pause)?,
                Room::Now(count) => {
                    let whole = publish(&mut block, &pace, number, sent, count, &stream, board)?;
                    is_whole = whole == count;
                    sent += whole;
                    confirms.window.sent(whole);
                    board.tally(worker).published.store(sent, Relaxed);
                }
            }
        }
        let mut deadline = Instant::now() + FINISH_TIMEOUT;
        while is_whole && confirms.window.outstanding() > 0 && Instant::now() < deadline {
            let is_counting = pace.count.is_some() && board.is_publishing();
            if confirms.read(&mut inbox)? || is_counting {
                deadline = Instant::now() + FINISH_TIMEOUT;
            }
        }
        if is_whole && write_closing(&stream, &pace, board)? {
            inbox.await_close(FINISH_TIMEOUT);
        }
        let _ = stream.shutdown(Shutdown::Both);
        Ok(())
    }
}

/// Writes `count` messages; fewer when the run ended in the middle. Returns how many are whole.
fn publish(
    block: &mut Block,
    pace: &Pace,
    producer: u32,
    sequence: u64,
    count: u64,
    stream: &TcpStream,
    board: &Board,
) -> Result<u64, PerfError> {
    let messages = count as usize;
    if pace.is_verified {
        block.stamp(Stamp { producer, sequence }, messages);
    }
    let bytes = block.run(sequence, messages);
    let written = write(stream, bytes, pace.patience(), board)?;
    // A message cut off in the middle is none.
    Ok(written as u64 * count / bytes.len() as u64)
}

/// Writes all bytes, however long the broker holds them back; once the run is over, only with
/// `patience`. Returns how many it wrote.
fn write(
    mut stream: &TcpStream,
    bytes: &[u8],
    patience: Duration,
    board: &Board,
) -> Result<usize, PerfError> {
    let mut rest = bytes;
    let mut stopped: Option<Instant> = None;
    while !rest.is_empty() {
        match stream.write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) if is_timeout(&error) && board.is_publishing() => {}
            Err(error) if is_timeout(&error) => {
                let since = stopped.get_or_insert_with(Instant::now).elapsed();
                if since > if board.is_running() { patience } else { FINISH_TIMEOUT } {
                    break;
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes.len() - rest.len())
}

/// Writes `connection.close`; `false` when it was cut off.
fn write_closing(stream: &TcpStream, pace: &Pace, board: &Board) -> Result<bool, PerfError> {
    let closing = closing_frame();
    Ok(write(stream, &closing, pace.patience(), board)? == closing.len())
}

/// How many messages may go now.
#[derive(Debug, PartialEq)]
enum Room {
    Now(u64),
    Wait(Duration),
    Done,
}

/// Count and rate over time.
struct Schedule {
    began: Instant,
    count: u64,
    rate: Option<f64>,
}

impl Schedule {
    fn new(pace: &Pace) -> Self {
        Self { began: Instant::now(), count: pace.count.unwrap_or(u64::MAX), rate: pace.rate }
    }

    fn room(&mut self, sent: u64, most: u64) -> Room {
        let left = self.count - sent;
        if left == 0 {
            return Room::Done;
        }
        let Some(rate) = self.rate else { return Room::Now(left.min(most)) };
        room_at(rate, self.began.elapsed(), sent, left.min(most))
    }
}

/// The share of a rate that is due after `elapsed`; sends at most once a millisecond.
fn room_at(rate: f64, elapsed: Duration, sent: u64, most: u64) -> Room {
    let due = (elapsed.as_secs_f64() * rate) as u64 + 1;
    if due > sent {
        return Room::Now((due - sent).min(most));
    }
    let pause = (sent as f64 / rate - elapsed.as_secs_f64()).clamp(0.001, 0.1);
    Room::Wait(Duration::from_secs_f64(pause))
}

/// Sleeps in reads until the broker answers our close or the socket ends.
fn watch(inbox: &mut Inbox, board: &Board, name: &str) -> Result<(), PerfError> {
    let mut sink = Ears { board, name, error: None, is_closed: false };
    while !sink.is_closed {
        inbox.read(&mut sink)?;
        if let Some(error) = sink.error.take() {
            return Err(error);
        }
    }
    Ok(())
}

/// One message after the other, each of which waits for its confirm.
pub(crate) struct Asking<'a> {
    stream: TcpStream,
    inbox: Inbox,
    confirms: Confirms<'a>,
}

impl<'a> Asking<'a> {
    /// Takes a connection over; the board is for notices and for the counts of its first worker.
    pub(crate) fn new(mut link: Link, board: &'a Board) -> Result<Self, PerfError> {
        link.select_confirms()?;
        let (stream, leftover) = link.into_parts();
        let inbox = Inbox::new(stream.try_clone()?, leftover, 64 << 10);
        Ok(Self { stream, inbox, confirms: Confirms::new(board, 0, "publisher") })
    }

    /// The time from the write to the confirm, or an error after `timeout` or a refusal.
    pub(crate) fn once(&mut self, bytes: &[u8], timeout: Duration) -> Result<Duration, PerfError> {
        let began = Instant::now();
        self.stream.write_all(bytes)?;
        self.confirms.window.sent(1);
        while self.confirms.window.outstanding() > 0 {
            if !self.confirms.read(&mut self.inbox)? && began.elapsed() > timeout {
                return Err(PerfError::Late("confirm a message"));
            }
        }
        let took = began.elapsed();
        match self.confirms.ears.board.totals().refused {
            0 => Ok(took),
            _ => Err(PerfError::Refused("the broker refused a message".into())),
        }
    }

    /// Closes the connection.
    pub(crate) fn close(mut self) -> Result<(), PerfError> {
        self.stream.write_all(&closing_frame())?;
        self.inbox.await_close(FINISH_TIMEOUT);
        Ok(())
    }
}

/// Hears the methods that a producer without confirms may get.
struct Ears<'a> {
    board: &'a Board,
    name: &'a str,
    error: Option<PerfError>,
    is_closed: bool,
}

impl Sink for Ears<'_> {
    fn delivery(&mut self, _payload: &[u8]) {}
    fn body(&mut self, _body: &[u8]) {}
    fn method(&mut self, _channel: u16, payload: &[u8]) {
        let notice = Notice::of(payload);
        self.is_closed |= matches!(notice, Notice::CloseOk);
        self.error = self.error.take().or(self.board.notice(self.name, notice).err());
    }
}

/// Counts confirms.
struct Confirms<'a> {
    window: Window,
    worker: usize,
    ears: Ears<'a>,
}

impl<'a> Confirms<'a> {
    fn new(board: &'a Board, worker: usize, name: &'a str) -> Self {
        let ears = Ears { board, name, error: None, is_closed: false };
        Self { window: Window::default(), worker, ears }
    }

    /// Reads once; `false` when nothing came.
    fn read(&mut self, inbox: &mut Inbox) -> Result<bool, PerfError> {
        let is_some = inbox.read(self)?;
        match self.ears.error.take() {
            Some(error) => Err(error),
            None => Ok(is_some),
        }
    }

    /// Waits for a rate's next share, and reads meanwhile if there is something to come.
    fn wait(&mut self, inbox: &mut Inbox, pause: Duration) -> Result<(), PerfError> {
        if self.window.outstanding() == 0 {
            thread::sleep(pause);
            return Ok(());
        }
        inbox.set_timeout(pause)?;
        let read = self.read(inbox);
        inbox.set_timeout(POLL)?;
        read.map(drop)
    }
}

impl Sink for Confirms<'_> {
    fn delivery(&mut self, _payload: &[u8]) {}
    fn body(&mut self, _body: &[u8]) {}
    fn method(&mut self, channel: u16, payload: &[u8]) {
        let (class_id, method_id) = hot::method_ids(payload);
        let settle = if class_id == hot::BASIC { Settle::parse(method_id, payload) } else { None };
        let (tag, multiple, is_taken) = match settle {
            Some(Ok(Settle::Ack { tag, multiple })) => (tag, multiple, true),
            Some(Ok(Settle::Nack { tag, multiple, .. })) => (tag, multiple, false),
            _ => return self.ears.method(channel, payload),
        };
        let Some(count) = self.window.settle(tag, multiple) else {
            let text = format!("a confirm for message {tag}, which was never sent");
            self.ears.error = Some(PerfError::Protocol(text));
            return;
        };
        let tally = self.ears.board.tally(self.worker);
        let counter = if is_taken { &tally.confirmed } else { &tally.refused };
        counter.store(counter.load(Relaxed) + count, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_whatever_was_sent_before() {
        let second = Duration::from_secs(1);
        assert_eq!(room_at(1000.0, second, 900, 500), Room::Now(101));
        assert_eq!(room_at(1000.0, second, 0, 500), Room::Now(500));
        let Room::Wait(pause) = room_at(100.0, second, 102, 500) else { panic!("too fast") };
        assert!((0.019..0.021).contains(&pause.as_secs_f64()));
    }

    #[test]
    fn a_count_ends_the_schedule() {
        let pace = Pace { count: Some(10), rate: None, window: None, is_verified: false };
        let mut schedule = Schedule::new(&pace);
        assert_eq!(schedule.room(0, 8), Room::Now(8));
        assert_eq!(schedule.room(8, 8), Room::Now(2));
        assert_eq!(schedule.room(10, 8), Room::Done);
    }
}
