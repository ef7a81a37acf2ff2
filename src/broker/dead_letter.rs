//! Dead letters on their way from the queue they died in to where its dead-letter exchange leads.
//!
//! Owns the copies that are made under the lock of the source, and their publishing when no lock is
//! held (never two queues at once). It must not know why a message died, nor what its headers say
//! about that: see `death`.
//!
//! A copy stays here until every target has taken it, also when the work of its connection is
//! interrupted by a crash: `Drive` keeps what was not published, and goes on with it.

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

/// Dead letters are handed to their targets when so many are ready.
const BATCH_MAX: usize = 1024;

/// An arena up to this capacity (bytes) is kept for later dead letters.
const ARENA_KEPT_BYTES: usize = 1024 * 1024;

/// Headers beyond this (bytes) do not fit into a queue: a dead letter whose history makes them so
/// large is dropped. Those of a client are at most half as large.
const HEADER_MAX: usize = 2 * 1024 * 1024 - 1;

/// Where a queue's dead letters go.
#[derive(Debug)]
struct Burial {
    source: Arc<QueueCell>,
    exchange: Box<str>,
    routing_key: Option<Box<str>>,
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

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct DeadLetters {
    /// Addresses, headers and small bodies.
    arena: Vec<u8>,
    burials: Vec<Burial>,
}

impl DeadLetters {
    pub(super) fn is_empty(&self) -> bool {
        self.burials.is_empty()
    }

    /// Copies messages that died in `source`, whose settings these are.
    pub(super) fn bury<'c>(
        &mut self,
        source: &Arc<QueueCell>,
        settings: &Settings,
        dead: impl Iterator<Item = (Content<'c>, Reason)>,
    ) {
        let Some(exchange) = &settings.dead_letter_exchange else { return };
        let letters = dead.map(|(content, reason)| Letter {
            address: self.copy(content.address),
            header: self.copy(content.header),
            body: match content.body {
                Body::Inline(body) => LetterBody::Inline(self.copy(body)),
                Body::Shared(body) => LetterBody::Shared(body.clone()),
            },
            reason,
        });
        let letters = letters.collect();
        self.burials.push(Burial {
            source: source.clone(),
            exchange: exchange.clone(),
            routing_key: settings.dead_letter_routing_key.clone(),
            letters,
        });
    }

    fn copy(&mut self, bytes: &[u8]) -> Span {
        put(&mut self.arena, bytes)
    }
}

fn put(arena: &mut Vec<u8>, bytes: &[u8]) -> Span {
    let span = Span::new(arena.len(), bytes.len());
    arena.extend_from_slice(bytes);
    span
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
    /// Publishes dead letters to where they go. What dies on the way is in `drive` again.
    pub(super) fn publish(&mut self, dead: DeadLetters, drive: &mut Drive) {
        let DeadLetters { mut arena, burials } = dead;
        for burial in burials {
            // A vhost that is gone takes its dead letters with it.
            let Some(vhost) = burial.source.vhost() else { continue };
            let mut template = None;
            for letter in &burial.letters {
                self.stage(&vhost, &burial, letter, &mut arena, &mut template, drive);
                if self.batch.work() >= BATCH_MAX {
                    self.commit(&arena, drive);
                }
            }
        }
        self.commit(&arena, drive);
        // The memory serves the next dead letters, unless it was an exception.
        arena.clear();
        if drive.dead_letters.is_empty() && arena.capacity() <= ARENA_KEPT_BYTES {
            drive.dead_letters.arena = arena;
        }
    }

    fn commit(&mut self, arena: &[u8], drive: &mut Drive) {
        self.batch.commit(arena, drive, &mut self.rejected);
        // A full target that refuses publishes refuses dead letters, too (RabbitMQ: they are
        // published without confirms).
        self.rejected.clear();
    }

    fn stage(
        &mut self,
        vhost: &Vhost,
        burial: &Burial,
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
                && template.generation == vhost.generation()
        };
        if !template.as_ref().is_some_and(is_like) {
            *template = self.template(vhost, burial, letter, arena, drive);
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
        vhost: &Vhost,
        burial: &Burial,
        letter: &Letter,
        arena: &[u8],
        drive: &mut Drive,
    ) -> Option<Template> {
        let old_address = &arena[letter.address.range()];
        let old_header = &arena[letter.header.range()];
        let death = Death {
            queue: burial.source.name(),
            reason: letter.reason,
            time_s: drive.now.0 / 1000,
            has_key: burial.routing_key.is_some(),
        };
        let header = death::header(old_header, old_address, &death);
        let (_, old_key) = split_address(old_address);
        let key = burial.routing_key.as_deref().map_or(old_key, str::as_bytes);
        let exchange = burial.exchange.as_bytes();
        let mut address = Vec::with_capacity(2 + exchange.len() + key.len());
        for part in [exchange, key] {
            address.push(u8::try_from(part.len()).ok()?);
            address.extend_from_slice(part);
        }
        if header.len() > HEADER_MAX {
            return None;
        }
        let generation = vhost.generation();
        let headers = Properties::of_header(&header).headers().unwrap_or_default();
        let mut keys = vec![key];
        if burial.routing_key.is_none() {
            keys.extend(death::carbon_copies(headers));
        }
        let body = match &letter.body {
            LetterBody::Inline(body) => Body::Inline(&arena[body.range()]),
            LetterBody::Shared(body) => Body::Shared(body),
        };
        let content = Content { address: &address, header: &header, body };
        let mut targets = vhost.route_dead_letter(&keys, &content, drive, &mut self.routed);
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
