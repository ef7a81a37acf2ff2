//! What all vhosts and queues of a broker share.
//!
//! Owns the memory gauge, the deadlines, the numbers of queues and the way to the store. It must
//! not know vhosts or queues.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::deadlines::Deadlines;
use super::durable::DurableDefinitions;
use super::loads::Loads;
use super::memory::Memory;
use crate::queue::Settings;
use crate::store::{Spill, Store};

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) memory: Arc<Memory>,
    pub(crate) deadlines: Deadlines,
    /// What survives the process; none where no disk is used.
    pub(crate) store: Option<Arc<Store>>,
    pub(crate) definitions: DurableDefinitions,
    pub(crate) loads: Loads,
    /// Where messages go for which there is no room in memory.
    pub(crate) spill: Option<Spill>,
    queue_memory_bytes: usize,
    next_id: AtomicU64,
    consumer_timeout_ms: Option<u64>,
}

impl Services {
    /// `consumer_timeout_ms` is for queues that set none of their own; `queue_memory_bytes` is
    /// what each keeps in memory of what the store has, too.
    pub(crate) fn new(
        memory: Arc<Memory>,
        consumer_timeout_ms: Option<u64>,
        store: Option<Arc<Store>>,
        spill: Option<Spill>,
        queue_memory_bytes: usize,
    ) -> Self {
        let (deadlines, next_id) = (Deadlines::default(), AtomicU64::new(1));
        let (definitions, loads) = (DurableDefinitions::new(store.clone()), Loads::default());
        Self {
            memory,
            deadlines,
            store,
            definitions,
            loads,
            spill,
            queue_memory_bytes,
            next_id,
            consumer_timeout_ms,
        }
    }

    /// How much of its messages a queue keeps in memory that the store has, too, in bytes.
    pub(crate) fn queue_memory(&self) -> usize {
        self.queue_memory_bytes
    }

    /// Services without limits or a store.
    #[cfg(test)]
    pub(crate) fn for_test() -> Arc<Self> {
        Arc::new(Self::new(Arc::new(Memory::new(u64::MAX, 0)), None, None, None, usize::MAX))
    }

    /// A number that was never given out: it names a queue, or whatever else has deadlines.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Gives out no number below `first`.
    pub(crate) fn begin_ids(&self, first: u64) {
        self.next_id.fetch_max(first, Ordering::Relaxed);
    }

    /// A queue's settings with what the broker adds.
    pub(crate) fn with_defaults(&self, settings: Settings) -> Settings {
        let consumer_timeout_ms = settings.consumer_timeout_ms.or(self.consumer_timeout_ms);
        Settings { consumer_timeout_ms, ..settings }
    }
}
