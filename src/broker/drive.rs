//! The scratch memory of one drive of queues.
//!
//! Owns the reusable vectors that a worker thread needs while it changes queues, and what it still
//! has to do when no lock is held any more: wake writers. One exists for each worker thread, so
//! that idle connections hold none and nothing is allocated in the steady state.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use rustc_hash::FxHashMap;

use super::dead_letter::{CHUNKS_AT_ONCE, Undertaker};
use super::{ConnectionId, QueueCell};
use crate::clock::Millis;
use crate::queue::{Effects, Queue, Records};
use crate::store::Ticket;

/// See the module's description.
#[derive(Debug, Default)]
pub struct Drive {
    /// The time at which everything in this drive happens.
    pub now: Millis,
    pub(crate) effects: Effects,
    /// Indices into the deliveries of [`Effects`], sorted by the connection they go to.
    pub(crate) buckets: Vec<Vec<u32>>,
    /// Which of the buckets is a connection's.
    pub(crate) bucket_of: FxHashMap<ConnectionId, usize>,
    /// What a queue leaves to the store.
    pub(crate) records: Records,
    /// What the store was given in this drive is durable when this is.
    pub(crate) ticket: Ticket,
    /// Whether that has messages.
    pub(crate) stores: bool,
    /// Whether a client is told that what is settled in this drive is gone.
    pub(crate) is_answered: bool,
    /// Writers and paced readers to wake when no lock is held.
    pub(crate) wakes: Vec<Waker>,
    /// Deleted queues, to be freed when no lock is held.
    pub(crate) deleted: Vec<Queue>,
    /// A queue whose consumers the current publisher outruns.
    pub(crate) outrun: Option<Arc<QueueCell>>,
    /// Queues whose dead letters are in hand here, to be published when no lock is held.
    pub(super) buriers: VecDeque<Arc<QueueCell>>,
    pub(super) undertaker: Undertaker,
}

impl Drive {
    /// Where to put those who are to be woken.
    pub fn wakes(&mut self) -> &mut Vec<Waker> {
        &mut self.wakes
    }

    /// Whether no drive was left half done.
    pub(crate) fn is_idle(&self) -> bool {
        self.effects.is_idle() && self.records.is_empty() && !self.is_answered
    }

    /// Forgets what a crashed drive left half done. Whoever was to be woken still is, and dead
    /// letters are published.
    pub(crate) fn forget(&mut self) {
        let (now, wakes) = (self.now, std::mem::take(&mut self.wakes));
        let buriers = std::mem::take(&mut self.buriers);
        *self = Self { now, wakes, buriers, ..Self::default() };
    }

    /// Publishes dead letters, wakes whom the drive has work for, and frees what was deleted.
    /// Called when no lock is held.
    pub fn finish(&mut self) {
        self.publish_dead_letters();
        // Only a publisher waits, and it has asked before.
        self.outrun = None;
        self.deleted.clear();
        self.wakes.drain(..).for_each(Waker::wake);
    }

    /// Publishes dead letters, those that this leads to included, up to a bound; the timer goes on
    /// with what is left. Called when no lock is held.
    pub(crate) fn publish_dead_letters(&mut self) {
        let mut chunks = 0;
        while let Some(queue) = self.buriers.front().cloned() {
            // Nobody would go on with those of a deleted queue.
            while (chunks < CHUNKS_AT_ONCE || queue.is_gone())
                && let Some(chunk) = queue.take_dead_letters()
            {
                chunks += 1;
                let mut undertaker = std::mem::take(&mut self.undertaker);
                if let Some(stuck) = undertaker.publish(&queue, chunk, self) {
                    queue.put_off_dead_letters(stuck, self);
                }
                self.undertaker = undertaker;
            }
            queue.leave_dead_letters(&mut self.wakes);
            self.buriers.pop_front();
        }
    }

    /// Whether messages were handed over to the store since the last call.
    pub(crate) fn take_stores(&mut self) -> bool {
        std::mem::take(&mut self.stores)
    }

    /// Notes that something was handed over to the store.
    pub(crate) fn await_store(&mut self, ticket: Ticket) {
        self.ticket = self.ticket.max(ticket);
    }

    /// When what was handed over since the last call is durable.
    pub(crate) fn take_ticket(&mut self) -> Ticket {
        std::mem::take(&mut self.ticket)
    }

    /// The queue that the publisher should wait for, if any (see [`QueueCell::poll_caught_up`]).
    pub fn take_outrun(&mut self) -> Option<Arc<QueueCell>> {
        self.outrun.take()
    }
}
