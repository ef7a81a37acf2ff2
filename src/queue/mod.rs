//! The queue: a synchronous state machine without IO, clock or locks inside.
//!
//! Owns the messages of one queue, their order, who gets which, and the queue's limits. Commands
//! are methods; what the outside has to do about them comes out in [`Effects`]. It must not know
//! of connections, channels, sockets or the store, and nothing here can fail.
//!
//! The order of a drive (see `broker::queue_cell`): any number of commands, then
//! [`Queue::checkout`], then the driver encodes [`Effects::deliveries`] while the content is still
//! there, then [`Queue::finish`]. An unknown slot or consumer is a no-op, so that races between
//! settling, cancelling and closing need no special case.
//!
//! Invariants: each message is in exactly one of ready, unsettled, gone; messages leave in order
//! of arrival, and one that came back leaves in its original place; limits hold after each
//! checkout; a consumer never holds more than its prefetch.

mod consumers;
mod lane;
mod segment;
mod spec;
mod unacked;

#[cfg(test)]
mod model_tests;

pub(crate) use consumers::{ConsumerKey, ConsumerSpec, Gate, Pass};
pub use segment::{Body, Content, SHARED_BODY_MIN};
pub(crate) use spec::{Limits, Overflow, check_arguments, check_equivalence};
pub(crate) use unacked::Slot;
#[cfg(test)]
pub(crate) use unacked::test_slot;

use consumers::Consumers;
use lane::{Lane, Location, Spares, Taken};
use unacked::{Unacked, Unsettled};

/// Where the content of a delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Handed off directly: still with the publisher, under the token given to
    /// [`Queue::enqueue`].
    Staged(u32),
    /// In the queue: see [`Queue::content`].
    Stored(Location),
}

/// A message assigned to a consumer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    pub(crate) consumer: ConsumerKey,
    pub(crate) origin: Origin,
    /// What settles it; `None` when the consumer does not acknowledge.
    pub(crate) slot: Option<Slot>,
    pub(crate) redelivered: bool,
    /// Whether the channel's shared prefetch limit counted it.
    pub(crate) counted: bool,
}

/// A message taken by `basic.get`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Got {
    location: Location,
    /// What settles it; `None` when it needs no acknowledgement.
    pub(crate) slot: Option<Slot>,
    pub(crate) redelivered: bool,
}

/// What the driver of a queue has to do. Reused between drives; nothing is allocated in the steady
/// state.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Messages to encode for consumers, in order.
    pub(crate) deliveries: Vec<Delivery>,
    /// Tokens of publishes that the queue refused (`x-overflow` is `reject-publish`).
    pub(crate) rejected: Vec<u32>,
    /// Consumers that used up their byte window and take no more until [`Queue::grant`].
    pub(crate) exhausted: Vec<ConsumerKey>,
    spares: Spares,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Queue {
    limits: Limits,
    lane: Lane,
    unacked: Unacked,
    consumers: Consumers,
    /// Bytes of the bodies that are ready.
    ready_bytes: u64,
    /// What delivering all ready messages would cost (see [`Content::cost`]).
    ready_cost: u64,
}

impl Queue {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            lane: Lane::new(),
            unacked: Unacked::default(),
            consumers: Consumers::default(),
            ready_bytes: 0,
            ready_cost: 0,
        }
    }

    /// Whether a message may be dropped or refused for want of room.
    pub(crate) fn is_limited(&self) -> bool {
        self.limits.are_set()
    }

    /// Messages that wait for a consumer.
    pub(crate) fn ready(&self) -> usize {
        self.lane.ready()
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
        self.lane.memory() + self.unacked.memory()
    }

    /// Takes a message at the tail, or hands it off directly when nothing waits before it and the
    /// next consumer needs no acknowledgement. `token` names the message to the driver.
    pub(crate) fn enqueue(&mut self, content: &Content<'_>, token: u32, effects: &mut Effects) {
        let body_len = content.body.size() as u64;
        let limited = self.limits.are_set();
        if limited {
            // A consumer with credit makes room first, so that batching changes nothing.
            self.assign(effects);
            if self.limits.refuses(self.ready(), self.ready_bytes, body_len) {
                effects.rejected.push(token);
                return;
            }
        }
        if self.lane.ready() == 0 && self.consumers.next_is_no_ack() {
            let choice = self.consumers.choose(content.cost(), &mut effects.exhausted);
            let choice = choice.expect("there is a next one");
            effects.deliveries.push(Delivery {
                consumer: choice.key,
                origin: Origin::Staged(token),
                slot: None,
                redelivered: false,
                counted: false,
            });
            return;
        }
        self.lane.push(content, &mut effects.spares);
        self.ready_bytes += body_len;
        self.ready_cost += u64::from(content.cost());
        if limited {
            self.checkout(effects);
        }
    }

    /// Assigns ready messages to consumers with credit, then drops from the head what exceeds the
    /// limits. Called once after a batch of commands.
    pub(crate) fn checkout(&mut self, effects: &mut Effects) {
        self.assign(effects);
        while self.limits.are_exceeded(self.ready(), self.ready_bytes) {
            let head = self.take().expect("a limit is exceeded by something");
            self.lane.settle(head.location, &mut effects.spares);
        }
    }

    fn assign(&mut self, effects: &mut Effects) {
        while let Some(cost) = self.lane.peek_cost() {
            let choice = self.consumers.choose(cost, &mut effects.exhausted);
            let Some(choice) = choice else { return };
            let message = self.take().expect("peeked above");
            let slot = (!choice.no_ack)
                .then(|| self.unacked.insert(Unsettled { message, consumer: Some(choice.key) }));
            effects.deliveries.push(Delivery {
                consumer: choice.key,
                origin: Origin::Stored(message.location),
                slot,
                redelivered: message.returns > 0,
                counted: choice.counted,
            });
        }
    }

    fn take(&mut self) -> Option<Taken> {
        let message = self.lane.pop()?;
        self.ready_bytes -= u64::from(message.body_len);
        self.ready_cost -= u64::from(message.cost);
        Some(message)
    }

    /// Lets go of what was delivered without acknowledgement, once the driver has encoded the
    /// deliveries, and clears them.
    pub(crate) fn finish(&mut self, effects: &mut Effects) {
        for delivery in effects.deliveries.drain(..) {
            if let (Origin::Stored(location), None) = (delivery.origin, delivery.slot) {
                self.lane.settle(location, &mut effects.spares);
            }
        }
    }

    /// The content of a delivery that was not handed off.
    pub(crate) fn content(&self, location: Location) -> Content<'_> {
        self.lane.content(location)
    }

    /// `basic.get`: takes the first message, if any. The driver encodes [`Queue::got_content`] and
    /// then calls [`Queue::finish_get`].
    pub(crate) fn get(&mut self, no_ack: bool) -> Option<Got> {
        let message = self.take()?;
        let slot = (!no_ack).then(|| self.unacked.insert(Unsettled { message, consumer: None }));
        Some(Got { location: message.location, slot, redelivered: message.returns > 0 })
    }

    pub(crate) fn got_content(&self, got: &Got) -> Content<'_> {
        self.lane.content(got.location)
    }

    pub(crate) fn finish_get(&mut self, got: &Got, effects: &mut Effects) {
        if got.slot.is_none() {
            self.lane.settle(got.location, &mut effects.spares);
        }
    }

    /// A delivered message is done with (`basic.ack`, or rejected without requeue).
    pub(crate) fn settle(&mut self, slot: Slot, effects: &mut Effects) {
        if let Some(Unsettled { message, consumer }) = self.unacked.remove(slot) {
            self.lane.settle(message.location, &mut effects.spares);
            if let Some(key) = consumer {
                self.consumers.give_credit(key);
            }
        }
    }

    /// A delivered message comes back to its original place.
    pub(crate) fn put_back(&mut self, slot: Slot) {
        if let Some(Unsettled { message, consumer }) = self.unacked.remove(slot) {
            self.lane.put_back(message);
            self.ready_bytes += u64::from(message.body_len);
            self.ready_cost += u64::from(message.cost);
            if let Some(key) = consumer {
                self.consumers.give_credit(key);
            }
        }
    }

    pub(crate) fn subscribe(&mut self, spec: ConsumerSpec) -> ConsumerKey {
        self.consumers.add(spec)
    }

    /// Removes a consumer; what it holds stays unsettled. `false` when it is gone already.
    pub(crate) fn cancel(&mut self, key: ConsumerKey) -> bool {
        self.consumers.remove(key)
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
        self.lane.clear(&mut effects.spares)
    }

    /// Checks what must hold between drives; for tests.
    #[cfg(any(test, debug_assertions))]
    pub(crate) fn check_invariants(&self) {
        self.lane.check_invariants(self.unacked.len());
        self.consumers.check_invariants();
        assert!(!self.limits.are_exceeded(self.ready(), self.ready_bytes));
        assert!(self.ready() > 0 || (self.ready_bytes == 0 && self.ready_cost == 0));
    }
}
