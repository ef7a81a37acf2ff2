//! The keys and the small values of the store, byte by byte.
//!
//! Owns how things are named on disk; `run_value` has the layout of stored messages. Numbers in
//! keys are big-endian, so that keys sort as their numbers do; numbers in values are
//! little-endian. It must not read or write anything.
//!
//! | table | key | value |
//! |---|---|---|
//! | `default` | `group` | number of the newest group, u64 |
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
        // Longer than any key with this prefix.
        None => vec![0xff; 32],
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
