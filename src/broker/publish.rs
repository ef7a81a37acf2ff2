//! The way of messages through a vhost's exchanges: to queues, and into and out of what exchanges
//! keep.
//!
//! Owns the routing under the topology's lock, held for reading, and what is done with messages
//! that an exchange has kept: those whose delay is over go on, and the latest go to what is bound
//! newly. It must not know channels, nor put a client's messages into queues: its connection's
//! batch does.

use std::sync::Arc;

use super::batch::{Batch, OwnedMessage, Staged};
use super::drive::Drive;
use super::exchange_memory::KeptMessage;
use super::{QueueCell, Vhost};
use crate::codec::hot;
use crate::codec::properties::{self, Properties};
use crate::error::AmqpError;
use crate::queue::Content;
use crate::routing::{
    Destination, Exchange, ExchangeId, Kept, Message, Origin, RouteError, Routed, Sighting,
    Topology, without_delay,
};

/// Messages are handed to their queues when so many are ready.
const BATCH_MAX: usize = 1024;

/// Where a message comes to the exchanges.
#[derive(Clone, Copy)]
enum From<'a> {
    /// It is published to an exchange, by a client or by the broker.
    Published(&'a [u8], Origin),
    /// It leaves the exchange that it has waited at.
    Waiting(ExchangeId),
}

impl Vhost {
    /// Finds the queues for a client's message, and keeps it for the exchanges on its way that ask
    /// for that, unless it belongs to a transaction: see [`Vhost::keep`].
    pub(crate) fn route(
        &self,
        keys: &[&[u8]],
        content: &Content<'_>,
        in_transaction: bool,
        drive: &mut Drive,
        routed: &mut Routed,
    ) -> Result<Vec<Arc<QueueCell>>, AmqpError> {
        let (exchange, _) = hot::split_address(content.address);
        let from = From::Published(exchange, Origin::Client);
        let topology = self.topology.read();
        let found = self.find(&topology, from, keys, content, drive, routed);
        found.map_err(|error| error.to_amqp(exchange, self.name()))?;
        if !in_transaction {
            self.kept.keep(&topology, &routed.kept, content, keys, drive);
        }
        Ok(self.cells(routed))
    }

    /// Finds the queues for a dead letter, and keeps it for the exchanges on its way that ask for
    /// that. An exchange that is not there leads nowhere (RabbitMQ).
    pub(super) fn route_dead_letter(
        &self,
        keys: &[&[u8]],
        content: &Content<'_>,
        drive: &mut Drive,
        routed: &mut Routed,
    ) -> Vec<Arc<QueueCell>> {
        let (exchange, _) = hot::split_address(content.address);
        let from = From::Published(exchange, Origin::Broker);
        self.pass_on(&self.topology.read(), from, keys, content, drive, routed)
    }

    fn find(
        &self,
        topology: &Topology,
        from: From<'_>,
        keys: &[&[u8]],
        content: &Content<'_>,
        drive: &mut Drive,
        routed: &mut Routed,
    ) -> Result<(), RouteError> {
        let message = Message { keys, properties: Properties::of_header(content.header) };
        let is_duplicate = &mut |seen: &Sighting<'_>| {
            let is_duplicate = self.kept.is_duplicate(seen, drive.now);
            if is_duplicate && let Some(store) = &self.services.store {
                // Its original may still be on its way to the disk.
                drive.await_store(store.latest());
            }
            is_duplicate
        };
        match from {
            From::Published(exchange, origin) => {
                topology.route(exchange, &message, origin, is_duplicate, routed)
            }
            From::Waiting(exchange) => {
                topology.route_released(exchange, &message, is_duplicate, routed);
                Ok(())
            }
        }
    }

    /// Routes a message of the broker itself.
    fn pass_on(
        &self,
        topology: &Topology,
        from: From<'_>,
        keys: &[&[u8]],
        content: &Content<'_>,
        drive: &mut Drive,
        routed: &mut Routed,
    ) -> Vec<Arc<QueueCell>> {
        if self.find(topology, from, keys, content, drive, routed).is_err() {
            return Vec::new();
        }
        self.kept.keep(topology, &routed.kept, content, keys, drive);
        self.cells(routed)
    }

    fn cells(&self, routed: &Routed) -> Vec<Arc<QueueCell>> {
        routed.queues.iter().filter_map(|id| self.cell(*id)).collect()
    }

    /// Keeps a message for the exchanges that asked for it when it was routed, as far as they are
    /// still there.
    pub(crate) fn keep(
        &self,
        kept: &[Kept],
        content: &Content<'_>,
        keys: &[&[u8]],
        drive: &mut Drive,
    ) {
        self.kept.keep(&self.topology.read(), kept, content, keys, drive);
    }

    /// How many messages wait at a delayed-message exchange.
    pub fn messages_delayed(&self, exchange: &str) -> usize {
        let id = self.topology.read().exchange(exchange).map(Exchange::id);
        id.map_or(0, |id| self.kept.messages_delayed(id))
    }

    /// Publishes messages that have waited at an exchange: all of them are in their queues, or
    /// nowhere, when this is done. The exchange or its bindings may be others by now, or gone.
    pub(super) fn release<'a>(
        &self,
        exchange: ExchangeId,
        due: impl Iterator<Item = &'a KeptMessage>,
        drive: &mut Drive,
    ) {
        let (mut batch, mut routed) = (Batch::default(), Routed::default());
        for kept in due {
            let OwnedMessage { address, header, body } = kept.message().clone();
            let headers = Properties::of_header(&header).headers().unwrap_or_default();
            let header = properties::with_headers(&header, Some(&without_delay(headers)));
            let message = OwnedMessage { address, header, body };
            let (keys, content) = (kept.keys(), message.content());
            let from = From::Waiting(exchange);
            let topology = self.topology.read();
            let cells = self.pass_on(&topology, from, &keys, &content, drive, &mut routed);
            drop(topology);
            stage(&mut batch, message, &cells, drive);
        }
        batch.commit(&[], drive, &mut Vec::new());
    }

    /// Sends the latest messages of a recent-history exchange to what was bound to it just now,
    /// while the topology is locked: what is published from now on comes after them.
    pub(super) fn replay(
        &self,
        topology: &Topology,
        source: &str,
        destination: Destination<'_>,
        drive: &mut Drive,
    ) {
        let Some(source) = topology.exchange(source) else { return };
        let history = self.kept.history(source.id());
        let (mut batch, mut routed) = (Batch::default(), Routed::default());
        for kept in history {
            let message = kept.message().clone();
            let cells = match destination {
                Destination::Queue(name) => {
                    let id = topology.queue(name.as_bytes());
                    id.and_then(|id| self.cell(id)).into_iter().collect()
                }
                Destination::Exchange(name) => {
                    let (keys, content) = (kept.keys(), message.content());
                    let from = From::Published(name.as_bytes(), Origin::Broker);
                    self.pass_on(topology, from, &keys, &content, drive, &mut routed)
                }
            };
            stage(&mut batch, message, &cells, drive);
        }
        batch.commit(&[], drive, &mut Vec::new());
    }
}

/// Adds a message to the batch. A queue that refuses it has no publisher to tell.
fn stage(batch: &mut Batch, message: OwnedMessage, cells: &[Arc<QueueCell>], drive: &mut Drive) {
    if !cells.is_empty() {
        let token = batch.stage(Staged::Owned(Box::new(message)));
        cells.iter().for_each(|cell| batch.enqueue(cell, token));
    }
    if batch.work() >= BATCH_MAX {
        batch.commit(&[], drive, &mut Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Services;
    use crate::codec::method::{AMQPValue, FieldTable};
    use crate::codec::table;
    use crate::queue::Body;
    use crate::routing::{ExchangeKind, ExchangeSpec};

    /// The payload of a content header with these headers.
    fn header(fields: &[(&str, AMQPValue)]) -> Vec<u8> {
        let mut headers = FieldTable::default();
        for (key, value) in fields {
            headers.insert((*key).into(), value.clone());
        }
        let plain = [&[0, 60, 0, 0][..], &[0; 8], &[0, 0]].concat();
        properties::with_headers(&plain, Some(&table::encode(&headers)))
    }

    #[test]
    fn what_is_kept_goes_with_its_exchange_and_leaves_the_gauge() {
        let services = Services::for_test();
        let vhost = Vhost::new("/", services.clone());
        let mut arguments = FieldTable::default();
        arguments.insert("x-delayed-type".into(), AMQPValue::LongString("x-recent-history".into()));
        arguments.insert("x-message-deduplication".into(), AMQPValue::Boolean(true));
        let spec = ExchangeSpec { arguments, ..ExchangeSpec::durable(ExchangeKind::Delayed) };
        vhost.declare_exchange("x", spec, &mut Drive::default()).expect("a new exchange");
        let (mut drive, mut routed) = (Drive::default(), Routed::default());
        let mut publish = |fields: &[(&str, AMQPValue)]| {
            let header = header(fields);
            let content =
                Content { address: b"\x01x\x01k", header: &header, body: Body::Inline(b"body") };
            let queues = vhost.route(&[b"k"], &content, false, &mut drive, &mut routed);
            assert!(queues.expect("the exchange is there").is_empty());
            services.memory.used()
        };
        let before = services.memory.used();
        let delayed = publish(&[("x-delay", AMQPValue::LongInt(1000))]);
        let latest = publish(&[]);
        let seen = publish(&[
            ("x-recent-history-no-store", AMQPValue::Boolean(true)),
            ("x-deduplication-header", AMQPValue::LongInt(1)),
        ]);
        assert!(before < delayed && delayed < latest && latest < seen);
        assert_eq!(vhost.messages_delayed("x"), 1);
        vhost.delete_exchange("x", false, &mut Drive::default()).expect("it is deleted");
        assert_eq!((services.memory.used(), vhost.messages_delayed("x")), (before, 0));
    }
}
