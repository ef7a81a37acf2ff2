//! A waiting message as an entry of the store.
//!
//! Owns keys and values. A key is the names of vhost and exchange, each with its length before it,
//! then when the message is due and which of those it was, so that the entries of one exchange
//! stand together in the order in which they leave it. A value is the format, the number of routing
//! keys, and each of them with its length, then in the same way the address, the header and the
//! body as on the wire. All numbers are big endian. It must not know when entries come and go.

use std::sync::Arc;

use bytes::Bytes;

use crate::broker::OwnedMessage;
use crate::broker::exchange_memory::KeptMessage;
use crate::clock::Millis;
use crate::codec::hot::{BASIC, ContentHeader};
use crate::store::{Change, Space, Store, Ticket};

/// What a value begins with.
const FORMAT: u8 = 1;

/// When a message leaves its exchange: when it is due, and after which others that are due then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::broker) struct Turn {
    pub(super) due: Millis,
    pub(super) number: u64,
}

/// The entries of one exchange.
#[derive(Debug)]
pub(super) struct Entries {
    store: Arc<Store>,
    /// What their keys begin with.
    prefix: Vec<u8>,
}

impl Entries {
    pub(super) fn new(store: Arc<Store>, vhost: &str, exchange: &str) -> Self {
        let mut prefix = Vec::new();
        put(&mut prefix, vhost.as_bytes());
        put(&mut prefix, exchange.as_bytes());
        Self { store, prefix }
    }

    /// Adds an entry.
    pub(super) fn put(&self, turn: Turn, value: Vec<u8>) -> Ticket {
        self.store.change(vec![change(self.key(turn), Some(value))])
    }

    /// Deletes entries.
    pub(super) fn delete(&self, turns: impl Iterator<Item = Turn>) {
        let changes: Vec<_> = turns.map(|turn| change(self.key(turn), None)).collect();
        if !changes.is_empty() {
            self.store.change(changes);
        }
    }

    fn key(&self, turn: Turn) -> Vec<u8> {
        let (due, number) = (turn.due.0.to_be_bytes(), turn.number.to_be_bytes());
        [&self.prefix[..], &due, &number].concat()
    }
}

/// A new value of an entry, or none any more.
pub(super) fn change(key: Vec<u8>, value: Option<Vec<u8>>) -> Change {
    Change { space: Space::Delayed, key, value }
}

/// The value of a message's entry.
pub(super) fn value_of(kept: &KeptMessage) -> Vec<u8> {
    let (keys, message) = (kept.keys(), kept.message());
    let parts = [&message.address[..], &message.header, &message.body];
    let len: usize = keys.iter().chain(&parts).map(|part| part.len() + size_of::<u32>()).sum();
    let mut value = Vec::with_capacity(1 + size_of::<u32>() + len);
    value.push(FORMAT);
    put_len(&mut value, keys.len());
    keys.iter().chain(&parts).for_each(|part| put(&mut value, part));
    value
}

fn put(out: &mut Vec<u8>, part: &[u8]) {
    put_len(out, part.len());
    out.extend_from_slice(part);
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    let len = u32::try_from(len).expect("messages and names are far smaller than 4 GiB");
    out.extend_from_slice(&len.to_be_bytes());
}

/// The vhost, the exchange and the turn of an entry, if that is what this is.
pub(super) fn read_key(mut key: &[u8]) -> Option<(&str, &str, Turn)> {
    let vhost = std::str::from_utf8(take(&mut key)?).ok()?;
    let exchange = std::str::from_utf8(take(&mut key)?).ok()?;
    let (due, number) = key.split_first_chunk::<8>()?;
    let (due, number) = (u64::from_be_bytes(*due), u64::from_be_bytes(number.try_into().ok()?));
    Some((vhost, exchange, Turn { due: Millis(due), number }))
}

/// The routing keys of an entry's message, and the message, if that is what this is.
pub(super) fn read_value(value: &[u8]) -> Option<(Vec<&[u8]>, OwnedMessage)> {
    let (&FORMAT, mut rest) = value.split_first()? else { return None };
    let mut keys = Vec::new();
    for _ in 0..take_len(&mut rest)? {
        keys.push(take(&mut rest)?);
    }
    let (address, header) = (take(&mut rest)?, take(&mut rest)?);
    let body = take(&mut rest)?;
    let fixed = ContentHeader::parse(header).ok()?;
    let is_whole = fixed.class_id == BASIC && fixed.body_size == body.len() as u64;
    if !is_whole || !is_address(address) || !rest.is_empty() {
        return None;
    }
    let (address, header, body) = (address.to_vec(), header.to_vec(), Bytes::from(body.to_vec()));
    Some((keys, OwnedMessage { address, header, body }))
}

/// Whether these are two short strings.
fn is_address(bytes: &[u8]) -> bool {
    let exchange_len = bytes.first().map_or(0, |len| usize::from(*len));
    let key_len = bytes.get(1 + exchange_len).map(|len| usize::from(*len));
    key_len.is_some_and(|key_len| bytes.len() == 2 + exchange_len + key_len)
}

fn take<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = take_len(bytes)?;
    let (part, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(part)
}

fn take_len(bytes: &mut &[u8]) -> Option<usize> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    usize::try_from(u32::from_be_bytes(*len)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::broker::Memory;
    use crate::queue::{Body, Content};
    use crate::store::{MemoryEngine, Options};

    fn entries(vhost: &str, exchange: &str) -> Entries {
        let store = Store::in_memory(&MemoryEngine::default(), &Options::default());
        Entries::new(Arc::new(store.expect("it reads")), vhost, exchange)
    }

    proptest! {
        #[test]
        fn values_say_what_was_put_into_them(
            keys in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5), 1..4),
            body in prop::collection::vec(any::<u8>(), 0..40),
            cut in any::<prop::sample::Index>(),
        ) {
            let memory = Arc::new(Memory::new(u64::MAX, 0));
            let len = (body.len() as u64).to_be_bytes();
            let header = [&[0, 60, 0, 0][..], &len, &[0x10, 0, 2]].concat();
            let content =
                Content { address: b"\x01x\x02ky", header: &header, body: Body::Inline(&body) };
            let keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
            let value = value_of(&KeptMessage::new(&content, &keys, &memory));
            let (read, message) = read_value(&value).expect("it is whole");
            prop_assert_eq!(read, keys);
            prop_assert_eq!(&message.address, content.address);
            prop_assert_eq!(&message.header, &header);
            prop_assert_eq!(&message.body[..], &body[..]);
            prop_assert!(read_value(&value[..cut.index(value.len())]).is_none());
            prop_assert!(read_value(&[&value[..], &[0]].concat()).is_none());
            let another_format = [&[FORMAT + 1], &value[1..]].concat();
            prop_assert!(read_value(&another_format).is_none());
        }
    }

    #[test]
    fn keys_stand_in_the_order_of_turns() {
        let turn = |due, number| Turn { due: Millis(due), number };
        let turns = [turn(1, 300), turn(2, 1), turn(2, 2), turn(256, 1), turn(u64::MAX, 1)];
        let entries = entries("/", "x");
        let keys = turns.map(|turn| entries.key(turn));
        assert!(keys.is_sorted());
        assert_eq!(keys.each_ref().map(|key| read_key(key)), turns.map(|t| Some(("/", "x", t))));
        assert_eq!(read_key(&keys[0][1..]), None);
        assert_eq!(read_key(&[&keys[0][..], &[0]].concat()), None);
    }

    #[test]
    fn keys_tell_names_apart() {
        let turn = Turn { due: Millis(1), number: 1 };
        let names = [("a", "bc"), ("ab", "c"), ("", "abc"), ("abc", "")];
        for (vhost, exchange) in names {
            let key = entries(vhost, exchange).key(turn);
            assert_eq!(read_key(&key), Some((vhost, exchange, turn)));
        }
    }
}
