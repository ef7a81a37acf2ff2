//! Arguments as JSON and as field tables.
//!
//! Owns the mapping between the two, which is RabbitMQ's (`rabbit_misc:to_amqp_table`,
//! `amqp_table`): a whole number becomes a 64-bit integer, whatever it was before an export.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Number, Value};

use crate::codec::method::{AMQPValue, FieldTable};

/// Reads arguments.
///
/// # Errors
/// For a number that no field can hold, or a name that is too long.
pub(super) fn from_json(arguments: &Map<String, Value>) -> Result<FieldTable, String> {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        if name.len() > 255 {
            return Err(format!("the name of an argument is longer than 255 bytes: {name}"));
        }
        let value =
            value_from_json(value).map_err(|error| format!("argument '{name}': {error}"))?;
        table.insert(name.as_str().into(), value);
    }
    Ok(table)
}

fn value_from_json(value: &Value) -> Result<AMQPValue, String> {
    Ok(match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(flag) => AMQPValue::Boolean(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => AMQPValue::LongLongInt(whole),
            (None, Some(fraction)) if number.is_f64() => AMQPValue::Double(fraction),
            _ => return Err(format!("{number} has more than 64 bits")),
        },
        Value::String(text) => AMQPValue::LongString(text.as_str().into()),
        Value::Array(items) => {
            let items: Result<Vec<_>, _> = items.iter().map(value_from_json).collect();
            AMQPValue::FieldArray(items?.into())
        }
        Value::Object(map) => AMQPValue::FieldTable(from_json(map)?),
    })
}

/// Writes arguments.
pub(super) fn to_json(table: &FieldTable) -> Map<String, Value> {
    let entries = table.inner().iter();
    entries.map(|(name, value)| (name.to_string(), value_to_json(value))).collect()
}

fn value_to_json(value: &AMQPValue) -> Value {
    let float = |number: f64| Number::from_f64(number).map_or(Value::Null, Value::Number);
    match value {
        AMQPValue::Void => Value::Null,
        AMQPValue::Boolean(flag) => Value::Bool(*flag),
        AMQPValue::ShortShortInt(n) => Value::from(*n),
        AMQPValue::ShortShortUInt(n) => Value::from(*n),
        AMQPValue::ShortInt(n) => Value::from(*n),
        AMQPValue::ShortUInt(n) => Value::from(*n),
        AMQPValue::LongInt(n) => Value::from(*n),
        AMQPValue::LongUInt(n) => Value::from(*n),
        AMQPValue::LongLongInt(n) => Value::from(*n),
        AMQPValue::Timestamp(n) => Value::from(*n),
        AMQPValue::Float(n) => float(f64::from(*n)),
        AMQPValue::Double(n) => float(*n),
        AMQPValue::DecimalValue(n) => float(f64::from(n.value) / 10f64.powi(i32::from(n.scale))),
        AMQPValue::ShortString(text) => Value::from(text.as_str()),
        AMQPValue::LongString(text) => text_to_json(text.as_bytes()),
        AMQPValue::ByteArray(bytes) => text_to_json(bytes.as_slice()),
        AMQPValue::FieldArray(array) => array.as_slice().iter().map(value_to_json).collect(),
        AMQPValue::FieldTable(table) => Value::Object(to_json(table)),
    }
}

fn text_to_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::from(text),
        Err(_) => Value::from(format!("Not UTF-8, base64 is: {}", BASE64.encode(bytes))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_meaning() {
        let json = r#"{"a":1,"b":1.5,"c":true,"d":null,"e":[1,"x",{"y":-2}],"f":"s","h":{}}"#;
        let arguments: Map<String, Value> = serde_json::from_str(json).expect("JSON");
        let table = from_json(&arguments).expect("valid");
        assert_eq!(table.inner().get("a"), Some(&AMQPValue::LongLongInt(1)));
        assert_eq!(table.inner().get("b"), Some(&AMQPValue::Double(1.5)));
        assert_eq!(table.inner().get("f"), Some(&AMQPValue::LongString("s".into())));
        assert_eq!(to_json(&table), arguments);
    }

    #[test]
    fn all_types_are_written_as_rabbitmq_writes_them() {
        let mut table = FieldTable::default();
        table.insert("byte".into(), AMQPValue::ShortShortInt(-1));
        table.insert("time".into(), AMQPValue::Timestamp(6));
        table.insert("bytes".into(), AMQPValue::LongString(vec![255, 200].into()));
        let expected = r#"{"byte":-1,"bytes":"Not UTF-8, base64 is: /8g=","time":6}"#;
        assert_eq!(Value::Object(to_json(&table)).to_string(), expected);
    }

    #[test]
    fn what_no_field_can_hold_is_refused() {
        let refusal = |json: &str| {
            from_json(&serde_json::from_str(json).expect("JSON")).expect_err("no such field")
        };
        let text = refusal(r#"{"x-max-length":18446744073709551615}"#);
        assert_eq!(text, "argument 'x-max-length': 18446744073709551615 has more than 64 bits");
        assert!(refusal(&format!(r#"{{"{}":1}}"#, "n".repeat(256))).contains("longer than 255"));
    }
}
