//! What all vhosts and queues of a broker share.
//!
//! Owns the memory gauge, the deadlines and the numbers of queues. It must not know vhosts or
//! queues.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::deadlines::Deadlines;
use super::memory::Memory;
use crate::queue::Settings;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) memory: Arc<Memory>,
    pub(crate) deadlines: Deadlines,
    next_id: AtomicU64,
    consumer_timeout_ms: Option<u64>,
}

impl Services {
    /// `consumer_timeout_ms` is for queues that set none of their own.
    pub(crate) fn new(memory: Arc<Memory>, consumer_timeout_ms: Option<u64>) -> Self {
        let (deadlines, next_id) = (Deadlines::default(), AtomicU64::new(1));
        Self { memory, deadlines, next_id, consumer_timeout_ms }
    }

    /// Services without limits.
    #[cfg(test)]
    pub(crate) fn for_test() -> Arc<Self> {
        Arc::new(Self::new(Arc::new(Memory::new(u64::MAX, 0)), None))
    }

    /// A number that was never given out: it names a queue, or whatever else has deadlines.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// A queue's settings with what the broker adds.
    pub(crate) fn with_defaults(&self, settings: Settings) -> Settings {
        let consumer_timeout_ms = settings.consumer_timeout_ms.or(self.consumer_timeout_ms);
        Settings { consumer_timeout_ms, ..settings }
    }
}
