//! What of a run is to be written.
//!
//! Owns the walk over a run's records: messages that are settled by the end of the group are left
//! out, and a large run is cut into pieces. A run that is wholly live and small is taken as it is,
//! without looking at its messages. It must not write anything.

use std::ops::Range;

use bytes::Bytes;

use crate::queue::{Mark, Records, Run, body_number, record_len};

/// Larger runs are cut into pieces of this size, bodies included.
pub(super) const PIECE_BYTES: usize = 64 * 1024;

/// A run of this size or less is not cut.
const WHOLE_RUN_BYTES: usize = 256 * 1024;

/// Messages of one run with consecutive sequence numbers, to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) queue: u64,
    pub(super) lane: u8,
    pub(super) first: u64,
    pub(super) messages: u32,
    /// The item that they came with.
    pub(super) item: usize,
    /// Where the records are in the item's bytes.
    pub(super) bytes: Range<usize>,
    /// Which of the group's uses of bodies are theirs.
    pub(super) uses: Range<usize>,
}

/// A record that refers to a body.
#[derive(Clone, Debug)]
pub(super) struct Use {
    /// Where the body's number is, from the beginning of its part.
    pub(super) at: usize,
    pub(super) seq: u64,
    pub(super) body: Bytes,
}

/// A run, and where it comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    pub(super) queue: u64,
    pub(super) item: usize,
    pub(super) run: &'a Run,
    pub(super) records: &'a Records,
}

impl Source<'_> {
    /// Appends the parts of the run that are neither below the watermark nor settled by these
    /// marks, which come in order of their start. Returns the number of messages in them.
    pub(super) fn live<'m>(
        self,
        watermark: u64,
        marks: impl Iterator<Item = &'m Mark> + Clone,
        parts: &mut Vec<Part>,
        uses: &mut Vec<Use>,
    ) -> u64 {
        let run = self.run;
        if run.last < watermark {
            return 0;
        }
        let settled = marks.filter_map(|mark| match *mark {
            Mark::Settled { start, end, .. } => Some(start..end),
            Mark::Returned { .. } => None,
        });
        let touching = settled.filter(|range| range.start <= run.last && range.end > run.first);
        let is_live = run.first >= watermark && touching.clone().next().is_none();
        if is_live && run.bodies.is_empty() && run.bytes.len() <= WHOLE_RUN_BYTES {
            let messages = (run.last - run.first + 1) as u32;
            parts.push(self.part(run.first, messages, run.bytes.clone(), uses.len()..uses.len()));
            return run.last - run.first + 1;
        }
        self.walk(watermark, touching, parts, uses)
    }

    /// Looks at each message.
    fn walk(
        self,
        watermark: u64,
        settled: impl Iterator<Item = Range<u64>>,
        parts: &mut Vec<Part>,
        uses: &mut Vec<Use>,
    ) -> u64 {
        let run = self.run;
        let mut settled = settled.peekable();
        // Ranges may overlap: everything below this is settled.
        let mut below = watermark;
        let mut at = run.bytes.start;
        let mut piece = Piece { bytes: at..at, uses: uses.len()..uses.len(), ..Piece::default() };
        let mut written = 0;
        for seq in run.first..=run.last {
            while let Some(range) = settled.next_if(|range| range.start <= seq) {
                below = below.max(range.end);
            }
            let len = record_len(&self.records.bytes[at..run.bytes.end])
                .expect("a run holds as many records as it says");
            if seq < below {
                self.push(&mut piece, parts);
            } else {
                if piece.messages == 0 {
                    let uses = uses.len()..uses.len();
                    piece = Piece { first: seq, bytes: at..at, uses, ..Piece::default() };
                }
                let record = &self.records.bytes[at..at + len];
                if let Some(number) = body_number(record) {
                    let body = &self.records.bodies[run.bodies.clone()][number as usize];
                    let at = piece.bytes.len() + len - size_of::<u32>();
                    uses.push(Use { at, seq, body: body.clone() });
                    piece.body_bytes += body.len();
                }
                piece.messages += 1;
                piece.bytes.end = at + len;
                piece.uses.end = uses.len();
                written += 1;
                if piece.bytes.len() + piece.body_bytes >= PIECE_BYTES {
                    self.push(&mut piece, parts);
                }
            }
            at += len;
        }
        self.push(&mut piece, parts);
        written
    }

    /// Appends the piece, unless it is empty, and begins another.
    fn push(self, piece: &mut Piece, parts: &mut Vec<Part>) {
        let Piece { first, messages, bytes, uses, .. } = std::mem::take(piece);
        if messages > 0 {
            parts.push(self.part(first, messages, bytes, uses));
        }
    }

    fn part(self, first: u64, messages: u32, bytes: Range<usize>, uses: Range<usize>) -> Part {
        let Self { queue, item, run, .. } = self;
        Part { queue, lane: run.lane, first, messages, item, bytes, uses }
    }
}

/// A part in the making.
#[derive(Debug, Default)]
struct Piece {
    first: u64,
    messages: u32,
    bytes: Range<usize>,
    uses: Range<usize>,
    body_bytes: usize,
}
