//! Queues of the type quorum.
//!
//! Owns what such a queue does otherwise than a classic one: counted deliveries and their limit,
//! and what it has in common with it. It must not look at replication, which no client sees.

use super::support::{Client, notation};
use super::*;

/// A durable queue of the type quorum, which its test deletes, on channel 1 of a new connection.
fn with_quorum(arguments: &str) -> (Client, String) {
    let mut c = Client::open(broker());
    let q = unique("quorum");
    let arguments = format!("x-queue-type=quorum,{arguments}");
    c.declare(1, &format!("queue={q} durable arguments=({arguments})"));
    (c, q)
}

fn delete(mut c: Client, queue: &str) {
    c.call(1, &format!("queue.delete queue={queue}"));
}

/// The next message, kept unacked, however long the queue takes to have it.
fn next(c: &mut Client, queue: &str) -> Delivery {
    let mut came = None;
    wait_until("a message", || {
        came = c.get(1, &format!("queue={queue}"));
        came.is_some()
    });
    came.expect("waited for")
}

/// The number of earlier deliveries. RabbitMQ 3.10 says 0 where 4.x says nothing.
fn delivery_count(delivery: &Delivery) -> i64 {
    match delivery.header("x-delivery-count") {
        Some(count) => {
            let zero = !broker().is_rabbitmq() && count.int() == 0;
            assert!(!zero, "a first delivery has no count");
            assert!(matches!(count, Value::Int('l', _)), "{count:?}");
            count.int()
        }
        None => 0,
    }
}

#[test]
fn messages_are_taken_confirmed_and_settled() {
    let (mut c, q) = with_quorum("");
    c.call(1, "confirm.select");
    put_all(&mut c, &q, "message_id=m", &["1", "2", "3"]);
    assert!(c.confirmed_up_to(1, 3));
    wait_for_ready(&mut c, &q, 3);
    let first = next(&mut c, &q);
    assert_eq!((first.text().as_str(), first.redelivered()), ("1", false));
    assert_eq!(first.properties["message_id"].text(), "m");
    assert_eq!(delivery_count(&first), 0);
    settle(&mut c, "ack", first.tag());
    consume(&mut c, 1, &q, "consumer_tag=c");
    let rest = [c.delivery(1), c.delivery(1)];
    assert_eq!(rest.each_ref().map(Delivery::text), ["2", "3"]);
    settle(&mut c, "ack multiple", rest[1].tag());
    c.call(1, "basic.cancel consumer_tag=c");
    wait_for_ready(&mut c, &q, 0);
    delete(c, &q);
}

#[test]
fn deliveries_are_counted() {
    let (mut c, q) = with_quorum("");
    put(&mut c, &q, "headers=(mine=1)", "m");
    for count in 0..4 {
        let d = next(&mut c, &q);
        assert_eq!((delivery_count(&d), d.redelivered()), (count, count > 0));
        assert_eq!(d.header("mine"), Some(&notation::value("1")));
        settle(&mut c, "nack requeue", d.tag());
    }
    delete(c, &q);
}

#[test]
fn a_closed_channels_deliveries_are_counted() {
    let (mut c, q) = with_quorum("");
    put(&mut c, &q, "", "m");
    c.open_channels(2..=2);
    consume(&mut c, 2, &q, "");
    c.delivery(2);
    c.call(2, "channel.close reply_code=200");
    let again = next(&mut c, &q);
    assert_eq!((again.redelivered(), delivery_count(&again)), (true, 1));
    delete(c, &q);
}

#[test]
fn too_many_deliveries_are_a_death() {
    let mut other = Client::open(broker());
    let graveyard = exclusive(&mut other, "");
    let (mut c, q) = with_quorum(&format!("x-delivery-limit=2,{}", buried_in(&graveyard)));
    put(&mut c, &q, "headers=(mine=1)", "poison");
    for count in 0..=2 {
        let d = next(&mut c, &q);
        assert_eq!(delivery_count(&d), count);
        settle(&mut c, "reject requeue", d.tag());
    }
    let dead = arrival(&mut other, &graveyard);
    assert_eq!(death_counts(&dead), [death(&q, "delivery_limit", 1)]);
    assert_eq!(dead.header("x-first-death-reason").unwrap().text(), "delivery_limit");
    assert_eq!(dead.header("mine"), Some(&notation::value("1")));
    assert_eq!(c.counts(1, &q), (0, 0));
    delete(c, &q);
}

#[test]
fn too_many_deliveries_without_an_exchange_are_the_end() {
    let (mut c, q) = with_quorum("x-delivery-limit=1");
    put(&mut c, &q, "", "poison");
    put(&mut c, &q, "", "fine");
    wait_for_ready(&mut c, &q, 2);
    consume(&mut c, 1, &q, "consumer_tag=c");
    let mut texts = Vec::new();
    for _ in 0..3 {
        let d = c.delivery(1);
        texts.push(d.text());
        let how = if d.text() == "poison" { "nack requeue" } else { "ack" };
        settle(&mut c, how, d.tag());
    }
    texts.sort();
    assert_eq!(texts, ["fine", "poison", "poison"]);
    wait_for_ready(&mut c, &q, 0);
    c.expect_nothing(1);
    delete(c, &q);
}

#[test]
fn a_limit_of_zero_allows_one_delivery() {
    let mut other = Client::open(broker());
    let graveyard = exclusive(&mut other, "");
    let (mut c, q) = with_quorum(&format!("x-delivery-limit=0,{}", buried_in(&graveyard)));
    put(&mut c, &q, "", "once");
    let d = next(&mut c, &q);
    settle(&mut c, "nack requeue", d.tag());
    assert_eq!(arrival(&mut other, &graveyard).text(), "once");
    delete(c, &q);
}

#[test]
fn rejected_messages_are_dead_letters() {
    let mut other = Client::open(broker());
    let graveyard = exclusive(&mut other, "");
    let (mut c, q) = with_quorum(&buried_in(&graveyard));
    put(&mut c, &q, "expiration=600000", "bad");
    let d = next(&mut c, &q);
    settle(&mut c, "reject", d.tag());
    let dead = arrival(&mut other, &graveyard);
    assert_eq!(death_counts(&dead), [death(&q, "rejected", 1)]);
    assert!(!dead.properties.contains_key("expiration"));
    delete(c, &q);
}

#[test]
fn messages_expire() {
    let mut other = Client::open(broker());
    let graveyard = exclusive(&mut other, "");
    for (arguments, properties) in [("x-message-ttl=60", ""), ("x-foo=1", "expiration=60")] {
        let (mut c, q) = with_quorum(&format!("{arguments},{}", buried_in(&graveyard)));
        put(&mut c, &q, properties, "old");
        let dead = arrival(&mut other, &graveyard);
        assert_eq!(death_counts(&dead), [death(&q, "expired", 1)]);
        wait_for_ready(&mut c, &q, 0);
        delete(c, &q);
    }
}

#[test]
fn a_full_queue_drops_its_head() {
    let mut other = Client::open(broker());
    let graveyard = exclusive(&mut other, "");
    let (mut c, q) = with_quorum(&format!("x-max-length=2,{}", buried_in(&graveyard)));
    put_all(&mut c, &q, "", &["1", "2", "3", "4"]);
    let dead = arrival(&mut other, &graveyard);
    assert_eq!(death_counts(&dead), [death(&q, "maxlen", 1)]);
    assert_eq!(dead.text(), "1");
    assert_eq!(arrival(&mut other, &graveyard).text(), "2");
    wait_for_ready(&mut c, &q, 2);
    assert_eq!(drain(&mut c, &q), ["3", "4"]);
    delete(c, &q);
}

/// RabbitMQ's limit is soft: it takes some more before it refuses.
#[test]
fn a_full_queue_refuses_when_asked_to() {
    let (mut c, q) = with_quorum("x-max-length=2,x-overflow=reject-publish");
    c.call(1, "confirm.select");
    let mut published = 0;
    wait_until("a refusal", || {
        put(&mut c, &q, "", "m");
        published += 1;
        let accepted = c.confirmed_after(1, published - 1, published);
        assert!(accepted || published > 2, "two have room");
        !accepted
    });
    assert!(drain(&mut c, &q).len() >= 2);
    wait_until("room again", || {
        put(&mut c, &q, "", "m");
        published += 1;
        c.confirmed_after(1, published - 1, published)
    });
    delete(c, &q);
}

#[test]
fn prefetch_and_requeue_work_as_in_a_classic_queue() {
    let (mut c, q) = with_quorum("");
    c.call(1, "basic.qos prefetch_count=2");
    put_all(&mut c, &q, "", &["1", "2", "3"]);
    wait_for_ready(&mut c, &q, 3);
    consume(&mut c, 1, &q, "");
    let held = [c.delivery(1), c.delivery(1)];
    wait_for_ready(&mut c, &q, 1);
    c.expect_nothing(1);
    settle(&mut c, "nack requeue", held[0].tag());
    let third = c.delivery(1);
    settle(&mut c, "ack", held[1].tag());
    let mut rest = [third, c.delivery(1)].map(|d| (d.text(), d.redelivered()));
    if broker().is_rabbitmq() {
        // 3.10 may take the new message before the one that came back.
        rest.sort();
    }
    assert_eq!(rest, [("1".into(), true), ("3".into(), false)]);
    delete(c, &q);
}

#[test]
fn a_single_active_consumer_hands_over() {
    let (mut c, q) = with_quorum("x-single-active-consumer=true");
    consume(&mut c, 1, &q, "consumer_tag=a no_ack");
    consume(&mut c, 1, &q, "consumer_tag=b no_ack");
    for tag in ["a", "b"] {
        put(&mut c, &q, "", tag);
        assert_eq!(consumer_tag(&c.delivery(1)), tag);
        c.call(1, &format!("basic.cancel consumer_tag={tag}"));
    }
    delete(c, &q);
}

#[test]
fn purging_tells_how_many_went() {
    let (mut c, q) = with_quorum("");
    put_all(&mut c, &q, "", &["1", "2"]);
    wait_for_ready(&mut c, &q, 2);
    assert_eq!(c.call(1, &format!("queue.purge queue={q}"))["message_count"].int(), 2);
    put(&mut c, &q, "", "3");
    wait_for_ready(&mut c, &q, 1);
    assert_eq!(c.call(1, &format!("queue.delete queue={q}"))["message_count"].int(), 1);
}

#[test]
fn large_messages_are_kept_whole() {
    let (mut c, q) = with_quorum("");
    let body: Vec<u8> = (0..300_000).map(|n| (n % 251) as u8).collect();
    c.publish(1, &format!("routing_key={q}"), "", &body);
    let d = next(&mut c, &q);
    assert!(d.body == body);
    settle(&mut c, "nack requeue", d.tag());
    let again = next(&mut c, &q);
    assert!(again.body == body);
    assert_eq!(delivery_count(&again), 1);
    delete(c, &q);
}

#[test]
fn an_unused_queue_expires() {
    let (mut c, q) = with_quorum("x-expires=200");
    // Asking is use of the queue, and a publish at the wrong moment breaks RabbitMQ 3.10's channel.
    wait_until("the queue to expire", || {
        let_pass(400);
        c.send(1, &format!("queue.declare queue={q} passive"));
        c.next_method(1).name == "channel.close"
    });
}

#[test]
fn rejected_poison_is_not_counted_twice() {
    let mut other = Client::open(broker());
    let graveyard = exclusive(&mut other, "");
    let (mut c, q) = with_quorum(&format!("x-delivery-limit=5,{}", buried_in(&graveyard)));
    put(&mut c, &q, "", "m");
    for _ in 0..2 {
        let d = next(&mut c, &q);
        settle(&mut c, "nack requeue", d.tag());
    }
    let d = next(&mut c, &q);
    settle(&mut c, "nack", d.tag());
    let dead = arrival(&mut other, &graveyard);
    assert_eq!(death_counts(&dead), [death(&q, "rejected", 1)]);
    delete(c, &q);
}

/// RabbitMQ 4.0 has two priorities in such queues: of three messages, two are from above 4.
#[test]
fn high_priorities_come_first_but_not_only() {
    let (mut c, q) = with_quorum("");
    for (priority, text) in [(0, "a"), (4, "b"), (1, "c"), (5, "A"), (9, "B"), (255, "C")] {
        put(&mut c, &q, &format!("priority={priority}"), text);
    }
    put(&mut c, &q, "", "d");
    wait_for_ready(&mut c, &q, 7);
    let order = drain(&mut c, &q).concat();
    let due = if broker().is_rabbitmq() { "abcABCd" } else { "ABaCbcd" };
    assert_eq!(order, due);
    delete(c, &q);
}

/// RabbitMQ tries again after minutes.
#[test]
fn at_least_once_a_dead_letter_waits_for_its_target() {
    if broker().is_rabbitmq() {
        return;
    }
    let graveyard = unique("q");
    let (mut c, q) = with_quorum(&format!(
        "x-message-ttl=0,x-overflow=reject-publish,x-dead-letter-strategy=at-least-once,{}",
        buried_in(&graveyard)
    ));
    put(&mut c, &q, "", "m");
    wait_for_ready(&mut c, &q, 0);
    settle_publishes(&mut c, 1);
    c.declare(1, &format!("queue={graveyard} exclusive"));
    assert_eq!(c.counts(1, &graveyard).0, 0, "it was not there");
    let dead = arrival(&mut c, &graveyard);
    assert_eq!(death_counts(&dead), [death(&q, "expired", 1)]);
    delete(c, &q);
}
