//! What must be in the queues after a crash, by what clients did and saw before it.
//!
//! Owns a pure value that is fed with the logs of clients and with what was found after a restart.
//! It must not do IO or read a clock. `verdict` compares it with what is found.
//!
//! What counts as being on disk:
//! - a message is *stored* once its publish is confirmed, its transaction's commit answered, or the
//!   message was found after a restart. Before that it may be there or not;
//! - a settlement has no answer of its own. It is *stored* when the client sent a persistent
//!   message for a durable queue **after it, on the same channel**, and that message was confirmed
//!   (or a `tx.commit` after it was answered). Before that, the message may be gone or come back;
//! - a delivery is told by the redelivered flag: it is *stored* in the same way, once a client that
//!   had received it got such an answer;
//! - a dead letter is in its queue, in the queue it goes to, or in both, from the moment on when it
//!   was rejected, expired or came back too often: a crash may double it, never lose it;
//! - the same goes for a delayed message, from the moment on when it is due.

use std::collections::{BTreeMap, BTreeSet};

use super::message::MessageId;
use super::verdict::Found;

/// How long after it was due a delayed message may be missing, on a machine with much to do.
const LATE_MS: u64 = 1500;

/// In which order a queue gives what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As published.
    Fifo,
    /// The highest priority first, at most this one; as published among equals.
    Priority(u8),
    /// Two kinds, above priority 4 and not, each as published (quorum queues).
    Halves,
    /// By something that a publisher does not decide alone, such as when messages die.
    Any,
    /// By when messages are due, and those that were being passed on at a kill may come once more,
    /// at the end.
    Due,
}

impl Order {
    /// Whether the messages of one publisher keep the order in which they were published.
    pub fn is_of_publishers(self) -> bool {
        !matches!(self, Self::Any | Self::Due)
    }
}

/// What a queue is, as far as it matters for what must be in it.
#[derive(Clone, Debug)]
pub struct Queue {
    pub name: String,
    pub durable: bool,
    /// A quorum queue: it keeps messages whatever their delivery mode, and counts deliveries.
    pub quorum: bool,
    pub order: Order,
    /// The queues that its dead letters go to, all of them. None: it drops them.
    pub dead_letters: Vec<usize>,
    pub ttl_ms: Option<u64>,
    pub delivery_limit: Option<u32>,
    /// Whether clients consume from it, and so may have been sent anything in it.
    pub is_consumed: bool,
}

impl Queue {
    /// A durable classic queue.
    pub fn durable(name: &str) -> Queue {
        Queue {
            name: name.to_owned(),
            durable: true,
            quorum: false,
            order: Order::Fifo,
            dead_letters: Vec::new(),
            ttl_ms: None,
            delivery_limit: None,
            is_consumed: false,
        }
    }

    /// The class of messages within which the order of publishing holds.
    pub fn class(&self, priority: Option<u8>) -> u8 {
        match self.order {
            Order::Priority(max) => priority.unwrap_or(0).min(max),
            Order::Halves => u8::from(priority.unwrap_or(0) > 4),
            Order::Fifo | Order::Any | Order::Due => 0,
        }
    }
}

/// What a publisher asks for with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sort {
    pub persistent: bool,
    pub priority: Option<u8>,
    pub ttl_ms: Option<u64>,
    pub delay_ms: Option<u64>,
}

impl Sort {
    pub const PLAIN: Sort = Sort { persistent: true, priority: None, ttl_ms: None, delay_ms: None };
}

/// How a client settled a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    Ack,
    Requeue,
    Reject,
}

/// What one client did or saw on one channel. What it does is logged before it is sent.
#[derive(Clone, Debug)]
pub enum Event {
    /// A publish for these queues. What has the same `group` is one transaction.
    Sent {
        id: MessageId,
        queues: Vec<usize>,
        sort: Sort,
        at_ms: u64,
        group: Option<u32>,
    },
    /// The publish was confirmed or committed.
    Confirmed {
        id: MessageId,
        at_ms: u64,
    },
    /// The publish was rolled back: it never took place.
    RolledBack {
        id: MessageId,
    },
    Delivered {
        queue: usize,
        id: MessageId,
        redelivered: bool,
        priority: Option<u8>,
    },
    Settled {
        queue: usize,
        id: MessageId,
        how: Settlement,
    },
    /// Everything before this place in the log was answered for.
    Synced {
        before: usize,
    },
    /// Something happened that must not.
    Wrong(Violation),
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Stored, not settled, and not there.
    Lost,
    /// There more often than it can be.
    Duplicated,
    /// Never published, or not to this queue.
    Invented,
    /// Settled on disk, expired, rolled back or transient, and there.
    CameBack,
    /// Not in the order of its publisher, or of before the crash.
    Reordered,
    /// Not the bytes that were published.
    Damaged,
    /// A redelivered flag that nothing explains, or one that is missing.
    Flag,
    /// A delivery count, property or death that is not as before.
    Changed,
    /// A delayed message before its time.
    Early,
    /// A part of a transaction in a queue.
    Split,
    /// The broker refused or ended something that it must serve.
    Refused,
}

/// Something that is wrong, and what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub kind: Kind,
    pub what: String,
}

impl Violation {
    pub fn new(kind: Kind, what: String) -> Violation {
        Violation { kind, what }
    }
}

/// What is known of one client's receipt of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Receipt {
    #[default]
    Never,
    /// It may have been on its way to somebody.
    Perhaps,
    Seen,
    /// Seen, and that is on disk.
    Stored,
}

impl Receipt {
    fn seen(is_stored: bool) -> Receipt {
        if is_stored { Receipt::Stored } else { Receipt::Seen }
    }
}

/// One message in one queue.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) sort: Sort,
    /// Copies that are there for certain but for settlements.
    pub(super) stored: u32,
    /// Copies that may be there beyond those.
    pub(super) possible: u32,
    pub(super) acks: u32,
    pub(super) acks_stored: u32,
    pub(super) rejects: u32,
    pub(super) requeues: u32,
    pub(super) requeues_stored: u32,
    /// When it came into a queue, the earliest and the latest.
    pub(super) came_ms: (u64, u64),
    pub(super) receipt: Receipt,
    /// Deliveries since the queue was last looked through, without and with the redelivered flag.
    firsts: u32,
    agains: u32,
    /// Where it stood when the queue was last looked through.
    pub(super) position: Option<usize>,
    /// Its delivery count and its properties then.
    pub(super) count: u32,
    pub(super) properties: Option<String>,
    /// A transaction whose commit has no answer.
    pub(super) group: Option<u32>,
    /// Whether the broker keeps it over a restart.
    lasts: bool,
}

impl Entry {
    fn new(sort: Sort) -> Entry {
        Entry {
            sort,
            stored: 0,
            possible: 0,
            acks: 0,
            acks_stored: 0,
            rejects: 0,
            requeues: 0,
            requeues_stored: 0,
            came_ms: (0, u64::MAX),
            receipt: Receipt::Never,
            firsts: 0,
            agains: 0,
            position: None,
            count: 0,
            properties: None,
            group: None,
            lasts: true,
        }
    }

    /// The earliest and latest time at which it expires in a queue.
    pub(super) fn expires_ms(&self, queue: &Queue) -> Option<(u64, u64)> {
        let ttl = match (self.sort.ttl_ms, queue.ttl_ms) {
            (Some(own), Some(common)) => own.min(common),
            (own, common) => own.or(common)?,
        };
        Some((self.came_ms.0.saturating_add(ttl), self.came_ms.1.saturating_add(ttl)))
    }

    /// Whether it may still be with the exchange that delays it.
    pub(super) fn may_be_delayed(&self, now_ms: u64) -> bool {
        self.sort.delay_ms.is_some() && now_ms < self.due_ms().1.saturating_add(LATE_MS)
    }

    /// How often it may have come out of the exchange again: once by kill after it was due.
    pub(super) fn repeats(&self, now_ms: u64, kills: u32) -> u32 {
        let is_due = self.sort.delay_ms.is_some() && self.due_ms().0 <= now_ms;
        if is_due { kills * (self.stored + self.possible) } else { 0 }
    }

    /// The earliest and latest time at which it comes out of a delaying exchange.
    pub(super) fn due_ms(&self) -> (u64, u64) {
        let delay = self.sort.delay_ms.unwrap_or(0);
        (self.came_ms.0.saturating_add(delay), self.came_ms.1.saturating_add(delay))
    }
}

/// See the module's description.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    pub queues: Vec<Queue>,
    pub(super) entries: BTreeMap<(usize, MessageId), Entry>,
    /// Since the queues were last looked through.
    pub(super) kills: u32,
}

impl Ledger {
    pub fn new(queues: Vec<Queue>) -> Ledger {
        Ledger { queues, entries: BTreeMap::new(), kills: 0 }
    }

    /// Takes in what clients did up to the crash at `until_ms`. Returns what was wrong by then.
    pub fn absorb(&mut self, logs: &[Vec<Event>], until_ms: u64) -> Vec<Violation> {
        let mut found = Vec::new();
        self.absorb_publishes(logs, until_ms);
        for log in logs {
            self.absorb_receipts(log, &mut found);
        }
        self.check_receipts(until_ms, &mut found);
        found
    }

    /// The broker was killed, so often before it served again: what does not last is gone.
    pub fn crash(&mut self, kills: u32) {
        self.kills += kills;
        let queues = &self.queues;
        for ((queue, _), entry) in &mut self.entries {
            if !entry.lasts {
                (entry.stored, entry.possible) = (0, 0);
            }
            if queues[*queue].is_consumed {
                entry.receipt = entry.receipt.max(Receipt::Perhaps);
            }
        }
    }

    /// What was found after a restart is what there is from now on. `is_stored`: whoever looked
    /// through the queues got an answer afterwards (see the module's description).
    pub fn rebase(&mut self, found: &[Found], is_stored: bool) {
        let kills = std::mem::take(&mut self.kills);
        let ended = |queue| found.iter().find(|f| f.queue == queue).map_or(0, |f| f.ended_ms);
        for ((queue, _), entry) in &mut self.entries {
            if !entry.may_be_delayed(ended(*queue)) {
                (entry.stored, entry.possible, entry.group) = (0, 0, None);
            }
            (entry.acks, entry.acks_stored, entry.rejects) = (0, 0, 0);
            (entry.requeues, entry.requeues_stored) = (0, 0);
            (entry.firsts, entry.agains, entry.position) = (0, 0, None);
        }
        for queue in found {
            for (position, seen) in queue.seen.iter().enumerate() {
                let Ok(id) = seen.id else { continue };
                let Some(entry) = self.entry_at(queue.queue, id) else { continue };
                if entry.sort.delay_ms.is_some() {
                    let repeats = entry.repeats(queue.ended_ms, kills);
                    (entry.stored, entry.possible) = (0, repeats);
                    entry.sort.delay_ms = None;
                }
                entry.stored += 1;
                entry.position = Some(position);
                entry.receipt = Receipt::seen(is_stored);
                entry.count = seen.count;
                entry.properties = Some(seen.properties.clone());
            }
        }
    }

    fn absorb_publishes(&mut self, logs: &[Vec<Event>], until_ms: u64) {
        let mut targets: BTreeMap<MessageId, &[usize]> = BTreeMap::new();
        for event in logs.iter().flatten() {
            match event {
                Event::Sent { id, queues, sort, at_ms, group } => {
                    assert!(targets.insert(*id, queues).is_none(), "{id:?} was sent twice");
                    for queue in queues {
                        let mut entry = Entry::new(*sort);
                        entry.possible = 1;
                        entry.came_ms = (*at_ms, until_ms);
                        entry.group = *group;
                        let kind = &self.queues[*queue];
                        entry.lasts = kind.durable && (sort.persistent || kind.quorum);
                        self.entries.insert((*queue, *id), entry);
                    }
                }
                Event::Confirmed { id, at_ms } => {
                    for queue in targets[id] {
                        let entry = self.entries.get_mut(&(*queue, *id)).expect("it was sent");
                        (entry.stored, entry.possible, entry.group) = (1, 0, None);
                        entry.came_ms.1 = *at_ms;
                    }
                }
                Event::RolledBack { id } => {
                    for queue in targets[id] {
                        let entry = self.entries.get_mut(&(*queue, *id)).expect("it was sent");
                        (entry.possible, entry.group) = (0, None);
                    }
                }
                _ => {}
            }
        }
    }

    fn absorb_receipts(&mut self, log: &[Event], found: &mut Vec<Violation>) {
        let stored_before = self.stored_before(log);
        // The latest number of each publisher, by queue and class.
        let mut latest: BTreeMap<(usize, u8, u32), u32> = BTreeMap::new();
        for (at, event) in log.iter().enumerate() {
            let is_stored = at < stored_before;
            match event {
                Event::Delivered { queue, id, redelivered, priority } => {
                    let name = self.queues[*queue].name.clone();
                    let Some(entry) = self.entry_at(*queue, *id) else {
                        let what = format!("{id:?} in {name} was delivered");
                        found.push(Violation::new(Kind::Invented, what));
                        continue;
                    };
                    entry.receipt = entry.receipt.max(Receipt::seen(is_stored));
                    if *redelivered {
                        entry.agains += 1;
                        continue;
                    }
                    entry.firsts += 1;
                    let kind = &self.queues[*queue];
                    let key = (*queue, kind.class(*priority), id.publisher);
                    let before = latest.insert(key, id.number).unwrap_or(0);
                    if before > id.number && kind.order.is_of_publishers() {
                        let what = format!("{id:?} in {name} was delivered after {before}");
                        found.push(Violation::new(Kind::Reordered, what));
                    }
                }
                Event::Settled { queue, id, how } => {
                    let drops = self.queues[*queue].dead_letters.is_empty();
                    let Some(entry) = self.entry_at(*queue, *id) else { continue };
                    match how {
                        Settlement::Requeue => {
                            entry.requeues += 1;
                            entry.requeues_stored += u32::from(is_stored);
                        }
                        Settlement::Reject if !drops => entry.rejects += 1,
                        Settlement::Ack | Settlement::Reject => {
                            entry.acks += 1;
                            entry.acks_stored += u32::from(is_stored);
                        }
                    }
                }
                Event::Wrong(violation) => found.push(violation.clone()),
                _ => {}
            }
        }
    }

    /// The entry of a message in a queue; a new one where it may have come as a dead letter.
    fn entry_at(&mut self, queue: usize, id: MessageId) -> Option<&mut Entry> {
        if !self.entries.contains_key(&(queue, id)) {
            let source =
                self.sources(queue).find(|source| self.entries.contains_key(&(*source, id)));
            let mut entry = Entry::new(self.entries[&(source?, id)].sort);
            // A dead letter does not expire again.
            entry.sort.ttl_ms = None;
            self.entries.insert((queue, id), entry);
        }
        self.entries.get_mut(&(queue, id))
    }

    /// The queues whose dead letters go to this one.
    pub(super) fn sources(&self, queue: usize) -> impl Iterator<Item = usize> {
        let is_source = move |(_, from): &(usize, &Queue)| from.dead_letters.contains(&queue);
        self.queues.iter().enumerate().filter(is_source).map(|(at, _)| at)
    }

    /// The messages that may be in a queue, or in those that it gets dead letters from.
    pub(super) fn concerned(&self, queue: usize) -> BTreeSet<MessageId> {
        let of = |at: usize| self.entries.range((at, MessageId::MIN)..(at + 1, MessageId::MIN));
        let places = self.sources(queue).chain([queue]);
        places.flat_map(of).map(|((_, id), _)| *id).collect()
    }

    /// Up to where in a log everything is on disk.
    fn stored_before(&self, log: &[Event]) -> usize {
        let mut sent = BTreeMap::new();
        let mut before = 0;
        for (at, event) in log.iter().enumerate() {
            match event {
                Event::Sent { id, queues, sort, .. } => {
                    let lasts = |queue: &usize| self.queues[*queue].durable;
                    if sort.persistent && queues.iter().any(lasts) {
                        sent.insert(*id, at);
                    }
                }
                Event::Confirmed { id, .. } => {
                    before = before.max(sent.get(id).copied().unwrap_or(0));
                }
                Event::Synced { before: place } => before = before.max(*place),
                _ => {}
            }
        }
        before
    }

    /// No message was delivered or settled more often than it can have been there.
    fn check_receipts(&self, until_ms: u64, found: &mut Vec<Violation>) {
        for ((queue, id), entry) in &self.entries {
            let name = &self.queues[*queue].name;
            let most = entry.stored + entry.possible + self.may_have_come(*queue, *id, until_ms);
            let settled = entry.acks + entry.rejects;
            let mut wrong = |kind, what: String| {
                found.push(Violation::new(kind, format!("{id:?} in {name} {what}")));
            };
            if most == 0 && entry.firsts + entry.agains > 0 {
                wrong(Kind::CameBack, "was delivered, which cannot be".to_owned());
            } else if settled > most {
                wrong(Kind::Duplicated, format!("was settled {settled} times, was there {most}"));
            }
            let is_known = entry.position.is_some();
            if entry.firsts > if is_known { most - entry.stored } else { most } {
                wrong(Kind::Flag, "was redelivered without the flag".to_owned());
            }
            if entry.agains > entry.requeues && !is_known && most > 0 {
                wrong(Kind::Flag, "has the flag and was with nobody before".to_owned());
            }
        }
    }

    /// How many copies of a message may have left this queue as dead letters by then.
    pub(super) fn may_have_left(&self, queue: usize, id: MessageId, until_ms: u64) -> u32 {
        let (Some(entry), kind) = (self.entries.get(&(queue, id)), &self.queues[queue]) else {
            return 0;
        };
        if kind.dead_letters.is_empty() {
            return 0;
        }
        let all = entry.stored + entry.possible;
        if self.dies_by_itself(queue, entry, until_ms) { all } else { entry.rejects.min(all) }
    }

    /// Whether a message may have died without anybody rejecting it.
    fn dies_by_itself(&self, queue: usize, entry: &Entry, until_ms: u64) -> bool {
        let kind = &self.queues[queue];
        let has_expired = entry.expires_ms(kind).is_some_and(|(earliest, _)| earliest <= until_ms);
        let returns = entry.count + entry.requeues + 2;
        has_expired || kind.delivery_limit.is_some_and(|limit| returns >= limit)
    }

    /// How many copies of a message may have come to this queue as dead letters by then.
    pub(super) fn may_have_come(&self, queue: usize, id: MessageId, until_ms: u64) -> u32 {
        let from = |source: usize| {
            let Some(entry) = self.entries.get(&(source, id)) else { return 0 };
            let all = entry.stored + entry.possible;
            // What is back after a crash dies again, until its first death is on disk.
            let deaths = match self.dies_by_itself(source, entry, until_ms) {
                true => all * (1 + self.kills),
                false => 0,
            };
            deaths + entry.rejects.min(all)
        };
        self.sources(queue).map(from).sum()
    }
}
