//! The messages that wait at one delayed-message exchange.
//!
//! Owns their order by due time, and by arrival where that is equal, their entries in the store,
//! and the exchange's one place among the broker's deadlines. It must not know where the messages
//! go then.
//!
//! Persistent messages at a durable exchange outlive the broker. The store is told of them under
//! the lock, so that its order is that of effect; an entry is deleted when the message's copies
//! have been handed over, so that a crash between may double it but never lose it.

mod entry;
mod recovery;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::task::Waker;

use parking_lot::Mutex;

use super::deadlines::Timed;
use super::drive::Drive;
use super::exchange_memory::KeptMessage;
use super::{Services, Vhost};
use crate::clock::Millis;
use crate::routing::{Exchange, ExchangeId};
use entry::{Entries, Turn};

/// What is published in one go; others get their turn before the rest.
const RELEASED_MAX: usize = 1024;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Waiting {
    exchange: ExchangeId,
    vhost: Weak<Vhost>,
    services: Arc<Services>,
    /// Its number among the deadlines.
    id: u64,
    /// Those of persistent messages, if they are to outlive the broker here.
    entries: Option<Entries>,
    state: Mutex<State>,
}

/// A message, and when it leaves.
pub(super) type Due = (Turn, Arc<KeptMessage>);

#[derive(Debug, Default)]
struct State {
    delayed: Delayed,
    /// Messages that are being published: their entries are still there.
    leaving: Vec<Due>,
    deadline: Option<Millis>,
}

impl Waiting {
    pub(super) fn new(
        exchange: &Exchange,
        vhost: Weak<Vhost>,
        services: Arc<Services>,
    ) -> Arc<Self> {
        // What is done in a deleted vhost ends with the connections that are still in it.
        let in_vhost = vhost.upgrade().filter(|vhost| !vhost.occupancy.is_gone());
        let store = services.store.clone().filter(|_| exchange.spec().durable);
        let entries = in_vhost.zip(store);
        let entries =
            entries.map(|(vhost, store)| Entries::new(store, vhost.name(), exchange.name()));
        let (exchange, id) = (exchange.id(), services.next_id());
        Arc::new(Self { exchange, vhost, services, id, entries, state: Mutex::default() })
    }

    /// Adds a message that is due at some time.
    pub(super) fn push(
        self: &Arc<Self>,
        due: Millis,
        message: Arc<KeptMessage>,
        drive: &mut Drive,
    ) {
        let entries = self.entries.as_ref().filter(|_| message.is_persistent());
        // The copy is made before the lock is taken.
        let entry = entries.map(|entries| (entries, entry::value_of(&message)));
        let mut state = self.state.lock();
        let turn = state.delayed.push(due, message);
        if let Some((entries, value)) = entry {
            drive.await_store(entries.put(turn, value));
        }
        self.reschedule(&mut state, &mut drive.wakes);
    }

    /// Takes back a message that has waited here before the broker was started.
    fn restore(self: &Arc<Self>, turn: Turn, message: Arc<KeptMessage>, drive: &mut Drive) {
        let mut state = self.state.lock();
        state.delayed.restore(turn, message);
        self.reschedule(&mut state, &mut drive.wakes);
    }

    /// How many messages wait.
    pub(super) fn len(&self) -> usize {
        self.state.lock().delayed.len()
    }

    /// The exchange is gone. Answers what has waited there, to be freed when no lock is held.
    pub(super) fn forget(&self) -> Vec<Due> {
        let mut state = self.state.lock();
        let mut gone = std::mem::take(&mut state.leaving);
        gone.extend(std::mem::take(&mut state.delayed).waiting);
        self.delete_entries(&gone);
        gone
    }

    fn delete_entries(&self, messages: &[Due]) {
        if let Some(entries) = &self.entries {
            let persistent = messages.iter().filter(|(_, message)| message.is_persistent());
            entries.delete(persistent.map(|(turn, _)| *turn));
        }
    }

    fn reschedule(self: &Arc<Self>, state: &mut State, wakes: &mut Vec<Waker>) {
        let next = state.delayed.next_due();
        if next != state.deadline {
            let timed: Weak<Self> = Arc::downgrade(self);
            let before = std::mem::replace(&mut state.deadline, next);
            self.services.deadlines.set(self.id, timed, before, next, wakes);
        }
    }
}

impl Timed for Waiting {
    fn tick(self: Arc<Self>, drive: &mut Drive) -> bool {
        // Without its vhost, the broker is being dropped.
        let Some(vhost) = self.vhost.upgrade() else { return false };
        let due = {
            let mut state = self.state.lock();
            state.deadline = None;
            state.leaving = state.delayed.take_due(drive.now, RELEASED_MAX);
            state.leaving.clone()
        };
        let together = self.services.store.as_ref().map(|store| store.keep_together());
        vhost.release(self.exchange, due.iter().map(|(_, message)| &**message), drive);
        // A queue may have refused a message as a dead letter, which has to be somewhere, too.
        drive.publish_dead_letters();
        let mut state = self.state.lock();
        // Nothing is left of an exchange that has gone meanwhile.
        let left = std::mem::take(&mut state.leaving);
        self.delete_entries(&left);
        drop(together);
        self.reschedule(&mut state, &mut drive.wakes);
        state.deadline.is_some_and(|at| at <= drive.now)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if let Some(at) = state.deadline.take() {
            let nobody: Weak<Self> = Weak::new();
            // An earlier deadline that is gone need not wake the timer.
            self.services.deadlines.set(self.id, nobody, Some(at), None, &mut Vec::new());
        }
    }
}

#[derive(Debug, Default)]
struct Delayed {
    waiting: BTreeMap<Turn, Arc<KeptMessage>>,
    /// The number of the last message.
    last: u64,
}

impl Delayed {
    /// Adds a message that is due at some time.
    fn push(&mut self, due: Millis, message: Arc<KeptMessage>) -> Turn {
        let turn = Turn { due, number: self.last + 1 };
        self.restore(turn, message);
        turn
    }

    /// Adds a message that had a turn before; all that come later are behind it.
    fn restore(&mut self, turn: Turn, message: Arc<KeptMessage>) {
        self.last = self.last.max(turn.number);
        self.waiting.insert(turn, message);
    }

    /// How many messages wait.
    fn len(&self) -> usize {
        self.waiting.len()
    }

    /// When the first message is due.
    fn next_due(&self) -> Option<Millis> {
        self.waiting.first_key_value().map(|(turn, _)| turn.due)
    }

    /// Takes out what is due, at most `max` messages, in order.
    fn take_due(&mut self, now: Millis, max: usize) -> Vec<Due> {
        let mut due = Vec::new();
        while due.len() < max
            && let Some(first) = self.waiting.first_entry()
            && first.key().due <= now
        {
            due.push(first.remove_entry());
        }
        due
    }
}
