//! The state of one channel.
//!
//! Owns what a channel keeps between frames: its mode, consumers, the queues that its deliveries
//! come from, deliveries to be settled, and the content that is being received. The methods that
//! change it stand with their subject (`consume`, `settle`, `publish`, `transaction`).

use std::collections::HashMap;
use std::sync::Arc;

use super::content::Incoming;
use super::publish_run::LastPublish;
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

/// A queue that deliveries on this channel come from.
#[derive(Debug)]
struct Source {
    queue: Arc<QueueCell>,
    /// Consumers, and deliveries to be settled that were taken over.
    uses: usize,
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
    sources: Vec<Option<Source>>,
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
            sources: Vec::new(),
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
            self.release_source(consumer.source);
        }
    }

    /// The index of `queue` among the sources, in use once more.
    pub(super) fn use_source(&mut self, queue: &Arc<QueueCell>) -> u32 {
        let same = |source: &Option<Source>| {
            source.as_ref().is_some_and(|source| source.queue.id() == queue.id())
        };
        if let Some(index) = self.sources.iter().position(same) {
            self.sources[index].as_mut().expect("found above").uses += 1;
            return index as u32;
        }
        let source = Some(Source { queue: queue.clone(), uses: 1 });
        match self.sources.iter().position(Option::is_none) {
            Some(free) => {
                self.sources[free] = source;
                free as u32
            }
            None => {
                self.sources.push(source);
                self.sources.len() as u32 - 1
            }
        }
    }

    /// Ends one use of a source.
    pub(super) fn release_source(&mut self, source: u32) {
        let entry = &mut self.sources[source as usize];
        if let Some(source) = entry {
            source.uses -= 1;
            if source.uses == 0 {
                *entry = None;
            }
        }
    }

    /// The queue that an unsettled delivery came from.
    pub(super) fn source(&self, source: u32) -> &Arc<QueueCell> {
        &self.sources[source as usize].as_ref().expect("a source lives while it is used").queue
    }

    /// Takes over deliveries that the outbox noted.
    pub(super) fn take_over(&mut self, deliveries: impl Iterator<Item = Unsettled>) {
        let sources = &mut self.sources;
        self.unacked.extend(deliveries.inspect(|unsettled| {
            let source = sources[unsettled.source as usize].as_mut();
            source.expect("its consumer uses it").uses += 1;
        }));
    }
}
