//! Cases of the headers exchange, and its agreement with a walk over all bindings.

use std::collections::BTreeSet;

use amq_protocol::types::DecimalValue;
use proptest::prelude::*;

use super::super::QueueId;
use super::super::exchange::ExchangeSlot;
use super::*;
use crate::codec::table::{DEPTH_MAX, Value};
use reference::{Bindings, is_equal};

mod reference;

impl HeadersIndex {
    fn is_bare(&self) -> bool {
        self.unconditional.is_empty() && self.conditions.is_empty() && self.clauses.is_empty()
    }

    fn check_invariants(&self) {
        let mut listed = BTreeSet::new();
        for condition in self.conditions.numbers() {
            for (at, &number) in self.conditions.value(condition).iter().enumerate() {
                let clause = self.clauses.value(number);
                assert_eq!((clause.listed_under, clause.listed_at as usize), (condition, at));
                assert!(self.clauses.key(number).contains(&condition));
                assert!(!clause.targets.is_empty() && listed.insert(number));
            }
        }
        assert_eq!(listed, self.clauses.numbers().collect());
    }
}

fn found(index: &HeadersIndex, headers: &[u8]) -> Vec<Target> {
    let (mut met, mut matches) = (MetConditions::default(), Matches::default());
    index.find(headers, &mut met, &mut matches);
    let exchanges = matches.exchanges.into_iter().map(Target::Exchange);
    let mut targets: Vec<_> =
        matches.queues.into_iter().map(Target::Queue).chain(exchanges).collect();
    targets.sort_unstable();
    targets.dedup();
    targets
}

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
    let (mut index, target) = (HeadersIndex::default(), Target::Queue(QueueId(1)));
    index.insert(target, arguments);
    let found = found(&index, &table::encode(headers));
    index.remove(target, arguments);
    assert!(index.is_bare());
    found == [target]
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
            let matched = is_match(&table_of([("h", one(wanted))]), &table_of([("h", one(given))]));
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
    let (mut index, [a, b]) = (HeadersIndex::default(), [1, 2].map(|n| Target::Queue(QueueId(n))));
    index.insert(a, &table_of([("a", AMQPValue::Void)]));
    index.insert(b, &table_of([("b", AMQPValue::Void)]));
    assert_eq!(found(&index, b"\x01at\x01\x01bS\xff"), [a]);
    // An array that is cut off equals nothing, but its header is there.
    index.insert(b, &table_of([("a", AMQPValue::FieldArray(vec![AMQPValue::Void].into()))]));
    assert_eq!(found(&index, b"\x01aA\0\0\0\x01V"), [a, b]);
    assert_eq!(found(&index, b"\x01aA\0\0\0\x02VI"), [a]);
}

#[test]
fn nesting_is_bounded() {
    let nested = |depth| {
        (0..depth).fold(AMQPValue::Void, |value, level| match level % 2 {
            0 => AMQPValue::FieldArray(vec![value].into()),
            _ => AMQPValue::FieldTable(table_of([("k", value)])),
        })
    };
    for (depth, expected) in [(1, true), (DEPTH_MAX, true), (DEPTH_MAX + 1, false)] {
        let fields = table_of([("a", nested(depth))]);
        assert_eq!(is_match(&fields, &fields), expected, "{depth}");
    }
    // Deep enough to exhaust the stack of whatever went to its end.
    let mut deep = vec![b'V'];
    for _ in 0..25_000 {
        let len = u32::try_from(deep.len()).unwrap().to_be_bytes();
        deep = [b"A", &len[..], &deep].concat();
    }
    let mut index = HeadersIndex::default();
    index.insert(Target::Queue(QueueId(1)), &table_of([("a", nested(DEPTH_MAX))]));
    assert!(found(&index, &[b"\x01a", &deep[..]].concat()).is_empty());
}

#[test]
fn bindings_that_share_no_value_are_not_looked_at() {
    let mut index = HeadersIndex::default();
    let queue = |n| Target::Queue(QueueId(n));
    let arguments = |n: u64, kind: &str| {
        let n = text(&n.to_string());
        table_of([("x-match", text(kind)), ("a-kind", text("same")), ("site", n)])
    };
    for n in 0..1000 {
        index.insert(queue(n), &arguments(n, "all"));
    }
    let (mut met, mut matches) = (MetConditions::default(), Matches::default());
    index.find(&table::encode(&arguments(7, "all")), &mut met, &mut matches);
    assert_eq!(matches.queues, [QueueId(7)]);
    let lists = met.conditions.iter().map(|condition| index.conditions.value(*condition).len());
    assert!(lists.sum::<usize>() <= 2, "{met:?}");
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

/// Values of all types as on the wire, of which many are equal to others.
fn values() -> Vec<Vec<u8>> {
    let long = |letter: u8, contents: &[u8]| {
        let len = u32::try_from(contents.len()).unwrap().to_be_bytes();
        [&[letter], &len[..], contents].concat()
    };
    let number = |value: Value<'_>| {
        let mut out = Vec::new();
        table::put_item(&mut out, &value);
        out
    };
    let mut values = vec![
        number(Value::I8(1)),
        number(Value::U8(1)),
        number(Value::I16(1)),
        number(Value::U16(1)),
        number(Value::I32(1)),
        number(Value::U32(1)),
        number(Value::I64(1)),
        number(Value::Timestamp(1)),
        number(Value::F32(1.0)),
        number(Value::F64(1.0)),
        b"U\0\x01".to_vec(),
        number(Value::U8(0)),
        number(Value::I8(-1)),
        number(Value::I64(-1)),
        number(Value::U32(u32::MAX)),
        number(Value::Timestamp(u64::MAX)),
        number(Value::I64(1 << 53)),
        number(Value::I64((1 << 53) + 1)),
        number(Value::Bool(true)),
        b"t\x02".to_vec(),
        number(Value::Bool(false)),
        number(Value::Decimal { scale: 0, value: 1 }),
        number(Value::Decimal { scale: 1, value: 10 }),
        number(Value::Void),
    ];
    let floats = [0.0, -0.0, 1.5, -1.0, f64::NAN, f64::INFINITY, 9_007_199_254_740_992.0, 1e300];
    values.extend(floats.map(|float| number(Value::F64(float))));
    values.extend([-0.0, f32::NAN, 1.5].map(|float| number(Value::F32(float))));
    // Beyond all integers, and where the conversion to the widest type saturates.
    values.extend([64, 127, 128].map(|power| number(Value::F64(2_f64.powi(power)))));
    for text in [&b""[..], b"1", b"\0\x01", b"\xff"] {
        values.extend([long(b'S', text), long(b'x', text)]);
    }
    let field = |key: &[u8], value: &[u8]| [&[key.len() as u8], key, value].concat();
    let inner = values.clone();
    values.extend(inner.iter().map(|value| long(b'A', value)));
    values.extend(inner.iter().map(|value| long(b'F', &field(b"k", value))));
    let one = number(Value::U8(1));
    let two = number(Value::Void);
    let pairs = [field(b"k", &one), field(b"j", &two), field(b"k", &two), field(b"", &one)];
    for left in &pairs {
        values.extend(pairs.iter().map(|right| long(b'F', &[&left[..], right].concat())));
    }
    let arrays = [long(b'A', b""), long(b'A', &two), long(b'F', b""), long(b'S', b"A")];
    for left in &arrays {
        values.extend(arrays.iter().map(|right| long(b'A', &[&left[..], right].concat())));
    }
    // Cut off within, or of a type that there is not.
    values.extend([
        long(b'A', b"VI\0"),
        long(b'A', b"Z"),
        long(b'F', b"\x01k"),
        long(b'F', b"\x05k"),
    ]);
    values
}

#[test]
fn values_are_equal_if_their_conditions_are() {
    let values = values();
    let read = |bytes| table::read_value(bytes).unwrap().0;
    let condition_of = |value| {
        let mut condition = Vec::new();
        put_value(&mut condition, &read(value)).then_some(condition)
    };
    let conditions: Vec<_> = values.iter().map(|value| condition_of(value)).collect();
    for (left, of_left) in values.iter().zip(&conditions) {
        for (right, of_right) in values.iter().zip(&conditions) {
            let expected = is_equal(&read(left), &read(right));
            let equal = of_left.is_some() && of_left == of_right;
            assert_eq!(equal, expected, "{left:?} {right:?}");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Bind(Target, FieldTable),
    /// Takes back one of the bindings that are there.
    Unbind(prop::sample::Index),
    Publish(Vec<u8>),
}

const NAMES: [&str; 6] = ["a", "b", "c", "", "x-a", "x-match"];

/// Few values mostly, so that they meet; sometimes any.
fn arb_value() -> impl Strategy<Value = Vec<u8>> {
    let values = values();
    let few = vec![values[0].clone(), values[6].clone(), values[9].clone(), b"V".to_vec()];
    prop_oneof![3 => prop::sample::select(few), 1 => prop::sample::select(values)]
}

fn field((name, value): &(&str, Vec<u8>)) -> Vec<u8> {
    [&[name.len() as u8], name.as_bytes(), value].concat()
}

fn arb_arguments() -> impl Strategy<Value = FieldTable> {
    let mode = prop::sample::select(vec!["", "all", "any", "all-with-x", "any-with-x"]);
    let fields = prop::collection::btree_map(prop::sample::select(&NAMES[..5]), arb_value(), 0..4);
    (mode, fields).prop_map(|(mode, fields)| {
        let fields = fields.into_iter().filter(|(_, value)| {
            // What is malformed within cannot be an argument.
            table::check(&[b"\0", &value[..]].concat(), DEPTH_MAX).is_ok()
        });
        let encoded: Vec<u8> = fields.flat_map(|entry| field(&entry)).collect();
        let mut arguments = table::decode(&encoded).unwrap();
        if !mode.is_empty() {
            arguments.insert(X_MATCH.into(), text(mode));
        }
        arguments
    })
}

fn arb_step() -> impl Strategy<Value = Step> {
    let target = prop_oneof![
        (0..4_u64).prop_map(|n| Target::Queue(QueueId(n))),
        (0..2_u32).prop_map(|n| Target::Exchange(ExchangeSlot(n))),
    ];
    let headers = prop::collection::vec((prop::sample::select(&NAMES[..]), arb_value()), 0..5);
    let cut = prop_oneof![4 => Just(0_usize), 1 => 1..4_usize];
    let noise = prop_oneof![
        1 => any::<u8>(),
        4 => prop::sample::select(&b"\0\0\0\x01\x01\x05abcxtIdSAFV"[..]),
    ];
    prop_oneof![
        1 => prop::collection::vec(noise, 0..40).prop_map(Step::Publish),
        3 => (target, arb_arguments()).prop_map(|(target, table)| Step::Bind(target, table)),
        2 => any::<prop::sample::Index>().prop_map(Step::Unbind),
        3 => (headers, cut).prop_map(|(headers, cut)| {
            let mut bytes: Vec<u8> = headers.iter().flat_map(field).collect();
            bytes.truncate(bytes.len().saturating_sub(cut));
            Step::Publish(bytes)
        }),
    ]
}

proptest! {
    #[test]
    fn index_agrees_with_a_walk(steps in prop::collection::vec(arb_step(), 1..60)) {
        let (mut index, mut walk) = (HeadersIndex::default(), Bindings::default());
        for step in steps {
            match step {
                Step::Bind(target, arguments) => {
                    index.insert(target, &arguments);
                    walk.0.push((target, arguments));
                }
                Step::Unbind(_) if walk.0.is_empty() => {}
                Step::Unbind(at) => {
                    let (target, arguments) = walk.0.swap_remove(at.index(walk.0.len()));
                    index.remove(target, &arguments);
                }
                Step::Publish(headers) => {
                    prop_assert_eq!(found(&index, &headers), walk.find(&headers));
                }
            }
            index.check_invariants();
        }
        for (target, arguments) in walk.0 {
            index.remove(target, &arguments);
        }
        prop_assert!(index.is_bare());
    }
}
