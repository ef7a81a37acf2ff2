//! Where passwords are checked: beside the threads that serve connections.
//!
//! Owns the line in which logins wait for their turn. Working out a hash is meant to be slow, so
//! only so many go on at once: however many wrong passwords come in, the rest of the processor is
//! for those who have logged in. It must not know what is checked.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The most that go on at once, on however many processors.
const TURNS_MAX: usize = 2;

/// See the module's description.
#[derive(Debug)]
pub(super) struct LoginLine {
    turns: Arc<Semaphore>,
}

impl Default for LoginLine {
    /// Half of the processors stay free.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let turns = (processors / 2).clamp(1, TURNS_MAX);
        Self { turns: Arc::new(Semaphore::new(turns)) }
    }
}

/// The right to work now.
#[derive(Debug)]
pub(super) struct Turn(OwnedSemaphorePermit);

impl LoginLine {
    /// Waits in line.
    pub(super) async fn turn(&self) -> Turn {
        Turn(self.turns.clone().acquire_owned().await.expect("the line is never closed"))
    }
}

impl Turn {
    /// Runs `work` on a thread of its own; `None` if it panicked. It keeps its turn to its end,
    /// also when nobody waits for it any more: it cannot be stopped half-way.
    pub(super) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let task = tokio::task::spawn_blocking(move || {
            let outcome = work();
            drop(self.0);
            outcome
        });
        task.await.ok()
    }
}
