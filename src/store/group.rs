//! What one group writes.
//!
//! Owns the state of all lanes as far as writing needs it, and turns what was handed over into one
//! batch: what is settled by the end of the group is not written, runs of a lane that follow each
//! other are joined into entries of about [`ENTRY_BYTES`], and a large body that several queues
//! refer to is written once. It must not wait, and reads no messages.
//!
//! Invariant: nothing at or above a lane's watermark is ever deleted.

use rustc_hash::FxHashMap;

use crate::queue::{LaneHead, Mark, Records};

use super::Change;
use super::batch::{Batch, Table};
use super::entry::EntryWriter;
use super::keys;
use super::part::{Part, Source, Use};

/// After so many settled messages, or bytes of them, a lane's messages are deleted.
const DELETE_MESSAGES: u64 = 50_000;
const DELETE_BYTES: u64 = 16 * 1024 * 1024;

/// Something that was handed over.
#[derive(Debug)]
pub(super) enum Item {
    Records(u64, Records),
    Forget(u64),
    Changes(Vec<Change>),
}

/// What is known of a lane.
#[derive(Debug)]
struct Lane {
    head: LaneHead,
    /// Everything below was deleted.
    deleted: u64,
    /// Bytes written that are not deleted, as an estimate.
    stored: u64,
    has_marks: bool,
    /// Whether the group that is being formed has a new head.
    is_changed: bool,
}

/// What came of forming a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Formed {
    /// Whether there is something that has to be durable before anyone may rely on it.
    pub(super) must_last: bool,
    pub(super) messages: u64,
    /// Messages that were settled before they were written.
    pub(super) skipped: u64,
}

/// A mark, and the item that it came with.
type Marked = (u64, Mark, usize);

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Former {
    queues: FxHashMap<u64, Vec<Lane>>,
    marks: Vec<Marked>,
    /// Lanes with a new head.
    changed: Vec<(u64, u8)>,
    parts: Vec<Part>,
    uses: Vec<Use>,
    entry: EntryWriter,
}

impl Former {
    /// Takes over the state of a lane as it is stored.
    pub(super) fn recover(&mut self, queue: u64, head: LaneHead) {
        let lane = Lane { head, deleted: 0, stored: head.cost, has_marks: true, is_changed: false };
        self.queues.entry(queue).or_default().push(lane);
    }

    /// Puts into `batch` what these items come to, as the group of this number.
    pub(super) fn form(&mut self, items: &[Item], group: u64, batch: &mut Batch) -> Formed {
        let mut formed = Formed::default();
        let forgotten = self.take_heads(items, batch);
        self.write_heads(batch);
        self.write_marks(&forgotten, batch);
        self.collect(items, &forgotten, &mut formed);
        self.write_messages(items, group, batch);
        for item in items {
            if let Item::Changes(changes) = item {
                formed.must_last |= !changes.is_empty();
                changes.iter().for_each(|change| write_change(change, batch));
            }
        }
        formed.must_last |= formed.messages > 0;
        batch.put(Table::Meta, keys::GROUP, &group.to_le_bytes());
        formed
    }

    /// Brings all lanes to where the group leaves them. Returns the queues that were forgotten,
    /// and by which item.
    fn take_heads(&mut self, items: &[Item], batch: &mut Batch) -> FxHashMap<u64, usize> {
        let mut forgotten = FxHashMap::default();
        self.marks.clear();
        self.changed.clear();
        for (index, item) in items.iter().enumerate() {
            match item {
                Item::Records(queue, records) => {
                    self.marks.extend(records.marks.iter().map(|mark| (*queue, *mark, index)));
                    if records.heads.is_empty() {
                        continue;
                    }
                    let lanes = self.queues.entry(*queue).or_default();
                    for head in &records.heads {
                        let lane = lane_or_new(lanes, head.lane);
                        lane.head = *head;
                        if !lane.is_changed {
                            lane.is_changed = true;
                            self.changed.push((*queue, head.lane));
                        }
                    }
                }
                Item::Forget(queue) => {
                    self.queues.remove(queue);
                    forgotten.insert(*queue, index);
                    let end = keys::queue_end(*queue);
                    for table in [Table::Messages, Table::Marks, Table::Heads] {
                        batch.delete_range(table, &queue.to_be_bytes(), &end);
                    }
                }
                Item::Changes(_) => {}
            }
        }
        forgotten
    }

    fn write_heads(&mut self, batch: &mut Batch) {
        for (queue, number) in &self.changed {
            let lanes = self.queues.get_mut(queue);
            let lane = lanes.and_then(|lanes| lanes.iter_mut().find(|l| l.head.lane == *number));
            let Some(lane) = lane.filter(|lane| lane.is_changed) else { continue };
            lane.is_changed = false;
            lane.delete_settled(*queue, batch);
            let key = keys::head(*queue, *number);
            batch.put_with(Table::Heads, &key, |out| keys::write_head(&lane.head, out));
        }
    }

    /// Writes the latest mark of each place that is not below its watermark.
    fn write_marks(&mut self, forgotten: &FxHashMap<u64, usize>, batch: &mut Batch) {
        if self.marks.is_empty() {
            return;
        }
        let queues = &mut self.queues;
        self.marks.retain(|(queue, mark, item)| {
            let (number, end) = match *mark {
                Mark::Settled { lane, start, end } if start < end => (lane, end),
                Mark::Settled { .. } => return false,
                Mark::Returned { lane, seq, .. } => (lane, seq + 1),
            };
            if forgotten.get(queue).is_some_and(|by| item < by) {
                return false;
            }
            let lane = lane_or_new(queues.entry(*queue).or_default(), number);
            lane.has_marks = true;
            end > lane.head.watermark
        });
        self.marks.sort_by_key(|(queue, mark, _)| keys::mark(*queue, mark));
        let is_last = |index: usize| {
            let same = |a: &Marked, b: &Marked| keys::mark(a.0, &a.1) == keys::mark(b.0, &b.1);
            self.marks.get(index + 1).is_none_or(|next| !same(&self.marks[index], next))
        };
        for (index, (queue, mark, _)) in self.marks.iter().enumerate() {
            if is_last(index) {
                let key = keys::mark(*queue, mark);
                batch.put_with(Table::Marks, &key, |out| keys::write_mark(mark, out));
            }
        }
    }

    /// Finds what is to be written of all runs, lane by lane and in order.
    fn collect(&mut self, items: &[Item], forgotten: &FxHashMap<u64, usize>, formed: &mut Formed) {
        self.parts.clear();
        self.uses.clear();
        for (index, item) in items.iter().enumerate() {
            let Item::Records(queue, records) = item else { continue };
            if records.runs.is_empty() {
                continue;
            }
            if forgotten.get(queue).is_some_and(|by| index < *by) {
                let messages = records.runs.iter().map(|run| run.last - run.first + 1);
                formed.skipped += messages.sum::<u64>();
                continue;
            }
            let lanes = self.queues.get(queue).map_or(&[][..], |lanes| lanes);
            for run in &records.runs {
                let lane = lanes.iter().find(|lane| lane.head.lane == run.lane);
                let watermark = lane.map_or(0, |lane| lane.head.watermark);
                let marks = marks_of(&self.marks, *queue, run.lane).iter().map(|(_, mark, _)| mark);
                let source = Source { queue: *queue, item: index, run, records };
                let written = source.live(watermark, marks, &mut self.parts, &mut self.uses);
                formed.messages += written;
                formed.skipped += run.last - run.first + 1 - written;
            }
        }
        self.parts.sort_by_key(|part| (part.queue, part.lane, part.first));
    }

    fn write_messages(&mut self, items: &[Item], group: u64, batch: &mut Batch) {
        let Self { queues, parts, uses, entry, .. } = self;
        entry.begin(group, parts, uses);
        for part in parts.iter() {
            let Item::Records(_, records) = &items[part.item] else { continue };
            let bytes = &records.bytes[part.bytes.clone()];
            entry.add(part, bytes, &uses[part.uses.clone()], batch);
        }
        entry.finish(batch);
        for &(queue, number, bytes) in entry.written() {
            let lanes = queues.entry(queue).or_default();
            lane_or_new(lanes, number).stored += bytes;
        }
        // They keep bodies alive.
        uses.clear();
    }
}

impl Lane {
    fn new(number: u8) -> Self {
        let head = LaneHead { lane: number, ..LaneHead::default() };
        Self { head, deleted: 0, stored: 0, has_marks: false, is_changed: false }
    }

    /// Deletes what is below the watermark, once it is worth it.
    fn delete_settled(&mut self, queue: u64, batch: &mut Batch) {
        let passed = self.head.watermark.saturating_sub(self.deleted);
        let given = self.head.next.saturating_sub(self.deleted).max(passed).max(1);
        let bytes = (u128::from(self.stored) * u128::from(passed) / u128::from(given)) as u64;
        if passed < DELETE_MESSAGES && bytes < DELETE_BYTES {
            return;
        }
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
        self.stored -= bytes;
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

/// The marks of one lane among sorted ones.
fn marks_of(marks: &[Marked], queue: u64, lane: u8) -> &[Marked] {
    let place = |(queue, mark, _): &Marked| match *mark {
        Mark::Settled { lane, .. } | Mark::Returned { lane, .. } => (*queue, lane),
    };
    let from = marks.partition_point(|marked| place(marked) < (queue, lane));
    let len = marks[from..].partition_point(|marked| place(marked) == (queue, lane));
    &marks[from..from + len]
}

fn write_change(change: &Change, batch: &mut Batch) {
    let table = change.space.table();
    match &change.value {
        Some(value) => batch.put(table, &change.key, value),
        None => batch.delete(table, &change.key),
    }
}
