//! What stands between a queue and the disk: groups that are not yet written, pieces that were put
//! aside, messages on their way into memory.
//!
//! Owns what the broker does with what a queue hands over and wants, under conditions that a
//! history sets, and what is left after a crash. It must not know what the queue does.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::history::Conditions;
use super::kept::Kept;
use crate::queue::{Effects, LaneHead, Loaded, Place, Queue, Records, Wanted};

/// What commands in a row leave, and what is written at once.
#[derive(Debug)]
struct Group {
    number: u64,
    /// Commands before, since the broker was started.
    first_command: usize,
    records: Vec<Records>,
}

/// Messages that were read.
#[derive(Debug)]
pub(super) enum Fetched {
    Stored(Loaded),
    /// What was put aside under this number.
    Piece(Wanted, u64, Vec<u8>),
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Storage {
    is_durable: bool,
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
    pub(super) fetched: VecDeque<Fetched>,
    /// What was put aside, by number.
    pieces: BTreeMap<u64, Vec<u8>>,
    last_piece: u64,
    /// What was handed over last of each lane.
    pub(super) heads: BTreeMap<u8, LaneHead>,
    /// Dead letters that have not arrived, with the numbers of their messages.
    pub(super) dying: Vec<(usize, Place)>,
}

impl Storage {
    pub(super) fn new(conditions: Conditions, is_durable: bool) -> Self {
        Self {
            is_durable,
            conditions,
            kept: Kept::default(),
            records: Records::default(),
            waiting: VecDeque::new(),
            written: 0,
            commands: 0,
            fetched: VecDeque::new(),
            pieces: BTreeMap::new(),
            last_piece: 0,
            heads: BTreeMap::new(),
            dying: Vec::new(),
        }
    }

    pub(super) fn is_durable(&self) -> bool {
        self.is_durable
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
        if let Some((budget, pieces_max)) = self.conditions.aside {
            let put = |piece: &[u8]| {
                if self.pieces.len() >= pieces_max {
                    return Err(());
                }
                self.last_piece += 1;
                self.pieces.insert(self.last_piece, piece.to_vec());
                Ok(self.last_piece)
            };
            let put_aside = queue.spill(budget, put, effects);
            assert!(put_aside.is_ok() || self.pieces.len() >= pieces_max);
        }
        for piece in effects.take_dropped_pieces() {
            assert!(self.pieces.remove(&piece).is_some(), "it was there");
        }
    }

    /// Checks that what was put aside is what the queue knows of.
    pub(super) fn check_pieces(&self, queue: &Queue) {
        let mut pieces = queue.pieces();
        pieces.sort_unstable();
        assert_eq!(pieces, self.pieces.keys().copied().collect::<Vec<u64>>());
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
            self.kept.apply(records, self.conditions.cleaning);
            self.kept.apply(records, self.conditions.cleaning);
        }
    }

    /// Reads messages that the queue wants; with `at_once`, also what nobody waits for.
    pub(super) fn read(&self, queue: &Queue, at_once: bool) -> Option<Fetched> {
        let wanted = queue.wanted();
        let wanted = if at_once { wanted.or_else(|| queue.wanted_at_once()) } else { wanted }?;
        if let Some(number) = wanted.spilled {
            return Some(Fetched::Piece(wanted, number, self.pieces[&number].clone()));
        }
        let (end, runs, marks) = self.kept.read(wanted.lane, wanted.from, &self.conditions);
        Some(Fetched::Stored(Loaded::build(wanted, end, &runs, &marks)))
    }

    /// Takes in what was read.
    pub(super) fn take_in(&mut self, queue: &mut Queue, fetched: Fetched) {
        match fetched {
            Fetched::Stored(loaded) => assert_eq!(queue.install(loaded), 0, "nothing is lost"),
            Fetched::Piece(wanted, number, piece) => {
                let is_there = self.pieces.remove(&number).is_some();
                let was_missed = queue.take_back(wanted, number, &piece, &Bytes::copy_from_slice);
                assert_eq!(was_missed, is_there);
            }
        }
    }

    /// Forgets what a crash takes, `lost` groups among it. Answers of how many commands, since the
    /// broker was started, the effects last; `None` when no queue would survive.
    pub(super) fn crash(&mut self, lost: usize) -> Option<usize> {
        if !self.is_durable {
            return None;
        }
        let written = self.waiting.len().saturating_sub(lost);
        (0..written).for_each(|_| self.write_next());
        let commands = self.waiting.front().map_or(self.commands, |group| group.first_command);
        self.waiting.clear();
        self.fetched.clear();
        self.pieces.clear();
        self.dying.clear();
        self.heads.clone_from(&self.kept.heads);
        self.commands = 0;
        Some(commands)
    }
}
