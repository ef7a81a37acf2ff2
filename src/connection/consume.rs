//! Consuming: basic.consume, cancel, get, qos and recover.
//!
//! Owns a channel's consumers and its prefetch settings. It must not decide who gets a message:
//! that is the queue's.

use std::sync::Arc;

use super::channel::ChannelConsumer;
use super::publish::REPLY_TO;
use super::settle::Settled;
use super::{Connection, Worker};
use crate::broker::{
    Declaration, DeleteIf, QueueCell, Refusal, Resource, Right, Settlement, Subscriber,
    unguessable_name,
};
use crate::codec::encode::DeliverHead;
use crate::codec::method::{AMQPClass, FieldTable, basic};
use crate::codec::value::{integer, type_name};
use crate::error::{AmqpError, ReplyCode};
use crate::queue::{ConsumerSpec, Kind};

/// Refuses a prefetch limit in bytes, as RabbitMQ does. amq-protocol leaves the field out, so
/// it is read here: four bytes after class and method (specification section 1.8.3.1).
pub(super) fn check_qos_size(payload: &[u8]) -> Result<(), AmqpError> {
    match payload.get(4..8) {
        Some(&[a, b, c, d]) if [a, b, c, d] != [0; 4] => {
            let size = u32::from_be_bytes([a, b, c, d]);
            let text = format!("prefetch_size!=0 ({size})");
            Err(AmqpError::new(ReplyCode::NotImplemented, text))
        }
        _ => Ok(()),
    }
}

impl Connection {
    /// Methods of class basic that are not hot.
    pub(super) fn handle_basic(
        &mut self,
        number: u16,
        method: basic::AMQPMethod,
        worker: &mut Worker,
    ) -> Result<(), AmqpError> {
        match method {
            basic::AMQPMethod::Qos(qos) => self.qos(number, &qos, worker),
            basic::AMQPMethod::Consume(consume) => self.consume(number, consume, worker),
            basic::AMQPMethod::Cancel(cancel) => self.cancel(number, &cancel, worker),
            basic::AMQPMethod::Get(get) => self.get(number, &get, worker),
            basic::AMQPMethod::Recover(basic::Recover { requeue }) => {
                refuse_recovery_without_requeue(requeue)?;
                // The answer precedes the deliveries that it leads to.
                let ok = basic::AMQPMethod::RecoverOk(basic::RecoverOk {});
                self.send(number, AMQPClass::Basic(ok), worker);
                self.requeue_all(number, worker);
                Ok(())
            }
            basic::AMQPMethod::RecoverAsync(basic::RecoverAsync { requeue }) => {
                refuse_recovery_without_requeue(requeue)?;
                self.requeue_all(number, worker);
                Ok(())
            }
            // The answer to a cancel notification.
            basic::AMQPMethod::CancelOk(_) => Ok(()),
            _ => Err(super::dispatch::unimplemented()),
        }
    }

    fn qos(&mut self, number: u16, qos: &basic::Qos, worker: &mut Worker) -> Result<(), AmqpError> {
        let ok = AMQPClass::Basic(basic::AMQPMethod::QosOk(basic::QosOk {}));
        let prefetch = u32::from(qos.prefetch_count);
        if qos.global {
            self.take_over(number);
            let channel = self.channel_mut(number);
            let mut held = 0;
            for delivery in channel.unacked.iter_mut() {
                delivery.counted = prefetch != 0;
                held += 1;
            }
            channel.gate.set(prefetch, held);
        } else {
            let channel = self.channel_mut(number);
            channel.prefetch = prefetch;
            // RabbitMQ: a limit for each consumer takes the place of the channel's.
            channel.gate.set(0, 0);
        }
        self.reopening.push(number);
        self.send(number, ok, worker);
        self.reopen_gates(worker);
        Ok(())
    }

    fn consume(
        &mut self,
        number: u16,
        consume: basic::Consume,
        worker: &mut Worker,
    ) -> Result<(), AmqpError> {
        let tag = match consume.consumer_tag.as_str() {
            "" => unguessable_name("amq.ctag-"),
            tag => tag.to_owned(),
        };
        let limit = self.broker.config().limits.consumers_per_channel_max;
        self.forget_lost_consumers();
        let channel = self.channel_mut(number);
        if channel.consumers.contains_key(tag.as_str()) {
            let text = format!("attempt to reuse consumer tag '{tag}'");
            return Err(AmqpError::new(ReplyCode::NotAllowed, text));
        }
        if limit != 0 && channel.consumers.len() >= limit as usize {
            let text = format!("reached maximum ({limit}) of consumers per channel");
            return Err(AmqpError::new(ReplyCode::NotAllowed, text));
        }
        let queue = if consume.queue.as_str() == REPLY_TO {
            self.consumer_priority(REPLY_TO, &consume.arguments)?;
            self.reply_queue(number, consume.no_ack, worker)?
        } else {
            let name = self.queue_name(number, consume.queue.as_str())?;
            self.check(Right::Read, Resource::Queue(&name))?;
            self.vhost().queue_for(&name, self.id())?
        };
        let priority = self.consumer_priority(queue.name(), &consume.arguments)?;
        let ok = basic::ConsumeOk { consumer_tag: tag.as_str().into() };
        let ok = AMQPClass::Basic(basic::AMQPMethod::ConsumeOk(ok));
        self.check_global_qos(number, &queue)?;
        let channel = self.channels[usize::from(number)].as_mut().expect("dispatched to it");
        let source = channel.sources.enter(&queue);
        let spec = ConsumerSpec {
            no_ack: consume.no_ack,
            prefetch: channel.prefetch,
            priority,
            window: 0,
            gate: channel.gate.clone(),
        };
        let subscriber = Subscriber {
            outbox: self.outbox.clone(),
            channel: number,
            source,
            head: DeliverHead::new(number, tag.as_bytes()),
            tag: tag.as_str().into(),
        };
        let ok = (!consume.nowait).then_some(&ok);
        let drive = &mut worker.drive;
        match queue.subscribe(spec, consume.exclusive, subscriber, ok, drive) {
            Ok(key) => {
                let consumer = ChannelConsumer { queue, key, source };
                channel.consumers.insert(tag.into(), consumer);
                Ok(())
            }
            Err(refusal) => {
                channel.sources.leave(source);
                Err(self.refused(&queue, refusal))
            }
        }
    }

    /// Forgets the consumers that ended without this connection, so that their tags can be used
    /// again.
    fn forget_lost_consumers(&mut self) {
        for (number, tag) in self.outbox.take_lost_consumers() {
            let channel = self.channels.get(usize::from(number)).and_then(Option::as_ref);
            if channel.is_some_and(|channel| channel.consumers.contains_key(&tag)) {
                // What it has delivered is taken over while its source is still there.
                self.take_over(number);
                self.channel_mut(number).forget_consumer(&tag);
            }
        }
    }

    /// Quorum queues know no limit that consumers of several queues share (RabbitMQ).
    fn check_global_qos(&self, number: u16, queue: &QueueCell) -> Result<(), AmqpError> {
        if queue.declaration.kind != Kind::Quorum || !self.channel(number).gate.is_limited() {
            return Ok(());
        }
        let queue = self.vhost().describe_queue(queue.name());
        let text = format!("{queue} does not support global qos");
        Err(AmqpError::new(ReplyCode::NotImplemented, text))
    }

    fn refused(&self, queue: &QueueCell, refusal: Refusal) -> AmqpError {
        let queue = self.vhost().describe_queue(queue.name());
        match refusal {
            Refusal::Gone => AmqpError::new(ReplyCode::NotFound, format!("no {queue}")),
            Refusal::Unreadable => {
                let text = format!("messages of {queue} cannot be read from the disk");
                AmqpError::new(ReplyCode::InternalError, text)
            }
            Refusal::InUse => {
                let text = format!("{queue} in exclusive use");
                AmqpError::new(ReplyCode::AccessRefused, text)
            }
            Refusal::SingleActive => {
                let text = format!(
                    "cannot obtain access to locked {queue}. basic.get operations are not \
                     supported by quorum queues with single active consumer"
                );
                AmqpError::new(ReplyCode::ResourceLocked, text)
            }
        }
    }

    fn consumer_priority(&self, queue: &str, arguments: &FieldTable) -> Result<i64, AmqpError> {
        let Some(value) = arguments.inner().get("x-priority") else { return Ok(0) };
        integer(value).ok_or_else(|| {
            let queue = self.vhost().describe_queue(queue);
            let kind = type_name(value);
            let text =
                format!("invalid arg 'x-priority' for {queue}: \"expected integer, got {kind}\"");
            AmqpError::new(ReplyCode::PreconditionFailed, text)
        })
    }

    /// The queue behind this channel's direct reply-to, made when it is consumed from. It is an
    /// ordinary queue that only this connection can consume from, and whose name nobody can guess.
    fn reply_queue(
        &mut self,
        number: u16,
        no_ack: bool,
        worker: &mut Worker,
    ) -> Result<Arc<QueueCell>, AmqpError> {
        let refuse = |text: &str| Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
        if self.channel(number).has_reply_queue() {
            return refuse("reply consumer already set");
        }
        if !no_ack {
            return refuse("reply consumer cannot acknowledge");
        }
        let declaration =
            Declaration { auto_delete: true, owner: Some(self.id()), ..Declaration::default() };
        let name = unguessable_name("amq.rabbitmq.reply-to.");
        let queue = self.vhost().add_queue(&name, declaration, &mut worker.drive);
        let queue = queue.expect("a made-up name is new");
        self.owned.add(&queue);
        self.channel_mut(number).reply_queue = Some(queue.clone());
        Ok(queue)
    }

    /// What reply_to is rewritten to when a request is published.
    pub(super) fn reply_queue_name(&self, number: u16) -> Result<&str, AmqpError> {
        match &self.channel(number).reply_queue {
            Some(queue) if !queue.is_gone() => Ok(queue.name()),
            _ => {
                let text = "fast reply consumer does not exist";
                Err(AmqpError::new(ReplyCode::PreconditionFailed, text))
            }
        }
    }

    /// Cancelling an unknown consumer is no error (specification section 1.8.3.5).
    fn cancel(
        &mut self,
        number: u16,
        cancel: &basic::Cancel,
        worker: &mut Worker,
    ) -> Result<(), AmqpError> {
        let tag = cancel.consumer_tag.as_str();
        if let Some(consumer) = self.channel_mut(number).consumers.remove(tag) {
            self.end_consumer(number, &consumer, worker);
        }
        if !cancel.nowait {
            let ok = basic::CancelOk { consumer_tag: cancel.consumer_tag.clone() };
            self.send(number, AMQPClass::Basic(basic::AMQPMethod::CancelOk(ok)), worker);
        }
        Ok(())
    }

    /// Ends a consumer that was taken out of its channel. What it holds stays unsettled.
    pub(super) fn end_consumer(
        &mut self,
        number: u16,
        consumer: &ChannelConsumer,
        worker: &mut Worker,
    ) {
        let unused = consumer.queue.cancel(consumer.key, &mut worker.drive);
        // No more deliveries come from it: those that did are taken over while its source is used.
        self.take_over(number);
        self.channel_mut(number).sources.leave(consumer.source);
        if unused {
            let condition = DeleteIf { unused: true, ..DeleteIf::default() };
            // It may be in use again already: then it stays.
            let _ = self.vhost().delete_queue(&consumer.queue, condition, &mut worker.drive);
        }
    }

    fn get(&mut self, number: u16, get: &basic::Get, worker: &mut Worker) -> Result<(), AmqpError> {
        let name = self.queue_name(number, get.queue.as_str())?;
        self.check(Right::Read, Resource::Queue(&name))?;
        let queue = self.vhost().queue_for(&name, self.id())?;
        let source = self.channel_mut(number).sources.enter(&queue);
        let got = queue.get(get.no_ack, &self.outbox, number, source, &mut worker.drive);
        self.take_over(number);
        self.channel_mut(number).sources.leave(source);
        if !got.map_err(|refusal| self.refused(&queue, refusal))? {
            let empty = basic::AMQPMethod::GetEmpty(basic::GetEmpty {});
            self.send(number, AMQPClass::Basic(empty), worker);
        }
        Ok(())
    }

    /// Requeues all that the channel has not settled, in place.
    pub(super) fn requeue_all(&mut self, number: u16, worker: &mut Worker) {
        self.take_over(number);
        for delivery in self.channel_mut(number).unacked.take_all() {
            let settled = Settled { delivery, settlement: Settlement::Requeue };
            self.apply_settled(number, settled, worker);
        }
        self.commit(&[], worker);
    }
}

fn refuse_recovery_without_requeue(requeue: bool) -> Result<(), AmqpError> {
    if requeue {
        return Ok(());
    }
    Err(AmqpError::new(ReplyCode::NotImplemented, "requeue=false"))
}
