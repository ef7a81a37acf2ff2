//! The state of one channel.
//!
//! Owns what a channel keeps between frames: its mode, consumers, the queues that its deliveries
//! come from, deliveries to be settled, and the content that is being received. The methods that
//! change it stand with their subject (`consume`, `settle`, `publish`, `transaction`).

use std::collections::HashMap;
use std::sync::Arc;

use super::content::Incoming;
use super::publish_run::LastPublish;
use super::sources::Sources;
use super::transaction::Transaction;
use super::unacked::Unacked;
use crate::broker::{ChannelPrefetch, Presence, QueueCell, Unsettled};
use crate::queue::ConsumerKey;

/// What publishing on a channel promises.
#[derive(Debug)]
pub(super) enum Mode {
    Plain,
    /// Publisher confirms (RabbitMQ's extension).
    Confirm(Confirms),
    Transactional(Transaction),
}

/// Publishes of a channel in confirm mode, numbered from 1.
#[derive(Debug, Default)]
pub(super) struct Confirms {
    /// The number of the last publish.
    pub(super) last: u64,
}

/// A consumer as its channel knows it.
#[derive(Debug)]
pub(super) struct ChannelConsumer {
    pub(super) queue: Arc<QueueCell>,
    pub(super) key: ConsumerKey,
    pub(super) source: u32,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Channel {
    /// The server has sent channel.close; everything but the answer is ignored.
    pub(super) closing: bool,
    pub(super) mode: Mode,
    /// `basic.qos` without `global`: for consumers that are created later.
    pub(super) prefetch: u32,
    /// `basic.qos` with `global`: shared by all consumers of this channel.
    pub(super) gate: Arc<ChannelPrefetch>,
    pub(super) consumers: HashMap<Box<str>, ChannelConsumer>,
    pub(super) sources: Sources,
    pub(super) unacked: Unacked,
    pub(super) incoming: Option<Incoming>,
    /// The queue of this channel's direct reply-to.
    pub(super) reply_queue: Option<Arc<QueueCell>>,
    /// What an empty queue name means.
    pub(super) last_queue: String,
    pub(super) last_publish: LastPublish,
    /// Counts the channel among its user's.
    _presence: Option<Presence>,
}

impl Channel {
    pub(super) fn new(presence: Option<Presence>) -> Self {
        Self {
            closing: false,
            mode: Mode::Plain,
            prefetch: 0,
            gate: Arc::default(),
            consumers: HashMap::new(),
            sources: Sources::default(),
            unacked: Unacked::default(),
            incoming: None,
            reply_queue: None,
            last_queue: String::new(),
            last_publish: LastPublish::default(),
            _presence: presence,
        }
    }

    /// Whether direct reply-to is in use; it ends with its consumer.
    pub(super) fn has_reply_queue(&self) -> bool {
        self.reply_queue.as_ref().is_some_and(|queue| !queue.is_gone())
    }

    /// Forgets a consumer that is gone, so that its tag can be used again.
    pub(super) fn forget_consumer(&mut self, tag: &str) {
        if let Some(consumer) = self.consumers.remove(tag) {
            self.sources.leave(consumer.source);
        }
    }

    /// Takes over deliveries that the outbox noted.
    pub(super) fn take_over(&mut self, deliveries: impl Iterator<Item = Unsettled>) {
        let sources = &mut self.sources;
        self.unacked.extend(deliveries.inspect(|unsettled| sources.enter_again(unsettled.source)));
    }
}
