//! What survives when the broker is killed, and when the power goes.
//!
//! Owns the list of scenarios and how many rounds of each belong to an ordinary test run. A round
//! starts the real program on a data directory, lets clients work over real sockets, kills it at
//! random moments, starts it again and compares what is there with what must be.
//!
//! A failure prints its seed and keeps the directory. `CRASH_SEED` repeats a round's choices,
//! though not the moments at which things happen; `CRASH_ROUNDS` sets the number of rounds of each
//! test. `scripts/soak` runs thousands.

mod support;

mod crash {
    pub mod channel;
    pub mod consumer;
    pub mod declarer;
    pub mod imports;
    pub mod ledger;
    pub mod message;
    pub mod node;
    pub mod power;
    pub mod publisher;
    pub mod random;
    pub mod round;
    pub mod scenarios;
    pub mod session;
    pub mod soak;
    pub mod transactions;
    pub mod unanswered;
    pub mod verdict;
    pub mod world;
}

use crash::ledger::{Kind, Violation};
use crash::node::{Failure, Node};
use crash::random::Random;
use crash::round::{self, Failed, Plan, Tally};
use crash::{declarer, imports, scenarios};

/// What a round runs.
#[derive(Clone, Copy)]
enum Course {
    Plan(fn(&mut Random) -> Plan),
    Own(fn(Failure, u64) -> Result<Tally, Failed>),
}

/// A scenario, and what it is called.
#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    course: Course,
}

impl Scenario {
    /// One round. The error says how to repeat it; a client or broker that fails otherwise is one.
    fn run(&self, failure: Failure, seed: u64) -> Result<Tally, String> {
        let run = || match self.course {
            Course::Plan(make) => round::run(&make(&mut Random::new(seed)), failure, seed),
            Course::Own(run) => run(failure, seed),
        };
        let report = match std::panic::catch_unwind(run) {
            Ok(Ok(tally)) => return Ok(tally),
            Ok(Err(failed)) => failed.report,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                    .unwrap_or_default()
            }
        };
        let (name, test) = (self.name, failure.name());
        Err(format!(
            "{name} failed; CRASH_SEED={seed} CRASH_ROUNDS=1 cargo test --release --test crash \
             {test}::{name}\n{report}"
        ))
    }
}

/// Makes the tests `kill::NAME` and `power_loss::NAME` of each scenario, with so many rounds each,
/// and the list of all.
macro_rules! scenarios {
    ($($name:ident: $course:expr, $kills:literal, $losses:literal;)*) => {
        const SCENARIOS: &[Scenario] =
            &[$(Scenario { name: stringify!($name), course: $course }),*];
        mod kill {
            $(#[test] fn $name() { super::check(stringify!($name), super::Failure::Kill, $kills) })*
        }
        mod power_loss {
            $(#[test] fn $name() {
                super::check(stringify!($name), super::Failure::PowerLoss, $losses)
            })*
        }
    };
}

scenarios! {
    queues: Course::Plan(scenarios::queues), 3, 3;
    dead_letters: Course::Plan(scenarios::dead_letters), 2, 2;
    dead_letters_in_bulk: Course::Plan(scenarios::dead_letters_in_bulk), 2, 1;
    declarations: Course::Own(declarer::run), 3, 2;
    delayed: Course::Plan(scenarios::delayed), 1, 1;
    expiry: Course::Plan(scenarios::expiry), 2, 1;
    fanout: Course::Plan(scenarios::fanout), 2, 2;
    imports: Course::Own(imports::run), 2, 1;
    large: Course::Plan(scenarios::large), 2, 2;
    priorities: Course::Plan(scenarios::priorities), 2, 1;
    quorum: Course::Plan(scenarios::quorum), 2, 2;
    transactions: Course::Plan(scenarios::transactions), 2, 2;
    transient: Course::Plan(scenarios::transient), 2, 1;
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
}

/// A seed that no other run has.
fn new_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("after 1970").as_nanos() as u64 / 1000 % 1_000_000_000
}

fn check(name: &str, failure: Failure, rounds: u64) {
    if Node::is_external() && (failure != Failure::Kill || name == "imports") {
        eprintln!("skipped: AMQP_URI is set and this test needs a broker of its own");
        return;
    }
    if failure == Failure::PowerLoss && !cfg!(target_os = "linux") {
        eprintln!("skipped: what is not synced is followed on Linux only");
        return;
    }
    let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name).expect("it is listed");
    let first = setting("CRASH_SEED").unwrap_or_else(new_seed);
    for seed in first..first + setting("CRASH_ROUNDS").unwrap_or(rounds) {
        if let Err(report) = scenario.run(failure, seed) {
            panic!("{report}");
        }
    }
}

/// Whether a round finds that something stored is lost, at the tenth attempt at the latest.
fn finds_losses(failure: Failure, config: &str, is_loss: fn(&Violation) -> bool) {
    if Node::is_external() {
        return;
    }
    for seed in 0..10 {
        let plan = scenarios::queues(&mut Random::new(seed));
        let plan = Plan { config: config.to_owned(), ..plan };
        if let Err(Failed { violations, .. }) = round::run(&plan, failure, seed)
            && violations.iter().any(|v| v.kind == Kind::Lost && is_loss(v))
        {
            return;
        }
    }
    panic!("nothing is ever lost: these tests see nothing");
}

#[test]
fn losses_without_syncs_are_found() {
    let config = "[store]\nsync = \"os\"\n";
    finds_losses(Failure::PowerLoss, config, |loss| loss.what.contains("is there 0 times"));
}

#[test]
fn losses_without_a_store_are_found() {
    finds_losses(Failure::NoStore, "", |loss| loss.what.contains("the queue"));
}

/// Thousands of rounds, by `scripts/soak`.
#[test]
#[ignore = "takes as long as it is told to"]
fn soak() {
    let soak = crash::soak::Soak {
        first_seed: setting("CRASH_SEED").unwrap_or_else(new_seed),
        rounds: setting("CRASH_ROUNDS").unwrap_or(u64::MAX),
        minutes: setting("CRASH_MINUTES").unwrap_or(u64::MAX),
        jobs: setting("CRASH_JOBS").unwrap_or(2),
    };
    let only = std::env::var("CRASH_ONLY").ok();
    let is_meant = |scenario: &&Scenario| only.as_deref().is_none_or(|only| scenario.name == only);
    let all: Vec<Scenario> = SCENARIOS.iter().filter(is_meant).copied().collect();
    assert!(!all.is_empty(), "CRASH_ONLY names no scenario");
    let failed = soak.run(|seed| {
        let mut random = Random::new(seed);
        let failure = *random.pick(&[Failure::Kill, Failure::PowerLoss]);
        random.pick(&all).run(failure, seed)
    });
    assert_eq!(failed, 0, "rounds failed");
}
