//! What a client relies on that somebody else has done, and was not told of.
//!
//! Owns the loss of power just after an answer that speaks of another's unanswered work: a queue
//! that was declared with no-wait and is seen, a message that was published without confirms and
//! whose duplicate is confirmed, and messages that are gone by a purge, a transaction or a
//! deletion.

use std::time::Duration;

use super::node::{Failure, Node};
use super::random::Random;
use super::session::{Incoming, Session};
use crate::support::DEADLINE;

fn started() -> Node {
    let mut node = Node::new(Failure::PowerLoss, "");
    node.start();
    node
}

fn restart(node: &mut Node) -> Session {
    node.kill(&mut Random::new(1));
    node.start();
    Session::open(&node.address)
}

fn call(session: &mut Session, line: &str) -> Result<(), String> {
    session.call(line, |_| {}).expect("the connection stays").map(|_| ())
}

#[test]
fn what_was_seen_to_be_there_stays() {
    if Node::is_external() {
        return;
    }
    let mut node = started();
    let mut session = Session::open(&node.address);
    let declare = "exchange.declare exchange=seen type=topic durable nowait";
    session.method(declare).expect("the connection stays");
    call(&mut session, "exchange.declare exchange=seen passive").expect("it is there");
    let mut session = restart(&mut node);
    call(&mut session, "exchange.declare exchange=seen passive").expect("it is still there");

    session.method("queue.declare queue=seen durable nowait").expect("the connection stays");
    call(&mut session, "queue.declare queue=seen passive").expect("it is there");
    let mut session = restart(&mut node);
    call(&mut session, "queue.declare queue=seen passive").expect("it is still there");
}

/// Publishes a message twice over, without confirms and then with, and loses power once the second
/// is confirmed.
fn check_duplicate(exchange_arguments: &str, queue_arguments: &str) {
    if Node::is_external() {
        return;
    }
    let mut node = started();
    let mut first = Session::open(&node.address);
    for line in [
        format!("exchange.declare exchange=x type=direct durable arguments=({exchange_arguments})"),
        format!("queue.declare queue=q durable arguments=({queue_arguments})"),
        "queue.bind queue=q exchange=x routing_key=k".to_owned(),
    ] {
        call(&mut first, &line).expect(&line);
    }
    let mut second = Session::open(&node.address);
    call(&mut second, "confirm.select").expect("it is known");
    let properties = "delivery_mode=2 headers=(x-deduplication-header=once)";
    let publish = first.publish_bytes("exchange=x routing_key=k", properties, b"once");
    first.send(&publish).expect("the connection stays");
    // The answer comes when the message is in the queue.
    call(&mut first, "channel.flow active").expect("it flows");
    second.send(&publish).expect("the connection stays");
    match second.next(DEADLINE).expect("the connection stays") {
        Some(Incoming::Confirm { tag: 1, is_ack: true, .. }) => {}
        other => panic!("the duplicate is confirmed, came {other:?}"),
    }
    let mut session = restart(&mut node);
    session.method("basic.get queue=q no_ack").expect("the connection stays");
    match session.next(DEADLINE).expect("the connection stays") {
        Some(Incoming::Message(message)) => assert_eq!(message.body, b"once"),
        other => panic!("the message is there, came {other:?}"),
    }
    let more = session.next(Duration::ZERO).expect("the connection stays");
    assert!(more.is_none(), "{more:?}");
}

#[test]
fn the_original_of_an_exchanges_confirmed_duplicate_stays() {
    let arguments = "x-message-deduplication=true,x-deduplication-header=x-deduplication-header,\
                     x-cache-size=10";
    check_duplicate(arguments, "");
}

#[test]
fn the_original_of_a_queues_confirmed_duplicate_stays() {
    check_duplicate("", "x-message-deduplication=true");
}

/// Loses power after `work`, which empties or deletes a durable queue that has a message, and
/// shows that the message has not come back.
fn check_gone(work: impl Fn(&mut Session)) {
    if Node::is_external() {
        return;
    }
    let mut node = started();
    let mut session = Session::open(&node.address);
    call(&mut session, "queue.declare queue=q durable").expect("it is new");
    call(&mut session, "confirm.select").expect("it is known");
    let publish = session.publish_bytes("routing_key=q", "delivery_mode=2", b"gone");
    session.send(&publish).expect("the connection stays");
    let confirm = session.next(DEADLINE).expect("the connection stays");
    assert!(matches!(confirm, Some(Incoming::Confirm { is_ack: true, .. })), "{confirm:?}");
    work(&mut Session::open(&node.address));
    let mut session = restart(&mut node);
    call(&mut session, "queue.declare queue=q durable").expect("it is there, or new");
    assert!(get(&mut session).is_none(), "it came back");
}

/// Takes a message out of the queue and leaves it unsettled.
fn get(session: &mut Session) -> Option<Vec<u8>> {
    session.method("basic.get queue=q").expect("the connection stays");
    match session.next(DEADLINE).expect("the connection stays") {
        Some(Incoming::Message(message)) => Some(message.body),
        Some(Incoming::Method(method)) if method.name == "basic.get-empty" => None,
        other => panic!("a message or none, came {other:?}"),
    }
}

#[test]
fn what_was_purged_does_not_come_back() {
    check_gone(|session| call(session, "queue.purge queue=q").expect("it is there"));
}

#[test]
fn what_a_purge_without_answer_took_does_not_come_back_once_it_is_seen() {
    check_gone(|session| {
        session.method("queue.purge queue=q nowait").expect("the connection stays");
        call(session, "queue.purge queue=q").expect("it is there");
    });
}

#[test]
fn what_was_acknowledged_in_a_transaction_does_not_come_back() {
    check_gone(|session| {
        call(session, "tx.select").expect("it is known");
        assert!(get(session).is_some());
        session.method("basic.ack delivery_tag=l:1").expect("the connection stays");
        call(session, "tx.commit").expect("it is known");
    });
}

#[test]
fn what_was_deleted_does_not_come_back_once_it_is_seen() {
    check_gone(|session| {
        session.method("queue.delete queue=q nowait").expect("the connection stays");
        call(session, "queue.delete queue=q").expect("no error");
    });
}
