//! The queue against a naive reference, over random histories.
//!
//! Owns what is compared. A history of publishes, settlements, gets, subscriptions, cancels,
//! purges, grants and reopened gates runs against a real [`Queue`](super::Queue), driven as the
//! broker drives it, and against a plain list of messages (`reference`). After each command both
//! must have delivered the same messages in the same order to the same consumers, refused the same
//! publishes and count the same; the content of each delivery is compared with what was published.
//!
//! Runs are repeatable: the seed is fixed, and a failure prints the shortest history found. To look
//! further than `cargo test` does:
//!
//! - `LEVERET_MODEL_CASES=100000` runs that many histories for each property;
//! - `PROPTEST_RNG_SEED=42` runs others, and the remaining `PROPTEST_` variables work as
//!   documented by proptest.

mod driver;
mod history;
mod reference;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::Settings;
use driver::Driver;
use history::{History, Payload, Pick, Step, Subscription, arb_history};
use reference::Reference;

/// Histories for each property; takes a few seconds in a release build.
const CASES: u32 = 1500;

/// A step whose deliveries and consumers are named: see [`Driver::resolve`].
#[derive(Clone, Debug)]
enum Command {
    Commit {
        /// Deliveries by their number, and whether the message comes back.
        settled: Vec<(usize, bool)>,
        published: Vec<Payload>,
    },
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
    /// The message that `basic.get` brought, whether it is redelivered, and what settles it.
    got: Option<(usize, bool, Option<usize>)>,
    purged: usize,
    counts: Counts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Delivered {
    consumer: usize,
    message: usize,
    redelivered: bool,
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
        self.got = self.got.or(next.got);
        self.purged += next.purged;
        self.counts = next.counts;
    }

    /// What left the queue, whoever received it.
    fn departures(&self) -> Vec<(usize, bool)> {
        self.deliveries.iter().map(|it| (it.message, it.redelivered)).collect()
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

    /// Publishing message by message leads to the very same deliveries as publishing in batches.
    #[test]
    fn batches_of_publishes_change_nothing(history in arb_history()) {
        run_batched_and_single(&history.with_windows_left_alone(), false);
    }

    /// Where each settlement is a batch of its own, the same messages leave in the same order and
    /// the same ones stay. Who receives them may differ, as credit comes back in another order.
    #[test]
    fn batches_of_settlements_move_no_message(history in arb_history()) {
        run_batched_and_single(&history.with_windows_left_alone().with_credit_alone(), true);
    }
}

/// Runs a history against the reference, and settles and purges what is left.
fn run(history: &History) {
    let mut driver = Driver::new(history.settings.clone(), history.gate_limit);
    let mut reference = Reference::new(history.settings.clone(), history.gate_limit);
    let last = [Step::Purge, Step::SettleAll { requeue: false }];
    for step in history.steps.iter().chain(&last) {
        let Some(command) = driver.resolve(step) else { continue };
        let outcome = driver.apply(&command);
        assert_eq!(outcome, reference.apply(&command), "{command:?}");
        driver.check(|message| reference.holds(message));
    }
    driver.check_empty();
}

/// Runs a history as it is, and with each publish in a batch of its own; with `settlements`, each
/// settlement too.
fn run_batched_and_single(history: &History, settlements: bool) {
    let mut batched = Driver::new(history.settings.clone(), history.gate_limit);
    let mut single = Driver::new(history.settings.clone(), history.gate_limit);
    for step in &history.steps {
        let Some(command) = batched.resolve(step) else { continue };
        let expected = batched.apply(&command);
        let mut parts = split(&command, settlements).into_iter();
        let mut outcome = single.apply(&parts.next().expect("at least one part"));
        parts.for_each(|part| outcome.append(single.apply(&part)));
        if settlements {
            assert_eq!(outcome.departures(), expected.departures(), "{command:?}");
            assert_eq!(outcome.counts, expected.counts, "{command:?}");
            assert_eq!(outcome.rejected, expected.rejected, "{command:?}");
        } else {
            assert_eq!(outcome, expected, "{command:?}");
        }
    }
}

fn split(command: &Command, settlements: bool) -> Vec<Command> {
    let Command::Commit { settled, published } = command else { return vec![command.clone()] };
    let commit = |settled: &[(usize, bool)], published: &[Payload]| Command::Commit {
        settled: settled.to_vec(),
        published: published.to_vec(),
    };
    let size = if settlements { 1 } else { settled.len().max(1) };
    let mut parts: Vec<Command> = settled.chunks(size).map(|part| commit(part, &[])).collect();
    parts.extend(published.chunks(1).map(|part| commit(&[], part)));
    if parts.is_empty() {
        parts.push(commit(&[], &[]));
    }
    parts
}

const SMALL: Payload = Payload { body_len: 1, key_pad: 0, header_pad: 0 };

const GATED: Subscription = Subscription {
    no_ack: false,
    prefetch: 0,
    priority: 0,
    window: 1 << 20,
    is_gated: true,
    has_room: true,
};

fn publish(count: usize) -> Step {
    Step::Commit { settles: Vec::new(), publishes: vec![SMALL; count] }
}

/// Settles the oldest delivery.
fn settle_one(requeue: bool) -> Step {
    let pick = Pick { at: 0, count: 1, requeue, stale: false, twice: false };
    Step::Commit { settles: vec![pick], publishes: Vec::new() }
}

/// Runs a history that does not need to be found by chance; answers who received what.
fn receivers(history: &History) -> Vec<(usize, usize)> {
    run(history);
    let mut driver = Driver::new(history.settings.clone(), history.gate_limit);
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
        steps.extend([settle_one(false), Step::Reopen]);
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
