//! What a queue's `x-` arguments mean, which are refused, and when a redeclare is equivalent.
//!
//! Owns the texts of the refusals, which are RabbitMQ's (`rabbit_amqqueue:check_declare_arguments`
//! and `rabbit_misc:assert_args_equivalence`). It must not know who declares.

use crate::codec::method::{AMQPValue, FieldTable};
use crate::codec::value::{integer, shown, type_name};
use crate::error::{AmqpError, ReplyCode};

/// Arguments that RabbitMQ validates and compares, in the order in which it reports errors.
/// Others are kept and ignored.
const KNOWN: [&str; 20] = [
    "x-expires",
    "x-message-ttl",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-in-memory-length",
    "x-max-in-memory-bytes",
    "x-max-priority",
    "x-overflow",
    "x-queue-mode",
    "x-single-active-consumer",
    "x-queue-type",
    "x-quorum-initial-group-size",
    "x-delivery-limit",
    "x-max-age",
    "x-stream-max-segment-size-bytes",
    "x-stream-filter-size-bytes",
    "x-initial-cluster-size",
];

/// Arguments of other queue types, which RabbitMQ refuses on a classic queue.
const OF_OTHER_TYPES: [&str; 8] = [
    "x-dead-letter-strategy",
    "x-max-in-memory-length",
    "x-max-in-memory-bytes",
    "x-quorum-initial-group-size",
    "x-max-age",
    "x-stream-max-segment-size-bytes",
    "x-stream-filter-size-bytes",
    "x-initial-cluster-size",
];

/// Arguments that do something which is not there yet. Accepting them silently would break what
/// they promise.
const UNSUPPORTED: [&str; 7] = [
    "x-expires",
    "x-message-ttl",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-max-priority",
    "x-single-active-consumer",
    "x-delivery-limit",
];

/// What happens to a message that would exceed a limit (`x-overflow`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Overflow {
    /// The oldest messages go.
    #[default]
    DropHead,
    /// The new message is refused; with confirms, the publisher gets `basic.nack`.
    RejectPublish,
}

/// Bounds on the messages that are ready in a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// `x-max-length`: messages.
    pub(crate) length_max: Option<u64>,
    /// `x-max-length-bytes`: bytes of bodies.
    pub(crate) bytes_max: Option<u64>,
    pub(crate) overflow: Overflow,
}

impl Limits {
    /// The limits that valid queue arguments (see [`check_arguments`]) ask for.
    pub(crate) fn from_arguments(arguments: &FieldTable) -> Self {
        let limit = |name: &str| find(arguments, name).and_then(integer).map(|n| n as u64);
        let overflow = match find(arguments, "x-overflow") {
            Some(AMQPValue::LongString(value)) if value.as_bytes() == b"reject-publish" => {
                Overflow::RejectPublish
            }
            _ => Overflow::DropHead,
        };
        Self { length_max: limit("x-max-length"), bytes_max: limit("x-max-length-bytes"), overflow }
    }

    pub(super) fn are_set(&self) -> bool {
        self.length_max.is_some() || self.bytes_max.is_some()
    }

    /// Whether one more message of `body_len` bytes is to be refused.
    pub(super) fn refuses(&self, ready: usize, ready_bytes: u64, body_len: u64) -> bool {
        self.overflow == Overflow::RejectPublish
            && (self.length_max.is_some_and(|max| ready as u64 + 1 > max)
                || self.bytes_max.is_some_and(|max| ready_bytes + body_len > max))
    }

    /// Whether messages are to be dropped from the head. Messages that came back never cause
    /// drops when new ones are refused: what was accepted stays.
    pub(super) fn are_exceeded(&self, ready: usize, ready_bytes: u64) -> bool {
        self.overflow == Overflow::DropHead
            && (self.length_max.is_some_and(|max| ready as u64 > max)
                || self.bytes_max.is_some_and(|max| ready_bytes > max))
    }
}

/// Refuses arguments of a wrong type or value, and those that are not served.
/// `queue` is the resource as RabbitMQ prints it: `queue 'q' in vhost '/'`.
pub(crate) fn check_arguments(arguments: &FieldTable, queue: &str) -> Result<(), AmqpError> {
    let refuse = |name: &str, reason: &str| {
        let text = format!("invalid arg '{name}' for {queue}: {reason}");
        Err(AmqpError::new(ReplyCode::PreconditionFailed, text))
    };
    if let Some(value) = find(arguments, "x-queue-type") {
        match value {
            AMQPValue::LongString(kind) if kind.as_bytes() == b"classic" => {}
            AMQPValue::LongString(kind) => {
                let reason = format!("\"unsupported queue type '{kind}'\"");
                return refuse("x-queue-type", &reason);
            }
            other => {
                let reason = format!("{{unacceptable_type,{}}}", type_name(other));
                return refuse("x-queue-type", &reason);
            }
        }
    }
    for name in KNOWN {
        if let Some(value) = find(arguments, name)
            && let Err(reason) = check_value(name, value)
        {
            return refuse(name, &reason);
        }
    }
    for name in OF_OTHER_TYPES {
        if find(arguments, name).is_some() {
            let text =
                format!("invalid arg '{name}' for {queue} of queue type rabbit_classic_queue");
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
        }
    }
    for name in UNSUPPORTED {
        if find(arguments, name).is_some() {
            return refuse(name, "not supported by this version of Leveret");
        }
    }
    Ok(())
}

fn check_value(name: &str, value: &AMQPValue) -> Result<(), String> {
    match name {
        "x-max-length" | "x-max-length-bytes" => {
            let Some(n) = integer(value) else {
                return Err(format!("\"expected integer, got {}\"", type_name(value)));
            };
            if n < 0 { Err(format!("{{value_negative,{n}}}")) } else { Ok(()) }
        }
        "x-overflow" => one_of(value, &["drop-head", "reject-publish"], "invalid_overflow"),
        "x-queue-mode" => {
            let reason = format!("\"unsupported queue mode '{}'\"", shown(value));
            one_of(value, &["default", "lazy"], &reason)
        }
        _ => Ok(()),
    }
}

fn one_of(value: &AMQPValue, allowed: &[&str], reason: &str) -> Result<(), String> {
    match value {
        AMQPValue::LongString(text) => {
            let known = allowed.iter().any(|allowed| allowed.as_bytes() == text.as_bytes());
            if known { Ok(()) } else { Err(reason.to_owned()) }
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
    let classic = AMQPValue::LongString("classic".into());
    for name in KNOWN {
        let default = (name == "x-queue-type").then_some(&classic);
        let now = find(current, name).or(default);
        let asked = find(received, name).or(default);
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

fn is_equivalent(a: &AMQPValue, b: &AMQPValue) -> bool {
    match (integer(a), integer(b)) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

fn described(value: &AMQPValue) -> String {
    format!("the value '{}' of type '{}'", shown(value), type_name(value))
}

fn find<'a>(arguments: &'a FieldTable, name: &str) -> Option<&'a AMQPValue> {
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
