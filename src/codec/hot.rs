//! The frames that come by the million, parsed in place.
//!
//! Owns `basic.publish`, `basic.ack`, `basic.nack`, `basic.reject` and the content header. All
//! results borrow the read buffer and nothing here allocates except on error. Lengths are
//! checked, meanings are not: names are raw bytes (RabbitMQ does not check their UTF-8 either)
//! and properties stay as they came, to be read by `codec::properties`.

use crate::codec::{frame, properties};
use crate::error::AmqpError;

/// The class of all methods here.
pub const BASIC: u16 = 60;
/// The method `basic.publish`.
pub const PUBLISH: u16 = 40;
/// The method `basic.ack`.
pub const ACK: u16 = 80;
/// The method `basic.reject`.
pub const REJECT: u16 = 90;
/// The method `basic.nack`, RabbitMQ's extension.
pub const NACK: u16 = 120;

/// Bytes of a method payload before its arguments: class and method.
const IDS: usize = 4;
/// Bytes of a content header before its properties: class, weight and body size.
pub(crate) const HEADER_FIXED: usize = 12;

/// Class and method of a method frame's payload. `frame::split` has made sure that they are
/// there; a shorter payload has none and gives zeros.
#[inline]
pub fn method_ids(payload: &[u8]) -> (u16, u16) {
    debug_assert!(payload.len() >= IDS);
    match *payload {
        [a, b, c, d, ..] => (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])),
        _ => (0, 0),
    }
}

/// Whether a frame at the beginning of `bytes` is a `basic.publish`, as far as can be told.
#[inline]
pub fn begins_publish(bytes: &[u8]) -> bool {
    // Type of a method frame, channel and size (6 bytes), then class 60 and method 40.
    matches!(bytes, [1, _, _, _, _, _, _, 0, 60, 0, 40, ..])
}

/// Whether a frame at the beginning of `bytes` is a method of the classes exchange (40) or queue
/// (50), as far as can be told.
pub fn begins_declaration(bytes: &[u8]) -> bool {
    matches!(bytes, [1, _, _, _, _, _, _, 0, 40 | 50, ..])
}

/// A `basic.publish`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Exchange and routing key as on the wire, each with its length byte. `basic.deliver`,
    /// `basic.get-ok` and `basic.return` need the very same bytes.
    pub address: &'a [u8],
    /// The exchange's name; empty is the default exchange.
    pub exchange: &'a [u8],
    /// The routing key.
    pub routing_key: &'a [u8],
    /// Return the message when no queue takes it.
    pub mandatory: bool,
    /// Return the message when no consumer takes it at once; RabbitMQ serves it no more.
    pub immediate: bool,
}

impl<'a> Publish<'a> {
    /// Parses the payload of a method frame whose ids say that it is a publish.
    #[inline]
    pub fn parse(payload: &'a [u8]) -> Result<Self, AmqpError> {
        match Self::read(payload) {
            Some(publish) => Ok(publish),
            None => Err(cannot_decode(PUBLISH, payload)),
        }
    }

    #[inline]
    fn read(payload: &'a [u8]) -> Option<Self> {
        // Two bytes are reserved (once an access ticket) and may hold anything.
        let arguments = payload.get(IDS + 2..)?;
        let (exchange, rest) = short_string(arguments)?;
        let (routing_key, rest) = short_string(rest)?;
        let [bits] = *rest else {
            return None;
        };
        let address = &arguments[..arguments.len() - 1];
        let (mandatory, immediate) = (bits & 1 != 0, bits & 2 != 0);
        Some(Self { address, exchange, routing_key, mandatory, immediate })
    }
}

/// Exchange and routing key of an address as [`Publish::address`] gave it.
#[inline]
pub fn split_address(address: &[u8]) -> (&[u8], &[u8]) {
    let parts = short_string(address).and_then(|(exchange, rest)| {
        let (routing_key, _) = short_string(rest)?;
        Some((exchange, routing_key))
    });
    debug_assert!(parts.is_some(), "only valid addresses are stored");
    parts.unwrap_or_default()
}

/// A short string and what follows it.
#[inline]
fn short_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(length))
}

/// A content header (specification section 4.2.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentHeader<'a> {
    /// The class of the content; only `basic` has any.
    pub class_id: u16,
    /// Unused and to be 0; RabbitMQ takes a header with another weight for no content header.
    pub weight: u16,
    /// Length of the body that follows in body frames.
    pub body_size: u64,
    /// Property flags and property list, for `codec::properties`.
    pub properties: &'a [u8],
}

impl<'a> ContentHeader<'a> {
    /// Parses the payload of a header frame and makes sure, for class `basic`, that the property
    /// list is exactly as long as its flags say. Contents of a header table are not looked at.
    ///
    /// A header of another class or weight passes with its list unread: the caller refuses it
    /// with an error of its own.
    #[inline]
    pub fn parse(payload: &'a [u8]) -> Result<Self, AmqpError> {
        match Self::read(payload) {
            Some(header) => Ok(header),
            None => Err(cannot_decode(PUBLISH, payload)),
        }
    }

    #[inline]
    fn read(payload: &'a [u8]) -> Option<Self> {
        let (fixed, properties) = payload.split_first_chunk::<HEADER_FIXED>()?;
        let [class_high, class_low, weight_high, weight_low, size @ ..] = *fixed;
        let class_id = u16::from_be_bytes([class_high, class_low]);
        let weight = u16::from_be_bytes([weight_high, weight_low]);
        if class_id == BASIC && weight == 0 && !properties::is_well_formed(properties) {
            return None;
        }
        Some(Self { class_id, weight, body_size: u64::from_be_bytes(size), properties })
    }
}

/// A method by which a client settles deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settle {
    /// `basic.ack`: the deliveries are done with.
    Ack {
        /// The delivery, or the last of several.
        tag: u64,
        /// All open deliveries up to `tag`; with tag 0 all of the channel.
        multiple: bool,
    },
    /// `basic.nack`: the deliveries are refused.
    Nack {
        /// The delivery, or the last of several.
        tag: u64,
        /// All open deliveries up to `tag`; with tag 0 all of the channel.
        multiple: bool,
        /// Put them back where they were, rather than drop or dead-letter them.
        requeue: bool,
    },
    /// `basic.reject`: one delivery is refused.
    Reject {
        /// The delivery.
        tag: u64,
        /// Put it back where it was, rather than drop or dead-letter it.
        requeue: bool,
    },
}

impl Settle {
    /// Parses the payload of a method frame of class `basic`; `None` when the method is no
    /// settlement.
    #[inline]
    pub fn parse(method_id: u16, payload: &[u8]) -> Option<Result<Self, AmqpError>> {
        if !matches!(method_id, ACK | NACK | REJECT) {
            return None;
        }
        let Some((tag, bits)) = tag_and_bits(payload) else {
            return Some(Err(cannot_decode(method_id, payload)));
        };
        let (first, second) = (bits & 1 != 0, bits & 2 != 0);
        Some(Ok(match method_id {
            ACK => Self::Ack { tag, multiple: first },
            NACK => Self::Nack { tag, multiple: first, requeue: second },
            _ => Self::Reject { tag, requeue: first },
        }))
    }
}

#[inline]
fn tag_and_bits(payload: &[u8]) -> Option<(u64, u8)> {
    let (tag, rest) = payload.get(IDS..)?.split_first_chunk::<8>()?;
    let [bits] = *rest else {
        return None;
    };
    Some((u64::from_be_bytes(*tag), bits))
}

/// Names the bytes after class and method, as RabbitMQ does.
#[cold]
fn cannot_decode(method_id: u16, payload: &[u8]) -> AmqpError {
    frame::cannot_decode(BASIC, method_id, payload.get(IDS..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = b"\0\x3c\0\x28\0\0\x02ex\x03key\x01";

    #[test]
    fn a_publish_is_taken_apart() {
        let publish = Publish::parse(SAMPLE).unwrap();
        assert_eq!(publish.address, b"\x02ex\x03key");
        assert_eq!(split_address(publish.address), (&b"ex"[..], &b"key"[..]));
        assert_eq!((publish.exchange, publish.routing_key), (&b"ex"[..], &b"key"[..]));
        assert!(publish.mandatory && !publish.immediate);
        assert_eq!(method_ids(SAMPLE), (BASIC, PUBLISH));
    }

    #[test]
    fn names_of_a_publish_may_be_any_bytes() {
        let publish = Publish::parse(b"\0\x3c\0\x28\0\0\0\x02\xff\xfe\x02").unwrap();
        assert_eq!((publish.exchange, publish.routing_key), (&b""[..], &b"\xff\xfe"[..]));
        assert!(publish.immediate && !publish.mandatory);
    }

    #[test]
    fn a_publish_must_have_exactly_its_arguments() {
        for end in 4..SAMPLE.len() {
            let error = Publish::parse(&SAMPLE[..end]).unwrap_err();
            assert_eq!((error.class_id, error.method_id), (60, 40));
            assert!(error.text.starts_with("cannot decode <<"), "{}", error.text);
        }
        let longer = [SAMPLE, b"\0"].concat();
        let error = Publish::parse(&longer).unwrap_err();
        assert_eq!(error.text, "cannot decode <<0,0,2,101,120,3,107,101,121,1,0>>");
    }

    #[test]
    fn a_content_header_is_taken_apart() {
        let payload = b"\0\x3c\0\0\0\0\0\0\0\0\x01\x02\x18\0\x02\x05";
        let header = ContentHeader::parse(payload).unwrap();
        assert_eq!((header.class_id, header.weight, header.body_size), (60, 0, 258));
        assert_eq!(header.properties, b"\x18\0\x02\x05");
        for end in 0..payload.len() {
            assert!(ContentHeader::parse(&payload[..end]).is_err(), "{end} bytes");
        }
        assert!(ContentHeader::parse(&[&payload[..], b"\0"].concat()).is_err());
    }

    #[test]
    fn a_header_of_another_class_passes_unread() {
        let header = ContentHeader::parse(b"\0\x32\0\0\0\0\0\0\0\0\0\x01junk").unwrap();
        assert_eq!((header.class_id, header.properties), (50, &b"junk"[..]));
    }

    #[test]
    fn settlements_are_told_apart() {
        let payload = |method: u8, bits: u8| [0, 60, 0, method, 0, 0, 0, 0, 0, 0, 1, 2, bits];
        let ack = Settle::parse(80, &payload(80, 1)).unwrap().unwrap();
        assert_eq!(ack, Settle::Ack { tag: 258, multiple: true });
        let nack = Settle::parse(120, &payload(120, 2)).unwrap().unwrap();
        assert_eq!(nack, Settle::Nack { tag: 258, multiple: false, requeue: true });
        let reject = Settle::parse(90, &payload(90, 1)).unwrap().unwrap();
        assert_eq!(reject, Settle::Reject { tag: 258, requeue: true });
        assert_eq!(Settle::parse(40, &payload(40, 0)), None);
        for end in 4..13 {
            let error = Settle::parse(120, &payload(120, 0)[..end]).unwrap().unwrap_err();
            assert_eq!((error.class_id, error.method_id), (60, 120));
        }
    }
}
