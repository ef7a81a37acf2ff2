//! A client whose broker may die at any moment.
//!
//! Owns one connection with channel 1 open, and turns what comes into confirms, deliveries and
//! answers. The end of the connection is a value, not a failure. It must not judge what it sees.

use std::time::{Duration, Instant};

use crate::support::client::{self, Frame};
use crate::support::notation::{self, Method, Value};
use crate::support::{Broker, Client, DEADLINE, Delivery};

/// The broker's end of the connection is gone, as it is after a kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// What the broker sends.
#[derive(Debug)]
pub enum Incoming {
    /// `basic.ack` of a publish, or `basic.nack`.
    Confirm {
        tag: u64,
        multiple: bool,
        is_ack: bool,
    },
    /// With `basic.deliver`, `basic.get-ok` or `basic.return`.
    Message(Delivery),
    /// The broker closed the channel or the connection: the code and what it says.
    Closed {
        code: i64,
        text: String,
    },
    Method(Method),
}

/// See the module's description.
pub struct Session {
    client: Client,
}

impl Session {
    /// Connects to a broker that is up.
    pub fn open(address: &str) -> Session {
        Session { client: Client::open(&Broker::at(address.to_owned())) }
    }

    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        self.client.try_send(bytes).map_err(|_| Gone)
    }

    pub fn method(&mut self, line: &str) -> Result<(), Gone> {
        self.send(&client::frame(client::METHOD, 1, &notation::encode_method(line)))
    }

    /// The bytes of a publish, to be sent with others.
    pub fn publish_bytes(&self, fields: &str, properties: &str, body: &[u8]) -> Vec<u8> {
        client::publish_bytes(self.client.frame_max, 1, fields, properties, body)
    }

    /// What comes next on the channel, if it comes within `patience`.
    pub fn next(&mut self, patience: Duration) -> Result<Option<Incoming>, Gone> {
        let Some(frame) = self.frame(patience)? else { return Ok(None) };
        assert_eq!(frame.kind, client::METHOD, "a method is due, came {frame:?}");
        let method = notation::decode_method(&frame.payload);
        Ok(Some(match method.name {
            "basic.ack" | "basic.nack" => Incoming::Confirm {
                tag: method["delivery_tag"].int() as u64,
                multiple: method["multiple"] == Value::Bool(true),
                is_ack: method.name == "basic.ack",
            },
            "basic.deliver" | "basic.get-ok" | "basic.return" => self.content(method)?,
            "channel.close" | "connection.close" => Incoming::Closed {
                code: method["reply_code"].int(),
                text: format!("{}: {}", method.name, method["reply_text"].text()),
            },
            _ => Incoming::Method(method),
        }))
    }

    fn content(&mut self, method: Method) -> Result<Incoming, Gone> {
        let header = self.due()?;
        assert_eq!(header.kind, client::HEADER, "a content header is due, came {header:?}");
        let (size, properties) = notation::decode_header(&header.payload);
        let mut body = Vec::new();
        while (body.len() as u64) < size {
            let frame = self.due()?;
            assert_eq!(frame.kind, client::BODY, "a body is due, came {frame:?}");
            body.extend(frame.payload);
        }
        Ok(Incoming::Message(Delivery { method, properties, body }))
    }

    fn due(&mut self) -> Result<Frame, Gone> {
        Ok(self.frame(DEADLINE)?.expect("the rest of a message comes"))
    }

    fn frame(&mut self, patience: Duration) -> Result<Option<Frame>, Gone> {
        match self.client.poll_frame(patience) {
            None if self.client.is_at_eof() => Err(Gone),
            frame => Ok(frame),
        }
    }

    /// Sends a method and waits for its answer; the error's text says why the broker refused.
    /// Whatever else comes meanwhile is given to `aside`.
    pub fn call(
        &mut self,
        line: &str,
        mut aside: impl FnMut(Incoming),
    ) -> Result<Result<Method, String>, Gone> {
        self.method(line)?;
        let end = Instant::now() + DEADLINE;
        let name = line.split(' ').next().unwrap_or(line);
        let (ok, empty) = (format!("{name}-ok"), format!("{name}-empty"));
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.next(left)? {
                Some(Incoming::Method(method)) if method.name == ok || method.name == empty => {
                    return Ok(Ok(method));
                }
                Some(Incoming::Closed { code, text }) => {
                    self.method("channel.close-ok")?;
                    return Ok(Err(format!("{code} {text}")));
                }
                Some(other) => aside(other),
                None => panic!("no answer to {line}"),
            }
        }
    }

    /// The same, where only an answer of success will do.
    pub fn must(&mut self, line: &str) -> Method {
        self.call(line, |other| panic!("{line} is asked, came {other:?}"))
            .unwrap_or_else(|Gone| panic!("the connection ends at {line}"))
            .unwrap_or_else(|refused| panic!("{line}: {refused}"))
    }

    /// Opens the channel again after the broker has closed it.
    pub fn reopen(&mut self) -> Result<(), Gone> {
        self.call("channel.open", |_| {}).map(|answer| drop(answer.expect("a free channel opens")))
    }

    /// Closes the connection in good order: what it held is back in its queues afterwards.
    pub fn close(self) {
        self.client.close();
    }
}
