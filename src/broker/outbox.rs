//! A connection's outgoing bytes, and the delivery side of its channels.
//!
//! Owns the buffer that everybody who has something for a connection appends to (its own reader
//! with replies, publishers' readers with deliveries) and that the connection's writer swaps for
//! an empty one; the delivery tags, which are given out in the order of the bytes; and the list of
//! consumers that wait for room. It must not know of sockets: a plain [`Waker`] is all that
//! crosses.
//!
//! The lock is a leaf: no other lock is taken under it. It is held for encoding one batch, or for
//! a swap, never during IO.
//!
//! Bounds: deliveries stop at [`HIGH_WATER_BYTES`] plus what consumers' windows still allow; a
//! reader that produces replies stops at `REPLIES_MAX_BYTES`.

mod content;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use super::QueueCell;
use crate::codec::encode::{self, DeliverHead};
use crate::codec::method::{AMQPClass, basic, channel_close, put_method};
use crate::error::AmqpError;
use crate::queue::{ConsumerKey, LARGE_DISCOUNT, Slot};
use crate::store::{Outcome, Ticket};

/// Consumers get no further window while this much waits to be written; of large bodies, which are
/// not copied, only a part counts (see [`Content::cost`]). Between 512 KiB and 1 MiB was best by
/// measurement.
pub const HIGH_WATER_BYTES: usize = 768 * 1024;

/// A connection whose own requests have produced this much unread output is not read any further.
const REPLIES_MAX_BYTES: usize = 4 * 1024 * 1024;

const WINDOW_MAX_BYTES: u32 = 512 * 1024;
const WINDOW_MIN_BYTES: u32 = 1024;

/// Buffers up to this capacity are kept while a connection is idle.
const IDLE_BUFFER_BYTES: usize = 1024;

/// Names a connection for the life of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// A delivery on a channel that is to be settled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unsettled {
    pub(crate) tag: u64,
    /// Which of the channel's sources (queues) it came from.
    pub(crate) source: u32,
    pub(crate) slot: Slot,
    /// Whether it counts against the channel's shared prefetch limit.
    pub(crate) counted: bool,
}

/// Where a consumer's deliveries go.
#[derive(Debug)]
pub(crate) struct Subscriber {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) channel: u16,
    /// Index of the queue in the channel's sources, for [`Unsettled::source`].
    pub(crate) source: u32,
    pub(crate) head: DeliverHead,
    /// The consumer tag.
    pub(crate) tag: Box<str>,
}

/// The answer to publishes in confirm mode, which are numbered from 1.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// All up to this number that were not answered before.
    pub(crate) last: u64,
    /// Of them, those that a queue has refused, by rising number.
    pub(crate) refused: Vec<u64>,
}

#[derive(Debug, Default)]
struct ChannelOut {
    next_tag: u64,
    /// Deliveries to be settled that the channel's reader has not taken over yet, by rising tag.
    unsettled: Vec<Unsettled>,
    /// All publishes up to this number have been answered.
    answered: u64,
    /// Answers that wait for the store, in order, and for what there.
    waiting: VecDeque<(Ticket, Answer)>,
}

impl ChannelOut {
    fn ack_up_to(&mut self, out: &mut Vec<u8>, number: u16, last: u64) {
        if last > self.answered {
            encode::put_ack(out, number, last, last > self.answered + 1);
            self.answered = last;
        }
    }

    fn nack_up_to(&mut self, out: &mut Vec<u8>, number: u16, last: u64) {
        if last > self.answered {
            encode::put_nack(out, number, last, last > self.answered + 1);
            self.answered = last;
        }
    }

    /// Acks are cumulative (RabbitMQ's confirms).
    fn answer(&mut self, out: &mut Vec<u8>, number: u16, answer: &Answer) {
        for refused in &answer.refused {
            self.ack_up_to(out, number, refused - 1);
            self.nack_up_to(out, number, *refused);
        }
        self.ack_up_to(out, number, answer.last);
    }
}

/// Bytes to write: a buffer, and large bodies that go between its parts.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// The bytes, large bodies excepted.
    pub buffer: Vec<u8>,
    /// Large bodies with the offset in `buffer` before which each goes.
    pub large: Vec<(usize, Bytes)>,
    large_bytes: usize,
}

impl Outgoing {
    fn len(&self) -> usize {
        self.buffer.len() + self.large_bytes
    }

    /// What counts for [`HIGH_WATER_BYTES`] (see [`Content::cost`]).
    fn load(&self) -> usize {
        self.buffer.len() + self.large_bytes / LARGE_DISCOUNT
    }

    /// Forgets what was written and keeps the buffers.
    pub fn clear(&mut self) {
        self.buffer.clear();
        self.large.clear();
        self.large_bytes = 0;
    }
}

#[derive(Debug, Default)]
struct State {
    out: Outgoing,
    /// The buffer that the writer gave back, for the next swap.
    spare: Outgoing,
    channels: Vec<ChannelOut>,
    /// Consumers that used up their window while there was no room.
    parked: Vec<(Arc<QueueCell>, ConsumerKey)>,
    writer: Option<Waker>,
    /// A reader that waits for the client to read its replies.
    reader: Option<Waker>,
    /// Nothing more is appended; the writer ends when it has written what there is.
    closed: bool,
    /// Channels with answers that wait for the store.
    confirming: Vec<u16>,
    /// Whether anything was written since the last idle check.
    used: bool,
    /// Bytes in `out` that answer the client's own requests.
    reply_bytes: usize,
    /// Channels that were closed from outside of their connection, which does not know yet.
    closed_channels: Vec<u16>,
    /// Consumers that ended without their connection, by channel and tag.
    lost_consumers: Vec<(u16, Box<str>)>,
}

/// See the module's description.
#[derive(Debug)]
pub struct Outbox {
    id: ConnectionId,
    frame_max: AtomicU32,
    /// The client was asked to go.
    asked_to_close: AtomicBool,
    /// Whether the client understands basic.cancel from the server.
    cancel_notify: AtomicBool,
    /// Consumers on this connection: they share the room for deliveries.
    consumers: AtomicU32,
    /// Whether there are `closed_channels`.
    has_closed_channels: AtomicBool,
    state: Mutex<State>,
}

impl Outbox {
    pub(crate) fn new(id: ConnectionId) -> Self {
        Self {
            id,
            frame_max: AtomicU32::new(0),
            asked_to_close: AtomicBool::new(false),
            cancel_notify: AtomicBool::new(false),
            consumers: AtomicU32::new(0),
            has_closed_channels: AtomicBool::new(false),
            state: Mutex::new(State::default()),
        }
    }

    /// The connection this is for.
    pub(crate) fn id(&self) -> ConnectionId {
        self.id
    }

    /// Sets the largest frame (bytes) that the peer accepts, from `connection.tune-ok`.
    pub(crate) fn set_frame_max(&self, frame_max: u32) {
        self.frame_max.store(frame_max, Ordering::Relaxed);
    }

    /// Notes that the client was sent connection.close from outside its own connection.
    pub(crate) fn set_asked_to_close(&self) {
        self.asked_to_close.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_asked_to_close(&self) -> bool {
        self.asked_to_close.load(Ordering::Relaxed)
    }

    /// The client has announced `consumer_cancel_notify` among its capabilities.
    pub(crate) fn set_cancel_notify(&self) {
        self.cancel_notify.store(true, Ordering::Relaxed);
    }

    /// Whether the client has announced `consumer_cancel_notify`.
    pub(crate) fn knows_cancel(&self) -> bool {
        self.cancel_notify.load(Ordering::Relaxed)
    }

    /// Closes a channel from outside of its connection, which learns of it before it takes the next
    /// frame (see [`Outbox::take_closed_channels`]).
    pub(crate) fn close_channel(&self, number: u16, error: &AmqpError, wakes: &mut Vec<Waker>) {
        let mut guard = self.lock();
        if guard.state.closed_channels.contains(&number) {
            return;
        }
        guard.state.closed_channels.push(number);
        self.has_closed_channels.store(true, Ordering::Release);
        put_method(guard.buffer(), number, &channel_close(error));
        guard.wake(wakes);
    }

    /// Whether a channel was closed without its connection, which has not seen that yet.
    pub(crate) fn has_closed_channels(&self) -> bool {
        self.has_closed_channels.load(Ordering::Acquire)
    }

    /// For the connection: the channels that were closed without it.
    pub(crate) fn take_closed_channels(&self) -> Vec<u16> {
        if !self.has_closed_channels() {
            return Vec::new();
        }
        let mut state = self.state.lock();
        self.has_closed_channels.store(false, Ordering::Relaxed);
        std::mem::take(&mut state.closed_channels)
    }

    /// Notes that a consumer is gone, and tells the client (RabbitMQ's consumer cancel
    /// notification), if it understands that.
    pub(crate) fn lose_consumer(&self, (channel, tag): (u16, Box<str>), wakes: &mut Vec<Waker>) {
        if self.knows_cancel() {
            let cancel = basic::Cancel { consumer_tag: (&*tag).into(), nowait: true };
            let method = AMQPClass::Basic(basic::AMQPMethod::Cancel(cancel));
            self.send(channel, &method, wakes);
        }
        self.state.lock().lost_consumers.push((channel, tag));
    }

    /// For the connection: the consumers that ended without it.
    pub(crate) fn take_lost_consumers(&self) -> Vec<(u16, Box<str>)> {
        std::mem::take(&mut self.state.lock().lost_consumers)
    }

    /// The store is done with everything up to this ticket: answers the publishes that waited for
    /// it. What may be lost is answered with basic.nack.
    pub(crate) fn answer_stored(&self, ticket: Ticket, outcome: Outcome) {
        let mut wakes = Vec::new();
        {
            let mut guard = self.lock_for_reply();
            let state = &mut *guard.state;
            let (channels, out) = (&mut state.channels, &mut state.out.buffer);
            state.confirming.retain(|number| {
                let channel = &mut channels[usize::from(*number)];
                while channel.waiting.front().is_some_and(|(on, _)| *on <= ticket)
                    && let Some((_, answer)) = channel.waiting.pop_front()
                {
                    match outcome {
                        Outcome::Durable => channel.answer(out, *number, &answer),
                        Outcome::Lost => channel.nack_up_to(out, *number, answer.last),
                    }
                }
                !channel.waiting.is_empty()
            });
            guard.wake(&mut wakes);
        }
        wakes.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn add_consumer(&self) {
        self.consumers.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn remove_consumer(&self) {
        self.consumers.fetch_sub(1, Ordering::Relaxed);
    }

    /// The byte window for one of this connection's consumers: its share of the room.
    pub(crate) fn window(&self) -> u32 {
        let consumers = self.consumers.load(Ordering::Relaxed).max(1);
        (HIGH_WATER_BYTES as u32 / consumers).clamp(WINDOW_MIN_BYTES, WINDOW_MAX_BYTES)
    }

    pub(crate) fn lock(&self) -> OutboxGuard<'_> {
        let frame_max = self.frame_max.load(Ordering::Relaxed);
        OutboxGuard { state: self.state.lock(), frame_max, reply_from: None }
    }

    /// Locks for appending replies, which are counted: see [`Outbox::is_congested`].
    pub(crate) fn lock_for_reply(&self) -> OutboxGuard<'_> {
        let mut guard = self.lock();
        guard.reply_from = Some(guard.state.out.len());
        guard
    }

    /// Appends a method frame.
    pub(crate) fn send(&self, channel: u16, method: &AMQPClass, wakes: &mut Vec<Waker>) {
        let mut guard = self.lock_for_reply();
        put_method(guard.buffer(), channel, method);
        guard.wake(wakes);
    }

    /// Appends what `put` writes, and wakes the writer.
    pub(crate) fn send_raw(&self, put: impl FnOnce(&mut Vec<u8>)) {
        let mut wakes = Vec::new();
        {
            let mut guard = self.lock();
            put(guard.buffer());
            guard.wake(&mut wakes);
        }
        wakes.into_iter().for_each(Waker::wake);
    }

    /// Whether nothing more is appended.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// For the reader: ready when the writer has taken the replies that were there.
    pub fn poll_drained(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.reply_bytes == 0 || state.closed {
            return Poll::Ready(());
        }
        state.reader = Some(context.waker().clone());
        Poll::Pending
    }

    /// Whether the client asks more than it reads the answers of. Deliveries do not count: a client
    /// that only writes for a while must not be stopped because somebody else publishes to it.
    pub fn is_congested(&self) -> bool {
        self.state.lock().reply_bytes > REPLIES_MAX_BYTES
    }

    /// Ends the connection's output: what is there is still written, nothing is added.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        // Dropped without the lock: a parked entry may be the last to hold its queue.
        let parked = std::mem::take(&mut state.parked);
        let wakers = [state.writer.take(), state.reader.take()];
        drop(state);
        drop(parked);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Ends the connection's output at once: what is not written yet is dropped.
    pub fn abort(&self) {
        {
            let mut state = self.state.lock();
            state.out = Outgoing::default();
        }
        self.close();
    }

    /// For the writer: swaps what is to be written into `into` (which was cleared). Ready with
    /// `false` when the connection's output has ended.
    pub fn poll_take(&self, context: &mut Context<'_>, into: &mut Outgoing) -> Poll<bool> {
        let mut state = self.state.lock();
        if state.out.len() > 0 {
            std::mem::swap(into, &mut state.spare);
            std::mem::swap(into, &mut state.out);
            state.used = true;
            state.reply_bytes = 0;
            if let Some(reader) = state.reader.take() {
                reader.wake();
            }
            return Poll::Ready(true);
        }
        if state.closed {
            return Poll::Ready(false);
        }
        state.writer = Some(context.waker().clone());
        Poll::Pending
    }

    /// For the writer: gives the buffer back after writing, and takes the consumers that wait for
    /// room, which the writer then has to grant a window (see [`QueueCell::grant`]).
    pub(crate) fn written(
        &self,
        mut buffer: Outgoing,
        parked: &mut Vec<(Arc<QueueCell>, ConsumerKey)>,
    ) {
        buffer.clear();
        let mut state = self.state.lock();
        state.spare = buffer;
        // While there is no room, they stay: there will be another write.
        if state.out.load() < HIGH_WATER_BYTES {
            parked.append(&mut state.parked);
        }
    }

    /// Gives large buffers back when nothing was written since the last call.
    pub(crate) fn shrink_if_idle(&self) {
        let state = &mut *self.state.lock();
        if !std::mem::take(&mut state.used) && state.out.len() == 0 {
            for buffer in [&mut state.out, &mut state.spare] {
                if buffer.buffer.capacity() > IDLE_BUFFER_BYTES {
                    *buffer = Outgoing::default();
                }
            }
        }
    }
}

/// The outbox while it is locked.
pub(crate) struct OutboxGuard<'a> {
    state: MutexGuard<'a, State>,
    frame_max: u32,
    /// Where replies began to be appended.
    reply_from: Option<usize>,
}

impl Drop for OutboxGuard<'_> {
    fn drop(&mut self) {
        if let Some(from) = self.reply_from {
            self.state.reply_bytes += self.state.out.len().saturating_sub(from);
        }
    }
}

impl OutboxGuard<'_> {
    /// The buffer to append whole frames to.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.state.out.buffer
    }

    pub(crate) fn is_full(&self) -> bool {
        self.state.out.load() >= HIGH_WATER_BYTES
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.closed
    }

    /// Takes the writer's waker, to be woken when no lock is held.
    pub(crate) fn wake(&mut self, wakes: &mut Vec<Waker>) {
        if let Some(waker) = self.state.writer.take() {
            wakes.push(waker);
        }
    }

    /// Remembers a consumer until there is room.
    pub(crate) fn park(&mut self, cell: Arc<QueueCell>, consumer: ConsumerKey) {
        self.state.parked.push((cell, consumer));
    }

    /// Begins a channel's delivery tags at 1.
    pub(crate) fn open_channel(&mut self, channel: u16) {
        let index = usize::from(channel);
        let channels = &mut self.state.channels;
        if channels.len() <= index {
            channels.reserve_exact(index + 1 - channels.len());
            channels.resize_with(index + 1, ChannelOut::default);
        }
        channels[index] = ChannelOut { next_tag: 1, ..ChannelOut::default() };
        // Those that were closed under this number before are history.
        self.state.closed_channels.retain(|closed| *closed != channel);
    }

    /// Forgets what a channel that ends has not answered: the client knows no such channel then.
    pub(crate) fn forget_answers(&mut self, channel: u16) {
        self.state.channels[usize::from(channel)].waiting.clear();
    }

    /// Takes the deliveries to be settled that the channel's reader does not know yet.
    pub(crate) fn take_unsettled(&mut self, channel: u16, into: &mut impl Extend<Unsettled>) {
        into.extend(self.state.channels[usize::from(channel)].unsettled.drain(..));
    }

    /// Answers publishes of a channel, now or when the store is done with what `ticket` names (see
    /// [`Outbox::answer_stored`]), but not before those that wait already.
    pub(crate) fn answer(&mut self, number: u16, answer: Answer, ticket: Option<Ticket>) {
        let state = &mut *self.state;
        let channel = &mut state.channels[usize::from(number)];
        match ticket.max(channel.waiting.back().map(|(ticket, _)| *ticket)) {
            None => channel.answer(&mut state.out.buffer, number, &answer),
            Some(ticket) => {
                channel.waiting.push_back((ticket, answer));
                if !state.confirming.contains(&number) {
                    state.confirming.push(number);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn outbox() -> Outbox {
        let outbox = Outbox::new(ConnectionId(1));
        outbox.set_frame_max(4096);
        outbox
    }

    pub(super) fn take(outbox: &Outbox) -> Option<Outgoing> {
        let mut taken = Outgoing::default();
        match outbox.poll_take(&mut Context::from_waker(Waker::noop()), &mut taken) {
            Poll::Ready(true) => Some(taken),
            _ => None,
        }
    }

    #[test]
    fn a_channel_that_has_ended_answers_nothing() {
        let outbox = outbox();
        outbox.lock().open_channel(1);
        outbox.lock().open_channel(2);
        for number in [1, 2] {
            let answer = Answer { last: 3, refused: Vec::new() };
            outbox.lock().answer(number, answer, Some(Ticket::default()));
        }
        outbox.lock().forget_answers(1);
        outbox.answer_stored(Ticket::default(), Outcome::Durable);
        let mut expected = Vec::new();
        encode::put_ack(&mut expected, 2, 3, true);
        assert_eq!(take(&outbox).expect("an answer").buffer, expected);
    }

    #[test]
    fn consumers_share_the_room() {
        let outbox = outbox();
        assert_eq!(outbox.window(), WINDOW_MAX_BYTES);
        (0..1000).for_each(|_| outbox.add_consumer());
        assert_eq!(outbox.window(), WINDOW_MIN_BYTES);
        (0..1000).for_each(|_| outbox.remove_consumer());
        assert_eq!(outbox.window(), WINDOW_MAX_BYTES);
    }

    #[test]
    fn only_replies_congest() {
        let outbox = outbox();
        outbox.lock().buffer().resize(2 * REPLIES_MAX_BYTES, 0);
        assert!(!outbox.is_congested());
        outbox.lock_for_reply().buffer().resize(4 * REPLIES_MAX_BYTES, 0);
        assert!(outbox.is_congested());
        assert!(take(&outbox).is_some());
        assert!(!outbox.is_congested());
    }

    #[test]
    fn what_is_there_is_written_before_the_end() {
        let outbox = outbox();
        outbox.lock().buffer().push(1);
        outbox.close();
        assert_eq!(take(&outbox).map(|out| out.buffer), Some(vec![1]));
        let mut taken = Outgoing::default();
        let end = outbox.poll_take(&mut Context::from_waker(Waker::noop()), &mut taken);
        assert_eq!(end, Poll::Ready(false));
    }
}
