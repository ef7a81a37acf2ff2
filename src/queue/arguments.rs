//! Which queue arguments are refused, and when a redeclare is equivalent.
//!
//! Owns the texts of the refusals, which are RabbitMQ's (`rabbit_amqqueue:check_declare_arguments`
//! and `rabbit_misc:assert_args_equivalence`). It must not know who declares, nor what a valid
//! argument does: that is `settings`.

use super::settings::Kind;
use crate::codec::method::{AMQPValue, FieldTable};
use crate::codec::value::{integer, shown, type_name};
use crate::error::{AmqpError, ReplyCode};

/// Timers beyond ten years (milliseconds) are refused.
pub(crate) const EXPIRY_MAX_MS: u64 = 315_360_000_000;

const BOTH: &[Kind] = &[Kind::Classic, Kind::Quorum];
const CLASSIC: &[Kind] = &[Kind::Classic];
const QUORUM: &[Kind] = &[Kind::Quorum];
const STREAM: &[Kind] = &[];

/// Arguments that are validated and compared, in the order in which RabbitMQ reports errors, with
/// the queue types that take them. Others are kept and ignored.
const KNOWN: [(&str, &[Kind]); 28] = [
    ("x-expires", BOTH),
    ("x-message-ttl", BOTH),
    ("x-dead-letter-exchange", BOTH),
    ("x-dead-letter-routing-key", BOTH),
    ("x-dead-letter-strategy", QUORUM),
    ("x-max-length", BOTH),
    ("x-max-length-bytes", BOTH),
    ("x-max-in-memory-length", QUORUM),
    ("x-max-in-memory-bytes", QUORUM),
    ("x-max-priority", CLASSIC),
    ("x-overflow", BOTH),
    ("x-queue-mode", CLASSIC),
    ("x-queue-version", CLASSIC),
    ("x-single-active-consumer", BOTH),
    ("x-queue-type", BOTH),
    ("x-quorum-initial-group-size", QUORUM),
    ("x-delivery-limit", QUORUM),
    ("x-consumer-timeout", BOTH),
    ("x-max-age", STREAM),
    ("x-stream-max-segment-size-bytes", STREAM),
    ("x-stream-filter-size-bytes", STREAM),
    ("x-initial-cluster-size", STREAM),
    ("x-queue-master-locator", CLASSIC),
    ("x-queue-leader-locator", BOTH),
    ("x-message-deduplication", BOTH),
    ("x-cache-size", BOTH),
    ("x-cache-ttl", BOTH),
    ("x-deduplication-header", BOTH),
];

/// The type that the arguments ask for. `queue` is the resource as RabbitMQ prints it:
/// `queue 'q' in vhost '/'`.
///
/// # Errors
/// 406 for a type that RabbitMQ does not know either, 540 for streams.
pub(crate) fn check_kind(arguments: &FieldTable, queue: &str) -> Result<Kind, AmqpError> {
    let refuse = |reason: String| {
        let text = format!("invalid arg 'x-queue-type' for {queue}: {reason}");
        Err(AmqpError::new(ReplyCode::PreconditionFailed, text))
    };
    match find(arguments, "x-queue-type") {
        None => Ok(Kind::Classic),
        Some(AMQPValue::LongString(kind)) => match kind.as_bytes() {
            b"classic" => Ok(Kind::Classic),
            b"quorum" => Ok(Kind::Quorum),
            b"stream" => {
                let text = format!("queue type 'stream' of {queue} is not supported");
                Err(AmqpError::new(ReplyCode::NotImplemented, text))
            }
            _ => refuse(format!("\"unsupported queue type '{kind}'\"")),
        },
        Some(other) => refuse(format!("{{unacceptable_type,{}}}", type_name(other))),
    }
}

/// Refuses arguments of a wrong type or value, and those of other queue types; answers the type.
/// `queue` is the resource as RabbitMQ prints it.
///
/// # Errors
/// 406, and 540 for streams.
pub(crate) fn check_arguments(arguments: &FieldTable, queue: &str) -> Result<Kind, AmqpError> {
    let refuse = |text: String| Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
    // RabbitMQ looks at this one first, to check the permission to write to it.
    if let Some(other) = find(arguments, "x-dead-letter-exchange")
        && !matches!(other, AMQPValue::LongString(_))
    {
        let kind = type_name(other);
        return refuse(format!(
            "invalid type '{kind}' for arg 'x-dead-letter-exchange' in {queue}"
        ));
    }
    let kind = check_kind(arguments, queue)?;
    let (own, others): (Vec<_>, Vec<_>) =
        KNOWN.into_iter().partition(|(_, kinds)| kinds.contains(&kind));
    for (name, _) in own {
        if let Some(value) = find(arguments, name)
            && let Err(reason) = check_value(name, value, arguments)
        {
            return refuse(format!("invalid arg '{name}' for {queue}: {reason}"));
        }
    }
    for (name, _) in others {
        if find(arguments, name).is_some() {
            let module = kind.module();
            return refuse(format!("invalid arg '{name}' for {queue} of queue type {module}"));
        }
    }
    Ok(kind)
}

fn check_value(name: &str, value: &AMQPValue, arguments: &FieldTable) -> Result<(), String> {
    match name {
        "x-expires" => in_range(value, 1, EXPIRY_MAX_MS as i64),
        "x-message-ttl" => in_range(value, 0, EXPIRY_MAX_MS as i64),
        "x-max-length"
        | "x-max-length-bytes"
        | "x-max-in-memory-length"
        | "x-max-in-memory-bytes"
        | "x-consumer-timeout"
        | "x-cache-ttl" => in_range(value, 0, i64::MAX),
        "x-quorum-initial-group-size" | "x-cache-size" => in_range(value, 1, i64::MAX),
        "x-max-priority" => match integer(value) {
            Some(n) if n > 255 => Err(format!("{{max_value_exceeded,{n}}}")),
            _ => in_range(value, 0, 255),
        },
        "x-overflow" => {
            let known = ["drop-head", "reject-publish", "reject-publish-dlx"];
            one_of(value, &known, "invalid_overflow")
        }
        "x-dead-letter-routing-key" => {
            one_of(value, &[], "")?;
            match find(arguments, "x-dead-letter-exchange") {
                None => Err("routing_key_but_no_dlx_defined".to_owned()),
                Some(_) => Ok(()),
            }
        }
        "x-dead-letter-strategy" => {
            one_of(value, &["at-most-once", "at-least-once"], "invalid_dlx_strategy")
        }
        "x-queue-mode" => {
            let reason = format!("\"unsupported queue mode '{}'\"", shown(value));
            one_of(value, &["default", "lazy"], &reason)
        }
        "x-queue-version" => match integer(value) {
            Some(1 | 2) => Ok(()),
            Some(n) if n >= 0 => Err(format!("\"unsupported queue version '{n}'\"")),
            _ => in_range(value, 0, 2),
        },
        "x-single-active-consumer" | "x-message-deduplication" => match value {
            AMQPValue::Boolean(_) => Ok(()),
            other => Err(format!("{{unacceptable_type,{}}}", type_name(other))),
        },
        "x-queue-leader-locator" => {
            let known = ["client-local", "balanced", "random", "least-leaders"];
            one_of(value, &known, "invalid_queue_locator_arg")
        }
        "x-deduplication-header" => one_of(value, &[], ""),
        _ => Ok(()),
    }
}

fn in_range(value: &AMQPValue, min: i64, max: i64) -> Result<(), String> {
    match integer(value) {
        None => Err(format!("\"expected integer, got {}\"", type_name(value))),
        Some(n) if n < 0 => Err(format!("{{value_negative,{n}}}")),
        Some(n) if n < min => Err(format!("{{value_zero,{n}}}")),
        Some(n) if n > max => Err(format!("{{value_too_large,{n}}}")),
        Some(_) => Ok(()),
    }
}

/// A text, and one of `allowed` unless that is empty.
fn one_of(value: &AMQPValue, allowed: &[&str], reason: &str) -> Result<(), String> {
    match value {
        AMQPValue::LongString(text) => {
            let known = allowed.iter().any(|allowed| allowed.as_bytes() == text.as_bytes());
            if known || allowed.is_empty() { Ok(()) } else { Err(reason.to_owned()) }
        }
        other => Err(format!("{{unacceptable_type,{}}}", type_name(other))),
    }
}

/// Refuses a redeclare whose arguments differ from the queue's. All integer types are one class,
/// and a missing `x-queue-type` is `classic`, as in RabbitMQ.
pub(crate) fn check_equivalence(
    current: &FieldTable,
    received: &FieldTable,
    queue: &str,
) -> Result<(), AmqpError> {
    for (name, _) in KNOWN {
        let (now, asked) = (find(current, name), find(received, name));
        if name == "x-queue-type" && is_classic(now) && is_classic(asked) {
            continue;
        }
        let text = match (now, asked) {
            (None, None) => continue,
            (Some(now), Some(asked)) if is_equivalent(now, asked) => continue,
            (Some(now), Some(asked)) => {
                format!("received '{}' but current is '{}'", shown(asked), shown(now))
            }
            (Some(now), None) => format!("received none but current is {}", described(now)),
            (None, Some(asked)) => format!("received {} but current is none", described(asked)),
        };
        let text = format!("inequivalent arg '{name}' for {queue}: {text}");
        return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
    }
    Ok(())
}

/// A queue without a type is classic.
fn is_classic(kind: Option<&AMQPValue>) -> bool {
    match kind {
        None => true,
        Some(AMQPValue::LongString(kind)) => kind.as_bytes() == b"classic",
        Some(_) => false,
    }
}

fn is_equivalent(a: &AMQPValue, b: &AMQPValue) -> bool {
    match (integer(a), integer(b)) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

fn described(value: &AMQPValue) -> String {
    format!("the value '{}' of type '{}'", shown(value), type_name(value))
}

pub(super) fn find<'a>(arguments: &'a FieldTable, name: &str) -> Option<&'a AMQPValue> {
    arguments.inner().get(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, value: AMQPValue) -> FieldTable {
        let mut table = FieldTable::default();
        table.insert(name.into(), value);
        table
    }

    fn refusal(name: &str, value: AMQPValue) -> String {
        let error = check_arguments(&table(name, value), "queue 'q' in vhost '/'");
        error.expect_err("a bad argument").text
    }

    #[test]
    fn bad_values_are_refused_in_rabbitmqs_words() {
        assert_eq!(
            refusal("x-max-length", AMQPValue::LongInt(-1)),
            "invalid arg 'x-max-length' for queue 'q' in vhost '/': {value_negative,-1}"
        );
        assert_eq!(
            refusal("x-max-length-bytes", AMQPValue::LongString("1".into())),
            "invalid arg 'x-max-length-bytes' for queue 'q' in vhost '/': \
             \"expected integer, got longstr\""
        );
        assert_eq!(
            refusal("x-overflow", AMQPValue::LongString("foo".into())),
            "invalid arg 'x-overflow' for queue 'q' in vhost '/': invalid_overflow"
        );
        assert_eq!(
            refusal("x-queue-type", AMQPValue::LongString("foo".into())),
            "invalid arg 'x-queue-type' for queue 'q' in vhost '/': \
             \"unsupported queue type 'foo'\""
        );
        assert!(check_arguments(&table("x-foo", AMQPValue::Void), "queue").is_ok());
    }

    #[test]
    fn all_integer_types_are_equivalent() {
        let int = table("x-max-length", AMQPValue::LongInt(5));
        let long = table("x-max-length", AMQPValue::LongLongInt(5));
        let other = table("x-max-length", AMQPValue::LongInt(6));
        let check = |a, b| check_equivalence(a, b, "queue 'q' in vhost '/'");
        assert!(check(&int, &long).is_ok());
        assert_eq!(
            check(&int, &other).expect_err("another limit").text,
            "inequivalent arg 'x-max-length' for queue 'q' in vhost '/': \
             received '6' but current is '5'"
        );
        let none = FieldTable::default();
        assert_eq!(
            check(&int, &none).expect_err("no limit").text,
            "inequivalent arg 'x-max-length' for queue 'q' in vhost '/': \
             received none but current is the value '5' of type 'signedint'"
        );
        let classic = table("x-queue-type", AMQPValue::LongString("classic".into()));
        assert!(check(&classic, &none).is_ok());
    }
}
