//! Field tables, read in place.
//!
//! Owns the walk over the bytes of a table (its contents, without the four bytes of its length):
//! entries, single keys, a check of the whole, a copy without some keys, and the encoding of
//! decoded arguments. Tables come from the network: nothing here panics, recurses deeper than
//! [`DEPTH_MAX`] or trusts a length. It must not know which keys mean something.

use std::borrow::Cow;

use amq_protocol::types::parsing::parse_field_table;
use amq_protocol::types::{AMQPValue, FieldTable};

/// How deep tables and arrays may nest. A frame of 128 KiB could nest more than 20,000 of them,
/// which would exhaust the stack of whatever walks or decodes them by recursion.
pub const DEPTH_MAX: usize = 32;

/// Why a table could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// A key or value goes beyond the end of its table or array.
    #[error("a field is longer than its table")]
    Truncated,
    /// A type that neither the specification nor RabbitMQ knows.
    #[error("unknown field type {0}")]
    UnknownType(u8),
    /// Tables or arrays nest deeper than is allowed.
    #[error("field tables are nested too deeply")]
    TooDeep,
}

/// One field value, borrowed from the bytes of its table. The letters are those of RabbitMQ,
/// which differ from the specification's (section 4.2.1) for the integers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// `t`.
    Bool(bool),
    /// `b`.
    I8(i8),
    /// `B`.
    U8(u8),
    /// `s`, and `U` as the specification has it.
    I16(i16),
    /// `u`.
    U16(u16),
    /// `I`.
    I32(i32),
    /// `i`.
    U32(u32),
    /// `l`, and `L` as the specification has it; signed, as in RabbitMQ.
    I64(i64),
    /// `f`.
    F32(f32),
    /// `d`.
    F64(f64),
    /// `D`: `value` divided by ten to the power of `scale`.
    Decimal {
        /// How many of the digits are decimals.
        scale: u8,
        /// The digits.
        value: u32,
    },
    /// `S`: a long string, of any bytes.
    LongString(&'a [u8]),
    /// `A`: the contents of an array, to be read with [`items`].
    Array(&'a [u8]),
    /// `T`: seconds since 1970.
    Timestamp(u64),
    /// `F`: the contents of a table, to be read with [`entries`].
    Table(&'a [u8]),
    /// `V`: no value.
    Void,
    /// `x`: bytes.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The text of a string value, if it is one and is UTF-8.
    pub fn as_str(&self) -> Option<&'a str> {
        match self {
            Self::LongString(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The value of any of the integer types.
    pub fn as_integer(&self) -> Option<i64> {
        match *self {
            Self::I8(n) => Some(n.into()),
            Self::U8(n) => Some(n.into()),
            Self::I16(n) => Some(n.into()),
            Self::U16(n) => Some(n.into()),
            Self::I32(n) => Some(n.into()),
            Self::U32(n) => Some(n.into()),
            Self::I64(n) => Some(n),
            _ => None,
        }
    }

    /// Bytes that are the same for equal values: integers of all types are compared by their value
    /// (clients choose the type by size), everything else also by its type.
    pub fn identity(&self) -> Cow<'a, [u8]> {
        if let Self::LongString(text) = *self {
            return Cow::Borrowed(text);
        }
        // Texts that begin with a zero byte and a letter are not worth telling apart.
        let tagged = |letter: u8, bytes: &[u8]| Cow::Owned([&[0, letter], bytes].concat());
        match *self {
            Self::F32(n) => tagged(b'd', &f64::from(n).to_be_bytes()),
            Self::F64(n) => tagged(b'd', &n.to_be_bytes()),
            Self::Bool(flag) => tagged(b't', &[u8::from(flag)]),
            Self::Decimal { scale, value } => {
                tagged(b'D', &[&[scale][..], &value.to_be_bytes()].concat())
            }
            Self::Timestamp(n) => tagged(b'T', &n.to_be_bytes()),
            Self::Array(bytes) => tagged(b'A', bytes),
            Self::Table(bytes) => tagged(b'F', bytes),
            Self::Bytes(bytes) => tagged(b'x', bytes),
            _ => match self.as_integer() {
                Some(n) => tagged(b'l', &n.to_be_bytes()),
                None => tagged(b'V', &[]),
            },
        }
    }

    /// RabbitMQ's name of the type, as it stands in error texts.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Bool(_) => "bool",
            Self::I8(_) => "byte",
            Self::U8(_) => "unsignedbyte",
            Self::I16(_) => "short",
            Self::U16(_) => "unsignedshort",
            Self::I32(_) => "signedint",
            Self::U32(_) => "unsignedint",
            Self::I64(_) => "long",
            Self::F32(_) => "float",
            Self::F64(_) => "double",
            Self::Decimal { .. } => "decimal",
            Self::LongString(_) => "longstr",
            Self::Array(_) => "array",
            Self::Timestamp(_) => "timestamp",
            Self::Table(_) => "table",
            Self::Void => "void",
            Self::Bytes(_) => "binary",
        }
    }
}

/// RabbitMQ's name of a decoded value's type, as [`Value::type_name`] has it.
pub fn type_name(value: &AMQPValue) -> &'static str {
    match value {
        AMQPValue::Boolean(_) => "bool",
        AMQPValue::ShortShortInt(_) => "byte",
        AMQPValue::ShortShortUInt(_) => "unsignedbyte",
        AMQPValue::ShortInt(_) => "short",
        AMQPValue::ShortUInt(_) => "unsignedshort",
        AMQPValue::LongInt(_) => "signedint",
        AMQPValue::LongUInt(_) => "unsignedint",
        AMQPValue::LongLongInt(_) => "long",
        AMQPValue::Float(_) => "float",
        AMQPValue::Double(_) => "double",
        AMQPValue::DecimalValue(_) => "decimal",
        AMQPValue::ShortString(_) | AMQPValue::LongString(_) => "longstr",
        AMQPValue::FieldArray(_) => "array",
        AMQPValue::Timestamp(_) => "timestamp",
        AMQPValue::FieldTable(_) => "table",
        AMQPValue::ByteArray(_) => "binary",
        AMQPValue::Void => "void",
    }
}

/// A key with its value.
pub type Entry<'a> = (&'a [u8], Value<'a>);

fn split_exact(bytes: &[u8], len: usize) -> Result<(&[u8], &[u8]), TableError> {
    bytes.split_at_checked(len).ok_or(TableError::Truncated)
}

fn split_array<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), TableError> {
    let (head, rest) = bytes.split_first_chunk::<N>().ok_or(TableError::Truncated)?;
    Ok((*head, rest))
}

fn split_long(bytes: &[u8]) -> Result<(&[u8], &[u8]), TableError> {
    let (len, rest) = split_array::<4>(bytes)?;
    let len = usize::try_from(u32::from_be_bytes(len)).map_err(|_| TableError::Truncated)?;
    split_exact(rest, len)
}

/// Reads a short string; returns it with what follows.
fn read_key(bytes: &[u8]) -> Result<(&[u8], &[u8]), TableError> {
    let (&len, rest) = bytes.split_first().ok_or(TableError::Truncated)?;
    split_exact(rest, usize::from(len))
}

/// Reads the value, type letter first, at the start of `bytes`; returns it with what follows.
pub fn read_value(bytes: &[u8]) -> Result<(Value<'_>, &[u8]), TableError> {
    macro_rules! number {
        ($rest:expr, $variant:expr, $type:ty) => {{
            let (raw, rest) = split_array::<{ size_of::<$type>() }>($rest)?;
            ($variant(<$type>::from_be_bytes(raw)), rest)
        }};
    }
    let (&letter, rest) = bytes.split_first().ok_or(TableError::Truncated)?;
    Ok(match letter {
        b't' => {
            let ([byte], rest) = split_array::<1>(rest)?;
            (Value::Bool(byte != 0), rest)
        }
        b'b' => number!(rest, Value::I8, i8),
        b'B' => number!(rest, Value::U8, u8),
        b's' | b'U' => number!(rest, Value::I16, i16),
        b'u' => number!(rest, Value::U16, u16),
        b'I' => number!(rest, Value::I32, i32),
        b'i' => number!(rest, Value::U32, u32),
        b'l' | b'L' => number!(rest, Value::I64, i64),
        b'f' => number!(rest, Value::F32, f32),
        b'd' => number!(rest, Value::F64, f64),
        b'D' => {
            let ([scale], rest) = split_array::<1>(rest)?;
            let (value, rest) = split_array::<4>(rest)?;
            (Value::Decimal { scale, value: u32::from_be_bytes(value) }, rest)
        }
        b'S' => split_long(rest).map(|(bytes, rest)| (Value::LongString(bytes), rest))?,
        b'A' => split_long(rest).map(|(bytes, rest)| (Value::Array(bytes), rest))?,
        b'T' => number!(rest, Value::Timestamp, u64),
        b'F' => split_long(rest).map(|(bytes, rest)| (Value::Table(bytes), rest))?,
        b'V' => (Value::Void, rest),
        b'x' => split_long(rest).map(|(bytes, rest)| (Value::Bytes(bytes), rest))?,
        other => return Err(TableError::UnknownType(other)),
    })
}

/// The entries of a table in their order on the wire; ends after the first error.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
}

impl<'a> Entries<'a> {
    /// What has not been read yet: its start is where the next entry starts.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn read(&mut self) -> Result<Entry<'a>, TableError> {
        let (key, rest) = read_key(self.rest)?;
        let (value, rest) = read_value(rest)?;
        self.rest = rest;
        Ok((key, value))
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, TableError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let entry = self.read();
        if entry.is_err() {
            self.rest = &[];
        }
        Some(entry)
    }
}

/// Walks the entries of a table's contents.
pub fn entries(table: &[u8]) -> Entries<'_> {
    Entries { rest: table }
}

/// The values of an array in their order on the wire; ends after the first error.
#[derive(Clone, Debug)]
pub struct Items<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<Value<'a>, TableError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let (item, rest) = match read_value(self.rest) {
            Ok((value, rest)) => (Ok(value), rest),
            Err(error) => (Err(error), &[][..]),
        };
        self.rest = rest;
        Some(item)
    }
}

/// Walks the values of an array's contents.
pub fn items(array: &[u8]) -> Items<'_> {
    Items { rest: array }
}

/// The texts in an array's contents; values of other types are passed over.
pub fn texts(array: &[u8]) -> impl Iterator<Item = &[u8]> {
    items(array).map_while(Result::ok).filter_map(|item| match item {
        Value::LongString(text) => Some(text),
        _ => None,
    })
}

/// The value of the first entry with this key. Entries after a malformed one are not seen:
/// content is checked once, when it arrives.
pub fn find<'a>(table: &'a [u8], key: &[u8]) -> Option<Value<'a>> {
    entries(table).map_while(Result::ok).find(|entry| entry.0 == key).map(|entry| entry.1)
}

/// Checks that a whole table can be read and that it nests at most `depth_max` deep, the table
/// itself not counted; `depth_max` is taken as [`DEPTH_MAX`] if larger, which bounds the stack.
pub fn check(table: &[u8], depth_max: usize) -> Result<(), TableError> {
    let depth_left = depth_max.min(DEPTH_MAX);
    entries(table).try_for_each(|entry| check_value(&entry?.1, depth_left))
}

fn check_value(value: &Value<'_>, depth_left: usize) -> Result<(), TableError> {
    match value {
        Value::Table(_) | Value::Array(_) if depth_left == 0 => Err(TableError::TooDeep),
        Value::Table(table) => {
            entries(table).try_for_each(|entry| check_value(&entry?.1, depth_left - 1))
        }
        Value::Array(array) => {
            items(array).try_for_each(|item| check_value(&item?, depth_left - 1))
        }
        _ => Ok(()),
    }
}

/// A copy of a table without the entries of these keys. From a malformed entry on, the rest is
/// copied as it is.
pub fn without(table: &[u8], keys: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(table.len());
    let mut walk = entries(table);
    loop {
        let before = walk.rest();
        match walk.next() {
            Some(Ok((key, _))) if keys.contains(&key) => {}
            Some(Ok(_)) => out.extend_from_slice(&before[..before.len() - walk.rest().len()]),
            Some(Err(_)) => {
                out.extend_from_slice(before);
                return out;
            }
            None => return out,
        }
    }
}

/// Appends an entry with this key, of at most 255 bytes.
pub fn put_entry(out: &mut Vec<u8>, key: &[u8], value: &Value<'_>) {
    out.push(u8::try_from(key.len()).expect("a short string has at most 255 bytes"));
    out.extend_from_slice(key);
    put_item(out, value);
}

/// Appends a value with its type letter, as it stands in an array.
pub fn put_item(out: &mut Vec<u8>, value: &Value<'_>) {
    macro_rules! number {
        ($letter:expr, $number:expr) => {{
            out.push($letter);
            out.extend_from_slice(&$number.to_be_bytes());
        }};
    }
    macro_rules! long {
        ($letter:expr, $bytes:expr) => {
            put_long($letter, out, |out| out.extend_from_slice($bytes))
        };
    }
    match value {
        Value::Bool(flag) => out.extend_from_slice(&[b't', u8::from(*flag)]),
        Value::I8(n) => number!(b'b', n),
        Value::U8(n) => number!(b'B', n),
        Value::I16(n) => number!(b's', n),
        Value::U16(n) => number!(b'u', n),
        Value::I32(n) => number!(b'I', n),
        Value::U32(n) => number!(b'i', n),
        Value::I64(n) => number!(b'l', n),
        Value::F32(n) => number!(b'f', n),
        Value::F64(n) => number!(b'd', n),
        Value::Decimal { scale, value } => {
            out.extend_from_slice(&[b'D', *scale]);
            out.extend_from_slice(&value.to_be_bytes());
        }
        Value::LongString(bytes) => long!(b'S', bytes),
        Value::Array(bytes) => long!(b'A', bytes),
        Value::Timestamp(n) => number!(b'T', n),
        Value::Table(bytes) => long!(b'F', bytes),
        Value::Void => out.push(b'V'),
        Value::Bytes(bytes) => long!(b'x', bytes),
    }
}

/// The contents of a decoded table as they stand on the wire, in the order of its keys: equal
/// arguments have equal encodings.
pub fn encode(table: &FieldTable) -> Vec<u8> {
    let mut out = Vec::new();
    put_entries(table, &mut out);
    out
}

/// What [`encode`] has written.
///
/// # Errors
/// When the bytes are not the contents of a table, or nest too deeply.
pub fn decode(contents: &[u8]) -> Result<FieldTable, TableError> {
    check(contents, DEPTH_MAX)?;
    let len = u32::try_from(contents.len()).map_err(|_| TableError::Truncated)?;
    match parse_field_table(&[&len.to_be_bytes(), contents].concat()[..]) {
        Ok(([], table)) => Ok(table),
        _ => Err(TableError::Truncated),
    }
}

fn put_entries(table: &FieldTable, out: &mut Vec<u8>) {
    for (key, value) in table {
        let key = key.as_str().as_bytes();
        let len = u8::try_from(key.len()).expect("a short string has at most 255 bytes");
        out.push(len);
        out.extend_from_slice(key);
        put_value(value, out);
    }
}

fn put_value(value: &AMQPValue, out: &mut Vec<u8>) {
    macro_rules! number {
        ($letter:expr, $number:expr) => {{
            out.push($letter);
            out.extend_from_slice(&$number.to_be_bytes());
        }};
    }
    match value {
        AMQPValue::Boolean(flag) => out.extend_from_slice(&[b't', u8::from(*flag)]),
        AMQPValue::ShortShortInt(n) => number!(b'b', n),
        AMQPValue::ShortShortUInt(n) => number!(b'B', n),
        AMQPValue::ShortInt(n) => number!(b's', n),
        AMQPValue::ShortUInt(n) => number!(b'u', n),
        AMQPValue::LongInt(n) => number!(b'I', n),
        AMQPValue::LongUInt(n) => number!(b'i', n),
        AMQPValue::LongLongInt(n) => number!(b'l', n),
        AMQPValue::Float(n) => number!(b'f', n),
        AMQPValue::Double(n) => number!(b'd', n),
        AMQPValue::DecimalValue(decimal) => {
            out.extend_from_slice(&[b'D', decimal.scale]);
            out.extend_from_slice(&decimal.value.to_be_bytes());
        }
        // Short strings have no letter of their own in RabbitMQ.
        AMQPValue::ShortString(text) => {
            put_long(b'S', out, |out| out.extend_from_slice(text.as_str().as_bytes()));
        }
        AMQPValue::LongString(text) => {
            put_long(b'S', out, |out| out.extend_from_slice(text.as_bytes()));
        }
        AMQPValue::FieldArray(array) => put_long(b'A', out, |out| {
            array.as_slice().iter().for_each(|item| put_value(item, out));
        }),
        AMQPValue::Timestamp(n) => number!(b'T', n),
        AMQPValue::FieldTable(table) => put_long(b'F', out, |out| put_entries(table, out)),
        AMQPValue::ByteArray(bytes) => {
            put_long(b'x', out, |out| out.extend_from_slice(bytes.as_slice()));
        }
        AMQPValue::Void => out.push(b'V'),
    }
}

/// Writes a value with a length of four bytes before it, once the value is written.
fn put_long(letter: u8, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&[letter, 0, 0, 0, 0]);
    let start = out.len();
    write(out);
    let len = u32::try_from(out.len() - start).expect("decoded arguments fit in one frame");
    out[start - 4..start].copy_from_slice(&len.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use amq_protocol::types::{DecimalValue, FieldArray};
    use proptest::prelude::*;

    use super::*;

    fn arb_value() -> impl Strategy<Value = AMQPValue> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(AMQPValue::Boolean),
            any::<i8>().prop_map(AMQPValue::ShortShortInt),
            any::<u8>().prop_map(AMQPValue::ShortShortUInt),
            any::<i16>().prop_map(AMQPValue::ShortInt),
            any::<u16>().prop_map(AMQPValue::ShortUInt),
            any::<i32>().prop_map(AMQPValue::LongInt),
            any::<u32>().prop_map(AMQPValue::LongUInt),
            any::<i64>().prop_map(AMQPValue::LongLongInt),
            any::<i32>().prop_map(|n| AMQPValue::Float(n as f32)),
            any::<i64>().prop_map(|n| AMQPValue::Double(n as f64)),
            (any::<u8>(), any::<u32>())
                .prop_map(|(scale, value)| AMQPValue::DecimalValue(DecimalValue { scale, value })),
            "[a-c]{0,3}".prop_map(|text| AMQPValue::LongString(text.into())),
            any::<u64>().prop_map(AMQPValue::Timestamp),
            proptest::collection::vec(any::<u8>(), 0..4)
                .prop_map(|bytes| AMQPValue::ByteArray(bytes.into())),
            Just(AMQPValue::Void),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4)
                    .prop_map(|items| AMQPValue::FieldArray(items.into())),
                arb_table_of(inner).prop_map(AMQPValue::FieldTable),
            ]
        })
    }

    fn arb_table_of(
        value: impl Strategy<Value = AMQPValue> + 'static,
    ) -> impl Strategy<Value = FieldTable> {
        proptest::collection::btree_map("[a-e]{0,2}", value, 0..5).prop_map(|map| {
            let mut table = FieldTable::default();
            for (key, value) in map {
                table.insert(key.into(), value);
            }
            table
        })
    }

    proptest! {
        #[test]
        fn encoding_agrees_with_amq_protocol(table in arb_table_of(arb_value())) {
            let bytes = encode(&table);
            prop_assert_eq!(check(&bytes, DEPTH_MAX), Ok(()));
            prop_assert_eq!(entries(&bytes).count(), table.inner().len());
            prop_assert_eq!(decode(&bytes), Ok(table));
        }

        #[test]
        fn truncated_tables_are_refused_or_end_at_an_entry(
            table in arb_table_of(arb_value()), cut in any::<prop::sample::Index>()
        ) {
            let bytes = encode(&table);
            let cut = cut.index(bytes.len() + 1);
            let whole = entries(&bytes[..cut]).filter(Result::is_ok).count();
            let checked = check(&bytes[..cut], DEPTH_MAX).is_ok();
            prop_assert_eq!(checked, encode_len(&table, whole) == cut);
            prop_assert_eq!(decode(&bytes[..cut]).is_ok(), checked);
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(
            prop_oneof![any::<u8>(), proptest::sample::select(&b"tbBsuIilfdDSAFTVx\0\0\0\0"[..])],
            0..64,
        )) {
            let _ = check(&bytes, DEPTH_MAX);
            let _ = decode(&bytes);
            let _ = find(&bytes, b"a");
            prop_assert_eq!(without(&bytes, &[]), bytes);
        }

        #[test]
        fn without_takes_only_these_keys(table in arb_table_of(arb_value())) {
            let copy = without(&encode(&table), &[b"a", b"bb"]);
            let mut rest = FieldTable::default();
            for (key, value) in &table {
                if !matches!(key.as_str(), "a" | "bb") {
                    rest.insert(key.clone(), value.clone());
                }
            }
            prop_assert_eq!(copy, encode(&rest));
        }
    }

    fn encode_len(table: &FieldTable, entries: usize) -> usize {
        let mut part = FieldTable::default();
        for (key, value) in table.into_iter().take(entries) {
            part.insert(key.clone(), value.clone());
        }
        encode(&part).len()
    }

    fn nested(depth: usize) -> Vec<u8> {
        let mut value = AMQPValue::Void;
        for level in 0..depth {
            value = if level % 2 == 0 {
                AMQPValue::FieldArray(FieldArray::from(vec![value]))
            } else {
                let mut table = FieldTable::default();
                table.insert("k".into(), value);
                AMQPValue::FieldTable(table)
            };
        }
        let mut table = FieldTable::default();
        table.insert("k".into(), value);
        encode(&table)
    }

    #[test]
    fn depth_is_bounded() {
        assert_eq!(check(&nested(DEPTH_MAX), DEPTH_MAX), Ok(()));
        assert_eq!(check(&nested(DEPTH_MAX + 1), DEPTH_MAX), Err(TableError::TooDeep));
        assert_eq!(check(&nested(DEPTH_MAX + 1), usize::MAX), Err(TableError::TooDeep));
        assert_eq!(check(&nested(1), 0), Err(TableError::TooDeep));
        let mut deep = Vec::new();
        for left in (0..25_000_u32).rev() {
            if deep.is_empty() {
                deep.extend_from_slice(b"\0");
            }
            deep.push(b'A');
            deep.extend_from_slice(&(left * 5).to_be_bytes());
        }
        assert_eq!(check(&deep, DEPTH_MAX), Err(TableError::TooDeep));
    }

    #[test]
    fn equal_values_have_one_identity() {
        assert_eq!(Value::I8(-5).identity(), Value::I64(-5).identity());
        assert_eq!(Value::F32(0.5).identity(), Value::F64(0.5).identity());
        assert_eq!(&*Value::LongString(b"5").identity(), b"5");
        let different = [
            Value::I64(5),
            Value::LongString(b"5"),
            Value::F64(5.0),
            Value::Bytes(b"5"),
            Value::Timestamp(5),
            Value::Bool(true),
            Value::Void,
        ];
        let identities: std::collections::BTreeSet<_> =
            different.iter().map(Value::identity).collect();
        assert_eq!(identities.len(), different.len());
    }

    #[test]
    fn unknown_types_are_named() {
        assert_eq!(check(b"\x01kZ", DEPTH_MAX), Err(TableError::UnknownType(b'Z')));
        assert_eq!(entries(b"\x01kZ\x01kV").count(), 1);
    }

    #[test]
    fn find_returns_the_first() {
        let table = b"\x01at\x01\x01aV\x02bcS\0\0\0\x01x";
        assert_eq!(find(table, b"a"), Some(Value::Bool(true)));
        assert_eq!(find(table, b"bc").and_then(|value| value.as_str()), Some("x"));
        assert_eq!(find(table, b"b"), None);
    }
}
