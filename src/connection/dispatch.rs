//! From a frame to what handles it.
//!
//! Owns the rules on which frame may come when (specification sections 2.2.4, 2.3 and 4.2), and
//! the life of channels. It must not know what a method does.

use super::channel::{Channel, Confirms, Mode};
use super::consume::check_qos_size;
use super::handshake::Phase;
use super::{Connection, Worker};
use crate::codec::frame::{Frame, FrameKind, describe};
use crate::codec::hot::{self, Settle};
use crate::codec::method::{AMQPClass, access, basic, channel, confirm, parse_method};
use crate::error::{AmqpError, ReplyCode};

/// The refusal of a method that only servers send, or that RabbitMQ does not serve.
pub(super) fn unimplemented() -> AmqpError {
    AmqpError::new(ReplyCode::CommandInvalid, "unimplemented method")
}

impl Connection {
    /// Handles a frame. `at` is the offset of its payload in `buffer`. Answers whether it may have
    /// led to a reply.
    pub(super) fn take_frame(
        &mut self,
        frame: &Frame<'_>,
        at: usize,
        buffer: &[u8],
        worker: &mut Worker,
    ) -> bool {
        let number = frame.channel;
        let open = self.channels.get(usize::from(number)).and_then(Option::as_ref);
        let outcome = match open {
            Some(channel) if !channel.closing && self.phase == Phase::Open => {
                if channel.incoming.is_some() {
                    self.continue_publish(number, frame, at, buffer, worker).map(|()| false)
                } else {
                    self.take_channel_frame(frame, at, buffer, worker)
                }
            }
            _ => self.take_other_frame(frame, buffer, worker).map(|()| true),
        };
        outcome.unwrap_or_else(|error| {
            self.commit(buffer, worker);
            self.fail_in_order(number, error, worker);
            true
        })
    }

    /// A frame on an open channel that is not receiving content.
    fn take_channel_frame(
        &mut self,
        frame: &Frame<'_>,
        at: usize,
        buffer: &[u8],
        worker: &mut Worker,
    ) -> Result<bool, AmqpError> {
        let number = frame.channel;
        if frame.kind != FrameKind::Method {
            if frame.kind == FrameKind::Heartbeat {
                return Err(misplaced(frame));
            }
            let text = "expected method frame, got non method frame instead";
            return Err(AmqpError::new(ReplyCode::UnexpectedFrame, text));
        }
        let (class, method) = hot::method_ids(frame.payload);
        if class == hot::BASIC {
            if method == hot::PUBLISH {
                return self.begin_publish(number, frame.payload, at).map(|()| false);
            }
            if let Some(settle) = Settle::parse(method, frame.payload) {
                let outcome = settle.and_then(|settle| self.handle_settle(number, settle, worker));
                return outcome.map(|()| false).map_err(|error| error.of(class, method));
            }
        }
        // Anything else sees the effect of all before it.
        self.commit(buffer, worker);
        let parsed = parse_method(frame.payload)?;
        let outcome = match parsed {
            AMQPClass::Basic(basic::AMQPMethod::Qos(_)) => check_qos_size(frame.payload),
            _ => Ok(()),
        };
        let outcome = outcome.and_then(|()| self.take_method(number, parsed, worker));
        self.refresh_routes();
        outcome.map(|()| true).map_err(|error| error.of(class, method))
    }

    fn take_method(
        &mut self,
        number: u16,
        method: AMQPClass,
        worker: &mut Worker,
    ) -> Result<(), AmqpError> {
        match method {
            AMQPClass::Channel(method) => self.handle_channel(number, method, worker),
            AMQPClass::Exchange(method) => self.handle_exchange(number, method, worker),
            AMQPClass::Queue(method) => self.handle_queue(number, method, worker),
            AMQPClass::Basic(method) => self.handle_basic(number, method, worker),
            AMQPClass::Tx(method) => self.handle_tx(number, method, worker),
            AMQPClass::Confirm(confirm::AMQPMethod::Select(select)) => {
                self.select_confirms(number, select.nowait, worker)
            }
            AMQPClass::Access(access::AMQPMethod::Request(_)) => {
                // Access tickets have no meaning any more; RabbitMQ gives this one to everybody.
                let ok = access::AMQPMethod::RequestOk(access::RequestOk {});
                self.send(number, AMQPClass::Access(ok), worker);
                Ok(())
            }
            _ => Err(unimplemented()),
        }
    }

    fn handle_channel(
        &mut self,
        number: u16,
        method: channel::AMQPMethod,
        worker: &mut Worker,
    ) -> Result<(), AmqpError> {
        match method {
            channel::AMQPMethod::Open(_) => {
                Err(AmqpError::new(ReplyCode::ChannelError, "second 'channel.open' seen"))
            }
            channel::AMQPMethod::Close(_) => {
                self.end_channel(number, worker);
                let ok = channel::AMQPMethod::CloseOk(channel::CloseOk {});
                self.send(number, AMQPClass::Channel(ok), worker);
                Ok(())
            }
            channel::AMQPMethod::Flow(channel::Flow { active: true }) => {
                let ok = channel::AMQPMethod::FlowOk(channel::FlowOk { active: true });
                self.send(number, AMQPClass::Channel(ok), worker);
                Ok(())
            }
            channel::AMQPMethod::Flow(_) => {
                Err(AmqpError::new(ReplyCode::NotImplemented, "active=false"))
            }
            // Answers to what the server does not ask any more.
            channel::AMQPMethod::FlowOk(_) | channel::AMQPMethod::CloseOk(_) => Ok(()),
            channel::AMQPMethod::OpenOk(_) => Err(unimplemented()),
        }
    }

    fn select_confirms(
        &mut self,
        number: u16,
        nowait: bool,
        worker: &mut Worker,
    ) -> Result<(), AmqpError> {
        let channel = self.channel_mut(number);
        match &channel.mode {
            Mode::Plain => channel.mode = Mode::Confirm(Confirms::default()),
            Mode::Confirm(_) => {}
            Mode::Transactional(_) => {
                let text = "cannot switch from tx to confirm mode";
                return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
            }
        }
        if !nowait {
            let ok = confirm::AMQPMethod::SelectOk(confirm::SelectOk {});
            self.send(number, AMQPClass::Confirm(ok), worker);
        }
        Ok(())
    }

    /// A frame that is not for an open channel: connection methods, channel.open, answers to
    /// closing, heartbeats, and mistakes.
    fn take_other_frame(
        &mut self,
        frame: &Frame<'_>,
        buffer: &[u8],
        worker: &mut Worker,
    ) -> Result<(), AmqpError> {
        if matches!(self.phase, Phase::Closing) {
            return self.take_frame_while_closing(frame, worker);
        }
        let number = frame.channel;
        match frame.kind {
            FrameKind::Heartbeat if number == 0 => Ok(()),
            FrameKind::Heartbeat => Err(misplaced(frame)),
            FrameKind::Method if number == 0 => {
                self.commit(buffer, worker);
                let (class, method) = hot::method_ids(frame.payload);
                let parsed = parse_method(frame.payload)?;
                self.take_connection_method(parsed, worker).map_err(|error| error.of(class, method))
            }
            _ if number == 0 || self.phase != Phase::Open => Err(misplaced(frame)),
            _ if self.is_channel_closing(number) => {
                self.take_frame_of_closing_channel(frame, worker)
            }
            FrameKind::Method => self.open_channel(frame, worker),
            FrameKind::Header | FrameKind::Body => {
                let text = "expected method frame, got non method frame instead";
                Err(AmqpError::new(ReplyCode::UnexpectedFrame, text))
            }
        }
    }

    fn is_channel_closing(&self, number: u16) -> bool {
        let channel = self.channels.get(usize::from(number)).and_then(Option::as_ref);
        channel.is_some_and(|channel| channel.closing)
    }

    fn open_channel(&mut self, frame: &Frame<'_>, worker: &mut Worker) -> Result<(), AmqpError> {
        let number = frame.channel;
        let (class, method) = hot::method_ids(frame.payload);
        let parsed = parse_method(frame.payload)?;
        if let AMQPClass::Channel(channel::AMQPMethod::CloseOk(_)) = parsed {
            // The answer to a close that crossed the client's own.
            return Ok(());
        }
        if !matches!(parsed, AMQPClass::Channel(channel::AMQPMethod::Open(_))) {
            let error = AmqpError::new(ReplyCode::ChannelError, "expected 'channel.open'");
            return Err(error.of(class, method));
        }
        let max = self.channel_max;
        // RabbitMQ limits the number of open channels, not the channel numbers.
        if self.channel_count >= usize::from(max) {
            let count = self.channel_count;
            let text = format!(
                "number of channels opened ({count}) has reached the negotiated channel_max ({max})"
            );
            return Err(AmqpError::new(ReplyCode::NotAllowed, text));
        }
        let presence = self.count_channel()?;
        let index = usize::from(number);
        if self.channels.len() <= index {
            self.channels.reserve_exact(index + 1 - self.channels.len());
            self.channels.resize_with(index + 1, || None);
        }
        self.channels[index] = Some(Box::new(Channel::new(Some(presence))));
        self.channel_count += 1;
        self.outbox.lock().open_channel(number);
        let ok = channel::AMQPMethod::OpenOk(channel::OpenOk {});
        self.send(number, AMQPClass::Channel(ok), worker);
        Ok(())
    }

    /// Ends a channel: consumers first, so that nothing more is delivered, then what is unsettled
    /// goes back to its queues.
    pub(super) fn end_channel(&mut self, number: u16, worker: &mut Worker) {
        self.channel_mut(number).incoming = None;
        let consumers = std::mem::take(&mut self.channel_mut(number).consumers);
        for consumer in consumers.values() {
            self.end_consumer(number, consumer, worker);
        }
        if let Mode::Transactional(transaction) = &mut self.channel_mut(number).mode {
            let (_, settled) = transaction.take();
            let open = settled.into_iter().map(|settled| settled.delivery);
            self.channel_mut(number).unacked.restore(open);
        }
        self.requeue_all(number, worker);
        self.outbox.lock().forget_answers(number);
        self.channels[usize::from(number)] = None;
        self.channel_count -= 1;
    }
}

/// A frame that has no business where it is.
pub(super) fn misplaced(frame: &Frame<'_>) -> AmqpError {
    let text = describe(frame.kind.wire(), frame.payload);
    AmqpError::new(ReplyCode::UnexpectedFrame, text)
}
