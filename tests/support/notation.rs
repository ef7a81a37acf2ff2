//! AMQP 0-9-1 methods, properties and field tables as one line of text, and back.
//!
//! Owns the tests' own codec. It shares nothing with the broker's on purpose: a mistake made in
//! both directions of one codec cannot be seen by a test that uses that codec. It must not do IO.
//!
//! A method reads `queue.declare queue=orders durable arguments=(x-max-length=5)`: a bit is set by
//! naming it, what is not named is zero or empty. Values: `5` is a signed 32-bit integer, `true`,
//! `void`, `[a,b]` an array, `(k=v,l=w)` a table, `"with \x00 escapes"` or a bare word a string,
//! and `l:5`, `b:5`, `B:5`, `s:5`, `u:5`, `i:5`, `T:5`, `d:1.5`, `S:5` are of that wire type.

use std::collections::BTreeMap;
use std::fmt;

use super::catalogue::{METHODS, PROPERTIES};

/// A value of a method field, a property or a table.
#[derive(Clone, PartialEq)]
pub enum Value {
    Void,
    Bool(bool),
    /// An integer with the letter of its wire type.
    Int(char, i64),
    Double(f64),
    Text(Vec<u8>),
    List(Vec<Value>),
    Table(Vec<(String, Value)>),
}

/// A method that was read from the wire, with its fields by name.
#[derive(Clone)]
pub struct Method {
    pub name: &'static str,
    pub fields: BTreeMap<&'static str, Value>,
}

impl Value {
    /// The string that this value is, or the decimal digits of an integer.
    pub fn text(&self) -> String {
        match self {
            Value::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Value::Int(_, n) => n.to_string(),
            Value::Bool(flag) => flag.to_string(),
            other => panic!("{other:?} is not a string"),
        }
    }

    /// The number that this value is.
    pub fn int(&self) -> i64 {
        match self {
            Value::Int(_, n) => *n,
            other => panic!("{other:?} is not an integer"),
        }
    }

    /// The table entry of this name.
    pub fn entry(&self, name: &str) -> Option<&Value> {
        match self {
            Value::Table(entries) => entries.iter().find(|(key, _)| key == name).map(|(_, v)| v),
            other => panic!("{other:?} is not a table"),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Value::Text(bytes) => bytes.clone(),
            other => other.text().into_bytes(),
        }
    }

    /// Equal in meaning: an expectation need not know the width of an integer field.
    pub fn is_like(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::Int(_, a), Value::Int(_, b)) => a == b,
            (Value::Text(_), Value::Int(..)) | (Value::Int(..), Value::Text(_)) => {
                self.text() == other.text()
            }
            _ => self == other,
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Void => write!(f, "void"),
            Value::Bool(flag) => write!(f, "{flag}"),
            Value::Int(letter, n) => write!(f, "{letter}:{n}"),
            Value::Double(x) => write!(f, "d:{x}"),
            Value::Text(bytes) => write!(f, "\"{}\"", bytes.escape_ascii()),
            Value::List(items) => f.debug_list().entries(items).finish(),
            Value::Table(entries) => {
                f.debug_map().entries(entries.iter().map(|(k, v)| (k, v))).finish()
            }
        }
    }
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        self.fields.iter().try_for_each(|(name, value)| write!(f, " {name}={value:?}"))
    }
}

impl std::ops::Index<&str> for Method {
    type Output = Value;

    fn index(&self, field: &str) -> &Value {
        self.fields.get(field).unwrap_or_else(|| panic!("{self:?} has no field {field}"))
    }
}

/// The method of this name, as class id and method id.
pub fn ids(name: &str) -> (u16, u16) {
    let (_, class, method, _) = row(name);
    (*class, *method)
}

/// Splits `name key=value flag` into the name and its assignments.
pub fn parse(line: &str) -> (String, Vec<(String, Value)>) {
    let mut reader = Reader { rest: line.trim() };
    let name = reader.word(" ");
    let mut fields = Vec::new();
    while reader.skip_spaces() {
        let key = reader.word("= ");
        let value = if reader.take('=') { reader.value() } else { Value::Bool(true) };
        fields.push((key, value));
    }
    (name, fields)
}

/// Encodes the payload of the method frame that `line` writes down.
pub fn encode_method(line: &str) -> Vec<u8> {
    let (name, assigned) = parse(line);
    let (_, class, method, fields) = row(&name);
    for (key, _) in &assigned {
        let known = fields.split_whitespace().any(|f| f.split(':').next() == Some(key));
        assert!(known, "{name} has no field {key}");
    }
    let mut out = [class.to_be_bytes(), method.to_be_bytes()].concat();
    let mut bits = 0;
    for field in fields.split_whitespace() {
        let (key, kind) = field.split_once(':').unwrap();
        let value = assigned.iter().find(|(k, _)| k == key).map(|(_, v)| v);
        if kind == "bit" {
            let flag = u8::from(value.is_some_and(|v| *v != Value::Bool(false)));
            if bits % 8 == 0 {
                out.push(0);
            }
            *out.last_mut().unwrap() |= flag << (bits % 8);
            bits += 1;
        } else {
            bits = 0;
            put(&mut out, kind, value);
        }
    }
    out
}

/// Decodes the payload of a method frame, all of it.
pub fn decode_method(payload: &[u8]) -> Method {
    let (class, method) = (be(&payload[..2]) as u16, be(&payload[2..4]) as u16);
    let row = METHODS.iter().find(|row| (row.1, row.2) == (class, method));
    let (name, _, _, fields) = row.unwrap_or_else(|| panic!("unknown method {class}/{method}"));
    let mut rest = &payload[4..];
    let (mut bits, mut octet) = (0, 0);
    let mut values = BTreeMap::new();
    for field in fields.split_whitespace() {
        let (key, kind) = field.split_once(':').unwrap();
        let value = if kind == "bit" {
            if bits % 8 == 0 {
                octet = take(&mut rest, 1)[0];
            }
            bits += 1;
            Value::Bool(octet >> ((bits - 1) % 8) & 1 == 1)
        } else {
            bits = 0;
            read(&mut rest, kind)
        };
        values.insert(key, value);
    }
    assert!(rest.is_empty(), "{name} is followed by {rest:?}");
    Method { name, fields: values }
}

/// Encodes the payload of a content header with the properties that `line` writes down.
pub fn encode_header(class: u16, size: u64, line: &str) -> Vec<u8> {
    let (_, assigned) = parse(&format!("properties {line}"));
    let mut out = [&class.to_be_bytes()[..], &[0, 0], &size.to_be_bytes()].concat();
    let (mut flags, mut values) = (0u16, Vec::new());
    for (bit, (key, kind)) in PROPERTIES.iter().enumerate() {
        if let Some((_, value)) = assigned.iter().find(|(k, _)| k == key) {
            flags |= 0x8000 >> bit;
            put(&mut values, kind, Some(value));
        }
    }
    assert_eq!(flags.count_ones() as usize, assigned.len(), "unknown property in: {line}");
    out.extend(flags.to_be_bytes());
    out.extend(values);
    out
}

/// Decodes a content header into the body's size and the properties by name.
pub fn decode_header(payload: &[u8]) -> (u64, BTreeMap<&'static str, Value>) {
    assert_eq!(&payload[..4], &[0, 60, 0, 0], "class and weight of a content header");
    let flags = be(&payload[12..14]) as u16;
    let mut rest = &payload[14..];
    let mut properties = BTreeMap::new();
    for (bit, (key, kind)) in PROPERTIES.iter().enumerate() {
        if flags & (0x8000 >> bit) != 0 {
            properties.insert(*key, read(&mut rest, kind));
        }
    }
    assert!(rest.is_empty(), "properties are followed by {rest:?}");
    (be(&payload[4..12]), properties)
}

/// Reads `text` as one value of this notation.
pub fn value(text: &str) -> Value {
    Reader { rest: text }.value()
}

/// Encodes a field table, its length included.
pub fn encode_table(table: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, "table", Some(table));
    out
}

fn row(name: &str) -> &'static (&'static str, u16, u16, &'static str) {
    METHODS.iter().find(|row| row.0 == name).unwrap_or_else(|| panic!("no method {name}"))
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

fn put(out: &mut Vec<u8>, kind: &str, value: Option<&Value>) {
    let number = || value.map_or(0, Value::int);
    let bytes = || value.map_or(Vec::new(), Value::bytes);
    match kind {
        "octet" => out.push(number() as u8),
        "short" => out.extend((number() as u16).to_be_bytes()),
        "long" => out.extend((number() as u32).to_be_bytes()),
        "longlong" => out.extend(number().to_be_bytes()),
        "shortstr" => put_short(out, &bytes()),
        "longstr" => put_long(out, &bytes()),
        "table" => {
            let mut inner = Vec::new();
            if let Some(Value::Table(entries)) = value {
                for (key, value) in entries {
                    put_short(&mut inner, key.as_bytes());
                    put_field(&mut inner, value);
                }
            }
            put_long(out, &inner);
        }
        other => panic!("no field type {other}"),
    }
}

fn put_field(out: &mut Vec<u8>, value: &Value) {
    let letter = match value {
        Value::Void => 'V',
        Value::Bool(_) => 't',
        Value::Int(letter, _) => *letter,
        Value::Double(_) => 'd',
        Value::Text(_) => 'S',
        Value::List(_) => 'A',
        Value::Table(_) => 'F',
    };
    out.push(letter as u8);
    match value {
        Value::Void => {}
        Value::Bool(flag) => out.push(u8::from(*flag)),
        Value::Int('b' | 'B', n) => out.push(*n as u8),
        Value::Int('s' | 'u', n) => out.extend((*n as u16).to_be_bytes()),
        Value::Int('I' | 'i', n) => out.extend((*n as u32).to_be_bytes()),
        Value::Int(_, n) => out.extend(n.to_be_bytes()),
        Value::Double(x) => out.extend(x.to_be_bytes()),
        Value::Text(bytes) => put_long(out, bytes),
        Value::List(items) => {
            let mut inner = Vec::new();
            items.iter().for_each(|item| put_field(&mut inner, item));
            put_long(out, &inner);
        }
        Value::Table(_) => put(out, "table", Some(value)),
    }
}

fn put_short(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(u8::try_from(bytes.len()).expect("a short string has at most 255 bytes"));
    out.extend(bytes);
}

fn put_long(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_be_bytes());
    out.extend(bytes);
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> &'a [u8] {
    assert!(rest.len() >= len, "{len} bytes are due where {} are left", rest.len());
    let (taken, after) = rest.split_at(len);
    *rest = after;
    taken
}

fn read(rest: &mut &[u8], kind: &str) -> Value {
    match kind {
        "octet" => Value::Int('B', be(take(rest, 1)) as i64),
        "short" => Value::Int('u', be(take(rest, 2)) as i64),
        "long" => Value::Int('i', be(take(rest, 4)) as i64),
        "longlong" => Value::Int('l', be(take(rest, 8)) as i64),
        "shortstr" => {
            let len = take(rest, 1)[0] as usize;
            Value::Text(take(rest, len).to_vec())
        }
        "longstr" => Value::Text(read_long(rest).to_vec()),
        "table" => {
            let mut inner = read_long(rest);
            let mut entries = Vec::new();
            while !inner.is_empty() {
                let len = take(&mut inner, 1)[0] as usize;
                let key = String::from_utf8_lossy(take(&mut inner, len)).into_owned();
                entries.push((key, read_field(&mut inner)));
            }
            Value::Table(entries)
        }
        other => panic!("no field type {other}"),
    }
}

fn read_long<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let len = be(take(rest, 4)) as usize;
    take(rest, len)
}

fn read_field(rest: &mut &[u8]) -> Value {
    let letter = char::from(take(rest, 1)[0]);
    match letter {
        'V' => Value::Void,
        't' => Value::Bool(take(rest, 1)[0] != 0),
        'b' => Value::Int(letter, i64::from(take(rest, 1)[0] as i8)),
        'B' => Value::Int(letter, be(take(rest, 1)) as i64),
        's' => Value::Int(letter, i64::from(be(take(rest, 2)) as i16)),
        'u' => Value::Int(letter, be(take(rest, 2)) as i64),
        'I' => Value::Int(letter, i64::from(be(take(rest, 4)) as i32)),
        'i' => Value::Int(letter, be(take(rest, 4)) as i64),
        'l' | 'L' | 'T' => Value::Int(letter, be(take(rest, 8)) as i64),
        'd' => Value::Double(f64::from_bits(be(take(rest, 8)))),
        'S' | 'x' => Value::Text(read_long(rest).to_vec()),
        'F' => read(rest, "table"),
        'A' => {
            let mut inner = read_long(rest);
            let mut items = Vec::new();
            while !inner.is_empty() {
                items.push(read_field(&mut inner));
            }
            Value::List(items)
        }
        other => panic!("no field type {other:?}"),
    }
}

/// Reads the notation from left to right.
struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn skip_spaces(&mut self) -> bool {
        self.rest = self.rest.trim_start();
        !self.rest.is_empty()
    }

    fn take(&mut self, expected: char) -> bool {
        let after = self.rest.strip_prefix(expected);
        self.rest = after.unwrap_or(self.rest);
        after.is_some()
    }

    fn word(&mut self, ends: &str) -> String {
        let end = self.rest.find(|c| ends.contains(c)).unwrap_or(self.rest.len());
        let (word, after) = self.rest.split_at(end);
        self.rest = after;
        word.to_string()
    }

    fn value(&mut self) -> Value {
        if self.take('"') {
            return Value::Text(self.quoted());
        }
        if self.take('[') {
            let mut items = Vec::new();
            while !self.take(']') {
                items.push(self.value());
                self.take(',');
            }
            return Value::List(items);
        }
        if self.take('(') {
            let mut entries = Vec::new();
            while !self.take(')') {
                let key = self.word("=");
                assert!(self.take('='), "a table entry is key=value: {}", self.rest);
                entries.push((key, self.value()));
                self.take(',');
            }
            return Value::Table(entries);
        }
        bare(&self.word(" ,])"))
    }

    fn quoted(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            let next = self.rest.chars().next().expect("a quoted string ends with a quote");
            self.rest = &self.rest[next.len_utf8()..];
            match next {
                '"' => return out,
                '\\' => {
                    let escape = self.rest.chars().next().expect("an escape has a letter");
                    self.rest = &self.rest[1..];
                    match escape {
                        'n' => out.push(b'\n'),
                        'r' => out.push(b'\r'),
                        'x' => {
                            out.push(u8::from_str_radix(&self.rest[..2], 16).unwrap());
                            self.rest = &self.rest[2..];
                        }
                        other => out.push(other as u8),
                    }
                }
                other => out.extend(other.to_string().bytes()),
            }
        }
    }
}

fn bare(word: &str) -> Value {
    if let Some((letter, value)) = word.split_once(':')
        && letter.len() == 1
    {
        match letter.chars().next().unwrap() {
            'd' => return Value::Double(value.parse().unwrap()),
            'S' => return Value::Text(value.as_bytes().to_vec()),
            kind if "bBsuIilT".contains(kind) => return Value::Int(kind, value.parse().unwrap()),
            _ => {}
        }
    }
    match word {
        "void" => Value::Void,
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => match word.parse() {
            Ok(n) => Value::Int('I', n),
            Err(_) => Value::Text(word.as_bytes().to_vec()),
        },
    }
}
