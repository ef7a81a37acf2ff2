//! The store over an engine in memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::*;
use crate::queue::Run;

/// A record with this body, as a segment has it.
pub(super) fn record(body: &[u8]) -> Vec<u8> {
    let mut record = (body.len() as u32).to_le_bytes().to_vec();
    record.extend_from_slice(&[0; 4]);
    record.extend_from_slice(body);
    record
}

/// What a queue leaves when it takes these messages in lane 0.
pub(super) fn messages(first: u64, bodies: &[&[u8]]) -> Records {
    let bytes: Vec<u8> = bodies.iter().flat_map(|body| record(body)).collect();
    let count = bodies.len() as u64;
    let (next, end) = (first + count, bytes.len());
    Records {
        runs: vec![Run { lane: 0, first, last: next - 1, bytes: 0..end, bodies: 0..0 }],
        heads: vec![head(0, next)],
        bytes,
        ..Records::default()
    }
}

pub(super) fn head(watermark: u64, next: u64) -> LaneHead {
    LaneHead { watermark, next, count: next - watermark, ..LaneHead::default() }
}

/// Waits for what has become of a ticket.
pub(super) fn outcome(store: &Store, ticket: Ticket) -> Outcome {
    let seen = Arc::new(Mutex::new(None));
    let sink = seen.clone();
    store.when_durable(ticket, Box::new(move |outcome| *sink.lock() = Some(outcome)));
    until(|| *seen.lock())
}

/// Asks until there is an answer.
pub(super) fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "it never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_is_durable_is_read_back() {
    let engine = MemoryEngine::default();
    let store = Store::in_memory(&engine, &Options::default()).unwrap();
    let ticket = store.submit(7, &mut messages(0, &[b"one", b"two"]));
    assert_eq!(outcome(&store, ticket), Outcome::Durable);
    assert!(store.is_durable(ticket) && store.is_written(ticket.group()));
    let crashed = Store::in_memory(&engine.after_crash(0), &Options::default()).unwrap();
    assert_eq!(crashed.heads().unwrap(), [(7, vec![head(0, 2)])]);
    let chunk = crashed.read(7, 0, 0, 1).unwrap();
    assert_eq!(chunk.runs.len(), 1);
    assert_eq!((chunk.runs[0].first, chunk.runs[0].last), (0, 1));
    assert_eq!(chunk.runs[0].bytes, [record(b"one"), record(b"two")].concat());
}
