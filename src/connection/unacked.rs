//! The deliveries of one channel that its client has to settle.
//!
//! Owns the way from a delivery tag to a queue's slot (specification section 1.8.3.13: tags are
//! local to a channel and rise). Deliverers note what they deliver in the outbox; this takes those
//! notes over when a tag is not known yet, so that settling needs no lock for each tag. It must
//! not know what settling does.
//!
//! Invariant: the deque is sorted by tag and neither begins nor ends with a settled entry, but for
//! the moment after a take.

use std::collections::VecDeque;

use crate::broker::Unsettled;

/// Settled entries are not cleared out while there are fewer.
const SETTLED_MAX: usize = 1024;

#[derive(Debug)]
struct Entry {
    unsettled: Unsettled,
    settled: bool,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Unacked {
    entries: VecDeque<Entry>,
    /// Settled entries between others that are not.
    settled: usize,
    last_tag: u64,
}

impl Extend<Unsettled> for Unacked {
    fn extend<T: IntoIterator<Item = Unsettled>>(&mut self, new: T) {
        for unsettled in new {
            debug_assert!(unsettled.tag > self.last_tag, "tags rise");
            self.last_tag = unsettled.tag;
            self.entries.push_back(Entry { unsettled, settled: false });
        }
    }
}

impl Unacked {
    /// Whether `tag` may be among the deliveries that were not taken over yet.
    pub(crate) fn is_ahead(&self, tag: u64) -> bool {
        tag > self.last_tag
    }

    /// Takes one delivery.
    pub(crate) fn take(&mut self, tag: u64) -> Option<Unsettled> {
        let index = self.find(tag)?;
        let entry = &mut self.entries[index];
        entry.settled = true;
        let unsettled = entry.unsettled;
        self.settled += 1;
        self.trim();
        Some(unsettled)
    }

    /// Takes the delivery with `tag` and all before it, oldest first. `None` when `tag` itself is
    /// not to be settled; RabbitMQ then refuses, too.
    pub(crate) fn take_up_to(&mut self, tag: u64) -> Option<Vec<Unsettled>> {
        let index = self.find(tag)?;
        // Room for all at once: a filter does not tell how many come.
        let mut taken = Vec::with_capacity(index + 1);
        let open = self.entries.drain(..=index).filter(|entry| !entry.settled);
        taken.extend(open.map(|entry| entry.unsettled));
        self.settled -= index + 1 - taken.len();
        self.trim();
        Some(taken)
    }

    /// Takes all, oldest first.
    pub(crate) fn take_all(&mut self) -> Vec<Unsettled> {
        self.settled = 0;
        let all = std::mem::take(&mut self.entries).into_iter();
        all.filter(|entry| !entry.settled).map(|entry| entry.unsettled).collect()
    }

    /// The unsettled deliveries, oldest first, to be changed in place.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Unsettled> {
        let open = self.entries.iter_mut().filter(|entry| !entry.settled);
        open.map(|entry| &mut entry.unsettled)
    }

    /// Puts deliveries back that were taken, in any order (`tx.rollback`).
    pub(crate) fn restore(&mut self, deliveries: impl IntoIterator<Item = Unsettled>) {
        for unsettled in deliveries {
            let at = self.entries.partition_point(|e| e.unsettled.tag < unsettled.tag);
            match self.entries.get_mut(at) {
                Some(entry) if entry.unsettled.tag == unsettled.tag => {
                    entry.settled = false;
                    self.settled -= 1;
                }
                _ => self.entries.insert(at, Entry { unsettled, settled: false }),
            }
        }
    }

    fn find(&self, tag: u64) -> Option<usize> {
        let front = self.entries.front()?.unsettled.tag;
        // Tags without gaps, as on a channel with one kind of consumer, are found at once.
        let guess = usize::try_from(tag.checked_sub(front)?).ok()?;
        let hit = self.entries.get(guess).is_some_and(|entry| entry.unsettled.tag == tag);
        let index = if hit {
            guess
        } else {
            self.entries.binary_search_by_key(&tag, |entry| entry.unsettled.tag).ok()?
        };
        (!self.entries[index].settled).then_some(index)
    }

    fn trim(&mut self) {
        while self.entries.front().is_some_and(|entry| entry.settled) {
            self.entries.pop_front();
            self.settled -= 1;
        }
        while self.entries.back().is_some_and(|entry| entry.settled) {
            self.entries.pop_back();
            self.settled -= 1;
        }
        // One delivery that is held for long must not keep the places of all after it.
        if self.settled > SETTLED_MAX && self.settled > self.entries.len() / 2 {
            self.entries.retain(|entry| !entry.settled);
            self.settled = 0;
        }
        if self.entries.is_empty() && self.entries.capacity() > 4096 {
            self.entries = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::test_slot;

    fn unacked(tags: &[u64]) -> Unacked {
        let mut unacked = Unacked::default();
        unacked.extend(tags.iter().map(|tag| Unsettled {
            tag: *tag,
            source: 0,
            slot: test_slot(),
            counted: false,
        }));
        unacked
    }

    fn tags(taken: &[Unsettled]) -> Vec<u64> {
        taken.iter().map(|unsettled| unsettled.tag).collect()
    }

    #[test]
    fn a_tag_is_taken_once_and_tags_with_gaps_are_found() {
        // Tags 2 and 4 went to a consumer without acknowledgement.
        let mut unacked = unacked(&[1, 3, 5, 6]);
        assert!(unacked.take(2).is_none());
        assert_eq!(unacked.take(5).map(|u| u.tag), Some(5));
        assert!(unacked.take(5).is_none());
        assert!(unacked.take(7).is_none() && unacked.is_ahead(7) && !unacked.is_ahead(6));
        assert_eq!(tags(&unacked.take_all()), [1, 3, 6]);
    }

    #[test]
    fn multiple_takes_all_up_to_a_tag_that_is_there() {
        let mut unacked = unacked(&[1, 2, 3, 4]);
        unacked.take(2);
        assert!(unacked.take_up_to(2).is_none(), "RabbitMQ: the tag itself must be unsettled");
        assert_eq!(tags(&unacked.take_up_to(3).expect("3 is there")), [1, 3]);
        assert!(unacked.take_up_to(3).is_none());
        assert_eq!(tags(&unacked.take_all()), [4]);
        assert!(unacked.take_all().is_empty());
    }

    #[test]
    fn a_delivery_that_is_held_keeps_no_others_places() {
        let tags: Vec<u64> = (1..=100_000).collect();
        let mut unacked = unacked(&tags);
        for tag in (2..100_000).rev() {
            assert!(unacked.take(tag).is_some());
        }
        assert!(unacked.entries.len() <= 2 * SETTLED_MAX + 2, "{}", unacked.entries.len());
        assert!(unacked.take(500).is_none() && unacked.take(100_000).is_some());
        let left = unacked.take_all();
        assert_eq!(left.iter().map(|u| u.tag).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_rollback_restores_the_order() {
        let mut unacked = unacked(&[1, 2, 3, 4, 5]);
        let taken: Vec<Unsettled> = [4, 1, 2].iter().filter_map(|tag| unacked.take(*tag)).collect();
        unacked.restore(taken);
        assert_eq!(tags(&unacked.take_up_to(4).expect("4 is back")), [1, 2, 3, 4]);
    }
}
