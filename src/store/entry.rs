//! From parts of runs to entries of the table of messages.
//!
//! Owns the joining of parts into entries of about [`ENTRY_BYTES`], and the bodies that several
//! queues of a group refer to: those are written once, with the list of those who refer to them,
//! instead of inside each entry.

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::batch::{Batch, Table};
use super::keys::{self, Place};
use super::part::{PIECE_BYTES, Part, Use};
use super::run_value::{self, BodyPlace, Span};

/// Messages are joined into entries of about this size, bodies included.
const ENTRY_BYTES: usize = PIECE_BYTES;

/// Bodies of this size and more are written once for all queues of a group.
const SHARED_BODY_BYTES: usize = 4 * 1024;

/// So many messages refer to one copy of a body at most.
const REFERENCES_MAX: usize = 64;

/// Ids of bodies are the group's number, and a number within the group of so many bits.
const BODY_BITS: u32 = 20;

/// A body that several queues refer to.
#[derive(Debug, Default)]
struct SharedBody {
    queues: u32,
    /// All messages that refer to it, in the order in which they are written.
    places: Vec<Place>,
    /// How many of them were given an id.
    given: usize,
    id: u64,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct EntryWriter {
    shared: FxHashMap<(usize, usize), SharedBody>,
    next_id: u64,
    /// The entry in the making.
    lane: (u64, u8),
    spans: Vec<Span>,
    places: Vec<BodyPlace>,
    records: Vec<u8>,
    bodies: Vec<Bytes>,
    body_bytes: usize,
    /// Bytes written for each lane, in the order of lanes.
    written: Vec<(u64, u8, u64)>,
}

impl EntryWriter {
    /// Begins a group with these parts, which are sorted by queue, lane and sequence number.
    pub(super) fn begin(&mut self, group: u64, parts: &[Part], uses: &[Use]) {
        self.next_id = group << BODY_BITS;
        self.written.clear();
        self.shared.clear();
        if uses.is_empty() {
            return;
        }
        for part in parts {
            for used in uses[part.uses.clone()].iter() {
                if used.body.len() < SHARED_BODY_BYTES {
                    continue;
                }
                let body = self.shared.entry(identity(&used.body)).or_default();
                let is_other = body.places.last().is_none_or(|place| place.0 != part.queue);
                body.queues += u32::from(is_other);
                body.places.push((part.queue, part.lane, used.seq));
            }
        }
        self.shared.retain(|_, body| body.queues > 1);
    }

    /// Adds a part, whose records these are.
    pub(super) fn add(&mut self, part: &Part, records: &[u8], uses: &[Use], batch: &mut Batch) {
        let bodies = uses.iter().map(|used| used.body.len()).sum::<usize>();
        let size = self.records.len() + self.body_bytes + records.len() + bodies;
        let lane = (part.queue, part.lane);
        if lane != self.lane || size > ENTRY_BYTES {
            self.finish(batch);
            self.lane = lane;
        }
        if self.spans.last().is_none_or(|span| span.last() + 1 != part.first) {
            self.spans.push(Span { first: part.first, messages: 0, bytes: 0, bodies: 0 });
        }
        let start = self.records.len();
        self.records.extend_from_slice(records);
        let span = self.spans.last_mut().expect("one was there or was pushed");
        span.messages += part.messages;
        span.bytes += records.len() as u32;
        for used in uses {
            let number = span.bodies.to_le_bytes();
            self.records[start + used.at..][..number.len()].copy_from_slice(&number);
            span.bodies += 1;
            self.body_bytes += used.body.len();
            let place = match self.shared.get_mut(&identity(&used.body)) {
                Some(shared) => {
                    BodyPlace::Shared(shared.id_for_next(&used.body, &mut self.next_id, batch))
                }
                None => {
                    self.bodies.push(used.body.clone());
                    BodyPlace::Inline(used.body.len() as u64)
                }
            };
            self.places.push(place);
        }
    }

    /// Writes the entry in the making, if any.
    pub(super) fn finish(&mut self, batch: &mut Batch) {
        let Some(last) = self.spans.last().map(Span::last) else { return };
        let (queue, lane) = self.lane;
        let Self { spans, places, records, bodies, .. } = self;
        batch.put_with(Table::Messages, &keys::place(queue, lane, last), |out| {
            run_value::write_head(spans, places.iter(), out);
            out.extend_from_slice(records);
            bodies.iter().for_each(|body| out.extend_from_slice(body));
        });
        let bytes = (self.records.len() + self.body_bytes) as u64;
        match self.written.last_mut() {
            Some((of, number, sum)) if (*of, *number) == (queue, lane) => *sum += bytes,
            _ => self.written.push((queue, lane, bytes)),
        }
        self.spans.clear();
        self.places.clear();
        self.records.clear();
        self.bodies.clear();
        self.body_bytes = 0;
    }

    /// Whether bodies are shared since the group began.
    pub(super) fn has_shared(&self) -> bool {
        !self.shared.is_empty()
    }

    /// Queue, lane and bytes, shared bodies included, that were written since the group began.
    pub(super) fn written(&self) -> &[(u64, u8, u64)] {
        &self.written
    }
}

impl SharedBody {
    /// The id of the copy that the next message refers to. Writes the copy when it is the first.
    fn id_for_next(&mut self, body: &Bytes, next_id: &mut u64, batch: &mut Batch) -> u64 {
        if self.given.is_multiple_of(REFERENCES_MAX) {
            self.id = *next_id;
            *next_id += 1;
            let to = self.places.len().min(self.given + REFERENCES_MAX);
            batch.put(Table::Bodies, &keys::body(self.id), body);
            batch.put_with(Table::Bodies, &keys::references(self.id), |out| {
                let places = &self.places[self.given..to];
                places.iter().for_each(|place| keys::write_reference(*place, out));
            });
        }
        self.given += 1;
        self.id
    }
}

/// Two bodies at the same address are the same, while both are there.
fn identity(body: &Bytes) -> (usize, usize) {
    (body.as_ptr() as usize, body.len())
}
