//! The keys of a policy's definition: which there are and what values they take.
//!
//! Owns the checks, with RabbitMQ's texts (`rabbit_policies`, `rabbit_mirror_queue_misc`), and
//! which keys suit which type of queue. It must not know what a key does.
//!
//! Keys that are about clustering, mirroring or older storage are checked and have no effect.

use serde_json::{Map, Value};

use super::{PolicyScope, integer};
use crate::codec::value::erlang_binary;
use crate::queue::Kind;

/// The keys that operators may set, with those of RabbitMQ 4.
const OPERATOR_KEYS: [&str; 9] = [
    "delivery-limit",
    "expires",
    "max-in-memory-bytes",
    "max-in-memory-length",
    "max-length",
    "max-length-bytes",
    "message-ttl",
    "overflow",
    "queue-version",
];

/// Keys that keep a policy from classic queues.
const NOT_CLASSIC: [&str; 6] = [
    "dead-letter-strategy",
    "delivery-limit",
    "initial-cluster-size",
    "max-age",
    "queue-leader-locator",
    "stream-max-segment-size-bytes",
];

/// Keys that keep a policy from quorum queues.
const NOT_QUORUM: [&str; 10] = [
    "ha-mode",
    "ha-params",
    "ha-promote-on-failure",
    "ha-promote-on-shutdown",
    "ha-sync-mode",
    "initial-cluster-size",
    "max-age",
    "queue-master-locator",
    "queue-mode",
    "stream-max-segment-size-bytes",
];

/// Whether a policy with this key may be in effect for a queue of this type.
pub(super) fn suits(key: &str, kind: Kind) -> bool {
    match kind {
        Kind::Classic => !NOT_CLASSIC.contains(&key),
        Kind::Quorum => !NOT_QUORUM.contains(&key),
    }
}

/// Checks all keys and values.
pub(super) fn check(scope: PolicyScope, definition: &Map<String, Value>) -> Result<(), String> {
    if definition.is_empty() {
        return Err("no policy provided".to_owned());
    }
    let mut unknown = Vec::new();
    for (key, value) in definition {
        let is_for_all = scope == PolicyScope::User || OPERATOR_KEYS.contains(&key.as_str());
        match check_value(key, value) {
            Some(checked) if is_for_all => checked?,
            _ => unknown.push(format!("{{{},{}}}", erlang_binary(key.as_bytes()), shown(value))),
        }
    }
    if !unknown.is_empty() {
        return Err(format!("[{}] are not recognised policy settings", unknown.join(",")));
    }
    check_mirroring(definition)
}

/// Checks one value; `None` for a key that does not exist.
fn check_value(key: &str, value: &Value) -> Option<Result<(), String>> {
    let is_text = value.is_string();
    let is_one_of = |texts: &[&str]| value.as_str().is_some_and(|text| texts.contains(&text));
    let is_at_least = |least: i64| integer(value).is_some_and(|number| number >= least);
    let (is_valid, what) = match key {
        "alternate-exchange" => (is_text, "alternate exchange name"),
        "dead-letter-exchange" => (is_text, "dead letter exchange name"),
        "dead-letter-routing-key" => (is_text, "dead letter routing key"),
        "dead-letter-strategy" => {
            (is_one_of(&["at-most-once", "at-least-once"]), "dead letter strategy")
        }
        "message-ttl" => (is_at_least(0), "message TTL"),
        "expires" => (is_at_least(1), "queue expiry"),
        "max-length" => (is_at_least(0), "maximum length"),
        "max-length-bytes" => (is_at_least(0), "maximum length in bytes"),
        "max-in-memory-length" | "max-in-memory-bytes" => {
            (is_at_least(0), "maximum memory in bytes")
        }
        // RabbitMQ 4: a negative number sets no limit.
        "delivery-limit" => (integer(value).is_some(), "delivery limit"),
        "consumer-timeout" => (is_at_least(0), "consumer timeout"),
        "overflow" => {
            (is_one_of(&["drop-head", "reject-publish", "reject-publish-dlx"]), "overflow value")
        }
        "queue-mode" => (is_one_of(&["default", "lazy"]), "queue-mode value"),
        "queue-version" => (is_at_least(1) && integer(value) <= Some(2), "queue-version value"),
        "queue-leader-locator" => {
            let known = ["client-local", "balanced", "random", "least-leaders"];
            (is_one_of(&known), "queue leader locator value")
        }
        "max-age" => (value.as_str().is_some_and(is_age), "max age"),
        "initial-cluster-size" => (is_at_least(0), "cluster size"),
        "stream-max-segment-size-bytes" => {
            (is_at_least(0) && integer(value) <= Some(3_000_000_000), "segment size")
        }
        "queue-master-locator" => {
            let is_known = is_one_of(&["min-masters", "client-local", "random"]);
            let refused = || format!("{} invalid queue-master-locator value", shown(value));
            return Some(if is_known { Ok(()) } else { Err(refused()) });
        }
        "ha-mode" => (is_one_of(&["all", "exactly", "nodes"]), "ha-mode value"),
        "ha-params" => return Some(Ok(())),
        "ha-sync-mode" => return Some(either(key, value, "manual", "automatic")),
        "ha-promote-on-shutdown" | "ha-promote-on-failure" => {
            return Some(either(key, value, "always", "when-synced"));
        }
        "ha-sync-batch-size" => {
            let text = format!("{key} takes an integer greater than 0, {} given", shown(value));
            return Some(if is_at_least(1) { Ok(()) } else { Err(text) });
        }
        _ => return None,
    };
    let refused = || format!("{} is not a valid {what}", shown(value));
    Some(if is_valid { Ok(()) } else { Err(refused()) })
}

fn either(key: &str, value: &Value, first: &str, second: &str) -> Result<(), String> {
    match value.as_str() {
        Some(text) if text == first || text == second => Ok(()),
        _ => Err(format!("{key} must be \"{first}\" or \"{second}\", got {}", shown(value))),
    }
}

/// What the keys of mirrored queues ask of each other.
fn check_mirroring(definition: &Map<String, Value>) -> Result<(), String> {
    let Some(mode) = definition.get("ha-mode").and_then(Value::as_str) else {
        return match definition.keys().any(|key| key.starts_with("ha-")) {
            true => Err("ha-mode must be specified to specify ha-params, ha-sync-mode or \
                         ha-promote-on-shutdown"
                .to_owned()),
            false => Ok(()),
        };
    };
    let params = definition.get("ha-params");
    let refused = |text: &str| Err(format!("ha-mode=\"{mode}\" {text}"));
    match (mode, params) {
        ("all", None) => Ok(()),
        ("all", Some(_)) => refused("does not take parameters"),
        ("exactly", Some(count)) if integer(count).is_some_and(|count| count > 0) => Ok(()),
        ("exactly", None) => refused("takes an integer, none given"),
        ("exactly", Some(other)) => refused(&format!("takes an integer, {} given", shown(other))),
        (_, Some(Value::Array(nodes))) if nodes.is_empty() => refused("list must be non-empty"),
        (_, Some(Value::Array(nodes))) if nodes.iter().all(Value::is_string) => Ok(()),
        (_, None) => refused("takes a list, none given"),
        (_, Some(nodes @ Value::Array(_))) => {
            refused(&format!("takes a list of strings, {} was not a string", shown(nodes)))
        }
        (_, Some(other)) => refused(&format!("takes a list, {} given", shown(other))),
    }
}

/// A number with a unit, such as `7D`.
fn is_age(text: &str) -> bool {
    let digits = text.trim_end_matches(['Y', 'M', 'D', 'h', 'm', 's']);
    digits.len() + 1 == text.len()
        && !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// A value as RabbitMQ prints it.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => erlang_binary(text.as_bytes()),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(shown).collect();
            format!("[{}]", items.join(","))
        }
        Value::Object(map) => {
            let entry = |(key, value): (&String, &Value)| {
                format!("{} => {}", erlang_binary(key.as_bytes()), shown(value))
            };
            let entries: Vec<String> = map.iter().map(entry).collect();
            format!("#{{{}}}", entries.join(","))
        }
        Value::Number(number) if number.is_f64() => {
            let text = number.to_string();
            if text.contains('.') { text } else { text.replace('e', ".0e").replace(".0e+", ".0e") }
        }
        other => other.to_string(),
    }
}
