//! What the exchanges of a vhost keep of messages: those that wait, the latest, and what tells
//! duplicates.
//!
//! Owns it by exchange, and its place in the memory gauge. It must not route: the topology says
//! what is to be kept (`routing::Kept`), while its lock is held for reading, so that nothing is
//! kept for an exchange that is gone, and a new binding sees either a message or its copy here.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use dashmap::DashMap;
use parking_lot::Mutex;

use super::delayed::{Due, Waiting};
use super::drive::Drive;
use super::memory::Memory;
use super::recent_history::RecentHistory;
use super::{OwnedMessage, Services, Vhost};
use crate::clock::Millis;
use crate::codec::properties::Properties;
use crate::queue::{Body, Content, Dedup};
use crate::routing::{Exchange, ExchangeId, Keep, Kept, Sighting, Topology};

/// A message that an exchange keeps, with its place in the memory gauge. (A large body has its own,
/// see [`OwnedMessage::counted`].)
#[derive(Debug)]
pub(crate) struct KeptMessage {
    message: OwnedMessage,
    /// Its routing keys, the one in its address included.
    keys: Vec<Box<[u8]>>,
    bytes: i64,
    memory: Arc<Memory>,
}

impl KeptMessage {
    pub(super) fn new(content: &Content<'_>, keys: &[&[u8]], memory: &Arc<Memory>) -> Self {
        let (body, body_len) = match content.body {
            Body::Inline(body) => (Bytes::copy_from_slice(body), body.len()),
            Body::Shared(body) => (body.clone(), 0),
        };
        let small = content.address.len() + content.header.len() + size_of::<Self>();
        let keys_len: usize = keys.iter().map(|key| key.len() + size_of::<Box<[u8]>>()).sum();
        let bytes = (small + keys_len + body_len) as i64;
        memory.add(bytes);
        let (address, header) = (content.address.to_vec(), content.header.to_vec());
        Self {
            message: OwnedMessage { address, header, body },
            keys: keys.iter().map(|key| (*key).into()).collect(),
            bytes,
            memory: memory.clone(),
        }
    }

    /// The message itself.
    pub(super) fn message(&self) -> &OwnedMessage {
        &self.message
    }

    /// Whether it outlives the broker where it can.
    pub(super) fn is_persistent(&self) -> bool {
        Properties::of_header(&self.message.header).is_persistent()
    }

    /// Its routing keys.
    pub(super) fn keys(&self) -> Vec<&[u8]> {
        self.keys.iter().map(|key| &**key).collect()
    }
}

impl Drop for KeptMessage {
    fn drop(&mut self) {
        self.memory.add(-self.bytes);
    }
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct ExchangeMemory {
    vhost: Weak<Vhost>,
    services: Arc<Services>,
    waiting: DashMap<ExchangeId, Arc<Waiting>>,
    histories: DashMap<ExchangeId, Arc<Mutex<RecentHistory>>>,
    seen: DashMap<ExchangeId, Arc<Mutex<Seen>>>,
}

/// The values that an exchange has seen, counted in the memory gauge.
#[derive(Debug)]
struct Seen {
    dedup: Dedup,
    memory: Arc<Memory>,
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.memory.add(-(self.dedup.bytes() as i64));
    }
}

/// What was kept for exchanges that are gone, to be freed when no lock is held.
#[derive(Debug, Default)]
#[must_use]
pub(super) struct Forgotten {
    _waiting: Vec<(Arc<Waiting>, Vec<Due>)>,
    _histories: Vec<Arc<Mutex<RecentHistory>>>,
    _seen: Vec<Arc<Mutex<Seen>>>,
}

impl ExchangeMemory {
    pub(super) fn new(vhost: Weak<Vhost>, services: Arc<Services>) -> Self {
        let (waiting, histories) = (DashMap::new(), DashMap::new());
        Self { vhost, services, waiting, histories, seen: DashMap::new() }
    }

    /// Keeps a message for the exchanges that ask for it and are still there.
    pub(super) fn keep(
        &self,
        topology: &Topology,
        kept: &[Kept],
        content: &Content<'_>,
        keys: &[&[u8]],
        drive: &mut Drive,
    ) {
        if kept.is_empty() {
            return;
        }
        let message = Arc::new(KeptMessage::new(content, keys, &self.services.memory));
        for Kept { exchange, keep } in kept {
            let Some(exchange) = topology.exchange_of(*exchange) else { continue };
            match *keep {
                Keep::Delay { ms } => {
                    let due = Millis(drive.now.0.saturating_add(ms));
                    self.waiting_at(exchange).push(due, message.clone(), drive);
                }
                Keep::History { length } => {
                    let history = self.histories.entry(exchange.id()).or_default().clone();
                    // What drops out is freed when the lock is released.
                    let _excess = history.lock().push(message.clone(), length);
                }
            }
        }
    }

    /// What waits at an exchange.
    pub(super) fn waiting_at(&self, exchange: &Exchange) -> Arc<Waiting> {
        let new = || Waiting::new(exchange, self.vhost.clone(), self.services.clone());
        self.waiting.entry(exchange.id()).or_insert_with(new).clone()
    }

    /// Whether an exchange has seen a message like this one; it has, from now on.
    pub(super) fn is_duplicate(&self, sighting: &Sighting<'_>, now: Millis) -> bool {
        let new = || {
            let (dedup, memory) = (Dedup::new(sighting.size, None), self.services.memory.clone());
            Arc::new(Mutex::new(Seen { dedup, memory }))
        };
        let seen = self.seen.entry(sighting.exchange).or_insert_with(new).clone();
        let mut seen = seen.lock();
        let before = seen.dedup.bytes() as i64;
        let is_duplicate = seen.dedup.seen_or_insert(sighting.value, now, sighting.ttl_ms);
        seen.memory.add(seen.dedup.bytes() as i64 - before);
        is_duplicate
    }

    /// The latest messages of an exchange, oldest first.
    pub(super) fn history(&self, exchange: ExchangeId) -> Vec<Arc<KeptMessage>> {
        let history = self.histories.get(&exchange).map(|history| history.clone());
        history.map_or_else(Vec::new, |history| history.lock().messages().collect())
    }

    /// How many messages wait at an exchange.
    pub(super) fn messages_delayed(&self, exchange: ExchangeId) -> usize {
        let waiting = self.waiting.get(&exchange).map(|waiting| waiting.clone());
        waiting.map_or(0, |waiting| waiting.len())
    }

    /// Forgets exchanges that are gone, while the topology is locked for the change.
    pub(super) fn forget(&self, exchanges: &[ExchangeId]) -> Forgotten {
        let mut forgotten = Forgotten::default();
        for exchange in exchanges {
            let waiting = self.waiting.remove(exchange).map(|entry| entry.1);
            forgotten._waiting.extend(waiting.map(|waiting| (waiting.clone(), waiting.forget())));
            forgotten._histories.extend(self.histories.remove(exchange).map(|entry| entry.1));
            forgotten._seen.extend(self.seen.remove(exchange).map(|entry| entry.1));
        }
        forgotten
    }

    /// Forgets all exchanges.
    pub(super) fn forget_all(&self) -> Forgotten {
        let mut all: Vec<ExchangeId> = self.waiting.iter().map(|entry| *entry.key()).collect();
        all.extend(self.histories.iter().map(|entry| *entry.key()));
        all.extend(self.seen.iter().map(|entry| *entry.key()));
        self.forget(&all)
    }
}
