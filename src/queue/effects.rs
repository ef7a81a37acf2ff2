//! What the driver of a queue has to do about what the queue decided.
//!
//! Owns plain data that is reused between drives, so that nothing is allocated in the steady state.
//! It must not decide anything.

use super::consumers::ConsumerKey;
use super::lane::{Location, Spares};
use super::unacked::Slot;
use super::{DEAD_BYTES_MAX, EXPIRIES_MAX};

/// Where the content of a delivery or a dead letter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Still with the publisher, under the token given to [`super::Queue::enqueue`].
    Staged(u32),
    /// In the queue: see [`super::Queue::content`].
    Stored(Location),
}

/// A message assigned to a consumer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    pub(crate) consumer: ConsumerKey,
    pub(crate) origin: Origin,
    /// What settles it; `None` when the consumer does not acknowledge.
    pub(crate) slot: Option<Slot>,
    /// How often the message was delivered and came back.
    pub(crate) returns: u32,
    /// Whether the channel's shared prefetch limit counted it.
    pub(crate) counted: bool,
}

/// A message taken by `basic.get`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Got {
    pub(super) location: Location,
    /// What settles it; `None` when it needs no acknowledgement.
    pub(crate) slot: Option<Slot>,
    /// How often the message was delivered and came back.
    pub(crate) returns: u32,
}

/// Why a message is dead-lettered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    /// A consumer rejected it.
    Rejected,
    /// It waited for longer than it may.
    Expired,
    /// There was no room for it.
    MaxLength,
    /// It came back too often.
    DeliveryLimit,
}

impl Reason {
    /// The word in `x-death`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::MaxLength => "maxlen",
            Self::DeliveryLimit => "delivery_limit",
        }
    }
}

/// A message that has left the queue and is to be dead-lettered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dead {
    pub(crate) origin: Origin,
    pub(crate) reason: Reason,
}

/// A delivery that has been unsettled for too long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overdue {
    pub(crate) slot: Slot,
    /// `None` for `basic.get`.
    pub(crate) consumer: Option<ConsumerKey>,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Messages to encode for consumers, in order.
    pub(crate) deliveries: Vec<Delivery>,
    /// Tokens of publishes that the queue refused (`x-overflow` is `reject-publish`).
    pub(crate) rejected: Vec<u32>,
    /// Consumers that used up their byte window and take no more until [`super::Queue::grant`].
    pub(crate) exhausted: Vec<ConsumerKey>,
    /// Messages to dead-letter, in order; only where the queue has a dead-letter exchange. The
    /// queue holds their content until [`super::Queue::finish`].
    pub(crate) dead: Vec<Dead>,
    /// Deliveries that their consumers have held for too long.
    pub(crate) overdue: Vec<Overdue>,
    /// Messages that expired, and messages dropped for want of room, in this drive so far.
    pub(super) expiries: usize,
    pub(super) drops: usize,
    /// Messages that the batch of this drive brings.
    expected: usize,
    /// Bytes of the bodies of dead letters in this drive so far.
    pub(super) dead_bytes: usize,
    pub(super) has_dropped_duplicate: bool,
    pub(super) spares: Spares,
}

impl Effects {
    /// Ends a drive: the next one may expire and drop as much again.
    pub(crate) fn end_drive(&mut self) {
        self.expiries = 0;
        self.drops = 0;
        self.expected = 0;
        self.dead_bytes = 0;
    }

    /// Lets as many more messages expire in this drive as a batch may bring.
    pub(crate) fn expect_messages(&mut self, count: usize) {
        self.expected = count;
    }

    /// The pieces of messages that were dropped while they were put aside.
    pub(crate) fn take_dropped_pieces(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.spares.dropped)
    }

    /// Whether a message was dropped as a duplicate of another since the last call.
    pub(crate) fn take_dropped_duplicate(&mut self) -> bool {
        std::mem::take(&mut self.has_dropped_duplicate)
    }

    pub(super) fn may_expire_more(&self) -> bool {
        self.expiries < EXPIRIES_MAX + self.expected && self.dead_bytes <= DEAD_BYTES_MAX
    }

    /// Whether no drive was left half done.
    pub(crate) fn is_idle(&self) -> bool {
        self.deliveries.is_empty() && self.exhausted.is_empty() && self.dead.is_empty()
    }
}
