//! The way of one message through the exchanges of a vhost.
//!
//! Owns the walk along exchange bindings and alternates, and what comes out of it: queues, and what
//! exchanges on the way want kept of the message. It must not change the topology.

use std::hash::{BuildHasher, Hasher, RandomState};

use rustc_hash::FxHashSet;

use super::direct::Matches;
use super::exchange::{ExchangeId, ExchangeSlot, Scratch};
use super::keeping::{Kept, Sighting, Step};
use super::{QueueId, Topology, no_exchange};
use crate::codec::properties::Properties;
use crate::error::{AmqpError, ReplyCode};

/// Who sends a message to an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client's `basic.publish`, to which internal exchanges are closed.
    Client,
    /// The broker itself: dead letters, traces.
    Broker,
}

/// Why a message could not be routed at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteError {
    /// There is no such exchange.
    NoExchange,
    /// The exchange is internal.
    Internal,
}

impl RouteError {
    /// What the publishing client is told.
    pub fn to_amqp(self, exchange: &[u8], vhost: &str) -> AmqpError {
        let exchange = String::from_utf8_lossy(exchange);
        match self {
            Self::NoExchange => no_exchange(&exchange, vhost),
            Self::Internal => AmqpError::new(
                ReplyCode::AccessRefused,
                format!("cannot publish to internal exchange '{exchange}' in vhost '{vhost}'"),
            ),
        }
    }
}

/// A message, as far as routing looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its routing key, and then those of its CC and BCC headers: an alternate exchange is used
    /// only if none of them matches.
    pub keys: &'a [&'a [u8]],
    /// Its properties.
    pub properties: Properties<'a>,
}

/// Answers whether an exchange that drops duplicates has seen such a message, and remembers it.
/// Asked while a message is routed, for it changes what a following one leads to.
pub type IsDuplicate<'a> = &'a mut dyn FnMut(&Sighting<'_>) -> bool;

/// Where a message goes, with the memory that finding it takes: kept and used again, it makes
/// routing free of allocations.
#[derive(Debug)]
pub struct Routed {
    /// The queues, each once, in the order of their ids.
    pub queues: Vec<QueueId>,
    /// What exchanges want kept of the message.
    pub kept: Vec<Kept>,
    /// Whether more than the exchange and the routing key had a say, so that another message with
    /// the same may go elsewhere.
    pub depends_on_message: bool,
    /// Thrown for exchanges that choose at random; begins anywhere.
    dice: u64,
    matches: Matches,
    scratch: Scratch,
    pending: Vec<ExchangeSlot>,
    visited: FxHashSet<ExchangeSlot>,
}

impl Default for Routed {
    fn default() -> Self {
        Self {
            queues: Vec::new(),
            kept: Vec::new(),
            depends_on_message: false,
            dice: RandomState::new().build_hasher().finish(),
            matches: Matches::default(),
            scratch: Scratch::default(),
            pending: Vec::new(),
            visited: FxHashSet::default(),
        }
    }
}

impl Routed {
    fn clear(&mut self) {
        self.queues.clear();
        self.kept.clear();
        self.depends_on_message = false;
        self.pending.clear();
        self.visited.clear();
    }

    /// Notes an exchange to go on with, unless the message has been there: bindings and
    /// alternates between exchanges may run in circles.
    fn visit(&mut self, exchange: ExchangeSlot) {
        if self.visited.insert(exchange) {
            self.pending.push(exchange);
        }
    }
}

impl Topology {
    /// Finds the queues for a message.
    pub fn route(
        &self,
        exchange: &[u8],
        message: &Message<'_>,
        origin: Origin,
        is_duplicate: IsDuplicate<'_>,
        routed: &mut Routed,
    ) -> Result<(), RouteError> {
        routed.clear();
        if exchange.is_empty() {
            routed.queues.extend(message.keys.iter().filter_map(|key| self.queue(key)));
        } else {
            let slot = *self.exchange_names.get(exchange).ok_or(RouteError::NoExchange)?;
            if origin == Origin::Client && self.at(slot).spec().internal {
                return Err(RouteError::Internal);
            }
            routed.visit(slot);
        }
        self.walk(message, is_duplicate, routed);
        Ok(())
    }

    /// Finds the queues for a message that has waited at an exchange, if that is still there.
    pub fn route_released(
        &self,
        exchange: ExchangeId,
        message: &Message<'_>,
        is_duplicate: IsDuplicate<'_>,
        routed: &mut Routed,
    ) {
        routed.clear();
        if self.exchange_of(exchange).is_some() {
            routed.visited.insert(exchange.slot);
            self.leave(exchange.slot, message, routed);
            self.walk(message, is_duplicate, routed);
        }
    }

    fn walk(&self, message: &Message<'_>, is_duplicate: IsDuplicate<'_>, routed: &mut Routed) {
        while let Some(slot) = routed.pending.pop() {
            match self.at(slot).keeping() {
                None => self.leave(slot, message, routed),
                Some(keeping) => {
                    routed.depends_on_message = true;
                    let id = self.at(slot).id();
                    match keeping.receive(id, message, is_duplicate, &mut routed.kept) {
                        Step::Pass => self.leave(slot, message, routed),
                        Step::Drop => self.take_alternate(slot, routed),
                        Step::Wait => {}
                    }
                }
            }
        }
        routed.queues.sort_unstable();
        routed.queues.dedup();
    }

    /// Takes the message from an exchange along its bindings.
    fn leave(&self, slot: ExchangeSlot, message: &Message<'_>, routed: &mut Routed) {
        let exchange = self.at(slot);
        if let Some(keeping) = exchange.keeping() {
            keeping.pass(exchange.id(), message, &mut routed.kept);
        }
        let mut matches = std::mem::take(&mut routed.matches);
        matches.clear();
        routed.depends_on_message |=
            exchange.find(message, &mut routed.dice, &mut routed.scratch, &mut matches);
        if matches.len() == 0 {
            self.take_alternate(slot, routed);
        }
        routed.queues.append(&mut matches.queues);
        matches.exchanges.iter().for_each(|slot| routed.visit(*slot));
        routed.matches = matches;
    }

    /// An alternate that is missing, or the default exchange, takes nothing in RabbitMQ: the latter
    /// has no bindings that a message could follow from another exchange.
    fn take_alternate(&self, slot: ExchangeSlot, routed: &mut Routed) {
        let alternate = self.at(slot).alternate().filter(|name| !name.is_empty());
        let slot = alternate.and_then(|name| self.exchange_names.get(name.as_bytes()));
        slot.into_iter().for_each(|slot| routed.visit(*slot));
    }
}
