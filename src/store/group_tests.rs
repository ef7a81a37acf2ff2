//! What groups write, without a thread.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::queue::{LaneHead, Mark, Records, Run};

use super::batch::{Batch, Operation, Table};
use super::engine::Engine;
use super::group::{Formed, Former, Item};
use super::keys;
use super::memory::MemoryEngine;
use super::read;
use super::tests::{head, messages, record, shared_record};
use super::{Change, Chunk, Space};

/// A former and the engine that takes what it makes.
struct Bench {
    former: Former,
    engine: MemoryEngine,
    group: u64,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let (former, engine) = (Former::default(), MemoryEngine::default());
        Self { former, engine, group: 0, now: Instant::now() }
    }

    fn form(&mut self, items: Vec<Item>) -> (Formed, Batch) {
        let mut batch = Batch::default();
        self.group += 1;
        let formed = self.former.form(&items, self.group, self.now, &mut batch);
        self.engine.write(&batch, true).expect("it has no faults");
        (formed, batch)
    }

    fn read(&self, queue: u64) -> Chunk {
        read::chunk(&self.engine, queue, 0, 0, usize::MAX).expect("it is not damaged")
    }

    /// First and last sequence numbers of what is stored.
    fn spans(&self, queue: u64) -> Vec<(u64, u64)> {
        self.read(queue).runs.iter().map(|run| (run.first, run.last)).collect()
    }
}

fn heads(heads: &[LaneHead]) -> Records {
    Records { heads: heads.to_vec(), ..Records::default() }
}

fn settled(start: u64, end: u64) -> Mark {
    Mark::Settled { lane: 0, start, end }
}

/// Messages with shared bodies, and one without between them.
fn with_bodies(first: u64, bodies: &[Bytes]) -> Records {
    let mut records = messages(first, &[]);
    for (number, body) in bodies.iter().enumerate() {
        records.bytes.extend(shared_record(number as u32, body.len()));
        records.bytes.extend(record(b"small"));
        records.bodies.push(body.clone());
    }
    let last = first + 2 * bodies.len() as u64 - 1;
    let (bytes, all) = (0..records.bytes.len(), 0..bodies.len());
    records.runs = vec![Run { lane: 0, first, last, bytes, bodies: all }];
    records.heads = vec![head(0, last + 1)];
    records
}

fn puts(batch: &Batch, table: Table) -> usize {
    let is_put =
        |op: &Operation<'_>| matches!(op, Operation::Put { table: of, .. } if *of == table);
    batch.operations().filter(is_put).count()
}

#[test]
fn what_is_settled_in_its_group_is_not_written() {
    let mut bench = Bench::new();
    let (formed, batch) = bench.form(vec![
        Item::Records(1, messages(0, &[b"a", b"b"])),
        Item::Records(1, heads(&[head(2, 2)])),
    ]);
    assert_eq!(formed, Formed { skipped: 2, ..Formed::default() });
    assert_eq!((puts(&batch, Table::Messages), puts(&batch, Table::Heads)), (0, 1));
}

#[test]
fn a_run_that_is_settled_in_part_is_trimmed() {
    let mut bench = Bench::new();
    let mut acks = heads(&[LaneHead { count: 3, ..head(1, 7) }]);
    acks.marks = vec![settled(2, 3), settled(5, 6), settled(5, 7)];
    let (formed, batch) = bench.form(vec![
        Item::Records(1, messages(0, &[b"0", b"1", b"2", b"3", b"4", b"5", b"6"])),
        Item::Records(1, acks),
    ]);
    assert_eq!((formed.messages, formed.skipped), (3, 4));
    assert_eq!(puts(&batch, Table::Messages), 1, "one entry for all that is left");
    assert_eq!(puts(&batch, Table::Marks), 2, "the last one of each start");
    let chunk = bench.read(1);
    let left: Vec<_> = chunk.runs.iter().map(|r| (r.first, r.last, r.bytes.clone())).collect();
    assert_eq!(left, [(1, 1, record(b"1")), (3, 4, [record(b"3"), record(b"4")].concat())]);
    assert_eq!(chunk.marks, [settled(2, 3), settled(5, 7)]);
}

#[test]
fn runs_that_follow_each_other_become_one_entry() {
    let mut bench = Bench::new();
    let (_, batch) = bench.form(vec![
        Item::Records(1, messages(0, &[b"0", b"1"])),
        Item::Records(2, messages(0, &[b"other"])),
        Item::Records(1, messages(2, &[b"2"])),
        Item::Records(1, messages(7, &[b"7"])),
    ]);
    assert_eq!(puts(&batch, Table::Messages), 2, "one for each queue");
    assert_eq!(puts(&batch, Table::Heads), 2, "the last one of each lane");
    assert_eq!(bench.spans(1), [(0, 2), (7, 7)]);
    assert_eq!(bench.engine.keys(Table::Messages)[0], keys::place(1, 0, 7));
}

#[test]
fn entries_are_cut_at_their_size() {
    let mut bench = Bench::new();
    let body = vec![7; 1_000];
    let bodies = vec![&body[..]; 600];
    let (_, batch) = bench.form(vec![
        Item::Records(1, messages(0, &bodies)),
        Item::Records(1, messages(600, &bodies[..10])),
    ]);
    let sizes: Vec<_> = batch
        .operations()
        .filter_map(|operation| match operation {
            Operation::Put { table: Table::Messages, value, .. } => Some(value.len()),
            _ => None,
        })
        .collect();
    assert!(sizes.len() == 10 && sizes.iter().all(|size| *size < 70_000), "{sizes:?}");
    let read: u64 = bench.read(1).runs.iter().map(|run| run.last - run.first + 1).sum();
    assert_eq!(read, 610);
}

#[test]
fn a_queue_forgotten_takes_what_came_before_with_it() {
    let mut bench = Bench::new();
    bench.form(vec![Item::Records(1, messages(0, &[b"old"]))]);
    let mut before = messages(1, &[b"before"]);
    before.marks = vec![settled(0, 1)];
    let (formed, _) = bench.form(vec![
        Item::Records(1, before),
        Item::Forget(1),
        Item::Records(1, messages(5, &[b"after"])),
        Item::Records(2, messages(0, &[b"other"])),
    ]);
    assert_eq!((formed.messages, formed.skipped), (2, 1));
    assert_eq!(bench.spans(1), [(5, 5)]);
    assert_eq!(bench.read(1).marks, []);
    bench.form(vec![Item::Forget(1)]);
    assert_eq!(bench.spans(1), []);
    assert_eq!(bench.spans(2), [(0, 0)], "the other one stays");
    assert_eq!(bench.engine.keys(Table::Heads), [keys::head(2, 0)]);
}

#[test]
fn what_is_answered_must_last_and_an_ack_need_not() {
    let mut bench = Bench::new();
    let mut must_last = |records| bench.form(vec![Item::Records(1, records)]).0.must_last;
    assert!(must_last(messages(0, &[b"a", b"b"])));
    assert!(!must_last(heads(&[head(1, 2)])), "an ack");
    assert!(must_last(Records { is_answered: true, ..heads(&[head(2, 2)]) }));
}

#[test]
fn changes_must_last_and_the_last_one_counts() {
    let mut bench = Bench::new();
    let change = |value: Option<&[u8]>| {
        let value = value.map(<[u8]>::to_vec);
        Change { space: Space::Definitions, key: b"k".to_vec(), value }
    };
    let (formed, _) = bench.form(vec![
        Item::Changes(vec![change(None), change(Some(b"1"))]),
        Item::Changes(vec![change(Some(b"2"))]),
    ]);
    assert!(formed.must_last);
    let value = bench.engine.value(Table::Definitions, b"k").expect("it is not damaged");
    assert_eq!(value, Some(b"2".to_vec()));
}

#[test]
fn a_body_of_one_queue_stays_with_its_message() {
    let mut bench = Bench::new();
    let bodies = [vec![1; 20_000], vec![2; 20_000]].map(Bytes::from);
    let (formed, batch) = bench.form(vec![Item::Records(1, with_bodies(0, &bodies))]);
    assert!(!formed.has_bodies);
    assert_eq!(puts(&batch, Table::Bodies), 0);
    let chunk = bench.read(1);
    assert_eq!(chunk.runs[0].bodies, bodies);
    assert_eq!(chunk.runs[0].bytes, with_bodies(0, &bodies).bytes);
}

#[test]
fn bodies_are_numbered_anew_where_a_run_is_cut_or_joined() {
    let mut bench = Bench::new();
    let bodies: Vec<Bytes> = (1..=8).map(|n| Bytes::from(vec![n; 16 * 1024])).collect();
    bench.form(vec![
        Item::Records(1, with_bodies(0, &bodies)),
        Item::Records(1, with_bodies(16, &bodies[..1])),
        Item::Records(1, with_bodies(18, &bodies[1..2])),
        Item::Records(1, heads(&[head(2, 20)])),
    ]);
    let chunk = bench.read(1);
    assert!(chunk.runs.len() > 2, "{:?}", bench.spans(1));
    let mut seen = Vec::new();
    for run in &chunk.runs {
        let mut rest = &run.bytes[..];
        while let Some(len) = crate::queue::record_len(rest) {
            if let Some(number) = crate::queue::body_number(&rest[..len]) {
                seen.push(run.bodies[number as usize][0]);
            }
            rest = &rest[len..];
        }
    }
    assert_eq!(seen, [2, 3, 4, 5, 6, 7, 8, 1, 2]);
}

#[test]
fn a_body_of_several_queues_is_written_once() {
    let mut bench = Bench::new();
    let body = [Bytes::from(vec![7; 100_000])];
    let copy = [Bytes::from(vec![7; 100_000])];
    let mut items: Vec<Item> = (1..=3).map(|q| Item::Records(q, with_bodies(0, &body))).collect();
    items.push(Item::Records(4, with_bodies(0, &copy)));
    let (formed, batch) = bench.form(items);
    assert!(formed.has_bodies);
    assert_eq!(puts(&batch, Table::Bodies), 2, "the body and who refers to it");
    assert!(batch.size() < 250_000, "{} bytes", batch.size());
    for queue in 1..=4 {
        assert_eq!(bench.read(queue).runs[0].bodies, body, "queue {queue}");
    }
    let references = bench.engine.value(Table::Bodies, &keys::references(1 << 20));
    let places = keys::parse_references(&references.expect("read").expect("there"));
    assert_eq!(places, Some(vec![(1, 0, 0), (2, 0, 0), (3, 0, 0)]));
}

#[test]
fn a_body_of_very_many_queues_is_written_more_than_once() {
    let mut bench = Bench::new();
    let body = [Bytes::from(vec![7; 5_000])];
    let (_, batch) =
        bench.form((0..130).map(|q| Item::Records(q, with_bodies(0, &body))).collect());
    assert_eq!(puts(&batch, Table::Bodies), 6);
    assert!((0..130).all(|queue| bench.read(queue).runs[0].bodies == body));
}

#[test]
fn what_is_settled_is_deleted_and_nothing_else() {
    let mut bench = Bench::new();
    let bodies = [&b"body"[..]; 10];
    for first in (0..200).step_by(10) {
        bench.form(vec![Item::Records(1, messages(first, &bodies))]);
    }
    let ranges = |batch: &Batch| {
        let is_range = |op: &Operation<'_>| matches!(op, Operation::DeleteRange { .. });
        batch.operations().filter(is_range).count()
    };
    let (_, batch) = bench.form(vec![Item::Records(1, heads(&[head(5, 200)]))]);
    assert_eq!(ranges(&batch), 0, "it is not worth it yet");
    let (_, batch) = bench.form(vec![Item::Records(1, heads(&[head(155, 200)]))]);
    assert_eq!(ranges(&batch), 1);
    assert_eq!(bench.spans(1), [(150, 159), (160, 169), (170, 179), (180, 189), (190, 199)]);
}

#[test]
fn one_held_message_does_not_keep_the_space_of_what_came_after_it() {
    let mut bench = Bench::new();
    let bodies = [&b"body"[..]; 10];
    for first in (0..200).step_by(10) {
        bench.form(vec![Item::Records(1, messages(first, &bodies))]);
    }
    // The messages 0, 4 and 195 are held.
    let mut settle = |start, end| {
        let mut acks = heads(&[head(0, 200)]);
        acks.marks = vec![settled(start, end)];
        bench.form(vec![Item::Records(1, acks)]);
        let mut batch = Batch::default();
        bench.former.lanes.clear_marked(&bench.engine, &mut batch).expect("it is not damaged");
        bench.engine.write(&batch, true).expect("it has no faults");
        (bench.spans(1), bench.engine.keys(Table::Marks).len())
    };
    assert_eq!(settle(5, 15).0.len(), 20, "it is not worth it yet");
    // The entry that begins with held messages stays whole, and so does its mark.
    let (spans, marks) = settle(5, 40);
    assert_eq!((spans[0], spans[1], spans.len(), marks), ((0, 9), (40, 49), 17, 1));
    assert_eq!(settle(100, 125).0.len(), 16, "the first entry might begin before");
    let (spans, marks) = settle(5, 195);
    assert_eq!((spans, marks), (vec![(0, 9), (190, 199)], 1));
    let lost = bench.read(1).marks;
    assert_eq!(lost, [settled(5, 195)]);
    let is_gone = |seq| bench.former.lanes.is_gone((1, 0, seq));
    assert_eq!([4, 5, 194, 195].map(is_gone), [false, true, true, false]);
    bench.form(vec![Item::Records(1, heads(&[head(200, 200)]))]);
    let due = bench.former.lanes.due_at().expect("the lane is empty");
    let mut batch = Batch::default();
    bench.former.lanes.tidy(due, &bench.engine, &mut batch).expect("it is not damaged");
    bench.engine.write(&batch, true).expect("it has no faults");
    assert_eq!((bench.spans(1), bench.engine.keys(Table::Marks).len()), (vec![], 0));
}

#[test]
fn a_held_message_stays_in_an_entry_that_ends_after_what_is_settled() {
    let mut bench = Bench::new();
    bench.form(vec![Item::Records(1, messages(0, &[&b"body"[..]; 100]))]);
    bench.form(vec![Item::Records(1, messages(100, &[&b"body"[..]; 100]))]);
    bench.form(vec![Item::Records(1, messages(200, &[&b"body"[..]; 100]))]);
    // Message 0 is held.
    for end in [30, 60, 90, 120, 150, 199, 201, 250, 299] {
        let mut acks = heads(&[head(0, 300)]);
        acks.marks = vec![settled(1, end)];
        bench.form(vec![Item::Records(1, acks)]);
        let mut batch = Batch::default();
        bench.former.lanes.clear_marked(&bench.engine, &mut batch).expect("it is not damaged");
        bench.engine.write(&batch, true).expect("it has no faults");
        let spans = bench.spans(1);
        assert_eq!((spans[0], spans.last()), ((0, 99), Some(&(200, 299))), "{end}: {spans:?}");
        assert_eq!(spans.len(), if end < 250 { 3 } else { 2 }, "{end}: {spans:?}");
    }
}

#[test]
fn a_body_that_went_behind_a_held_message_is_no_loss() {
    let mut bench = Bench::new();
    let bodies = [Bytes::from(vec![1; 5_000]), Bytes::from(vec![2; 5_000])];
    let both = |records: fn(&[Bytes]) -> Records| {
        (1..=2).map(|queue| Item::Records(queue, records(&bodies))).collect()
    };
    bench.form(both(|bodies| with_bodies(0, bodies)));
    // Their bodies are those of the messages 0 and 2; the last two are settled.
    bench.form(both(|_| Records { marks: vec![settled(2, 4)], ..heads(&[head(0, 4)]) }));
    let keys = bench.engine.keys(Table::Bodies);
    let ids: Vec<u64> = keys.iter().filter_map(|key| Some(keys::parse_body(key)?.1)).collect();
    let delete = |bench: &Bench, id: u64| {
        let mut batch = Batch::default();
        batch.delete(Table::Bodies, &keys::body(id));
        bench.engine.write(&batch, true).expect("it has no faults");
    };
    let (first, last) = (*ids.iter().min().unwrap(), *ids.iter().max().unwrap());
    assert_ne!(first, last);
    delete(&bench, last);
    assert_eq!(bench.read(1).lost, []);
    delete(&bench, first);
    let lost: Vec<u64> = bench.read(2).lost.into_iter().flatten().collect();
    assert_eq!(lost, [0]);
}

#[test]
fn an_empty_lane_is_tidied_after_a_while() {
    let mut bench = Bench::new();
    let mut first = messages(0, &[b"a", b"b"]);
    first.marks = vec![Mark::Returned { lane: 0, seq: 1, count: 3 }];
    bench.form(vec![Item::Records(1, first)]);
    bench.form(vec![Item::Records(1, heads(&[head(2, 2)]))]);
    let tidy = |bench: &mut Bench, now| {
        let mut batch = Batch::default();
        bench.former.lanes.tidy(now, &bench.engine, &mut batch).expect("it is not damaged");
        bench.engine.write(&batch, true).expect("it has no faults");
    };
    let due = bench.former.lanes.due_at().expect("the lane is empty");
    tidy(&mut bench, due - Duration::from_micros(1));
    assert_eq!(bench.spans(1), [(0, 1)], "it may be used again");
    tidy(&mut bench, due);
    assert_eq!(bench.spans(1), []);
    assert_eq!(bench.engine.keys(Table::Marks).len(), 0);
    assert_eq!(bench.former.lanes.due_at(), None);
}

#[test]
fn an_empty_lane_that_was_found_so_is_tidied() {
    let mut bench = Bench::new();
    bench.form(vec![Item::Records(1, messages(0, &[b"a"]))]);
    bench.form(vec![Item::Records(1, heads(&[head(1, 1)]))]);
    let mut recovered = Former::default();
    recovered.lanes.recover(1, head(1, 1), bench.now);
    recovered.lanes.recover(2, head(9, 9), bench.now);
    let mut batch = Batch::default();
    let due = recovered.lanes.due_at().expect("they are empty");
    recovered.lanes.tidy(due, &bench.engine, &mut batch).expect("it is not damaged");
    assert_eq!(batch.operations().count(), 2, "only what is there: {batch:?}");
    bench.engine.write(&batch, true).expect("it has no faults");
    assert_eq!(bench.spans(1), []);
}
