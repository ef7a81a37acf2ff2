//! A request to a connection's reader to end, or to take a look.
//!
//! Owns two flags and the waker of who waits for them. It must not know why.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};

use parking_lot::Mutex;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Stop {
    asked: AtomicBool,
    nudged: AtomicBool,
    waiting: Mutex<Option<Waker>>,
}

impl Stop {
    /// Asks; may be called more than once.
    pub(super) fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Asks the reader to take a look at what has changed, also while nothing comes from its
    /// client.
    pub(super) fn nudge(&self) {
        self.nudged.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Whether it was nudged since the last call. Called after [`Stop::poll_asked`], so that the
    /// next nudge wakes.
    pub(super) fn take_nudge(&self) -> bool {
        self.nudged.load(Ordering::SeqCst) && self.nudged.swap(false, Ordering::SeqCst)
    }

    fn wake(&self) {
        if let Some(waker) = self.waiting.lock().take() {
            waker.wake();
        }
    }

    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// Whether it was asked. Otherwise the task is woken when it is.
    pub(super) fn poll_asked(&self, context: &Context<'_>) -> bool {
        if self.asked.load(Ordering::SeqCst) {
            return true;
        }
        let mut waiting = self.waiting.lock();
        if !waiting.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *waiting = Some(context.waker().clone());
        }
        // It may have been asked before the waker stood there.
        self.asked.load(Ordering::SeqCst)
    }
}
