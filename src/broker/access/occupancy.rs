//! Who is there: the connections and channels of one user, or in one vhost.
//!
//! Owns the counts that limits are compared with, and the mark that the user or vhost is deleted.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Occupancy {
    connections: AtomicUsize,
    channels: AtomicUsize,
    gone: AtomicBool,
}

impl Occupancy {
    /// Counts a connection; `false` when the limit is reached.
    pub(crate) fn add_connection(&self, max: Option<u32>) -> bool {
        add(&self.connections, max)
    }

    pub(crate) fn remove_connection(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a channel; `false` when the limit is reached.
    pub(crate) fn add_channel(&self, max: Option<u32>) -> bool {
        add(&self.channels, max)
    }

    pub(crate) fn remove_channel(&self) {
        self.channels.fetch_sub(1, Ordering::Relaxed);
    }

    /// The user or vhost is deleted: its connections have to go.
    pub(crate) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }
}

fn add(count: &AtomicUsize, max: Option<u32>) -> bool {
    let max = max.map_or(usize::MAX, |max| max as usize);
    let next = |count: usize| (count < max).then_some(count + 1);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
}
