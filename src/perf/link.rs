//! One blocking connection to the broker with one channel: handshake, requests, closing.
//!
//! Owns the socket while requests are answered one by one; a producer or consumer then takes the
//! socket over with [`Link::into_parts`]. Every wait here has a deadline.

use std::io;
use std::time::{Duration, Instant};

use amq_protocol::uri::AMQPUri;

use super::methods::{self, Declare};
use super::socket::{Endpoint, Socket};
use crate::codec::encode::PROTOCOL_HEADER;
use crate::codec::frame::{self, FrameKind};
use crate::codec::method::{
    self, AMQPClass, AMQPValue, FieldTable, basic, channel, connection, queue,
};
use crate::error::AmqpError;

/// The channel that every connection of the generator uses.
pub(crate) const CHANNEL: u16 = 1;

/// How long a broker may take to answer one request.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a read or write blocks before its thread looks whether the run is over.
pub(crate) const POLL: Duration = Duration::from_millis(100);

/// How long a worker waits for the answer to its close.
pub(crate) const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// The frame size to agree on when the broker sets none.
const FRAME_MAX_DEFAULT: u32 = 131_072;

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PerfError {
    /// The broker could not be reached.
    #[error("cannot connect to {0}: {1}")]
    Connect(String, io::Error),
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The broker closed the socket.
    #[error("the broker closed the socket {0}")]
    Gone(&'static str),
    /// The broker closed the connection or channel by AMQP.
    #[error("the broker closed the {scope}: {code} {text}")]
    Closed {
        /// `connection` or `channel`.
        scope: &'static str,
        /// The reply code.
        code: u16,
        /// The reply text.
        text: String,
    },
    /// The broker took longer than it may.
    #[error("the broker did not {0} in time")]
    Late(&'static str),
    /// The broker's bytes make no sense here.
    #[error("unexpected answer: {0}")]
    Protocol(String),
    /// A wish that cannot be served.
    #[error("{0}")]
    Refused(String),
}

/// What a method that nobody asked for means to a running producer or consumer.
pub(crate) enum Notice {
    /// `connection.blocked` with its reason.
    Blocked(String),
    /// `connection.unblocked`.
    Unblocked,
    /// The answer to our `connection.close`.
    CloseOk,
    /// The run cannot go on.
    Fatal(PerfError),
    /// Nothing to act on.
    Other,
}

impl Notice {
    /// Reads the payload of a method frame.
    pub(crate) fn of(payload: &[u8]) -> Self {
        let class = match method::parse_method(payload) {
            Ok(class) => class,
            Err(error) => return Self::Fatal(PerfError::Protocol(error.to_string())),
        };
        if let Some(error) = closing(&class) {
            return Self::Fatal(error);
        }
        match class {
            AMQPClass::Connection(connection::AMQPMethod::Blocked(blocked)) => {
                Self::Blocked(blocked.reason.as_str().to_owned())
            }
            AMQPClass::Connection(connection::AMQPMethod::Unblocked(_)) => Self::Unblocked,
            AMQPClass::Connection(connection::AMQPMethod::CloseOk(_)) => Self::CloseOk,
            AMQPClass::Basic(basic::AMQPMethod::Cancel(_)) => {
                Self::Fatal(PerfError::Protocol("the broker cancelled the consumer".into()))
            }
            _ => Self::Other,
        }
    }
}

/// A connection on which requests are answered one by one.
pub(crate) struct Link {
    socket: Socket,
    input: Vec<u8>,
    frame_max: u32,
    channel_max: u16,
    server: String,
}

impl Link {
    /// Connects, authenticates and opens the virtual host and one channel.
    pub(crate) fn open(endpoint: &Endpoint) -> Result<Self, PerfError> {
        let mut link = Self {
            socket: endpoint.connect()?,
            input: Vec::new(),
            frame_max: 0,
            channel_max: 0,
            server: String::new(),
        };
        let uri = &endpoint.uri;
        link.socket.send(&PROTOCOL_HEADER)?;
        link.authenticate(uri)?;
        link.send(0, &methods::open(uri))?;
        match link.receive("open the virtual host")? {
            AMQPClass::Connection(connection::AMQPMethod::OpenOk(_)) => {}
            other => return Err(unexpected("connection.open-ok", &other)),
        }
        match link.call(&methods::open_channel(), "open a channel")? {
            AMQPClass::Channel(channel::AMQPMethod::OpenOk(_)) => Ok(link),
            other => Err(unexpected("channel.open-ok", &other)),
        }
    }

    fn authenticate(&mut self, uri: &AMQPUri) -> Result<(), PerfError> {
        let start = match self.receive("greet")? {
            AMQPClass::Connection(connection::AMQPMethod::Start(start)) => start,
            other => return Err(unexpected("connection.start", &other)),
        };
        self.server = server_name(&start.server_properties);
        self.send(0, &methods::start_ok(uri))?;
        let tune = match self.receive("authenticate") {
            Ok(AMQPClass::Connection(connection::AMQPMethod::Tune(tune))) => tune,
            Ok(other) => return Err(unexpected("connection.tune", &other)),
            Err(PerfError::Gone(_)) => {
                return Err(PerfError::Gone("at login (wrong user name or password?)"));
            }
            Err(error) => return Err(error),
        };
        self.frame_max = if tune.frame_max == 0 { FRAME_MAX_DEFAULT } else { tune.frame_max };
        self.channel_max = tune.channel_max;
        self.send(0, &methods::tune_ok(self.channel_max, self.frame_max))
    }

    /// The frame size that was agreed.
    pub(crate) fn frame_max(&self) -> u32 {
        self.frame_max
    }

    /// The number of channels that was agreed; 0 for no limit.
    pub(crate) fn channel_max(&self) -> u16 {
        self.channel_max
    }

    /// Product and version, as the broker calls itself.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Declares a queue and returns how many messages it holds.
    pub(crate) fn declare(&mut self, name: &str, options: &Declare) -> Result<u32, PerfError> {
        match self.call(&methods::declare(name, options), "declare a queue")? {
            AMQPClass::Queue(queue::AMQPMethod::DeclareOk(ok)) => Ok(ok.message_count),
            other => Err(unexpected("queue.declare-ok", &other)),
        }
    }

    /// Deletes a queue with all that is in it.
    pub(crate) fn delete(&mut self, name: &str) -> Result<(), PerfError> {
        self.call(&methods::delete(name), "delete a queue").map(drop)
    }

    /// Declares an exchange of the type `kind`.
    pub(crate) fn declare_exchange(
        &mut self,
        name: &str,
        kind: &str,
        is_durable: bool,
    ) -> Result<(), PerfError> {
        let declare = methods::declare_exchange(name, kind, is_durable);
        self.call(&declare, "declare an exchange").map(drop)
    }

    /// Deletes an exchange with its bindings.
    pub(crate) fn delete_exchange(&mut self, name: &str) -> Result<(), PerfError> {
        self.call(&methods::delete_exchange(name), "delete an exchange").map(drop)
    }

    /// Turns publisher confirms on.
    pub(crate) fn select_confirms(&mut self) -> Result<(), PerfError> {
        self.call(&methods::select_confirms(), "turn confirms on").map(drop)
    }

    /// Limits unsettled deliveries and starts a consumer; deliveries may follow at once.
    pub(crate) fn consume(
        &mut self,
        queue: &str,
        prefetch: u16,
        is_auto_ack: bool,
    ) -> Result<(), PerfError> {
        if prefetch > 0 {
            self.call(&methods::qos(prefetch), "set the prefetch")?;
        }
        self.call(&methods::consume(queue, is_auto_ack), "start a consumer").map(drop)
    }

    /// Closes the connection and waits for the answer.
    pub(crate) fn close(mut self) -> Result<(), PerfError> {
        self.socket.send(&closing_frame())?;
        match self.receive("close the connection")? {
            AMQPClass::Connection(connection::AMQPMethod::CloseOk(_)) => Ok(()),
            other => Err(unexpected("connection.close-ok", &other)),
        }
    }

    /// Gives the socket away, with bytes that were read already.
    pub(crate) fn into_parts(self) -> (Socket, Vec<u8>) {
        (self.socket, self.input)
    }

    fn call(&mut self, class: &AMQPClass, what: &'static str) -> Result<AMQPClass, PerfError> {
        self.send(CHANNEL, class)?;
        self.receive(what)
    }

    fn send(&mut self, channel: u16, class: &AMQPClass) -> Result<(), PerfError> {
        Ok(self.socket.send(&methods::frame(channel, class))?)
    }

    /// The next method, whichever channel it is for; notices of blocking are passed over.
    fn receive(&mut self, what: &'static str) -> Result<AMQPClass, PerfError> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            while let Some((class, used)) = next_method(&self.input, self.frame_max)? {
                self.input.drain(..used);
                let Some(class) = class else { continue };
                match closing(&class) {
                    Some(error) => return Err(error),
                    None if is_blocking(&class) => {}
                    None => return Ok(class),
                }
            }
            self.fill(deadline, what)?;
        }
    }

    fn fill(&mut self, deadline: Instant, what: &'static str) -> Result<(), PerfError> {
        let mut part = [0; 4096];
        while Instant::now() < deadline {
            match self.socket.read(&mut part) {
                Ok(0) => return Err(PerfError::Gone("")),
                Ok(count) => {
                    self.input.extend_from_slice(&part[..count]);
                    return Ok(());
                }
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(PerfError::Late(what))
    }
}

/// Whether a blocking read or write only ran into its timeout (or a signal).
pub(crate) fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

/// `connection.close`, ready to be written.
pub(crate) fn closing_frame() -> Vec<u8> {
    methods::frame(0, &methods::close())
}

/// The first frame's method (`None` for other frames) and the frame's length.
fn next_method(
    input: &[u8],
    frame_max: u32,
) -> Result<Option<(Option<AMQPClass>, usize)>, PerfError> {
    if input.starts_with(b"AMQP") {
        return Err(PerfError::Protocol("the broker does not speak AMQP 0-9-1".into()));
    }
    let frame_max = frame_max.max(FRAME_MAX_DEFAULT);
    let protocol = |error: AmqpError| PerfError::Protocol(error.to_string());
    let Some((frame, used)) = frame::split(input, frame_max).map_err(protocol)? else {
        return Ok(None);
    };
    if frame.kind != FrameKind::Method {
        return Ok(Some((None, used)));
    }
    Ok(Some((Some(method::parse_method(frame.payload).map_err(protocol)?), used)))
}

fn closing(class: &AMQPClass) -> Option<PerfError> {
    let (scope, code, text) = match class {
        AMQPClass::Connection(connection::AMQPMethod::Close(close)) => {
            ("connection", close.reply_code, &close.reply_text)
        }
        AMQPClass::Channel(channel::AMQPMethod::Close(close)) => {
            ("channel", close.reply_code, &close.reply_text)
        }
        _ => return None,
    };
    Some(PerfError::Closed { scope, code, text: text.as_str().to_owned() })
}

fn is_blocking(class: &AMQPClass) -> bool {
    use connection::AMQPMethod::{Blocked, Unblocked};
    matches!(class, AMQPClass::Connection(Blocked(_) | Unblocked(_)))
}

fn unexpected(expected: &str, got: &AMQPClass) -> PerfError {
    PerfError::Protocol(format!("{got:?} instead of {expected}"))
}

fn server_name(properties: &FieldTable) -> String {
    let text = |key: &str| match properties.inner().get(key) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        _ => String::from("?"),
    };
    format!("{} {}", text("product"), text("version"))
}
