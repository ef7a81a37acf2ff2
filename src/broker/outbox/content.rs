//! Messages on their way out: `basic.deliver` and `basic.get-ok` with their contents.
//!
//! Owns the delivery tags, the encoding of a delivery after one that it is like, and the chaining
//! of large bodies. It must not decide who gets what.

use super::{OutboxGuard, Subscriber, Unsettled};
use crate::codec::encode;
use crate::codec::frame::{FRAME_END, FRAME_OVERHEAD};
use crate::queue::{Body, ConsumerKey, Content, Delivery, Got, Slot};

/// A delivery that the next one may be encoded after.
pub(crate) struct LastDelivery<'c> {
    consumer: ConsumerKey,
    redelivered: bool,
    address: &'c [u8],
    header: &'c [u8],
    /// Where it begins in the buffer, and where its body does.
    begin: usize,
    body_at: usize,
    body_len: usize,
}

impl LastDelivery<'_> {
    /// Whether a delivery differs in its tag and the bytes of its body at most. What is equal in a
    /// run of messages is one and the same slice, so that no bytes are compared.
    fn is_like(&self, delivery: &Delivery, content: &Content<'_>, body: &[u8]) -> bool {
        self.consumer == delivery.consumer
            && self.redelivered == (delivery.returns > 0)
            && self.body_len == body.len()
            && std::ptr::eq(self.address, content.address)
            && std::ptr::eq(self.header, content.header)
    }
}

impl OutboxGuard<'_> {
    /// Gives out a delivery tag, and remembers it when the delivery is to be settled.
    fn next_tag(&mut self, channel: u16, source: u32, slot: Option<Slot>, counted: bool) -> u64 {
        let channel = &mut self.state.channels[usize::from(channel)];
        let tag = channel.next_tag;
        channel.next_tag += 1;
        if let Some(slot) = slot {
            channel.unsettled.push(Unsettled { tag, source, slot, counted });
        }
        tag
    }

    /// Appends `basic.deliver` with its content. `last` is the one that was appended before it
    /// under this lock, if any.
    pub(crate) fn deliver<'c>(
        &mut self,
        to: &Subscriber,
        delivery: &Delivery,
        content: &Content<'c>,
        last: &mut Option<LastDelivery<'c>>,
    ) {
        let tag = self.next_tag(to.channel, to.source, delivery.slot, delivery.counted);
        let redelivered = delivery.returns > 0;
        match content.body {
            Body::Inline(body) => {
                let buffer = &mut self.state.out.buffer;
                if let Some(last) = last
                    && last.is_like(delivery, content, body)
                {
                    let like = last.begin..last.body_at;
                    return encode::put_like_delivery(buffer, like, &to.head, tag, body);
                }
                let (begin, frame_max) = (buffer.len(), self.frame_max);
                let Content { address, header, .. } = *content;
                encode::put_delivery(
                    buffer,
                    &to.head,
                    tag,
                    redelivered,
                    frame_max,
                    address,
                    header,
                    body,
                );
                let fits = body.len() <= encode::body_frame_payload_max(frame_max);
                *last = fits.then(|| LastDelivery {
                    consumer: delivery.consumer,
                    redelivered,
                    address,
                    header,
                    begin,
                    body_at: buffer.len() - body.len() - usize::from(!body.is_empty()),
                    body_len: body.len(),
                });
            }
            Body::Shared(_) => {
                let buffer = &mut self.state.out.buffer;
                encode::put_deliver(buffer, &to.head, tag, redelivered, content.address);
                self.put_content(to.channel, content);
            }
        }
    }

    /// Appends `basic.get-ok` with its content.
    pub(crate) fn get_ok(
        &mut self,
        channel: u16,
        source: u32,
        got: &Got,
        message_count: u32,
        content: &Content<'_>,
    ) {
        let tag = self.next_tag(channel, source, got.slot, false);
        let (buffer, again) = (&mut self.state.out.buffer, got.returns > 0);
        encode::put_get_ok(buffer, channel, tag, again, content.address, message_count);
        self.put_content(channel, content);
    }

    /// Appends a content header and body; large bodies are chained, not copied.
    pub(crate) fn put_content(&mut self, channel: u16, content: &Content<'_>) {
        let out = &mut self.state.out;
        match content.body {
            Body::Inline(body) => {
                let buffer = &mut out.buffer;
                encode::put_content(buffer, channel, self.frame_max, content.header, body);
            }
            Body::Shared(body) => {
                encode::put_header(&mut out.buffer, channel, content.header);
                let frame = match self.frame_max {
                    0 => body.len(),
                    max => max as usize - FRAME_OVERHEAD,
                };
                for start in (0..body.len()).step_by(frame) {
                    let part = body.slice(start..body.len().min(start + frame));
                    encode::put_body_head(&mut out.buffer, channel, part.len() as u32);
                    out.large_bytes += part.len();
                    out.large.push((out.buffer.len(), part));
                    out.buffer.push(FRAME_END);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::tests::{outbox, take};
    use super::*;
    use crate::queue::SHARED_BODY_MIN;

    #[test]
    fn a_large_body_is_chained_in_frames() {
        let outbox = outbox();
        let body = Bytes::from(vec![7; SHARED_BODY_MIN]);
        let content = Content { address: b"\0\0", header: &[0; 14], body: Body::Shared(&body) };
        outbox.lock().put_content(1, &content);
        let out = take(&outbox).expect("something to write");
        let sizes: Vec<usize> = out.large.iter().map(|(_, part)| part.len()).collect();
        assert_eq!(sizes, [4088, 4088, 4088, 4088, 32]);
        assert!(out.large.iter().all(|(at, _)| out.buffer[*at] == FRAME_END));
        assert!(!body.is_unique());
        drop(out);
        assert!(body.is_unique());
    }
}
