//! The headers exchange: bindings whose arguments are compared with a message's headers.
//!
//! Owns the reading of `x-match` and the comparison of values (AMQP 0-9-1 section 3.1.3.4, with
//! RabbitMQ's refinements). Every binding is looked at for every message, as there is no key to
//! look up; the message's headers are sorted once for all of them.

use amq_protocol::types::{AMQPValue, FieldTable};
use rustc_hash::FxHashMap;

use super::binding::BindingId;
use super::direct::{Matches, Target};
use crate::codec::table::{self, Value};
use crate::codec::value::{erlang_binary, erlang_term, type_name};
use crate::error::{AmqpError, ReplyCode};

const X_MATCH: &str = "x-match";

/// How many of a binding's fields have to match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    All,
    Any,
}

/// A field that a binding asks for.
#[derive(Debug)]
struct Wanted {
    key: Box<[u8]>,
    /// Type letter and value; void asks for the key only.
    value: Box<[u8]>,
}

#[derive(Debug)]
struct HeadersBinding {
    id: BindingId,
    target: Target,
    rule: Rule,
    wanted: Box<[Wanted]>,
}

/// Where one header of the message under consideration starts and how long its key is.
#[derive(Clone, Copy, Debug)]
struct Field {
    entry: usize,
    key_len: usize,
}

impl Field {
    fn key(self, headers: &[u8]) -> &[u8] {
        &headers[self.entry + 1..][..self.key_len]
    }

    fn value(self, headers: &[u8]) -> Option<Value<'_>> {
        table::read_value(&headers[self.entry + 1 + self.key_len..]).ok().map(|read| read.0)
    }
}

/// The fields of one message, kept between messages so that a warm look allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct SortedFields {
    fields: Vec<Field>,
}

impl SortedFields {
    fn read(&mut self, headers: &[u8]) {
        self.fields.clear();
        let mut walk = table::entries(headers);
        loop {
            let entry = headers.len() - walk.rest().len();
            let Some(Ok((key, _))) = walk.next() else { break };
            self.fields.push(Field { entry, key_len: key.len() });
        }
        // Stable, so that the first of several equal keys is the one that counts.
        self.fields.sort_by_key(|field| field.key(headers));
    }

    fn find<'a>(&self, headers: &'a [u8], key: &[u8]) -> Option<Value<'a>> {
        let at = self.fields.partition_point(|field| field.key(headers) < key);
        let field = self.fields.get(at).filter(|field| field.key(headers) == key)?;
        field.value(headers)
    }
}

/// The bindings of a headers exchange.
#[derive(Debug, Default)]
pub(crate) struct HeadersIndex {
    bindings: Vec<HeadersBinding>,
    positions: FxHashMap<BindingId, usize>,
}

/// Checks a binding's `x-match`, as RabbitMQ does when it is made.
pub(crate) fn check_arguments(arguments: &FieldTable) -> Result<(), AmqpError> {
    let refuse = |text: String| Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
    let Some(value) = arguments.inner().get(X_MATCH) else { return Ok(()) };
    match value {
        AMQPValue::LongString(text) => match text.as_bytes() {
            b"all" | b"any" | b"all-with-x" | b"any-with-x" => Ok(()),
            other => refuse(format!(
                "Invalid x-match field value {}; expected all, any, all-with-x, or any-with-x",
                erlang_binary(other)
            )),
        },
        other => refuse(format!(
            "Invalid x-match field type {} (value {}); expected longstr",
            type_name(other),
            erlang_term(other)
        )),
    }
}

impl HeadersIndex {
    pub(crate) fn insert(&mut self, id: BindingId, target: Target, arguments: &FieldTable) {
        let kind = match arguments.inner().get(X_MATCH) {
            Some(AMQPValue::LongString(text)) => text.as_bytes(),
            _ => b"all",
        };
        let rule = if kind.starts_with(b"any") { Rule::Any } else { Rule::All };
        let with_x = kind.ends_with(b"-with-x");
        let encoded = table::encode(arguments);
        let mut wanted = Vec::new();
        let mut walk = table::entries(&encoded);
        loop {
            let before = walk.rest();
            let Some(Ok((key, _))) = walk.next() else { break };
            // Without "-with-x" such keys are the broker's, not the message's.
            if key == X_MATCH.as_bytes() || (!with_x && key.starts_with(b"x-")) {
                continue;
            }
            let value = &before[1 + key.len()..before.len() - walk.rest().len()];
            wanted.push(Wanted { key: key.into(), value: value.into() });
        }
        self.positions.insert(id, self.bindings.len());
        self.bindings.push(HeadersBinding { id, target, rule, wanted: wanted.into() });
    }

    pub(crate) fn remove(&mut self, id: BindingId) {
        let Some(at) = self.positions.remove(&id) else { return };
        self.bindings.swap_remove(at);
        if let Some(moved) = self.bindings.get(at) {
            self.positions.insert(moved.id, at);
        }
    }

    /// Collects the targets of all bindings that these headers (a table's contents) satisfy.
    pub(crate) fn find(&self, headers: &[u8], fields: &mut SortedFields, matches: &mut Matches) {
        if self.bindings.is_empty() {
            return;
        }
        fields.read(headers);
        for binding in &self.bindings {
            let is_met = |wanted: &Wanted| match fields.find(headers, &wanted.key) {
                Some(value) => is_satisfied(&wanted.value, &value),
                None => false,
            };
            // Without any field to ask for, "all" holds and "any" does not.
            let matched = match binding.rule {
                Rule::All => binding.wanted.iter().all(is_met),
                Rule::Any => binding.wanted.iter().any(is_met),
            };
            if matched {
                matches.push(binding.target);
            }
        }
    }
}

fn is_satisfied(wanted: &[u8], value: &Value<'_>) -> bool {
    match table::read_value(wanted) {
        Ok((Value::Void, _)) => true,
        Ok((wanted, _)) => is_equal(&wanted, value),
        Err(_) => false,
    }
}

/// Equality as RabbitMQ has it: numbers (timestamps too) by value and strings by bytes, whatever
/// their types; inside arrays and tables the types count as well.
fn is_equal(left: &Value<'_>, right: &Value<'_>) -> bool {
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
        _ => table::same(left, right),
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

#[cfg(test)]
mod tests {
    use amq_protocol::types::DecimalValue;

    use super::super::QueueId;
    use super::*;

    fn table_of<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
        let mut table = FieldTable::default();
        for (key, value) in entries {
            table.insert(key.into(), value);
        }
        table
    }

    fn text(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    fn is_match(arguments: &FieldTable, headers: &FieldTable) -> bool {
        let mut index = HeadersIndex::default();
        index.insert(BindingId(7), Target::Queue(QueueId(1)), arguments);
        let mut matches = Matches::default();
        index.find(&table::encode(headers), &mut SortedFields::default(), &mut matches);
        index.remove(BindingId(7));
        assert!(index.bindings.is_empty() && index.positions.is_empty());
        !matches.queues.is_empty()
    }

    #[test]
    fn values_compare_as_in_rabbitmq() {
        let decimal = AMQPValue::DecimalValue(DecimalValue { scale: 0, value: 1 });
        let one = |n: u8| match n {
            b'b' => AMQPValue::ShortShortInt(1),
            b'B' => AMQPValue::ShortShortUInt(1),
            b's' => AMQPValue::ShortInt(1),
            b'u' => AMQPValue::ShortUInt(1),
            b'I' => AMQPValue::LongInt(1),
            b'i' => AMQPValue::LongUInt(1),
            b'l' => AMQPValue::LongLongInt(1),
            b'f' => AMQPValue::Float(1.0),
            b'd' => AMQPValue::Double(1.0),
            b'T' => AMQPValue::Timestamp(1),
            b't' => AMQPValue::Boolean(true),
            b'D' => decimal.clone(),
            b'S' => text("1"),
            b'x' => AMQPValue::ByteArray(b"1"[..].into()),
            _ => AMQPValue::Void,
        };
        let all = b"bBsuIilfdTtDSxV";
        for &wanted in all {
            let expected: &[u8] = match wanted {
                b't' => b"t",
                b'D' => b"D",
                b'S' | b'x' => b"Sx",
                b'V' => all,
                _ => b"bBsuIilfdT",
            };
            for &given in all {
                let matched =
                    is_match(&table_of([("h", one(wanted))]), &table_of([("h", one(given))]));
                assert_eq!(matched, expected.contains(&given), "{wanted} {given}");
            }
        }
        let array = |value| table_of([("h", AMQPValue::FieldArray(vec![value].into()))]);
        assert!(is_match(&array(one(b'I')), &array(one(b'I'))));
        assert!(!is_match(&array(one(b'I')), &array(one(b'l'))));
        let near = table_of([("h", AMQPValue::LongLongInt((1 << 53) + 1))]);
        assert!(!is_match(&near, &table_of([("h", AMQPValue::Double((1_u64 << 53) as f64))])));
    }

    #[test]
    fn x_match_chooses_the_rule() {
        let one = || AMQPValue::LongInt(1);
        let two = || AMQPValue::LongInt(2);
        let none = table_of([]);
        let ab = table_of([("a", one()), ("b", one()), ("x-c", one())]);
        let bind = |kind: &str, a: AMQPValue, c: AMQPValue| {
            table_of([("x-match", text(kind)), ("a", a), ("x-c", c)])
        };
        assert!(is_match(&none, &none) && is_match(&none, &ab));
        assert!(is_match(&bind("all", one(), two()), &ab));
        assert!(!is_match(&bind("all", two(), one()), &ab));
        assert!(!is_match(&bind("all", one(), one()), &none));
        assert!(is_match(&bind("any", one(), two()), &ab));
        assert!(!is_match(&bind("any", two(), one()), &ab));
        assert!(!is_match(&bind("all-with-x", one(), two()), &ab));
        assert!(is_match(&bind("all-with-x", one(), one()), &ab));
        assert!(is_match(&bind("any-with-x", two(), one()), &ab));
        assert!(!is_match(&bind("any-with-x", two(), two()), &ab));
        let only = |kind: &str| table_of([("x-match", text(kind))]);
        assert!(is_match(&only("all"), &none) && is_match(&only("all-with-x"), &ab));
        assert!(!is_match(&only("any"), &ab));
        assert!(!is_match(&only("any-with-x"), &only("any-with-x")));
        assert!(is_match(&table_of([("x-match", text("all")), ("x-foo", one())]), &none));
    }

    #[test]
    fn malformed_headers_match_what_could_be_read() {
        let mut index = HeadersIndex::default();
        let target = Target::Queue(QueueId(1));
        index.insert(BindingId(1), target, &table_of([("a", AMQPValue::Void)]));
        index.insert(BindingId(2), target, &table_of([("b", AMQPValue::Void)]));
        let mut matches = Matches::default();
        index.find(b"\x01at\x01\x01bS\xff", &mut SortedFields::default(), &mut matches);
        assert_eq!(matches.len(), 1);
    }

    #[test]
    fn bad_x_match_is_refused_with_the_known_texts() {
        let refused = |value: AMQPValue| {
            check_arguments(&table_of([("x-match", value)])).unwrap_err().reply_text()
        };
        let value = |shown: &str| {
            format!(
                "PRECONDITION_FAILED - Invalid x-match field value {shown}; expected all, any, \
                 all-with-x, or any-with-x"
            )
        };
        let kind = |shown: &str| {
            format!("PRECONDITION_FAILED - Invalid x-match field type {shown}; expected longstr")
        };
        assert_eq!(refused(text("foo")), value("<<\"foo\">>"));
        assert_eq!(refused(text("\u{1}\u{2}")), value("<<1,2>>"));
        assert_eq!(refused(text("")), value("<<>>"));
        assert_eq!(refused(AMQPValue::LongInt(5)), kind("signedint (value 5)"));
        assert_eq!(refused(AMQPValue::Boolean(true)), kind("bool (value true)"));
        assert_eq!(refused(AMQPValue::Void), kind("void (value undefined)"));
        assert_eq!(refused(AMQPValue::Double(1.0)), kind("double (value 1.0)"));
        let table = AMQPValue::FieldTable(table_of([("a", AMQPValue::LongInt(1))]));
        assert_eq!(refused(table), kind("table (value [{<<\"a\">>,signedint,1}])"));
        let array = AMQPValue::FieldArray(vec![AMQPValue::LongInt(1), text("a")].into());
        assert_eq!(refused(array), kind("array (value [{signedint,1},{longstr,<<\"a\">>}])"));
        for kind in ["all", "any", "all-with-x", "any-with-x"] {
            assert_eq!(check_arguments(&table_of([("x-match", text(kind))])), Ok(()));
        }
    }
}
