//! When messages and queues expire.
//!
//! Owns x-message-ttl, the property expiration, x-expires and what counts as use of a queue.

use super::support::{Client, notation, unique, wait_until};
use super::*;

#[test]
fn messages_expire_after_the_time_to_live_of_their_queue() {
    let (mut c, q) = with_queue("x-message-ttl=60");
    c.call(1, "confirm.select");
    put_all(&mut c, &q, "", &["1", "2", "3"]);
    c.confirmed_up_to(1, 3);
    wait_for_ready(&mut c, &q, 0);
    assert!(take(&mut c, &q).is_none());
}

#[test]
fn messages_expire_after_their_own_time() {
    let (mut c, q) = with_queue("");
    c.call(1, "confirm.select");
    put_all(&mut c, &q, "expiration=60", &["1", "2"]);
    c.confirmed_up_to(1, 2);
    wait_for_ready(&mut c, &q, 0);
    put(&mut c, &q, "expiration=60000", "stays");
    c.confirmed_after(1, 2, 3);
    let stays = take(&mut c, &q).unwrap();
    assert_eq!(stays.properties["expiration"].text(), "60000", "a live message keeps it");
}

#[test]
fn the_shorter_time_wins() {
    let (mut c, q, graveyard) = with_graveyard("x-message-ttl=50");
    put(&mut c, &q, "expiration=600000", "short queue");
    let dead = arrival(&mut c, &graveyard);
    assert_eq!(death_counts(&dead), [death(&q, "expired", 1)]);
    let (mut c, q, graveyard) = with_graveyard("x-message-ttl=600000");
    put(&mut c, &q, "expiration=50", "short message");
    assert_eq!(arrival(&mut c, &graveyard).text(), "short message");
}

#[test]
fn what_has_expired_is_never_delivered() {
    let (mut c, q) = with_queue("x-message-ttl=100");
    c.call(1, "confirm.select");
    put_all(&mut c, &q, "", &["1", "2"]);
    c.confirmed_up_to(1, 2);
    let_pass(150);
    consume(&mut c, 1, &q, "no_ack");
    c.expect_nothing(1);
    c.open_channels(2..=2);
    c.put(2, &q, "fresh");
    assert_eq!(c.delivery(1).text(), "fresh");
    c.expect_nothing(1);
}

#[test]
fn messages_expire_in_the_order_of_the_queue() {
    let (mut c, q, graveyard) = with_graveyard("x-message-ttl=50");
    put_all(&mut c, &q, "", &["1", "2", "3", "4", "5"]);
    assert_eq!(arrivals(&mut c, &graveyard, 5), ["1", "2", "3", "4", "5"]);
}

#[test]
fn a_message_behind_one_that_lives_longer_waits_for_its_turn() {
    let (mut c, q, graveyard) = with_graveyard("");
    put(&mut c, &q, "expiration=600000", "long");
    put(&mut c, &q, "expiration=20", "short");
    let_pass(150);
    assert_eq!(c.counts(1, &q), (2, 0), "only the head expires");
    let long = take(&mut c, &q).unwrap();
    assert_eq!(long.text(), "long");
    assert!(take(&mut c, &q).is_none(), "its time is over when it comes to the head");
    assert_eq!(arrival(&mut c, &graveyard).text(), "short");
}

#[test]
fn a_message_behind_the_one_taken_expires_at_once() {
    let (mut c, q, graveyard) = with_graveyard("");
    put(&mut c, &q, "expiration=600000", "long");
    put(&mut c, &q, "expiration=20", "short");
    put(&mut c, &q, "", "immortal");
    let_pass(150);
    consume(&mut c, 1, &q, "no_ack consumer_tag=c");
    assert_eq!(c.delivery(1).text(), "long");
    assert_eq!(c.delivery(1).text(), "immortal");
    c.call(1, "basic.cancel consumer_tag=c");
    assert_eq!(arrival(&mut c, &graveyard).text(), "short");
}

#[test]
fn time_to_live_of_zero_is_for_who_waits() {
    for (arguments, properties) in [("x-message-ttl=0", ""), ("", "expiration=0")] {
        let (mut c, q, graveyard) = with_graveyard(arguments);
        put(&mut c, &q, properties, "nobody");
        assert_eq!(arrival(&mut c, &graveyard).text(), "nobody");
        c.call(1, "basic.qos prefetch_count=1");
        consume(&mut c, 1, &q, "consumer_tag=c");
        put(&mut c, &q, properties, "has credit");
        let first = c.delivery(1);
        assert_eq!(first.text(), "has credit");
        put(&mut c, &q, properties, "no credit");
        c.open_channels(2..=2);
        let mut dead = None;
        wait_until("the message without a taker", || {
            dead = c.get(2, &format!("queue={graveyard} no_ack"));
            dead.is_some()
        });
        assert_eq!(dead.unwrap().text(), "no credit");
        settle(&mut c, "ack", first.tag());
        c.expect_nothing(1);
    }
}

#[test]
fn a_message_with_no_time_is_gone_before_the_next_method() {
    let (mut c, q) = with_queue("x-message-ttl=0");
    put(&mut c, &q, "", "gone");
    assert!(take(&mut c, &q).is_none());
    assert_eq!(c.counts(1, &q), (0, 0));
}

#[test]
fn a_requeued_message_keeps_its_time() {
    let (mut c, q, graveyard) = with_graveyard("x-message-ttl=400");
    consume(&mut c, 1, &q, "consumer_tag=c");
    put(&mut c, &q, "", "held");
    let tag = c.delivery(1).tag();
    c.call(1, "basic.cancel consumer_tag=c");
    let_pass(450);
    assert!(take(&mut c, &graveyard).is_none(), "unacked messages do not expire");
    settle(&mut c, "nack requeue", tag);
    assert!(take(&mut c, &q).is_none(), "its time was over when it came back");
    let dead = arrival(&mut c, &graveyard);
    assert_eq!(death_counts(&dead), [death(&q, "expired", 1)]);
}

#[test]
fn an_expired_message_in_a_consumers_hands_can_be_acked() {
    let (mut c, q, graveyard) = with_graveyard("x-message-ttl=50");
    consume(&mut c, 1, &q, "consumer_tag=c");
    put(&mut c, &q, "", "held");
    let held = c.delivery(1);
    let_pass(100);
    settle(&mut c, "ack", held.tag());
    assert_eq!(c.counts(1, &q), (0, 1));
    assert!(take(&mut c, &graveyard).is_none());
}

#[test]
fn a_consumer_without_credit_does_not_keep_messages_alive() {
    let (mut c, q, graveyard) = with_graveyard("x-message-ttl=60");
    c.open_channels(2..=2);
    c.call(2, "basic.qos prefetch_count=1");
    consume(&mut c, 2, &q, "");
    put_all(&mut c, &q, "", &["1", "2", "3"]);
    assert_eq!(c.delivery(2).text(), "1");
    assert_eq!(arrivals(&mut c, &graveyard, 2), ["2", "3"]);
    c.send(2, "basic.ack delivery_tag=l:1");
    c.expect_nothing(2);
}

#[test]
fn a_closed_channels_messages_expire() {
    let (mut c, q, graveyard) = with_graveyard("x-message-ttl=100");
    c.open_channels(2..=2);
    c.call(2, "basic.qos prefetch_count=1");
    consume(&mut c, 2, &q, "");
    put_all(&mut c, &q, "", &["1", "2"]);
    assert_eq!(c.delivery(2).text(), "1");
    let_pass(150);
    c.call(2, "channel.close reply_code=200");
    let mut gone = arrivals(&mut c, &graveyard, 2);
    gone.sort();
    assert_eq!(gone, ["1", "2"]);
}

#[test]
fn large_messages_expire() {
    let (mut c, q) = with_queue("x-message-ttl=60");
    c.call(1, "confirm.select");
    c.publish(1, &format!("routing_key={q}"), "", &[7; 200_000]);
    c.publish(1, &format!("routing_key={q}"), "", &[8; 20_000]);
    c.confirmed_up_to(1, 2);
    wait_for_ready(&mut c, &q, 0);
}

#[test]
fn each_queue_of_a_fanout_has_its_own_time() {
    let (mut c, short) = with_queue("x-message-ttl=50");
    let long = exclusive(&mut c, "x-message-ttl=600000");
    let x = unique("x");
    c.call(1, &format!("exchange.declare exchange={x} type=fanout auto_delete"));
    c.call(1, &format!("queue.bind queue={short} exchange={x}"));
    c.call(1, &format!("queue.bind queue={long} exchange={x}"));
    c.call(1, "confirm.select");
    c.publish(1, &format!("exchange={x}"), "", b"both");
    c.confirmed_up_to(1, 1);
    wait_for_ready(&mut c, &short, 0);
    assert_eq!(drain(&mut c, &long), ["both"]);
}

// ---- x-expires ----

/// Whether the queue is there, asked in a way that is no use of it: by a message to it. The
/// channel must be in confirm mode.
fn exists(c: &mut Client, channel: u16, queue: &str) -> bool {
    c.publish(channel, &format!("routing_key={queue} mandatory"), "", b"");
    let frame = c.next_on(channel);
    let is_return = notation::decode_method(&frame.payload).name == "basic.return";
    if is_return {
        c.unread(frame);
        c.content(channel, "basic.return");
        c.expect(&format!("{channel} basic.ack"));
    }
    !is_return
}

/// A queue that expires, declared by a connection that asks about it in confirm mode.
fn expiring(millis: u32, arguments: &str) -> (Client, String) {
    let mut c = Client::open(broker());
    let q = unique("q");
    c.open_channels(2..=2);
    c.call(2, "confirm.select");
    c.declare(1, &format!("queue={q} arguments=(x-expires={millis}{arguments})"));
    (c, q)
}

fn wait_until_gone(c: &mut Client, queue: &str) {
    wait_until("the queue to expire", || !exists(c, 2, queue));
}

#[test]
fn an_unused_queue_expires_with_its_messages() {
    let mut other = Client::open(broker());
    let graveyard = exclusive(&mut other, "");
    let (mut c, q) = expiring(700, &format!(",{}", buried_in(&graveyard)));
    assert!(exists(&mut c, 2, &q));
    wait_until_gone(&mut c, &q);
    assert_eq!(other.counts(1, &graveyard), (0, 0), "its messages are no dead letters");
    assert_eq!(c.declare(1, &format!("queue={q} exclusive")).1, 0);
}

#[test]
fn a_queue_with_a_consumer_does_not_expire() {
    let (mut c, q) = expiring(700, "");
    consume(&mut c, 1, &q, "consumer_tag=c no_ack");
    let_pass(900);
    c.call(1, "basic.cancel consumer_tag=c");
    assert!(exists(&mut c, 2, &q));
    wait_until_gone(&mut c, &q);
}

#[test]
fn a_queue_expires_after_its_consumer_has_died() {
    let (mut c, q) = expiring(700, "");
    let mut dying = Client::open(broker());
    consume(&mut dying, 1, &q, "");
    let_pass(900);
    assert!(exists(&mut c, 2, &q));
    dying.die();
    wait_until_gone(&mut c, &q);
}

/// Uses the queue until well after its time, then leaves it alone.
fn is_kept_by(use_it: impl Fn(&mut Client, &str)) {
    let (mut c, q) = expiring(1000, "");
    let end = exclusive(&mut c, "");
    let clock = exclusive(&mut c, &format!("{},x-message-ttl=1700", buried_in(&end)));
    put(&mut c, &clock, "", "tick");
    wait_until("the time to pass", || {
        use_it(&mut c, &q);
        take(&mut c, &end).is_some()
    });
    assert!(exists(&mut c, 2, &q), "it was in use all the time");
    wait_until_gone(&mut c, &q);
}

#[test]
fn basic_get_is_use() {
    is_kept_by(|c, q| drop(take(c, q)));
}

#[test]
fn declaring_again_is_use() {
    is_kept_by(|c, q| drop(c.declare(1, &format!("queue={q} arguments=(x-expires=1000)"))));
}

#[test]
fn passive_declaring_is_use() {
    is_kept_by(|c, q| {
        c.counts(1, q);
    });
}

#[test]
fn publishing_binding_and_purging_are_no_use() {
    let (mut c, q) = expiring(1000, "");
    let end = exclusive(&mut c, "");
    let clock = exclusive(&mut c, &format!("{},x-message-ttl=1700", buried_in(&end)));
    put(&mut c, &clock, "", "tick");
    let mut bound = 0;
    wait_until("the time to pass", || {
        if exists(&mut c, 2, &q) {
            bound += 1;
            c.send(1, &format!("queue.bind queue={q} exchange=amq.direct routing_key=k{bound}"));
            let bound_ok = c.next_method(1).name == "queue.bind-ok";
            c.send(1, &format!("queue.purge queue={q}"));
            if !bound_ok || c.next_method(1).name == "channel.close" {
                c.send(1, "channel.close-ok");
                c.call(1, "channel.open");
            }
        }
        take(&mut c, &end).is_some()
    });
    assert!(!exists(&mut c, 2, &q), "nothing of this keeps it");
}

#[test]
fn an_unacked_message_does_not_keep_a_queue() {
    let (mut c, q) = expiring(700, "");
    assert!(exists(&mut c, 2, &q));
    let (_, tag) = hold(&mut c, &q);
    wait_until_gone(&mut c, &q);
    settle(&mut c, "ack", tag);
    c.expect_nothing(1);
}
