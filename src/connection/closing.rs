//! How channels and connections end.
//!
//! Owns the one place where an [`AmqpError`] becomes `channel.close` or `connection.close`, what is
//! still listened to afterwards, and the log lines about it.

use std::task::Waker;

use super::handshake::Phase;
use super::{Connection, Worker};
use crate::broker::Outbox;
use crate::codec::frame::{Frame, FrameKind};
use crate::codec::hot;
use crate::codec::method::{AMQPClass, channel, channel_close, connection, parse_method};
use crate::error::{AmqpError, ReplyCode};

/// After a broken frame, RabbitMQ closes the socket this much later.
const FRAMING_LINGER_MS: u64 = 3000;

/// A refused handshake is answered with silence for this long.
pub(super) const REFUSED_LINGER_MS: u64 = 3000;

impl Connection {
    /// Whether nothing that the client sends matters any more.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over { .. })
    }

    /// Closes what the error concerns. Everything that came before it has been applied.
    pub(super) fn fail(&mut self, number: u16, error: &AmqpError, worker: &mut Worker) {
        if self.is_handshaking() {
            return self.refuse_silently(error);
        }
        let on_channel = number != 0
            && !error.code.is_hard()
            && self.channels.get(usize::from(number)).is_some_and(Option::is_some);
        if !on_channel {
            return self.fail_connection(error, worker);
        }
        let name = &*self.name;
        tracing::warn!(connection = name, channel = number, "channel error: {error}");
        self.begin_closing(number, worker);
        self.send(number, channel_close(error), worker);
    }

    /// Ends a channel but for the answer to channel.close.
    fn begin_closing(&mut self, number: u16, worker: &mut Worker) {
        self.end_channel(number, worker);
        let mut closing = super::channel::Channel::new(None);
        closing.closing = true;
        self.channels[usize::from(number)] = Some(Box::new(closing));
        self.channel_count += 1;
    }

    /// Ends the channels that somebody else has closed, by way of the outbox.
    pub(super) fn end_closed_channels(&mut self, worker: &mut Worker) {
        for number in self.outbox.take_closed_channels() {
            let channel = self.channels.get(usize::from(number)).and_then(Option::as_ref);
            if channel.is_some_and(|channel| !channel.closing) {
                let name = &*self.name;
                tracing::warn!(connection = name, channel = number, "closed by its queue");
                self.begin_closing(number, worker);
            }
        }
    }

    /// Sends connection.close and waits for the answer.
    pub(super) fn fail_connection(&mut self, error: &AmqpError, worker: &mut Worker) {
        tracing::warn!(connection = &*self.name, user = self.user, "connection error: {error}");
        self.end_all_channels(worker);
        send_close(&self.outbox, error, &mut worker.drive.wakes);
        self.phase = Phase::Closing;
        self.liveness.begin_closing();
    }

    /// After bytes that are no frame, the client's answer could not be understood either.
    pub(super) fn fail_framing(&mut self, error: &AmqpError, worker: &mut Worker) {
        if self.is_handshaking() {
            return self.refuse_silently(error);
        }
        if self.phase != Phase::Closing {
            self.fail_connection(error, worker);
        }
        self.phase = Phase::Over { linger_ms: FRAMING_LINGER_MS };
    }

    /// Before connection.open-ok RabbitMQ closes without a word, after a while.
    pub(super) fn refuse_silently(&mut self, error: &AmqpError) {
        tracing::warn!(connection = &*self.name, "handshake failed: {error}");
        self.phase = Phase::Over { linger_ms: REFUSED_LINGER_MS };
    }

    pub(super) fn end_all_channels(&mut self, worker: &mut Worker) {
        for number in 0..self.channels.len() {
            if self.channels[number].is_some() {
                self.end_channel(number as u16, worker);
            }
        }
    }

    /// connection.close from the client. What the connection holds is released before the answer
    /// (RabbitMQ: an exclusive queue is gone when close-ok arrives).
    pub(super) fn close_by_client(&mut self, close: &connection::Close, worker: &mut Worker) {
        let (name, text) = (&*self.name, close.reply_text.as_str());
        let (code, user) = (close.reply_code, &self.user);
        tracing::info!(connection = name, user, code, text, "connection closed by the client");
        self.release_holdings(worker);
        let ok = connection::AMQPMethod::CloseOk(connection::CloseOk {});
        self.send(0, AMQPClass::Connection(ok), worker);
        self.phase = Phase::Over { linger_ms: 0 };
    }

    /// Once connection.close has been sent, only its answer, or the client's own close, matters.
    pub(super) fn take_frame_while_closing(
        &mut self,
        frame: &Frame<'_>,
        worker: &mut Worker,
    ) -> Result<(), AmqpError> {
        if frame.kind != FrameKind::Method || frame.channel != 0 {
            return Ok(());
        }
        match parse_method(frame.payload) {
            Ok(AMQPClass::Connection(connection::AMQPMethod::CloseOk(_))) => {
                self.phase = Phase::Over { linger_ms: 0 };
            }
            Ok(AMQPClass::Connection(connection::AMQPMethod::Close(_))) => {
                let ok = connection::AMQPMethod::CloseOk(connection::CloseOk {});
                self.send(0, AMQPClass::Connection(ok), worker);
            }
            _ => {}
        }
        Ok(())
    }

    /// Once channel.close has been sent, everything on the channel is ignored up to its answer. The
    /// client's own close may have crossed it (specification section 1.5.2.6).
    pub(super) fn take_frame_of_closing_channel(
        &mut self,
        frame: &Frame<'_>,
        worker: &mut Worker,
    ) -> Result<(), AmqpError> {
        const CHANNEL_CLASS: u16 = 20;
        if frame.kind != FrameKind::Method || hot::method_ids(frame.payload).0 != CHANNEL_CLASS {
            return Ok(());
        }
        let number = frame.channel;
        match parse_method(frame.payload) {
            Ok(AMQPClass::Channel(channel::AMQPMethod::CloseOk(_))) => {
                self.channels[usize::from(number)] = None;
                self.channel_count -= 1;
            }
            Ok(AMQPClass::Channel(channel::AMQPMethod::Close(_))) => {
                let ok = channel::AMQPMethod::CloseOk(channel::CloseOk {});
                self.send(number, AMQPClass::Channel(ok), worker);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Appends connection.close.
fn send_close(outbox: &Outbox, error: &AmqpError, wakes: &mut Vec<Waker>) {
    let close = connection::Close {
        reply_code: error.code.code(),
        reply_text: error.reply_text().as_str().into(),
        class_id: error.class_id,
        method_id: error.method_id,
    };
    outbox.send(0, &AMQPClass::Connection(connection::AMQPMethod::Close(close)), wakes);
}

/// The broker stops: RabbitMQ's words for it.
pub(super) fn force_close(outbox: &Outbox, wakes: &mut Vec<Waker>) {
    let text = "broker forced connection closure with reason 'shutdown'";
    outbox.set_asked_to_close();
    send_close(outbox, &AmqpError::new(ReplyCode::ConnectionForced, text), wakes);
}

/// connection.blocked with its reason, or connection.unblocked.
pub(super) fn notify_blocked(outbox: &Outbox, reason: Option<&str>, wakes: &mut Vec<Waker>) {
    let method = match reason {
        Some(reason) => {
            connection::AMQPMethod::Blocked(connection::Blocked { reason: reason.into() })
        }
        None => connection::AMQPMethod::Unblocked(connection::Unblocked {}),
    };
    outbox.send(0, &AMQPClass::Connection(method), wakes);
}
