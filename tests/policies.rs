//! What policies do to queues and exchanges, seen from clients.
//!
//! Owns the effect of each key, on what is there and on what comes, and of operator policies. With
//! `AMQP_URI` and `AMQP_CTL` in the environment the same tests run against that broker. Policies
//! are set by importing definitions; one that no longer matches is as good as deleted.

mod support;

use std::sync::OnceLock;

use serde_json::{Value, json};
use support::{Broker, Client, unique, wait_until};

fn broker() -> &'static Broker {
    static BROKER: OnceLock<Broker> = OnceLock::new();
    BROKER.get_or_init(Broker::start_with_data_dir)
}

/// Sets a policy for the names that begin with `prefix`.
fn set_policy(name: &str, prefix: &str, definition: Value) {
    let policy = json!({"vhost": "/", "name": name, "pattern": format!("^{prefix}"),
        "apply-to": "all", "priority": 0, "definition": definition});
    broker().import(&json!({ "policies": [policy] }).to_string()).expect("a valid policy");
}

fn set_operator_policy(name: &str, prefix: &str, definition: Value) {
    let value = json!({"pattern": format!("^{prefix}"), "apply-to": "queues", "priority": 0,
        "definition": definition});
    let parameter =
        json!({"vhost": "/", "component": "operator_policy", "name": name, "value": value});
    broker().import(&json!({ "parameters": [parameter] }).to_string()).expect("a valid policy");
}

/// A queue of its own, on channel 1 of a new connection.
fn with_queue(fields: &str) -> (Client, String) {
    let mut client = Client::open(broker());
    let queue = unique("policed");
    client.declare(1, &format!("queue={queue} {fields}"));
    (client, queue)
}

/// Publishes with confirms and waits for them.
fn put(client: &mut Client, queue: &str, count: u64) -> bool {
    client.open_channels(2..=2);
    client.call(2, "confirm.select");
    for n in 1..=count {
        client.publish(2, &format!("routing_key={queue}"), "", n.to_string().as_bytes());
    }
    let accepted = client.confirmed_up_to(2, count);
    client.call(2, "channel.close reply_code=200 reply_text=bye class_id=0 method_id=0");
    accepted
}

fn drain(client: &mut Client, queue: &str) -> Vec<String> {
    let get = || client.get(1, &format!("queue={queue} no_ack")).map(|message| message.text());
    std::iter::from_fn(get).collect()
}

#[test]
fn a_limit_drops_what_is_there_at_once_and_ends_with_the_policy() {
    let (mut client, queue) = with_queue("exclusive");
    assert!(put(&mut client, &queue, 10));
    set_policy(&queue, &queue, json!({"max-length": 3}));
    wait_until("the limit", || client.counts(1, &queue).0 == 3);
    set_policy(&queue, "nothing", json!({"max-length": 3}));
    wait_until("its end", || {
        put(&mut client, &queue, 4);
        client.counts(1, &queue).0 > 3
    });
}

#[test]
fn the_smaller_of_argument_policy_and_operator_policy_holds() {
    let (mut client, queue) = with_queue("exclusive arguments=(x-max-length=5)");
    set_policy(&queue, &queue, json!({"max-length": 7}));
    put(&mut client, &queue, 9);
    assert_eq!(client.counts(1, &queue).0, 5);
    set_policy(&queue, &queue, json!({"max-length": 4}));
    wait_until("the policy", || client.counts(1, &queue).0 == 4);
    set_operator_policy(&queue, &queue, json!({"max-length": 2}));
    wait_until("the operator policy", || client.counts(1, &queue).0 == 2);
    assert_eq!(drain(&mut client, &queue), ["8", "9"]);
}

#[test]
fn queues_that_come_later_are_matched_too() {
    let queue = unique("later");
    set_policy(&queue, &queue, json!({"max-length": 1, "overflow": "reject-publish"}));
    let mut client = Client::open(broker());
    client.declare(1, &format!("queue={queue} exclusive"));
    assert!(!put(&mut client, &queue, 2), "the second is refused");
    assert_eq!(drain(&mut client, &queue), ["1"]);
}

#[test]
fn an_overflow_argument_wins_in_classic_queues() {
    let (mut client, queue) = with_queue("exclusive arguments=(x-overflow=drop-head)");
    set_policy(&queue, &queue, json!({"max-length": 1, "overflow": "reject-publish"}));
    wait_until("the limit", || {
        assert!(put(&mut client, &queue, 2), "nothing is refused");
        client.counts(1, &queue).0 == 1
    });
}

#[test]
fn messages_expire_by_policy() {
    let (mut client, queue) = with_queue("exclusive");
    set_policy(&queue, &queue, json!({"message-ttl": 0}));
    wait_until("the time to live", || {
        put(&mut client, &queue, 1);
        drain(&mut client, &queue).is_empty()
    });
}

#[test]
fn unused_queues_expire_by_policy() {
    let queue = unique("unused");
    let mut client = Client::open(broker());
    client.declare(1, &format!("queue={queue}"));
    set_policy(&queue, &queue, json!({"expires": 50}));
    // Whether it is there is asked by the default exchange, which is no use of the queue.
    wait_until("the queue to go", || {
        client.publish(1, &format!("routing_key={queue} mandatory"), "", b"");
        client.publish(1, "routing_key=nowhere-at-all mandatory", "", b"");
        let returned = client.content(1, "basic.return");
        let is_gone = returned.method["routing_key"].text() == queue;
        if is_gone {
            client.content(1, "basic.return");
        }
        is_gone
    });
}

#[test]
fn dead_letters_go_where_the_policy_says_unless_an_argument_does() {
    let (mut client, by_policy) = with_queue("exclusive");
    let (dead, other) = (unique("dead"), unique("other"));
    for name in [&dead, &other] {
        client.declare(1, &format!("queue={name} exclusive"));
    }
    let by_argument = unique("policed");
    let to = format!("x-dead-letter-exchange=\"\",x-dead-letter-routing-key={other}");
    client.declare(1, &format!("queue={by_argument} exclusive arguments=({to})"));
    for queue in [&by_policy, &by_argument] {
        let to = json!({"dead-letter-exchange": "", "dead-letter-routing-key": dead});
        set_policy(queue, queue, to);
        wait_until("the dead letter", || {
            client.put(1, queue, "x");
            if let Some(message) = client.get(1, &format!("queue={queue}")) {
                client.send(1, &format!("basic.reject delivery_tag=l:{}", message.tag()));
            }
            let to = if *queue == by_policy { &dead } else { &other };
            client.counts(1, to).0 > 0
        });
    }
    assert!(drain(&mut client, &dead).iter().all(|text| text == "x"));
}

#[test]
fn unroutable_messages_go_where_the_policy_says() {
    let mut client = Client::open(broker());
    let (exchange, queue) = (unique("exchange"), unique("unrouted"));
    client.call(1, &format!("exchange.declare exchange={exchange} type=direct"));
    client.declare(1, &format!("queue={queue} exclusive"));
    let publish = format!("exchange={exchange} routing_key=nowhere");
    // The route is known before the policy comes.
    client.publish(1, &publish, "", b"lost");
    set_policy(&exchange, &exchange, json!({"alternate-exchange": "amq.fanout"}));
    client.call(1, &format!("queue.bind queue={queue} exchange=amq.fanout routing_key=x"));
    wait_until("the alternate exchange", || {
        client.publish(1, &publish, "", b"found");
        client.counts(1, &queue).0 > 0
    });
    assert_eq!(drain(&mut client, &queue)[0], "found");
    client.call(1, &format!("exchange.delete exchange={exchange}"));
}

#[test]
fn quorum_queues_drop_after_the_policys_deliveries() {
    let (mut client, queue) = with_queue("durable arguments=(x-queue-type=quorum)");
    set_policy(&queue, &queue, json!({"delivery-limit": 1}));
    client.put(1, &queue, "poison");
    let mut deliveries = 0;
    wait_until("the message", || client.counts(1, &queue).0 == 1);
    wait_until("the message to go", || {
        if let Some(message) = client.get(1, &format!("queue={queue}")) {
            deliveries += 1;
            client.send(1, &format!("basic.reject delivery_tag=l:{} requeue", message.tag()));
        }
        deliveries >= 2 && client.counts(1, &queue).0 == 0
    });
    assert_eq!(deliveries, 2);
    client.call(1, &format!("queue.delete queue={queue}"));
}

#[test]
fn a_key_for_another_type_of_queue_keeps_the_whole_policy_away() {
    let (mut client, queue) = with_queue("exclusive");
    set_policy(&queue, &queue, json!({"max-length": 1, "delivery-limit": 1}));
    put(&mut client, &queue, 3);
    assert_eq!(client.counts(1, &queue).0, 3);
}

#[test]
fn the_highest_priority_holds() {
    let (mut client, queue) = with_queue("exclusive");
    let policy = |name: &str, priority: i32, length: u32| {
        json!({"vhost": "/", "name": format!("{queue}-{name}"), "pattern": queue,
            "apply-to": "queues", "priority": priority, "definition": {"max-length": length}})
    };
    let policies = [policy("a", 1, 2), policy("b", 5, 4), policy("c", -3, 1)];
    broker().import(&json!({ "policies": policies }).to_string()).expect("valid policies");
    wait_until("the policy", || {
        put(&mut client, &queue, 9);
        client.counts(1, &queue).0 == 4
    });
}

#[test]
fn bad_policies_are_refused() {
    let name = unique("bad");
    let policy = json!({"vhost": "/", "name": name, "pattern": name, "apply-to": "all",
        "priority": 0, "definition": {"max-length": -1}});
    let refused = broker().import(&json!({ "policies": [policy] }).to_string());
    let text = refused.expect_err("a negative length");
    assert!(text.contains("-1 is not a valid maximum length"), "{text}");
    let export = broker().export();
    let policies = export["policies"].as_array().expect("a list");
    assert!(policies.iter().all(|policy| policy["name"] != name.as_str()));
}
