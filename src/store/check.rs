//! Checking a store that nobody has open.
//!
//! Owns the walk over everything that is stored: each checksum, each length, each number against
//! those that must agree with it. It changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::path::Path;

use serde::Serialize;

use crate::queue::{LaneHead, Mark};

use super::batch::Table;
use super::directory::{self, SyncedMark};
use super::engine::{Engine, ReadError};
use super::keys;
use super::read;
use super::{Chunk, StoreError};

/// So much is read at once (bytes).
const CHUNK_BYTES: usize = 1024 * 1024;

/// What a check has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    /// The version of the layout.
    pub(crate) format: u32,
    /// The newest group that is there, and the newest one that was synced.
    pub(crate) group: u64,
    pub(crate) synced_group: Option<u64>,
    pub(crate) queues: u64,
    /// Messages that are stored, whether settled or not, and those that are not settled.
    pub(crate) messages: u64,
    pub(crate) live_messages: u64,
    /// Bytes of records and bodies of the former.
    pub(crate) bytes: u64,
    pub(crate) shared_bodies: u64,
    pub(crate) definitions: u64,
    pub(crate) delayed: u64,
    /// What is wrong, a sentence each. Empty when all is well.
    pub(crate) damage: Vec<String>,
}

/// Checks the store in this directory. `progress` is called now and then with what was seen.
///
/// # Errors
/// When the store cannot be opened at all.
pub(crate) fn check(
    directory: &Path,
    progress: &mut dyn FnMut(&Report),
) -> Result<Report, StoreError> {
    let Some(format) = directory::found_format(directory)? else {
        let reason = "there is none".to_owned();
        return Err(StoreError::Io { path: directory.to_owned(), reason });
    };
    let engine = super::open_engine(directory, true)?;
    let synced_group = SyncedMark::read(directory);
    let report = Report { format, synced_group, ..Report::default() };
    let mut check = Check { engine: &*engine, report, heads: BTreeMap::new(), progress };
    check.run()?;
    Ok(check.report)
}

struct Check<'a> {
    engine: &'a dyn Engine,
    report: Report,
    heads: BTreeMap<(u64, u8), LaneHead>,
    progress: &'a mut dyn FnMut(&Report),
}

impl Check<'_> {
    fn run(&mut self) -> Result<(), StoreError> {
        match read::newest_group(self.engine) {
            Ok(group) => self.report.group = group,
            Err(StoreError::Damaged(reason)) => self.report.damage.push(reason),
            Err(error) => return Err(error),
        }
        if let Some(synced) = self.report.synced_group.filter(|group| *group > self.report.group) {
            self.damage(format!(
                "groups up to {synced} were synced, and {} is the newest one that is there",
                self.report.group
            ));
        }
        self.read_heads()?;
        self.read_messages()?;
        self.read_marks()?;
        self.read_bodies()?;
        self.report.definitions = self.count(Table::Definitions)?;
        self.report.delayed = self.count(Table::Delayed)?;
        Ok(())
    }

    fn read_heads(&mut self) -> Result<(), StoreError> {
        let mut wrong = Vec::new();
        let heads = &mut self.heads;
        let mut queues = BTreeSet::new();
        let walked = self.engine.scan(Table::Heads, &[]..&keys::END, &mut |key, value| {
            let parsed = keys::parse_head(key)
                .and_then(|(queue, lane)| Some((queue, keys::parse_head_value(lane, value)?)));
            match parsed {
                Some((queue, head)) => {
                    queues.insert(queue);
                    if head.watermark > head.next || head.count > head.next - head.watermark {
                        wrong.push(format!("the head of {} says {head:?}", name(queue, head.lane)));
                    }
                    heads.insert((queue, head.lane), head);
                }
                None => wrong.push(format!("a head is malformed: key {}", read::hex(key))),
            }
            ControlFlow::Continue(())
        });
        self.report.queues = queues.len() as u64;
        self.report.damage.append(&mut wrong);
        self.end_of(Table::Heads, walked)
    }

    /// Lane by lane, those that have no head as well.
    fn read_messages(&mut self) -> Result<(), StoreError> {
        let mut start = Vec::new();
        let known: Vec<(u64, u8)> = self.heads.keys().copied().collect();
        for (queue, lane) in known {
            self.read_strays(start, &keys::place(queue, lane, 0))?;
            self.read_lane(queue, lane)?;
            start = keys::lane_end(queue, lane);
        }
        self.read_strays(start, &keys::END)
    }

    /// Messages in a range of keys where there should be none.
    fn read_strays(&mut self, mut start: Vec<u8>, end: &[u8]) -> Result<(), StoreError> {
        while start.as_slice() < end {
            let mut found = None;
            let walked = self.engine.scan(Table::Messages, &start..end, &mut |key, _| {
                found = Some((keys::parse_place(key).filter(|_| key.len() == 17), key.to_vec()));
                ControlFlow::Break(())
            });
            self.end_of(Table::Messages, walked)?;
            match found {
                None => break,
                Some((None, key)) => {
                    self.damage(format!("a key of messages is malformed: {}", read::hex(&key)));
                    start = key;
                    start.push(0);
                }
                Some((Some((queue, lane, _)), _)) => {
                    self.damage(format!("{} has messages and no head", name(queue, lane)));
                    self.read_lane(queue, lane)?;
                    start = keys::lane_end(queue, lane);
                }
            }
        }
        Ok(())
    }

    fn read_lane(&mut self, queue: u64, lane: u8) -> Result<(), StoreError> {
        let head = self.heads.get(&(queue, lane)).copied();
        let watermark = head.map_or(0, |head| head.watermark);
        let (mut from, mut live, mut is_damaged) = (0, 0, false);
        while from < u64::MAX {
            let chunk = match read::chunk(self.engine, queue, lane, from, CHUNK_BYTES) {
                Ok(chunk) => chunk,
                Err(StoreError::Damaged(reason)) => {
                    self.damage(format!("{}: {reason}", name(queue, lane)));
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            for Range { start, end } in &chunk.lost {
                is_damaged = true;
                let name = name(queue, lane);
                self.damage(format!("messages {start} to {} of {name} are damaged", end - 1));
            }
            for run in &chunk.runs {
                let bodies = run.bodies.iter().map(|body| body.len()).sum::<usize>();
                self.report.bytes += (run.bytes.len() + bodies) as u64;
                self.report.messages += run.last - run.first + 1;
                if head.is_some_and(|head| run.last >= head.next) {
                    let name = name(queue, lane);
                    self.damage(format!("message {} of {name} is not given out yet", run.last));
                }
            }
            live += live_in(&chunk, watermark);
            from = chunk.end;
            (self.progress)(&self.report);
        }
        self.report.live_messages += live;
        let count = head.map_or(live, |head| head.count);
        if live != count && !is_damaged {
            let name = name(queue, lane);
            self.damage(format!("{name} has {live} messages, and {count} by its head"));
        }
        Ok(())
    }

    fn read_marks(&mut self) -> Result<(), StoreError> {
        let mut wrong = Vec::new();
        let heads = &self.heads;
        let walked = self.engine.scan(Table::Marks, &[]..&keys::END, &mut |key, value| {
            let Some((queue, mark)) = keys::parse_mark(key, value) else {
                wrong.push(format!("a mark is malformed: key {}", read::hex(key)));
                return ControlFlow::Continue(());
            };
            let (Mark::Settled { lane, .. } | Mark::Returned { lane, .. }) = mark;
            if !heads.contains_key(&(queue, lane)) {
                wrong.push(format!("{} has a mark and no head", name(queue, lane)));
            }
            ControlFlow::Continue(())
        });
        self.report.damage.append(&mut wrong);
        self.end_of(Table::Marks, walked)
    }

    /// Each body has a list of those who refer to it, and each list its body.
    fn read_bodies(&mut self) -> Result<(), StoreError> {
        let mut wrong = Vec::new();
        let mut bodies = BTreeSet::new();
        let mut lists = BTreeSet::new();
        let walked = self.engine.scan(Table::Bodies, &[]..&keys::END, &mut |key, value| {
            match keys::parse_body(key) {
                Some((true, id)) => {
                    bodies.insert(id);
                }
                Some((false, id)) if keys::parse_references(value).is_some() => {
                    lists.insert(id);
                }
                Some((false, id)) => {
                    wrong.push(format!("the references to body {id} are malformed"))
                }
                None => wrong.push(format!("a key of bodies is malformed: {}", read::hex(key))),
            }
            ControlFlow::Continue(())
        });
        self.report.shared_bodies = bodies.len() as u64;
        if walked.is_ok() {
            wrong.extend(bodies.symmetric_difference(&lists).map(|id| {
                format!("there is only one of body {id} and the list of those who refer to it")
            }));
        }
        self.report.damage.append(&mut wrong);
        self.end_of(Table::Bodies, walked)
    }

    fn count(&mut self, table: Table) -> Result<u64, StoreError> {
        let mut count = 0;
        let walked = self.engine.scan(table, &[]..&keys::END, &mut |_, _| {
            count += 1;
            ControlFlow::Continue(())
        });
        self.end_of(table, walked).map(|()| count)
    }

    /// Damage is what is looked for; anything else ends the check.
    fn end_of(&mut self, table: Table, walked: Result<(), ReadError>) -> Result<(), StoreError> {
        match walked {
            Err(ReadError::Damaged(reason)) => {
                self.damage(format!("the table {} is damaged: {reason}", table.name()));
                Ok(())
            }
            walked => Ok(walked?),
        }
    }

    fn damage(&mut self, what: String) {
        self.report.damage.push(what);
    }
}

fn name(queue: u64, lane: u8) -> String {
    format!("queue {queue}, lane {lane}")
}

/// Messages of a chunk that are not settled.
fn live_in(chunk: &Chunk, watermark: u64) -> u64 {
    let mut settled: Vec<(u64, u64)> = Vec::new();
    for mark in &chunk.marks {
        if let Mark::Settled { start, end, .. } = *mark {
            settled.push((start, end));
        }
    }
    let live = |first: u64, last: u64| {
        let mut from = first.max(watermark);
        let mut live = 0;
        // They come in the order of their start, and may lie within each other.
        for (start, end) in settled.iter().filter(|(start, _)| *start <= last) {
            live += start.saturating_sub(from);
            from = from.max(*end);
        }
        live + (last + 1).saturating_sub(from)
    };
    chunk.runs.iter().map(|run| live(run.first, run.last)).sum()
}
