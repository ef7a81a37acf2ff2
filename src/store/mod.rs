//! The store: what survives the broker.
//!
//! Owns the way from what queues leave behind to the disk and back. Everything is handed over in
//! memory and written by one thread in groups (`commit`): while one group is synced, the next one
//! forms. What a group writes is decided in `group`, `part` and `entry`; how it stands on disk in
//! `keys` and `run_value`; which files hold it is the engine's business (`engine`). It must not
//! know connections or the broker, and never serves what it cannot vouch for.
//!
//! Invariants: groups become durable in their order; nobody is told that something is durable
//! before it is; after the first failed write or sync nothing is written any more, except that a
//! full disk is waited for.

mod batch;
mod check;
mod commit;
mod directory;
mod engine;
mod entry;
mod group;
#[cfg(test)]
mod group_tests;
mod keys;
mod lanes;
#[cfg(test)]
mod memory;
mod metrics;
mod part;
mod read;
mod reclaim;
#[cfg(feature = "rocksdb")]
mod rocks;
mod run_value;
mod spill;
#[cfg(test)]
mod tests;
mod waiting;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use parking_lot::Mutex;
use thiserror::Error;

use crate::queue::{LaneHead, Mark, Records, StoredRun};

use batch::Table;
pub(crate) use check::{Report, check};
use commit::Committer;
use directory::SyncedMark;
use engine::{Engine, ReadError};
use group::{Former, Item};
#[cfg(test)]
pub(crate) use memory::MemoryEngine;
#[cfg(test)]
pub(crate) use metrics::Metrics;
pub(crate) use spill::Spill;
use waiting::Shared;

/// The group that something was handed over with. Groups become durable in their order. The
/// default is nothing to wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

impl Ticket {
    /// The group's number.
    pub(crate) fn group(self) -> u64 {
        self.0
    }
}

/// What has become of something that was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It survives whatever the [`SyncMode`] says it survives.
    Durable,
    /// It is certainly or possibly not stored. Never confirm it.
    Lost,
}

/// Called once with what has become of a group.
pub(crate) type Completion = Box<dyn FnOnce(Outcome) + Send>;

/// Small keyed values, of which the store knows only the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// What clients declare and operators import.
    Definitions,
    /// Messages that an exchange keeps for later.
    Delayed,
}

impl Space {
    fn table(self) -> Table {
        match self {
            Self::Definitions => Table::Definitions,
            Self::Delayed => Table::Delayed,
        }
    }
}

/// A key of a space and its value.
pub(crate) type Entry = (Vec<u8>, Vec<u8>);

/// A new value of a key; without one, the key is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) space: Space,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
}

/// When what was written is synced to disk, and so what a completion says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SyncMode {
    /// Before anyone is told: it survives a loss of power.
    Always,
    /// At least so often (milliseconds): a loss of power loses what came since.
    Interval(u64),
    /// When the operating system likes to: it survives the end of the process only.
    Os,
}

/// How a store is to behave.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) sync: SyncMode,
    /// Publishers are to pause while more than this waits to be written (bytes).
    pub(crate) backlog_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { sync: SyncMode::Always, backlog_bytes: 32 * 1024 * 1024 }
    }
}

/// Why the store cannot be opened or read.
#[derive(Debug, Error)]
pub(crate) enum StoreError {
    /// It cannot be opened, read or written.
    #[error("the store in {path} does not work: {reason}", path = .path.display())]
    Io { path: PathBuf, reason: String },
    /// A newer program wrote it.
    #[error(
        "the store in {path} has format {found}, and this version reads up to format {known}: \
         start the newer version again, or restore a backup from before it",
        path = .path.display()
    )]
    Newer { path: PathBuf, found: u32, known: u32 },
    /// What is on disk is not what was written.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// A read did not succeed.
    #[error("cannot read the store: {0}")]
    Read(String),
}

impl From<ReadError> for StoreError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Damaged(reason) => Self::Damaged(reason),
            ReadError::Failed(reason) => Self::Read(reason),
        }
    }
}

/// A piece of a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) runs: Vec<StoredRun>,
    /// All marks that touch what the chunk covers.
    pub(crate) marks: Vec<Mark>,
    /// The chunk covers everything from where it was asked for and before this; [`u64::MAX`] when
    /// there is nothing further in the store.
    pub(crate) end: u64,
    /// What cannot be read because it is damaged. The log has it already.
    pub(crate) lost: Vec<Range<u64>>,
}

/// Group commit over an engine: the only thing that the broker knows of the disk.
pub(crate) struct Store {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    lost_at_open: Option<LostAtOpen>,
}

/// What was there when the store was opened is older than what had been synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LostAtOpen {
    /// The newest group that is there.
    pub(crate) newest: u64,
    /// The newest group that was synced.
    pub(crate) synced: u64,
}

/// Where the store is in a data directory.
pub(crate) fn directory_in(data_dir: &Path) -> PathBuf {
    data_dir.join("store")
}

#[cfg(feature = "rocksdb")]
fn open_engine(directory: &Path, is_read_only: bool) -> Result<Box<dyn Engine>, StoreError> {
    let path = directory::engine(directory);
    let engine = match is_read_only {
        true => rocks::RocksEngine::open_read_only(&path),
        false => rocks::RocksEngine::open(&path),
    };
    let failed =
        |error: ReadError| StoreError::Io { path: directory.to_owned(), reason: error.to_string() };
    Ok(Box::new(engine.map_err(failed)?))
}

#[cfg(not(feature = "rocksdb"))]
fn open_engine(directory: &Path, _is_read_only: bool) -> Result<Box<dyn Engine>, StoreError> {
    let reason = "this program was built without one, see the feature rocksdb".to_owned();
    Err(StoreError::Io { path: directory.to_owned(), reason })
}

impl Store {
    /// Opens the store in this directory, or makes one. Only one may be open at a time: that is
    /// the business of whoever holds the data directory.
    pub(crate) fn open(directory: &Path, options: &Options) -> Result<Self, StoreError> {
        directory::prepare(directory)?;
        let engine = open_engine(directory, false)?;
        let newest = read::newest_group(&*engine)?;
        let (mark, synced) = SyncedMark::open(directory)?;
        let lost_at_open = lost_since(newest, synced);
        if lost_at_open.is_some() {
            // It is told once.
            let failed = |error: std::io::Error| StoreError::Io {
                path: directory.to_owned(),
                reason: error.to_string(),
            };
            mark.set(newest).map_err(failed)?;
        }
        let mut store = Self::start(engine, options, Some(mark))?;
        store.lost_at_open = lost_at_open;
        Ok(store)
    }

    /// A store over this engine, whose thread runs.
    fn start(
        engine: Box<dyn Engine>,
        options: &Options,
        mark: Option<SyncedMark>,
    ) -> Result<Self, StoreError> {
        let mut former = Former::default();
        let now = Instant::now();
        read::heads(&*engine, &mut |queue, head| former.lanes.recover(queue, head, now))?;
        let newest = read::newest_group(&*engine)?;
        let shared = Arc::new(Shared::new(engine, options, newest));
        let committer = Committer::new(shared.clone(), former, options.sync, mark, newest);
        let thread = thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || committer.run())
            .map_err(|error| StoreError::Read(format!("cannot start its thread: {error}")))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)), lost_at_open: None })
    }

    /// A store in memory, for tests.
    #[cfg(test)]
    pub(crate) fn in_memory(engine: &MemoryEngine, options: &Options) -> Result<Self, StoreError> {
        Self::start(Box::new(engine.open()), options, None)
    }

    /// Takes what one drive of a queue leaves, and leaves emptied buffers instead. The order of
    /// calls for one queue is the order of their effect. Takes one short lock and never blocks.
    pub(crate) fn submit(&self, queue: u64, records: &mut Records) -> Ticket {
        if records.is_empty() {
            return Ticket::default();
        }
        self.shared.submit(queue, records)
    }

    /// The queue is gone with all its messages, as far as they were handed over before.
    pub(crate) fn forget_queue(&self, queue: u64) -> Ticket {
        self.shared.push(Item::Forget(queue))
    }

    /// Sets and deletes small values, all or none of them.
    pub(crate) fn change(&self, changes: Vec<Change>) -> Ticket {
        if changes.is_empty() {
            return Ticket::default();
        }
        self.shared.push(Item::Changes(changes))
    }

    /// The ticket of everything that was handed over so far.
    pub(crate) fn latest(&self) -> Ticket {
        self.shared.latest()
    }

    /// Calls `completion` once it is known what has become of the ticket's group: on the store's
    /// thread, which holds no lock then, or at once on this one. The group becomes urgent by it.
    /// Completions of one thread's tickets are called in the order of tickets.
    pub(crate) fn when_durable(&self, ticket: Ticket, completion: Completion) {
        self.shared.when_durable(ticket, completion);
    }

    /// Whether the group is durable and all who waited for it were told.
    pub(crate) fn is_durable(&self, ticket: Ticket) -> bool {
        self.shared.is_durable(ticket)
    }

    /// Whether the group of this number can be read. It may be written and not synced.
    pub(crate) fn is_written(&self, group: u64) -> bool {
        self.shared.is_written(Ticket(group))
    }

    /// What is handed over until the result is dropped becomes one group, if that takes no longer
    /// than a moment: all of it survives a crash, or nothing, and a body that goes to several
    /// queues is stored once. It is a help, not a promise.
    pub(crate) fn keep_together(&self) -> Together<'_> {
        self.shared.begin_fanout();
        Together(self)
    }

    /// Whether so much waits to be written that publishers of persistent messages are to pause.
    pub(crate) fn is_congested(&self) -> bool {
        self.shared.is_congested()
    }

    /// Ready when there is room: see [`Store::is_congested`].
    pub(crate) fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        self.shared.poll_room(context)
    }

    /// Whether the disk is full, so that nothing is written until there is room.
    pub(crate) fn is_full(&self) -> bool {
        self.shared.is_full()
    }

    /// What was counted since the store was opened. The log has it at the end.
    #[cfg(test)]
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// What was handed over and is not written (bytes).
    #[cfg(test)]
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.shared.waiting_bytes()
    }

    /// Why nothing is written any more, for good. The broker must be restarted.
    pub(crate) fn failure(&self) -> Option<String> {
        self.shared.failure()
    }

    /// What was missing when the store was opened, although it had been synced. The log says it.
    pub(crate) fn lost_at_open(&self) -> Option<LostAtOpen> {
        self.lost_at_open
    }

    /// Messages of a lane from `from` on, in order: about `bytes_max` of them, but at least one
    /// run if there is any. Waits for the disk.
    pub(crate) fn read(
        &self,
        queue: u64,
        lane: u8,
        from: u64,
        bytes_max: usize,
    ) -> Result<Chunk, StoreError> {
        read::chunk(&*self.shared.engine, queue, lane, from, bytes_max)
    }

    /// The lanes of all queues that had messages, by queue.
    pub(crate) fn heads(&self) -> Result<Vec<(u64, Vec<LaneHead>)>, StoreError> {
        let mut queues: Vec<(u64, Vec<LaneHead>)> = Vec::new();
        read::heads(&*self.shared.engine, &mut |queue, head| match queues.last_mut() {
            Some((last, heads)) if *last == queue => heads.push(head),
            _ => queues.push((queue, vec![head])),
        })?;
        Ok(queues)
    }

    /// All keys and values of a space, in the order of keys.
    pub(crate) fn entries(&self, space: Space) -> Result<Vec<Entry>, StoreError> {
        read::entries(&*self.shared.engine, space.table())
    }

    /// Writes and syncs everything that was handed over, stops the thread and closes the files.
    /// What is handed over later is lost.
    pub(crate) fn close(&self) {
        self.shared.begin_close();
        let thread = self.thread.lock().take();
        // A completion may hold the last reference, and then this is the store's own thread.
        if thread.as_ref().is_some_and(|own| own.thread().id() == thread::current().id()) {
            return;
        }
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's thread has panicked: this is a bug, please report it");
        }
        self.shared.engine.close();
    }
}

/// See [`Store::keep_together`].
pub(crate) struct Together<'a>(&'a Store);

impl Drop for Together<'_> {
    fn drop(&mut self) {
        self.0.shared.end_fanout();
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

/// What is missing when the newest group that was synced is this.
fn lost_since(newest: u64, synced: Option<u64>) -> Option<LostAtOpen> {
    let synced = synced.filter(|synced| newest < *synced)?;
    tracing::error!(
        newest,
        synced,
        groups = synced - newest,
        "the disk has lost what it said it had stored: confirmed messages may be missing; check \
         the disk, its cache and its file system, and restore a backup if need be"
    );
    Some(LostAtOpen { newest, synced })
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}
