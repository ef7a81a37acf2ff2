//! What happens to a queue when its time has come: messages expire, the queue itself does, and
//! deliveries that were unsettled for too long come back.
//!
//! Owns a queue's place among the broker's deadlines. It must not read a clock: the time is the
//! drive's.

use std::sync::{Arc, Weak};
use std::task::Waker;

use rustc_hash::FxHashMap;

use super::{DeleteIf, QueueCell, State, no_content};
use crate::broker::dead_letter::Chunk;
use crate::broker::deadlines::Timed;
use crate::broker::drive::Drive;
use crate::broker::outbox::{Outbox, Subscriber};
use crate::clock::Millis;
use crate::error::{AmqpError, ReplyCode};
use crate::queue::{ConsumerKey, Got, Overdue, Queue, Slot};

/// Strays are looked through for settled ones when there are this many more than last time.
const STRAYS_MARGIN: usize = 1024;

/// Deliveries to those who are no consumers of the queue, or not any more, and who has them.
#[derive(Debug, Default)]
pub(super) struct Strays {
    holders: FxHashMap<Slot, (Weak<Outbox>, u16)>,
    /// How many were left when they were last looked through.
    kept: usize,
}

impl Strays {
    fn add(&mut self, queue: &Queue, slots: &[Slot], outbox: &Arc<Outbox>, channel: u16) {
        if self.holders.len() > 2 * self.kept + STRAYS_MARGIN {
            self.holders.retain(|slot, _| queue.holds(*slot));
            self.kept = self.holders.len();
        }
        let holder = (Arc::downgrade(outbox), channel);
        self.holders.extend(slots.iter().map(|slot| (*slot, holder.clone())));
    }
}

impl State {
    /// When the queue is to go if nobody uses it before.
    fn expires_at(&self) -> Option<Millis> {
        let expires_ms = self.queue.settings().expires_ms?;
        (self.queue.consumer_count() == 0).then(|| Millis(self.used_at.0 + expires_ms))
    }

    pub(super) fn has_expired(&self, now: Millis) -> bool {
        self.expires_at().is_some_and(|at| at <= now)
    }

    fn times_deliveries(&self) -> bool {
        self.queue.settings().consumer_timeout_ms.is_some_and(|timeout_ms| timeout_ms > 0)
    }

    /// Notes who holds a message that was fetched.
    pub(super) fn keep_stray(&mut self, got: &Got, outbox: &Arc<Outbox>, channel: u16) {
        if let Some(slot) = got.slot
            && self.times_deliveries()
        {
            self.strays.add(&self.queue, &[slot], outbox, channel);
        }
    }

    /// Notes who holds the messages of a consumer that is gone.
    pub(super) fn keep_strays(&mut self, key: ConsumerKey, subscriber: &Subscriber) {
        if self.times_deliveries() && self.queue.holds_for(key) {
            let held: Vec<Slot> = self.queue.held_by(key).collect();
            self.strays.add(&self.queue, &held, &subscriber.outbox, subscriber.channel);
        }
    }
}

impl QueueCell {
    /// Notes a use of the queue, which puts its expiry off. `false` when it is gone already.
    pub(crate) fn touch(self: &Arc<Self>, drive: &mut Drive) -> bool {
        let mut state = self.lock();
        state.used_at = drive.now;
        self.reschedule(&mut state, &mut drive.wakes);
        !state.gone
    }

    /// Sets the deadline when something is due earlier than it stands. A later one is left to the
    /// tick, so that most drives need not look at the deadlines.
    pub(super) fn reschedule(self: &Arc<Self>, state: &mut State, wakes: &mut Vec<Waker>) {
        let has_left = !state.dead_letters.is_empty() && !state.dead_letters.in_hand;
        let at_once = has_left.then(Millis::default);
        let due = state.queue.next_deadline().into_iter().chain(state.expires_at());
        let retries = state.dead_letters.next_retry().into_iter().chain(state.loading.retry_at);
        let next = due.chain(at_once).chain(retries).min();
        let Some(next) = next else { return };
        if state.gone || state.deadline.is_some_and(|at| at <= next) {
            return;
        }
        let timed: Weak<Self> = Arc::downgrade(self);
        let before = state.deadline.replace(next);
        self.services.deadlines.set(self.id.0, timed, before, Some(next), wakes);
    }

    /// Makes this drive publish the dead letters, unless somebody else already does.
    pub(super) fn take_in_hand(self: &Arc<Self>, state: &mut State, drive: &mut Drive) {
        if !state.dead_letters.is_empty() && !state.dead_letters.in_hand {
            state.dead_letters.in_hand = true;
            drive.buriers.push_back(self.clone());
        }
    }

    /// The oldest dead letters, for who has them in hand.
    pub(in crate::broker) fn take_dead_letters(&self) -> Option<Chunk> {
        let mut state = self.lock();
        let chunk = state.dead_letters.take();
        self.count_memory(&mut state);
        chunk
    }

    /// Keeps dead letters that found no target until they are tried again.
    pub(in crate::broker) fn put_off_dead_letters(&self, stuck: Chunk, drive: &Drive) {
        let mut state = self.lock();
        if !state.gone {
            state.dead_letters.put_off(stuck, drive.now);
        }
        self.count_memory(&mut state);
    }

    /// Ends publishing; the timer goes on if anything is left.
    pub(in crate::broker) fn leave_dead_letters(self: &Arc<Self>, wakes: &mut Vec<Waker>) {
        let mut state = self.lock();
        state.dead_letters.in_hand = false;
        self.reschedule(&mut state, wakes);
    }

    pub(super) fn forget_deadline(&self, state: &mut State, wakes: &mut Vec<Waker>) {
        if let Some(at) = state.deadline.take() {
            let nobody: Weak<Self> = Weak::new();
            self.services.deadlines.set(self.id.0, nobody, Some(at), None, wakes);
        }
    }

    /// Ends what has held messages for too long: a consumer whose client understands that, or else
    /// the whole channel, as in RabbitMQ. Answers whether the queue is to be deleted for want of
    /// consumers.
    fn end_overdue(&self, state: &mut State, drive: &mut Drive) -> bool {
        state.queue.look_for_overdue(drive.now, &mut drive.effects);
        if drive.effects.overdue.is_empty() {
            return false;
        }
        let mut is_done = false;
        let mut closed = Vec::new();
        for Overdue { slot, consumer } in std::mem::take(&mut drive.effects.overdue) {
            let is_closed = consumer.is_some_and(|key| closed.contains(&key));
            // It may have come back with another of its consumer.
            if is_closed || !state.queue.holds(slot) {
                continue;
            }
            let found = consumer.and_then(|key| {
                let subscriber = state.subscribers.get(key.index as usize)?.as_ref()?;
                state.queue.is_consumer(key).then_some((key, subscriber))
            });
            match found {
                Some((key, subscriber)) if subscriber.outbox.knows_cancel() => {
                    state.queue.put_back_all(key, &mut drive.effects);
                    let gone = self.remove_consumer(state, key, drive).expect("found above");
                    let timeout_ms = state.queue.settings().consumer_timeout_ms;
                    let (queue, consumer) = (self.name(), &*gone.tag);
                    tracing::warn!(queue, consumer, timeout_ms, "consumer timeout: cancelled");
                    gone.outbox.lose_consumer((gone.channel, gone.tag), &mut drive.wakes);
                    is_done |= self.is_done_with(state);
                }
                Some((key, subscriber)) => {
                    closed.push(key);
                    let error = timed_out(state, subscriber.channel);
                    subscriber.outbox.close_channel(subscriber.channel, &error, &mut drive.wakes);
                }
                None => self.end_stray(state, slot, drive),
            }
        }
        is_done
    }

    fn end_stray(&self, state: &mut State, slot: Slot, drive: &mut Drive) {
        let holder = state.strays.holders.get(&slot);
        match holder.and_then(|(outbox, channel)| Some((outbox.upgrade()?, *channel))) {
            Some((outbox, channel)) => {
                let error = timed_out(state, channel);
                outbox.close_channel(channel, &error, &mut drive.wakes);
            }
            None => state.queue.put_back(slot, &mut drive.effects),
        }
    }
}

impl Timed for QueueCell {
    fn tick(self: Arc<Self>, drive: &mut Drive) -> bool {
        let mut condition = DeleteIf { unused: true, ..DeleteIf::default() };
        {
            let mut state = self.lock();
            let state = &mut *state;
            state.deadline = None;
            if state.gone {
                return false;
            }
            state.dead_letters.retry(drive.now);
            self.take_in_hand(state, drive);
            let is_done = self.end_overdue(state, drive);
            self.dispatch(state, &no_content, drive);
            condition.expired = !is_done;
            if !is_done && !state.has_expired(drive.now) {
                return state.deadline.is_some_and(|at| at <= drive.now);
            }
        }
        // It may have come into use since: then it stays.
        if let Some(vhost) = self.vhost()
            && vhost.delete_queue(&self, condition, drive).is_ok()
        {
            tracing::debug!(queue = self.name(), "queue expired");
        }
        false
    }
}

/// RabbitMQ's words for a channel that is closed because of an unsettled delivery.
fn timed_out(state: &State, channel: u16) -> AmqpError {
    let timeout_ms = state.queue.settings().consumer_timeout_ms.unwrap_or_default();
    let text = format!(
        "delivery acknowledgement on channel {channel} timed out. Timeout value used: {timeout_ms} \
         ms. This timeout value can be configured, see consumers doc guide to learn more"
    );
    AmqpError::new(ReplyCode::PreconditionFailed, text)
}
