//! How RabbitMQ names and prints field values in its reply texts.
//!
//! Owns the printing of values and bytes as Erlang terms, which clients see in reply texts, and the
//! reading of any integer type as one. It must not know what an argument means.

use std::fmt::Write;

use super::method::AMQPValue;
pub(crate) use super::table::type_name;

/// A value as Erlang's `~p` prints it, for texts that RabbitMQ's users know.
pub(crate) fn erlang_term(value: &AMQPValue) -> String {
    let list = |items: Vec<String>| format!("[{}]", items.join(","));
    if let Some(n) = integer(value) {
        return n.to_string();
    }
    match value {
        AMQPValue::Boolean(flag) => flag.to_string(),
        AMQPValue::Timestamp(n) => n.to_string(),
        AMQPValue::Float(n) => format!("{n:?}"),
        AMQPValue::Double(n) => format!("{n:?}"),
        AMQPValue::DecimalValue(n) => format!("{{{},{}}}", n.scale, n.value),
        AMQPValue::ShortString(text) => erlang_binary(text.as_str().as_bytes()),
        AMQPValue::LongString(text) => erlang_binary(text.as_bytes()),
        AMQPValue::ByteArray(bytes) => erlang_binary(bytes.as_slice()),
        AMQPValue::FieldArray(array) => {
            let items = array.as_slice().iter();
            list(items.map(|item| format!("{{{}}}", typed_term(item))).collect())
        }
        AMQPValue::FieldTable(table) => {
            let fields = table.into_iter();
            list(
                fields
                    .map(|(key, value)| {
                        let key = erlang_binary(key.as_str().as_bytes());
                        format!("{{{key},{}}}", typed_term(value))
                    })
                    .collect(),
            )
        }
        _ => "undefined".to_owned(),
    }
}

fn typed_term(value: &AMQPValue) -> String {
    format!("{},{}", type_name(value), erlang_term(value))
}

/// A binary as Erlang's `~p` prints it: as text when each byte is printable, else as numbers.
pub(crate) fn erlang_binary(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "<<>>".to_owned();
    }
    let mut text = String::with_capacity(bytes.len() + 6);
    text.push_str("<<\"");
    for &byte in bytes {
        match byte {
            b'"' => text.push_str("\\\""),
            b'\\' => text.push_str("\\\\"),
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b'\t' => text.push_str("\\t"),
            0x08 => text.push_str("\\b"),
            0x0B => text.push_str("\\v"),
            0x0C => text.push_str("\\f"),
            0x1B => text.push_str("\\e"),
            0x20..=0x7E | 0xA0.. => text.push(char::from(byte)),
            _ => return erlang_bytes(bytes),
        }
    }
    text.push_str("\">>");
    text
}

/// A binary as Erlang's `~w` prints it: always as numbers.
pub(crate) fn erlang_bytes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 4 + 4);
    text.push_str("<<");
    for (index, byte) in bytes.iter().enumerate() {
        let separator = if index == 0 { "" } else { "," };
        write!(text, "{separator}{byte}").expect("a String takes everything");
    }
    text.push_str(">>");
    text
}

/// The value as RabbitMQ prints it between quotes: strings as they are.
pub(crate) fn shown(value: &AMQPValue) -> String {
    match value {
        AMQPValue::ShortString(text) => text.to_string(),
        AMQPValue::LongString(text) => text.to_string(),
        AMQPValue::ByteArray(bytes) => String::from_utf8_lossy(bytes.as_slice()).into_owned(),
        other => erlang_term(other),
    }
}

/// The value of any of the integer types.
pub(crate) fn integer(value: &AMQPValue) -> Option<i64> {
    Some(match value {
        AMQPValue::ShortShortInt(n) => i64::from(*n),
        AMQPValue::ShortShortUInt(n) => i64::from(*n),
        AMQPValue::ShortInt(n) => i64::from(*n),
        AMQPValue::ShortUInt(n) => i64::from(*n),
        AMQPValue::LongInt(n) => i64::from(*n),
        AMQPValue::LongUInt(n) => i64::from(*n),
        AMQPValue::LongLongInt(n) => *n,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binaries_print_as_in_erlang() {
        assert_eq!(erlang_binary(b""), "<<>>");
        assert_eq!(erlang_binary(b"abc"), "<<\"abc\">>");
        assert_eq!(erlang_binary(&[0, 20, 0, 10, 0]), "<<0,20,0,10,0>>");
        assert_eq!(erlang_binary(b"Z[\\]\"'\n\x1b"), "<<\"Z[\\\\]\\\"'\\n\\e\">>");
        assert_eq!(erlang_binary(&[b'h', 0xE9]), "<<\"h\u{e9}\">>");
        assert_eq!(erlang_binary(&[127]), "<<127>>");
        assert_eq!(erlang_binary(&[0x9F]), "<<159>>");
        assert_eq!((erlang_bytes(b"ab"), erlang_bytes(b"")), ("<<97,98>>".into(), "<<>>".into()));
    }

    #[test]
    fn values_print_as_in_erlang() {
        let text = AMQPValue::LongString("a".into());
        let array = AMQPValue::FieldArray(vec![text.clone(), AMQPValue::LongInt(-1)].into());
        assert_eq!(erlang_term(&array), "[{longstr,<<\"a\">>},{signedint,-1}]");
        assert_eq!(shown(&array), erlang_term(&array));
        assert_eq!((shown(&text), erlang_term(&text)), ("a".to_owned(), "<<\"a\">>".to_owned()));
        assert_eq!(shown(&AMQPValue::Void), "undefined");
    }
}
