//! The reading half of a running producer or consumer: one large buffer, reused.
//!
//! Owns the buffer and the walk over it. What the frames mean is the sink's business.

use std::time::{Duration, Instant};

use super::link::{Notice, PerfError, is_timeout};
use super::socket::Socket;
use super::walk::{Sink, Walk};

/// A socket and the bytes read from it.
pub(crate) struct Inbox {
    socket: Socket,
    buffer: Vec<u8>,
    filled: usize,
    /// Whether `buffer` begins with bytes that were read before this inbox took over.
    has_leftover: bool,
    walk: Walk,
}

impl Inbox {
    /// Takes a connection over, with what was read from it already.
    pub(crate) fn new(socket: Socket, leftover: Vec<u8>, capacity: usize) -> Self {
        let filled = leftover.len();
        let mut buffer = leftover;
        buffer.resize(capacity.max(filled * 2), 0);
        Self { socket, buffer, filled, has_leftover: filled > 0, walk: Walk::default() }
    }

    /// Waits until there is something to read, at most for `timeout`; returns whether there is.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        self.has_leftover || self.socket.wait(timeout)
    }

    /// Deliveries completed so far.
    pub(crate) fn deliveries(&self) -> u64 {
        self.walk.deliveries()
    }

    /// Reads once and walks what came; `false` when nothing came within the socket's timeout.
    pub(crate) fn read<S: Sink>(&mut self, sink: &mut S) -> Result<bool, PerfError> {
        if !self.has_leftover {
            match self.socket.read(&mut self.buffer[self.filled..]) {
                Ok(0) => return Err(PerfError::Gone("during the run")),
                Ok(count) => self.filled += count,
                Err(error) if is_timeout(&error) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        self.has_leftover = false;
        sink.received();
        let walked = self.walk.walk(&self.buffer[..self.filled], sink);
        let used = walked.map_err(|error| PerfError::Protocol(error.to_string()))?;
        self.buffer.copy_within(used..self.filled, 0);
        self.filled -= used;
        if self.filled == self.buffer.len() {
            self.buffer.resize(self.filled * 2, 0);
        }
        Ok(true)
    }

    /// Reads on after our `connection.close` until its answer, the end or the deadline. It is a
    /// courtesy: a broker that does not answer is not an error any more.
    pub(crate) fn await_close(&mut self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut closing = Closing(false);
        while !closing.0 && Instant::now() < deadline && self.read(&mut closing).is_ok() {}
    }
}

struct Closing(bool);

impl Sink for Closing {
    fn delivery(&mut self, _payload: &[u8]) {}
    fn body(&mut self, _body: &[u8]) {}
    fn method(&mut self, _channel: u16, payload: &[u8]) {
        self.0 |= matches!(Notice::of(payload), Notice::CloseOk | Notice::Fatal(_));
    }
}
