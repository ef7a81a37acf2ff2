//! A request to a connection's reader to end.
//!
//! Owns one flag and the waker of who waits for it. It must not know why.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};

use parking_lot::Mutex;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Stop {
    asked: AtomicBool,
    waiting: Mutex<Option<Waker>>,
}

impl Stop {
    /// Asks; may be called more than once.
    pub(super) fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
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
