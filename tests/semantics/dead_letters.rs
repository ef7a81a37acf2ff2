//! Where dead letters go, and which messages become one.
//!
//! Owns the ways to die, the address of a dead letter, what of a message survives, and cycles. What
//! a dead letter says about its deaths is tested in `deaths`.

use super::support::{Client, notation, unique};
use super::*;

/// A topic exchange that goes with this connection's queues.
fn exchange(c: &mut Client) -> String {
    let x = unique("x");
    c.call(1, &format!("exchange.declare exchange={x} type=topic auto_delete"));
    x
}

fn bind(c: &mut Client, queue: &str, exchange: &str, key: &str) {
    c.call(1, &format!("queue.bind queue={queue} exchange={exchange} routing_key={key}"));
}

#[test]
fn rejected_messages_are_dead_letters() {
    for method in ["reject", "nack"] {
        let (mut c, q, graveyard) = with_graveyard("");
        put(&mut c, &q, "", "bad");
        let (_, tag) = { arrival_held(&mut c, &q) };
        settle(&mut c, method, tag);
        let dead = arrival(&mut c, &graveyard);
        assert_eq!(death_counts(&dead), [death(&q, "rejected", 1)], "{method}");
        assert!(!dead.redelivered());
        assert_eq!((dead.text(), dead.method["exchange"].text()), ("bad".into(), String::new()));
        assert_eq!(dead.method["routing_key"].text(), graveyard);
    }
}

/// The next message that reaches this queue, kept unacked.
fn arrival_held(c: &mut Client, queue: &str) -> (String, u64) {
    wait_for_ready(c, queue, 1);
    hold(c, queue)
}

#[test]
fn many_rejected_at_once_keep_their_order() {
    let (mut c, q, graveyard) = with_graveyard("");
    put_all(&mut c, &q, "", &["1", "2", "3", "4"]);
    wait_for_ready(&mut c, &q, 4);
    let tags: Vec<u64> = (0..4).map(|_| hold(&mut c, &q).1).collect();
    settle(&mut c, "nack multiple", tags[2]);
    assert_eq!(arrivals(&mut c, &graveyard, 3), ["1", "2", "3"]);
    settle(&mut c, "nack requeue", tags[3]);
    assert_eq!(arrivals(&mut c, &q, 1), ["4"]);
    assert!(take(&mut c, &graveyard).is_none(), "requeued is not rejected");
}

#[test]
fn without_a_key_of_its_own_a_dead_letter_keeps_its_keys() {
    let mut c = Client::open(broker());
    let (x, dlx) = (exchange(&mut c), exchange(&mut c));
    let q = exclusive(&mut c, &format!("x-dead-letter-exchange={dlx}"));
    let (by_key, by_cc) = (exclusive(&mut c, ""), exclusive(&mut c, ""));
    bind(&mut c, &q, &x, "first.key");
    bind(&mut c, &by_key, &dlx, "first.*");
    bind(&mut c, &by_cc, &dlx, "second");
    let fields = format!("exchange={x} routing_key=first.key");
    c.publish(1, &fields, "headers=(CC=[second])", b"hello");
    let (_, tag) = arrival_held(&mut c, &q);
    settle(&mut c, "reject", tag);
    for queue in [&by_key, &by_cc] {
        let dead = arrival(&mut c, queue);
        assert_eq!(dead.method["exchange"].text(), dlx);
        assert_eq!(dead.method["routing_key"].text(), "first.key");
        assert_eq!(dead.header("CC"), Some(&notation::value("[second]")));
        assert_eq!(deaths(&dead)[0].entry("exchange").unwrap().text(), x);
        let keys = deaths(&dead)[0].entry("routing-keys").unwrap().clone();
        assert_eq!(keys, notation::value("[first.key,second]"));
    }
}

#[test]
fn a_key_of_its_own_replaces_key_and_cc() {
    let mut c = Client::open(broker());
    let (x, dlx) = (exchange(&mut c), exchange(&mut c));
    let arguments = format!("x-dead-letter-exchange={dlx},x-dead-letter-routing-key=dead");
    let q = exclusive(&mut c, &arguments);
    let (by_dead, by_old) = (exclusive(&mut c, ""), exclusive(&mut c, ""));
    bind(&mut c, &q, &x, "old");
    bind(&mut c, &by_dead, &dlx, "dead");
    bind(&mut c, &by_old, &dlx, "old");
    bind(&mut c, &by_old, &dlx, "copied");
    c.publish(1, &format!("exchange={x} routing_key=old"), "headers=(CC=[copied],a=1)", b"m");
    let (_, tag) = arrival_held(&mut c, &q);
    settle(&mut c, "reject", tag);
    let dead = arrival(&mut c, &by_dead);
    assert_eq!(dead.method["routing_key"].text(), "dead");
    assert_eq!(dead.header("CC"), None);
    assert_eq!(dead.header("a"), Some(&notation::value("1")));
    let keys = deaths(&dead)[0].entry("routing-keys").unwrap().clone();
    assert_eq!(keys, notation::value("[old,copied]"));
    assert!(take(&mut c, &by_old).is_none());
}

#[test]
fn blind_copies_stay_blind() {
    let mut c = Client::open(broker());
    let graveyard = exclusive(&mut c, "");
    let (q, blind) = (exclusive(&mut c, &buried_in(&graveyard)), exclusive(&mut c, ""));
    put(&mut c, &q, &format!("headers=(BCC=[{blind}],CC=[nowhere])"), "m");
    let (_, tag) = arrival_held(&mut c, &q);
    assert_eq!(arrival(&mut c, &blind).header("BCC"), None);
    settle(&mut c, "reject", tag);
    let dead = arrival(&mut c, &graveyard);
    assert_eq!(dead.header("BCC"), None);
    let keys = deaths(&dead)[0].entry("routing-keys").unwrap().clone();
    assert_eq!(keys, notation::value(&format!("[{q},nowhere]")));
}

#[test]
fn a_blind_copy_dies_on_its_own() {
    let mut c = Client::open(broker());
    let dlx = exchange(&mut c);
    let grave = exclusive(&mut c, "");
    bind(&mut c, &grave, &dlx, "#");
    let blind = exclusive(&mut c, &format!("x-dead-letter-exchange={dlx}"));
    let nowhere = unique("nowhere");
    c.publish(1, &format!("routing_key={nowhere}"), &format!("headers=(BCC=[{blind}])"), b"m");
    let (_, tag) = arrival_held(&mut c, &blind);
    settle(&mut c, "reject", tag);
    let dead = arrival(&mut c, &grave);
    assert_eq!(dead.method["routing_key"].text(), nowhere);
    let keys = deaths(&dead)[0].entry("routing-keys").unwrap().clone();
    assert_eq!(keys, notation::value(&format!("[{nowhere}]")));
}

#[test]
fn many_dead_letters_keep_their_order() {
    for arguments in ["x-message-ttl=1", "x-max-length=0"] {
        let (mut c, q, graveyard) = with_graveyard(arguments);
        consume(&mut c, 1, &graveyard, "no_ack");
        let texts: Vec<String> = (0..3000).map(|n| n.to_string()).collect();
        texts.iter().for_each(|text| put(&mut c, &q, "", text));
        let came: Vec<String> = texts.iter().map(|_| c.delivery(1).text()).collect();
        assert!(came == texts, "{arguments}");
    }
}

#[test]
fn each_dead_letter_has_what_its_own_message_had() {
    let mut c = Client::open(broker());
    let (x, dlx) = (exchange(&mut c), exchange(&mut c));
    let grave = exclusive(&mut c, "");
    let q = exclusive(&mut c, &format!("x-message-ttl=1,x-dead-letter-exchange={dlx}"));
    bind(&mut c, &q, &x, "#");
    bind(&mut c, &grave, &dlx, "a.#");
    bind(&mut c, &grave, &dlx, "b.#");
    consume(&mut c, 1, &grave, "no_ack");
    let kinds = [
        ("a.1", "headers=(n=1)"),
        ("a.1", "headers=(n=2)"),
        ("b.1", "headers=(n=2)"),
        ("lost", "headers=(n=3)"),
        ("a.2", "priority=3"),
        ("lost", "headers=(n=4,CC=[b.2])"),
        ("a.3", "expiration=500"),
        ("a.3", ""),
    ];
    for n in 0..400usize {
        let (key, properties) = kinds[n * 7 / 3 % kinds.len()];
        let fields = format!("exchange={x} routing_key={key}");
        c.publish(1, &fields, properties, n.to_string().as_bytes());
    }
    for n in 0..400usize {
        let (key, properties) = kinds[n * 7 / 3 % kinds.len()];
        if key == "lost" && !properties.contains("CC") {
            continue;
        }
        let dead = c.delivery(1);
        assert_eq!((dead.text(), dead.method["routing_key"].text()), (n.to_string(), key.into()));
        let sent = notation::decode_header(&notation::encode_header(60, 0, properties)).1;
        assert_eq!(dead.properties.get("priority"), sent.get("priority"), "{n}");
        let sent_n = sent.get("headers").and_then(|headers| headers.entry("n"));
        assert_eq!(dead.header("n"), sent_n, "{n}");
        let told = deaths(&dead)[0].entry("original-expiration").cloned();
        assert_eq!(told.as_ref(), sent.get("expiration"), "{n}");
        assert_eq!(death_counts(&dead), [death(&q, "expired", 1)]);
    }
}

#[test]
fn dead_letters_follow_changed_bindings() {
    let mut c = Client::open(broker());
    let dlx = exchange(&mut c);
    let (one, other) = (exclusive(&mut c, ""), exclusive(&mut c, ""));
    let q = exclusive(&mut c, &format!("x-dead-letter-exchange={dlx},x-message-ttl=0"));
    bind(&mut c, &one, &dlx, "#");
    for text in ["1", "2"] {
        put(&mut c, &q, "", text);
        assert_eq!(arrival(&mut c, &one).text(), text);
    }
    bind(&mut c, &other, &dlx, "#");
    c.call(1, &format!("queue.unbind queue={one} exchange={dlx} routing_key=#"));
    put(&mut c, &q, "", "3");
    assert_eq!(arrival(&mut c, &other).text(), "3");
    assert!(take(&mut c, &one).is_none());
}

#[test]
fn a_dead_letter_is_not_told_to_who_published_it() {
    let (mut c, q, graveyard) = with_graveyard("x-message-ttl=20");
    c.call(1, "confirm.select");
    c.publish(1, &format!("routing_key={q} mandatory"), "", b"m");
    assert!(c.confirmed_up_to(1, 1));
    assert_eq!(arrival(&mut c, &graveyard).text(), "m");
    let q = exclusive(&mut c, "x-dead-letter-exchange=nowhere-at-all,x-message-ttl=0");
    c.publish(1, &format!("routing_key={q} mandatory"), "", b"m");
    assert!(c.confirmed_after(1, 1, 2), "dying at once is no refusal");
    c.expect_nothing(1);
}

#[test]
fn a_dead_letter_goes_to_every_queue_it_is_routed_to() {
    let mut c = Client::open(broker());
    let dlx = exchange(&mut c);
    let q = exclusive(&mut c, &format!("x-dead-letter-exchange={dlx},x-message-ttl=20"));
    let graves: Vec<String> = (0..3).map(|_| exclusive(&mut c, "")).collect();
    graves.iter().for_each(|grave| bind(&mut c, grave, &dlx, "#"));
    put(&mut c, &q, "", "one for each");
    for grave in &graves {
        assert_eq!(arrival(&mut c, grave).text(), "one for each");
    }
}

#[test]
fn an_unroutable_dead_letter_takes_the_alternate_exchange() {
    let mut c = Client::open(broker());
    let (dlx, other) = (unique("x"), exchange(&mut c));
    let arguments = format!("arguments=(alternate-exchange={other})");
    c.call(1, &format!("exchange.declare exchange={dlx} type=direct {arguments}"));
    let grave = exclusive(&mut c, "");
    bind(&mut c, &grave, &other, "#");
    let q = exclusive(&mut c, &format!("x-dead-letter-exchange={dlx},x-message-ttl=20"));
    put(&mut c, &q, "", "nowhere else");
    assert_eq!(arrival(&mut c, &grave).text(), "nowhere else");
    c.call(1, &format!("exchange.delete exchange={dlx}"));
}

#[test]
fn without_its_exchange_a_dead_letter_is_dropped() {
    let mut c = Client::open(broker());
    let dlx = unique("x");
    let q = exclusive(&mut c, &format!("x-dead-letter-exchange={dlx}"));
    put_all(&mut c, &q, "", &["lost", "kept"]);
    wait_for_ready(&mut c, &q, 2);
    let (_, lost) = hold(&mut c, &q);
    settle(&mut c, "reject", lost);
    c.counts(1, &q);
    // Declared later, the exchange works.
    c.call(1, &format!("exchange.declare exchange={dlx} type=fanout auto_delete"));
    let grave = exclusive(&mut c, "");
    bind(&mut c, &grave, &dlx, "");
    let (_, kept) = hold(&mut c, &q);
    settle(&mut c, "reject", kept);
    assert_eq!(arrival(&mut c, &grave).text(), "kept");
    assert!(take(&mut c, &grave).is_none());
}

#[test]
fn an_internal_exchange_takes_dead_letters() {
    let mut c = Client::open(broker());
    let dlx = unique("x");
    c.call(1, &format!("exchange.declare exchange={dlx} type=fanout internal auto_delete"));
    let grave = exclusive(&mut c, "");
    bind(&mut c, &grave, &dlx, "");
    let q = exclusive(&mut c, &format!("x-dead-letter-exchange={dlx},x-message-ttl=20"));
    put(&mut c, &q, "", "inside");
    assert_eq!(arrival(&mut c, &grave).text(), "inside");
}

#[test]
fn settled_purged_and_deleted_messages_are_no_dead_letters() {
    let (mut c, q, graveyard) = with_graveyard("");
    put_all(&mut c, &q, "", &["acked", "taken", "purged", "deleted"]);
    wait_for_ready(&mut c, &q, 4);
    let (_, tag) = hold(&mut c, &q);
    settle(&mut c, "ack", tag);
    take(&mut c, &q).unwrap();
    c.call(1, &format!("queue.purge queue={q}"));
    put(&mut c, &q, "", "deleted");
    wait_for_ready(&mut c, &q, 1);
    c.call(1, &format!("queue.delete queue={q}"));
    settle_publishes(&mut c, 1);
    assert_eq!(c.counts(1, &graveyard), (0, 0));
}

#[test]
fn everything_but_the_expiration_survives() {
    let (mut c, q, graveyard) = with_graveyard("");
    let properties = "content_type=text/plain content_encoding=gzip delivery_mode=2 priority=7 \
        correlation_id=c1 reply_to=r1 expiration=60000 message_id=m1 timestamp=12345 type=t1 \
        user_id=guest app_id=a1 cluster_id=k1 headers=(s=text,n=l:5,t=(in=true),a=[1,x],v=void)";
    put(&mut c, &q, properties, "body");
    let (_, tag) = arrival_held(&mut c, &q);
    settle(&mut c, "reject", tag);
    let mut dead = arrival(&mut c, &graveyard);
    assert!(dead.properties.remove("expiration").is_none());
    let (_, sent) = notation::decode_header(&notation::encode_header(60, 4, properties));
    for (name, value) in sent.into_iter().filter(|(name, _)| *name != "expiration") {
        if name != "headers" {
            assert_eq!(dead.properties.get(name), Some(&value), "{name}");
            continue;
        }
        let Value::Table(entries) = value else { panic!("headers are a table") };
        for (key, value) in entries {
            assert_eq!(dead.header(&key), Some(&value), "{key}");
        }
    }
    assert_eq!(dead.body, b"body");
}

#[test]
fn large_bodies_survive() {
    for (size, how) in [(20_000, "x-message-ttl=20"), (500_000, "x-max-length=0")] {
        let (mut c, q, graveyard) = with_graveyard(how);
        let body: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        c.publish(1, &format!("routing_key={q}"), "message_id=big", &body);
        let dead = arrival(&mut c, &graveyard);
        assert_eq!(dead.properties["message_id"].text(), "big");
        assert!(dead.body == body, "{size} bytes arrive as they were");
    }
    let (mut c, q, graveyard) = with_graveyard("");
    c.publish(1, &format!("routing_key={q}"), "", &[9; 300_000]);
    let (_, tag) = arrival_held(&mut c, &q);
    settle(&mut c, "reject", tag);
    assert!(arrival(&mut c, &graveyard).body == [9; 300_000]);
}

#[test]
fn an_empty_body_survives() {
    let (mut c, q, graveyard) = with_graveyard("x-message-ttl=20");
    put(&mut c, &q, "message_id=m", "");
    let dead = arrival(&mut c, &graveyard);
    assert_eq!((dead.text().as_str(), dead.properties["message_id"].text().as_str()), ("", "m"));
}

#[test]
fn dead_letters_reach_waiting_consumers() {
    let (mut c, q, graveyard) = with_graveyard("x-message-ttl=30");
    consume(&mut c, 1, &graveyard, "no_ack");
    put_all(&mut c, &q, "", &["1", "2", "3"]);
    let came: Vec<String> = (0..3).map(|_| c.delivery(1).text()).collect();
    assert_eq!(came, ["1", "2", "3"]);
}

#[test]
fn a_rejection_in_a_transaction_counts_when_committed() {
    let (mut c, q, graveyard) = with_graveyard("");
    put_all(&mut c, &q, "", &["back", "dead"]);
    wait_for_ready(&mut c, &q, 2);
    c.open_channels(2..=2);
    c.call(2, "tx.select");
    let get = format!("queue={q}");
    let tags = [c.get(2, &get).unwrap().tag(), c.get(2, &get).unwrap().tag()];
    c.send(2, &format!("basic.reject delivery_tag=l:{}", tags[0]));
    c.call(2, "tx.rollback");
    c.send(2, &format!("basic.reject delivery_tag=l:{}", tags[1]));
    c.call(2, "channel.flow active");
    assert!(take(&mut c, &graveyard).is_none());
    c.call(2, "tx.commit");
    assert_eq!(arrival(&mut c, &graveyard).text(), "dead");
    c.call(2, "channel.close reply_code=200");
    assert_eq!(arrival(&mut c, &q).text(), "back");
    assert!(take(&mut c, &graveyard).is_none());
}

#[test]
fn dead_letters_of_a_full_queue_die_on() {
    let mut c = Client::open(broker());
    let last = exclusive(&mut c, "");
    let middle = exclusive(&mut c, &format!("x-max-length=1,{}", buried_in(&last)));
    let first = exclusive(&mut c, &format!("x-message-ttl=20,{}", buried_in(&middle)));
    put_all(&mut c, &first, "", &["1", "2", "3"]);
    let dead = arrival(&mut c, &last);
    assert_eq!(dead.text(), "1");
    assert_eq!(death_counts(&dead), [death(&middle, "maxlen", 1), death(&first, "expired", 1)]);
    assert_eq!(arrival(&mut c, &last).text(), "2");
    assert_eq!(drain(&mut c, &middle), ["3"]);
}

#[test]
fn a_refusing_queue_drops_dead_letters_silently() {
    let mut c = Client::open(broker());
    let full = exclusive(&mut c, "x-max-length=1,x-overflow=reject-publish");
    let q = exclusive(&mut c, &buried_in(&full));
    put_all(&mut c, &q, "", &["1", "2"]);
    wait_for_ready(&mut c, &q, 2);
    for _ in 0..2 {
        let (_, tag) = hold(&mut c, &q);
        settle(&mut c, "reject", tag);
    }
    wait_for_ready(&mut c, &full, 1);
    settle_publishes(&mut c, 1);
    assert_eq!(drain(&mut c, &full), ["1"]);
}

// ---- cycles ----

#[test]
fn a_message_that_expires_into_its_own_queue_is_dropped() {
    let mut c = Client::open(broker());
    let q = unique("q");
    let dlx = "x-dead-letter-exchange=\"\"";
    c.declare(1, &format!("queue={q} exclusive arguments=({dlx},x-message-ttl=50)"));
    c.call(1, "confirm.select");
    put(&mut c, &q, "", "once");
    c.confirmed_up_to(1, 1);
    wait_for_ready(&mut c, &q, 0);
    let_pass(100);
    assert_eq!(c.counts(1, &q), (0, 0));
}

#[test]
fn a_rejected_message_may_come_back_to_its_own_queue() {
    let mut c = Client::open(broker());
    let q = exclusive(&mut c, "x-dead-letter-exchange=\"\"");
    put(&mut c, &q, "", "again");
    for count in 1..=3 {
        let (_, tag) = arrival_held(&mut c, &q);
        settle(&mut c, "reject", tag);
        let back = {
            wait_for_ready(&mut c, &q, 1);
            c.get(1, &format!("queue={q}")).unwrap()
        };
        assert_eq!(death_counts(&back), [death(&q, "rejected", count)]);
        assert!(!back.redelivered(), "it is a new message");
        settle(&mut c, "nack requeue", back.tag());
    }
}

#[test]
fn a_cycle_of_expiries_ends_where_it_began() {
    let mut c = Client::open(broker());
    let (a, b, watch) = (unique("q"), unique("q"), exclusive(&mut c, ""));
    let dlx = unique("x");
    c.call(1, &format!("exchange.declare exchange={dlx} type=direct auto_delete"));
    let to = |key: &str| format!("x-dead-letter-exchange={dlx},x-dead-letter-routing-key={key}");
    for (from, next) in [(&a, "b"), (&b, "a")] {
        let arguments = format!("x-message-ttl=40,{}", to(next));
        c.declare(1, &format!("queue={from} exclusive arguments=({arguments})"));
    }
    bind(&mut c, &b, &dlx, "b");
    bind(&mut c, &a, &dlx, "a");
    bind(&mut c, &watch, &dlx, "a");
    put(&mut c, &a, "", "round");
    // Another queue bound beside the first one still gets the message.
    let seen = arrival(&mut c, &watch);
    assert_eq!(death_counts(&seen), [death(&b, "expired", 1), death(&a, "expired", 1)]);
    let_pass(200);
    assert!(take(&mut c, &watch).is_none(), "it did not go round again");
    assert_eq!((c.counts(1, &a), c.counts(1, &b)), ((0, 0), (0, 0)));
}

#[test]
fn an_overflow_into_the_same_queue_is_dropped() {
    let mut c = Client::open(broker());
    let q = exclusive(&mut c, "x-max-length=2,x-dead-letter-exchange=\"\"");
    put_all(&mut c, &q, "", &["1", "2", "3", "4"]);
    settle_publishes(&mut c, 1);
    let_pass(30);
    assert_eq!(drain(&mut c, &q), ["3", "4"]);
}

#[test]
fn a_retry_loop_goes_round_while_someone_rejects() {
    let mut c = Client::open(broker());
    let (work, retry) = (unique("q"), unique("q"));
    let (to_retry, to_work) = (buried_in(&retry), buried_in(&work));
    c.declare(1, &format!("queue={work} exclusive arguments=({to_retry})"));
    c.declare(1, &format!("queue={retry} exclusive arguments=({to_work},x-message-ttl=30)"));
    consume(&mut c, 1, &work, "");
    put(&mut c, &work, "", "job");
    let first = c.delivery(1);
    assert_eq!(first.header("x-death"), None);
    settle(&mut c, "reject", first.tag());
    for count in 1..=4 {
        let again = c.delivery(1);
        let expected = [death(&retry, "expired", count), death(&work, "rejected", count)];
        assert_eq!(death_counts(&again), expected);
        assert_eq!(again.header("x-first-death-reason").unwrap().text(), "rejected");
        assert_eq!(again.header("x-first-death-queue").unwrap().text(), work);
        settle(&mut c, "reject", again.tag());
    }
}
