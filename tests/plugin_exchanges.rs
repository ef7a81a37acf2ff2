//! Exchanges of the types that people install plugins for, seen from a raw client.
//!
//! Owns what such an exchange promises end to end. With `AMQP_URI` in the environment the tests run
//! against that RabbitMQ, which needs its plugins rabbitmq_consistent_hash_exchange,
//! rabbitmq_random_exchange, rabbitmq_recent_history_exchange and rabbitmq_sharding; tests of what
//! does not come with RabbitMQ 3.10 skip themselves then.

mod support;

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use support::notation::Value;
use support::{Broker, Client, Delivery, unique, wait_until};

fn broker() -> &'static Broker {
    static BROKER: OnceLock<Broker> = OnceLock::new();
    BROKER.get_or_init(Broker::start)
}

/// A client with confirms on channel 1 and a count of what it has published there, and with a
/// channel 2 to consume on.
struct Publisher {
    client: Client,
    published: u64,
}

impl std::ops::Deref for Publisher {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl std::ops::DerefMut for Publisher {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Publisher {
    fn open() -> Self {
        let mut client = Client::open(broker());
        client.call(1, "confirm.select");
        client.call(2, "channel.open");
        Publisher { client, published: 0 }
    }

    /// Publishes and waits until the message is where it goes.
    fn put(&mut self, exchange: &str, fields: &str, properties: &str, text: &str) {
        let fields = format!("exchange={exchange} {fields}");
        self.client.publish(1, &fields, properties, text.as_bytes());
        self.published += 1;
        assert!(self.client.confirmed_after(1, self.published - 1, self.published));
    }

    /// An auto-delete exchange with these arguments.
    fn exchange(&mut self, kind: &str, arguments: &str) -> String {
        let name = unique("x");
        self.call(1, &declaration(&name, kind, arguments));
        name
    }

    fn queue(&mut self) -> String {
        let name = unique("q");
        self.declare(1, &format!("queue={name} exclusive"));
        name
    }

    fn bind(&mut self, exchange: &str, queue: &str, key: &str) {
        let bind = format!("queue.bind exchange={exchange} queue={queue} routing_key=\"{key}\"");
        self.call(1, &bind);
    }

    /// A queue that is bound to the exchange.
    fn bound_queue(&mut self, exchange: &str, key: &str) -> String {
        let queue = self.queue();
        self.bind(exchange, &queue, key);
        queue
    }

    fn ready(&mut self, queue: &str) -> i64 {
        self.counts(1, queue).0
    }

    fn take(&mut self, queue: &str) -> Vec<Delivery> {
        let fields = format!("queue={queue} no_ack");
        std::iter::from_fn(|| self.get(1, &fields)).collect()
    }

    fn texts(&mut self, queue: &str) -> Vec<String> {
        self.take(queue).iter().map(Delivery::text).collect()
    }

    /// Consumes on channel 2.
    fn consume(&mut self, queue: &str) {
        self.call(2, &format!("basic.consume queue={queue} no_ack"));
    }

    /// The mandatory message that was just published comes back, before its confirm.
    fn put_returned(&mut self, exchange: &str, properties: &str, text: &str) {
        let fields = format!("exchange={exchange} routing_key=k mandatory");
        self.client.publish(1, &fields, properties, text.as_bytes());
        self.published += 1;
        let returned = self.content(1, "basic.return");
        assert_eq!((returned.method["reply_code"].int(), returned.text().as_str()), (312, text));
        assert!(self.client.confirmed_after(1, self.published - 1, self.published));
    }
}

fn declaration(name: &str, kind: &str, arguments: &str) -> String {
    format!("exchange.declare exchange={name} type={kind} auto_delete arguments=({arguments})")
}

/// Whether a test has to be skipped because the reference has no such exchange.
fn is_missing(what: &str) -> bool {
    let missing = broker().is_rabbitmq();
    if missing {
        eprintln!("skipped: RabbitMQ 3.10 comes without {what}");
    }
    missing
}

/// The exchange is refused with this text.
#[track_caller]
fn refuse_declare(kind: &str, arguments: &str, text: &str) {
    let mut client = Client::open(broker());
    client.send(1, &declaration(&unique("x"), kind, arguments));
    client.expect_channel_close(1, 406, &format!("PRECONDITION_FAILED - {text}"), (40, 10));
}

/// The binding is refused with this text.
#[track_caller]
fn refuse_bind(kind: &str, key: &str, text: &str) {
    let mut publisher = Publisher::open();
    let exchange = publisher.exchange(kind, "");
    let queue = publisher.queue();
    let bind = format!("queue.bind exchange={exchange} queue={queue} routing_key=\"{key}\"");
    publisher.send(1, &bind);
    publisher.expect_channel_close(1, 406, &format!("PRECONDITION_FAILED - {text}"), (50, 20));
}

// ---- one of the bindings ----

/// Publishes 600 messages with numbers put into `fields` and `properties` for `#`, twice. Answers
/// where they went, having checked that each number went to one queue both times.
fn spread(
    publisher: &mut Publisher,
    exchange: &str,
    queues: &[String],
    (fields, properties): (&str, &str),
) -> Vec<usize> {
    for n in (0..600).chain(0..600) {
        let n = n.to_string();
        let fields = format!("exchange={exchange} {}", fields.replace('#', &n));
        let bytes = support::client::publish_bytes(
            publisher.frame_max,
            1,
            &fields,
            &properties.replace('#', &n),
            n.as_bytes(),
        );
        publisher.send_bytes(&bytes);
    }
    let before = publisher.published;
    publisher.published += 1200;
    let last = publisher.published;
    assert!(publisher.client.confirmed_after(1, before, last));
    let mut place = BTreeMap::new();
    let counts = queues.iter().enumerate().map(|(at, queue)| {
        let texts = publisher.texts(queue);
        for text in &texts {
            assert_eq!(*place.entry(text.clone()).or_insert(at), at, "{text} is in two queues");
        }
        texts.len()
    });
    let counts: Vec<usize> = counts.collect();
    assert_eq!(counts.iter().sum::<usize>(), 1200, "each message is in exactly one queue");
    counts
}

#[test]
fn consistent_hash_spreads_by_weight() {
    let mut p = Publisher::open();
    let exchange = p.exchange("x-consistent-hash", "");
    let queues = ["1", "1", "2"].map(|weight| p.bound_queue(&exchange, weight));
    let counts = spread(&mut p, &exchange, &queues, ("routing_key=k#", ""));
    for (count, expected) in counts.iter().zip([300, 300, 600]) {
        assert!(count.abs_diff(expected) < 150, "{counts:?}");
    }
}

#[test]
fn consistent_hash_takes_a_header_or_a_property() {
    let cases = [
        ("hash-header=h", "headers=(h=S:k#)"),
        ("hash-header=h", "headers=(h=#)"),
        ("hash-property=correlation_id", "correlation_id=k#"),
        ("hash-property=message_id", "message_id=k#"),
        ("hash-property=timestamp", "timestamp=#"),
    ];
    let mut p = Publisher::open();
    for (arguments, properties) in cases {
        let exchange = p.exchange("x-consistent-hash", arguments);
        let queues = ["1", "1", "1"].map(|weight| p.bound_queue(&exchange, weight));
        let counts = spread(&mut p, &exchange, &queues, ("routing_key=same", properties));
        assert!(counts.iter().all(|count| count.abs_diff(400) < 150), "{arguments}: {counts:?}");
    }
}

#[test]
fn consistent_hash_leads_to_exchanges_too() {
    let mut p = Publisher::open();
    let (exchange, inner) = (p.exchange("x-consistent-hash", ""), p.exchange("fanout", ""));
    p.call(1, &format!("exchange.bind destination={inner} source={exchange} routing_key=1"));
    let queues = ["a", "b"].map(|_| p.bound_queue(&inner, ""));
    p.put(&exchange, "routing_key=k", "", "one");
    assert!(queues.iter().all(|queue| p.texts(queue) == ["one"]));
}

#[test]
fn consistent_hash_refusals() {
    let kind = "x-consistent-hash";
    refuse_bind(kind, "abc", "The binding key must be an integer: <<\"abc\">>");
    refuse_bind(kind, "", "The binding key must be an integer: <<>>");
    refuse_bind(kind, "1.5", "The binding key must be an integer: <<\"1.5\">>");
    refuse_bind(kind, "0", "The binding key must be greater than 0");
    refuse_bind(kind, "-1", "The binding key must be greater than 0");
    let both = "hash-header=h,hash-property=message_id";
    refuse_declare(kind, both, "hash-header and hash-property are mutually exclusive");
    refuse_declare(kind, "hash-property=app_id", "Unsupported property: app_id");
}

#[test]
fn modulus_hash_goes_by_the_routing_key() {
    let mut p = Publisher::open();
    let exchange = p.exchange("x-modulus-hash", "");
    let queues = ["a", "b", "c"].map(|key| p.bound_queue(&exchange, key));
    let counts = spread(&mut p, &exchange, &queues, ("routing_key=k#", ""));
    assert!(counts.iter().all(|count| count.abs_diff(400) < 150), "{counts:?}");
}

#[test]
fn random_uses_all_bindings() {
    for kind in ["x-random", "x-local-random"] {
        if kind == "x-local-random" && is_missing(kind) {
            continue;
        }
        let mut p = Publisher::open();
        let exchange = p.exchange(kind, "");
        p.put_returned(&exchange, "", "nothing is bound");
        let queues = ["a", "b", "c"].map(|_| p.bound_queue(&exchange, ""));
        (0..150).for_each(|_| p.put(&exchange, "routing_key=k", "", ""));
        let counts = queues.map(|queue| p.ready(&queue));
        assert_eq!(counts.iter().sum::<i64>(), 150);
        assert!(counts.iter().all(|count| *count > 10), "{kind}: {counts:?}");
    }
}

#[test]
fn local_random_takes_queues_without_keys() {
    if is_missing("x-local-random") {
        return;
    }
    refuse_bind("x-local-random", "k", "Non empty binding 'k' key not permitted");
    let mut p = Publisher::open();
    let exchange = p.exchange("x-local-random", "");
    p.send(1, &format!("exchange.bind destination=amq.fanout source={exchange}"));
    p.expect_channel_close(1, 406, "PRECONDITION_FAILED - Destination not found", (40, 30));
    p.call(1, "channel.open");
    let queue = unique("q");
    p.declare(1, &format!("queue={queue} durable arguments=(x-queue-type=quorum)"));
    p.send(1, &format!("queue.bind queue={queue} exchange={exchange}"));
    let text = "Queue type rabbit_quorum_queue not valid for this exchange type";
    p.expect_channel_close(1, 406, &format!("PRECONDITION_FAILED - {text}"), (50, 20));
    p.call(1, "channel.open");
    p.call(1, &format!("queue.delete queue={queue}"));
}

// ---- recent history ----

#[test]
fn a_new_binding_gets_the_latest_messages() {
    let mut p = Publisher::open();
    let exchange = p.exchange("x-recent-history", "x-recent-history-length=3");
    let first = p.bound_queue(&exchange, "");
    (1..=5).for_each(|n| p.put(&exchange, &format!("routing_key=k{n}"), "", &n.to_string()));
    p.put(&exchange, "", "headers=(x-recent-history-no-store=true)", "unseen");
    assert_eq!(p.texts(&first), ["1", "2", "3", "4", "5", "unseen"]);
    let second = p.queue();
    p.bind(&exchange, &second, "any");
    wait_until("the latest messages", || p.ready(&second) == 3);
    let latest = p.take(&second);
    let keys: Vec<String> = latest.iter().map(|got| got.method["routing_key"].text()).collect();
    let texts: Vec<String> = latest.iter().map(Delivery::text).collect();
    assert_eq!((keys, texts), (vec_of(["k3", "k4", "k5"]), vec_of(["3", "4", "5"])));
    assert!(latest.iter().all(|got| !got.redelivered()));
    // The same binding again is no new one.
    p.bind(&exchange, &second, "any");
    p.put(&exchange, "", "", "6");
    assert_eq!(p.texts(&second), ["6"]);
    assert_eq!(p.texts(&first), ["6"]);
}

fn vec_of<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(str::to_owned).into()
}

#[test]
fn a_recent_history_keeps_what_nobody_got_and_any_size() {
    let mut p = Publisher::open();
    let exchange = p.exchange("x-recent-history", "");
    p.put_returned(&exchange, "", "unroutable");
    let large = "x".repeat(100_000);
    p.put(&exchange, "", "", &large);
    (0..19).for_each(|n| p.put(&exchange, "", "", &n.to_string()));
    let queue = p.bound_queue(&exchange, "");
    wait_until("20 messages, the default", || p.ready(&queue) == 20);
    let texts = p.texts(&queue);
    assert!(texts[0] == large && texts[19] == "18");
}

#[test]
fn a_bound_exchange_gets_the_latest_messages() {
    let mut p = Publisher::open();
    let (exchange, inner) = (p.exchange("x-recent-history", ""), p.exchange("direct", ""));
    let queue = p.bound_queue(&inner, "b");
    // RabbitMQ's plugin fails when a message leads to no queue.
    ["1", "2"].into_iter().for_each(|text| p.put(&exchange, "routing_key=b", "", text));
    p.call(1, &format!("exchange.bind destination={inner} source={exchange}"));
    wait_until("two messages", || p.ready(&queue) == 2);
    let mut texts = p.texts(&queue);
    if broker().is_rabbitmq() {
        // Its plugin sends the latest first to an exchange, though not to a queue.
        texts.reverse();
    }
    assert_eq!(texts, ["1", "2"]);
}

#[test]
fn recent_history_refusals() {
    for (value, shown) in [("0", "0"), ("-1", "-1"), ("many", "<<\"many\">>")] {
        let text = format!(
            "Invalid argument {shown}, 'x-recent-history-length' must be a positive integer"
        );
        let arguments = format!("x-recent-history-length={value}");
        refuse_declare("x-recent-history", &arguments, &text);
    }
}

// ---- delayed messages ----

/// An exchange that delays and routes like `kind`, with a queue that is bound by `k` and
/// consumed.
fn delayed(kind: &str) -> Option<(Publisher, String, String)> {
    if is_missing("x-delayed-message") {
        return None;
    }
    let mut p = Publisher::open();
    let exchange = p.exchange("x-delayed-message", &format!("x-delayed-type={kind}"));
    let queue = p.bound_queue(&exchange, "k");
    p.consume(&queue);
    Some((p, exchange, queue))
}

#[test]
fn delayed_messages_come_when_they_are_due() {
    let Some((mut p, exchange, _)) = delayed("topic") else { return };
    let begin = Instant::now();
    for (delay, text) in [("300", "c"), ("100", "a"), ("l:200", "b"), ("S:300", "d")] {
        let headers = format!("message_id=m headers=(other=true,x-delay={delay})");
        p.put(&exchange, "routing_key=k", &headers, text);
    }
    assert!(begin.elapsed() < Duration::from_millis(100), "confirms do not wait");
    for (text, due) in [("a", 100), ("b", 200), ("c", 300), ("d", 300)] {
        let got = p.delivery(2);
        assert_eq!(got.text(), text);
        assert!(begin.elapsed() >= Duration::from_millis(due), "{text} is early");
        assert_eq!(got.header("x-delay"), Some(&Value::Int('I', -(due as i64))));
        assert_eq!(got.header("other"), Some(&Value::Bool(true)));
        assert_eq!(got.properties["message_id"].text(), "m");
        assert_eq!(got.method["exchange"].text(), exchange);
    }
}

#[test]
fn messages_without_a_delay_go_at_once() {
    let Some((mut p, exchange, queue)) = delayed("direct") else { return };
    p.call(1, &format!("queue.purge queue={queue}"));
    for headers in ["", "headers=(x-delay=0)", "headers=(x-delay=-5)", "headers=(x-delay=soon)"] {
        p.put(&exchange, "routing_key=k mandatory", headers, headers);
        assert_eq!(p.delivery(2).text(), headers);
    }
    p.put_returned(&exchange, "headers=(x-delay=1)", "with mandatory, it comes back");
    assert_eq!(p.delivery(2).text(), "with mandatory, it comes back");
}

#[test]
fn delays_of_years_are_taken() {
    let Some((mut p, exchange, _)) = delayed("fanout") else { return };
    for delay in ["l:4294967296", "l:315360000000", "l:9223372036854775807"] {
        p.put(&exchange, "", &format!("headers=(x-delay={delay})"), "much later");
    }
    p.put(&exchange, "", "headers=(x-delay=20)", "soon");
    assert_eq!(p.delivery(2).text(), "soon");
    p.expect_nothing(2);
}

#[test]
fn waiting_messages_go_with_their_exchange() {
    let Some((mut p, exchange, queue)) = delayed("fanout") else { return };
    p.put(&exchange, "", "headers=(x-delay=100)", "lost");
    p.call(1, &format!("exchange.delete exchange={exchange}"));
    p.call(1, &declaration(&exchange, "x-delayed-message", "x-delayed-type=fanout"));
    p.bind(&exchange, &queue, "");
    p.put(&exchange, "", "headers=(x-delay=200)", "kept");
    assert_eq!(p.delivery(2).text(), "kept");
}

#[test]
fn bindings_count_when_the_delay_is_over() {
    let Some((mut p, exchange, queue)) = delayed("direct") else { return };
    let alternate = p.exchange("fanout", "");
    let caught = p.bound_queue(&alternate, "");
    let arguments = format!("x-delayed-type=direct,alternate-exchange={alternate}");
    let unbound = p.exchange("x-delayed-message", &arguments);
    p.put(&unbound, "routing_key=k", "headers=(x-delay=50)", "unroutable");
    p.put(&exchange, "routing_key=later", "headers=(x-delay=100)", "routed");
    p.bind(&exchange, &queue, "later");
    assert_eq!(p.delivery(2).text(), "routed");
    assert_eq!(p.texts(&caught), ["unroutable"], "once, when it was due");
}

#[test]
fn exchanges_lead_to_and_from_delayed_ones() {
    let Some((mut p, exchange, queue)) = delayed("direct") else { return };
    let (outer, inner) = (p.exchange("fanout", ""), p.exchange("fanout", ""));
    let at_once = p.bound_queue(&outer, "");
    p.call(1, &format!("exchange.bind destination={exchange} source={outer}"));
    p.call(1, &format!("exchange.bind destination={inner} source={exchange} routing_key=cc"));
    let behind = p.bound_queue(&inner, "");
    let headers = "headers=(x-delay=100,CC=[cc])";
    p.put(&outer, "routing_key=k", headers, "delayed");
    assert_eq!(p.texts(&at_once), ["delayed"]);
    assert_eq!(p.ready(&behind), 0);
    assert_eq!(p.delivery(2).text(), "delayed");
    assert_eq!(p.texts(&behind), ["delayed"], "its other routing key counts later, too");
    assert_eq!(p.ready(&queue), 0);
}

#[test]
fn dead_letters_are_delayed() {
    let Some((mut p, exchange, _)) = delayed("fanout") else { return };
    let source = unique("q");
    p.declare(
        1,
        &format!("queue={source} exclusive arguments=(x-dead-letter-exchange={exchange})"),
    );
    let begin = Instant::now();
    p.put("", &format!("routing_key={source}"), "headers=(x-delay=100)", "rejected");
    let got = p.get(1, &format!("queue={source}")).expect("it was routed at once");
    let tag = got.tag();
    p.send(1, &format!("basic.reject delivery_tag=l:{tag}"));
    assert_eq!(p.delivery(2).text(), "rejected");
    assert!(begin.elapsed() >= Duration::from_millis(100));
}

#[test]
fn transactions_delay_what_they_commit() {
    let Some((mut p, exchange, _)) = delayed("fanout") else { return };
    p.call(3, "channel.open");
    p.call(3, "tx.select");
    let fields = format!("exchange={exchange}");
    p.publish(3, &fields, "headers=(x-delay=10)", b"rolled back");
    p.call(3, "tx.rollback");
    p.publish(3, &fields, "headers=(x-delay=50)", b"committed");
    p.call(3, "tx.commit");
    assert_eq!(p.delivery(2).text(), "committed");
}

#[test]
fn many_messages_wait_in_order() {
    let Some((mut p, exchange, _)) = delayed("fanout") else { return };
    let count = 3000;
    let fields = format!("exchange={exchange}");
    for n in 0..count {
        let text = n.to_string();
        let (frame_max, headers) = (p.frame_max, "headers=(x-delay=500)");
        let bytes = support::client::publish_bytes(frame_max, 1, &fields, headers, text.as_bytes());
        p.send_bytes(&bytes);
    }
    // Some of them are due at the same time, which changes nothing.
    for n in 0..count {
        assert_eq!(p.delivery(2).text(), n.to_string());
    }
}

#[test]
fn delayed_refusals() {
    if is_missing("x-delayed-message") {
        return;
    }
    let text = "Invalid argument, 'x-delayed-type' must be an existing exchange type";
    refuse_declare("x-delayed-message", "", text);
    refuse_declare("x-delayed-message", "x-delayed-type=5", text);
    refuse_declare("x-delayed-message", "x-delayed-type=x-delayed-message", text);
    let unknown = "unknown exchange type 'fancy'";
    refuse_declare("x-delayed-message", "x-delayed-type=fancy", unknown);
}

// ---- deduplication ----

#[test]
fn duplicates_are_dropped_and_confirmed() {
    if is_missing("x-message-deduplication") {
        return;
    }
    let mut p = Publisher::open();
    let named = "x-message-deduplication=true,x-deduplication-header=id,x-cache-size=2";
    let cases = [
        ("x-message-deduplication", "x-cache-size=2", "x-deduplication-header"),
        ("direct", named, "id"),
        ("x-delayed-message", &format!("x-delayed-type=direct,{named}"), "id"),
    ];
    for (kind, arguments, header) in cases {
        let exchange = p.exchange(kind, arguments);
        let queue = p.bound_queue(&exchange, "k");
        for (n, value) in ["a", "a", "b", "a", "1", "l:1", "S:1", "a"].iter().enumerate() {
            let headers = format!("headers=({header}={value})");
            p.put(&exchange, "routing_key=k", &headers, &n.to_string());
        }
        p.put(&exchange, "routing_key=k", "", "without");
        // Two are remembered: the number 1 has pushed "a" out, the text "b".
        assert_eq!(p.texts(&queue), ["0", "2", "4", "6", "7", "without"], "{kind}");
        let headers = format!("headers=({header}=a)");
        p.put_returned(&exchange, &headers, "a duplicate leads nowhere");
    }
}

#[test]
fn duplicates_are_forgotten_in_time() {
    if is_missing("x-message-deduplication") {
        return;
    }
    let mut p = Publisher::open();
    let arguments = "x-cache-size=10,x-cache-ttl=3600000";
    let exchange = p.exchange("x-message-deduplication", arguments);
    let queue = p.bound_queue(&exchange, "");
    let mut seen = |headers: &str| {
        p.put(&exchange, "", &format!("headers=({headers})"), "");
        p.texts(&queue).is_empty()
    };
    assert!(!seen("x-deduplication-header=a,x-cache-ttl=30"));
    assert!(!seen("x-deduplication-header=b"));
    wait_until("the first to be forgotten", || !seen("x-deduplication-header=a"));
    assert!(seen("x-deduplication-header=b"));
}

#[test]
fn deduplication_refusals() {
    if is_missing("x-message-deduplication") {
        return;
    }
    let kind = "x-message-deduplication";
    let size = "Missing or invalid argument, 'x-cache-size' must be an integer greater than 0";
    refuse_declare(kind, "", size);
    refuse_declare(kind, "x-cache-size=0", size);
    refuse_declare("direct", "x-message-deduplication=true,x-cache-size=no", size);
    let ttl = "Invalid argument, 'x-cache-ttl' must be an integer greater than 0";
    refuse_declare(kind, "x-cache-size=5,x-cache-ttl=-1", ttl);
}
