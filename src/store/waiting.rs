//! What was handed over and is not yet durable.
//!
//! Owns the lock between those who hand over and the store's thread, the numbers of groups, and
//! those who wait for them. It must not write, and holds its lock for a push or a swap only.
//!
//! Invariants: `completed <= durable <= written < open`; everybody who waits for a group up to
//! `completed` was told.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::queue::Records;

use super::engine::Engine;
use super::group::Item;
use super::{Completion, Options, Outcome, Ticket};

/// While nobody waits for it, a group is taken at this age at the latest.
const LINGER: Duration = Duration::from_millis(10);

/// And with this size (bytes), whatever its age.
const LINGER_BYTES: usize = 1024 * 1024;

/// A group that is waited for waits so long for the end of a fan-out.
const FANOUT_WAIT: Duration = Duration::from_millis(2);

/// What a small item takes in memory, roughly, beside its bytes.
const ITEM_BYTES: usize = 128;

/// Emptied buffers that are kept, and how large each may be (bytes).
const SPARES_MAX: usize = 64;
const SPARE_BYTES: usize = 256 * 1024;

/// What the store's thread does next.
pub(super) enum Work {
    /// Write these items as the group of this number. Somebody waits for a group up to `wanted`.
    Write { items: Vec<Item>, bytes: usize, group: u64, wanted: u64 },
    /// Sync: somebody waits, or it is time.
    Sync,
    /// Nothing was handed over until the time that was given.
    Idle,
    /// Write what there is, and end.
    Close { items: Vec<Item>, bytes: usize, group: u64 },
}

#[derive(Default)]
struct Waiting {
    /// The number of the group that is being formed.
    open: u64,
    items: Vec<Item>,
    /// Of the items.
    bytes: usize,
    /// When the first item came.
    since: Option<Instant>,
    completions: BTreeMap<u64, Vec<Completion>>,
    /// Fan-outs that have begun and not ended.
    fanouts: usize,
    spares: Vec<Records>,
    rooms: Vec<Waker>,
    is_closing: bool,
    /// Nothing more is taken; whoever waits has lost.
    has_ended: bool,
}

/// See the module's description.
pub(super) struct Shared {
    pub(super) engine: Box<dyn Engine>,
    waiting: Mutex<Waiting>,
    changed: Condvar,
    written: AtomicU64,
    completed: AtomicU64,
    /// Bytes that wait or are being written.
    backlog: AtomicUsize,
    backlog_max: usize,
    is_full: AtomicBool,
    failure: OnceLock<String>,
}

impl Shared {
    pub(super) fn new(engine: Box<dyn Engine>, options: &Options, newest: u64) -> Self {
        Self {
            engine,
            waiting: Mutex::new(Waiting { open: newest + 1, ..Waiting::default() }),
            changed: Condvar::new(),
            written: AtomicU64::new(newest),
            completed: AtomicU64::new(newest),
            backlog: AtomicUsize::new(0),
            backlog_max: options.backlog_bytes,
            is_full: AtomicBool::new(false),
            failure: OnceLock::new(),
        }
    }

    pub(super) fn submit(&self, queue: u64, records: &mut Records) -> Ticket {
        let mut waiting = self.waiting.lock();
        let mut taken = waiting.spares.pop().unwrap_or_default();
        std::mem::swap(&mut taken, records);
        self.add(&mut waiting, Item::Records(queue, taken))
    }

    pub(super) fn push(&self, item: Item) -> Ticket {
        self.add(&mut self.waiting.lock(), item)
    }

    fn add(&self, waiting: &mut Waiting, item: Item) -> Ticket {
        let ticket = Ticket(waiting.open);
        if waiting.has_ended {
            return ticket;
        }
        let bytes = item_bytes(&item);
        let before = waiting.bytes;
        waiting.items.push(item);
        waiting.bytes += bytes;
        self.backlog.fetch_add(bytes, Ordering::Relaxed);
        if waiting.since.is_none() {
            waiting.since = Some(Instant::now());
            self.changed.notify_one();
        } else if before < LINGER_BYTES && waiting.bytes >= LINGER_BYTES {
            self.changed.notify_one();
        }
        ticket
    }

    pub(super) fn when_durable(&self, Ticket(group): Ticket, completion: Completion) {
        if group <= self.completed.load(Ordering::Acquire) {
            return completion(Outcome::Durable);
        }
        let mut waiting = self.waiting.lock();
        // Only under the lock does it stay as it is.
        let outcome = if group <= self.completed.load(Ordering::Acquire) {
            Outcome::Durable
        } else if waiting.has_ended {
            Outcome::Lost
        } else {
            waiting.completions.entry(group).or_default().push(completion);
            drop(waiting);
            self.changed.notify_one();
            return;
        };
        drop(waiting);
        completion(outcome);
    }

    pub(super) fn is_durable(&self, Ticket(group): Ticket) -> bool {
        group <= self.completed.load(Ordering::Acquire)
    }

    pub(super) fn is_written(&self, Ticket(group): Ticket) -> bool {
        group <= self.written.load(Ordering::Acquire)
    }

    /// The newest group that is written.
    pub(super) fn newest(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    pub(super) fn begin_fanout(&self) {
        self.waiting.lock().fanouts += 1;
    }

    pub(super) fn end_fanout(&self) {
        let mut waiting = self.waiting.lock();
        waiting.fanouts -= 1;
        if waiting.fanouts == 0 {
            self.changed.notify_one();
        }
    }

    pub(super) fn is_congested(&self) -> bool {
        self.backlog.load(Ordering::Relaxed) > self.backlog_max
    }

    pub(super) fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        if !self.is_congested() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.lock();
        // Under the lock, since whoever makes room takes it before looking for wakers.
        if waiting.has_ended || !self.is_congested() {
            return Poll::Ready(());
        }
        if !waiting.rooms.iter().any(|waker| waker.will_wake(context.waker())) {
            waiting.rooms.push(context.waker().clone());
        }
        Poll::Pending
    }

    pub(super) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    pub(super) fn set_full(&self, is_full: bool) {
        self.is_full.store(is_full, Ordering::Relaxed);
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.failure.get().cloned()
    }

    pub(super) fn begin_close(&self) {
        self.waiting.lock().is_closing = true;
        self.changed.notify_one();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.waiting.lock().is_closing
    }

    /// Waits for something to do, but for a sync at `sync_at` and for nothing else after `idle_at`.
    /// All groups up to `durable` are so.
    pub(super) fn next_work(
        &self,
        durable: u64,
        sync_at: Option<Instant>,
        idle_at: Option<Instant>,
    ) -> Work {
        let mut waiting = self.waiting.lock();
        let mut fanout_until = None;
        loop {
            if waiting.is_closing {
                let (items, bytes, group, _) = waiting.take();
                return Work::Close { items, bytes, group };
            }
            let now = Instant::now();
            let newest_wanted = waiting.completions.last_key_value().map_or(0, |(group, _)| *group);
            let mut until = earliest(sync_at, idle_at);
            if let Some(since) = waiting.since {
                let is_wanted = newest_wanted >= waiting.open;
                let is_large = waiting.bytes >= LINGER_BYTES;
                let take_at = if !is_wanted && !is_large {
                    since + LINGER
                } else if waiting.fanouts > 0 {
                    *fanout_until.get_or_insert(now + FANOUT_WAIT)
                } else {
                    now
                };
                if now >= take_at {
                    let (items, bytes, group, wanted) = waiting.take();
                    return Work::Write { items, bytes, group, wanted };
                }
                until = earliest(until, Some(take_at));
            } else if newest_wanted >= waiting.open {
                // A ticket of a group that never came to be: there is nothing in it.
                let (items, bytes, group, wanted) = waiting.take();
                return Work::Write { items, bytes, group, wanted };
            }
            let first_wanted = waiting.completions.first_key_value().map(|(group, _)| *group);
            let is_sync_wanted =
                first_wanted.is_some_and(|group| group > durable && group < waiting.open);
            if is_sync_wanted || sync_at.is_some_and(|at| now >= at) {
                return Work::Sync;
            }
            if idle_at.is_some_and(|at| now >= at) {
                return Work::Idle;
            }
            match until {
                Some(until) => {
                    self.changed.wait_until(&mut waiting, until);
                }
                None => self.changed.wait(&mut waiting),
            }
        }
    }

    /// The group can be read; its items' buffers come back.
    pub(super) fn set_written(&self, group: u64, items: Vec<Item>, bytes: usize) {
        self.written.store(group, Ordering::Release);
        let records = items.into_iter().filter_map(|item| match item {
            Item::Records(_, records) => Some(records),
            Item::Forget(_) | Item::Changes(_) => None,
        });
        // Bodies are let go of before the lock is taken.
        let mut spares = Vec::new();
        for mut records in records {
            records.clear();
            if spares.len() < SPARES_MAX && records.bytes.capacity() <= SPARE_BYTES {
                spares.push(records);
            }
        }
        let mut waiting = self.waiting.lock();
        let room = SPARES_MAX - waiting.spares.len();
        waiting.spares.extend(spares.into_iter().take(room));
        self.backlog.fetch_sub(bytes, Ordering::Relaxed);
        let has_room = self.backlog.load(Ordering::Relaxed) < self.backlog_max / 2;
        let wakers = if has_room { std::mem::take(&mut waiting.rooms) } else { Vec::new() };
        drop(waiting);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Tells all who wait for a group up to `durable`.
    pub(super) fn complete(&self, durable: u64) {
        loop {
            let mut waiting = self.waiting.lock();
            let later = waiting.completions.split_off(&(durable + 1));
            let due = std::mem::replace(&mut waiting.completions, later);
            if due.is_empty() {
                self.completed.store(durable, Ordering::Release);
                return;
            }
            drop(waiting);
            due.into_values().flatten().for_each(|completion| completion(Outcome::Durable));
        }
    }

    /// Nothing is written any more: whoever waits has lost, and so has whoever comes later.
    pub(super) fn end(&self, failure: Option<String>) {
        if let Some(reason) = failure {
            // Only the first one matters.
            let _ = self.failure.set(reason);
        }
        let mut waiting = self.waiting.lock();
        waiting.has_ended = true;
        let items = std::mem::take(&mut waiting.items);
        let completions = std::mem::take(&mut waiting.completions);
        let rooms = std::mem::take(&mut waiting.rooms);
        self.backlog.store(0, Ordering::Relaxed);
        drop(waiting);
        drop(items);
        completions.into_values().flatten().for_each(|completion| completion(Outcome::Lost));
        rooms.into_iter().for_each(Waker::wake);
    }
}

impl Waiting {
    /// What waits, its size, its number, and the newest group that somebody waits for.
    fn take(&mut self) -> (Vec<Item>, usize, u64, u64) {
        let group = self.open;
        self.open += 1;
        self.since = None;
        let wanted = self.completions.last_key_value().map_or(0, |(group, _)| *group);
        (std::mem::take(&mut self.items), std::mem::take(&mut self.bytes), group, wanted)
    }
}

fn item_bytes(item: &Item) -> usize {
    let bytes = match item {
        Item::Records(_, records) => {
            let bodies = records.bodies.iter().map(|body| body.len()).sum::<usize>();
            let marks = records.marks.len() * size_of::<crate::queue::Mark>();
            records.bytes.len() + bodies + marks
        }
        Item::Forget(_) => 0,
        Item::Changes(changes) => {
            let values = changes.iter().map(|change| change.value.as_ref().map_or(0, Vec::len));
            values.sum()
        }
    };
    bytes + ITEM_BYTES
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
