//! The lanes of one queue: one for each message priority that was used.
//!
//! Owns which lane a message goes to and which one the next message comes from. A queue without
//! priorities has one lane and pays nothing for the others. It knows nothing of consumers or
//! limits.
//!
//! Invariant: `ready` has the bit of a lane beyond the first exactly when that lane has messages
//! that can be taken, and `others_ready` is their number.

use bytes::Bytes;

use crate::clock::Millis;

use super::lane::{Head, Lane, Location, Place, Spares, Taken};
use super::records::{LaneHead, Records};
use super::segment::{Content, Totals};
use super::settings::{Kind, Settings};
use super::window::{Loaded, Wanted};

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
    is_durable: bool,
}

impl Lanes {
    /// `is_durable` says whether there is a store for messages.
    pub(super) fn new(settings: &Settings, is_durable: bool) -> Self {
        let order = match (settings.kind, settings.priority_max) {
            (Kind::Quorum, _) => Order::Shared { in_a_row: 0 },
            (Kind::Classic, None | Some(0)) => Order::Plain,
            (Kind::Classic, Some(max)) => Order::Strict { max },
        };
        let (others, ready) = (Vec::new(), [0; 4]);
        let first = Lane::new(0, is_durable);
        Self { order, first, others, ready, others_ready: 0, is_durable }
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
        stored: bool,
        spares: &mut Spares,
    ) {
        let number = match self.order {
            Order::Plain => 0,
            Order::Strict { max } => priority.min(max),
            Order::Shared { .. } => u8::from(priority >= HIGH_MIN),
        };
        if number == 0 {
            self.first.push(content, expiry, stored, spares);
            return;
        }
        self.open_lane(number).push(content, expiry, stored, spares);
        self.gained(number);
    }

    /// The lane of this number, made if there is none.
    fn open_lane(&mut self, number: u8) -> &mut Lane {
        let Some(index) = usize::from(number).checked_sub(1) else { return &mut self.first };
        if self.others.len() <= index {
            self.others.resize_with(index + 1, || None);
        }
        let is_durable = self.is_durable;
        self.others[index].get_or_insert_with(|| Box::new(Lane::new(number, is_durable)))
    }

    /// Puts messages that are in the store where an empty lane begins.
    pub(super) fn restore(&mut self, head: &LaneHead) {
        let lane = self.open_lane(head.lane);
        lane.restore(head);
        let ready = lane.ready();
        if head.lane > 0 && ready > 0 {
            self.others_ready += ready;
            self.ready[usize::from(head.lane / 64)] |= 1 << (head.lane % 64);
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Lane> {
        std::iter::once(&self.first).chain(self.others.iter().flatten().map(|lane| &**lane))
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Lane> {
        let others = self.others.iter_mut().flatten().map(|lane| &mut **lane);
        std::iter::once(&mut self.first).chain(others)
    }

    /// Hands over what the store is to be told.
    pub(super) fn hand_over(&mut self, into: &mut Records) {
        self.all_mut().for_each(|lane| lane.hand_over(into));
    }

    /// Notes with which group what was handed over last will be written.
    pub(super) fn handed_over(&mut self, group: u64) {
        self.all_mut().for_each(|lane| lane.handed_over(group));
    }

    /// See [`Lane::place`].
    pub(super) fn place(&self, location: Location) -> Option<Place> {
        self.lane(location.lane).place(location)
    }

    /// See [`Lane::let_die`].
    pub(super) fn let_die(&mut self, location: Location, spares: &mut Spares) {
        self.lane_mut(location.lane).let_die(location, spares);
    }

    /// See [`Lane::bury`].
    pub(super) fn bury(&mut self, place: &Place) {
        self.lane_mut(place.lane).bury(place);
    }

    /// Whether the next message is not here; for tests.
    #[cfg(any(test, debug_assertions))]
    pub(super) fn is_head_absent(&self) -> bool {
        self.lane(self.next()).is_head_absent()
    }

    /// Bytes of memory that messages take, large bodies included.
    pub(super) fn resident(&self) -> usize {
        self.all().map(Lane::resident).sum()
    }

    /// What is to be read from the store: what comes next, if less than `ahead` bytes are here
    /// before it; otherwise the first messages of a lane whose messages may expire.
    pub(super) fn wanted(&self, ahead: Option<usize>) -> Option<Wanted> {
        let next = ahead.and_then(|ahead| self.lane(self.next()).wanted(ahead));
        next.or_else(|| {
            let hides_expiry = |lane: &&Lane| lane.is_head_absent() && lane.may_expire();
            self.all().find(hides_expiry).and_then(|lane| lane.wanted(1))
        })
    }

    /// See [`Lane::install`].
    pub(super) fn install(&mut self, loaded: Loaded) -> Totals {
        let number = loaded.lane();
        let lane = self.lane_mut(number);
        let before = lane.ready();
        let lost = lane.install(loaded);
        let ready = lane.ready();
        if number > 0 {
            self.others_ready -= before - ready;
            if ready == 0 {
                self.ready[usize::from(number / 64)] &= !(1 << (number % 64));
            }
        }
        lost
    }

    /// See [`Lane::spill`]; `target` is for all lanes together.
    pub(super) fn spill<E>(
        &mut self,
        head: usize,
        target: usize,
        put: &mut impl FnMut(&[u8]) -> Result<u64, E>,
        spares: &mut Spares,
    ) -> Result<(), E> {
        let mut resident = self.resident();
        for lane in self.all_mut() {
            let others = resident - lane.resident();
            lane.spill(head, target.saturating_sub(others), put, spares)?;
            resident = others + lane.resident();
        }
        Ok(())
    }

    /// See [`Lane::take_back`].
    pub(super) fn take_back(
        &mut self,
        lane: u8,
        number: u64,
        piece: &[u8],
        share: &impl Fn(&[u8]) -> Bytes,
    ) -> bool {
        self.lane_mut(lane).take_back(number, piece, share)
    }

    /// The pieces that segments were put aside as.
    pub(super) fn pieces(&self) -> impl Iterator<Item = u64> {
        self.all().flat_map(Lane::pieces)
    }

    /// See [`Lane::evict`]; `target` is for all lanes together.
    pub(super) fn evict(
        &mut self,
        head: usize,
        target: usize,
        is_written: &impl Fn(u64) -> bool,
        spares: &mut Spares,
    ) {
        let mut resident = self.resident();
        for lane in self.all_mut() {
            let others = resident - lane.resident();
            lane.evict(head, target.saturating_sub(others), is_written, spares);
            resident = others + lane.resident();
        }
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
