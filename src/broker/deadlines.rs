//! What is due when, of everything in the broker that waits for a time to come.
//!
//! Owns one ordered set of deadlines, so that waiting costs nothing for each message and nothing
//! for each queue until its time comes. It must not know what is done then: see [`Timed`].
//!
//! Its lock is a leaf: it may be taken under a queue's lock, and no other is taken under it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::drive::Drive;
use crate::clock::Millis;

/// What is done in one go; others get their turn before the rest.
const AT_ONCE_MAX: usize = 8;

/// Something that waits for a time to come.
pub(crate) trait Timed: fmt::Debug + Send + Sync {
    /// Does what is due at `drive.now`, or so much of it that others should get their turn, and
    /// sets the next deadline. The old one is forgotten. Answers whether something is left.
    fn tick(self: Arc<Self>, drive: &mut Drive) -> bool;
}

#[derive(Debug, Default)]
struct State {
    due: BTreeMap<(Millis, u64), Weak<dyn Timed>>,
    timer: Option<Waker>,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    state: Mutex<State>,
}

impl Deadlines {
    /// Sets the deadline of `id`, which was set to `before`; `None` for no deadline.
    pub(crate) fn set(
        &self,
        id: u64,
        timed: Weak<dyn Timed>,
        before: Option<Millis>,
        at: Option<Millis>,
        wakes: &mut Vec<Waker>,
    ) {
        let mut state = self.state.lock();
        if let Some(before) = before {
            state.due.remove(&(before, id));
        }
        if let Some(at) = at {
            state.due.insert((at, id), timed);
            let is_first = state.due.first_key_value().is_some_and(|(key, _)| *key == (at, id));
            if is_first {
                wakes.extend(state.timer.take());
            }
        }
    }

    /// For the timer: ready with the first deadline when that is not `known`.
    pub(crate) fn poll_next(
        &self,
        known: Option<Millis>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Millis>> {
        let mut state = self.state.lock();
        let next = state.due.first_key_value().map(|((at, _), _)| *at);
        if next != known {
            return Poll::Ready(next);
        }
        state.timer = Some(context.waker().clone());
        Poll::Pending
    }

    /// Does some of what is due at `drive.now`.
    pub(crate) fn tick(&self, drive: &mut Drive) {
        for _ in 0..AT_ONCE_MAX {
            let due = {
                let mut state = self.state.lock();
                match state.due.first_key_value() {
                    Some(((at, _), _)) if *at <= drive.now => state.due.pop_first(),
                    _ => None,
                }
            };
            let Some((_, timed)) = due else { return };
            if timed.upgrade().is_some_and(|timed| timed.tick(drive)) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Debug, Default)]
    struct Count(AtomicU64);

    impl Timed for Count {
        fn tick(self: Arc<Self>, _drive: &mut Drive) -> bool {
            self.0.fetch_add(1, Ordering::Relaxed);
            false
        }
    }

    #[test]
    fn what_is_due_is_done_once_and_the_timer_learns_of_what_comes_first() {
        let (deadlines, count) = (Deadlines::default(), Arc::new(Count::default()));
        let timed: Weak<dyn Timed> = Arc::downgrade(&(count.clone() as Arc<dyn Timed>));
        let mut wakes = Vec::new();
        let mut context = Context::from_waker(Waker::noop());
        let mut set = |id, before, at| deadlines.set(id, timed.clone(), before, at, &mut wakes);
        set(1, None, Some(Millis(10)));
        set(2, None, Some(Millis(30)));
        assert_eq!(deadlines.poll_next(None, &mut context), Poll::Ready(Some(Millis(10))));
        assert!(deadlines.poll_next(Some(Millis(10)), &mut context).is_pending());
        set(2, Some(Millis(30)), Some(Millis(20)));
        set(3, None, Some(Millis(5)));
        set(3, Some(Millis(5)), None);
        assert_eq!(wakes.len(), 1, "once, for the one that came first");
        let mut drive = Drive { now: Millis(15), ..Drive::default() };
        deadlines.tick(&mut drive);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        drive.now = Millis(1000);
        deadlines.tick(&mut drive);
        deadlines.tick(&mut drive);
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        assert_eq!(deadlines.poll_next(None, &mut context), Poll::Pending);
    }
}
