//! What the store has of one lane: which messages are settled, and how many are not.
//!
//! Owns the lane's watermark and what is settled above it, the totals, and the notes of what has
//! changed since the store was told last. It must not know messages or segments.
//!
//! Invariants: nothing at or above the watermark's own message is settled unless it is in
//! `settled`; the ranges there neither touch nor overlap, nor do they touch the watermark.

use std::collections::BTreeMap;

use super::records::{LaneHead, Mark, Records};
use super::segment::Totals;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Durability {
    watermark: u64,
    /// Ends by beginnings.
    settled: BTreeMap<u64, u64>,
    /// Messages in the store that are not settled.
    pub(super) totals: Totals,
    /// Whether any of them may expire.
    pub(super) may_expire: bool,
    /// Whether the head is another one than the store has.
    pub(super) is_changed: bool,
    /// Where ranges have grown.
    grown: Vec<u64>,
    /// Messages that have come back, and how often.
    returned: Vec<(u64, u32)>,
}

impl Durability {
    /// What a lane with this head was.
    pub(super) fn restored(head: &LaneHead) -> Self {
        let LaneHead { count, body_bytes, cost, may_expire, .. } = *head;
        let totals = Totals { count, body_bytes, cost };
        // Where nothing is left, nothing will be read that tells what is settled or lost.
        let watermark = if count == 0 { head.next } else { head.watermark };
        let is_changed = watermark != head.watermark;
        Self { watermark, totals, may_expire, is_changed, ..Self::default() }
    }

    /// All messages below are settled.
    pub(super) fn watermark(&self) -> u64 {
        self.watermark
    }

    /// Notes that the messages from `start` on and before `end`, none of which was settled, are.
    /// With `stored`, the store has some of them and is to be told.
    pub(super) fn settle(&mut self, start: u64, end: u64, stored: bool) {
        self.is_changed |= stored;
        if start <= self.watermark {
            self.watermark = self.watermark.max(end);
            while let Some(first) = self.settled.first_entry()
                && *first.key() <= self.watermark
            {
                self.watermark = self.watermark.max(first.remove());
                self.is_changed = true;
            }
            return;
        }
        let mut range = (start, end);
        if let Some((before, its_end)) = self.settled.range_mut(..=start).next_back()
            && *its_end >= start
        {
            *its_end = (*its_end).max(end);
            range = (*before, *its_end);
        } else {
            self.settled.insert(start, end);
        }
        while let Some((next, its_end)) =
            self.settled.range(range.0 + 1..=range.1).next().map(|(next, end)| (*next, *end))
        {
            self.settled.remove(&next);
            range.1 = range.1.max(its_end);
            self.settled.insert(range.0, range.1);
        }
        if stored {
            self.grown.push(range.0);
        }
    }

    /// Notes how often a message has come back.
    pub(super) fn note_return(&mut self, seq: u64, count: u32) {
        self.returned.push((seq, count));
    }

    /// Hands over what has changed since the last time. `next` and `delivered` are those of
    /// [`LaneHead`].
    pub(super) fn hand_over(&mut self, lane: u8, next: u64, delivered: u64, into: &mut Records) {
        if !self.grown.is_empty() {
            self.grown.sort_unstable();
            self.grown.dedup();
            let mut last = None;
            for start in self.grown.drain(..) {
                let range = self.settled.range(..=start).next_back();
                let Some((start, end)) = range.map(|(start, end)| (*start, *end)) else { continue };
                if last != Some(start) && end > self.watermark {
                    into.marks.push(Mark::Settled { lane, start, end });
                    self.is_changed = true;
                }
                last = Some(start);
            }
        }
        for (seq, count) in self.returned.drain(..) {
            into.marks.push(Mark::Returned { lane, seq, count });
            self.is_changed = true;
        }
        if std::mem::take(&mut self.is_changed) {
            let Totals { count, body_bytes, cost } = self.totals;
            self.may_expire &= count > 0;
            into.heads.push(LaneHead {
                lane,
                watermark: self.watermark,
                next,
                delivered,
                count,
                body_bytes,
                cost,
                may_expire: self.may_expire,
            });
        }
    }

    /// Checks the invariants; for tests.
    #[cfg(any(test, debug_assertions))]
    pub(super) fn check_invariants(&self) {
        let mut last = self.watermark;
        for (start, end) in &self.settled {
            assert!(*start > last && end > start, "{self:?}");
            last = *end;
        }
    }

    /// Whether a message is settled.
    #[cfg(test)]
    pub(super) fn is_settled(&self, seq: u64) -> bool {
        let range = self.settled.range(..=seq).next_back();
        seq < self.watermark || range.is_some_and(|(_, end)| seq < *end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_settled_is_known_and_told(order in Just((0..40_u64).collect::<Vec<_>>())
            .prop_shuffle(), drives in prop::collection::vec(1..6_usize, 40))
        {
            let mut kept = Durability::default();
            let mut told: BTreeMap<u64, u64> = BTreeMap::new();
            let mut watermark = 0;
            let (mut order, mut done) = (&order[..], Vec::new());
            for size in drives {
                let (now, later) = order.split_at(size.min(order.len()));
                for seq in now {
                    kept.settle(*seq, seq + 1, true);
                    done.push(*seq);
                    kept.check_invariants();
                }
                order = later;
                let mut records = Records::default();
                kept.hand_over(0, 40, 40, &mut records);
                for mark in records.marks {
                    let Mark::Settled { start, end, .. } = mark else { continue };
                    told.insert(start, end);
                }
                watermark = records.heads.last().map_or(watermark, |head| head.watermark);
                for seq in 0..40 {
                    let is_told = seq < watermark
                        || told.iter().any(|(start, end)| (*start..*end).contains(&seq));
                    prop_assert_eq!(is_told, done.contains(&seq), "{}", seq);
                    prop_assert_eq!(kept.is_settled(seq), is_told, "{}", seq);
                }
            }
        }
    }
}
