//! Who of several consumers gets a queue's messages.
//!
//! Owns single active consumers and their handover, priorities of consumers, exclusive consumers
//! and the time that a consumer may keep a delivery.

use super::support::{Broker, Client, Handshake, unique};
use super::*;

const SINGLE: &str = "x-single-active-consumer=true";

/// A queue with a single active consumer, named consumers `a`, `b`, `c` on channels 1, 2, 3 of one
/// connection, in this order, and channel 4 without a consumer.
fn three_consumers(prefetch: u32) -> (Client, String) {
    let (mut c, q) = with_queue(SINGLE);
    c.open_channels(2..=4);
    for (channel, tag) in [(1, "a"), (2, "b"), (3, "c")] {
        c.call(channel, &format!("basic.qos prefetch_count={prefetch}"));
        consume(&mut c, channel, &q, &format!("consumer_tag={tag}"));
    }
    (c, q)
}

fn put_on_4(c: &mut Client, queue: &str, text: &str) {
    c.put(4, queue, text);
}

#[test]
fn only_the_first_consumer_is_active() {
    let (mut c, q) = three_consumers(0);
    for text in ["1", "2", "3"] {
        put_on_4(&mut c, &q, text);
        let d = c.delivery(1);
        assert_eq!((consumer_tag(&d), d.text()), ("a".into(), text.into()));
    }
    c.expect_nothing(2);
    c.expect_nothing(3);
    assert_eq!(c.counts(4, &q), (0, 3), "all consumers count");
}

#[test]
fn an_active_consumer_without_credit_is_not_replaced() {
    let (mut c, q) = three_consumers(1);
    put_on_4(&mut c, &q, "1");
    let held = c.delivery(1);
    put_on_4(&mut c, &q, "2");
    wait_for_ready_on_4(&mut c, &q, 1);
    c.expect_nothing(2);
    settle(&mut c, "ack", held.tag());
    assert_eq!(c.delivery(1).text(), "2");
}

fn wait_for_ready_on_4(c: &mut Client, queue: &str, ready: i64) {
    wait_until("the messages to wait", || c.counts(4, queue).0 == ready);
}

#[test]
fn the_next_in_order_takes_over_after_a_cancel() {
    let (mut c, q) = three_consumers(0);
    c.call(1, "basic.cancel consumer_tag=a");
    // One who comes back stands at the end.
    consume(&mut c, 1, &q, "consumer_tag=a-again");
    for (channel, tag) in [(2, "b"), (3, "c"), (1, "a-again")] {
        put_on_4(&mut c, &q, tag);
        assert_eq!(consumer_tag(&c.delivery(channel)), tag);
        c.send(channel, "basic.ack delivery_tag=0 multiple");
        c.call(channel, &format!("basic.cancel consumer_tag={tag}"));
    }
    assert_eq!(c.counts(4, &q), (0, 0));
}

/// RabbitMQ 3.10 forgets to deliver what waits.
#[test]
fn the_next_consumer_gets_what_waits_at_once() {
    if broker().is_rabbitmq() {
        eprintln!("skipped: a bug of RabbitMQ 3.10");
        return;
    }
    let (mut c, q) = three_consumers(1);
    for text in ["1", "2", "3"] {
        put_on_4(&mut c, &q, text);
    }
    assert_eq!(c.delivery(1).text(), "1");
    wait_for_ready_on_4(&mut c, &q, 2);
    c.call(1, "basic.cancel consumer_tag=a");
    assert_eq!(c.delivery(2).text(), "2");
    put_on_4(&mut c, &q, "4");
    c.send(2, "basic.ack delivery_tag=l:1");
    assert_eq!(c.delivery(2).text(), "3");
}

#[test]
fn what_the_old_consumer_holds_stays_with_it() {
    let (mut c, q) = three_consumers(0);
    put_on_4(&mut c, &q, "1");
    put_on_4(&mut c, &q, "2");
    let (first, second) = (c.delivery(1), c.delivery(1));
    c.call(1, "basic.cancel consumer_tag=a");
    put_on_4(&mut c, &q, "3");
    assert_eq!(c.delivery(2).text(), "3");
    settle(&mut c, "ack", first.tag());
    c.expect_nothing(2);
    settle(&mut c, "nack requeue", second.tag());
    let again = c.delivery(2);
    assert_eq!((again.text().as_str(), again.redelivered()), ("2", true));
}

#[test]
fn a_closed_channel_hands_over_with_what_it_held() {
    let (mut c, q) = three_consumers(0);
    put_on_4(&mut c, &q, "1");
    put_on_4(&mut c, &q, "2");
    c.delivery(1);
    c.delivery(1);
    c.call(1, "channel.close reply_code=200");
    let again = [c.delivery(2), c.delivery(2)];
    assert_eq!(again.each_ref().map(Delivery::text), ["1", "2"]);
    assert!(again.iter().all(Delivery::redelivered));
    put_on_4(&mut c, &q, "3");
    assert_eq!(c.delivery(2).text(), "3");
    c.expect_nothing(3);
}

#[test]
fn a_dead_connection_hands_over_with_what_it_held() {
    let mut c = Client::open(broker());
    let q = unique("q");
    c.declare(1, &format!("queue={q} arguments=({SINGLE})"));
    let mut dying = Client::open(broker());
    consume(&mut dying, 1, &q, "");
    consume(&mut c, 1, &q, "");
    c.put(1, &q, "1");
    assert_eq!(dying.delivery(1).text(), "1");
    c.expect_nothing(1);
    dying.die();
    let again = c.delivery(1);
    assert_eq!((again.text().as_str(), again.redelivered()), ("1", true));
    c.call(1, &format!("queue.delete queue={q}"));
}

#[test]
fn the_highest_priority_takes_over_but_nobody_is_replaced() {
    let (mut c, q) = with_queue(SINGLE);
    for (tag, priority) in [("first", 0), ("low", 1), ("high", 9), ("high-too", 9)] {
        let arguments = format!("arguments=(x-priority={priority})");
        consume(&mut c, 1, &q, &format!("no_ack consumer_tag={tag} {arguments}"));
    }
    for tag in ["first", "high", "high-too", "low"] {
        put(&mut c, &q, "", tag);
        assert_eq!(consumer_tag(&c.delivery(1)), tag);
        c.call(1, &format!("basic.cancel consumer_tag={tag}"));
    }
}

#[test]
fn basic_get_is_served_beside_an_active_consumer() {
    let (mut c, q) = three_consumers(1);
    put_on_4(&mut c, &q, "1");
    c.delivery(1);
    put_on_4(&mut c, &q, "2");
    wait_for_ready_on_4(&mut c, &q, 1);
    assert_eq!(c.get(4, &format!("queue={q} no_ack")).unwrap().text(), "2");
}

#[test]
fn a_queue_that_is_not_single_shares() {
    let (mut c, q) = with_queue("x-single-active-consumer=false");
    consume(&mut c, 1, &q, "no_ack consumer_tag=a");
    consume(&mut c, 1, &q, "no_ack consumer_tag=b");
    let mut tags: Vec<String> = (0..2)
        .map(|_| {
            put(&mut c, &q, "", "m");
            consumer_tag(&c.delivery(1))
        })
        .collect();
    tags.sort();
    assert_eq!(tags, ["a", "b"]);
}

#[test]
fn an_auto_delete_queue_goes_with_the_last_of_its_consumers() {
    let mut c = Client::open(broker());
    let q = unique("q");
    c.declare(1, &format!("queue={q} auto_delete arguments=({SINGLE})"));
    consume(&mut c, 1, &q, "consumer_tag=a no_ack");
    consume(&mut c, 1, &q, "consumer_tag=b no_ack");
    c.call(1, "basic.cancel consumer_tag=a");
    put(&mut c, &q, "", "still here");
    assert_eq!(consumer_tag(&c.delivery(1)), "b");
    c.call(1, "basic.cancel consumer_tag=b");
    c.send(1, &format!("queue.declare queue={q} passive"));
    let text = format!("NOT_FOUND - no queue '{q}' in vhost '/'");
    c.expect_channel_close(1, 404, &text, (50, 10));
}

// ---- consumers with priorities ----

#[test]
fn equal_priorities_take_turns_and_lower_ones_wait() {
    let (mut c, q) = with_queue("");
    for (tag, priority) in [("low", -5), ("a", 5), ("b", 5)] {
        let arguments = format!("arguments=(x-priority={priority})");
        consume(&mut c, 1, &q, &format!("no_ack consumer_tag={tag} {arguments}"));
    }
    let mut tags = Vec::new();
    for _ in 0..4 {
        put(&mut c, &q, "", "m");
        tags.push(consumer_tag(&c.delivery(1)));
    }
    assert_eq!(tags[..2], tags[2..]);
    tags.sort();
    assert_eq!(tags, ["a", "a", "b", "b"]);
    for tag in ["a", "b"] {
        c.call(1, &format!("basic.cancel consumer_tag={tag}"));
    }
    put(&mut c, &q, "", "m");
    assert_eq!(consumer_tag(&c.delivery(1)), "low");
}

#[test]
fn an_exclusive_consumer_that_dies_frees_the_queue() {
    let mut c = Client::open(broker());
    let q = unique("q");
    c.declare(1, &format!("queue={q}"));
    let mut dying = Client::open(broker());
    consume(&mut dying, 1, &q, "exclusive");
    c.put(1, &q, "1");
    assert_eq!(dying.delivery(1).text(), "1");
    dying.die();
    wait_for_ready(&mut c, &q, 1);
    consume(&mut c, 1, &q, "exclusive");
    assert_eq!(c.delivery(1).text(), "1");
    c.call(1, &format!("queue.delete queue={q}"));
}

// ---- how long a delivery may be kept ----

fn impatient() -> Option<Broker> {
    Broker::with_config("[limits]\nconsumer_timeout_ms = 1000\n")
}

#[test]
fn a_consumer_that_keeps_a_delivery_too_long_is_cancelled() {
    let Some(broker) = impatient() else { return };
    let mut c = Client::open(&broker);
    let q = exclusive(&mut c, "");
    consume(&mut c, 1, &q, "consumer_tag=slow");
    put(&mut c, &q, "", "m");
    let held = c.delivery(1);
    c.expect("1 basic.cancel consumer_tag=slow");
    let again = arrival(&mut c, &q);
    assert!(again.redelivered());
    assert_eq!(c.counts(1, &q), (0, 0));
    drop(held);
}

#[test]
fn a_client_that_knows_no_cancel_loses_its_channel() {
    let Some(broker) = impatient() else { return };
    let plain = Handshake { capabilities: false, ..Handshake::default() };
    let mut c = Client::open_with(&broker, &plain);
    let q = exclusive(&mut c, "");
    consume(&mut c, 1, &q, "consumer_tag=slow");
    put(&mut c, &q, "", "m");
    c.delivery(1);
    let text = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. \
        Timeout value used: 1000 ms. This timeout value can be configured, \
        see consumers doc guide to learn more";
    c.expect_channel_close(1, 406, text, (0, 0));
    c.call(1, "channel.open");
    assert!(arrival(&mut c, &q).redelivered());
}

#[test]
fn a_queue_may_have_a_timeout_of_its_own() {
    if broker().is_rabbitmq() {
        eprintln!("skipped: RabbitMQ 3.10 ignores x-consumer-timeout");
        return;
    }
    let (mut c, q) = with_queue("x-consumer-timeout=300");
    c.call(1, "basic.qos prefetch_count=1");
    consume(&mut c, 1, &q, "consumer_tag=slow");
    put_all(&mut c, &q, "", &["1", "2"]);
    assert_eq!(c.delivery(1).text(), "1");
    c.expect("1 basic.cancel consumer_tag=slow");
    assert_eq!(arrivals(&mut c, &q, 2), ["1", "2"]);
    assert_eq!(c.counts(1, &q), (0, 0));
}

#[test]
fn who_settles_in_time_may_go_on() {
    let Some(broker) = impatient() else { return };
    let mut c = Client::open(&broker);
    let q = exclusive(&mut c, "");
    consume(&mut c, 1, &q, "");
    for n in 0..5 {
        put(&mut c, &q, "", &n.to_string());
        let d = c.delivery(1);
        std::thread::sleep(std::time::Duration::from_millis(300));
        settle(&mut c, "ack", d.tag());
    }
    c.expect_nothing(1);
}
