//! From a queue's decisions to bytes in the outboxes of consumers.
//!
//! Owns the order in which outboxes are locked, one at a time, and the header that counts
//! deliveries. It must not decide who gets what.

use std::task::Waker;

use super::State;
use crate::broker::drive::Drive;
use crate::broker::outbox::Outbox;
use crate::codec::properties::{self, Properties};
use crate::codec::table::{self, Value};
use crate::queue::{Content, Delivery, Kind, Origin, Queue};

/// How often a message of a quorum queue was delivered before (RabbitMQ; from 4.0 on not at the
/// first delivery).
const DELIVERY_COUNT: &[u8] = b"x-delivery-count";

/// The header of a message that was delivered before, where its queue says so in it.
pub(super) fn counted_header(queue: &Queue, header: &[u8], returns: u32) -> Option<Vec<u8>> {
    if returns == 0 || queue.settings().kind != Kind::Quorum {
        return None;
    }
    let old = Properties::of_header(header).headers().unwrap_or_default();
    let mut headers = Vec::with_capacity(old.len() + 32);
    table::put_entry(&mut headers, DELIVERY_COUNT, &Value::I64(returns.into()));
    headers.extend_from_slice(&table::without(old, &[DELIVERY_COUNT]));
    Some(properties::with_headers(header, Some(&headers)))
}

/// Encodes the deliveries into the outboxes, one lock for each connection.
pub(super) fn encode<'c>(state: &State, staged: &impl Fn(u32) -> Content<'c>, drive: &mut Drive) {
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
    let mut last = None;
    for delivery in share {
        let subscriber = state.subscribers[delivery.consumer.index as usize].as_ref();
        let subscriber = subscriber.expect("a consumer has its subscriber");
        let content = match delivery.origin {
            Origin::Staged(token) => staged(token),
            Origin::Stored(at) => state.queue.content(at),
        };
        match counted_header(&state.queue, content.header, delivery.returns) {
            None => guard.deliver(subscriber, delivery, &content, &mut last),
            Some(header) => {
                let content = Content { header: &header, ..content };
                guard.deliver(subscriber, delivery, &content, &mut None);
            }
        }
    }
    guard.wake(wakes);
}
