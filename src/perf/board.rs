//! What the threads of a run share: counters, the flags that end it, the first failure.
//!
//! Owns no thread and no socket. Each thread writes only its own counters, once per read or write.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use super::link::{Notice, PerfError};
use super::process::Thread;

/// One worker's counters, alone on their cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Tally {
    /// Messages written to the socket.
    pub(crate) published: AtomicU64,
    /// Messages that the broker confirmed.
    pub(crate) confirmed: AtomicU64,
    /// Messages that the broker refused by basic.nack.
    pub(crate) refused: AtomicU64,
    /// Messages received whole.
    pub(crate) delivered: AtomicU64,
    /// Operations of a churn run that are complete.
    pub(crate) operations: AtomicU64,
    /// Operations that failed.
    pub(crate) errors: AtomicU64,
}

/// Sums over all workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Messages written.
    pub(crate) published: u64,
    /// Messages confirmed.
    pub(crate) confirmed: u64,
    /// Messages refused.
    pub(crate) refused: u64,
    /// Messages received.
    pub(crate) delivered: u64,
    /// Operations completed.
    pub(crate) operations: u64,
    /// Operations that failed.
    pub(crate) errors: u64,
}

/// The shared state of one run.
#[derive(Debug)]
pub(crate) struct Board {
    tallies: Vec<Tally>,
    began: OnceLock<Instant>,
    is_publishing: AtomicBool,
    is_running: AtomicBool,
    blocked: AtomicU64,
    failure: Mutex<Option<(String, PerfError)>>,
    ended: Mutex<Vec<Thread>>,
}

impl Board {
    /// A board for a number of workers, with everything switched on.
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            tallies: (0..workers).map(|_| Tally::default()).collect(),
            began: OnceLock::new(),
            is_publishing: AtomicBool::new(true),
            is_running: AtomicBool::new(true),
            blocked: AtomicU64::new(0),
            failure: Mutex::new(None),
            ended: Mutex::new(Vec::new()),
        }
    }

    /// The counters of one worker.
    pub(crate) fn tally(&self, worker: usize) -> &Tally {
        &self.tallies[worker]
    }

    /// The sums over all workers.
    pub(crate) fn totals(&self) -> Totals {
        let sum = |field: fn(&Tally) -> &AtomicU64| {
            self.tallies.iter().map(|tally| field(tally).load(Relaxed)).sum()
        };
        Totals {
            published: sum(|tally| &tally.published),
            confirmed: sum(|tally| &tally.confirmed),
            refused: sum(|tally| &tally.refused),
            delivered: sum(|tally| &tally.delivered),
            operations: sum(|tally| &tally.operations),
            errors: sum(|tally| &tally.errors),
        }
    }

    /// When the run began: at the first call.
    pub(crate) fn began(&self) -> Instant {
        *self.began.get_or_init(Instant::now)
    }

    /// Whether producers go on.
    pub(crate) fn is_publishing(&self) -> bool {
        self.is_publishing.load(Relaxed)
    }

    /// Whether consumers go on.
    pub(crate) fn is_running(&self) -> bool {
        self.is_running.load(Relaxed)
    }

    /// Ends the producers; consumers go on.
    pub(crate) fn stop_publishing(&self) {
        self.is_publishing.store(false, Relaxed);
    }

    /// Ends everything.
    pub(crate) fn stop(&self) {
        self.stop_publishing();
        self.is_running.store(false, Relaxed);
    }

    /// Notes what the calling thread has used, which is about to end: afterwards nobody could tell.
    pub(crate) fn note_end(&self) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).extend(Thread::own());
    }

    /// The threads that have ended.
    pub(crate) fn ended(&self) -> Vec<Thread> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many connections the broker has blocked now.
    pub(crate) fn blocked(&self) -> u64 {
        self.blocked.load(Relaxed)
    }

    /// Acts on a method that nobody asked for; an error ends the worker.
    pub(crate) fn notice(&self, worker: &str, notice: Notice) -> Result<(), PerfError> {
        match notice {
            Notice::Blocked(reason) => {
                self.blocked.fetch_add(1, Relaxed);
                eprintln!("{worker}: the broker blocked the connection: {reason}");
            }
            Notice::Unblocked => {
                self.blocked.fetch_sub(1, Relaxed);
                eprintln!("{worker}: the broker unblocked the connection");
            }
            Notice::Fatal(error) => return Err(error),
            Notice::CloseOk | Notice::Other => {}
        }
        Ok(())
    }

    /// Ends the run with an error. What the broker said wins over a socket that then failed.
    pub(crate) fn fail(&self, worker: &str, error: PerfError) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let is_better = match &*failure {
            None => true,
            Some((_, PerfError::Closed { .. })) => false,
            Some(_) => matches!(error, PerfError::Closed { .. }),
        };
        if is_better {
            *failure = Some((worker.to_owned(), error));
        }
        drop(failure);
        self.stop();
    }

    /// The error that ended the run.
    pub(crate) fn take_failure(&self) -> Option<(String, PerfError)> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_own_words_win_over_a_broken_socket() {
        let board = Board::new(2);
        board.fail("producer-0", PerfError::Gone(""));
        let text = String::from("NOT_FOUND");
        board.fail("producer-1", PerfError::Closed { scope: "channel", code: 404, text });
        board.fail("producer-0", PerfError::Gone(""));
        assert!(!board.is_running() && !board.is_publishing());
        assert!(board.take_failure().is_some_and(|(worker, _)| worker == "producer-1"));
    }

    #[test]
    fn totals_are_sums() {
        let board = Board::new(2);
        board.tally(0).published.store(3, Relaxed);
        board.tally(1).published.store(4, Relaxed);
        board.tally(1).delivered.store(2, Relaxed);
        let expected = Totals { published: 7, delivered: 2, ..Totals::default() };
        assert_eq!(board.totals(), expected);
    }
}
