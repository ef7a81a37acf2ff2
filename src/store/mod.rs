//! A stand-in for the store, until the real one is there.
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::queue::LaneHead;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Durable,
    Lost,
}
pub(crate) type Completion = Box<dyn FnOnce(Outcome) + Send>;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Definitions,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub space: Space,
    pub key: Vec<u8>,
    pub value: Option<Vec<u8>>,
}
#[derive(Debug, thiserror::Error)]
#[error("store")]
pub(crate) struct StoreError;

#[derive(Default)]
struct State {
    map: BTreeMap<Vec<u8>, Vec<u8>>,
    next: u64,
    done: u64,
    hold: bool,
    lost: bool,
    waiting: Vec<(Ticket, Completion)>,
}
#[derive(Clone, Default)]
pub(crate) struct Store {
    state: Arc<Mutex<State>>,
}
impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}
#[allow(dead_code)]
impl Store {
    pub(crate) fn in_memory() -> Self {
        Self::default()
    }
    pub(crate) fn open(_path: &std::path::Path) -> Result<Self, StoreError> {
        Ok(Self::default())
    }
    pub(crate) fn hold(&self, hold: bool) {
        let mut state = self.state.lock();
        state.hold = hold;
        if !hold {
            state.done = state.next;
            let w = std::mem::take(&mut state.waiting);
            let o = if state.lost { Outcome::Lost } else { Outcome::Durable };
            drop(state);
            w.into_iter().for_each(|(_, c)| c(o));
        }
    }
    pub(crate) fn lose(&self) {
        self.state.lock().lost = true;
    }
    pub(crate) fn change(&self, changes: Vec<Change>) -> Ticket {
        let mut state = self.state.lock();
        for c in changes {
            match c.value {
                Some(v) => {
                    state.map.insert(c.key, v);
                }
                None => {
                    state.map.remove(&c.key);
                }
            }
        }
        state.next += 1;
        if !state.hold {
            state.done = state.next
        }
        Ticket(state.next)
    }
    pub(crate) fn submit(&self, _queue: u64, _records: &mut crate::queue::Records) -> Ticket {
        Ticket::default()
    }
    pub(crate) fn is_congested(&self) -> bool {
        false
    }
    pub(crate) fn poll_room(&self, _c: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        std::task::Poll::Ready(())
    }
    pub(crate) fn is_written_up_to(&self, _g: u64) -> bool {
        true
    }
    pub(crate) fn read(&self, _q: u64, _l: u8, _f: u64, _b: usize) -> Result<Chunk, StoreError> {
        Err(StoreError)
    }
    pub(crate) fn forget_queue(&self, _queue: u64) -> Ticket {
        Ticket::default()
    }
    pub(crate) fn when_durable(&self, ticket: Ticket, completion: Completion) {
        let mut state = self.state.lock();
        if ticket.0 <= state.done {
            let o = if state.lost { Outcome::Lost } else { Outcome::Durable };
            drop(state);
            return completion(o);
        }
        state.waiting.push((ticket, completion));
    }
    pub(crate) fn is_durable(&self, ticket: Ticket) -> bool {
        let s = self.state.lock();
        ticket.0 <= s.done && !s.lost || ticket.0 == 0
    }
    pub(crate) fn failure(&self) -> Option<String> {
        None
    }
    pub(crate) fn heads(&self) -> Result<Vec<(u64, Vec<LaneHead>)>, StoreError> {
        Ok(Vec::new())
    }
    pub(crate) fn entries(&self, _space: Space) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError> {
        Ok(self.state.lock().map.clone().into_iter().collect())
    }
    pub(crate) fn close(&self) {}
}

pub(crate) struct Chunk {
    pub runs: Vec<crate::queue::StoredRun>,
    pub marks: Vec<crate::queue::Mark>,
    pub end: u64,
}
impl Ticket {
    pub(crate) fn number(self) -> u64 {
        self.0
    }
}
