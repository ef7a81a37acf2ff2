//! What a dead letter says about its deaths.
//!
//! Owns the headers x-death and x-first-death-*, how repeated deaths are counted, and what happens
//! to such headers that clients publish.

use std::time::{SystemTime, UNIX_EPOCH};

use super::support::notation;
use super::*;

/// Publishes with these properties to a queue that rejects it into a second one, and takes the
/// dead letter.
fn rejected(properties: &str) -> (Delivery, String) {
    let (mut c, q, graveyard) = with_graveyard("");
    put(&mut c, &q, &properties.replace('$', &q), "m");
    wait_for_ready(&mut c, &q, 1);
    let (_, tag) = hold(&mut c, &q);
    settle(&mut c, "reject", tag);
    (arrival(&mut c, &graveyard), q)
}

#[test]
fn a_death_has_these_fields_of_these_types() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let (dead, q) = rejected("");
    let Value::Table(mut fields) = deaths(&dead)[0].clone() else { panic!("a death is a table") };
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    let names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["count", "exchange", "queue", "reason", "routing-keys", "time"]);
    let of = |name: &str| &fields.iter().find(|(field, _)| field == name).unwrap().1;
    assert_eq!(*of("count"), Value::Int('l', 1));
    assert_eq!(*of("exchange"), notation::value("\"\""));
    assert_eq!(*of("queue"), notation::value(&q));
    assert_eq!(*of("reason"), notation::value("rejected"));
    assert_eq!(*of("routing-keys"), notation::value(&format!("[{q}]")));
    let Value::Int('T', time) = of("time") else { panic!("time is a timestamp") };
    assert!((now - 60..now + 60).contains(time), "in seconds: {time}");
    for (name, value) in [("reason", "rejected"), ("queue", q.as_str()), ("exchange", "")] {
        let first = dead.header(&format!("x-first-death-{name}"));
        assert_eq!(first, Some(&Value::Text(value.into())), "{name}");
    }
}

#[test]
fn the_original_expiration_is_told() {
    let (mut c, q, graveyard) = with_graveyard("");
    put(&mut c, &q, "expiration=30", "expired");
    let dead = arrival(&mut c, &graveyard);
    assert!(!dead.properties.contains_key("expiration"));
    let told = |dead: &Delivery| deaths(dead)[0].entry("original-expiration").cloned();
    assert_eq!(told(&dead), Some(Value::Text(b"30".to_vec())));
    let (dead, _) = rejected("expiration=60000");
    assert!(!dead.properties.contains_key("expiration"));
    assert_eq!(told(&dead), Some(Value::Text(b"60000".to_vec())));
    let (mut c, q, graveyard) = with_graveyard("x-message-ttl=20");
    put(&mut c, &q, "", "by the queue");
    assert_eq!(told(&arrival(&mut c, &graveyard)), None);
}

#[test]
fn several_reasons_are_listed_newest_first() {
    let mut c = Client::open(broker());
    let last = exclusive(&mut c, "");
    let third = exclusive(&mut c, &buried_in(&last));
    let second = exclusive(&mut c, &format!("x-max-length=0,{}", buried_in(&third)));
    let first = exclusive(&mut c, &format!("x-message-ttl=20,{}", buried_in(&second)));
    put(&mut c, &first, "", "m");
    wait_for_ready(&mut c, &third, 1);
    let (_, tag) = hold(&mut c, &third);
    settle(&mut c, "reject", tag);
    let dead = arrival(&mut c, &last);
    let mut expected =
        [death(&third, "rejected", 1), death(&second, "maxlen", 1), death(&first, "expired", 1)];
    if broker().is_rabbitmq() {
        // 3.10 turns the older ones round with each death.
        expected.swap(1, 2);
    }
    assert_eq!(death_counts(&dead), expected);
    assert_eq!(dead.header("x-first-death-reason").unwrap().text(), "expired");
    assert_eq!(dead.header("x-first-death-queue").unwrap().text(), first);
    let keys = deaths(&dead)[0].entry("routing-keys").unwrap().clone();
    assert_eq!(keys, notation::value(&format!("[{third}]")));
}

#[test]
fn one_queue_may_kill_for_two_reasons() {
    let mut c = Client::open(broker());
    let graveyard = exclusive(&mut c, "");
    let q = exclusive(&mut c, &buried_in(&graveyard));
    put(&mut c, &q, "", "m");
    wait_for_ready(&mut c, &q, 1);
    let (_, tag) = hold(&mut c, &q);
    settle(&mut c, "reject", tag);
    let dead = arrival(&mut c, &graveyard);
    // The headers come along when an application publishes the message again.
    let headers = notation_of(dead.properties.get("headers").unwrap());
    put(&mut c, &q, &format!("expiration=20 headers={headers}"), "m");
    let again = arrival(&mut c, &graveyard);
    let mut expected = vec![death(&q, "expired", 1), death(&q, "rejected", 1)];
    assert_eq!(death_counts(&again), expected);
    assert_eq!(again.header("x-first-death-reason").unwrap().text(), "rejected");
    // A repeated one is counted and comes to the front.
    let headers = notation_of(again.properties.get("headers").unwrap());
    put(&mut c, &q, &format!("headers={headers}"), "m");
    wait_for_ready(&mut c, &q, 1);
    let (_, tag) = hold(&mut c, &q);
    settle(&mut c, "reject", tag);
    expected = vec![death(&q, "rejected", 2), death(&q, "expired", 1)];
    assert_eq!(death_counts(&arrival(&mut c, &graveyard)), expected);
}

/// A value in the notation that it is read from.
fn notation_of(value: &Value) -> String {
    let join = |items: Vec<String>| items.join(",");
    match value {
        Value::Text(bytes) => format!("\"{}\"", bytes.escape_ascii()),
        Value::List(items) => format!("[{}]", join(items.iter().map(notation_of).collect())),
        Value::Table(entries) => {
            let entry = |(key, value): &(String, Value)| format!("{key}={}", notation_of(value));
            format!("({})", join(entries.iter().map(entry).collect()))
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn the_count_of_a_message_published_again_goes_on() {
    let known = "headers=(x-death=[(count=l:5,reason=rejected,queue=$,time=T:1000,exchange=e,\
        routing-keys=[k])],x-first-death-reason=maxlen)";
    let (dead, q) = rejected(known);
    assert_eq!(death_counts(&dead), [death(&q, "rejected", 6)]);
    let first = deaths(&dead)[0].clone();
    assert_eq!(first.entry("time"), Some(&Value::Int('T', 1000)), "of the first death");
    assert_eq!(first.entry("exchange"), Some(&notation::value("e")));
    assert_eq!(first.entry("routing-keys"), Some(&notation::value("[k]")));
}

#[test]
fn deaths_elsewhere_are_kept() {
    let known = "headers=(x-death=[(count=l:5,reason=expired,queue=elsewhere,time=T:1000,\
        exchange=e,routing-keys=[k])])";
    let (dead, q) = rejected(known);
    let expected = [death(&q, "rejected", 1), death("elsewhere", "expired", 5)];
    assert_eq!(death_counts(&dead), expected);
}

/// RabbitMQ 3.10 loses the queue's process over some of these.
#[test]
fn malformed_deaths_do_no_harm() {
    if broker().is_rabbitmq() {
        eprintln!("skipped: RabbitMQ 3.10 crashes");
        return;
    }
    let malformed = [
        "text",
        "5",
        "void",
        "(a=1)",
        "[]",
        "[1,2,text,void]",
        "[[[[]]],(a=(b=(c=[1,(d=2)])))]",
        "[(count=text,reason=rejected,queue=$)]",
        "[(count=l:-9223372036854775808,reason=rejected,queue=$)]",
        "[(count=l:9223372036854775807,reason=rejected,queue=$)]",
        "[(reason=rejected,queue=$)]",
        "[(count=l:1,reason=5,queue=$)]",
        "[(count=l:1,reason=rejected,queue=[$])]",
        "[(count=l:1,reason=nonsense,queue=$)]",
        "[(count=l:1,reason=rejected,queue=$,time=text,exchange=5,routing-keys=text)]",
        "[(count=l:1),(queue=$),(reason=rejected),()]",
    ];
    for headers in malformed {
        let (dead, q) = rejected(&format!("headers=(x-death={headers},mine=kept)"));
        assert_eq!(dead.header("mine"), Some(&notation::value("kept")), "{headers}");
        let newest = &deaths(&dead)[0];
        assert_eq!(newest.entry("queue"), Some(&Value::Text(q.into_bytes())), "{headers}");
        assert_eq!(newest.entry("reason"), Some(&notation::value("rejected")), "{headers}");
        assert!(matches!(newest.entry("count"), Some(Value::Int('l', _))), "{headers}");
    }
}

#[test]
fn malformed_deaths_do_not_stop_expiry() {
    if broker().is_rabbitmq() {
        eprintln!("skipped: RabbitMQ 3.10 crashes");
        return;
    }
    let (mut c, q, graveyard) = with_graveyard("x-message-ttl=20");
    put(&mut c, &q, "headers=(x-death=[5,(queue=5)],x-first-death-queue=5)", "bad");
    put(&mut c, &q, "", "good");
    assert_eq!(arrivals(&mut c, &graveyard, 2), ["bad", "good"]);
}
