//! Delivered, unsettled messages of one queue.
//!
//! Owns the slots that a delivery tag is mapped onto. A slot carries the number of its delivery, so
//! that settling a message that was requeued meanwhile is a checked no-op (a slot may be in use
//! again by another message). It knows nothing of channels or tags.

use super::consumers::ConsumerKey;
use super::lane::Taken;
use crate::clock::Millis;

/// Names a delivered, unsettled message within its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(test, derive(PartialOrd, Ord))]
pub(crate) struct Slot {
    index: u32,
    guard: u32,
}

/// A delivered message and whom its credit goes back to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unsettled {
    pub(crate) message: Taken,
    /// `None` for `basic.get`, which takes no credit.
    pub(crate) consumer: Option<ConsumerKey>,
    /// When it was delivered.
    pub(crate) since: Millis,
}

#[derive(Clone, Copy, Debug)]
enum Entry {
    Free { next: Option<u32> },
    Used { unsettled: Unsettled, guard: u32 },
}

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Unacked {
    entries: Vec<Entry>,
    free: Option<u32>,
    len: usize,
    /// Deliveries so far, modulo 2^32.
    deliveries: u32,
}

impl Unacked {
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of memory held.
    pub(crate) fn memory(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
    }

    pub(crate) fn insert(&mut self, unsettled: Unsettled) -> Slot {
        self.len += 1;
        let guard = self.deliveries;
        self.deliveries = guard.wrapping_add(1);
        if let Some(index) = self.free {
            let entry = &mut self.entries[index as usize];
            let Entry::Free { next } = *entry else { unreachable!("the free list is free") };
            *entry = Entry::Used { unsettled, guard };
            self.free = next;
            return Slot { index, guard };
        }
        let index = self.entries.len() as u32;
        self.entries.push(Entry::Used { unsettled, guard });
        Slot { index, guard }
    }

    pub(crate) fn contains(&self, slot: Slot) -> bool {
        match self.entries.get(slot.index as usize) {
            Some(Entry::Used { guard, .. }) => *guard == slot.guard,
            _ => false,
        }
    }

    /// Takes the message in `slot`; `None` when it is not there any more.
    pub(crate) fn remove(&mut self, slot: Slot) -> Option<Unsettled> {
        let entry = self.entries.get_mut(slot.index as usize)?;
        let Entry::Used { unsettled, guard } = *entry else { return None };
        if guard != slot.guard {
            return None;
        }
        *entry = Entry::Free { next: self.free };
        self.free = Some(slot.index);
        self.len -= 1;
        if self.len == 0 && self.entries.capacity() > 1024 {
            // Everything is settled after a burst: give the table back.
            *self = Self { deliveries: self.deliveries, ..Self::default() };
        }
        Some(unsettled)
    }

    /// All of them with their slots, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Slot, &Unsettled)> {
        self.entries.iter().enumerate().filter_map(|(index, entry)| match entry {
            Entry::Used { unsettled, guard } => {
                Some((Slot { index: index as u32, guard: *guard }, unsettled))
            }
            Entry::Free { .. } => None,
        })
    }
}

/// Some slot, for tests of those who only carry it.
#[cfg(test)]
pub(crate) fn test_slot() -> Slot {
    Slot { index: 0, guard: 0 }
}

#[cfg(test)]
mod tests {
    use super::super::lane::{Lane, Spares};
    use super::super::segment::{Body, Content};
    use super::*;

    #[test]
    fn a_stale_slot_is_refused() {
        let (mut lane, mut spares) = (Lane::new(0, false), Spares::default());
        let content = Content { address: b"\x00\x00", header: b"", body: Body::Inline(b"") };
        lane.push(&content, None, false, &mut spares);
        lane.push(&content, None, false, &mut spares);
        let mut unacked = Unacked::default();
        let first = lane.pop().expect("two messages");
        let slot = unacked.insert(Unsettled { message: first, consumer: None, since: Millis(0) });
        assert!(unacked.remove(slot).is_some());
        assert!(unacked.remove(slot).is_none());
        let second = lane.pop().expect("one message");
        let reused =
            unacked.insert(Unsettled { message: second, consumer: None, since: Millis(0) });
        assert_eq!(reused.index, slot.index);
        assert!(unacked.remove(slot).is_none(), "the slot belongs to another message now");
        assert_eq!(unacked.len(), 1);
    }
}
