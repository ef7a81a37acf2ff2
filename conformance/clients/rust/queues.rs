//! The checks of what queues do with messages by themselves.
//!
//! Times are short, but no check relies on a broker being quick: what must go is waited for.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lapin::message::{BasicGetMessage, Delivery};
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions,
    BasicPublishOptions, BasicQosOptions, BasicRejectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Connection, Consumer, ExchangeKind};

use crate::session::{
    Outcome, Session, close, close_channel, confirming, drain, expect, expect_code, expect_equal,
    inspect, number, receive, until,
};

const TTL: Duration = Duration::from_millis(300);
const EXPIRES: Duration = Duration::from_millis(300);
const ROUNDS: i64 = 3;
const DELIVERY_LIMIT: i64 = 2;
const HOUR: u64 = 3600;

/// One of these checks.
#[derive(Clone, Copy)]
pub(crate) enum QueueCheck {
    Ttl,
    QueueExpires,
    DeadLetter,
    RetryLoop,
    MaxLength,
    PriorityQueue,
    SingleActive,
    ConsumerPriority,
    DeliveryLimit,
    QuorumDeclare,
}

impl QueueCheck {
    /// All of them, in the order in which they run.
    pub(crate) const ALL: [Self; 10] = [
        Self::Ttl,
        Self::QueueExpires,
        Self::DeadLetter,
        Self::RetryLoop,
        Self::MaxLength,
        Self::PriorityQueue,
        Self::SingleActive,
        Self::ConsumerPriority,
        Self::DeliveryLimit,
        Self::QuorumDeclare,
    ];

    /// The name that the report gives.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ttl => "ttl",
            Self::QueueExpires => "queue-expires",
            Self::DeadLetter => "dead-letter",
            Self::RetryLoop => "retry-loop",
            Self::MaxLength => "max-length",
            Self::PriorityQueue => "priority-queue",
            Self::SingleActive => "single-active",
            Self::ConsumerPriority => "consumer-priority",
            Self::DeliveryLimit => "delivery-limit",
            Self::QuorumDeclare => "quorum-declare",
        }
    }

    /// Runs it to its end.
    pub(crate) async fn run(self, session: &Session) -> Outcome {
        match self {
            Self::Ttl => ttl(session).await,
            Self::QueueExpires => queue_expires(session).await,
            Self::DeadLetter => dead_letter(session).await,
            Self::RetryLoop => retry_loop(session).await,
            Self::MaxLength => max_length(session).await,
            Self::PriorityQueue => priority_queue(session).await,
            Self::SingleActive => single_active(session).await,
            Self::ConsumerPriority => consumer_priority(session).await,
            Self::DeliveryLimit => delivery_limit(session).await,
            Self::QuorumDeclare => quorum_declare(session).await,
        }
    }
}

fn int(value: i32) -> AMQPValue {
    AMQPValue::LongInt(value)
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value))
}

fn table(arguments: &[(&'static str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    table
}

async fn declare_as(
    channel: &Channel,
    queue: &str,
    durable: bool,
    arguments: &[(&'static str, AMQPValue)],
) -> lapin::Result<()> {
    let options = QueueDeclareOptions { durable, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), options, table(arguments)).await?;
    Ok(())
}

/// Declares a transient queue of this run.
async fn declare(
    session: &Session,
    channel: &Channel,
    label: &str,
    arguments: &[(&'static str, AMQPValue)],
) -> Outcome<String> {
    let queue = session.queue(label);
    declare_as(channel, &queue, false, arguments).await?;
    Ok(queue)
}

fn plain() -> BasicProperties {
    BasicProperties::default()
}

/// Publishes to the queue; whether the broker acked it.
async fn send(
    channel: &Channel,
    queue: &str,
    body: usize,
    properties: BasicProperties,
) -> Outcome<bool> {
    let (options, body) = (BasicPublishOptions::default(), body.to_string());
    let sent = channel.basic_publish("".into(), queue.into(), options, body.as_bytes(), properties);
    Ok(sent.await?.await?.is_ack())
}

async fn send_all(channel: &Channel, queue: &str, number: usize) -> Outcome<Vec<bool>> {
    let mut acked = Vec::new();
    for body in 0..number {
        acked.push(send(channel, queue, body, plain()).await?);
    }
    Ok(acked)
}

async fn get(channel: &Channel, queue: &str, no_ack: bool) -> Outcome<Option<BasicGetMessage>> {
    Ok(channel.basic_get(queue.into(), BasicGetOptions { no_ack }).await?)
}

/// Waits for a message in the queue.
async fn await_message(channel: &Channel, queue: &str) -> Outcome<Delivery> {
    let mut got = None;
    until(&format!("a message in {queue}"), async || {
        got = get(channel, queue, true).await?;
        Ok(got.is_some())
    })
    .await?;
    Ok(got.expect("it was waited for").delivery)
}

/// Starts a consumer on a channel of its own.
async fn consume(
    connection: &Connection,
    queue: &str,
    prefetch: u16,
    arguments: &[(&'static str, AMQPValue)],
) -> Outcome<(Channel, Consumer)> {
    let channel = connection.create_channel().await?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let started = channel.basic_consume(queue.into(), "".into(), options, table(arguments));
    let consumer = started.await?;
    Ok((channel, consumer))
}

/// Receives deliveries of these bodies; the last one.
async fn expect_bodies(consumer: &mut Consumer, wanted: &[usize], what: &str) -> Outcome<Delivery> {
    let mut last = None;
    for body in wanted {
        let delivery = receive(consumer, what).await?;
        expect_equal(number(&delivery.data)?, *body, what)?;
        last = Some(delivery);
    }
    Ok(last.ok_or("no body is wanted")?)
}

fn headers(delivery: &Delivery) -> FieldTable {
    delivery.properties.headers().clone().unwrap_or_default()
}

fn deaths(delivery: &Delivery) -> Outcome<Vec<FieldTable>> {
    let headers = headers(delivery);
    let Some(AMQPValue::FieldArray(entries)) = headers.inner().get("x-death") else {
        return Err(format!("no x-death in {headers:?}").into());
    };
    let tables = entries.as_slice().iter().map(|entry| match entry {
        AMQPValue::FieldTable(table) => Ok(table.clone()),
        other => Err(format!("x-death holds {other:?}").into()),
    });
    tables.collect()
}

/// Compares an entry of x-death, of a message published to the queue by its name.
fn expect_death(death: &FieldTable, queue: &str, reason: &str, times: i64) -> Outcome {
    let fields = ["queue", "reason", "count", "exchange", "routing-keys"];
    let got = fields.map(|field| death.inner().get(field).cloned());
    let keys = AMQPValue::FieldArray(vec![text(queue)].into());
    let wanted = [text(queue), text(reason), AMQPValue::LongLongInt(times), text(""), keys];
    expect_equal(got, wanted.map(Some), "x-death")
}

async fn ttl(session: &Session) -> Outcome {
    let connection = session.connect().await?;
    let channel = confirming(&connection).await?;
    let millis = TTL.as_millis() as i32;
    let arguments = |millis| [("x-message-ttl", int(millis))];
    let by_queue = declare(session, &channel, "ttl.queue", &arguments(millis)).await?;
    let by_message = declare(session, &channel, "ttl.message", &arguments(3_600_000)).await?;
    let expiring = |expiration: &str| plain().with_expiration(expiration.into());
    let began = Instant::now();
    send(&channel, &by_queue, 0, plain()).await?;
    send(&channel, &by_queue, 1, expiring("3600000")).await?;
    send(&channel, &by_message, 2, expiring(&millis.to_string())).await?;
    send(&channel, &by_message, 3, plain()).await?;
    let left = async || -> Outcome<_> {
        Ok([inspect(&channel, &by_queue).await?, inspect(&channel, &by_message).await?])
    };
    expect_equal(left().await?, [2, 2], "messages at first")?;
    until("the messages to expire", async || Ok(left().await? == [0, 1])).await?;
    expect(began.elapsed() >= TTL, "the messages expired early")?;
    expect_equal(drain(&channel, &by_queue).await?, [0_usize; 0], "delivered of the expired")?;
    expect_equal(drain(&channel, &by_message).await?, [3], "delivered of the rest")?;
    close(connection).await
}

async fn queue_expires(session: &Session) -> Outcome {
    let connection = session.connect().await?;
    let channel = connection.create_channel().await?;
    let expires = int(EXPIRES.as_millis() as i32);
    let queue = declare(session, &channel, "expires", &[("x-expires", expires)]).await?;
    let (consuming, consumer) = consume(&connection, &queue, 0, &[]).await?;
    tokio::time::sleep(EXPIRES * 2).await;
    expect_equal(inspect(&channel, &queue).await?, 0, "messages in the queue in use")?;
    consuming.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
    until("the queue to expire", async || {
        // Asking for the queue is a use of it, so it is asked for at longer intervals.
        tokio::time::sleep(EXPIRES * 3 / 2).await;
        let asking = connection.create_channel().await?;
        let asked = inspect(&asking, &queue).await;
        let is_gone = asked.is_err();
        if is_gone {
            expect_code(asked, 404, "an expired queue")?;
        } else {
            close_channel(&asking).await?;
        }
        Ok(is_gone)
    })
    .await?;
    close(connection).await
}

async fn dead_letter(session: &Session) -> Outcome {
    let connection = session.connect().await?;
    let channel = confirming(&connection).await?;
    let exchange = session.exchange("dlx");
    let dead = declare(session, &channel, "dead", &[]).await?;
    let (options, none) = (ExchangeDeclareOptions::default(), FieldTable::default());
    let name: ShortString = exchange.as_str().into();
    channel.exchange_declare(name.clone(), ExchangeKind::Direct, options, none.clone()).await?;
    let options = QueueBindOptions::default();
    channel.queue_bind(dead.as_str().into(), name, "dead-key".into(), options, none).await?;
    let dlx = [
        ("x-dead-letter-exchange", text(&exchange)),
        ("x-dead-letter-routing-key", text("dead-key")),
        ("x-max-length", int(1)),
    ];
    let rejecting = declare(session, &channel, "dl.rejected", &dlx[..2]).await?;
    let expiring = declare(session, &channel, "dl.expired", &dlx[..2]).await?;
    let short = declare(session, &channel, "dl.maxlen", &dlx).await?;

    send(&channel, &rejecting, 0, plain()).await?;
    let got = get(&channel, &rejecting, false).await?.ok_or("no message")?;
    got.delivery.reject(BasicRejectOptions { requeue: false }).await?;
    let letter = await_message(&channel, &dead).await?;
    expect_dead(&letter, (&exchange, 0), &rejecting, "rejected", None)?;
    send(&channel, &expiring, 1, plain().with_expiration("50".into())).await?;
    let letter = await_message(&channel, &dead).await?;
    expect_dead(&letter, (&exchange, 1), &expiring, "expired", Some("50"))?;
    send(&channel, &short, 2, plain()).await?;
    send(&channel, &short, 3, plain()).await?;
    let letter = await_message(&channel, &dead).await?;
    expect_dead(&letter, (&exchange, 2), &short, "maxlen", None)?;
    expect_equal(drain(&channel, &short).await?, [3], "left in the short queue")?;
    close(connection).await
}

fn expect_dead(
    letter: &Delivery,
    (exchange, body): (&str, usize),
    queue: &str,
    reason: &str,
    expiration: Option<&str>,
) -> Outcome {
    let place = (letter.exchange.as_str(), letter.routing_key.as_str());
    expect_equal(place, (exchange, "dead-key"), "where a dead letter came from")?;
    expect_equal(number(&letter.data)?, body, "the dead letter")?;
    let left = letter.properties.expiration().as_ref();
    expect(left.is_none(), "a dead letter kept its expiration")?;
    let headers = headers(letter);
    let first = ["x-first-death-queue", "x-first-death-reason", "x-first-death-exchange"];
    let first = first.map(|name| headers.inner().get(name).cloned());
    expect_equal(first, [text(queue), text(reason), text("")].map(Some), "first death")?;
    let deaths = deaths(letter)?;
    expect_equal(deaths.len(), 1, "deaths")?;
    expect_death(&deaths[0], queue, reason, 1)?;
    let original = deaths[0].inner().get("original-expiration").cloned();
    expect_equal(original, expiration.map(text), "original expiration")?;
    let Some(AMQPValue::Timestamp(at)) = deaths[0].inner().get("time") else {
        return Err(format!("no time of death in {:?}", deaths[0]).into());
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    expect(now.abs_diff(*at) < HOUR, format!("the time of death is {at}"))
}

async fn retry_loop(session: &Session) -> Outcome {
    let connection = session.connect().await?;
    let channel = confirming(&connection).await?;
    let to = |key: &str| {
        [
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-routing-key", text(key)),
            ("x-message-ttl", int(50)),
        ]
    };
    let to_wait = to(&session.unused("retry.wait"));
    let work = declare(session, &channel, "retry.work", &to_wait[..2]).await?;
    let wait = declare(session, &channel, "retry.wait", &to(&work)).await?;
    let (consuming, mut consumer) = consume(&connection, &work, 0, &[]).await?;
    send(&channel, &work, 7, plain()).await?;
    for _ in 0..ROUNDS {
        let delivery = expect_bodies(&mut consumer, &[7], "an attempt").await?;
        delivery.reject(BasicRejectOptions { requeue: false }).await?;
    }
    let last = expect_bodies(&mut consumer, &[7], "the last attempt").await?;
    expect(!last.redelivered, "came back as redelivered")?;
    let deaths = deaths(&last)?;
    expect_equal(deaths.len(), 2, "deaths")?;
    // The last death comes first.
    expect_death(&deaths[0], &wait, "expired", ROUNDS)?;
    expect_death(&deaths[1], &work, "rejected", ROUNDS)?;
    last.ack(BasicAckOptions::default()).await?;
    close_channel(&consuming).await?;
    let left = [inspect(&channel, &work).await?, inspect(&channel, &wait).await?];
    expect_equal(left, [0, 0], "messages left")?;
    close(connection).await
}

async fn max_length(session: &Session) -> Outcome {
    let connection = session.connect().await?;
    let channel = confirming(&connection).await?;
    let newest = declare(session, &channel, "maxlen.drop", &[("x-max-length", int(3))]).await?;
    expect_equal(send_all(&channel, &newest, 5).await?, [true; 5], "acked of drop-head")?;
    expect_equal(drain(&channel, &newest).await?, [2, 3, 4], "kept by drop-head")?;
    let rejecting = [("x-max-length", int(2)), ("x-overflow", text("reject-publish"))];
    let oldest = declare(session, &channel, "maxlen.reject", &rejecting).await?;
    let acked = send_all(&channel, &oldest, 4).await?;
    expect_equal(acked, [true, true, false, false], "acked of reject-publish")?;
    expect_equal(drain(&channel, &oldest).await?, [0, 1], "kept by reject-publish")?;
    let has_room = send(&channel, &oldest, 4, plain()).await?;
    expect(has_room, "a nack although there is room again")?;
    let dead = declare(session, &channel, "maxlen.dead", &[]).await?;
    let passing = [
        ("x-max-length", int(1)),
        ("x-overflow", text("reject-publish-dlx")),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(&dead)),
    ];
    let passing = declare(session, &channel, "maxlen.dlx", &passing).await?;
    let acked = send_all(&channel, &passing, 2).await?;
    expect_equal(acked, [true, false], "acked of reject-publish-dlx")?;
    let letter = await_message(&channel, &dead).await?;
    expect_equal(number(&letter.data)?, 1, "the dead letter")?;
    expect_death(&deaths(&letter)?[0], &passing, "maxlen", 1)?;
    close(connection).await
}

async fn priority_queue(session: &Session) -> Outcome {
    let connection = session.connect().await?;
    let channel = confirming(&connection).await?;
    let queue = declare(session, &channel, "priority", &[("x-max-priority", int(5))]).await?;
    for (body, priority) in [Some(1), Some(5), None, Some(3), Some(9)].into_iter().enumerate() {
        let properties = priority.map_or(plain(), |priority| plain().with_priority(priority));
        send(&channel, &queue, body, properties).await?;
    }
    expect_equal(drain(&channel, &queue).await?, [1, 4, 3, 0, 2], "order")?;
    close(connection).await
}

async fn single_active(session: &Session) -> Outcome {
    let (publishing, one) = (session.connect().await?, session.connect().await?);
    let (two, three) = (session.connect().await?, session.connect().await?);
    let channel = confirming(&publishing).await?;
    let single = [("x-single-active-consumer", AMQPValue::Boolean(true))];
    let queue = declare(session, &channel, "single", &single).await?;
    let (active, mut first) = consume(&one, &queue, 0, &[]).await?;
    let (_second_channel, mut second) = consume(&two, &queue, 0, &[]).await?;
    let (_third_channel, mut third) = consume(&three, &queue, 0, &[]).await?;
    send_all(&channel, &queue, 3).await?;
    let last = expect_bodies(&mut first, &[0, 1, 2], "the first consumer's").await?;
    last.ack(BasicAckOptions { multiple: true }).await?;
    active.basic_cancel(first.tag(), BasicCancelOptions::default()).await?;
    send(&channel, &queue, 3, plain()).await?;
    expect_bodies(&mut second, &[3], "after the cancel").await?;
    // What the closed connection held goes to the next consumer.
    close(two).await?;
    let back = expect_bodies(&mut third, &[3], "after the close").await?;
    expect(back.redelivered, "the closed connection's message is not marked redelivered")?;
    close(one).await?;
    close(three).await?;
    close(publishing).await
}

async fn consumer_priority(session: &Session) -> Outcome {
    let connection = session.connect().await?;
    let channel = confirming(&connection).await?;
    let queue = declare(session, &channel, "consumers", &[]).await?;
    let (_lower, mut low) = consume(&connection, &queue, 0, &[]).await?;
    let (_higher, mut high) = consume(&connection, &queue, 2, &[("x-priority", int(10))]).await?;
    send_all(&channel, &queue, 4).await?;
    expect_bodies(&mut high, &[0, 1], "the high consumer's").await?;
    expect_bodies(&mut low, &[2, 3], "the low consumer's").await?;
    close(connection).await
}

async fn delivery_limit(session: &Session) -> Outcome {
    let connection = session.connect().await?;
    let channel = confirming(&connection).await?;
    let dead = declare(session, &channel, "limit.dead", &[]).await?;
    let queue = session.queue("limit");
    let quorum = [
        ("x-queue-type", text("quorum")),
        ("x-delivery-limit", int(DELIVERY_LIMIT as i32)),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(&dead)),
    ];
    declare_as(&channel, &queue, true, &quorum).await?;
    send(&channel, &queue, 7, plain()).await?;
    let (_consuming, mut consumer) = consume(&connection, &queue, 0, &[]).await?;
    for times in 0..=DELIVERY_LIMIT {
        let delivery = expect_bodies(&mut consumer, &[7], "a delivery").await?;
        let counted = headers(&delivery).inner().get("x-delivery-count").cloned();
        let wanted = (times > 0).then_some(AMQPValue::LongLongInt(times));
        expect_equal((counted, delivery.redelivered), (wanted, times > 0), "came as")?;
        delivery.nack(BasicNackOptions { multiple: false, requeue: true }).await?;
    }
    let letter = await_message(&channel, &dead).await?;
    expect_equal(number(&letter.data)?, 7, "the dead letter")?;
    expect_death(&deaths(&letter)?[0], &queue, "delivery_limit", 1)?;
    close(connection).await
}

async fn quorum_declare(session: &Session) -> Outcome {
    let connection = session.connect().await?;
    let channel = confirming(&connection).await?;
    let (queue, other) = (session.queue("quorum"), session.queue("quorum.refused"));
    let quorum = [
        ("x-queue-type", text("quorum")),
        ("x-delivery-limit", int(3)),
        ("x-max-length", int(10)),
        ("x-max-priority", int(5)),
    ];
    for _ in 0..2 {
        declare_as(&channel, &queue, true, &quorum[..3]).await?;
    }
    let is_acked = send(&channel, &queue, 1, plain().with_delivery_mode(2)).await?;
    expect(is_acked, "a nack")?;
    let message = await_message(&channel, &queue).await?;
    let came = (number(&message.data)?, message.redelivered);
    expect_equal(came, (1, false), "the message")?;
    let refused = [
        ("the same name as a classic queue", &queue, true, &quorum[..0]),
        ("a transient quorum queue", &other, false, &quorum[..3]),
        ("a quorum queue with priorities", &other, true, &quorum[..]),
    ];
    for (what, name, durable, arguments) in refused {
        let channel = connection.create_channel().await?;
        expect_code(declare_as(&channel, name, durable, arguments).await, 406, what)?;
    }
    let name = queue.as_str().into();
    let left = channel.queue_delete(name, QueueDeleteOptions::default()).await?;
    expect_equal(left, 0, "deleted with")?;
    close(connection).await
}
