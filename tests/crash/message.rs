//! Who a message is, and whether it is whole.
//!
//! Owns the identity that stands in `message_id`, and the body that follows from it alone: a
//! receiver makes the body again and compares every byte. It must not know what becomes of it.

use std::fmt;

use super::random::Random;

/// One message: the publisher of one run, and its number with that publisher, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId {
    pub publisher: u32,
    pub number: u32,
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.publisher, self.number)
    }
}

impl MessageId {
    pub const MIN: MessageId = MessageId { publisher: 0, number: 0 };

    /// The text for the property `message_id`: publisher, number, length and checksum of the body.
    pub fn label(self, body: &[u8]) -> String {
        format!("{}.{}.{}.{:x}", self.publisher, self.number, body.len(), checksum(body))
    }

    /// The body of `len` bytes. It begins with publisher and number, as far as they fit.
    pub fn body(self, len: usize) -> Vec<u8> {
        let mut body = format!("{self:?}:").into_bytes();
        body.truncate(len);
        let mut random = Random::new(u64::from(self.publisher) << 32 | u64::from(self.number));
        while body.len() + 8 <= len {
            body.extend(random.next().to_le_bytes());
        }
        body.resize(len, b'.');
        body
    }

    /// Who this message is. The error says what is wrong with it.
    pub fn of(label: &str, body: &[u8]) -> Result<MessageId, String> {
        let mut parts = label.splitn(4, '.');
        let mut number = || parts.next()?.parse::<u32>().ok();
        let (Some(publisher), Some(number), Some(len)) = (number(), number(), number()) else {
            return Err(format!("message_id {label:?} is none of ours"));
        };
        let id = MessageId { publisher, number };
        if parts.next() != Some(&format!("{:x}", checksum(body))) {
            return Err(format!("{id:?}: {} bytes of {len} differ from its checksum", body.len()));
        }
        if body != id.body(len as usize) {
            return Err(format!("{id:?}: it has the body of another message"));
        }
        Ok(id)
    }
}

/// FNV-1a.
fn checksum(body: &[u8]) -> u32 {
    body.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Sizes that storage has edges at, mixed with ordinary ones.
pub fn size(random: &mut Random) -> usize {
    let bytes = match random.between(0, 99) {
        0..=4 => 0,
        5..=54 => random.between(1, 60),
        55..=79 => random.between(61, 1500),
        80..=87 => random.between(4096 - 60, 4096 + 60),
        88..=94 => random.between(16384 - 60, 16384 + 60),
        95..=96 => random.between(20_000, 70_000),
        97..=98 => random.between(131_072 - 20, 131_072 + 20),
        _ => random.between(150_000, 200 * 1024),
    };
    bytes as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_message_is_known() {
        let mut random = Random::new(1);
        for number in 1..300 {
            let id = MessageId { publisher: 3, number };
            let body = id.body(size(&mut random));
            assert_eq!(MessageId::of(&id.label(&body), &body), Ok(id));
        }
    }

    #[test]
    fn a_damaged_message_is_refused() {
        let id = MessageId { publisher: 3, number: 77 };
        let body = id.body(5000);
        let label = id.label(&body);
        for at in [0, 1, 2500, 4999] {
            let mut torn = body.clone();
            torn[at] ^= 1;
            assert!(MessageId::of(&label, &torn).is_err(), "byte {at}");
        }
        assert!(MessageId::of(&label, &body[..4096]).is_err(), "cut");
        let mut zeroed = body.clone();
        zeroed[4096..].fill(0);
        assert!(MessageId::of(&label, &zeroed).is_err(), "half of it zeros");
        let other = MessageId { publisher: 3, number: 78 };
        let swapped = other.body(5000);
        let forged = id.label(&swapped);
        assert!(MessageId::of(&forged, &swapped).is_err(), "the body of another");
        assert!(MessageId::of("", &body).is_err() && MessageId::of("1.2", &body).is_err());
    }
}
