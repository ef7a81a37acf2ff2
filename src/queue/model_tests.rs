//! The queue against a naive reference, over random histories.
//!
//! Owns what is compared. A history of publishes, settlements, gets, subscriptions, cancels,
//! purges, grants, reopened gates, changed policies and time that goes by runs against a real
//! [`Queue`](super::Queue), driven as the broker drives it, and against a plain list of messages
//! (`reference`). After each command both must have delivered the same messages in the same order
//! to the same consumers, refused the same publishes, dead-lettered the same messages for the same
//! reasons, and count the same; the content of each delivery and dead letter is compared with what
//! was published. What is overdue, and when the queue wants to be looked at again, is held against
//! what is really due.
//!
//! A durable queue runs against the same reference, which is told what is in memory and what is
//! not, and against a plain store (`kept`) that takes in what the queue hands over. Memory is as
//! small as the history says, so that messages leave it and come back; groups are written late or
//! lost; and the broker dies, after which both go on with what the store has.
//!
//! Runs are repeatable: the seed is fixed, and a failure prints the shortest history found. To look
//! further than `cargo test` does:
//!
//! - `LEVERET_MODEL_CASES=100000` runs that many histories for each property;
//! - `PROPTEST_RNG_SEED=42` runs others, and the remaining `PROPTEST_` variables work as
//!   documented by proptest.

mod driver;
mod history;
mod kept;
mod reference;
mod storage;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::{DROPS_MAX, EXPIRIES_MAX, Kind, Overflow, Reason, Settings};
use crate::clock::Millis;
use driver::Driver;
use history::{
    ConsumerPick, DurableHistory, History, Payload, Pick, Settlement, Step, StoreStep,
    Subscription, arb_durable_history, arb_history,
};
use reference::Reference;

/// When histories begin; an even number (see [`History::with_credit_alone`]).
const START: Millis = Millis(1_000_000);

/// Histories for each property; takes a few seconds in a release build.
const CASES: u32 = 1000;

/// More loads in a row than any history needs.
const LOADS_MAX: usize = 2000;

/// A step whose deliveries and consumers are named: see [`Driver::resolve`].
#[derive(Clone, Debug)]
enum Command {
    Commit(Vec<Operation>),
    Subscribe(Subscription),
    Cancel(usize),
    Get {
        no_ack: bool,
    },
    Purge,
    Grant {
        consumer: usize,
        window: u32,
    },
    Reopen,
    Wait {
        ms: u64,
    },
    /// What is overdue is dealt with. `is_due`: the queue asked for it.
    Tick {
        overdue: Vec<usize>,
        is_due: bool,
    },
    Configure(Settings),
    /// Dead letters have arrived.
    Bury(Vec<usize>),
    /// Messages may have been taken into memory.
    Load,
    /// The broker has died and started again. What `commands` have led to since it was started
    /// before lasts: the messages with these numbers, which came back so often at least.
    Crash {
        commands: usize,
        stored: Vec<(usize, u32)>,
    },
}

/// What a batch does, one after the other.
#[derive(Clone, Copy, Debug)]
enum Operation {
    /// A delivery by its number, which need not be held any more.
    Settle(usize, Settlement),
    Publish(Payload),
}

/// All that can be seen of a command. Messages, consumers and deliveries have numbers, from 0 in
/// the order in which they came to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Outcome {
    deliveries: Vec<Delivered>,
    /// Messages that were refused.
    rejected: Vec<usize>,
    /// Consumers that used up their windows.
    exhausted: Vec<usize>,
    /// Messages to dead-letter.
    dead: Vec<(usize, Reason)>,
    /// The message that `basic.get` brought, how often it came back, and what settles it.
    got: Option<(usize, u32, Option<usize>)>,
    /// What `basic.get` is to bring is not in memory.
    is_absent: bool,
    purged: usize,
    counts: Counts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Delivered {
    consumer: usize,
    message: usize,
    returns: u32,
    /// What settles it; `None` when nothing needs to.
    delivery: Option<usize>,
    is_counted: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    ready: usize,
    unsettled: usize,
    consumers: usize,
    backlog_bytes: u64,
}

impl Outcome {
    /// Appends what a further command led to.
    fn append(&mut self, mut next: Self) {
        self.deliveries.append(&mut next.deliveries);
        self.rejected.append(&mut next.rejected);
        self.exhausted.append(&mut next.exhausted);
        self.dead.append(&mut next.dead);
        self.got = self.got.or(next.got);
        self.is_absent |= next.is_absent;
        self.purged += next.purged;
        self.counts = next.counts;
    }

    /// What left the queue, whoever received it.
    fn departures(&self) -> Vec<(usize, u32)> {
        self.deliveries.iter().map(|it| (it.message, it.returns)).collect()
    }
}

fn config() -> ProptestConfig {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    if let Ok(cases) = std::env::var("LEVERET_MODEL_CASES") {
        config.cases = cases.parse().expect("LEVERET_MODEL_CASES is a number");
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(0);
    }
    config
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_queue_does_what_a_plain_list_does(history in arb_history()) {
        run(&history);
    }

    #[test]
    fn a_durable_queue_does_too_and_survives_crashes(history in arb_durable_history()) {
        Pair::new(&history).run(&history);
    }

    /// Publishing message by message leads to the very same deliveries as publishing in batches,
    /// but for what [`History::with_batches_of_no_account`] leaves out.
    #[test]
    fn batches_of_publishes_change_nothing(history in arb_history()) {
        run_batched_and_single(&history.with_batches_of_no_account(), false);
    }

    /// Where each settlement is a batch of its own, the same messages leave in the same order and
    /// the same ones stay. Who receives them may differ, as credit comes back in another order.
    #[test]
    fn batches_of_settlements_move_no_message(history in arb_history()) {
        let history = history.with_batches_of_no_account().with_credit_alone();
        run_batched_and_single(&history, true);
    }
}

/// Runs a history against the reference, and settles and purges what is left.
fn run(history: &History) {
    let mut driver = Driver::new(history.settings.clone(), history.gate_limit, START);
    let mut reference = Reference::new(history.settings.clone(), history.gate_limit, START);
    let last = [Step::Purge, Step::SettleAll(Settlement::Done)];
    for step in history.steps.iter().chain(&last) {
        let Some(command) = driver.resolve(step) else { continue };
        let outcome = driver.apply(&command);
        assert_eq!(outcome, reference.apply(&command, &[]), "{command:?}");
        driver.check(|message| reference.holds(message));
        reference.check_deadline(driver.next_deadline(), &command);
    }
    driver.check_empty();
}

/// A queue that may have messages on the disk, and its reference.
struct Pair {
    driver: Driver,
    reference: Reference,
    counts: Counts,
}

impl Pair {
    fn new(durable: &DurableHistory) -> Self {
        let History { settings, gate_limit, .. } = &durable.history;
        let driver = Driver::with_disk(durable, START);
        let reference = if durable.is_durable { Reference::durable } else { Reference::new };
        let reference = reference(settings.clone(), *gate_limit, START);
        Self { driver, reference, counts: Counts::default() }
    }

    /// Runs a history, takes out or purges what is left, and starts again with nothing.
    fn run(mut self, durable: &DurableHistory) {
        durable.history.steps.iter().for_each(|step| self.step(step));
        if !durable.is_drained {
            self.step(&Step::Purge);
        }
        self.step(&Step::SettleAll(Settlement::Done));
        while self.counts.ready + self.counts.unsettled > 0 {
            let before = self.counts;
            self.load(true);
            self.step(&Step::Get { no_ack: true });
            self.step(&Step::SettleAll(Settlement::Done));
            assert!(before != self.counts, "nothing more can be taken out");
        }
        while self.driver.has_dead_letters() {
            self.step(&Step::Store(StoreStep::Bury(u8::MAX)));
        }
        self.driver.forget_fetched();
        self.driver.check_empty();
        if self.step_once(&Step::Store(StoreStep::Crash { lost: 0 })) {
            assert_eq!(self.counts, Counts::default());
            self.driver.check_empty();
        }
    }

    fn step(&mut self, step: &Step) {
        self.step_once(step);
        if self.driver.is_eager() {
            self.load(false);
        }
    }

    /// Loads until nothing is wanted.
    fn load(&mut self, at_once: bool) {
        let step = Step::Store(StoreStep::Load { at_once });
        for _ in 0..LOADS_MAX {
            if !self.step_once(&step) {
                return;
            }
        }
        panic!("what was loaded is wanted again and again");
    }

    /// Whether the step meant anything.
    fn step_once(&mut self, step: &Step) -> bool {
        let Some(command) = self.driver.resolve(step) else { return false };
        let reachable = self.driver.reachable();
        let outcome = self.driver.apply(&command);
        self.counts = outcome.counts;
        assert_eq!(outcome, self.reference.apply(&command, &reachable), "{command:?}");
        self.driver.check(|message| self.reference.holds(message));
        self.driver.check_storage(&self.reference);
        self.reference.check_deadline(self.driver.next_deadline(), &command);
        true
    }
}

/// Runs a history as it is, and with each publish in a batch of its own; with `settlements`, each
/// settlement too. Where more expires or is dropped than one drive may, others follow at once.
fn run_batched_and_single(history: &History, settlements: bool) {
    let mut batched = Driver::new(history.settings.clone(), history.gate_limit, START);
    let mut single = Driver::new(history.settings.clone(), history.gate_limit, START);
    for step in &history.steps {
        let Some(command) = batched.resolve(step) else { continue };
        let mut expected = batched.apply(&command);
        let mut parts = split(&command, settlements).into_iter();
        let mut outcome = single.apply(&parts.next().expect("at least one part"));
        parts.for_each(|part| outcome.append(single.apply(&part)));
        if !matches!(command, Command::Wait { .. }) {
            catch_up(&mut batched, &mut expected);
            catch_up(&mut single, &mut outcome);
        }
        if settlements {
            assert_eq!(outcome.departures(), expected.departures(), "{command:?}");
            assert_eq!(outcome.counts, expected.counts, "{command:?}");
            assert_eq!(outcome.rejected, expected.rejected, "{command:?}");
            outcome.dead.sort_unstable_by_key(|(message, _)| *message);
            expected.dead.sort_unstable_by_key(|(message, _)| *message);
            assert_eq!(outcome.dead, expected.dead, "{command:?}");
        } else {
            assert_eq!(outcome, expected, "{command:?}");
        }
    }
}

fn catch_up(driver: &mut Driver, outcome: &mut Outcome) {
    while driver.is_behind() {
        let command = driver.resolve(&Step::Tick).expect("it always means something");
        outcome.append(driver.apply(&command));
    }
}

/// A batch in parts: each publish for itself, and the settlements before, between and after them
/// as they are, or each for itself, too.
fn split(command: &Command, settlements: bool) -> Vec<Command> {
    let Command::Commit(operations) = command else { return vec![command.clone()] };
    let is_settlement = |operation: &Operation| matches!(operation, Operation::Settle(..));
    let stay = |a: &Operation, b: &Operation| !settlements && is_settlement(a) && is_settlement(b);
    let mut parts: Vec<Command> =
        operations.chunk_by(stay).map(|part| Command::Commit(part.to_vec())).collect();
    if parts.is_empty() {
        parts.push(command.clone());
    }
    parts
}

const GATED: Subscription = Subscription {
    no_ack: false,
    prefetch: 0,
    priority: 0,
    window: 1 << 20,
    is_gated: true,
    has_room: true,
    knows_cancel: true,
};

fn publish(count: usize) -> Step {
    publish_all(&vec![Payload::SMALL; count])
}

fn publish_all(payloads: &[Payload]) -> Step {
    Step::Commit { settles: Vec::new(), publishes: payloads.to_vec(), publishes_first: false }
}

/// Settles the oldest delivery.
fn settle_one() -> Step {
    let pick = Pick { at: 0, count: 1, settlement: Settlement::Done, stale: false, twice: false };
    Step::Commit { settles: vec![pick], publishes: Vec::new(), publishes_first: false }
}

/// Runs a history that does not need to be found by chance; answers who received what.
fn receivers(history: &History) -> Vec<(usize, usize)> {
    run(history);
    let mut driver = Driver::new(history.settings.clone(), history.gate_limit, START);
    let commands = |driver: &mut Driver, step| {
        let command = driver.resolve(step).expect("a step that means something");
        driver.apply(&command).deliveries
    };
    let deliveries = history.steps.iter().flat_map(|step| commands(&mut driver, step));
    deliveries.map(|it| (it.consumer, it.message)).collect()
}

/// A consumer that settled a message must not overtake those who were stopped before it.
#[test]
fn consumers_behind_a_shared_gate_take_turns() {
    let mut steps = vec![Step::Subscribe(GATED), Step::Subscribe(GATED), publish(4)];
    for _ in 0..3 {
        steps.extend([settle_one(), Step::Reopen]);
    }
    let history = History { settings: Settings::default(), gate_limit: 1, steps };
    assert_eq!(receivers(&history), [(0, 0), (1, 1), (0, 2), (1, 3)]);
}

/// A consumer whose window is used up in the middle of a batch has room for the rest of it.
#[test]
fn a_limit_costs_no_message_that_a_consumer_has_room_for() {
    let consumer = Subscription { no_ack: true, is_gated: false, window: 1, ..GATED };
    let settings = Settings { length_max: Some(1), ..Settings::default() };
    let steps = vec![Step::Subscribe(consumer), publish(4)];
    let history = History { settings, gate_limit: 0, steps };
    assert_eq!(receivers(&history), [(0, 0), (0, 1), (0, 2), (0, 3)]);
}

/// However many messages of high priority went while no other waited, the next one that does goes
/// after two of them at the latest.
#[test]
fn normal_messages_have_their_turn_after_any_number_of_high_priority() {
    let consumer = Subscription { is_gated: false, ..GATED };
    let high = Payload { priority: Some(5), ..Payload::SMALL };
    let cancel = Step::Cancel(ConsumerPick { at: 0, stale: false });
    for count in [3, 255, 256, 300] {
        let (subscribe, both) = (Step::Subscribe(consumer), [high, high, high, Payload::SMALL]);
        let steps = vec![
            subscribe.clone(),
            publish_all(&vec![high; count]),
            cancel.clone(),
            publish_all(&both),
            subscribe,
        ];
        let settings = Settings { kind: Kind::Quorum, ..Settings::default() };
        let history = History { settings, gate_limit: 0, steps };
        let order: Vec<usize> = receivers(&history).iter().map(|(_, message)| *message).collect();
        let normal = count + 3;
        let at = order.iter().position(|message| *message == normal).expect("it is delivered");
        assert!(at <= count + 2, "after {count}: {:?}", &order[count..]);
    }
}

/// Not all at once, but none of them is delivered meanwhile.
#[test]
fn a_long_backlog_expires_in_several_drives() {
    let consumer = Subscription { is_gated: false, ..GATED };
    let mortal = Payload { expiration_ms: Some(5), ..Payload::SMALL };
    let count = 3 * EXPIRIES_MAX + 1;
    let mut steps = vec![publish_all(&vec![mortal; count]), publish(1), Step::Wait { ms: 6 }];
    steps.push(Step::Subscribe(consumer));
    let mut history = History { settings: Settings::default(), gate_limit: 0, steps };
    assert_eq!(receivers(&history), [], "the first drive does not get that far");
    history.steps.extend([Step::Tick, Step::Tick, Step::Tick]);
    assert_eq!(receivers(&history), [(0, count)]);
}

/// A burst leaves a large table of deliveries, which is given back; its slots mean nothing then.
#[test]
fn slots_of_a_burst_never_come_again() {
    let consumer = Subscription { is_gated: false, ..GATED };
    let settle_all = Step::SettleAll(Settlement::Done);
    let pick = Pick { at: 0, count: 1, settlement: Settlement::Done, stale: true, twice: false };
    let stale = Step::Commit { settles: vec![pick], publishes: Vec::new(), publishes_first: false };
    let steps = vec![Step::Subscribe(consumer), publish(1100), settle_all, publish(1), stale];
    run(&History { settings: Settings::default(), gate_limit: 0, steps });
}

/// A limit that is lowered far below what waits takes effect in several drives.
#[test]
fn a_long_backlog_is_dropped_in_several_drives() {
    let policy =
        Settings { length_max: Some(1), overflow: Some(Overflow::DropHead), ..Settings::default() };
    let count = 3 * DROPS_MAX + 2;
    let mut steps = vec![publish(count), Step::Configure(policy)];
    steps.extend([Step::Tick, Step::Tick, Step::Tick]);
    steps.push(Step::Subscribe(Subscription { is_gated: false, ..GATED }));
    let history = History { settings: Settings::default(), gate_limit: 0, steps };
    assert_eq!(receivers(&history), [(0, count - 1)]);
}
