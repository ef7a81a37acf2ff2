//! The messages that wait at one delayed-message exchange.
//!
//! Owns their order by due time, and by arrival where that is equal, and the exchange's one place
//! among the broker's deadlines. It must not know where the messages go then.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::task::Waker;

use parking_lot::Mutex;

use super::deadlines::Timed;
use super::drive::Drive;
use super::exchange_memory::KeptMessage;
use super::{Services, Vhost};
use crate::clock::Millis;
use crate::routing::ExchangeId;

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
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    delayed: Delayed,
    deadline: Option<Millis>,
}

impl Waiting {
    pub(super) fn new(
        exchange: ExchangeId,
        vhost: Weak<Vhost>,
        services: Arc<Services>,
    ) -> Arc<Self> {
        let id = services.next_id();
        Arc::new(Self { exchange, vhost, services, id, state: Mutex::default() })
    }

    /// Adds a message that is due at some time.
    pub(super) fn push(
        self: &Arc<Self>,
        due: Millis,
        message: Arc<KeptMessage>,
        wakes: &mut Vec<Waker>,
    ) {
        let mut state = self.state.lock();
        state.delayed.push(due, message);
        self.reschedule(&mut state, wakes);
    }

    /// How many messages wait.
    pub(super) fn len(&self) -> usize {
        self.state.lock().delayed.len()
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
        let due = {
            let mut state = self.state.lock();
            state.deadline = None;
            state.delayed.take_due(drive.now, RELEASED_MAX)
        };
        if let Some(vhost) = self.vhost.upgrade() {
            vhost.release(self.exchange, due, drive);
        }
        let mut state = self.state.lock();
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
    waiting: BTreeMap<(Millis, u64), Arc<KeptMessage>>,
    /// The number of the last message.
    last: u64,
}

impl Delayed {
    /// Adds a message that is due at some time.
    fn push(&mut self, due: Millis, message: Arc<KeptMessage>) {
        self.last += 1;
        self.waiting.insert((due, self.last), message);
    }

    /// How many messages wait.
    fn len(&self) -> usize {
        self.waiting.len()
    }

    /// When the first message is due.
    fn next_due(&self) -> Option<Millis> {
        self.waiting.first_key_value().map(|((due, _), _)| *due)
    }

    /// Takes out what is due, at most `max` messages, in order.
    fn take_due(&mut self, now: Millis, max: usize) -> Vec<Arc<KeptMessage>> {
        let mut due = Vec::new();
        while due.len() < max
            && let Some(first) = self.waiting.first_entry()
            && first.key().0 <= now
        {
            due.push(first.remove());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Memory;
    use crate::queue::{Body, Content};

    fn message(text: &str, memory: &Arc<Memory>) -> Arc<KeptMessage> {
        let body = Body::Inline(text.as_bytes());
        let content = Content { address: b"\x01x\x01k", header: b"", body };
        Arc::new(KeptMessage::new(&content, &[b"k"], memory))
    }

    #[test]
    fn what_is_due_comes_out_in_order() {
        let memory = Arc::new(Memory::new(u64::MAX, 0));
        let mut delayed = Delayed::default();
        assert_eq!(delayed.next_due(), None);
        for (due, text) in [(30, "d"), (10, "a"), (20, "b"), (20, "c"), (u64::MAX, "never")] {
            delayed.push(Millis(due), message(text, &memory));
        }
        assert_eq!((delayed.len(), delayed.next_due()), (5, Some(Millis(10))));
        assert!(memory.used() > 5 * 100);
        let mut take = |now, max| {
            let due = delayed.take_due(Millis(now), max);
            let texts = due.iter().map(|kept| String::from_utf8_lossy(&kept.message().body));
            texts.collect::<String>()
        };
        assert_eq!(take(9, 10), "");
        assert_eq!(take(25, 2), "ab");
        assert_eq!(take(25, 2), "c");
        assert_eq!(take(u64::MAX - 1, 10), "d");
        assert_eq!((delayed.len(), delayed.next_due()), (1, Some(Millis(u64::MAX))));
        drop(delayed);
        assert_eq!(memory.used(), 0);
    }
}
