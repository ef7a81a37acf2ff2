//! The broker-wide memory limit: what is counted, and the alarm.
//!
//! Owns the gauge of bytes that messages hold (queue segments, large bodies), when it is so high
//! that the alarm is set, and the bound on what clients have not finished. It must not know who
//! holds the bytes, nor how a publisher is blocked.
//!
//! The gauge is what the broker itself accounts for, not the resident size of the process: memory
//! that the allocator keeps after a burst must not block publishers for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::alarm::{Alarm, Alarms};
use crate::error::{AmqpError, ReplyCode};

/// See the module's description.
#[derive(Debug)]
pub struct Memory {
    used: AtomicI64,
    /// About the most that was used since [`Memory::take_peak`].
    peak: AtomicI64,
    /// Bytes of bodies that are still being received and of open transactions.
    unfinished: AtomicI64,
    unfinished_max: i64,
    limit: i64,
    alarms: Arc<Alarms>,
}

impl Memory {
    /// A gauge whose alarm is on while more than `limit_bytes` are used. What is unfinished may
    /// take a quarter as much, but always one message of `message_bytes_max`.
    pub fn new(limit_bytes: u64, message_bytes_max: u64) -> Self {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        Self {
            used: AtomicI64::new(0),
            peak: AtomicI64::new(0),
            unfinished: AtomicI64::new(0),
            unfinished_max: signed((limit_bytes / 4).max(message_bytes_max)),
            limit: signed(limit_bytes),
            alarms: Arc::default(),
        }
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        u64::try_from(self.used.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Bytes in use, and about the most that were since this was asked last.
    pub fn take_peak(&self) -> (u64, u64) {
        let used = self.used();
        let peak = self.peak.swap(self.used.load(Ordering::Relaxed), Ordering::Relaxed);
        (used, u64::try_from(peak).unwrap_or(0).max(used))
    }

    /// Adds a change in bytes, and sets or clears the alarm. Cheap enough for once a batch.
    pub(crate) fn add(&self, change: i64) {
        if change == 0 {
            return;
        }
        let used = self.used.fetch_add(change, Ordering::SeqCst) + change;
        if used > self.peak.load(Ordering::Relaxed) {
            self.peak.store(used, Ordering::Relaxed);
        }
        if self.is_over(used) != self.is_alarmed() {
            self.switch();
        }
    }

    /// Some room below the limit keeps the alarm from flapping.
    fn is_over(&self, used: i64) -> bool {
        if self.is_alarmed() { used > self.limit / 5 * 4 } else { used > self.limit }
    }

    fn is_alarmed(&self) -> bool {
        self.alarms.is_set(Alarm::Memory)
    }

    /// Whether messages should leave memory for the disk, where that can be: half of the limit is
    /// used.
    pub(crate) fn is_pressed(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.limit / 2
    }

    /// The alarms, of which the gauge sets one.
    pub(super) fn alarms(&self) -> &Arc<Alarms> {
        &self.alarms
    }

    #[cold]
    fn switch(&self) {
        let is_short = || self.is_over(self.used.load(Ordering::SeqCst));
        let switched = self.alarms.switch(Alarm::Memory, is_short);
        let (used_bytes, limit_bytes) = (self.used(), self.limit);
        match switched {
            Some(true) => {
                tracing::warn!(used_bytes, limit_bytes, "memory alarm set: publishers are blocked");
            }
            Some(false) => tracing::info!(used_bytes, limit_bytes, "memory alarm cleared"),
            None => {}
        }
    }
}

/// Bytes that a client has sent but not finished: a body that is being received, an open
/// transaction. They are not in the gauge, because no consumer can make room for them: a client
/// that never finishes could keep the alarm on for ever. Instead all of them together have a bound
/// (see [`Memory::new`]).
#[derive(Debug)]
pub(crate) struct Unfinished {
    memory: Arc<Memory>,
    bytes: i64,
}

impl Unfinished {
    pub(crate) fn new(memory: &Arc<Memory>) -> Self {
        Self { memory: memory.clone(), bytes: 0 }
    }

    /// Counts `bytes` from now on, instead of what was counted before.
    ///
    /// # Errors
    /// `RESOURCE_ERROR`, which closes the connection, when there is no more room.
    pub(crate) fn resize(&mut self, bytes: usize) -> Result<(), AmqpError> {
        let change = bytes as i64 - self.bytes;
        let total = self.memory.unfinished.fetch_add(change, Ordering::Relaxed) + change;
        if change > 0 && total > self.memory.unfinished_max {
            // Counted all the same, it would be taken when it is asked for again.
            self.memory.unfinished.fetch_sub(change, Ordering::Relaxed);
            let text = "no memory for more incomplete messages and open transactions";
            return Err(AmqpError::new(ReplyCode::ResourceError, text));
        }
        self.bytes = bytes as i64;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.memory.unfinished.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A large body with its place in the gauge: for [`bytes::Bytes::from_owner`].
#[derive(Debug)]
pub(crate) struct CountedBody {
    body: Vec<u8>,
    memory: Arc<Memory>,
}

impl CountedBody {
    pub(crate) fn new(body: Vec<u8>, memory: &Arc<Memory>) -> Self {
        memory.add(body.capacity() as i64);
        Self { body, memory: memory.clone() }
    }
}

impl Drop for CountedBody {
    fn drop(&mut self) {
        self.memory.add(-(self.body.capacity() as i64));
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
    fn the_peak_is_known_between_two_looks() {
        let memory = Memory::new(1600, 0);
        memory.add(1000);
        memory.add(-900);
        assert_eq!(memory.take_peak(), (100, 1000));
        assert_eq!(memory.take_peak(), (100, 100));
        memory.add(-50);
        assert_eq!(memory.take_peak(), (50, 100));
    }

    #[test]
    fn the_alarm_follows_the_gauge() {
        let memory = Arc::new(Memory::new(1600, 0));
        memory.add(1600);
        assert!(!memory.is_alarmed());
        let body = CountedBody::new(vec![0; 1], &memory);
        assert!(memory.is_alarmed());
        drop(body);
        assert!(memory.is_alarmed(), "a little below the limit is not enough");
        memory.add(-320);
        assert!(!memory.is_alarmed());
        assert_eq!(memory.used(), 1280);
    }

    #[test]
    fn the_alarm_is_right_in_the_end_whoever_comes_last() {
        let memory = Arc::new(Memory::new(1000, 0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50_000 {
                        memory.add(600);
                        memory.add(-600);
                    }
                });
            }
        });
        assert_eq!((memory.used(), memory.is_alarmed()), (0, false));
    }

    #[test]
    fn what_is_unfinished_has_a_quarter_and_sets_no_alarm() {
        let memory = Arc::new(Memory::new(1000, 100));
        let (mut first, mut second) = (Unfinished::new(&memory), Unfinished::new(&memory));
        assert!(first.resize(200).is_ok());
        let refused = second.resize(51).expect_err("a quarter is 250");
        assert_eq!(refused.code, ReplyCode::ResourceError);
        assert!(second.resize(51).is_err(), "it is not taken the second time");
        assert!(second.resize(50).is_ok(), "less is always taken");
        drop(first);
        assert!(second.resize(250).is_ok());
        assert_eq!((memory.used(), memory.is_alarmed()), (0, false));
    }
}
