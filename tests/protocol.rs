//! What the broker promises to clients that do everything right, seen from a raw client.
//!
//! Owns the semantics of queues, consumers, publishers and connections that no single reply shows:
//! order, counts, redelivery, credit, confirms, transactions. With `AMQP_URI` in the environment
//! the same tests run against that broker, which is how they are proven right.

mod support;

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use support::notation::Value;
use support::{Broker, Client, Delivery, Handshake, client, unique, wait_until};

fn broker() -> &'static Broker {
    static BROKER: OnceLock<Broker> = OnceLock::new();
    BROKER.get_or_init(Broker::start)
}

/// An exclusive queue with these arguments or other fields, on channel 1 of a new connection.
fn with_queue(fields: &str) -> (Client, String) {
    let mut client = Client::open(broker());
    let queue = unique("q");
    client.declare(1, &format!("queue={queue} exclusive {fields}"));
    (client, queue)
}

fn put_numbered(client: &mut Client, queue: &str, numbers: std::ops::RangeInclusive<u32>) {
    numbers.for_each(|n| client.put(1, queue, &n.to_string()));
}

fn texts(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(Delivery::text).collect()
}

fn deliveries(client: &mut Client, channel: u16, count: usize) -> Vec<Delivery> {
    (0..count).map(|_| client.delivery(channel)).collect()
}

/// Everything that is ready in the queue, in order, taken out for good.
fn drain(client: &mut Client, channel: u16, queue: &str) -> Vec<Delivery> {
    std::iter::from_fn(|| client.get(channel, &format!("queue={queue} no_ack"))).collect()
}

fn consume(client: &mut Client, channel: u16, queue: &str, fields: &str) -> String {
    let ok = client.call(channel, &format!("basic.consume queue={queue} {fields}"));
    ok["consumer_tag"].text()
}

/// Waits until everything that this channel has published so far is where it goes: an unroutable
/// mandatory message comes back only after all that were published before it.
fn settle_publishes(client: &mut Client, channel: u16) {
    let nowhere = unique("nowhere");
    client.publish(channel, &format!("routing_key={nowhere} mandatory"), "", b"");
    client.content(channel, "basic.return");
}

fn wait_for_ready(client: &mut Client, queue: &str, ready: i64) {
    wait_until(&format!("{ready} ready messages"), || client.counts(1, queue).0 == ready);
}

// ---- counts, order, redelivery ----

#[test]
fn counts_follow_publish_get_ack_and_purge() {
    let (mut c, q) = with_queue("");
    put_numbered(&mut c, &q, 1..=5);
    wait_for_ready(&mut c, &q, 5);
    let first = c.get(1, &format!("queue={q}")).unwrap();
    assert_eq!(first.method["message_count"].int(), 4);
    assert_eq!(c.counts(1, &q), (4, 0), "an unacked message is not ready");
    c.get(1, &format!("queue={q}")).unwrap();
    c.send(1, &format!("basic.ack delivery_tag=l:{}", first.tag()));
    assert_eq!(c.counts(1, &q), (3, 0));
    assert_eq!(c.call(1, &format!("queue.purge queue={q}"))["message_count"].int(), 3);
    assert_eq!(c.counts(1, &q), (0, 0));
    c.send(1, "basic.nack delivery_tag=0 multiple requeue");
    wait_for_ready(&mut c, &q, 1);
    let again = c.get(1, &format!("queue={q}")).unwrap();
    assert_eq!((again.text().as_str(), again.redelivered()), ("2", true));
    assert_eq!(c.call(1, &format!("queue.delete queue={q}"))["message_count"].int(), 0);
}

#[test]
fn consumer_count_is_right() {
    let (mut c, q) = with_queue("");
    let one = consume(&mut c, 1, &q, "");
    consume(&mut c, 1, &q, "");
    assert_eq!(c.counts(1, &q), (0, 2));
    c.call(1, &format!("basic.cancel consumer_tag={one}"));
    assert_eq!(c.counts(1, &q), (0, 1));
}

#[test]
fn messages_come_in_the_order_of_their_publishing() {
    let (mut c, q) = with_queue("");
    put_numbered(&mut c, &q, 1..=2000);
    consume(&mut c, 1, &q, "no_ack");
    for n in 1..=2000u64 {
        let d = c.delivery(1);
        assert_eq!((d.text(), d.tag(), d.redelivered()), (n.to_string(), n, false));
    }
}

#[test]
fn requeued_message_returns_to_its_place() {
    let (mut c, q) = with_queue("");
    put_numbered(&mut c, &q, 1..=5);
    let got: Vec<u64> = (1..=3).map(|_| c.get(1, &format!("queue={q}")).unwrap().tag()).collect();
    c.send(1, &format!("basic.reject delivery_tag=l:{} requeue", got[1]));
    let second = c.get(1, &format!("queue={q}")).unwrap();
    assert_eq!((second.text().as_str(), second.redelivered()), ("2", true));
    let fourth = c.get(1, &format!("queue={q}")).unwrap();
    assert_eq!((fourth.text().as_str(), fourth.redelivered()), ("4", false));
}

#[test]
fn two_requeued_messages_keep_their_order() {
    let (mut c, q) = with_queue("");
    put_numbered(&mut c, &q, 1..=4);
    let got: Vec<u64> = (1..=3).map(|_| c.get(1, &format!("queue={q}")).unwrap().tag()).collect();
    // The later one first: their place in the queue decides, not the order of requeueing.
    c.send(1, &format!("basic.nack delivery_tag=l:{} requeue", got[2]));
    c.send(1, &format!("basic.nack delivery_tag=l:{} requeue", got[0]));
    let rest = drain(&mut c, 1, &q);
    assert_eq!(texts(&rest), ["1", "3", "4"]);
    let flags: Vec<bool> = rest.iter().map(Delivery::redelivered).collect();
    assert_eq!(flags, [true, true, false]);
}

#[test]
fn reject_without_requeue_drops_the_message() {
    let (mut c, q) = with_queue("");
    put_numbered(&mut c, &q, 1..=3);
    let tag = c.get(1, &format!("queue={q}")).unwrap().tag();
    c.send(1, &format!("basic.reject delivery_tag=l:{tag}"));
    assert_eq!(texts(&drain(&mut c, 1, &q)), ["2", "3"]);
}

#[test]
fn ack_multiple_settles_all_before() {
    let (mut c, q) = with_queue("");
    put_numbered(&mut c, &q, 1..=5);
    consume(&mut c, 1, &q, "consumer_tag=c");
    assert_eq!(deliveries(&mut c, 1, 5).last().unwrap().tag(), 5);
    c.call(1, "basic.cancel consumer_tag=c");
    c.send(1, "basic.ack delivery_tag=l:3 multiple");
    c.call(1, "basic.recover requeue");
    wait_for_ready(&mut c, &q, 2);
    assert_eq!(texts(&drain(&mut c, 1, &q)), ["4", "5"]);
}

#[test]
fn channel_close_requeues_in_place() {
    let (mut c, q) = with_queue("");
    put_numbered(&mut c, &q, 1..=4);
    c.open_channels(2..=2);
    for _ in 0..2 {
        c.get(2, &format!("queue={q}")).unwrap();
    }
    c.call(2, "channel.close reply_code=200 reply_text=bye");
    wait_for_ready(&mut c, &q, 4);
    let all = drain(&mut c, 1, &q);
    assert_eq!(texts(&all), ["1", "2", "3", "4"]);
    assert!(all[0].redelivered() && all[1].redelivered() && !all[2].redelivered());
}

#[test]
fn abrupt_disconnect_requeues_in_place() {
    let mut c = Client::open(broker());
    let q = unique("q");
    c.declare(1, &format!("queue={q}"));
    put_numbered(&mut c, &q, 1..=6);
    let mut dying = Client::open(broker());
    dying.call(1, "basic.qos prefetch_count=3");
    consume(&mut dying, 1, &q, "");
    assert_eq!(texts(&deliveries(&mut dying, 1, 3)), ["1", "2", "3"]);
    dying.send(1, "basic.ack delivery_tag=l:2");
    assert_eq!(dying.delivery(1).text(), "4");
    dying.die();
    wait_for_ready(&mut c, &q, 5);
    assert_eq!(c.counts(1, &q).1, 0);
    let all = drain(&mut c, 1, &q);
    assert_eq!(texts(&all), ["1", "3", "4", "5", "6"]);
    let flags: Vec<bool> = all.iter().map(Delivery::redelivered).collect();
    assert_eq!(flags, [true, true, true, false, false]);
    c.call(1, &format!("queue.delete queue={q}"));
}

#[test]
fn recover_gives_everything_back() {
    for method in ["basic.recover", "basic.recover-async"] {
        let (mut c, q) = with_queue("");
        put_numbered(&mut c, &q, 1..=3);
        consume(&mut c, 1, &q, "");
        assert_eq!(texts(&deliveries(&mut c, 1, 3)), ["1", "2", "3"]);
        c.send(1, &format!("{method} requeue"));
        if method == "basic.recover" {
            c.expect("1 basic.recover-ok");
        }
        let again = deliveries(&mut c, 1, 3);
        assert_eq!(texts(&again), ["1", "2", "3"], "{method}");
        assert!(again.iter().all(Delivery::redelivered));
        assert_eq!(again[0].tag(), 4);
    }
}

// ---- consumers ----

#[test]
fn round_robin_is_exact_among_equal_consumers() {
    let (mut c, q) = with_queue("");
    for tag in ["a", "b", "c"] {
        consume(&mut c, 1, &q, &format!("no_ack consumer_tag={tag}"));
    }
    // One after the other, so that no batch decides who is asked.
    let mut tags = Vec::new();
    for n in 0..9 {
        c.put(1, &q, &n.to_string());
        tags.push(c.delivery(1).method["consumer_tag"].text());
    }
    assert_eq!(tags[..3], tags[3..6]);
    assert_eq!(tags[..3], tags[6..]);
    tags.truncate(3);
    tags.sort();
    assert_eq!(tags, ["a", "b", "c"]);
}

#[test]
fn round_robin_shares_a_burst_evenly() {
    let (mut c, q) = with_queue("");
    for tag in ["a", "b", "c"] {
        consume(&mut c, 1, &q, &format!("no_ack consumer_tag={tag}"));
    }
    put_numbered(&mut c, &q, 1..=300);
    let mut shares: BTreeMap<String, u32> = BTreeMap::new();
    for d in deliveries(&mut c, 1, 300) {
        *shares.entry(d.method["consumer_tag"].text()).or_default() += 1;
    }
    assert_eq!(shares.into_values().collect::<Vec<u32>>(), [100, 100, 100]);
}

#[test]
fn consumer_priority_goes_first_while_it_has_credit() {
    let (mut c, q) = with_queue("");
    c.call(1, "basic.qos prefetch_count=2");
    consume(&mut c, 1, &q, "consumer_tag=low arguments=(x-priority=-1)");
    consume(&mut c, 1, &q, "consumer_tag=usual");
    consume(&mut c, 1, &q, "consumer_tag=high arguments=(x-priority=10)");
    let mut tags = Vec::new();
    for n in 0..6 {
        c.put(1, &q, &n.to_string());
        tags.push(c.delivery(1).method["consumer_tag"].text());
    }
    assert_eq!(tags, ["high", "high", "usual", "usual", "low", "low"]);
    c.put(1, &q, "waits");
    c.expect_nothing(1);
    c.send(1, "basic.ack delivery_tag=l:1");
    assert_eq!(c.delivery(1).method["consumer_tag"].text(), "high");
}

#[test]
fn prefetch_is_per_consumer() {
    let (mut c, q) = with_queue("");
    put_numbered(&mut c, &q, 1..=10);
    wait_for_ready(&mut c, &q, 10);
    c.call(1, "basic.qos prefetch_count=2");
    consume(&mut c, 1, &q, "consumer_tag=two");
    c.call(1, "basic.qos prefetch_count=3");
    consume(&mut c, 1, &q, "consumer_tag=three");
    let first = deliveries(&mut c, 1, 5);
    let of = |tag: &str| first.iter().filter(|d| d.method["consumer_tag"].text() == tag).count();
    assert_eq!((of("two"), of("three")), (2, 3));
    c.expect_nothing(1);
    assert_eq!(c.counts(1, &q), (5, 2));
    let mine = first.iter().find(|d| d.method["consumer_tag"].text() == "two").unwrap();
    c.send(1, &format!("basic.ack delivery_tag=l:{}", mine.tag()));
    let next = c.delivery(1);
    assert_eq!((next.text().as_str(), next.method["consumer_tag"].text().as_str()), ("6", "two"));
    c.expect_nothing(1);
}

#[test]
fn prefetch_change_leaves_existing_consumers_alone() {
    let (mut c, q) = with_queue("");
    c.call(1, "basic.qos prefetch_count=1");
    consume(&mut c, 1, &q, "");
    c.call(1, "basic.qos prefetch_count=10");
    put_numbered(&mut c, &q, 1..=3);
    c.delivery(1);
    settle_publishes(&mut c, 1);
    c.expect_nothing(1);
}

#[test]
fn global_prefetch_is_shared_by_the_channel() {
    let (mut c, q) = with_queue("");
    put_numbered(&mut c, &q, 1..=10);
    wait_for_ready(&mut c, &q, 10);
    c.call(1, "basic.qos prefetch_count=3 global");
    consume(&mut c, 1, &q, "consumer_tag=a");
    consume(&mut c, 1, &q, "consumer_tag=b");
    assert_eq!(deliveries(&mut c, 1, 3).len(), 3);
    c.expect_nothing(1);
    c.send(1, "basic.ack delivery_tag=l:2 multiple");
    assert_eq!(texts(&deliveries(&mut c, 1, 2)), ["4", "5"]);
    c.expect_nothing(1);
    let got = c.get(1, &format!("queue={q}"));
    assert_eq!(got.unwrap().text(), "6", "basic.get is not limited");
    // A raised limit is used at once.
    c.call(1, "basic.qos prefetch_count=6 global");
    assert_eq!(texts(&deliveries(&mut c, 1, 1)), ["7"]);
}

#[test]
fn no_ack_needs_no_credit_and_settles_itself() {
    let (mut c, q) = with_queue("");
    c.call(1, "basic.qos prefetch_count=1");
    put_numbered(&mut c, &q, 1..=10);
    consume(&mut c, 1, &q, "no_ack consumer_tag=c");
    assert_eq!(deliveries(&mut c, 1, 10).len(), 10);
    c.call(1, "basic.cancel consumer_tag=c");
    assert_eq!(c.call(1, &format!("queue.delete queue={q} if_empty"))["message_count"].int(), 0);
}

#[test]
fn exclusive_consumer_frees_the_queue_when_it_goes() {
    let (mut c, q) = with_queue("");
    c.open_channels(2..=2);
    consume(&mut c, 1, &q, "exclusive consumer_tag=mine");
    c.call(1, "basic.cancel consumer_tag=mine");
    consume(&mut c, 2, &q, "");
    assert_eq!(c.counts(1, &q), (0, 1));
}

#[test]
fn messages_delivered_before_a_cancel_stay_unacked() {
    let (mut c, q) = with_queue("");
    put_numbered(&mut c, &q, 1..=2);
    consume(&mut c, 1, &q, "consumer_tag=c");
    deliveries(&mut c, 1, 2);
    c.call(1, "basic.cancel consumer_tag=c");
    c.expect_nothing(1);
    assert_eq!(c.counts(1, &q), (0, 0));
    c.send(1, "basic.ack delivery_tag=l:1");
    c.send(1, "basic.nack delivery_tag=l:2 requeue");
    wait_for_ready(&mut c, &q, 1);
}

#[test]
fn nowait_methods_have_no_reply() {
    let mut c = Client::open(broker());
    let q = unique("q");
    c.send(1, &format!("queue.declare queue={q} exclusive nowait"));
    c.send(1, &format!("queue.bind queue={q} exchange=amq.direct routing_key={q} nowait"));
    c.send(1, &format!("basic.consume queue={q} consumer_tag=c no_ack nowait"));
    c.send(1, "confirm.select nowait");
    c.publish(1, &format!("exchange=amq.direct routing_key={q}"), "", b"hello");
    let mut frames = [c.next_on(1), c.next_on(1), c.next_on(1), c.next_on(1)];
    frames.sort_by_key(|frame| frame.kind);
    assert_eq!(frames.iter().map(|f| f.kind).collect::<Vec<u8>>(), [1, 1, 2, 3]);
    c.send(1, "basic.cancel consumer_tag=c nowait");
    c.send(1, &format!("queue.purge queue={q} nowait"));
    c.send(1, &format!("queue.delete queue={q} nowait"));
    c.expect_nothing(1);
}

#[test]
fn deleting_a_queue_cancels_its_consumers() {
    let mut owner = Client::open(broker());
    let q = unique("q");
    owner.declare(1, &format!("queue={q}"));
    let mut told = Client::open(broker());
    consume(&mut told, 1, &q, "consumer_tag=told");
    let plain = Handshake { capabilities: false, ..Handshake::default() };
    let mut untold = Client::open_with(broker(), &plain);
    consume(&mut untold, 1, &q, "consumer_tag=untold");
    owner.call(1, &format!("queue.delete queue={q}"));
    let cancel = told.expect("1 basic.cancel consumer_tag=told");
    assert_eq!(cancel["nowait"], Value::Bool(true));
    // The tag is free again, and who did not ask for notices gets none.
    owner.declare(1, &format!("queue={q}"));
    consume(&mut told, 1, &q, "consumer_tag=told");
    untold.expect_nothing(1);
    owner.call(1, &format!("queue.delete queue={q}"));
}

// ---- names and lifetimes ----

#[test]
fn generated_names_have_22_characters() {
    let mut c = Client::open(broker());
    let (q, _, _) = c.declare(1, "queue=\"\" exclusive");
    let tag = consume(&mut c, 1, &q, "");
    for (name, prefix) in [(q, "amq.gen-"), (tag, "amq.ctag-")] {
        let rest = name.strip_prefix(prefix).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(rest.len(), 22, "{name}");
        let base64url = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        assert!(rest.chars().all(base64url), "{name}");
    }
}

#[test]
fn empty_queue_name_is_the_last_declared_one() {
    let mut c = Client::open(broker());
    let (first, _, _) = c.declare(1, "queue=\"\" exclusive");
    let (last, _, _) = c.declare(1, "queue=\"\" exclusive");
    assert_ne!(first, last);
    c.call(1, &format!("queue.bind exchange=amq.direct routing_key={last}.x"));
    c.publish(1, &format!("exchange=amq.direct routing_key={last}.x"), "", b"bound");
    assert_eq!(c.get(1, "queue=\"\" no_ack").unwrap().text(), "bound");
    // An empty routing key with an empty name means the queue's name.
    c.call(1, "queue.bind exchange=amq.direct");
    c.publish(1, &format!("exchange=amq.direct routing_key={last}"), "", b"by name");
    let tag = consume(&mut c, 1, "\"\"", "no_ack");
    assert_eq!(c.delivery(1).text(), "by name");
    c.call(1, &format!("basic.cancel consumer_tag={tag}"));
    c.call(1, "queue.purge");
    assert_eq!(c.call(1, "queue.delete")["message_count"].int(), 0);
    c.declare(1, &format!("queue={first} passive"));
}

#[test]
fn auto_delete_queue_goes_with_its_last_consumer() {
    let mut c = Client::open(broker());
    let q = unique("q");
    c.declare(1, &format!("queue={q} auto_delete"));
    c.put(1, &q, "hello");
    c.get(1, &format!("queue={q} no_ack")).unwrap();
    assert_eq!(c.counts(1, &q), (0, 0), "basic.get does not count as a consumer");
    consume(&mut c, 1, &q, "consumer_tag=a");
    consume(&mut c, 1, &q, "consumer_tag=b");
    c.call(1, "basic.cancel consumer_tag=a");
    c.counts(1, &q);
    c.call(1, "basic.cancel consumer_tag=b");
    c.send(1, &format!("queue.declare queue={q} passive"));
    let text = format!("NOT_FOUND - no queue '{q}' in vhost '/'");
    c.expect_channel_close(1, 404, &text, (50, 10));
}

#[test]
fn auto_delete_queue_goes_with_the_channel_of_its_last_consumer() {
    let mut c = Client::open(broker());
    c.open_channels(2..=2);
    let q = unique("q");
    c.declare(1, &format!("queue={q} auto_delete"));
    consume(&mut c, 2, &q, "");
    c.call(2, "channel.close reply_code=200 reply_text=bye");
    wait_until("the queue to go", || {
        c.publish(1, &format!("routing_key={q} mandatory"), "", b"");
        c.call(1, "channel.flow active");
        c.poll_frame(Duration::from_millis(1)).is_some_and(|_| {
            c.next_frame();
            true
        })
    });
}

#[test]
fn auto_delete_exchange_goes_with_its_last_binding() {
    let (mut c, q) = with_queue("");
    let x = unique("x");
    c.call(1, &format!("exchange.declare exchange={x} type=fanout auto_delete"));
    c.call(1, &format!("exchange.declare exchange={x} passive"));
    c.call(1, &format!("queue.bind queue={q} exchange={x}"));
    c.call(1, &format!("queue.bind queue={q} exchange={x} routing_key=other"));
    c.call(1, &format!("queue.unbind queue={q} exchange={x}"));
    c.call(1, &format!("exchange.declare exchange={x} passive"));
    c.call(1, &format!("queue.unbind queue={q} exchange={x} routing_key=other"));
    c.send(1, &format!("exchange.declare exchange={x} passive"));
    let text = format!("NOT_FOUND - no exchange '{x}' in vhost '/'");
    c.expect_channel_close(1, 404, &text, (40, 10));
}

#[test]
fn auto_delete_exchanges_go_one_after_another() {
    let (mut c, q) = with_queue("");
    let (x, y) = (unique("x"), unique("y"));
    for name in [&x, &y] {
        c.call(1, &format!("exchange.declare exchange={name} type=fanout auto_delete"));
    }
    c.call(1, &format!("exchange.bind destination={y} source={x}"));
    c.call(1, &format!("queue.bind queue={q} exchange={y}"));
    c.call(1, &format!("queue.delete queue={q}"));
    for name in [&y, &x] {
        c.send(1, &format!("exchange.declare exchange={name} passive"));
        let text = format!("NOT_FOUND - no exchange '{name}' in vhost '/'");
        c.expect_channel_close(1, 404, &text, (40, 10));
        c.call(1, "channel.open");
    }
}

#[test]
fn exclusive_queue_is_gone_before_close_ok() {
    let mut other = Client::open(broker());
    for _ in 0..20 {
        let (owner, q) = with_queue("durable");
        owner.close();
        let again = other.declare(1, &format!("queue={q} exclusive"));
        assert_eq!(again, (q.clone(), 0, 0));
        other.call(1, &format!("queue.delete queue={q}"));
    }
}

#[test]
fn exclusive_queue_goes_with_a_connection_that_dies() {
    let (owner, q) = with_queue("");
    owner.die();
    let mut other = Client::open(broker());
    wait_until("the queue to go", || {
        other.send(1, &format!("queue.declare queue={q} passive"));
        let close = other.expect("1 channel.close");
        other.send(1, "channel.close-ok");
        other.call(1, "channel.open");
        close["reply_code"].int() == 404
    });
}

// ---- publishers ----

#[test]
fn confirms_cover_every_publish() {
    let (mut c, q) = with_queue("");
    c.call(1, "confirm.select");
    put_numbered(&mut c, &q, 1..=500);
    assert!(c.confirmed_up_to(1, 500));
    assert_eq!(c.counts(1, &q), (500, 0));
    // An unroutable message is confirmed too.
    c.put(1, &unique("nowhere"), "lost");
    c.expect("1 basic.ack delivery_tag=501");
}

#[test]
fn mandatory_message_is_returned_before_its_confirm() {
    let (mut c, q) = with_queue("");
    c.call(1, "confirm.select");
    let nowhere = unique("nowhere");
    c.publish(1, &format!("routing_key={q} mandatory"), "", b"kept");
    let properties = "content_type=text/plain message_id=m1 headers=(a=1)";
    c.publish(1, &format!("routing_key={nowhere} mandatory"), properties, b"back");
    let mut acked = 0;
    let returned = loop {
        let frame = c.next_on(1);
        let method = support::notation::decode_method(&frame.payload);
        if method.name == "basic.return" {
            c.unread(frame);
            break c.content(1, "basic.return");
        }
        acked = method["delivery_tag"].int();
        assert_eq!(method.name, "basic.ack");
    };
    assert!(acked <= 1, "the confirm of a returned message comes after it");
    assert_eq!(returned.method["reply_code"].int(), 312);
    assert_eq!(returned.method["reply_text"].text(), "NO_ROUTE");
    assert_eq!(returned.method["routing_key"].text(), nowhere);
    assert_eq!(returned.text(), "back");
    assert_eq!(returned.properties["message_id"].text(), "m1");
    assert_eq!(returned.header("a"), Some(&Value::Int('I', 1)));
    if acked == 1 {
        c.expect("1 basic.ack delivery_tag=2");
    } else {
        assert!(c.confirmed_up_to(1, 2));
    }
}

#[test]
fn transaction_publishes_at_commit() {
    let (mut c, q) = with_queue("");
    c.open_channels(2..=2);
    c.call(1, "tx.select");
    put_numbered(&mut c, &q, 1..=3);
    c.call(1, "channel.flow active");
    assert_eq!(c.counts(2, &q), (0, 0));
    c.call(1, "tx.commit");
    assert_eq!(c.counts(2, &q), (3, 0));
    c.put(1, &q, "4");
    c.call(1, "tx.rollback");
    c.put(1, &q, "5");
    c.call(1, "tx.commit");
    assert_eq!(texts(&drain(&mut c, 2, &q)), ["1", "2", "3", "5"]);
}

#[test]
fn transaction_acks_at_commit() {
    let (mut c, q) = with_queue("");
    put_numbered(&mut c, &q, 1..=4);
    c.open_channels(2..=2);
    c.call(2, "tx.select");
    for _ in 0..4 {
        c.get(2, &format!("queue={q}")).unwrap();
    }
    c.send(2, "basic.ack delivery_tag=l:1");
    c.call(2, "tx.commit");
    c.send(2, "basic.ack delivery_tag=l:2");
    c.send(2, "basic.nack delivery_tag=l:3 requeue");
    c.call(2, "tx.rollback");
    assert_eq!(c.counts(1, &q), (0, 0), "a requeue that was rolled back did not happen");
    c.send(2, "basic.ack delivery_tag=l:2");
    c.send(2, "basic.reject delivery_tag=l:3 requeue");
    c.call(2, "channel.flow active");
    assert_eq!(c.counts(1, &q), (0, 0));
    c.call(2, "tx.commit");
    wait_for_ready(&mut c, &q, 1);
    c.call(2, "channel.close reply_code=200 reply_text=bye");
    wait_for_ready(&mut c, &q, 2);
    assert_eq!(texts(&drain(&mut c, 1, &q)), ["3", "4"]);
}

#[test]
fn direct_reply_to() {
    let (mut server, q) = with_queue("");
    let mut c = Client::open(broker());
    c.call(1, "basic.consume queue=amq.rabbitmq.reply-to consumer_tag=replies no_ack");
    let properties = "reply_to=amq.rabbitmq.reply-to correlation_id=7 content_type=text/plain";
    c.publish(1, &format!("routing_key={q}"), properties, b"question");
    wait_for_ready(&mut server, &q, 1);
    let question = server.get(1, &format!("queue={q} no_ack")).unwrap();
    let address = question.properties["reply_to"].text();
    assert!(address.starts_with("amq.rabbitmq.reply-to.") && address.len() > 24, "{address}");
    assert_eq!(question.properties["correlation_id"].text(), "7");
    assert_eq!(question.properties["content_type"].text(), "text/plain");
    // A live address can be asked for, as some servers do before a long job.
    assert_eq!(server.declare(1, &format!("queue={address} passive")), (address.clone(), 0, 1));
    server.publish(1, &format!("routing_key={address}"), "correlation_id=7", b"answer");
    let answer = c.delivery(1);
    assert_eq!(answer.method["consumer_tag"].text(), "replies");
    assert_eq!(answer.text(), "answer");
    assert_eq!(answer.properties["correlation_id"].text(), "7");
    c.call(1, "basic.cancel consumer_tag=replies");
    c.call(1, "basic.consume queue=amq.rabbitmq.reply-to consumer_tag=again no_ack");
    c.close();
    server.publish(1, &format!("routing_key={address}"), "", b"too late");
    wait_until("the reply address to go", || {
        server.send(1, &format!("queue.declare queue={address} passive"));
        let reply = server.next_method(1);
        let gone = reply.name == "channel.close";
        if gone {
            let text = format!("NOT_FOUND - no queue '{address}' in vhost '/'");
            assert_eq!(reply["reply_text"].text(), text);
        }
        gone
    });
}

#[test]
fn carbon_copies() {
    let (mut c, q) = with_queue("");
    let (cc, bcc) = (unique("cc"), unique("bcc"));
    for name in [&cc, &bcc] {
        c.declare(1, &format!("queue={name} exclusive"));
    }
    let headers = format!("headers=(CC=[{cc},{q}],BCC=[{bcc}],other=1)");
    c.publish(1, &format!("routing_key={q}"), &headers, b"hello");
    for name in [&q, &cc, &bcc] {
        wait_for_ready(&mut c, name, 1);
        let copy = c.get(1, &format!("queue={name} no_ack")).unwrap();
        assert_eq!(copy.method["routing_key"].text(), q);
        assert_eq!(copy.text(), "hello");
        let listed = [&cc, &q].map(|n| Value::Text(n.as_bytes().to_vec())).to_vec();
        assert_eq!(copy.header("CC"), Some(&Value::List(listed)));
        assert_eq!(copy.header("BCC"), None, "who got a blind copy stays hidden");
        assert_eq!(copy.header("other"), Some(&Value::Int('I', 1)));
    }
}

#[test]
fn properties_come_back_as_they_were_sent() {
    let (mut c, q) = with_queue("");
    let properties = "content_type=text/plain content_encoding=utf-8 \
        headers=(b=b:-5,s=s:-300,I=-70000,l=l:-5000000000,d=d:1.5,t=true,S=text,V=void,\
        T=T:1700000000,A=[1,two,(three=3)],F=(inner=(deep=[1]))) delivery_mode=1 \
        priority=3 correlation_id=c1 reply_to=somewhere message_id=m1 \
        timestamp=l:1700000001 type=greeting user_id=guest app_id=app cluster_id=k";
    c.publish(1, &format!("routing_key={q}"), properties, b"hello");
    let got = c.get(1, &format!("queue={q} no_ack")).unwrap();
    let sent = support::notation::encode_header(60, 5, properties);
    let (_, expected) = support::notation::decode_header(&sent);
    assert_eq!(got.properties, expected);
}

// ---- routing ----

#[test]
fn alternate_exchange_takes_what_has_no_route() {
    let (mut c, q) = with_queue("");
    let (x, spare, last) = (unique("x"), unique("spare"), unique("last"));
    c.call(1, &format!("exchange.declare exchange={last} type=fanout auto_delete"));
    c.call(
        1,
        &format!(
            "exchange.declare exchange={spare} type=direct arguments=(alternate-exchange={last})"
        ),
    );
    c.call(
        1,
        &format!(
            "exchange.declare exchange={x} type=direct arguments=(alternate-exchange={spare})"
        ),
    );
    c.call(1, &format!("queue.bind queue={q} exchange={last}"));
    c.publish(1, &format!("exchange={x} routing_key=k mandatory"), "", b"saved");
    let got = c.get(1, &format!("queue={q} no_ack")).unwrap();
    assert_eq!((got.method["exchange"].text(), got.text()), (x.clone(), "saved".into()));
    let other = unique("q");
    c.declare(1, &format!("queue={other} exclusive"));
    c.call(1, &format!("queue.bind queue={other} exchange={x} routing_key=k"));
    c.publish(1, &format!("exchange={x} routing_key=k"), "", b"routed");
    assert_eq!(texts(&drain(&mut c, 1, &other)), ["routed"]);
    assert!(drain(&mut c, 1, &q).is_empty());
    for name in [&x, &spare] {
        c.call(1, &format!("exchange.delete exchange={name}"));
    }
}

#[test]
fn exchange_bindings_may_form_a_cycle() {
    let (mut c, q) = with_queue("");
    let names = [unique("x"), unique("y"), unique("z")];
    for name in &names {
        c.call(1, &format!("exchange.declare exchange={name} type=fanout"));
    }
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let (source, target) = (&names[from], &names[to]);
        c.call(1, &format!("exchange.bind destination={target} source={source}"));
    }
    for name in &names {
        c.call(1, &format!("queue.bind queue={q} exchange={name}"));
    }
    for name in &names {
        c.publish(1, &format!("exchange={name}"), "", name.as_bytes());
    }
    // Once each, although every message reaches the queue by three paths.
    assert_eq!(texts(&drain(&mut c, 1, &q)), names);
    c.call(1, &format!("exchange.unbind destination={} source={}", names[1], names[0]));
    for name in &names {
        c.call(1, &format!("exchange.delete exchange={name}"));
    }
}

#[test]
fn message_by_several_bindings_is_enqueued_once() {
    let (mut c, q) = with_queue("");
    for key in ["#", "*.b", "a.*", "a.b", "#.b.#"] {
        c.call(1, &format!("queue.bind queue={q} exchange=amq.topic routing_key={q}.{key}"));
    }
    c.publish(1, &format!("exchange=amq.topic routing_key={q}.a.b"), "", b"once");
    assert_eq!(texts(&drain(&mut c, 1, &q)), ["once"]);
}

#[test]
fn topic_words() {
    let (mut c, q) = with_queue("");
    let x = unique("x");
    c.call(1, &format!("exchange.declare exchange={x} type=topic auto_delete"));
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("a.*.c", &["a.b.c", "a..c"], &["a.c", "a.b.b.c", "a.b"]),
        ("a.#", &["a", "a.b", "a.b.c", "a."], &["", "b.a", "ab"]),
        ("#.c", &["c", "b.c", "a.b.c"], &["c.d", ""]),
        ("#", &["", "a", "a.b.c"], &[]),
        ("*", &["a", "b"], &["", "a.b"]),
        ("#.*", &["a", "a.b"], &[""]),
        ("*.#.x", &["a.x", "a.b.x"], &["x", "a.b"]),
        ("", &[""], &["a", "."]),
        ("A.b", &["A.b"], &["a.b"]),
    ];
    for (pattern, hits, misses) in cases {
        c.call(1, &format!("queue.bind queue={q} exchange={x} routing_key=\"{pattern}\""));
        for key in hits.iter().chain(*misses) {
            c.publish(1, &format!("exchange={x} routing_key=\"{key}\""), "", key.as_bytes());
        }
        assert_eq!(texts(&drain(&mut c, 1, &q)), *hits, "pattern {pattern}");
        // Kept alive by another binding, or the exchange would go with its last one.
        c.call(1, &format!("queue.bind queue={q} exchange={x} routing_key=keep.alive"));
        c.call(1, &format!("queue.unbind queue={q} exchange={x} routing_key=\"{pattern}\""));
    }
}

#[test]
fn headers_matching() {
    let (mut c, q) = with_queue("");
    let x = unique("x");
    c.call(1, &format!("exchange.declare exchange={x} type=headers"));
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("x-match=all,a=1,b=two", &["a=1,b=two", "a=1,b=two,c=3"], &["a=1", "a=1,b=2", ""]),
        ("a=1,b=two", &["a=1,b=two"], &["a=1"]),
        ("x-match=any,a=1,b=two", &["a=1", "b=two", "a=9,b=two"], &["a=2", ""]),
        ("x-match=all,a=1,x-b=2", &["a=1", "a=1,x-b=9"], &["x-b=2"]),
        ("x-match=all-with-x,a=1,x-b=2", &["a=1,x-b=2"], &["a=1"]),
        ("x-match=any-with-x,a=1,x-b=2", &["x-b=2", "a=1"], &["x-c=2"]),
        ("x-match=all,a=void", &["a=1", "a=other"], &["b=1"]),
        ("x-match=all,a=1", &["a=l:1", "a=b:1", "a=d:1"], &["a=S:1", "a=true"]),
        ("x-match=all", &["", "a=1"], &[]),
        ("x-match=any", &[], &["", "a=1"]),
    ];
    for (pattern, hits, misses) in cases {
        let arguments = format!("queue={q} exchange={x} arguments=({pattern})");
        c.call(1, &format!("queue.bind {arguments}"));
        for headers in hits.iter().chain(*misses) {
            let properties = format!("headers=({headers})");
            c.publish(1, &format!("exchange={x}"), &properties, headers.as_bytes());
        }
        assert_eq!(texts(&drain(&mut c, 1, &q)), *hits, "pattern {pattern}");
        c.call(1, &format!("queue.unbind {arguments}"));
    }
    c.call(1, &format!("exchange.delete exchange={x}"));
}

#[test]
fn binding_twice_is_one_binding() {
    let (mut c, q) = with_queue("");
    let bind = format!("queue={q} exchange=amq.direct routing_key={q}");
    c.call(1, &format!("queue.bind {bind}"));
    c.call(1, &format!("queue.bind {bind}"));
    // Another one, because its arguments differ.
    c.call(1, &format!("queue.bind {bind} arguments=(a=1)"));
    c.call(1, &format!("queue.unbind {bind}"));
    c.publish(1, &format!("exchange=amq.direct routing_key={q}"), "", b"by arguments");
    c.call(1, &format!("queue.unbind {bind} arguments=(a=1)"));
    c.publish(1, &format!("exchange=amq.direct routing_key={q}"), "", b"unbound");
    assert_eq!(texts(&drain(&mut c, 1, &q)), ["by arguments"]);
}

// ---- bounded queues ----

#[test]
fn full_queue_drops_its_head() {
    let (mut c, q) = with_queue("arguments=(x-max-length=3)");
    c.call(1, "confirm.select");
    put_numbered(&mut c, &q, 1..=5);
    assert!(c.confirmed_up_to(1, 5));
    assert_eq!(c.counts(1, &q), (3, 0));
    assert_eq!(texts(&drain(&mut c, 1, &q)), ["3", "4", "5"]);
}

#[test]
fn full_queue_drops_its_head_by_bytes() {
    let (mut c, q) = with_queue("arguments=(x-max-length-bytes=10)");
    for text in ["aaaa", "bbbb", "cc", "dddd"] {
        c.put(1, &q, text);
    }
    assert_eq!(texts(&drain(&mut c, 1, &q)), ["bbbb", "cc", "dddd"]);
    c.put(1, &q, "more than ten bytes");
    assert!(drain(&mut c, 1, &q).is_empty());
}

#[test]
fn full_queue_refuses_publishes() {
    let (mut c, q) = with_queue("arguments=(x-max-length=2,x-overflow=reject-publish)");
    c.open_channels(2..=2);
    c.call(2, "confirm.select");
    for n in 1..=4u64 {
        c.publish(2, &format!("routing_key={q}"), "", n.to_string().as_bytes());
        let due = if n <= 2 { "basic.ack" } else { "basic.nack" };
        c.expect(&format!("2 {due} delivery_tag=l:{n}"));
    }
    // Without confirms a refused message is dropped in silence.
    put_numbered(&mut c, &q, 5..=5);
    c.expect_nothing(1);
    assert_eq!(texts(&drain(&mut c, 1, &q)), ["1", "2"]);
    c.publish(2, &format!("routing_key={q}"), "", b"room again");
    c.expect("2 basic.ack delivery_tag=l:5");
}

#[test]
fn queue_of_length_zero_only_passes_messages_on() {
    let (mut c, q) = with_queue("arguments=(x-max-length=0)");
    put_numbered(&mut c, &q, 1..=3);
    assert!(drain(&mut c, 1, &q).is_empty());
    consume(&mut c, 1, &q, "no_ack");
    c.put(1, &q, "handed over");
    assert_eq!(c.delivery(1).text(), "handed over");
}

// ---- connections, channels, frames ----

#[test]
fn server_properties_list_what_is_served() {
    let mut c = Client::dial(broker());
    c.send_bytes(client::PROTOCOL_HEADER);
    let start = c.expect("0 connection.start");
    let properties = &start["server_properties"];
    for name in ["product", "version", "platform", "information", "cluster_name"] {
        assert!(!properties.entry(name).expect(name).text().is_empty());
    }
    let capabilities = properties.entry("capabilities").unwrap();
    for name in [
        "publisher_confirms",
        "exchange_exchange_bindings",
        "basic.nack",
        "consumer_cancel_notify",
        "connection.blocked",
        "consumer_priorities",
        "authentication_failure_close",
        "per_consumer_qos",
        "direct_reply_to",
    ] {
        assert_eq!(capabilities.entry(name), Some(&Value::Bool(true)), "{name}");
    }
    let mechanisms = start["mechanisms"].text();
    let mut offered: Vec<&str> = mechanisms.split(' ').collect();
    offered.sort_unstable();
    assert_eq!(offered, ["AMQPLAIN", "PLAIN"]);
}

#[test]
fn tune_proposes_what_rabbitmq_proposes() {
    let mut c = Client::dial(broker());
    c.log_in(broker(), &Handshake::default());
    c.expect("0 connection.tune channel_max=2047 frame_max=131072 heartbeat=60");
}

#[test]
fn silent_client_is_cut_off_and_the_server_sends_heartbeats() {
    let handshake = Handshake { heartbeat: 1, ..Handshake::default() };
    let mut c = Client::connect_with(broker(), &handshake);
    let begin = std::time::Instant::now();
    c.expect_eof();
    let silent = begin.elapsed();
    assert!(c.heartbeats >= 2, "{} heartbeats came", c.heartbeats);
    let seconds = silent.as_secs_f64();
    assert!((1.5..10.0).contains(&seconds), "cut off after {seconds} s");
}

#[test]
fn client_that_sends_heartbeats_stays() {
    let handshake = Handshake { heartbeat: 1, ..Handshake::default() };
    let mut c = Client::open_with(broker(), &handshake);
    // Four seconds: time itself is what this test is about.
    for _ in 0..8 {
        assert_eq!(c.poll_frame(Duration::from_millis(500)), None);
        c.frame(client::HEARTBEAT, 0, &[]);
    }
    c.expect_nothing(1);
}

#[test]
fn bodies_of_every_size() {
    let (mut c, q) = with_queue("");
    let sizes = [0, 1, 131_064, 131_065, 131_072, 262_128, 1 << 20, 10 << 20];
    for size in sizes {
        let body: Vec<u8> = (0..size).map(|i: u32| (i.wrapping_mul(31) >> 3) as u8).collect();
        c.publish(1, &format!("routing_key={q}"), "content_type=x", &body);
        let got = c.get(1, &format!("queue={q} no_ack")).unwrap();
        assert!(got.body == body, "{size} bytes came back as {} others", got.body.len());
        assert_eq!(got.properties["content_type"].text(), "x");
    }
    consume(&mut c, 1, &q, "no_ack");
    for size in sizes {
        c.publish(1, &format!("routing_key={q}"), "", &vec![7; size as usize]);
        assert_eq!(c.delivery(1).body.len(), size as usize);
    }
}

#[test]
fn small_frames_are_kept_small() {
    let handshake = Handshake { frame_max: Some(4096), ..Handshake::default() };
    let mut small = Client::open_with(broker(), &handshake);
    let q = unique("q");
    small.declare(1, &format!("queue={q} exclusive"));
    let mut big = Client::open(broker());
    let body = vec![5; 100_000];
    big.publish(1, &format!("routing_key={q}"), "", &body);
    wait_for_ready(&mut small, &q, 1);
    // The client checks the size of each frame that comes.
    assert_eq!(small.get(1, &format!("queue={q} no_ack")).unwrap().body, body);
}

#[test]
fn content_of_two_channels_may_interleave() {
    let (mut c, q) = with_queue("");
    c.open_channels(2..=2);
    let publish = support::notation::encode_method(&format!("basic.publish routing_key={q}"));
    let header = |size| support::notation::encode_header(60, size, "");
    c.frame(client::METHOD, 1, &publish);
    c.frame(client::METHOD, 2, &publish);
    c.frame(client::HEADER, 2, &header(6));
    c.frame(client::HEADER, 1, &header(9));
    c.frame(client::BODY, 1, b"one");
    c.frame(client::BODY, 2, b"two");
    c.frame(client::BODY, 1, b"one");
    c.frame(client::BODY, 2, b"two");
    c.frame(client::BODY, 1, b"one");
    wait_for_ready(&mut c, &q, 2);
    let mut got = texts(&drain(&mut c, 1, &q));
    got.sort();
    assert_eq!(got, ["oneoneone", "twotwo"]);
}

#[test]
fn empty_body_frames_are_allowed() {
    let (mut c, q) = with_queue("");
    let publish = support::notation::encode_method(&format!("basic.publish routing_key={q}"));
    c.frame(client::METHOD, 1, &publish);
    c.frame(client::HEADER, 1, &support::notation::encode_header(60, 4, ""));
    for piece in [&b""[..], b"ab", b"", b"cd"] {
        c.frame(client::BODY, 1, piece);
    }
    assert_eq!(texts(&drain(&mut c, 1, &q)), ["abcd"]);
}

#[test]
fn a_publish_may_come_byte_by_byte() {
    let (mut c, q) = with_queue("");
    let first = client::publish_bytes(4096, 1, &format!("routing_key={q}"), "type=t", b"hello");
    for byte in first {
        c.send_bytes(&[byte]);
    }
    let big = vec![9; 300_000];
    let second = client::publish_bytes(131_072, 1, &format!("routing_key={q}"), "", &big);
    for piece in second.chunks(1009) {
        c.send_bytes(piece);
    }
    let got = drain(&mut c, 1, &q);
    assert_eq!(got[0].text(), "hello");
    assert!(got[1].body == big);
}

#[test]
fn many_methods_in_one_segment_are_answered_in_order() {
    let mut c = Client::open(broker());
    let names: Vec<String> = (0..200).map(|_| unique("q")).collect();
    let frames = names.iter().map(|q| {
        let declare = format!("queue.declare queue={q} exclusive");
        client::frame(client::METHOD, 1, &support::notation::encode_method(&declare))
    });
    let bytes: Vec<u8> = frames.flatten().collect();
    c.send_bytes(&bytes);
    for q in &names {
        c.expect(&format!("1 queue.declare-ok queue={q}"));
    }
}

#[test]
fn long_queue_is_delivered_whole_and_in_order() {
    let (mut c, q) = with_queue("");
    let total = 50_000u32;
    let one = |n: u32| {
        client::publish_bytes(131_072, 1, &format!("routing_key={q}"), "", &n.to_be_bytes())
    };
    let bytes: Vec<u8> = (0..total).flat_map(one).collect();
    c.send_bytes(&bytes);
    settle_publishes(&mut c, 1);
    c.call(1, "basic.qos prefetch_count=1000");
    consume(&mut c, 1, &q, "");
    for n in 0..total {
        let d = c.delivery(1);
        assert_eq!(d.body, n.to_be_bytes());
        if n % 500 == 499 {
            c.send(1, &format!("basic.ack delivery_tag=l:{} multiple", d.tag()));
        }
    }
    wait_for_ready(&mut c, &q, 0);
}
