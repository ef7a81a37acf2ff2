//! Dead letters on their way from the queue they died in to where its dead-letter exchange leads.
//!
//! Owns the copies that are made under the lock of the source, and their publishing when no lock is
//! held (never two queues at once). It must not know why a message died, nor what its headers say
//! about that: see `death`.
//!
//! The dead letters of a queue stand in line with it, and one thread at a time publishes them, so
//! that they keep their order. What is published in one go is bounded: the timer goes on with the
//! rest. With the strategy `at-least-once`, what a target refuses or what leads nowhere waits and
//! is tried again.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::batch::{Batch, OwnedMessage, Span, Staged};
use super::death::{self, Death};
use super::{QueueCell, Vhost};
use crate::clock::Millis;
use crate::codec::hot::{HEADER_FIXED, split_address};
use crate::codec::properties::Properties;
use crate::queue::{Body, Content, Place, Reason, Settings};
use crate::routing::Routed;

use super::drive::Drive;

/// Dead letters that are published together.
const CHUNK_LETTERS: usize = 1024;

/// A chunk takes no more letters when it holds this many bytes.
const CHUNK_BYTES: usize = 1024 * 1024;

/// Chunks that are published in one go; others get their turn before the rest.
pub(super) const CHUNKS_AT_ONCE: usize = 8;

/// Dead letters are handed to their targets when they are so many, each target counted.
const WORK_MAX: usize = 4096;

/// After this many milliseconds, what found no target is tried again.
const RETRY_MS: u64 = 5000;

/// Headers beyond this (bytes) do not fit into a queue: a dead letter whose history makes them so
/// large is dropped. Those of a client are at most half as large.
const HEADER_MAX: usize = 2 * 1024 * 1024 - 1;

/// Some dead letters of a queue that go to the same exchange.
#[derive(Debug)]
pub(super) struct Chunk {
    exchange: Box<str>,
    routing_key: Option<Box<str>>,
    at_least_once: bool,
    /// Addresses, headers and small bodies.
    arena: Vec<u8>,
    letters: Vec<Letter>,
}

#[derive(Debug)]
struct Letter {
    address: Span,
    header: Span,
    body: LetterBody,
    reason: Reason,
    /// What the store has it as, in the queue that it died in.
    place: Option<Place>,
}

#[derive(Debug)]
enum LetterBody {
    Inline(Span),
    Shared(Bytes),
}

/// The dead letters of one queue, oldest first.
#[derive(Debug, Default)]
pub(super) struct DeadLetters {
    chunks: VecDeque<Chunk>,
    /// What is tried again, and when.
    stuck: VecDeque<(Millis, Chunk)>,
    bytes: usize,
    /// Somebody is publishing them, and will go on to the last.
    pub(super) in_hand: bool,
}

impl DeadLetters {
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes held, shared bodies excepted.
    pub(super) fn memory(&self) -> usize {
        self.bytes
    }

    /// Copies messages that died in a queue with these settings.
    pub(super) fn bury<'c>(
        &mut self,
        settings: &Settings,
        dead: impl Iterator<Item = (Content<'c>, Reason, Option<Place>)>,
    ) {
        let Some(exchange) = &settings.dead_letter_exchange else { return };
        let routing_key = &settings.dead_letter_routing_key;
        // Asked once, and not for each letter.
        let mut is_same = self.chunks.back().is_some_and(|chunk| {
            chunk.exchange == *exchange
                && chunk.routing_key == *routing_key
                && chunk.at_least_once == settings.keeps_dead_letters()
        });
        for (content, reason, place) in dead {
            let has_room = self.chunks.back().is_some_and(Chunk::has_room);
            if !(is_same && has_room) {
                is_same = true;
                self.chunks.push_back(Chunk {
                    exchange: exchange.clone(),
                    routing_key: routing_key.clone(),
                    at_least_once: settings.keeps_dead_letters(),
                    arena: Vec::new(),
                    letters: Vec::new(),
                });
            }
            let chunk = self.chunks.back_mut().expect("there is one now");
            let before = chunk.memory();
            chunk.add(&content, reason, place);
            self.bytes += chunk.memory() - before;
        }
    }

    /// Takes the oldest ones.
    pub(super) fn take(&mut self) -> Option<Chunk> {
        let chunk = self.chunks.pop_front()?;
        self.bytes -= chunk.memory();
        Some(chunk)
    }

    /// Keeps what found no target until it is tried again.
    pub(super) fn put_off(&mut self, chunk: Chunk, now: Millis) {
        self.bytes += chunk.memory();
        self.stuck.push_back((Millis(now.0 + RETRY_MS), chunk));
    }

    /// When something is to be tried again.
    pub(super) fn next_retry(&self) -> Option<Millis> {
        self.stuck.front().map(|(at, _)| *at)
    }

    /// Puts what is to be tried again in line.
    pub(super) fn retry(&mut self, now: Millis) {
        while self.next_retry().is_some_and(|at| at <= now) {
            self.chunks.extend(self.stuck.pop_front().map(|(_, chunk)| chunk));
        }
    }
}

impl Chunk {
    fn memory(&self) -> usize {
        self.arena.capacity() + self.letters.capacity() * size_of::<Letter>()
    }

    fn has_room(&self) -> bool {
        self.letters.len() < CHUNK_LETTERS && self.arena.len() < CHUNK_BYTES
    }

    fn add(&mut self, content: &Content<'_>, reason: Reason, place: Option<Place>) {
        let arena = &mut self.arena;
        let letter = Letter {
            address: put(arena, content.address),
            header: put(arena, content.header),
            body: match content.body {
                Body::Inline(body) => LetterBody::Inline(put(arena, body)),
                Body::Shared(body) => LetterBody::Shared(body.clone()),
            },
            reason,
            place,
        };
        self.letters.push(letter);
    }

    /// A chunk of some letters of this one, whose arena this is.
    fn part(&self, letters: &[usize], arena: &[u8]) -> Self {
        let mut part = Self {
            exchange: self.exchange.clone(),
            routing_key: self.routing_key.clone(),
            at_least_once: self.at_least_once,
            arena: Vec::new(),
            letters: Vec::new(),
        };
        for letter in letters.iter().map(|index| &self.letters[*index]) {
            let content = Content {
                address: &arena[letter.address.range()],
                header: &arena[letter.header.range()],
                body: letter.body.within(arena),
            };
            part.add(&content, letter.reason, letter.place);
        }
        part
    }
}

impl LetterBody {
    fn within<'a>(&'a self, arena: &'a [u8]) -> Body<'a> {
        match self {
            Self::Inline(body) => Body::Inline(&arena[body.range()]),
            Self::Shared(body) => Body::Shared(body),
        }
    }
}

fn put(arena: &mut Vec<u8>, bytes: &[u8]) -> Span {
    let span = Span::new(arena.len(), bytes.len());
    arena.extend_from_slice(bytes);
    span
}

/// Where dead letters come from and go to.
struct Way<'a> {
    vhost: Arc<Vhost>,
    source: &'a str,
    chunk: &'a Chunk,
}

/// The last dead letter that was made: most are like the one before but for their body.
#[derive(Debug)]
struct Template {
    old_address: Vec<u8>,
    /// Without its fixed part, which has the size of the body.
    old_properties: Vec<u8>,
    reason: Reason,
    address: Vec<u8>,
    header: Vec<u8>,
    /// Where address and header already stand in the arena, for bodies of this size.
    placed: Option<([u8; 8], Span, Span)>,
    targets: Vec<Arc<QueueCell>>,
    /// Some target was left out because the message would go round for ever.
    is_cycle: bool,
    generation: u64,
}

/// The memory that publishing dead letters takes, kept between drives.
#[derive(Debug, Default)]
pub(crate) struct Undertaker {
    batch: Batch,
    routed: Routed,
    rejected: Vec<u32>,
    /// The letters that the tokens of the batch stand for.
    staged: Vec<usize>,
    /// Letters without a target, or that a target refused.
    stuck: Vec<usize>,
}

impl Undertaker {
    /// Publishes dead letters of `source` to where they go. What dies on the way is in line there.
    /// Answers what is to be tried again.
    pub(super) fn publish(
        &mut self,
        source: &Arc<QueueCell>,
        mut chunk: Chunk,
        drive: &mut Drive,
    ) -> Option<Chunk> {
        // A vhost that is gone takes its dead letters with it.
        let vhost = source.vhost()?;
        // A crash should find a dead letter in one place, in the source or where it goes.
        let _together = source.store().map(|store| store.keep_together());
        let mut arena = std::mem::take(&mut chunk.arena);
        let mut template = None;
        let way = Way { vhost, source: source.name(), chunk: &chunk };
        for index in 0..chunk.letters.len() {
            self.stage(&way, index, &mut arena, &mut template, drive);
            if self.batch.work() >= WORK_MAX {
                self.commit(&arena, drive);
            }
        }
        self.commit(&arena, drive);
        let mut stuck = std::mem::take(&mut self.stuck);
        if !chunk.at_least_once {
            stuck.clear();
        }
        stuck.sort_unstable();
        stuck.dedup();
        // The store has the copies by now, or will have them before it hears of this: a crash
        // between may double a dead letter, and loses none.
        let done = chunk.letters.iter().enumerate();
        let done = done.filter(|(index, _)| stuck.binary_search(index).is_err());
        let places: Vec<Place> = done.filter_map(|(_, letter)| letter.place).collect();
        source.bury(&places, drive);
        (!stuck.is_empty()).then(|| chunk.part(&stuck, &arena))
    }

    fn commit(&mut self, arena: &[u8], drive: &mut Drive) {
        self.batch.commit(arena, drive, &mut self.rejected);
        // Otherwise a full target that refuses publishes refuses dead letters, too (RabbitMQ: they
        // are published without confirms).
        let staged = &self.staged;
        self.stuck.extend(self.rejected.drain(..).map(|token| staged[token as usize]));
        self.staged.clear();
    }

    fn stage(
        &mut self,
        way: &Way<'_>,
        index: usize,
        arena: &mut Vec<u8>,
        template: &mut Option<Template>,
        drive: &mut Drive,
    ) {
        let letter = &way.chunk.letters[index];
        let old_header = &arena[letter.header.range()];
        let is_like = |template: &Template| {
            template.reason == letter.reason
                && template.old_address == arena[letter.address.range()]
                && template.old_properties == old_header[HEADER_FIXED..]
                && template.generation == way.vhost.generation()
        };
        if !template.as_ref().is_some_and(is_like) {
            *template = self.template(way, letter, arena, drive);
        }
        let Some(made) = template else { return };
        if made.targets.is_empty() {
            self.stuck.extend((!made.is_cycle).then_some(index));
            return;
        }
        let size: [u8; 8] = body_size(old_header);
        let (address, header) = match made.placed {
            Some((placed, address, header)) if placed == size => (address, header),
            _ => {
                let (address, header) = (put(arena, &made.address), put(arena, &made.header));
                arena[header.range()][HEADER_FIXED - 8..HEADER_FIXED].copy_from_slice(&size);
                made.placed = Some((size, address, header));
                (address, header)
            }
        };
        let targets = &made.targets;
        let staged = match &letter.body {
            LetterBody::Inline(body) => Staged::InBuffer { address, header, body: *body },
            LetterBody::Shared(body) => Staged::Owned(Box::new(OwnedMessage {
                address: made.address.clone(),
                header: arena[header.range()].to_vec(),
                body: body.clone(),
            })),
        };
        let token = self.batch.stage(staged);
        self.staged.push(index);
        debug_assert_eq!(token as usize + 1, self.staged.len());
        targets.iter().for_each(|target| self.batch.enqueue(target, token));
    }

    /// Makes the address and header of a dead letter, and finds its targets. `None` when it cannot
    /// be made.
    fn template(
        &mut self,
        way: &Way<'_>,
        letter: &Letter,
        arena: &[u8],
        drive: &mut Drive,
    ) -> Option<Template> {
        let old_address = &arena[letter.address.range()];
        let old_header = &arena[letter.header.range()];
        let death = Death {
            queue: way.source,
            reason: letter.reason,
            time_s: drive.now.0 / 1000,
            has_key: way.chunk.routing_key.is_some(),
        };
        let header = death::header(old_header, old_address, &death);
        let (_, old_key) = split_address(old_address);
        let key = way.chunk.routing_key.as_deref().map_or(old_key, str::as_bytes);
        let exchange = way.chunk.exchange.as_bytes();
        let mut address = Vec::with_capacity(2 + exchange.len() + key.len());
        for part in [exchange, key] {
            address.push(u8::try_from(part.len()).ok()?);
            address.extend_from_slice(part);
        }
        if header.len() > HEADER_MAX {
            return None;
        }
        let generation = way.vhost.generation();
        let headers = Properties::of_header(&header).headers().unwrap_or_default();
        let mut keys = vec![key];
        if way.chunk.routing_key.is_none() {
            keys.extend(death::carbon_copies(headers));
        }
        let body = letter.body.within(arena);
        let content = Content { address: &address, header: &header, body };
        let mut targets = way.vhost.route_dead_letter(&keys, &content, drive, &mut self.routed);
        let found = targets.len();
        if letter.reason != Reason::Rejected {
            targets.retain(|target| !death::is_cycle(headers, target.name()));
        }
        let is_cycle = targets.len() < found;
        let generation = if self.routed.depends_on_message { NEVER } else { generation };
        Some(Template {
            old_address: old_address.to_vec(),
            old_properties: old_header[HEADER_FIXED..].to_vec(),
            reason: letter.reason,
            address,
            placed: None,
            targets,
            is_cycle,
            generation,
            header,
        })
    }
}

/// The generation of a template that is good for one message.
const NEVER: u64 = 0;

/// The field `body-size`, which ends the fixed part of a header.
fn body_size(header: &[u8]) -> [u8; 8] {
    let bytes = header[..HEADER_FIXED].last_chunk::<8>();
    *bytes.expect("only well-formed headers are stored")
}

#[cfg(test)]
mod tests {
    use super::super::queue_cell::{Declaration, Operation};
    use super::super::{ConnectionId, Services};
    use super::*;
    use crate::codec::method::{AMQPValue, FieldTable};

    const SOURCE: ConnectionId = ConnectionId(1);

    fn declare(
        vhost: &Vhost,
        name: &str,
        arguments: &[(&str, AMQPValue)],
        drive: &mut Drive,
    ) -> Arc<QueueCell> {
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert((*name).into(), value.clone());
        }
        let declaration = Declaration { durable: true, arguments: table, ..Declaration::default() };
        vhost.declare_queue(name, SOURCE, declaration, drive).expect("a valid queue")
    }

    fn publish(queue: &Arc<QueueCell>, count: u32, drive: &mut Drive) {
        let content = |_| Content {
            address: b"\0\x01s",
            header: b"\0\x3c\0\0\0\0\0\0\0\0\0\x01\0\0",
            body: Body::Inline(b"x"),
        };
        let operations: Vec<Operation> = (0..count).map(Operation::Publish).collect();
        queue.commit(&operations, content, drive);
        drive.effects.rejected.clear();
        drive.finish();
    }

    fn text(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    /// A queue that dead-letters everything at once to the queue `target`.
    fn source(vhost: &Vhost, strategy: &str, drive: &mut Drive) -> Arc<QueueCell> {
        let arguments = [
            ("x-queue-type", text("quorum")),
            ("x-overflow", text("reject-publish")),
            ("x-message-ttl", AMQPValue::LongInt(0)),
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-routing-key", text("target")),
            ("x-dead-letter-strategy", text(strategy)),
        ];
        declare(vhost, "s", &arguments, drive)
    }

    #[test]
    fn at_least_once_a_dead_letter_waits_until_its_targets_take_it() {
        let (services, mut drive) = (Services::for_test(), Drive::default());
        let vhost = Vhost::new("/", services.clone());
        let source = source(&vhost, "at-least-once", &mut drive);
        publish(&source, 3, &mut drive);
        let full =
            [("x-max-length", AMQPValue::LongInt(2)), ("x-overflow", text("reject-publish"))];
        let target = declare(&vhost, "target", &full, &mut drive);
        assert_eq!(target.counts().0, 0, "there was no target");
        drive.now.0 += RETRY_MS;
        services.deadlines.tick(&mut drive);
        drive.finish();
        assert_eq!(target.counts().0, 2, "there is room for two");
        target.purge(&mut drive);
        drive.now.0 += RETRY_MS;
        services.deadlines.tick(&mut drive);
        drive.finish();
        assert_eq!(target.counts().0, 1);
        target.purge(&mut drive);
        drive.now.0 += RETRY_MS;
        services.deadlines.tick(&mut drive);
        drive.finish();
        assert_eq!(target.counts().0, 0, "nothing is left");
    }

    #[test]
    fn at_most_once_a_dead_letter_without_a_target_is_gone() {
        let (services, mut drive) = (Services::for_test(), Drive::default());
        let vhost = Vhost::new("/", services.clone());
        let source = source(&vhost, "at-most-once", &mut drive);
        publish(&source, 1, &mut drive);
        let target = declare(&vhost, "target", &[], &mut drive);
        drive.now.0 += RETRY_MS;
        services.deadlines.tick(&mut drive);
        drive.finish();
        assert_eq!(target.counts().0, 0);
    }

    #[test]
    fn what_is_published_at_once_is_bounded_and_the_timer_goes_on() {
        let (services, mut drive) = (Services::for_test(), Drive::default());
        let vhost = Vhost::new("/", services.clone());
        let target = declare(&vhost, "target", &[], &mut drive);
        let full = [
            ("x-max-length", AMQPValue::LongInt(0)),
            ("x-overflow", text("reject-publish-dlx")),
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-routing-key", text("target")),
        ];
        let source = declare(&vhost, "s", &full, &mut drive);
        let at_once = (CHUNKS_AT_ONCE * CHUNK_LETTERS) as u32;
        publish(&source, 2 * at_once, &mut drive);
        assert_eq!(target.counts().0, at_once);
        services.deadlines.tick(&mut drive);
        drive.finish();
        assert_eq!(target.counts().0, 2 * at_once);
    }
}
