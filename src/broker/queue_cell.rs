//! A queue as the broker shares it: the state machine under its lock, and who subscribes.
//!
//! Owns the only lock around a [`Queue`], the encoding of its deliveries into the outboxes of
//! their connections, and the pacing of publishers that outrun willing consumers. It must not know
//! of names in a vhost, of routing, or of channels beyond their number.
//!
//! Lock order: this lock, then one outbox at a time. Never two queues, never two outboxes. Work
//! under the lock is one batch, bounded by one socket read.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::{Mutex, MutexGuard};

use super::drive::Drive;
use super::memory::Memory;
use super::outbox::{ConnectionId, Outbox, Subscriber};
use super::pacing::Pacing;
use crate::codec::method::{AMQPClass, FieldTable};
use crate::queue::{
    ConsumerKey, ConsumerSpec, Content, Delivery, Effects, Limits, Origin, Overflow, Queue, Slot,
};
use crate::routing::QueueId;

/// What a queue was declared with.
#[derive(Clone, Debug)]
pub(crate) struct Declaration {
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    /// The connection that the queue is exclusive to.
    pub(crate) owner: Option<ConnectionId>,
    pub(crate) arguments: FieldTable,
}

/// What a settled delivery does to its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// The message is done with.
    Done,
    /// The message comes back to its original place.
    Requeue,
}

/// What a batch does to one queue, in the order in which its client said so.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    /// Takes in the message that this token names.
    Publish(u32),
    /// Settles a delivery.
    Settle(Slot, Settlement),
}

/// Why a consumer or a get was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The queue was deleted.
    Gone,
    /// An exclusive consumer is there, or was asked for while others are.
    InUse,
}

/// Why a queue was not deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    Gone,
    InUse,
    NotEmpty,
}

/// Conditions on deleting a queue.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DeleteIf {
    pub(crate) unused: bool,
    pub(crate) empty: bool,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    /// By the index of the consumer's key.
    subscribers: Vec<Option<Subscriber>>,
    exclusive_consumer: Option<ConsumerKey>,
    /// An auto-delete queue goes with its last consumer, but only if it had one.
    had_consumer: bool,
    gone: bool,
    /// What the memory gauge was told last.
    memory_counted: usize,
    pacing: Pacing,
}

/// See the module's description.
#[derive(Debug)]
pub struct QueueCell {
    id: QueueId,
    name: Box<str>,
    pub(crate) declaration: Declaration,
    /// Whether a publish can be refused (`reject-publish`).
    pub(crate) may_reject: bool,
    memory: Arc<Memory>,
    /// Set under the lock; read without it as a hint.
    is_gone: AtomicBool,
    state: Mutex<State>,
}

/// The state while it is locked. A panic under the lock may leave a queue that does not hold
/// together: it is then gone, as far as everybody else is concerned, and harms nothing else.
struct Locked<'a> {
    state: MutexGuard<'a, State>,
    is_gone: &'a AtomicBool,
    /// The lock was taken while a panic unwinds, to release what its connection holds.
    in_panic: bool,
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.in_panic {
            self.state.gone = true;
            self.is_gone.store(true, Ordering::Release);
        }
    }
}

impl QueueCell {
    pub(crate) fn new(
        id: QueueId,
        name: &str,
        declaration: Declaration,
        memory: Arc<Memory>,
    ) -> Self {
        let limits = Limits::from_arguments(&declaration.arguments);
        let state = State {
            queue: Queue::new(limits),
            subscribers: Vec::new(),
            exclusive_consumer: None,
            had_consumer: false,
            gone: false,
            memory_counted: 0,
            pacing: Pacing::default(),
        };
        Self {
            id,
            name: name.into(),
            declaration,
            may_reject: limits.overflow == Overflow::RejectPublish,
            memory,
            is_gone: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }

    pub(crate) fn id(&self) -> QueueId {
        self.id
    }

    fn lock(&self) -> Locked<'_> {
        let in_panic = std::thread::panicking();
        Locked { state: self.state.lock(), is_gone: &self.is_gone, in_panic }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Acquire)
    }

    /// Ready messages and consumers, as `queue.declare-ok` reports them.
    pub(crate) fn counts(&self) -> (u32, u32) {
        let state = self.lock();
        (state.queue.ready() as u32, state.queue.consumer_count() as u32)
    }

    /// Applies one batch in order, then delivers. The tokens of publishes that the queue refused
    /// are left in `drive.effects.rejected`.
    pub(crate) fn commit<'c>(
        self: &Arc<Self>,
        operations: &[Operation],
        content: impl Fn(u32) -> Content<'c>,
        drive: &mut Drive,
    ) {
        let mut state = self.lock();
        if state.gone {
            return;
        }
        let state = &mut *state;
        // A limit must not cost a message that a consumer has room for: in a limited queue, what
        // gives consumers room takes effect before the next message comes.
        let limited = state.queue.is_limited();
        let mut published = false;
        let mut room = false;
        for operation in operations {
            match *operation {
                Operation::Settle(slot, Settlement::Done) => {
                    state.queue.settle(slot, &mut drive.effects);
                    room = true;
                }
                Operation::Settle(slot, Settlement::Requeue) => {
                    state.queue.put_back(slot);
                    room = true;
                }
                Operation::Publish(token) => {
                    if limited && (room || !drive.effects.exhausted.is_empty()) {
                        self.dispatch(state, &content, drive);
                        room = false;
                    }
                    state.queue.enqueue(&content(token), token, &mut drive.effects);
                    published = true;
                }
            }
        }
        self.dispatch(state, &content, drive);
        if published && state.pacing.is_outrun(&state.queue) {
            drive.outrun = Some(self.clone());
        }
    }

    /// Adds a consumer. `ok` is the reply, which precedes the first delivery.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        spec: ConsumerSpec,
        exclusive: bool,
        subscriber: Subscriber,
        ok: Option<&AMQPClass>,
        drive: &mut Drive,
    ) -> Result<ConsumerKey, Refusal> {
        let mut state = self.lock();
        if state.gone {
            return Err(Refusal::Gone);
        }
        if state.exclusive_consumer.is_some() || (exclusive && state.queue.consumer_count() > 0) {
            return Err(Refusal::InUse);
        }
        let state = &mut *state;
        let key = state.queue.subscribe(spec);
        state.had_consumer = true;
        state.exclusive_consumer = exclusive.then_some(key);
        let index = key.index as usize;
        if state.subscribers.len() <= index {
            state.subscribers.resize_with(index + 1, || None);
        }
        subscriber.outbox.add_consumer();
        if let Some(ok) = ok {
            subscriber.outbox.send(subscriber.channel, ok, &mut drive.wakes);
        }
        state.subscribers[index] = Some(subscriber);
        // It begins without a byte window, and gets one where there is room in its outbox.
        drive.effects.exhausted.push(key);
        self.dispatch(state, &no_content, drive);
        Ok(key)
    }

    /// Removes a consumer. Answers whether the queue is to be deleted now (auto-delete).
    pub(crate) fn cancel(&self, key: ConsumerKey, drive: &mut Drive) -> bool {
        let mut state = self.lock();
        if !state.queue.cancel(key) {
            return false;
        }
        if let Some(subscriber) = state.subscribers[key.index as usize].take() {
            subscriber.outbox.remove_consumer();
        }
        if state.exclusive_consumer == Some(key) {
            state.exclusive_consumer = None;
        }
        let unused = state.queue.consumer_count() == 0;
        if unused {
            state.pacing.release(&mut drive.wakes);
        }
        unused && self.declaration.auto_delete && state.had_consumer
    }

    /// `basic.get`: answers `false` when the queue is empty. The reply is written under the lock,
    /// so that replies stand in the order of the messages.
    pub(crate) fn get(
        &self,
        no_ack: bool,
        outbox: &Outbox,
        channel: u16,
        source: u32,
        drive: &mut Drive,
    ) -> Result<bool, Refusal> {
        let mut state = self.lock();
        if state.gone {
            return Err(Refusal::Gone);
        }
        let Some(got) = state.queue.get(no_ack) else { return Ok(false) };
        let left = state.queue.ready() as u32;
        {
            let mut guard = outbox.lock_for_reply();
            guard.get_ok(channel, source, &got, left, &state.queue.got_content(&got));
            guard.wake(&mut drive.wakes);
        }
        state.queue.finish_get(&got, &mut drive.effects);
        self.count_memory(&mut state);
        Ok(true)
    }

    /// Drops all ready messages; returns how many there were.
    pub(crate) fn purge(&self, drive: &mut Drive) -> u32 {
        let mut state = self.lock();
        let count = state.queue.purge(&mut drive.effects);
        state.pacing.release(&mut drive.wakes);
        self.count_memory(&mut state);
        count as u32
    }

    /// Fills the byte window of a consumer that waited for room in its outbox.
    pub(crate) fn grant(self: &Arc<Self>, key: ConsumerKey, drive: &mut Drive) {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(Some(subscriber)) = state.subscribers.get(key.index as usize) else { return };
        state.queue.grant(key, subscriber.outbox.window());
        self.dispatch(state, &no_content, drive);
    }

    /// Lets consumers that their channel's shared prefetch limit had stopped try again.
    pub(crate) fn reopen(self: &Arc<Self>, drive: &mut Drive) {
        let mut state = self.lock();
        let state = &mut *state;
        state.queue.reopen();
        self.dispatch(state, &no_content, drive);
    }

    /// Marks the queue as deleted, drops its messages and tells its consumers. Answers how many
    /// messages were ready. The caller takes the name out of the vhost.
    pub(crate) fn delete(&self, condition: DeleteIf, drive: &mut Drive) -> Result<u32, Kept> {
        let mut state = self.lock();
        if state.gone {
            return Err(Kept::Gone);
        }
        // With both conditions RabbitMQ reports the messages first.
        if condition.empty && state.queue.ready() > 0 {
            return Err(Kept::NotEmpty);
        }
        if condition.unused && state.queue.consumer_count() > 0 {
            return Err(Kept::InUse);
        }
        state.gone = true;
        self.is_gone.store(true, Ordering::Release);
        let count = state.queue.ready() as u32;
        // Freeing many messages takes a while: that is done when no lock is held.
        drive.deleted.push(std::mem::replace(&mut state.queue, Queue::new(Limits::default())));
        self.count_memory(&mut state);
        state.pacing.release(&mut drive.wakes);
        for subscriber in std::mem::take(&mut state.subscribers).into_iter().flatten() {
            subscriber.outbox.remove_consumer();
            let consumer = (subscriber.channel, subscriber.tag);
            subscriber.outbox.lose_consumer(consumer, &mut drive.wakes);
        }
        Ok(count)
    }

    /// Ready when the consumers have caught up with the publishers, or the queue is gone.
    pub fn poll_caught_up(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        let state = &mut *state;
        state.pacing.poll_caught_up(&state.queue, context)
    }

    /// Whether the consumers made enough headway since the publisher's last look for it to go on
    /// waiting for them. `delivered` is the publisher's own, from look to look.
    pub fn is_catching_up(&self, delivered: &mut u64) -> bool {
        self.lock().pacing.is_catching_up(delivered)
    }

    #[cfg(test)]
    pub(super) fn crash_for_test(&self) {
        let _locked = self.lock();
        panic!("as a bug in the queue would");
    }

    /// Assigns messages to consumers and encodes them, as long as that gives somebody room.
    fn dispatch<'c>(
        self: &Arc<Self>,
        state: &mut State,
        staged: &impl Fn(u32) -> Content<'c>,
        drive: &mut Drive,
    ) {
        loop {
            state.queue.checkout(&mut drive.effects);
            if !drive.effects.deliveries.is_empty() {
                state.pacing.delivered(drive.effects.deliveries.len());
                encode(state, staged, drive);
                state.queue.finish(&mut drive.effects);
            }
            if !self.grant_exhausted(state, &mut drive.effects) {
                break;
            }
        }
        #[cfg(debug_assertions)]
        state.queue.check_invariants();
        state.pacing.progress(&state.queue, &mut drive.wakes);
        self.count_memory(state);
    }

    /// Fills the windows that were used up where there is room, and parks the other consumers in
    /// their outboxes. Answers whether anyone may take more.
    fn grant_exhausted(self: &Arc<Self>, state: &mut State, effects: &mut Effects) -> bool {
        let mut granted = false;
        for key in effects.exhausted.drain(..) {
            let Some(subscriber) = &state.subscribers[key.index as usize] else { continue };
            // Checked under the outbox's lock: the writer takes the parked ones under it, too, so
            // that none is forgotten.
            let mut guard = subscriber.outbox.lock();
            if guard.is_full() {
                guard.park(self.clone(), key);
            } else if !guard.is_closed() {
                drop(guard);
                state.queue.grant(key, subscriber.outbox.window());
                granted = true;
            }
        }
        granted
    }

    fn count_memory(&self, state: &mut State) {
        let now = state.queue.memory();
        self.memory.add(now as i64 - state.memory_counted as i64);
        state.memory_counted = now;
    }
}

impl Drop for QueueCell {
    fn drop(&mut self) {
        self.memory.add(-(self.state.get_mut().memory_counted as i64));
    }
}

/// For drives that stage no publishes.
fn no_content<'c>(_token: u32) -> Content<'c> {
    unreachable!("only a publisher's messages are handed off")
}

/// Encodes the deliveries into the outboxes, one lock for each connection.
fn encode<'c>(state: &State, staged: &impl Fn(u32) -> Content<'c>, drive: &mut Drive) {
    let Drive { effects, buckets, bucket_of, wakes, .. } = drive;
    let deliveries = &effects.deliveries;
    let outbox_of = |index: usize| {
        let consumer = deliveries[index].consumer.index as usize;
        let subscriber = state.subscribers[consumer].as_ref();
        &subscriber.expect("a consumer has its subscriber").outbox
    };
    if state.queue.consumer_count() == 1 {
        encode_one(state, outbox_of(0), deliveries.iter(), staged, wakes);
        return;
    }
    // Sorted by connection and not by consumer, so that messages stay in order on a channel.
    let mut used = 0;
    bucket_of.clear();
    for index in 0..deliveries.len() {
        let bucket = *bucket_of.entry(outbox_of(index).id()).or_insert_with(|| {
            used += 1;
            used - 1
        });
        if buckets.len() <= bucket {
            buckets.push(Vec::new());
        }
        buckets[bucket].push(index as u32);
    }
    for bucket in &mut buckets[..used] {
        let outbox = outbox_of(bucket[0] as usize);
        let share = bucket.iter().map(|index| &deliveries[*index as usize]);
        encode_one(state, outbox, share, staged, wakes);
        bucket.clear();
    }
}

fn encode_one<'c, 'd>(
    state: &State,
    outbox: &Outbox,
    share: impl Iterator<Item = &'d Delivery>,
    staged: &impl Fn(u32) -> Content<'c>,
    wakes: &mut Vec<Waker>,
) {
    let mut guard = outbox.lock();
    for delivery in share {
        let subscriber = state.subscribers[delivery.consumer.index as usize].as_ref();
        let subscriber = subscriber.expect("a consumer has its subscriber");
        match delivery.origin {
            Origin::Staged(token) => guard.deliver(subscriber, delivery, &staged(token)),
            Origin::Stored(at) => guard.deliver(subscriber, delivery, &state.queue.content(at)),
        }
    }
    guard.wake(wakes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::method::AMQPValue;
    use crate::queue::Body;

    fn content<'c>(_token: u32) -> Content<'c> {
        Content { address: b"\0\x01q", header: &[0; 14], body: Body::Inline(b"x") }
    }

    /// A queue that refuses publishes beyond `length_max`.
    fn refusing(length_max: i32) -> Arc<QueueCell> {
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(length_max));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        let declaration =
            Declaration { durable: false, auto_delete: false, owner: None, arguments };
        Arc::new(QueueCell::new(QueueId(1), "q", declaration, Arc::new(Memory::new(u64::MAX, 0))))
    }

    #[test]
    fn a_requeue_does_not_overtake_a_publish_before_it() {
        let (cell, mut drive) = (refusing(3), Drive::default());
        let outbox = Outbox::new(ConnectionId(1));
        outbox.lock().open_channel(1);
        cell.commit(&[0, 1, 2].map(Operation::Publish), content, &mut drive);
        assert_eq!(cell.get(false, &outbox, 1, 0, &mut drive), Ok(true));
        let mut held = Vec::new();
        outbox.lock().take_unsettled(1, &mut held);
        let requeue = Operation::Settle(held[0].slot, Settlement::Requeue);
        cell.commit(&[Operation::Publish(3), requeue], content, &mut drive);
        assert!(drive.effects.rejected.is_empty(), "there was room when it was published");
        assert_eq!(cell.counts(), (4, 0));
        cell.commit(&[Operation::Publish(4)], content, &mut drive);
        assert_eq!(drive.effects.rejected, [4]);
    }
}
