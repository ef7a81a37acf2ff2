//! Messages as they stand on the wire.
//!
//! Owns the bytes of publishes. It must not know who sends them.

use leveret::codec::encode::{put_content, put_publish};
use leveret::codec::method::{AMQPProperties, header_payload};

/// The largest frame that is negotiated.
pub const FRAME_MAX: u32 = 131_072;

/// The class `basic`.
const BASIC: u16 = 60;

/// The payload of a content header without properties.
pub fn header(body_size: usize) -> Vec<u8> {
    header_payload(BASIC, body_size as u64, &AMQPProperties::default())
}

/// Exchange and routing key as two short strings.
pub fn address(exchange: &str, routing_key: &str) -> Vec<u8> {
    let short = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    [short(exchange), short(routing_key)].concat()
}

/// Publishes on channel 1, with the routing keys in turn.
pub fn publishes(exchange: &str, keys: &[String], body_size: usize, count: usize) -> Vec<u8> {
    let (header, body, mut out) = (header(body_size), vec![b'.'; body_size], Vec::new());
    for key in keys.iter().cycle().take(count) {
        put_publish(&mut out, 1, exchange.as_bytes(), key.as_bytes(), false);
        put_content(&mut out, 1, FRAME_MAX, &header, &body);
    }
    out
}
