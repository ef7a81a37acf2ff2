//! Which messages a queue drops as duplicates (`x-message-deduplication`).
//!
//! Owns what makes a message a duplicate of another, and for how long: without `x-cache-size` and
//! `x-cache-ttl` as long as the other is in the queue (the plugin rabbitmq-message-deduplication);
//! with one of them as long as the other is remembered, delivered or not (LavinMQ).

use super::dedup::Dedup;
use super::settings::Deduplication;
use crate::clock::Millis;
use crate::codec::properties::Properties;
use crate::codec::table;

/// Messages that are remembered when only their time is given (LavinMQ).
const CACHE_SIZE: usize = 128;

/// A message's own time to be remembered, in milliseconds.
const CACHE_TTL: &[u8] = b"x-cache-ttl";

/// See the module's description.
#[derive(Debug)]
pub(super) struct Duplicates {
    header: Box<[u8]>,
    while_queued: bool,
    dedup: Dedup,
}

impl Duplicates {
    pub(super) fn new(wanted: &Deduplication) -> Self {
        let while_queued = wanted.cache_size.is_none() && wanted.cache_ttl_ms.is_none();
        let size = if while_queued { usize::MAX } else { CACHE_SIZE };
        Self {
            header: wanted.header.as_bytes().into(),
            while_queued,
            dedup: Dedup::new(wanted.cache_size.unwrap_or(size), wanted.cache_ttl_ms),
        }
    }

    pub(super) fn memory(&self) -> usize {
        self.dedup.bytes()
    }

    /// Whether a message is a duplicate. If it is not, others like it are, from now on.
    pub(super) fn take(&mut self, properties: &Properties<'_>, now: Millis) -> bool {
        let headers = properties.headers().unwrap_or_default();
        let Some(value) = table::find(headers, &self.header) else { return false };
        let ttl_ms = table::find(headers, CACHE_TTL).and_then(|ttl| ttl.as_integer());
        let ttl_ms = ttl_ms.and_then(|ttl_ms| u64::try_from(ttl_ms).ok());
        self.dedup.seen_or_insert(&value.identity(), now, ttl_ms)
    }

    /// Notes that the message with this content header has left the queue.
    pub(super) fn left(&mut self, header: &[u8]) {
        let headers = Properties::of_header(header).headers().unwrap_or_default();
        if self.while_queued
            && let Some(value) = table::find(headers, &self.header)
        {
            self.dedup.forget(&value.identity());
        }
    }

    /// Notes that all messages have left the queue but those with these content headers.
    pub(super) fn all_left_but<'h>(&mut self, headers: impl Iterator<Item = &'h [u8]>) {
        if self.while_queued {
            self.dedup = Dedup::new(usize::MAX, None);
            for header in headers {
                self.take(&Properties::of_header(header), Millis::default());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Body, Content, Effects, Queue, Settings};
    use super::*;
    use crate::codec::properties;
    use crate::codec::table::Value;

    fn queue(cache_size: Option<usize>, cache_ttl_ms: Option<u64>) -> Queue {
        let deduplication = Deduplication { header: "id".into(), cache_size, cache_ttl_ms };
        Queue::new(Settings { deduplication: Some(deduplication), ..Settings::default() })
    }

    /// Publishes a message with this id; answers whether the queue has taken it.
    fn publish(queue: &mut Queue, id: i32, now: u64) -> bool {
        let mut headers = Vec::new();
        table::put_entry(&mut headers, b"id", &Value::I32(id));
        let header = properties::with_headers(&[0; 14], Some(&headers));
        let content = Content { address: b"\0\0", header: &header, body: Body::Inline(b"") };
        let before = queue.ready();
        queue.enqueue(&content, 0, Millis(now), &mut Effects::default());
        queue.ready() > before
    }

    #[test]
    fn a_message_is_a_duplicate_while_the_other_is_in_the_queue() {
        let (mut queue, effects) = (queue(None, None), &mut Effects::default());
        assert!(publish(&mut queue, 1, 0) && publish(&mut queue, 2, 0));
        assert!(!publish(&mut queue, 1, 0));
        let got = queue.get(false, Millis(0), effects).expect("soon done").expect("a message");
        queue.finish_get(&got, effects);
        assert!(!publish(&mut queue, 1, 0), "it may come back");
        assert_eq!(queue.purge(effects), 1);
        assert!(publish(&mut queue, 2, 0) && !publish(&mut queue, 1, 0), "one was purged");
        queue.settle(got.slot.expect("to be settled"), effects);
        assert!(publish(&mut queue, 1, 0));
    }

    #[test]
    fn with_a_cache_delivered_messages_are_remembered() {
        let (mut queue, effects) = (queue(Some(2), Some(100)), &mut Effects::default());
        assert!(publish(&mut queue, 1, 0));
        let got = queue.get(true, Millis(0), effects).expect("soon done").expect("a message");
        queue.finish_get(&got, effects);
        assert!(!publish(&mut queue, 1, 99));
        assert!(publish(&mut queue, 1, 100), "its time is over");
        assert!(publish(&mut queue, 2, 100) && publish(&mut queue, 3, 100));
        assert!(publish(&mut queue, 1, 100), "there is room for two");
    }
}
