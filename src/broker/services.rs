//! What all vhosts and queues of a broker share.
//!
//! Owns the memory gauge, the deadlines and the numbers of queues. It must not know vhosts or
//! queues.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::deadlines::Deadlines;
use super::loads::Loads;
use super::memory::Memory;
use crate::queue::Settings;
use crate::store::Store;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) memory: Arc<Memory>,
    pub(crate) deadlines: Deadlines,
    /// Where durable messages and definitions are kept, if anywhere.
    pub(crate) store: Option<Arc<Store>>,
    pub(crate) loads: Loads,
    queue_memory_bytes: usize,
    next_id: AtomicU64,
    consumer_timeout_ms: Option<u64>,
}

impl Services {
    /// `consumer_timeout_ms` is for queues that set none of their own.
    pub(crate) fn new(memory: Arc<Memory>, consumer_timeout_ms: Option<u64>) -> Self {
        let (deadlines, next_id) = (Deadlines::default(), AtomicU64::new(1));
        let (store, loads, queue_memory_bytes) = (None, Loads::default(), 8 * 1024 * 1024);
        Self { memory, deadlines, store, loads, queue_memory_bytes, next_id, consumer_timeout_ms }
    }

    /// How much of its messages a queue keeps in memory that the store has, too, in bytes.
    pub(crate) fn queue_memory(&self) -> usize {
        self.queue_memory_bytes
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
