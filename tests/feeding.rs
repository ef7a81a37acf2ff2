//! How bytes are cut into reads must not change what a client sees.
//!
//! Owns random scripts of one client, the cutting of their bytes, and what makes two outputs the
//! same: replies and confirms in order, each confirm on its own; returns in order, each before its
//! confirm; deliveries in order for each consumer; and what is left in the queues at the end. The
//! reference is the script fed frame by frame, which leaves no two publishes in one read.
//!
//! What a client may not rely on, and scripts therefore leave out: settling in the same breath what
//! was just published, because the tag cannot be known before the delivery came. Each settlement
//! follows a method that is answered.
//!
//! `LEVERET_FEEDING_CASES` asks for more cases than the default.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use leveret::broker::{Broker, Outgoing};
use leveret::clock::Millis;
use leveret::codec::encode::{self, PROTOCOL_HEADER};
use leveret::codec::frame::{self, FRAME_END, FrameKind};
use leveret::codec::hot;
use leveret::codec::method::{
    AMQPClass, AMQPValue, FieldTable, basic, channel, confirm, connection, exchange, parse_method,
    put_method, queue, tx,
};
use leveret::config::Config;
use leveret::connection::{Connection, Next, Worker};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseResult;

/// Cases of each property, unless the environment asks for more.
const CASES: u32 = 160;
/// Larger than [`MESSAGE_MAX`], so that a message that is too large may come in one frame.
const FRAME_MAX: u32 = 48 * 1024;
const MESSAGE_MAX: u64 = 40_000;
/// From this size on, bodies are shared instead of copied.
const SHARED_BODY: usize = 16 * 1024;
/// What a script may publish in all: the outbox never fills, so that nobody waits for room.
const SCRIPT_BYTES_MAX: usize = 200 * 1024;
/// Scripts up to this length are also fed byte by byte.
const BYTEWISE_MAX: usize = 6000;

/// Channels 1 and 2 are in confirm mode, 3 is plain, 4 is transactional, 5 consumes with and 6
/// without acknowledgements, 7 gets.
const CHANNELS: [u16; 7] = [1, 2, 3, 4, 5, 6, 7];
const QUEUES: [&str; 6] = ["qa", "qb", "qr", "qd", "qc", "qn"];
/// Exchange and routing key.
const ADDRESSES: [(&str, &str); 14] = [
    ("", "qa"),
    ("", "qr"),
    ("d", "ka"),
    ("d", "kr"),
    ("", "qb"),
    ("", "qd"),
    ("", "qc"),
    ("", "qn"),
    ("d", "kc"),
    ("f", ""),
    ("t", "k.x"),
    ("h", ""),
    ("", "nowhere"),
    ("missing", "ka"),
];
const BINDINGS: [(&str, &str, &str); 8] = [
    ("d", "ka", "qa"),
    ("d", "kr", "qr"),
    ("d", "kr", "qb"),
    ("d", "kc", "qc"),
    ("f", "", "qa"),
    ("f", "", "qn"),
    ("t", "k.*", "qb"),
    ("h", "", "qb"),
];

/// Flags and list of properties. The first ones are ordinary; from [`SPECIAL_FROM`] on the broker
/// looks at them, from [`REFUSED_FROM`] on it refuses them.
const PROPERTIES: [&[u8]; 15] = [
    b"\0\0",
    b"\x90\0\x01t\x02",
    b"\0\x80\x02id",
    b"\0\x80\x02jd",
    b"\0\x01",
    b"\x02\0\x01r",
    b"\0\x10\x05guest",
    b"\x20\0\0\0\0\x07\x01xI\0\0\0\x01",
    b"\x20\0\0\0\0\x0F\x02CCA\0\0\0\x07S\0\0\0\x02qb",
    b"\x20\0\0\0\0\x10\x03BCCA\0\0\0\x07S\0\0\0\x02qb",
    b"\0\x10\x03eve",
    b"\x20\0\0\0\0\x08\x02CCI\0\0\0\x01",
    b"\x02\0\x17amq.rabbitmq.reply-to.z",
    b"\x80\0",
    b"\x01\0\x0410.0",
];
const SPECIAL_FROM: usize = 5;
const REFUSED_FROM: usize = 10;

#[derive(Clone, Debug)]
struct Message {
    address: usize,
    mandatory: bool,
    properties: usize,
    size: usize,
    /// Body frames.
    parts: usize,
    /// An empty body frame goes first.
    hollow: bool,
}

#[derive(Clone, Copy, Debug)]
enum Noise {
    None,
    /// A heartbeat after each frame with this index in the message.
    Heartbeat(usize),
}

/// What breaks the rules.
#[derive(Clone, Copy, Debug)]
enum Broken {
    OverlongBody,
    BodyWithoutMethod,
    BodyAfterEmpty,
    MethodForHeader,
    MethodForBody,
    HeaderOfOtherClass,
    HeaderWithWeight,
    TooLargeMessage,
    Immediate,
    UndecodablePublish,
    BadFrameEnd,
    HugeFrame,
    UnknownFrame,
}

#[derive(Clone, Debug)]
enum Op {
    /// The same publish several times.
    Run {
        channel: u16,
        message: Message,
        times: usize,
        noise: Noise,
    },
    /// Two messages, frame by frame in turn.
    Interleaved {
        first: (u16, Message),
        second: (u16, Message),
    },
    /// The same method and another header, several times.
    Changing {
        channel: u16,
        message: Message,
        properties: Vec<usize>,
    },
    Bind {
        channel: u16,
        binding: usize,
    },
    Unbind {
        channel: u16,
        binding: usize,
    },
    DeleteQueue {
        channel: u16,
        queue: usize,
    },
    DeclareQueue {
        channel: u16,
        queue: usize,
    },
    DeleteExchange {
        channel: u16,
    },
    DeclareExchange {
        channel: u16,
    },
    Purge {
        channel: u16,
        queue: usize,
    },
    Get {
        channel: u16,
        queue: usize,
        no_ack: bool,
    },
    Settle {
        channel: u16,
        settle: u16,
        tag: u64,
        bits: u8,
    },
    Commit {
        channel: u16,
    },
    Rollback {
        channel: u16,
    },
    Select {
        channel: u16,
        transactional: bool,
    },
    Flow {
        channel: u16,
    },
    Qos {
        channel: u16,
        prefetch: u16,
        global: bool,
    },
    Recover {
        channel: u16,
    },
    Consume {
        channel: u16,
        queue: usize,
        no_ack: bool,
    },
    Cancel {
        channel: u16,
    },
    Reopen {
        channel: u16,
    },
    Heartbeat,
    Break {
        channel: u16,
        broken: Broken,
    },
}

/// A script as frames; those of a broken piece count as one.
#[derive(Default)]
struct Script {
    frames: Vec<Vec<u8>>,
    bytes: usize,
    /// Numbers the messages, so that each has a body of its own.
    serial: u32,
}

fn raw(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&channel.to_be_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes.push(FRAME_END);
    bytes
}

fn content_header(class: u16, weight: u16, size: usize, properties: &[u8]) -> Vec<u8> {
    let size = (size as u64).to_be_bytes();
    [&class.to_be_bytes()[..], &weight.to_be_bytes(), &size, properties].concat()
}

fn publish(exchange: &str, key: &str, bits: u8) -> Vec<u8> {
    let mut payload = vec![0, 60, 0, 40, 0, 0, exchange.len() as u8];
    payload.extend_from_slice(exchange.as_bytes());
    payload.push(key.len() as u8);
    payload.extend_from_slice(key.as_bytes());
    payload.push(bits);
    payload
}

impl Script {
    fn push(&mut self, frame: Vec<u8>) {
        self.bytes += frame.len();
        self.frames.push(frame);
    }

    fn method(&mut self, channel: u16, method: AMQPClass) {
        let mut frame = Vec::new();
        put_method(&mut frame, channel, &method);
        self.push(frame);
    }

    fn heartbeat(&mut self) {
        let mut frame = Vec::new();
        encode::put_heartbeat(&mut frame);
        self.push(frame);
    }

    /// The frames of a message with a body that no other has, if that is not empty.
    fn message(&mut self, channel: u16, message: &Message) -> Vec<Vec<u8>> {
        self.serial += 1;
        let serial = self.serial;
        let pattern = (0u32..).flat_map(|i| serial.wrapping_mul(i + 0x3001).to_be_bytes());
        let body: Vec<u8> = pattern.take(message.size).collect();
        let (exchange, key) = ADDRESSES[message.address];
        let properties = PROPERTIES[message.properties];
        let mut frames = vec![
            raw(1, channel, &publish(exchange, key, u8::from(message.mandatory))),
            raw(2, channel, &content_header(60, 0, body.len(), properties)),
        ];
        if !body.is_empty() {
            if message.hollow {
                frames.push(raw(3, channel, &[]));
            }
            let room = FRAME_MAX as usize - 8;
            let part = body.len().div_ceil(message.parts).min(room);
            frames.extend(body.chunks(part).map(|part| raw(3, channel, part)));
        }
        frames
    }

    fn run(&mut self, op: &Op) {
        if self.bytes > SCRIPT_BYTES_MAX {
            return;
        }
        match op {
            Op::Run { channel, message, times, noise } => {
                for _ in 0..*times {
                    for (index, frame) in self.message(*channel, message).into_iter().enumerate() {
                        self.push(frame);
                        if matches!(noise, Noise::Heartbeat(after) if *after == index) {
                            self.heartbeat();
                        }
                    }
                }
            }
            Op::Interleaved { first, second } => {
                // The same before, so that both channels know the address.
                for (channel, message) in [first, second] {
                    let frames = self.message(*channel, message);
                    frames.into_iter().for_each(|frame| self.push(frame));
                }
                let mut first = self.message(first.0, &first.1).into_iter();
                let mut second = self.message(second.0, &second.1).into_iter();
                loop {
                    let (one, other) = (first.next(), second.next());
                    if one.is_none() && other.is_none() {
                        break;
                    }
                    one.into_iter().chain(other).for_each(|frame| self.push(frame));
                }
            }
            Op::Changing { channel, message, properties } => {
                for properties in properties {
                    let message = Message { properties: *properties, ..message.clone() };
                    let frames = self.message(*channel, &message);
                    frames.into_iter().for_each(|frame| self.push(frame));
                }
            }
            Op::Settle { channel, settle, tag, bits } => {
                self.method(*channel, flow());
                let tag = tag.to_be_bytes();
                let payload = [&[0, 60][..], &settle.to_be_bytes(), &tag, &[*bits]].concat();
                self.push(raw(1, *channel, &payload));
            }
            Op::Reopen { channel } => self.reopen(*channel),
            Op::Heartbeat => self.heartbeat(),
            Op::Break { channel, broken } => self.break_rules(*channel, *broken),
            op => {
                let (channel, method) = single_method(op);
                self.method(channel, method);
            }
        }
    }

    /// The channel as at the beginning, whatever state it is in.
    fn reopen(&mut self, number: u16) {
        let close = channel::Close { reply_code: 200, ..Default::default() };
        self.method(number, AMQPClass::Channel(channel::AMQPMethod::Close(close)));
        let ok = channel::AMQPMethod::CloseOk(channel::CloseOk {});
        self.method(number, AMQPClass::Channel(ok));
        self.open(number);
    }

    fn open(&mut self, number: u16) {
        let open = channel::AMQPMethod::Open(channel::Open {});
        self.method(number, AMQPClass::Channel(open));
        match number {
            1 | 2 => self.run(&Op::Select { channel: number, transactional: false }),
            4 => self.run(&Op::Select { channel: number, transactional: true }),
            5 => {
                self.run(&Op::Qos { channel: number, prefetch: 3, global: false });
                self.run(&Op::Consume { channel: number, queue: 4, no_ack: false });
            }
            6 => self.run(&Op::Consume { channel: number, queue: 5, no_ack: true }),
            _ => {}
        }
    }

    fn break_rules(&mut self, channel: u16, broken: Broken) {
        let method = || raw(1, channel, &publish("", "qa", 0));
        let header = |size| raw(2, channel, &content_header(60, 0, size, b"\0\0"));
        let body = |size: usize| raw(3, channel, &vec![0xCE; size]);
        let frames = match broken {
            Broken::OverlongBody => vec![method(), header(5), body(6)],
            Broken::BodyWithoutMethod => vec![body(1)],
            Broken::BodyAfterEmpty => vec![method(), header(0), body(0)],
            Broken::MethodForHeader => vec![method(), method()],
            Broken::MethodForBody => vec![method(), header(5), method()],
            Broken::HeaderOfOtherClass => {
                vec![method(), raw(2, channel, &content_header(50, 0, 1, b"\0\0")), body(1)]
            }
            Broken::HeaderWithWeight => {
                vec![method(), raw(2, channel, &content_header(60, 1, 1, b"\0\0")), body(1)]
            }
            Broken::TooLargeMessage => {
                let size = MESSAGE_MAX as usize + 1;
                vec![method(), header(size), body(size)]
            }
            Broken::Immediate => {
                vec![raw(1, channel, &publish("", "qa", 2)), header(1), body(1)]
            }
            Broken::UndecodablePublish => vec![raw(1, channel, &[0, 60, 0, 40, 0, 0, 9])],
            Broken::BadFrameEnd => {
                let mut frame = raw(8, 0, &[]);
                *frame.last_mut().expect("the end") = 0xCD;
                vec![frame]
            }
            Broken::HugeFrame => vec![vec![3, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF]],
            Broken::UnknownFrame => vec![raw(7, channel, b"what")],
        };
        // An ordinary message to the same address comes first.
        let ordinary = [method(), header(1), body(1)];
        ordinary.into_iter().chain(frames).for_each(|frame| self.push(frame));
    }
}

fn flow() -> AMQPClass {
    AMQPClass::Channel(channel::AMQPMethod::Flow(channel::Flow { active: true }))
}

/// The operations that are one method each.
fn single_method(op: &Op) -> (u16, AMQPClass) {
    use AMQPClass::{Basic, Channel, Confirm, Tx};
    match op {
        Op::Get { channel, queue, no_ack } => {
            let get = basic::Get { queue: QUEUES[*queue].into(), no_ack: *no_ack };
            (*channel, Basic(basic::AMQPMethod::Get(get)))
        }
        Op::Commit { channel } => (*channel, Tx(tx::AMQPMethod::Commit(tx::Commit {}))),
        Op::Rollback { channel } => (*channel, Tx(tx::AMQPMethod::Rollback(tx::Rollback {}))),
        Op::Select { channel, transactional: true } => {
            (*channel, Tx(tx::AMQPMethod::Select(tx::Select {})))
        }
        Op::Select { channel, .. } => {
            (*channel, Confirm(confirm::AMQPMethod::Select(confirm::Select { nowait: false })))
        }
        Op::Flow { channel } => {
            let flow = channel::Flow { active: true };
            (*channel, Channel(channel::AMQPMethod::Flow(flow)))
        }
        Op::Qos { channel, prefetch, global } => {
            let qos = basic::Qos { prefetch_count: *prefetch, global: *global };
            (*channel, Basic(basic::AMQPMethod::Qos(qos)))
        }
        Op::Recover { channel } => {
            (*channel, Basic(basic::AMQPMethod::Recover(basic::Recover { requeue: true })))
        }
        Op::Consume { channel, queue, no_ack } => {
            let consume = basic::Consume {
                queue: QUEUES[*queue].into(),
                consumer_tag: format!("c{channel}").into(),
                no_ack: *no_ack,
                ..Default::default()
            };
            (*channel, Basic(basic::AMQPMethod::Consume(consume)))
        }
        Op::Cancel { channel } => {
            let consumer_tag = format!("c{channel}").into();
            let cancel = basic::Cancel { consumer_tag, nowait: false };
            (*channel, Basic(basic::AMQPMethod::Cancel(cancel)))
        }
        op => topology_method(op),
    }
}

fn topology_method(op: &Op) -> (u16, AMQPClass) {
    use AMQPClass::{Exchange, Queue};
    match op {
        Op::Bind { channel, binding } => {
            let (exchange, key, queue) = BINDINGS[*binding];
            let mut arguments = FieldTable::default();
            if exchange == "h" {
                arguments.insert("x".into(), AMQPValue::LongInt(1));
            }
            let (queue, exchange) = (queue.into(), exchange.into());
            let bind =
                queue::Bind { queue, exchange, routing_key: key.into(), nowait: false, arguments };
            (*channel, Queue(queue::AMQPMethod::Bind(bind)))
        }
        Op::Unbind { channel, binding } => {
            let (exchange, key, queue) = BINDINGS[*binding];
            let arguments = FieldTable::default();
            let (queue, exchange) = (queue.into(), exchange.into());
            let unbind = queue::Unbind { queue, exchange, routing_key: key.into(), arguments };
            (*channel, Queue(queue::AMQPMethod::Unbind(unbind)))
        }
        Op::DeleteQueue { channel, queue } => {
            let delete = queue::Delete { queue: QUEUES[*queue].into(), ..Default::default() };
            (*channel, Queue(queue::AMQPMethod::Delete(delete)))
        }
        Op::DeclareQueue { channel, queue } => (*channel, declare_queue(QUEUES[*queue])),
        Op::DeleteExchange { channel } => {
            let delete = exchange::Delete { exchange: "d".into(), ..Default::default() };
            (*channel, Exchange(exchange::AMQPMethod::Delete(delete)))
        }
        Op::DeclareExchange { channel } => (*channel, declare_exchange("d", "direct")),
        Op::Purge { channel, queue } => {
            let purge = queue::Purge { queue: QUEUES[*queue].into(), nowait: false };
            (*channel, Queue(queue::AMQPMethod::Purge(purge)))
        }
        other => unreachable!("{other:?} is more than a method"),
    }
}

fn declare_queue(name: &str) -> AMQPClass {
    let mut arguments = FieldTable::default();
    match name {
        "qr" => {
            arguments.insert("x-max-length".into(), AMQPValue::LongInt(3));
            arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        }
        "qd" => {
            arguments.insert("x-max-length".into(), AMQPValue::LongInt(2));
        }
        _ => {}
    }
    let declare = queue::Declare { queue: name.into(), arguments, ..Default::default() };
    AMQPClass::Queue(queue::AMQPMethod::Declare(declare))
}

fn declare_exchange(name: &str, kind: &str) -> AMQPClass {
    let declare =
        exchange::Declare { exchange: name.into(), kind: kind.into(), ..Default::default() };
    AMQPClass::Exchange(exchange::AMQPMethod::Declare(declare))
}

/// Handshake, and channels 1 to `channels`.
fn handshake(script: &mut Script, channels: u16) {
    script.push(PROTOCOL_HEADER.to_vec());
    let mut capabilities = FieldTable::default();
    capabilities.insert("consumer_cancel_notify".into(), AMQPValue::Boolean(true));
    let mut client_properties = FieldTable::default();
    client_properties.insert("capabilities".into(), AMQPValue::FieldTable(capabilities));
    let start_ok = connection::StartOk {
        client_properties,
        mechanism: "PLAIN".into(),
        response: "\0guest\0guest".into(),
        locale: "en_US".into(),
    };
    let tune_ok = connection::TuneOk { channel_max: 100, frame_max: FRAME_MAX, heartbeat: 0 };
    let open = connection::Open { virtual_host: "/".into() };
    use connection::AMQPMethod as Method;
    for method in [Method::StartOk(start_ok), Method::TuneOk(tune_ok), Method::Open(open)] {
        script.method(0, AMQPClass::Connection(method));
    }
    for number in 1..=channels {
        let open = channel::AMQPMethod::Open(channel::Open {});
        script.method(number, AMQPClass::Channel(open));
    }
}

/// What all scripts begin with.
fn preamble() -> Vec<u8> {
    let mut script = Script::default();
    handshake(&mut script, 1);
    for name in QUEUES {
        script.method(1, declare_queue(name));
    }
    for (name, kind) in [("d", "direct"), ("f", "fanout"), ("t", "topic"), ("h", "headers")] {
        script.method(1, declare_exchange(name, kind));
    }
    for binding in 0..BINDINGS.len() {
        script.run(&Op::Bind { channel: 1, binding });
    }
    script.reopen(1);
    CHANNELS[1..].iter().for_each(|number| script.open(*number));
    script.frames.concat()
}

/// What a client saw on one channel.
#[derive(Debug, Default, PartialEq)]
struct ChannelSeen {
    /// Replies and confirms; cumulative confirms are expanded.
    replies: Vec<String>,
    /// Returned messages, each with the number of replies before it.
    returns: Vec<(usize, String)>,
    /// By consumer tag: messages, each with the number of replies before it.
    deliveries: BTreeMap<String, Vec<(usize, String)>>,
}

/// Counters that are not part of what must be the same.
#[derive(Debug, Default)]
struct Counts {
    replies: usize,
    confirms: u64,
    /// Confirms before each return.
    at_return: Vec<u64>,
}

#[derive(Debug, Default)]
struct Seen {
    channels: BTreeMap<u16, ChannelSeen>,
    counts: BTreeMap<u16, Counts>,
    /// Messages in each queue at the end: those that are ready, then with those that were not
    /// settled.
    left: Vec<String>,
    closed: bool,
}

/// A content being read: which method it follows, and what has come.
struct Content {
    method: AMQPClass,
    header: Vec<u8>,
    body: Vec<u8>,
    parts: usize,
}

impl Content {
    fn is_whole(&self) -> bool {
        let size = self.header.get(4..12).map(|size| u64::from_be_bytes(size.try_into().unwrap()));
        size == Some(self.body.len() as u64)
    }

    fn describe(&self) -> String {
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.body);
        let (header, len, hash) = (self.header.escape_ascii(), self.body.len(), hasher.finish());
        format!("{:?} {header} {len} bytes in {} frames, {hash:x}", self.method, self.parts)
    }
}

impl Seen {
    fn read(bytes: &[u8]) -> Self {
        let mut seen = Self::default();
        let mut contents: BTreeMap<u16, Content> = BTreeMap::new();
        let mut rest = bytes;
        while let Some((frame, used)) = frame::split(rest, FRAME_MAX).expect("a sound frame") {
            rest = &rest[used..];
            let number = frame.channel;
            match frame.kind {
                FrameKind::Method => {
                    assert!(!contents.contains_key(&number), "content is cut short");
                    let method = parse_method(frame.payload).expect("a sound method");
                    if let Some(method) = seen.method(number, method) {
                        let (header, body) = (Vec::new(), Vec::new());
                        contents.insert(number, Content { method, header, body, parts: 0 });
                    }
                    continue;
                }
                FrameKind::Header => {
                    let content = contents.get_mut(&number).expect("content is due");
                    assert!(content.header.is_empty());
                    content.header = frame.payload.to_vec();
                }
                FrameKind::Body => {
                    let content = contents.get_mut(&number).expect("content is due");
                    content.body.extend_from_slice(frame.payload);
                    content.parts += 1;
                }
                FrameKind::Heartbeat => continue,
            }
            if contents[&number].is_whole() {
                seen.content(number, &contents.remove(&number).expect("it is there"));
            }
        }
        assert!(rest.is_empty() && contents.is_empty(), "output ends within a frame or content");
        seen
    }

    /// Notes a method, unless content is to follow it: then the method is given back.
    fn method(&mut self, number: u16, method: AMQPClass) -> Option<AMQPClass> {
        use basic::AMQPMethod as Method;
        let (tag, multiple, word) = match method {
            AMQPClass::Basic(Method::Deliver(_) | Method::GetOk(_) | Method::Return(_)) => {
                return Some(method);
            }
            AMQPClass::Basic(Method::Ack(ack)) => (ack.delivery_tag, ack.multiple, "ack"),
            AMQPClass::Basic(Method::Nack(nack)) => (nack.delivery_tag, nack.multiple, "nack"),
            method => {
                let counts = self.counts.entry(number).or_default();
                if matches!(method, AMQPClass::Channel(channel::AMQPMethod::OpenOk(_))) {
                    counts.confirms = 0;
                }
                counts.replies += 1;
                let replies = &mut self.channels.entry(number).or_default().replies;
                replies.push(format!("{method:?}"));
                return None;
            }
        };
        let counts = self.counts.entry(number).or_default();
        assert!(tag > counts.confirms, "publish {tag} is answered twice");
        let first = if multiple { counts.confirms + 1 } else { tag };
        assert_eq!(first, counts.confirms + 1, "a publish is not answered");
        let replies = &mut self.channels.entry(number).or_default().replies;
        replies.extend((first..=tag).map(|tag| format!("{word} {tag}")));
        counts.confirms = tag;
        None
    }

    fn content(&mut self, number: u16, content: &Content) {
        let counts = self.counts.entry(number).or_default();
        let seen = self.channels.entry(number).or_default();
        let text = content.describe();
        match &content.method {
            AMQPClass::Basic(basic::AMQPMethod::Return(_)) => {
                seen.returns.push((counts.replies, text));
                counts.at_return.push(counts.confirms);
            }
            AMQPClass::Basic(basic::AMQPMethod::Deliver(deliver)) => {
                let tag = deliver.consumer_tag.to_string();
                seen.deliveries.entry(tag).or_default().push((counts.replies, text));
            }
            _ => {
                counts.replies += 1;
                seen.replies.push(text);
            }
        }
    }

    fn replies(&self, number: u16) -> &[String] {
        self.channels.get(&number).map_or(&[], |seen| &seen.replies)
    }
}

/// A client's connection, as `net` drives it.
struct Client {
    connection: Connection,
    worker: Worker,
    carry: Vec<u8>,
    output: Vec<u8>,
    closed: bool,
}

impl Client {
    fn new(broker: &Arc<Broker>) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 5672));
        let connection = Connection::new(broker.clone(), address, address, Millis(0));
        let (carry, output) = (Vec::new(), Vec::new());
        Self { connection, worker: Worker::default(), carry, output, closed: false }
    }

    fn feed(&mut self, mut bytes: &[u8]) {
        if self.closed {
            return;
        }
        // What a socket would read into a body's place.
        while !bytes.is_empty()
            && let Some((body, room)) = self.connection.body_room()
        {
            let (part, rest) = bytes.split_at(room.min(bytes.len()));
            body.extend_from_slice(part);
            self.connection.body_came(part.len());
            bytes = rest;
        }
        self.carry.extend_from_slice(bytes);
        loop {
            let progress = self.connection.feed(&self.carry, &mut self.worker);
            self.carry.drain(..progress.consumed);
            self.worker.drive.finish();
            self.worker.drive.take_outrun();
            self.take_output();
            match progress.next {
                Next::Read => return,
                Next::AwaitDrain | Next::Again => {}
                Next::AwaitAlarms | Next::AwaitRoom | Next::AwaitStore => {
                    unreachable!("scripts are small and there is no store")
                }
                Next::AwaitLogin => {
                    let verdict = self.connection.login().expect("it waits").check();
                    self.connection.finish_login(&verdict, &mut self.worker);
                }
                Next::Close { .. } => {
                    self.closed = true;
                    return;
                }
            }
        }
    }

    fn take_output(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        let mut taken = Outgoing::default();
        let outbox = self.connection.outbox();
        while let Poll::Ready(true) = outbox.poll_take(&mut context, &mut taken) {
            let mut from = 0;
            for (at, body) in &taken.large {
                self.output.extend_from_slice(&taken.buffer[from..*at]);
                self.output.extend_from_slice(body);
                from = *at;
            }
            self.output.extend_from_slice(&taken.buffer[from..]);
            taken.clear();
        }
    }

    fn release(&mut self) {
        self.connection.release(&mut self.worker);
        self.worker.drive.finish();
        self.take_output();
    }
}

/// Empties all queues; answers what was in them.
fn drain(broker: &Arc<Broker>) -> Vec<String> {
    let mut client = Client::new(broker);
    let mut script = Script::default();
    handshake(&mut script, QUEUES.len() as u16);
    client.feed(&script.frames.concat());
    client.output.clear();
    let mut left = Vec::new();
    for (number, queue) in (1..).zip(0..QUEUES.len()) {
        loop {
            let mut script = Script::default();
            script.run(&Op::Get { channel: number, queue, no_ack: true });
            client.feed(&script.frames.concat());
            let seen = Seen::read(&std::mem::take(&mut client.output));
            let [reply] = seen.replies(number) else { panic!("one reply: {seen:?}") };
            left.push(format!("{}: {reply}", QUEUES[queue]));
            if !reply.contains("GetOk") {
                break;
            }
        }
    }
    client.release();
    left
}

/// What a client sees that sends the preamble, and then a script in these pieces.
fn play<'a>(preamble: &[u8], pieces: impl IntoIterator<Item = &'a [u8]>) -> Seen {
    let mut config = Config::default();
    config.limits.max_message_size_bytes = MESSAGE_MAX;
    let broker = Arc::new(Broker::new(Arc::new(config), 1 << 30));
    let mut client = Client::new(&broker);
    client.feed(preamble);
    assert!(client.connection.is_open(), "the preamble failed");
    client.output.clear();
    pieces.into_iter().for_each(|piece| client.feed(piece));
    let mut seen = Seen::read(&client.output);
    seen.closed = client.closed;
    seen.left = drain(&broker);
    client.release();
    seen.left.extend(drain(&broker));
    seen
}

fn same(reference: &Seen, seen: &Seen, how: &str) -> TestCaseResult {
    for number in 0..=CHANNELS[6] {
        let [expected, got] = [reference, seen].map(|seen| seen.channels.get(&number));
        prop_assert_eq!(got, expected, "{}, channel {}", how, number);
        let [expected, got] = [reference, seen].map(|seen| seen.counts.get(&number));
        let [expected, got] = [expected, got].map(|counts| counts.map(|c| &c.at_return[..]));
        // Frame by frame, exactly the publishes before the returned one are confirmed.
        let early = expected.into_iter().flatten().zip(got.into_iter().flatten());
        for (most, confirms) in early {
            prop_assert!(confirms <= most, "{}, channel {}: confirmed, then returned", how, number);
        }
    }
    prop_assert_eq!(&seen.left, &reference.left, "{}: queues at the end", how);
    prop_assert_eq!(seen.closed, reference.closed, "{}: whether it is closed", how);
    Ok(())
}

fn cut<'a>(bytes: &'a [u8], places: &[Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = places.iter().map(|place| place.index(bytes.len() + 1)).collect();
    places.sort_unstable();
    let mut from = 0;
    let mut pieces = Vec::new();
    for place in places.into_iter().chain([bytes.len()]) {
        pieces.push(&bytes[from..place]);
        from = place;
    }
    pieces
}

#[test]
fn a_large_body_goes_into_its_place() {
    let message = Message {
        address: 0,
        mandatory: false,
        properties: 0,
        size: 39_000,
        parts: 1,
        hollow: false,
    };
    let frames = Script::default().message(3, &message);
    let mut broken = frames.clone();
    *broken[2].last_mut().expect("it has an end") = 7;
    let preamble = preamble();
    let before_body = frames[0].len() + frames[1].len();
    for frames in [frames, broken] {
        let reference = play(&preamble, frames.iter().map(Vec::as_slice));
        let bytes = frames.concat();
        for at in [7, 8, 100, 5_000] {
            let (first, second) = bytes.split_at(before_body + at);
            let broker = Arc::new(Broker::new(Arc::new(Config::default()), 1 << 30));
            let mut client = Client::new(&broker);
            client.feed(&preamble);
            client.feed(first);
            assert!(client.connection.body_room().is_some(), "cut at {at}");
            client.release();
            let cut = |end: usize| [first, &second[..end], &second[end..]];
            for end in [second.len(), second.len() - 1, 20_000] {
                same(&reference, &play(&preamble, cut(end)), "in pieces").expect("the same");
            }
        }
    }
}

fn check(ops: &[Op], few: &[Index], many: &[Index]) -> TestCaseResult {
    let mut script = Script::default();
    ops.iter().for_each(|op| script.run(op));
    let preamble = preamble();
    let reference = play(&preamble, script.frames.iter().map(Vec::as_slice));
    let bytes = script.frames.concat();
    same(&reference, &play(&preamble, [&bytes[..]]), "in one piece")?;
    same(&reference, &play(&preamble, cut(&bytes, few)), "in a few pieces")?;
    same(&reference, &play(&preamble, cut(&bytes, many)), "in many pieces")?;
    if bytes.len() <= BYTEWISE_MAX {
        same(&reference, &play(&preamble, bytes.chunks(1)), "byte by byte")?;
    }
    Ok(())
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        3 => Just(0usize),
        8 => 1usize..40,
        1 => Just(1000),
        2 => SHARED_BODY - 2..SHARED_BODY + 2,
        1 => SHARED_BODY + 2..MESSAGE_MAX as usize,
    ]
}

fn properties() -> impl Strategy<Value = usize> {
    prop_oneof![
        30 => 0..SPECIAL_FROM,
        10 => SPECIAL_FROM..REFUSED_FROM,
        1 => REFUSED_FROM..PROPERTIES.len(),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    let address = prop_oneof![6 => 0usize..4, 9 => 4..13usize, 1 => Just(13usize)];
    let parts = prop_oneof![4 => Just(1usize), 1 => 2usize..4];
    let hollow = prop::bool::weighted(0.1);
    (address, any::<bool>(), properties(), size(), parts, hollow).prop_map(
        |(address, mandatory, properties, size, parts, hollow)| Message {
            address,
            mandatory,
            properties,
            size,
            parts,
            hollow,
        },
    )
}

fn publishing() -> impl Strategy<Value = Op> {
    let channel = || prop_oneof![4 => Just(1u16), 3 => 2u16..5, 1 => 5u16..8];
    let noise = prop_oneof![3 => Just(Noise::None), 1 => (0usize..4).prop_map(Noise::Heartbeat)];
    prop_oneof![
        6 => (channel(), message(), 1usize..6, noise).prop_map(|(channel, message, times, noise)| {
            Op::Run { channel, message, times, noise }
        }),
        1 => (1u16..4, message(), 1u16..4, message()).prop_map(|(one, first, step, second)| {
            // Never the same channel, on which it would be an error.
            let other = (one - 1 + step) % 4 + 1;
            Op::Interleaved { first: (one, first), second: (other, second) }
        }),
        2 => (channel(), message(), vec(properties(), 2..5)).prop_map(
            |(channel, message, properties)| Op::Changing { channel, message, properties },
        ),
    ]
}

fn topology() -> impl Strategy<Value = Op> {
    let (bound, queue) = (|| 0..BINDINGS.len(), || 0..QUEUES.len());
    let channel = || prop_oneof![Just(3u16), Just(7), Just(1)];
    prop_oneof![
        3 => (channel(), bound()).prop_map(|(channel, binding)| Op::Bind { channel, binding }),
        3 => (channel(), bound()).prop_map(|(channel, binding)| Op::Unbind { channel, binding }),
        1 => (channel(), queue()).prop_map(|(channel, queue)| Op::DeleteQueue { channel, queue }),
        2 => (channel(), queue()).prop_map(|(channel, queue)| Op::DeclareQueue { channel, queue }),
        1 => channel().prop_map(|channel| Op::DeleteExchange { channel }),
        1 => channel().prop_map(|channel| Op::DeclareExchange { channel }),
        1 => (channel(), queue()).prop_map(|(channel, queue)| Op::Purge { channel, queue }),
    ]
}

fn other_method() -> impl Strategy<Value = Op> {
    let (any_channel, queue) = (|| 1u16..8, || 0..QUEUES.len());
    let taking = || prop_oneof![Just(5u16), Just(7)];
    let settle = prop_oneof![Just(hot::ACK), Just(hot::NACK), Just(hot::REJECT)];
    prop_oneof![
        4 => (taking(), queue(), any::<bool>()).prop_map(|(channel, queue, no_ack)| {
            Op::Get { channel, queue, no_ack }
        }),
        4 => (taking(), settle, 0u64..4, 0u8..4).prop_map(|(channel, settle, tag, bits)| {
            Op::Settle { channel, settle, tag, bits }
        }),
        3 => Just(Op::Commit { channel: 4 }),
        1 => Just(Op::Rollback { channel: 4 }),
        1 => (any_channel(), any::<bool>()).prop_map(|(channel, transactional)| {
            Op::Select { channel, transactional }
        }),
        2 => any_channel().prop_map(|channel| Op::Flow { channel }),
        1 => (5u16..7, 0u16..4, any::<bool>()).prop_map(|(channel, prefetch, global)| {
            Op::Qos { channel, prefetch, global }
        }),
        1 => taking().prop_map(|channel| Op::Recover { channel }),
        2 => (5u16..7).prop_map(|channel| Op::Cancel { channel }),
        1 => (5u16..8, queue(), any::<bool>()).prop_map(|(channel, queue, no_ack)| {
            Op::Consume { channel, queue, no_ack }
        }),
        4 => any_channel().prop_map(|channel| Op::Reopen { channel }),
        2 => Just(Op::Heartbeat),
    ]
}

fn breaking() -> impl Strategy<Value = Op> {
    let broken = prop_oneof![
        4 => Just(Broken::TooLargeMessage),
        1 => prop::sample::select(vec![
            Broken::OverlongBody,
            Broken::BodyWithoutMethod,
            Broken::BodyAfterEmpty,
            Broken::MethodForHeader,
            Broken::MethodForBody,
            Broken::HeaderOfOtherClass,
            Broken::HeaderWithWeight,
            Broken::Immediate,
            Broken::UndecodablePublish,
            Broken::BadFrameEnd,
            Broken::HugeFrame,
            Broken::UnknownFrame,
        ]),
    ];
    (1u16..5, broken).prop_map(|(channel, broken)| Op::Break { channel, broken })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![28 => publishing(), 8 => topology(), 14 => other_method(), 1 => breaking()]
}

fn cases() -> ProptestConfig {
    let asked = std::env::var("LEVERET_FEEDING_CASES").ok();
    let cases = asked.map_or(CASES, |cases| cases.parse().expect("a number of cases"));
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    /// All that a client may send, in any order.
    #[test]
    fn reads_do_not_show(
        ops in vec(op(), 1..40),
        end in prop::option::of(breaking()),
        few in vec(any::<Index>(), 1..6),
        many in vec(any::<Index>(), 20..120),
    ) {
        let ops: Vec<Op> = ops.into_iter().chain(end).collect();
        check(&ops, &few, &many)?;
    }

    /// Mostly publishes to few addresses, with changes of topology in between.
    #[test]
    fn repeated_publishes_see_every_change(
        ops in vec(prop_oneof![5 => publishing(), 1 => topology()], 4..25),
        end in prop::option::of(breaking()),
        few in vec(any::<Index>(), 1..6),
        many in vec(any::<Index>(), 20..120),
    ) {
        let ops: Vec<Op> = ops.into_iter().chain(end).collect();
        check(&ops, &few, &many)?;
    }
}

fn plain(address: usize) -> Message {
    Message { address, mandatory: false, properties: 0, size: 8, parts: 1, hollow: false }
}

fn publishes(channel: u16, message: Message, times: usize) -> Op {
    Op::Run { channel, message, times, noise: Noise::None }
}

/// Shows that a script leads to what `expect` says, however it is cut.
fn expect(ops: &[Op], expect: impl Fn(&Seen)) {
    let mut script = Script::default();
    ops.iter().for_each(|op| script.run(op));
    let (preamble, bytes) = (preamble(), script.frames.concat());
    expect(&play(&preamble, script.frames.iter().map(Vec::as_slice)));
    for size in [1, 2, 7, 100, bytes.len()] {
        expect(&play(&preamble, bytes.chunks(size)));
    }
}

/// How many messages are ready in a queue at the end of a script.
fn left(seen: &Seen, queue: &str) -> usize {
    let messages = seen.left.iter().filter(|one| one.starts_with(queue) && one.contains("GetOk"));
    messages.count()
}

fn words(word: &str, tags: std::ops::RangeInclusive<u64>) -> Vec<String> {
    tags.map(|tag| format!("{word} {tag}")).collect()
}

#[test]
fn each_publish_is_confirmed_once() {
    let empty = Message { size: 0, ..plain(0) };
    expect(&[publishes(1, plain(0), 30), publishes(1, empty, 20)], |seen| {
        assert_eq!(seen.replies(1), words("ack", 1..=50));
        assert_eq!(left(seen, "qa"), 50);
    });
}

#[test]
fn what_a_full_queue_refuses_is_answered_with_nack() {
    expect(&[publishes(1, plain(1), 7), publishes(1, plain(0), 2)], |seen| {
        let answers = [words("ack", 1..=3), words("nack", 4..=7), words("ack", 8..=9)].concat();
        assert_eq!(seen.replies(1), answers);
        assert_eq!((left(seen, "qr"), left(seen, "qa")), (3, 2));
    });
}

#[test]
fn returns_precede_their_confirms() {
    let nowhere = Message { mandatory: true, ..plain(12) };
    let ops = [
        publishes(1, plain(0), 2),
        publishes(1, nowhere, 3),
        // Not mandatory: lost, and confirmed all the same.
        publishes(1, plain(12), 2),
        publishes(1, plain(0), 1),
    ];
    expect(&ops, |seen| {
        assert_eq!(seen.replies(1), words("ack", 1..=8));
        assert_eq!(seen.channels[&1].returns.len(), 3);
        for (confirms, most) in seen.counts[&1].at_return.iter().zip(2..) {
            assert!(*confirms <= most, "{confirms} confirms before the return of {}", most + 1);
        }
    });
}

#[test]
fn the_next_publish_sees_a_change_of_bindings() {
    let to_qa = || publishes(3, Message { mandatory: true, ..plain(2) }, 3);
    let unbind = Op::Unbind { channel: 3, binding: 0 };
    let bind = Op::Bind { channel: 7, binding: 0 };
    expect(&[to_qa(), unbind, to_qa(), bind, to_qa()], |seen| {
        assert_eq!(left(seen, "qa"), 6);
        let returns: Vec<usize> = seen.channels[&3].returns.iter().map(|one| one.0).collect();
        assert_eq!(returns, [1, 1, 1], "after the answer to unbind");
    });
}

#[test]
fn a_transaction_holds_its_publishes_back() {
    let ten = || publishes(4, plain(0), 10);
    let rollback = Op::Rollback { channel: 4 };
    expect(&[ten(), rollback, ten(), ten(), Op::Commit { channel: 4 }, ten()], |seen| {
        assert_eq!(left(seen, "qa"), 20);
    });
    // A channel that had published before it became transactional.
    let select = Op::Select { channel: 3, transactional: true };
    expect(&[publishes(3, plain(0), 3), select, publishes(3, plain(0), 3)], |seen| {
        assert_eq!(left(seen, "qa"), 3);
    });
}

#[test]
fn a_refused_message_ends_its_channel_only() {
    let claims_to_be_eve = Message { properties: 10, ..plain(0) };
    let ops = [
        publishes(1, plain(0), 3),
        publishes(2, plain(4), 2),
        publishes(1, claims_to_be_eve, 1),
        publishes(1, plain(0), 5),
        publishes(2, plain(4), 2),
    ];
    expect(&ops, |seen| {
        let [answers @ .., close] = seen.replies(1) else { panic!("no replies") };
        assert_eq!(answers, words("ack", 1..=3));
        assert!(close.contains("406") && close.contains("user_id property"), "{close}");
        assert_eq!(seen.replies(2), words("ack", 1..=4));
        assert_eq!((left(seen, "qa"), left(seen, "qb")), (3, 4));
    });
}

#[test]
fn copies_go_where_their_header_says() {
    let ops = [publishes(3, plain(0), 2), publishes(3, Message { properties: 8, ..plain(0) }, 2)];
    expect(&ops, |seen| assert_eq!((left(seen, "qa"), left(seen, "qb")), (4, 2)));
}
