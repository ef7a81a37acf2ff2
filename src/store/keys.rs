//! The keys and the small values of the store, byte by byte.
//!
//! Owns how things are named on disk; `run_value` has the layout of stored messages. Numbers in
//! keys are big-endian, so that keys sort as their numbers do; numbers in values are
//! little-endian. It must not read or write anything.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `group` | number of the newest group, u64 |
//! | `messages` | queue u64, lane u8, last sequence number of the entry u64 | see `run_value` |
//! | `marks` | queue u64, lane u8, start u64, 0 | end u64: settled from start on and before end |
//! | `marks` | queue u64, lane u8, sequence number u64, 1 | times returned, u32 |
//! | `heads` | queue u64, lane u8 | 1, a `LaneHead` in the order of its fields |
//! | `bodies` | `b`, body id u64 | the body |
//! | `bodies` | `r`, body id u64 | of each message with it: queue u64, lane u8, number u64 |
//! | `definitions`, `delayed` | opaque | opaque |
//!
//! Messages are keyed by the last sequence number of their entry: a seek to a sequence number
//! finds the entry that holds it, and deleting the range below a watermark removes exactly what is
//! wholly settled.

use crate::queue::{LaneHead, Mark};

/// Where the number of the newest group is.
pub(super) const GROUP: &[u8] = b"group";

/// After every key.
pub(super) const END: [u8; 32] = [0xff; 32];

const HEAD_FORMAT: u8 = 1;
const SETTLED: u8 = 0;
const RETURNED: u8 = 1;
const BODY: u8 = b'b';
const REFERENCES: u8 = b'r';

/// A message's place: queue, lane and sequence number.
pub(super) type Place = (u64, u8, u64);

/// The key of what belongs to a place.
pub(super) fn place(queue: u64, lane: u8, seq: u64) -> [u8; 17] {
    let mut key = [0; 17];
    key[..8].copy_from_slice(&queue.to_be_bytes());
    key[8] = lane;
    key[9..].copy_from_slice(&seq.to_be_bytes());
    key
}

/// What [`place`] says, of a key that begins with one.
pub(super) fn parse_place(key: &[u8]) -> Option<Place> {
    let (queue, rest) = key.split_first_chunk()?;
    let (lane, rest) = rest.split_first()?;
    let seq = rest.first_chunk()?;
    Some((u64::from_be_bytes(*queue), *lane, u64::from_be_bytes(*seq)))
}

/// The first key after everything of a lane.
pub(super) fn lane_end(queue: u64, lane: u8) -> Vec<u8> {
    match lane.checked_add(1) {
        Some(next) => place(queue, next, 0).to_vec(),
        None => queue_end(queue),
    }
}

/// The first key after everything of a queue.
pub(super) fn queue_end(queue: u64) -> Vec<u8> {
    match queue.checked_add(1) {
        Some(next) => next.to_be_bytes().to_vec(),
        None => END.to_vec(),
    }
}

/// The key of a lane's head.
pub(super) fn head(queue: u64, lane: u8) -> [u8; 9] {
    let mut key = [lane; 9];
    key[..8].copy_from_slice(&queue.to_be_bytes());
    key
}

/// The queue and the lane of a head's key.
pub(super) fn parse_head(key: &[u8]) -> Option<(u64, u8)> {
    let key: &[u8; 9] = key.try_into().ok()?;
    let (queue, lane) = key.split_first_chunk()?;
    Some((u64::from_be_bytes(*queue), lane[0]))
}

/// Appends the value of a head.
pub(super) fn write_head(head: &LaneHead, out: &mut Vec<u8>) {
    out.push(HEAD_FORMAT);
    for number in
        [head.watermark, head.next, head.delivered, head.count, head.body_bytes, head.cost]
    {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.push(u8::from(head.may_expire));
}

/// The head of this lane that a value says.
pub(super) fn parse_head_value(lane: u8, value: &[u8]) -> Option<LaneHead> {
    let (&HEAD_FORMAT, rest) = value.split_first()? else { return None };
    let (may_expire, numbers) = rest.split_last()?;
    let numbers: &[u8; 48] = numbers.try_into().ok()?;
    let number = |at: usize| {
        let bytes = numbers[at * 8..].first_chunk().expect("48 bytes are six numbers");
        u64::from_le_bytes(*bytes)
    };
    Some(LaneHead {
        lane,
        watermark: number(0),
        next: number(1),
        delivered: number(2),
        count: number(3),
        body_bytes: number(4),
        cost: number(5),
        may_expire: match may_expire {
            0 => false,
            1 => true,
            _ => return None,
        },
    })
}

/// The key of a mark.
pub(super) fn mark(queue: u64, mark: &Mark) -> [u8; 18] {
    let (lane, seq, kind) = match *mark {
        Mark::Settled { lane, start, .. } => (lane, start, SETTLED),
        Mark::Returned { lane, seq, .. } => (lane, seq, RETURNED),
    };
    let mut key = [kind; 18];
    key[..17].copy_from_slice(&place(queue, lane, seq));
    key
}

/// Appends the value of a mark.
pub(super) fn write_mark(mark: &Mark, out: &mut Vec<u8>) {
    match mark {
        Mark::Settled { end, .. } => out.extend_from_slice(&end.to_le_bytes()),
        Mark::Returned { count, .. } => out.extend_from_slice(&count.to_le_bytes()),
    }
}

/// The mark of an entry, with its queue.
pub(super) fn parse_mark(key: &[u8], value: &[u8]) -> Option<(u64, Mark)> {
    let (kind, place) = key.split_last()?;
    let (queue, lane, seq) = (place.len() == 17).then(|| parse_place(place))??;
    let mark = match *kind {
        SETTLED => {
            let end = u64::from_le_bytes(value.try_into().ok()?);
            Mark::Settled { lane, start: seq, end: (end > seq).then_some(end)? }
        }
        RETURNED => Mark::Returned { lane, seq, count: u32::from_le_bytes(value.try_into().ok()?) },
        _ => return None,
    };
    Some((queue, mark))
}

/// The key of a shared body.
pub(super) fn body(id: u64) -> [u8; 9] {
    body_key(BODY, id)
}

/// The key of the list of those that refer to a shared body.
pub(super) fn references(id: u64) -> [u8; 9] {
    body_key(REFERENCES, id)
}

fn body_key(kind: u8, id: u64) -> [u8; 9] {
    let mut key = [kind; 9];
    key[1..].copy_from_slice(&id.to_be_bytes());
    key
}

/// Whether a key of the bodies is that of a body, and its id.
pub(super) fn parse_body(key: &[u8]) -> Option<(bool, u64)> {
    let key: &[u8; 9] = key.try_into().ok()?;
    let (kind, id) = key.split_first()?;
    let id = u64::from_be_bytes(id.try_into().ok()?);
    match *kind {
        BODY => Some((true, id)),
        REFERENCES => Some((false, id)),
        _ => None,
    }
}

/// Appends one of those that refer to a body.
pub(super) fn write_reference((queue, lane, seq): Place, out: &mut Vec<u8>) {
    out.extend_from_slice(&queue.to_le_bytes());
    out.push(lane);
    out.extend_from_slice(&seq.to_le_bytes());
}

/// Those that refer to a body, from the value of [`references`].
pub(super) fn parse_references(value: &[u8]) -> Option<Vec<Place>> {
    let (entries, rest) = value.as_chunks::<17>();
    rest.is_empty().then(|| {
        let place = |entry: &[u8; 17]| {
            let queue = entry.first_chunk().expect("17 bytes hold 8");
            let seq = entry.last_chunk().expect("17 bytes hold 8");
            (u64::from_le_bytes(*queue), entry[8], u64::from_le_bytes(*seq))
        };
        entries.iter().map(place).collect()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ends_are_behind_the_last_key_and_before_the_next() {
        for (queue, lane) in [(0, 0), (7, 254), (7, 255), (u64::MAX, 3), (u64::MAX, 255)] {
            let last = mark(queue, &Mark::Returned { lane, seq: u64::MAX, count: 1 });
            assert!(last.as_slice() < lane_end(queue, lane).as_slice());
            assert!(lane_end(queue, lane) <= queue_end(queue));
        }
        assert!(lane_end(7, 3).as_slice() <= place(7, 4, 0).as_slice());
        assert!(lane_end(7, 255).as_slice() <= place(8, 0, 0).as_slice());
    }

    #[test]
    fn the_layout_stays_as_it_is() {
        let head = LaneHead { lane: 3, watermark: 1, next: 9, count: 2, ..LaneHead::default() };
        let mut value = Vec::new();
        write_head(&head, &mut value);
        assert_eq!(value.len(), 50);
        assert_eq!((value[0], value[1], value[9], value[25], value[49]), (1, 1, 9, 2, 0));
        assert_eq!(place(0x0102, 3, 4), *b"\0\0\0\0\0\0\x01\x02\x03\0\0\0\0\0\0\0\x04");
        let settled = Mark::Settled { lane: 3, start: 4, end: 6 };
        assert_eq!(mark(2, &settled), *b"\0\0\0\0\0\0\0\x02\x03\0\0\0\0\0\0\0\x04\0");
        let returned = Mark::Returned { lane: 3, seq: 4, count: 6 };
        assert_eq!(mark(2, &returned), *b"\0\0\0\0\0\0\0\x02\x03\0\0\0\0\0\0\0\x04\x01");
        assert_eq!(body(1), *b"b\0\0\0\0\0\0\0\x01");
        assert_eq!(references(1), *b"r\0\0\0\0\0\0\0\x01");
    }

    #[test]
    fn what_is_malformed_is_refused() {
        assert_eq!(parse_head(b"12345678"), None);
        assert_eq!(parse_head_value(0, &[1; 49]), None);
        assert_eq!(parse_head_value(0, &[2; 50]), None);
        assert_eq!(parse_mark(&[2; 18], &[0; 8]), None);
        assert_eq!(parse_mark(&[0; 18], &[0; 8]), None, "a range that is empty");
        assert_eq!(parse_mark(&[1; 17], &[0; 4]), None);
        assert_eq!(parse_body(b"x12345678"), None);
        assert_eq!(parse_references(&[0; 18]), None);
    }

    proptest! {
        #[test]
        fn keys_and_values_round_trip(
            queue: u64, lane: u8, a: u64, b in 1..u64::MAX, count: u32, numbers: [u64; 6],
            may_expire: bool,
        ) {
            prop_assert_eq!(parse_place(&place(queue, lane, a)), Some((queue, lane, a)));
            prop_assert_eq!(parse_head(&head(queue, lane)), Some((queue, lane)));
            let [watermark, next, delivered, count_64, body_bytes, cost] = numbers;
            let head = LaneHead {
                lane, watermark, next, delivered, count: count_64, body_bytes, cost, may_expire,
            };
            let mut value = Vec::new();
            write_head(&head, &mut value);
            prop_assert_eq!(parse_head_value(lane, &value), Some(head));
            let end = a.saturating_add(b);
            for mark in [
                Mark::Settled { lane, start: a.min(u64::MAX - 1), end },
                Mark::Returned { lane, seq: a, count },
            ] {
                let mut value = Vec::new();
                write_mark(&mark, &mut value);
                let key = super::mark(queue, &mark);
                prop_assert_eq!(parse_mark(&key, &value), Some((queue, mark)));
            }
            prop_assert_eq!(parse_body(&body(a)), Some((true, a)));
            prop_assert_eq!(parse_body(&references(a)), Some((false, a)));
            let mut list = Vec::new();
            write_reference((queue, lane, a), &mut list);
            write_reference((a, lane, queue), &mut list);
            let places = vec![(queue, lane, a), (a, lane, queue)];
            prop_assert_eq!(parse_references(&list), Some(places));
        }

        #[test]
        fn places_sort_as_their_numbers_do(a: (u64, u8, u64), b: (u64, u8, u64)) {
            prop_assert_eq!(place(a.0, a.1, a.2).cmp(&place(b.0, b.1, b.2)), a.cmp(&b));
        }
    }
}
