//! Dead letters on their way from the queue they died in to where its dead-letter exchange leads.
//!
//! Owns the copies that are made under the lock of the source, and their publishing when no lock is
//! held (never two queues at once). It must not know why a message died, nor what its headers say
//! about that: see `death`.
//!
//! The dead letters of a queue stand in line with it, and one thread at a time publishes them, so
//! that they keep their order. What is published in one go is bounded: the timer goes on with the
//! rest.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::batch::{Batch, OwnedMessage, Span, Staged};
use super::death::{self, Death};
use super::{QueueCell, Vhost};
use crate::codec::hot::{HEADER_FIXED, split_address};
use crate::codec::properties::Properties;
use crate::queue::{Body, Content, Reason, Settings};
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

/// Headers beyond this (bytes) do not fit into a queue: a dead letter whose history makes them so
/// large is dropped. Those of a client are at most half as large.
const HEADER_MAX: usize = 2 * 1024 * 1024 - 1;

/// Some dead letters of a queue that go to the same exchange.
#[derive(Debug)]
pub(super) struct Chunk {
    exchange: Box<str>,
    routing_key: Option<Box<str>>,
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
        dead: impl Iterator<Item = (Content<'c>, Reason)>,
    ) {
        let Some(exchange) = &settings.dead_letter_exchange else { return };
        let routing_key = &settings.dead_letter_routing_key;
        for (content, reason) in dead {
            let has_room = self.chunks.back().is_some_and(|chunk| {
                chunk.letters.len() < CHUNK_LETTERS
                    && chunk.arena.len() < CHUNK_BYTES
                    && chunk.exchange == *exchange
                    && chunk.routing_key == *routing_key
            });
            if !has_room {
                let (exchange, routing_key) = (exchange.clone(), routing_key.clone());
                let (arena, letters) = (Vec::new(), Vec::new());
                self.chunks.push_back(Chunk { exchange, routing_key, arena, letters });
            }
            let chunk = self.chunks.back_mut().expect("there is one now");
            let before = chunk.memory();
            chunk.add(&content, reason);
            self.bytes += chunk.memory() - before;
        }
    }

    /// Takes the oldest ones.
    pub(super) fn take(&mut self) -> Option<Chunk> {
        let chunk = self.chunks.pop_front()?;
        self.bytes -= chunk.memory();
        Some(chunk)
    }
}

impl Chunk {
    fn memory(&self) -> usize {
        self.arena.capacity() + self.letters.capacity() * size_of::<Letter>()
    }

    fn add(&mut self, content: &Content<'_>, reason: Reason) {
        let arena = &mut self.arena;
        let letter = Letter {
            address: put(arena, content.address),
            header: put(arena, content.header),
            body: match content.body {
                Body::Inline(body) => LetterBody::Inline(put(arena, body)),
                Body::Shared(body) => LetterBody::Shared(body.clone()),
            },
            reason,
        };
        self.letters.push(letter);
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
    exchange: Box<str>,
    routing_key: Option<Box<str>>,
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
    targets: Vec<Arc<QueueCell>>,
    generation: u64,
}

/// The memory that publishing dead letters takes, kept between drives.
#[derive(Debug, Default)]
pub(crate) struct Undertaker {
    batch: Batch,
    routed: Routed,
    rejected: Vec<u32>,
}

impl Undertaker {
    /// Publishes dead letters of `source` to where they go. What dies on the way is in line there.
    pub(super) fn publish(&mut self, source: &QueueCell, chunk: Chunk, drive: &mut Drive) {
        // A vhost that is gone takes its dead letters with it.
        let Some(vhost) = source.vhost() else { return };
        let Chunk { exchange, routing_key, mut arena, letters } = chunk;
        let way = Way { vhost, source: source.name(), exchange, routing_key };
        let mut template = None;
        for letter in &letters {
            self.stage(&way, letter, &mut arena, &mut template, drive);
            if self.batch.work() >= WORK_MAX {
                self.commit(&arena, drive);
            }
        }
        self.commit(&arena, drive);
    }

    fn commit(&mut self, arena: &[u8], drive: &mut Drive) {
        self.batch.commit(arena, drive, &mut self.rejected);
        // A full target that refuses publishes refuses dead letters, too (RabbitMQ: they are
        // published without confirms).
        self.rejected.clear();
    }

    fn stage(
        &mut self,
        way: &Way<'_>,
        letter: &Letter,
        arena: &mut Vec<u8>,
        template: &mut Option<Template>,
        drive: &mut Drive,
    ) {
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
        let size: [u8; 8] = body_size(old_header);
        let (targets, address) = (&made.targets, put(arena, &made.address));
        let header = put(arena, &made.header);
        arena[header.range()][HEADER_FIXED - 8..HEADER_FIXED].copy_from_slice(&size);
        if targets.is_empty() {
            return;
        }
        let staged = match &letter.body {
            LetterBody::Inline(body) => Staged::InBuffer { address, header, body: *body },
            LetterBody::Shared(body) => Staged::Owned(Box::new(OwnedMessage {
                address: made.address.clone(),
                header: arena[header.range()].to_vec(),
                body: body.clone(),
            })),
        };
        let token = self.batch.stage(staged);
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
            has_key: way.routing_key.is_some(),
        };
        let header = death::header(old_header, old_address, &death);
        let (_, old_key) = split_address(old_address);
        let key = way.routing_key.as_deref().map_or(old_key, str::as_bytes);
        let exchange = way.exchange.as_bytes();
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
        if way.routing_key.is_none() {
            keys.extend(death::carbon_copies(headers));
        }
        let body = match &letter.body {
            LetterBody::Inline(body) => Body::Inline(&arena[body.range()]),
            LetterBody::Shared(body) => Body::Shared(body),
        };
        let content = Content { address: &address, header: &header, body };
        let mut targets = way.vhost.route_dead_letter(&keys, &content, drive, &mut self.routed);
        if letter.reason != Reason::Rejected {
            targets.retain(|target| !death::is_cycle(headers, target.name()));
        }
        let generation = if self.routed.depends_on_message { NEVER } else { generation };
        Some(Template {
            old_address: old_address.to_vec(),
            old_properties: old_header[HEADER_FIXED..].to_vec(),
            reason: letter.reason,
            address,
            targets,
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
