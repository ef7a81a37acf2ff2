//! Cases and properties of the whole topology.

use std::collections::BTreeSet;

use amq_protocol::types::AMQPValue;
use proptest::prelude::*;

use super::*;
use crate::codec::properties::{HEADERS, Properties};
use crate::codec::table;

mod plugins;

impl Topology {
    fn check_invariants(&self) {
        let mut listed = 0;
        for exchange in self.exchanges() {
            let slot = self.exchange_names[exchange.name().as_bytes()];
            for (at, id) in exchange.outgoing.iter().enumerate() {
                let binding = self.bindings.at(*id);
                assert_eq!((binding.source, binding.outgoing_at as usize), (slot, at));
                let identity =
                    Identity::new(slot, binding.target, &binding.key, &binding.arguments);
                assert_eq!(self.bindings.find(&identity), Some(*id));
                listed += 1;
            }
            for (at, id) in exchange.incoming.iter().enumerate() {
                let binding = self.bindings.at(*id);
                assert_eq!(binding.target, Target::Exchange(slot));
                assert_eq!(binding.incoming_at as usize, at);
            }
        }
        let incoming: usize = self.exchanges().map(|exchange| exchange.incoming.len()).sum();
        let to_queues: usize = self.queues.values().map(|end| end.incoming.len()).sum();
        assert_eq!(listed, self.bindings.iter().count());
        assert_eq!(listed, incoming + to_queues);
        assert_eq!(self.queues.len(), self.queue_names.len());
    }
}

fn table_of<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in entries {
        table.insert(key.into(), value);
    }
    table
}

fn none() -> FieldTable {
    FieldTable::default()
}

fn transient(kind: ExchangeKind) -> ExchangeSpec {
    ExchangeSpec { durable: false, ..ExchangeSpec::durable(kind) }
}

fn auto_delete(kind: ExchangeKind) -> ExchangeSpec {
    ExchangeSpec { auto_delete: true, ..transient(kind) }
}

fn with_alternate(alternate: &str) -> ExchangeSpec {
    let arguments =
        table_of([("alternate-exchange", AMQPValue::LongString(alternate.as_bytes().into()))]);
    ExchangeSpec { arguments, ..transient(ExchangeKind::Direct) }
}

/// Properties with these headers and no others, as they are on the wire.
fn with_headers(headers: &FieldTable) -> Vec<u8> {
    let table = table::encode(headers);
    let len = u32::try_from(table.len()).unwrap().to_be_bytes();
    [&HEADERS.to_be_bytes()[..], &len, &table].concat()
}

/// Routes a client's message with these properties, at exchanges that have seen nothing.
fn route_with(
    topology: &Topology,
    exchange: &[u8],
    keys: &[&[u8]],
    properties: &[u8],
    routed: &mut Routed,
) -> Result<(), RouteError> {
    let message = Message { keys, properties: Properties::new(properties) };
    topology.route(exchange, &message, Origin::Client, &mut |_| false, routed)
}

fn route(topology: &Topology, exchange: &str, key: &str) -> Vec<u64> {
    let mut routed = Routed::default();
    route_with(topology, exchange.as_bytes(), &[key.as_bytes()], b"", &mut routed).unwrap();
    routed.queues.iter().map(|id| id.0).collect()
}

/// A vhost with queues `q1` to `q9`.
fn vhost() -> Topology {
    let mut topology = Topology::new("/");
    (1..=9).for_each(|n| topology.add_queue(&format!("q{n}"), QueueId(n)));
    topology
}

fn bind_queue(topology: &mut Topology, source: &str, queue: &str, key: &str) -> bool {
    topology.bind(source, Destination::Queue(queue), key.as_bytes(), &none()).unwrap()
}

fn bind_exchange(topology: &mut Topology, source: &str, target: &str, key: &str) -> bool {
    topology.bind(source, Destination::Exchange(target), key.as_bytes(), &none()).unwrap()
}

fn names(removed: &Removed) -> Vec<&str> {
    let mut names: Vec<_> = removed.exchanges.iter().map(|gone| gone.0.as_str()).collect();
    names.sort_unstable();
    names
}

fn refusal<T: std::fmt::Debug>(result: Result<T, AmqpError>) -> String {
    result.unwrap_err().reply_text()
}

#[test]
fn the_default_exchange_knows_every_queue() {
    let mut topology = vhost();
    assert_eq!(route(&topology, "", "q3"), [3]);
    assert_eq!(route(&topology, "", "nothing"), [] as [u64; 0]);
    topology.remove_queue(QueueId(3));
    assert_eq!(route(&topology, "", "q3"), [] as [u64; 0]);
    topology.add_queue("q3", QueueId(33));
    topology.remove_queue(QueueId(3));
    assert_eq!(route(&topology, "", "q3"), [33]);
    assert_eq!(topology.bindings_from("").count(), 9);
    let to_q3: Vec<_> = topology.bindings_to(Destination::Queue("q3")).collect();
    assert_eq!((to_q3.len(), to_q3[0].source, to_q3[0].key), (1, "", &b"q3"[..]));
    topology.check_invariants();
}

#[test]
fn predeclared_exchanges_are_guarded() {
    let mut topology = vhost();
    let guarded = "ACCESS_REFUSED - operation not permitted on the default exchange";
    let direct = || ExchangeSpec::durable(ExchangeKind::Direct);
    let queue = Destination::Queue("q1");
    let default = Destination::Exchange("");
    assert_eq!(refusal(topology.declare_exchange("", direct())), guarded);
    assert_eq!(refusal(topology.check_exchange("").map(drop)), guarded);
    assert_eq!(refusal(topology.delete_exchange("", false)), guarded);
    assert_eq!(refusal(topology.bind("", queue, b"", &none())), guarded);
    assert_eq!(refusal(topology.bind("amq.direct", default, b"", &none())), guarded);
    assert_eq!(refusal(topology.unbind("missing", default, b"", &none())), guarded);
    assert_eq!(topology.declare_exchange("amq.direct", direct()), Ok(false));
    assert_eq!(
        refusal(topology.declare_exchange("amq.foo", direct())),
        "ACCESS_REFUSED - exchange name 'amq.foo' contains reserved prefix 'amq.*'"
    );
    for name in ["amq.topic", "amq.missing"] {
        assert_eq!(
            refusal(topology.delete_exchange(name, false)),
            format!(
                "ACCESS_REFUSED - deletion of system exchange '{name}' in vhost '/' not allowed"
            )
        );
    }
    assert_eq!(topology.exchanges().count(), 7);
    let mut routed = Routed::default();
    let internal =
        route_with(&topology, b"amq.rabbitmq.trace", &[b""], b"", &mut routed).unwrap_err();
    assert_eq!(
        internal.to_amqp(b"amq.rabbitmq.trace", "/").reply_text(),
        "ACCESS_REFUSED - cannot publish to internal exchange 'amq.rabbitmq.trace' in vhost '/'"
    );
    let trace = b"amq.rabbitmq.trace";
    let message = Message { keys: &[b"a"], properties: Properties::new(b"") };
    let found = topology.route(trace, &message, Origin::Broker, &mut |_| false, &mut routed);
    assert_eq!(found, Ok(()));
}

#[test]
fn missing_ends_are_named() {
    let mut topology = vhost();
    let not_found = |name: &str| format!("NOT_FOUND - no {name} in vhost '/'");
    let mut bind = |source, destination| {
        let bad = table_of([("x-match", AMQPValue::Boolean(true))]);
        refusal(topology.bind(source, destination, b"k", &bad))
    };
    assert_eq!(bind("x", Destination::Queue("q")), not_found("exchange 'x'"));
    assert_eq!(bind("amq.match", Destination::Queue("q")), not_found("queue 'q'"));
    assert_eq!(bind("x", Destination::Exchange("y")), not_found("exchange 'x'"));
    assert_eq!(bind("amq.match", Destination::Exchange("y")), not_found("exchange 'y'"));
    assert!(bind("amq.match", Destination::Queue("q1")).contains("Invalid x-match field type"));
    let unbound = Ok(Removed::default());
    assert_eq!(topology.unbind("x", Destination::Queue("q1"), b"", &none()), unbound);
    assert_eq!(topology.unbind("amq.topic", Destination::Queue("q"), b"", &none()), unbound);
    assert_eq!(topology.unbind("amq.topic", Destination::Queue("q1"), b"", &none()), unbound);
    assert_eq!(topology.delete_exchange("x", true), unbound);
    let mut routed = Routed::default();
    let missing = route_with(&topology, b"x", &[b""], b"", &mut routed).unwrap_err();
    assert_eq!(missing.to_amqp(b"x", "/").reply_text(), not_found("exchange 'x'"));
    assert_eq!(refusal(topology.check_exchange("x").map(drop)), not_found("exchange 'x'"));
}

#[test]
fn key_and_arguments_make_a_binding() {
    let mut topology = vhost();
    assert!(bind_queue(&mut topology, "amq.fanout", "q1", "a"));
    assert!(!bind_queue(&mut topology, "amq.fanout", "q1", "a"));
    assert!(bind_queue(&mut topology, "amq.fanout", "q1", "b"));
    let arguments = table_of([("n", AMQPValue::LongInt(1))]);
    let typed = table_of([("n", AMQPValue::LongLongInt(1))]);
    let queue = Destination::Queue("q1");
    assert_eq!(topology.bind("amq.fanout", queue, b"a", &arguments), Ok(true));
    assert_eq!(topology.bind("amq.fanout", queue, b"a", &typed), Ok(true));
    assert_eq!(topology.bindings_from("amq.fanout").count(), 4);
    assert_eq!(route(&topology, "amq.fanout", "z"), [1]);
    for (key, arguments) in [("a", &none()), ("a", &arguments), ("b", &none())] {
        topology.unbind("amq.fanout", queue, key.as_bytes(), arguments).unwrap();
        assert_eq!(route(&topology, "amq.fanout", "z"), [1]);
    }
    let removed = topology.unbind("amq.fanout", queue, b"a", &typed).unwrap();
    assert_eq!((removed.bindings.len(), removed.bindings[0].to_queue), (1, true));
    assert_eq!(removed.bindings[0].arguments, typed);
    assert_eq!(route(&topology, "amq.fanout", "z"), [] as [u64; 0]);
    topology.check_invariants();
}

#[test]
fn alternates_take_what_matches_nothing() {
    let mut topology = vhost();
    topology.declare_exchange("x", with_alternate("later")).unwrap();
    bind_queue(&mut topology, "x", "q1", "a");
    assert_eq!(route(&topology, "x", "b"), [] as [u64; 0]);
    topology.declare_exchange("later", with_alternate("last")).unwrap();
    topology.declare_exchange("last", with_alternate("x")).unwrap();
    assert_eq!(route(&topology, "x", "b"), [] as [u64; 0]);
    bind_queue(&mut topology, "last", "q2", "b");
    assert_eq!(route(&topology, "x", "a"), [1]);
    assert_eq!(route(&topology, "x", "b"), [2]);
    let mut routed = Routed::default();
    let keys: [&[u8]; 2] = [b"a", b"b"];
    route_with(&topology, b"x", &keys, b"", &mut routed).unwrap();
    assert_eq!(routed.queues, [QueueId(1)]);
    topology.set_policy_alternate("amq.direct", Some("last".to_owned()));
    assert_eq!(route(&topology, "amq.direct", "b"), [2]);
    // An exchange that is bound, though to nothing further, has taken the message.
    topology.declare_exchange("empty", transient(ExchangeKind::Fanout)).unwrap();
    bind_exchange(&mut topology, "x", "empty", "b");
    assert_eq!(route(&topology, "x", "b"), [] as [u64; 0]);
    topology.declare_exchange("y", with_alternate("")).unwrap();
    assert_eq!(route(&topology, "y", "q1"), [] as [u64; 0]);
}

#[test]
fn circles_end_and_paths_merge() {
    let mut topology = vhost();
    for name in ["a", "b", "c"] {
        topology.declare_exchange(name, transient(ExchangeKind::Topic)).unwrap();
    }
    for (source, target) in [("a", "b"), ("b", "c"), ("c", "a"), ("a", "c"), ("a", "a")] {
        bind_exchange(&mut topology, source, target, "#");
    }
    for (source, queue) in [("a", "q2"), ("b", "q2"), ("c", "q1"), ("c", "q2")] {
        bind_queue(&mut topology, source, queue, "k.*");
    }
    assert_eq!(route(&topology, "b", "k.x"), [1, 2]);
    topology.delete_exchange("c", false).unwrap();
    topology.check_invariants();
    assert_eq!(route(&topology, "b", "k.x"), [2]);
    assert_eq!(topology.bindings_to(Destination::Queue("q2")).count(), 3);
    assert_eq!(topology.bindings_to(Destination::Exchange("a")).count(), 1);
}

#[test]
fn headers_are_noted_as_a_dependency() {
    let mut topology = vhost();
    bind_exchange(&mut topology, "amq.direct", "amq.headers", "h");
    let wanted = table_of([("a", AMQPValue::LongInt(1))]);
    topology.bind("amq.headers", Destination::Queue("q1"), b"", &wanted).unwrap();
    let mut routed = Routed::default();
    let headers = with_headers(&wanted);
    route_with(&topology, b"amq.direct", &[b"h"], &headers, &mut routed).unwrap();
    assert_eq!((routed.queues.as_slice(), routed.depends_on_message), (&[QueueId(1)][..], true));
    route_with(&topology, b"amq.direct", &[b"h"], b"", &mut routed).unwrap();
    assert_eq!((routed.queues.len(), routed.depends_on_message), (0, true));
    route_with(&topology, b"amq.direct", &[b"i"], &headers, &mut routed).unwrap();
    assert!(!routed.depends_on_message);
}

#[test]
fn auto_delete_exchanges_go_with_their_last_binding() {
    let mut topology = vhost();
    let declare = |topology: &mut Topology, name| {
        topology.declare_exchange(name, auto_delete(ExchangeKind::Direct)).unwrap();
    };
    for name in ["a", "b", "c"] {
        declare(&mut topology, name);
    }
    bind_exchange(&mut topology, "a", "b", "k");
    bind_exchange(&mut topology, "b", "c", "k");
    bind_queue(&mut topology, "c", "q1", "k");
    bind_queue(&mut topology, "c", "q2", "k");
    assert!(topology.remove_queue(QueueId(1)).exchanges.is_empty());
    assert_eq!(
        refusal(topology.delete_exchange("c", true)),
        "PRECONDITION_FAILED - exchange 'c' in vhost '/' in use"
    );
    let removed = topology.unbind("c", Destination::Queue("q2"), b"k", &none()).unwrap();
    assert_eq!((names(&removed), removed.bindings.len()), (vec!["a", "b", "c"], 3));
    topology.check_invariants();

    declare(&mut topology, "self");
    bind_exchange(&mut topology, "self", "self", "k");
    let itself = Destination::Exchange("self");
    assert_eq!(names(&topology.unbind("self", itself, b"k", &none()).unwrap()), ["self"]);

    // Deleting does not take what lies behind: only the way to what is deleted.
    declare(&mut topology, "front");
    declare(&mut topology, "middle");
    declare(&mut topology, "back");
    bind_exchange(&mut topology, "front", "middle", "k");
    bind_exchange(&mut topology, "middle", "back", "k");
    let removed = topology.delete_exchange("middle", false).unwrap();
    assert_eq!(names(&removed), ["front", "middle"]);
    assert!(!topology.exchange("back").unwrap().is_in_use());
    topology.check_invariants();
}

#[derive(Clone, Debug)]
enum Step {
    Declare(usize, ExchangeKind, bool),
    Delete(usize),
    Bind { source: usize, target: usize, key: &'static str, argument: u8 },
    Unbind { source: usize, target: usize, key: &'static str, argument: u8 },
    AddQueue(usize),
    RemoveQueue(usize),
}

const EXCHANGES: [&str; 4] = ["e0", "e1", "e2", "amq.topic"];
const QUEUES: [&str; 4] = ["q0", "q1", "q2", "q3"];
const KEYS: [&str; 6] = ["", "a", "a.b", "*", "#", "a.#"];

fn destination(target: usize) -> Destination<'static> {
    match QUEUES.get(target) {
        Some(name) => Destination::Queue(name),
        None => Destination::Exchange(EXCHANGES[target - QUEUES.len()]),
    }
}

fn arguments(argument: u8) -> FieldTable {
    match argument {
        0 => none(),
        n => table_of([("h", AMQPValue::ShortShortUInt(n))]),
    }
}

fn arb_step() -> impl Strategy<Value = Step> {
    let kind = proptest::sample::select(vec![
        ExchangeKind::Direct,
        ExchangeKind::Fanout,
        ExchangeKind::Topic,
        ExchangeKind::Headers,
    ]);
    let ends = || (0..4_usize, 0..8_usize, proptest::sample::select(&KEYS[..]), 0..3_u8);
    prop_oneof![
        4 => (0..3_usize, kind, any::<bool>())
            .prop_map(|step| Step::Declare(step.0, step.1, step.2)),
        1 => (0..3_usize).prop_map(Step::Delete),
        16 => ends().prop_map(|(source, target, key, argument)| {
            Step::Bind { source, target, key, argument }
        }),
        8 => ends().prop_map(|(source, target, key, argument)| {
            Step::Unbind { source, target, key, argument }
        }),
        4 => (0..4_usize).prop_map(Step::AddQueue),
        1 => (0..4_usize).prop_map(Step::RemoveQueue),
    ]
}

type ModelBinding = (&'static str, Destination<'static>, &'static str, u8);

/// The same rules over plain lists.
#[derive(Default)]
struct Model {
    exchanges: Vec<(&'static str, ExchangeKind, bool)>,
    queues: BTreeSet<&'static str>,
    bindings: Vec<ModelBinding>,
}

impl Model {
    fn has(&self, destination: Destination<'_>) -> bool {
        match destination {
            Destination::Queue(name) => self.queues.contains(name),
            Destination::Exchange(name) => self.kind(name).is_some(),
        }
    }

    fn kind(&self, name: &str) -> Option<ExchangeKind> {
        self.exchanges.iter().find(|exchange| exchange.0 == name).map(|exchange| exchange.1)
    }

    fn remove(&mut self, goes: impl Fn(&ModelBinding) -> bool) {
        let gone: Vec<_> = self.bindings.iter().copied().filter(&goes).collect();
        self.bindings.retain(|binding| !goes(binding));
        for (source, ..) in gone {
            let spent = !self.bindings.iter().any(|binding| binding.0 == source);
            if spent && self.exchanges.iter().any(|exchange| exchange.0 == source && exchange.2) {
                self.delete(source);
            }
        }
    }

    fn delete(&mut self, name: &str) {
        self.exchanges.retain(|exchange| exchange.0 != name);
        self.bindings.retain(|binding| binding.0 != name);
        self.remove(|binding| binding.1 == Destination::Exchange(name));
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Declare(n, kind, auto) => {
                if self.kind(EXCHANGES[n]).is_none() {
                    self.exchanges.push((EXCHANGES[n], kind, auto));
                }
            }
            Step::Delete(n) => self.delete(EXCHANGES[n]),
            Step::Bind { source, target, key, argument } => {
                let binding = (EXCHANGES[source], destination(target), key, argument);
                let exists = self.kind(binding.0).is_some() && self.has(binding.1);
                if exists && !self.bindings.contains(&binding) {
                    self.bindings.push(binding);
                }
            }
            Step::Unbind { source, target, key, argument } => {
                let gone = (EXCHANGES[source], destination(target), key, argument);
                self.remove(|binding| *binding == gone);
            }
            Step::AddQueue(n) => {
                self.queues.insert(QUEUES[n]);
            }
            Step::RemoveQueue(n) => {
                self.queues.remove(QUEUES[n]);
                self.remove(|binding| binding.1 == Destination::Queue(QUEUES[n]));
            }
        }
    }

    fn route(&self, exchange: &str, key: &str, header: u8) -> BTreeSet<&'static str> {
        let mut visited = vec![exchange];
        let mut queues = BTreeSet::new();
        let mut next = 0;
        while let Some(&exchange) = visited.get(next) {
            next += 1;
            for (source, destination, pattern, argument) in &self.bindings {
                let matched = match self.kind(exchange).unwrap() {
                    ExchangeKind::Direct => *pattern == key,
                    ExchangeKind::Fanout => true,
                    ExchangeKind::Topic => matches(pattern, key),
                    ExchangeKind::Headers => *argument == 0 || *argument == header,
                    other => unreachable!("{other:?} is not in the model"),
                };
                match destination {
                    _ if *source != exchange || !matched => {}
                    Destination::Queue(name) => drop(queues.insert(*name)),
                    Destination::Exchange(name) if visited.contains(name) => {}
                    Destination::Exchange(name) => visited.push(name),
                }
            }
        }
        queues
    }
}

/// The few patterns of `KEYS`, by hand.
fn matches(pattern: &str, key: &str) -> bool {
    match pattern {
        "#" => true,
        "*" => !key.is_empty() && !key.contains('.'),
        "a.#" => key == "a" || key.starts_with("a."),
        _ => pattern == key,
    }
}

fn perform(topology: &mut Topology, step: &Step, id: u64) {
    match *step {
        Step::Declare(n, kind, auto) => {
            let spec = ExchangeSpec { auto_delete: auto, ..transient(kind) };
            let _ = topology.declare_exchange(EXCHANGES[n], spec);
        }
        Step::Delete(n) => drop(topology.delete_exchange(EXCHANGES[n], false).unwrap()),
        Step::Bind { source, target, key, argument } => {
            let arguments = arguments(argument);
            let key = key.as_bytes();
            let _ = topology.bind(EXCHANGES[source], destination(target), key, &arguments);
        }
        Step::Unbind { source, target, key, argument } => {
            let arguments = arguments(argument);
            let key = key.as_bytes();
            topology.unbind(EXCHANGES[source], destination(target), key, &arguments).unwrap();
        }
        Step::AddQueue(n) => {
            if topology.queue(QUEUES[n].as_bytes()).is_none() {
                topology.add_queue(QUEUES[n], QueueId(id));
            }
        }
        Step::RemoveQueue(n) => {
            if let Some(id) = topology.queue(QUEUES[n].as_bytes()) {
                topology.remove_queue(id);
            }
        }
    }
}

proptest! {
    #[test]
    fn topology_agrees_with_a_list(steps in proptest::collection::vec(arb_step(), 1..60)) {
        let mut topology = Topology::new("/");
        let mut model = Model::default();
        model.exchanges.push(("amq.topic", ExchangeKind::Topic, false));
        let mut routed = Routed::default();
        for (id, step) in steps.iter().enumerate() {
            perform(&mut topology, step, id as u64);
            model.step(step);
            topology.check_invariants();
            prop_assert_eq!(topology.bindings.iter().count(), model.bindings.len());
            for &(source, destination, key, argument) in &model.bindings {
                let arguments = arguments(argument);
                prop_assert!(topology.is_bound(source, destination, key.as_bytes(), &arguments));
            }
            for exchange in EXCHANGES {
                let exists = topology.exchange(exchange).is_some();
                prop_assert_eq!(exists, model.kind(exchange).is_some());
            }
        }
        for (exchange, ..) in &model.exchanges {
            for (key, header) in [("", 0), ("a", 1), ("a.b", 2), ("b", 0), ("a.b.c", 1), ("*", 2)] {
                let headers = with_headers(&arguments(header));
                let (name, key) = (exchange.as_bytes(), key);
                route_with(&topology, name, &[key.as_bytes()], &headers, &mut routed).unwrap();
                let queues: BTreeSet<&str> = routed.queues.iter()
                    .map(|id| &*topology.queues[id].name)
                    .collect();
                prop_assert_eq!(queues.len(), routed.queues.len());
                prop_assert_eq!(queues, model.route(exchange, key, header));
            }
        }
    }
}
