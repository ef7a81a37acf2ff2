//! Single message properties, read from the bytes of a content header.
//!
//! Owns the property list of class `basic` (specification section 4.2.6.1 and 1.8.1): which
//! flag stands for what and how long each value is. Values are bytes: RabbitMQ does not check
//! their UTF-8, so clients that send Latin-1 work. Malformed lists give `None`, never a panic.
//!
//! The two lowest flag bits are ignored, as in RabbitMQ: a second word of flags does not exist.

use crate::codec::hot::HEADER_FIXED;

/// Flag of `content-type`.
pub const CONTENT_TYPE: u16 = 0x8000;
/// Flag of `content-encoding`.
pub const CONTENT_ENCODING: u16 = 0x4000;
/// Flag of `headers`, a table.
pub const HEADERS: u16 = 0x2000;
/// Flag of `delivery-mode`, one byte.
pub const DELIVERY_MODE: u16 = 0x1000;
/// Flag of `priority`, one byte.
pub const PRIORITY: u16 = 0x0800;
/// Flag of `correlation-id`.
pub const CORRELATION_ID: u16 = 0x0400;
/// Flag of `reply-to`.
pub const REPLY_TO: u16 = 0x0200;
/// Flag of `expiration`.
pub const EXPIRATION: u16 = 0x0100;
/// Flag of `message-id`.
pub const MESSAGE_ID: u16 = 0x0080;
/// Flag of `timestamp`, eight bytes.
pub const TIMESTAMP: u16 = 0x0040;
/// Flag of `type`.
pub const TYPE: u16 = 0x0020;
/// Flag of `user-id`.
pub const USER_ID: u16 = 0x0010;
/// Flag of `app-id`.
pub const APP_ID: u16 = 0x0008;
/// Flag of `cluster-id`, reserved since 0-9-1.
pub const CLUSTER_ID: u16 = 0x0004;

/// All flags that stand for a property.
const ALL: u16 = 0xFFFC;
/// The delivery mode of persistent messages.
const PERSISTENT: u8 = 2;

/// Flags and list of the properties of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Properties<'a> {
    flags: u16,
    list: &'a [u8],
}

impl<'a> Properties<'a> {
    /// Reads `ContentHeader::properties`: the flags and then the list.
    #[inline]
    pub fn new(properties: &'a [u8]) -> Self {
        match *properties {
            [high, low, ref list @ ..] => Self { flags: u16::from_be_bytes([high, low]), list },
            _ => Self { flags: 0, list: &[] },
        }
    }

    /// Reads the whole payload of a header frame.
    #[inline]
    pub fn of_header(header: &'a [u8]) -> Self {
        Self::new(header.get(HEADER_FIXED..).unwrap_or_default())
    }

    /// The flags; test with the constants of this module.
    #[inline]
    pub fn flags(&self) -> u16 {
        self.flags & ALL
    }

    /// Whether the message outlives the broker in a durable queue.
    #[inline]
    pub fn is_persistent(&self) -> bool {
        self.delivery_mode() == Some(PERSISTENT)
    }

    /// The contents of the header table, without its length.
    pub fn headers(&self) -> Option<&'a [u8]> {
        self.value(HEADERS)?.get(4..)
    }

    /// 2 is persistent, all else is not.
    #[inline]
    pub fn delivery_mode(&self) -> Option<u8> {
        self.value(DELIVERY_MODE)?.first().copied()
    }

    /// The priority, as the publisher gave it.
    pub fn priority(&self) -> Option<u8> {
        self.value(PRIORITY)?.first().copied()
    }

    /// Seconds since 1970, as the publisher gave them.
    pub fn timestamp(&self) -> Option<u64> {
        Some(u64::from_be_bytes(self.value(TIMESTAMP)?.try_into().ok()?))
    }

    /// The MIME type of the body.
    pub fn content_type(&self) -> Option<&'a [u8]> {
        self.text(CONTENT_TYPE)
    }

    /// The MIME encoding of the body.
    pub fn content_encoding(&self) -> Option<&'a [u8]> {
        self.text(CONTENT_ENCODING)
    }

    /// The application's identifier of the request that this answers.
    pub fn correlation_id(&self) -> Option<&'a [u8]> {
        self.text(CORRELATION_ID)
    }

    /// Where to answer to.
    pub fn reply_to(&self) -> Option<&'a [u8]> {
        self.text(REPLY_TO)
    }

    /// The time to live in milliseconds, in decimal.
    pub fn expiration(&self) -> Option<&'a [u8]> {
        self.text(EXPIRATION)
    }

    /// The application's identifier of the message.
    pub fn message_id(&self) -> Option<&'a [u8]> {
        self.text(MESSAGE_ID)
    }

    /// The application's name for the kind of message (`type` on the wire).
    pub fn kind(&self) -> Option<&'a [u8]> {
        self.text(TYPE)
    }

    /// The user that the publisher claims to be.
    pub fn user_id(&self) -> Option<&'a [u8]> {
        self.text(USER_ID)
    }

    /// The application's own identifier.
    pub fn app_id(&self) -> Option<&'a [u8]> {
        self.text(APP_ID)
    }

    /// Reserved; passed on.
    pub fn cluster_id(&self) -> Option<&'a [u8]> {
        self.text(CLUSTER_ID)
    }

    /// A short string without its length byte.
    fn text(&self, flag: u16) -> Option<&'a [u8]> {
        self.value(flag)?.get(1..)
    }

    /// A property's value as on the wire.
    #[inline]
    fn value(&self, flag: u16) -> Option<&'a [u8]> {
        if self.flags & flag == 0 {
            return None;
        }
        let start = self.offset(flag)?;
        self.list.get(start..start + length(self.list.get(start..)?, flag)?)
    }

    /// Where the value of `flag` is, or would be, in the list.
    #[inline]
    fn offset(&self, flag: u16) -> Option<usize> {
        // The values come in the order of the flags, highest bit first.
        let before = self.flags & ALL & !(flag | (flag - 1));
        skip(self.list, before)
    }
}

/// Whether flags and list agree exactly in length. Whether a header table is sound inside is
/// for its readers to find out.
#[inline]
pub fn is_well_formed(properties: &[u8]) -> bool {
    let [high, low, ref list @ ..] = *properties else {
        return false;
    };
    skip(list, u16::from_be_bytes([high, low]) & ALL) == Some(list.len())
}

/// The offset after the values of all given flags, which must be the highest ones in the list.
#[inline]
fn skip(list: &[u8], flags: u16) -> Option<usize> {
    let mut rest = flags;
    let mut offset = 0;
    while rest != 0 {
        let flag = 0x8000 >> rest.leading_zeros();
        rest &= !flag;
        offset += length(list.get(offset..)?, flag)?;
    }
    Some(offset)
}

/// The length of the value at the start of `list`, its own length field included. The value
/// itself need not be there in full: whoever slices or compares finds out.
#[inline]
fn length(list: &[u8], flag: u16) -> Option<usize> {
    match flag {
        DELIVERY_MODE | PRIORITY => Some(1),
        TIMESTAMP => Some(8),
        HEADERS => {
            let contents = u32::from_be_bytes(*list.first_chunk::<4>()?);
            Some(4 + contents as usize)
        }
        _ => Some(1 + usize::from(*list.first()?)),
    }
}

/// The header payload with `reply-to` replaced or added, for direct replies.
pub fn with_reply_to(header: &[u8], reply_to: &[u8]) -> Vec<u8> {
    debug_assert!(reply_to.len() <= usize::from(u8::MAX), "a short string");
    let reply_to = &reply_to[..reply_to.len().min(usize::from(u8::MAX))];
    let mut value = Vec::with_capacity(1 + reply_to.len());
    value.push(reply_to.len() as u8);
    value.extend_from_slice(reply_to);
    with_value(header, REPLY_TO, Some(&value))
}

/// The header payload with another header table (its contents, without length); `None` removes
/// the table.
pub fn with_headers(header: &[u8], table: Option<&[u8]>) -> Vec<u8> {
    let value = table.map(|contents| {
        let length = u32::try_from(contents.len()).expect("a table fits in a frame");
        [&length.to_be_bytes(), contents].concat()
    });
    with_value(header, HEADERS, value.as_deref())
}

/// The header payload with any property replaced (`Some`, as on the wire) or removed (`None`).
pub fn with_value(header: &[u8], flag: u16, value: Option<&[u8]>) -> Vec<u8> {
    let properties = Properties::of_header(header);
    let edges = properties.offset(flag).and_then(|start| {
        let old = properties.value(flag).map_or(0, <[u8]>::len);
        Some((properties.list.get(..start)?, properties.list.get(start + old..)?))
    });
    let (Some(fixed), Some((before, after))) = (header.get(..HEADER_FIXED), edges) else {
        debug_assert!(false, "only well-formed headers are stored");
        return header.to_vec();
    };
    let flags = match value {
        Some(_) => properties.flags() | flag,
        None => properties.flags() & !flag,
    };
    [fixed, &flags.to_be_bytes(), before, value.unwrap_or_default(), after].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header payload with every property, each text being the flag's place in the list.
    fn full() -> Vec<u8> {
        let mut bytes = b"\0\x3c\0\0\0\0\0\0\0\0\0\x05\xff\xfc".to_vec();
        bytes.extend_from_slice(b"\x02ct\x02ce\0\0\0\x04\x01kt\x01\x02\x07\x02co\x02re\x02ex");
        bytes.extend_from_slice(b"\x02mi\0\0\0\0\0\0\x01\0\x02ty\x02us\x02ap\x02cl");
        bytes
    }

    #[test]
    fn every_property_is_found() {
        let bytes = full();
        let properties = Properties::of_header(&bytes);
        assert!(is_well_formed(&bytes[HEADER_FIXED..]));
        assert_eq!(properties.flags(), ALL);
        assert_eq!(properties.content_type(), Some(&b"ct"[..]));
        assert_eq!(properties.content_encoding(), Some(&b"ce"[..]));
        assert_eq!(properties.headers(), Some(&b"\x01kt\x01"[..]));
        assert_eq!(properties.delivery_mode(), Some(2));
        assert!(properties.is_persistent());
        assert_eq!(properties.priority(), Some(7));
        assert_eq!(properties.correlation_id(), Some(&b"co"[..]));
        assert_eq!(properties.reply_to(), Some(&b"re"[..]));
        assert_eq!(properties.expiration(), Some(&b"ex"[..]));
        assert_eq!(properties.message_id(), Some(&b"mi"[..]));
        assert_eq!(properties.timestamp(), Some(256));
        assert_eq!(properties.kind(), Some(&b"ty"[..]));
        assert_eq!(properties.user_id(), Some(&b"us"[..]));
        assert_eq!(properties.app_id(), Some(&b"ap"[..]));
        assert_eq!(properties.cluster_id(), Some(&b"cl"[..]));
    }

    #[test]
    fn malformed_lists_give_nothing_and_no_panic() {
        let bytes = full();
        for end in 0..bytes.len() {
            assert!(!is_well_formed(bytes[..end].get(HEADER_FIXED..).unwrap_or_default()));
            let properties = Properties::of_header(&bytes[..end]);
            assert_eq!(properties.cluster_id(), None);
            for bit in 2..16 {
                let _ = properties.value(1 << bit);
            }
        }
        let huge = b"\x20\0\xff\xff\xff\xffx";
        assert!(!is_well_formed(huge));
        assert_eq!(Properties::new(huge).headers(), None);
        assert_eq!(Properties::new(&[]).delivery_mode(), None);
    }

    #[test]
    fn the_two_lowest_flags_are_ignored() {
        assert!(is_well_formed(b"\0\x03"));
        assert_eq!(Properties::new(b"\0\x03").flags(), 0);
    }

    #[test]
    fn reply_to_is_replaced_or_added() {
        let bytes = with_reply_to(&full(), b"elsewhere");
        let properties = Properties::of_header(&bytes);
        assert_eq!(properties.reply_to(), Some(&b"elsewhere"[..]));
        assert_eq!(properties.cluster_id(), Some(&b"cl"[..]));
        assert!(is_well_formed(&bytes[HEADER_FIXED..]));

        let bare = b"\0\x3c\0\0\0\0\0\0\0\0\0\x05\x10\x20\x01\x02ty";
        let bytes = with_reply_to(bare, b"r");
        assert_eq!(bytes, b"\0\x3c\0\0\0\0\0\0\0\0\0\x05\x12\x20\x01\x01r\x02ty");
    }

    #[test]
    fn headers_are_replaced_removed_or_added() {
        let bytes = with_headers(&full(), None);
        let properties = Properties::of_header(&bytes);
        assert_eq!((properties.headers(), properties.flags()), (None, ALL & !HEADERS));
        assert_eq!(properties.delivery_mode(), Some(2));
        assert!(is_well_formed(&bytes[HEADER_FIXED..]));
        assert_eq!(with_headers(&bytes, Some(b"\x01kt\x01")), full());
        assert_eq!(with_headers(&full(), Some(b"\x01kt\x01")), full());
    }
}
