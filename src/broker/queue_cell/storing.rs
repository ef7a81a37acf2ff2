//! The traffic between a durable queue and the store.
//!
//! Owns the handing over of what each drive leaves, while the queue is locked, so that the order in
//! the store is the queue's; the queue's window of memory; and the reading of what is to come into
//! it, which takes place without the lock. It must not wait for the disk under the lock.

use std::sync::Arc;

use super::{QueueCell, State, no_content};
use crate::broker::drive::Drive;
use crate::clock::Millis;
use crate::queue::{LaneHead, Loaded, Place, Queue, Wanted};
use crate::store::Store;

/// So much is read at once (bytes).
const LOAD_BYTES: usize = 512 * 1024;

/// After this many milliseconds, what could not be read is tried again.
const RETRY_MS: u64 = 1000;

/// Whether messages are being read from the store.
#[derive(Debug, Default)]
pub(super) struct Loading {
    is_under_way: bool,
    /// Not before: reading has failed.
    pub(super) retry_at: Option<Millis>,
}

/// While memory is short, a queue keeps no more than this of its ready messages there (bytes).
const PRESSED_BYTES: usize = 1024 * 1024;

/// Messages that were read.
enum Read {
    /// From the store.
    Stored(Loaded),
    /// What was put aside under this number.
    Piece(u64, Vec<u8>),
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl QueueCell {
    /// Where the queue's messages are kept, if anywhere.
    pub(in crate::broker) fn store(&self) -> Option<&Arc<Store>> {
        self.store.as_ref()
    }

    /// Hands over what this drive leaves to the store, lets go of what need not be in memory, and
    /// asks for what is needed there. Ends a drive.
    pub(super) fn keep(self: &Arc<Self>, state: &mut State, drive: &mut Drive) {
        let is_pressed = self.services.memory.is_pressed();
        if let Some(store) = &self.store {
            state.queue.hand_over(&mut drive.records);
            if !drive.records.is_empty() && !state.gone {
                let ticket = store.submit(self.id.0, &mut drive.records);
                state.queue.handed_over(ticket.group());
                drive.await_store(ticket);
            }
            drive.records.clear();
            let budget = self.services.queue_memory();
            let budget = if is_pressed { budget.min(PRESSED_BYTES) } else { budget };
            let is_written = |group| store.is_written(group);
            state.queue.evict(budget, &is_written, &mut drive.effects);
        }
        if let Some(spill) = &self.services.spill {
            if is_pressed {
                let spilled =
                    state.queue.spill(PRESSED_BYTES, |piece| spill.put(piece), &mut drive.effects);
                if let Err(error) = spilled {
                    let queue = self.name();
                    tracing::warn!(queue, "messages cannot be moved to the disk: {error}");
                }
            }
            let dropped = drive.effects.take_dropped_pieces();
            dropped.into_iter().for_each(|piece| spill.remove(piece));
        }
        let is_due = state.loading.retry_at.is_none_or(|at| at <= drive.now);
        if !state.loading.is_under_way && is_due && !state.gone && state.queue.wanted().is_some() {
            state.loading = Loading { is_under_way: true, retry_at: None };
            self.services.loads.ask(self.clone());
        }
    }

    /// Reads what the queue wants, which takes a while; then delivers.
    pub(crate) fn load_wanted(self: &Arc<Self>, drive: &mut Drive) {
        let wanted = self.lock().queue.wanted();
        let is_read = wanted.is_none_or(|wanted| self.load(wanted, drive));
        let mut state = self.lock();
        let state = &mut *state;
        let retry_at = (!is_read).then_some(Millis(drive.now.0 + RETRY_MS));
        state.loading = Loading { is_under_way: false, retry_at };
        self.dispatch(state, &no_content, drive);
    }

    /// Reads messages into the queue; `false` when that fails. The queue is not locked meanwhile.
    pub(super) fn load(self: &Arc<Self>, wanted: Wanted, drive: &mut Drive) -> bool {
        match self.read(wanted) {
            Ok(read) => {
                let mut state = self.lock();
                self.take_in(&mut state, wanted, read);
                self.keep(&mut state, drive);
                self.count_memory(&mut state);
                true
            }
            Err(error) => {
                let queue = self.name();
                tracing::error!(queue, "messages cannot be read from the disk: {error}");
                false
            }
        }
    }

    fn read(&self, wanted: Wanted) -> Result<Read, String> {
        if let Some(number) = wanted.spilled {
            let spill = self.services.spill.as_ref().expect("it was put there");
            return spill.get(number).map(|piece| Read::Piece(number, piece)).map_err(text);
        }
        let store = self.store.as_ref().expect("only a durable queue has messages there");
        let chunk = store.read(self.id.0, wanted.lane, wanted.from, LOAD_BYTES).map_err(text)?;
        Ok(Read::Stored(Loaded::build(wanted, chunk.end, &chunk.runs, &chunk.marks)))
    }

    fn take_in(&self, state: &mut State, wanted: Wanted, read: Read) {
        if state.gone {
            return;
        }
        match read {
            Read::Piece(number, piece) => {
                if state.queue.take_back(wanted, number, &piece)
                    && let Some(spill) = &self.services.spill
                {
                    spill.remove(number);
                }
            }
            Read::Stored(loaded) => {
                let lost = state.queue.install(loaded);
                if lost > 0 {
                    let queue = self.name();
                    tracing::error!(queue, lost, "the store has lost messages of this queue");
                }
            }
        }
    }

    /// Makes a queue that was just made hold what the store has of it.
    pub(crate) fn restore(self: &Arc<Self>, heads: &[LaneHead], drive: &mut Drive) {
        let mut state = self.lock();
        let state = &mut *state;
        state.queue.restore(heads);
        self.dispatch(state, &no_content, drive);
    }

    /// The queue, which this was, is deleted with its messages.
    pub(super) fn forget_messages(&self, queue: &Queue, drive: &mut Drive) {
        if let Some(spill) = &self.services.spill {
            queue.pieces().into_iter().for_each(|piece| spill.remove(piece));
        }
        if let Some(store) = &self.store {
            drive.await_store(store.forget_queue(self.id.0));
        }
    }

    /// Lets the store forget dead letters whose copies it has by now.
    pub(in crate::broker) fn bury(self: &Arc<Self>, dead: &[Place], drive: &mut Drive) {
        if dead.is_empty() {
            return;
        }
        let mut state = self.lock();
        let state = &mut *state;
        if !state.gone {
            state.queue.bury(dead);
            self.keep(state, drive);
        }
    }
}
