//! An engine in memory, with faults on demand, for tests.
//!
//! Owns what a disk would hold: the tables as written, and as they were at the last sync, so that
//! a test can go on from what a crash leaves.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::batch::{Batch, Operation, Table};
use super::engine::{Each, Engine, ReadError, WriteError};

type Tables = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

#[derive(Debug, Default)]
struct State {
    written: Tables,
    synced: Tables,
    /// Batches written since the last sync.
    unsynced: Vec<Batch>,
    /// How many more operations (writes and syncs) succeed.
    countdown: Option<u64>,
    sync_fails: bool,
    is_full: bool,
    damaged: Vec<(Table, Vec<u8>)>,
    writes: u64,
    syncs: u64,
    full_writes: u64,
}

/// See the module's description. Clones share the same disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryEngine {
    disk: Arc<Mutex<State>>,
    is_closed: Arc<AtomicBool>,
}

impl MemoryEngine {
    /// Lets `operations` more writes and syncs succeed, and then none.
    pub(crate) fn fail_after(&self, operations: u64) {
        self.disk.lock().countdown = Some(operations);
    }

    /// Lets every sync fail, or none.
    pub(crate) fn fail_sync(&self, fails: bool) {
        self.disk.lock().sync_fails = fails;
    }

    /// Has no room, or has room again.
    pub(crate) fn set_full(&self, is_full: bool) {
        self.disk.lock().is_full = is_full;
    }

    /// The same disk, opened once more.
    pub(super) fn open(&self) -> Self {
        Self { disk: self.disk.clone(), ..Self::default() }
    }

    fn state(&self) -> Result<MutexGuard<'_, State>, ReadError> {
        match self.is_closed.load(Ordering::Relaxed) {
            true => Err(ReadError::Failed("the store is closed".to_owned())),
            false => Ok(self.disk.lock()),
        }
    }

    /// What a crash leaves: everything synced, and the first `unsynced` batches of the others.
    pub(crate) fn after_crash(&self, unsynced: usize) -> Self {
        let state = self.disk.lock();
        let mut tables = state.synced.clone();
        for batch in state.unsynced.iter().take(unsynced) {
            apply(&mut tables, batch);
        }
        let state = State { synced: tables.clone(), written: tables, ..State::default() };
        Self { disk: Arc::new(Mutex::new(state)), ..Self::default() }
    }

    /// Batches that a crash may lose.
    pub(crate) fn unsynced(&self) -> usize {
        self.disk.lock().unsynced.len()
    }

    /// Writes and syncs so far.
    pub(crate) fn operations(&self) -> (u64, u64) {
        let state = self.disk.lock();
        (state.writes, state.syncs)
    }

    /// Writes that were refused for want of room.
    pub(crate) fn full_writes(&self) -> u64 {
        self.disk.lock().full_writes
    }

    /// Lets reads of this key fail as damaged.
    pub(super) fn damage(&self, table: Table, key: &[u8]) {
        self.disk.lock().damaged.push((table, key.to_vec()));
    }

    /// The keys of a table.
    pub(super) fn keys(&self, table: Table) -> Vec<Vec<u8>> {
        let state = self.disk.lock();
        let keys = state.written.keys().filter(|(of, _)| *of == table);
        keys.map(|(_, key)| key.clone()).collect()
    }
}

impl State {
    fn count_down(&mut self) -> Result<(), WriteError> {
        match &mut self.countdown {
            Some(0) => Err(WriteError::Failed("the disk is broken".to_owned())),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn sync(&mut self) -> Result<(), WriteError> {
        if self.sync_fails {
            return Err(WriteError::Failed("the disk does not sync".to_owned()));
        }
        self.syncs += 1;
        self.synced.clone_from(&self.written);
        self.unsynced.clear();
        Ok(())
    }

    fn check(&self, table: Table, key: &[u8]) -> Result<(), ReadError> {
        match self.damaged.iter().any(|(of, damaged)| *of == table && damaged == key) {
            true => Err(ReadError::Damaged("damaged by a test".to_owned())),
            false => Ok(()),
        }
    }
}

impl Engine for MemoryEngine {
    fn write(&self, batch: &Batch, sync: bool) -> Result<(), WriteError> {
        let mut state = self.disk.lock();
        if state.is_full {
            state.full_writes += 1;
            return Err(WriteError::NoSpace("full by a test".to_owned()));
        }
        state.count_down()?;
        apply(&mut state.written, batch);
        state.unsynced.push(batch.clone());
        state.writes += 1;
        if sync { state.sync() } else { Ok(()) }
    }

    fn sync(&self) -> Result<(), WriteError> {
        let mut state = self.disk.lock();
        state.count_down()?;
        state.sync()
    }

    fn value(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
        let state = self.state()?;
        state.check(table, key)?;
        Ok(state.written.get(&(table, key.to_vec())).cloned())
    }

    fn scan(&self, table: Table, keys: Range<&[u8]>, each: Each<'_>) -> Result<(), ReadError> {
        let state = self.state()?;
        state.check(table, &[])?;
        let range = (table, keys.start.to_vec())..(table, keys.end.to_vec());
        let entries = state.written.range(range).map(|((_, key), value)| {
            state.check(table, key).map(|()| (key.clone(), value.clone()))
        });
        let entries: Vec<_> = entries.collect();
        // Whoever is called may ask for another key.
        drop(state);
        for entry in entries {
            let (key, value) = entry?;
            if let ControlFlow::Break(()) = each(&key, &value) {
                break;
            }
        }
        Ok(())
    }

    fn compact(&self, _table: Table, _keys: Range<&[u8]>) -> Result<(), ReadError> {
        Ok(())
    }

    fn garbage(&self, _table: Table) -> Result<(u64, u64), ReadError> {
        Ok((0, 0))
    }

    fn rewrite(&self, _table: Table) -> Result<(), ReadError> {
        Ok(())
    }

    fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }
}

fn apply(tables: &mut Tables, batch: &Batch) {
    for operation in batch.operations() {
        match operation {
            Operation::Put { table, key, value } => {
                tables.insert((table, key.to_vec()), value.to_vec());
            }
            Operation::Delete { table, key } => {
                tables.remove(&(table, key.to_vec()));
            }
            Operation::DeleteRange { table, from, to } => {
                let range = (table, from.to_vec())..(table, to.to_vec());
                let gone: Vec<_> = tables.range(range).map(|(key, _)| key.clone()).collect();
                gone.iter().for_each(|key| {
                    tables.remove(key);
                });
            }
        }
    }
}
