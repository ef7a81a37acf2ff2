//! What queues do with messages as their arguments ask: expiry, dead letters, limits, priorities,
//! who consumes, and the quorum type.
//!
//! Owns what the tests in `tests/semantics/` share. They say what a client sees, not how it comes
//! about. With `AMQP_URI` in the environment they run against that broker, which is how they are
//! proven right against RabbitMQ 3.10; where 4.x answers better, `is_rabbitmq` marks the place.

#[path = "semantics/consumers.rs"]
mod consumers;
#[path = "semantics/dead_letters.rs"]
mod dead_letters;
#[path = "semantics/deaths.rs"]
mod deaths;
#[path = "semantics/deduplication.rs"]
mod deduplication;
#[path = "semantics/expiry.rs"]
mod expiry;
#[path = "semantics/limits.rs"]
mod limits;
#[path = "semantics/priorities.rs"]
mod priorities;
#[path = "semantics/quorum.rs"]
mod quorum;
mod support;

use std::sync::OnceLock;

use support::notation::Value;
use support::{Broker, Client, Delivery, unique, wait_until};

fn broker() -> &'static Broker {
    static BROKER: OnceLock<Broker> = OnceLock::new();
    BROKER.get_or_init(Broker::start)
}

/// An exclusive queue with these arguments, on channel 1 of a new connection.
fn with_queue(arguments: &str) -> (Client, String) {
    let mut client = Client::open(broker());
    let queue = exclusive(&mut client, arguments);
    (client, queue)
}

/// A new exclusive queue with these arguments.
fn exclusive(client: &mut Client, arguments: &str) -> String {
    let queue = unique("q");
    client.declare(1, &format!("queue={queue} exclusive arguments=({arguments})"));
    queue
}

/// A queue with these arguments whose dead letters go to a second queue: client, queue, second.
fn with_graveyard(arguments: &str) -> (Client, String, String) {
    let mut client = Client::open(broker());
    let graveyard = exclusive(&mut client, "");
    let queue = exclusive(&mut client, &format!("{},{arguments}", buried_in(&graveyard)));
    (client, queue, graveyard)
}

/// The arguments by which a queue sends its dead letters to this queue.
fn buried_in(graveyard: &str) -> String {
    format!("x-dead-letter-exchange=\"\",x-dead-letter-routing-key={graveyard}")
}

/// Publishes a text with properties to a queue.
fn put(client: &mut Client, queue: &str, properties: &str, text: &str) {
    client.publish(1, &format!("routing_key={queue}"), properties, text.as_bytes());
}

fn put_all(client: &mut Client, queue: &str, properties: &str, texts: &[&str]) {
    texts.iter().for_each(|text| put(client, queue, properties, text));
}

fn take(client: &mut Client, queue: &str) -> Option<Delivery> {
    client.get(1, &format!("queue={queue} no_ack"))
}

/// A message that is kept unacked, and its tag.
fn hold(client: &mut Client, queue: &str) -> (String, u64) {
    let held = client.get(1, &format!("queue={queue}")).expect("a message is ready");
    (held.text(), held.tag())
}

/// Everything that is ready, taken out for good.
fn drain(client: &mut Client, queue: &str) -> Vec<String> {
    std::iter::from_fn(|| take(client, queue)).map(|d| d.text()).collect()
}

/// The next message that reaches this queue, taken out for good.
fn arrival(client: &mut Client, queue: &str) -> Delivery {
    let mut arrived = None;
    wait_until("a message to arrive", || {
        arrived = take(client, queue);
        arrived.is_some()
    });
    arrived.expect("waited for")
}

/// The texts of the next so many messages that reach this queue.
fn arrivals(client: &mut Client, queue: &str, count: usize) -> Vec<String> {
    (0..count).map(|_| arrival(client, queue).text()).collect()
}

fn wait_for_ready(client: &mut Client, queue: &str, ready: i64) {
    wait_until(&format!("{ready} ready messages"), || client.counts(1, queue).0 == ready);
}

fn consume(client: &mut Client, channel: u16, queue: &str, fields: &str) -> String {
    let ok = client.call(channel, &format!("basic.consume queue={queue} {fields}"));
    ok["consumer_tag"].text()
}

fn consumer_tag(delivery: &Delivery) -> String {
    delivery.method["consumer_tag"].text()
}

/// Lets this much of the broker's time go by: a message of that lifetime dies in between.
fn let_pass(millis: u32) {
    let (mut client, clock, end) = with_graveyard(&format!("x-message-ttl={millis}"));
    put(&mut client, &clock, "", "tick");
    arrival(&mut client, &end);
}

/// Waits until all that this channel has published is where it goes: an unroutable mandatory
/// message comes back only after all that were published before it.
fn settle_publishes(client: &mut Client, channel: u16) {
    let nowhere = unique("nowhere");
    client.publish(channel, &format!("routing_key={nowhere} mandatory"), "", b"");
    client.content(channel, "basic.return");
}

/// The list of deaths that a message carries, newest first.
fn deaths(delivery: &Delivery) -> Vec<Value> {
    match delivery.header("x-death") {
        Some(Value::List(deaths)) => deaths.clone(),
        other => panic!("x-death is an array, came {other:?} in {delivery:?}"),
    }
}

/// Queue, reason and count of each death, newest first.
fn death_counts(delivery: &Delivery) -> Vec<(String, String, i64)> {
    let of = |death: &Value, name: &str| death.entry(name).expect("every death has it").clone();
    let row = |d: &Value| (of(d, "queue").text(), of(d, "reason").text(), of(d, "count").int());
    deaths(delivery).iter().map(row).collect()
}

/// One row of `death_counts`.
fn death(queue: &str, reason: &str, count: i64) -> (String, String, i64) {
    (queue.into(), reason.into(), count)
}

fn settle(client: &mut Client, method: &str, tag: u64) {
    let (name, fields) = method.split_once(' ').unwrap_or((method, ""));
    client.send(1, &format!("basic.{name} delivery_tag=l:{tag} {fields}"));
}
