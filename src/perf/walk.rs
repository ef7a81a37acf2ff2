//! The tight walk over incoming frames that counts deliveries.
//!
//! Owns the position inside a content that spans several reads. It looks at the frame header, at
//! the class and method of method frames and at the body size of content headers, and at nothing
//! else: a generator that parsed deliveries would cost more than the broker it measures.

/// `basic.deliver`, class and method as one big-endian word.
const BASIC_DELIVER: u32 = 0x003C_003C;

/// Partial body frames from this size on are consumed as they come instead of being moved to the
/// front of the buffer.
const SKIP_MIN: usize = 4096;

/// The bytes of a body that a [`Sink`] sees at least, if the body has them.
const BODY_SEEN: usize = 64;

/// What a walk reports; the calls compile to nothing in a sink that leaves them empty.
pub(crate) trait Sink {
    /// Bytes have come, of which the calls that follow tell.
    #[inline(always)]
    fn received(&mut self) {}
    /// The payload of a `basic.deliver`.
    fn delivery(&mut self, payload: &[u8]);
    /// The beginning of a message's body.
    fn body(&mut self, body: &[u8]);
    /// Any other method.
    fn method(&mut self, channel: u16, payload: &[u8]);
}

/// Bytes that are not AMQP frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WalkError {
    /// A frame of a type that does not exist, or without its end byte.
    #[error("the broker sent a malformed frame (type {0})")]
    Malformed(u8),
    /// A body frame that no content header announced, or that is longer than announced.
    #[error("the broker sent more body than its content header announced")]
    Body,
}

/// The state between two reads.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// Deliveries completed so far.
    deliveries: u64,
    /// Body bytes that the current content still lacks.
    body_left: u64,
    /// Whether the current content has shown the beginning of its body.
    is_body_seen: bool,
    /// Whether the current content came by `basic.deliver` (and not in a returned message).
    is_delivery: bool,
    /// Bytes, end byte included, of a body frame whose beginning was consumed already.
    skip: usize,
}

impl Walk {
    /// Deliveries completed so far.
    pub(crate) fn deliveries(&self) -> u64 {
        self.deliveries
    }

    /// Walks all frames in `bytes` and returns how many bytes are done with; the rest is the
    /// beginning of a frame, to be offered again with more behind it.
    pub(crate) fn walk<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<usize, WalkError> {
        let mut at = self.skip_rest(bytes)?;
        while let Some(head) = bytes.get(at..at + 7) {
            let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
            let Some(frame) = bytes.get(at + 7..at + 8 + size) else {
                return Ok(at + self.skip_start(head[0], size, &bytes[at + 7..], sink)?);
            };
            let (payload, end) = frame.split_at(size);
            if end[0] != 0xCE {
                return Err(WalkError::Malformed(head[0]));
            }
            match head[0] {
                1 => self.method(u16::from_be_bytes([head[1], head[2]]), payload, sink)?,
                2 => self.header(payload)?,
                3 => {
                    self.body_start(payload, sink);
                    self.body(size as u64)?;
                }
                8 => {}
                kind => return Err(WalkError::Malformed(kind)),
            }
            at += size + 8;
        }
        Ok(at)
    }

    #[inline]
    fn method<S: Sink>(
        &mut self,
        channel: u16,
        payload: &[u8],
        sink: &mut S,
    ) -> Result<(), WalkError> {
        let Some(&[a, b, c, d]) = payload.first_chunk::<4>() else {
            return Err(WalkError::Malformed(1));
        };
        self.is_delivery = u32::from_be_bytes([a, b, c, d]) == BASIC_DELIVER;
        if self.is_delivery {
            sink.delivery(payload);
        } else {
            sink.method(channel, payload);
        }
        Ok(())
    }

    #[inline]
    fn header(&mut self, payload: &[u8]) -> Result<(), WalkError> {
        let size = payload.get(4..12).and_then(|size| size.first_chunk::<8>());
        self.body_left = u64::from_be_bytes(*size.ok_or(WalkError::Malformed(2))?);
        self.is_body_seen = false;
        if self.body_left == 0 {
            self.deliveries += u64::from(self.is_delivery);
        }
        Ok(())
    }

    #[inline]
    fn body_start<S: Sink>(&mut self, payload: &[u8], sink: &mut S) {
        if !self.is_body_seen {
            self.is_body_seen = true;
            sink.body(payload);
        }
    }

    #[inline]
    fn body(&mut self, size: u64) -> Result<(), WalkError> {
        if size == 0 {
            return Ok(());
        }
        self.body_left = self.body_left.checked_sub(size).ok_or(WalkError::Body)?;
        if self.body_left == 0 {
            self.deliveries += u64::from(self.is_delivery);
        }
        Ok(())
    }

    /// Consumes the available beginning of a large body frame; returns the bytes done with.
    fn skip_start<S: Sink>(
        &mut self,
        kind: u8,
        size: usize,
        available: &[u8],
        sink: &mut S,
    ) -> Result<usize, WalkError> {
        if kind != 3 || size < SKIP_MIN || available.len() < BODY_SEEN {
            return Ok(0);
        }
        self.body_start(&available[..available.len().min(size)], sink);
        // The message counts as delivered once the frame's last byte is there: see `skip_rest`.
        self.body_left = self.body_left.checked_sub(size as u64).ok_or(WalkError::Body)?;
        self.skip = size + 1 - available.len();
        Ok(7 + available.len())
    }

    /// Consumes the rest of a body frame that `skip_start` began.
    fn skip_rest(&mut self, bytes: &[u8]) -> Result<usize, WalkError> {
        if self.skip == 0 {
            return Ok(0);
        }
        let step = self.skip.min(bytes.len());
        self.skip -= step;
        if self.skip == 0 {
            if bytes[step - 1] != 0xCE {
                return Err(WalkError::Malformed(3));
            }
            if self.body_left == 0 {
                self.deliveries += u64::from(self.is_delivery);
            }
        }
        Ok(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default, Debug, PartialEq)]
    struct Seen {
        delivered: usize,
        bodies: Vec<u8>,
        others: Vec<u16>,
    }

    impl Sink for Seen {
        fn delivery(&mut self, _payload: &[u8]) {
            self.delivered += 1;
        }
        fn body(&mut self, body: &[u8]) {
            self.bodies.push(body[0]);
        }
        fn method(&mut self, channel: u16, _payload: &[u8]) {
            self.others.push(channel);
        }
    }

    fn frame(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
        out.extend_from_slice(&[kind, 0, 1]);
        out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        out.extend_from_slice(payload);
        out.push(0xCE);
    }

    fn message(out: &mut Vec<u8>, method: u8, bodies: &[&[u8]]) {
        frame(out, 1, &[0, 60, 0, method, 1, b'c', 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, b'q']);
        let size: usize = bodies.iter().map(|body| body.len()).sum();
        let mut header = vec![0, 60, 0, 0];
        header.extend_from_slice(&(size as u64).to_be_bytes());
        header.extend_from_slice(&[0, 0]);
        frame(out, 2, &header);
        bodies.iter().for_each(|body| frame(out, 3, body));
    }

    fn stream() -> Vec<u8> {
        let mut bytes = Vec::new();
        message(&mut bytes, 60, &[b"abc"]);
        message(&mut bytes, 60, &[]);
        frame(&mut bytes, 8, &[]);
        message(&mut bytes, 60, &[&[b'd'; 5000], &[b'e'; 4200], &[b'f'; 10]]);
        message(&mut bytes, 50, &[b"returned"]);
        frame(&mut bytes, 1, &[0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        message(&mut bytes, 60, &[b"g"]);
        bytes
    }

    #[test]
    fn counts_the_same_however_the_bytes_arrive() {
        let bytes = stream();
        for step in [1, 7, 63, 64, 65, 100, 4096, 5000, bytes.len()] {
            let (mut walk, mut seen, mut buffer) = (Walk::default(), Seen::default(), Vec::new());
            for part in bytes.chunks(step) {
                buffer.extend_from_slice(part);
                let used = walk.walk(&buffer, &mut seen).expect("well-formed");
                buffer.drain(..used);
            }
            assert!(buffer.is_empty());
            assert_eq!(walk.deliveries(), 4, "step {step}");
            let expected = Seen { delivered: 4, bodies: b"adrg".to_vec(), others: vec![1, 1] };
            assert_eq!(seen, expected, "step {step}");
        }
    }

    #[test]
    fn refuses_what_is_no_frame() {
        let mut seen = Seen::default();
        let mut bytes = stream();
        let end = 7 + 18;
        assert_eq!(bytes[end], 0xCE);
        bytes[end] = 0;
        assert_eq!(Walk::default().walk(&bytes, &mut seen), Err(WalkError::Malformed(1)));
        let http = b"HTTP/1.1\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(Walk::default().walk(&http[..9], &mut seen), Ok(0));
        let mut unannounced = Vec::new();
        frame(&mut unannounced, 3, b"x");
        assert_eq!(Walk::default().walk(&unannounced, &mut seen), Err(WalkError::Body));
    }
}
