//! The window of a lane: what is in memory of messages that the store has, too.
//!
//! Owns which segments go when there is too much, and how they come back. A head part, which is
//! delivered next, and the tail stay here; between them only the store has the messages. What is
//! read from the disk is made into segments without the queue's lock ([`Loaded::build`]).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::durability::Durability;
use super::lane::{Lane, Spares};
use super::records::{LaneHead, Mark, Records, record_len};
use super::segment::{
    Note, Residence, SEGMENT_BYTES, SHARED_BYTES_MAX, SMALL_SEGMENT_BYTES, Segment, Totals,
};
use super::{Effects, Queue, READ_AHEAD_BYTES};

/// Segments that may be put aside at once: each is a file that is written.
const SPILLED_MAX: usize = 16;

/// Messages that a lane wants to have here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) lane: u8,
    /// The sequence number from which on.
    pub(crate) from: u64,
    /// The sequence number of the first message after them that is not wanted.
    pub(crate) until: u64,
    /// The piece that they were put aside as, if they are not in the store.
    pub(crate) spilled: Option<u64>,
    /// Those below were delivered before, whatever else is known of them.
    delivered_before: u64,
}

/// A run of messages as the store gives it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredRun {
    /// The first message's sequence number.
    pub(crate) first: u64,
    /// The last message's.
    pub(crate) last: u64,
    /// The records, back to back.
    pub(crate) bytes: Vec<u8>,
    /// The bodies that the records refer to by number.
    pub(crate) bodies: Vec<Bytes>,
}

/// Messages that were read from the store.
#[derive(Debug)]
pub(crate) struct Loaded {
    wanted: Wanted,
    /// Everything from `wanted.from` on and before this that is not here is settled or lost.
    end: u64,
    segments: Vec<Segment>,
    /// Sequence numbers that are missing, as ranges.
    gaps: Vec<(u64, u64)>,
}

impl Loaded {
    /// The lane that it is for.
    pub(super) fn lane(&self) -> u8 {
        self.wanted.lane
    }

    /// Makes segments of what the store had from `wanted.from` on and before `end`: `runs` in
    /// order, with the marks that touch them.
    pub(crate) fn build(wanted: Wanted, end: u64, runs: &[StoredRun], marks: &[Mark]) -> Self {
        let marks = Marks::new(marks);
        let end = marks.end_of_settled(end).min(wanted.until);
        let mut loaded = Self { wanted, end, segments: Vec::new(), gaps: Vec::new() };
        let mut next = wanted.from;
        let mut left = runs.iter().map(|run| run.bytes.len()).sum::<usize>();
        for run in runs {
            let mut rest = &run.bytes[..];
            let mut seq = run.first;
            while seq < end
                && let Some(len) = record_len(rest)
            {
                let (record, after) = rest.split_at(len);
                rest = after;
                if seq >= next && !marks.have_settled(seq) {
                    let returns = marks.returns(seq).max(u32::from(seq < wanted.delivered_before));
                    loaded.make_room(record.len(), seq, left);
                    loaded.add(record, &run.bodies, seq, returns, &mut next);
                }
                left -= len;
                seq += 1;
            }
        }
        loaded.gaps.extend((next < end).then_some((next, end)));
        loaded
    }

    /// Makes sure that the last segment can take a record; `left` is how many bytes are to come.
    fn make_room(&mut self, record_len: usize, seq: u64, left: usize) {
        let has_room = |last: &Segment| {
            last.end() as usize + record_len <= SEGMENT_BYTES
                && last.shared_bytes < SHARED_BYTES_MAX
                && seq - last.first_seq < u64::from(u32::MAX)
        };
        if !self.segments.last().is_some_and(has_room) {
            let size = left.clamp(SMALL_SEGMENT_BYTES, SEGMENT_BYTES).max(record_len);
            self.segments.push(Segment::with_buffer(Vec::with_capacity(size), seq));
        }
    }

    fn add(&mut self, record: &[u8], bodies: &[Bytes], seq: u64, returns: u32, next: &mut u64) {
        let segment = self.segments.last_mut().expect("there is room");
        let missing = (*next, seq);
        let is_first = segment.count == 0;
        let skipped = if is_first { 0 } else { seq - missing.0 };
        if segment.append_stored(record, bodies, Note { skipped, returns }).is_some() {
            self.gaps.extend((missing.0 < seq).then_some(missing));
            *next = seq + 1;
        } else if is_first {
            // Its body is lost: so is the message.
            self.segments.pop();
        }
    }
}

/// Marks, to be asked for each message.
struct Marks {
    /// Ranges that do not overlap, in order.
    settled: Vec<(u64, u64)>,
    returned: BTreeMap<u64, u32>,
}

impl Marks {
    fn new(marks: &[Mark]) -> Self {
        let mut ranges = Vec::new();
        let mut returned = BTreeMap::new();
        for mark in marks {
            match *mark {
                Mark::Settled { start, end, .. } => ranges.push((start, end)),
                Mark::Returned { seq, count, .. } => drop(returned.insert(seq, count)),
            }
        }
        ranges.sort_unstable();
        let mut settled: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
        for (start, end) in ranges {
            match settled.last_mut() {
                Some(last) if last.1 >= start => last.1 = last.1.max(end),
                _ => settled.push((start, end)),
            }
        }
        Self { settled, returned }
    }

    fn have_settled(&self, seq: u64) -> bool {
        let before = self.settled.partition_point(|(start, _)| *start <= seq);
        before > 0 && seq < self.settled[before - 1].1
    }

    /// Where what is settled ends, if this is within it; otherwise this. A lane must know all of a
    /// mark or nothing: its watermark never stops within one, because the store forgets marks that
    /// begin below.
    fn end_of_settled(&self, seq: u64) -> u64 {
        let before = self.settled.partition_point(|(start, _)| *start <= seq);
        if before > 0 { seq.max(self.settled[before - 1].1) } else { seq }
    }

    fn returns(&self, seq: u64) -> u32 {
        self.returned.get(&seq).copied().unwrap_or(0)
    }
}

impl Lane {
    /// Puts messages that are in the store where a lane begins.
    pub(super) fn restore(&mut self, head: &LaneHead) {
        let totals = Totals { count: head.count, body_bytes: head.body_bytes, cost: head.cost };
        self.next_seq = head.next;
        self.delivered_before = head.delivered;
        self.segments.clear();
        if totals.count > 0 {
            self.segments.push_back(Segment::in_store(head.watermark, totals));
            self.absent = 1;
            self.unread = totals.count as usize;
        }
        self.segments.push_back(Segment::with_buffer(Vec::new(), head.next));
        self.enter_segment();
        self.durability = Some(Box::new(Durability::restored(head)));
    }

    /// Bytes of memory that messages take, large bodies included.
    pub(super) fn resident(&self) -> usize {
        self.memory + self.large
    }

    /// Whether any message that is not here may expire.
    pub(super) fn may_expire(&self) -> bool {
        self.unread_may_expire || self.durability.as_ref().is_some_and(|kept| kept.may_expire)
    }

    /// Whether the next message is not here.
    pub(super) fn is_head_absent(&self) -> bool {
        self.absent > 0
            && self.ready() == self.unread
            && !self.segments[self.index(self.cursor.segment)].is_here()
    }

    /// What is to be read from the store, if less than `ahead` bytes are here before it.
    pub(super) fn wanted(&self, ahead: usize) -> Option<Wanted> {
        if self.absent == 0 {
            return None;
        }
        let mut here = 0;
        for index in self.index(self.cursor.segment)..self.segments.len() {
            let segment = &self.segments[index];
            if !segment.is_here() {
                let (lane, delivered_before) = (self.cursor.lane, self.delivered_before);
                let until = self.segments[index + 1].first_seq;
                let (from, spilled) = (segment.first_seq, segment.piece());
                return Some(Wanted { lane, from, until, spilled, delivered_before });
            }
            here += segment.end() as usize + segment.shared_bytes;
            if here >= ahead {
                return None;
            }
        }
        None
    }

    /// The first segment after a head part of so many bytes.
    fn after_head(&self, head: usize) -> usize {
        let mut index = self.index(self.cursor.segment) + 1;
        let mut before = 0;
        while index + 1 < self.segments.len() && before < head {
            before += self.segments[index].end() as usize + self.segments[index].shared_bytes;
            index += 1;
        }
        index
    }

    /// Puts some segments aside that not only the store has, but for a head part of `head` bytes,
    /// while the lane takes more than `target` bytes. `put` keeps a piece and answers its number.
    ///
    /// # Errors
    /// When `put` does: then no more is put aside.
    pub(super) fn spill<E>(
        &mut self,
        head: usize,
        target: usize,
        put: &mut impl FnMut(&[u8]) -> Result<u64, E>,
        spares: &mut Spares,
    ) -> Result<(), E> {
        let mut index = self.after_head(head);
        let mut left = SPILLED_MAX;
        while index + 1 < self.segments.len() && self.resident() > target && left > 0 {
            let segment = &mut self.segments[index];
            if segment.is_here() && !segment.is_stored() {
                left -= 1;
                let piece = put(&segment.to_piece())?;
                self.memory -= segment.capacity();
                self.large -= segment.shared_bytes;
                self.absent += 1;
                spares.keep(segment.put_aside(piece));
            }
            index += 1;
        }
        Ok(())
    }

    /// Takes in a segment that was put aside. `false` when it was dropped meanwhile.
    pub(super) fn take_back(
        &mut self,
        number: u64,
        piece: &[u8],
        share: &impl Fn(&[u8]) -> Bytes,
    ) -> bool {
        let start = self.index(self.cursor.segment);
        let is_it = |segment: &Segment| segment.piece() == Some(number);
        let Some(place) = self.segments.range(start..).position(is_it) else { return false };
        let segment = &mut self.segments[start + place];
        segment.take_back(piece, share);
        self.memory += segment.capacity();
        self.large += segment.shared_bytes;
        self.absent -= 1;
        true
    }

    /// The pieces that segments were put aside as.
    pub(super) fn pieces(&self) -> impl Iterator<Item = u64> {
        self.segments.iter().filter_map(Segment::piece)
    }

    /// Lets go of segments that the store has, but for a head part of `head` bytes, until the lane
    /// takes no more than `target` bytes. `is_written` says of which groups the store can be read.
    pub(super) fn evict(
        &mut self,
        head: usize,
        target: usize,
        is_written: &impl Fn(u64) -> bool,
        spares: &mut Spares,
    ) {
        let mut index = self.after_head(head);
        while index + 1 < self.segments.len() && self.resident() > target {
            let segment = &mut self.segments[index];
            let is_whole = segment.is_stored() && segment.live == segment.count;
            if !segment.is_here() || !is_whole || !is_written(segment.group) {
                index += 1;
                continue;
            }
            let stand_in = Segment::in_store(segment.first_seq, segment.stored);
            let gone = std::mem::replace(segment, stand_in);
            self.memory -= gone.capacity();
            self.large -= gone.shared_bytes;
            spares.keep(gone);
            self.absent += 1;
            index = self.merge(index) + 1;
        }
    }

    /// Makes one of an absent segment and the absent ones beside it; answers where it is.
    fn merge(&mut self, index: usize) -> usize {
        let is_absent = |lane: &Self, at: usize| {
            lane.segments.get(at).is_some_and(|one| one.residence == Residence::InStore)
        };
        let first = if is_absent(self, index - 1) { index - 1 } else { index };
        while is_absent(self, first + 1) {
            let next = self.segments.remove(first + 1).expect("asked above");
            let into = &mut self.segments[first];
            into.live += next.live;
            into.stored.include(next.stored);
            self.absent -= 1;
        }
        first
    }

    /// Takes in what was read. Answers what is lost: messages that should have been there. What
    /// was dropped meanwhile is not taken in.
    pub(super) fn install(&mut self, loaded: Loaded) -> Totals {
        let start = self.index(self.cursor.segment);
        let from = loaded.wanted.from;
        let place = self.segments.range(start..).position(|segment| {
            segment.residence == Residence::InStore && segment.first_seq == from
        });
        let Some(place) = place.map(|place| start + place) else { return Totals::default() };
        let mut absent = self.segments.remove(place).expect("found above");
        let after = place + loaded.segments.len();
        let absent_end = self.segments[place].first_seq;
        let end = loaded.end.min(absent_end);
        self.absent -= 1;
        for (at, segment) in loaded.segments.into_iter().enumerate() {
            absent.live = absent.live.saturating_sub(segment.live);
            absent.stored.subtract(segment.stored);
            self.memory += segment.capacity();
            self.large += segment.shared_bytes;
            self.segments.insert(place + at, segment);
        }
        for (first, gap_end) in loaded.gaps {
            self.settle_unread(first..gap_end.min(absent_end), Totals::default());
        }
        let mut lost = Totals::default();
        if absent.live == 0 {
            self.settle_unread(end..absent_end, lost);
        } else if end < absent_end {
            absent.first_seq = end;
            self.segments.insert(after, absent);
            self.absent += 1;
        } else {
            lost = absent.stored;
            self.unread -= absent.live as usize;
            if let Some(durability) = &mut self.durability {
                durability.totals.subtract(lost);
                durability.is_changed = true;
            }
        }
        if start == place {
            self.enter_segment();
        }
        lost
    }
}

impl Queue {
    /// Makes a new queue hold what the store has of it.
    pub(crate) fn restore(&mut self, heads: &[LaneHead]) {
        for head in heads {
            self.lanes.restore(head);
            self.ready_bytes += head.body_bytes;
            self.ready_cost += head.cost;
        }
    }

    /// Hands over what the store is to be told of this drive.
    pub(crate) fn hand_over(&mut self, into: &mut Records) {
        if self.is_durable {
            self.lanes.hand_over(into);
        }
    }

    /// Notes with which group what was handed over last will be written.
    pub(crate) fn handed_over(&mut self, group: u64) {
        self.lanes.handed_over(group);
    }

    /// What is to be read from the store: what consumers come to soon, what is to be dropped, or
    /// what may expire.
    pub(crate) fn wanted(&self) -> Option<Wanted> {
        let ahead = if self.consumers.len() > 0 {
            Some(READ_AHEAD_BYTES)
        } else {
            self.settings.are_exceeded(self.ready(), self.ready_bytes).then_some(1)
        };
        self.lanes.wanted(ahead)
    }

    /// What is to be read from the store before anything can be taken.
    pub(crate) fn wanted_at_once(&self) -> Option<Wanted> {
        self.lanes.wanted(Some(1))
    }

    /// Takes in what was read. Answers how many messages are lost.
    pub(crate) fn install(&mut self, loaded: Loaded) -> u64 {
        let lost = self.lanes.install(loaded);
        self.ready_bytes -= lost.body_bytes;
        self.ready_cost -= lost.cost;
        lost.count
    }

    /// Puts aside what is not in the store alone, if messages take more than `budget` bytes of
    /// memory. `put` keeps a piece and answers its number.
    ///
    /// # Errors
    /// When `put` does: what is left stays in memory.
    pub(crate) fn spill<E>(
        &mut self,
        budget: usize,
        mut put: impl FnMut(&[u8]) -> Result<u64, E>,
        effects: &mut Effects,
    ) -> Result<(), E> {
        if self.lanes.resident() <= budget {
            return Ok(());
        }
        self.lanes.spill(self.head_part(budget), budget / 2, &mut put, &mut effects.spares)
    }

    /// Takes in a piece that was put aside; `share` makes its large bodies. `false` when it was
    /// dropped meanwhile.
    pub(crate) fn take_back(
        &mut self,
        wanted: Wanted,
        number: u64,
        piece: &[u8],
        share: &impl Fn(&[u8]) -> Bytes,
    ) -> bool {
        self.lanes.take_back(wanted.lane, number, piece, share)
    }

    /// The pieces that messages were put aside as.
    pub(crate) fn pieces(&self) -> Vec<u64> {
        self.lanes.pieces().collect()
    }

    /// What stays in memory of a queue that is to take no more than `budget` bytes: what is wanted,
    /// too, for it would be read again and again.
    fn head_part(&self, budget: usize) -> usize {
        let ahead = if self.consumers.len() > 0 { READ_AHEAD_BYTES } else { 0 };
        (budget / 4).max(ahead)
    }

    /// Lets go of what the store has, too, if messages take more than `budget` bytes of memory.
    /// `is_written` says of which groups the store can be read.
    pub(crate) fn evict(
        &mut self,
        budget: usize,
        is_written: &impl Fn(u64) -> bool,
        effects: &mut Effects,
    ) {
        if self.is_durable && self.lanes.resident() > budget {
            let head = self.head_part(budget);
            self.lanes.evict(head, budget / 2, is_written, &mut effects.spares);
        }
    }
}

#[cfg(test)]
impl Queue {
    /// Of the lanes that have messages elsewhere only: how many of those that are ready come
    /// before.
    pub(super) fn reachable(&self) -> Vec<(u8, usize)> {
        let lanes = self.lanes.all().filter(|lane| lane.absent > 0);
        let reachable = lanes.map(|lane| {
            let behind = lane.segments.iter().skip_while(|segment| segment.is_here());
            (lane.cursor.lane, lane.ready() - behind.map(|it| it.live as usize).sum::<usize>())
        });
        reachable.collect()
    }

    /// Checks that nothing is remembered of a queue in which nothing is left.
    pub(super) fn check_all_is_settled(&self) {
        for lane in self.lanes.all() {
            let watermark = lane.durability.as_ref().map(|kept| kept.watermark());
            assert!(watermark.is_none_or(|it| it == lane.next_seq), "{lane:?}");
            assert_eq!((lane.absent, lane.large), (0, 0));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::segment::Body;
    use super::super::{ConsumerSpec, Content, Gate, Pass, Run, Settings};
    use super::*;
    use crate::clock::Millis;

    /// A content header of a persistent message without other properties.
    const HEADER: [u8; 15] = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 2];

    const NOW: Millis = Millis(1);

    #[derive(Debug)]
    struct Open;

    impl Gate for Open {
        fn pass(&self) -> Pass {
            Pass::Free
        }
    }

    fn publish(queue: &mut Queue, count: usize, body: &[u8]) {
        let effects = &mut Effects::default();
        let content = Content { address: b"\x00\x01q", header: &HEADER, body: Body::Inline(body) };
        (0..count).for_each(|_| queue.enqueue(&content, 0, NOW, effects));
        queue.checkout(NOW, effects);
    }

    /// What a durable queue without limits hands over after so many publishes.
    fn published(count: usize) -> (Queue, Records) {
        let mut queue = Queue::with_store(Settings::default(), true);
        publish(&mut queue, count, b"body");
        let mut records = Records::default();
        queue.hand_over(&mut records);
        (queue, records)
    }

    fn restored(head: LaneHead) -> Queue {
        let mut queue = Queue::with_store(Settings::default(), true);
        queue.restore(&[head]);
        queue
    }

    fn head(queue: &mut Queue) -> Option<LaneHead> {
        let mut records = Records::default();
        queue.hand_over(&mut records);
        records.heads.last().copied()
    }

    /// The runs as a store gives them back.
    fn stored(records: &Records) -> Vec<StoredRun> {
        let stored = |run: &Run| StoredRun {
            first: run.first,
            last: run.last,
            bytes: records.bytes[run.bytes.clone()].to_vec(),
            bodies: records.bodies[run.bodies.clone()].to_vec(),
        };
        records.runs.iter().map(stored).collect()
    }

    #[test]
    fn what_was_delivered_before_a_restart_is_known_after_the_next() {
        let (mut queue, _) = published(3);
        queue.get(false, NOW, &mut Effects::default()).expect("it is here").expect("a message");
        let first = head(&mut queue).expect("one was delivered");
        assert_eq!(first.delivered, 1);
        let mut queue = restored(first);
        publish(&mut queue, 1, b"body");
        let second = head(&mut queue).expect("one was published");
        assert_eq!((second.delivered, second.count), (1, 4));
    }

    #[test]
    fn where_nothing_is_left_nothing_is_remembered() {
        let empty = LaneHead { watermark: 3, next: 10, ..LaneHead::default() };
        let mut queue = restored(empty);
        assert_eq!(head(&mut queue).map(|head| head.watermark), Some(10));
        assert_eq!(head(&mut queue), None, "the store knows");
        assert_eq!(queue.wanted_at_once(), None);
    }

    #[test]
    fn a_mark_is_known_as_a_whole() {
        let (_, records) = published(4);
        let mut queue = restored(LaneHead { next: 100, count: 2, ..records.heads[0] });
        let wanted = queue.wanted_at_once().expect("it is in the store only");
        let marks = [(1, 3), (3, 50), (40, 60)];
        let marks = marks.map(|(start, end)| Mark::Settled { lane: 0, start, end });
        // What was read ends within what is settled.
        let loaded = Loaded::build(wanted, 4, &stored(&records), &marks);
        queue.install(loaded);
        let got = queue.get(true, NOW, &mut Effects::default());
        queue.finish_get(&got.expect("it is here").expect("a message"), &mut Effects::default());
        assert_eq!(head(&mut queue).map(|head| head.watermark), Some(60));
        assert_eq!(queue.wanted_at_once().map(|wanted| wanted.from), Some(60));
    }

    #[test]
    fn after_the_last_message_nothing_is_read() {
        let (_, records) = published(1);
        // What came after it is gone.
        let mut queue = restored(LaneHead { next: 10, ..records.heads[0] });
        let wanted = queue.wanted_at_once().expect("it is in the store only");
        let loaded = Loaded::build(wanted, 1, &stored(&records), &[]);
        assert_eq!(queue.install(loaded), 0);
        queue.get(true, NOW, &mut Effects::default()).expect("it is here").expect("a message");
        assert_eq!(queue.wanted_at_once(), None);
    }

    #[test]
    fn what_may_expire_is_wanted_where_nobody_consumes() {
        let settings = Settings { message_ttl_ms: Some(5), ..Settings::default() };
        let (mut queue, effects) = (Queue::new(settings), &mut Effects::default());
        publish(&mut queue, 3, &[0; SEGMENT_BYTES]);
        let put = |_: &[u8]| Ok::<u64, ()>(1);
        queue.spill(0, put, effects).expect("there is room");
        assert_eq!(queue.wanted(), None, "the first one is here");
        queue.expire(Millis(NOW.0 + 5), effects);
        queue.finish(effects);
        assert_eq!((queue.ready(), queue.wanted().and_then(|it| it.spilled)), (2, Some(1)));
    }

    #[test]
    fn what_a_consumer_wants_stays_when_there_is_little_memory() {
        let (_, records) = published(1000);
        let mut queue = restored(records.heads[0]);
        let gate = Arc::new(Open);
        let idle = ConsumerSpec { no_ack: false, prefetch: 0, priority: 0, window: 0, gate };
        queue.subscribe(idle);
        let mut loads = 0;
        while let Some(wanted) = queue.wanted() {
            loads += 1;
            assert!(loads < 100, "the same is read again and again");
            let loaded = Loaded::build(wanted, wanted.from + 1, &stored(&records), &[]);
            assert_eq!(queue.install(loaded), 0);
            queue.evict(0, &|_| true, &mut Effects::default());
        }
        assert!(loads > 0 && queue.reachable()[0].1 < 1000);
    }
}
