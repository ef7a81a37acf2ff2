//! A lane: one first-in-first-out sequence of messages over segments.
//!
//! Owns the order of messages and the life of segments. Messages that were never delivered are
//! read in place by a cursor, without an index entry each; messages that came back (requeued)
//! stand in `returned` under their sequence number, so that they leave again in their original
//! place. In a durable queue the lane also knows what the store is to be told (`durability`), and
//! segments in the middle may be in the store only (`window`). It knows nothing of consumers or
//! limits.
//!
//! Invariants: every returned sequence is below the cursor's; `first + segments.len() - 1` is the
//! tail's id; only the tail is appended to, and it is here; the cursor never rests at the end of a
//! segment that is not the tail; a segment other than the tail that holds no live record is an
//! empty placeholder; behind the cursor all segments are here, and nobody has the location of a
//! record after it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use crate::clock::Millis;

use super::durability::Durability;
use super::records::{Records, Run};
use super::segment::{
    Body, Content, RecordHead, SEGMENT_BYTES, SMALL_SEGMENT_BYTES, Segment, Totals,
};

/// How many emptied segment buffers are kept for reuse by one drive of queues.
const SPARE_BUFFERS_MAX: usize = 16;

/// A message's place in its lane, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seq(pub(crate) u64);

/// Where a record is: its lane, a segment's id, an offset in that, and how many sequence numbers
/// after the segment's first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    /// The lane's number among those of its queue.
    pub(super) lane: u8,
    pub(super) segment: u32,
    pub(super) offset: u32,
    pub(super) index: u32,
}

/// What the store knows a message by, and what that message adds to the totals there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(super) lane: u8,
    pub(super) seq: u64,
    pub(super) totals: Totals,
}

/// The first message of a lane, without taking it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    /// See [`Content::cost`].
    pub(crate) cost: u32,
    pub(crate) expiry: Option<Millis>,
}

/// A message taken from the lane, still held by its segment until settled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) seq: Seq,
    pub(crate) location: Location,
    pub(crate) body_len: u32,
    pub(crate) cost: u32,
    /// How often the message was delivered and came back.
    pub(crate) returns: u32,
}

/// Empty segment buffers that pass from queue to queue, so that a burst allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    buffers: Vec<Vec<u8>>,
    /// The pieces of messages that were dropped while they were put aside.
    pub(super) dropped: Vec<u64>,
}

impl Spares {
    fn take(&mut self, bytes: usize) -> Vec<u8> {
        let kept = if bytes == SEGMENT_BYTES { self.buffers.pop() } else { None };
        kept.unwrap_or_else(|| Vec::with_capacity(bytes))
    }

    pub(super) fn keep(&mut self, segment: Segment) {
        let buffer = segment.into_buffer();
        if buffer.capacity() == SEGMENT_BYTES && self.buffers.len() < SPARE_BUFFERS_MAX {
            self.buffers.push(buffer);
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct ReturnedMessage {
    location: Location,
    body_len: u32,
    cost: u32,
    returns: u32,
}

/// The first record that the store was not told of.
#[derive(Clone, Copy, Debug)]
struct Fresh {
    segment: u32,
    offset: u32,
    seq: u64,
    /// Records before it in its segment.
    before: u32,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(super) segments: VecDeque<Segment>,
    /// The id of `segments[0]`.
    first: u32,
    pub(super) cursor: Location,
    /// The sequence number of the message at the cursor.
    pub(super) cursor_seq: Seq,
    /// The sequence number of the message that comes next.
    pub(super) next_seq: u64,
    /// Messages at and after the cursor.
    pub(super) unread: usize,
    /// Whether any of them may expire, of those that came since the broker was started.
    pub(super) unread_may_expire: bool,
    returned: BTreeMap<Seq, ReturnedMessage>,
    /// Bytes of segment buffers held.
    pub(super) memory: usize,
    /// Bytes of shared bodies that segments hold or have held while they were here.
    pub(super) large: usize,
    /// Segments that are not here.
    pub(super) absent: usize,
    /// Only where there is a store.
    pub(super) durability: Option<Box<Durability>>,
    fresh: Option<Fresh>,
    /// The segment with the first record that was handed over last.
    handed: Option<u32>,
    /// Messages below were delivered before the broker was started.
    pub(super) delivered_before: u64,
}

impl Lane {
    /// An empty lane; `number` is what locations in it carry, `durable` whether there is a store.
    pub(crate) fn new(number: u8, durable: bool) -> Self {
        Self {
            segments: VecDeque::from([Segment::default()]),
            first: 0,
            cursor: Location { lane: number, segment: 0, offset: 0, index: 0 },
            cursor_seq: Seq(0),
            next_seq: 0,
            unread: 0,
            unread_may_expire: false,
            returned: BTreeMap::new(),
            memory: 0,
            large: 0,
            absent: 0,
            durability: durable.then(Box::default),
            fresh: None,
            handed: None,
            delivered_before: 0,
        }
    }

    /// Messages that can be taken, or could if they were here.
    pub(crate) fn ready(&self) -> usize {
        self.unread + self.returned.len()
    }

    /// Bytes of memory that the lane's segments hold, shared bodies excepted.
    pub(crate) fn memory(&self) -> usize {
        self.memory
    }

    /// Appends a message at the tail; `stored` if it is one for the store.
    pub(crate) fn push(
        &mut self,
        content: &Content<'_>,
        expiry: Option<Millis>,
        stored: bool,
        spares: &mut Spares,
    ) {
        if !self.tail().has_room(content) {
            let buffer = spares.take(self.next_segment_bytes());
            let segment = Segment::with_buffer(buffer, self.next_seq);
            self.memory += segment.capacity();
            self.segments.push_back(segment);
            self.skip_read_segment();
        }
        let last = self.first.wrapping_add(self.segments.len() as u32 - 1);
        let tail = self.segments.back_mut().expect("a lane has a tail");
        if stored {
            if self.fresh.is_none() {
                let (offset, seq, before) = (tail.end(), self.next_seq, tail.count);
                self.fresh = Some(Fresh { segment: last, offset, seq, before });
            }
            if let Some(durability) = &mut self.durability {
                let (body_bytes, cost) = (content.body.size() as u64, content.cost().into());
                durability.totals.include(Totals { count: 1, body_bytes, cost });
                durability.may_expire |= expiry.is_some();
                durability.is_changed = true;
            }
        }
        let before = tail.capacity();
        tail.append(content, expiry, stored);
        self.memory += tail.capacity() - before;
        if let Body::Shared(body) = content.body {
            self.large += body.len();
        }
        self.next_seq += 1;
        self.unread_may_expire = expiry.is_some() || (self.unread > 0 && self.unread_may_expire);
        self.unread += 1;
    }

    /// Takes the first message in order, if any is here.
    pub(crate) fn pop(&mut self) -> Option<Taken> {
        if let Some((seq, message)) = self.returned.pop_first() {
            let ReturnedMessage { location, body_len, cost, returns } = message;
            return Some(Taken { seq, location, body_len, cost, returns });
        }
        if self.unread == 0 {
            return None;
        }
        let mut location = self.cursor;
        let segment = &self.segments[self.index(location.segment)];
        if !segment.is_here() {
            return None;
        }
        let head = segment.head(location.offset);
        let note = segment.note(location.offset);
        location.index += note.skipped as u32;
        let seq = Seq(self.cursor_seq.0 + note.skipped);
        self.cursor.offset += head.record_len();
        self.cursor.index = location.index + 1;
        self.cursor_seq = Seq(seq.0 + 1);
        self.unread -= 1;
        if head.stored
            && let Some(durability) = &mut self.durability
        {
            durability.is_changed = true;
        }
        self.skip_read_segment();
        let (body_len, cost) = (head.body_len, head.cost());
        Some(Taken { seq, location, body_len, cost, returns: note.returns })
    }

    /// The first message in order, if it is here.
    pub(crate) fn peek(&self) -> Option<Head> {
        let location = match self.returned.first_key_value() {
            Some((_, message)) => message.location,
            None if self.unread == 0 => return None,
            None => self.cursor,
        };
        let segment = &self.segments[self.index(location.segment)];
        if !segment.is_here() {
            return None;
        }
        let head = segment.head(location.offset);
        Some(Head { cost: head.cost(), expiry: segment.expiry(location.offset, &head) })
    }

    /// Puts a taken message back in its original place.
    pub(crate) fn put_back(&mut self, message: Taken) {
        debug_assert!(message.seq < self.cursor_seq, "only what was taken comes back");
        let returns = message.returns.saturating_add(1);
        let Taken { seq, location, body_len, cost, .. } = message;
        let is_stored = self.durability.is_some() && self.head(location).stored;
        if let Some(durability) = self.durability.as_mut().filter(|_| is_stored) {
            durability.note_return(seq.0, returns);
        }
        let back = ReturnedMessage { location, body_len, cost, returns };
        let before = self.returned.insert(seq, back);
        debug_assert!(before.is_none(), "a message comes back once");
    }

    /// The message at `location`, which has not been settled.
    pub(crate) fn content(&self, location: Location) -> Content<'_> {
        self.segments[self.index(location.segment)].content(location.offset)
    }

    fn head(&self, location: Location) -> RecordHead {
        self.segments[self.index(location.segment)].head(location.offset)
    }

    /// What the store knows the message at `location` by, if it is to know it.
    pub(super) fn place(&self, location: Location) -> Option<Place> {
        self.durability.as_ref()?;
        let head = self.head(location);
        let (lane, totals) = (location.lane, Totals::from(&head));
        let first_seq = self.segments[self.index(location.segment)].first_seq;
        head.stored.then(|| Place { lane, seq: first_seq + u64::from(location.index), totals })
    }

    /// Lets go of a taken message for good.
    pub(crate) fn settle(&mut self, location: Location, spares: &mut Spares) {
        let index = self.index(location.segment);
        if let Some(durability) = &mut self.durability {
            let segment = &self.segments[index];
            let head = segment.head(location.offset);
            let seq = segment.first_seq + u64::from(location.index);
            if head.stored {
                durability.totals.subtract(Totals::from(&head));
            }
            durability.settle(seq, seq + 1, head.stored);
        }
        self.release_record(index, location.offset, spares);
    }

    /// Lets go of a taken message whose copy is on its way elsewhere. The store keeps it until
    /// [`Lane::bury`].
    pub(super) fn let_die(&mut self, location: Location, spares: &mut Spares) {
        if self.place(location).is_none() {
            self.settle(location, spares);
        } else {
            self.release_record(self.index(location.segment), location.offset, spares);
        }
    }

    /// Lets the store forget a message.
    pub(super) fn bury(&mut self, place: &Place) {
        if let Some(durability) = &mut self.durability {
            durability.totals.subtract(place.totals);
            durability.settle(place.seq, place.seq + 1, true);
        }
    }

    fn release_record(&mut self, index: usize, offset: u32, spares: &mut Spares) {
        self.segments[index].settle(offset);
        self.release(index, spares);
    }

    /// Drops all messages that can be taken; returns how many there were.
    pub(crate) fn clear(&mut self, spares: &mut Spares) -> usize {
        let count = self.ready();
        // Segments after the cursor's hold nothing but unread messages: they go as a whole, so
        // that dropping a long backlog takes no time worth mentioning.
        let mut dropped = self.next_seq..self.next_seq;
        let mut stored = Totals::default();
        while self.segments.len() - 1 > self.index(self.cursor.segment) {
            let segment = self.segments.pop_back().expect("it is not the cursor's");
            dropped.start = segment.first_seq;
            stored.include(segment.stored);
            self.drop_unread(segment, spares);
        }
        if !self.tail().is_here() {
            let segment = Segment::with_buffer(Vec::new(), self.next_seq);
            let absent = self.segments.pop_back().expect("a lane has a tail");
            self.segments.push_back(segment);
            dropped.start = absent.first_seq;
            stored.include(absent.stored);
            self.drop_unread(absent, spares);
            self.enter_segment();
        }
        while let Some(taken) = self.pop() {
            self.settle(taken.location, spares);
        }
        self.move_cursor_to(self.next_seq);
        self.settle_unread(dropped, stored);
        count
    }

    /// Frees a segment of unread messages only.
    fn drop_unread(&mut self, segment: Segment, spares: &mut Spares) {
        self.memory -= segment.capacity();
        self.unread -= segment.live as usize;
        if segment.is_here() {
            self.large -= segment.shared_bytes;
            spares.keep(segment);
        } else {
            self.absent -= 1;
            spares.dropped.extend(segment.piece());
        }
    }

    /// Lets the store forget unread messages that are dropped.
    pub(super) fn settle_unread(&mut self, range: Range<u64>, stored: Totals) {
        if let Some(durability) = &mut self.durability
            && !range.is_empty()
        {
            durability.totals.subtract(stored);
            durability.settle(range.start, range.end, stored.count > 0);
        }
    }

    fn move_cursor_to(&mut self, seq: u64) {
        self.cursor.index += (seq - self.cursor_seq.0) as u32;
        self.cursor_seq = Seq(seq);
    }

    /// The size for one more segment: about as much as already waits, so that a queue that is
    /// never quite empty does not take the memory of a long one.
    fn next_segment_bytes(&self) -> usize {
        if self.tail().shared_bytes > 0 {
            // Most of their bytes are elsewhere.
            return SMALL_SEGMENT_BYTES;
        }
        if self.index(self.cursor.segment) + 1 < self.segments.len() {
            return SEGMENT_BYTES;
        }
        let waiting = (self.tail().end() - self.cursor.offset) as usize;
        (2 * waiting).next_power_of_two().clamp(SMALL_SEGMENT_BYTES, SEGMENT_BYTES)
    }

    fn tail(&self) -> &Segment {
        self.segments.back().expect("a lane has a tail")
    }

    pub(super) fn index(&self, segment: u32) -> usize {
        segment.wrapping_sub(self.first) as usize
    }

    /// Moves the cursor on when it stands at the end of a segment that is not the tail.
    fn skip_read_segment(&mut self) {
        let index = self.index(self.cursor.segment);
        let segment = &self.segments[index];
        let at_end = segment.is_here() && self.cursor.offset == segment.end();
        if at_end && index + 1 < self.segments.len() {
            self.cursor.segment = self.cursor.segment.wrapping_add(1);
            self.enter_segment();
            // Records that were consumed while this was the tail may have been its last.
            self.drop_front();
        }
    }

    /// Puts the cursor at the beginning of its segment.
    pub(super) fn enter_segment(&mut self) {
        self.cursor.offset = 0;
        self.cursor.index = 0;
        self.cursor_seq = Seq(self.segments[self.index(self.cursor.segment)].first_seq);
    }

    /// Gives a segment's memory back when nothing in it is live and nothing unread.
    fn release(&mut self, index: usize, spares: &mut Spares) {
        if self.segments[index].live > 0 {
            return;
        }
        let cursor_index = self.index(self.cursor.segment);
        if index + 1 < self.segments.len() {
            debug_assert!(index < cursor_index, "unread records are live");
            let segment = std::mem::take(&mut self.segments[index]);
            self.memory -= segment.capacity();
            self.large -= segment.shared_bytes;
            spares.keep(segment);
            self.drop_front();
        } else if self.unread == 0 {
            debug_assert_eq!(index, cursor_index);
            let tail = &mut self.segments[index];
            self.memory -= tail.capacity();
            self.large -= tail.shared_bytes;
            tail.clear(self.next_seq);
            if tail.capacity() > SMALL_SEGMENT_BYTES {
                let empty = Segment::with_buffer(Vec::new(), self.next_seq);
                spares.keep(std::mem::replace(tail, empty));
            }
            self.memory += tail.capacity();
            self.enter_segment();
        }
    }

    /// Removes placeholders of released segments from the front.
    fn drop_front(&mut self) {
        while self.segments.len() > 1
            && self.segments[0].live == 0
            && self.cursor.segment != self.first
        {
            let segment = self.segments.pop_front().expect("more than one segment");
            self.memory -= segment.capacity();
            self.large -= segment.shared_bytes;
            self.first = self.first.wrapping_add(1);
        }
    }

    /// Hands over what the store is to be told. The driver says in which group it will be written
    /// by [`Lane::handed_over`], and asks before dead letters leave.
    pub(super) fn hand_over(&mut self, into: &mut Records) {
        let Some(fresh) = self.fresh.take() else { return self.hand_over_head(into) };
        self.handed.get_or_insert(fresh.segment);
        let (first, lane) = (self.index(fresh.segment), self.cursor.lane);
        let watermark = self.durability.as_ref().map_or(0, |kept| kept.watermark());
        // A segment that is gone held nothing that is not settled.
        for index in if first < self.segments.len() { first } else { 0 }..self.segments.len() {
            let segment = &self.segments[index];
            if segment.count == 0 || !segment.is_here() {
                continue;
            }
            let is_fresh = index == first && segment.first_seq <= fresh.seq;
            let (offset, seq, before) = match is_fresh {
                true => (fresh.offset, fresh.seq, fresh.before),
                false => (0, segment.first_seq, 0),
            };
            // Not where the next segment begins: that may be empty, and begin later.
            let end = seq + u64::from(segment.count - before);
            if end <= watermark {
                continue;
            }
            if segment.is_stored() && segment.bodies().is_empty() {
                let start = into.bytes.len();
                into.bytes.extend_from_slice(segment.records(offset));
                let (bytes, bodies) = (start..into.bytes.len(), 0..0);
                into.runs.push(Run { lane, first: seq, last: end - 1, bytes, bodies });
            } else {
                put_runs(segment, lane, offset, seq, watermark, into);
            }
        }
        self.hand_over_head(into);
    }

    fn hand_over_head(&mut self, into: &mut Records) {
        if let Some(durability) = &mut self.durability {
            // Messages of the life before may be delivered already that the cursor is to pass.
            let delivered = self.cursor_seq.0.max(self.delivered_before);
            durability.hand_over(self.cursor.lane, self.next_seq, delivered, into);
        }
    }

    /// Notes with which group what was handed over last will be written.
    pub(super) fn handed_over(&mut self, group: u64) {
        let Some(handed) = self.handed.take() else { return };
        let first = self.index(handed);
        let first = if first < self.segments.len() { first } else { 0 };
        self.segments.range_mut(first..).for_each(|segment| segment.group = group);
    }

    /// Checks the invariants that need a walk; for tests.
    #[cfg(any(test, debug_assertions))]
    pub(crate) fn check_invariants(&self, unsettled: usize) {
        let live: usize = self.segments.iter().map(|segment| segment.live as usize).sum();
        assert_eq!(live, self.ready() + unsettled, "each message is ready or unsettled");
        let memory: usize = self.segments.iter().map(Segment::capacity).sum();
        assert_eq!(memory, self.memory, "memory adds up");
        let here = self.segments.iter().filter(|segment| segment.is_here());
        let large: usize = here.map(|segment| segment.shared_bytes).sum();
        assert_eq!(large, self.large, "large bodies add up");
        let cursor = self.index(self.cursor.segment);
        assert!(cursor < self.segments.len(), "the cursor is in a segment");
        let here = &self.segments[cursor];
        assert!(self.cursor.offset <= here.end());
        assert_eq!(here.first_seq + u64::from(self.cursor.index), self.cursor_seq.0);
        assert!(self.returned.keys().all(|seq| *seq < self.cursor_seq));
        let absent = self.segments.iter().filter(|segment| !segment.is_here()).count();
        assert_eq!(absent, self.absent);
        assert!(self.tail().is_here() && self.segments.range(..cursor).all(Segment::is_here));
        if let Some(durability) = &self.durability {
            durability.check_invariants();
        }
    }
}

/// Hands over the records for the store among those of a segment, from one on.
fn put_runs(
    segment: &Segment,
    lane: u8,
    mut offset: u32,
    mut seq: u64,
    watermark: u64,
    into: &mut Records,
) {
    let mut open = false;
    while offset < segment.end() {
        let head = segment.head(offset);
        seq += segment.note(offset).skipped;
        let wanted = head.stored && seq >= watermark;
        if wanted {
            let (at, body_at) = (into.bytes.len(), into.bodies.len());
            if !open {
                let (bytes, bodies) = (at..at, body_at..body_at);
                into.runs.push(Run { lane, first: seq, last: seq, bytes, bodies });
            }
            let len = head.record_len();
            into.bytes.extend_from_slice(&segment.records(offset)[..len as usize]);
            let run = into.runs.last_mut().expect("one is open");
            if let Some(index) = segment.body_index(offset, &head) {
                into.bodies.push(segment.bodies()[index].clone());
                let number = (body_at - run.bodies.start) as u32;
                let place = into.bytes.len() - 4;
                into.bytes[place..].copy_from_slice(&number.to_le_bytes());
            }
            run.last = seq;
            run.bytes.end = into.bytes.len();
            run.bodies.end = into.bodies.len();
        }
        open = wanted;
        offset += head.record_len();
        seq += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::segment::Body;
    use super::*;

    fn push(lane: &mut Lane, spares: &mut Spares, body: &[u8]) {
        let content = Content { address: b"\x00\x01q", header: &[0; 14], body: Body::Inline(body) };
        lane.push(&content, None, false, spares);
    }

    fn pop(lane: &mut Lane) -> (Taken, Vec<u8>) {
        let taken = lane.pop().expect("a ready message");
        (taken, lane.content(taken.location).body.bytes().to_vec())
    }

    #[test]
    fn a_returned_message_leaves_in_its_place() {
        let (mut lane, mut spares) = (Lane::new(0, false), Spares::default());
        for n in 0..5u8 {
            push(&mut lane, &mut spares, &[n]);
        }
        let (first, _) = pop(&mut lane);
        let (second, _) = pop(&mut lane);
        lane.put_back(second);
        lane.put_back(first);
        let order: Vec<u8> = (0..5).map(|_| pop(&mut lane).1[0]).collect();
        assert_eq!(order, [0, 1, 2, 3, 4]);
        lane.check_invariants(5);
    }

    #[test]
    fn a_hoarded_message_does_not_pin_what_follows() {
        let (mut lane, mut spares) = (Lane::new(0, false), Spares::default());
        let body = vec![1; 8 * 1024];
        push(&mut lane, &mut spares, &body);
        let (hoarded, _) = pop(&mut lane);
        for _ in 0..1000 {
            push(&mut lane, &mut spares, &body);
        }
        assert!(lane.memory() > 8_000_000);
        while let Some(taken) = lane.pop() {
            lane.settle(taken.location, &mut spares);
            lane.check_invariants(1);
        }
        assert!(lane.memory() < 2 * SEGMENT_BYTES + body.len(), "{}", lane.memory());
        assert_eq!(lane.content(hoarded.location).body.size(), body.len());
        lane.settle(hoarded.location, &mut spares);
        lane.check_invariants(0);
    }

    #[test]
    fn a_lane_that_is_never_empty_stays_small() {
        let (mut lane, mut spares) = (Lane::new(0, false), Spares::default());
        push(&mut lane, &mut spares, b"first");
        for _ in 0..10_000 {
            push(&mut lane, &mut spares, b"next");
            let taken = lane.pop().expect("two messages");
            lane.settle(taken.location, &mut spares);
            assert!(lane.memory() <= 3 * SMALL_SEGMENT_BYTES, "{}", lane.memory());
        }
        lane.check_invariants(0);
    }

    #[test]
    fn a_run_ends_with_its_segment_where_the_next_was_emptied() {
        let (mut lane, mut spares) = (Lane::new(0, true), Spares::default());
        let body = vec![1; SMALL_SEGMENT_BYTES];
        for _ in 0..2 {
            let (address, header) = (b"\x00\x01q", [0; 14]);
            let content = Content { address, header: &header, body: Body::Inline(&body) };
            lane.push(&content, None, true, &mut spares);
        }
        let (first, second) = (pop(&mut lane).0, pop(&mut lane).0);
        lane.settle(second.location, &mut spares);
        let mut records = Records::default();
        lane.hand_over(&mut records);
        let runs: Vec<_> = records.runs.iter().map(|run| (run.first, run.last)).collect();
        assert_eq!(runs, [(0, 0)], "{first:?} is held, and was alone in its segment");
    }

    #[test]
    fn an_emptied_lane_keeps_little_memory() {
        let (mut lane, mut spares) = (Lane::new(0, false), Spares::default());
        for _ in 0..100_000 {
            push(&mut lane, &mut spares, b"0123456789abcdef");
        }
        assert_eq!(lane.clear(&mut spares), 100_000);
        assert!(lane.memory() <= SMALL_SEGMENT_BYTES, "{}", lane.memory());
        lane.check_invariants(0);
    }
}
