//! What the index of a headers exchange must agree with: a walk over all bindings that compares
//! value by value.

use amq_protocol::types::{AMQPValue, FieldTable};

use super::super::{Target, X_MATCH};
use crate::codec::table::{self, DEPTH_MAX, Entry, Value};

/// Bindings, each as often as it was inserted.
#[derive(Debug, Default)]
pub(super) struct Bindings(pub(super) Vec<(Target, FieldTable)>);

impl Bindings {
    /// The targets of all bindings that these headers satisfy, sorted, each once.
    pub(super) fn find(&self, headers: &[u8]) -> Vec<Target> {
        let satisfied = self.0.iter().filter(|(_, arguments)| is_satisfied(arguments, headers));
        let mut targets: Vec<_> = satisfied.map(|(target, _)| *target).collect();
        targets.sort_unstable();
        targets.dedup();
        targets
    }
}

fn is_satisfied(arguments: &FieldTable, headers: &[u8]) -> bool {
    let kind = match arguments.inner().get(X_MATCH) {
        Some(AMQPValue::LongString(kind)) => kind.as_bytes(),
        _ => b"all",
    };
    let with_x = matches!(kind, b"all-with-x" | b"any-with-x");
    let encoded = table::encode(arguments);
    let mut met = table::entries(&encoded)
        .map(|entry| entry.expect("just encoded"))
        .filter(|(key, _)| *key != X_MATCH.as_bytes() && (with_x || !key.starts_with(b"x-")))
        .map(|(key, wanted)| match (table::find(headers, key), wanted) {
            (None, _) => false,
            (Some(_), Value::Void) => true,
            (Some(value), wanted) => is_equal(&wanted, &value),
        });
    match kind {
        b"any" | b"any-with-x" => met.any(|is_met| is_met),
        _ => met.all(|is_met| is_met),
    }
}

/// Equality as RabbitMQ has it: numbers (timestamps too) by value and strings by bytes, whatever
/// their types; inside arrays and tables the types count as well.
pub(super) fn is_equal(left: &Value<'_>, right: &Value<'_>) -> bool {
    match (number(left), number(right)) {
        (Some(left), Some(right)) => return left.equals(right),
        (None, None) => {}
        _ => return false,
    }
    match (left, right) {
        (
            Value::LongString(left) | Value::Bytes(left),
            Value::LongString(right) | Value::Bytes(right),
        ) => left == right,
        _ => is_same(left, right, DEPTH_MAX),
    }
}

#[derive(Clone, Copy)]
enum Number {
    Integer(i128),
    Float(f64),
}

impl Number {
    fn equals(self, other: Self) -> bool {
        match (self, other) {
            (Self::Integer(left), Self::Integer(right)) => left == right,
            (Self::Float(left), Self::Float(right)) => left == right,
            (Self::Integer(integer), Self::Float(float))
            | (Self::Float(float), Self::Integer(integer)) => {
                // Both ways, or integers beyond 2^53 would equal their neighbours.
                integer as f64 == float && float as i128 == integer
            }
        }
    }
}

fn number(value: &Value<'_>) -> Option<Number> {
    match *value {
        Value::Timestamp(n) => Some(Number::Integer(n.into())),
        Value::F32(n) => Some(Number::Float(n.into())),
        Value::F64(n) => Some(Number::Float(n)),
        _ => value.as_integer().map(|n| Number::Integer(n.into())),
    }
}

/// Whether two values are the same, of the same type, whatever the order of nested tables.
/// Values nested deeper than [`DEPTH_MAX`], or malformed ones, equal nothing.
fn is_same(left: &Value<'_>, right: &Value<'_>, depth_left: usize) -> bool {
    match (left, right) {
        (Value::Table(left), Value::Table(right)) => {
            depth_left > 0 && are_same_tables(left, right, depth_left - 1)
        }
        (Value::Array(left), Value::Array(right)) => {
            depth_left > 0 && are_same_arrays(left, right, depth_left - 1)
        }
        _ => left == right,
    }
}

fn are_same_tables(left: &[u8], right: &[u8], depth_left: usize) -> bool {
    let (Some(left), Some(right)) = (sorted_entries(left), sorted_entries(right)) else {
        return false;
    };
    left.len() == right.len()
        && left.iter().zip(&right).all(|(a, b)| a.0 == b.0 && is_same(&a.1, &b.1, depth_left))
}

fn are_same_arrays(left: &[u8], right: &[u8], depth_left: usize) -> bool {
    let (mut left, mut right) = (table::items(left), table::items(right));
    loop {
        match (left.next(), right.next()) {
            (None, None) => return true,
            (Some(Ok(a)), Some(Ok(b))) if is_same(&a, &b, depth_left) => {}
            _ => return false,
        }
    }
}

fn sorted_entries(table: &[u8]) -> Option<Vec<Entry<'_>>> {
    let mut all = table::entries(table).collect::<Result<Vec<_>, _>>().ok()?;
    all.sort_by_key(|entry| entry.0);
    Some(all)
}
