//! Who is there: the connections and channels of one user, or in one vhost.
//!
//! Owns the counts that limits are compared with, and the mark that the user or vhost is deleted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Occupancy {
    connections: AtomicUsize,
    channels: AtomicUsize,
    gone: AtomicBool,
}

/// A connection or channel that counts as long as this lives.
#[derive(Debug)]
pub(crate) struct Presence {
    occupancy: Arc<Occupancy>,
    count: fn(&Occupancy) -> &AtomicUsize,
}

impl Occupancy {
    /// Counts a connection; `None` when the limit is reached.
    pub(crate) fn enter(self: &Arc<Self>, max: Option<u32>) -> Option<Presence> {
        self.add(|occupancy| &occupancy.connections, max)
    }

    /// Counts a channel; `None` when the limit is reached.
    pub(crate) fn open_channel(self: &Arc<Self>, max: Option<u32>) -> Option<Presence> {
        self.add(|occupancy| &occupancy.channels, max)
    }

    fn add(
        self: &Arc<Self>,
        count: fn(&Self) -> &AtomicUsize,
        max: Option<u32>,
    ) -> Option<Presence> {
        let max = max.map_or(usize::MAX, |max| max as usize);
        let next = |present: usize| (present < max).then_some(present + 1);
        count(self).fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
        Some(Presence { occupancy: self.clone(), count })
    }

    /// The user or vhost is deleted: its connections have to go.
    pub(crate) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        (self.count)(&self.occupancy).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_left_makes_room() {
        let occupancy = Arc::new(Occupancy::default());
        assert!(occupancy.enter(Some(0)).is_none());
        let first = occupancy.enter(Some(1)).expect("room for one");
        assert!(occupancy.enter(Some(1)).is_none());
        let channel = occupancy.open_channel(Some(1)).expect("channels count for themselves");
        drop(first);
        assert!(occupancy.enter(Some(1)).is_some() && occupancy.open_channel(Some(1)).is_none());
        drop(channel);
        assert!(occupancy.open_channel(None).is_some());
    }
}
