//! What was handed over and is not yet durable.
//!
//! Owns the lock between those who hand over and the store's thread, the numbers of groups, and
//! those who wait for them. It must not write, and holds its lock for a push or a swap only.
//!
//! Invariants: `completed <= durable <= written < open`; everybody who waits for a group up to
//! `completed` was told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::queue::{Mark, Records};

use super::engine::Engine;
use super::group::Item;
use super::metrics::Metrics;
use super::{Completion, Options, Outcome, Ticket};

/// While nobody waits for it, a group is taken at this age at the latest.
const LINGER: Duration = Duration::from_millis(10);

/// And with this size (bytes), whatever its age.
const LINGER_BYTES: usize = 1024 * 1024;

/// A group takes nothing more once it has this size (bytes), and the next one begins.
const GROUP_BYTES: usize = 8 * 1024 * 1024;

/// A group that is waited for waits so long for the end of a fan-out.
const FANOUT_WAIT: Duration = Duration::from_millis(2);

/// What a small item takes in memory, roughly, beside its bytes.
const ITEM_BYTES: usize = 128;

/// Emptied buffers that are kept, and how large each may be (bytes).
const SPARES_MAX: usize = 64;
const SPARE_BYTES: usize = 256 * 1024;

/// The ticket of what is not taken any more.
const NEVER: Ticket = Ticket(u64::MAX);

/// What the store's thread does next.
pub(super) enum Work {
    /// Write this group; whether somebody waits for it or one before it.
    Write { group: Group, is_wanted: bool },
    /// Sync: somebody waits, or it is time.
    Sync,
    /// Nothing was handed over until the time that was given.
    Idle,
    /// Everything is written, and nothing more is taken.
    Close,
}

/// What is written together.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) number: u64,
    pub(super) items: Vec<Item>,
    /// What the items take in memory.
    pub(super) bytes: usize,
    /// When the first item came.
    since: Option<Instant>,
}

impl Group {
    fn new(number: u64) -> Self {
        Self { number, items: Vec::new(), bytes: 0, since: None }
    }
}

struct Waiting {
    /// Groups that are full, the oldest first.
    full: VecDeque<Group>,
    /// The group that is being formed.
    open: Group,
    completions: BTreeMap<u64, Vec<Completion>>,
    /// Fan-outs that have begun and not ended.
    fanouts: usize,
    spares: Vec<Records>,
    rooms: Vec<Waker>,
    /// Nothing more is taken, but what was taken is written.
    is_closing: bool,
    /// Whoever waits has lost.
    has_ended: bool,
}

/// See the module's description.
pub(super) struct Shared {
    pub(super) engine: Box<dyn Engine>,
    pub(super) metrics: Metrics,
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
        let waiting = Waiting {
            full: VecDeque::new(),
            open: Group::new(newest + 1),
            completions: BTreeMap::new(),
            fanouts: 0,
            spares: Vec::new(),
            rooms: Vec::new(),
            is_closing: false,
            has_ended: false,
        };
        Self {
            engine,
            metrics: Metrics::default(),
            waiting: Mutex::new(waiting),
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

    /// That of the last group that has anything in it.
    pub(super) fn latest(&self) -> Ticket {
        let waiting = self.waiting.lock();
        let open = &waiting.open;
        Ticket(if open.items.is_empty() { open.number - 1 } else { open.number })
    }

    pub(super) fn push(&self, item: Item) -> Ticket {
        self.add(&mut self.waiting.lock(), item)
    }

    fn add(&self, waiting: &mut Waiting, item: Item) -> Ticket {
        if waiting.is_closing || waiting.has_ended {
            return NEVER;
        }
        let bytes = item_bytes(&item);
        self.backlog.fetch_add(bytes, Ordering::Relaxed);
        let open = &mut waiting.open;
        let ticket = Ticket(open.number);
        let was_small = open.bytes < LINGER_BYTES;
        open.items.push(item);
        open.bytes += bytes;
        let is_first = open.since.is_none();
        open.since.get_or_insert_with(Instant::now);
        let becomes_large = was_small && open.bytes >= LINGER_BYTES;
        if open.bytes >= GROUP_BYTES {
            let next = Group::new(open.number + 1);
            let group = std::mem::replace(open, next);
            waiting.full.push_back(group);
        }
        if is_first || becomes_large {
            self.changed.notify_one();
        }
        ticket
    }

    pub(super) fn when_durable(&self, ticket: Ticket, completion: Completion) {
        if self.is_durable(ticket) {
            return completion(Outcome::Durable);
        }
        let mut waiting = self.waiting.lock();
        // Only under the lock does it stay as it is.
        let outcome = if self.is_durable(ticket) {
            Outcome::Durable
        } else if waiting.has_ended {
            Outcome::Lost
        } else {
            waiting.completions.entry(ticket.0).or_default().push(completion);
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
        group <= self.newest()
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
        self.waiting_bytes() > self.backlog_max
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.backlog.load(Ordering::Relaxed)
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

    /// Waits so long, or until the store is to close. Returns whether it is.
    pub(super) fn wait_for_close(&self, delay: Duration) -> bool {
        let until = Instant::now() + delay;
        let mut waiting = self.waiting.lock();
        while !waiting.is_closing && Instant::now() < until {
            self.changed.wait_until(&mut waiting, until);
        }
        waiting.is_closing
    }

    /// Waits for something to do, but for a sync at `sync_at` and for nothing else after `idle_at`.
    /// Who waits for a group up to `durable` is being told.
    pub(super) fn next_work(
        &self,
        durable: u64,
        sync_at: Option<Instant>,
        idle_at: Option<Instant>,
    ) -> Work {
        let mut waiting = self.waiting.lock();
        let mut fanout_until = None;
        loop {
            let now = Instant::now();
            let take_at = waiting.take_at(now, &mut fanout_until);
            if take_at.is_some_and(|at| now >= at) {
                let group = waiting.take();
                let first_wanted = waiting.first_wanted();
                let is_wanted = first_wanted.is_some_and(|wanted| wanted <= group.number);
                return Work::Write { group, is_wanted };
            }
            let is_wanted = |wanted| wanted > durable && wanted < waiting.open.number;
            if waiting.first_wanted().is_some_and(is_wanted) || sync_at.is_some_and(|at| now >= at)
            {
                return Work::Sync;
            }
            if waiting.is_closing {
                return Work::Close;
            }
            if idle_at.is_some_and(|at| now >= at) {
                return Work::Idle;
            }
            match [take_at, sync_at, idle_at].into_iter().flatten().min() {
                Some(until) => {
                    self.changed.wait_until(&mut waiting, until);
                }
                None => self.changed.wait(&mut waiting),
            }
        }
    }

    /// The group can be read; its items' buffers come back.
    pub(super) fn set_written(&self, group: Group) {
        self.written.store(group.number, Ordering::Release);
        // Bodies are let go of before the lock is taken.
        let mut spares = Vec::new();
        for item in group.items {
            if let Item::Records(_, mut records) = item
                && spares.len() < SPARES_MAX
                && records.bytes.capacity() <= SPARE_BYTES
            {
                records.clear();
                spares.push(records);
            }
        }
        let mut waiting = self.waiting.lock();
        let room = SPARES_MAX - waiting.spares.len();
        waiting.spares.extend(spares.into_iter().take(room));
        let backlog = self.backlog.fetch_sub(group.bytes, Ordering::Relaxed) - group.bytes;
        let has_room = backlog < self.backlog_max / 2;
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
            // The first one is the one that matters.
            let _ = self.failure.set(reason);
        }
        let mut waiting = self.waiting.lock();
        waiting.has_ended = true;
        let full = std::mem::take(&mut waiting.full);
        let open = std::mem::take(&mut waiting.open.items);
        let completions = std::mem::take(&mut waiting.completions);
        let rooms = std::mem::take(&mut waiting.rooms);
        self.backlog.store(0, Ordering::Relaxed);
        drop(waiting);
        drop((full, open));
        completions.into_values().flatten().for_each(|completion| completion(Outcome::Lost));
        rooms.into_iter().for_each(Waker::wake);
    }
}

impl Waiting {
    /// The oldest group that somebody waits for.
    fn first_wanted(&self) -> Option<u64> {
        self.completions.first_key_value().map(|(group, _)| *group)
    }

    /// When the oldest group is to be taken, if there is one.
    fn take_at(&self, now: Instant, fanout_until: &mut Option<Instant>) -> Option<Instant> {
        if !self.full.is_empty() {
            return Some(now);
        }
        let since = self.open.since?;
        let newest_wanted = self.completions.last_key_value().map_or(0, |(group, _)| *group);
        let is_wanted = newest_wanted >= self.open.number;
        if self.is_closing {
            Some(now)
        } else if !is_wanted && self.open.bytes < LINGER_BYTES {
            Some(since + LINGER)
        } else if self.fanouts > 0 {
            Some(*fanout_until.get_or_insert(now + FANOUT_WAIT))
        } else {
            Some(now)
        }
    }

    /// The oldest group, which is not empty.
    fn take(&mut self) -> Group {
        self.full.pop_front().unwrap_or_else(|| {
            let next = Group::new(self.open.number + 1);
            std::mem::replace(&mut self.open, next)
        })
    }
}

fn item_bytes(item: &Item) -> usize {
    let bytes = match item {
        Item::Records(_, records) => {
            let bodies = records.bodies.iter().map(|body| body.len()).sum::<usize>();
            records.bytes.len() + bodies + records.marks.len() * size_of::<Mark>()
        }
        Item::Forget(_) => 0,
        Item::Changes(changes) => {
            let values = changes.iter().map(|change| change.value.as_ref().map_or(0, Vec::len));
            values.sum()
        }
    };
    bytes + ITEM_BYTES
}
