//! Queues with x-max-priority.
//!
//! Owns the order of messages by priority, and how it goes together with requeueing, expiry and
//! prefetch.

use super::support::Client;
use super::*;

/// Publishes each text with the priority before it.
fn put_ranked(c: &mut Client, queue: &str, ranked: &[(u32, &str)]) {
    for (priority, text) in ranked {
        put(c, queue, &format!("priority={priority}"), text);
    }
    wait_for_ready(c, queue, ranked.len() as i64);
}

#[test]
fn higher_priorities_come_first_each_in_order() {
    let (mut c, q) = with_queue("x-max-priority=9");
    let ranked = [(1, "1a"), (5, "5a"), (9, "9a"), (5, "5b"), (1, "1b"), (9, "9b"), (0, "0a")];
    put_ranked(&mut c, &q, &ranked);
    assert_eq!(drain(&mut c, &q), ["9a", "9b", "5a", "5b", "1a", "1b", "0a"]);
}

#[test]
fn a_priority_above_the_maximum_is_the_maximum() {
    let (mut c, q) = with_queue("x-max-priority=3");
    put_ranked(&mut c, &q, &[(2, "2"), (200, "200"), (3, "3"), (255, "255")]);
    let first = take(&mut c, &q).unwrap();
    assert_eq!(first.text(), "200");
    assert_eq!(first.properties["priority"].int(), 200, "the property is left as it was");
    assert_eq!(drain(&mut c, &q), ["3", "255", "2"]);
}

#[test]
fn no_priority_is_the_lowest() {
    let (mut c, q) = with_queue("x-max-priority=3");
    put(&mut c, &q, "", "none");
    put_ranked_more(&mut c, &q);
    assert_eq!(drain(&mut c, &q), ["one", "none", "zero"]);
}

fn put_ranked_more(c: &mut Client, queue: &str) {
    put(c, queue, "priority=0", "zero");
    put(c, queue, "priority=1", "one");
    wait_for_ready(c, queue, 3);
}

#[test]
fn every_number_of_priorities_works() {
    let (mut c, q) = with_queue("x-max-priority=255");
    let ranked: Vec<(u32, String)> = (0..=255).map(|n| (n * 7 % 256, n.to_string())).collect();
    ranked.iter().for_each(|(rank, _)| put(&mut c, &q, &format!("priority={rank}"), "m"));
    wait_for_ready(&mut c, &q, 256);
    for rank in (0..=255).rev() {
        assert_eq!(take(&mut c, &q).unwrap().properties["priority"].int(), rank);
    }
    let (mut c, q) = with_queue("x-max-priority=1");
    put_ranked(&mut c, &q, &[(0, "0"), (1, "1"), (9, "9")]);
    assert_eq!(drain(&mut c, &q), ["1", "9", "0"]);
    let (mut c, q) = with_queue("x-max-priority=0");
    put_ranked(&mut c, &q, &[(0, "first"), (9, "second")]);
    assert_eq!(drain(&mut c, &q), ["first", "second"]);
}

#[test]
fn without_the_argument_priorities_mean_nothing() {
    let (mut c, q) = with_queue("");
    put_ranked(&mut c, &q, &[(1, "1"), (9, "9"), (5, "5")]);
    assert_eq!(drain(&mut c, &q), ["1", "9", "5"]);
}

#[test]
fn a_requeued_message_returns_to_its_place_in_its_priority() {
    let (mut c, q) = with_queue("x-max-priority=5");
    put_ranked(&mut c, &q, &[(1, "low"), (3, "3a"), (3, "3b"), (3, "3c")]);
    let (first, tag) = hold(&mut c, &q);
    let (_, second) = hold(&mut c, &q);
    assert_eq!(first, "3a");
    settle(&mut c, "nack requeue", second);
    settle(&mut c, "nack requeue", tag);
    put(&mut c, &q, "priority=5", "urgent");
    wait_for_ready(&mut c, &q, 5);
    let order: Vec<(String, bool)> =
        std::iter::from_fn(|| take(&mut c, &q)).map(|d| (d.text(), d.redelivered())).collect();
    let expected = [("urgent", false), ("3a", true), ("3b", true), ("3c", false), ("low", false)];
    assert_eq!(order, expected.map(|(text, redelivered)| (text.into(), redelivered)));
}

#[test]
fn a_consumer_gets_the_highest_when_it_has_credit() {
    let (mut c, q) = with_queue("x-max-priority=5");
    c.open_channels(2..=2);
    c.call(2, "basic.qos prefetch_count=1");
    consume(&mut c, 2, &q, "");
    put(&mut c, &q, "priority=1", "first of all");
    let mut tag = c.delivery(2).tag();
    for text in [(1, "low"), (5, "high"), (3, "middle"), (5, "high too")] {
        put(&mut c, &q, &format!("priority={}", text.0), text.1);
    }
    wait_for_ready(&mut c, &q, 4);
    for due in ["high", "high too", "middle", "low"] {
        c.send(2, &format!("basic.ack delivery_tag=l:{tag}"));
        let next = c.delivery(2);
        assert_eq!(next.text(), due);
        tag = next.tag();
    }
}

#[test]
fn counts_and_purge_know_all_priorities() {
    let (mut c, q) = with_queue("x-max-priority=5");
    put_ranked(&mut c, &q, &[(1, "a"), (5, "b"), (3, "c")]);
    let got = c.get(1, &format!("queue={q}")).unwrap();
    assert_eq!(got.method["message_count"].int(), 2);
    assert_eq!(c.call(1, &format!("queue.purge queue={q}"))["message_count"].int(), 2);
    settle(&mut c, "nack requeue", got.tag());
    wait_for_ready(&mut c, &q, 1);
    assert_eq!(c.call(1, &format!("queue.delete queue={q}"))["message_count"].int(), 1);
}

#[test]
fn messages_of_a_priority_queue_expire() {
    let (mut c, q, graveyard) = with_graveyard("x-max-priority=5,x-message-ttl=60");
    put(&mut c, &q, "priority=1", "low");
    put(&mut c, &q, "priority=5", "high");
    let mut dead = arrivals(&mut c, &graveyard, 2);
    dead.sort();
    assert_eq!(dead, ["high", "low"]);
    assert_eq!(c.counts(1, &q), (0, 0));
}

#[test]
fn an_expired_message_behind_a_higher_one_is_never_delivered() {
    let (mut c, q) = with_queue("x-max-priority=5");
    c.call(1, "confirm.select");
    put(&mut c, &q, "priority=5", "lives");
    put(&mut c, &q, "priority=1 expiration=20", "dies");
    put(&mut c, &q, "priority=1", "lives too");
    c.confirmed_up_to(1, 3);
    let_pass(100);
    assert_eq!(drain(&mut c, &q), ["lives", "lives too"]);
}

#[test]
fn dead_letters_keep_their_priority() {
    let mut c = Client::open(broker());
    let graveyard = exclusive(&mut c, "x-max-priority=5");
    let q = exclusive(&mut c, &buried_in(&graveyard));
    put_ranked(&mut c, &q, &[(1, "low"), (5, "high")]);
    for _ in 0..2 {
        let (_, tag) = hold(&mut c, &q);
        settle(&mut c, "reject", tag);
    }
    wait_for_ready(&mut c, &graveyard, 2);
    assert_eq!(drain(&mut c, &graveyard), ["high", "low"]);
}
