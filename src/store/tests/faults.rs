//! What becomes of groups when the disk does not do as it should.

use super::*;

#[test]
fn after_a_failed_write_nothing_is_written() {
    let engine = MemoryEngine::default();
    let store = open(&engine, SyncMode::Always);
    let first = store.submit(1, &mut messages(0, &[b"kept"]));
    assert_eq!(outcome(&store, first), Outcome::Durable);
    engine.fail_after(0);
    let second = store.submit(1, &mut messages(1, &[b"lost"]));
    assert_eq!(outcome(&store, second), Outcome::Lost);
    assert!(store.failure().is_some_and(|reason| reason.contains("broken")));
    assert_eq!(outcome(&store, store.change(change(b"k"))), Outcome::Lost);
    assert_eq!(outcome(&store, first), Outcome::Durable, "what was durable stays so");
    assert!(!store.is_durable(second) && !store.is_written(second.group()));
    assert!(!store.is_congested());
    assert_eq!(
        store.poll_room(&mut Context::from_waker(std::task::Waker::noop())),
        Poll::Ready(())
    );
    store.close();
    assert_eq!(open(&engine.after_crash(9), SyncMode::Always).heads().unwrap()[0].1[0].next, 1);
}

#[test]
fn reads_go_on_after_a_failed_write() {
    let engine = MemoryEngine::default();
    let store = open(&engine, SyncMode::Always);
    let ticket = store.submit(1, &mut messages(0, &[b"kept"]));
    assert_eq!(outcome(&store, ticket), Outcome::Durable);
    engine.fail_after(0);
    assert_eq!(outcome(&store, store.change(change(b"k"))), Outcome::Lost);
    assert_eq!(store.read(1, 0, 0, 1).unwrap().runs.len(), 1);
}

#[test]
fn a_failed_sync_is_not_tried_again() {
    let engine = MemoryEngine::default();
    let store = open(&engine, SyncMode::Always);
    engine.fail_sync(true);
    let ticket = store.submit(1, &mut messages(0, &[b"one"]));
    assert_eq!(outcome(&store, ticket), Outcome::Lost);
    engine.fail_sync(false);
    assert_eq!(outcome(&store, ticket), Outcome::Lost);
    assert_eq!(outcome(&store, store.change(change(b"k"))), Outcome::Lost);
    store.close();
    assert_eq!(engine.operations().1, 0);
}

#[test]
fn a_later_sync_that_fails_loses_all_that_waited_for_it() {
    let engine = MemoryEngine::default();
    let store = open(&engine, SyncMode::Always);
    engine.fail_sync(true);
    let ticket = store.submit(1, &mut messages(0, &[b"one"]));
    // Written without a sync, since nobody waits for it yet.
    until(|| (store.is_written(ticket.group()) || store.failure().is_some()).then_some(()));
    assert_eq!(outcome(&store, ticket), Outcome::Lost);
    assert!(store.failure().is_some());
}

#[test]
fn a_full_disk_is_waited_for() {
    let engine = MemoryEngine::default();
    let store = open(&engine, SyncMode::Always);
    engine.set_full(true);
    let first = store.submit(1, &mut messages(0, &[b"one"]));
    let told = Arc::new(Mutex::new(Vec::new()));
    for ticket in [first, store.submit(1, &mut messages(1, &[b"two"]))] {
        let sink = told.clone();
        store.when_durable(ticket, Box::new(move |outcome| sink.lock().push(outcome)));
    }
    until(|| (store.is_full() && engine.full_writes() > 0).then_some(()));
    assert!(told.lock().is_empty() && store.failure().is_none());
    engine.set_full(false);
    until(|| (told.lock().len() == 2).then_some(()));
    assert_eq!(*told.lock(), [Outcome::Durable; 2]);
    assert!(!store.is_full());
    assert_eq!(store.read(1, 0, 0, usize::MAX).unwrap().runs.last().unwrap().last, 1);
}

#[test]
fn a_close_does_not_wait_for_a_full_disk() {
    let engine = MemoryEngine::default();
    let store = open(&engine, SyncMode::Always);
    engine.set_full(true);
    let ticket = store.submit(1, &mut messages(0, &[b"one"]));
    let told = Arc::new(Mutex::new(None));
    let sink = told.clone();
    store.when_durable(ticket, Box::new(move |outcome| *sink.lock() = Some(outcome)));
    until(|| store.is_full().then_some(()));
    store.close();
    assert_eq!(*told.lock(), Some(Outcome::Lost));
}

#[test]
fn a_completion_that_panics_ends_the_store_and_not_those_who_wait() {
    let engine = MemoryEngine::default();
    let store = open(&engine, SyncMode::Always);
    let ticket = store.submit(1, &mut messages(0, &[b"one"]));
    store.when_durable(ticket, Box::new(|_| panic!("a completion of a test")));
    until(|| store.failure());
    assert_eq!(outcome(&store, store.change(change(b"k"))), Outcome::Lost);
}

#[test]
fn damaged_messages_are_left_out_and_reported() {
    let engine = MemoryEngine::default();
    let store = open(&engine, SyncMode::Always);
    for first in [0, 10, 20, 30] {
        let ticket = store.submit(1, &mut messages(first, &[&b"body"[..]; 10]));
        assert_eq!(outcome(&store, ticket), Outcome::Durable);
    }
    engine.damage(Table::Messages, &keys::place(1, 0, 19));
    let chunk = store.read(1, 0, 0, usize::MAX).unwrap();
    let spans: Vec<_> = chunk.runs.iter().map(|run| (run.first, run.last)).collect();
    assert_eq!(spans, [(0, 9), (20, 29), (30, 39)]);
    assert_eq!((chunk.lost.len(), chunk.lost[0].clone()), (1, 10..20));
    assert_eq!(chunk.end, u64::MAX);
    let middle = store.read(1, 0, 15, 1).unwrap();
    assert_eq!((middle.lost[0].clone(), middle.runs[0].first), (15..20, 20));
    engine.damage(Table::Messages, &keys::place(1, 0, 39));
    let last = store.read(1, 0, 25, usize::MAX).unwrap();
    assert_eq!((last.lost[0].clone(), last.end), (30..40, u64::MAX));
    engine.damage(Table::Heads, &keys::head(1, 0));
    assert!(matches!(store.heads(), Err(StoreError::Damaged(_))));
}
