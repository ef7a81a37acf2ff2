//! What a dead letter says about its deaths: the headers `x-death`, `x-first-death-*` and
//! `x-last-death-*`.
//!
//! Owns their form and how repeated deaths are folded (RabbitMQ: `rabbit_dead_letter`, the
//! documentation of dead letter exchanges), and the rule that ends automatic cycles. It must not
//! know where a dead letter goes.
//!
//! What a client publishes under these names is taken as it is, as RabbitMQ does before 4.0, so
//! that applications which publish a message again keep its count. What is malformed is dropped.

use crate::codec::hot::split_address;
use crate::codec::properties::{self, EXPIRATION, Properties};
use crate::codec::table::{self, Value};
use crate::queue::Reason;

const DEATHS: &[u8] = b"x-death";

/// One death.
#[derive(Clone, Copy, Debug)]
pub(super) struct Death<'a> {
    /// The queue that the message died in.
    pub(super) queue: &'a str,
    pub(super) reason: Reason,
    /// Seconds since 1970.
    pub(super) time_s: u64,
    /// The dead letter gets a routing key of its own, and CC headers have no say any more.
    pub(super) has_key: bool,
}

/// The content header payload of a dead letter, from that of the message and from the address that
/// it was published to.
pub(super) fn header(old: &[u8], address: &[u8], death: &Death<'_>) -> Vec<u8> {
    let (exchange, key) = split_address(address);
    let properties = Properties::of_header(old);
    let expiration = properties.expiration();
    let headers = sound(properties.headers().unwrap_or_default());
    let reason = death.reason.name().as_bytes();
    let queue = death.queue.as_bytes();
    let entry = |count: i64| {
        let mut entry = Vec::with_capacity(160);
        table::put_entry(&mut entry, b"count", &Value::I64(count));
        table::put_entry(&mut entry, b"reason", &Value::LongString(reason));
        table::put_entry(&mut entry, b"queue", &Value::LongString(queue));
        table::put_entry(&mut entry, b"time", &Value::Timestamp(death.time_s));
        table::put_entry(&mut entry, b"exchange", &Value::LongString(exchange));
        table::put_entry(&mut entry, b"routing-keys", &Value::Array(&keys(key, headers)));
        if let Some(expiration) = expiration {
            table::put_entry(&mut entry, b"original-expiration", &Value::LongString(expiration));
        }
        entry
    };
    let mut deaths = Vec::with_capacity(256);
    let mut others = Vec::new();
    let known = table::find(headers, DEATHS);
    if let Some(Value::Array(array)) = known {
        for item in table::items(array).map_while(Result::ok) {
            let Value::Table(old) = item else { continue };
            let same = text(old, b"queue") == Some(queue) && text(old, b"reason") == Some(reason);
            if same && deaths.is_empty() {
                table::put_item(&mut deaths, &Value::Table(&counted(old)));
            } else if !same {
                table::put_item(&mut others, &item);
            }
        }
    }
    if deaths.is_empty() {
        table::put_item(&mut deaths, &Value::Table(&entry(1)));
    }
    deaths.extend_from_slice(&others);

    let is_first = known.is_none();
    let mut new = kept(headers, is_first, death.has_key);
    table::put_entry(&mut new, DEATHS, &Value::Array(&deaths));
    let about = [(&b"reason"[..], reason), (b"queue", queue), (b"exchange", exchange)];
    for (name, value) in about {
        if is_first {
            let name = [b"x-first-death-", name].concat();
            table::put_entry(&mut new, &name, &Value::LongString(value));
        }
        let name = [b"x-last-death-", name].concat();
        table::put_entry(&mut new, &name, &Value::LongString(value));
    }
    let changed = properties::with_headers(old, Some(&new));
    match expiration {
        // Or it would expire again at once where it goes.
        Some(_) => properties::with_value(&changed, EXPIRATION, None),
        None => changed,
    }
}

/// The entries of a table up to the first malformed one, behind which no reader would find what is
/// added here.
fn sound(table: &[u8]) -> &[u8] {
    let mut walk = table::entries(table);
    let mut rest = walk.rest();
    while let Some(Ok(_)) = walk.next() {
        rest = walk.rest();
    }
    &table[..table.len() - rest.len()]
}

/// The message's own headers.
fn kept(headers: &[u8], is_first: bool, has_key: bool) -> Vec<u8> {
    let mut dropped: Vec<&[u8]> =
        vec![DEATHS, b"x-last-death-reason", b"x-last-death-queue", b"x-last-death-exchange"];
    if is_first {
        dropped.extend([
            &b"x-first-death-reason"[..],
            b"x-first-death-queue",
            b"x-first-death-exchange",
        ]);
    }
    if has_key {
        dropped.push(b"CC");
    }
    if headers.is_empty() { Vec::with_capacity(512) } else { table::without(headers, &dropped) }
}

/// The routing keys that the message was published with, as the contents of an array.
fn keys(key: &[u8], headers: &[u8]) -> Vec<u8> {
    let mut keys = Vec::with_capacity(5 + key.len());
    table::put_item(&mut keys, &Value::LongString(key));
    for key in carbon_copies(headers) {
        table::put_item(&mut keys, &Value::LongString(key));
    }
    keys
}

/// The further routing keys of a message: its CC header.
pub(super) fn carbon_copies(headers: &[u8]) -> impl Iterator<Item = &[u8]> {
    let array = match table::find(headers, b"CC") {
        Some(Value::Array(array)) => array,
        _ => &[],
    };
    table::texts(array)
}

/// An entry of `x-death` with its count raised by one. The rest stays as it was at the first death
/// of its kind.
fn counted(entry: &[u8]) -> Vec<u8> {
    let count = table::find(entry, b"count").and_then(|value| value.as_integer()).unwrap_or(0);
    let mut new = Vec::with_capacity(entry.len() + 16);
    table::put_entry(&mut new, b"count", &Value::I64(count.saturating_add(1)));
    new.extend_from_slice(&table::without(entry, &[b"count"]));
    new
}

fn text<'a>(table: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    match table::find(table, key) {
        Some(Value::LongString(text)) => Some(text),
        _ => None,
    }
}

/// Whether a dead letter with these headers has been in `queue` and has come back to it without
/// anybody rejecting it on the way: it is dropped then, or it would go round for ever.
pub(super) fn is_cycle(headers: &[u8], queue: &str) -> bool {
    let Some(Value::Array(deaths)) = table::find(headers, DEATHS) else { return false };
    for item in table::items(deaths).map_while(Result::ok) {
        let Value::Table(death) = item else { continue };
        if text(death, b"reason") == Some(Reason::Rejected.name().as_bytes()) {
            return false;
        }
        if text(death, b"queue") == Some(queue.as_bytes()) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &[u8] = b"\0\x3c\0\0\0\0\0\0\0\0\0\x05\0\0";

    fn death(queue: &str, reason: Reason) -> Death<'_> {
        Death { queue, reason, time_s: 77, has_key: false }
    }

    fn headers(header: &[u8]) -> &[u8] {
        Properties::of_header(header).headers().expect("dead letters have headers")
    }

    fn deaths(header: &[u8]) -> Vec<(i64, String, String)> {
        let Some(Value::Array(array)) = table::find(headers(header), DEATHS) else {
            panic!("an array");
        };
        let show = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.expect("there")).into();
        let deaths = table::items(array).map(|item| {
            let Ok(Value::Table(entry)) = item else { panic!("a table") };
            let count = table::find(entry, b"count").and_then(|n| n.as_integer());
            (count.expect("a number"), show(text(entry, b"queue")), show(text(entry, b"reason")))
        });
        deaths.collect()
    }

    #[test]
    fn deaths_are_folded_newest_first() {
        let first = header(PLAIN, b"\x01x\x01k", &death("a", Reason::Rejected));
        let second = header(&first, b"\x00\x01d", &death("b", Reason::Expired));
        let third = header(&second, b"\x01x\x01k", &death("a", Reason::Rejected));
        let row = |n, queue: &str, reason: &str| (n, queue.to_owned(), reason.to_owned());
        assert_eq!(deaths(&first), [row(1, "a", "rejected")]);
        assert_eq!(deaths(&third), [row(2, "a", "rejected"), row(1, "b", "expired")]);
        let fourth = header(&third, b"\x01x\x01k", &death("a", Reason::MaxLength));
        assert_eq!(deaths(&fourth).len(), 3, "another reason is another entry");
        let headers = headers(&fourth);
        assert_eq!(text(headers, b"x-first-death-reason"), Some(&b"rejected"[..]));
        assert_eq!(text(headers, b"x-first-death-exchange"), Some(&b"x"[..]));
        assert_eq!(text(headers, b"x-last-death-reason"), Some(&b"maxlen"[..]));
    }

    #[test]
    fn an_expiration_moves_into_the_entry() {
        let old = properties::with_value(PLAIN, EXPIRATION, Some(b"\x0250"));
        let new = header(&old, b"\x00\x01q", &death("q", Reason::Expired));
        assert_eq!(Properties::of_header(&new).expiration(), None);
        let Some(Value::Array(array)) = table::find(headers(&new), DEATHS) else { panic!() };
        let Some(Ok(Value::Table(entry))) = table::items(array).next() else { panic!() };
        assert_eq!(text(entry, b"original-expiration"), Some(&b"50"[..]));
        assert_eq!(table::find(entry, b"time"), Some(Value::Timestamp(77)));
    }

    #[test]
    fn carbon_copies_go_with_a_key_of_its_own() {
        let mut table = Vec::new();
        let mut copies = Vec::new();
        table::put_item(&mut copies, &Value::LongString(b"c1"));
        table::put_item(&mut copies, &Value::I32(5));
        table::put_entry(&mut table, b"CC", &Value::Array(&copies));
        table::put_entry(&mut table, b"other", &Value::Bool(true));
        let old = properties::with_headers(PLAIN, Some(&table));
        let one = death("q", Reason::Rejected);
        let with = header(&old, b"\x00\x01q", &one);
        let without = header(&old, b"\x00\x01q", &Death { has_key: true, ..one });
        assert_eq!(carbon_copies(headers(&with)).collect::<Vec<_>>(), [b"c1"]);
        assert_eq!(carbon_copies(headers(&without)).count(), 0);
        assert_eq!(table::find(headers(&without), b"other"), Some(Value::Bool(true)));
    }

    #[test]
    fn a_cycle_without_a_rejection_ends() {
        let first = header(PLAIN, b"\x00\x01a", &death("a", Reason::Expired));
        let second = header(&first, b"\x00\x01b", &death("b", Reason::Expired));
        assert!(is_cycle(headers(&second), "a") && is_cycle(headers(&second), "b"));
        assert!(!is_cycle(headers(&second), "c"));
        let third = header(&second, b"\x00\x01c", &death("c", Reason::Rejected));
        assert!(!is_cycle(headers(&third), "a"), "somebody rejected it since");
    }

    #[test]
    fn malformed_deaths_do_no_harm() {
        let mut nonsense = Vec::new();
        table::put_item(&mut nonsense, &Value::I32(5));
        table::put_item(&mut nonsense, &Value::Table(b"\x05coun"));
        nonsense.push(b'?');
        for value in [Value::LongString(b"x"), Value::Array(&nonsense), Value::Array(b"F\0\0")] {
            let mut table = Vec::new();
            table::put_entry(&mut table, DEATHS, &value);
            let old = properties::with_headers(PLAIN, Some(&table));
            let new = header(&old, b"\x00\x01q", &death("q", Reason::Rejected));
            let found = deaths_of(&new);
            assert!(found >= 1, "{found}");
            assert!(!is_cycle(headers(&new), "q"));
        }
    }

    fn deaths_of(header: &[u8]) -> usize {
        match table::find(headers(header), DEATHS) {
            Some(Value::Array(array)) => table::items(array).filter(Result::is_ok).count(),
            _ => 0,
        }
    }
}
