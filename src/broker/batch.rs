//! One socket read's worth of publishes and settlements, applied queue by queue.
//!
//! Owns the staging of messages and the grouping by queue, so that each queue touched is locked
//! once. It must not know of channels, exchanges or errors: what is staged has been routed and
//! checked.
//!
//! A staged message is a set of ranges in the read buffer wherever possible; it is copied at most
//! once, into the queue's segment or the consumer's outbox. Everything staged is committed before
//! the read buffer is used again.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::QueueCell;
use super::drive::Drive;
use super::memory::{CountedBody, Memory};
use super::queue_cell::{Operation, Settlement};
use crate::queue::{Body, Content, FANNED_BODY_MIN, Slot};
use crate::routing::QueueId;

/// Vectors of operations kept for later batches.
const SPARE_MAX: usize = 64;

/// Above this many queues in a batch, a map finds a queue's part faster than a walk.
const WALK_MAX: usize = 8;

/// A range of the read buffer. Reads are far smaller than 4 GiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    pub(crate) fn new(start: usize, len: usize) -> Self {
        Self { start: start as u32, end: (start + len) as u32 }
    }

    pub(crate) fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// A message that outlives the read it came with.
#[derive(Clone, Debug)]
pub(crate) struct OwnedMessage {
    pub(crate) address: Vec<u8>,
    pub(crate) header: Vec<u8>,
    pub(crate) body: Bytes,
}

impl OwnedMessage {
    /// The same message with a large body in the memory gauge, for as long as anybody holds it. A
    /// small one is copied into queues, and lives no longer than its batch.
    pub(crate) fn counted(mut self, memory: &Arc<Memory>) -> Self {
        if self.is_shared() {
            // Nobody else holds it yet: this takes the buffer over and does not copy.
            let body = Vec::from(std::mem::take(&mut self.body));
            self.body = Bytes::from_owner(CountedBody::new(body, memory));
        }
        self
    }

    pub(crate) fn content(&self) -> Content<'_> {
        let body =
            if self.is_shared() { Body::Shared(&self.body) } else { Body::Inline(&self.body) };
        Content { address: &self.address, header: &self.header, body }
    }

    /// Whether queues share the body: it is a buffer of its own already.
    fn is_shared(&self) -> bool {
        self.body.len() >= FANNED_BODY_MIN
    }
}

/// A message that is ready to be enqueued.
#[derive(Debug)]
pub(crate) enum Staged {
    /// Whole in the read buffer.
    InBuffer { address: Span, header: Span, body: Span },
    /// Collected over several reads, rewritten, or with a large body.
    Owned(Box<OwnedMessage>),
}

impl Staged {
    pub(crate) fn content<'a>(&'a self, buffer: &'a [u8]) -> Content<'a> {
        match self {
            Self::InBuffer { address, header, body } => Content {
                address: &buffer[address.range()],
                header: &buffer[header.range()],
                body: Body::Inline(&buffer[body.range()]),
            },
            Self::Owned(message) => message.content(),
        }
    }

    /// The same message in the form that is best for several queues.
    pub(crate) fn for_several(self, buffer: &[u8], memory: &Arc<Memory>) -> Self {
        match self {
            Self::InBuffer { address, header, body } if body.range().len() >= FANNED_BODY_MIN => {
                let copy = |span: Span| buffer[span.range()].to_vec();
                let (address, header, body) = (copy(address), copy(header), copy(body).into());
                Self::Owned(Box::new(OwnedMessage { address, header, body }.counted(memory)))
            }
            staged => staged,
        }
    }

    /// Whether several queues would share the body.
    fn is_shared(&self) -> bool {
        matches!(self, Self::Owned(message) if message.is_shared())
    }
}

/// What a batch does to one queue.
#[derive(Debug)]
struct Part {
    cell: Arc<QueueCell>,
    operations: Vec<Operation>,
}

/// See the module's description.
#[derive(Debug, Default)]
pub struct Batch {
    messages: Vec<Staged>,
    parts: Vec<Part>,
    /// Emptied vectors of earlier parts.
    spare: Vec<Vec<Operation>>,
    part_of: FxHashMap<QueueId, u32>,
    /// The part that was looked up last.
    last: usize,
    /// Messages to be put into queues, each queue counted.
    work: usize,
    /// Whether queues may share a body.
    has_shared: bool,
}

impl Batch {
    /// How many messages are to be put into queues, each queue counted.
    pub(crate) fn work(&self) -> usize {
        self.work
    }

    /// Whether nothing is staged.
    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.parts.is_empty()
    }

    /// Stages a message; the result names it to [`Batch::enqueue`].
    pub(crate) fn stage(&mut self, message: Staged) -> u32 {
        self.has_shared |= message.is_shared();
        self.messages.push(message);
        self.messages.len() as u32 - 1
    }

    /// Sends a staged message to a queue.
    pub(crate) fn enqueue(&mut self, cell: &Arc<QueueCell>, token: u32) {
        let part = self.part(cell);
        self.parts[part].operations.push(Operation::Publish(token));
        self.work += 1;
    }

    /// Settles a delivery of a queue.
    pub(crate) fn settle(&mut self, cell: &Arc<QueueCell>, slot: Slot, settlement: Settlement) {
        let part = self.part(cell);
        self.parts[part].operations.push(Operation::Settle(slot, settlement));
    }

    /// Applies everything. `buffer` is what the staged spans refer to. The tokens of publishes
    /// that some queue refused are added to `rejected`, in no order.
    pub(crate) fn commit(&mut self, buffer: &[u8], drive: &mut Drive, rejected: &mut Vec<u32>) {
        let messages = &self.messages;
        let content = |token: u32| messages[token as usize].content(buffer);
        // What belongs together is stored together.
        let is_fanout = self.has_shared && self.parts.len() > 1;
        let store = self.parts.iter().find_map(|part| part.cell.store()).filter(|_| is_fanout);
        let together = store.map(|store| store.keep_together());
        for part in &self.parts {
            part.cell.commit(&part.operations, content, drive);
            rejected.append(&mut drive.effects.rejected);
        }
        drop(together);
        self.clear();
    }

    /// Drops the publishes and applies the settlements, those that were applied already included,
    /// which does nothing: for a batch that a crash has interrupted.
    pub(crate) fn abandon(&mut self, drive: &mut Drive) {
        for mut part in std::mem::take(&mut self.parts) {
            part.operations.retain(|operation| matches!(operation, Operation::Settle(..)));
            let nothing = |_| unreachable!("no publish is left");
            part.cell.commit(&part.operations, nothing, drive);
        }
        self.clear();
    }

    fn clear(&mut self) {
        for Part { mut operations, .. } in self.parts.drain(..) {
            operations.clear();
            self.spare.push(operations);
        }
        self.messages.clear();
        self.part_of.clear();
        self.last = 0;
        self.work = 0;
        self.has_shared = false;
        // A batch for very many queues was an exception.
        self.spare.truncate(SPARE_MAX);
    }

    /// The index of the queue's part.
    fn part(&mut self, cell: &Arc<QueueCell>) -> usize {
        let id = cell.id();
        // The same queue again, or the next or first one of a fan-out.
        for guess in [self.last, self.last + 1, 0] {
            if self.parts.get(guess).is_some_and(|part| part.cell.id() == id) {
                self.last = guess;
                return guess;
            }
        }
        let known = if self.parts.len() <= WALK_MAX {
            self.parts.iter().position(|part| part.cell.id() == id)
        } else {
            self.part_of.get(&id).map(|index| *index as usize)
        };
        self.last = known.unwrap_or_else(|| {
            let operations = self.spare.pop().unwrap_or_default();
            self.parts.push(Part { cell: cell.clone(), operations });
            let index = self.parts.len() - 1;
            if self.parts.len() == WALK_MAX + 1 {
                let all = self.parts.iter().enumerate();
                self.part_of.extend(all.map(|(i, part)| (part.cell.id(), i as u32)));
            } else if self.parts.len() > WALK_MAX {
                self.part_of.insert(id, index as u32);
            }
            index
        });
        self.last
    }
}
