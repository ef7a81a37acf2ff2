//! basic.publish: from complete content to staged message.
//!
//! Owns the checks on a published message, the cache of routes, mandatory returns, and the
//! numbering of confirms. It must not lock a queue: that happens when the batch is committed.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::channel::Mode;
use super::content::{Incoming, Message};
use super::transaction::{Pending, PendingKept};
use super::{Connection, Worker};
use crate::broker::{Answer, Drive, QueueCell, Right, Span, Staged};
use crate::codec::encode;
use crate::codec::frame::Frame;
use crate::codec::hot::{self, Publish};
use crate::codec::properties::{self, Properties};
use crate::codec::table::{self, Value};
use crate::error::{AmqpError, ReplyCode};
use crate::queue::{Content, parse_expiration};
use crate::routing::Routed;

/// Properties that need a look at publish; a message with none of them goes straight on.
pub(super) const SPECIAL: u16 =
    properties::HEADERS | properties::REPLY_TO | properties::EXPIRATION | properties::USER_ID;

/// The cache is emptied when it holds this many routes: with keys that never repeat it is of no
/// use, and it must not grow.
const ROUTES_MAX: usize = 4096;

/// What a client puts in reply_to to get a reply directly (RabbitMQ's direct reply-to).
pub(super) const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// The place of a route that is good for one message only: its headers or further routing keys
/// have a say.
const UNCACHED: usize = 0;

/// Where the address begins in the payload of basic.publish: after class and method (4 bytes) and
/// a reserved field (2 bytes).
pub(super) const ADDRESS_AT: usize = 6;

/// Routes by address (exchange and routing key as on the wire), valid for one generation of the
/// vhost's topology.
#[derive(Debug)]
pub(super) struct Routes {
    generation: u64,
    by_address: FxHashMap<Box<[u8]>, usize>,
    /// Queues by route; the first is [`UNCACHED`].
    routes: Vec<Vec<Arc<QueueCell>>>,
    routed: Routed,
    /// Raised when the routes are forgotten, so that indices kept elsewhere are not used.
    pub(super) epoch: u64,
}

impl Default for Routes {
    fn default() -> Self {
        Self {
            generation: 0,
            by_address: FxHashMap::default(),
            routes: vec![Vec::new()],
            routed: Routed::default(),
            epoch: 1,
        }
    }
}

impl Routes {
    /// Forgets everything when the topology has changed.
    pub(super) fn refresh(&mut self, generation: u64) {
        if self.generation != generation {
            self.generation = generation;
            self.clear();
        }
    }

    /// The route of an address, if it is the same for all messages and remembered.
    pub(super) fn known(&self, address: &[u8]) -> Option<usize> {
        self.by_address.get(address).copied().filter(|route| *route != UNCACHED)
    }

    /// How many queues a route has.
    pub(super) fn targets(&self, route: usize) -> usize {
        self.routes[route].len()
    }

    /// What exchanges want kept of the message that was routed last.
    fn kept(&self, route: usize, more_keys: Vec<Vec<u8>>) -> Option<Box<PendingKept>> {
        if route != UNCACHED || self.routed.kept.is_empty() {
            return None;
        }
        Some(Box::new(PendingKept { kept: self.routed.kept.clone(), more_keys }))
    }

    fn clear(&mut self) {
        self.by_address.clear();
        self.routes.truncate(1);
        self.epoch += 1;
    }

    /// Keeps the uncached route under its address, if that decides it alone.
    fn keep_last(&mut self, address: &[u8]) -> usize {
        if self.by_address.len() >= ROUTES_MAX {
            let route = std::mem::take(&mut self.routes[UNCACHED]);
            self.clear();
            self.routes[UNCACHED] = route;
        }
        if self.routed.depends_on_message {
            self.by_address.insert(address.into(), UNCACHED);
            return UNCACHED;
        }
        let route = std::mem::take(&mut self.routes[UNCACHED]);
        self.routes.push(route);
        let index = self.routes.len() - 1;
        self.by_address.insert(address.into(), index);
        index
    }
}

/// A publish that some queue may refuse, so that its confirm has to wait for the outcome.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusable {
    pub(super) token: u32,
    pub(super) channel: u16,
    pub(super) number: u64,
}

impl Connection {
    /// basic.publish itself; `at` is the offset of its payload in the read buffer.
    pub(super) fn begin_publish(
        &mut self,
        number: u16,
        payload: &[u8],
        at: usize,
    ) -> Result<(), AmqpError> {
        let publish = Publish::parse(payload)?;
        if publish.immediate {
            let error = AmqpError::new(ReplyCode::NotImplemented, "immediate=true");
            return Err(error.of(hot::BASIC, hot::PUBLISH));
        }
        let address = Span::new(at + ADDRESS_AT, publish.address.len());
        if !self.receiving.contains(&number) {
            self.receiving.push(number);
        }
        let channel = self.channel_mut(number);
        channel.last_publish.remember(payload);
        channel.incoming = Some(Incoming::new(address, publish.mandatory));
        Ok(())
    }

    /// A frame of the content that is due on a channel.
    pub(super) fn continue_publish(
        &mut self,
        number: u16,
        frame: &Frame<'_>,
        at: usize,
        buffer: &[u8],
        worker: &mut Worker,
    ) -> Result<(), AmqpError> {
        let size_max = self.message_size_max();
        let channel = self.channels[usize::from(number)].as_mut();
        let incoming = &mut channel.expect("dispatched to an open channel").incoming;
        let expected = incoming.as_mut().expect("content is due");
        if expected.take_frame(frame, at, size_max, self.broker.memory())? {
            return self.complete_publish(number, buffer, worker);
        }
        Ok(())
    }

    /// All of a message's content has come.
    pub(super) fn complete_publish(
        &mut self,
        number: u16,
        buffer: &[u8],
        worker: &mut Worker,
    ) -> Result<(), AmqpError> {
        let incoming = self.channel_mut(number).incoming.take();
        let message = incoming.expect("content is due").into_message();
        self.finish_publish(number, message, buffer, worker)
            .map_err(|error| error.of(hot::BASIC, hot::PUBLISH))
    }

    fn finish_publish(
        &mut self,
        number: u16,
        mut message: Message,
        buffer: &[u8],
        worker: &mut Worker,
    ) -> Result<(), AmqpError> {
        let flags = Properties::of_header(message.header(buffer)).flags();
        let more_keys = if flags & SPECIAL == 0 {
            Vec::new()
        } else {
            // Before anything about the message itself (RabbitMQ).
            self.check_publish(message.exchange(buffer))?;
            self.check_special(number, &mut message, buffer)?
        };
        let mandatory = message.mandatory;
        if matches!(self.channel(number).mode, Mode::Transactional(_)) {
            let message = message.into_owned(buffer);
            let route = self.route(number, &message.content(), &more_keys, &mut worker.drive)?;
            let queues = self.routes.routes[route].clone();
            let kept = self.routes.kept(route, more_keys);
            return self.transaction_mut(number)?.publish(Pending {
                message,
                mandatory,
                queues,
                kept,
            });
        }
        let staged = message.into_staged(buffer, self.broker.memory());
        let route = self.route(number, &staged.content(buffer), &more_keys, &mut worker.drive)?;
        if mandatory && self.routes.routes[route].is_empty() {
            self.send_return(number, &staged.content(buffer), worker);
        }
        let staged = match self.routes.routes[route].len() {
            0 | 1 => staged,
            _ => staged.for_several(buffer, self.broker.memory()),
        };
        self.stage(number, staged, route, worker);
        Ok(())
    }

    /// Stages a message for the queues of its route, and numbers it where confirms are due.
    pub(super) fn stage(&mut self, number: u16, staged: Staged, route: usize, worker: &mut Worker) {
        let channel = self.channels[usize::from(number)].as_mut().expect("it publishes");
        let confirm = match &mut channel.mode {
            Mode::Confirm(confirms) => {
                confirms.last += 1;
                if !self.confirming.contains(&number) {
                    self.confirming.push(number);
                }
                Some(confirms.last)
            }
            _ => None,
        };
        let queues = &self.routes.routes[route];
        if queues.is_empty() {
            return;
        }
        let token = worker.batch.stage(staged);
        let mut refusable = false;
        for queue in queues {
            worker.batch.enqueue(queue, token);
            refusable |= queue.may_reject();
        }
        if let Some(confirm) = confirm.filter(|_| refusable) {
            self.refusable.push(Refusable { token, channel: number, number: confirm });
        }
    }

    /// Looks at the properties that mean something to the broker. Answers the further routing keys
    /// of the CC and BCC headers.
    fn check_special(
        &mut self,
        number: u16,
        message: &mut Message,
        buffer: &[u8],
    ) -> Result<Vec<Vec<u8>>, AmqpError> {
        let properties = Properties::of_header(message.header(buffer));
        if let Some(user) = properties.user_id()
            && !self.may_claim(user)
        {
            let claimed = String::from_utf8_lossy(user);
            let text = format!(
                "user_id property set to '{claimed}' but authenticated user was '{}'",
                self.user
            );
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
        }
        if let Some(expiration) = properties.expiration()
            && let Err(reason) = parse_expiration(expiration)
        {
            let text = String::from_utf8_lossy(expiration);
            let text = format!("invalid expiration '{text}': {reason}");
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
        }
        let mut keys = Vec::new();
        let mut header = None;
        if let Some(headers) = properties.headers() {
            for name in [&b"CC"[..], b"BCC"] {
                match table::find(headers, name) {
                    None => {}
                    Some(Value::Array(array)) => {
                        keys.extend(table::texts(array).map(<[u8]>::to_vec));
                        if name == b"BCC" {
                            let shown = table::without(headers, &[b"BCC"]);
                            let old = message.header(buffer);
                            header = Some(properties::with_headers(old, Some(&shown)));
                        }
                    }
                    Some(other) => {
                        let (name, kind) = (String::from_utf8_lossy(name), other.type_name());
                        let text = format!(
                            "invalid message: {{unacceptable_type_in_header,\"{name}\",{kind}}}"
                        );
                        return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
                    }
                }
            }
        }
        if properties.reply_to() == Some(REPLY_TO.as_bytes()) {
            let reply_queue = self.reply_queue_name(number)?;
            let old = header.as_deref().unwrap_or_else(|| message.header(buffer));
            header = Some(properties::with_reply_to(old, reply_queue.as_bytes()));
        }
        if let Some(header) = header {
            message.set_header(header);
        }
        Ok(keys)
    }

    /// The index of the message's route among `self.routes`.
    fn route(
        &mut self,
        number: u16,
        content: &Content<'_>,
        more_keys: &[Vec<u8>],
        drive: &mut Drive,
    ) -> Result<usize, AmqpError> {
        if !more_keys.is_empty() {
            return self.route_once(number, content, more_keys, drive);
        }
        let route = match self.routes.by_address.get(content.address) {
            Some(&UNCACHED) => return self.route_once(number, content, &[], drive),
            Some(route) => *route,
            None => {
                self.route_once(number, content, &[], drive)?;
                self.routes.keep_last(content.address)
            }
        };
        if route != UNCACHED {
            let epoch = self.routes.epoch;
            self.channel_mut(number).last_publish.routed(route, epoch);
        }
        Ok(route)
    }

    /// Asks the topology, with all of the message's routing keys and its properties.
    fn route_once(
        &mut self,
        number: u16,
        content: &Content<'_>,
        more_keys: &[Vec<u8>],
        drive: &mut Drive,
    ) -> Result<usize, AmqpError> {
        let (exchange, key) = hot::split_address(content.address);
        self.check_publish(exchange)?;
        let mut keys = vec![key];
        keys.extend(more_keys.iter().map(Vec::as_slice));
        // Before routing, for exchanges keep what they route.
        self.check_topic(Right::Write, exchange, &keys)?;
        let in_transaction = matches!(self.channel(number).mode, Mode::Transactional(_));
        let vhost = self.vhost.as_ref().expect("an open connection has a vhost");
        let routed = &mut self.routes.routed;
        self.routes.routes[UNCACHED] =
            vhost.route(&keys, content, in_transaction, drive, routed)?;
        Ok(UNCACHED)
    }

    /// basic.return, which precedes the message's confirm.
    pub(super) fn send_return(&mut self, number: u16, content: &Content<'_>, worker: &mut Worker) {
        let code = ReplyCode::NoRoute;
        let mut guard = self.outbox.lock_for_reply();
        encode::put_return(guard.buffer(), number, code.code(), code.name(), content.address);
        guard.put_content(number, content);
        guard.wake(&mut worker.drive.wakes);
    }

    /// Answers the publishes of channels in confirm mode, all of which are complete: queues have
    /// taken or refused them. What the store was given is confirmed when it is durable.
    pub(super) fn send_confirms(&mut self, worker: &mut Worker) {
        let ticket = worker.drive.take_ticket();
        let store = self.broker.store();
        let store = store.filter(|store| !store.is_durable(ticket));
        // Whoever consumes is never held back: that makes room.
        self.has_stored |= worker.drive.take_stores();
        worker.rejected.sort_unstable();
        let rejected = &worker.rejected;
        let was_rejected = |one: &Refusable| rejected.binary_search(&one.token).is_ok();
        self.refusable.retain(was_rejected);
        worker.rejected.clear();
        if self.confirming.is_empty() {
            return;
        }
        let mut guard = self.outbox.lock_for_reply();
        for number in self.confirming.drain(..) {
            let Some(channel) = &self.channels[usize::from(number)] else { continue };
            let Mode::Confirm(confirms) = &channel.mode else { continue };
            let refused = self.refusable.iter().filter(|one| one.channel == number);
            let refused = refused.map(|refused| refused.number).collect();
            let answer = Answer { last: confirms.last, refused };
            guard.answer(number, answer, store.map(|_| ticket));
        }
        self.refusable.clear();
        guard.wake(&mut worker.drive.wakes);
        drop(guard);
        if let Some(store) = store {
            let outbox = self.outbox.clone();
            let done = move |outcome| outbox.answer_stored(ticket, outcome);
            store.when_durable(ticket, Box::new(done));
        }
    }
}
