//! The queue: a synchronous state machine without IO, clock or locks inside.
//!
//! Owns the messages of one queue, their order, who gets which, and the queue's limits. Commands
//! are methods; what the outside has to do about them comes out in [`Effects`]. It must not know
//! of connections, channels, sockets or the store, and nothing here can fail.
//!
//! The order of a drive (see `broker::queue_cell`): any number of commands, then
//! [`Queue::checkout`], then the driver encodes [`Effects::deliveries`] and copies
//! [`Effects::dead`] while the content is still there, then [`Queue::finish`]; when no consumer
//! has room any more, [`Queue::expire`] ends it. An unknown slot or consumer is a no-op, so that
//! races between settling, cancelling and closing need no special case.
//!
//! Invariants: each message is in exactly one of ready, unsettled, gone; messages leave in order
//! of arrival within their priority, and one that came back leaves in its original place; what has
//! expired is never delivered; limits hold after each checkout, unless so much is to be dropped
//! that it takes several drives; a consumer never holds more than its prefetch.

mod arguments;
mod consumers;
mod dedup;
mod duplicates;
mod durability;
mod effects;
mod expiry;
mod lane;
mod lanes;
mod records;
mod segment;
mod settings;
mod unacked;
mod window;

#[cfg(test)]
mod model_tests;

pub(crate) use arguments::{EXPIRY_MAX_MS, check_arguments, check_equivalence, check_kind};
pub(crate) use consumers::{ConsumerKey, ConsumerSpec, Gate, Pass};
pub(crate) use dedup::Dedup;
pub(crate) use effects::{Delivery, Effects, Got, Origin, Overdue, Reason};
pub(crate) use expiry::parse_expiration;
pub(crate) use lane::Place;
pub(crate) use records::{LaneHead, Mark, Records, Run, body_number, record_len};
pub use segment::{Body, Content, FANNED_BODY_MIN, LARGE_DISCOUNT, SHARED_BODY_MIN};
pub(crate) use settings::{Kind, Overflow, Settings};
pub(crate) use unacked::Slot;
#[cfg(test)]
pub(crate) use unacked::test_slot;
pub(crate) use window::{Loaded, StoredRun, Wanted};

use consumers::Consumers;
use duplicates::Duplicates;
use effects::Dead;
use lane::{Head, Location, Taken};
use lanes::Lanes;
use unacked::{Unacked, Unsettled};

use crate::clock::Millis;
use crate::codec::properties::{EXPIRATION, Properties};

/// Messages that may expire in one drive. The rest waits for the next, so that a long backlog that
/// expires at once holds up nobody else.
const EXPIRIES_MAX: usize = if cfg!(test) { 64 } else { 1024 };

/// Messages that may be dropped for want of room in one drive. More than a batch can add, so that
/// only a limit that was lowered takes several drives.
const DROPS_MAX: usize = if cfg!(test) { 96 } else { 16 * 1024 };

/// Bytes of dead letters that may leave in one drive, for they are copied.
const DEAD_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Unsettled deliveries are looked through for overdue ones at most this often (milliseconds).
const OVERDUE_LOOK_MS: u64 = 100;

/// So much is here at least of what is delivered next, while consumers take it (bytes).
const READ_AHEAD_BYTES: usize = if cfg!(test) { 2048 } else { 1024 * 1024 };

/// Why no message can be taken yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotYet {
    /// More has expired than one drive may take out.
    Behind,
    /// The next message is in the store only: see [`Queue::wanted`].
    Absent,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Queue {
    settings: Settings,
    lanes: Lanes,
    unacked: Unacked,
    consumers: Consumers,
    /// Bytes of the bodies that are ready.
    ready_bytes: u64,
    /// What delivering all ready messages would cost (see [`Content::cost`]).
    ready_cost: u64,
    /// When to look for deliveries that are overdue; none is before.
    overdue_look: Option<Millis>,
    /// More is to be dropped than one drive may.
    is_behind: bool,
    /// There is a store for its messages.
    is_durable: bool,
    duplicates: Option<Duplicates>,
}

impl Queue {
    /// An empty queue, whose messages last as long as it does.
    pub(crate) fn new(settings: Settings) -> Self {
        Self::with_store(settings, false)
    }

    /// An empty queue. If it is durable, its driver hands over to a store what
    /// [`Queue::hand_over`] says.
    pub(crate) fn with_store(settings: Settings, is_durable: bool) -> Self {
        Self {
            lanes: Lanes::new(&settings, is_durable),
            is_durable,
            unacked: Unacked::default(),
            consumers: Consumers::new(settings.single_active_consumer),
            ready_bytes: 0,
            ready_cost: 0,
            overdue_look: None,
            is_behind: false,
            duplicates: settings.deduplication.as_ref().map(Duplicates::new),
            settings,
        }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Changes what policies can change. What waits keeps its expiry; limits hold from the next
    /// checkout on.
    pub(crate) fn configure(&mut self, settings: Settings, now: Millis) {
        debug_assert_eq!(
            (settings.kind, settings.priority_max, settings.single_active_consumer),
            (self.settings.kind, self.settings.priority_max, self.settings.single_active_consumer),
            "a queue keeps its structure"
        );
        self.settings = settings;
        self.is_behind = self.settings.are_exceeded(self.ready(), self.ready_bytes);
        self.overdue_look = self.consumer_timeout_ms().map(|_| now);
    }

    /// Messages that wait for a consumer.
    pub(crate) fn ready(&self) -> usize {
        self.lanes.ready()
    }

    /// Bytes that delivering all ready messages would take on the wire, roughly.
    pub(crate) fn backlog_bytes(&self) -> u64 {
        self.ready_cost
    }

    /// Messages that were delivered and are not settled.
    #[cfg(test)]
    pub(crate) fn unsettled(&self) -> usize {
        self.unacked.len()
    }

    pub(crate) fn consumer_count(&self) -> usize {
        self.consumers.len()
    }

    /// Bytes of memory held, shared bodies excepted (those account for themselves).
    pub(crate) fn memory(&self) -> usize {
        let duplicates = self.duplicates.as_ref().map_or(0, Duplicates::memory);
        self.lanes.memory() + self.unacked.memory() + duplicates
    }

    /// When [`Queue::look_for_overdue`] or another checkout is due, if nothing happens before.
    pub(crate) fn next_deadline(&self) -> Option<Millis> {
        if self.is_behind {
            return Some(Millis::default());
        }
        self.lanes.next_expiry().into_iter().chain(self.overdue_look).min()
    }

    /// Takes a message at the tail, or hands it off directly when nothing waits before it and the
    /// next consumer needs no acknowledgement. `token` names the message to the driver.
    pub(crate) fn enqueue(
        &mut self,
        content: &Content<'_>,
        token: u32,
        now: Millis,
        effects: &mut Effects,
    ) {
        let body_len = content.body.size() as u64;
        let limited = self.settings.is_limited();
        if limited {
            // A consumer with credit makes room first, so that batching changes nothing.
            self.assign(now, effects);
            if self.settings.refuses(self.ready(), self.ready_bytes, body_len) {
                effects.rejected.push(token);
                if self.settings.overflow == Some(Overflow::RejectPublishDlx) && self.has_dlx() {
                    let origin = Origin::Staged(token);
                    effects.dead.push(Dead { origin, reason: Reason::MaxLength });
                }
                return;
            }
        }
        let properties = Properties::of_header(content.header);
        if let Some(duplicates) = &mut self.duplicates {
            if duplicates.take(&properties, now) {
                effects.has_dropped_duplicate = true;
                return;
            }
        } else if self.lanes.ready() == 0 && self.consumers.next_is_no_ack() {
            let choice = self.consumers.choose(content.cost(), &mut effects.exhausted);
            let choice = choice.expect("there is a next one");
            effects.deliveries.push(Delivery {
                consumer: choice.key,
                origin: Origin::Staged(token),
                slot: None,
                returns: 0,
                counted: false,
            });
            return;
        }
        let priority = match self.lanes.have_priorities() {
            true => properties.priority().unwrap_or(0),
            false => 0,
        };
        let expiry = self.expiry(&properties, now);
        let stored =
            self.is_durable && (properties.is_persistent() || self.settings.kind == Kind::Quorum);
        self.lanes.push(content, priority, expiry, stored, &mut effects.spares);
        self.ready_bytes += body_len;
        self.ready_cost += u64::from(content.cost());
        if limited {
            self.checkout(now, effects);
        }
    }

    /// The shorter one of the queue's and the message's own time to live counts.
    fn expiry(&self, properties: &Properties<'_>, now: Millis) -> Option<Millis> {
        let own_ms = if properties.flags() & EXPIRATION != 0 {
            // It was checked when it was published.
            properties.expiration().and_then(|text| parse_expiration(text).ok())
        } else {
            None
        };
        let ttl_ms = self.settings.message_ttl_ms.into_iter().chain(own_ms).min();
        ttl_ms.map(|ttl_ms| Millis(now.0.saturating_add(ttl_ms)))
    }

    fn has_dlx(&self) -> bool {
        self.settings.dead_letter_exchange.is_some()
    }

    /// Assigns ready messages to consumers with credit, then drops from the head what exceeds the
    /// limits. Called once after a batch of commands, and again when consumers got room.
    pub(crate) fn checkout(&mut self, now: Millis, effects: &mut Effects) {
        self.assign(now, effects);
        self.is_behind = false;
        while self.settings.are_exceeded(self.ready(), self.ready_bytes) {
            if effects.drops == DROPS_MAX || effects.dead_bytes > DEAD_BYTES_MAX {
                self.is_behind = true;
                return;
            }
            // What is not here is dropped when it is.
            let Some(head) = self.take() else { return };
            effects.drops += 1;
            self.discard(head, Reason::MaxLength, effects);
        }
    }

    /// Ends a drive: what has expired leaves. A message that expires at once (a time to live of 0)
    /// has had its chance of being delivered by then.
    pub(crate) fn expire(&mut self, now: Millis, effects: &mut Effects) {
        while effects.may_expire_more()
            && let Some(message) = self.lanes.pop_expired(now)
        {
            effects.expiries += 1;
            self.uncount(&message);
            self.discard(message, Reason::Expired, effects);
        }
    }

    fn assign(&mut self, now: Millis, effects: &mut Effects) {
        while let Some(head) = self.lanes.peek() {
            if head.expiry.is_some_and(|expiry| expiry < now) {
                if !effects.may_expire_more() {
                    return;
                }
                effects.expiries += 1;
                let message = self.take().expect("peeked above");
                self.discard(message, Reason::Expired, effects);
                continue;
            }
            let choice = self.consumers.choose(head.cost, &mut effects.exhausted);
            let Some(choice) = choice else { return };
            let message = self.take().expect("peeked above");
            let slot = (!choice.no_ack).then(|| self.hold(message, Some(choice.key), now));
            effects.deliveries.push(Delivery {
                consumer: choice.key,
                origin: Origin::Stored(message.location),
                slot,
                returns: message.returns,
                counted: choice.counted,
            });
        }
    }

    fn take(&mut self) -> Option<Taken> {
        let message = self.lanes.pop()?;
        self.uncount(&message);
        Some(message)
    }

    fn uncount(&mut self, message: &Taken) {
        self.ready_bytes -= u64::from(message.body_len);
        self.ready_cost -= u64::from(message.cost);
    }

    fn consumer_timeout_ms(&self) -> Option<u64> {
        self.settings.consumer_timeout_ms.filter(|timeout_ms| *timeout_ms > 0)
    }

    fn hold(&mut self, message: Taken, consumer: Option<ConsumerKey>, now: Millis) -> Slot {
        if self.overdue_look.is_none() {
            let due = |timeout_ms| Millis(now.0.saturating_add(timeout_ms));
            self.overdue_look = self.consumer_timeout_ms().map(due);
        }
        self.unacked.insert(Unsettled { message, consumer, since: now })
    }

    /// Lets go of a message that was taken; where dead letters are wanted, when it was copied.
    fn discard(&mut self, message: Taken, reason: Reason, effects: &mut Effects) {
        if self.has_dlx() {
            effects.dead_bytes += message.body_len as usize;
            let origin = Origin::Stored(message.location);
            effects.dead.push(Dead { origin, reason });
        } else {
            self.let_go(message.location, effects);
        }
    }

    /// Lets go of what was delivered without acknowledgement and of dead letters, once the driver
    /// has encoded and copied them, and clears both.
    pub(crate) fn finish(&mut self, effects: &mut Effects) {
        for index in 0..effects.deliveries.len() {
            let Delivery { origin, slot, .. } = effects.deliveries[index];
            if let (Origin::Stored(location), None) = (origin, slot) {
                self.let_go(location, effects);
            }
        }
        effects.deliveries.clear();
        for index in 0..effects.dead.len() {
            if let Origin::Stored(location) = effects.dead[index].origin {
                self.tell_duplicates(location);
                self.lanes.let_die(location, &mut effects.spares);
            }
        }
        effects.dead.clear();
    }

    /// What the store knows a message by, whose origin is here, if it knows it. Of a dead letter it
    /// keeps the message until [`Queue::bury`].
    pub(crate) fn place(&self, location: Location) -> Option<Place> {
        self.lanes.place(location)
    }

    /// Lets the store forget dead letters, now that it has their copies.
    pub(crate) fn bury(&mut self, dead: &[Place]) {
        dead.iter().for_each(|place| self.lanes.bury(place));
    }

    /// Lets go of a message that was taken, for good.
    fn let_go(&mut self, location: Location, effects: &mut Effects) {
        self.tell_duplicates(location);
        self.lanes.settle(location, &mut effects.spares);
    }

    fn tell_duplicates(&mut self, location: Location) {
        if let Some(duplicates) = &mut self.duplicates {
            duplicates.left(self.lanes.content(location).header);
        }
    }

    /// The content of a message whose origin is here.
    pub(crate) fn content(&self, location: Location) -> Content<'_> {
        self.lanes.content(location)
    }

    /// `basic.get`: takes the first message, if any. The driver encodes [`Queue::got_content`] and
    /// then calls [`Queue::finish_get`].
    ///
    /// # Errors
    /// See [`NotYet`].
    pub(crate) fn get(
        &mut self,
        no_ack: bool,
        now: Millis,
        effects: &mut Effects,
    ) -> Result<Option<Got>, NotYet> {
        let has_expired = |head: Head| head.expiry.is_some_and(|expiry| expiry <= now);
        while self.lanes.peek().is_some_and(has_expired) {
            if !effects.may_expire_more() {
                return Err(NotYet::Behind);
            }
            effects.expiries += 1;
            let message = self.take().expect("peeked above");
            self.discard(message, Reason::Expired, effects);
        }
        let Some(message) = self.take() else {
            return if self.ready() > 0 { Err(NotYet::Absent) } else { Ok(None) };
        };
        let slot = (!no_ack).then(|| self.hold(message, None, now));
        Ok(Some(Got { location: message.location, slot, returns: message.returns }))
    }

    pub(crate) fn got_content(&self, got: &Got) -> Content<'_> {
        self.lanes.content(got.location)
    }

    pub(crate) fn finish_get(&mut self, got: &Got, effects: &mut Effects) {
        if got.slot.is_none() {
            self.let_go(got.location, effects);
        }
    }

    /// A delivered message is done with (`basic.ack`).
    pub(crate) fn settle(&mut self, slot: Slot, effects: &mut Effects) {
        if let Some(message) = self.release(slot) {
            self.let_go(message.location, effects);
        }
    }

    /// A delivered message is refused for good (`basic.reject` or `basic.nack` without requeue).
    pub(crate) fn reject(&mut self, slot: Slot, effects: &mut Effects) {
        if let Some(message) = self.release(slot) {
            self.discard(message, Reason::Rejected, effects);
        }
    }

    /// A delivered message comes back to its original place, unless it did so too often.
    pub(crate) fn put_back(&mut self, slot: Slot, effects: &mut Effects) {
        let Some(message) = self.release(slot) else { return };
        if self.settings.delivery_limit.is_some_and(|limit| message.returns >= limit) {
            self.discard(message, Reason::DeliveryLimit, effects);
            return;
        }
        self.lanes.put_back(message);
        self.ready_bytes += u64::from(message.body_len);
        self.ready_cost += u64::from(message.cost);
    }

    /// Takes a message out of its slot, whose consumer may have another one.
    fn release(&mut self, slot: Slot) -> Option<Taken> {
        let Unsettled { message, consumer, .. } = self.unacked.remove(slot)?;
        if let Some(key) = consumer {
            self.consumers.give_credit(key);
        }
        Some(message)
    }

    pub(crate) fn subscribe(&mut self, spec: ConsumerSpec) -> ConsumerKey {
        self.consumers.add(spec)
    }

    /// Removes a consumer; what it holds stays unsettled. `false` when it is gone already.
    pub(crate) fn cancel(&mut self, key: ConsumerKey) -> bool {
        self.consumers.remove(key)
    }

    pub(crate) fn is_consumer(&self, key: ConsumerKey) -> bool {
        self.consumers.contains(key)
    }

    /// Whether a delivery is still to be settled.
    pub(crate) fn holds(&self, slot: Slot) -> bool {
        self.unacked.contains(slot)
    }

    /// Whether a consumer has anything to settle.
    pub(crate) fn holds_for(&self, key: ConsumerKey) -> bool {
        self.consumers.held(key) > 0
    }

    /// What a consumer is to settle.
    pub(crate) fn held_by(&self, key: ConsumerKey) -> impl Iterator<Item = Slot> {
        let held = self.unacked.iter().filter(move |(_, held)| held.consumer == Some(key));
        held.map(|(slot, _)| slot)
    }

    /// Puts back everything that a consumer holds.
    pub(crate) fn put_back_all(&mut self, key: ConsumerKey, effects: &mut Effects) {
        let slots: Vec<Slot> = self.held_by(key).collect();
        slots.into_iter().for_each(|slot| self.put_back(slot, effects));
    }

    /// Finds the deliveries that have been unsettled for longer than the consumer timeout, when it
    /// is time to look for them.
    pub(crate) fn look_for_overdue(&mut self, now: Millis, effects: &mut Effects) {
        if self.overdue_look.is_none_or(|look| look > now) {
            return;
        }
        self.overdue_look = None;
        let Some(timeout_ms) = self.consumer_timeout_ms() else { return };
        let earliest = Millis(now.0 + OVERDUE_LOOK_MS);
        for (slot, unsettled) in self.unacked.iter() {
            let due = Millis(unsettled.since.0.saturating_add(timeout_ms));
            if due <= now {
                effects.overdue.push(Overdue { slot, consumer: unsettled.consumer });
            } else {
                let look = due.max(earliest);
                self.overdue_look = Some(self.overdue_look.map_or(look, |old| old.min(look)));
            }
        }
    }

    /// Fills a consumer's byte window.
    pub(crate) fn grant(&mut self, key: ConsumerKey, window: u32) {
        self.consumers.grant(key, window);
    }

    /// Lets consumers that their channel's shared limit had stopped try again.
    pub(crate) fn reopen(&mut self) {
        self.consumers.reopen();
    }

    /// Drops all ready messages; returns how many there were.
    pub(crate) fn purge(&mut self, effects: &mut Effects) -> usize {
        self.ready_bytes = 0;
        self.ready_cost = 0;
        self.is_behind = false;
        let count = self.lanes.clear(&mut effects.spares);
        if let Some(duplicates) = &mut self.duplicates {
            let held = self.unacked.iter().map(|(_, held)| held.message.location);
            duplicates.all_left_but(held.map(|location| self.lanes.content(location).header));
        }
        count
    }

    /// Checks what must hold between drives; for tests.
    #[cfg(any(test, debug_assertions))]
    pub(crate) fn check_invariants(&self) {
        let in_lane = |lane| {
            let taken = self.unacked.iter().filter(|(_, held)| held.message.location.lane == lane);
            taken.count()
        };
        self.lanes.check_invariants(in_lane);
        self.consumers.check_invariants();
        let may_exceed = self.is_behind || self.lanes.is_head_absent();
        assert!(may_exceed || !self.settings.are_exceeded(self.ready(), self.ready_bytes));
        assert!(self.ready() > 0 || (self.ready_bytes == 0 && self.ready_cost == 0));
    }
}
