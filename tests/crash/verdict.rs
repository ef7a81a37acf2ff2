//! Whether what is found after a restart is what must be there.
//!
//! Owns the comparison of a [`Ledger`] with the queues' contents: a pure function. It must not
//! look anywhere itself.

use std::collections::{BTreeMap, BTreeSet};

use super::ledger::{Entry, Kind, Ledger, Order, Queue, Receipt, Violation};
use super::message::MessageId;

/// How much later than due something may be seen, for the time that reading and waking take.
const SLACK_MS: u64 = 25;

/// One message as it was found.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Who it is; the error says what is wrong with it.
    pub id: Result<MessageId, String>,
    pub redelivered: bool,
    /// When it was asked for, and when it came.
    pub asked_ms: u64,
    pub came_ms: u64,
    /// The delivery count.
    pub count: u32,
    pub persistent: bool,
    pub priority: Option<u8>,
    pub expiration: Option<u64>,
    /// Everything else about it, in any form that does not change.
    pub properties: String,
    /// Its deaths, newest first.
    pub deaths: Vec<Death>,
}

/// An entry of `x-death`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    pub queue: String,
    pub reason: String,
}

/// A queue's content, looked through from its head to its end.
#[derive(Clone, Debug)]
pub struct Found {
    pub queue: usize,
    pub seen: Vec<Seen>,
    /// When the last look found nothing more.
    pub ended_ms: u64,
}

/// Compares what must be there with what is found. Queues that are not in `found` are not judged.
pub fn judge(ledger: &Ledger, found: &[Found]) -> Vec<Violation> {
    let mut judge = Judge::new(ledger, found);
    for queue in found {
        judge.counts(queue);
        judge.order(queue);
        judge.each(queue);
        judge.transactions(queue);
    }
    judge.violations
}

struct Judge<'a> {
    ledger: &'a Ledger,
    /// How often each message was found in each queue.
    times: BTreeMap<(usize, MessageId), u32>,
    violations: Vec<Violation>,
}

/// How many messages must at least be, now, in a queue that was not looked through yet.
pub fn due_in(ledger: &Ledger, found: &[Found], queue: usize, now_ms: u64) -> u32 {
    let judge = Judge::new(ledger, found);
    ledger.concerned(queue).into_iter().map(|id| judge.least(queue, id, now_ms)).sum()
}

impl<'a> Judge<'a> {
    fn new(ledger: &'a Ledger, found: &[Found]) -> Judge<'a> {
        let mut times = BTreeMap::new();
        for queue in found {
            for id in queue.seen.iter().filter_map(|seen| seen.id.as_ref().ok()) {
                *times.entry((queue.queue, *id)).or_default() += 1;
            }
        }
        Judge { ledger, times, violations: Vec::new() }
    }

    fn note(&mut self, kind: Kind, queue: usize, what: String) {
        let name = &self.ledger.queues[queue].name;
        self.violations.push(Violation::new(kind, format!("{name}: {what}")));
    }

    fn times(&self, queue: usize, id: MessageId) -> u32 {
        self.times.get(&(queue, id)).copied().unwrap_or(0)
    }

    /// As many of each message as there must be at least and can be at most.
    fn counts(&mut self, found: &Found) {
        let (queue, ended) = (found.queue, found.ended_ms);
        let mut due = self.ledger.concerned(queue);
        due.extend(found.seen.iter().filter_map(|seen| seen.id.clone().ok()));
        for id in due {
            let here = self.times(queue, id);
            let entry = self.ledger.entries.get(&(queue, id));
            let came = self.ledger.may_have_come(queue, id, ended);
            let (stored, possible) = entry.map_or((0, 0), |e| (e.stored, e.possible));
            let acks_stored = entry.map_or(0, |entry| entry.acks_stored);
            let kills = self.ledger.kills;
            let repeats = entry.map_or(0, |entry| entry.repeats(ended, kills));
            let is_due = self.ledger.queues[queue].order == Order::Due && entry.is_some();
            let repeats = if is_due { repeats.max(kills) } else { repeats };
            let most = (stored + possible + came + repeats).saturating_sub(acks_stored);
            if here > most {
                let is_unheard = entry.is_none() && came == 0;
                let kind = match most {
                    0 if is_unheard => Kind::Invented,
                    0 => Kind::CameBack,
                    _ => Kind::Duplicated,
                };
                self.note(kind, queue, format!("{id:?} is there {here} times, at most {most}"));
            }
            let least = self.least(queue, id, ended);
            if here < least {
                self.note(
                    Kind::Lost,
                    queue,
                    format!("{id:?} is there {here} times, at least {least}"),
                );
            }
        }
    }

    /// How many copies must be there, by what was found in the queues that it may have come from.
    fn least(&self, queue: usize, id: MessageId, ended_ms: u64) -> u32 {
        let sources = self.ledger.sources(queue);
        let came: u32 = sources.map(|source| self.must_have_left(source, id, ended_ms)).sum();
        let Some(entry) = self.ledger.entries.get(&(queue, id)) else { return came };
        let left = self.ledger.may_have_left(queue, id, ended_ms);
        let is_excused = self.may_be_missing(queue, entry, ended_ms);
        let gone = entry.acks + left + if is_excused { entry.stored } else { 0 };
        (entry.stored + came).saturating_sub(gone)
    }

    /// Whether time may have taken the message away, or not brought it yet.
    fn may_be_missing(&self, queue: usize, entry: &Entry, ended_ms: u64) -> bool {
        let expires = entry.expires_ms(&self.ledger.queues[queue]);
        let has_expired = expires.is_some_and(|(earliest, _)| earliest <= ended_ms + SLACK_MS);
        has_expired || entry.may_be_delayed(ended_ms)
    }

    /// How many copies that are not in a queue any more must have gone where its dead letters go.
    fn must_have_left(&self, source: usize, id: MessageId, ended_ms: u64) -> u32 {
        let Some(entry) = self.ledger.entries.get(&(source, id)) else { return 0 };
        if !entry.sort.persistent {
            // A quorum queue keeps it, where it goes may not.
            return 0;
        }
        let stays = entry.stored.saturating_sub(entry.acks);
        let missing = stays.saturating_sub(self.times(source, id));
        missing.min(self.ledger.may_have_left(source, id, ended_ms))
    }

    /// The order of before the crash, then that of each publisher.
    fn order(&mut self, found: &Found) {
        let queue = &self.ledger.queues[found.queue];
        let mut wrong = Vec::new();
        // By class: the place that the last known message had, and the last number by publisher.
        let mut places: BTreeMap<u8, usize> = BTreeMap::new();
        let mut numbers: BTreeMap<(u8, u32), u32> = BTreeMap::new();
        let mut class_before = u8::MAX;
        for seen in &found.seen {
            let Ok(id) = seen.id else { continue };
            let class = queue.class(seen.priority);
            if matches!(queue.order, Order::Priority(_)) {
                if class > class_before {
                    wrong.push(format!("{id:?} of priority {class} comes after {class_before}"));
                }
                class_before = class;
            }
            let entry = self.ledger.entries.get(&(found.queue, id));
            let was_there = entry.is_some_and(|entry| entry.position.is_some());
            let is_one = was_there && self.known(found, id).is_some();
            if self.times(found.queue, id) > 1 || was_there != is_one {
                // Which of the copies this is cannot be told.
                continue;
            }
            match entry.and_then(|entry| entry.position) {
                Some(position) => {
                    let before = places.insert(class, position);
                    let is_behind = before.is_some_and(|before| before > position);
                    if is_behind && queue.order != Order::Due {
                        wrong.push(format!("{id:?} was at {position} and comes after {before:?}"));
                    }
                }
                None => {
                    places.insert(class, usize::MAX);
                    let before = numbers.insert((class, id.publisher), id.number).unwrap_or(0);
                    if before > id.number && queue.order.is_of_publishers() {
                        wrong.push(format!("{id:?} comes after {before}"));
                    }
                }
            }
        }
        wrong.into_iter().for_each(|what| self.note(Kind::Reordered, found.queue, what));
    }

    /// The entry of a message of which there is one copy that cannot have come only now, as a dead
    /// letter: copies that died apart are not the same.
    fn known(&self, found: &Found, id: MessageId) -> Option<&'a Entry> {
        let came = self.ledger.may_have_come(found.queue, id, found.ended_ms);
        let entry = self.ledger.entries.get(&(found.queue, id))?;
        (came == 0 && entry.stored + entry.possible <= 1).then_some(entry)
    }

    /// Each message by itself: its bytes, its time, its flags and properties.
    fn each(&mut self, found: &Found) {
        let queue = found.queue;
        for seen in &found.seen {
            let id = match &seen.id {
                Ok(id) => *id,
                Err(what) => {
                    self.note(Kind::Damaged, queue, what.clone());
                    continue;
                }
            };
            let entry = self.known(found, id);
            for (kind, what) in
                entry.map_or_else(Vec::new, |e| wrong_with(&self.ledger.queues[queue], e, seen))
            {
                self.note(kind, queue, format!("{id:?} {what}"));
            }
            let before = self.ledger.entries.get(&(queue, id));
            let is_new = before.is_none_or(|entry| entry.position.is_none());
            if is_new && self.ledger.sources(queue).next().is_some() {
                self.dead_letter(queue, id, seen);
            }
        }
    }

    /// A dead letter says where it died and why.
    fn dead_letter(&mut self, queue: usize, id: MessageId, seen: &Seen) {
        let is_direct =
            self.ledger.entries.get(&(queue, id)).is_some_and(|e| e.stored + e.possible > 0);
        if seen.deaths.is_empty() && is_direct {
            return;
        }
        let fits = |source: usize| {
            let Some(entry) = self.ledger.entries.get(&(source, id)) else { return false };
            let kind = &self.ledger.queues[source];
            let newest = seen.deaths.first();
            newest.is_some_and(|death| {
                death.queue == kind.name
                    && match death.reason.as_str() {
                        "rejected" => entry.rejects > 0,
                        "expired" => entry.expires_ms(kind).is_some(),
                        "delivery_limit" => kind.delivery_limit.is_some(),
                        _ => false,
                    }
            })
        };
        if !self.ledger.sources(queue).any(fits) {
            let what = format!("{id:?} has died of {:?}, which nobody saw", seen.deaths);
            self.note(Kind::Changed, queue, what);
        }
        let source = self.ledger.sources(queue).find_map(|s| self.ledger.entries.get(&(s, id)));
        if source.is_some_and(|source| source.sort.priority != seen.priority) {
            self.note(Kind::Changed, queue, format!("{id:?} has priority {:?}", seen.priority));
        }
    }

    /// Transactions without an answer are in a queue as a whole or not at all.
    fn transactions(&mut self, found: &Found) {
        let mut parts: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
        for ((queue, id), entry) in &self.ledger.entries {
            let Some(group) = entry.group.filter(|_| *queue == found.queue) else { continue };
            if entry.acks == 0 && entry.rejects == 0 {
                let (all, here) = parts.entry(group).or_default();
                *all += 1;
                *here += self.times(*queue, *id).min(1);
            }
        }
        for (group, (all, here)) in parts {
            if here != 0 && here != all {
                self.note(
                    Kind::Split,
                    found.queue,
                    format!("{here} of {all} of transaction {group}"),
                );
            }
        }
    }
}

/// What is wrong with one message that is known.
fn wrong_with(queue: &Queue, entry: &Entry, seen: &Seen) -> Vec<(Kind, String)> {
    let mut wrong = Vec::new();
    let mut note = |kind, what: String| wrong.push((kind, what));
    if let Some((_, latest)) = entry.expires_ms(queue)
        && seen.asked_ms > latest.saturating_add(SLACK_MS)
    {
        note(Kind::CameBack, format!("expired {} ms before", seen.asked_ms - latest));
    }
    let (due, _) = entry.due_ms();
    if entry.sort.delay_ms.is_some() && seen.came_ms + SLACK_MS < due {
        note(Kind::Early, format!("came {} ms early", due - seen.came_ms));
    }
    if entry.receipt == Receipt::Stored && !seen.redelivered {
        note(Kind::Flag, "was delivered before and is not redelivered".to_owned());
    }
    if entry.receipt == Receipt::Never && seen.redelivered {
        note(Kind::Flag, "is redelivered and was with nobody".to_owned());
    }
    if seen.persistent != entry.sort.persistent || seen.priority != entry.sort.priority {
        note(Kind::Changed, format!("has {:?}, {:?}", seen.persistent, seen.priority));
    }
    if seen.expiration != entry.sort.ttl_ms {
        note(Kind::Changed, format!("has expiration {:?}", seen.expiration));
    }
    if entry.properties.as_ref().is_some_and(|before| *before != seen.properties) {
        note(Kind::Changed, format!("was {:?}, is {}", entry.properties, seen.properties));
    }
    if queue.quorum {
        let least = entry.count + entry.requeues_stored;
        // Both a look through the queue and the crash may have given it back once more.
        let most = entry.count + entry.requeues + 2;
        if !(least..=most).contains(&seen.count) {
            note(Kind::Changed, format!("has count {}, due {least} to {most}", seen.count));
        }
    }
    wrong
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
