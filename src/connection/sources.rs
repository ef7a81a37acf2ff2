//! The queues that the deliveries of one channel come from.
//!
//! Owns their numbers, which deliverers put on what they note in the outbox, and how often each
//! queue is in use: by a consumer, or by a delivery that is to be settled. A number is given out
//! again once nothing uses its queue. It must not know consumers or deliveries.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::broker::QueueCell;
use crate::routing::QueueId;

#[derive(Debug)]
struct Source {
    queue: Arc<QueueCell>,
    uses: usize,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Sources {
    by_number: Vec<Option<Source>>,
    free: Vec<u32>,
    numbers: FxHashMap<QueueId, u32>,
}

impl Sources {
    /// The number of a queue, in use once more.
    pub(super) fn enter(&mut self, queue: &Arc<QueueCell>) -> u32 {
        if let Some(number) = self.numbers.get(&queue.id()) {
            let number = *number;
            self.enter_again(number);
            return number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.by_number.push(None);
            self.by_number.len() as u32 - 1
        });
        self.by_number[number as usize] = Some(Source { queue: queue.clone(), uses: 1 });
        self.numbers.insert(queue.id(), number);
        number
    }

    /// One more use of a queue that is in use.
    pub(super) fn enter_again(&mut self, number: u32) {
        let source = self.by_number[number as usize].as_mut();
        source.expect("a source lives while it is used").uses += 1;
    }

    /// Ends one use of a queue.
    pub(super) fn leave(&mut self, number: u32) {
        let place = &mut self.by_number[number as usize];
        // After a crash, a connection lets go of what it finds.
        let Some(source) = place else { return };
        source.uses -= 1;
        if source.uses == 0 {
            self.numbers.remove(&source.queue.id());
            *place = None;
            self.free.push(number);
        }
    }

    /// The queue of this number.
    pub(super) fn queue(&self, number: u32) -> &Arc<QueueCell> {
        let source = self.by_number[number as usize].as_ref();
        &source.expect("a source lives while it is used").queue
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Broker, ConnectionId, Declaration, Drive};
    use crate::config::Config;

    #[test]
    fn numbers_are_kept_while_used_and_given_out_again() {
        let broker = Broker::new(Arc::new(Config::default()), u64::MAX);
        let (vhost, mut drive) = (broker.vhost("/").expect("a default"), Drive::default());
        let [one, two, three] = ["one", "two", "three"].map(|name| {
            let declaration = Declaration::default();
            let declared = vhost.declare_queue(name, ConnectionId(1), declaration, &mut drive);
            declared.expect("a new queue")
        });
        let mut sources = Sources::default();
        assert_eq!([&one, &two, &one].map(|queue| sources.enter(queue)), [0, 1, 0]);
        sources.enter_again(0);
        (0..2).for_each(|_| sources.leave(0));
        assert_eq!([&one, &three].map(|queue| sources.enter(queue)), [0, 2]);
        (0..2).for_each(|_| sources.leave(0));
        assert_eq!([&two, &one].map(|queue| sources.enter(queue)), [1, 0]);
        sources.leave(2);
        assert_eq!(sources.enter(&three), 2);
        assert_eq!([0, 1, 2].map(|number| sources.queue(number).name()), ["one", "two", "three"]);
    }
}
