//! What the store counts.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::group::Formed;

/// Counts since the store was opened.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Groups that were written.
    pub(crate) groups: AtomicU64,
    /// Syncs, also those that came with a write.
    pub(crate) syncs: AtomicU64,
    /// What syncs took, with the writes that they came with, in microseconds: all and the longest.
    pub(crate) sync_us: AtomicU64,
    pub(crate) sync_us_max: AtomicU64,
    /// Keys and values.
    pub(crate) written_bytes: AtomicU64,
    pub(crate) written_messages: AtomicU64,
    /// Messages that were settled before they were written.
    pub(crate) skipped_messages: AtomicU64,
}

impl Metrics {
    pub(super) fn add_group(&self, formed: &Formed, bytes: usize) {
        self.groups.fetch_add(1, Relaxed);
        self.written_bytes.fetch_add(bytes as u64, Relaxed);
        self.written_messages.fetch_add(formed.messages, Relaxed);
        self.skipped_messages.fetch_add(formed.skipped, Relaxed);
    }

    pub(super) fn add_sync(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.syncs.fetch_add(1, Relaxed);
        self.sync_us.fetch_add(us, Relaxed);
        self.sync_us_max.fetch_max(us, Relaxed);
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = |count: &AtomicU64| count.load(Relaxed);
        write!(
            f,
            "{} messages in {} groups, {} bytes; {} messages were settled first; {} syncs took {} \
             us, the longest {} us",
            all(&self.written_messages),
            all(&self.groups),
            all(&self.written_bytes),
            all(&self.skipped_messages),
            all(&self.syncs),
            all(&self.sync_us),
            all(&self.sync_us_max),
        )
    }
}
