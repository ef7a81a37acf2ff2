//! A login: who the client says it is, and whether that is true.
//!
//! Owns the step of the handshake that takes time. What is known already is judged at once; for
//! anything else the connection stands still until somebody has worked the verdict out, on a thread
//! where that holds nobody up. It must not know how passwords are kept.

use std::sync::Arc;

use super::closing::REFUSED_LINGER_MS;
use super::handshake::Phase;
use super::sasl::Credentials;
use super::{Connection, Worker};
use crate::broker::{Broker, LoginRefused};
use crate::error::{AmqpError, ReplyCode};

/// Credentials that are to be checked, with what the answer depends on.
pub struct Login {
    broker: Arc<Broker>,
    mechanism: String,
    credentials: Credentials,
    /// Whether the client is on this machine.
    is_local: bool,
    /// Whether the client wants to be told that it is refused.
    is_told: bool,
}

/// Nothing of a password gets into logs.
impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Login({:?})", self.credentials.user)
    }
}

/// What has come out of [`Login::check`].
#[derive(Debug)]
pub struct LoginVerdict(Result<(), LoginRefused>);

impl Login {
    pub(super) fn new(
        broker: &Arc<Broker>,
        mechanism: &str,
        credentials: Credentials,
        is_local: bool,
        is_told: bool,
    ) -> Self {
        let (broker, mechanism) = (broker.clone(), mechanism.to_owned());
        Self { broker, mechanism, credentials, is_local, is_told }
    }

    /// Works the verdict out. It takes milliseconds of a processor's time, or hundreds of them.
    pub fn check(&self) -> LoginVerdict {
        let Credentials { user, password } = &self.credentials;
        let loopback_users = &self.broker.config().auth.loopback_users;
        let access = self.broker.access();
        LoginVerdict(access.check_login(user, password, self.is_local, loopback_users))
    }

    /// The verdict, if it takes no time.
    fn recall(&self) -> Option<LoginVerdict> {
        let Credentials { user, password } = &self.credentials;
        let loopback_users = &self.broker.config().auth.loopback_users;
        let access = self.broker.access();
        access.recall_login(user, password, self.is_local, loopback_users).map(LoginVerdict)
    }
}

impl Connection {
    /// The login that is to be checked, after [`super::Next::AwaitLogin`].
    pub fn login(&self) -> Option<Arc<Login>> {
        self.login.clone()
    }

    /// Goes on with the handshake, or ends it. Without a login that waits for it, a verdict does
    /// nothing.
    pub fn finish_login(&mut self, verdict: &LoginVerdict, worker: &mut Worker) {
        if let Some(login) = self.login.take() {
            self.judge_login(&login, verdict, worker);
        }
    }

    pub(super) fn begin_login(&mut self, login: Login, worker: &mut Worker) {
        match login.recall() {
            Some(verdict) => self.judge_login(&login, &verdict, worker),
            None => self.login = Some(Arc::new(login)),
        }
    }

    fn judge_login(&mut self, login: &Login, verdict: &LoginVerdict, worker: &mut Worker) {
        let mechanism = &login.mechanism;
        let Err(refused) = &verdict.0 else {
            return self.begin_tuning(&login.credentials.user, worker);
        };
        tracing::warn!(connection = &*self.name, "{mechanism} login refused: {refused}");
        if !login.is_told {
            self.phase = Phase::Over { linger_ms: REFUSED_LINGER_MS };
            return;
        }
        // RabbitMQ's authentication_failure_close: the client is told, but not why.
        let text = format!(
            "Login was refused using authentication mechanism {mechanism}. \
             For details see the broker logfile."
        );
        self.fail_connection(&AmqpError::new(ReplyCode::AccessRefused, text), worker);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::task::{Context, Waker};

    use super::*;
    use crate::broker::Outgoing;
    use crate::clock::Millis;
    use crate::codec::encode::PROTOCOL_HEADER;
    use crate::codec::frame;
    use crate::codec::method::{
        AMQPClass, AMQPValue, FieldTable, connection, parse_method, put_method,
    };
    use crate::config::Config;
    use crate::connection::Next;

    const TUNE_OK_LEN: usize = 20;

    /// A broker whose users have not logged in yet, as after a restart.
    fn broker() -> Arc<Broker> {
        let new = || Broker::without_defaults(Arc::new(Config::default()), u64::MAX);
        let (before, after) = (new(), new());
        before.access().add_user("u", Some("secret"), &[]).expect("a new user");
        let users = before.access().users();
        users.iter().for_each(|user| after.access().put_user(user).expect("our own"));
        Arc::new(after)
    }

    fn connect(broker: &Arc<Broker>) -> Connection {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 5672));
        Connection::new(broker.clone(), address, address, Millis(0))
    }

    /// All that the client has to say up to connection.tune-ok.
    fn hello(password: &str, is_told: bool) -> Vec<u8> {
        let mut capabilities = FieldTable::default();
        capabilities.insert("authentication_failure_close".into(), AMQPValue::Boolean(is_told));
        let mut client_properties = FieldTable::default();
        client_properties.insert("capabilities".into(), AMQPValue::FieldTable(capabilities));
        let start = connection::StartOk {
            client_properties,
            mechanism: "PLAIN".into(),
            response: format!("\0u\0{password}").into(),
            locale: "en_US".into(),
        };
        let tune = connection::TuneOk { channel_max: 7, frame_max: 4096, heartbeat: 0 };
        let mut bytes = PROTOCOL_HEADER.to_vec();
        for method in [connection::AMQPMethod::StartOk(start), connection::AMQPMethod::TuneOk(tune)]
        {
            put_method(&mut bytes, 0, &AMQPClass::Connection(method));
        }
        bytes
    }

    /// The connection's answers since the last call, by name.
    fn answers(connection: &Connection) -> Vec<&'static str> {
        let mut taken = Outgoing::default();
        let mut context = Context::from_waker(Waker::noop());
        let mut names = Vec::new();
        if connection.outbox().poll_take(&mut context, &mut taken).is_pending() {
            return names;
        }
        let mut rest = &taken.buffer[..];
        while let Some((frame, used)) = frame::split(rest, u32::MAX).expect("whole frames") {
            rest = &rest[used..];
            names.push(match parse_method(frame.payload) {
                Ok(AMQPClass::Connection(connection::AMQPMethod::Start(_))) => "start",
                Ok(AMQPClass::Connection(connection::AMQPMethod::Tune(_))) => "tune",
                Ok(AMQPClass::Connection(connection::AMQPMethod::Close(_))) => "close",
                other => panic!("not of a handshake: {other:?}"),
            });
        }
        names
    }

    #[test]
    fn a_connection_stands_still_until_its_password_is_checked() {
        let broker = broker();
        let (mut connection, mut worker) = (connect(&broker), Worker::default());
        let bytes = hello("secret", true);
        let progress = connection.feed(&bytes, &mut worker);
        let rest = &bytes[progress.consumed..];
        assert_eq!((progress.next, rest.len()), (Next::AwaitLogin, TUNE_OK_LEN));
        assert_eq!(answers(&connection), ["start"]);
        // Nothing is taken before its turn, however often it is fed.
        let again = connection.feed(rest, &mut worker);
        assert_eq!((again.next, again.consumed), (Next::AwaitLogin, 0));
        let verdict = connection.login().expect("it waits").check();
        connection.finish_login(&verdict, &mut worker);
        assert_eq!(answers(&connection), ["tune"]);
        let last = connection.feed(rest, &mut worker);
        assert_eq!((last.next, last.consumed), (Next::Read, TUNE_OK_LEN));
        assert!(connection.login().is_none() && connection.phase == Phase::Open1);
        connection.finish_login(&verdict, &mut worker);
        assert!(answers(&connection).is_empty() && connection.phase == Phase::Open1);
        // The next one is known.
        let mut next = connect(&broker);
        let progress = next.feed(&bytes, &mut worker);
        assert_eq!((progress.next, progress.consumed), (Next::Read, bytes.len()));
        assert_eq!(answers(&next), ["start", "tune"]);
    }

    #[test]
    fn a_wrong_password_ends_the_handshake() {
        for (is_told, said) in [(true, &["start", "close"][..]), (false, &["start"][..])] {
            let (mut connection, mut worker) = (connect(&broker()), Worker::default());
            let bytes = hello("guess", is_told);
            let consumed = connection.feed(&bytes, &mut worker).consumed;
            let verdict = connection.login().expect("it waits").check();
            connection.finish_login(&verdict, &mut worker);
            assert_eq!(answers(&connection), said);
            let next = connection.feed(&bytes[consumed..], &mut worker).next;
            let silent = Next::Close { linger_ms: REFUSED_LINGER_MS };
            assert_eq!(next, if is_told { Next::Read } else { silent });
        }
    }

    #[test]
    fn logs_do_not_show_passwords() {
        let (mut connection, mut worker) = (connect(&broker()), Worker::default());
        connection.feed(&hello("s3cret", true), &mut worker);
        assert_eq!(format!("{:?}", connection.login()), "Some(Login(\"u\"))");
    }
}
