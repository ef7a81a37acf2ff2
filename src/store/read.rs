//! Reading back what was stored.
//!
//! Owns the way from entries of the engine to runs of messages. What does not add up is reported
//! and left out, never served.

use std::ops::{ControlFlow, Range};

use bytes::Bytes;
use tracing::error;

use crate::queue::{LaneHead, Mark, body_number, record_len};

use super::batch::Table;
use super::engine::{Engine, ReadError};
use super::keys;
use super::run_value::{BodyPlace, RunValue, StoredSpan};
use super::{Chunk, Entry, StoreError, StoredRun};

/// The number of the newest group, 0 if there was none.
pub(super) fn newest_group(engine: &dyn Engine) -> Result<u64, StoreError> {
    let Some(value) = engine.value(Table::Meta, keys::GROUP)? else { return Ok(0) };
    let bytes = value.as_slice().try_into();
    bytes.map(u64::from_le_bytes).map_err(|_| damaged(Table::Meta, keys::GROUP))
}

/// All lanes, by queue and lane.
pub(super) fn heads(
    engine: &dyn Engine,
    each: &mut dyn FnMut(u64, LaneHead),
) -> Result<(), StoreError> {
    let mut wrong = None;
    engine.scan(Table::Heads, &[]..&keys::END, &mut |key, value| {
        let parsed = keys::parse_head(key)
            .and_then(|(queue, lane)| Some((queue, keys::parse_head_value(lane, value)?)));
        match parsed {
            Some((queue, head)) => {
                each(queue, head);
                ControlFlow::Continue(())
            }
            None => {
                wrong = Some(damaged(Table::Heads, key));
                ControlFlow::Break(())
            }
        }
    })?;
    wrong.map_or(Ok(()), Err)
}

/// All keys and values of a table, in the order of keys.
pub(super) fn entries(engine: &dyn Engine, table: Table) -> Result<Vec<Entry>, StoreError> {
    let mut entries = Vec::new();
    engine.scan(table, &[]..&keys::END, &mut |key, value| {
        entries.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })?;
    Ok(entries)
}

/// See [`super::Store::read`].
pub(super) fn chunk(
    engine: &dyn Engine,
    queue: u64,
    lane: u8,
    from: u64,
    bytes_max: usize,
) -> Result<Chunk, StoreError> {
    let (chunk, missing) = (Chunk::default(), Vec::new());
    let mut reader = Reader { engine, queue, lane, bytes_left: bytes_max, chunk, missing };
    reader.read_runs(from)?;
    reader.read_marks(from)?;
    reader.lose_missing()?;
    Ok(reader.chunk)
}

struct Reader<'a> {
    engine: &'a dyn Engine,
    queue: u64,
    lane: u8,
    bytes_left: usize,
    chunk: Chunk,
    /// Messages whose bodies cannot be read, with the reason.
    missing: Vec<(u64, String)>,
}

impl Reader<'_> {
    fn read_runs(&mut self, mut from: u64) -> Result<(), StoreError> {
        let end = keys::lane_end(self.queue, self.lane);
        loop {
            let mut next = u64::MAX;
            let mut outcome = Ok(());
            let engine = self.engine;
            let start = keys::place(self.queue, self.lane, from);
            let walked = engine.scan(Table::Messages, &start..&end, &mut |key, value| {
                let Some((_, _, last)) = keys::parse_place(key) else {
                    outcome = Err(damaged(Table::Messages, key));
                    return ControlFlow::Break(());
                };
                if let Err(error) = self.take_entry(last, value, from) {
                    outcome = Err(error);
                    return ControlFlow::Break(());
                }
                from = last.saturating_add(1);
                if self.bytes_left > 0 {
                    return ControlFlow::Continue(());
                }
                next = from;
                ControlFlow::Break(())
            });
            outcome?;
            match walked {
                Ok(()) => {
                    self.chunk.end = next;
                    return Ok(());
                }
                Err(ReadError::Damaged(reason)) => from = self.skip_damage(from, &end, &reason)?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes the messages of one entry that are not below `from`.
    fn take_entry(&mut self, last: u64, value: &[u8], from: u64) -> Result<(), StoreError> {
        let Some(run) = RunValue::parse(value, last) else {
            self.lose(from..last.saturating_add(1), "its lengths do not add up");
            return Ok(());
        };
        for span in run.spans().filter(|span| span.span.last() >= from) {
            let (first, last) = (span.span.first, span.span.last());
            if !records_add_up(&span) {
                self.lose(first.max(from)..last + 1, "its records do not add up");
                continue;
            }
            let bodies = self.bodies(&span, from)?;
            let bytes = span.records.to_vec();
            let size = bytes.len() + bodies.iter().map(Bytes::len).sum::<usize>();
            self.bytes_left = self.bytes_left.saturating_sub(size);
            self.chunk.runs.push(StoredRun { first, last, bytes, bodies });
        }
        Ok(())
    }

    /// Reports the messages whose bodies are missing, unless they are settled: a body goes once
    /// those who refer to it are, which may be just now, and before its neighbours.
    fn lose_missing(&mut self) -> Result<(), StoreError> {
        if self.missing.is_empty() {
            return Ok(());
        }
        let watermark = self.head()?.map_or(u64::MAX, |head| head.watermark);
        for (seq, reason) in std::mem::take(&mut self.missing) {
            let is_settled = |mark: &Mark| match *mark {
                Mark::Settled { start, end, .. } => (start..end).contains(&seq),
                Mark::Returned { .. } => false,
            };
            if seq >= watermark && !self.chunk.marks.iter().any(is_settled) {
                self.lose(seq..seq + 1, &reason);
            }
        }
        Ok(())
    }

    /// The lane's head as it is stored, unless the queue is gone.
    fn head(&self) -> Result<Option<LaneHead>, StoreError> {
        let key = keys::head(self.queue, self.lane);
        let Some(value) = self.engine.value(Table::Heads, &key)? else { return Ok(None) };
        let head = keys::parse_head_value(self.lane, &value);
        head.map(Some).ok_or_else(|| damaged(Table::Heads, &key))
    }

    /// The bodies of a span. Those that cannot be read are empty; the messages with them, from
    /// `from` on, are noted.
    fn bodies(&mut self, span: &StoredSpan<'_>, from: u64) -> Result<Vec<Bytes>, StoreError> {
        let mut bodies = Vec::with_capacity(span.bodies.len());
        let mut missing = Vec::new();
        for (number, (place, bytes)) in (0..).zip(&span.bodies) {
            let body = match place {
                BodyPlace::Inline(_) => Ok(Bytes::copy_from_slice(bytes)),
                BodyPlace::Shared(id) => match self.engine.value(Table::Bodies, &keys::body(*id)) {
                    Ok(Some(body)) => Ok(Bytes::from(body)),
                    Ok(None) => Err(format!("its body {id} is missing")),
                    Err(ReadError::Damaged(reason)) => Err(reason),
                    Err(error) => return Err(error.into()),
                },
            };
            bodies.push(body.unwrap_or_else(|reason| {
                missing.push((number, reason));
                Bytes::new()
            }));
        }
        if missing.is_empty() {
            return Ok(bodies);
        }
        let mut rest = span.records;
        for seq in span.span.first..=span.span.last() {
            let (record, after) = rest.split_at(record_len(rest).expect("the records add up"));
            rest = after;
            let Some(number) = body_number(record).filter(|_| seq >= from) else { continue };
            if let Some((_, reason)) = missing.iter().find(|(other, _)| *other == number) {
                self.missing.push((seq, reason.clone()));
            }
        }
        Ok(bodies)
    }

    /// Reports what cannot be read from `from` on, and returns where it can be read again. The key
    /// of a damaged entry is not known, so it is looked for: in steps that double, then by halves.
    fn skip_damage(&mut self, from: u64, end: &[u8], reason: &str) -> Result<u64, StoreError> {
        let is_readable = |seq: u64| {
            let start = keys::place(self.queue, self.lane, seq);
            let first =
                self.engine.scan(Table::Messages, &start..end, &mut |_, _| ControlFlow::Break(()));
            match first {
                Ok(()) => Ok(true),
                Err(ReadError::Damaged(_)) => Ok(false),
                Err(error) => Err(StoreError::from(error)),
            }
        };
        let (mut bad, mut step) = (from, 1);
        let mut good = loop {
            let Some(next) = bad.checked_add(step).filter(|next| *next < u64::MAX) else {
                break u64::MAX;
            };
            if is_readable(next)? {
                break next;
            }
            (bad, step) = (next, step.saturating_mul(2));
        };
        while good - bad > 1 {
            let middle = bad + (good - bad) / 2;
            if is_readable(middle)? { good = middle } else { bad = middle }
        }
        let end = if good == u64::MAX { self.head()?.map_or(good, |head| head.next) } else { good };
        self.lose(from..end.max(from), reason);
        Ok(good)
    }

    fn lose(&mut self, range: Range<u64>, reason: &str) {
        let (queue, lane, Range { start: first, end }) = (self.queue, self.lane, range.clone());
        error!(
            queue,
            lane,
            first,
            end,
            reason,
            "stored messages are damaged and left out: restore a backup, or run leveret store check"
        );
        self.chunk.lost.push(range);
    }

    /// All marks that touch what the runs cover. A mark may begin long before.
    fn read_marks(&mut self, from: u64) -> Result<(), StoreError> {
        let start = keys::place(self.queue, self.lane, 0);
        let end = match self.chunk.end {
            u64::MAX => keys::lane_end(self.queue, self.lane),
            end => keys::place(self.queue, self.lane, end).to_vec(),
        };
        let marks = &mut self.chunk.marks;
        let mut wrong = None;
        self.engine.scan(Table::Marks, &start..&end, &mut |key, value| {
            match keys::parse_mark(key, value) {
                Some((_, Mark::Settled { end, .. })) if end <= from => {}
                Some((_, Mark::Returned { seq, .. })) if seq < from => {}
                Some((_, mark)) => marks.push(mark),
                None => {
                    wrong = Some(damaged(Table::Marks, key));
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        wrong.map_or(Ok(()), Err)
    }
}

/// Whether there are as many records as the span says, which refer to no bodies but its own.
fn records_add_up(span: &StoredSpan<'_>) -> bool {
    let mut rest = span.records;
    for _ in 0..span.span.messages {
        let Some(len) = record_len(rest) else { return false };
        let (record, others) = rest.split_at(len);
        if body_number(record).is_some_and(|number| number >= span.span.bodies) {
            return false;
        }
        rest = others;
    }
    rest.is_empty()
}

fn damaged(table: Table, key: &[u8]) -> StoreError {
    StoreError::Damaged(format!("the entry {} of {} does not add up", hex(key), table.name()))
}

/// A key in reports.
pub(super) fn hex(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}
