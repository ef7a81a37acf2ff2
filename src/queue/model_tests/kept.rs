//! What a store has of one queue, as plain maps.
//!
//! Owns the meaning of [`Records`] as `records` describes it, with nothing clever in it, and gives
//! messages back in any way that a store may: runs that were split or joined anywhere, that begin
//! before what was asked for or end after it, with or without what is settled. It knows nothing of
//! groups, nor of what queues do.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::history::{Cleaning, Conditions};
use crate::queue::records::record_len;
use crate::queue::segment::{Note, Segment};
use crate::queue::{LaneHead, Mark, Records, StoredRun};

/// Of the second word of a record: its body stands elsewhere, under the number that ends it.
const SHARED_FLAG: u32 = 1 << 31;

/// A message as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    record: Vec<u8>,
    /// A large one.
    body: Option<Bytes>,
}

/// See the module's description.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    /// By lane and sequence number.
    messages: BTreeMap<(u8, u64), Message>,
    /// Ends by lane and beginning.
    settled: BTreeMap<(u8, u64), u64>,
    returned: BTreeMap<(u8, u64), u32>,
    pub(super) heads: BTreeMap<u8, LaneHead>,
}

impl Kept {
    /// Takes in what a queue has handed over.
    pub(super) fn apply(&mut self, records: &Records, cleaning: Cleaning) {
        for run in &records.runs {
            let bodies = &records.bodies[run.bodies.clone()];
            let mut rest = &records.bytes[run.bytes.clone()];
            for seq in run.first..=run.last {
                let (record, after) = rest.split_at(record_len(rest).expect("a whole record"));
                rest = after;
                let body = body_number(record).map(|number| bodies[number].clone());
                let message = Message { record: without_number(record), body };
                let before = self.messages.insert((run.lane, seq), message.clone());
                assert!(before.is_none_or(|it| it == message), "each number names one message");
            }
            assert!(rest.is_empty(), "a run has as many messages as numbers");
        }
        for mark in &records.marks {
            match *mark {
                Mark::Settled { lane, start, end } => {
                    assert!(start < end, "{mark:?}");
                    self.settled.insert((lane, start), end);
                }
                Mark::Returned { lane, seq, count } => {
                    self.returned.insert((lane, seq), count);
                }
            }
        }
        self.heads.extend(records.heads.iter().map(|head| (head.lane, *head)));
        for (lane, seq) in self.messages.keys() {
            assert!(*seq < self.heads[lane].next, "{seq} of lane {lane} is not yet given out");
        }
        match cleaning {
            Cleaning::Never => {}
            Cleaning::Below => {
                // A mark goes with its start: the watermark must not stop in the middle.
                let heads = &self.heads;
                let is_above = |lane: u8, seq: u64| seq >= heads[&lane].watermark;
                self.messages.retain(|(lane, seq), _| is_above(*lane, *seq));
                self.settled.retain(|(lane, start), _| is_above(*lane, *start));
                self.returned.retain(|(lane, seq), _| is_above(*lane, *seq));
            }
            Cleaning::Settled => {
                let mut messages = std::mem::take(&mut self.messages);
                messages.retain(|at, _| !self.is_settled(at));
                self.messages = messages;
            }
        }
    }

    fn is_settled(&self, (lane, seq): &(u8, u64)) -> bool {
        let mut ranges = self.settled.range((*lane, 0)..=(*lane, *seq));
        *seq < self.heads[lane].watermark || ranges.any(|(_, end)| seq < end)
    }

    /// What is not settled: the lane, how often each was returned at least, and the message alone
    /// in a segment.
    pub(super) fn unsettled(&self) -> impl Iterator<Item = (u8, u32, Segment)> {
        let unsettled = self.messages.iter().filter(|(at, _)| !self.is_settled(at));
        unsettled.map(|(at, message)| {
            let returns = self.returned.get(at).copied().unwrap_or(0);
            let delivered = u32::from(at.1 < self.heads[&at.0].delivered);
            let bodies: Vec<Bytes> = message.body.iter().cloned().collect();
            let record = with_number(message, 0);
            let mut segment = Segment::default();
            segment.append_stored(&record, &bodies, Note::default()).expect("its body is there");
            assert!(segment.head(0).stored, "only what is for the store is there");
            (at.0, returns.max(delivered), segment)
        })
    }

    /// Whether nobody else holds a body. That of a message that was settled when it was handed over
    /// may be empty.
    pub(super) fn are_bodies_unique(&self) -> bool {
        let mut bodies = self.messages.values().filter_map(|it| it.body.as_ref());
        bodies.all(|body| body.is_empty() || body.is_unique())
    }

    /// Messages of a lane from `from` on, where the chunk ends, and the marks that touch it.
    pub(super) fn read(
        &self,
        lane: u8,
        from: u64,
        conditions: &Conditions,
    ) -> (u64, Vec<StoredRun>, Vec<Mark>) {
        let Conditions { chunk, run_max, early, late, .. } = *conditions;
        let mut of_lane = self.messages.range((lane, from)..=(lane, u64::MAX));
        let mut bytes = 0;
        let mut seqs: Vec<u64> = Vec::new();
        while bytes < chunk
            && let Some(((_, seq), message)) = of_lane.next()
        {
            bytes += message.record.len() + message.body.as_ref().map_or(0, Bytes::len);
            seqs.push(*seq);
        }
        let next = of_lane.next().map(|((_, seq), _)| *seq);
        let end = chunk_end(&seqs, next, late);
        if let Some(first) = seqs.first().copied() {
            let before = (first.saturating_sub(early.into())..first).rev();
            let there = before.take_while(|seq| self.messages.contains_key(&(lane, *seq)));
            seqs.extend(there);
            seqs.sort_unstable();
        }
        let mut runs: Vec<StoredRun> = Vec::new();
        for seq in seqs {
            let message = &self.messages[&(lane, seq)];
            let goes_on = |run: &StoredRun| {
                run.last + 1 == seq && run.last - run.first + 1 < u64::from(run_max)
            };
            if !runs.last().is_some_and(goes_on) {
                let (bytes, bodies) = (Vec::new(), Vec::new());
                runs.push(StoredRun { first: seq, last: seq, bytes, bodies });
            }
            let run = runs.last_mut().expect("one was pushed");
            run.last = seq;
            run.bytes.extend(with_number(message, run.bodies.len()));
            run.bodies.extend(message.body.clone());
        }
        (end, runs, self.marks(lane, from, end))
    }

    fn marks(&self, lane: u8, from: u64, chunk_end: u64) -> Vec<Mark> {
        let settled = self.settled.range((lane, 0)..(lane, chunk_end));
        let settled = settled.filter(|(_, end)| **end > from);
        let settled = settled.map(|((lane, start), end)| Mark::Settled {
            lane: *lane,
            start: *start,
            end: *end,
        });
        let returned = self.returned.range((lane, from)..(lane, chunk_end));
        let returned = returned.map(|((lane, seq), count)| Mark::Returned {
            lane: *lane,
            seq: *seq,
            count: *count,
        });
        // In no particular order.
        returned.chain(settled).collect()
    }
}

/// Where a chunk of these messages ends, `next` being the message after them: right after the
/// last, right before the next, or in the middle.
fn chunk_end(seqs: &[u64], next: Option<u64>, late: u8) -> u64 {
    let Some(last) = seqs.last() else { return u64::MAX };
    match late % 3 {
        0 => last + 1,
        1 => next.unwrap_or(u64::MAX),
        _ => seqs[(seqs.len() - 1).saturating_sub(usize::from(late / 3))] + 1,
    }
}

/// The number of the body that a record refers to.
fn body_number(record: &[u8]) -> Option<usize> {
    let sizes = u32::from_le_bytes(*record[4..].first_chunk().expect("eight bytes of head"));
    let number = u32::from_le_bytes(*record.last_chunk().expect("eight bytes of head"));
    (sizes & SHARED_FLAG != 0).then_some(number as usize)
}

fn without_number(record: &[u8]) -> Vec<u8> {
    let len = if body_number(record).is_some() { record.len() - 4 } else { record.len() };
    record[..len].to_vec()
}

fn with_number(message: &Message, number: usize) -> Vec<u8> {
    let mut record = message.record.clone();
    if message.body.is_some() {
        record.extend((number as u32).to_le_bytes());
    }
    record
}
