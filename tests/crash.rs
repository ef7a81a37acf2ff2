//! What survives when the broker is killed, and when the power goes.
//!
//! Owns the list of scenarios and how many rounds of each belong to an ordinary test run. A round
//! starts the real program on a data directory, lets clients work over real sockets, kills it at
//! random moments, starts it again and compares what is there with what must be.
//!
//! A failure prints its seed. `CRASH_SEED` repeats a round's choices, though not the moments at
//! which things happen; `CRASH_ROUNDS` sets the number of rounds. `scripts/soak` runs thousands.

mod support;

mod crash {
    pub mod channel;
    pub mod consumer;
    pub mod declarer;
    pub mod ledger;
    pub mod message;
    pub mod node;
    pub mod power;
    pub mod publisher;
    pub mod random;
    pub mod round;
    pub mod scenarios;
    pub mod session;
    pub mod transactions;
    pub mod verdict;
    pub mod world;
}

use crash::node::Failure;
use crash::random::Random;
use crash::round::{self, Failed, Plan, Tally};
use crash::scenarios;

type Make = fn(&mut Random) -> Plan;

const PLANS: &[(&str, Make)] = &[
    ("queues", scenarios::queues),
    ("dead_letters", scenarios::dead_letters),
    ("fanout", scenarios::fanout),
    ("priorities", scenarios::priorities),
    ("expiry", scenarios::expiry),
    ("quorum", scenarios::quorum),
    ("transactions", scenarios::transactions),
    ("delayed", scenarios::delayed),
    ("transient", scenarios::transient),
];

fn one(name: &str, make: Make, failure: Failure, seed: u64) -> Result<Tally, String> {
    let plan = make(&mut Random::new(seed));
    round::run(&plan, failure, seed)
        .map_err(|Failed { report, .. }| format!("{name} with CRASH_SEED={seed}: {report}"))
}

#[test]
fn all() {
    let only = std::env::var("CRASH_ONLY").ok();
    let seed = std::env::var("CRASH_SEED").ok().map_or(1, |s| s.parse().unwrap());
    let rounds = std::env::var("CRASH_ROUNDS").ok().map_or(1, |s| s.parse().unwrap());
    let mut failed = 0;
    for (name, make) in PLANS {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        for seed in seed..seed + rounds {
            let begin = std::time::Instant::now();
            match one(name, *make, Failure::Kill, seed) {
                Ok(tally) => eprintln!("{name} {seed} ok {tally:?} {:?}", begin.elapsed()),
                Err(report) => {
                    failed += 1;
                    eprintln!("{report}");
                }
            }
        }
    }
    assert_eq!(failed, 0);
}
