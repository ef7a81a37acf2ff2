//! The store over an engine in memory.

mod faults;
mod model;
#[cfg(feature = "rocksdb")]
mod rocks;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::batch::Table;
use super::*;
use crate::queue::Run;

/// A record with this body, as a segment has it.
pub(super) fn record(body: &[u8]) -> Vec<u8> {
    let mut record = (body.len() as u32).to_le_bytes().to_vec();
    record.extend_from_slice(&[0; 4]);
    record.extend_from_slice(body);
    record
}

/// A record that refers to the body of this number, as a segment has it.
pub(super) fn shared_record(number: u32, len: usize) -> Vec<u8> {
    let mut record = (len as u32).to_le_bytes().to_vec();
    record.extend_from_slice(&(1_u32 << 31).to_le_bytes());
    record.extend_from_slice(&number.to_le_bytes());
    record
}

/// What a queue leaves when it takes these messages in lane 0, which was empty before.
pub(super) fn messages(first: u64, bodies: &[&[u8]]) -> Records {
    let bytes: Vec<u8> = bodies.iter().flat_map(|body| record(body)).collect();
    let next = first + bodies.len() as u64;
    let (last, end) = (next.saturating_sub(1), bytes.len());
    Records {
        runs: vec![Run { lane: 0, first, last, bytes: 0..end, bodies: 0..0 }],
        heads: vec![head(0, next)],
        bytes,
        ..Records::default()
    }
}

pub(super) fn head(watermark: u64, next: u64) -> LaneHead {
    LaneHead { watermark, next, count: next - watermark, ..LaneHead::default() }
}

fn heads(watermark: u64, next: u64) -> Records {
    Records { heads: vec![head(watermark, next)], ..Records::default() }
}

fn change(key: &[u8]) -> Vec<Change> {
    vec![Change { space: Space::Delayed, key: key.to_vec(), value: Some(b"value".to_vec()) }]
}

fn open(engine: &MemoryEngine, sync: SyncMode) -> Store {
    Store::in_memory(engine, &Options { sync, ..Options::default() }).expect("it has no faults")
}

/// Waits for what has become of a ticket.
fn outcome(store: &Store, ticket: Ticket) -> Outcome {
    let seen = Arc::new(Mutex::new(None));
    let sink = seen.clone();
    store.when_durable(ticket, Box::new(move |outcome| *sink.lock() = Some(outcome)));
    until(|| *seen.lock())
}

/// Asks until there is an answer.
fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "it never came");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_is_durable_is_read_back() {
    let engine = MemoryEngine::default();
    let store = open(&engine, SyncMode::Always);
    let mut records = messages(0, &[b"one", b"two"]);
    let ticket = store.submit(7, &mut records);
    assert!(records.is_empty(), "emptied buffers come back");
    assert_eq!(outcome(&store, ticket), Outcome::Durable);
    until(|| store.is_durable(ticket).then_some(()));
    let crashed = open(&engine.after_crash(0), SyncMode::Always);
    assert_eq!(crashed.heads().unwrap(), [(7, vec![head(0, 2)])]);
    let chunk = crashed.read(7, 0, 0, 1).unwrap();
    assert_eq!((chunk.runs[0].first, chunk.runs[0].last), (0, 1));
    assert_eq!(chunk.runs[0].bytes, [record(b"one"), record(b"two")].concat());
    assert_eq!(crashed.read(7, 1, 0, 1).unwrap(), Chunk { end: u64::MAX, ..Chunk::default() });
}

#[test]
fn nothing_is_nothing_to_wait_for() {
    let store = open(&MemoryEngine::default(), SyncMode::Always);
    assert_eq!(store.submit(1, &mut Records::default()), Ticket::default());
    assert_eq!(store.change(Vec::new()), Ticket::default());
    assert!(store.is_durable(Ticket::default()) && store.is_written(0));
}

#[test]
fn settling_waits_for_no_sync() {
    let engine = MemoryEngine::default();
    let store = open(&engine, SyncMode::Always);
    let ticket = store.submit(1, &mut heads(4, 4));
    assert_eq!(outcome(&store, ticket), Outcome::Durable);
    assert_eq!(engine.operations(), (1, 0));
    assert_eq!(outcome(&store, store.change(change(b"k"))), Outcome::Durable);
    assert_eq!(engine.operations(), (2, 1));
}

#[test]
fn what_nobody_waits_for_is_synced_all_the_same() {
    let engine = MemoryEngine::default();
    let store = open(&engine, SyncMode::Always);
    let ticket = store.submit(1, &mut messages(0, &[b"one"]));
    until(|| (engine.operations().1 == 1 && store.is_durable(ticket)).then_some(()));
    assert_eq!(store.metrics().syncs.load(Relaxed), 1);
    assert_eq!(store.waiting_bytes(), 0);
}

#[test]
fn other_modes_tell_after_the_write() {
    for (mode, syncs) in [(SyncMode::Os, 0), (SyncMode::Interval(20), 1)] {
        let engine = MemoryEngine::default();
        let store = open(&engine, mode);
        let ticket = store.submit(1, &mut messages(0, &[b"one"]));
        assert_eq!(outcome(&store, ticket), Outcome::Durable);
        until(|| (engine.operations().1 == syncs).then_some(()));
        store.close();
        let left = open(&engine.after_crash(0), mode).read(1, 0, 0, 1).unwrap();
        assert_eq!(left.runs.len(), 1, "a close syncs");
    }
}

#[test]
fn completions_come_in_the_order_of_tickets() {
    let engine = MemoryEngine::default();
    let store = open(&engine, SyncMode::Always);
    let seen = Arc::new(Mutex::new(Vec::new()));
    for number in 0..2_000_u64 {
        let ticket = match number % 3 {
            0 => store.submit(1, &mut messages(number, &[b"body"])),
            1 => store.submit(1, &mut heads(number, number)),
            _ => store.change(change(b"k")),
        };
        let sink = seen.clone();
        // Now and then so late that the group may be durable already.
        if number % 100 == 0 {
            until(|| store.is_written(ticket.group()).then_some(()));
        }
        store.when_durable(
            ticket,
            Box::new(move |outcome| {
                assert_eq!(outcome, Outcome::Durable);
                sink.lock().push(number);
            }),
        );
    }
    until(|| (seen.lock().len() == 2_000).then_some(()));
    assert!(seen.lock().is_sorted());
}

#[test]
fn a_group_takes_all_that_came_during_a_sync() {
    let engine = MemoryEngine::default();
    let store = open(&engine, SyncMode::Always);
    let tickets: Vec<_> =
        (0..1_000).map(|number| store.submit(1, &mut messages(number, &[b"body"]))).collect();
    assert!(tickets.is_sorted());
    assert_eq!(outcome(&store, tickets[999]), Outcome::Durable);
    let groups = store.metrics().groups.load(Relaxed);
    assert!(groups < 500, "{groups} groups for 1000 submissions");
    assert_eq!(store.metrics().written_messages.load(Relaxed), 1_000);
    let chunk = store.read(1, 0, 0, usize::MAX).unwrap();
    assert_eq!(chunk.runs.iter().map(|run| run.last - run.first + 1).sum::<u64>(), 1_000);
}

#[test]
fn a_fan_out_lands_in_one_group() {
    let engine = MemoryEngine::default();
    let store = open(&engine, SyncMode::Always);
    let body = Bytes::from(vec![7; 50_000]);
    // The wait for its end is bounded, so it may not work on a machine that stands still.
    until(|| {
        let together = store.keep_together();
        let mut tickets = Vec::new();
        for queue in 0..10 {
            let mut records = messages(0, &[]);
            records.bytes = shared_record(0, body.len());
            records.bodies.push(body.clone());
            records.runs[0] = Run { lane: 0, first: 0, last: 0, bytes: 0..12, bodies: 0..1 };
            let ticket = store.submit(queue, &mut records);
            store.when_durable(ticket, Box::new(|_| {}));
            tickets.push(ticket);
        }
        drop(together);
        (tickets[0] == tickets[9]).then_some(())
    });
}

#[test]
fn chunks_cover_a_lane_from_end_to_end() {
    let engine = MemoryEngine::default();
    let store = open(&engine, SyncMode::Always);
    let body = vec![7; 10_000];
    let mut records = messages(0, &vec![&body[..]; 50]);
    records.marks = vec![
        Mark::Settled { lane: 0, start: 3, end: 40 },
        Mark::Settled { lane: 0, start: 5, end: 8 },
        Mark::Returned { lane: 0, seq: 45, count: 2 },
    ];
    records.heads[0].count = 13;
    assert_eq!(outcome(&store, store.submit(1, &mut records)), Outcome::Durable);
    let (mut from, mut seqs, mut returned) = (0, Vec::new(), 0);
    while from < u64::MAX {
        let chunk = store.read(1, 0, from, 20_000).unwrap();
        assert!(chunk.end > from);
        seqs.extend(chunk.runs.iter().flat_map(|run| run.first..=run.last));
        let is_settled = |mark: &Mark| matches!(mark, Mark::Settled { start: 3, .. });
        let touches = from < 40 && chunk.end > 3;
        assert_eq!(chunk.marks.iter().any(is_settled), touches, "from {from} to {}", chunk.end);
        returned += chunk.marks.iter().filter(|m| matches!(m, Mark::Returned { .. })).count();
        from = chunk.end;
    }
    let expected: Vec<u64> = (0..3).chain(40..50).collect();
    assert_eq!((seqs, returned), (expected, 1));
    let middle = store.read(1, 0, 48, 1).unwrap();
    assert!(middle.runs[0].first <= 48 && middle.runs[0].last >= 48, "{:?}", middle.runs[0]);
}

#[test]
fn congestion_begins_and_ends_with_what_waits() {
    let engine = MemoryEngine::default();
    let options = Options { backlog_bytes: 10_000, ..Options::default() };
    let store = Store::in_memory(&engine, &options).unwrap();
    engine.set_full(true);
    let mut context = Context::from_waker(std::task::Waker::noop());
    assert_eq!(store.poll_room(&mut context), Poll::Ready(()));
    let body = vec![7; 20_000];
    let ticket = store.submit(1, &mut messages(0, &[&body]));
    assert!(store.is_congested() && store.waiting_bytes() > 20_000);
    let woken = Arc::new(Flag::default());
    let waker = woken.clone().into();
    assert_eq!(store.poll_room(&mut Context::from_waker(&waker)), Poll::Pending);
    assert!(!woken.0.load(Relaxed));
    engine.set_full(false);
    assert_eq!(outcome(&store, ticket), Outcome::Durable);
    until(|| woken.0.load(Relaxed).then_some(()));
    assert!(!store.is_congested());
    assert_eq!(store.poll_room(&mut Context::from_waker(&waker)), Poll::Ready(()));
}

#[derive(Default)]
struct Flag(std::sync::atomic::AtomicBool);

impl std::task::Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn bodies_go_with_the_last_message_that_refers_to_them() {
    let engine = MemoryEngine::default();
    let store = open(&engine, SyncMode::Always);
    let body = Bytes::from(vec![7; 50_000]);
    let put = |queue: u64| {
        let mut records = messages(0, &[]);
        records.bytes = shared_record(0, body.len());
        records.bodies.push(body.clone());
        records.runs[0] = Run { lane: 0, first: 0, last: 0, bytes: 0..12, bodies: 0..1 };
        store.submit(queue, &mut records)
    };
    // Another try if the group was taken between the two.
    let ticket = until(|| {
        let together = store.keep_together();
        let tickets = (put(1), put(2));
        drop(together);
        (tickets.0 == tickets.1).then_some(tickets.1)
    });
    assert_eq!(outcome(&store, ticket), Outcome::Durable);
    let stored = engine.keys(Table::Bodies).len();
    assert!(stored >= 2);
    assert_eq!(outcome(&store, store.submit(1, &mut heads(1, 1))), Outcome::Durable);
    // Tidied: whoever looks for bodies has seen the watermark by now.
    until(|| store.read(1, 0, 0, 1).unwrap().runs.is_empty().then_some(()));
    let syncs = engine.operations();
    assert_eq!(store.read(2, 0, 0, 1).unwrap().runs[0].bodies[0], body, "{syncs:?}");
    assert_eq!(outcome(&store, store.forget_queue(2)), Outcome::Durable);
    until(|| engine.keys(Table::Bodies).is_empty().then_some(()));
}

#[test]
fn a_body_that_went_takes_no_other_message_along() {
    let engine = MemoryEngine::default();
    let store = open(&engine, SyncMode::Always);
    let bodies = [Bytes::from(vec![1; 50_000]), Bytes::from(vec![2; 50_000])];
    let put = |queue: u64| {
        let mut records = messages(0, &[b"", b""]);
        records.bytes = [shared_record(0, 50_000), shared_record(1, 50_000)].concat();
        records.bodies.extend(bodies.clone());
        records.runs[0] = Run { lane: 0, first: 0, last: 1, bytes: 0..24, bodies: 0..2 };
        store.submit(queue, &mut records)
    };
    let ticket = until(|| {
        let together = store.keep_together();
        let tickets = (put(1), put(2));
        drop(together);
        (tickets.0 == tickets.1).then_some(tickets.1)
    });
    assert_eq!(outcome(&store, ticket), Outcome::Durable);
    let all = engine.keys(Table::Bodies).len();
    // The first message is settled in both queues, the second in neither.
    assert_eq!(outcome(&store, store.submit(1, &mut heads(1, 2))), Outcome::Durable);
    assert_eq!(outcome(&store, store.submit(2, &mut heads(1, 2))), Outcome::Durable);
    assert_eq!(outcome(&store, store.forget_queue(3)), Outcome::Durable);
    until(|| (engine.keys(Table::Bodies).len() < all).then_some(()));
    for queue in [1, 2] {
        let chunk = store.read(queue, 0, 1, 1).unwrap();
        assert_eq!(chunk.lost, []);
        assert_eq!(chunk.runs[0].bodies[1], bodies[1]);
    }
}

#[test]
fn a_close_writes_what_there_is_and_then_nothing() {
    let engine = MemoryEngine::default();
    let store = open(&engine, SyncMode::Os);
    let ticket = store.submit(1, &mut messages(0, &[b"one"]));
    let seen = Arc::new(Mutex::new(None));
    let sink = seen.clone();
    store.when_durable(ticket, Box::new(move |outcome| *sink.lock() = Some(outcome)));
    store.close();
    store.close();
    assert_eq!(*seen.lock(), Some(Outcome::Durable));
    assert_eq!(outcome(&store, store.submit(1, &mut messages(1, &[b"two"]))), Outcome::Lost);
    assert!(store.read(1, 0, 0, 1).is_err());
    assert_eq!(store.failure(), None);
    let left = open(&engine.after_crash(0), SyncMode::Os).read(1, 0, 0, 1).unwrap();
    assert_eq!(left.runs[0].last, 0);
}

#[test]
fn the_last_reference_may_go_in_a_completion() {
    let engine = MemoryEngine::default();
    let store = Arc::new(open(&engine, SyncMode::Always));
    let ticket = store.submit(1, &mut messages(0, &[b"one"]));
    let (done, seen) = std::sync::mpsc::channel();
    let own = store.clone();
    store.when_durable(
        ticket,
        Box::new(move |_| {
            until(|| (Arc::strong_count(&own) == 1).then_some(()));
            drop(own);
            done.send(()).expect("somebody waits");
        }),
    );
    drop(store);
    seen.recv_timeout(Duration::from_secs(30)).expect("no thread waits for itself");
}
