//! Many rounds, several at a time.
//!
//! Owns how long it goes on, the line that tells how far it is, and the summary. It must not know
//! what a round does.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::round::Tally;

/// See the module's description.
pub struct Soak {
    pub first_seed: u64,
    pub rounds: u64,
    pub minutes: u64,
    /// Rounds at a time.
    pub jobs: u64,
}

/// How far it is.
struct Progress {
    begin: Instant,
    told: Instant,
    rounds: u64,
    tally: Tally,
    failed: Vec<u64>,
}

impl Soak {
    /// Runs `round` with one seed after the other. Returns how many failed.
    pub fn run(&self, round: impl Fn(u64) -> Result<Tally, String> + Sync) -> usize {
        let begin = Instant::now();
        let end = begin.checked_add(Duration::from_secs(self.minutes.saturating_mul(60)));
        let next = AtomicU64::new(0);
        let progress =
            Progress { begin, told: begin, rounds: 0, tally: Tally::default(), failed: Vec::new() };
        let progress = Mutex::new(progress);
        eprintln!("soak from seed {}", self.first_seed);
        std::thread::scope(|scope| {
            for _ in 0..self.jobs {
                scope.spawn(|| {
                    while end.is_none_or(|end| Instant::now() < end) {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= self.rounds {
                            break;
                        }
                        let seed = self.first_seed + number;
                        let outcome = round(seed);
                        progress.lock().expect("not poisoned").note(seed, outcome);
                    }
                });
            }
        });
        let progress = progress.into_inner().expect("not poisoned");
        progress.tell("soak ended");
        if !progress.failed.is_empty() {
            eprintln!("seeds that failed: {:?}", progress.failed);
        }
        progress.failed.len()
    }
}

impl Progress {
    fn note(&mut self, seed: u64, outcome: Result<Tally, String>) {
        self.rounds += 1;
        match outcome {
            Ok(tally) => {
                self.tally.crashes += tally.crashes;
                self.tally.messages += tally.messages;
            }
            Err(report) => {
                self.failed.push(seed);
                eprintln!("{report}");
            }
        }
        if self.told.elapsed() > Duration::from_secs(10) {
            self.told = Instant::now();
            self.tell("soak");
        }
    }

    fn tell(&self, what: &str) {
        let Tally { crashes, messages } = self.tally;
        let (rounds, failed, passed) =
            (self.rounds, self.failed.len(), self.begin.elapsed().as_secs());
        eprintln!(
            "{what}: {rounds} rounds, {crashes} crashes, {messages} messages, {failed} failed, \
             {passed} s"
        );
    }
}

#[test]
fn failures_are_counted_and_rounds_end() {
    let soak = |rounds, minutes| Soak { first_seed: 5, rounds, minutes, jobs: 3 };
    let seeds = Mutex::new(Vec::new());
    let failed = soak(20, 1).run(|seed| {
        seeds.lock().expect("not poisoned").push(seed);
        if seed % 4 == 0 { Err("as told".to_owned()) } else { Ok(Tally::default()) }
    });
    let mut seeds = seeds.into_inner().expect("not poisoned");
    seeds.sort_unstable();
    assert_eq!((failed, seeds), (5, (5..25).collect::<Vec<u64>>()));
    assert_eq!(soak(u64::MAX, 0).run(|_| panic!("the time is up")), 0);
}
