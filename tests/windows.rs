//! Queues that are longer than memory.
//!
//! Owns the proof that a backlog costs disk and not memory, whatever its messages are, and that it
//! comes back whole and in order. It must not look into the broker.

mod support;

use support::{Broker, Client, settings, unique, wait_until};

const MIB: u64 = 1 << 20;

/// Publishes `count` messages of `size` bytes that begin with their number.
fn fill(broker: &Broker, queue: &str, properties: &str, count: u64, size: usize) {
    let mut client = Client::open(broker);
    client.call(1, "confirm.select");
    let mut body = vec![b'.'; size];
    let mut answered = 0;
    for number in 0..count {
        body[..8].copy_from_slice(&number.to_be_bytes());
        client.publish(1, &format!("routing_key={queue}"), properties, &body);
        if number + 1 == count || number + 1 - answered == 500 {
            assert!(client.confirmed_after(1, answered, number + 1), "nothing is refused");
            answered = number + 1;
        }
    }
}

/// Consumes and acknowledges all of it, in order.
fn drain(broker: &Broker, queue: &str, count: u64, size: usize) {
    let mut client = Client::open(broker);
    client.call(1, "basic.qos prefetch_count=200");
    client.call(1, &format!("basic.consume queue={queue}"));
    for number in 0..count {
        let delivery = client.delivery(1);
        assert_eq!(delivery.body.len(), size);
        assert_eq!(delivery.body[..8], number.to_be_bytes());
        if number % 100 == 99 || number + 1 == count {
            client.send(1, &format!("basic.ack delivery_tag={} multiple", delivery.tag()));
        }
    }
    wait_until("an empty queue", || Client::open(broker).counts(1, queue).0 == 0);
}

#[test]
fn a_backlog_of_persistent_messages_takes_little_memory() {
    if Broker::external().is_some() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let broker = Broker::on_data_dir(data.path(), "[store]\nqueue_memory = \"4MiB\"\n");
    let q = unique("long");
    Client::open(&broker).declare(1, &format!("queue={q} durable"));
    let before = broker.resident_bytes();
    let (count, size) = (60_000, 3000);
    fill(&broker, &q, "delivery_mode=2", count, size);
    let grown = broker.resident_bytes().saturating_sub(before);
    assert!(grown < 110 * MIB, "{} MiB for a backlog of 170", grown / MIB);
    drain(&broker, &q, count, size);
}

#[test]
fn transient_messages_go_to_the_disk_when_memory_is_short() {
    if Broker::external().is_some() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let broker = Broker::on_data_dir(data.path(), &settings::memory_high_watermark(32 * MIB));
    // Small ones, and large ones that queues share.
    for (size, count) in [(1000, 100_000), (40_000, 2500)] {
        let q = unique("transient");
        Client::open(&broker).declare(1, &format!("queue={q}"));
        fill(&broker, &q, "", count, size);
        assert!(!broker.log().contains("memory alarm set"), "{}", broker.log());
        let pieces = || std::fs::read_dir(data.path().join("spill")).unwrap().count();
        assert!(pieces() > 20, "most of 100 MB is there: {} pieces", pieces());
        drain(&broker, &q, count, size);
        assert_eq!(pieces(), 0, "nothing is left behind");
    }
    let q = unique("dropped");
    Client::open(&broker).declare(1, &format!("queue={q}"));
    fill(&broker, &q, "", 50_000, 1000);
    let deleted = Client::open(&broker).call(1, &format!("queue.delete queue={q}"));
    assert_eq!(deleted["message_count"].int(), 50_000);
    assert_eq!(std::fs::read_dir(data.path().join("spill")).unwrap().count(), 0);
}
