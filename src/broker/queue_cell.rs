//! A queue as the broker shares it: the state machine under its lock, and who subscribes.
//!
//! Owns the only lock around a [`Queue`], the encoding of its deliveries into the outboxes of
//! their connections (`encoding`), what happens when its time has come (`timing`), its traffic with
//! the store (`storing`), and the pacing of publishers that outrun willing consumers. It must not
//! know of names in a vhost, of routing, or of channels beyond their number.
//!
//! Lock order: this lock, then one outbox at a time. Never two queues, never two outboxes. Work
//! under the lock is one batch, bounded by one socket read.

mod encoding;
mod requests;
mod storing;
mod timing;

pub(crate) use requests::{Declaration, DeleteIf, Kept, Operation, Refusal, Settlement};

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use parking_lot::{Mutex, MutexGuard};

use super::dead_letter::DeadLetters;
use super::drive::Drive;
use super::outbox::{Outbox, Subscriber};
use super::pacing::Pacing;
use super::{Services, Vhost};
use crate::clock::Millis;
use crate::codec::method::AMQPClass;
use crate::queue::{
    ConsumerKey, ConsumerSpec, Content, Effects, Kind, NotYet, Origin, Queue, Settings,
};
use crate::routing::QueueId;
use crate::store::Store;

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
    /// When the queue was last declared, read from or consumed from.
    used_at: Millis,
    /// Where it stands among the deadlines.
    deadline: Option<Millis>,
    /// Deliveries without a consumer, while there is a consumer timeout.
    strays: timing::Strays,
    dead_letters: DeadLetters,
    loading: storing::Loading,
}

/// See the module's description.
#[derive(Debug)]
pub struct QueueCell {
    id: QueueId,
    name: Box<str>,
    pub(crate) declaration: Declaration,
    /// Whether a publish can be refused (`reject-publish`).
    may_reject: AtomicBool,
    vhost: Weak<Vhost>,
    services: Arc<Services>,
    /// Where the messages of a durable queue are kept, if anywhere.
    store: Option<Arc<Store>>,
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
        vhost: Weak<Vhost>,
        services: Arc<Services>,
    ) -> Self {
        let settings = Settings::from_arguments(declaration.kind, &declaration.arguments);
        let settings = services.with_defaults(settings);
        let may_reject = AtomicBool::new(settings.rejects_publishes());
        // An exclusive queue ends with its connection, whatever it was declared as (RabbitMQ).
        let is_durable = declaration.durable && declaration.owner.is_none();
        let store = services.store.clone().filter(|_| is_durable);
        let state = State {
            queue: Queue::with_store(settings, store.is_some()),
            subscribers: Vec::new(),
            exclusive_consumer: None,
            had_consumer: false,
            gone: false,
            memory_counted: 0,
            pacing: Pacing::default(),
            used_at: Millis::default(),
            deadline: None,
            strays: timing::Strays::default(),
            dead_letters: DeadLetters::default(),
            loading: storing::Loading::default(),
        };
        Self {
            id,
            name: name.into(),
            declaration,
            may_reject,
            vhost,
            services,
            store,
            is_gone: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }

    /// Changes what policies can change.
    pub(crate) fn configure(self: &Arc<Self>, settings: Settings, drive: &mut Drive) {
        let settings = self.services.with_defaults(settings);
        let mut state = self.lock();
        let state = &mut *state;
        if state.gone || *state.queue.settings() == settings {
            return;
        }
        self.may_reject.store(settings.rejects_publishes(), Ordering::Relaxed);
        state.queue.configure(settings, drive.now);
        // What is due now is the timer's: there may be many queues, and much to drop.
        self.reschedule(state, &mut drive.wakes);
    }

    /// Whether a publish can be refused (`reject-publish`).
    pub(crate) fn may_reject(&self) -> bool {
        self.may_reject.load(Ordering::Relaxed)
    }

    /// The vhost that the queue is in, while that exists.
    pub(super) fn vhost(&self) -> Option<Arc<Vhost>> {
        self.vhost.upgrade()
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
        let limited = state.queue.settings().is_limited();
        let now = drive.now;
        drive.effects.expect_messages(operations.len());
        let mut published = false;
        let mut room = false;
        for operation in operations {
            match *operation {
                Operation::Settle(slot, Settlement::Done) => {
                    state.queue.settle(slot, &mut drive.effects);
                    room = true;
                }
                Operation::Settle(slot, Settlement::Reject) => {
                    state.queue.reject(slot, &mut drive.effects);
                    room = true;
                }
                Operation::Settle(slot, Settlement::Requeue) => {
                    state.queue.put_back(slot, &mut drive.effects);
                    room = true;
                }
                Operation::Publish(token) => {
                    if limited && (room || !drive.effects.exhausted.is_empty()) {
                        self.dispatch(state, &content, drive);
                        room = false;
                    }
                    state.queue.enqueue(&content(token), token, now, &mut drive.effects);
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
        // A quorum queue has no exclusive consumers: it ignores the flag (RabbitMQ).
        let exclusive = exclusive && self.declaration.kind == Kind::Classic;
        let is_shared =
            state.queue.consumer_count() > 0 || state.queue.settings().single_active_consumer;
        if state.exclusive_consumer.is_some() || (exclusive && is_shared) {
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
    pub(crate) fn cancel(self: &Arc<Self>, key: ConsumerKey, drive: &mut Drive) -> bool {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(subscriber) = self.remove_consumer(state, key, drive) else { return false };
        state.keep_strays(key, &subscriber);
        // Where one consumer is active, the next one is now.
        self.dispatch(state, &no_content, drive);
        self.is_done_with(state)
    }

    fn remove_consumer(
        &self,
        state: &mut State,
        key: ConsumerKey,
        drive: &mut Drive,
    ) -> Option<Subscriber> {
        if !state.queue.cancel(key) {
            return None;
        }
        if state.exclusive_consumer == Some(key) {
            state.exclusive_consumer = None;
        }
        if state.queue.consumer_count() == 0 {
            state.used_at = drive.now;
            state.pacing.release(&mut drive.wakes);
        }
        let subscriber = state.subscribers[key.index as usize].take();
        let subscriber = subscriber.expect("a consumer has its subscriber");
        subscriber.outbox.remove_consumer();
        Some(subscriber)
    }

    /// Whether the queue is to be deleted, now that a consumer is gone.
    fn is_done_with(&self, state: &State) -> bool {
        let unused = state.queue.consumer_count() == 0;
        unused && self.declaration.auto_delete && state.had_consumer
    }

    /// `basic.get`: answers `false` when the queue is empty. The reply is written under the lock,
    /// so that replies stand in the order of the messages.
    pub(crate) fn get(
        self: &Arc<Self>,
        no_ack: bool,
        outbox: &Arc<Outbox>,
        channel: u16,
        source: u32,
        drive: &mut Drive,
    ) -> Result<bool, Refusal> {
        let (mut state, got) = loop {
            let mut state = self.lock();
            if state.gone {
                return Err(Refusal::Gone);
            }
            let settings = state.queue.settings();
            if settings.kind == Kind::Quorum && settings.single_active_consumer {
                return Err(Refusal::SingleActive);
            }
            state.used_at = drive.now;
            match state.queue.get(no_ack, drive.now, &mut drive.effects) {
                Ok(got) => break (state, got),
                Err(NotYet::Behind) => self.dispatch(&mut state, &no_content, drive),
                Err(NotYet::Absent) => {
                    let wanted = state.queue.wanted_at_once();
                    drop(state);
                    if !wanted.is_some_and(|wanted| self.load(wanted, drive)) {
                        return Err(Refusal::Unreadable);
                    }
                    continue;
                }
            }
            drop(state);
            drive.publish_dead_letters();
        };
        let state = &mut *state;
        if let Some(got) = &got {
            let left = state.queue.ready() as u32;
            let content = state.queue.got_content(got);
            let counted = encoding::counted_header(&state.queue, content.header, got.returns);
            let header = counted.as_deref().unwrap_or(content.header);
            let content = Content { header, ..content };
            let mut guard = outbox.lock_for_reply();
            guard.get_ok(channel, source, got, left, &content);
            guard.wake(&mut drive.wakes);
            drop(guard);
            state.queue.finish_get(got, &mut drive.effects);
            state.keep_stray(got, outbox, channel);
        }
        self.dispatch(state, &no_content, drive);
        Ok(got.is_some())
    }

    /// Drops all ready messages; returns how many there were.
    pub(crate) fn purge(self: &Arc<Self>, drive: &mut Drive) -> u32 {
        let mut state = self.lock();
        let count = state.queue.purge(&mut drive.effects);
        drive.is_answered = true;
        state.pacing.release(&mut drive.wakes);
        self.keep(&mut state, drive);
        drive.is_answered = false;
        if let Some(store) = self.store() {
            // Also when nothing was left: an earlier purge may have had no answer yet.
            drive.await_store(store.latest());
        }
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
    pub(crate) fn delete(
        self: &Arc<Self>,
        condition: DeleteIf,
        drive: &mut Drive,
    ) -> Result<u32, Kept> {
        let mut state = self.lock();
        if state.gone {
            return Err(Kept::Gone);
        }
        // With both conditions RabbitMQ reports the messages first.
        if condition.empty && state.queue.ready() > 0 {
            return Err(Kept::NotEmpty);
        }
        let in_use = state.queue.consumer_count() > 0;
        if (condition.unused && in_use) || (condition.expired && !state.has_expired(drive.now)) {
            return Err(Kept::InUse);
        }
        state.gone = true;
        self.is_gone.store(true, Ordering::Release);
        let count = state.queue.ready() as u32;
        // Freeing many messages takes a while: that is done when no lock is held.
        let queue = std::mem::replace(&mut state.queue, Queue::new(Settings::default()));
        self.remove_pieces(&queue);
        drive.deleted.push(queue);
        self.count_memory(&mut state);
        self.take_in_hand(&mut state, drive);
        self.forget_deadline(&mut state, &mut drive.wakes);
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
            state.queue.checkout(drive.now, &mut drive.effects);
            self.hand_over(state, staged, drive);
            if !self.grant_exhausted(state, &mut drive.effects) {
                break;
            }
        }
        state.queue.expire(drive.now, &mut drive.effects);
        self.hand_over(state, staged, drive);
        drive.effects.end_drive();
        #[cfg(debug_assertions)]
        state.queue.check_invariants();
        state.pacing.progress(&state.queue, &mut drive.wakes);
        self.keep(state, drive);
        self.count_memory(state);
        self.reschedule(state, &mut drive.wakes);
    }

    /// Encodes deliveries and copies dead letters, while their content is there.
    fn hand_over<'c>(
        self: &Arc<Self>,
        state: &mut State,
        staged: &impl Fn(u32) -> Content<'c>,
        drive: &mut Drive,
    ) {
        if !drive.effects.deliveries.is_empty() {
            state.pacing.delivered(drive.effects.deliveries.len());
            encoding::encode(state, staged, drive);
        }
        if !drive.effects.dead.is_empty() {
            let queue = &state.queue;
            let dead = drive.effects.dead.iter().map(|dead| match dead.origin {
                Origin::Staged(token) => (staged(token), dead.reason, None),
                Origin::Stored(at) => (queue.content(at), dead.reason, queue.place(at)),
            });
            state.dead_letters.bury(queue.settings(), dead);
            // The store keeps those that came in this drive, too, until their copies are there.
            state.queue.hand_over(&mut drive.records);
        }
        self.take_in_hand(state, drive);
        state.queue.finish(&mut drive.effects);
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
        let now = state.queue.memory() + state.dead_letters.memory();
        self.services.memory.add(now as i64 - state.memory_counted as i64);
        state.memory_counted = now;
    }
}

impl Drop for QueueCell {
    fn drop(&mut self) {
        self.services.memory.add(-(self.state.get_mut().memory_counted as i64));
    }
}

/// For drives that stage no publishes.
fn no_content<'c>(_token: u32) -> Content<'c> {
    unreachable!("only a publisher's messages are handed off")
}

#[cfg(test)]
mod tests {
    use super::super::outbox::ConnectionId;
    use super::*;
    use crate::codec::method::{AMQPValue, FieldTable};
    use crate::queue::Body;

    fn content<'c>(_token: u32) -> Content<'c> {
        Content { address: b"\0\x01q", header: &[0; 14], body: Body::Inline(b"x") }
    }

    /// A queue that refuses publishes beyond `length_max`.
    fn refusing(length_max: i32) -> Arc<QueueCell> {
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(length_max));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        let declaration = Declaration { arguments, ..Declaration::default() };
        Arc::new(QueueCell::new(QueueId(1), "q", declaration, Weak::new(), Services::for_test()))
    }

    #[test]
    fn a_requeue_does_not_overtake_a_publish_before_it() {
        let (cell, mut drive) = (refusing(3), Drive::default());
        let outbox = Arc::new(Outbox::new(ConnectionId(1)));
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
