//! What a full queue does.
//!
//! Owns x-max-length, x-max-length-bytes and the three kinds of x-overflow, with and without
//! confirms.

use super::support::Client;
use super::*;

/// Publishes on channel 1, which is in confirm mode with `settled` publishes settled, and tells
/// whether it was accepted.
fn accepted(c: &mut Client, settled: u64, queue: &str, text: &str) -> bool {
    put(c, queue, "", text);
    c.confirmed_after(1, settled, settled + 1)
}

#[test]
fn a_full_queue_drops_its_head() {
    let (mut c, q) = with_queue("x-max-length=2");
    c.call(1, "confirm.select");
    for (settled, text) in ["1", "2", "3", "4"].iter().enumerate() {
        assert!(accepted(&mut c, settled as u64, &q, text));
    }
    assert_eq!(c.counts(1, &q), (2, 0));
    assert_eq!(drain(&mut c, &q), ["3", "4"]);
}

#[test]
fn drop_head_may_be_asked_for() {
    let (mut c, q) = with_queue("x-max-length=1,x-overflow=drop-head");
    put_all(&mut c, &q, "", &["1", "2"]);
    settle_publishes(&mut c, 1);
    assert_eq!(drain(&mut c, &q), ["2"]);
}

#[test]
fn what_is_dropped_is_a_dead_letter_in_order() {
    let (mut c, q, graveyard) = with_graveyard("x-max-length=1");
    put_all(&mut c, &q, "", &["1", "2", "3", "4"]);
    for text in ["1", "2", "3"] {
        let dead = arrival(&mut c, &graveyard);
        assert_eq!(dead.text(), text);
        assert_eq!(death_counts(&dead), [death(&q, "maxlen", 1)]);
    }
    assert_eq!(drain(&mut c, &q), ["4"]);
}

#[test]
fn bodies_are_what_the_limit_in_bytes_counts() {
    let (mut c, q, graveyard) = with_graveyard("x-max-length-bytes=10");
    put_all(&mut c, &q, "headers=(long=not-counted-at-all)", &["11111", "22222"]);
    wait_for_ready(&mut c, &q, 2);
    put(&mut c, &q, "", "3");
    let dead = arrival(&mut c, &graveyard);
    assert_eq!(dead.text(), "11111");
    assert_eq!(death_counts(&dead), [death(&q, "maxlen", 1)]);
    put(&mut c, &q, "", "4444444444");
    assert_eq!(arrivals(&mut c, &graveyard, 2), ["22222", "3"]);
    // Larger than the whole queue may be: nothing is left.
    put(&mut c, &q, "", "55555555555");
    assert_eq!(arrivals(&mut c, &graveyard, 2), ["4444444444", "55555555555"]);
    assert_eq!(c.counts(1, &q), (0, 0));
}

#[test]
fn the_tighter_of_two_limits_counts() {
    let (mut c, q) = with_queue("x-max-length=3,x-max-length-bytes=4");
    put_all(&mut c, &q, "", &["a", "b", "c", "d"]);
    settle_publishes(&mut c, 1);
    wait_for_ready(&mut c, &q, 3);
    put(&mut c, &q, "", "eee");
    wait_for_ready(&mut c, &q, 2);
    assert_eq!(drain(&mut c, &q), ["d", "eee"]);
}

#[test]
fn a_refusing_queue_nacks() {
    let (mut c, q) = with_queue("x-max-length=2,x-overflow=reject-publish");
    c.call(1, "confirm.select");
    let results: Vec<bool> =
        (0..4).map(|n| accepted(&mut c, n, &q, &(n + 1).to_string())).collect();
    assert_eq!(results, [true, true, false, false]);
    assert_eq!(drain(&mut c, &q), ["1", "2"]);
    assert!(accepted(&mut c, 4, &q, "room again"));
}

#[test]
fn a_refusing_queue_is_silent_without_confirms() {
    let (mut c, q) = with_queue("x-max-length=1,x-overflow=reject-publish");
    put_all(&mut c, &q, "", &["1", "2", "3"]);
    settle_publishes(&mut c, 1);
    c.expect_nothing(1);
    assert_eq!(drain(&mut c, &q), ["1"]);
}

#[test]
fn a_refused_message_is_no_dead_letter_unless_asked_for() {
    let (mut c, q, graveyard) = with_graveyard("x-max-length=1,x-overflow=reject-publish");
    c.call(1, "confirm.select");
    assert!(accepted(&mut c, 0, &q, "1"));
    assert!(!accepted(&mut c, 1, &q, "2"));
    assert_eq!(c.counts(1, &graveyard), (0, 0));
    let (mut c, q, graveyard) = with_graveyard("x-max-length=1,x-overflow=reject-publish-dlx");
    c.call(1, "confirm.select");
    assert!(accepted(&mut c, 0, &q, "1"));
    assert!(!accepted(&mut c, 1, &q, "2"));
    assert!(!accepted(&mut c, 2, &q, "3"));
    for text in ["2", "3"] {
        let dead = arrival(&mut c, &graveyard);
        assert_eq!(dead.text(), text);
        assert_eq!(death_counts(&dead), [death(&q, "maxlen", 1)]);
    }
    assert_eq!(drain(&mut c, &q), ["1"]);
}

#[test]
fn refused_messages_are_dead_letters_without_confirms_too() {
    let (mut c, q, graveyard) = with_graveyard("x-max-length=1,x-overflow=reject-publish-dlx");
    put_all(&mut c, &q, "", &["1", "2"]);
    assert_eq!(arrival(&mut c, &graveyard).text(), "2");
    c.expect_nothing(1);
}

#[test]
fn a_refusing_queue_counts_bytes() {
    let (mut c, q) = with_queue("x-max-length-bytes=10,x-overflow=reject-publish");
    c.call(1, "confirm.select");
    let texts = ["123456", "1234567890", "1", ""];
    let results: Vec<bool> =
        texts.iter().enumerate().map(|(n, text)| accepted(&mut c, n as u64, &q, text)).collect();
    // It refuses what does not fit, and takes what does.
    assert_eq!(results, [true, false, true, true]);
    assert_eq!(drain(&mut c, &q), ["123456", "1", ""]);
}

#[test]
fn a_nack_of_one_queue_is_a_nack_of_the_message() {
    let (mut c, full) = with_queue("x-max-length=0,x-overflow=reject-publish");
    let free = exclusive(&mut c, "");
    let x = unique("x");
    c.call(1, &format!("exchange.declare exchange={x} type=fanout auto_delete"));
    for queue in [&full, &free] {
        c.call(1, &format!("queue.bind queue={queue} exchange={x}"));
    }
    c.call(1, "confirm.select");
    c.publish(1, &format!("exchange={x}"), "", b"half");
    assert!(!c.confirmed_up_to(1, 1));
    assert_eq!(drain(&mut c, &free), ["half"]);
}

#[test]
fn a_queue_of_length_zero_hands_on_but_keeps_nothing() {
    let (mut c, q, graveyard) = with_graveyard("x-max-length=0");
    put(&mut c, &q, "", "nobody");
    assert_eq!(arrival(&mut c, &graveyard).text(), "nobody");
    c.open_channels(2..=2);
    c.call(2, "basic.qos prefetch_count=1");
    consume(&mut c, 2, &q, "");
    put(&mut c, &q, "", "has credit");
    assert_eq!(c.delivery(2).text(), "has credit");
    put(&mut c, &q, "", "no credit");
    assert_eq!(arrival(&mut c, &graveyard).text(), "no credit");
}

#[test]
fn a_refusing_queue_of_length_zero_takes_nothing() {
    let (mut c, q) = with_queue("x-max-length=0,x-overflow=reject-publish");
    c.call(1, "confirm.select");
    assert!(!accepted(&mut c, 0, &q, "nobody"));
    c.open_channels(2..=2);
    consume(&mut c, 2, &q, "no_ack");
    assert!(!accepted(&mut c, 1, &q, "somebody"));
    c.expect_nothing(2);
}

#[test]
fn a_full_queue_drops_nothing_that_a_consumer_takes() {
    let (mut c, q, graveyard) = with_graveyard("x-max-length=1");
    consume(&mut c, 1, &q, "no_ack");
    let texts: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    texts.iter().for_each(|text| put(&mut c, &q, "", text));
    let came: Vec<String> = texts.iter().map(|_| c.delivery(1).text()).collect();
    assert_eq!(came, texts);
    assert_eq!(c.counts(1, &graveyard), (0, 0));
}

#[test]
fn unacked_messages_do_not_count_but_requeued_ones_do() {
    let (mut c, q, graveyard) = with_graveyard("x-max-length=2");
    put(&mut c, &q, "", "held");
    wait_for_ready(&mut c, &q, 1);
    let (_, tag) = hold(&mut c, &q);
    put_all(&mut c, &q, "", &["1", "2"]);
    wait_for_ready(&mut c, &q, 2);
    assert_eq!(c.counts(1, &graveyard), (0, 0));
    settle(&mut c, "nack requeue", tag);
    let dead = arrival(&mut c, &graveyard);
    assert_eq!((dead.text().as_str(), death_counts(&dead)), ("held", vec![death(&q, "maxlen", 1)]));
    assert_eq!(drain(&mut c, &q), ["1", "2"]);
}

#[test]
fn a_refusing_queue_takes_back_what_it_gave() {
    let (mut c, q) = with_queue("x-max-length=1,x-overflow=reject-publish");
    c.call(1, "confirm.select");
    assert!(accepted(&mut c, 0, &q, "1"));
    let (_, tag) = hold(&mut c, &q);
    assert!(accepted(&mut c, 1, &q, "2"));
    settle(&mut c, "nack requeue", tag);
    wait_for_ready(&mut c, &q, 2);
    assert!(!accepted(&mut c, 2, &q, "3"));
    assert_eq!(drain(&mut c, &q), ["1", "2"]);
}

#[test]
fn a_full_priority_queue_drops_the_highest_first() {
    let (mut c, q, graveyard) = with_graveyard("x-max-priority=5,x-max-length=2");
    put(&mut c, &q, "priority=1", "low");
    put(&mut c, &q, "priority=4", "high");
    wait_for_ready(&mut c, &q, 2);
    // The head is what a consumer would get next.
    put(&mut c, &q, "priority=2", "middle");
    assert_eq!(arrival(&mut c, &graveyard).text(), "high");
    put(&mut c, &q, "priority=5", "highest");
    assert_eq!(arrival(&mut c, &graveyard).text(), "highest");
    assert_eq!(drain(&mut c, &q), ["middle", "low"]);
}

#[test]
fn a_limit_and_an_expiry_go_together() {
    let (mut c, q, graveyard) = with_graveyard("x-max-length=2,x-message-ttl=500");
    put_all(&mut c, &q, "", &["1", "2", "3"]);
    let reasons: Vec<(String, String)> = (0..3)
        .map(|_| arrival(&mut c, &graveyard))
        .map(|dead| (dead.text(), death_counts(&dead)[0].1.clone()))
        .collect();
    let expected = [("1", "maxlen"), ("2", "expired"), ("3", "expired")];
    assert_eq!(reasons, expected.map(|(text, reason)| (text.into(), reason.into())));
}
