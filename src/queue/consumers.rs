//! The consumers of one queue: who may receive the next message.
//!
//! Owns credit (prefetch), byte windows, the round robin among equals, consumer priorities, and
//! which consumer is the single active one. It knows nothing of messages beyond their size, and of
//! connections nothing at all.
//!
//! Invariant: a consumer that could take a message (credit and window left, and active where only
//! one may be) is `waiting`, and then stands in the ring of its priority exactly once; or, when
//! its gate refused it, among the stopped ones, in the order of the ring, until
//! [`Consumers::reopen`].

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

/// Names a consumer within its queue, never confused with a later one in the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ConsumerKey {
    /// The place in the queue's table of consumers; reused after a cancel.
    pub(crate) index: u32,
    generation: u32,
}

/// A limit that consumers of several queues share: an input that a queue asks for when it is about
/// to deliver.
pub(crate) trait Gate: fmt::Debug + Send + Sync {
    /// Asks for one more delivery.
    fn pass(&self) -> Pass;
}

/// What a gate answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// There is no limit; nothing was counted.
    Free,
    /// One more is counted, until the delivery is settled.
    Counted,
    /// The limit is reached.
    Refused,
}

/// What a consumer asks for when it subscribes.
#[derive(Clone, Debug)]
pub(crate) struct ConsumerSpec {
    /// Deliveries need no settling.
    pub(crate) no_ack: bool,
    /// Unsettled messages it may hold, 0 for no limit (`basic.qos`).
    pub(crate) prefetch: u32,
    /// `x-priority`; higher is served first.
    pub(crate) priority: i64,
    /// Bytes that may be delivered before [`Consumers::grant`] is called again.
    pub(crate) window: u32,
    /// The channel's shared limit; not applied to `no_ack` consumers.
    pub(crate) gate: Arc<dyn Gate>,
}

#[derive(Debug)]
struct Consumer {
    spec: ConsumerSpec,
    generation: u32,
    /// Messages it may still receive; unused when `prefetch` is 0 or `no_ack`.
    credit: u32,
    window: i64,
    /// Deliveries that it has not settled.
    held: u32,
    /// Whether it is in its level's ring or stopped.
    waiting: bool,
}

impl Consumer {
    fn is_limited(&self) -> bool {
        self.spec.prefetch != 0 && !self.spec.no_ack
    }

    fn can_take(&self) -> bool {
        self.window > 0 && (!self.is_limited() || self.credit > 0)
    }
}

/// Consumers of one priority that can take a message, next one first.
#[derive(Debug)]
struct Level {
    priority: i64,
    /// Consumers of this priority, waiting or not.
    members: usize,
    ring: VecDeque<u32>,
    /// Refused by their gate. They keep their order, so that consumers behind one gate take turns.
    stopped: Vec<u32>,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Consumers {
    table: Vec<Option<Consumer>>,
    /// Places in the table that are free.
    free: Vec<u32>,
    levels: Vec<Level>,
    len: usize,
    generations: u32,
    single_active: bool,
    /// The one that may receive, where only one may.
    active: Option<u32>,
}

/// The consumer that a message goes to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    pub(crate) key: ConsumerKey,
    pub(crate) no_ack: bool,
    /// Whether the channel's gate counted this message.
    pub(crate) counted: bool,
}

impl Consumers {
    /// `single_active`: only one consumer receives, until it is gone
    /// (`x-single-active-consumer`).
    pub(crate) fn new(single_active: bool) -> Self {
        Self { single_active, ..Self::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn add(&mut self, spec: ConsumerSpec) -> ConsumerKey {
        let generation = self.generations;
        self.generations = self.generations.wrapping_add(1);
        let free = self.free.pop().map(|index| index as usize);
        let index = free.unwrap_or_else(|| {
            self.table.push(None);
            self.table.len() - 1
        });
        let consumer = Consumer {
            generation,
            credit: spec.prefetch,
            window: i64::from(spec.window),
            held: 0,
            waiting: false,
            spec,
        };
        let priority = consumer.spec.priority;
        let at = self.levels.partition_point(|level| level.priority > priority);
        match self.levels.get_mut(at).filter(|level| level.priority == priority) {
            Some(level) => level.members += 1,
            None => self.levels.insert(
                at,
                Level { priority, members: 1, ring: VecDeque::new(), stopped: Vec::new() },
            ),
        }
        self.table[index] = Some(consumer);
        self.len += 1;
        if self.single_active && self.active.is_none() {
            self.active = Some(index as u32);
        }
        self.enter_ring(index as u32);
        ConsumerKey { index: index as u32, generation }
    }

    /// Removes a consumer; `false` when it is gone already.
    pub(crate) fn remove(&mut self, key: ConsumerKey) -> bool {
        if !self.contains(key) {
            return false;
        }
        let consumer = self.table[key.index as usize].take().expect("found above");
        self.len -= 1;
        self.free.push(key.index);
        let priority = consumer.spec.priority;
        let at = self.levels.partition_point(|level| level.priority > priority);
        let level = &mut self.levels[at];
        level.members -= 1;
        if level.members == 0 {
            self.levels.remove(at);
        } else if consumer.waiting {
            level.ring.retain(|index| *index != key.index);
            level.stopped.retain(|index| *index != key.index);
        }
        if self.active == Some(key.index) {
            self.activate_next();
        }
        true
    }

    /// The next consumer becomes active: of the highest priority, the one that subscribed first.
    fn activate_next(&mut self) {
        let candidates = self.table.iter().enumerate().filter_map(|(index, consumer)| {
            let consumer = consumer.as_ref()?;
            // Generations may have begun again at 0: what counts is how long ago they were.
            let age = self.generations.wrapping_sub(consumer.generation);
            Some((consumer.spec.priority, age, index as u32))
        });
        self.active = candidates.max().map(|(_, _, index)| index);
        if let Some(index) = self.active {
            self.enter_ring(index);
        }
    }

    /// Whether the next message would go to a consumer that needs no settling, and what it is.
    /// Spends nothing.
    pub(crate) fn next_is_no_ack(&mut self) -> bool {
        let Some(index) = self.levels.iter().find_map(|level| level.ring.front()) else {
            return false;
        };
        self.table[*index as usize].as_ref().is_some_and(|consumer| consumer.spec.no_ack)
    }

    /// Chooses the consumer for a message of `cost` bytes, and spends its credit and window. A
    /// consumer whose window is used up by it is added to `exhausted`.
    pub(crate) fn choose(&mut self, cost: u32, exhausted: &mut Vec<ConsumerKey>) -> Option<Choice> {
        for level in &mut self.levels {
            while let Some(&index) = level.ring.front() {
                let consumer = self.table[index as usize].as_mut().expect("ringed ones exist");
                let pass =
                    if consumer.spec.no_ack { Pass::Free } else { consumer.spec.gate.pass() };
                if pass == Pass::Refused {
                    level.ring.pop_front();
                    level.stopped.push(index);
                    continue;
                }
                consumer.window -= i64::from(cost);
                if consumer.is_limited() {
                    consumer.credit -= 1;
                }
                let key = ConsumerKey { index, generation: consumer.generation };
                let no_ack = consumer.spec.no_ack;
                consumer.held += u32::from(!no_ack);
                if consumer.window <= 0 {
                    exhausted.push(key);
                }
                if !consumer.can_take() {
                    consumer.waiting = false;
                    level.ring.pop_front();
                } else if level.ring.len() > 1 {
                    level.ring.rotate_left(1);
                }
                return Some(Choice { key, no_ack, counted: pass == Pass::Counted });
            }
        }
        None
    }

    /// Returns the credit of one settled message.
    pub(crate) fn give_credit(&mut self, key: ConsumerKey) {
        if let Some(consumer) = self.find(key) {
            consumer.held -= 1;
            if consumer.is_limited() {
                consumer.credit += 1;
                debug_assert!(consumer.credit <= consumer.spec.prefetch, "credit is bounded");
            }
            self.enter_ring(key.index);
        }
    }

    /// Deliveries that a consumer has not settled.
    pub(crate) fn held(&self, key: ConsumerKey) -> u32 {
        let consumer = self.table.get(key.index as usize).and_then(Option::as_ref);
        consumer.filter(|consumer| consumer.generation == key.generation).map_or(0, |it| it.held)
    }

    /// Fills a consumer's byte window up to `window`.
    pub(crate) fn grant(&mut self, key: ConsumerKey, window: u32) {
        if let Some(consumer) = self.find(key) {
            consumer.window = i64::from(window);
            self.enter_ring(key.index);
        }
    }

    /// Lets consumers that a gate refused try again.
    pub(crate) fn reopen(&mut self) {
        for level in &mut self.levels {
            level.ring.extend(level.stopped.drain(..));
        }
    }

    pub(crate) fn contains(&self, key: ConsumerKey) -> bool {
        let consumer = self.table.get(key.index as usize).and_then(Option::as_ref);
        consumer.is_some_and(|consumer| consumer.generation == key.generation)
    }

    fn find(&mut self, key: ConsumerKey) -> Option<&mut Consumer> {
        let consumer = self.table.get_mut(key.index as usize)?.as_mut()?;
        (consumer.generation == key.generation).then_some(consumer)
    }

    fn enter_ring(&mut self, index: u32) {
        let may_receive = !self.single_active || self.active == Some(index);
        let consumer = self.table[index as usize].as_mut().expect("the caller found it");
        if !may_receive || consumer.waiting || !consumer.can_take() {
            return;
        }
        consumer.waiting = true;
        let priority = consumer.spec.priority;
        let level = self.levels.iter_mut().find(|level| level.priority == priority);
        level.expect("each priority in use has a level").ring.push_back(index);
    }

    /// Checks the invariants that need a walk; for tests.
    #[cfg(any(test, debug_assertions))]
    pub(crate) fn check_invariants(&self) {
        assert_eq!(self.len, self.table.iter().flatten().count());
        assert_eq!(self.active.is_some(), self.single_active && self.len > 0);
        assert_eq!(self.free.len() + self.len, self.table.len());
        assert_eq!(self.levels.iter().map(|level| level.members).sum::<usize>(), self.len);
        assert!(self.levels.is_sorted_by(|a, b| a.priority > b.priority));
        for (index, consumer) in self.table.iter().enumerate() {
            let Some(consumer) = consumer else { continue };
            let level = self.levels.iter().find(|l| l.priority == consumer.spec.priority);
            let level = level.expect("a level for each priority");
            let places = level.ring.iter().chain(&level.stopped);
            let times = places.filter(|place| **place == index as u32).count();
            assert_eq!(times, usize::from(consumer.waiting), "consumer {index} waits once");
            let may_receive = !self.single_active || self.active == Some(index as u32);
            assert_eq!(consumer.waiting, consumer.can_take() && may_receive);
            assert!(consumer.credit <= consumer.spec.prefetch);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Mutex;

    use super::*;

    /// Lets a given number of deliveries pass.
    #[derive(Debug, Default)]
    struct Turnstile(Mutex<Cell<u32>>);

    impl Gate for Turnstile {
        fn pass(&self) -> Pass {
            let left = self.0.lock().expect("not poisoned");
            match left.get() {
                0 => Pass::Refused,
                n => {
                    left.set(n - 1);
                    Pass::Counted
                }
            }
        }
    }

    #[derive(Debug)]
    struct Open;

    impl Gate for Open {
        fn pass(&self) -> Pass {
            Pass::Free
        }
    }

    fn spec(prefetch: u32, priority: i64) -> ConsumerSpec {
        let gate = Arc::new(Open);
        ConsumerSpec { no_ack: false, prefetch, priority, window: 1000, gate }
    }

    fn order(consumers: &mut Consumers, count: usize) -> Vec<u32> {
        let mut exhausted = Vec::new();
        let chosen = (0..count).filter_map(|_| consumers.choose(1, &mut exhausted));
        chosen.map(|choice| choice.key.index).collect()
    }

    #[test]
    fn equals_take_turns_and_higher_priority_goes_first() {
        let mut consumers = Consumers::default();
        consumers.add(spec(10, 0));
        consumers.add(spec(10, 0));
        consumers.add(spec(2, 5));
        assert_eq!(order(&mut consumers, 6), [2, 2, 0, 1, 0, 1]);
        consumers.check_invariants();
    }

    #[test]
    fn credit_and_window_bound_what_is_taken() {
        let mut consumers = Consumers::default();
        let key = consumers.add(spec(3, 0));
        assert_eq!(order(&mut consumers, 5).len(), 3);
        consumers.give_credit(key);
        assert_eq!(order(&mut consumers, 5).len(), 1);
        consumers.give_credit(key);
        let mut exhausted = Vec::new();
        let last = consumers.choose(5000, &mut exhausted);
        assert!(last.is_some(), "the last message may exceed the window");
        assert_eq!(exhausted, [key]);
        consumers.give_credit(key);
        assert_eq!(order(&mut consumers, 1).len(), 0);
        consumers.grant(key, 10);
        assert_eq!(order(&mut consumers, 1).len(), 1);
        consumers.check_invariants();
    }

    #[test]
    fn a_gate_is_shared_and_reopens() {
        let mut consumers = Consumers::default();
        let gate = Arc::new(Turnstile(Mutex::new(Cell::new(2))));
        for _ in 0..2 {
            consumers.add(ConsumerSpec { gate: gate.clone(), ..spec(0, 0) });
        }
        assert_eq!(order(&mut consumers, 5), [0, 1]);
        gate.0.lock().expect("not poisoned").set(1);
        assert_eq!(order(&mut consumers, 1).len(), 0, "refused ones wait to be reopened");
        consumers.reopen();
        assert_eq!(order(&mut consumers, 5).len(), 1);
        consumers.check_invariants();
    }

    #[test]
    fn one_consumer_is_active_until_it_is_gone() {
        let mut consumers = Consumers::new(true);
        let keys = [0, 0, 3, 3].map(|priority| consumers.add(spec(10, priority)));
        consumers.check_invariants();
        assert_eq!(order(&mut consumers, 3), [0, 0, 0], "the first, whatever the priority");
        assert!(consumers.remove(keys[1]));
        assert_eq!(order(&mut consumers, 1), [0]);
        assert!(consumers.remove(keys[0]));
        assert_eq!(order(&mut consumers, 2), [2, 2], "of the highest priority, the oldest");
        let late = consumers.add(spec(10, 3));
        assert_eq!(late.index, 0, "in a place that is free");
        consumers.remove(keys[2]);
        assert_eq!(order(&mut consumers, 1), [3], "not the latest");
        consumers.remove(late);
        consumers.remove(keys[3]);
        consumers.check_invariants();
        assert_eq!(order(&mut consumers, 1).len(), 0);
    }

    #[test]
    fn a_key_of_a_cancelled_consumer_is_refused() {
        let mut consumers = Consumers::default();
        let old = consumers.add(spec(1, 0));
        assert!(consumers.remove(old) && !consumers.remove(old));
        let new = consumers.add(spec(1, 0));
        assert_eq!(old.index, new.index);
        consumers.give_credit(old);
        assert_eq!(order(&mut consumers, 5).len(), 1);
        consumers.check_invariants();
    }
}
