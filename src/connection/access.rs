//! What the user may do, where a method asks for it.
//!
//! Owns the order in which RabbitMQ looks at vhost, limits and permissions, and what becomes of an
//! open connection when they change. The rules themselves and the texts about permissions are the
//! broker's.

use std::sync::Arc;

use super::handshake::Phase;
use super::{Connection, Worker};
use crate::broker::{Presence, Resource, Right, Rights, Vhost};
use crate::codec::method::{AMQPValue, FieldTable};
use crate::error::{AmqpError, ReplyCode};
use crate::routing::Destination;

impl Connection {
    /// connection.open: limits first, then the permission to be there (RabbitMQ's order).
    pub(super) fn enter(&mut self, vhost: Arc<Vhost>) -> Result<(), AmqpError> {
        let (name, user) = (vhost.name(), self.user.as_str());
        let not_allowed = |text: String| AmqpError::new(ReplyCode::NotAllowed, text);
        let refused = format!("access to vhost '{name}' refused for user '{user}'");
        let Some(mut rights) = Rights::new(self.broker.access(), user, name) else {
            // Deleted since the login.
            return Err(not_allowed(refused));
        };
        let max = vhost.limits().max_connections;
        let Some(in_vhost) = vhost.occupancy.enter(max) else {
            let max = max.unwrap_or(u32::MAX);
            return Err(not_allowed(format!("{refused}: connection limit ({max}) is reached")));
        };
        let max = rights.limits().max_connections;
        let Some(of_user) = rights.occupancy().enter(max) else {
            let max = max.unwrap_or(u32::MAX);
            return Err(not_allowed(format!(
                "connection refused for user '{user}': user connection limit ({max}) is reached"
            )));
        };
        if !rights.has_access() {
            return Err(not_allowed(refused));
        }
        if vhost.occupancy.is_gone() {
            // Between being found and being entered.
            return Err(not_allowed(format!("vhost {name} not found")));
        }
        self.presence = Some([in_vhost, of_user]);
        self.rights = Some(rights);
        self.vhost = Some(vhost);
        Ok(())
    }

    /// Whether the connection has to end because its user or vhost is deleted.
    pub fn is_expelled(&self) -> bool {
        let user_gone = self.rights.as_ref().is_some_and(|rights| rights.occupancy().is_gone());
        let vhost_gone = self.vhost.as_ref().is_some_and(|vhost| vhost.occupancy.is_gone());
        user_gone || vhost_gone
    }

    /// Whether users, vhosts or permissions have changed since the connection took a look.
    pub(super) fn is_outdated(&self) -> bool {
        self.phase == Phase::Open && self.rights.as_ref().is_some_and(Rights::is_outdated)
    }

    /// Takes a look at what has changed: the connection ends with its user or vhost, and consumers
    /// end where the user may not read any more.
    pub(super) fn notice_changes(&mut self, worker: &mut Worker) {
        let rights = self.rights.as_mut().expect("an open connection has rights");
        rights.refresh();
        let vhost = self.vhost.as_ref().expect("an open connection has a vhost");
        let what = if vhost.occupancy.is_gone() {
            format!("vhost '{}'", vhost.name())
        } else if rights.occupancy().is_gone() {
            format!("user '{}'", self.user)
        } else {
            return self.end_forbidden_consumers(worker);
        };
        let text = format!("{what} is deleted");
        self.fail_connection(&AmqpError::new(ReplyCode::ConnectionForced, text), worker);
    }

    fn end_forbidden_consumers(&mut self, worker: &mut Worker) {
        let rights = self.rights.as_mut().expect("an open connection has rights");
        let mut forbidden = Vec::new();
        for (number, channel) in self.channels.iter().enumerate() {
            let Some(channel) = channel else { continue };
            for (tag, consumer) in &channel.consumers {
                let reply_queue = channel.reply_queue.as_ref();
                // Direct reply-to needs no permission.
                let is_own = reply_queue.is_some_and(|own| own.id() == consumer.queue.id());
                if !is_own && !rights.may(Right::Read, Resource::Queue(consumer.queue.name())) {
                    forbidden.push((number as u16, tag.clone()));
                }
            }
        }
        for (number, tag) in forbidden {
            if let Some(consumer) = self.channel_mut(number).consumers.remove(&tag) {
                self.end_consumer(number, &consumer, worker);
                self.outbox.lose_consumer((number, tag), &mut worker.drive.wakes);
            }
        }
    }

    /// Counts a channel that is about to be opened.
    pub(super) fn count_channel(&mut self) -> Result<Presence, AmqpError> {
        let rights = self.rights.as_mut().expect("an open connection has rights");
        let max = rights.limits().max_channels;
        rights.occupancy().open_channel(max).ok_or_else(|| {
            let text = format!(
                "number of channels opened for user '{}' has reached the maximum allowed user \
                 limit of {}",
                self.user,
                max.unwrap_or(u32::MAX)
            );
            AmqpError::new(ReplyCode::NotAllowed, text)
        })
    }

    pub(super) fn check(&mut self, right: Right, what: Resource<'_>) -> Result<(), AmqpError> {
        self.rights.as_mut().expect("an open connection has rights").check(right, what)
    }

    /// exchange.declare, for an exchange that may be new.
    pub(super) fn check_declare_exchange(
        &mut self,
        name: &str,
        alternate: Option<&str>,
    ) -> Result<(), AmqpError> {
        if name.is_empty() {
            // Refused in any case, with other words.
            return Ok(());
        }
        self.check(Right::Configure, Resource::Exchange(name))?;
        match alternate {
            Some(alternate) if self.vhost().is_new_exchange(name) => {
                self.check(Right::Read, Resource::Exchange(name))?;
                self.check(Right::Write, Resource::Exchange(alternate))
            }
            _ => Ok(()),
        }
    }

    /// queue.declare, for a queue that may be new.
    pub(super) fn check_declare_queue(
        &mut self,
        name: &str,
        arguments: &FieldTable,
    ) -> Result<(), AmqpError> {
        self.check(Right::Configure, Resource::Queue(name))?;
        if self.vhost().queue(name).is_ok() {
            return Ok(());
        }
        self.vhost().check_queue_limit(name)?;
        match arguments.inner().get("x-dead-letter-exchange") {
            Some(AMQPValue::LongString(exchange)) => {
                let exchange = String::from_utf8_lossy(exchange.as_bytes()).into_owned();
                self.check(Right::Read, Resource::Queue(name))?;
                self.check(Right::Write, Resource::Exchange(&exchange))
            }
            _ => Ok(()),
        }
    }

    /// Binding and unbinding: write on the destination, read on the source.
    pub(super) fn check_binding(
        &mut self,
        source: &str,
        destination: Destination<'_>,
        key: &str,
    ) -> Result<(), AmqpError> {
        let end = match destination {
            Destination::Queue(name) => Resource::Queue(name),
            Destination::Exchange(name) => Resource::Exchange(name),
        };
        self.check(Right::Write, end)?;
        if source.is_empty() || destination == Destination::Exchange("") {
            // Refused in any case, with other words.
            return Ok(());
        }
        self.check(Right::Read, Resource::Exchange(source))?;
        self.check_topic(Right::Read, source.as_bytes(), &[key.as_bytes()])
    }

    /// Publishing to an exchange, with whatever key.
    pub(super) fn check_publish(&mut self, exchange: &[u8]) -> Result<(), AmqpError> {
        self.rights.as_mut().expect("an open connection has rights").check_publish(exchange)
    }

    /// Routing keys, where the exchange is a topic exchange.
    pub(super) fn check_topic(
        &mut self,
        right: Right,
        exchange: &[u8],
        keys: &[&[u8]],
    ) -> Result<(), AmqpError> {
        let rights = self.rights.as_mut().expect("an open connection has rights");
        let vhost = self.vhost.as_ref().expect("an open connection has a vhost");
        if !rights.has_topic_permissions() {
            return Ok(());
        }
        let exchange = String::from_utf8_lossy(exchange);
        if !vhost.is_topic_exchange(&exchange) {
            return Ok(());
        }
        keys.iter().try_for_each(|key| rights.check_topic(right, &exchange, key))
    }

    /// Whether this user may send messages in the name of `claimed`.
    pub(super) fn may_claim(&mut self, claimed: &[u8]) -> bool {
        let rights = self.rights.as_mut().expect("an open connection has rights");
        claimed == self.user.as_bytes() || rights.is_impersonator()
    }

    /// Routes are good while neither the topology nor any permission changes. Both numbers only
    /// rise, so their sum changes with each of them.
    pub(super) fn refresh_routes(&mut self) {
        if let (Some(vhost), Some(rights)) = (&self.vhost, &self.rights) {
            self.routes.refresh(vhost.generation() + rights.current_generation());
        }
    }
}
