//! What stands between a durable queue and its store: groups that are not yet written, messages on
//! their way into memory.
//!
//! Owns what the broker does with what a queue hands over and wants, under conditions that a
//! history sets, and what is left after a crash. It must not know what the queue does.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::history::Conditions;
use super::kept::Kept;
use crate::queue::{Effects, LaneHead, Loaded, Place, Queue, Records};

/// What commands in a row leave, and what is written at once.
#[derive(Debug)]
struct Group {
    number: u64,
    /// Commands before, since the broker was started.
    first_command: usize,
    records: Vec<Records>,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Storage {
    pub(super) conditions: Conditions,
    pub(super) kept: Kept,
    /// What the queue has left in this command so far.
    records: Records,
    waiting: VecDeque<Group>,
    /// The last one that was written.
    written: u64,
    /// Commands since the broker was started.
    commands: usize,
    /// What was read and not taken in.
    pub(super) fetched: VecDeque<Loaded>,
    /// What was handed over last of each lane.
    pub(super) heads: BTreeMap<u8, LaneHead>,
    /// Dead letters that have not arrived, with the numbers of their messages.
    pub(super) dying: Vec<(usize, Place)>,
}

impl Storage {
    pub(super) fn new(conditions: Conditions) -> Self {
        Self {
            conditions,
            kept: Kept::default(),
            records: Records::default(),
            waiting: VecDeque::new(),
            written: 0,
            commands: 0,
            fetched: VecDeque::new(),
            heads: BTreeMap::new(),
            dying: Vec::new(),
        }
    }

    /// Takes what the queue leaves, before dead letters leave it.
    pub(super) fn take(&mut self, queue: &mut Queue) {
        queue.hand_over(&mut self.records);
    }

    /// Ends a command: takes what the queue leaves, writes what is due, and lets the queue make
    /// room.
    pub(super) fn keep(&mut self, queue: &mut Queue, effects: &mut Effects) {
        self.take(queue);
        let mut records = std::mem::take(&mut self.records);
        if !records.is_empty() {
            // Nothing but the queue holds the bodies of publishers.
            for body in &mut records.bodies {
                *body = Bytes::copy_from_slice(body);
            }
            self.heads.extend(records.heads.iter().map(|head| (head.lane, *head)));
            let commands_max = usize::from(self.conditions.group_commands);
            let open = self.waiting.back_mut();
            match open.filter(|group| self.commands - group.first_command < commands_max) {
                Some(group) => group.records.push(records),
                None => {
                    let number = self.written + self.waiting.len() as u64 + 1;
                    let (first_command, records) = (self.commands, vec![records]);
                    self.waiting.push_back(Group { number, first_command, records });
                }
            }
            queue.handed_over(self.waiting.back().expect("one was added to").number);
        }
        self.commands += 1;
        self.write(usize::from(self.conditions.lag));
        let written = self.written;
        queue.evict(self.conditions.budget, &|group| group <= written, effects);
    }

    /// Writes groups that nothing can be added to until no more than `left` wait.
    fn write(&mut self, left: usize) {
        let commands_max = usize::from(self.conditions.group_commands);
        let commands = self.commands;
        let is_full = |group: &Group| commands - group.first_command >= commands_max;
        while self.waiting.len() > left && self.waiting.front().is_some_and(is_full) {
            self.write_next();
        }
    }

    fn write_next(&mut self) {
        let Some(group) = self.waiting.pop_front() else { return };
        self.written = group.number;
        for records in &group.records {
            self.kept.apply(records, self.conditions.is_tidy);
            self.kept.apply(records, self.conditions.is_tidy);
        }
    }

    /// Reads messages that the queue wants; with `at_once`, also what nobody waits for.
    pub(super) fn read(&self, queue: &Queue, at_once: bool) -> Option<Loaded> {
        let wanted = queue.wanted();
        let wanted = if at_once { wanted.or_else(|| queue.wanted_at_once()) } else { wanted }?;
        let (end, runs, marks) = self.kept.read(wanted.lane, wanted.from, &self.conditions);
        Some(Loaded::build(wanted, end, &runs, &marks))
    }

    /// Forgets what a crash takes, `lost` groups among it. Answers of how many commands, since the
    /// broker was started, the effects last.
    pub(super) fn crash(&mut self, lost: usize) -> usize {
        let written = self.waiting.len().saturating_sub(lost);
        (0..written).for_each(|_| self.write_next());
        let commands = self.waiting.front().map_or(self.commands, |group| group.first_command);
        self.waiting.clear();
        self.fetched.clear();
        self.dying.clear();
        self.heads.clone_from(&self.kept.heads);
        self.commands = 0;
        commands
    }
}
