//! The connections that are there.
//!
//! Owns the list that housekeeping and shutdown walk. It must not know what a connection does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use tokio::sync::Notify;

use super::stop::Stop;
use crate::broker::{ConnectionId, Outbox};
use crate::connection::Liveness;

/// What others need of a connection.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: Arc<str>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) liveness: Arc<Liveness>,
    pub(super) stop: Arc<Stop>,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Registry {
    entries: DashMap<ConnectionId, Entry>,
    count: AtomicUsize,
    emptied: Notify,
}

impl Registry {
    pub(super) fn add(&self, id: ConnectionId, entry: Entry) {
        self.count.fetch_add(1, Ordering::SeqCst);
        self.entries.insert(id, entry);
    }

    pub(super) fn remove(&self, id: ConnectionId) {
        if self.entries.remove(&id).is_some() && self.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.emptied.notify_waiters();
        }
    }

    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    pub(super) fn for_each(&self, mut visit: impl FnMut(&Entry)) {
        self.entries.iter().for_each(|entry| visit(&entry));
    }

    /// Returns when no connection is left.
    pub(super) async fn until_empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            emptied.await;
        }
    }
}
