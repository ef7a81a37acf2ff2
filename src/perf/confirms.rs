//! Publisher confirms as a producer hears them: counted, in a timed run timed, one or many.
//!
//! Owns what methods mean to a publisher's connection. The window's arithmetic is in `window`.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::block::Stamp;
use super::board::Board;
use super::ears::Ears;
use super::inbox::Inbox;
use super::link::{FINISH_TIMEOUT, Link, PerfError, closing_frame};
use super::socket::Socket;
use super::timetable::Lateness;
use super::walk::Sink;
use super::window::Window;
use crate::codec::hot::{self, Settle};

/// Counts confirms.
pub(crate) struct Confirms<'a> {
    /// The publishes that wait.
    pub(crate) window: Window,
    board: &'a Board,
    worker: usize,
    ears: Ears<'a>,
    /// The producer's number and the times of its confirms, in a timed run.
    pub(crate) lateness: Option<(u32, Lateness)>,
}

impl<'a> Confirms<'a> {
    /// Counts them for a worker of the board.
    pub(crate) fn new(board: &'a Board, worker: usize, name: &'a str) -> Self {
        let ears = Ears::new(board, name);
        Self { window: Window::default(), board, worker, ears, lateness: None }
    }

    /// Reads once; `false` when nothing came.
    pub(crate) fn read(&mut self, inbox: &mut Inbox) -> Result<bool, PerfError> {
        let is_some = inbox.read(self)?;
        self.ears.error.take().map_or(Ok(is_some), Err)
    }
}

impl Sink for Confirms<'_> {
    fn received(&mut self) {
        if let Some((_, lateness)) = &mut self.lateness {
            lateness.look();
        }
    }
    fn delivery(&mut self, _payload: &[u8]) {}
    fn body(&mut self, _body: &[u8]) {}
    fn method(&mut self, _channel: u16, payload: &[u8]) {
        let (class_id, method_id) = hot::method_ids(payload);
        let settle = if class_id == hot::BASIC { Settle::parse(method_id, payload) } else { None };
        let (tag, multiple, is_taken) = match settle {
            Some(Ok(Settle::Ack { tag, multiple })) => (tag, multiple, true),
            Some(Ok(Settle::Nack { tag, multiple, .. })) => (tag, multiple, false),
            _ => return self.ears.hear(payload),
        };
        if let Some((producer, lateness)) = &mut self.lateness {
            // Tags count from 1, sequences from 0.
            let sequences = self.window.settling(tag, multiple).map(|tag| tag - 1);
            let stamps = sequences.map(|sequence| Stamp { producer: *producer, sequence });
            stamps.for_each(|stamp| lateness.note(stamp));
        }
        let Some(count) = self.window.settle(tag, multiple) else {
            let text = format!("a confirm for message {tag}, which was never sent");
            self.ears.error = Some(PerfError::Protocol(text));
            return;
        };
        let tally = self.board.tally(self.worker);
        let counter = if is_taken { &tally.confirmed } else { &tally.refused };
        counter.store(counter.load(Relaxed) + count, Relaxed);
    }
}

/// One message after the other, each of which waits for its confirm.
pub(crate) struct Asking<'a> {
    socket: Socket,
    inbox: Inbox,
    confirms: Confirms<'a>,
}

impl<'a> Asking<'a> {
    /// Takes a connection over; the board is for notices and for the counts of its first worker.
    pub(crate) fn new(mut link: Link, board: &'a Board) -> Result<Self, PerfError> {
        link.select_confirms()?;
        let (socket, leftover) = link.into_parts();
        let inbox = Inbox::new(socket.clone(), leftover, 64 << 10);
        Ok(Self { socket, inbox, confirms: Confirms::new(board, 0, "publisher") })
    }

    /// The time from the write to the confirm, or an error after `timeout` or a refusal.
    pub(crate) fn once(&mut self, bytes: &[u8], timeout: Duration) -> Result<Duration, PerfError> {
        let began = Instant::now();
        self.socket.send(bytes)?;
        self.confirms.window.sent(1);
        while self.confirms.window.outstanding() > 0 {
            if !self.confirms.read(&mut self.inbox)? && began.elapsed() > timeout {
                return Err(PerfError::Late("confirm a message"));
            }
        }
        let took = began.elapsed();
        match self.confirms.board.totals().refused {
            0 => Ok(took),
            _ => Err(PerfError::Refused("the broker refused a message".into())),
        }
    }

    /// Closes the connection.
    pub(crate) fn close(mut self) -> Result<(), PerfError> {
        self.socket.send(&closing_frame())?;
        self.inbox.await_close(FINISH_TIMEOUT);
        Ok(())
    }
}
