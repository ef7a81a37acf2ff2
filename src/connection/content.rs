//! A publish being received: method, content header and body frames, also across reads.
//!
//! Owns the rules of content framing (specification sections 2.3.5.2 and 4.2.6) and the memory of
//! a body that is not complete yet. A message that is whole in one read is never copied here. It
//! must not know where a message goes.

use std::sync::Arc;

use bytes::Bytes;

use crate::broker::{Memory, OwnedMessage, Span, Staged, Unfinished};
use crate::codec::frame::{Frame, FrameKind};
use crate::codec::hot::{self, ContentHeader};
use crate::error::{AmqpError, ReplyCode};
use crate::queue::SHARED_BODY_MIN;

/// RabbitMQ's hard limit on the size of a message.
const BODY_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// A body's buffer begins with so many times the size of its first frame, as far as that is no
/// larger than this (bytes): what is announced need never come.
const RESERVE_FRAMES: usize = 8;
const RESERVE_FRAME_MAX: usize = 128 * 1024;

/// A body that is not complete is counted in steps of so many bytes.
const COUNTED_STEP: usize = 4 * 1024;

const PUBLISH: (u16, u16) = (60, 40);

/// A piece of a message: in the current read buffer, or copied when a read ended before it.
#[derive(Debug)]
enum Piece {
    Span(Span),
    Owned(Vec<u8>),
}

impl Piece {
    fn bytes<'a>(&'a self, buffer: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Span(span) => &buffer[span.range()],
            Self::Owned(bytes) => bytes,
        }
    }

    fn keep(&mut self, buffer: &[u8]) {
        if let Self::Span(span) = self {
            *self = Self::Owned(buffer[span.range()].to_vec());
        }
    }
}

#[derive(Debug)]
enum BodyParts {
    /// Nothing has come.
    Empty,
    /// All of it came in one frame.
    Whole(Span),
    /// Collected.
    Collected(Vec<u8>, Unfinished),
}

#[derive(Debug)]
struct Received {
    header: Piece,
    size: u64,
    body: BodyParts,
    len: u64,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Incoming {
    address: Piece,
    pub(super) mandatory: bool,
    received: Option<Received>,
}

/// A complete message, with its body still where it was received.
#[derive(Debug)]
pub(super) struct Message {
    address: Piece,
    header: Piece,
    body: BodyParts,
    pub(super) mandatory: bool,
}

impl Incoming {
    /// After basic.publish; `address` are its exchange and routing key in the read buffer.
    pub(super) fn new(address: Span, mandatory: bool) -> Self {
        Self { address: Piece::Span(address), mandatory, received: None }
    }

    /// Takes the frame that follows on the channel; `at` is the offset of its payload in the read
    /// buffer. Answers whether the content is complete.
    pub(super) fn take_frame(
        &mut self,
        frame: &Frame<'_>,
        at: usize,
        message_size_max: u64,
        memory: &Arc<Memory>,
    ) -> Result<bool, AmqpError> {
        match (&mut self.received, frame.kind) {
            (None, FrameKind::Header) => self.take_header(frame, at, message_size_max),
            (None, _) => Err(unexpected(
                "expected content header for class 60, got non content header frame instead",
            )),
            (Some(received), FrameKind::Body) => received.take_body(frame.payload, at, memory),
            (Some(_), _) => {
                Err(unexpected("expected content body, got non content body frame instead"))
            }
        }
    }

    fn take_header(
        &mut self,
        frame: &Frame<'_>,
        at: usize,
        message_size_max: u64,
    ) -> Result<bool, AmqpError> {
        let header = ContentHeader::parse(frame.payload)?;
        let (class, method) = PUBLISH;
        if header.weight != 0 {
            // RabbitMQ does not take it for a content header.
            return Err(unexpected(
                "expected content header for class 60, got non content header frame instead",
            ));
        }
        if header.class_id != class {
            let got = header.class_id;
            return Err(unexpected(&format!(
                "expected content header for class 60, got one for class {got} instead"
            )));
        }
        let size = header.body_size;
        if size > BODY_BYTES_MAX {
            let text =
                format!("content body size {size} exceeds maximum allowed size {BODY_BYTES_MAX}");
            return Err(AmqpError::new(ReplyCode::FrameError, text).of(class, method));
        }
        if size > message_size_max {
            let text = format!(
                "message size {size} is larger than configured max size {message_size_max}"
            );
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, text).of(class, method));
        }
        let header = Piece::Span(Span::new(at, frame.payload.len()));
        self.received = Some(Received { header, size, body: BodyParts::Empty, len: 0 });
        Ok(size == 0)
    }

    /// Copies what is still in the read buffer, which is about to be used again.
    pub(super) fn keep(&mut self, buffer: &[u8]) {
        self.address.keep(buffer);
        if let Some(received) = &mut self.received {
            received.header.keep(buffer);
        }
    }

    /// Gets ready for a large body frame that is taken in as it comes, unless it is not due or
    /// would be refused.
    pub(super) fn begin_part(&mut self, size: usize, memory: &Arc<Memory>) -> bool {
        let Some(received) = &mut self.received else { return false };
        let is_due = received.len + size as u64 <= received.size;
        if is_due {
            received.collect(size, memory);
        }
        is_due && matches!(received.body, BodyParts::Collected(..))
    }

    /// Takes in a part of that frame.
    pub(super) fn take_part(&mut self, part: &[u8]) -> Result<(), AmqpError> {
        self.room(part.len())?.0.extend_from_slice(part);
        self.body_came(part.len());
        Ok(())
    }

    /// The body, with room for so many bytes of that frame, and that number.
    pub(super) fn room(&mut self, bytes: usize) -> Result<(&mut Vec<u8>, usize), AmqpError> {
        let received = self.received.as_mut().expect("a part has begun");
        received.make_room(bytes)?;
        let BodyParts::Collected(body, _) = &mut received.body else {
            unreachable!("a part has begun");
        };
        Ok((body, bytes))
    }

    /// So many bytes were added to the body.
    pub(super) fn body_came(&mut self, bytes: usize) {
        let received = self.received.as_mut().expect("a part has begun");
        received.len += bytes as u64;
    }

    /// The last bytes of the body.
    pub(super) fn last(&self, bytes: usize) -> &[u8] {
        match self.received.as_ref().map(|received| &received.body) {
            Some(BodyParts::Collected(body, _)) => &body[body.len().saturating_sub(bytes)..],
            _ => &[],
        }
    }

    /// Whether all of the content is there.
    pub(super) fn is_complete(&self) -> bool {
        self.received.is_some() && self.left() == 0
    }

    /// Bytes of the body that have not come, as far as is known.
    pub(super) fn left(&self) -> u64 {
        self.received.as_ref().map_or(0, |received| received.size - received.len)
    }

    /// The message, once [`Incoming::take_frame`] has answered that it is complete.
    pub(super) fn into_message(self) -> Message {
        let received = self.received.expect("complete content has a header");
        let Self { address, mandatory, .. } = self;
        Message { address, header: received.header, body: received.body, mandatory }
    }
}

impl Received {
    fn take_body(
        &mut self,
        payload: &[u8],
        at: usize,
        memory: &Arc<Memory>,
    ) -> Result<bool, AmqpError> {
        self.len += payload.len() as u64;
        if self.len > self.size {
            let text = "content body frame exceeds remaining content size";
            let (class, method) = PUBLISH;
            return Err(AmqpError::new(ReplyCode::FrameError, text).of(class, method));
        }
        let whole = self.len == self.size;
        if whole && matches!(self.body, BodyParts::Empty) && payload.len() < SHARED_BODY_MIN {
            self.body = BodyParts::Whole(Span::new(at, payload.len()));
            return Ok(true);
        }
        self.collect(payload.len(), memory);
        if !matches!(self.body, BodyParts::Collected(..)) {
            // A whole body was followed by another frame, which the size check above refuses
            // unless that frame is empty.
            return Ok(whole);
        }
        self.make_room(payload.len())?;
        let BodyParts::Collected(body, _) = &mut self.body else { unreachable!("looked at above") };
        body.extend_from_slice(payload);
        Ok(whole)
    }

    /// Begins to collect the body with a frame of this size, if nothing of it has come.
    fn collect(&mut self, frame: usize, memory: &Arc<Memory>) {
        if matches!(self.body, BodyParts::Empty) {
            let reserve = frame.min(RESERVE_FRAME_MAX) * RESERVE_FRAMES;
            let body = Vec::with_capacity(reserve.min(self.size as usize));
            self.body = BodyParts::Collected(body, Unfinished::new(memory));
        }
    }

    /// Makes room for so many bytes more in a body that is collected, and counts them.
    fn make_room(&mut self, bytes: usize) -> Result<(), AmqpError> {
        let BodyParts::Collected(body, unfinished) = &mut self.body else { return Ok(()) };
        let len = body.len() + bytes;
        if len > body.capacity() {
            // Double, but never beyond what was announced.
            let want = (body.capacity() * 2).min(self.size as usize).max(len);
            body.reserve_exact(want - body.len());
        }
        // Room that nothing was written to takes no memory.
        unfinished.resize(len.next_multiple_of(COUNTED_STEP))
    }
}

impl Message {
    /// The exchange that it was published to.
    pub(super) fn exchange<'a>(&'a self, buffer: &'a [u8]) -> &'a [u8] {
        hot::split_address(self.address.bytes(buffer)).0
    }

    /// The payload of the content header frame.
    pub(super) fn header<'a>(&'a self, buffer: &'a [u8]) -> &'a [u8] {
        self.header.bytes(buffer)
    }

    /// Replaces the content header.
    pub(super) fn set_header(&mut self, header: Vec<u8>) {
        self.header = Piece::Owned(header);
    }

    /// The message for a batch that is committed while `buffer` lasts.
    pub(super) fn into_staged(self, buffer: &[u8], memory: &Arc<Memory>) -> Staged {
        match (&self.address, &self.header, &self.body) {
            (Piece::Span(address), Piece::Span(header), BodyParts::Whole(body)) => {
                Staged::InBuffer { address: *address, header: *header, body: *body }
            }
            (Piece::Span(address), Piece::Span(header), BodyParts::Empty) => {
                let body = Span::new(0, 0);
                Staged::InBuffer { address: *address, header: *header, body }
            }
            _ => Staged::Owned(Box::new(self.into_owned(buffer).counted(memory))),
        }
    }

    /// The message with everything copied that is in the read buffer. Its body is not in the
    /// memory gauge.
    pub(super) fn into_owned(mut self, buffer: &[u8]) -> OwnedMessage {
        self.address.keep(buffer);
        self.header.keep(buffer);
        let body = match self.body {
            BodyParts::Empty => Bytes::new(),
            BodyParts::Whole(span) => Bytes::copy_from_slice(&buffer[span.range()]),
            BodyParts::Collected(body, _) => body.into(),
        };
        let (Piece::Owned(address), Piece::Owned(header)) = (self.address, self.header) else {
            unreachable!("both were kept above")
        };
        OwnedMessage { address, header, body }
    }
}

fn unexpected(text: &str) -> AmqpError {
    let (class, method) = PUBLISH;
    AmqpError::new(ReplyCode::UnexpectedFrame, text).of(class, method)
}
