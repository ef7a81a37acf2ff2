//! A lane: one first-in-first-out sequence of messages over segments.
//!
//! Owns the order of messages and the life of segments. Messages that were never delivered are
//! read in place by a cursor, without an index entry each; messages that came back (requeued)
//! stand in `returned` under their sequence number, so that they leave again in their original
//! place. It knows nothing of consumers or limits.
//!
//! Invariants: every returned sequence is below the cursor's; `first + segments.len() - 1` is the
//! tail's id; only the tail is appended to; the cursor never rests at the end of a segment that is
//! not the tail; a segment other than the tail that holds no live record is an empty placeholder.

use std::collections::{BTreeMap, VecDeque};

use crate::clock::Millis;

use super::segment::{Content, SEGMENT_BYTES, SMALL_SEGMENT_BYTES, Segment};

/// How many emptied segment buffers are kept for reuse by one drive of queues.
const SPARE_BUFFERS_MAX: usize = 16;

/// A message's place in its lane, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seq(pub(crate) u64);

/// Where a record is: its lane, a segment's id and an offset in that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    /// The lane's number among those of its queue.
    pub(super) lane: u8,
    segment: u32,
    offset: u32,
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
pub(crate) struct Spares(Vec<Vec<u8>>);

impl Spares {
    fn take(&mut self, bytes: usize) -> Vec<u8> {
        let kept = if bytes == SEGMENT_BYTES { self.0.pop() } else { None };
        kept.unwrap_or_else(|| Vec::with_capacity(bytes))
    }

    fn keep(&mut self, segment: Segment) {
        let buffer = segment.into_buffer();
        if buffer.capacity() == SEGMENT_BYTES && self.0.len() < SPARE_BUFFERS_MAX {
            self.0.push(buffer);
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

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Lane {
    segments: VecDeque<Segment>,
    /// The id of `segments[0]`.
    first: u32,
    cursor: Location,
    /// The sequence number of the message at the cursor.
    cursor_seq: Seq,
    /// Messages at and after the cursor.
    unread: usize,
    returned: BTreeMap<Seq, ReturnedMessage>,
    /// Bytes of segment buffers held.
    memory: usize,
}

impl Lane {
    /// An empty lane; `number` is what locations in it carry.
    pub(crate) fn new(number: u8) -> Self {
        Self {
            segments: VecDeque::from([Segment::default()]),
            first: 0,
            cursor: Location { lane: number, segment: 0, offset: 0 },
            cursor_seq: Seq(0),
            unread: 0,
            returned: BTreeMap::new(),
            memory: 0,
        }
    }

    /// Messages that can be taken.
    pub(crate) fn ready(&self) -> usize {
        self.unread + self.returned.len()
    }

    /// Bytes of memory that the lane's segments hold, shared bodies excepted.
    pub(crate) fn memory(&self) -> usize {
        self.memory
    }

    /// Appends a message at the tail.
    pub(crate) fn push(
        &mut self,
        content: &Content<'_>,
        expiry: Option<Millis>,
        spares: &mut Spares,
    ) {
        if !self.tail().has_room(content) {
            let segment = Segment::with_buffer(spares.take(self.next_segment_bytes()));
            self.memory += segment.capacity();
            self.segments.push_back(segment);
            self.skip_read_segment();
        }
        let tail = self.segments.back_mut().expect("a lane has a tail");
        let before = tail.capacity();
        tail.append(content, expiry);
        self.memory += tail.capacity() - before;
        self.unread += 1;
    }

    /// Takes the first message in order, if any.
    pub(crate) fn pop(&mut self) -> Option<Taken> {
        if let Some((seq, message)) = self.returned.pop_first() {
            let ReturnedMessage { location, body_len, cost, returns } = message;
            return Some(Taken { seq, location, body_len, cost, returns });
        }
        if self.unread == 0 {
            return None;
        }
        let location = self.cursor;
        let head = self.segments[self.index(location.segment)].head(location.offset);
        let seq = self.cursor_seq;
        self.cursor.offset += head.record_len();
        self.cursor_seq.0 += 1;
        self.unread -= 1;
        self.skip_read_segment();
        Some(Taken { seq, location, body_len: head.body_len, cost: head.cost(), returns: 0 })
    }

    /// The first message in order.
    pub(crate) fn peek(&self) -> Option<Head> {
        let location = match self.returned.first_key_value() {
            Some((_, message)) => message.location,
            None if self.unread == 0 => return None,
            None => self.cursor,
        };
        let segment = &self.segments[self.index(location.segment)];
        let head = segment.head(location.offset);
        Some(Head { cost: head.cost(), expiry: segment.expiry(location.offset, &head) })
    }

    /// Puts a taken message back in its original place.
    pub(crate) fn put_back(&mut self, message: Taken) {
        debug_assert!(message.seq < self.cursor_seq, "only what was taken comes back");
        let returns = message.returns.saturating_add(1);
        let Taken { seq, location, body_len, cost, .. } = message;
        let back = ReturnedMessage { location, body_len, cost, returns };
        let before = self.returned.insert(seq, back);
        debug_assert!(before.is_none(), "a message comes back once");
    }

    /// The message at `location`, which has not been settled.
    pub(crate) fn content(&self, location: Location) -> Content<'_> {
        self.segments[self.index(location.segment)].content(location.offset)
    }

    /// Lets go of a taken message for good.
    pub(crate) fn settle(&mut self, location: Location, spares: &mut Spares) {
        let index = self.index(location.segment);
        self.segments[index].settle(location.offset);
        self.release(index, spares);
    }

    /// Drops all messages that can be taken; returns how many there were.
    pub(crate) fn clear(&mut self, spares: &mut Spares) -> usize {
        let count = self.ready();
        // Segments after the cursor's hold nothing but unread messages: they go as a whole, so
        // that dropping a long backlog takes no time worth mentioning.
        let mut dropped = 0;
        while self.segments.len() - 1 > self.index(self.cursor.segment) {
            let segment = self.segments.pop_back().expect("it is not the cursor's");
            self.memory -= segment.capacity();
            dropped += u64::from(segment.live);
            spares.keep(segment);
        }
        self.unread -= dropped as usize;
        while let Some(taken) = self.pop() {
            self.settle(taken.location, spares);
        }
        self.cursor_seq.0 += dropped;
        count
    }

    /// The size for one more segment: about as much as already waits, so that a queue that is
    /// never quite empty does not take the memory of a long one.
    fn next_segment_bytes(&self) -> usize {
        if self.index(self.cursor.segment) + 1 < self.segments.len() {
            return SEGMENT_BYTES;
        }
        let waiting = (self.tail().end() - self.cursor.offset) as usize;
        (2 * waiting).next_power_of_two().clamp(SMALL_SEGMENT_BYTES, SEGMENT_BYTES)
    }

    fn tail(&self) -> &Segment {
        self.segments.back().expect("a lane has a tail")
    }

    fn index(&self, segment: u32) -> usize {
        segment.wrapping_sub(self.first) as usize
    }

    /// Moves the cursor on when it stands at the end of a segment that is not the tail.
    fn skip_read_segment(&mut self) {
        let index = self.index(self.cursor.segment);
        let at_end = self.cursor.offset == self.segments[index].end();
        if at_end && index + 1 < self.segments.len() {
            self.cursor.segment = self.cursor.segment.wrapping_add(1);
            self.cursor.offset = 0;
            // Records that were consumed while this was the tail may have been its last.
            self.drop_front();
        }
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
            spares.keep(segment);
            self.drop_front();
        } else if self.unread == 0 {
            debug_assert_eq!(index, cursor_index);
            let tail = &mut self.segments[index];
            self.memory -= tail.capacity();
            tail.clear();
            if tail.capacity() > SMALL_SEGMENT_BYTES {
                spares.keep(std::mem::take(tail));
            }
            self.memory += tail.capacity();
            self.cursor.offset = 0;
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
            self.first = self.first.wrapping_add(1);
        }
    }

    /// Checks the invariants that need a walk; for tests.
    #[cfg(any(test, debug_assertions))]
    pub(crate) fn check_invariants(&self, unsettled: usize) {
        let live: usize = self.segments.iter().map(|segment| segment.live as usize).sum();
        assert_eq!(live, self.ready() + unsettled, "each message is ready or unsettled");
        let memory: usize = self.segments.iter().map(Segment::capacity).sum();
        assert_eq!(memory, self.memory, "memory adds up");
        let cursor = self.index(self.cursor.segment);
        assert!(cursor < self.segments.len(), "the cursor is in a segment");
        assert!(self.cursor.offset <= self.segments[cursor].end());
        assert!(self.returned.keys().all(|seq| *seq < self.cursor_seq));
    }
}

#[cfg(test)]
mod tests {
    use super::super::segment::Body;
    use super::*;

    fn push(lane: &mut Lane, spares: &mut Spares, body: &[u8]) {
        let content = Content { address: b"\x00\x01q", header: &[0; 14], body: Body::Inline(body) };
        lane.push(&content, None, spares);
    }

    fn pop(lane: &mut Lane) -> (Taken, Vec<u8>) {
        let taken = lane.pop().expect("a ready message");
        (taken, lane.content(taken.location).body.bytes().to_vec())
    }

    #[test]
    fn a_returned_message_leaves_in_its_place() {
        let (mut lane, mut spares) = (Lane::new(0), Spares::default());
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
        let (mut lane, mut spares) = (Lane::new(0), Spares::default());
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
        assert!(lane.memory() < 2 * SEGMENT_BYTES, "{}", lane.memory());
        assert_eq!(lane.content(hoarded.location).body.size(), body.len());
        lane.settle(hoarded.location, &mut spares);
        lane.check_invariants(0);
    }

    #[test]
    fn a_lane_that_is_never_empty_stays_small() {
        let (mut lane, mut spares) = (Lane::new(0), Spares::default());
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
    fn an_emptied_lane_keeps_little_memory() {
        let (mut lane, mut spares) = (Lane::new(0), Spares::default());
        for _ in 0..100_000 {
            push(&mut lane, &mut spares, b"0123456789abcdef");
        }
        assert_eq!(lane.clear(&mut spares), 100_000);
        assert!(lane.memory() <= SMALL_SEGMENT_BYTES, "{}", lane.memory());
        lane.check_invariants(0);
    }
}
