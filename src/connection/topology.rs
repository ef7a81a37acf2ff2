//! Declaring: classes exchange and queue.
//!
//! Owns the reading of those methods' arguments and their replies. It must not hold topology: that
//! is the vhost's, with the texts of refusals.

use super::publish::REPLY_TO;
use super::{Connection, Worker};
use crate::broker::{Declaration, DeleteIf, QueueCell, Resource, Right};
use crate::codec::method::{AMQPClass, exchange, queue};
use crate::error::{AmqpError, ReplyCode};
use crate::queue::Kind;
use crate::routing::{Destination, ExchangeKind, ExchangeSpec};

const REPLY_QUEUE_PREFIX: &str = "amq.rabbitmq.reply-to.";

impl Connection {
    pub(super) fn handle_exchange(
        &mut self,
        number: u16,
        method: exchange::AMQPMethod,
        worker: &mut Worker,
    ) -> Result<(), AmqpError> {
        use exchange::AMQPMethod as Method;
        let (nowait, ok) = match method {
            Method::Declare(declare) => {
                self.declare_exchange(&declare, worker)?;
                (declare.nowait, Method::DeclareOk(exchange::DeclareOk {}))
            }
            Method::Delete(delete) => {
                let name = stripped(delete.exchange.as_str());
                // Those are refused in any case, with other words.
                if !name.is_empty() && !name.starts_with("amq.") {
                    self.check(Right::Configure, Resource::Exchange(&name))?;
                }
                self.vhost().delete_exchange(&name, delete.if_unused, &mut worker.drive)?;
                (delete.nowait, Method::DeleteOk(exchange::DeleteOk {}))
            }
            Method::Bind(bind) => {
                let source = stripped(bind.source.as_str());
                let destination = stripped(bind.destination.as_str());
                let key = bind.routing_key.as_str();
                let to = Destination::Exchange(&destination);
                self.check_binding(&source, to, key)?;
                let key = key.as_bytes();
                self.vhost().bind(&source, to, key, &bind.arguments, &mut worker.drive)?;
                (bind.nowait, Method::BindOk(exchange::BindOk {}))
            }
            Method::Unbind(unbind) => {
                let source = stripped(unbind.source.as_str());
                let destination = stripped(unbind.destination.as_str());
                let key = unbind.routing_key.as_str();
                let to = Destination::Exchange(&destination);
                self.check_binding(&source, to, key)?;
                let key = key.as_bytes();
                self.vhost().unbind(&source, to, key, &unbind.arguments, &mut worker.drive)?;
                (unbind.nowait, Method::UnbindOk(exchange::UnbindOk {}))
            }
            _ => return Err(super::dispatch::unimplemented()),
        };
        if !nowait {
            self.send_durable(number, AMQPClass::Exchange(ok), worker);
        }
        Ok(())
    }

    fn declare_exchange(
        &mut self,
        declare: &exchange::Declare,
        worker: &mut Worker,
    ) -> Result<(), AmqpError> {
        let name = stripped(declare.exchange.as_str());
        if declare.passive {
            // It may have come without an answer, and be on its way to the disk.
            self.vhost().await_others(&mut worker.drive);
            return self.vhost().check_exchange(&name);
        }
        let spec = ExchangeSpec {
            kind: ExchangeKind::named(declare.kind.as_str())?,
            durable: declare.durable,
            auto_delete: declare.auto_delete,
            internal: declare.internal,
            arguments: declare.arguments.clone(),
        };
        self.check_declare_exchange(&name, spec.alternate())?;
        self.vhost().declare_exchange(&name, spec, &mut worker.drive)
    }

    pub(super) fn handle_queue(
        &mut self,
        number: u16,
        method: queue::AMQPMethod,
        worker: &mut Worker,
    ) -> Result<(), AmqpError> {
        use queue::AMQPMethod as Method;
        let (nowait, ok) = match method {
            Method::Declare(declare) => {
                let ok = self.declare_queue(number, &declare, worker)?;
                (declare.nowait, Method::DeclareOk(ok))
            }
            Method::Bind(bind) => {
                let name = self.queue_name(number, bind.queue.as_str())?;
                let source = stripped(bind.exchange.as_str());
                refuse_reply_queue(&name)?;
                let key = self.binding_key(number, bind.queue.as_str(), bind.routing_key.as_str());
                let to = Destination::Queue(&name);
                self.check_binding(&source, to, &key)?;
                self.vhost().check_bind_queue(&source, &name, self.id())?;
                let key = key.as_bytes();
                self.vhost().bind(&source, to, key, &bind.arguments, &mut worker.drive)?;
                (bind.nowait, Method::BindOk(queue::BindOk {}))
            }
            Method::Unbind(unbind) => {
                let name = self.queue_name(number, unbind.queue.as_str())?;
                let source = stripped(unbind.exchange.as_str());
                refuse_reply_queue(&name)?;
                let to = Destination::Queue(&name);
                let key =
                    self.binding_key(number, unbind.queue.as_str(), unbind.routing_key.as_str());
                self.check_binding(&source, to, &key)?;
                // Only an existing binding is looked at more closely.
                if self.vhost().is_bound(&source, to, key.as_bytes(), &unbind.arguments) {
                    self.vhost().queue_for(&name, self.id())?;
                }
                let key = key.as_bytes();
                self.vhost().unbind(&source, to, key, &unbind.arguments, &mut worker.drive)?;
                (false, Method::UnbindOk(queue::UnbindOk {}))
            }
            Method::Purge(purge) => {
                let name = self.queue_name(number, purge.queue.as_str())?;
                self.check(Right::Read, Resource::Queue(&name))?;
                let queue = self.vhost().queue_for(&name, self.id())?;
                let message_count = queue.purge(&mut worker.drive);
                (purge.nowait, Method::PurgeOk(queue::PurgeOk { message_count }))
            }
            Method::Delete(delete) => {
                let message_count = self.delete_queue(number, &delete, worker)?;
                (delete.nowait, Method::DeleteOk(queue::DeleteOk { message_count }))
            }
            _ => return Err(super::dispatch::unimplemented()),
        };
        if !nowait {
            self.send_durable(number, AMQPClass::Queue(ok), worker);
        }
        Ok(())
    }

    fn declare_queue(
        &mut self,
        number: u16,
        declare: &queue::Declare,
        worker: &mut Worker,
    ) -> Result<queue::DeclareOk, AmqpError> {
        let name = stripped(declare.queue.as_str());
        if name == REPLY_TO {
            // A client may ask whether direct reply-to works: it always does.
            return Ok(declare_ok(REPLY_TO, 0, 1));
        }
        let cell = if declare.passive && name.starts_with(REPLY_QUEUE_PREFIX) {
            // Anyone may ask whether a requester is still there.
            self.vhost().queue(&name)?
        } else if declare.passive {
            self.vhost().await_others(&mut worker.drive);
            let cell = self.vhost().queue_for(&name, self.id())?;
            cell.touch(&mut worker.drive);
            cell
        } else {
            let name = self.vhost().name_to_declare(&name)?;
            self.check_declare_queue(&name, &declare.arguments)?;
            let declaration = Declaration {
                // An exclusive queue never outlives its connection (RabbitMQ).
                durable: declare.durable,
                auto_delete: declare.auto_delete,
                owner: declare.exclusive.then_some(self.id()),
                arguments: declare.arguments.clone(),
                ..Declaration::default()
            };
            self.vhost().declare_queue(&name, self.id(), declaration, &mut worker.drive)?
        };
        if cell.declaration.owner == Some(self.id()) {
            self.owned.add(&cell);
        }
        cell.name().clone_into(&mut self.channel_mut(number).last_queue);
        let (messages, consumers) = cell.counts();
        Ok(declare_ok(cell.name(), messages, consumers))
    }

    fn delete_queue(
        &mut self,
        number: u16,
        delete: &queue::Delete,
        worker: &mut Worker,
    ) -> Result<u32, AmqpError> {
        let name = self.queue_name(number, delete.queue.as_str())?;
        self.check(Right::Configure, Resource::Queue(&name))?;
        let cell = match self.vhost().queue_for(&name, self.id()) {
            Ok(cell) => cell,
            // Deleting what is not there is no error (RabbitMQ).
            Err(error) if error.code == ReplyCode::NotFound => {
                self.vhost().await_others(&mut worker.drive);
                return Ok(0);
            }
            Err(error) => return Err(error),
        };
        let condition =
            DeleteIf { unused: delete.if_unused, empty: delete.if_empty, ..DeleteIf::default() };
        self.check_conditions(&cell, delete)?;
        let count = self.vhost().delete_queue(&cell, condition, &mut worker.drive)?;
        self.owned.remove(&cell);
        Ok(count)
    }

    /// Quorum queues are deleted without conditions only (RabbitMQ).
    fn check_conditions(&self, cell: &QueueCell, delete: &queue::Delete) -> Result<(), AmqpError> {
        let flag = match (delete.if_unused, delete.if_empty) {
            _ if cell.declaration.kind != Kind::Quorum => return Ok(()),
            (true, _) => "if-unused",
            (false, true) => "if-empty",
            (false, false) => return Ok(()),
        };
        let queue = self.vhost().describe_queue(cell.name());
        let text = format!(
            "cannot delete {queue}. queue.delete operations with {flag} flag set are not supported \
             by quorum queues"
        );
        Err(AmqpError::new(ReplyCode::NotImplemented, text))
    }

    /// The queue that a method names: an empty name means the channel's last declared one.
    pub(super) fn queue_name(&self, number: u16, name: &str) -> Result<String, AmqpError> {
        if !name.is_empty() {
            return Ok(stripped(name));
        }
        let last = &self.channel(number).last_queue;
        if last.is_empty() {
            return Err(AmqpError::new(ReplyCode::NotFound, "no previously declared queue"));
        }
        Ok(last.clone())
    }

    /// Without a queue and without a key, the queue's name is the key (specification of
    /// queue.bind's field routing-key).
    fn binding_key(&self, number: u16, queue: &str, key: &str) -> String {
        if queue.is_empty() && key.is_empty() {
            return self.channel(number).last_queue.clone();
        }
        key.to_owned()
    }
}

fn declare_ok(name: &str, message_count: u32, consumer_count: u32) -> queue::DeclareOk {
    queue::DeclareOk { queue: name.into(), message_count, consumer_count }
}

fn refuse_reply_queue(name: &str) -> Result<(), AmqpError> {
    if name == REPLY_TO || name.starts_with(REPLY_QUEUE_PREFIX) {
        let text = "cannot bind or unbind to a volatile (direct reply-to) queue";
        return Err(AmqpError::new(ReplyCode::AccessRefused, text));
    }
    Ok(())
}

/// RabbitMQ takes carriage returns and line feeds out of names.
fn stripped(name: &str) -> String {
    name.replace(['\r', '\n'], "")
}
