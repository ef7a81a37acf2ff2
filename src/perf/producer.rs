//! A producer: one connection, one thread that writes blocks as fast as it may.
//!
//! Owns the producer's socket; the schedule says what may go. Without confirms a
//! second thread sleeps in a read, to hear of blocking and errors; with confirms the producer
//! itself reads whenever its window is nearly full.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use super::block::{Block, Shape, Stamp};
use super::board::Board;
use super::confirms::Confirms;
use super::ears::Ears;
use super::inbox::Inbox;
use super::link::{FINISH_TIMEOUT, Link, POLL, PerfError, closing_frame, is_timeout};
use super::schedule::{Pace, Room, Schedule, Sent, WHOLE_TIMEOUT};
use super::socket::Socket;
use super::walk::Sink;

/// Bytes per write: large enough that system calls do not count, small enough for the cache.
const BLOCK_BYTES: usize = 128 << 10;

/// How late the kernel may wake a producer of a timed run. Its default is 50 us.
const PROMPT_SLACK_NS: NonZeroU64 = NonZeroU64::new(1000).expect("not 0");

/// One producer, connected and ready.
pub(crate) struct Producer {
    name: String,
    worker: usize,
    number: u32,
    pace: Pace,
    socket: Socket,
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
        let (socket, leftover) = link.into_parts();
        socket.set_write_timeout(POLL)?;
        let inbox = Inbox::new(socket.clone(), leftover, 64 << 10);
        Ok(Self { name: format!("producer-{number}"), worker, number, pace, socket, inbox, block })
    }

    /// The thread's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Another handle of the socket, to end a thread that hangs in it.
    pub(crate) fn socket(&self) -> Socket {
        self.socket.clone()
    }

    /// Publishes until the count is reached or the board says stop.
    pub(crate) fn run(self, board: &Arc<Board>) -> Option<Sent> {
        let name = self.name.clone();
        if self.pace.is_timed {
            // Where it cannot be set, "sent late" shows it.
            let _ = rustix::thread::set_current_timer_slack(Some(PROMPT_SLACK_NS));
        }
        let done = match self.pace.window {
            Some(_) => self.run_confirmed(board),
            None => self.run_unconfirmed(board),
        };
        done.unwrap_or_else(|error| {
            board.fail(&name, error);
            None
        })
    }

    fn run_unconfirmed(self, board: &Arc<Board>) -> Result<Option<Sent>, PerfError> {
        let Self { name, worker, number, pace, socket, mut inbox, mut block } = self;
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
        let mut schedule = Schedule::new(&pace, number, board.began());
        let mut sent = 0;
        let mut is_whole = true;
        while is_whole && board.is_publishing() {
            let room = schedule.room(sent, block.messages() as u64);
            match room {
                Room::Done => break,
                Room::Wait(pause) => thread::sleep(pause),
                Room::Now(count) => {
                    schedule.note(sent);
                    let whole = publish(&mut block, &pace, number, sent, count, &socket, board)?;
                    is_whole = whole == count;
                    sent += whole;
                    board.tally(worker).published.store(sent, Relaxed);
                }
            }
        }
        // A broker may hold the socket back; only whole frames may be followed by a close, and
        // the close-ok tells that all before it was taken.
        let is_closing = is_whole && write_closing(&socket, &pace, board)?;
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
        socket.shut_down();
        drop(watch.join());
        Ok(schedule.sent(None))
    }

    fn run_confirmed(self, board: &Arc<Board>) -> Result<Option<Sent>, PerfError> {
        let Self { name, worker, number, pace, socket, mut inbox, mut block } = self;
        let limit = pace.window.unwrap_or(1);
        // Reading and writing in quarters keeps the broker busy while a quarter is on its way.
        let step = (limit / 4).max(1);
        let mut schedule = Schedule::new(&pace, number, board.began());
        let mut confirms = Confirms::new(board, worker, &name);
        confirms.lateness = pace.lateness(board.began()).map(|lateness| (number, lateness));
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
                Room::Wait(pause) => {
                    if inbox.wait(pause) {
                        confirms.read(&mut inbox)?;
                    }
                }
                Room::Now(count) => {
                    schedule.note(sent);
                    let whole = publish(&mut block, &pace, number, sent, count, &socket, board)?;
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
        if is_whole && write_closing(&socket, &pace, board)? {
            inbox.await_close(FINISH_TIMEOUT);
        }
        socket.shut_down();
        Ok(schedule.sent(confirms.lateness))
    }
}

/// Writes `count` messages; fewer when the run ended in the middle. Returns how many are whole.
fn publish(
    block: &mut Block,
    pace: &Pace,
    producer: u32,
    sequence: u64,
    count: u64,
    socket: &Socket,
    board: &Board,
) -> Result<u64, PerfError> {
    let messages = count as usize;
    if pace.is_stamped {
        block.stamp(Stamp { producer, sequence }, messages);
    }
    let bytes = block.run(sequence, messages);
    let written = write(socket, bytes, pace.patience(), board)?;
    // A message cut off in the middle is none.
    Ok(written as u64 * count / bytes.len() as u64)
}

/// Writes all bytes, however long the broker holds them back; once the run is over, only with
/// `patience`. Returns how many it wrote.
fn write(
    socket: &Socket,
    bytes: &[u8],
    patience: Duration,
    board: &Board,
) -> Result<usize, PerfError> {
    let mut rest = bytes;
    let mut stopped: Option<Instant> = None;
    loop {
        let done = if rest.is_empty() { socket.flush().map(|()| 0) } else { socket.write(rest) };
        match done {
            Ok(_) if rest.is_empty() => break,
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
fn write_closing(socket: &Socket, pace: &Pace, board: &Board) -> Result<bool, PerfError> {
    let closing = closing_frame();
    Ok(write(socket, &closing, pace.patience(), board)? == closing.len())
}

/// Sleeps in reads until the broker answers our close or the socket ends.
fn watch(inbox: &mut Inbox, board: &Board, name: &str) -> Result<(), PerfError> {
    let mut sink = Watching(Ears::new(board, name));
    while !sink.0.is_closed {
        inbox.read(&mut sink)?;
        if let Some(error) = sink.0.error.take() {
            return Err(error);
        }
    }
    Ok(())
}

/// A sink for a producer without confirms.
struct Watching<'a>(Ears<'a>);

impl Sink for Watching<'_> {
    fn delivery(&mut self, _payload: &[u8]) {}
    fn body(&mut self, _body: &[u8]) {}
    fn method(&mut self, _channel: u16, payload: &[u8]) {
        self.0.hear(payload);
    }
}
