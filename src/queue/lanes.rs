//! The lanes of one queue: one for each message priority that was used.
//!
//! Owns which lane a message goes to and which one the next message comes from. A queue without
//! priorities has one lane and pays nothing for the others. It knows nothing of consumers or
//! limits.
//!
//! Invariant: `ready` has the bit of a lane beyond the first exactly when that lane has messages
//! that can be taken, and `others_ready` is their number.

use crate::clock::Millis;

use super::lane::{Head, Lane, Location, Spares, Taken};
use super::segment::Content;
use super::settings::{Kind, Settings};

/// Of a quorum queue, so many messages of high priority go before one of normal priority, so that
/// neither starves (RabbitMQ 4.0).
const HIGH_IN_A_ROW: u8 = 2;

/// The least priority that is high in a quorum queue (RabbitMQ 4.0).
const HIGH_MIN: u8 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// One lane.
    Plain,
    /// The highest priority first, up to this one.
    Strict { max: u8 },
    /// Two lanes that share; the number of messages that the high one gave in a row, as far as it
    /// counts.
    Shared { in_a_row: u8 },
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Lanes {
    order: Order,
    first: Lane,
    /// The lane of each priority from 1 on, once it was used.
    others: Vec<Option<Box<Lane>>>,
    ready: [u64; 4],
    others_ready: usize,
}

impl Lanes {
    pub(super) fn new(settings: &Settings) -> Self {
        let order = match (settings.kind, settings.priority_max) {
            (Kind::Quorum, _) => Order::Shared { in_a_row: 0 },
            (Kind::Classic, None | Some(0)) => Order::Plain,
            (Kind::Classic, Some(max)) => Order::Strict { max },
        };
        let (others, ready) = (Vec::new(), [0; 4]);
        Self { order, first: Lane::new(0), others, ready, others_ready: 0 }
    }

    /// Whether priorities of messages are looked at.
    pub(super) fn have_priorities(&self) -> bool {
        self.order != Order::Plain
    }

    /// Messages that can be taken.
    pub(super) fn ready(&self) -> usize {
        self.first.ready() + self.others_ready
    }

    pub(super) fn memory(&self) -> usize {
        let others = self.others.iter().flatten().map(|lane| lane.memory()).sum::<usize>();
        self.first.memory() + others
    }

    /// Appends a message with this priority.
    pub(super) fn push(
        &mut self,
        content: &Content<'_>,
        priority: u8,
        expiry: Option<Millis>,
        spares: &mut Spares,
    ) {
        let number = match self.order {
            Order::Plain => 0,
            Order::Strict { max } => priority.min(max),
            Order::Shared { .. } => u8::from(priority >= HIGH_MIN),
        };
        if number == 0 {
            self.first.push(content, expiry, spares);
            return;
        }
        let index = usize::from(number) - 1;
        if self.others.len() <= index {
            self.others.resize_with(index + 1, || None);
        }
        let lane = self.others[index].get_or_insert_with(|| Box::new(Lane::new(number)));
        lane.push(content, expiry, spares);
        self.gained(number);
    }

    /// The first message in the order of delivery.
    pub(super) fn peek(&self) -> Option<Head> {
        self.lane(self.next()).peek()
    }

    /// Takes the first message in the order of delivery.
    pub(super) fn pop(&mut self) -> Option<Taken> {
        let number = self.next();
        let message = self.pop_from(number)?;
        if let Order::Shared { in_a_row } = &mut self.order {
            // No normal message may have waited: then there were more of high priority.
            *in_a_row = if number > 0 { (*in_a_row + 1).min(HIGH_IN_A_ROW) } else { 0 };
        }
        Some(message)
    }

    /// Takes a message that has expired, if one is the first of its lane; those of high priority
    /// first.
    pub(super) fn pop_expired(&mut self, now: Millis) -> Option<Taken> {
        let has_expired = |lane: &Lane| {
            lane.peek().is_some_and(|head| head.expiry.is_some_and(|expiry| expiry <= now))
        };
        let other = self.used().find(|number| has_expired(self.lane(*number)));
        let number = other.or_else(|| has_expired(&self.first).then_some(0))?;
        self.pop_from(number)
    }

    /// When the next message is due to expire, of those that are the first of their lane.
    pub(super) fn next_expiry(&self) -> Option<Millis> {
        let expiry = |lane: &Lane| lane.peek().and_then(|head| head.expiry);
        let others = self.used().filter_map(|number| expiry(self.lane(number)));
        others.chain(expiry(&self.first)).min()
    }

    /// Puts a taken message back in its original place.
    pub(super) fn put_back(&mut self, message: Taken) {
        let number = message.location.lane;
        self.lane_mut(number).put_back(message);
        if number > 0 {
            self.gained(number);
        }
    }

    pub(super) fn content(&self, location: Location) -> Content<'_> {
        self.lane(location.lane).content(location)
    }

    /// Lets go of a taken message for good.
    pub(super) fn settle(&mut self, location: Location, spares: &mut Spares) {
        self.lane_mut(location.lane).settle(location, spares);
    }

    /// Drops all messages that can be taken; returns how many there were.
    pub(super) fn clear(&mut self, spares: &mut Spares) -> usize {
        let others = self.others.iter_mut().flatten().map(|lane| lane.clear(spares)).sum::<usize>();
        self.ready = [0; 4];
        self.others_ready = 0;
        self.first.clear(spares) + others
    }

    /// The lane that the next message comes from; the first when there is none.
    fn next(&self) -> u8 {
        if self.others_ready == 0 {
            return 0;
        }
        if self.order == (Order::Shared { in_a_row: HIGH_IN_A_ROW }) && self.first.ready() > 0 {
            return 0;
        }
        self.used().next().unwrap_or(0)
    }

    /// The lanes beyond the first that have messages, highest priority first.
    fn used(&self) -> impl Iterator<Item = u8> {
        let words = self.ready.iter().enumerate().rev();
        words.flat_map(|(word, bits)| {
            let mut bits = *bits;
            std::iter::from_fn(move || {
                let bit = bits.checked_ilog2()?;
                bits &= !(1 << bit);
                Some((word as u32 * 64 + bit) as u8)
            })
        })
    }

    fn pop_from(&mut self, number: u8) -> Option<Taken> {
        let message = self.lane_mut(number).pop()?;
        if number > 0 {
            self.others_ready -= 1;
            if self.lane(number).ready() == 0 {
                self.ready[usize::from(number / 64)] &= !(1 << (number % 64));
            }
        }
        Some(message)
    }

    fn gained(&mut self, number: u8) {
        self.others_ready += 1;
        self.ready[usize::from(number / 64)] |= 1 << (number % 64);
    }

    fn lane(&self, number: u8) -> &Lane {
        if number == 0 {
            return &self.first;
        }
        self.others[usize::from(number) - 1].as_ref().expect("a lane that was used")
    }

    fn lane_mut(&mut self, number: u8) -> &mut Lane {
        if number == 0 {
            return &mut self.first;
        }
        self.others[usize::from(number) - 1].as_mut().expect("a lane that was used")
    }

    /// Checks the invariants that need a walk; for tests. `unsettled` are the messages that were
    /// taken from each lane and not settled.
    #[cfg(any(test, debug_assertions))]
    pub(super) fn check_invariants(&self, unsettled: impl Fn(u8) -> usize) {
        self.first.check_invariants(unsettled(0));
        let mut ready = 0;
        for (index, lane) in self.others.iter().enumerate() {
            let Some(lane) = lane else { continue };
            let number = index as u8 + 1;
            lane.check_invariants(unsettled(number));
            ready += lane.ready();
            let bit = self.ready[usize::from(number / 64)] >> (number % 64) & 1;
            assert_eq!(bit != 0, lane.ready() > 0, "lane {number}");
        }
        assert_eq!(ready, self.others_ready);
    }
}
