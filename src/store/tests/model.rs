//! The store against a plain model, over random histories with crashes.
//!
//! The model does what a queue does: it gives out sequence numbers, settles in any order, and
//! hands over what has changed. After each crash and each close the store must hold exactly what
//! the model was at the newest group that is there, and that group is never older than what was
//! reported durable, as far as that was to last: a settlement may be lost.
//! `LEVERET_MODEL_CASES=10000` runs that many histories.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::queue::{body_number, record_len};

const QUEUES: u64 = 3;
const LANES: u8 = 2;

#[derive(Clone, Debug)]
pub(super) enum Step {
    Put {
        queue: u64,
        lane: u8,
        skip: u64,
        bodies: Vec<BodyKind>,
    },
    Settle {
        queue: u64,
        lane: u8,
        picks: Vec<prop::sample::Index>,
    },
    /// All but one.
    SettleBut {
        queue: u64,
        lane: u8,
        pick: prop::sample::Index,
    },
    Return {
        queue: u64,
        lane: u8,
        pick: prop::sample::Index,
        count: u32,
    },
    Purge {
        queue: u64,
    },
    Forget {
        queue: u64,
    },
    Change {
        key: u8,
        value: Option<u8>,
    },
    Durable,
    Written,
    /// Time for the store to give space back.
    Rest,
    Flush,
    Crash {
        kept: prop::sample::Index,
    },
    Reopen,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum BodyKind {
    Inline(u8),
    Shared(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let body = prop_oneof![
        4 => (0..30_u8).prop_map(BodyKind::Inline),
        1 => (0..4_u8).prop_map(BodyKind::Shared),
    ];
    let (queue, lane) = (0..QUEUES, 0..LANES);
    let picks = prop::collection::vec(any::<prop::sample::Index>(), 1..6);
    let step = prop_oneof![
        8 => (queue.clone(), lane.clone(), 0..3_u64, prop::collection::vec(body, 1..12))
            .prop_map(|(queue, lane, skip, bodies)| Step::Put { queue, lane, skip, bodies }),
        8 => (queue.clone(), lane.clone(), picks)
            .prop_map(|(queue, lane, picks)| Step::Settle { queue, lane, picks }),
        3 => (queue.clone(), lane.clone(), any::<prop::sample::Index>())
            .prop_map(|(queue, lane, pick)| Step::SettleBut { queue, lane, pick }),
        2 => (queue.clone(), lane, any::<prop::sample::Index>(), 1..9_u32)
            .prop_map(|(queue, lane, pick, count)| Step::Return { queue, lane, pick, count }),
        1 => queue.clone().prop_map(|queue| Step::Purge { queue }),
        1 => queue.prop_map(|queue| Step::Forget { queue }),
        2 => (0..4_u8, any::<Option<u8>>()).prop_map(|(key, value)| Step::Change { key, value }),
        2 => Just(Step::Durable),
        2 => Just(Step::Written),
        2 => Just(Step::Rest),
        1 => Just(Step::Flush),
        1 => any::<prop::sample::Index>().prop_map(|kept| Step::Crash { kept }),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..60)
}

/// A message as the model keeps it, its record without the number of the body.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    record: Vec<u8>,
    body: Option<Bytes>,
    returned: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Lane {
    next: u64,
    live: BTreeMap<u64, Message>,
}

impl Lane {
    fn head(&self, lane: u8) -> LaneHead {
        let watermark = self.live.keys().next().copied().unwrap_or(self.next);
        LaneHead { lane, watermark, next: self.next, count: self.live.len() as u64, ..head(0, 0) }
    }

    /// All sequence numbers around `seq` that are not live.
    fn settled_around(&self, seq: u64) -> Range<u64> {
        let start = self.live.range(..seq).next_back().map_or(0, |(seq, _)| seq + 1);
        let end = self.live.range(seq..).next().map_or(self.next, |(seq, _)| *seq);
        start..end
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    lanes: BTreeMap<(u64, u8), Lane>,
    changes: BTreeMap<u8, u8>,
    /// Sequence numbers are not given out again, even if the queue is another one.
    given: u64,
}

impl Model {
    /// Puts messages at the end of a lane, and returns what is handed over.
    fn put(&mut self, number: u8, lane: &mut Lane, skip: u64, bodies: &[BodyKind]) -> Records {
        let mut records = Records::default();
        let first = lane.next + skip;
        for (seq, kind) in (first..).zip(bodies) {
            let (record, body) = match *kind {
                BodyKind::Inline(len) => (record(&vec![seq as u8; len.into()]), None),
                BodyKind::Shared(kind) => {
                    let body = shared_bodies()[usize::from(kind)].clone();
                    let record = shared_record(records.bodies.len() as u32, body.len());
                    (record, Some(body))
                }
            };
            records.bytes.extend_from_slice(&record);
            records.bodies.extend(body.clone());
            lane.live.insert(seq, Message { record: without_number(&record), body, returned: 0 });
        }
        lane.next = first + bodies.len() as u64;
        let (bytes, all) = (0..records.bytes.len(), 0..records.bodies.len());
        records.runs = vec![Run { lane: number, first, last: lane.next - 1, bytes, bodies: all }];
        records
    }

    /// What a step comes to; `None` when it changes nothing.
    fn apply(&mut self, step: &Step) -> Option<(u64, Records)> {
        let (queue, number) = match *step {
            Step::Put { queue, lane, .. }
            | Step::Settle { queue, lane, .. }
            | Step::SettleBut { queue, lane, .. }
            | Step::Return { queue, lane, .. } => (queue, lane),
            _ => return None,
        };
        let is_put = matches!(step, Step::Put { .. });
        let new = || is_put.then(|| Lane { next: self.given, ..Lane::default() });
        let mut lane = self.lanes.remove(&(queue, number)).or_else(new)?;
        let mut records = Records::default();
        match step {
            Step::Put { skip, bodies, .. } => {
                records = self.put(number, &mut lane, *skip, bodies);
                self.given = self.given.max(lane.next);
            }
            Step::Settle { picks, .. } => {
                for pick in picks {
                    let index = if lane.live.is_empty() { break } else { lane.live.len() };
                    let seq = *lane.live.keys().nth(pick.index(index)).unwrap();
                    lane.live.remove(&seq);
                    let Range { start, end } = lane.settled_around(seq);
                    if start > lane.head(number).watermark {
                        records.marks.push(Mark::Settled { lane: number, start, end });
                    }
                }
            }
            Step::SettleBut { pick, .. } if !lane.live.is_empty() => {
                // The older ones are held more often.
                let index = pick.index(lane.live.len()).min(pick.index(8));
                let kept = *lane.live.keys().nth(index).unwrap();
                lane.live.retain(|seq, _| *seq == kept);
                let (start, end) = (kept + 1, lane.next);
                records.marks.push(Mark::Settled { lane: number, start, end });
            }
            Step::Return { pick, count, .. } if !lane.live.is_empty() => {
                let index = pick.index(lane.live.len());
                let (seq, message) = lane.live.iter_mut().nth(index).unwrap();
                message.returned = *count;
                records.marks.push(Mark::Returned { lane: number, seq: *seq, count: *count });
            }
            _ => {}
        }
        records.heads.push(lane.head(number));
        self.lanes.insert((queue, number), lane);
        Some((queue, records))
    }

    fn purge(&mut self, queue: u64) -> Records {
        let mut records = Records::default();
        for ((_, number), lane) in self.lanes.range_mut((queue, 0)..(queue, LANES)) {
            lane.live.clear();
            records.heads.push(lane.head(*number));
        }
        records
    }
}

/// The record of a shared body ends with its number, which depends on its neighbours.
fn without_number(record: &[u8]) -> Vec<u8> {
    match body_number(record) {
        Some(_) => record[..record.len() - 4].to_vec(),
        None => record.to_vec(),
    }
}

/// Always the same ones, so that queues share them.
fn shared_bodies() -> &'static [Bytes] {
    static BODIES: std::sync::OnceLock<Vec<Bytes>> = std::sync::OnceLock::new();
    BODIES
        .get_or_init(|| (0..4).map(|n| Bytes::from(vec![n; 3_000 + 2_000 * n as usize])).collect())
}

/// What the store says that it holds.
fn stored(store: &Store, chunk_bytes: usize) -> Model {
    let mut model = Model::default();
    for (queue, heads) in store.heads().unwrap() {
        for head in heads {
            let mut lane = Lane { next: head.next, live: BTreeMap::new() };
            let mut from = head.watermark;
            while from < u64::MAX {
                let chunk = store.read(queue, head.lane, from, chunk_bytes).unwrap();
                assert!(chunk.lost.is_empty() && chunk.end > from);
                take_chunk(&mut lane, &chunk, from);
                from = chunk.end;
            }
            assert_eq!(head, lane.head(head.lane), "queue {queue}");
            model.lanes.insert((queue, head.lane), lane);
        }
    }
    for (key, value) in store.entries(Space::Definitions).unwrap() {
        model.changes.insert(key[0], value[0]);
    }
    model
}

fn take_chunk(lane: &mut Lane, chunk: &Chunk, from: u64) {
    let mut settled = BTreeSet::new();
    let mut returned = BTreeMap::new();
    for mark in &chunk.marks {
        match *mark {
            Mark::Settled { start, end, .. } => settled.extend(start..end),
            Mark::Returned { seq, count, .. } => drop(returned.insert(seq, count)),
        }
    }
    for run in &chunk.runs {
        let mut rest = &run.bytes[..];
        for seq in run.first..=run.last {
            let (record, others) = rest.split_at(record_len(rest).unwrap());
            rest = others;
            if seq < from || settled.contains(&seq) {
                continue;
            }
            let body = body_number(record).map(|number| run.bodies[number as usize].clone());
            let returned = returned.get(&seq).copied().unwrap_or(0);
            let record = without_number(record);
            let twice = lane.live.insert(seq, Message { record, body, returned });
            assert_eq!(twice, None, "message {seq} is there twice");
        }
        assert!(rest.is_empty());
    }
}

/// Where the store is, and how it crashes.
pub(super) trait Disk: Sized {
    fn open(&self) -> Store;
    /// What is durable now.
    fn note_durable(&mut self);
    /// What a crash leaves: `kept` picks how much of what may be lost.
    fn crash(&self, kept: prop::sample::Index) -> Self;
}

impl Disk for MemoryEngine {
    fn open(&self) -> Store {
        open(self, SyncMode::Always)
    }

    fn note_durable(&mut self) {}

    fn crash(&self, kept: prop::sample::Index) -> Self {
        self.after_crash(kept.index(self.unsynced() + 1))
    }
}

/// Runs a history.
pub(super) fn run<D: Disk>(mut disk: D, steps: &[Step]) {
    let mut store = disk.open();
    let mut model = Model::default();
    // What the model was at each ticket, and the newest ticket that has to be there.
    let mut past = vec![(Ticket::default(), model.clone())];
    let mut durable = Ticket::default();
    // What has to last once it was reported durable: changes, and messages that are not settled.
    let mut changed = Ticket::default();
    let mut puts = Vec::new();
    for step in steps {
        let newest = past.last().expect("there is a beginning").0;
        let ticket = match step {
            Step::Purge { queue } => store.submit(*queue, &mut model.purge(*queue)),
            Step::Forget { queue } => {
                model.lanes.retain(|(of, _), _| of != queue);
                store.forget_queue(*queue)
            }
            Step::Change { key, value } => {
                match value {
                    Some(value) => model.changes.insert(*key, *value),
                    None => model.changes.remove(key),
                };
                let value = value.map(|value| vec![value]);
                let change = Change { space: Space::Definitions, key: vec![*key], value };
                changed = store.change(vec![change]);
                changed
            }
            Step::Durable => {
                assert_eq!(outcome(&store, newest), Outcome::Durable);
                let is_live = |(_, queue, lane, seqs): &&(Ticket, u64, u8, Range<u64>)| {
                    let lane = model.lanes.get(&(*queue, *lane));
                    lane.is_some_and(|lane| lane.live.range(seqs.clone()).next().is_some())
                };
                let put = puts.iter().filter(is_live).map(|put| put.0).max();
                durable = changed.max(put.unwrap_or_default());
                disk.note_durable();
                continue;
            }
            Step::Written => {
                until(|| store.is_written(newest.group()).then_some(()));
                continue;
            }
            Step::Rest => {
                std::thread::sleep(Duration::from_millis(3));
                continue;
            }
            Step::Flush => {
                let all = (&[][..], &keys::END[..]);
                store.shared.engine.compact(Table::Messages, all.0..all.1).unwrap();
                continue;
            }
            Step::Crash { .. } | Step::Reopen => {
                if let Step::Crash { kept } = step {
                    disk = disk.crash(*kept);
                    store = disk.open();
                } else {
                    durable = newest;
                    store.close();
                    store = disk.open();
                }
                assert_eq!(store.lost_at_open(), None);
                let group = Ticket(store.shared.newest());
                assert!(group >= durable, "{group:?} is there, {durable:?} was durable");
                let at = past.iter().rposition(|(ticket, _)| *ticket <= group);
                let given = model.given;
                model = past[at.expect("there is a beginning")].1.clone();
                model.given = 0;
                assert_eq!(stored(&store, 300), model, "at {group:?}");
                assert_eq!(stored(&store, usize::MAX), model, "at {group:?}");
                model.given = given;
                past = vec![(Ticket::default(), model.clone())];
                (durable, changed) = (Ticket::default(), Ticket::default());
                puts.clear();
                disk.note_durable();
                continue;
            }
            step => match model.apply(step) {
                Some((queue, mut records)) => {
                    let runs = records.runs.clone();
                    let ticket = store.submit(queue, &mut records);
                    puts.extend(runs.iter().map(|r| (ticket, queue, r.lane, r.first..r.last + 1)));
                    ticket
                }
                None => continue,
            },
        };
        past.push((ticket.max(newest), model.clone()));
    }
}

pub(super) fn config(cases: u32) -> ProptestConfig {
    let cases =
        std::env::var("LEVERET_MODEL_CASES").map_or(cases, |n| n.parse().expect("a number"));
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        max_shrink_iters: 2_000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(150))]

    #[test]
    fn a_crash_leaves_what_was_durable(steps in steps()) {
        run(MemoryEngine::default(), &steps);
    }
}

#[cfg(feature = "rocksdb")]
proptest! {
    #![proptest_config(config(20))]

    #[test]
    fn a_crash_leaves_what_was_durable_on_disk(steps in steps()) {
        run(super::rocks::Files::new(), &steps);
    }
}
