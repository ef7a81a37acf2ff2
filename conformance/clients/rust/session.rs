//! One run against one broker: its URI, the names it made, and the steps that checks share.
//!
//! It decides nothing about what a broker must do; `checks` does.

use std::collections::hash_map::RandomState;
use std::error::Error;
use std::fmt::Debug;
use std::hash::{BuildHasher, Hasher};
use std::str::FromStr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_lite::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
    ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{FieldTable, ReplyCode};
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ErrorKind};

/// How a check or one of its steps ends; the error's text is the reason of a failed check.
pub(crate) type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// How many messages the bulk checks publish.
pub(crate) const MESSAGES: usize = 10_000;
const WAIT_TIME: Duration = Duration::from_secs(10);
const REPLY_SUCCESS: ReplyCode = 200;

/// One run against one broker.
pub(crate) struct Session {
    uri: String,
    prefix: String,
    queues: Mutex<Vec<String>>,
    exchanges: Mutex<Vec<String>>,
}

impl Session {
    /// Makes a run with names that no other run has.
    pub(crate) fn new(uri: String) -> Self {
        let mut random = RandomState::new().build_hasher();
        random.write_u32(std::process::id());
        Self {
            uri,
            prefix: format!("conformance.lapin.{:016x}", random.finish()),
            queues: Mutex::default(),
            exchanges: Mutex::default(),
        }
    }

    /// A name that nothing is ever declared under.
    pub(crate) fn unused(&self, label: &str) -> String {
        format!("{}.{label}", self.prefix)
    }

    /// A queue name, which the sweep at the end deletes.
    pub(crate) fn queue(&self, label: &str) -> String {
        let name = self.unused(label);
        self.queues.lock().expect("no check panics with it").push(name.clone());
        name
    }

    /// An exchange name, which the sweep at the end deletes.
    pub(crate) fn exchange(&self, label: &str) -> String {
        let name = self.unused(label);
        self.exchanges.lock().expect("no check panics with it").push(name.clone());
        name
    }

    /// Connects as the URI says.
    pub(crate) async fn connect(&self) -> Outcome<Connection> {
        Ok(Connection::connect(&self.uri, ConnectionProperties::default()).await?)
    }

    /// Connects as the user guest with a password that is not his.
    pub(crate) async fn connect_wrongly(&self) -> Outcome<lapin::Result<Connection>> {
        let mut uri = AMQPUri::from_str(&self.uri)?;
        uri.authority.userinfo.username = "guest".to_owned();
        uri.authority.userinfo.password = "not the password".to_owned();
        Ok(Connection::connect_uri(uri, ConnectionProperties::default()).await)
    }

    /// Deletes what the checks left, failed ones included.
    pub(crate) async fn sweep(&self) -> Outcome {
        let queues = std::mem::take(&mut *self.queues.lock().expect("the checks are over"));
        let exchanges = std::mem::take(&mut *self.exchanges.lock().expect("the checks are over"));
        let connection = self.connect().await?;
        let channel = connection.create_channel().await?;
        for name in queues {
            channel.queue_delete(name.into(), QueueDeleteOptions::default()).await?;
        }
        for name in exchanges {
            channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await?;
        }
        close(connection).await
    }
}

/// Fails the check with the reason unless the condition holds.
pub(crate) fn expect(condition: bool, reason: impl Into<String>) -> Outcome {
    if condition { Ok(()) } else { Err(reason.into().into()) }
}

/// Fails the check unless both are equal.
pub(crate) fn expect_equal<T: PartialEq<U> + Debug, U: Debug>(
    got: T,
    wanted: U,
    what: &str,
) -> Outcome {
    expect(got == wanted, format!("{what}: got {got:?}, wanted {wanted:?}"))
}

/// Fails the check unless the broker answered with this code; returns the broker's text.
pub(crate) fn expect_code<T>(
    result: lapin::Result<T>,
    code: ReplyCode,
    what: &str,
) -> Outcome<String> {
    let Err(error) = result else { return Err(format!("{what}: no error").into()) };
    let ErrorKind::ProtocolError(refusal) = error.kind() else {
        return Err(format!("{what}: no AMQP error but {error}").into());
    };
    expect_equal(refusal.get_id(), code, what)?;
    Ok(refusal.get_message().as_str().to_owned())
}

/// Closes a connection and waits for the broker's answer.
pub(crate) async fn close(connection: Connection) -> Outcome {
    Ok(connection.close(REPLY_SUCCESS, "done".into()).await?)
}

/// Closes a channel and waits for the broker's answer.
pub(crate) async fn close_channel(channel: &Channel) -> Outcome {
    Ok(channel.close(REPLY_SUCCESS, "done".into()).await?)
}

/// Opens a channel whose publishes are confirmed.
pub(crate) async fn confirming(connection: &Connection) -> Outcome<Channel> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

/// Declares a transient queue.
pub(crate) async fn declare(channel: &Channel, name: &str) -> Outcome {
    let options = QueueDeclareOptions::default();
    channel.queue_declare(name.into(), options, FieldTable::default()).await?;
    Ok(())
}

/// Declares passively: the queue's message count, or the broker's refusal.
pub(crate) async fn inspect(channel: &Channel, name: &str) -> lapin::Result<u32> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare(name.into(), options, FieldTable::default()).await?;
    Ok(queue.message_count())
}

/// Publishes; on a confirming channel, waits for the ack.
pub(crate) async fn publish(
    channel: &Channel,
    exchange: &str,
    key: &str,
    body: &[u8],
    properties: BasicProperties,
) -> Outcome {
    let options = BasicPublishOptions::default();
    let sent = channel.basic_publish(exchange.into(), key.into(), options, body, properties);
    let confirmation = sent.await?.await?;
    expect(!confirmation.is_nack(), "the broker nacked a message")
}

/// Publishes all messages to a queue, with up to a thousand confirms outstanding.
pub(crate) async fn fill(channel: &Channel, queue: &str) -> Outcome {
    let mut outstanding = Vec::new();
    for index in 0..MESSAGES {
        let body = index.to_string();
        let options = BasicPublishOptions::default();
        let properties = BasicProperties::default();
        let sent =
            channel.basic_publish("".into(), queue.into(), options, body.as_bytes(), properties);
        outstanding.push(sent.await?);
        if outstanding.len() == 1000 || index + 1 == MESSAGES {
            for confirm in outstanding.drain(..) {
                expect(confirm.await?.is_ack(), "a message was not acked")?;
            }
        }
    }
    Ok(())
}

/// The number that a message carries.
pub(crate) fn number(body: &[u8]) -> Outcome<usize> {
    Ok(std::str::from_utf8(body)?.parse()?)
}

/// The numbers in the queue, oldest first.
pub(crate) async fn drain(channel: &Channel, queue: &str) -> Outcome<Vec<usize>> {
    let mut bodies = Vec::new();
    let options = BasicGetOptions { no_ack: true };
    while let Some(message) = channel.basic_get(queue.into(), options).await? {
        bodies.push(number(&message.delivery.data)?);
    }
    Ok(bodies)
}

/// Starts a consumer.
pub(crate) async fn consume(
    channel: &Channel,
    queue: &str,
    no_ack: bool,
) -> lapin::Result<Consumer> {
    let options = BasicConsumeOptions { no_ack, ..BasicConsumeOptions::default() };
    channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await
}

/// The consumer's next delivery.
pub(crate) async fn receive(consumer: &mut Consumer, what: &str) -> Outcome<Delivery> {
    match tokio::time::timeout(WAIT_TIME, consumer.next()).await {
        Ok(Some(delivery)) => Ok(delivery?),
        Ok(None) => Err(format!("the consumer ended instead of {what}").into()),
        Err(_) => Err(format!("timed out waiting for {what}").into()),
    }
}

/// Asks the condition until it holds.
pub(crate) async fn until(
    what: &str,
    mut condition: impl AsyncFnMut() -> Outcome<bool>,
) -> Outcome {
    let deadline = Instant::now() + WAIT_TIME;
    while !condition().await? {
        expect(Instant::now() < deadline, format!("timed out waiting for {what}"))?;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Shows that a connection still works, with a new channel.
pub(crate) async fn expect_usable(connection: &Connection) -> Outcome {
    let channel = confirming(connection).await?;
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?;
    let name = queue.name().as_str();
    publish(&channel, "", name, b"7", BasicProperties::default()).await?;
    expect_equal(drain(&channel, name).await?, [7], "a new channel on the same connection")?;
    // A channel that closes by being dropped would race lapin's own close of the connection.
    close_channel(&channel).await
}
