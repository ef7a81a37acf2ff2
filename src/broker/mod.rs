//! The shared state of the broker: vhosts, queues, the connections' outboxes, limits.
//!
//! Owns everything that more than one connection can see, and all the locks around it. It is
//! synchronous and knows neither sockets nor frames' order on a connection.
//!
//! Locks, in the order in which they may be taken: a vhost's policies, its topology, one queue
//! ([`QueueCell`]), one outbox ([`Outbox`]). A map's shard is held for one look-up only, and no
//! other lock is taken meanwhile. Nothing is ever awaited under a lock.

mod access;
mod alarm;
mod batch;
mod changes;
mod dead_letter;
mod deadlines;
mod death;
mod definitions;
mod delayed;
mod drive;
mod durable;
mod exchange_memory;
mod loads;
mod memory;
mod outbox;
mod pacing;
mod policy;
mod prefetch;
mod publish;
mod queue_cell;
mod recent_history;
mod services;
mod token;
mod vhost;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use dashmap::DashMap;
use parking_lot::{Mutex, RwLock};
use serde_json::Value;

use crate::clock::Millis;
use crate::config::{Config, StoreConfig, SyncMode};
use crate::store::{self, Spill, Store};

pub(crate) use crate::store::Ticket;
pub(crate) use access::{Access, LoginRefused, Presence, Resource, Right, Rights};
pub use access::{
    AccessError, PermissionDefinition, TopicPermissionDefinition, UserDefinition, UserLimits,
    VhostDefinition, VhostLimits, VhostMetadata,
};
pub use alarm::{Alarm, Alarms};
pub use batch::Batch;
pub(crate) use batch::{OwnedMessage, Span, Staged};
pub use definitions::{Definitions, DefinitionsError, Imported, Recovered};
pub use drive::Drive;
pub use memory::Memory;
pub(crate) use memory::Unfinished;
pub(crate) use outbox::{Answer, Subscriber, Unsettled};
pub use outbox::{ConnectionId, Outbox, Outgoing};
pub use policy::{PolicyDefinition, PolicyError, PolicyNames, PolicyScope};
pub(crate) use prefetch::ChannelPrefetch;
pub use queue_cell::QueueCell;
pub(crate) use queue_cell::{Declaration, DeleteIf, Refusal, Settlement};
pub(crate) use services::Services;
pub(crate) use token::name as unguessable_name;
pub use vhost::Vhost;

/// The vhost that exists from the first start, as in RabbitMQ.
pub const DEFAULT_VHOST: &str = "/";

/// The directory for messages for which there is no room in memory, beside the store's.
const SPILL: &str = "spill";

/// See the module's description.
#[derive(Debug)]
pub struct Broker {
    config: Arc<Config>,
    services: Arc<Services>,
    vhosts: DashMap<Box<str>, Arc<Vhost>>,
    access: Arc<Access>,
    /// Held while vhosts are changed or permissions in them, so that none outlives its vhost. Taken
    /// before any other lock.
    vhost_changes: Mutex<()>,
    /// See [`Broker::global_parameters`].
    global_parameters: RwLock<BTreeMap<String, Value>>,
    next_connection: AtomicU64,
    connections: AtomicUsize,
}

impl Broker {
    /// A broker with the default vhost and user and nothing else. `memory_limit_bytes` is where
    /// publishers are blocked.
    pub fn new(config: Arc<Config>, memory_limit_bytes: u64) -> Self {
        let broker = Self::without_defaults(config, memory_limit_bytes);
        broker.add_defaults();
        broker
    }

    /// A broker without any vhost or user, for those who bring their own.
    pub fn without_defaults(config: Arc<Config>, memory_limit_bytes: u64) -> Self {
        Self::with_store(config, memory_limit_bytes, None, None)
    }

    /// The same with a store in this directory, which is made if it is not there, and beside it one
    /// for what memory has no room for. What the store has comes with [`Broker::recover`].
    ///
    /// # Errors
    /// When the store cannot be opened.
    pub fn open(
        config: Arc<Config>,
        memory_limit_bytes: u64,
        store_dir: Option<&Path>,
    ) -> Result<Self, String> {
        let options = store_options(&config.store);
        let store = store_dir.map(|path| Store::open(path, &options));
        let store = store.transpose().map_err(|error| error.to_string())?;
        if let Some(lost) = store.as_ref().and_then(Store::lost_at_open) {
            let hint = "the start goes on with what is left; `leveret store check` says more";
            tracing::error!(?lost, "{hint}");
        }
        let spill = store_dir.map(|path| Spill::open(&path.with_file_name(SPILL)));
        let spill = spill.transpose().map_err(|error| format!("cannot make {SPILL}: {error}"))?;
        Ok(Self::with_store(config, memory_limit_bytes, store.map(Arc::new), spill))
    }

    pub(crate) fn with_store(
        config: Arc<Config>,
        memory_limit_bytes: u64,
        store: Option<Arc<Store>>,
        spill: Option<Spill>,
    ) -> Self {
        let message_bytes_max = config.limits.max_message_size_bytes;
        let memory = Arc::new(Memory::new(memory_limit_bytes, message_bytes_max));
        let timeout_ms = config.limits.consumer_timeout_ms;
        let timeout_ms = (timeout_ms > 0).then_some(timeout_ms);
        let queue_memory = bytes(config.store.queue_memory_bytes);
        let services = Arc::new(Services::new(memory, timeout_ms, store, spill, queue_memory));
        let (vhosts, access) = (DashMap::new(), Arc::new(Access::new(services.clone())));
        let next_connection = AtomicU64::new(1);
        let connections = AtomicUsize::new(0);
        let (vhost_changes, global_parameters) = (Mutex::default(), RwLock::default());
        Self {
            config,
            services,
            vhosts,
            access,
            vhost_changes,
            global_parameters,
            next_connection,
            connections,
        }
    }

    /// The configuration that the broker was started with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What publishers are blocked for.
    pub fn alarms(&self) -> &Arc<Alarms> {
        self.services.memory.alarms()
    }

    /// The memory gauge.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.services.memory
    }

    /// Where durable messages and definitions are kept, if anywhere.
    pub(crate) fn store(&self) -> Option<&Arc<Store>> {
        self.services.store.as_ref()
    }

    /// Waits a while for a queue that wants messages from the disk, and reads them; when none does
    /// and memory is short, lets queues move messages there. `false` when there will be none any
    /// more. `now` tells the time.
    pub fn load(&self, now: impl Fn() -> Millis, drive: &mut Drive) -> bool {
        let next = self.services.loads.next();
        drive.now = now();
        match next {
            loads::Next::Queue(queue) => queue.load_wanted(drive),
            loads::Next::Idle if self.memory().is_pressed() => {
                let vhosts: Vec<_> = self.vhosts.iter().map(|vhost| vhost.clone()).collect();
                let queues = vhosts.iter().flat_map(|vhost| vhost.queues());
                queues.for_each(|queue| queue.relieve(drive));
            }
            loads::Next::Idle => {}
            loads::Next::Closed => return false,
        }
        drive.finish();
        true
    }

    /// Ends the waiting for queues that want messages.
    pub fn end_loads(&self) {
        self.services.loads.close();
    }

    /// For the timer: ready with the time of the first deadline when that is not `known`.
    pub fn poll_next_deadline(
        &self,
        known: Option<Millis>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Millis>> {
        self.services.deadlines.poll_next(known, context)
    }

    /// Does some of what is due at `drive.now`.
    pub fn tick(&self, drive: &mut Drive) {
        self.services.deadlines.tick(drive);
    }

    /// Users and permissions.
    pub(crate) fn access(&self) -> &Arc<Access> {
        &self.access
    }

    /// Rises when users, vhosts or permissions change: connections have to take a look then.
    pub fn access_generation(&self) -> u64 {
        self.access.generation()
    }

    pub(crate) fn vhost(&self, name: &str) -> Option<Arc<Vhost>> {
        self.vhosts.get(name).map(|vhost| vhost.clone())
    }

    /// Counts a connection that has logged in; `false` when there are too many.
    pub(crate) fn admit_connection(&self) -> bool {
        let max = self.config.limits.connection_max;
        let next = |count: usize| (count < max).then_some(count + 1);
        self.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    pub(crate) fn release_connection(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn next_connection_id(&self) -> ConnectionId {
        ConnectionId(self.next_connection.fetch_add(1, Ordering::Relaxed))
    }
}

fn store_options(config: &StoreConfig) -> store::Options {
    let sync = match config.sync {
        SyncMode::Always => store::SyncMode::Always,
        SyncMode::Interval => store::SyncMode::Interval(config.sync_interval_ms),
        SyncMode::Os => store::SyncMode::Os,
    };
    store::Options { sync, backlog_bytes: bytes(config.backlog_bytes) }
}

/// What does not fit into memory is no bound there.
fn bytes(configured: u64) -> usize {
    usize::try_from(configured).unwrap_or(usize::MAX)
}
