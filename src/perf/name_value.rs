//! Options of the form NAME=VALUE: arguments of queues and properties of messages.
//!
//! Owns their syntax and the types of their values. What they mean is the broker's business.

use std::collections::BTreeSet;

use crate::codec::method::{AMQPProperties, AMQPValue, FieldTable, ShortString};

/// Short strings are no longer than this (section 4.2.5.3).
const SHORT_BYTES_MAX: usize = 255;

/// What the name of a property begins with that is an application's header.
const HEADER: &str = "header.";

/// The arguments of `--queue-argument`.
pub(crate) fn queue_arguments(options: &[String]) -> Result<FieldTable, String> {
    let mut arguments = FieldTable::default();
    each("--queue-argument", options, |name, value| {
        arguments.insert(short(name)?, field_value(value));
        Ok(())
    })?;
    Ok(arguments)
}

/// The properties of `--property`.
pub(crate) fn message_properties(options: &[String]) -> Result<AMQPProperties, String> {
    let mut all = AMQPProperties::default();
    let mut headers = FieldTable::default();
    each("--property", options, |name, value| {
        let properties = std::mem::take(&mut all);
        all = match name {
            "content-type" => properties.with_content_type(short(value)?),
            "content-encoding" => properties.with_content_encoding(short(value)?),
            "correlation-id" => properties.with_correlation_id(short(value)?),
            "reply-to" => properties.with_reply_to(short(value)?),
            "message-id" => properties.with_message_id(short(value)?),
            "type" => properties.with_type(short(value)?),
            "app-id" => properties.with_app_id(short(value)?),
            "timestamp" => {
                let seconds = value.parse().map_err(|_| "it takes seconds since 1970");
                properties.with_timestamp(seconds?)
            }
            _ => match name.strip_prefix(HEADER) {
                Some(header) if !header.is_empty() => {
                    headers.insert(short(header)?, field_value(value));
                    properties
                }
                _ => return Err(UNKNOWN.into()),
            },
        };
        Ok(())
    })?;
    let has_headers = !headers.inner().is_empty();
    Ok(if has_headers { all.with_headers(headers) } else { all })
}

const UNKNOWN: &str = "the names are content-type, content-encoding, correlation-id, reply-to, \
    message-id, type, app-id, timestamp and header.NAME; for others there are --persistent, \
    --priorities and --expiration";

/// Splits options; errors get the option and the name before them.
fn each(
    flag: &str,
    options: &[String],
    mut take: impl FnMut(&str, &str) -> Result<(), String>,
) -> Result<(), String> {
    let mut names = BTreeSet::new();
    for option in options {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) if !name.is_empty() => (name, value),
            _ => return Err(format!("{flag} takes NAME=VALUE")),
        };
        if !names.insert(name) {
            return Err(format!("{flag} {name} is given twice"));
        }
        take(name, value).map_err(|error| format!("{flag} {name}: {error}"))?;
    }
    Ok(())
}

fn short(text: &str) -> Result<ShortString, String> {
    if text.len() > SHORT_BYTES_MAX {
        return Err(format!("at most {SHORT_BYTES_MAX} bytes"));
    }
    Ok(text.into())
}

/// A number, true, false or text.
fn field_value(text: &str) -> AMQPValue {
    match text {
        "true" => AMQPValue::Boolean(true),
        "false" => AMQPValue::Boolean(false),
        text => match text.parse() {
            Ok(number) => AMQPValue::LongLongInt(number),
            Err(_) => AMQPValue::LongString(text.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &str) -> Vec<String> {
        words.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn values_have_the_types_that_they_look_like() {
        let parsed = queue_arguments(&options("a=-5 b=true c=x=y d= e=5x")).expect("valid");
        let value = |name| parsed.inner().get(name).cloned();
        assert_eq!(value("a"), Some(AMQPValue::LongLongInt(-5)));
        assert_eq!(value("b"), Some(AMQPValue::Boolean(true)));
        assert_eq!(value("c"), Some(AMQPValue::LongString("x=y".into())));
        assert_eq!(value("d"), Some(AMQPValue::LongString("".into())));
        assert_eq!(value("e"), Some(AMQPValue::LongString("5x".into())));
    }

    #[test]
    fn properties_go_where_they_belong() {
        let text = "content-type=a content-encoding=b correlation-id=c reply-to=d message-id=e \
                    type=f app-id=g timestamp=7 header.x-delay=100 header.a.b=c";
        let parsed = message_properties(&options(text)).expect("valid");
        let mut headers = FieldTable::default();
        headers.insert("x-delay".into(), AMQPValue::LongLongInt(100));
        headers.insert("a.b".into(), AMQPValue::LongString("c".into()));
        let expected = AMQPProperties::default()
            .with_content_type("a".into())
            .with_content_encoding("b".into())
            .with_correlation_id("c".into())
            .with_reply_to("d".into())
            .with_message_id("e".into())
            .with_type("f".into())
            .with_app_id("g".into())
            .with_timestamp(7)
            .with_headers(headers);
        assert_eq!(parsed, expected);
        assert_eq!(message_properties(&[]), Ok(AMQPProperties::default()));
    }

    #[test]
    fn mistakes_name_the_option() {
        let long = format!("app-id={}", "x".repeat(256));
        for (text, part) in [
            ("type", "--property takes NAME=VALUE"),
            ("=x", "--property takes NAME=VALUE"),
            ("type=a type=b", "--property type is given twice"),
            ("timestamp=now", "--property timestamp: it takes seconds"),
            ("priority=5", "--priorities"),
            ("header.=5", "header.NAME"),
            (&long, "at most 255 bytes"),
        ] {
            let error = message_properties(&options(text)).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
        let error = queue_arguments(&options("x-max-length")).expect_err("no value");
        assert!(error.starts_with("--queue-argument takes"), "{error}");
    }
}
