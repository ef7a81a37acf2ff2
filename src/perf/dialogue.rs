//! A connection on which encoded requests are written and their answers only counted.
//!
//! Owns the order of the handshake and what a wrong answer means. What can be encoded once is: an
//! operation costs the generator its system calls and a walk over frame headers.

use std::time::Instant;

use super::inbox::Inbox;
use super::latency::Latencies;
use super::link::{ANSWER_TIMEOUT, CHANNEL, Link, Notice, PerfError, closing_frame};
use super::methods;
use super::socket::{Endpoint, Socket};
use super::walk::Sink;
use crate::codec::encode::PROTOCOL_HEADER;
use crate::codec::hot;

/// Class and method of an answer.
pub(crate) type Answer = (u16, u16);

const CONNECTION_START: Answer = (10, 10);
const CONNECTION_TUNE: Answer = (10, 30);
const CONNECTION_OPEN_OK: Answer = (10, 41);
const CONNECTION_CLOSE_OK: Answer = (10, 51);
/// `channel.open-ok`
pub(crate) const CHANNEL_OPEN_OK: Answer = (20, 11);
/// `channel.close-ok`
pub(crate) const CHANNEL_CLOSE_OK: Answer = (20, 41);
/// `queue.declare-ok`
pub(crate) const QUEUE_DECLARE_OK: Answer = (50, 11);
/// `queue.bind-ok`
pub(crate) const QUEUE_BIND_OK: Answer = (50, 21);
/// `queue.delete-ok`
pub(crate) const QUEUE_DELETE_OK: Answer = (50, 41);
/// `basic.get-ok`
pub(crate) const BASIC_GET_OK: Answer = (60, 71);

/// Bytes per read at most: answers are short.
const BUFFER_BYTES: usize = 16 << 10;

/// What opens and closes a connection, encoded.
pub(crate) struct Opening {
    endpoint: Endpoint,
    steps: Vec<(Vec<u8>, Answer)>,
    closing: Vec<u8>,
}

impl Opening {
    /// For connections to the broker that `control` is connected to, with the same limits.
    pub(crate) fn like(control: &Link, endpoint: &Endpoint) -> Self {
        let uri = &endpoint.uri;
        let tune_ok = methods::tune_ok(control.channel_max(), control.frame_max());
        let mut tune_and_open = methods::frame(0, &tune_ok);
        tune_and_open.extend(methods::frame(0, &methods::open(uri)));
        let steps = vec![
            (PROTOCOL_HEADER.to_vec(), CONNECTION_START),
            (methods::frame(0, &methods::start_ok(uri)), CONNECTION_TUNE),
            (tune_and_open, CONNECTION_OPEN_OK),
            (methods::frame(CHANNEL, &methods::open_channel()), CHANNEL_OPEN_OK),
        ];
        Self { endpoint: endpoint.clone(), steps, closing: closing_frame() }
    }
}

/// One open connection with one channel.
pub(crate) struct Dialogue<'a> {
    socket: Socket,
    inbox: Inbox,
    opening: &'a Opening,
}

impl<'a> Dialogue<'a> {
    /// Opens a connection and a channel.
    pub(crate) fn open(opening: &'a Opening) -> Result<Self, PerfError> {
        let socket = opening.endpoint.connect()?;
        let inbox = Inbox::new(socket.clone(), Vec::new(), BUFFER_BYTES);
        let mut dialogue = Self { socket, inbox, opening };
        for (bytes, answer) in &opening.steps {
            dialogue.ask(bytes, &mut Answers::new(*answer, 1))?;
        }
        Ok(dialogue)
    }

    /// Writes requests and waits for all their answers.
    pub(crate) fn ask(&mut self, bytes: &[u8], answers: &mut Answers<'_>) -> Result<(), PerfError> {
        self.socket.send(bytes)?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        while answers.left > 0 {
            let is_some = self.inbox.read(answers)?;
            if let Some(error) = answers.error.take() {
                return Err(error);
            }
            if !is_some && Instant::now() > deadline {
                return Err(PerfError::Late("answer a request"));
            }
        }
        Ok(())
    }

    /// Closes the connection and waits for the answer.
    pub(crate) fn close(mut self) -> Result<(), PerfError> {
        self.ask(&self.opening.closing, &mut Answers::new(CONNECTION_CLOSE_OK, 1))
    }
}

/// The answers that are still to come.
pub(crate) struct Answers<'a> {
    expected: Answer,
    left: u64,
    error: Option<PerfError>,
    now: Instant,
    timed: Option<(Instant, &'a mut Latencies)>,
}

impl<'a> Answers<'a> {
    /// `count` answers of one kind.
    pub(crate) fn new(expected: Answer, count: u64) -> Self {
        Self { expected, left: count, error: None, now: Instant::now(), timed: None }
    }

    /// Notes the time from `began` to each answer.
    pub(crate) fn timed(self, began: Instant, latencies: &'a mut Latencies) -> Self {
        Self { timed: Some((began, latencies)), ..self }
    }
}

impl Sink for Answers<'_> {
    fn received(&mut self) {
        if self.timed.is_some() {
            self.now = Instant::now();
        }
    }
    fn delivery(&mut self, _payload: &[u8]) {}
    fn body(&mut self, _body: &[u8]) {}
    fn method(&mut self, _channel: u16, payload: &[u8]) {
        let ids = hot::method_ids(payload);
        if ids == self.expected && self.left > 0 {
            self.left -= 1;
            if let Some((began, latencies)) = &mut self.timed {
                latencies.record(self.now - *began);
            }
            return;
        }
        let error = match Notice::of(payload) {
            Notice::Fatal(error) => error,
            Notice::Blocked(_) | Notice::Unblocked => return,
            Notice::CloseOk | Notice::Other => {
                PerfError::Protocol(format!("method {ids:?} instead of {:?}", self.expected))
            }
        };
        self.error.get_or_insert(error);
    }
}
