//! A blocking AMQP client of raw frames, for tests.
//!
//! Owns one TCP connection, what was read from it and not asked for yet, and the helpers that make
//! a test a list of what is sent and what must come back. It must not hide anything: no frame is
//! dropped unseen except heartbeats, and whatever does not match stops the test with what came.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::notation::{self, Method, Value};
use super::{Broker, DEADLINE};

/// What an AMQP 0-9-1 client sends first.
pub const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";

/// Frame types on the wire.
pub const METHOD: u8 = 1;
pub const HEADER: u8 = 2;
pub const BODY: u8 = 3;
pub const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 206;

/// Capabilities of a client that understands every extension.
const CAPABILITIES: &str = "client_properties=(product=test,capabilities=(\
    publisher_confirms=true,exchange_exchange_bindings=true,basic.nack=true,\
    consumer_cancel_notify=true,connection.blocked=true,authentication_failure_close=true))";

/// One frame as it came.
#[derive(Clone, PartialEq)]
pub struct Frame {
    pub kind: u8,
    pub channel: u16,
    pub payload: Vec<u8>,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.kind == METHOD {
            return write!(f, "{} {:?}", self.channel, notation::decode_method(&self.payload));
        }
        let shown = &self.payload[..self.payload.len().min(64)];
        let (kind, channel, len) = (self.kind, self.channel, self.payload.len());
        write!(f, "{channel} frame of type {kind}, {len} bytes \"{}\"", shown.escape_ascii())
    }
}

/// A message as delivered, got or returned: its method, properties and body.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub method: Method,
    pub properties: BTreeMap<&'static str, Value>,
    pub body: Vec<u8>,
}

impl Delivery {
    /// The delivery tag.
    pub fn tag(&self) -> u64 {
        self.method["delivery_tag"].int() as u64
    }

    /// The redelivered flag.
    pub fn redelivered(&self) -> bool {
        self.method["redelivered"] == Value::Bool(true)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The header of this name.
    pub fn header(&self, name: &str) -> Option<&Value> {
        self.properties.get("headers")?.entry(name)
    }
}

/// How a client introduces itself.
pub struct Handshake {
    pub capabilities: bool,
    pub user: Option<String>,
    pub password: Option<String>,
    pub vhost: Option<String>,
    /// None takes what the server proposes.
    pub channel_max: Option<u16>,
    pub frame_max: Option<u32>,
    pub heartbeat: u16,
}

impl Default for Handshake {
    fn default() -> Self {
        Handshake {
            capabilities: true,
            user: None,
            password: None,
            vhost: None,
            channel_max: None,
            frame_max: None,
            heartbeat: 0,
        }
    }
}

/// A connection to the broker under test.
pub struct Client {
    stream: TcpStream,
    bytes: Vec<u8>,
    kept: VecDeque<Frame>,
    at_eof: bool,
    /// Heartbeats that came so far.
    pub heartbeats: u32,
    /// The frame size that was agreed.
    pub frame_max: usize,
}

impl Client {
    /// Only a TCP connection: the test does the rest.
    pub fn dial(broker: &Broker) -> Client {
        let stream = TcpStream::connect(&broker.address).expect("the broker accepts connections");
        stream.set_nodelay(true).expect("a connected socket");
        Client {
            stream,
            bytes: Vec::new(),
            kept: VecDeque::new(),
            at_eof: false,
            heartbeats: 0,
            frame_max: 131_072,
        }
    }

    /// A connection that is open, with these choices.
    pub fn connect_with(broker: &Broker, handshake: &Handshake) -> Client {
        let mut client = Self::dial(broker);
        client.log_in(broker, handshake);
        client.tune_and_open(broker, handshake);
        client
    }

    /// An open connection with channel 1 open.
    pub fn open(broker: &Broker) -> Client {
        Self::open_with(broker, &Handshake::default())
    }

    /// An open connection with these choices and channel 1 open.
    pub fn open_with(broker: &Broker, handshake: &Handshake) -> Client {
        let mut client = Self::connect_with(broker, handshake);
        client.call(1, "channel.open");
        client
    }

    /// Protocol header and start-ok.
    pub fn log_in(&mut self, broker: &Broker, handshake: &Handshake) {
        self.send_bytes(PROTOCOL_HEADER);
        self.expect("0 connection.start");
        let user = handshake.user.as_ref().unwrap_or(&broker.user);
        let password = handshake.password.as_ref().unwrap_or(&broker.password);
        let capabilities = if handshake.capabilities { CAPABILITIES } else { "" };
        let response = format!("response=\"\\x00{user}\\x00{password}\"");
        self.send(
            0,
            &format!("connection.start-ok mechanism=PLAIN {response} locale=en_US {capabilities}"),
        );
    }

    /// Tune-ok and open.
    pub fn tune_and_open(&mut self, broker: &Broker, handshake: &Handshake) {
        let tune = self.expect("0 connection.tune");
        let channel_max = handshake.channel_max.map_or(tune["channel_max"].int(), i64::from);
        let frame_max = handshake.frame_max.map_or(tune["frame_max"].int(), i64::from);
        let heartbeat = handshake.heartbeat;
        self.frame_max = frame_max as usize;
        self.send(
            0,
            &format!(
                "connection.tune-ok channel_max={channel_max} frame_max={frame_max} \
                 heartbeat={heartbeat}"
            ),
        );
        let vhost = handshake.vhost.as_ref().unwrap_or(&broker.vhost);
        self.send(0, &format!("connection.open vhost=\"{vhost}\""));
        self.expect("0 connection.open-ok");
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("the broker takes what is sent");
    }

    /// Sends bytes to a broker that may have closed the connection already.
    pub fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.set_write_timeout(Some(DEADLINE)).expect("a connected socket");
        self.stream.write_all(bytes)
    }

    /// Sends a frame.
    pub fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        self.send_bytes(&frame(kind, channel, payload));
    }

    /// Sends a method.
    pub fn send(&mut self, channel: u16, method: &str) {
        self.frame(METHOD, channel, &notation::encode_method(method));
    }

    /// Publishes: `fields` are those of basic.publish, `properties` those of the content header.
    pub fn publish(&mut self, channel: u16, fields: &str, properties: &str, body: &[u8]) {
        let bytes = publish_bytes(self.frame_max, channel, fields, properties, body);
        self.send_bytes(&bytes);
    }

    /// Publishes a text to a queue through the default exchange.
    pub fn put(&mut self, channel: u16, queue: &str, text: &str) {
        self.publish(channel, &format!("routing_key={queue}"), "", text.as_bytes());
    }

    /// Sends a method and waits for its `-ok`. What the broker sends of its own accord meanwhile
    /// stays readable.
    pub fn call(&mut self, channel: u16, method: &str) -> Method {
        self.send(channel, method);
        let name = method.split(' ').next().unwrap_or(method);
        let due = [format!("{name}-ok"), format!("{name}-empty")];
        self.take_reply(channel, &due)
    }

    fn take_reply(&mut self, channel: u16, due: &[String]) -> Method {
        let mut passed = VecDeque::new();
        let reply = loop {
            let frame = self.next_frame();
            if frame.kind == METHOD {
                let method = notation::decode_method(&frame.payload);
                if frame.channel == channel && due.iter().any(|name| name == method.name) {
                    break method;
                }
                let ends = method.name.ends_with(".close");
                assert!(!ends, "{due:?} is due on channel {channel}, came {frame:?}");
            }
            passed.push_back(frame);
        };
        passed.append(&mut self.kept);
        self.kept = passed;
        reply
    }

    /// Opens further channels.
    pub fn open_channels(&mut self, channels: std::ops::RangeInclusive<u16>) {
        channels.for_each(|channel| drop(self.call(channel, "channel.open")));
    }

    /// The next frame on any channel, heartbeats apart.
    pub fn next_frame(&mut self) -> Frame {
        self.poll_frame(DEADLINE).unwrap_or_else(|| panic!("no frame came, eof: {}", self.at_eof))
    }

    /// The next frame within `patience`, or none when it does not come or the connection ended.
    pub fn poll_frame(&mut self, patience: Duration) -> Option<Frame> {
        if let Some(frame) = self.kept.pop_front() {
            return Some(frame);
        }
        let end = Instant::now() + patience;
        loop {
            match self.split() {
                Some(frame) if frame.kind == HEARTBEAT => self.heartbeats += 1,
                Some(frame) => return Some(frame),
                None if !self.fill(end) => return None,
                None => {}
            }
        }
    }

    fn split(&mut self) -> Option<Frame> {
        let head = self.bytes.get(..7)?;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let (kind, channel) = (head[0], u16::from_be_bytes([head[1], head[2]]));
        assert!(size <= self.frame_max, "a frame of {size} bytes is more than was agreed");
        let end = *self.bytes.get(size + 7)?;
        assert_eq!(end, FRAME_END, "the end of a frame of type {kind}");
        let payload = self.bytes[7..size + 7].to_vec();
        self.bytes.drain(..size + 8);
        Some(Frame { kind, channel, payload })
    }

    /// Reads once; false when the time is up or nothing more will come.
    fn fill(&mut self, end: Instant) -> bool {
        let Some(left) = end.checked_duration_since(Instant::now()) else { return false };
        let left = left.max(Duration::from_millis(1));
        self.stream.set_read_timeout(Some(left)).expect("a positive timeout");
        let mut chunk = vec![0; 65536];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.at_eof = true,
            Ok(len) => self.bytes.extend(&chunk[..len]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => self.at_eof = true,
            Err(_) => return false,
        }
        !self.at_eof
    }

    /// The next method on this channel; frames of other channels stay readable.
    pub fn next_method(&mut self, channel: u16) -> Method {
        let frame = self.next_on(channel);
        assert_eq!(frame.kind, METHOD, "a method is due, came {frame:?}");
        notation::decode_method(&frame.payload)
    }

    /// The next frame on this channel; frames of other channels stay readable.
    pub fn next_on(&mut self, channel: u16) -> Frame {
        let mut passed = VecDeque::new();
        let found = loop {
            let frame = self.next_frame();
            if frame.channel == channel {
                break frame;
            }
            let ends = frame.channel == 0 && frame.payload.starts_with(&[0, 10, 0, 50]);
            assert!(!ends, "a frame is due on channel {channel}, came {frame:?}");
            passed.push_back(frame);
        };
        passed.append(&mut self.kept);
        self.kept = passed;
        found
    }

    /// Puts a frame back, to be read next.
    pub fn unread(&mut self, frame: Frame) {
        self.kept.push_front(frame);
    }

    /// The next frame on the channel must be this method with these fields, which are written as
    /// `channel name field=value`; fields that are not named may have any value.
    pub fn expect(&mut self, expected: &str) -> Method {
        let (channel, line) = expected.split_once(' ').expect("channel and method");
        let (name, fields) = notation::parse(line);
        let method = self.next_method(channel.parse().expect("a channel number"));
        let matches = |(key, value): &(String, Value)| {
            method.fields.get(key.as_str()).is_some_and(|actual| value.is_like(actual))
        };
        let all = name == method.name && fields.iter().all(matches);
        assert!(all, "expected {expected}\n    came {method:?}");
        method
    }

    /// The channel is closed by the broker with exactly this, and the close is answered.
    pub fn expect_channel_close(&mut self, channel: u16, code: u16, text: &str, ids: (u16, u16)) {
        let close = self.next_method(channel);
        assert_eq!(close.name, "channel.close", "{close:?}");
        check_close(&close, code, text, ids);
        self.send(channel, "channel.close-ok");
    }

    /// The connection is closed by the broker with exactly this; the close is answered and the
    /// broker closes the socket.
    pub fn expect_connection_close(&mut self, code: u16, text: &str, ids: (u16, u16)) {
        let close = self.next_close();
        check_close(&close, code, text, ids);
        // The broker may have closed the socket already where it does not wait for an answer.
        let _ = self.try_send(&frame(METHOD, 0, &notation::encode_method("connection.close-ok")));
        self.expect_eof();
    }

    /// The connection.close that must come, after whatever else was on its way.
    pub fn next_close(&mut self) -> Method {
        let mut passed = Vec::new();
        loop {
            let Some(frame) = self.poll_frame(DEADLINE) else {
                panic!("no connection.close came, eof: {}, but {passed:?}", self.at_eof);
            };
            if frame.kind == METHOD && frame.channel == 0 {
                let method = notation::decode_method(&frame.payload);
                assert_eq!(method.name, "connection.close", "{method:?}");
                return method;
            }
            passed.push(frame);
        }
    }

    /// The broker closes the connection without a further frame.
    pub fn expect_eof(&mut self) {
        if let Some(frame) = self.poll_frame(DEADLINE) {
            panic!("the end of the connection is due, came {frame:?}");
        }
        assert!(self.at_eof, "the broker did not close the connection");
        assert!(self.bytes.is_empty(), "a part of a frame came: {:?}", self.bytes);
    }

    /// The broker sends exactly these bytes, which need not be a frame.
    pub fn expect_bytes(&mut self, expected: &[u8]) {
        let end = Instant::now() + DEADLINE;
        while self.bytes.len() < expected.len() && self.fill(end) {}
        let got: Vec<u8> = self.bytes.drain(..self.bytes.len().min(expected.len())).collect();
        assert_eq!(got.escape_ascii().to_string(), expected.escape_ascii().to_string());
    }

    /// Nothing came on this channel that was not asked for, up to the answer to a question asked
    /// now.
    pub fn expect_nothing(&mut self, channel: u16) {
        self.call(channel, "channel.flow active");
        let kept = self.kept.iter().find(|frame| frame.channel == channel);
        assert!(kept.is_none(), "nothing is due on channel {channel}, came {kept:?}");
    }

    /// The next frames on the channel must be a delivered message.
    pub fn delivery(&mut self, channel: u16) -> Delivery {
        self.content(channel, "basic.deliver")
    }

    /// The next frames on the channel must be a method of this name with content.
    pub fn content(&mut self, channel: u16, name: &str) -> Delivery {
        let method = self.next_method(channel);
        assert_eq!(method.name, name, "{method:?}");
        let header = self.next_on(channel);
        assert_eq!(header.kind, HEADER, "a content header is due, came {header:?}");
        let (size, properties) = notation::decode_header(&header.payload);
        let mut body = Vec::new();
        while (body.len() as u64) < size {
            let frame = self.next_on(channel);
            assert_eq!(frame.kind, BODY, "a body is due, came {frame:?}");
            body.extend(frame.payload);
        }
        assert_eq!(body.len() as u64, size);
        Delivery { method, properties, body }
    }

    /// basic.get: the message, or none when the queue is empty.
    pub fn get(&mut self, channel: u16, fields: &str) -> Option<Delivery> {
        self.send(channel, &format!("basic.get {fields}"));
        let frame = self.next_on(channel);
        let method = notation::decode_method(&frame.payload);
        if method.name == "basic.get-empty" {
            return None;
        }
        self.kept.push_front(frame);
        Some(self.content(channel, "basic.get-ok"))
    }

    /// Declares a queue and returns its name, message count and consumer count.
    pub fn declare(&mut self, channel: u16, fields: &str) -> (String, i64, i64) {
        let ok = self.call(channel, &format!("queue.declare {fields}"));
        (ok["queue"].text(), ok["message_count"].int(), ok["consumer_count"].int())
    }

    /// Ready messages and consumers of a queue.
    pub fn counts(&mut self, channel: u16, queue: &str) -> (i64, i64) {
        let (_, messages, consumers) = self.declare(channel, &format!("queue={queue} passive"));
        (messages, consumers)
    }

    /// Waits until all publishes up to this number are settled; true when none was refused.
    pub fn confirmed_up_to(&mut self, channel: u16, last: u64) -> bool {
        self.confirmed_after(channel, 0, last)
    }

    /// The same for the publishes after `settled`, when those up to it are settled already.
    pub fn confirmed_after(&mut self, channel: u16, settled: u64, last: u64) -> bool {
        let mut open: std::collections::BTreeSet<u64> = (settled + 1..=last).collect();
        let mut accepted = true;
        while !open.is_empty() {
            let method = self.next_method(channel);
            assert!(matches!(method.name, "basic.ack" | "basic.nack"), "{method:?}");
            let tag = method["delivery_tag"].int() as u64;
            accepted &= method.name == "basic.ack";
            if method["multiple"] == Value::Bool(true) {
                open = open.split_off(&(tag + 1));
            } else {
                open.remove(&tag);
            }
        }
        accepted
    }

    /// Whether the broker has closed the connection.
    pub fn is_at_eof(&self) -> bool {
        self.at_eof
    }

    /// Closes the connection in good order.
    pub fn close(mut self) {
        self.call(0, "connection.close reply_code=200 reply_text=bye");
    }

    /// Drops the TCP connection without a word, as a client that dies.
    pub fn die(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// The socket, for tests of what happens below frames.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }
}

fn check_close(close: &Method, code: u16, text: &str, ids: (u16, u16)) {
    let came = (close["reply_code"].int() as u16, close["reply_text"].text());
    let came_ids = (close["class_id"].int() as u16, close["method_id"].int() as u16);
    assert_eq!((came.0, came.1.as_str(), came_ids), (code, text, ids), "code, text, method");
}

/// The bytes of a frame.
pub fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend(channel.to_be_bytes());
    out.extend((payload.len() as u32).to_be_bytes());
    out.extend(payload);
    out.push(FRAME_END);
    out
}

/// The bytes of a publish with its content, the body cut to frames of at most `frame_max`.
pub fn publish_bytes(
    frame_max: usize,
    channel: u16,
    fields: &str,
    properties: &str,
    body: &[u8],
) -> Vec<u8> {
    let method = notation::encode_method(&format!("basic.publish {fields}"));
    let header = notation::encode_header(60, body.len() as u64, properties);
    let mut bytes = frame(METHOD, channel, &method);
    bytes.extend(frame(HEADER, channel, &header));
    for piece in body.chunks(frame_max - 8) {
        bytes.extend(frame(BODY, channel, piece));
    }
    bytes
}
