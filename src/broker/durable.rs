//! The way of definitions into the store.
//!
//! Owns when changes of definitions are handed over, in the order in which they take effect:
//! whoever makes one holds the lock that orders it. It must not know what they say, nor wait.
//!
//! A start is one change: what it adds to a new store (the default user, files of definitions) is
//! gathered and handed over as a whole, so that a crash leaves all of it or nothing.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Broker;
use crate::store::{Change, Outcome, Store, Ticket};

/// See the module's description.
#[derive(Debug)]
pub(crate) struct DurableDefinitions {
    store: Option<Arc<Store>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    /// That of the latest change.
    latest: Ticket,
}

#[derive(Debug)]
enum Stage {
    /// What changes comes from the store.
    Restoring,
    /// What changes is handed over together, at the end.
    Gathering(Vec<Change>),
    /// What changes is handed over at once.
    Serving,
}

impl DurableDefinitions {
    pub(super) fn new(store: Option<Arc<Store>>) -> Self {
        let state = State { stage: Stage::Restoring, latest: Ticket::default() };
        Self { store, state: Mutex::new(state) }
    }

    /// Hands changes over, if there is a store. Called under the lock that orders them.
    pub(crate) fn change<I>(&self, changes: impl FnOnce() -> I) -> Ticket
    where
        I: IntoIterator<Item = Change>,
    {
        let Some(store) = &self.store else { return Ticket::default() };
        let mut state = self.state.lock();
        match &mut state.stage {
            Stage::Restoring => Ticket::default(),
            Stage::Gathering(gathered) => {
                gathered.extend(changes());
                Ticket::default()
            }
            Stage::Serving => {
                let ticket = store.change(changes().into_iter().collect());
                state.latest = state.latest.max(ticket);
                ticket
            }
        }
    }

    /// The ticket of the latest change, for who has changed nothing because somebody else was
    /// faster.
    pub(crate) fn latest(&self) -> Ticket {
        if self.store.is_none() {
            return Ticket::default();
        }
        self.state.lock().latest
    }

    /// Everything from the store is there: what changes now is gathered.
    pub(super) fn gather(&self) {
        self.state.lock().stage = Stage::Gathering(Vec::new());
    }

    /// Hands over what was gathered.
    fn serve(&self) {
        let mut state = self.state.lock();
        let stage = std::mem::replace(&mut state.stage, Stage::Serving);
        if let (Stage::Gathering(gathered), Some(store)) = (stage, &self.store)
            && !gathered.is_empty()
        {
            state.latest = store.change(gathered);
        }
    }
}

impl Broker {
    /// The start is done: what changes from now on is handed to the store at once, and what has
    /// changed since [`Broker::recover`] now.
    pub fn begin_serving(&self) {
        self.services.definitions.serve();
    }

    /// Runs `then` when all changes of definitions that were made so far are durable, or will not
    /// be, with the reason. It may run at once, or on the store's thread.
    pub fn when_definitions_durable(&self, then: impl FnOnce(Result<(), String>) + Send + 'static) {
        let store = self.services.store.clone();
        self.when_durable(self.services.definitions.latest(), move |is_durable| {
            let failure = || store.and_then(|store| store.failure());
            then(if is_durable { Ok(()) } else { Err(failure().unwrap_or_else(closed)) });
        });
    }

    /// Whether nothing can be written because the disk is full.
    pub fn is_store_full(&self) -> bool {
        self.services.store.as_ref().is_some_and(|store| store.is_full())
    }

    /// Writes what waits and closes the store; what is changed afterwards does not last.
    pub fn close_store(&self) {
        if let Some(store) = &self.services.store {
            store.close();
        }
    }

    pub(crate) fn is_durable(&self, ticket: Ticket) -> bool {
        let store = self.services.store.as_ref();
        ticket == Ticket::default() || store.is_none_or(|store| store.is_durable(ticket))
    }

    /// Runs `then` once it is decided whether everything up to this ticket is durable.
    pub(crate) fn when_durable(&self, ticket: Ticket, then: impl FnOnce(bool) + Send + 'static) {
        match &self.services.store {
            Some(store) if ticket != Ticket::default() => {
                let completion = move |outcome| then(matches!(outcome, Outcome::Durable));
                store.when_durable(ticket, Box::new(completion));
            }
            _ => then(true),
        }
    }
}

fn closed() -> String {
    "the store is closed".to_owned()
}
