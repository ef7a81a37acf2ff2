//! Delivered, unsettled messages of one queue.
//!
//! Owns the slots that a delivery tag is mapped onto. A slot carries the low bits of its message's
//! sequence number, so that settling a message that was requeued meanwhile is a checked no-op (a
//! slot may be in use again by another message). It knows nothing of channels or tags.

use super::consumers::ConsumerKey;
use super::lane::Taken;

/// Names a delivered, unsettled message within its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
}

#[derive(Clone, Copy, Debug)]
enum Entry {
    Free { next: Option<u32> },
    Used(Unsettled),
}

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Unacked {
    entries: Vec<Entry>,
    free: Option<u32>,
    len: usize,
}

impl Unacked {
    #[cfg(any(test, debug_assertions))]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of memory held.
    pub(crate) fn memory(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
    }

    pub(crate) fn insert(&mut self, unsettled: Unsettled) -> Slot {
        self.len += 1;
        let guard = unsettled.message.seq.0 as u32;
        if let Some(index) = self.free {
            let entry = &mut self.entries[index as usize];
            let Entry::Free { next } = *entry else { unreachable!("the free list is free") };
            *entry = Entry::Used(unsettled);
            self.free = next;
            return Slot { index, guard };
        }
        let index = self.entries.len() as u32;
        self.entries.push(Entry::Used(unsettled));
        Slot { index, guard }
    }

    /// Takes the message in `slot`; `None` when it is not there any more.
    pub(crate) fn remove(&mut self, slot: Slot) -> Option<Unsettled> {
        let entry = self.entries.get_mut(slot.index as usize)?;
        let Entry::Used(unsettled) = *entry else { return None };
        if unsettled.message.seq.0 as u32 != slot.guard {
            return None;
        }
        *entry = Entry::Free { next: self.free };
        self.free = Some(slot.index);
        self.len -= 1;
        if self.len == 0 && self.entries.capacity() > 1024 {
            // Everything is settled after a burst: give the table back.
            *self = Self::default();
        }
        Some(unsettled)
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
        let (mut lane, mut spares) = (Lane::new(), Spares::default());
        let content = Content { address: b"\x00\x00", header: b"", body: Body::Inline(b"") };
        lane.push(&content, &mut spares);
        lane.push(&content, &mut spares);
        let mut unacked = Unacked::default();
        let first = lane.pop().expect("two messages");
        let slot = unacked.insert(Unsettled { message: first, consumer: None });
        assert!(unacked.remove(slot).is_some());
        assert!(unacked.remove(slot).is_none());
        let second = lane.pop().expect("one message");
        let reused = unacked.insert(Unsettled { message: second, consumer: None });
        assert_eq!(reused.index, slot.index);
        assert!(unacked.remove(slot).is_none(), "the slot belongs to another message now");
        assert_eq!(unacked.len(), 1);
    }
}
