//! What one group writes.
//!
//! Owns the way from what was handed over to one batch: what is settled by the end of the group is
//! not written, and of what replaces each other only the last. It must not wait, and reads nothing.

use std::time::Instant;

use rustc_hash::FxHashMap;

use crate::queue::{Mark, Records};

use super::Change;
use super::batch::{Batch, Table};
use super::entry::EntryWriter;
use super::keys;
use super::lanes::Lanes;
use super::part::{Part, Source, Use};

/// Something that was handed over.
#[derive(Debug)]
pub(super) enum Item {
    Records(u64, Records),
    Forget(u64),
    Changes(Vec<Change>),
}

/// What came of forming a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Formed {
    /// Whether there is something that has to be durable before anyone may rely on it.
    pub(super) must_last: bool,
    pub(super) messages: u64,
    /// Messages that were settled before they were written.
    pub(super) skipped: u64,
    /// Whether it has bodies that several queues share.
    pub(super) has_bodies: bool,
}

/// A mark of a queue, and the item that it came with.
type Marked = (u64, Mark, usize);

/// Which queues were forgotten, and by which item.
type Forgotten = FxHashMap<u64, usize>;

/// See the module's description. It keeps the memory that a group needs for the next.
#[derive(Debug, Default)]
pub(super) struct Former {
    pub(super) lanes: Lanes,
    marks: Vec<Marked>,
    parts: Vec<Part>,
    uses: Vec<Use>,
    entry: EntryWriter,
}

impl Former {
    /// Puts into `batch` what these items come to, as the group of this number.
    pub(super) fn form(
        &mut self,
        items: &[Item],
        group: u64,
        now: Instant,
        batch: &mut Batch,
    ) -> Formed {
        let mut formed = Formed::default();
        let forgotten = self.take_heads(items, batch, &mut formed);
        self.lanes.write_heads(now, batch);
        self.write_marks(&forgotten, batch);
        self.collect(items, &forgotten, &mut formed);
        formed.has_bodies = self.write_messages(items, group, batch);
        for item in items {
            if let Item::Changes(changes) = item {
                formed.must_last |= !changes.is_empty();
                changes.iter().for_each(|change| write_change(change, batch));
                // Each is deleted some day, or replaced.
                let values = changes.iter().filter_map(|change| change.value.as_ref());
                self.lanes.add_deleted_bytes(values.map(|value| value.len() as u64).sum());
            }
        }
        formed.must_last |= formed.messages > 0;
        batch.put(Table::Meta, keys::GROUP, &group.to_le_bytes());
        formed
    }

    /// Brings all lanes to where the group leaves them.
    fn take_heads(&mut self, items: &[Item], batch: &mut Batch, formed: &mut Formed) -> Forgotten {
        let mut forgotten = Forgotten::default();
        self.marks.clear();
        for (index, item) in items.iter().enumerate() {
            match item {
                Item::Records(queue, records) => {
                    self.marks.extend(records.marks.iter().map(|mark| (*queue, *mark, index)));
                    self.lanes.set_heads(*queue, &records.heads);
                    formed.must_last |= records.is_answered;
                }
                Item::Forget(queue) => {
                    self.lanes.forget(*queue, batch);
                    forgotten.insert(*queue, index);
                }
                Item::Changes(_) => {}
            }
        }
        forgotten
    }

    /// Writes the last mark of each place, unless all that it speaks of is below the watermark.
    fn write_marks(&mut self, forgotten: &Forgotten, batch: &mut Batch) {
        if self.marks.is_empty() {
            return;
        }
        let lanes = &self.lanes;
        self.marks.retain(|(queue, mark, item)| {
            let (lane, end) = match *mark {
                Mark::Settled { lane, start, end } if start < end => (lane, end),
                Mark::Settled { .. } => return false,
                Mark::Returned { lane, seq, .. } => (lane, seq + 1),
            };
            let is_forgotten = forgotten.get(queue).is_some_and(|by| item < by);
            !is_forgotten && end > lanes.watermark(*queue, lane)
        });
        self.marks.sort_by_key(|(queue, mark, _)| keys::mark(*queue, mark));
        for (index, (queue, mark, _)) in self.marks.iter().enumerate() {
            let key = keys::mark(*queue, mark);
            let next = self.marks.get(index + 1);
            if next.is_none_or(|(queue, mark, _)| keys::mark(*queue, mark) != key) {
                batch.put_with(Table::Marks, &key, |out| keys::write_mark(mark, out));
            }
            self.lanes.add_mark(*queue, mark);
        }
    }

    /// Finds what is to be written of all runs, and sorts it by queue, lane and sequence number.
    fn collect(&mut self, items: &[Item], forgotten: &Forgotten, formed: &mut Formed) {
        self.parts.clear();
        self.uses.clear();
        for (index, item) in items.iter().enumerate() {
            let Item::Records(queue, records) = item else { continue };
            let is_forgotten = forgotten.get(queue).is_some_and(|by| index < *by);
            for run in &records.runs {
                let messages = run.last - run.first + 1;
                if is_forgotten {
                    formed.skipped += messages;
                    continue;
                }
                let watermark = self.lanes.watermark(*queue, run.lane);
                let marks = marks_of(&self.marks, *queue, run.lane).iter().map(|(_, mark, _)| mark);
                let source = Source { queue: *queue, item: index, run, records };
                let live = source.live(watermark, marks, &mut self.parts, &mut self.uses);
                formed.messages += live;
                formed.skipped += messages - live;
            }
        }
        self.parts.sort_by_key(|part| (part.queue, part.lane, part.first));
    }

    /// Writes what was collected. Returns whether there are shared bodies among it.
    fn write_messages(&mut self, items: &[Item], group: u64, batch: &mut Batch) -> bool {
        let Self { lanes, parts, uses, entry, .. } = self;
        entry.begin(group, parts, uses);
        for part in parts.iter() {
            let Item::Records(_, records) = &items[part.item] else { continue };
            let bytes = &records.bytes[part.bytes.clone()];
            entry.add(part, bytes, &uses[part.uses.clone()], batch);
        }
        entry.finish(batch);
        for (queue, lane, bytes) in entry.written() {
            lanes.add_stored(*queue, *lane, *bytes);
        }
        // They keep bodies alive.
        uses.clear();
        entry.has_shared()
    }
}

fn lane_of(mark: &Mark) -> u8 {
    match *mark {
        Mark::Settled { lane, .. } | Mark::Returned { lane, .. } => lane,
    }
}

/// The marks of one lane among sorted ones.
fn marks_of(marks: &[Marked], queue: u64, lane: u8) -> &[Marked] {
    let place = |(queue, mark, _): &Marked| (*queue, lane_of(mark));
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
