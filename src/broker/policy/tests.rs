//! Policies: RabbitMQ's texts, which one is in effect, and how they merge.

use super::*;
use crate::codec::method::AMQPValue;

fn definition(json: &str) -> Map<String, Value> {
    serde_json::from_str(json).expect("a JSON object")
}

fn policy(name: &str, pattern: &str, priority: i64, json: &str) -> PolicyDefinition {
    let (name, pattern, apply_to) = (name.to_owned(), pattern.to_owned(), "all".to_owned());
    PolicyDefinition { name, pattern, apply_to, priority, definition: definition(json) }
}

fn refusal(scope: PolicyScope, pattern: &str, json: &str) -> String {
    Policy::new(scope, policy("p", pattern, 0, json)).expect_err(json).0
}

/// Policies of both scopes that match everything; an empty definition is none.
fn policies(user: &str, operator: &str) -> Policies {
    let mut policies = Policies::default();
    for (scope, json) in [(PolicyScope::User, user), (PolicyScope::Operator, operator)] {
        if !json.is_empty() {
            let policy = Policy::new(scope, policy("p", "", 0, json)).expect(json);
            policies.set(scope, policy);
        }
    }
    policies
}

fn settings(kind: Kind, arguments: &[(&str, AMQPValue)], user: &str, operator: &str) -> Settings {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    policies(user, operator).of(Target::Queue(kind), "q").settings(kind, &table)
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

#[test]
fn bad_definitions_are_refused_in_rabbitmqs_words() {
    // As `rabbitmqctl set_policy` of 3.10 prints them after "Validation failed".
    for (json, expected) in [
        (r#"{}"#, "no policy provided"),
        (
            r#"{"foo":1,"bar":2}"#,
            r#"[{<<"bar">>,2},{<<"foo">>,1}] are not recognised policy settings"#,
        ),
        (r#"{"foo":1,"message-ttl":5}"#, r#"[{<<"foo">>,1}] are not recognised policy settings"#),
        (
            r#"{"federation-upstream-set":"all"}"#,
            r#"[{<<"federation-upstream-set">>,<<"all">>}] are not recognised policy settings"#,
        ),
        (r#"{"message-ttl":-1}"#, "-1 is not a valid message TTL"),
        (r#"{"message-ttl":"x","expires":0}"#, "0 is not a valid queue expiry"),
        (r#"{"message-ttl":[1,2]}"#, "[1,2] is not a valid message TTL"),
        (r#"{"message-ttl":1e30}"#, "1.0e30 is not a valid message TTL"),
        (r#"{"message-ttl":0.1}"#, "0.1 is not a valid message TTL"),
        (
            r#"{"message-ttl":{"a":[1,"b",null,true]}}"#,
            r##"#{<<"a">> => [1,<<"b">>,null,true]} is not a valid message TTL"##,
        ),
        (r#"{"expires":5.5}"#, "5.5 is not a valid queue expiry"),
        (r#"{"max-length":5.0}"#, "5.0 is not a valid maximum length"),
        (r#"{"max-length-bytes":-1}"#, "-1 is not a valid maximum length in bytes"),
        (r#"{"max-in-memory-length":-1}"#, "-1 is not a valid maximum memory in bytes"),
        (r#"{"overflow":"foo"}"#, r#"<<"foo">> is not a valid overflow value"#),
        (r#"{"dead-letter-exchange":5}"#, "5 is not a valid dead letter exchange name"),
        (r#"{"dead-letter-routing-key":1}"#, "1 is not a valid dead letter routing key"),
        (r#"{"dead-letter-strategy":"x"}"#, r#"<<"x">> is not a valid dead letter strategy"#),
        (r#"{"alternate-exchange":1}"#, "1 is not a valid alternate exchange name"),
        (r#"{"queue-mode":"x"}"#, r#"<<"x">> is not a valid queue-mode value"#),
        (r#"{"queue-version":3}"#, "3 is not a valid queue-version value"),
        (r#"{"queue-master-locator":"x"}"#, r#"<<"x">> invalid queue-master-locator value"#),
        (r#"{"queue-leader-locator":"x"}"#, r#"<<"x">> is not a valid queue leader locator value"#),
        (r#"{"max-age":"5x"}"#, r#"<<"5x">> is not a valid max age"#),
        (r#"{"ha-mode":"foo"}"#, r#"<<"foo">> is not a valid ha-mode value"#),
        (r#"{"ha-mode":"exactly"}"#, r#"ha-mode="exactly" takes an integer, none given"#),
        (r#"{"ha-mode":"nodes","ha-params":[]}"#, r#"ha-mode="nodes" list must be non-empty"#),
        (
            r#"{"ha-params":2}"#,
            "ha-mode must be specified to specify ha-params, ha-sync-mode or \
             ha-promote-on-shutdown",
        ),
        (
            r#"{"ha-mode":"all","ha-sync-mode":"x"}"#,
            r#"ha-sync-mode must be "manual" or "automatic", got <<"x">>"#,
        ),
    ] {
        assert_eq!(refusal(PolicyScope::User, "", json), expected, "{json}");
    }
    let text = refusal(PolicyScope::Operator, "", r#"{"dead-letter-exchange":"x"}"#);
    let expected = r#"[{<<"dead-letter-exchange">>,<<"x">>}] are not recognised policy settings"#;
    assert_eq!(text, expected);
}

#[test]
fn bad_patterns_and_targets_are_refused() {
    let error = refusal(PolicyScope::User, "(a", r#"{"expires":0}"#);
    let expected = "pattern should be regular expression but is invalid: ";
    assert!(error.starts_with(expected), "{error}");
    assert!(error.ends_with("\n0 is not a valid queue expiry"), "{error}");
    let mut wrong = policy("p", "", 0, r#"{"expires":1}"#);
    wrong.apply_to = "foo".to_owned();
    let error = Policy::new(PolicyScope::User, wrong).expect_err("no such target").0;
    assert!(error.starts_with("apply-to 'foo' unrecognised; should be one of: "), "{error}");
}

#[test]
fn keys_of_other_times_are_taken() {
    for json in [
        r#"{"ha-mode":"exactly","ha-params":2,"ha-sync-mode":"automatic"}"#,
        r#"{"ha-mode":"nodes","ha-params":["a"],"ha-promote-on-shutdown":"always"}"#,
        r#"{"queue-mode":"lazy","queue-version":2,"queue-master-locator":"min-masters"}"#,
        r#"{"max-age":"7D","stream-max-segment-size-bytes":1,"initial-cluster-size":3}"#,
        r#"{"max-in-memory-length":1,"max-in-memory-bytes":1}"#,
        r#"{"dead-letter-strategy":"at-most-once"}"#,
        r#"{"queue-leader-locator":"balanced","delivery-limit":-1,"consumer-timeout":0}"#,
    ] {
        Policy::new(PolicyScope::User, policy("p", "", 0, json)).expect(json);
    }
}

#[test]
fn the_highest_priority_is_in_effect_then_the_first_name() {
    let mut policies = Policies::default();
    for (name, pattern, priority) in
        [("c", "^q", 1), ("b", "q", 1), ("a", "q", 0), ("d", "^x", 9), ("e", "^(?!q)", 9)]
    {
        let policy = policy(name, pattern, priority, r#"{"expires":1}"#);
        policies.set(PolicyScope::User, Policy::new(PolicyScope::User, policy).expect("valid"));
    }
    let name = |policies: &Policies, name| policies.of(Target::Exchange, name).names().user;
    assert_eq!(name(&policies, "q").as_deref(), Some("b"));
    assert_eq!(name(&policies, "aq").as_deref(), Some("e"));
    assert!(policies.delete(PolicyScope::User, "b") && !policies.delete(PolicyScope::User, "b"));
    assert_eq!(name(&policies, "q").as_deref(), Some("c"));
}

#[test]
fn policies_apply_to_what_they_are_for() {
    let (classic, quorum) = (Target::Queue(Kind::Classic), Target::Queue(Kind::Quorum));
    for (apply_to, json, expected) in [
        ("all", r#"{"expires":1}"#, [true, true, true]),
        ("queues", r#"{"expires":1}"#, [true, true, false]),
        ("classic_queues", r#"{"expires":1}"#, [true, false, false]),
        ("quorum_queues", r#"{"expires":1}"#, [false, true, false]),
        ("exchanges", r#"{"expires":1}"#, [false, false, true]),
        ("streams", r#"{"expires":1}"#, [false, false, false]),
        // A single key that a type does not know keeps the whole policy from its queues.
        ("all", r#"{"expires":1,"delivery-limit":1}"#, [false, true, true]),
        ("all", r#"{"expires":1,"queue-mode":"lazy"}"#, [true, false, true]),
        ("all", r#"{"expires":1,"ha-mode":"all"}"#, [true, false, true]),
        ("all", r#"{"expires":1,"max-age":"1D"}"#, [false, false, true]),
    ] {
        let definition = policy("p", "", 0, json);
        let definition = PolicyDefinition { apply_to: apply_to.to_owned(), ..definition };
        let mut policies = Policies::default();
        let policy = Policy::new(PolicyScope::User, definition).expect("valid");
        policies.set(PolicyScope::User, policy);
        let found = [classic, quorum, Target::Exchange]
            .map(|target| policies.of(target, "q").names().user.is_some());
        assert_eq!(found, expected, "{apply_to} {json}");
    }
}

#[test]
fn the_smaller_number_is_in_effect() {
    for (argument, user, operator, expected) in [
        (None, "", "", None),
        (Some(5), "", "", Some(5)),
        (None, r#"{"max-length":7}"#, "", Some(7)),
        (Some(5), r#"{"max-length":7}"#, "", Some(5)),
        (Some(9), r#"{"max-length":7}"#, "", Some(7)),
        (Some(9), r#"{"max-length":7}"#, r#"{"max-length":6}"#, Some(6)),
        (Some(9), r#"{"max-length":7}"#, r#"{"max-length":8}"#, Some(7)),
        (None, "", r#"{"max-length":8}"#, Some(8)),
        (None, r#"{"max-length":18446744073709551615}"#, "", Some(i64::MAX as u64)),
    ] {
        for kind in [Kind::Classic, Kind::Quorum] {
            let argument = argument.map(|n| ("x-max-length", AMQPValue::LongInt(n)));
            let settings = settings(kind, argument.as_slice(), user, operator);
            assert_eq!(settings.length_max, expected, "{argument:?} {user} {operator}");
        }
    }
    let all = r#"{"message-ttl":1,"expires":2,"max-length-bytes":3,"consumer-timeout":4}"#;
    let found = settings(Kind::Quorum, &[], all, "");
    assert_eq!((found.message_ttl_ms, found.expires_ms), (Some(1), Some(2)));
    assert_eq!((found.bytes_max, found.consumer_timeout_ms), (Some(3), Some(4)));
    let forever = settings(Kind::Classic, &[], r#"{"expires":9223372036854775807}"#, "");
    assert_eq!(forever.expires_ms, Some(EXPIRY_MAX_MS));
}

#[test]
fn dead_letter_arguments_win_over_policies() {
    let policy = r#"{"dead-letter-exchange":"p","dead-letter-routing-key":"pk"}"#;
    let found = settings(Kind::Classic, &[("x-dead-letter-exchange", text("a"))], policy, "");
    assert_eq!(found.dead_letter_exchange.as_deref(), Some("a"));
    assert_eq!(found.dead_letter_routing_key.as_deref(), Some("pk"));
    let found = settings(Kind::Classic, &[], policy, "");
    assert_eq!(found.dead_letter_exchange.as_deref(), Some("p"));
}

#[test]
fn overflow_is_the_arguments_in_classic_and_the_policys_in_quorum_queues() {
    let argument = [("x-overflow", text("drop-head"))];
    let reject = r#"{"overflow":"reject-publish"}"#;
    let dlx = r#"{"overflow":"reject-publish-dlx"}"#;
    let found =
        |kind, arguments: &[_], user, operator| settings(kind, arguments, user, operator).overflow;
    assert_eq!(found(Kind::Classic, &argument, reject, ""), Some(Overflow::DropHead));
    assert_eq!(found(Kind::Quorum, &argument, reject, ""), Some(Overflow::RejectPublish));
    assert_eq!(found(Kind::Classic, &[], dlx, ""), Some(Overflow::RejectPublishDlx));
    assert_eq!(found(Kind::Quorum, &[], dlx, ""), Some(Overflow::DropHead));
    assert_eq!(found(Kind::Classic, &[], dlx, reject), Some(Overflow::RejectPublish));
}

#[test]
fn delivery_limits_may_be_lifted() {
    let limit = |argument: Option<i32>, user, operator| {
        let argument = argument.map(|n| ("x-delivery-limit", AMQPValue::LongInt(n)));
        settings(Kind::Quorum, argument.as_slice(), user, operator).delivery_limit
    };
    let default = limit(None, "", "");
    assert!(default.is_some(), "quorum queues have a limit of their own");
    assert_eq!(limit(None, r#"{"delivery-limit":50}"#, ""), Some(50));
    assert_eq!(limit(Some(3), r#"{"delivery-limit":50}"#, ""), Some(3));
    assert_eq!(limit(Some(-1), r#"{"delivery-limit":50}"#, ""), Some(50));
    assert_eq!(limit(Some(3), r#"{"delivery-limit":-1}"#, ""), Some(3));
    assert_eq!(limit(None, r#"{"delivery-limit":-1}"#, ""), None);
    assert_eq!(limit(None, r#"{"delivery-limit":-1}"#, r#"{"delivery-limit":5}"#), Some(5));
}

#[test]
fn a_consumer_timeout_of_zero_is_no_bound() {
    let timeout = |argument: i32, user: &str| {
        let argument = [("x-consumer-timeout", AMQPValue::LongInt(argument))];
        settings(Kind::Classic, &argument, user, "").consumer_timeout_ms
    };
    assert_eq!(timeout(5, r#"{"consumer-timeout":3}"#), Some(3));
    assert_eq!(timeout(5, r#"{"consumer-timeout":0}"#), Some(5));
    assert_eq!(timeout(0, r#"{"consumer-timeout":3}"#), Some(3));
    assert_eq!(timeout(0, r#"{"consumer-timeout":0}"#), Some(0));
    assert_eq!(timeout(0, ""), Some(0));
}
