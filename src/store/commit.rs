//! The store's thread.
//!
//! Owns the order of writing, syncing and telling, and what happens when the disk does not do as
//! it should. There is one such thread, and nobody else writes.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use super::SyncMode;
use super::batch::Batch;
use super::directory::SyncedMark;
use super::engine::WriteError;
use super::group::Former;
use super::reclaim::Reclaim;
use super::waiting::{Group, Shared, Work};

/// What nobody waits for is synced so long after it was written, at the latest.
const SYNC_DELAY: Duration = Duration::from_millis(100);

/// A full disk is tried again so often.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The memory of a batch that is kept for the next (bytes).
const BATCH_BYTES_KEPT: usize = 4 * 1024 * 1024;

/// See the module's description.
pub(super) struct Committer {
    shared: Arc<Shared>,
    former: Former,
    reclaim: Reclaim,
    batch: Batch,
    mode: SyncMode,
    mark: Option<SyncedMark>,
    /// The newest group that is written.
    written: u64,
    /// The newest group that whoever waits may rely on.
    durable: u64,
    /// When the first group was written that has to last and is not synced.
    unsynced_since: Option<Instant>,
}

/// Tells everybody when the thread ends, whatever the reason.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        let failure = thread::panicking().then(|| "its thread has panicked".to_owned());
        self.0.end(failure);
    }
}

impl Committer {
    pub(super) fn new(
        shared: Arc<Shared>,
        former: Former,
        mode: SyncMode,
        mark: Option<SyncedMark>,
        newest: u64,
    ) -> Self {
        Self {
            shared,
            former,
            reclaim: Reclaim::new(Instant::now()),
            batch: Batch::default(),
            mode,
            mark,
            written: newest,
            durable: newest,
            unsynced_since: None,
        }
    }

    pub(super) fn run(mut self) {
        let _end = End(self.shared.clone());
        loop {
            let idle_at = self.reclaim.due_at(&self.former.lanes);
            let step = match self.shared.next_work(self.durable, self.sync_at(), idle_at) {
                Work::Write { group, is_wanted } => self.write(group, is_wanted),
                Work::Sync => self.sync(),
                Work::Idle => self.reclaim(),
                Work::Close => match self.close() {
                    Ok(()) => return,
                    Err(reason) => Err(reason),
                },
            };
            if let Err(reason) = step {
                return self.fail(reason);
            }
        }
    }

    /// When what is unsynced is to be synced although nobody asks.
    fn sync_at(&self) -> Option<Instant> {
        let delay = match self.mode {
            SyncMode::Always => SYNC_DELAY,
            SyncMode::Interval(ms) => Duration::from_millis(ms),
            SyncMode::Os => return None,
        };
        self.unsynced_since.map(|since| since + delay)
    }

    fn write(&mut self, group: Group, is_wanted: bool) -> Result<(), String> {
        let now = Instant::now();
        if self.reclaim.due_at(&self.former.lanes).is_some_and(|at| now >= at) {
            self.reclaim.step(&mut self.former.lanes, &self.shared, &mut self.batch);
        }
        let formed = self.former.form(&group.items, group.number, now, &mut self.batch);
        if formed.has_bodies {
            self.reclaim.note_bodies();
        }
        let must_sync = formed.must_last || self.unsynced_since.is_some();
        let is_due = self.sync_at().is_some_and(|at| now >= at);
        let sync = must_sync && (is_due || (is_wanted && self.mode == SyncMode::Always));
        self.write_batch(sync)?;
        self.shared.metrics.add_group(&formed, self.batch.size());
        self.batch.clear(BATCH_BYTES_KEPT);
        self.written = group.number;
        self.shared.set_written(group);
        if sync {
            self.is_synced();
        } else if formed.must_last {
            self.unsynced_since.get_or_insert_with(Instant::now);
        }
        self.tell();
        Ok(())
    }

    /// Gives space back while nothing else is to be done.
    fn reclaim(&mut self) -> Result<(), String> {
        self.reclaim.step(&mut self.former.lanes, &self.shared, &mut self.batch);
        if !self.batch.is_empty() {
            self.write_batch(false)?;
            self.batch.clear(BATCH_BYTES_KEPT);
        }
        Ok(())
    }

    /// Writes the batch, and waits for room if the disk is full.
    fn write_batch(&mut self, sync: bool) -> Result<(), String> {
        loop {
            let start = Instant::now();
            match self.shared.engine.write(&self.batch, sync) {
                Ok(()) => {
                    if sync {
                        self.shared.metrics.add_sync(start.elapsed());
                    }
                    if self.shared.is_full() {
                        info!("the store has room again and goes on");
                        self.shared.set_full(false);
                    }
                    return Ok(());
                }
                Err(WriteError::NoSpace(reason)) => {
                    if !self.shared.is_full() {
                        error!(
                            reason,
                            "the disk of the store is full: persistent messages are not confirmed \
                             until there is room; free some"
                        );
                        self.shared.set_full(true);
                    }
                    if self.shared.wait_for_close(RETRY_DELAY) {
                        return Err(format!("the disk was full at the end: {reason}"));
                    }
                }
                Err(WriteError::Failed(reason)) => return Err(reason),
            }
        }
    }

    fn sync(&mut self) -> Result<(), String> {
        if self.unsynced_since.is_some() {
            self.sync_engine()?;
        }
        self.tell();
        Ok(())
    }

    fn sync_engine(&mut self) -> Result<(), String> {
        let start = Instant::now();
        self.shared.engine.sync().map_err(|error| error.to_string())?;
        self.shared.metrics.add_sync(start.elapsed());
        self.is_synced();
        Ok(())
    }

    /// Everything that is written is synced.
    fn is_synced(&mut self) {
        self.unsynced_since = None;
        if let Some(mark) = &self.mark
            && let Err(error) = mark.set(self.written)
        {
            // It only serves to notice a loss.
            warn!(%error, "cannot note what is synced: a loss may go unnoticed");
        }
    }

    /// Tells those who wait, as far as they may rely on it.
    fn tell(&mut self) {
        if self.mode != SyncMode::Always || self.unsynced_since.is_none() {
            self.durable = self.written;
            self.shared.complete(self.durable);
        }
    }

    fn close(&mut self) -> Result<(), String> {
        self.sync_engine()?;
        self.tell();
        self.shared.engine.close();
        debug!(group = self.written, "store closed: {}", self.shared.metrics);
        Ok(())
    }

    /// From here on nothing is written.
    fn fail(&mut self, reason: String) {
        error!(
            reason,
            "the store cannot write any more: persistent messages are not confirmed; mend the disk \
             and restart the broker"
        );
        self.shared.end(Some(reason));
    }
}
