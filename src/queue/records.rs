//! What one drive of a queue leaves to the store.
//!
//! Owns plain data: everything in it is absolute, so that applying it twice, or applying only the
//! latest of several, comes to the same. It must not know what keeps it, nor where.
//!
//! A message in the store is named by its queue, its lane and its sequence number, which is never
//! given out again. Messages are written in runs as they stand in a segment (see `segment` for the
//! layout of a record) and never deleted one by one: a lane's `watermark` rises instead, and what
//! was settled above it is told by marks.

use std::ops::Range;

use bytes::Bytes;

use super::segment;

/// Messages of one lane with consecutive sequence numbers, all to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) lane: u8,
    /// The first message's sequence number.
    pub(crate) first: u64,
    /// The last message's.
    pub(crate) last: u64,
    /// Where the records are in [`Records::bytes`].
    pub(crate) bytes: Range<usize>,
    /// Where the bodies are in [`Records::bodies`] that the records refer to by number, from 0.
    pub(crate) bodies: Range<usize>,
}

/// What has become of stored messages above the watermark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Those from `start` on and before `end` are settled. A mark replaces one with its `start`.
    Settled { lane: u8, start: u64, end: u64 },
    /// This one was delivered and has come back so often.
    Returned { lane: u8, seq: u64, count: u32 },
}

/// The state of one lane; each replaces the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LaneHead {
    pub(crate) lane: u8,
    /// All messages below are settled.
    pub(crate) watermark: u64,
    /// The sequence number of the next message.
    pub(crate) next: u64,
    /// All messages below were delivered at least once, or settled.
    pub(crate) delivered: u64,
    /// Stored messages that are not settled.
    pub(crate) count: u64,
    /// Bytes of their bodies.
    pub(crate) body_bytes: u64,
    /// What delivering them costs (see `Content::cost`).
    pub(crate) cost: u64,
    /// Whether any of them may expire.
    pub(crate) may_expire: bool,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) runs: Vec<Run>,
    pub(crate) marks: Vec<Mark>,
    /// The lanes that have changed.
    pub(crate) heads: Vec<LaneHead>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) bodies: Vec<Bytes>,
    /// Whether a client is told of it: then what is settled must not come back. Acks have no
    /// answer, but purges and transactions do.
    pub(crate) is_answered: bool,
}

impl Records {
    /// Whether there is nothing to keep.
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.marks.is_empty() && self.heads.is_empty()
    }

    /// Forgets everything and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        self.marks.clear();
        self.heads.clear();
        self.bytes.clear();
        self.bodies.clear();
        self.is_answered = false;
    }
}

/// The length of the record that `bytes` begins with, as far as the run's own bytes go; `None`
/// when that is no whole record.
pub(crate) fn record_len(bytes: &[u8]) -> Option<usize> {
    segment::stored_len(bytes)
}

/// The number in its run's bodies of the body that this record refers to, if it refers to one. It
/// is the last four bytes of the record, little-endian.
pub(crate) fn body_number(record: &[u8]) -> Option<u32> {
    segment::stored_body_number(record)
}
