//! Messages that wait at a delayed-message exchange when the broker is killed.
//!
//! Owns what of them is there after the next start, and when it comes. The broker is killed with
//! SIGKILL, so that nothing is written on the way out.

mod support;

use std::time::{Duration, Instant};

use support::{Broker, Client, wait_until};

/// A delayed exchange, and a queue that it leads to; durable, like all of their kind below.
const DECLARATIONS: [&str; 3] = [
    "exchange.declare exchange=later type=x-delayed-message durable \
     arguments=(x-delayed-type=fanout)",
    "queue.declare queue=q durable",
    "queue.bind queue=q exchange=later",
];

/// Publishes to `later` on channel 1, which has confirms.
fn put(client: &mut Client, delivery_mode: u8, delay_ms: u64, text: &str) {
    let properties = format!("delivery_mode={delivery_mode} headers=(x-delay={delay_ms})");
    client.publish(1, "exchange=later routing_key=k", &properties, text.as_bytes());
}

/// Takes what is in the queue, on channel 2.
fn take(client: &mut Client) -> Vec<String> {
    std::iter::from_fn(|| client.get(2, "queue=q no_ack")).map(|got| got.text()).collect()
}

fn open(broker: &Broker) -> Client {
    let mut client = Client::open(broker);
    client.call(2, "channel.open");
    client
}

#[test]
fn persistent_messages_come_when_they_are_due_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::on_data_dir(dir.path(), "");
    let mut client = open(&broker);
    DECLARATIONS.iter().for_each(|declaration| drop(client.call(1, declaration)));
    client.call(1, "confirm.select");
    // Whoever has the second one knows that the first one's release is over.
    for text in ["first", "second"] {
        put(&mut client, 2, 10, text);
        wait_until("it to be due", || take(&mut client) == [text]);
    }
    put(&mut client, 2, 50, "overdue");
    let large = "large".repeat(10_000);
    put(&mut client, 2, 50, &large);
    // Long enough for a slow machine to be killed before.
    let (count, delay_ms) = (200, 3000);
    let begin = Instant::now();
    for n in 1..=count {
        put(&mut client, 2, delay_ms, &n.to_string());
    }
    put(&mut client, 1, delay_ms, "transient");
    assert!(client.confirmed_up_to(1, 2 + 2 + count + 1));
    broker.signal("KILL");

    let broker = Broker::on_data_dir(dir.path(), "");
    let mut client = open(&broker);
    client.call(1, "basic.consume queue=q no_ack");
    let first = client.delivery(1).text();
    // This one may have been killed between its arrival and the end of its release.
    let first = if first == "second" { client.delivery(1).text() } else { first };
    assert_eq!(first, "overdue");
    assert_eq!(client.delivery(1).text(), large);
    for n in 1..=count {
        assert_eq!(client.delivery(1).text(), n.to_string());
        // The broker's clock counts whole milliseconds, and each process begins a new one.
        assert!(begin.elapsed() >= Duration::from_millis(delay_ms - 2), "{n} is early");
    }
    client.expect_nothing(1);
}

#[test]
fn a_deleted_exchange_takes_its_messages_along_over_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::on_data_dir(dir.path(), "");
    let mut client = open(&broker);
    DECLARATIONS.iter().for_each(|declaration| drop(client.call(1, declaration)));
    client.call(1, "confirm.select");
    put(&mut client, 2, 1, "released");
    wait_until("it to be due", || client.counts(1, "q").0 == 1);
    let an_hour = 3_600_000;
    put(&mut client, 2, an_hour, "lost");
    client.call(1, "exchange.delete exchange=later");
    DECLARATIONS.iter().for_each(|declaration| drop(client.call(1, declaration)));
    put(&mut client, 2, an_hour, "kept");
    assert!(client.confirmed_up_to(1, 3));
    broker.signal("KILL");

    let broker = Broker::on_data_dir(dir.path(), "");
    let mut client = open(&broker);
    assert_eq!(take(&mut client), ["released"]);
    let log = broker.log();
    assert!(log.contains("delayed messages of the store messages=1\n"), "{log}");
}
