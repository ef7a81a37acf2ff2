//! Cases of the exchange types that people install plugins for.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn spec<const N: usize>(name: &str, entries: [(&str, AMQPValue); N]) -> ExchangeSpec {
    let kind = ExchangeKind::parse(name).unwrap();
    ExchangeSpec { arguments: table_of(entries), ..transient(kind) }
}

/// A vhost with queues `q1` to `q9` and this exchange `x`.
fn with_exchange<const N: usize>(name: &str, entries: [(&str, AMQPValue); N]) -> Topology {
    let mut topology = vhost();
    assert_eq!(topology.declare_exchange("x", spec(name, entries)), Ok(true));
    topology
}

fn declare_refusal<const N: usize>(name: &str, entries: [(&str, AMQPValue); N]) -> String {
    refusal(vhost().declare_exchange("x", spec(name, entries)))
}

fn bind_refusal(topology: &mut Topology, key: &str) -> String {
    refusal(topology.bind("x", Destination::Queue("q1"), key.as_bytes(), &none()))
}

fn bind_queues(topology: &mut Topology, queues: impl Iterator<Item = u64>, key: &str) {
    for queue in queues {
        bind_queue(topology, "x", &format!("q{queue}"), key);
    }
}

/// The one queue that each of these routing keys leads to.
fn chosen(topology: &Topology, keys: std::ops::Range<u32>) -> BTreeMap<u32, u64> {
    keys.map(|key| {
        let queues = route(topology, "x", &format!("key-{key}"));
        assert_eq!(queues.len(), 1, "each message goes to exactly one queue");
        (key, queues[0])
    })
    .collect()
}

fn count(chosen: &BTreeMap<u32, u64>, queue: u64) -> usize {
    chosen.values().filter(|chosen| **chosen == queue).count()
}

#[test]
fn consistent_hashing_follows_weights() {
    let mut topology = with_exchange("x-consistent-hash", []);
    assert_eq!(route(&topology, "x", "k"), [] as [u64; 0]);
    for (queue, weight) in [("q1", "1"), ("q2", "2"), ("q3", "+5")] {
        bind_queue(&mut topology, "x", queue, weight);
    }
    let all = chosen(&topology, 0..8000);
    for (queue, expected) in [(1, 1000), (2, 2000), (3, 5000)] {
        let count = count(&all, queue);
        assert!(count.abs_diff(expected) < expected / 8, "{count} for weight of {expected}");
    }
}

#[test]
fn consistent_hashing_moves_only_a_share() {
    let mut topology = with_exchange("x-consistent-hash", []);
    bind_queues(&mut topology, 1..=4, "10");
    let before = chosen(&topology, 0..4000);
    bind_queue(&mut topology, "x", "q5", "10");
    let with_fifth = chosen(&topology, 0..4000);
    let moved = before.iter().filter(|(key, queue)| with_fifth[key] != **queue);
    assert_eq!(moved.clone().count(), count(&with_fifth, 5), "they move to the new queue only");
    assert!(moved.count().abs_diff(800) < 120);
    topology.unbind("x", Destination::Queue("q2"), b"10", &none()).unwrap();
    let without_second = chosen(&topology, 0..4000);
    for (key, queue) in with_fifth {
        assert!(queue == 2 || without_second[&key] == queue, "others than the second's stay");
    }
    topology.check_invariants();
}

#[test]
fn consistent_hashing_is_the_same_whatever_the_order_of_binding() {
    let (mut one, mut other) =
        (with_exchange("x-consistent-hash", []), with_exchange("x-consistent-hash", []));
    bind_queues(&mut one, 1..=5, "1");
    bind_queues(&mut other, (1..=5).rev(), "1");
    assert_eq!(chosen(&one, 0..500), chosen(&other, 0..500));
    // Where messages go must not change with a new version of the broker either.
    assert_eq!(chosen(&one, 0..8).into_values().collect::<Vec<_>>(), [4, 3, 4, 3, 5, 1, 4, 3]);
}

#[test]
fn what_is_hashed_can_be_chosen() {
    let of_header = |value: AMQPValue| with_headers(&table_of([("h", value)]));
    let short = |flag: u16, text: &str| {
        [&flag.to_be_bytes()[..], &[text.len() as u8], text.as_bytes()].concat()
    };
    let timestamp = |at: u64| [&0x0040_u16.to_be_bytes()[..], &at.to_be_bytes()].concat();
    type Make<'a> = &'a dyn Fn(u32) -> Vec<u8>;
    let cases: [(&str, &str, Make<'_>); 5] = [
        ("hash-header", "h", &|n| of_header(text(&n.to_string()))),
        ("x-hash-on", "h", &|n| of_header(AMQPValue::LongInt(n as i32))),
        ("hash-property", "correlation_id", &|n| short(0x0400, &n.to_string())),
        ("hash-property", "message_id", &|n| short(0x0080, &n.to_string())),
        ("hash-property", "timestamp", &|n| timestamp(u64::from(n))),
    ];
    for (argument, value, properties) in cases {
        let mut topology = with_exchange("x-consistent-hash", [(argument, text(value))]);
        bind_queues(&mut topology, 1..=4, "1");
        let mut routed = Routed::default();
        let mut find = |key: &[u8], properties: &[u8]| {
            route_with(&topology, b"x", &[key], properties, &mut routed).unwrap();
            assert!(routed.depends_on_message);
            routed.queues[0].0
        };
        let found: Vec<u64> = (0..400).map(|n| find(b"k", &properties(n))).collect();
        for queue in 1..=4 {
            let count = found.iter().filter(|found| **found == queue).count();
            assert!(count.abs_diff(100) < 40, "{argument}={value}: {count}");
        }
        assert_eq!(find(b"other", &properties(7)), found[7], "the key has no say");
        assert_eq!(find(b"a", b""), find(b"b", b""), "what lacks it goes to one queue");
    }
}

#[test]
fn only_what_depends_on_more_than_the_key_is_noted() {
    for (name, depends) in [
        ("x-consistent-hash", false),
        ("x-modulus-hash", false),
        ("x-random", true),
        ("x-local-random", true),
        ("x-recent-history", true),
    ] {
        let mut topology = with_exchange(name, []);
        let key = if name == "x-consistent-hash" { "1" } else { "" };
        bind_queue(&mut topology, "x", "q1", key);
        let mut routed = Routed::default();
        route_with(&topology, b"x", &[b"k"], b"", &mut routed).unwrap();
        assert_eq!((routed.depends_on_message, routed.queues.len()), (depends, 1), "{name}");
    }
}

#[test]
fn modulus_hashing_chooses_by_key() {
    let mut topology = with_exchange("x-modulus-hash", []);
    assert_eq!(route(&topology, "x", "k"), [] as [u64; 0]);
    bind_queues(&mut topology, 1..=4, "any");
    let all = chosen(&topology, 0..2000);
    assert_eq!(all, chosen(&topology, 0..2000));
    (1..=4).for_each(|queue| assert!(count(&all, queue).abs_diff(500) < 100));
}

#[test]
fn random_exchanges_use_all_bindings() {
    for name in ["x-random", "x-local-random"] {
        let mut topology = with_exchange(name, []);
        assert_eq!(route(&topology, "x", "k"), [] as [u64; 0]);
        bind_queues(&mut topology, 1..=3, "");
        let mut routed = Routed::default();
        let mut counts = BTreeMap::new();
        for _ in 0..3000 {
            route_with(&topology, b"x", &[b"k"], b"", &mut routed).unwrap();
            assert_eq!(routed.queues.len(), 1);
            *counts.entry(routed.queues[0].0).or_insert(0_u32) += 1;
        }
        assert!(counts.values().all(|count| count.abs_diff(1000) < 200), "{name}: {counts:?}");
        // Publishers of one message each do not all begin with the same queue.
        let firsts: BTreeSet<u64> = (0..64).flat_map(|_| route(&topology, "x", "k")).collect();
        assert_eq!(firsts.len(), 3);
    }
}

#[test]
fn bindings_are_refused_in_the_plugins_words() {
    let mut hash = with_exchange("x-consistent-hash", []);
    let prefix = "PRECONDITION_FAILED - The binding key must";
    let integer = |term: &str| format!("{prefix} be an integer: {term}");
    assert_eq!(bind_refusal(&mut hash, "abc"), integer("<<\"abc\">>"));
    assert_eq!(bind_refusal(&mut hash, ""), integer("<<>>"));
    assert_eq!(bind_refusal(&mut hash, "-"), integer("<<\"-\">>"));
    assert_eq!(bind_refusal(&mut hash, " 1"), integer("<<\" 1\">>"));
    for key in ["0", "-1", "+00"] {
        assert_eq!(bind_refusal(&mut hash, key), format!("{prefix} be greater than 0"));
    }
    let refused = bind_refusal(&mut hash, "18446744073709551616");
    assert_eq!(refused, format!("{prefix} not exceed 18446744073709551615"));
    let mut local = with_exchange("x-local-random", []);
    assert_eq!(
        bind_refusal(&mut local, "k"),
        "PRECONDITION_FAILED - Non empty binding 'k' key not permitted"
    );
    let to = Destination::Exchange("amq.fanout");
    let refused = refusal(local.bind("x", to, b"", &none()));
    assert_eq!(refused, "PRECONDITION_FAILED - Destination not found");
}

#[test]
fn declarations_are_refused_in_the_plugins_words() {
    let failed = |text: &str| format!("PRECONDITION_FAILED - {text}");
    let both = [("hash-header", text("h")), ("hash-property", text("message_id"))];
    assert_eq!(
        declare_refusal("x-consistent-hash", both),
        failed("hash-header and hash-property are mutually exclusive")
    );
    assert_eq!(
        declare_refusal("x-consistent-hash", [("hash-property", text("app_id"))]),
        failed("Unsupported property: app_id")
    );
    for (value, shown) in
        [(AMQPValue::LongInt(0), "0"), (AMQPValue::LongInt(-3), "-3"), (text("5"), "<<\"5\">>")]
    {
        assert_eq!(
            declare_refusal("x-recent-history", [("x-recent-history-length", value)]),
            failed(&format!(
                "Invalid argument {shown}, 'x-recent-history-length' must be a positive integer"
            ))
        );
    }
    let delayed = failed("Invalid argument, 'x-delayed-type' must be an existing exchange type");
    assert_eq!(declare_refusal("x-delayed-message", []), delayed);
    let own = [("x-delayed-type", text("x-delayed-message"))];
    assert_eq!(declare_refusal("x-delayed-message", own), delayed);
    assert_eq!(
        declare_refusal("x-delayed-message", [("x-delayed-type", text("fancy"))]),
        failed("unknown exchange type 'fancy'")
    );
    // What the delayed type checks is checked, too.
    let nested = [("x-delayed-type", text("x-consistent-hash")), ("hash-property", text("p"))];
    assert_eq!(declare_refusal("x-delayed-message", nested), failed("Unsupported property: p"));
    let size =
        failed("Missing or invalid argument, 'x-cache-size' must be an integer greater than 0");
    let dedup = "x-message-deduplication";
    assert_eq!(declare_refusal(dedup, []), size);
    assert_eq!(declare_refusal(dedup, [("x-cache-size", AMQPValue::LongInt(0))]), size);
    assert_eq!(declare_refusal(dedup, [("x-cache-size", text("some"))]), size);
    let ttl = [("x-cache-size", text("10")), ("x-cache-ttl", AMQPValue::LongInt(0))];
    assert_eq!(
        declare_refusal(dedup, ttl),
        failed("Invalid argument, 'x-cache-ttl' must be an integer greater than 0")
    );
    let kept = [("x-cache-size", text("10")), ("x-cache-persistence", text("tape"))];
    assert_eq!(
        declare_refusal(dedup, kept),
        failed("Invalid argument, 'x-cache-persistence' must be either 'disk' or 'memory'")
    );
    // As an argument of other types it is LavinMQ's, and asks for no size.
    let asked = (dedup, AMQPValue::Boolean(true));
    assert_eq!(declare_refusal("direct", [asked.clone(), ("x-cache-size", text("no"))]), size);
    assert_eq!(vhost().declare_exchange("x", spec("direct", [asked])), Ok(true));
}

/// The queues and what is kept of a message with these headers that came to `exchange`.
fn keep(topology: &Topology, exchange: &str, headers: &FieldTable) -> (Vec<u64>, Vec<Kept>) {
    let mut routed = Routed::default();
    let headers = with_headers(headers);
    route_with(topology, exchange.as_bytes(), &[b"k"], &headers, &mut routed).unwrap();
    assert!(routed.depends_on_message);
    (routed.queues.iter().map(|id| id.0).collect(), routed.kept)
}

fn id(topology: &Topology, exchange: &str) -> ExchangeId {
    topology.exchange(exchange).unwrap().id()
}

fn delay(value: AMQPValue) -> FieldTable {
    table_of([("x-delay", value)])
}

#[test]
fn a_delayed_message_stays_at_its_exchange() {
    let mut topology = with_exchange(
        "x-delayed-message",
        [("x-delayed-type", text("direct")), ("alternate-exchange", text("amq.fanout"))],
    );
    bind_queue(&mut topology, "x", "q1", "k");
    bind_queue(&mut topology, "amq.fanout", "q2", "");
    bind_exchange(&mut topology, "amq.direct", "x", "k");
    bind_queue(&mut topology, "amq.direct", "q3", "k");
    let exchange = id(&topology, "x");
    let waits = |ms| vec![Kept { exchange, keep: Keep::Delay { ms } }];
    for value in [AMQPValue::ShortShortUInt(200), AMQPValue::LongLongInt(200), text("200")] {
        let kept = keep(&topology, "x", &delay(value));
        assert_eq!(kept, (vec![], waits(200)), "not even to the alternate");
    }
    let month = 31 * 24 * 3_600_000 * 12;
    let kept = keep(&topology, "x", &delay(AMQPValue::LongLongInt(month)));
    assert_eq!(kept.1, waits(month as u64));
    assert_eq!(keep(&topology, "amq.direct", &delay(AMQPValue::LongInt(5))), (vec![3], waits(5)));
    for value in [AMQPValue::LongInt(-5), AMQPValue::LongInt(0), text("soon"), AMQPValue::Void] {
        assert_eq!(keep(&topology, "x", &delay(value)), (vec![1], vec![]));
    }
    assert_eq!(keep(&topology, "x", &none()), (vec![1], vec![]));
}

#[test]
fn a_released_message_goes_on_from_its_exchange() {
    let mut topology = with_exchange(
        "x-delayed-message",
        [("x-delayed-type", text("topic")), ("x-message-deduplication", AMQPValue::Boolean(true))],
    );
    bind_queue(&mut topology, "x", "q1", "k");
    bind_exchange(&mut topology, "x", "x", "k");
    let (exchange, mut routed) = (id(&topology, "x"), Routed::default());
    let headers = with_headers(&delay(AMQPValue::LongInt(5)));
    let message = Message { keys: &[b"k"], properties: Properties::new(&headers) };
    topology.route_released(exchange, &message, &mut |_| true, &mut routed);
    assert_eq!((&routed.queues[..], routed.kept.len()), (&[QueueId(1)][..], 0));
    topology.delete_exchange("x", false).unwrap();
    assert_eq!(topology.take_forgotten(), [exchange]);
    topology.declare_exchange("x", spec("fanout", [])).unwrap();
    bind_queue(&mut topology, "x", "q1", "");
    assert_ne!(id(&topology, "x"), exchange);
    topology.route_released(exchange, &message, &mut |_| false, &mut routed);
    assert!(routed.queues.is_empty(), "the exchange is gone");
}

#[test]
fn a_released_message_has_a_negative_delay() {
    let other = ("a", AMQPValue::Boolean(true));
    let table = |value| table::encode(&table_of([other.clone(), ("x-delay", value)]));
    let after = |value| without_delay(&table(value)).into_owned();
    assert_eq!(after(AMQPValue::ShortInt(5)), table(AMQPValue::LongInt(-5)));
    assert_eq!(after(text("5")), table(AMQPValue::LongInt(-5)));
    let long = 1_i64 << 40;
    assert_eq!(after(AMQPValue::LongLongInt(long)), table(AMQPValue::LongLongInt(-long)));
    assert_eq!(after(AMQPValue::LongInt(-5)), table(AMQPValue::LongInt(-5)));
}

#[test]
fn a_recent_history_notes_what_it_routes() {
    let mut topology =
        with_exchange("x-recent-history", [("x-recent-history-length", AMQPValue::LongInt(3))]);
    bind_queue(&mut topology, "x", "q1", "other");
    bind_exchange(&mut topology, "amq.fanout", "x", "");
    let kept = vec![Kept { exchange: id(&topology, "x"), keep: Keep::History { length: 3 } }];
    assert_eq!(keep(&topology, "x", &none()), (vec![1], kept.clone()), "it routes as fanout");
    assert_eq!(keep(&topology, "amq.fanout", &none()), (vec![1], kept.clone()));
    let delayed = delay(AMQPValue::LongInt(5));
    assert_eq!(keep(&topology, "x", &delayed), (vec![1], kept.clone()), "it delays nothing");
    let no_store = |value| table_of([("x-recent-history-no-store", value)]);
    assert_eq!(keep(&topology, "x", &no_store(AMQPValue::Boolean(true))), (vec![1], vec![]));
    assert_eq!(keep(&topology, "x", &no_store(AMQPValue::LongInt(1))), (vec![1], kept));
}

#[test]
fn duplicates_match_nothing() {
    let arguments = [
        ("x-cache-size", text("10")),
        ("x-cache-ttl", AMQPValue::LongInt(1000)),
        ("alternate-exchange", text("amq.fanout")),
    ];
    let mut topology = with_exchange("x-message-deduplication", arguments);
    bind_queue(&mut topology, "x", "q1", "");
    bind_queue(&mut topology, "amq.fanout", "q2", "");
    let mut asked = Vec::new();
    let mut find = |headers: FieldTable, seen: bool| {
        let headers = with_headers(&headers);
        let message = Message { keys: &[b"k"], properties: Properties::new(&headers) };
        let mut routed = Routed::default();
        let mut is_duplicate = |sighting: &Sighting<'_>| {
            asked.push((sighting.value.to_vec(), sighting.size, sighting.ttl_ms));
            seen
        };
        topology.route(b"x", &message, Origin::Client, &mut is_duplicate, &mut routed).unwrap();
        routed.queues[0].0
    };
    let header = "x-deduplication-header";
    assert_eq!(find(table_of([(header, text("a"))]), false), 1);
    assert_eq!(find(table_of([(header, text("a"))]), true), 2, "the alternate takes it");
    assert_eq!(find(none(), true), 1, "what has no value is no duplicate");
    let own_ttl = table_of([(header, text("b")), ("x-cache-ttl", AMQPValue::LongInt(7))]);
    assert_eq!(find(own_ttl, false), 1);
    let (a, b) = (b"a".to_vec(), b"b".to_vec());
    assert_eq!(asked, [(a.clone(), 10, Some(1000)), (a, 10, Some(1000)), (b, 10, Some(7))]);
}
