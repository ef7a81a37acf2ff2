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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::prefetch::ChannelPrefetch;
    use super::*;
    use crate::clock::Millis;
    use crate::queue::{Body, ConsumerSpec, Content, Effects, Settings};

    /// A queue with a backlog beyond the bound, and as many consumers that take nothing.
    fn backlogged(consumers: usize) -> Queue {
        let mut queue = Queue::new(Settings::default());
        for _ in 0..consumers {
            let gate = Arc::new(ChannelPrefetch::default());
            let spec = ConsumerSpec { no_ack: true, prefetch: 0, priority: 0, window: 0, gate };
            queue.subscribe(spec);
        }
        let body = vec![0; 8 * 1024];
        let content = Content { address: b"\0\0", header: &[0; 14], body: Body::Inline(&body) };
        for token in 0..400 {
            queue.enqueue(&content, token, Millis::default(), &mut Effects::default());
        }
        assert!(queue.backlog_bytes() > BACKLOG_MAX_BYTES);
        queue
    }

    #[test]
    fn a_queue_without_consumers_holds_nobody() {
        let mut pacing = Pacing::default();
        assert!(!pacing.is_outrun(&backlogged(0)));
        assert!(!pacing.is_outrun(&Queue::new(Settings::default())));
    }

    #[test]
    fn consumers_that_make_no_headway_hold_nobody_for_long() {
        let (mut pacing, queue) = (Pacing::default(), backlogged(1));
        assert!(pacing.is_outrun(&queue));
        let mut delivered = 0;
        pacing.delivered(HEADWAY_MIN as usize);
        assert!(pacing.is_catching_up(&mut delivered));
        assert!(!pacing.is_catching_up(&mut delivered), "nothing was delivered since");
        let unpaced = (0..1000).take_while(|_| !pacing.is_outrun(&queue)).count();
        assert_eq!(unpaced, UNPACED_BATCHES as usize);
    }

    #[test]
    fn waiting_publishers_go_on_when_the_backlog_is_gone() {
        let (mut pacing, mut queue) = (Pacing::default(), backlogged(1));
        let mut context = Context::from_waker(Waker::noop());
        assert!(pacing.poll_caught_up(&queue, &mut context).is_pending());
        let mut wakes = Vec::new();
        pacing.progress(&queue, &mut wakes);
        assert!(wakes.is_empty());
        queue.purge(&mut Effects::default());
        pacing.progress(&queue, &mut wakes);
        assert_eq!(wakes.len(), 1);
        assert!(pacing.poll_caught_up(&queue, &mut context).is_ready());
    }
}
