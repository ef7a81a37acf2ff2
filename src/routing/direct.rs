//! Targets of bindings, and the two exchange types that only look a key up or not even that.
//!
//! Owns [`TargetSet`], the duplicate-free list of what one key leads to, with the direct and
//! fanout exchanges made of it. It must not know how names map to targets.

use std::collections::HashMap;

use rustc_hash::FxHashMap;

use super::QueueId;
use super::exchange::ExchangeSlot;

/// What a binding leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Target {
    Queue(QueueId),
    Exchange(ExchangeSlot),
}

/// What the matching bindings of one exchange lead to, possibly with repetitions.
#[derive(Debug, Default)]
pub(crate) struct Matches {
    pub(crate) queues: Vec<QueueId>,
    pub(crate) exchanges: Vec<ExchangeSlot>,
}

impl Matches {
    pub(crate) fn clear(&mut self) {
        self.queues.clear();
        self.exchanges.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.queues.len() + self.exchanges.len()
    }

    pub(crate) fn push(&mut self, target: Target) {
        match target {
            Target::Queue(queue) => self.queues.push(queue),
            Target::Exchange(exchange) => self.exchanges.push(exchange),
        }
    }
}

/// Sets above this size get an index, so that removal does not search the list.
const INDEXED_FROM: usize = 16;

/// The targets of one key. Several bindings may lead from one key to one target (they differ in
/// their arguments, or in keys that do not matter), so each target is counted.
#[derive(Debug, Default)]
pub(crate) struct TargetSet {
    counted: Vec<(Target, u32)>,
    /// Where each target stands in `counted`; only for large sets.
    positions: Option<Box<FxHashMap<Target, usize>>>,
}

impl TargetSet {
    pub(crate) fn is_empty(&self) -> bool {
        self.counted.is_empty()
    }

    fn position(&self, target: Target) -> Option<usize> {
        match &self.positions {
            Some(positions) => positions.get(&target).copied(),
            None => self.counted.iter().position(|entry| entry.0 == target),
        }
    }

    pub(crate) fn insert(&mut self, target: Target) {
        if let Some(at) = self.position(target) {
            self.counted[at].1 += 1;
            return;
        }
        let at = self.counted.len();
        self.counted.push((target, 1));
        if let Some(positions) = &mut self.positions {
            positions.insert(target, at);
        } else if at >= INDEXED_FROM {
            let all = self.counted.iter().enumerate().map(|(at, entry)| (entry.0, at));
            self.positions = Some(Box::new(all.collect()));
        }
    }

    pub(crate) fn remove(&mut self, target: Target) {
        let Some(at) = self.position(target) else {
            debug_assert!(false, "a target is removed as often as it was inserted");
            return;
        };
        self.counted[at].1 -= 1;
        if self.counted[at].1 > 0 {
            return;
        }
        self.counted.swap_remove(at);
        if let Some(positions) = &mut self.positions {
            positions.remove(&target);
            if let Some(moved) = self.counted.get(at) {
                positions.insert(moved.0, at);
            }
        }
    }

    pub(crate) fn append_to(&self, matches: &mut Matches) {
        self.counted.iter().for_each(|entry| matches.push(entry.0));
    }
}

/// The bindings of a direct exchange. Keys come from clients, so they are hashed with a seed.
#[derive(Debug, Default)]
pub(crate) struct DirectIndex {
    keys: HashMap<Box<[u8]>, TargetSet>,
}

impl DirectIndex {
    pub(crate) fn insert(&mut self, key: &[u8], target: Target) {
        match self.keys.get_mut(key) {
            Some(set) => set.insert(target),
            None => self.keys.entry(key.into()).or_default().insert(target),
        }
    }

    pub(crate) fn remove(&mut self, key: &[u8], target: Target) {
        let Some(set) = self.keys.get_mut(key) else { return };
        set.remove(target);
        if set.is_empty() {
            self.keys.remove(key);
        }
    }

    pub(crate) fn find(&self, key: &[u8], matches: &mut Matches) {
        if let Some(set) = self.keys.get(key) {
            set.append_to(matches);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_sets_count_and_index() {
        let mut set = TargetSet::default();
        let targets: Vec<_> = (0..100).map(|n| Target::Queue(QueueId(n))).collect();
        for _ in 0..2 {
            targets.iter().for_each(|target| set.insert(*target));
        }
        assert_eq!(set.counted.len(), 100);
        targets.iter().for_each(|target| set.remove(*target));
        assert_eq!(set.counted.len(), 100);
        for (removed, target) in targets.iter().enumerate() {
            set.remove(*target);
            assert_eq!(set.counted.len(), 99 - removed);
            for (at, entry) in set.counted.iter().enumerate() {
                assert_eq!(set.position(entry.0), Some(at));
            }
        }
        assert!(set.is_empty());
    }

    #[test]
    fn emptied_keys_are_forgotten() {
        let mut index = DirectIndex::default();
        index.insert(b"k", Target::Queue(QueueId(1)));
        index.insert(b"k", Target::Exchange(ExchangeSlot(3)));
        let mut matches = Matches::default();
        index.find(b"k", &mut matches);
        index.find(b"other", &mut matches);
        assert_eq!(matches.queues, [QueueId(1)]);
        assert_eq!(matches.exchanges, [ExchangeSlot(3)]);
        index.remove(b"k", Target::Queue(QueueId(1)));
        index.remove(b"k", Target::Exchange(ExchangeSlot(3)));
        assert!(index.keys.is_empty());
    }
}
