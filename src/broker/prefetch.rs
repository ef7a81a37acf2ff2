//! The prefetch limit that the consumers of one channel share.
//!
//! Owns the count behind `basic.qos` with `global`, in RabbitMQ's meaning of it. Consumers of
//! several queues ask the same count, each under its own queue's lock, so it is atomic.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::queue::{Gate, Pass};

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct ChannelPrefetch {
    /// 0 means no limit.
    limit: AtomicU32,
    used: AtomicU32,
}

impl ChannelPrefetch {
    /// Sets the limit (0 removes it) and how much of it is in use.
    pub(crate) fn set(&self, limit: u32, used: u32) {
        self.used.store(used, Ordering::SeqCst);
        self.limit.store(limit, Ordering::SeqCst);
    }

    /// Whether there is a limit.
    pub(crate) fn is_limited(&self) -> bool {
        self.limit.load(Ordering::Relaxed) > 0
    }

    /// Gives back one delivery that was counted. Answers whether queues may be waiting for it,
    /// which the caller then has to let try again.
    pub(crate) fn give_back(&self) -> bool {
        let before = self
            .used
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |used| Some(used.saturating_sub(1)));
        before.is_ok_and(|before| before >= self.limit.load(Ordering::SeqCst))
    }
}

impl Gate for ChannelPrefetch {
    fn pass(&self) -> Pass {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == 0 {
            return Pass::Free;
        }
        let next = |used: u32| (used < limit).then_some(used + 1);
        match self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next) {
            Ok(_) => Pass::Counted,
            Err(_) => Pass::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_shared_and_given_back() {
        let prefetch = ChannelPrefetch::default();
        assert_eq!(prefetch.pass(), Pass::Free);
        prefetch.set(2, 1);
        assert_eq!(prefetch.pass(), Pass::Counted);
        assert_eq!(prefetch.pass(), Pass::Refused);
        assert!(prefetch.give_back(), "somebody may be waiting");
        assert!(!prefetch.give_back(), "there was room already");
        assert_eq!(prefetch.pass(), Pass::Counted);
    }
}
