//! From the protocol header to connection.open-ok, and the other methods of class connection.
//!
//! Owns negotiation (specification section 2.2.4): versions, authentication, limits, vhost. What
//! RabbitMQ answers with silence is answered with silence here, too, and always with a log line.

use std::sync::LazyLock;

use super::login::Login;
use super::{Connection, Worker, sasl};
use crate::codec::encode::PROTOCOL_HEADER;
use crate::codec::frame::FRAME_MIN;
use crate::codec::method::{AMQPClass, AMQPValue, FieldTable, connection, put_method};
use crate::error::{AmqpError, ReplyCode};

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The client speaks first.
    ProtocolHeader,
    /// connection.start was sent.
    StartOk,
    /// connection.tune was sent.
    TuneOk,
    /// Limits are agreed.
    Open1,
    /// Channels may be opened.
    Open,
    /// connection.close was sent.
    Closing,
    /// Nothing that the client sends matters any more.
    Over { linger_ms: u64 },
}

const CONNECTION_TUNE: (u16, u16) = (10, 30);

/// connection.start as a whole frame: the same for every client.
static START: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let start = connection::Start {
        version_major: 0,
        version_minor: 9,
        server_properties: server_properties(),
        mechanisms: sasl::MECHANISMS.into(),
        locales: "en_US".into(),
    };
    let mut frame = Vec::new();
    put_method(&mut frame, 0, &AMQPClass::Connection(connection::AMQPMethod::Start(start)));
    frame
});

impl Connection {
    pub(super) fn is_handshaking(&self) -> bool {
        matches!(self.phase, Phase::ProtocolHeader | Phase::StartOk)
    }

    /// Answers how many bytes the header took, or `None` when it is not complete.
    pub(super) fn take_protocol_header(
        &mut self,
        bytes: &[u8],
        worker: &mut Worker,
    ) -> Option<usize> {
        const LEN: usize = PROTOCOL_HEADER.len();
        let begin = &bytes[..bytes.len().min(LEN)];
        let known = [PROTOCOL_HEADER, *b"AMQP\x01\x01\x00\x09"];
        if known.iter().any(|header| header == begin) {
            self.put(&START, worker);
            self.phase = Phase::StartOk;
            return Some(LEN);
        }
        if known.iter().any(|header| header.starts_with(begin)) {
            return None;
        }
        // Something else: tell what is spoken here (specification section 2.2.4.1).
        let what = match begin {
            [0x16, 0x03, ..] => "a TLS client on the plain AMQP port",
            [b'G', b'E', b'T', b' ', ..] => "an HTTP request on the AMQP port",
            [b'A', b'M', b'Q', b'P', ..] => "another version of AMQP",
            _ => "no AMQP protocol header",
        };
        tracing::warn!(connection = &*self.name, "connection refused: {what}");
        self.put(&PROTOCOL_HEADER, worker);
        self.phase = Phase::Over { linger_ms: 0 };
        Some(bytes.len())
    }

    fn put(&self, bytes: &[u8], worker: &mut Worker) {
        let mut guard = self.outbox.lock_for_reply();
        guard.buffer().extend_from_slice(bytes);
        guard.wake(&mut worker.drive.wakes);
    }

    /// A method on channel 0.
    pub(super) fn take_connection_method(
        &mut self,
        method: AMQPClass,
        worker: &mut Worker,
    ) -> Result<(), AmqpError> {
        use connection::AMQPMethod as Method;
        match (self.phase, method) {
            (Phase::StartOk, AMQPClass::Connection(Method::StartOk(start))) => {
                self.take_start_ok(&start, worker)
            }
            (Phase::TuneOk, AMQPClass::Connection(Method::TuneOk(tune))) => {
                self.take_tune_ok(&tune)
            }
            (Phase::Open1, AMQPClass::Connection(Method::Open(open))) => {
                self.take_open(&open, worker)
            }
            (_, AMQPClass::Connection(Method::Close(close))) if !self.is_handshaking() => {
                self.close_by_client(&close, worker);
                Ok(())
            }
            (Phase::Open, AMQPClass::Connection(Method::CloseOk(_))) => {
                // The answer to a close that was asked for from outside (shutdown).
                self.release_holdings(worker);
                self.phase = Phase::Over { linger_ms: 0 };
                Ok(())
            }
            (Phase::Open, AMQPClass::Connection(Method::UpdateSecret(_))) => {
                // Passwords do not expire: there is nothing to update (RabbitMQ answers the same).
                let ok = Method::UpdateSecretOk(connection::UpdateSecretOk {});
                self.send(0, AMQPClass::Connection(ok), worker);
                Ok(())
            }
            (phase, _) => {
                let state = match phase {
                    Phase::Open => "running",
                    Phase::Open1 => "opening",
                    Phase::TuneOk => "tuning",
                    _ => "starting",
                };
                let text = format!("unexpected method in connection state {state}");
                Err(AmqpError::new(ReplyCode::ChannelError, text))
            }
        }
    }

    fn take_start_ok(
        &mut self,
        start: &connection::StartOk,
        worker: &mut Worker,
    ) -> Result<(), AmqpError> {
        let capabilities = match start.client_properties.inner().get("capabilities") {
            Some(AMQPValue::FieldTable(capabilities)) => Some(capabilities.inner()),
            _ => None,
        };
        let can = |name: &str| {
            let value = capabilities.and_then(|capabilities| capabilities.get(name));
            matches!(value, Some(AMQPValue::Boolean(true)))
        };
        self.knows_blocked = can("connection.blocked");
        if can("consumer_cancel_notify") {
            self.outbox.set_cancel_notify();
        }
        let mechanism = start.mechanism.as_str();
        let found = sasl::credentials(mechanism, start.response.as_bytes())
            .map_err(|text| AmqpError::new(ReplyCode::SyntaxError, text))?;
        let is_local = self.peer.to_canonical().is_loopback();
        let is_told = can("authentication_failure_close");
        self.begin_login(Login::new(&self.broker, mechanism, found, is_local, is_told), worker);
        Ok(())
    }

    /// The user is who he says.
    pub(super) fn begin_tuning(&mut self, user: &str, worker: &mut Worker) {
        user.clone_into(&mut self.user);
        let limits = &self.broker.config().limits;
        self.frame_max = limits.frame_max;
        self.channel_max = limits.channel_max;
        let tune = connection::Tune {
            channel_max: limits.channel_max,
            frame_max: limits.frame_max,
            heartbeat: limits.heartbeat_s,
        };
        self.send(0, AMQPClass::Connection(connection::AMQPMethod::Tune(tune)), worker);
        self.phase = Phase::TuneOk;
    }

    /// The client may lower a limit but not raise it, and 0 means none at all.
    fn take_tune_ok(&mut self, tune: &connection::TuneOk) -> Result<(), AmqpError> {
        let limits = &self.broker.config().limits;
        let refuse = |field: &str, value: u32, detail: &str, bound: String| {
            let text = format!("negotiated {field} = {value}{detail} is {bound}");
            let (class, method) = CONNECTION_TUNE;
            Err(AmqpError::new(ReplyCode::NotAllowed, text).of(class, method))
        };
        let above = |max: u32| format!("higher than the maximum allowed value ({max})");
        if tune.frame_max != 0 && tune.frame_max < FRAME_MIN {
            let bound = format!("lower than the minimum allowed value ({FRAME_MIN})");
            return refuse("frame_max", tune.frame_max, "", bound);
        }
        if tune.frame_max == 0 || tune.frame_max > limits.frame_max {
            return refuse("frame_max", tune.frame_max, "", above(limits.frame_max));
        }
        if tune.channel_max == 0 || tune.channel_max > limits.channel_max {
            let detail = if tune.channel_max == 0 { " (no limit)" } else { "" };
            let max = above(limits.channel_max.into());
            return refuse("channel_max", tune.channel_max.into(), detail, max);
        }
        self.frame_max = tune.frame_max;
        self.outbox.set_frame_max(tune.frame_max);
        self.channel_max = tune.channel_max;
        self.heartbeat_s = tune.heartbeat;
        self.phase = Phase::Open1;
        Ok(())
    }

    fn take_open(&mut self, open: &connection::Open, worker: &mut Worker) -> Result<(), AmqpError> {
        let name = open.virtual_host.as_str();
        let Some(vhost) = self.broker.vhost(name) else {
            return Err(AmqpError::new(ReplyCode::NotAllowed, format!("vhost {name} not found")));
        };
        self.enter(vhost)?;
        if !self.broker.admit_connection() {
            let max = self.broker.config().limits.connection_max;
            let text = format!("connection refused: node connection limit ({max}) is reached");
            return Err(AmqpError::new(ReplyCode::NotAllowed, text));
        }
        self.admitted = true;
        self.liveness.begin_open(self.heartbeat_s);
        self.phase = Phase::Open;
        let ok = connection::AMQPMethod::OpenOk(connection::OpenOk {});
        self.send(0, AMQPClass::Connection(ok), worker);
        tracing::info!(
            connection = &*self.name,
            user = self.user,
            vhost = name,
            heartbeat_s = self.heartbeat_s,
            "connection opened"
        );
        Ok(())
    }
}

/// What the server says of itself. Each capability works.
fn server_properties() -> FieldTable {
    let mut capabilities = FieldTable::default();
    for name in [
        "publisher_confirms",
        "exchange_exchange_bindings",
        "basic.nack",
        "consumer_cancel_notify",
        "connection.blocked",
        "consumer_priorities",
        "authentication_failure_close",
        "per_consumer_qos",
        "direct_reply_to",
    ] {
        capabilities.insert(name.into(), AMQPValue::Boolean(true));
    }
    let mut properties = FieldTable::default();
    properties.insert("capabilities".into(), AMQPValue::FieldTable(capabilities));
    let text = |value: &str| AMQPValue::LongString(value.into());
    for (name, value) in [
        ("product", "Leveret"),
        ("version", env!("CARGO_PKG_VERSION")),
        ("platform", std::env::consts::OS),
        ("copyright", "The Leveret contributors"),
        ("information", "Licensed under MIT or Apache-2.0"),
        ("cluster_name", "leveret"),
    ] {
        properties.insert(name.into(), text(value));
    }
    properties
}
