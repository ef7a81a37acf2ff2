//! What is declared, as one client knows it that asks for one thing at a time.
//!
//! Owns a pure value: queues with what is in them, exchanges, bindings, and what each operation
//! does to them. After a crash the world is as before the operation that had no answer, or as
//! after it, and nothing else. It must not do IO.

use std::collections::{BTreeMap, BTreeSet};

use super::random::Random;

/// How a queue is declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Durable,
    Quorum,
    /// Not durable.
    Passing,
    /// Durable, but of one connection only.
    Exclusive,
    /// Not durable, and goes with its last consumer.
    AutoDelete,
}

impl Life {
    pub const ALL: [Life; 5] =
        [Life::Durable, Life::Quorum, Life::Passing, Life::Exclusive, Life::AutoDelete];

    pub fn fields(self) -> &'static str {
        match self {
            Life::Durable => "durable",
            Life::Quorum => "durable arguments=(x-queue-type=quorum)",
            Life::Passing => "",
            Life::Exclusive => "durable exclusive",
            Life::AutoDelete => "auto_delete",
        }
    }

    fn lasts(self) -> bool {
        matches!(self, Life::Durable | Life::Quorum)
    }
}

/// A queue and the numbers of the messages in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub life: Life,
    pub messages: Vec<u32>,
}

/// One thing that a client asks for. Queues, exchanges and keys are named by numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Declare(u8, Life),
    Delete(u8),
    Purge(u8),
    DeclareExchange(u8),
    DeleteExchange(u8),
    /// The exchange to the queue. There is one key for each pair.
    Bind(u8, u8),
    Unbind(u8, u8),
    /// A persistent message with this number, to the queue.
    Publish(u8, u32),
    /// The same by way of the exchange, with the key of the queue.
    Route(u8, u8, u32),
}

/// See the module's description.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    pub queues: BTreeMap<u8, Content>,
    pub exchanges: BTreeSet<u8>,
    /// From an exchange to a queue.
    pub bindings: BTreeSet<(u8, u8)>,
}

/// How many queues and how many exchanges a client has names for: few, so that they are used again.
pub const NAMES: u8 = 3;

impl World {
    /// Something that can be asked for now without an error.
    pub fn next(&self, number: u32, random: &mut Random) -> Operation {
        let mut name = || random.between(0, u64::from(NAMES) - 1) as u8;
        let (queue, exchange) = (name(), name());
        let lives = Life::ALL;
        let life = *random.pick(&lives);
        let Some(content) = self.queues.get(&queue) else {
            // Mostly such as are to stay.
            return Operation::Declare(
                queue,
                if random.percent(60) { Life::Durable } else { life },
            );
        };
        if !self.exchanges.contains(&exchange) {
            return Operation::DeclareExchange(exchange);
        }
        let is_bound = self.bindings.contains(&(exchange, queue));
        match random.between(0, 99) {
            0..=14 => Operation::Delete(queue),
            15..=19 => Operation::Purge(queue),
            20..=24 => Operation::DeleteExchange(exchange),
            25..=44 if is_bound => Operation::Unbind(exchange, queue),
            25..=44 => Operation::Bind(exchange, queue),
            45..=49 => Operation::Declare(queue, content.life),
            50..=74 => Operation::Route(exchange, queue, number),
            _ => Operation::Publish(queue, number),
        }
    }

    /// What the operation makes of the world.
    pub fn after(&self, operation: Operation) -> World {
        let mut world = self.clone();
        match operation {
            Operation::Declare(queue, life) => {
                let fresh = Content { life, messages: Vec::new() };
                world.queues.entry(queue).or_insert(fresh);
            }
            Operation::Delete(queue) => {
                world.queues.remove(&queue);
                world.bindings.retain(|(_, to)| *to != queue);
            }
            Operation::Purge(queue) => {
                world.queues.entry(queue).and_modify(|content| content.messages.clear());
            }
            Operation::DeclareExchange(exchange) => drop(world.exchanges.insert(exchange)),
            Operation::DeleteExchange(exchange) => {
                world.exchanges.remove(&exchange);
                world.bindings.retain(|(from, _)| *from != exchange);
            }
            Operation::Bind(exchange, queue) => drop(world.bindings.insert((exchange, queue))),
            Operation::Unbind(exchange, queue) => drop(world.bindings.remove(&(exchange, queue))),
            Operation::Publish(queue, number) => {
                world.queues.entry(queue).and_modify(|content| content.messages.push(number));
            }
            Operation::Route(exchange, queue, number) => {
                if self.bindings.contains(&(exchange, queue)) {
                    return self.after(Operation::Publish(queue, number));
                }
            }
        }
        world
    }

    /// What is left of the world when the broker dies.
    pub fn crashed(&self) -> World {
        let mut world = self.clone();
        world.queues.retain(|_, content| content.life.lasts());
        world.bindings.retain(|(_, queue)| self.queues[queue].life.lasts());
        world
    }

    /// Whether `found` is this world after a crash, with `open` done or not.
    pub fn may_become(&self, open: Option<Operation>, found: &World) -> bool {
        let done = open.map(|operation| self.after(operation).crashed());
        self.crashed() == *found || done.as_ref() == Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> World {
        let steps = [
            Operation::Declare(0, Life::Durable),
            Operation::Declare(1, Life::Passing),
            Operation::DeclareExchange(0),
            Operation::Bind(0, 0),
            Operation::Bind(0, 1),
            Operation::Route(0, 0, 1),
            Operation::Publish(0, 2),
        ];
        steps.iter().fold(World::default(), |world, step| world.after(*step))
    }

    #[test]
    fn the_same_world_is_accepted_without_what_does_not_last() {
        let found = world().crashed();
        assert_eq!(found.queues.keys().collect::<Vec<_>>(), [&0]);
        assert_eq!(found.queues[&0].messages, [1, 2]);
        assert_eq!(found.bindings, BTreeSet::from([(0, 0)]));
        assert!(world().may_become(None, &found));
        assert!(!world().may_become(None, &world()), "a passing queue came back");
    }

    #[test]
    fn every_difference_is_told() {
        let right = world().crashed();
        let wrong = |change: fn(&mut World)| {
            let mut found = right.clone();
            change(&mut found);
            assert!(!world().may_become(None, &found), "{found:?}");
        };
        wrong(|found| _ = found.queues.remove(&0));
        wrong(|found| _ = found.queues.insert(2, found.queues[&0].clone()));
        wrong(|found| _ = found.bindings.remove(&(0, 0)));
        wrong(|found| _ = found.bindings.insert((0, 2)));
        wrong(|found| _ = found.exchanges.insert(1));
        wrong(|found| _ = found.exchanges.remove(&0));
        wrong(|found| _ = found.queues.get_mut(&0).unwrap().messages.pop());
        wrong(|found| found.queues.get_mut(&0).unwrap().messages.push(2));
        wrong(|found| found.queues.get_mut(&0).unwrap().messages.reverse());
    }

    #[test]
    fn what_had_no_answer_is_done_or_not() {
        let open = Operation::Delete(0);
        assert!(world().may_become(Some(open), &world().crashed()));
        assert!(world().may_become(Some(open), &world().after(open).crashed()));
        let mut half = world().crashed();
        half.queues.get_mut(&0).unwrap().messages.clear();
        assert!(!world().may_become(Some(open), &half), "the queue without its messages");
        let deleted = world().after(open);
        assert!(!deleted.may_become(None, &world().crashed()), "a deleted queue came back");
        let again = deleted.after(Operation::Declare(0, Life::Durable));
        assert!(!again.may_become(None, &world().crashed()), "with its messages");
        assert!(again.may_become(None, &again.crashed()));
    }
}
