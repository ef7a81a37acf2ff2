//! Waiting messages against a plain list of them, over random histories with restarts and crashes.
//!
//! The exchanges route like `x-recent-history` ones: their history is what they have released, in
//! its order.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::task::Context;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::broker::{Broker, Declaration, Memory, QueueCell, VhostMetadata};
use crate::codec::method::{AMQPValue, FieldTable};
use crate::codec::properties::{self, DELIVERY_MODE};
use crate::codec::table;
use crate::queue::{Body, Content};
use crate::routing::{Destination, ExchangeKind, ExchangeSpec, Routed};
use crate::store::{Change, MemoryEngine, Options, Outcome, Space, Store, SyncMode};

/// Exchanges that delay: two durable ones and one that is not.
const DELAYED: [(&str, bool); 3] = [("x", true), ("y", true), ("t", false)];
/// One that leads to all of them.
const FANOUT: &str = "f";

/// A broker with a store in memory.
struct Node {
    broker: Broker,
    drive: Drive,
    routed: Routed,
}

impl Node {
    fn start(engine: &MemoryEngine, sync: SyncMode, now: Millis) -> Self {
        let options = Options { sync, ..Options::default() };
        let store = Store::in_memory(engine, &options).expect("it reads");
        let store = Some(Arc::new(store));
        let broker = Broker::with_store(Arc::default(), u64::MAX, store, None);
        broker.put_vhost("/", VhostMetadata::default()).expect("a new vhost");
        let drive = Drive { now, ..Drive::default() };
        let mut node = Self { broker, drive, routed: Routed::default() };
        DELAYED.iter().for_each(|(name, durable)| node.declare(name, *durable));
        let fanout = ExchangeSpec::durable(ExchangeKind::Fanout);
        node.vhost().declare_exchange(FANOUT, fanout, &mut node.drive).expect("a new exchange");
        DELAYED.iter().for_each(|(name, _)| node.bind_to_fanout(name));
        node
    }

    fn restore(&mut self) {
        self.broker.restore_delayed(true, &mut self.drive).expect("it reads");
    }

    fn vhost(&self) -> Arc<Vhost> {
        self.broker.vhost("/").expect("it was added")
    }

    fn store(&self) -> &Store {
        self.broker.store().expect("it has one")
    }

    fn declare(&mut self, name: &str, durable: bool) {
        let mut arguments = FieldTable::default();
        arguments.insert("x-delayed-type".into(), AMQPValue::LongString("x-recent-history".into()));
        arguments.insert("x-recent-history-length".into(), AMQPValue::LongInt(i32::MAX));
        let spec =
            ExchangeSpec { durable, arguments, ..ExchangeSpec::durable(ExchangeKind::Delayed) };
        self.vhost().declare_exchange(name, spec, &mut self.drive).expect("a new exchange");
    }

    fn bind_to_fanout(&mut self, name: &str) {
        let (to, none) = (Destination::Exchange(name), FieldTable::default());
        self.vhost().bind(FANOUT, to, b"", &none, &mut self.drive).expect("both are there");
    }

    fn delete(&mut self, name: &str) {
        self.vhost().delete_exchange(name, false, &mut self.drive).expect("it is there");
    }

    fn publish(&mut self, exchange: &str, delay_ms: i32, persistent: bool, body: &str) {
        let mut headers = FieldTable::default();
        headers.insert("x-delay".into(), AMQPValue::LongInt(delay_ms));
        let len = (body.len() as u64).to_be_bytes();
        let plain = [&[0, 60, 0, 0][..], &len, &[0, 0]].concat();
        let mode = [if persistent { 2 } else { 1 }];
        let header = properties::with_value(&plain, DELIVERY_MODE, Some(&mode));
        let header = properties::with_headers(&header, Some(&table::encode(&headers)));
        let address = [&[exchange.len() as u8], exchange.as_bytes(), b"\x01k"].concat();
        let shared = bytes::Bytes::copy_from_slice(body.as_bytes());
        let body = match body.len() {
            0..crate::queue::SHARED_BODY_MIN => Body::Inline(&shared),
            _ => Body::Shared(&shared),
        };
        let content = Content { address: &address, header: &header, body };
        let keys: &[&[u8]] = &[b"k", b"cc"];
        let vhost = self.vhost();
        let queues = vhost.route(keys, &content, false, &mut self.drive, &mut self.routed);
        assert!(queues.expect("the exchange is there").is_empty());
    }

    /// Lets time go by, and does what is due then.
    fn pass(&mut self, ms: u64) {
        self.drive.now.0 += ms;
        while self.next_due().is_some_and(|at| at <= self.drive.now) {
            self.broker.tick(&mut self.drive);
            self.drive.finish();
        }
    }

    fn next_due(&self) -> Option<Millis> {
        let mut context = Context::from_waker(Waker::noop());
        match self.broker.poll_next_deadline(None, &mut context) {
            std::task::Poll::Ready(next) => next,
            std::task::Poll::Pending => None,
        }
    }

    /// What an exchange has released, oldest first.
    fn released(&self, exchange: &str) -> Vec<String> {
        let vhost = self.vhost();
        let topology = vhost.topology.read();
        let history = vhost.kept.history(topology.exchange(exchange).expect("declared").id());
        let body = |kept: &Arc<KeptMessage>| {
            assert_eq!(kept.keys(), [&b"k"[..], b"cc"]);
            String::from_utf8_lossy(&kept.message().body).into_owned()
        };
        history.iter().map(body).collect()
    }

    /// Waits until everything is durable that was handed over so far.
    fn settle(&self) {
        let key = b"the tests'".to_vec();
        let all = self.store().change(vec![Change { space: Space::Definitions, key, value: None }]);
        let (done, waited) = mpsc::channel();
        self.store().when_durable(
            all,
            Box::new(move |outcome| done.send(outcome).expect("it is waited for")),
        );
        assert_eq!(waited.recv(), Ok(Outcome::Durable));
    }

    /// The messages in the store: exchange, turn and body.
    fn entries(&self) -> Vec<(String, Turn, String)> {
        let entries = self.store().entries(Space::Delayed).expect("it reads");
        let read = |(key, value): &(Vec<u8>, Vec<u8>)| {
            let (vhost, exchange, turn) = entry::read_key(key).expect("a key");
            assert_eq!(vhost, "/");
            let (_, message) = entry::read_value(value).expect("a value");
            (exchange.to_owned(), turn, String::from_utf8_lossy(&message.body).into_owned())
        };
        entries.iter().map(read).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Publish {
        exchange: usize,
        delay_ms: i32,
        persistent: bool,
    },
    Pass {
        ms: u64,
    },
    /// Everything becomes durable.
    Settle,
    /// The exchange is deleted and declared again.
    Delete {
        exchange: usize,
    },
    /// With so many of the batches that were not synced.
    Crash {
        kept: usize,
    },
}

fn arb_step() -> impl Strategy<Value = Step> {
    // Many are due at the same time.
    let publish = (0..4_usize, (1..6_i32).prop_map(|n| 5 * n), any::<bool>());
    prop_oneof![
        10 => publish.prop_map(|(exchange, delay_ms, persistent)| {
            Step::Publish { exchange, delay_ms, persistent }
        }),
        5 => (1..4_u64).prop_map(|n| Step::Pass { ms: 5 * n }),
        2 => Just(Step::Settle),
        1 => (0..3_usize).prop_map(|exchange| Step::Delete { exchange }),
        2 => (0..4_usize).prop_map(|kept| Step::Crash { kept }),
    ]
}

#[derive(Clone, Debug, PartialEq)]
struct Expected {
    text: String,
    persistent: bool,
    /// It is certainly in the store.
    settled: bool,
}

/// What must wait and must have been released, by exchange.
#[derive(Default)]
struct Model {
    waiting: [BTreeMap<(u64, usize), Expected>; 3],
    released: [Vec<String>; 3],
    /// What is not in the store any more once that is told, and what may be there until then.
    ghosts: Vec<(usize, String)>,
    published: usize,
}

impl Model {
    fn pass(&mut self, now: u64) {
        for (at, waiting) in self.waiting.iter_mut().enumerate() {
            let later = waiting.split_off(&(now + 1, 0));
            for message in std::mem::replace(waiting, later).into_values() {
                self.ghosts.push((at, message.text.clone()));
                self.released[at].push(message.text);
            }
        }
    }

    fn settle(&mut self) {
        self.ghosts.clear();
        let waiting = self.waiting.iter_mut().flat_map(BTreeMap::values_mut);
        waiting.for_each(|message| message.settled = true);
    }

    /// Takes over what is in the store after a crash, having checked that it may be that.
    fn crash(&mut self, found: Vec<(String, Turn, String)>) {
        let mut restored: [BTreeMap<(u64, usize), Expected>; 3] = Default::default();
        for (exchange, turn, text) in found {
            let at = DELAYED.iter().position(|(name, _)| *name == exchange).expect("one of ours");
            let waited = self.waiting[at]
                .values()
                .any(|message| message.persistent && DELAYED[at].1 && message.text == text);
            assert!(waited || self.ghosts.contains(&(at, text.clone())), "{text} is back");
            // Later ones of the same time are behind those that were restored.
            let order = usize::try_from(turn.number).expect("a few messages");
            let message = Expected { text, persistent: true, settled: true };
            assert_eq!(restored[at].insert((turn.due.0, order), message), None);
        }
        for (at, waiting) in self.waiting.iter().enumerate() {
            let order = |of: &BTreeMap<(u64, usize), Expected>| {
                of.values().map(|message| message.text.clone()).collect::<Vec<_>>()
            };
            let restored = order(&restored[at]);
            for message in waiting.values() {
                let lasts = message.persistent && message.settled && DELAYED[at].1;
                assert!(!lasts || restored.contains(&message.text), "{} is lost", message.text);
            }
            let mut kept = order(waiting);
            kept.retain(|text| restored.contains(text));
            let mut restored = restored;
            restored.retain(|text| kept.contains(text));
            assert_eq!(restored, kept, "they are in the order in which they came");
        }
        *self = Self { waiting: restored, published: self.published, ..Self::default() };
    }
}

fn run(steps: Vec<Step>) {
    let mut engine = MemoryEngine::default();
    let mut node = Node::start(&engine, SyncMode::Always, Millis(1000));
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Publish { exchange, delay_ms, persistent } => {
                model.published += 1;
                let text = format!("{} {step:?}", model.published);
                let name = DELAYED.get(exchange).map_or(FANOUT, |(name, _)| name);
                node.publish(name, delay_ms, persistent, &text);
                let due = node.drive.now.0 + delay_ms as u64;
                let message = Expected { text, persistent, settled: false };
                for at in (0..3).filter(|at| exchange == 3 || *at == exchange) {
                    // Behind all others.
                    let order = usize::MAX / 2 + model.published;
                    model.waiting[at].insert((due, order), message.clone());
                }
            }
            Step::Pass { ms } => {
                node.pass(ms);
                model.pass(node.drive.now.0);
            }
            Step::Settle => {
                node.settle();
                model.settle();
            }
            Step::Delete { exchange } => {
                let (name, durable) = DELAYED[exchange];
                node.delete(name);
                node.declare(name, durable);
                node.bind_to_fanout(name);
                let gone = std::mem::take(&mut model.waiting[exchange]).into_values();
                model.ghosts.extend(gone.map(|message| (exchange, message.text)));
                model.released[exchange].clear();
            }
            Step::Crash { kept } => {
                engine = engine.after_crash(kept);
                let now = node.drive.now;
                node = Node::start(&engine, SyncMode::Always, now);
                model.crash(node.entries());
                node.restore();
            }
        }
        for (at, (name, _)) in DELAYED.iter().enumerate() {
            assert_eq!(node.released(name), model.released[at], "{name}");
            assert_eq!(node.vhost().messages_delayed(name), model.waiting[at].len(), "{name}");
        }
    }
    node.pass(1000);
    node.settle();
    assert_eq!(node.entries(), [], "all were released");
    DELAYED.iter().for_each(|(name, _)| node.delete(name));
    assert_eq!(node.broker.services.memory.used(), 0);
}

/// Runs are repeatable; `PROPTEST_CASES` and `PROPTEST_RNG_SEED` look further.
fn config() -> ProptestConfig {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 48;
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(0);
    }
    config
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_is_persistent_waits_on_after_a_crash(
        steps in prop::collection::vec(arb_step(), 1..40),
    ) {
        run(steps);
    }
}

#[test]
fn a_crash_in_the_middle_of_a_release_loses_nothing() {
    let engine = MemoryEngine::default();
    let mut node = Node::start(&engine, SyncMode::Os, Millis(1000));
    let declaration = Declaration { durable: true, ..Declaration::default() };
    let owner = crate::broker::ConnectionId(1);
    let queue: Arc<QueueCell> =
        node.vhost().declare_queue("q", owner, declaration, &mut node.drive).expect("a queue");
    let (to, none) = (Destination::Queue("q"), FieldTable::default());
    node.vhost().bind("x", to, b"", &none, &mut node.drive).expect("both are there");
    let count = 3 * RELEASED_MAX;
    // So large that the store begins to write while they are released.
    let text = "text".repeat(512);
    (0..count).for_each(|_| node.publish("x", 10, true, &text));
    node.settle();
    let before = engine.unsynced();
    node.pass(10);
    node.settle();
    assert_eq!((queue.counts().0 as usize, node.entries().len()), (count, 0));
    let batches = engine.unsynced() - before;
    assert!(batches > 3, "there are moments at which it may crash");
    for kept in 0..=batches {
        let left = engine.after_crash(before + kept);
        let store = Store::in_memory(&left, &Options::default()).expect("it reads");
        let waiting = store.entries(Space::Delayed).expect("it reads").len();
        let heads = store.heads().expect("it reads");
        let stored: u64 = heads.iter().flat_map(|(_, lanes)| lanes).map(|lane| lane.count).sum();
        assert!(waiting + stored as usize >= count, "{waiting} wait, {stored} are in the queue");
    }
}

#[test]
fn what_goes_with_an_exchange_while_it_is_released_is_deleted_once() {
    let mut node = Node::start(&MemoryEngine::default(), SyncMode::Always, Millis(1000));
    ["a", "b"].into_iter().for_each(|text| node.publish("x", 10, true, text));
    let vhost = node.vhost();
    let waiting = vhost.kept.waiting_at(vhost.topology.read().exchange("x").expect("declared"));
    {
        let mut state = waiting.state.lock();
        state.leaving = state.delayed.take_due(Millis(2000), 1);
    }
    assert_eq!(waiting.forget().len(), 2);
    node.settle();
    assert_eq!(node.entries(), []);
    assert!(waiting.state.lock().leaving.is_empty(), "nobody deletes them again");
}

#[test]
fn entries_without_an_exchange_are_deleted() {
    let engine = MemoryEngine::default();
    let mut node = Node::start(&engine, SyncMode::Always, Millis(1000));
    node.publish("x", 10, true, "kept");
    node.settle();
    let store = node.store();
    let entries = store.entries(Space::Delayed).expect("it reads");
    let [(key, value)] = &entries[..] else { panic!("one message waits") };
    let turn = Turn { due: Millis(5), number: 1 };
    let mut changes = vec![entry::change(b"not a key".to_vec(), Some(value.clone()))];
    for (vhost, exchange) in [("gone", "x"), ("/", "gone"), ("/", "t"), ("/", FANOUT)] {
        let entries =
            Entries::new(node.broker.store().expect("it has one").clone(), vhost, exchange);
        entries.put(turn, value.clone());
    }
    let damaged = [&key[..key.len() - 1], &[9]].concat();
    changes.push(entry::change(damaged, Some(value[..value.len() - 1].to_vec())));
    store.change(changes);
    node.settle();
    let mut node = Node::start(&engine.after_crash(0), SyncMode::Always, Millis(1000));
    assert_eq!(node.store().entries(Space::Delayed).expect("it reads").len(), 7);
    node.restore();
    node.settle();
    assert_eq!(node.store().entries(Space::Delayed).expect("it reads"), entries);
    node.pass(10);
    assert_eq!(node.released("x"), ["kept"]);
}

#[test]
fn what_comes_after_a_restart_is_behind_what_was_there() {
    let engine = MemoryEngine::default();
    let mut node = Node::start(&engine, SyncMode::Always, Millis(1000));
    node.publish("x", 5, true, "released");
    node.publish("x", 10, true, "a");
    node.pass(5);
    node.settle();
    let mut node = Node::start(&engine.after_crash(0), SyncMode::Always, Millis(1005));
    node.restore();
    node.publish("x", 5, true, "b");
    node.pass(5);
    assert_eq!(node.released("x"), ["a", "b"]);
}

#[test]
fn large_bodies_come_back_and_are_counted() {
    let engine = MemoryEngine::default();
    let mut node = Node::start(&engine, SyncMode::Always, Millis(1000));
    let large = "large".repeat(10_000);
    node.publish("x", 10, true, &large);
    node.settle();
    let mut node = Node::start(&engine.after_crash(0), SyncMode::Always, Millis(1000));
    node.restore();
    assert!(node.broker.services.memory.used() > large.len() as u64);
    node.pass(10);
    assert_eq!(node.released("x"), [large]);
    node.delete("x");
    assert_eq!(node.broker.services.memory.used(), 0);
}

#[test]
fn only_what_is_stored_is_waited_for() {
    let mut node = Node::start(&MemoryEngine::default(), SyncMode::Always, Millis(1000));
    let mut ticket_of = |exchange: &str, persistent| {
        node.publish(exchange, 10, persistent, "text");
        node.drive.take_ticket()
    };
    let nothing = crate::store::Ticket::default();
    assert_ne!(ticket_of("x", true), nothing);
    assert_eq!([ticket_of("x", false), ticket_of("t", true)], [nothing; 2]);
}

#[test]
fn what_is_due_comes_out_in_order() {
    let memory = Arc::new(Memory::new(u64::MAX, 0));
    let mut delayed = Delayed::default();
    assert_eq!(delayed.next_due(), None);
    for (due, text) in [(30, "d"), (10, "a"), (20, "b"), (20, "c"), (u64::MAX, "never")] {
        let body = Body::Inline(text.as_bytes());
        let content = Content { address: b"\x01x\x01k", header: b"", body };
        delayed.push(Millis(due), Arc::new(KeptMessage::new(&content, &[b"k"], &memory)));
    }
    assert_eq!((delayed.len(), delayed.next_due()), (5, Some(Millis(10))));
    assert!(memory.used() > 5 * 100);
    let mut take = |now, max| {
        let due = delayed.take_due(Millis(now), max);
        let texts = due.iter().map(|(_, kept)| String::from_utf8_lossy(&kept.message().body));
        texts.collect::<String>()
    };
    assert_eq!(take(9, 10), "");
    assert_eq!(take(25, 2), "ab");
    assert_eq!(take(25, 2), "c");
    assert_eq!(take(u64::MAX - 1, 10), "d");
    assert_eq!((delayed.len(), delayed.next_due()), (1, Some(Millis(u64::MAX))));
    drop(delayed);
    assert_eq!(memory.used(), 0);
}
