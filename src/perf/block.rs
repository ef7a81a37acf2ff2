//! The pre-encoded block of publish frames that a producer writes again and again.
//!
//! Owns the wire form of a run of equal messages and, for verified runs, the stamp in each body.
//! It knows nothing of sockets, windows or rates.

use std::ops::Range;

use crate::codec::encode;
use crate::codec::frame::FRAME_OVERHEAD;
use crate::codec::hot::BASIC;
use crate::codec::method::{self, AMQPProperties};

/// The smallest body that holds a [`Stamp`].
pub(crate) const STAMP_LEN: usize = 16;

/// Marks a body as ours, so that a foreign message in the queue is told from a corrupt one.
const STAMP_MARK: u32 = 0x4C56_5254;

/// What each message of a block looks like.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// The channel that the frames name.
    pub(crate) channel: u16,
    /// The exchange; empty for the default one.
    pub(crate) exchange: String,
    /// The routing keys, which go round: at least one, and all of one length.
    pub(crate) keys: Vec<String>,
    /// Bytes of body.
    pub(crate) size: usize,
    /// The messages' properties.
    pub(crate) properties: AMQPProperties,
    /// The priorities 0, 1, ... below this go round; without it, messages carry none.
    pub(crate) priorities: Option<u8>,
    /// The frame size that was agreed with the broker.
    pub(crate) frame_max: u32,
}

impl Shape {
    /// After so many messages, keys and priorities come round together.
    pub(crate) fn period(&self) -> usize {
        period(self.keys.len(), self.priorities)
    }
}

/// The least common multiple of the numbers of keys and priorities.
pub(crate) fn period(keys: usize, priorities: Option<u8>) -> usize {
    let (keys, priorities) = (keys.max(1), usize::from(priorities.unwrap_or(1)));
    let (mut a, mut b) = (keys, priorities);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    (keys / a).saturating_mul(priorities)
}

/// Who sent a message, and as which: the first bytes of a verified body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The producer's number, from 0.
    pub(crate) producer: u32,
    /// The message's number within its producer, from 0.
    pub(crate) sequence: u64,
}

impl Stamp {
    fn write(self, body: &mut [u8]) {
        body[..4].copy_from_slice(&STAMP_MARK.to_be_bytes());
        body[4..8].copy_from_slice(&self.producer.to_be_bytes());
        body[8..STAMP_LEN].copy_from_slice(&self.sequence.to_be_bytes());
    }

    /// Reads a stamp back; `None` when the body is not one of ours.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        let body: &[u8; STAMP_LEN] = body.get(..STAMP_LEN)?.try_into().ok()?;
        let word =
            |at: usize| u32::from_be_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
        if word(0) != STAMP_MARK {
            return None;
        }
        let sequence = (u64::from(word(8)) << 32) | u64::from(word(12));
        Some(Self { producer: word(4), sequence })
    }
}

/// Messages that are equal but for their keys and priorities, encoded once.
pub(crate) struct Block {
    bytes: Vec<u8>,
    message_len: usize,
    body_offset: usize,
    messages: usize,
    /// After so many messages the block repeats itself.
    period: usize,
}

impl Block {
    /// Encodes as many messages as fit into `bytes_max`, at least one and at most `messages_max`.
    pub(crate) fn new(shape: &Shape, bytes_max: usize, messages_max: usize) -> Self {
        let mut bytes = Vec::with_capacity(bytes_max.max(shape.size + 512));
        put_message(&mut bytes, shape, 0);
        let message_len = bytes.len();
        let frames = shape.size.div_ceil(encode::body_frame_payload_max(shape.frame_max));
        // All body frames stand behind publish and header; the first body byte comes 7 bytes into
        // them, since of a frame's overhead only the end byte follows its payload.
        let body_offset =
            (message_len - shape.size + FRAME_OVERHEAD - 1).saturating_sub(FRAME_OVERHEAD * frames);
        let messages = (bytes_max / message_len).clamp(1, messages_max.max(1));
        // A run may begin at any message of the first period.
        let period = shape.period();
        (1..period).for_each(|number| put_message(&mut bytes, shape, number));
        debug_assert_eq!(bytes.len(), period * message_len, "all keys have one length");
        for number in period..messages + period - 1 {
            let like = (number % period) * message_len;
            bytes.extend_from_within(like..like + message_len);
        }
        Self { bytes, message_len, body_offset, messages, period }
    }

    /// The longest run of messages that the block can give.
    pub(crate) fn messages(&self) -> usize {
        self.messages
    }

    /// Writes the producer's number and consecutive sequences into the bodies of a [`Block::run`].
    pub(crate) fn stamp(&mut self, first: Stamp, count: usize) {
        let range = self.range(first.sequence, count);
        let messages = self.bytes[range].chunks_exact_mut(self.message_len);
        for (message, sequence) in messages.zip(first.sequence..) {
            Stamp { sequence, ..first }.write(&mut message[self.body_offset..]);
        }
    }

    /// The wire form of `count` messages, of which the first is number `sequence`.
    pub(crate) fn run(&self, sequence: u64, count: usize) -> &[u8] {
        &self.bytes[self.range(sequence, count)]
    }

    fn range(&self, sequence: u64, count: usize) -> Range<usize> {
        let first = (sequence % self.period as u64) as usize;
        first * self.message_len..(first + count) * self.message_len
    }
}

fn put_message(out: &mut Vec<u8>, shape: &Shape, number: usize) {
    let key = shape.keys.get(number % shape.keys.len().max(1)).map_or("", String::as_str);
    encode::put_publish(out, shape.channel, shape.exchange.as_bytes(), key.as_bytes(), false);
    let mut properties = shape.properties.clone();
    if let Some(levels) = shape.priorities {
        properties = properties.with_priority((number % usize::from(levels)) as u8);
    }
    let header = method::header_payload(BASIC, shape.size as u64, &properties);
    let body = vec![b'.'; shape.size];
    encode::put_content(out, shape.channel, shape.frame_max, &header, &body);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perf::walk::{Sink, Walk};

    fn shape(size: usize) -> Shape {
        Shape {
            channel: 1,
            exchange: String::new(),
            keys: vec!["q".into()],
            size,
            properties: AMQPProperties::default(),
            priorities: None,
            frame_max: 4096,
        }
    }

    #[derive(Default)]
    struct Stamps(Vec<Option<Stamp>>, usize);

    impl Sink for Stamps {
        fn delivery(&mut self, _payload: &[u8]) {}
        fn body(&mut self, body: &[u8]) {
            self.0.push(Stamp::read(body));
        }
        fn method(&mut self, _channel: u16, payload: &[u8]) {
            assert_eq!(payload[..4], [0, 60, 0, 40]);
            self.1 += 1;
        }
    }

    #[test]
    fn stamps_land_at_the_start_of_each_body() {
        for size in [16, 100, 4088, 4089, 10_000] {
            let mut block = Block::new(&shape(size), 64 << 10, 1000);
            let count = block.messages();
            block.stamp(Stamp { producer: 7, sequence: 1 << 33 }, count);
            let mut found = Stamps::default();
            let bytes = block.run(1 << 33, count);
            assert_eq!(Walk::default().walk(bytes, &mut found), Ok(bytes.len()));
            let expected = (0..count as u64)
                .map(|n| Some(Stamp { producer: 7, sequence: (1 << 33) + n }))
                .collect::<Vec<_>>();
            assert_eq!(found.0, expected, "size {size}");
            assert_eq!(found.1, count);
        }
    }

    #[test]
    fn a_block_holds_at_least_one_message_and_no_more_than_asked() {
        assert_eq!(Block::new(&shape(1 << 20), 64 << 10, 1000).messages(), 1);
        assert_eq!(Block::new(&shape(16), 64 << 10, 10).messages(), 10);
        let block = Block::new(&shape(0), 64 << 10, 5);
        assert_eq!(block.run(0, 5).len(), 5 * block.run(0, 1).len());
    }

    #[test]
    fn priorities_go_round_from_wherever_a_run_begins() {
        let properties = AMQPProperties::default();
        let properties = properties.with_delivery_mode(2).with_expiration("60000".into());
        let shape = Shape { properties, priorities: Some(3), ..shape(16) };
        for messages in [1, 2, 7] {
            let mut block = Block::new(&shape, 64 << 10, messages);
            let length = block.run(0, 1).len();
            for sequence in 0..7 {
                block.stamp(Stamp { producer: 1, sequence }, messages);
                let run = block.run(sequence, messages);
                assert_eq!(run.len(), messages * length);
                for (message, number) in run.chunks_exact(length).zip(sequence..) {
                    // 8 bytes of properties, an end byte, and the body in its frame.
                    let at = length - (16 + FRAME_OVERHEAD) - 1 - 8;
                    assert_eq!(message[at..at + 2], [2, (number % 3) as u8], "of {messages}");
                    assert_eq!(message[at + 2..at + 8], *b"\x0560000");
                    let stamp = Stamp::read(&message[length - 17..]);
                    assert_eq!(stamp, Some(Stamp { producer: 1, sequence: number }));
                }
            }
        }
    }

    #[test]
    fn keys_go_round_beside_priorities() {
        let keys: Vec<String> = (0..4).map(|number| format!("key.{number}")).collect();
        let shape = Shape { exchange: "x".into(), keys, priorities: Some(6), ..shape(16) };
        assert_eq!(shape.period(), 12);
        let block = Block::new(&shape, 64 << 10, 5);
        let length = block.run(0, 1).len();
        for (number, message) in block.run(7, 5).chunks_exact(length).enumerate() {
            let key = format!("\u{1}x\u{5}key.{}", (7 + number) % 4);
            let is_there = message.windows(key.len()).any(|part| part == key.as_bytes());
            assert!(is_there, "{key} in message {number}");
            let at = length - (16 + FRAME_OVERHEAD) - 2;
            assert_eq!(message[at], ((7 + number) % 6) as u8);
        }
    }

    #[test]
    fn foreign_bodies_have_no_stamp() {
        assert_eq!(Stamp::read(b"................"), None);
        assert_eq!(Stamp::read(b"LVRT"), None);
    }
}
