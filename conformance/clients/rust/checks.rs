//! The checks: each fails when the broker does not do what RabbitMQ does.
//!
//! A check owns its connections and the queues it names; it relies on no other check.

use futures_lite::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions,
    BasicQosOptions, BasicRejectOptions, ExchangeBindOptions, ExchangeDeclareOptions,
    ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Connection, Consumer, ExchangeKind};

use crate::routing::{self, Routing};
use crate::session::{
    MESSAGES, Outcome, Session, close, close_channel, confirming, consume, declare, drain, expect,
    expect_code, expect_equal, expect_usable, fill, inspect, number, publish, receive, until,
};

const PREFETCH: u16 = 100;
const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// One check of the list that every client goes through.
#[derive(Clone, Copy)]
pub(crate) enum Check {
    WrongPassword,
    Declare,
    BindDefault,
    BindDirect,
    BindFanout,
    BindTopic,
    BindHeaders,
    BindExchange,
    Confirms,
    ConsumeTwo,
    NackRequeue,
    Get,
    MandatoryReturn,
    PassiveMissing,
    ExclusiveLocked,
    RpcReplyTo,
    Tx,
    Close,
}

impl Check {
    /// All checks, in the order in which they run.
    pub(crate) const ALL: [Self; 18] = [
        Self::WrongPassword,
        Self::Declare,
        Self::BindDefault,
        Self::BindDirect,
        Self::BindFanout,
        Self::BindTopic,
        Self::BindHeaders,
        Self::BindExchange,
        Self::Confirms,
        Self::ConsumeTwo,
        Self::NackRequeue,
        Self::Get,
        Self::MandatoryReturn,
        Self::PassiveMissing,
        Self::ExclusiveLocked,
        Self::RpcReplyTo,
        Self::Tx,
        Self::Close,
    ];

    /// The name that the report gives.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::WrongPassword => "wrong-password",
            Self::Declare => "declare",
            Self::BindDefault => "bind-default",
            Self::BindDirect => "bind-direct",
            Self::BindFanout => "bind-fanout",
            Self::BindTopic => "bind-topic",
            Self::BindHeaders => "bind-headers",
            Self::BindExchange => "bind-exchange",
            Self::Confirms => "confirms",
            Self::ConsumeTwo => "consume-two",
            Self::NackRequeue => "nack-requeue",
            Self::Get => "get",
            Self::MandatoryReturn => "mandatory-return",
            Self::PassiveMissing => "passive-missing",
            Self::ExclusiveLocked => "exclusive-locked",
            Self::RpcReplyTo => "rpc-reply-to",
            Self::Tx => "tx",
            Self::Close => "close",
        }
    }

    /// Whether it moves so many messages that it may take longer.
    pub(crate) fn is_bulk(self) -> bool {
        matches!(self, Self::Confirms | Self::ConsumeTwo)
    }

    /// Runs it to its end.
    pub(crate) async fn run(self, session: &Session) -> Outcome {
        match self {
            Self::WrongPassword => wrong_password(session).await,
            Self::Declare => declare_and_delete(session).await,
            Self::BindDefault => bind_default(session).await,
            Self::BindDirect => bind(session, routing::direct()).await,
            Self::BindFanout => bind(session, routing::fanout()).await,
            Self::BindTopic => bind(session, routing::topic()).await,
            Self::BindHeaders => bind(session, routing::headers()).await,
            Self::BindExchange => bind_exchange(session).await,
            Self::Confirms => confirms(session).await,
            Self::ConsumeTwo => consume_two(session).await,
            Self::NackRequeue => nack_requeue(session).await,
            Self::Get => get(session).await,
            Self::MandatoryReturn => mandatory_return(session).await,
            Self::PassiveMissing => passive_missing(session).await,
            Self::ExclusiveLocked => exclusive_locked(session).await,
            Self::RpcReplyTo => rpc_reply_to(session).await,
            Self::Tx => tx(session).await,
            Self::Close => clean_close(session).await,
        }
    }
}

async fn wrong_password(session: &Session) -> Outcome {
    let refused = session.connect_wrongly().await?;
    let text = expect_code(refused, 403, "a wrong password")?;
    expect(text.contains("ACCESS_REFUSED"), format!("the reply text is {text:?}"))
}

async fn declare_and_delete(session: &Session) -> Outcome {
    let connection = session.connect().await?;
    let channel = confirming(&connection).await?;
    let (queue, exchange) = (session.queue("declare"), session.exchange("declare"));
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    for _ in 0..2 {
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(1000));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let ok = channel.queue_declare(queue.as_str().into(), options, arguments).await?;
        let got = (ok.name().as_str(), ok.message_count(), ok.consumer_count());
        expect_equal(got, (queue.as_str(), 0, 0), "declare-ok")?;
        declare_exchange(&channel, &exchange, ExchangeKind::Direct, durable).await?;
    }
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let named = channel.queue_declare("".into(), options, FieldTable::default()).await?;
    let generated = named.name().as_str().starts_with("amq.gen-");
    expect(generated, format!("server-named queue is {}", named.name()))?;
    publish(&channel, "", &queue, b"1", BasicProperties::default()).await?;
    let name: ShortString = queue.as_str().into();
    let purged = channel.queue_purge(name.clone(), QueuePurgeOptions::default()).await?;
    expect_equal(purged, 1, "purged")?;
    let other = connection.create_channel().await?;
    let options = QueueDeclareOptions::default();
    let differently = other.queue_declare(name.clone(), options, FieldTable::default()).await;
    expect_code(differently, 406, "inequivalent declare")?;
    let exchange_name = exchange.as_str().into();
    channel.exchange_delete(exchange_name, ExchangeDeleteOptions::default()).await?;
    let left = channel.queue_delete(name, QueueDeleteOptions::default()).await?;
    expect_equal(left, 0, "deleted with")?;
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let gone = declare_exchange(&channel, &exchange, ExchangeKind::Direct, passive).await;
    expect_code(gone, 404, "deleted exchange")?;
    close(connection).await
}

async fn declare_exchange(
    channel: &Channel,
    name: &str,
    kind: ExchangeKind,
    options: ExchangeDeclareOptions,
) -> lapin::Result<()> {
    channel.exchange_declare(name.into(), kind, options, FieldTable::default()).await
}

async fn bind_default(session: &Session) -> Outcome {
    let connection = session.connect().await?;
    let channel = confirming(&connection).await?;
    let names = [session.queue("default.a"), session.queue("default.b")];
    for name in &names {
        declare(&channel, name).await?;
    }
    for (index, name) in names.iter().enumerate() {
        let body = index.to_string();
        publish(&channel, "", name, body.as_bytes(), BasicProperties::default()).await?;
    }
    let nowhere = session.unused("nowhere");
    publish(&channel, "", &nowhere, b"2", BasicProperties::default()).await?;
    for (index, name) in names.iter().enumerate() {
        expect_equal(drain(&channel, name).await?, [index], "routed")?;
    }
    close(connection).await
}

async fn bind(session: &Session, table: Routing) -> Outcome {
    let connection = session.connect().await?;
    let channel = confirming(&connection).await?;
    let exchange = session.exchange(table.label);
    let options = ExchangeDeclareOptions::default();
    declare_exchange(&channel, &exchange, table.kind, options).await?;
    let queue = |label: &str| session.queue(&format!("{}.{label}", table.label));
    for (label, _) in &table.wanted {
        declare(&channel, &queue(label)).await?;
    }
    for bound in &table.bindings {
        let (name, key) = (queue(bound.queue).into(), bound.key.into());
        let options = QueueBindOptions::default();
        let arguments = bound.arguments.clone();
        channel.queue_bind(name, exchange.as_str().into(), key, options, arguments).await?;
    }
    for (index, sent) in table.messages.iter().enumerate() {
        let properties = BasicProperties::default().with_headers(sent.headers.clone());
        let body = index.to_string();
        publish(&channel, &exchange, sent.key, body.as_bytes(), properties).await?;
    }
    for (label, bodies) in &table.wanted {
        let got = drain(&channel, &queue(label)).await?;
        expect_equal(&got, bodies, &format!("routed to {label}"))?;
    }
    let (bound, sent) = (&table.bindings[0], &table.messages[0]);
    let (name, arguments) = (queue(bound.queue), bound.arguments.clone());
    let (short, from) = (name.as_str().into(), exchange.as_str().into());
    channel.queue_unbind(short, from, bound.key.into(), arguments).await?;
    let properties = BasicProperties::default().with_headers(sent.headers.clone());
    publish(&channel, &exchange, sent.key, b"0", properties).await?;
    expect_equal(drain(&channel, &name).await?, [0; 0], "routed after unbind")?;
    close(connection).await
}

async fn bind_exchange(session: &Session) -> Outcome {
    let connection = session.connect().await?;
    let channel = confirming(&connection).await?;
    let (source, target) = (session.exchange("source"), session.exchange("target"));
    let queue = session.queue("chained");
    let options = ExchangeDeclareOptions::default();
    declare_exchange(&channel, &source, ExchangeKind::Topic, options).await?;
    declare_exchange(&channel, &target, ExchangeKind::Fanout, options).await?;
    declare(&channel, &queue).await?;
    let (name, from) = (queue.as_str().into(), target.as_str().into());
    let arguments = FieldTable::default();
    channel
        .queue_bind(name, from, "".into(), QueueBindOptions::default(), arguments.clone())
        .await?;
    let (to, from) = (target.as_str().into(), source.as_str().into());
    channel
        .exchange_bind(to, from, "k.#".into(), ExchangeBindOptions::default(), arguments)
        .await?;
    publish(&channel, &source, "k.1", b"0", BasicProperties::default()).await?;
    publish(&channel, &source, "x", b"1", BasicProperties::default()).await?;
    expect_equal(drain(&channel, &queue).await?, [0], "routed")?;
    close(connection).await
}

async fn confirms(session: &Session) -> Outcome {
    let connection = session.connect().await?;
    let channel = confirming(&connection).await?;
    let queue = session.queue("confirms");
    declare(&channel, &queue).await?;
    fill(&channel, &queue).await?;
    expect_equal(inspect(&channel, &queue).await?, MESSAGES as u32, "messages in the queue")?;
    close(connection).await
}

/// One of two consumers of a queue: what it saw, and how many deliveries one ack covers.
struct Reader {
    channel: Channel,
    consumer: Consumer,
    bodies: Vec<usize>,
    unacked: Vec<Delivery>,
    step: usize,
}

impl Reader {
    async fn start(connection: &Connection, queue: &str, step: usize) -> Outcome<Self> {
        let channel = connection.create_channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let consumer = consume(&channel, queue, false).await?;
        Ok(Self { channel, consumer, bodies: Vec::new(), unacked: Vec::new(), step })
    }

    fn take(&mut self, delivery: Delivery) -> Outcome {
        self.bodies.push(number(&delivery.data)?);
        self.unacked.push(delivery);
        Ok(())
    }

    async fn settle(&mut self, least: usize) -> Outcome {
        if self.unacked.len() < least {
            return Ok(());
        }
        if self.step == 1 {
            for delivery in self.unacked.drain(..) {
                delivery.ack(BasicAckOptions::default()).await?;
            }
        } else if let Some(last) = self.unacked.last() {
            last.ack(BasicAckOptions { multiple: true }).await?;
            self.unacked.clear();
        }
        Ok(())
    }

    async fn finish(mut self) -> Outcome<Vec<usize>> {
        self.settle(1).await?;
        let tag = self.consumer.tag();
        self.channel.basic_cancel(tag, BasicCancelOptions::default()).await?;
        close_channel(&self.channel).await?;
        Ok(self.bodies)
    }
}

async fn consume_two(session: &Session) -> Outcome {
    let publishing = session.connect().await?;
    let (first, second) = (session.connect().await?, session.connect().await?);
    let publisher = confirming(&publishing).await?;
    let queue = session.queue("consume");
    declare(&publisher, &queue).await?;
    let mut one = Reader::start(&first, &queue, 1).await?;
    let mut two = Reader::start(&second, &queue, 50).await?;
    fill(&publisher, &queue).await?;
    // Nothing is acked yet: each consumer holds its prefetch and not one message more.
    let window = usize::from(PREFETCH);
    for reader in [&mut one, &mut two] {
        for _ in 0..window {
            let delivery = receive(&mut reader.consumer, "a full prefetch window").await?;
            reader.take(delivery)?;
        }
    }
    let ready = (MESSAGES - 2 * window) as u32;
    expect_equal(inspect(&publisher, &queue).await?, ready, "ready messages")?;
    one.settle(1).await?;
    two.settle(1).await?;
    while one.bodies.len() + two.bodies.len() < MESSAGES {
        tokio::select! {
            Some(delivery) = one.consumer.next() => one.take(delivery?)?,
            Some(delivery) = two.consumer.next() => two.take(delivery?)?,
            else => return Err("both consumers ended".into()),
        }
        one.settle(one.step).await?;
        two.settle(two.step).await?;
    }
    expect_complete([one.finish().await?, two.finish().await?])?;
    expect_equal(inspect(&publisher, &queue).await?, 0, "messages left after all acks")?;
    close(first).await?;
    close(second).await?;
    close(publishing).await
}

fn expect_complete(seen: [Vec<usize>; 2]) -> Outcome {
    for bodies in &seen {
        expect(!bodies.is_empty(), "a consumer got nothing")?;
        expect(bodies.is_sorted(), "a consumer saw messages out of order")?;
    }
    let mut all = seen.concat();
    all.sort_unstable();
    expect_equal(all.len(), MESSAGES, "deliveries")?;
    expect(all.into_iter().eq(0..MESSAGES), "a message was lost or came twice")
}

async fn nack_requeue(session: &Session) -> Outcome {
    let connection = session.connect().await?;
    let channel = confirming(&connection).await?;
    let queue = session.queue("nack");
    declare(&channel, &queue).await?;
    channel.basic_qos(3, BasicQosOptions::default()).await?;
    for body in ["0", "1", "2"] {
        publish(&channel, "", &queue, body.as_bytes(), BasicProperties::default()).await?;
    }
    let mut consumer = consume(&channel, &queue, false).await?;
    let mut got = Vec::new();
    for index in 0..3 {
        let delivery = receive(&mut consumer, "a delivery").await?;
        expect_equal((number(&delivery.data)?, delivery.redelivered), (index, false), "came as")?;
        got.push(delivery);
    }
    got[1].nack(BasicNackOptions { multiple: false, requeue: true }).await?;
    let back = receive(&mut consumer, "the requeued message").await?;
    expect_equal((number(&back.data)?, back.redelivered), (1, true), "came back as")?;
    got[0].reject(BasicRejectOptions { requeue: false }).await?;
    back.nack(BasicNackOptions { multiple: true, requeue: false }).await?;
    channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
    close_channel(&channel).await?;
    let other = connection.create_channel().await?;
    expect_equal(inspect(&other, &queue).await?, 0, "messages left")?;
    close(connection).await
}

fn all_properties() -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("text".into(), AMQPValue::LongString(LongString::from("\u{fc}")));
    headers.insert("number".into(), AMQPValue::LongLongInt(1 << 40));
    headers.insert("flag".into(), AMQPValue::Boolean(true));
    let list = vec![AMQPValue::LongInt(1), AMQPValue::LongString(LongString::from("two"))];
    headers.insert("list".into(), AMQPValue::FieldArray(FieldArray::from(list)));
    BasicProperties::default()
        .with_content_type("text/plain".into())
        .with_content_encoding("identity".into())
        .with_headers(headers)
        .with_delivery_mode(2)
        .with_priority(3)
        .with_correlation_id("correlation".into())
        .with_reply_to("reply".into())
        .with_message_id("id".into())
        .with_expiration("3600000".into())
        .with_timestamp(1_700_000_000)
        .with_type("type".into())
        .with_app_id("app".into())
}

async fn get(session: &Session) -> Outcome {
    let connection = session.connect().await?;
    let channel = confirming(&connection).await?;
    let queue = session.queue("get");
    declare(&channel, &queue).await?;
    let name: ShortString = queue.as_str().into();
    let manual = BasicGetOptions::default();
    let none = channel.basic_get(name.clone(), manual).await?;
    expect(none.is_none(), "an empty queue gave a message")?;
    publish(&channel, "", &queue, b"first", all_properties()).await?;
    publish(&channel, "", &queue, b"", BasicProperties::default()).await?;
    let first = channel.basic_get(name.clone(), manual).await?.ok_or("no message")?;
    let delivery = &first.delivery;
    expect_equal(delivery.data.as_slice(), b"first", "body")?;
    let place = (delivery.exchange.as_str(), delivery.routing_key.as_str());
    expect_equal(place, ("", queue.as_str()), "exchange and routing key")?;
    let counted = (first.message_count, delivery.redelivered);
    expect_equal(counted, (1, false), "message count and redelivered")?;
    expect_equal(&delivery.properties, &all_properties(), "properties")?;
    delivery.ack(BasicAckOptions::default()).await?;
    let second = channel.basic_get(name.clone(), BasicGetOptions { no_ack: true }).await?;
    expect_equal(second.ok_or("no second message")?.delivery.data, [0_u8; 0], "second body")?;
    let none = channel.basic_get(name, manual).await?;
    expect(none.is_none(), "the queue is not empty")?;
    close(connection).await
}

async fn mandatory_return(session: &Session) -> Outcome {
    let connection = session.connect().await?;
    let channel = confirming(&connection).await?;
    let key = session.unused("nowhere");
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let (to, short) = ("amq.direct".into(), key.as_str().into());
    let sent = channel.basic_publish(to, short, options, b"back", BasicProperties::default());
    // lapin hands a returned message over with the confirm that came after it.
    let confirmation = sent.await?.await?;
    expect(confirmation.is_ack(), "the returned message was not acked")?;
    let back = confirmation.take_message().ok_or("the confirm came, and no return before it")?;
    expect_equal((back.reply_code, back.reply_text.as_str()), (312, "NO_ROUTE"), "return")?;
    let place = (back.delivery.exchange.as_str(), back.delivery.routing_key.as_str());
    expect_equal(place, ("amq.direct", key.as_str()), "exchange and routing key")?;
    expect_equal(back.delivery.data.as_slice(), b"back", "returned body")?;
    close(connection).await
}

async fn passive_missing(session: &Session) -> Outcome {
    let connection = session.connect().await?;
    let channel = connection.create_channel().await?;
    let missing = session.unused("missing");
    let text = expect_code(inspect(&channel, &missing).await, 404, "passive declare")?;
    expect(text.contains(&missing), format!("no queue name in the reply text {text:?}"))?;
    expect(connection.status().connected(), "the connection is closed")?;
    expect_usable(&connection).await?;
    close(connection).await
}

async fn exclusive_locked(session: &Session) -> Outcome {
    let (owner, second) = (session.connect().await?, session.connect().await?);
    let queue = session.queue("exclusive");
    let owning = owner.create_channel().await?;
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let name: ShortString = queue.as_str().into();
    owning.queue_declare(name.clone(), options, FieldTable::default()).await?;
    let refused = inspect(&second.create_channel().await?, &queue).await;
    expect_code(refused, 405, "passive declare from a second connection")?;
    let other = second.create_channel().await?;
    let refused = other.queue_declare(name, options, FieldTable::default()).await;
    expect_code(refused, 405, "declare from a second connection")?;
    let refused = consume(&second.create_channel().await?, &queue, false).await;
    expect_code(refused, 405, "consume from a second connection")?;
    expect_usable(&second).await?;
    close(owner).await?;
    until("the exclusive queue to go with its connection", async || {
        let answer = inspect(&second.create_channel().await?, &queue).await;
        Ok(expect_code(answer, 404, "gone").is_ok())
    })
    .await?;
    close(second).await
}

async fn rpc_reply_to(session: &Session) -> Outcome {
    let (server, client) = (session.connect().await?, session.connect().await?);
    let (answering, calling) = (server.create_channel().await?, client.create_channel().await?);
    let queue = session.queue("rpc");
    declare(&answering, &queue).await?;
    let mut calls = consume(&answering, &queue, false).await?;
    let mut replies = consume(&calling, REPLY_TO, true).await?;
    for index in 0..10 {
        let id = index.to_string();
        let call = BasicProperties::default()
            .with_reply_to(REPLY_TO.into())
            .with_correlation_id(id.as_str().into());
        publish(&calling, "", &queue, id.as_bytes(), call).await?;
        let call = receive(&mut calls, "a call").await?;
        let reply_to = call.properties.reply_to().clone().ok_or("a call without reply_to")?;
        let rewritten = reply_to.as_str().starts_with("amq.rabbitmq.reply-to.");
        expect(rewritten, format!("reply_to was not rewritten: {reply_to}"))?;
        let same = call.properties.correlation_id().clone().ok_or("no correlation id")?;
        let answer = BasicProperties::default().with_correlation_id(same);
        let body = [call.data.as_slice(), b"!"].concat();
        publish(&answering, "", reply_to.as_str(), &body, answer).await?;
        call.ack(BasicAckOptions::default()).await?;
        let reply = receive(&mut replies, "a reply").await?;
        expect_equal(reply.data, format!("{id}!").into_bytes(), "reply")?;
        let correlated = reply.properties.correlation_id().as_ref().map(ShortString::as_str);
        expect_equal(correlated, Some(id.as_str()), "correlation")?;
    }
    close(client).await?;
    close(server).await
}

async fn tx(session: &Session) -> Outcome {
    let connection = session.connect().await?;
    let (channel, watcher) =
        (connection.create_channel().await?, connection.create_channel().await?);
    let queue = session.queue("tx");
    declare(&channel, &queue).await?;
    channel.tx_select().await?;
    for body in ["0", "1", "2"] {
        publish(&channel, "", &queue, body.as_bytes(), BasicProperties::default()).await?;
    }
    expect_equal(inspect(&watcher, &queue).await?, 0, "messages before the commit")?;
    channel.tx_commit().await?;
    expect_equal(inspect(&watcher, &queue).await?, 3, "messages after the commit")?;
    publish(&channel, "", &queue, b"3", BasicProperties::default()).await?;
    channel.tx_rollback().await?;
    channel.tx_commit().await?;
    expect_equal(inspect(&watcher, &queue).await?, 3, "messages after the rollback")?;
    for commit in [true, false] {
        let message = channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await?;
        message.ok_or("no message")?.delivery.ack(BasicAckOptions::default()).await?;
        if commit {
            channel.tx_commit().await?;
        } else {
            channel.tx_rollback().await?;
        }
    }
    close_channel(&channel).await?;
    until("the rolled back ack's message", async || Ok(inspect(&watcher, &queue).await? == 2))
        .await?;
    let again = watcher.basic_get(queue.as_str().into(), BasicGetOptions { no_ack: true }).await?;
    let delivery = again.ok_or("no message")?.delivery;
    let got = (number(&delivery.data)?, delivery.redelivered);
    expect_equal(got, (1, true), "after the rolled back ack")?;
    close(connection).await
}

async fn clean_close(session: &Session) -> Outcome {
    let connection = session.connect().await?;
    let (first, second) = (connection.create_channel().await?, connection.create_channel().await?);
    close_channel(&first).await?;
    let only_first = !first.status().connected() && second.status().connected();
    expect(only_first, "closing a channel touched another")?;
    expect_usable(&connection).await?;
    connection.close(200, "done".into()).await?;
    expect(!connection.status().connected(), "the connection is not closed")?;
    expect(!second.status().connected(), "a channel outlived its connection")?;
    let again = session.connect().await?;
    expect_usable(&again).await?;
    close(again).await
}
