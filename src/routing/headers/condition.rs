//! What a binding asks of one header: that it is there, or that it has a certain value.
//!
//! Owns conditions as bytes, and with them the equality of values: two are equal if and only if
//! their bytes are. Equality is RabbitMQ's: numbers (timestamps too) by value and strings by bytes,
//! whatever their types; inside arrays and tables the types count as well, the order of a table's
//! fields does not. What is not a number, malformed or nested too deeply equals nothing.

use std::iter::once;

use amq_protocol::types::FieldTable;

use super::X_MATCH;
use crate::codec::table::{self, DEPTH_MAX, Value};

/// Ends an array or a table: no value begins with it.
const END: u8 = 0;

/// The part of a condition that names the header, and is the condition that it is there: its name
/// as on the wire.
pub(super) fn name_of(condition: &[u8]) -> &[u8] {
    &condition[..1 + usize::from(condition[0])]
}

/// The condition that the header is there, and then the condition itself if it asks for more.
pub(super) fn parts(condition: &[u8]) -> impl Iterator<Item = &[u8]> {
    let name = name_of(condition);
    once(name).chain((name.len() < condition.len()).then_some(condition))
}

/// The conditions that a binding's arguments make, each for a header of its own; none for a value
/// that equals nothing.
pub(super) fn conditions(arguments: &FieldTable, with_x: bool) -> Vec<Option<Vec<u8>>> {
    let encoded = table::encode(arguments);
    let mut conditions = Vec::new();
    let mut walk = table::entries(&encoded);
    loop {
        let entry = walk.rest();
        let Some(Ok((key, value))) = walk.next() else { return conditions };
        // Without "-with-x" such keys are the broker's, not the message's.
        if key == X_MATCH.as_bytes() || (!with_x && key.starts_with(b"x-")) {
            continue;
        }
        let mut condition = name_of(entry).to_vec();
        let can_be_met = value == Value::Void || put_value(&mut condition, &value);
        conditions.push(can_be_met.then_some(condition));
    }
}

/// Makes the condition that a header is there to one that it has this value; false if it can have
/// none that equals it.
pub(super) fn put_value(out: &mut Vec<u8>, value: &Value<'_>) -> bool {
    match *value {
        Value::LongString(text) | Value::Bytes(text) => {
            out.push(b'S');
            out.extend_from_slice(text);
            true
        }
        Value::F32(n) => put_float(out, n.into()),
        Value::F64(n) => put_float(out, n),
        Value::Timestamp(n) => put_integer(out, n.into()),
        _ => match value.as_integer() {
            Some(n) => put_integer(out, n.into()),
            None => put_item(out, value, DEPTH_MAX),
        },
    }
}

fn put_integer(out: &mut Vec<u8>, n: i128) -> bool {
    out.push(b'l');
    out.extend_from_slice(&n.to_be_bytes());
    true
}

fn put_float(out: &mut Vec<u8>, n: f64) -> bool {
    // Only an integer comes back the same: other floats lose their fraction or are too large.
    if n as i128 as f64 == n {
        return put_integer(out, n as i128);
    }
    table::put_item(out, &Value::F64(n));
    !n.is_nan()
}

/// Appends a value with its type.
fn put_item(out: &mut Vec<u8>, value: &Value<'_>, depth_left: usize) -> bool {
    let is_whole = match *value {
        Value::Array(_) | Value::Table(_) if depth_left == 0 => return false,
        Value::Array(array) => {
            out.push(b'A');
            let is_put = |item| matches!(item, Ok(item) if put_item(out, &item, depth_left - 1));
            table::items(array).all(is_put)
        }
        Value::Table(fields) => {
            out.push(b'F');
            let Ok(mut fields) = table::entries(fields).collect::<Result<Vec<_>, _>>() else {
                return false;
            };
            fields.sort_by_key(|field| field.0);
            fields.iter().all(|(key, value)| {
                let is_put = put_item(out, value, depth_left - 1);
                table::put_item(out, &Value::LongString(key));
                is_put
            })
        }
        // Zero has two signs, and equals itself.
        Value::F32(n) => {
            table::put_item(out, &Value::F32(n + 0.0));
            return !n.is_nan();
        }
        Value::F64(n) => {
            table::put_item(out, &Value::F64(n + 0.0));
            return !n.is_nan();
        }
        _ => {
            table::put_item(out, value);
            return true;
        }
    };
    out.push(END);
    is_whole
}
