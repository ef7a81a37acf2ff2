//! Frames to clients, appended to an outgoing buffer.
//!
//! Owns the layout of every frame that is sent per message: deliver, get-ok, return, ack, nack,
//! content and heartbeat, and publish for our own clients. Exchange, routing key and content
//! header are copied as the publisher's frames had them. It reserves once per call and never
//! looks at what it copies; all else goes through `codec::method`.

use std::ops::Range;

use crate::codec::frame::{BODY, FRAME_END, FRAME_HEAD, FRAME_OVERHEAD, HEADER, HEARTBEAT, METHOD};
use crate::codec::hot::{ACK, BASIC, NACK, PUBLISH};

/// What a client sends first: AMQP 0-9-1.
pub const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\x00\x00\x09\x01";

const RETURN: u16 = 50;
const DELIVER: u16 = 60;
const GET_OK: u16 = 71;

/// Length of a short string at most.
const SHORT_STRING_MAX: usize = u8::MAX as usize;
/// Bytes of a deliver between consumer tag and address: delivery tag and redelivered bit.
const TAG_AND_BIT: usize = 9;

/// What all deliveries to one consumer begin with: frame head, method and consumer tag. The
/// frame's size is left open.
#[derive(Clone, Debug)]
pub struct DeliverHead {
    bytes: Box<[u8]>,
    channel: [u8; 2],
}

impl DeliverHead {
    /// The head for a consumer on a channel. Consumer tags are short strings; a longer one is a
    /// bug of the caller and is cut.
    pub fn new(channel: u16, consumer_tag: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(FRAME_HEAD + 5 + consumer_tag.len());
        put_method_head(&mut bytes, channel, 0, BASIC, DELIVER);
        put_short_string(&mut bytes, consumer_tag);
        Self { bytes: bytes.into_boxed_slice(), channel: channel.to_be_bytes() }
    }

    /// The channel it was made for.
    pub fn channel(&self) -> u16 {
        u16::from_be_bytes(self.channel)
    }

    /// Where the delivery tag is, from the frame's beginning.
    #[inline]
    fn tag_at(&self) -> usize {
        self.bytes.len()
    }

    /// Length of the whole deliver frame for an address of this length.
    #[inline]
    fn frame_length(&self, address_length: usize) -> usize {
        self.bytes.len() + TAG_AND_BIT + address_length + 1
    }
}

/// Appends `basic.deliver`. The content is to follow.
#[inline]
pub fn put_deliver(
    out: &mut Vec<u8>,
    head: &DeliverHead,
    delivery_tag: u64,
    redelivered: bool,
    address: &[u8],
) {
    let length = head.frame_length(address.len());
    out.reserve(length);
    let size = (length - FRAME_OVERHEAD) as u32;
    let start = out.len();
    out.extend_from_slice(&head.bytes);
    out[start + 3..start + FRAME_HEAD].copy_from_slice(&size.to_be_bytes());
    out.extend_from_slice(&tag_and_bits(delivery_tag, u8::from(redelivered)));
    out.extend_from_slice(address);
    out.push(FRAME_END);
}

/// Appends deliver, header and body of one message: [`put_deliver`] and [`put_content`] with a
/// single reservation.
#[inline]
#[allow(clippy::too_many_arguments)]
pub fn put_delivery(
    out: &mut Vec<u8>,
    head: &DeliverHead,
    delivery_tag: u64,
    redelivered: bool,
    frame_max: u32,
    address: &[u8],
    header: &[u8],
    body: &[u8],
) {
    let content = 3 * FRAME_OVERHEAD + header.len() + body.len();
    out.reserve(head.frame_length(address.len()) + content);
    put_deliver(out, head, delivery_tag, redelivered, address);
    put_content(out, head.channel(), frame_max, header, body);
}

/// Appends a delivery that differs from one which is whole in `out` in nothing but its tag and the
/// bytes of its body: `like` goes from that one's first byte to its body, which fits in one frame.
/// One copy instead of eight.
#[inline]
pub fn put_like_delivery(
    out: &mut Vec<u8>,
    like: Range<usize>,
    head: &DeliverHead,
    delivery_tag: u64,
    body: &[u8],
) {
    let tag_at = out.len() + head.tag_at();
    out.reserve(like.len() + body.len() + 1);
    out.extend_from_within(like);
    out[tag_at..tag_at + 8].copy_from_slice(&delivery_tag.to_be_bytes());
    // An empty body has no frame.
    if !body.is_empty() {
        out.extend_from_slice(body);
        out.push(FRAME_END);
    }
}

/// Appends `basic.get-ok`. The content is to follow.
pub fn put_get_ok(
    out: &mut Vec<u8>,
    channel: u16,
    delivery_tag: u64,
    redelivered: bool,
    address: &[u8],
    message_count: u32,
) {
    let arguments = TAG_AND_BIT + address.len() + 4;
    put_method_head(out, channel, arguments, BASIC, GET_OK);
    out.extend_from_slice(&tag_and_bits(delivery_tag, u8::from(redelivered)));
    out.extend_from_slice(address);
    out.extend_from_slice(&message_count.to_be_bytes());
    out.push(FRAME_END);
}

/// Appends `basic.return`. The content is to follow.
pub fn put_return(out: &mut Vec<u8>, channel: u16, code: u16, text: &str, address: &[u8]) {
    let mut length = text.len().min(SHORT_STRING_MAX);
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    let text = &text.as_bytes()[..length];
    let arguments = 2 + 1 + text.len() + address.len();
    put_method_head(out, channel, arguments, BASIC, RETURN);
    out.extend_from_slice(&code.to_be_bytes());
    put_short_string(out, text);
    out.extend_from_slice(address);
    out.push(FRAME_END);
}

/// Appends the content of one message: the header frame with the payload it came with, and the
/// body in frames of at most `frame_max` bytes (0: no limit). An empty body has no frame.
#[inline]
pub fn put_content(out: &mut Vec<u8>, channel: u16, frame_max: u32, header: &[u8], body: &[u8]) {
    let largest = body_frame_payload_max(frame_max);
    if body.len() > largest {
        return put_long_content(out, channel, largest, header, body);
    }
    out.reserve(header.len() + body.len() + 2 * FRAME_OVERHEAD);
    put_header(out, channel, header);
    if !body.is_empty() {
        put_body(out, channel, body);
    }
}

#[cold]
fn put_long_content(out: &mut Vec<u8>, channel: u16, largest: usize, header: &[u8], body: &[u8]) {
    let frames = 1 + body.len().div_ceil(largest);
    out.reserve(header.len() + body.len() + frames * FRAME_OVERHEAD);
    put_header(out, channel, header);
    for piece in body.chunks(largest) {
        put_body(out, channel, piece);
    }
}

#[inline]
fn put_body(out: &mut Vec<u8>, channel: u16, payload: &[u8]) {
    put_body_head(out, channel, payload.len() as u32);
    out.extend_from_slice(payload);
    out.push(FRAME_END);
}

/// The largest piece of a body that fits in one frame of `frame_max` bytes (0: no limit).
pub fn body_frame_payload_max(frame_max: u32) -> usize {
    let frame_max = if frame_max == 0 { u32::MAX } else { frame_max };
    // Negotiation refuses such small frames; but a piece of nothing would never end.
    (frame_max as usize).saturating_sub(FRAME_OVERHEAD).max(1)
}

/// Appends a header frame around a payload as it came.
#[inline]
pub fn put_header(out: &mut Vec<u8>, channel: u16, header: &[u8]) {
    out.reserve(header.len() + FRAME_OVERHEAD);
    out.extend_from_slice(&frame_head(HEADER, channel, header.len() as u32));
    out.extend_from_slice(header);
    out.push(FRAME_END);
}

/// Appends the first 7 bytes of a body frame. The caller adds that many bytes of body (chained,
/// when they are shared) and then [`FRAME_END`].
#[inline]
pub fn put_body_head(out: &mut Vec<u8>, channel: u16, payload_len: u32) {
    out.extend_from_slice(&frame_head(BODY, channel, payload_len));
}

/// Appends `basic.ack`: a publisher's confirm, or a consumer's acknowledgement.
pub fn put_ack(out: &mut Vec<u8>, channel: u16, tag: u64, multiple: bool) {
    put_settle(out, channel, ACK, tag, u8::from(multiple));
}

/// Appends the `basic.nack` of a publisher's message. The requeue bit, which means nothing to
/// publishers, is set as RabbitMQ sets it.
pub fn put_nack(out: &mut Vec<u8>, channel: u16, tag: u64, multiple: bool) {
    const REQUEUE: u8 = 2;
    put_settle(out, channel, NACK, tag, u8::from(multiple) | REQUEUE);
}

fn put_settle(out: &mut Vec<u8>, channel: u16, method_id: u16, tag: u64, bits: u8) {
    put_method_head(out, channel, TAG_AND_BIT, BASIC, method_id);
    out.extend_from_slice(&tag_and_bits(tag, bits));
    out.push(FRAME_END);
}

/// Appends a heartbeat.
pub fn put_heartbeat(out: &mut Vec<u8>) {
    out.extend_from_slice(&frame_head(HEARTBEAT, 0, 0));
    out.push(FRAME_END);
}

/// Appends `basic.publish`, for clients of our own. The content is to follow.
pub fn put_publish(
    out: &mut Vec<u8>,
    channel: u16,
    exchange: &[u8],
    routing_key: &[u8],
    mandatory: bool,
) {
    let exchange = &exchange[..exchange.len().min(SHORT_STRING_MAX)];
    let routing_key = &routing_key[..routing_key.len().min(SHORT_STRING_MAX)];
    let arguments = 2 + 1 + exchange.len() + 1 + routing_key.len() + 1;
    put_method_head(out, channel, arguments, BASIC, PUBLISH);
    out.extend_from_slice(&[0, 0]);
    put_short_string(out, exchange);
    put_short_string(out, routing_key);
    out.extend_from_slice(&[u8::from(mandatory), FRAME_END]);
}

/// Appends frame head, class and method, with room for arguments and end byte.
fn put_method_head(
    out: &mut Vec<u8>,
    channel: u16,
    arguments: usize,
    class_id: u16,
    method_id: u16,
) {
    out.reserve(FRAME_OVERHEAD + 4 + arguments);
    out.extend_from_slice(&frame_head(METHOD, channel, 4 + arguments as u32));
    out.extend_from_slice(&class_id.to_be_bytes());
    out.extend_from_slice(&method_id.to_be_bytes());
}

fn put_short_string(out: &mut Vec<u8>, text: &[u8]) {
    debug_assert!(text.len() <= SHORT_STRING_MAX);
    let text = &text[..text.len().min(SHORT_STRING_MAX)];
    out.push(text.len() as u8);
    out.extend_from_slice(text);
}

#[inline]
fn frame_head(kind: u8, channel: u16, size: u32) -> [u8; FRAME_HEAD] {
    let [c0, c1] = channel.to_be_bytes();
    let [s0, s1, s2, s3] = size.to_be_bytes();
    [kind, c0, c1, s0, s1, s2, s3]
}

#[inline]
fn tag_and_bits(tag: u64, bits: u8) -> [u8; TAG_AND_BIT] {
    let mut bytes = [bits; TAG_AND_BIT];
    bytes[..8].copy_from_slice(&tag.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::frame::{FrameKind, split};

    const ADDRESS: &[u8] = b"\x02ex\x03key";
    const HEADER_PAYLOAD: &[u8] = b"\0\x3c\0\0\0\0\0\0\0\0\0\x05\x10\0\x02";

    fn frames(mut bytes: &[u8]) -> Vec<(FrameKind, u16, Vec<u8>)> {
        let mut found = Vec::new();
        while let Some((frame, used)) = split(bytes, 0).unwrap() {
            found.push((frame.kind, frame.channel, frame.payload.to_vec()));
            bytes = &bytes[used..];
        }
        assert!(bytes.is_empty());
        found
    }

    #[test]
    fn a_delivery_is_deliver_header_and_body() {
        let head = DeliverHead::new(3, b"tag");
        let mut out = b"before".to_vec();
        put_delivery(&mut out, &head, 258, true, 4096, ADDRESS, HEADER_PAYLOAD, b"hello");
        let deliver = b"\0\x3c\0\x3c\x03tag\0\0\0\0\0\0\x01\x02\x01\x02ex\x03key".to_vec();
        assert_eq!(
            frames(&out[6..]),
            [
                (FrameKind::Method, 3, deliver),
                (FrameKind::Header, 3, HEADER_PAYLOAD.to_vec()),
                (FrameKind::Body, 3, b"hello".to_vec()),
            ]
        );
        let mut apart = b"before".to_vec();
        put_deliver(&mut apart, &head, 258, true, ADDRESS);
        put_content(&mut apart, 3, 4096, HEADER_PAYLOAD, b"hello");
        assert_eq!(out, apart);
        assert_eq!(head.channel(), 3);
    }

    #[test]
    fn a_like_delivery_is_as_if_encoded_anew() {
        let head = DeliverHead::new(3, b"tag");
        for body in [&b""[..], b"hello"] {
            let (mut out, mut anew) = (b"before".to_vec(), b"before".to_vec());
            for tag in [257, 1 << 40] {
                put_delivery(&mut anew, &head, tag, true, 4096, ADDRESS, HEADER_PAYLOAD, body);
            }
            put_delivery(&mut out, &head, 257, true, 4096, ADDRESS, HEADER_PAYLOAD, body);
            let body_at = out.len() - body.len() - usize::from(!body.is_empty());
            put_like_delivery(&mut out, 6..body_at, &head, 1 << 40, body);
            assert_eq!(out, anew);
        }
    }

    #[test]
    fn bodies_are_cut_at_frame_max() {
        let body: Vec<u8> = (0..=255).cycle().take(4088 * 2 + 1).collect();
        for (length, sizes) in [
            (0, vec![]),
            (1, vec![1]),
            (4088, vec![4088]),
            (4089, vec![4088, 1]),
            (4088 * 2, vec![4088, 4088]),
            (4088 * 2 + 1, vec![4088, 4088, 1]),
        ] {
            let mut out = Vec::new();
            put_content(&mut out, 1, 4096, HEADER_PAYLOAD, &body[..length]);
            let bodies = frames(&out).split_off(1);
            let found: Vec<usize> = bodies.iter().map(|(_, _, payload)| payload.len()).collect();
            assert_eq!(found, sizes);
            let joined: Vec<u8> = bodies.into_iter().flat_map(|(_, _, payload)| payload).collect();
            assert_eq!(joined, &body[..length]);
        }
        let mut out = Vec::new();
        put_content(&mut out, 1, 0, HEADER_PAYLOAD, &body);
        assert_eq!(frames(&out).len(), 2);
    }

    #[test]
    fn a_long_return_text_is_cut_at_a_character() {
        let mut out = Vec::new();
        put_return(&mut out, 1, 312, &"\u{e9}".repeat(200), ADDRESS);
        let payload = &frames(&out)[0].2;
        assert_eq!((payload[6], payload.len()), (254, 4 + 2 + 1 + 254 + ADDRESS.len()));
    }

    #[test]
    fn a_chained_body_frame_is_a_body_frame() {
        let mut out = Vec::new();
        put_body_head(&mut out, 9, 2);
        out.extend_from_slice(b"ab\xce");
        assert_eq!(frames(&out), [(FrameKind::Body, 9, b"ab".to_vec())]);
        out.clear();
        put_heartbeat(&mut out);
        assert_eq!(out, [8, 0, 0, 0, 0, 0, 0, 0xCE]);
    }
}
