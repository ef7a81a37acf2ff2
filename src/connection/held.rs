//! A reply that is held back until what it tells of is durable.
//!
//! Owns that reply. While it waits, nothing more of what the client has sent is taken in: replies
//! keep their order, and nobody is told of a change that a crash might undo. It must not know what
//! has changed, nor wait: `net` does.

use std::sync::{Arc, OnceLock};

use super::handshake::Phase;
use super::{Connection, Worker};
use crate::broker::Ticket;
use crate::codec::method::AMQPClass;
use crate::error::{AmqpError, ReplyCode};

/// See the module's description.
#[derive(Debug)]
pub(super) struct Held {
    channel: u16,
    reply: AMQPClass,
    ticket: Ticket,
    /// Whether it has become durable, once that is known to whoever waits.
    is_durable: Arc<OnceLock<bool>>,
}

impl Connection {
    /// Sends a method's reply once everything that the method has handed to the store is durable.
    pub(super) fn send_durable(&mut self, channel: u16, reply: AMQPClass, worker: &mut Worker) {
        let ticket = std::mem::take(&mut worker.drive.awaited).max(worker.drive.take_ticket());
        if self.broker.is_durable(ticket) {
            return self.send(channel, reply, worker);
        }
        self.held = Some(Held { channel, reply, ticket, is_durable: Arc::default() });
    }

    /// After [`super::Next::AwaitStore`]: runs `then` when there is a reason to go on, on whatever
    /// thread knows of it.
    pub fn when_stored(&self, then: impl FnOnce() + Send + 'static) {
        let Some(held) = &self.held else { return then() };
        let verdict = held.is_durable.clone();
        self.broker.when_durable(held.ticket, move |is_durable| {
            // Each time somebody waits it is the same.
            let _ = verdict.set(is_durable);
            then();
        });
    }

    /// Sends the reply that was held back, if there is one and it need not wait any more; `false`
    /// while it has to.
    pub(super) fn release_held(&mut self, worker: &mut Worker) -> bool {
        let Some(held) = &self.held else { return true };
        let verdict = held.is_durable.get().copied();
        let verdict = verdict.or_else(|| self.broker.is_durable(held.ticket).then_some(true));
        if verdict.is_none() && self.phase == Phase::Open {
            return false;
        }
        let held = self.held.take().expect("looked at above");
        let channel = self.channels.get(usize::from(held.channel)).and_then(Option::as_ref);
        // The channel or the connection may have been closed meanwhile, by somebody else.
        let is_open = channel.is_some_and(|channel| !channel.closing) && self.phase == Phase::Open;
        match verdict {
            Some(true) if is_open => self.send(held.channel, held.reply, worker),
            Some(false) if is_open => {
                let text = "the store has failed: whether this change lasts is not known";
                self.fail_connection(&AmqpError::new(ReplyCode::InternalError, text), worker);
            }
            _ => {}
        }
        true
    }
}
