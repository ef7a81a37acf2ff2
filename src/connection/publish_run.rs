//! Runs of publishes that are like the one before.
//!
//! Owns the shortcut that most of a busy publisher's messages take: the same basic.publish as the
//! last one on its channel, byte for byte, or with another address whose route is known, and a
//! whole small content behind it in the read buffer. Such a message needs no dispatch, and most of
//! them no look-up of the route. Whatever is different in any other way is left to the ordinary
//! path (`dispatch`, `publish`), which also produces all errors.

use super::channel::Mode;
use super::publish::{ADDRESS_AT, SPECIAL};
use super::{BATCH_WORK_MAX, Connection, Worker};
use crate::broker::{Span, Staged};
use crate::codec::frame::{self, FRAME_END, Frame, FrameKind};
use crate::codec::hot::{self, ContentHeader};
use crate::codec::properties::Properties;
use crate::queue::{FANNED_BODY_MIN, SHARED_BODY_MIN};

/// Bytes before a frame's payload: type, channel and size.
const FRAME_HEAD: usize = 7;

/// The last basic.publish on a channel, and its route once it is known to hold for others.
#[derive(Debug, Default)]
pub(super) struct LastPublish {
    payload: Vec<u8>,
    /// The route's index, and the epoch of the routes in which it holds.
    route: Option<(usize, u64)>,
}

impl LastPublish {
    /// Remembers a publish whose route is not known yet.
    pub(super) fn remember(&mut self, payload: &[u8]) {
        self.route = None;
        self.payload.clear();
        self.payload.extend_from_slice(payload);
    }

    /// Remembers the route of the last publish.
    pub(super) fn routed(&mut self, route: usize, epoch: u64) {
        self.route = Some((route, epoch));
    }
}

/// A message of a run, which the next ones are compared with: the same bytes up to the body mean
/// the same frames, address, properties and length.
#[derive(Clone, Copy)]
struct Pattern {
    number: u16,
    route: usize,
    /// From the message's first byte to its body, or to its end when it has none.
    prefix: Span,
    address: Span,
    header: Span,
    body_len: usize,
}

impl Pattern {
    /// Where the message at this offset has its body and its end, if it is whole and like this one.
    #[inline]
    fn matches(&self, buffer: &[u8], at: usize) -> Option<(Span, usize)> {
        let prefix = &buffer[self.prefix.range()];
        let body_at = at + prefix.len();
        if buffer.get(at..body_at)? != prefix {
            return None;
        }
        self.body_at(buffer, body_at)
    }

    /// Where a body at this offset and its message's end are, if it is whole.
    #[inline]
    fn body_at(&self, buffer: &[u8], body_at: usize) -> Option<(Span, usize)> {
        if self.body_len == 0 {
            return Some((Span::new(0, 0), body_at));
        }
        let end = body_at + self.body_len;
        (*buffer.get(end)? == FRAME_END).then(|| (Span::new(body_at, self.body_len), end + 1))
    }
}

impl Connection {
    /// Stages the publishes at the offset `from` of the read buffer that are like the ones before
    /// on their channels. Answers how many bytes they took.
    pub(super) fn take_run(&mut self, buffer: &[u8], from: usize, worker: &mut Worker) -> usize {
        let (mut at, mut pattern) = (from, None);
        while worker.batch.work() < BATCH_WORK_MAX
            && let Some(end) = self.take_repeat(buffer, at, &mut pattern, worker)
        {
            at = end;
        }
        at - from
    }

    /// Stages the publish at this offset, if it is like the one before. Answers where it ends.
    #[inline]
    fn take_repeat(
        &mut self,
        buffer: &[u8],
        at: usize,
        pattern: &mut Option<Pattern>,
        worker: &mut Worker,
    ) -> Option<usize> {
        // Nothing but publishes has come since the pattern, so what it needed still holds.
        let (like, body, end) =
            match pattern.and_then(|like| Some((like, like.matches(buffer, at)?))) {
                Some((like, (body, end))) => (like, body, end),
                None => {
                    let like = self.repeat_at(buffer, at)?;
                    *pattern = Some(like);
                    let (body, end) = like.body_at(buffer, like.prefix.range().end)?;
                    (like, body, end)
                }
            };
        // All of a run share the address and header of the first.
        let staged = Staged::InBuffer { address: like.address, header: like.header, body };
        self.stage(like.number, staged, like.route, worker);
        Some(end)
    }

    /// The message at this offset, if it is like the last publish on its channel, whole as far as
    /// its body, and has nothing special about it.
    fn repeat_at(&self, buffer: &[u8], at: usize) -> Option<Pattern> {
        let rest = &buffer[at..];
        let number = u16::from_be_bytes([*rest.get(1)?, *rest.get(2)?]);
        let channel = self.channels.get(usize::from(number))?.as_deref()?;
        let (route, epoch) = channel.last_publish.route?;
        let free = channel.incoming.is_none() && !matches!(channel.mode, Mode::Transactional(_));
        if epoch != self.routes.epoch || !free {
            return None;
        }
        let (publish, publish_used) = self.next_frame(rest, number, FrameKind::Method)?;
        let last = &*channel.last_publish.payload;
        let route =
            if publish.payload == last { route } else { self.known_route(publish.payload, last)? };
        let header_at = publish_used;
        let (header, header_used) =
            self.next_frame(&rest[header_at..], number, FrameKind::Header)?;
        let content = ContentHeader::parse(header.payload).ok()?;
        let ordinary = content.class_id == hot::BASIC
            && content.weight == 0
            && Properties::new(content.properties).flags() & SPECIAL == 0
            && content.body_size < (SHARED_BODY_MIN as u64).min(self.message_size_max());
        if !ordinary {
            return None;
        }
        let body_len = content.body_size as usize;
        let mut body_at = header_at + header_used;
        // An empty body has no frame.
        if body_len > 0 {
            let (frame, _) = self.next_frame(&rest[body_at..], number, FrameKind::Body)?;
            if frame.payload.len() != body_len {
                return None;
            }
            body_at += FRAME_HEAD;
        }
        let targets = self.routes.targets(route);
        if targets == 0 || (targets > 1 && body_len >= FANNED_BODY_MIN) {
            return None;
        }
        // The last byte of basic.publish holds its flags, the address ends before it.
        let address_len = publish.payload.len() - ADDRESS_AT - 1;
        Some(Pattern {
            number,
            route,
            prefix: Span::new(at, body_at),
            address: Span::new(at + FRAME_HEAD + ADDRESS_AT, address_len),
            header: Span::new(at + header_at + FRAME_HEAD, header.payload.len()),
            body_len,
        })
    }

    /// The route of a publish that differs from the last one in its address only, if it is known.
    fn known_route(&self, payload: &[u8], last: &[u8]) -> Option<usize> {
        let (method, rest) = payload.split_at_checked(ADDRESS_AT)?;
        let (flags, address) = rest.split_last()?;
        if method != last.get(..ADDRESS_AT)? || Some(flags) != last.last() {
            return None;
        }
        // What is not an address has no route.
        self.routes.known(address)
    }

    /// The frame at the beginning of `bytes`, if it is whole and what is expected.
    fn next_frame<'b>(
        &self,
        bytes: &'b [u8],
        number: u16,
        kind: FrameKind,
    ) -> Option<(Frame<'b>, usize)> {
        let (frame, used) = frame::split(bytes, self.frame_max).ok()??;
        (frame.channel == number && frame.kind == kind).then_some((frame, used))
    }
}
