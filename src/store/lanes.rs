//! The state of all lanes, as far as writing needs it, and what of them can be deleted.
//!
//! Owns the latest head of each lane and the range deletions that give space back. Messages are
//! not deleted one by one: everything below a lane's watermark goes at once when it is worth it,
//! or when the lane has been empty for a while. So does what a mark says is settled above the
//! watermark, once it is much: one message that is held for long must not keep the space of all
//! that came after it. It must not write, and reads at most one key at a time.
//!
//! Invariant: nothing that is not settled is ever deleted, nor is a mark that speaks of anything
//! above its lane's watermark, unless another says the same.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use crate::queue::{LaneHead, Mark};

use super::batch::{Batch, Table};
use super::engine::{Engine, ReadError};
use super::keys::{self, Place};

/// After so many settled messages, or bytes of them, a lane's messages are deleted. What is deleted
/// before the engine flushes its memory is written to the log only.
const DELETE_MESSAGES: u64 = if cfg!(test) { 20 } else { 50_000 };
const DELETE_BYTES: u64 = 1 << 20;

/// What is left of a lane is deleted when it is empty and became so this long ago.
const EMPTY_DELAY: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1_000 });

/// At most so many empty lanes are looked at in one go.
const EMPTY_LANES_MAX: usize = 100;

/// A queue that has run empty, or is gone, is compacted after so many deleted bytes, and any other
/// after so many more.
const COMPACT_EMPTY_BYTES: u64 = if cfg!(test) { 1 << 20 } else { 64 << 20 };
const COMPACT_BYTES: u64 = 512 << 20;

/// What is known of a lane.
#[derive(Debug)]
struct Lane {
    head: LaneHead,
    /// Everything below was deleted.
    deleted: u64,
    /// What was deleted above the watermark: ends by beginnings, each of them a mark's. What the
    /// store has from such an end on begins after the beginning.
    cleared: BTreeMap<u64, u64>,
    /// Bytes written that are not deleted, as an estimate.
    stored: u64,
    has_marks: bool,
    /// Whether the group that is being formed has a new head.
    is_changed: bool,
    /// Whether it is among the emptied lanes.
    is_listed: bool,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    queues: FxHashMap<u64, Vec<Lane>>,
    /// Lanes with a new head in the group that is being formed.
    changed: Vec<(u64, u8)>,
    /// Lanes that became empty, and when.
    emptied: VecDeque<(Instant, u64, u8)>,
    /// Marks that say so much that it is worth deleting: their ends by their beginnings.
    marked: FxHashMap<Place, u64>,
    /// Bytes that were deleted of queues since they were compacted.
    freed: FxHashMap<u64, u64>,
    to_compact: Vec<u64>,
    has_deleted: bool,
    /// As an estimate.
    deleted_bytes: u64,
}

impl Lanes {
    /// Takes over a lane as it is stored.
    pub(super) fn recover(&mut self, queue: u64, head: LaneHead, now: Instant) {
        let mut lane = Lane { stored: head.cost.max(1), has_marks: true, ..Lane::new(head.lane) };
        lane.head = head;
        if head.count == 0 {
            lane.is_listed = true;
            self.emptied.push_back((now, queue, head.lane));
        }
        self.queues.entry(queue).or_default().push(lane);
    }

    /// A lane's new head.
    pub(super) fn set_heads(&mut self, queue: u64, heads: &[LaneHead]) {
        if heads.is_empty() {
            return;
        }
        let lanes = self.queues.entry(queue).or_default();
        for head in heads {
            let lane = lane_or_new(lanes, head.lane);
            lane.head = *head;
            if !lane.is_changed {
                lane.is_changed = true;
                self.changed.push((queue, head.lane));
            }
        }
    }

    /// Everything below is settled.
    pub(super) fn watermark(&self, queue: u64, lane: u8) -> u64 {
        self.lane(queue, lane).map_or(0, |lane| lane.head.watermark)
    }

    /// A mark was written.
    pub(super) fn add_mark(&mut self, queue: u64, mark: &Mark) {
        match *mark {
            Mark::Settled { lane, start, end } => {
                let it = self.lane_mut(queue, lane);
                it.has_marks = true;
                if it.is_worth_clearing(start, end) {
                    self.marked.insert((queue, lane, start), end);
                }
            }
            Mark::Returned { lane, .. } => self.lane_mut(queue, lane).has_marks = true,
        }
    }

    /// So many bytes more were written of a lane.
    pub(super) fn add_stored(&mut self, queue: u64, lane: u8, bytes: u64) {
        self.lane_mut(queue, lane).stored += bytes;
    }

    /// Whether nobody will ask for the message at this place.
    pub(super) fn is_gone(&self, (queue, lane, seq): Place) -> bool {
        self.lane(queue, lane)
            .is_none_or(|lane| seq < lane.head.watermark || seq < lane.cleared_end(seq))
    }

    /// Deletes a queue.
    pub(super) fn forget(&mut self, queue: u64, batch: &mut Batch) {
        let lanes = self.queues.remove(&queue).unwrap_or_default();
        let end = keys::queue_end(queue);
        for table in [Table::Messages, Table::Marks, Table::Heads] {
            batch.delete_range(table, &queue.to_be_bytes(), &end);
        }
        let stored = lanes.iter().map(|lane| lane.stored).sum::<u64>();
        let freed = self.freed.remove(&queue).unwrap_or(0) + stored;
        if freed >= COMPACT_EMPTY_BYTES {
            self.to_compact.push(queue);
        }
        self.deleted_bytes += stored;
        self.has_deleted = true;
    }

    /// Writes the new heads, and deletes what they have left behind.
    pub(super) fn write_heads(&mut self, now: Instant, batch: &mut Batch) {
        for (queue, number) in std::mem::take(&mut self.changed) {
            let lanes = self.queues.get_mut(&queue);
            let lane = lanes.and_then(|lanes| lanes.iter_mut().find(|l| l.head.lane == number));
            // The queue may have been forgotten, and the lane may be listed twice because of it.
            let Some(lane) = lane.filter(|lane| lane.is_changed) else { continue };
            lane.is_changed = false;
            let key = keys::head(queue, number);
            batch.put_with(Table::Heads, &key, |out| keys::write_head(&lane.head, out));
            let (messages, bytes) = lane.deletable();
            if messages >= DELETE_MESSAGES || bytes >= DELETE_BYTES {
                lane.delete(queue, bytes, batch);
                self.note_freed(queue, bytes);
            } else if lane.head.count == 0 && !lane.is_listed && lane.has_rest() {
                lane.is_listed = true;
                self.emptied.push_back((now, queue, number));
            }
        }
    }

    /// When an empty lane is due.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.emptied.front().map(|(since, ..)| *since + EMPTY_DELAY)
    }

    /// Whether there are marks of much that can be deleted.
    pub(super) fn has_marked(&self) -> bool {
        !self.marked.is_empty()
    }

    /// Deletes what marks say is settled above a watermark. All marks must have been written.
    pub(super) fn clear_marked(
        &mut self,
        engine: &dyn Engine,
        batch: &mut Batch,
    ) -> Result<(), ReadError> {
        let mut result = Ok(());
        for ((queue, number, start), end) in std::mem::take(&mut self.marked) {
            let lanes = self.queues.get_mut(&queue);
            let lane = lanes.and_then(|lanes| lanes.iter_mut().find(|l| l.head.lane == number));
            // The queue may have been forgotten, or its watermark may have come by.
            let Some(lane) = lane.filter(|lane| lane.is_worth_clearing(start, end)) else {
                continue;
            };
            match lane.clear(queue, start, end, engine, batch) {
                Ok(bytes) => self.note_freed(queue, bytes),
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Deletes what is left of some lanes that have been empty for a while.
    pub(super) fn tidy(
        &mut self,
        now: Instant,
        engine: &dyn Engine,
        batch: &mut Batch,
    ) -> Result<(), ReadError> {
        for _ in 0..EMPTY_LANES_MAX {
            if self.due_at().is_none_or(|at| at > now) {
                break;
            }
            let Some((_, queue, number)) = self.emptied.pop_front() else { break };
            let lanes = self.queues.get_mut(&queue);
            let lane = lanes.and_then(|lanes| lanes.iter_mut().find(|l| l.head.lane == number));
            let Some(lane) = lane else { continue };
            lane.is_listed = false;
            if lane.head.count > 0 || !lane.has_rest() {
                continue;
            }
            // Of a lane that was found so, it is not known whether anything is left.
            if lane.deleted > 0 || lane.is_there(queue, engine)? {
                let bytes = lane.stored;
                lane.delete(queue, bytes, batch);
                self.note_freed(queue, bytes);
            } else {
                (lane.stored, lane.has_marks) = (0, false);
            }
        }
        Ok(())
    }

    /// Whether anything was deleted since this was taken last.
    pub(super) fn has_deleted(&self) -> bool {
        self.has_deleted
    }

    pub(super) fn take_has_deleted(&mut self) -> bool {
        std::mem::take(&mut self.has_deleted)
    }

    /// Whether so many bytes were deleted since they were reset.
    pub(super) fn has_deleted_bytes(&self, bytes: u64) -> bool {
        self.deleted_bytes >= bytes
    }

    pub(super) fn add_deleted_bytes(&mut self, bytes: u64) {
        self.deleted_bytes += bytes;
    }

    pub(super) fn reset_deleted_bytes(&mut self) {
        self.deleted_bytes = 0;
    }

    /// A queue whose files are worth compacting, each once.
    pub(super) fn next_to_compact(&mut self) -> Option<u64> {
        self.to_compact.pop()
    }

    pub(super) fn has_to_compact(&self) -> bool {
        !self.to_compact.is_empty()
    }

    fn note_freed(&mut self, queue: u64, bytes: u64) {
        self.has_deleted = true;
        self.deleted_bytes += bytes;
        let freed = self.freed.entry(queue).or_default();
        *freed += bytes;
        let lanes = self.queues.get(&queue).map_or(&[][..], |lanes| lanes);
        let is_empty = lanes.iter().all(|lane| lane.head.count == 0);
        if *freed >= if is_empty { COMPACT_EMPTY_BYTES } else { COMPACT_BYTES } {
            self.freed.remove(&queue);
            self.to_compact.push(queue);
        }
    }

    fn lane(&self, queue: u64, number: u8) -> Option<&Lane> {
        self.queues.get(&queue)?.iter().find(|lane| lane.head.lane == number)
    }

    fn lane_mut(&mut self, queue: u64, number: u8) -> &mut Lane {
        lane_or_new(self.queues.entry(queue).or_default(), number)
    }
}

impl Lane {
    fn new(number: u8) -> Self {
        let head = LaneHead { lane: number, ..LaneHead::default() };
        Self {
            head,
            deleted: 0,
            cleared: BTreeMap::new(),
            stored: 0,
            has_marks: false,
            is_changed: false,
            is_listed: false,
        }
    }

    /// Whether there may be something below the watermark.
    fn has_rest(&self) -> bool {
        self.deleted < self.head.watermark && (self.stored > 0 || self.has_marks)
    }

    /// Messages below the watermark that are not deleted, and their bytes.
    fn deletable(&self) -> (u64, u64) {
        self.estimate(self.deleted, self.head.watermark)
    }

    /// Messages of a range that are not deleted, and the bytes that they take if all messages are
    /// alike.
    fn estimate(&self, start: u64, end: u64) -> (u64, u64) {
        let messages = self.not_cleared(start, end);
        let all = self.not_cleared(self.deleted, self.head.next).max(messages).max(1);
        let bytes = u128::from(self.stored) * u128::from(messages) / u128::from(all);
        (messages, bytes as u64)
    }

    /// How many numbers of a range do not belong to what was cleared. What was cleared is within
    /// the range or outside of it.
    fn not_cleared(&self, start: u64, end: u64) -> u64 {
        if start >= end {
            return 0;
        }
        let cleared = self.cleared.range(start..end).map(|(start, end)| end - start).sum::<u64>();
        (end - start).saturating_sub(cleared)
    }

    /// The end of what was cleared at or before this number; 0 if nothing was.
    fn cleared_end(&self, seq: u64) -> u64 {
        self.cleared.range(..=seq).next_back().map_or(0, |(_, end)| *end)
    }

    fn is_worth_clearing(&self, start: u64, end: u64) -> bool {
        if start < self.head.watermark || end <= self.cleared_end(start) {
            return false;
        }
        let (messages, bytes) = self.estimate(start, end);
        messages >= DELETE_MESSAGES || bytes >= DELETE_BYTES
    }

    /// Deletes all messages from `start` on and before `end`, which a mark says are settled, but
    /// for an entry that begins before them. The mark stays: it tells what became of them.
    fn clear(
        &mut self,
        queue: u64,
        start: u64,
        end: u64,
        engine: &dyn Engine,
        batch: &mut Batch,
    ) -> Result<u64, ReadError> {
        let lane = self.head.lane;
        let from = match self.cleared.get(&start) {
            Some(cleared) => *cleared,
            None => {
                // An entry is found by its last message. The first one may begin before `start`,
                // with messages that are not settled, and end anywhere; all others come after it.
                let keys = keys::place(queue, lane, start).to_vec()..keys::lane_end(queue, lane);
                let mut last = None;
                engine.scan(Table::Messages, &keys.start..&keys.end, &mut |key, _| {
                    last = keys::parse_place(key).map(|(_, _, seq)| seq);
                    ControlFlow::Break(())
                })?;
                match last {
                    Some(last) if last < end => last + 1,
                    _ => return Ok(0),
                }
            }
        };
        let to = keys::place(queue, lane, end);
        let (_, bytes) = self.estimate(start, end);
        batch.delete_range(Table::Messages, &keys::place(queue, lane, from), &to);
        // The marks within this one say nothing more.
        batch.delete_range(Table::Marks, &keys::place(queue, lane, start + 1), &to);
        self.cleared.retain(|other, _| !(start..end).contains(other));
        self.cleared.insert(start, end);
        self.stored -= bytes.min(self.stored);
        Ok(bytes)
    }

    /// Deletes everything below the watermark.
    fn delete(&mut self, queue: u64, bytes: u64, batch: &mut Batch) {
        let lane = self.head.lane;
        let from = keys::place(queue, lane, self.deleted);
        let to = keys::place(queue, lane, self.head.watermark);
        if self.stored > 0 {
            batch.delete_range(Table::Messages, &from, &to);
        }
        if self.has_marks {
            batch.delete_range(Table::Marks, &from, &to);
        }
        self.deleted = self.head.watermark;
        self.cleared = self.cleared.split_off(&self.deleted);
        self.stored -= bytes.min(self.stored);
        self.has_marks = self.head.count > 0 && self.has_marks;
    }

    /// Whether anything of the lane is stored below its watermark.
    fn is_there(&self, queue: u64, engine: &dyn Engine) -> Result<bool, ReadError> {
        let lane = self.head.lane;
        let from = keys::place(queue, lane, 0);
        let to = keys::place(queue, lane, self.head.watermark);
        for table in [Table::Messages, Table::Marks] {
            let mut is_there = false;
            let walked = engine.scan(table, &from..&to, &mut |_, _| {
                is_there = true;
                ControlFlow::Break(())
            });
            match walked {
                Ok(()) if !is_there => {}
                // What is damaged goes like the rest.
                Ok(()) | Err(ReadError::Damaged(_)) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

fn lane_or_new(lanes: &mut Vec<Lane>, number: u8) -> &mut Lane {
    let found = lanes.iter().position(|lane| lane.head.lane == number);
    let index = found.unwrap_or_else(|| {
        lanes.push(Lane::new(number));
        lanes.len() - 1
    });
    &mut lanes[index]
}
