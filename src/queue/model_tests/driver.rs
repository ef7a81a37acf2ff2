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
use crate::queue::segment::SMALL_SEGMENT_BYTES;
use crate::queue::{
    Body, ConsumerKey, ConsumerSpec, Content, Delivery, Effects, Gate, Origin, Pass, Queue,
    SHARED_BODY_MIN, Settings, Slot,
};

use super::history::{ConsumerPick, Payload, Pick, Step, Subscription};
use super::{Command, Counts, Delivered, Outcome};

const NOW: Millis = Millis(0);

/// What a queue that was emptied may keep: its first segment and a table of unsettled messages.
const EMPTY_BYTES_MAX: usize = SMALL_SEGMENT_BYTES + 1024 * 64;

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
    times_delivered: u32,
}

impl Sample {
    /// The message's number stands in its routing key, and each byte of the rest depends on it.
    fn new(number: usize, payload: &Payload) -> Self {
        let seed = number as u8;
        let mut address = vec![0, 4 + payload.key_pad as u8];
        address.extend((number as u32).to_be_bytes());
        address.resize(address.len() + payload.key_pad, seed);
        // No property is flagged; what follows is nobody's.
        let mut header = vec![0; Payload::HEADER_FIXED];
        header.resize(header.len() + payload.header_pad, seed ^ 0x55);
        let body = Bytes::from(vec![seed ^ 0xAA; payload.body_len]);
        Self { address, header, body, times_delivered: 0 }
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
    effects: Effects,
    gate: Arc<SharedLimit>,
    /// By the number of the message.
    samples: Vec<Sample>,
    /// By the number of the consumer, those who are gone included.
    members: Vec<Member>,
    /// By the number of the delivery, the settled ones included.
    slots: Vec<Slot>,
    outstanding: Vec<Outstanding>,
}

impl Driver {
    pub(super) fn new(settings: Settings, gate_limit: u32) -> Self {
        Self {
            queue: Queue::new(settings),
            effects: Effects::default(),
            gate: Arc::new(SharedLimit { limit: gate_limit, used: AtomicU32::new(0) }),
            samples: Vec::new(),
            members: Vec::new(),
            slots: Vec::new(),
            outstanding: Vec::new(),
        }
    }

    /// What a step means at this moment; `None` when there is nothing that it could mean.
    pub(super) fn resolve(&self, step: &Step) -> Option<Command> {
        Some(match step {
            Step::Commit { settles, publishes } => {
                let settled = settles.iter().flat_map(|pick| self.resolve_pick(*pick)).collect();
                Command::Commit { settled, published: publishes.clone() }
            }
            Step::Burst { count } => {
                let payload = Payload { body_len: 8, key_pad: 0, header_pad: 0 };
                let published = vec![payload; usize::from(*count)];
                Command::Commit { settled: Vec::new(), published }
            }
            Step::SettleAll { requeue } => {
                let all = self.outstanding.iter().map(|it| (it.delivery, *requeue));
                Command::Commit { settled: all.collect(), published: Vec::new() }
            }
            Step::Subscribe(subscription) => Command::Subscribe(*subscription),
            Step::Cancel(pick) => Command::Cancel(self.resolve_consumer(*pick)?),
            Step::Get { no_ack } => Command::Get { no_ack: *no_ack },
            Step::Purge => Command::Purge,
            Step::Grant { consumer, window } => {
                Command::Grant { consumer: self.resolve_consumer(*consumer)?, window: *window }
            }
            Step::Reopen => Command::Reopen,
        })
    }

    fn resolve_pick(&self, pick: Pick) -> Vec<(usize, bool)> {
        let choice: Vec<usize> = if pick.stale {
            (0..self.slots.len()).map(|delivery| self.current(delivery)).collect()
        } else {
            self.outstanding.iter().map(|it| it.delivery).collect()
        };
        if choice.is_empty() {
            return Vec::new();
        }
        let start = usize::from(pick.at) % choice.len();
        let run = choice.iter().cycle().skip(start).take(usize::from(pick.count));
        let times = if pick.twice { 2 } else { 1 };
        run.flat_map(|it| std::iter::repeat_n((*it, pick.requeue), times)).collect()
    }

    /// A message that was requeued and delivered again may have the same slot as before: the old
    /// delivery's slot then names the new delivery.
    fn current(&self, delivery: usize) -> usize {
        let mut others = self.outstanding.iter().map(|it| it.delivery);
        others.find(|other| self.slots[*other] == self.slots[delivery]).unwrap_or(delivery)
    }

    fn resolve_consumer(&self, pick: ConsumerPick) -> Option<usize> {
        let members = self.members.iter().enumerate();
        let choice: Vec<usize> =
            members.filter(|(_, it)| pick.stale || !it.is_cancelled).map(|(at, _)| at).collect();
        choice.get(usize::from(pick.at) % choice.len().max(1)).copied()
    }

    pub(super) fn apply(&mut self, command: &Command) -> Outcome {
        let mut outcome = Outcome::default();
        match command {
            Command::Commit { settled, published } => {
                self.commit(settled, published, &mut outcome);
            }
            Command::Subscribe(subscription) => {
                self.subscribe(*subscription);
                self.dispatch(0, &mut outcome);
            }
            Command::Cancel(consumer) => {
                let member = &mut self.members[*consumer];
                assert_eq!(self.queue.cancel(member.key), !member.is_cancelled);
                member.is_cancelled = true;
            }
            Command::Get { no_ack } => outcome.got = self.take_one(*no_ack),
            Command::Purge => outcome.purged = self.queue.purge(&mut self.effects),
            Command::Grant { consumer, window } => {
                self.queue.grant(self.members[*consumer].key, *window);
                self.dispatch(0, &mut outcome);
            }
            Command::Reopen => {
                self.queue.reopen();
                self.dispatch(0, &mut outcome);
            }
        }
        outcome.counts = Counts {
            ready: self.queue.ready(),
            unsettled: self.queue.unsettled(),
            consumers: self.queue.consumer_count(),
            backlog_bytes: self.queue.backlog_bytes(),
        };
        outcome
    }

    fn subscribe(&mut self, subscription: Subscription) {
        let gate = if subscription.is_gated { self.gate.clone() } else { Arc::default() };
        let Subscription { no_ack, prefetch, priority, window, .. } = subscription;
        let key = self.queue.subscribe(ConsumerSpec { no_ack, prefetch, priority, window, gate });
        self.members.push(Member { key, subscription, is_cancelled: false });
    }

    fn commit(&mut self, settled: &[(usize, bool)], published: &[Payload], out: &mut Outcome) {
        for (delivery, requeue) in settled {
            if let Some(at) = self.outstanding.iter().position(|it| it.delivery == *delivery) {
                let it = self.outstanding.remove(at);
                self.gate.used.fetch_sub(u32::from(it.is_counted), Ordering::Relaxed);
            }
            let slot = self.slots[*delivery];
            if *requeue {
                self.queue.put_back(slot, &mut self.effects);
            } else {
                self.queue.settle(slot, &mut self.effects);
            }
        }
        let first = self.samples.len();
        for (number, payload) in (first..).zip(published) {
            self.samples.push(Sample::new(number, payload));
        }
        let is_limited = self.queue.settings().is_limited();
        if is_limited {
            self.dispatch(first, out);
        }
        for (token, number) in (0..).zip(first..self.samples.len()) {
            let content = self.samples[number].content();
            self.queue.enqueue(&content, token, NOW, &mut self.effects);
            if is_limited && !self.effects.exhausted.is_empty() {
                self.dispatch(first, out);
            }
        }
        self.dispatch(first, out);
        let rejected = self.effects.rejected.drain(..);
        out.rejected.extend(rejected.map(|token| first + token as usize));
    }

    /// Tokens count from the message `first`.
    fn dispatch(&mut self, first: usize, out: &mut Outcome) {
        loop {
            self.queue.checkout(NOW, &mut self.effects);
            for delivery in self.effects.deliveries.clone() {
                self.encode(&delivery, first, out);
            }
            self.queue.finish(&mut self.effects);
            assert!(self.effects.deliveries.is_empty());
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
                return;
            }
        }
    }

    fn encode(&mut self, delivery: &Delivery, first: usize, out: &mut Outcome) {
        let (consumer, member) = self.find(delivery.consumer);
        assert_eq!(delivery.slot.is_none(), member.subscription.no_ack);
        let message = match delivery.origin {
            Origin::Staged(token) => first + token as usize,
            Origin::Stored(at) => recognise(&self.samples, &self.queue.content(at)),
        };
        let is_counted = delivery.counted;
        let settled_by =
            self.note(message, delivery.slot, delivery.returns > 0, Some(consumer), is_counted);
        out.deliveries.push(Delivered {
            consumer,
            message,
            redelivered: delivery.returns > 0,
            delivery: settled_by,
            is_counted,
        });
    }

    fn take_one(&mut self, no_ack: bool) -> Option<(usize, bool, Option<usize>)> {
        let got = self.queue.get(no_ack, NOW, &mut self.effects)?;
        assert_eq!(got.slot.is_none(), no_ack);
        let message = recognise(&self.samples, &self.queue.got_content(&got));
        self.queue.finish_get(&got, &mut self.effects);
        Some((message, got.returns > 0, self.note(message, got.slot, got.returns > 0, None, false)))
    }

    /// Notes a delivery; answers the number that settles it, if anything needs to.
    fn note(
        &mut self,
        message: usize,
        slot: Option<Slot>,
        redelivered: bool,
        consumer: Option<usize>,
        is_counted: bool,
    ) -> Option<usize> {
        let sample = &mut self.samples[message];
        let was_delivered = sample.times_delivered > 0;
        assert_eq!(redelivered, was_delivered, "message {message} says whether it is new");
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

    /// Checks what must hold after each command, whatever it was. `holds` tells which messages
    /// should still be there.
    pub(super) fn check(&self, holds: impl Fn(usize) -> bool) {
        self.queue.check_invariants();
        let slots: BTreeSet<String> =
            self.outstanding.iter().map(|it| format!("{:?}", self.slots[it.delivery])).collect();
        assert_eq!(slots.len(), self.outstanding.len(), "slots name one delivery each");
        for (consumer, member) in self.members.iter().enumerate() {
            let prefetch = member.subscription.prefetch as usize;
            let held = self.outstanding.iter().filter(|it| it.consumer == Some(consumer)).count();
            assert!(prefetch == 0 || held <= prefetch, "consumer {consumer} holds {held}");
        }
        let used = self.gate.used.load(Ordering::Relaxed);
        assert!(self.gate.limit == 0 || used <= self.gate.limit, "{used} went through the gate");
        for (number, sample) in self.samples.iter().enumerate().filter(|(_, it)| it.is_shared()) {
            assert_eq!(!sample.body.is_unique(), holds(number), "the body of message {number}");
        }
    }

    /// Checks that a queue in which nothing is left has let go of everything.
    pub(super) fn check_empty(&self) {
        assert_eq!((self.queue.ready(), self.queue.unsettled()), (0, 0));
        assert_eq!(self.queue.backlog_bytes(), 0);
        assert_eq!(self.gate.used.load(Ordering::Relaxed), 0);
        let memory = self.queue.memory();
        assert!(memory <= EMPTY_BYTES_MAX, "an empty queue holds {memory} bytes");
        let mut shared = self.samples.iter().filter(|sample| sample.is_shared());
        assert!(shared.all(|sample| sample.body.is_unique()));
    }
}
