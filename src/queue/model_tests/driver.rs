//! Drives a real queue through a history, as the broker does.
//!
//! Owns the queue under test, the messages that were published to it and the deliveries that it
//! made, and checks each delivery's content and the laws that need no reference. It must not know
//! what the reference expects.

use std::collections::BTreeSet;
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;

use crate::clock::Millis;
use crate::codec::properties::{
    CONTENT_TYPE, DELIVERY_MODE, EXPIRATION, MESSAGE_ID, PRIORITY, is_well_formed,
};
use crate::queue::segment::SMALL_SEGMENT_BYTES;
use crate::queue::{
    Body, ConsumerKey, ConsumerSpec, Content, Delivery, Effects, Gate, Kind, NotYet, Origin,
    Overdue, Pass, Place, Queue, SHARED_BODY_MIN, Settings, Slot,
};

use super::history::{
    ConsumerPick, DurableHistory, Payload, Pick, Settlement, Step, StoreStep, Subscription,
};
use super::reference::Reference;
use super::storage::Storage;
use super::{Command, Counts, Delivered, Operation, Outcome};

/// What the table of unsettled messages may keep when it is empty.
const TABLE_BYTES_MAX: usize = 1024 * 80;

/// A gate that lets a number of deliveries be outstanding, 0 for no limit.
#[derive(Debug, Default)]
struct SharedLimit {
    limit: u32,
    used: AtomicU32,
}

impl Gate for SharedLimit {
    fn pass(&self) -> Pass {
        if self.limit == 0 {
            return Pass::Free;
        }
        if self.used.load(Ordering::Relaxed) >= self.limit {
            return Pass::Refused;
        }
        self.used.fetch_add(1, Ordering::Relaxed);
        Pass::Counted
    }
}

/// A message as its publisher holds it.
#[derive(Debug)]
struct Sample {
    address: Vec<u8>,
    header: Vec<u8>,
    body: Bytes,
    priority: Option<u8>,
    is_persistent: bool,
    expires_at: Option<u64>,
    times_delivered: u32,
}

impl Sample {
    /// The message's number stands in its routing key, and each byte of the rest depends on it.
    fn new(number: usize, payload: &Payload, queue_ttl_ms: Option<u64>, now: Millis) -> Self {
        let seed = number as u8;
        let mut address = vec![0, 4 + payload.key_pad as u8];
        address.extend((number as u32).to_be_bytes());
        address.resize(address.len() + payload.key_pad, seed);
        let body = Bytes::from(vec![seed ^ 0xAA; payload.body_len]);
        let ttl_ms = queue_ttl_ms.into_iter().chain(payload.expiration_ms).min();
        let header = header(seed ^ 0x55, payload);
        let sample = Self {
            address,
            header,
            body,
            priority: payload.priority,
            is_persistent: payload.persistent,
            expires_at: ttl_ms.map(|ttl_ms| now.0 + ttl_ms),
            times_delivered: 0,
        };
        assert_eq!(payload.cost(), i64::from(sample.content().cost()));
        sample
    }

    fn is_shared(&self) -> bool {
        self.body.len() >= SHARED_BODY_MIN
    }

    fn content(&self) -> Content<'_> {
        let body =
            if self.is_shared() { Body::Shared(&self.body) } else { Body::Inline(&self.body) };
        Content { address: &self.address, header: &self.header, body }
    }
}

/// A content header as clients send it (AMQP 0-9-1, 4.2.6.1).
fn header(seed: u8, payload: &Payload) -> Vec<u8> {
    let text_flag = match payload.text_len {
        0 => 0,
        len if len % 2 == 0 => CONTENT_TYPE,
        _ => MESSAGE_ID,
    };
    let mut text = vec![payload.text_len];
    text.resize(1 + usize::from(payload.text_len), seed);
    let expiration = payload.expiration_ms.map(|ms| ms.to_string());
    let expiration = expiration.map(|text| [&[text.len() as u8], text.as_bytes()].concat());
    let values = [
        (CONTENT_TYPE, (text_flag == CONTENT_TYPE).then(|| text.clone())),
        (DELIVERY_MODE, payload.persistent.then(|| vec![2])),
        (PRIORITY, payload.priority.map(|priority| vec![priority])),
        (EXPIRATION, expiration),
        (MESSAGE_ID, (text_flag == MESSAGE_ID).then_some(text)),
    ];
    let mut header = vec![0, 60, 0, 0];
    header.extend((payload.body_len as u64).to_be_bytes());
    let given = values.iter().filter(|(_, value)| value.is_some());
    header.extend(given.map(|(flag, _)| *flag).sum::<u16>().to_be_bytes());
    values.into_iter().for_each(|(_, value)| header.extend(value.unwrap_or_default()));
    assert!(is_well_formed(&header[12..]));
    header
}

/// The number of the message with this content, all of which is checked.
fn recognise(samples: &[Sample], content: &Content<'_>) -> usize {
    let number = content.address[2..6].try_into().expect("four bytes");
    let number = u32::from_be_bytes(number) as usize;
    let sample = &samples[number];
    assert_eq!(content.address, sample.address, "the address of message {number}");
    assert_eq!(content.header, sample.header, "the header of message {number}");
    assert!(content.body.bytes() == &sample.body[..], "the body of message {number}");
    number
}

/// A delivery that waits to be settled.
#[derive(Debug)]
struct Outstanding {
    delivery: usize,
    /// `None` for `basic.get`.
    consumer: Option<usize>,
    is_counted: bool,
}

#[derive(Debug)]
struct Member {
    key: ConsumerKey,
    subscription: Subscription,
    is_cancelled: bool,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Driver {
    queue: Queue,
    pub(super) now: Millis,
    effects: Effects,
    gate: Arc<SharedLimit>,
    /// By the number of the message.
    samples: Vec<Sample>,
    /// By the number of the consumer, those who are gone included.
    members: Vec<Member>,
    /// By the number of the delivery, the settled ones included.
    slots: Vec<Slot>,
    outstanding: Vec<Outstanding>,
    /// Of a queue that uses a disk.
    storage: Option<Box<Storage>>,
}

impl Driver {
    pub(super) fn new(settings: Settings, gate_limit: u32, now: Millis) -> Self {
        Self {
            queue: Queue::new(settings),
            now,
            effects: Effects::default(),
            gate: Arc::new(SharedLimit { limit: gate_limit, used: AtomicU32::new(0) }),
            samples: Vec::new(),
            members: Vec::new(),
            slots: Vec::new(),
            outstanding: Vec::new(),
            storage: None,
        }
    }

    /// That of a queue that may have messages on the disk.
    pub(super) fn with_disk(durable: &DurableHistory, now: Millis) -> Self {
        let DurableHistory { history, conditions, is_durable, .. } = durable;
        Self {
            queue: Queue::with_store(history.settings.clone(), *is_durable),
            storage: Some(Box::new(Storage::new(*conditions, *is_durable))),
            ..Self::new(history.settings.clone(), history.gate_limit, now)
        }
    }

    /// Whether everything that is wanted is to be loaded at once.
    pub(super) fn is_eager(&self) -> bool {
        self.storage.as_ref().is_some_and(|storage| storage.conditions.is_eager)
    }

    /// See [`Reference::apply`].
    pub(super) fn reachable(&self) -> Vec<(u8, usize)> {
        self.queue.reachable()
    }

    /// What a step means at this moment; `None` when there is nothing that it could mean. A tick
    /// begins here, as what is overdue is for the queue to say.
    pub(super) fn resolve(&mut self, step: &Step) -> Option<Command> {
        Some(match step {
            Step::Commit { settles, publishes, publishes_first } => {
                let settles = settles.iter().flat_map(|pick| self.resolve_pick(*pick));
                let mut settles: Vec<Operation> = settles.collect();
                let mut all: Vec<Operation> =
                    publishes.iter().copied().map(Operation::Publish).collect();
                if *publishes_first {
                    all.append(&mut settles);
                } else {
                    all.splice(..0, settles);
                }
                Command::Commit(all)
            }
            Step::Burst { count, priority, expiration_ms, persistent } => {
                let (priority, expiration_ms) = (*priority, *expiration_ms);
                let persistent = *persistent;
                let payload =
                    Payload { body_len: 8, priority, expiration_ms, persistent, ..Payload::SMALL };
                Command::Commit(vec![Operation::Publish(payload); usize::from(*count)])
            }
            Step::SettleAll(settlement) => {
                let all = self.outstanding.iter();
                let all = all.map(|it| Operation::Settle(it.delivery, *settlement));
                Command::Commit(all.collect())
            }
            Step::Subscribe(subscription) => Command::Subscribe(*subscription),
            Step::Cancel(pick) => Command::Cancel(self.resolve_consumer(*pick)?),
            Step::Get { no_ack } => Command::Get { no_ack: *no_ack },
            Step::Purge => Command::Purge,
            Step::Grant { consumer, window } => {
                Command::Grant { consumer: self.resolve_consumer(*consumer)?, window: *window }
            }
            Step::Reopen => Command::Reopen,
            Step::Wait { ms } => Command::Wait { ms: *ms },
            Step::WaitForDeadline => {
                let ms = self.queue.next_deadline()?.0.checked_sub(self.now.0)?;
                (ms < 10_000).then_some(Command::Wait { ms })?
            }
            Step::Tick => {
                let is_due = self.is_behind();
                Command::Tick { overdue: self.look(), is_due }
            }
            Step::Configure(policy) => {
                let now = self.queue.settings();
                let settings = Settings {
                    kind: now.kind,
                    priority_max: now.priority_max,
                    single_active_consumer: now.single_active_consumer,
                    ..policy.clone()
                };
                (*now != settings).then_some(Command::Configure(settings))?
            }
            Step::Store(step) => self.resolve_store_step(*step)?,
        })
    }

    /// What is read is taken in here, and what a crash takes is gone.
    fn resolve_store_step(&mut self, step: StoreStep) -> Option<Command> {
        let storage = self.storage.as_mut()?;
        Some(match step {
            StoreStep::Conditions(conditions) => {
                storage.conditions = conditions;
                return None;
            }
            StoreStep::Load { at_once } => {
                let fetched = storage.read(&self.queue, at_once)?;
                storage.take_in(&mut self.queue, fetched);
                Command::Load
            }
            StoreStep::Fetch { at_once } => {
                let fetched = storage.read(&self.queue, at_once)?;
                storage.fetched.push_back(fetched);
                return None;
            }
            StoreStep::Install => {
                let fetched = storage.fetched.pop_front()?;
                storage.take_in(&mut self.queue, fetched);
                Command::Load
            }
            StoreStep::Bury(count) => {
                let dying = storage.dying.iter().take(count.into());
                Command::Bury(dying.map(|(message, _)| *message).collect())
            }
            StoreStep::Crash { lost } => {
                let commands = storage.crash(lost.into())?;
                Command::Crash { commands, stored: self.restart() }
            }
        })
    }

    /// Makes another queue of what the store has. Answers the numbers of its messages, and how
    /// often each came back.
    fn restart(&mut self) -> Vec<(usize, u32)> {
        let storage = self.storage.as_ref().expect("only what is durable is restarted");
        let mut stored: Vec<(usize, u32)> = Vec::new();
        for (_, returns, message) in storage.kept.unsettled() {
            let number = recognise(&self.samples, &message.content(0));
            self.samples[number].times_delivered = returns;
            stored.push((number, returns));
        }
        stored.sort_unstable();
        let heads: Vec<_> = storage.kept.heads.values().copied().collect();
        self.queue = Queue::with_store(self.queue.settings().clone(), true);
        self.queue.restore(&heads);
        self.effects = Effects::default();
        let limit = self.gate.limit;
        self.gate = Arc::new(SharedLimit { limit, used: AtomicU32::new(0) });
        self.members.clear();
        self.slots.clear();
        self.outstanding.clear();
        stored
    }

    /// The deliveries that are overdue, in the order in which they were made.
    fn look(&mut self) -> Vec<usize> {
        self.queue.look_for_overdue(self.now, &mut self.effects);
        let overdue = std::mem::take(&mut self.effects.overdue);
        let mut deliveries: Vec<usize> = Vec::new();
        for Overdue { slot, consumer } in overdue {
            let mut outstanding = self.outstanding.iter();
            let found = outstanding.find(|it| self.slots[it.delivery] == slot);
            let found = found.expect("only what is held is overdue");
            assert_eq!(consumer, found.consumer.map(|number| self.members[number].key));
            deliveries.push(found.delivery);
        }
        deliveries.sort_unstable();
        deliveries
    }

    fn resolve_pick(&self, pick: Pick) -> Vec<Operation> {
        let choice: Vec<usize> = if pick.stale {
            (0..self.slots.len()).collect()
        } else {
            self.outstanding.iter().map(|it| it.delivery).collect()
        };
        if choice.is_empty() {
            return Vec::new();
        }
        let start = usize::from(pick.at) % choice.len();
        let run = choice.iter().cycle().skip(start).take(usize::from(pick.count));
        let times = if pick.twice { 2 } else { 1 };
        let settle = |it: &usize| Operation::Settle(*it, pick.settlement);
        run.flat_map(|it| std::iter::repeat_n(settle(it), times)).collect()
    }

    fn resolve_consumer(&self, pick: ConsumerPick) -> Option<usize> {
        let members = self.members.iter().enumerate();
        let choice: Vec<usize> =
            members.filter(|(_, it)| pick.stale || !it.is_cancelled).map(|(at, _)| at).collect();
        choice.get(usize::from(pick.at) % choice.len().max(1)).copied()
    }

    pub(super) fn apply(&mut self, command: &Command) -> Outcome {
        let mut outcome = Outcome::default();
        let out = &mut outcome;
        match command {
            Command::Commit(operations) => self.commit(operations, out),
            Command::Subscribe(subscription) => {
                self.subscribe(*subscription);
                self.dispatch(0, out);
            }
            Command::Cancel(consumer) => {
                self.cancel(*consumer);
                self.dispatch(0, out);
            }
            Command::Get { no_ack } => {
                out.got = self.take_one(*no_ack, out);
                self.dispatch(0, out);
            }
            Command::Purge => out.purged = self.queue.purge(&mut self.effects),
            Command::Grant { consumer, window } => {
                self.queue.grant(self.members[*consumer].key, *window);
                self.dispatch(0, out);
            }
            Command::Reopen => {
                self.queue.reopen();
                self.dispatch(0, out);
            }
            Command::Wait { ms } => self.now.0 += ms,
            Command::Tick { overdue, .. } => self.tick(overdue, out),
            Command::Configure(settings) => {
                self.queue.configure(settings.clone(), self.now);
                self.dispatch(0, out);
            }
            Command::Bury(messages) => self.bury(messages),
            Command::Load | Command::Crash { .. } => self.dispatch(0, out),
        }
        if let Some(storage) = &mut self.storage {
            storage.keep(&mut self.queue, &mut self.effects);
        }
        outcome.counts = Counts {
            ready: self.queue.ready(),
            unsettled: self.queue.unsettled(),
            consumers: self.queue.consumer_count(),
            backlog_bytes: self.queue.backlog_bytes(),
        };
        outcome
    }

    /// Whether a tick is due at once.
    pub(super) fn is_behind(&self) -> bool {
        self.queue.next_deadline().is_some_and(|at| at <= self.now)
    }

    fn bury(&mut self, messages: &[usize]) {
        let Some(storage) = &mut self.storage else { return };
        let arrived = storage.dying.extract_if(.., |(message, _)| messages.contains(message));
        let places: Vec<Place> = arrived.map(|(_, place)| place).collect();
        self.queue.bury(&places);
    }

    fn subscribe(&mut self, subscription: Subscription) {
        let gate = if subscription.is_gated { self.gate.clone() } else { Arc::default() };
        let Subscription { no_ack, prefetch, priority, window, .. } = subscription;
        let key = self.queue.subscribe(ConsumerSpec { no_ack, prefetch, priority, window, gate });
        self.members.push(Member { key, subscription, is_cancelled: false });
    }

    fn cancel(&mut self, consumer: usize) {
        let member = &mut self.members[consumer];
        assert_eq!(self.queue.is_consumer(member.key), !member.is_cancelled);
        assert_eq!(self.queue.cancel(member.key), !member.is_cancelled);
        member.is_cancelled = true;
    }

    fn commit(&mut self, operations: &[Operation], out: &mut Outcome) {
        let first = self.samples.len();
        for operation in operations {
            if let Operation::Publish(payload) = operation {
                let ttl_ms = self.queue.settings().message_ttl_ms;
                let sample = Sample::new(self.samples.len(), payload, ttl_ms, self.now);
                self.samples.push(sample);
            }
        }
        let is_limited = self.queue.settings().is_limited();
        let (mut token, mut has_room) = (0, false);
        for operation in operations {
            match operation {
                Operation::Settle(delivery, settlement) => {
                    self.settle(*delivery, *settlement);
                    has_room = true;
                }
                Operation::Publish(_) => {
                    if is_limited && (has_room || !self.effects.exhausted.is_empty()) {
                        self.dispatch(first, out);
                        has_room = false;
                    }
                    let content = self.samples[first + token].content();
                    self.queue.enqueue(&content, token as u32, self.now, &mut self.effects);
                    token += 1;
                }
            }
        }
        self.dispatch(first, out);
        let rejected = self.effects.rejected.drain(..);
        out.rejected.extend(rejected.map(|token| first + token as usize));
    }

    fn settle(&mut self, delivery: usize, settlement: Settlement) {
        self.forget(|it| it.delivery == delivery);
        let slot = self.slots[delivery];
        match settlement {
            Settlement::Done => self.queue.settle(slot, &mut self.effects),
            Settlement::Reject => self.queue.reject(slot, &mut self.effects),
            Settlement::Requeue => self.queue.put_back(slot, &mut self.effects),
        }
        assert!(!self.queue.holds(slot), "what was settled is not held");
    }

    /// Forgets deliveries that are settled, as their channel does.
    fn forget(&mut self, is_settled: impl Fn(&Outstanding) -> bool) {
        for it in self.outstanding.extract_if(.., |it| is_settled(it)) {
            self.gate.used.fetch_sub(u32::from(it.is_counted), Ordering::Relaxed);
        }
    }

    /// Ends who holds what is overdue, as far as that is done at once.
    fn tick(&mut self, overdue: &[usize], out: &mut Outcome) {
        for delivery in overdue {
            let holder = self.outstanding.iter().find(|it| it.delivery == *delivery);
            let Some(holder) = holder.map(|it| it.consumer) else { continue };
            let member = holder.map(|number| &self.members[number]).filter(|it| !it.is_cancelled);
            match (holder, member) {
                (Some(number), Some(member)) if member.subscription.knows_cancel => {
                    self.queue.put_back_all(member.key, &mut self.effects);
                    self.forget(|it| it.consumer == holder);
                    self.cancel(number);
                }
                (_, Some(_)) => {}
                (_, None) => self.settle(*delivery, Settlement::Requeue),
            }
        }
        let came_back = self.effects.dead.len();
        self.dispatch(0, out);
        out.dead[..came_back].sort_by_key(|(message, _)| *message);
    }

    /// Tokens count from the message `first`.
    fn dispatch(&mut self, first: usize, out: &mut Outcome) {
        loop {
            self.queue.checkout(self.now, &mut self.effects);
            self.hand_over(first, out);
            let mut was_granted = false;
            for key in std::mem::take(&mut self.effects.exhausted) {
                let (consumer, member) = self.find(key);
                let Subscription { has_room, window, .. } = member.subscription;
                out.exhausted.push(consumer);
                if has_room {
                    self.queue.grant(key, window);
                    was_granted = true;
                }
            }
            if !was_granted {
                break;
            }
        }
        self.queue.expire(self.now, &mut self.effects);
        self.hand_over(first, out);
        self.effects.end_drive();
        assert!(self.effects.is_idle());
    }

    /// Encodes deliveries and copies dead letters, while their content is there.
    fn hand_over(&mut self, first: usize, out: &mut Outcome) {
        for delivery in self.effects.deliveries.clone() {
            self.encode(&delivery, first, out);
        }
        for dead in &self.effects.dead {
            let message = self.message(dead.origin, first);
            out.dead.push((message, dead.reason));
            if let (Origin::Stored(at), Some(storage)) = (dead.origin, &mut self.storage) {
                let is_quorum = self.queue.settings().kind == Kind::Quorum;
                let is_kept = self.samples[message].is_persistent || is_quorum;
                let place = self.queue.place(at);
                assert_eq!(place.is_some(), is_kept && storage.is_durable());
                storage.dying.extend(place.map(|place| (message, place)));
            }
        }
        if let Some(storage) = self.storage.as_mut().filter(|_| !self.effects.dead.is_empty()) {
            storage.take(&mut self.queue);
        }
        self.queue.finish(&mut self.effects);
        assert!(self.effects.is_idle() || !self.effects.exhausted.is_empty());
    }

    fn message(&self, origin: Origin, first: usize) -> usize {
        match origin {
            Origin::Staged(token) => first + token as usize,
            Origin::Stored(at) => recognise(&self.samples, &self.queue.content(at)),
        }
    }

    fn encode(&mut self, delivery: &Delivery, first: usize, out: &mut Outcome) {
        let (consumer, member) = self.find(delivery.consumer);
        assert_eq!(delivery.slot.is_none(), member.subscription.no_ack);
        let message = self.message(delivery.origin, first);
        let Delivery { slot, returns, counted: is_counted, .. } = *delivery;
        let delivery = self.note(message, slot, returns, Some(consumer), is_counted);
        out.deliveries.push(Delivered { consumer, message, returns, delivery, is_counted });
    }

    fn take_one(&mut self, no_ack: bool, out: &mut Outcome) -> Option<(usize, u32, Option<usize>)> {
        let got = loop {
            match self.queue.get(no_ack, self.now, &mut self.effects) {
                Ok(got) => break got?,
                Err(NotYet::Behind) => self.hand_over(0, out),
                Err(NotYet::Absent) => {
                    assert!(self.queue.wanted_at_once().is_some(), "it is to be read");
                    out.is_absent = true;
                    return None;
                }
            }
            self.effects.end_drive();
        };
        assert_eq!(got.slot.is_none(), no_ack);
        let message = recognise(&self.samples, &self.queue.got_content(&got));
        self.queue.finish_get(&got, &mut self.effects);
        Some((message, got.returns, self.note(message, got.slot, got.returns, None, false)))
    }

    /// Notes a delivery; answers the number that settles it, if anything needs to.
    fn note(
        &mut self,
        message: usize,
        slot: Option<Slot>,
        returns: u32,
        consumer: Option<usize>,
        is_counted: bool,
    ) -> Option<usize> {
        let sample = &mut self.samples[message];
        assert_eq!(returns, sample.times_delivered, "message {message} knows how often it came");
        assert!(sample.expires_at.is_none_or(|at| at >= self.now.0), "message {message} is dead");
        sample.times_delivered += 1;
        let delivery = self.slots.len();
        self.slots.push(slot?);
        self.outstanding.push(Outstanding { delivery, consumer, is_counted });
        Some(delivery)
    }

    fn find(&self, key: ConsumerKey) -> (usize, &Member) {
        let mut members = self.members.iter().enumerate();
        let (consumer, member) = members.find(|(_, it)| it.key == key).expect("a consumer of ours");
        assert!(!member.is_cancelled, "consumer {consumer} is gone");
        (consumer, member)
    }

    pub(super) fn next_deadline(&self) -> Option<Millis> {
        self.queue.next_deadline()
    }

    /// Checks what must hold after each command, whatever it was. `holds` tells which messages
    /// should still be there.
    pub(super) fn check(&self, holds: impl Fn(usize) -> bool) {
        self.queue.check_invariants();
        let slots: BTreeSet<Slot> =
            self.outstanding.iter().map(|it| self.slots[it.delivery]).collect();
        let ever: BTreeSet<&Slot> = self.slots.iter().collect();
        assert_eq!(ever.len(), self.slots.len(), "each slot names one delivery, for ever");
        for slot in &self.slots {
            assert_eq!(self.queue.holds(*slot), slots.contains(slot), "what is settled is gone");
        }
        for (consumer, member) in self.members.iter().enumerate() {
            let prefetch = member.subscription.prefetch as usize;
            let held = self.outstanding.iter().filter(|it| it.consumer == Some(consumer));
            let held: BTreeSet<Slot> = held.map(|it| self.slots[it.delivery]).collect();
            assert!(prefetch == 0 || held.len() <= prefetch, "consumer {consumer} holds {held:?}");
            assert_eq!(self.queue.held_by(member.key).collect::<BTreeSet<Slot>>(), held);
        }
        let used = self.gate.used.load(Ordering::Relaxed);
        assert!(self.gate.limit == 0 || used <= self.gate.limit, "{used} went through the gate");
        for (number, sample) in self.samples.iter().enumerate().filter(|(_, it)| it.is_shared()) {
            let is_held = !sample.body.is_unique();
            // That of a durable queue may be in the store only.
            let is_right = if self.storage.is_some() {
                holds(number) || !is_held
            } else {
                holds(number) == is_held
            };
            assert!(is_right, "the body of message {number}");
        }
    }

    /// Checks what is on the disk, what the store was told, and what is wanted.
    pub(super) fn check_storage(&self, reference: &Reference) {
        let storage = self.storage.as_ref().expect("there is a disk");
        storage.check_pieces(&self.queue);
        reference.check_heads(&storage.heads);
        let dying = storage.dying.iter().map(|(message, _)| *message);
        reference.check_waiting(self.queue.wanted().is_some(), dying);
    }

    /// Checks that a queue in which nothing is left has let go of everything, but for a small
    /// segment for each lane that was used.
    pub(super) fn check_empty(&self) {
        assert_eq!((self.queue.ready(), self.queue.unsettled()), (0, 0));
        assert_eq!(self.queue.backlog_bytes(), 0);
        assert_eq!(self.gate.used.load(Ordering::Relaxed), 0);
        let priorities: BTreeSet<u8> = self.samples.iter().filter_map(|it| it.priority).collect();
        let memory = self.queue.memory();
        let memory_max = (1 + priorities.len()) * SMALL_SEGMENT_BYTES + TABLE_BYTES_MAX;
        assert!(memory <= memory_max, "an empty queue holds {memory} bytes");
        let mut shared = self.samples.iter().filter(|sample| sample.is_shared());
        assert!(shared.all(|sample| sample.body.is_unique()));
        self.queue.check_all_is_settled();
        let Some(storage) = &self.storage else { return };
        assert!(storage.dying.is_empty());
        assert!(storage.fetched.is_empty() && storage.kept.are_bodies_unique());
    }

    pub(super) fn has_dead_letters(&self) -> bool {
        self.storage.as_ref().is_some_and(|storage| !storage.dying.is_empty())
    }

    /// Forgets what was read and not taken in.
    pub(super) fn forget_fetched(&mut self) {
        if let Some(storage) = &mut self.storage {
            storage.fetched.clear();
        }
    }
}
