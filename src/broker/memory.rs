//! The broker-wide memory limit: what is counted, and the alarm.
//!
//! Owns the gauge of bytes that messages hold (queue segments, large bodies, bodies still being
//! received, open transactions), and the alarm that blocks publishers while the gauge is above the
//! limit. It must not know who holds the bytes, nor how a publisher is blocked.
//!
//! The gauge is what the broker itself accounts for, not the resident size of the process: memory
//! that the allocator keeps after a burst must not block publishers for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// See the module's description.
#[derive(Debug)]
pub struct Memory {
    used: AtomicI64,
    limit: i64,
    alarmed: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

impl Memory {
    /// A gauge whose alarm is on while more than `limit_bytes` are used.
    pub fn new(limit_bytes: u64) -> Self {
        Self {
            used: AtomicI64::new(0),
            limit: i64::try_from(limit_bytes).unwrap_or(i64::MAX),
            alarmed: AtomicBool::new(false),
            waiting: Mutex::new(Vec::new()),
        }
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        u64::try_from(self.used.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Bytes in use above which the alarm is on.
    pub fn limit(&self) -> u64 {
        self.limit.unsigned_abs()
    }

    /// Adds a change in bytes, and sets or clears the alarm. Cheap enough for once a batch.
    pub(crate) fn add(&self, change: i64) {
        if change == 0 {
            return;
        }
        let used = self.used.fetch_add(change, Ordering::SeqCst) + change;
        if self.is_over(used) != self.is_alarmed() {
            self.switch();
        }
    }

    /// Some room below the limit keeps the alarm from flapping.
    fn is_over(&self, used: i64) -> bool {
        if self.is_alarmed() { used > self.limit / 5 * 4 } else { used > self.limit }
    }

    /// Whether publishers are to be blocked.
    pub fn is_alarmed(&self) -> bool {
        self.alarmed.load(Ordering::SeqCst)
    }

    /// Ready when publishers may go on.
    pub fn poll_clear(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut waiting = self.waiting.lock();
        if !self.is_alarmed() {
            return Poll::Ready(());
        }
        waiting.push(context.waker().clone());
        Poll::Pending
    }

    #[cold]
    fn switch(&self) {
        let (alarmed, wakers) = {
            let mut waiting = self.waiting.lock();
            // Looked at afresh under the lock: the last one here has seen all changes before it.
            let alarmed = self.is_over(self.used.load(Ordering::SeqCst));
            if self.alarmed.swap(alarmed, Ordering::SeqCst) == alarmed {
                return;
            }
            (alarmed, if alarmed { Vec::new() } else { std::mem::take(&mut *waiting) })
        };
        let (used_bytes, limit_bytes) = (self.used(), self.limit);
        if alarmed {
            tracing::warn!(used_bytes, limit_bytes, "memory alarm set: publishers are blocked");
        } else {
            tracing::info!(used_bytes, limit_bytes, "memory alarm cleared");
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Bytes that are counted for as long as this lives.
#[derive(Debug)]
pub(crate) struct Reservation {
    memory: Arc<Memory>,
    bytes: i64,
}

impl Reservation {
    pub(crate) fn new(memory: &Arc<Memory>) -> Self {
        Self { memory: memory.clone(), bytes: 0 }
    }

    /// Counts `bytes` from now on, instead of what was counted before.
    pub(crate) fn resize(&mut self, bytes: usize) {
        let bytes = bytes as i64;
        self.memory.add(bytes - self.bytes);
        self.bytes = bytes;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.memory.add(-self.bytes);
    }
}

/// A large body with its place in the gauge: for [`bytes::Bytes::from_owner`].
#[derive(Debug)]
pub(crate) struct CountedBody {
    body: Vec<u8>,
    _reservation: Reservation,
}

impl CountedBody {
    pub(crate) fn new(body: Vec<u8>, mut reservation: Reservation) -> Self {
        reservation.resize(body.capacity());
        Self { body, _reservation: reservation }
    }
}

impl AsRef<[u8]> for CountedBody {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alarm_follows_the_gauge() {
        let memory = Arc::new(Memory::new(1600));
        let mut first = Reservation::new(&memory);
        first.resize(1600);
        assert!(!memory.is_alarmed());
        let mut second = Reservation::new(&memory);
        second.resize(1);
        assert!(memory.is_alarmed());
        drop(second);
        assert!(memory.is_alarmed(), "a little below the limit is not enough");
        first.resize(1280);
        assert!(!memory.is_alarmed());
        drop(first);
        assert_eq!(memory.used(), 0);
    }
}
