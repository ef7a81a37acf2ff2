//! When a publisher that outruns willing consumers waits for them.
//!
//! Owns the decision, and the publishers that wait at one queue. On a machine whose CPUs are shared
//! by both sides, an unpaced publisher starves its consumers: a backlog grows, messages leave the
//! cache, and everything slows down. So a publisher waits a moment when the backlog it builds in a
//! queue *that has consumers* is larger than [`BACKLOG_MAX_BYTES`], and goes on as soon as the
//! consumers have caught up. A slow or stuck consumer must never hold a publisher (the queue's job
//! is to buffer): the publisher waits only while consumers make so much headway that the CPU is
//! plainly what they lack, and never longer than `net` allows for one batch.

use std::task::{Context, Poll, Waker};

use crate::queue::Queue;

/// A backlog (bytes on the wire) above this is worth waiting for. Twice the largest read.
const BACKLOG_MAX_BYTES: u64 = 1536 * 1024;

/// Publishers go on when the backlog is down to this.
const BACKLOG_LOW_BYTES: u64 = 512 * 1024;

/// Deliveries between two looks (2 ms apart) below which waiting is pointless: consumers that take
/// fewer than 20,000 messages a second while publishers pause are limited by something else.
const HEADWAY_MIN: u64 = 40;

/// Batches that are not paced after waiting proved pointless.
const UNPACED_BATCHES: u32 = 16;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Pacing {
    waiting: Vec<Waker>,
    /// Messages delivered, ever.
    delivered: u64,
    unpaced_batches: u32,
}

impl Pacing {
    /// Whether a publisher that has just added to `queue` should wait.
    pub(super) fn is_outrun(&mut self, queue: &Queue) -> bool {
        if queue.backlog_bytes() <= BACKLOG_MAX_BYTES || queue.consumer_count() == 0 {
            return false;
        }
        if self.unpaced_batches > 0 {
            self.unpaced_batches -= 1;
            return false;
        }
        true
    }

    pub(super) fn delivered(&mut self, count: usize) {
        self.delivered += count as u64;
    }

    pub(super) fn poll_caught_up(&mut self, queue: &Queue, context: &mut Context<'_>) -> Poll<()> {
        if queue.backlog_bytes() <= BACKLOG_LOW_BYTES || queue.consumer_count() == 0 {
            return Poll::Ready(());
        }
        if !self.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            self.waiting.push(context.waker().clone());
        }
        Poll::Pending
    }

    /// See [`super::QueueCell::is_catching_up`].
    pub(super) fn is_catching_up(&mut self, delivered: &mut u64) -> bool {
        let headway = self.delivered - *delivered;
        *delivered = self.delivered;
        let enough = headway >= HEADWAY_MIN;
        if !enough {
            self.unpaced_batches = UNPACED_BATCHES;
        }
        enough
    }

    /// Lets waiting publishers go on when the backlog is low.
    pub(super) fn progress(&mut self, queue: &Queue, wakes: &mut Vec<Waker>) {
        if !self.waiting.is_empty() && queue.backlog_bytes() <= BACKLOG_LOW_BYTES {
            self.release(wakes);
        }
    }

    /// Lets waiting publishers go on.
    pub(super) fn release(&mut self, wakes: &mut Vec<Waker>) {
        wakes.append(&mut self.waiting);
    }
}
