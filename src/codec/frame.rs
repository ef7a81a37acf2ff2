//! Splitting a read buffer into frames (specification section 4.2.3).
//!
//! Owns the frame's header, its size limit and its end byte, and the texts that describe broken
//! frames to the client. It must not look into payloads beyond what tells a frame of a known
//! kind from an unknown one, and it never waits for a payload that it will refuse.

use super::value::{erlang_binary, erlang_bytes};
use crate::error::{AmqpError, ReplyCode};

/// The byte that ends every frame.
pub const FRAME_END: u8 = 0xCE;
/// Bytes of a frame around its payload: type, channel, size and the end byte.
pub const FRAME_OVERHEAD: usize = 8;
/// The smallest `frame_max` that a peer must accept (specification section 1.1).
pub const FRAME_MIN: u32 = 4096;

/// Bytes of a frame before its payload.
pub(crate) const FRAME_HEAD: usize = 7;
/// Frame types on the wire.
pub(crate) const METHOD: u8 = 1;
pub(crate) const HEADER: u8 = 2;
pub(crate) const BODY: u8 = 3;
pub(crate) const HEARTBEAT: u8 = 8;

/// How many bytes of a payload an error shows.
const SNIPPET: usize = 16;
/// Clients that count the frame's overhead wrongly send up to this much more than `frame_max`
/// allows; RabbitMQ lets them, and so do we.
const SIZE_TOLERANCE: u64 = 8;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A method: at least class and method number.
    Method,
    /// A content header: at least class, weight and body size.
    Header,
    /// A piece of a content body.
    Body,
    /// A heartbeat, always empty.
    Heartbeat,
}

impl FrameKind {
    /// The frame type on the wire.
    pub fn wire(self) -> u8 {
        match self {
            Self::Method => METHOD,
            Self::Header => HEADER,
            Self::Body => BODY,
            Self::Heartbeat => HEARTBEAT,
        }
    }

    /// The kind of a frame of this type with this payload, if RabbitMQ would know it as one.
    fn of(kind: u8, payload: &[u8]) -> Option<Self> {
        match kind {
            METHOD if payload.len() >= 4 => Some(Self::Method),
            HEADER if payload.len() >= 12 => Some(Self::Header),
            BODY => Some(Self::Body),
            HEARTBEAT if payload.is_empty() => Some(Self::Heartbeat),
            _ => None,
        }
    }
}

/// One frame, borrowed from the read buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the payload is.
    pub kind: FrameKind,
    /// The channel it is for; 0 is the connection itself.
    pub channel: u16,
    /// The bytes between head and end byte.
    pub payload: &'a [u8],
}

/// Takes the first frame off the buffer, with the number of bytes it took. `Ok(None)` means that
/// more bytes are needed; `frame_max` 0 means no limit.
///
/// The size is checked as soon as it is there, so that nobody can make us wait for (and buffer)
/// a payload that is refused in the end.
#[inline]
pub fn split(buffer: &[u8], frame_max: u32) -> Result<Option<(Frame<'_>, usize)>, AmqpError> {
    let Some((head, rest)) = buffer.split_first_chunk::<FRAME_HEAD>() else {
        return Ok(None);
    };
    let [kind, channel_high, channel_low, size @ ..] = *head;
    let size = u32::from_be_bytes(size);
    if frame_max != 0 && u64::from(size) > payload_limit(frame_max) {
        return Err(frame_too_large(kind, size, frame_max));
    }
    let size = size as usize;
    // `get` at `size` needs one byte more than the payload: the end byte.
    let Some(&end) = rest.get(size) else {
        return Ok(None);
    };
    let payload = &rest[..size];
    if end != FRAME_END {
        return Err(invalid_end(kind, payload, end));
    }
    let Some(known) = FrameKind::of(kind, payload) else {
        return Err(unknown_frame(kind, payload));
    };
    let channel = u16::from_be_bytes([channel_high, channel_low]);
    Ok(Some((Frame { kind: known, channel, payload }, size + FRAME_OVERHEAD)))
}

/// The largest payload taken under this `frame_max`.
fn payload_limit(frame_max: u32) -> u64 {
    u64::from(frame_max).saturating_sub(FRAME_OVERHEAD as u64) + SIZE_TOLERANCE
}

#[cold]
fn frame_too_large(kind: u8, size: u32, frame_max: u32) -> AmqpError {
    let limit = i64::from(frame_max) - FRAME_OVERHEAD as i64;
    frame_error(format!("{}: {{frame_too_large,{size},{limit}}}", describe(kind, &[])))
}

/// The refusal of a frame that ends with another byte than [`FRAME_END`].
#[cold]
pub(crate) fn invalid_end(kind: u8, payload: &[u8], end: u8) -> AmqpError {
    frame_error(format!("{}: {{invalid_frame_end_marker,{end}}}", describe(kind, payload)))
}

#[cold]
fn unknown_frame(kind: u8, payload: &[u8]) -> AmqpError {
    frame_error(format!("{}: unknown_frame", describe(kind, payload)))
}

fn frame_error(text: String) -> AmqpError {
    AmqpError::new(ReplyCode::FrameError, text)
}

/// The 501 for method arguments that cannot be decoded, as RabbitMQ words it: always as numbers,
/// printable or not.
#[cold]
pub(crate) fn cannot_decode(class_id: u16, method_id: u16, arguments: &[u8]) -> AmqpError {
    // Each byte prints as two characters or more, and the reply text is cut at 255.
    let shown = &arguments[..arguments.len().min(128)];
    frame_error(format!("cannot decode {}", erlang_bytes(shown))).of(class_id, method_id)
}

/// Describes a frame in the words of RabbitMQ's frame errors: its type and its payload, or the
/// first 16 bytes of it.
pub fn describe(kind: u8, payload: &[u8]) -> String {
    match payload.get(..SNIPPET) {
        Some(start) if payload.len() > SNIPPET => {
            format!("type {kind}, first 16 octets = {}", erlang_binary(start))
        }
        _ => format!("type {kind}, all octets = {}", erlang_binary(payload)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, channel: u16, payload: &[u8], end: u8) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&channel.to_be_bytes());
        bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes.push(end);
        bytes
    }

    fn refusal(bytes: &[u8]) -> String {
        let error = split(bytes, 131_072).expect_err("a broken frame");
        assert_eq!((error.class_id, error.method_id), (0, 0));
        error.reply_text()
    }

    #[test]
    fn frames_are_split_off_one_by_one() {
        let mut bytes = frame(1, 7, &[0, 60, 0, 40, 9], FRAME_END);
        let first = bytes.len();
        bytes.extend_from_slice(&frame(8, 0, &[], FRAME_END));
        let (method, used) = split(&bytes, 4096).unwrap().unwrap();
        assert_eq!(used, first);
        let payload = &[0, 60, 0, 40, 9][..];
        assert_eq!(method, Frame { kind: FrameKind::Method, channel: 7, payload });
        let (heartbeat, used) = split(&bytes[first..], 4096).unwrap().unwrap();
        assert_eq!((heartbeat.kind, used), (FrameKind::Heartbeat, 8));
        assert_eq!(split(&[], 4096), Ok(None));
    }

    #[test]
    fn every_truncation_asks_for_more() {
        let bytes = frame(3, 1, b"some body", FRAME_END);
        for end in 0..bytes.len() {
            assert_eq!(split(&bytes[..end], 4096), Ok(None), "{end} bytes");
        }
    }

    #[test]
    fn a_size_above_the_limit_is_refused_before_its_payload_arrives() {
        let mut head = frame(3, 1, &[], FRAME_END);
        head.truncate(7);
        head[3..].copy_from_slice(&200_000u32.to_be_bytes());
        assert_eq!(
            refusal(&head),
            "FRAME_ERROR - type 3, all octets = <<>>: {frame_too_large,200000,131064}"
        );
        // Eight bytes too many are let pass, the ninth is not.
        head[3..].copy_from_slice(&131_072u32.to_be_bytes());
        assert_eq!(split(&head, 131_072), Ok(None));
        head[3..].copy_from_slice(&131_073u32.to_be_bytes());
        assert!(split(&head, 131_072).is_err());
        head[3..].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(split(&head, 0), Ok(None));
    }

    #[test]
    fn broken_frames_are_described_as_by_rabbitmq() {
        let prefix = "FRAME_ERROR - type ";
        assert_eq!(
            refusal(&frame(9, 0, b"", FRAME_END)),
            format!("{prefix}9, all octets = <<>>: unknown_frame")
        );
        assert_eq!(
            refusal(&frame(8, 0, b"abc", FRAME_END)),
            format!("{prefix}8, all octets = <<\"abc\">>: unknown_frame")
        );
        assert_eq!(
            refusal(&frame(1, 1, &[0, 60, 0], FRAME_END)),
            format!("{prefix}1, all octets = <<0,60,0>>: unknown_frame")
        );
        assert_eq!(
            refusal(&frame(2, 1, &[0; 11], FRAME_END)),
            format!("{prefix}2, all octets = <<0,0,0,0,0,0,0,0,0,0,0>>: unknown_frame")
        );
        assert_eq!(
            refusal(&frame(1, 1, b"0123456789abcdefgh", 0)),
            format!(
                "{prefix}1, first 16 octets = <<\"0123456789abcdef\">>: \
                 {{invalid_frame_end_marker,0}}"
            )
        );
        assert_eq!(
            refusal(&frame(3, 1, b"0123456789abcdef", 1)),
            format!(
                "{prefix}3, all octets = <<\"0123456789abcdef\">>: {{invalid_frame_end_marker,1}}"
            )
        );
    }

    #[test]
    fn undecodable_arguments_print_as_numbers() {
        let error = cannot_decode(50, 10, b"abc");
        assert_eq!(error.reply_text(), "FRAME_ERROR - cannot decode <<97,98,99>>");
        assert_eq!((error.class_id, error.method_id), (50, 10));
        assert_eq!(cannot_decode(50, 10, &[0; 100_000]).reply_text().len(), 255);
    }
}
