//! The queues exclusive to a connection, which are deleted when it ends.
//!
//! Owns the list of them. A queue may go without its connection (it expires, or is deleted with its
//! last consumer), so the list is gone through whenever it has doubled: adding one takes the same
//! time however many there are. It must not delete queues.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::broker::QueueCell;
use crate::routing::QueueId;

/// So many are kept before any is looked for that is gone.
const UNLOOKED_MAX: usize = 8;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Owned {
    /// The oldest first.
    queues: BTreeMap<QueueId, Arc<QueueCell>>,
    /// How many were left by the last look.
    looked: usize,
}

impl Owned {
    /// Adds a queue, which may be there already.
    pub(super) fn add(&mut self, queue: &Arc<QueueCell>) {
        if self.queues.len() >= self.looked * 2 + UNLOOKED_MAX {
            self.queues.retain(|_, queue| !queue.is_gone());
            self.looked = self.queues.len();
        }
        self.queues.insert(queue.id(), queue.clone());
    }

    pub(super) fn remove(&mut self, queue: &QueueCell) {
        self.queues.remove(&queue.id());
    }

    /// Takes all, the oldest first.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Arc<QueueCell>> + use<> {
        std::mem::take(self).queues.into_values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Broker, ConnectionId, Declaration, DeleteIf, Drive, Vhost};
    use crate::config::Config;

    fn declare(vhost: &Vhost, name: &str, drive: &mut Drive) -> Arc<QueueCell> {
        let declaration = Declaration { owner: Some(ConnectionId(1)), ..Declaration::default() };
        vhost.declare_queue(name, ConnectionId(1), declaration, drive).expect("a new queue")
    }

    #[test]
    fn what_is_gone_is_forgotten_and_the_rest_is_taken_in_order() {
        let broker = Broker::new(Arc::new(Config::default()), u64::MAX);
        let (vhost, mut drive) = (broker.vhost("/").expect("a default"), Drive::default());
        let mut owned = Owned::default();
        let first = declare(&vhost, "first", &mut drive);
        owned.add(&first);
        for number in 0..100 {
            let queue = declare(&vhost, &number.to_string(), &mut drive);
            owned.add(&queue);
            vhost.delete_queue(&queue, DeleteIf::default(), &mut drive).expect("unconditional");
        }
        assert!(owned.queues.len() < 2 * UNLOOKED_MAX, "{}", owned.queues.len());
        let last = declare(&vhost, "last", &mut drive);
        let removed = declare(&vhost, "removed", &mut drive);
        [&last, &removed, &first].into_iter().for_each(|queue| owned.add(queue));
        owned.remove(&removed);
        let left: Vec<_> = owned.take().filter(|queue| !queue.is_gone()).collect();
        assert_eq!(left.iter().map(|queue| queue.name()).collect::<Vec<_>>(), ["first", "last"]);
        assert_eq!(owned.take().count(), 0);
    }
}
