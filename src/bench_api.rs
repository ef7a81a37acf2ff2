//! What `benches/` reaches of the parts that the library keeps to itself.
//!
//! Owns bare drivers, which leave out what is not to be measured: of a queue, without its lock, the
//! encoding and the store; of the store, without a queue's lock; of a connection's writer, without
//! the socket. Each does what the broker does in that place and no more. It must not be used by
//! anything but `benches/`.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};

use crate::broker::{ChannelPrefetch, Outgoing};
use crate::clock::Millis;
use crate::connection::{Connection, Worker};
use crate::queue::{
    Body, ConsumerKey, ConsumerSpec, Content, Effects, Origin, Queue, Records, Settings, Slot,
};
use crate::store::{Options, Outcome, Store, SyncMode};

/// A queue with one consumer at most.
#[derive(Debug)]
pub struct BareQueue {
    queue: Queue,
    effects: Effects,
    records: Records,
    consumer: Option<ConsumerKey>,
    held: Vec<Slot>,
}

impl BareQueue {
    /// An empty one; what a durable one is given is for [`BareStore::commit`].
    pub fn new(is_durable: bool) -> Self {
        Self {
            queue: Queue::with_store(Settings::default(), is_durable),
            effects: Effects::default(),
            records: Records::default(),
            consumer: None,
            held: Vec::new(),
        }
    }

    /// Adds the consumer. It takes nothing before [`BareQueue::deliver`], and then all there is.
    pub fn consume(&mut self, no_ack: bool) {
        let gate = Arc::new(ChannelPrefetch::default());
        let spec = ConsumerSpec { no_ack, prefetch: 0, priority: 0, window: 0, gate };
        self.consumer = Some(self.queue.subscribe(spec));
    }

    /// A batch of equal messages; `address` and `header` as on the wire.
    pub fn push(&mut self, address: &[u8], header: &[u8], body: &[u8], count: u32) {
        let content = Content { address, header, body: Body::Inline(body) };
        for token in 0..count {
            self.queue.enqueue(&content, token, Millis::default(), &mut self.effects);
        }
    }

    /// Gives the consumer room, and it what waits, until it has all. Answers how many messages went
    /// to it since the last call.
    pub fn deliver(&mut self) -> usize {
        if let Some(consumer) = self.consumer {
            self.queue.grant(consumer, u32::MAX);
        }
        self.queue.checkout(Millis::default(), &mut self.effects);
        for delivery in &self.effects.deliveries {
            if let Origin::Stored(at) = delivery.origin {
                black_box(self.queue.content(at));
            }
            self.held.extend(delivery.slot);
        }
        let count = self.effects.deliveries.len();
        self.queue.finish(&mut self.effects);
        self.end_drive();
        count
    }

    /// Acknowledges what the consumer holds, in this order of its deliveries.
    pub fn acknowledge(&mut self, order: &[usize]) {
        for index in order {
            self.queue.settle(self.held[*index], &mut self.effects);
        }
        self.held.clear();
        self.end_drive();
    }

    /// Puts back what the consumer holds, in this order of its deliveries.
    pub fn put_back(&mut self, order: &[usize]) {
        for index in order {
            self.queue.put_back(self.held[*index], &mut self.effects);
        }
        self.held.clear();
        self.end_drive();
    }

    /// Drops what waits.
    pub fn purge(&mut self) {
        self.queue.purge(&mut self.effects);
        self.end_drive();
    }

    fn end_drive(&mut self) {
        self.effects.exhausted.clear();
        self.effects.end_drive();
    }
}

/// A store that does not sync, so that no disk is measured.
#[derive(Debug)]
pub struct BareStore(Store);

impl BareStore {
    /// One in this directory.
    ///
    /// # Errors
    /// When it cannot be opened, or the library was built without one.
    pub fn open(directory: &Path) -> Result<Self, String> {
        let options = Options { sync: SyncMode::Os, ..Options::default() };
        Store::open(directory, &options).map(Self).map_err(|error| error.to_string())
    }

    /// Hands over what is new in durable queues, numbered by their place, and waits until it is
    /// written.
    pub fn commit(&self, queues: &mut [BareQueue]) {
        let mut last = self.0.latest();
        for (id, queue) in (1..).zip(queues) {
            queue.queue.hand_over(&mut queue.records);
            last = last.max(self.0.submit(id, &mut queue.records));
            queue.queue.handed_over(last.group());
            queue.records.clear();
        }
        let (told, outcome) = mpsc::channel();
        // Nobody listens any more when this thread has panicked.
        self.0.when_durable(
            last,
            Box::new(move |outcome| {
                let _ = told.send(outcome);
            }),
        );
        assert_eq!(outcome.recv(), Ok(Outcome::Durable), "the store in a directory of its own");
    }
}

/// Takes a connection's output as its writer does, until there is none. Answers how many bytes that
/// was.
pub fn write_out(connection: &Connection, worker: &mut Worker, out: &mut Outgoing) -> usize {
    let (outbox, mut context) = (connection.outbox(), Context::from_waker(Waker::noop()));
    let (mut bytes, mut parked) = (0, Vec::new());
    while let Poll::Ready(true) = outbox.poll_take(&mut context, out) {
        bytes += out.buffer.len() + out.large.iter().map(|(_, body)| body.len()).sum::<usize>();
        outbox.written(std::mem::take(out), &mut parked);
        for (queue, consumer) in parked.drain(..) {
            queue.grant(consumer, &mut worker.drive);
        }
        worker.drive.finish();
    }
    bytes
}
