//! Users, vhosts and permissions, seen from clients while an operator changes them.
//!
//! Owns the texts of refusals and what becomes of open connections. The broker runs in this
//! process, so that the tests can change it as an operator would. With `AMQP_URI` in the
//! environment the same tests run against that RabbitMQ, which is changed with the command in
//! `AMQP_CTL`, such as `rabbitmqctl -n node@host`; that is how they are proven right.

mod support;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use leveret::broker::{
    AccessError, PermissionDefinition, TopicPermissionDefinition, UserDefinition, UserLimits,
    VhostLimits, VhostMetadata,
};
use leveret::config::{Config, Limits, Listeners, MemoryWatermark};
use leveret::net::Server;
use serde_json::{Value, json};
use support::{Broker, Client, Handshake, unique, wait_until};

/// The broker under test, and the way to change it.
struct Subject {
    broker: Broker,
    inside: Option<Arc<leveret::broker::Broker>>,
}

fn subject() -> &'static Subject {
    static SUBJECT: OnceLock<Subject> = OnceLock::new();
    SUBJECT.get_or_init(|| match Broker::external() {
        Some(broker) => Subject { broker, inside: None },
        None => serve_here(Limits::default()),
    })
}

fn serve_here(limits: Limits) -> Subject {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listeners = Listeners { amqp: vec![SocketAddr::from(([127, 0, 0, 1], 0))] };
            let config = Config { listeners, limits, ..Config::default() };
            let server = Server::bind(Arc::new(config)).await.unwrap();
            let address = server.addresses()[0].to_string();
            send.send((address, server.broker().clone())).unwrap();
            server.run(std::future::pending()).await;
        });
    });
    let (address, inside) = receive.recv().expect("the server starts");
    Subject { broker: Broker::at(address), inside: Some(inside) }
}

/// Runs the reference's command-line tool.
fn ctl(arguments: &[&str]) {
    let command = std::env::var("AMQP_CTL").expect("AMQP_CTL is set when AMQP_URI is");
    let mut words = command.split_whitespace();
    let program = words.next().expect("AMQP_CTL names a program");
    let output = Command::new(program).args(words).args(arguments).output().expect("it runs");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

/// A vhost and a user of its own for a test, whose password is `secret`. The user that the other
/// helpers log in with may do everything in the vhost.
struct Place {
    vhost: String,
    user: String,
}

impl Place {
    /// The user may do what these patterns for configure, write and read say.
    fn new(configure: &str, write: &str, read: &str) -> Place {
        Self::with(json!({}), |place| {
            json!({"permissions": [{
                "vhost": place.vhost, "user": place.user,
                "configure": configure, "write": write, "read": read,
            }]})
        })
    }

    /// `user` has more fields of the user, and `more` further definitions.
    fn with(user: Value, more: impl Fn(&Place) -> Value) -> Place {
        let place = Place { vhost: unique("v"), user: unique("u") };
        let mut definitions = json!({
            "vhosts": [{"name": place.vhost}],
            "users": [{
                "name": place.user, "tags": [],
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "password_hash": "AQIDBDB9kM21iEUzN1lZ+6VReCsdNqS0sERdAQTcY6Xs3PMz",
            }],
            "permissions": [{
                "vhost": place.vhost, "user": subject().broker.user,
                "configure": ".*", "write": ".*", "read": ".*",
            }],
        });
        for (field, value) in user.as_object().unwrap() {
            definitions["users"][0][field] = value.clone();
        }
        for (kind, items) in more(&place).as_object().unwrap() {
            let all = definitions[kind].take();
            let mut all = all.as_array().cloned().unwrap_or_default();
            all.extend(items.as_array().unwrap().iter().cloned());
            definitions[kind] = Value::Array(all);
        }
        import(&definitions);
        place
    }

    fn handshake(&self) -> Handshake {
        Handshake {
            user: Some(self.user.clone()),
            password: Some("secret".into()),
            vhost: Some(self.vhost.clone()),
            ..Handshake::default()
        }
    }

    /// The user, with channel 1 open.
    fn open(&self) -> Client {
        Client::open_with(&subject().broker, &self.handshake())
    }

    /// Somebody who may do everything, with channel 1 open.
    fn open_admin(&self) -> Client {
        let vhost = Some(self.vhost.clone());
        Client::open_with(&subject().broker, &Handshake { vhost, ..Handshake::default() })
    }

    /// The user is refused at connection.open.
    fn refused(&self, text: &str) {
        open_refused(&self.handshake(), text);
    }

    fn permit(&self, configure: &str, write: &str, read: &str) {
        let (vhost, user) = (self.vhost.as_str(), self.user.as_str());
        match &subject().inside {
            None => ctl(&["set_permissions", "-p", vhost, user, configure, write, read]),
            Some(broker) => {
                let permission = json!({
                    "vhost": vhost, "user": user,
                    "configure": configure, "write": write, "read": read,
                });
                broker.set_permissions(&permission_of(&permission)).expect("valid");
            }
        }
    }

    fn delete_user(&self) {
        match &subject().inside {
            None => ctl(&["delete_user", &self.user]),
            Some(broker) => broker.delete_user(&self.user).expect("it exists"),
        }
    }

    fn delete_vhost(&self) {
        match &subject().inside {
            None => ctl(&["delete_vhost", &self.vhost]),
            Some(broker) => broker.delete_vhost(&self.vhost).expect("it exists"),
        }
    }

    /// `what` with the vhost's and the user's name in the place of `$v` and `$u`.
    fn text(&self, what: &str) -> String {
        what.replace("$v", &self.vhost).replace("$u", &self.user)
    }
}

fn open_refused(handshake: &Handshake, text: &str) {
    let mut client = Client::dial(&subject().broker);
    client.log_in(&subject().broker, handshake);
    let tune = client.expect("0 connection.tune");
    let (channels, frame) = (tune["channel_max"].int(), tune["frame_max"].int());
    client.send(
        0,
        &format!("connection.tune-ok channel_max={channels} frame_max={frame} heartbeat=0"),
    );
    client.send(0, &format!("connection.open vhost=\"{}\"", handshake.vhost.as_ref().unwrap()));
    client.expect_connection_close(530, text, (10, 40));
}

/// Puts definitions, in the notation of RabbitMQ's files, into the broker under test.
fn import(definitions: &Value) {
    if let Some(broker) = &subject().inside {
        return import_here(broker, definitions).expect("valid definitions");
    }
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), definitions.to_string()).expect("it can be written");
    ctl(&["import_definitions", file.path().to_str().expect("an ASCII path")]);
}

fn import_here(broker: &leveret::broker::Broker, all: &Value) -> Result<(), AccessError> {
    let items = |kind: &str| all[kind].as_array().cloned().unwrap_or_default();
    let number = |value: &Value| value.as_u64().map(|number| number as u32);
    for vhost in items("vhosts") {
        broker.put_vhost(vhost["name"].as_str().unwrap(), VhostMetadata::default())?;
    }
    for user in items("users") {
        let tags = user["tags"].as_array().unwrap().iter().map(text).collect();
        broker.put_user(&UserDefinition {
            name: text(&user["name"]),
            password_hash: text(&user["password_hash"]),
            hashing_algorithm: text(&user["hashing_algorithm"]),
            tags,
            limits: UserLimits {
                max_connections: number(&user["limits"]["max-connections"]),
                max_channels: number(&user["limits"]["max-channels"]),
            },
        })?;
    }
    for permission in items("permissions") {
        broker.set_permissions(&permission_of(&permission))?;
    }
    for permission in items("topic_permissions") {
        broker.set_topic_permissions(&TopicPermissionDefinition {
            vhost: text(&permission["vhost"]),
            user: text(&permission["user"]),
            exchange: text(&permission["exchange"]),
            write: text(&permission["write"]),
            read: text(&permission["read"]),
        })?;
    }
    for parameter in items("parameters") {
        let limits = VhostLimits {
            max_connections: number(&parameter["value"]["max-connections"]),
            max_queues: number(&parameter["value"]["max-queues"]),
        };
        broker.set_vhost_limits(parameter["vhost"].as_str().unwrap(), limits)?;
    }
    Ok(())
}

fn permission_of(value: &Value) -> PermissionDefinition {
    PermissionDefinition {
        vhost: text(&value["vhost"]),
        user: text(&value["user"]),
        configure: text(&value["configure"]),
        write: text(&value["write"]),
        read: text(&value["read"]),
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

fn vhost_limits(place: &Place, limits: Value) -> Value {
    json!({
        "permissions": [{
            "vhost": place.vhost, "user": place.user,
            "configure": ".*", "write": ".*", "read": ".*",
        }],
        "parameters": [{
            "vhost": place.vhost, "component": "vhost-limits", "name": "limits", "value": limits,
        }],
    })
}

fn all_permitted(place: &Place) -> Value {
    json!({"permissions": [{
        "vhost": place.vhost, "user": place.user, "configure": ".*", "write": ".*", "read": ".*",
    }]})
}

/// A client whose channel 1 is closed by what it is not permitted, and opened again.
struct Asker<'a> {
    place: &'a Place,
    client: Client,
}

impl Asker<'_> {
    /// The method on channel 1 is refused with 403 and this text.
    fn is_refused(&mut self, method: &str, what: &str, ids: (u16, u16)) {
        self.client.send(1, method);
        self.expect_refusal(what, ids);
    }

    fn publish_is_refused(&mut self, fields: &str, properties: &str, what: &str) {
        self.client.publish(1, fields, properties, b"x");
        self.expect_refusal(what, (60, 40));
    }

    fn expect_refusal(&mut self, what: &str, ids: (u16, u16)) {
        let what = self.place.text(as_this_broker_says(what));
        let text = format!("ACCESS_REFUSED - {what} refused for user '{}'", self.place.user);
        self.client.expect_channel_close(1, 403, &text, ids);
        self.client.call(1, "channel.open");
    }

    fn may(&mut self, method: &str) {
        self.client.call(1, method);
    }

    /// The publish, and all before it, is not refused.
    fn may_publish(&mut self, fields: &str, properties: &str) {
        self.client.publish(1, fields, properties, b"x");
        self.client.expect_nothing(1);
    }
}

/// 3.10 does not name the permission that is missing.
fn as_this_broker_says(what: &str) -> &str {
    let without = what.split_once(' ').expect("it begins with the permission").1;
    if subject().broker.is_rabbitmq() { without } else { what }
}

fn asker<'a>(place: &'a Place) -> Asker<'a> {
    Asker { place, client: place.open() }
}

// ---- connection.open ----

#[test]
fn unknown_vhost() {
    let vhost = unique("nowhere");
    let handshake = Handshake { vhost: Some(vhost.clone()), ..Handshake::default() };
    open_refused(&handshake, &format!("NOT_ALLOWED - vhost {vhost} not found"));
}

#[test]
fn vhost_without_permission() {
    let place = Place::with(json!({"tags": ["administrator"]}), |_| json!({}));
    let text = "NOT_ALLOWED - access to vhost '$v' refused for user '$u'";
    place.refused(&place.text(text));
    // Permission for nothing at all is access to the vhost.
    place.permit("", "", "");
    place.open().close();
}

#[test]
fn vhost_connection_limit() {
    let place = Place::with(json!({}), |place| vhost_limits(place, json!({"max-connections": 0})));
    let text = "NOT_ALLOWED - access to vhost '$v' refused for user '$u': \
                connection limit (0) is reached";
    place.refused(&place.text(text));
    let place = Place::with(json!({}), |place| vhost_limits(place, json!({"max-connections": 1})));
    let first = place.open();
    let text = text.replace("(0)", "(1)");
    wait_until("the first connection to count", || {
        // RabbitMQ counts a little later.
        std::panic::catch_unwind(|| place.refused(&place.text(&text))).is_ok()
    });
    first.close();
    if !subject().broker.is_rabbitmq() {
        place.open().close();
    }
}

#[test]
fn user_connection_limit() {
    let limits = json!({"limits": {"max-connections": 0}});
    let place = Place::with(limits, all_permitted);
    let text =
        "NOT_ALLOWED - connection refused for user '$u': user connection limit (0) is reached";
    place.refused(&place.text(text));
}

#[test]
fn user_channel_limit() {
    let place = Place::with(json!({"limits": {"max-channels": 0}}), all_permitted);
    let mut client = Client::connect_with(&subject().broker, &place.handshake());
    client.send(1, "channel.open");
    // The brackets are 3.10's.
    let max = if subject().broker.is_rabbitmq() { "(0)" } else { "0" };
    let text = format!(
        "NOT_ALLOWED - number of channels opened for user '$u' has reached the maximum allowed \
         user limit of {max}"
    );
    client.expect_connection_close(530, &place.text(&text), (0, 0));
}

#[test]
fn channels_of_all_connections_count_while_they_are_open() {
    if subject().broker.is_rabbitmq() {
        // It counts with a delay.
        return;
    }
    let place = Place::with(json!({"limits": {"max-channels": 2}}), all_permitted);
    let (mut one, mut other) = (place.open(), place.open());
    one.call(1, "channel.close reply_code=200 reply_text=bye");
    other.call(2, "channel.open");
    // A channel that the broker closes does not count from then on.
    other.send(2, "queue.purge queue=none");
    other.next_method(2);
    one.call(1, "channel.open");
    one.send(2, "channel.open");
    assert_eq!(one.next_close()["reply_code"].int(), 530);
}

// ---- declaring ----

#[test]
fn configure_is_for_declaring_and_deleting() {
    let place = Place::new("^own", ".*", ".*");
    let mut admin = place.open_admin();
    admin.call(1, "queue.declare queue=other");
    admin.call(1, "exchange.declare exchange=other type=direct");
    let mut asker = asker(&place);
    let (queue, exchange) = (
        "configure access to queue 'other' in vhost '$v'",
        "configure access to exchange 'other' in vhost '$v'",
    );
    asker.is_refused("queue.declare queue=other", queue, (50, 10));
    asker.is_refused("queue.delete queue=other", queue, (50, 40));
    asker.is_refused("queue.delete queue=missing", &queue.replace("other", "missing"), (50, 40));
    asker.is_refused("exchange.declare exchange=other type=direct", exchange, (40, 10));
    asker.is_refused("exchange.delete exchange=other", exchange, (40, 20));
    // A passive declaration only asks.
    asker.may("queue.declare queue=other passive");
    asker.may("exchange.declare exchange=other passive type=direct");
    for method in ["declare queue=my-own", "declare queue=other-own"] {
        let name = method.split('=').next_back().unwrap();
        let text = queue.replace("other", name);
        asker.is_refused(&format!("queue.{method}"), &text, (50, 10));
    }
    asker.may("queue.declare queue=own-1");
    asker.may("exchange.declare exchange=own-1 type=topic");
    asker.may("queue.delete queue=own-1");
    asker.may("exchange.delete exchange=own-1");
}

#[test]
fn server_named_queue_needs_configure_for_its_name() {
    let place = Place::new("^own", ".*", ".*");
    let mut client = place.open();
    client.send(1, "queue.declare exclusive");
    let close = client.next_method(1);
    let text = close["reply_text"].text();
    let what = as_this_broker_says("configure access to queue 'amq.gen-");
    assert!(text.starts_with(&format!("ACCESS_REFUSED - {what}")), "{text}");
    assert_eq!(close["reply_code"].int(), 403);
    let place = Place::new("^amq\\.gen", "", "");
    place.open().call(1, "queue.declare exclusive");
}

#[test]
fn dead_letter_exchange_needs_read_and_write() {
    let place = Place::new(".*", "^dlx$", "^q");
    let mut asker = asker(&place);
    let declare = |queue: &str, exchange: &str| {
        format!("queue.declare queue={queue} arguments=(x-dead-letter-exchange=\"{exchange}\")")
    };
    let read = "read access to queue 'other' in vhost '$v'";
    asker.is_refused(&declare("other", "dlx"), read, (50, 10));
    let write = "write access to exchange 'none' in vhost '$v'";
    asker.is_refused(&declare("q", "none"), write, (50, 10));
    let default = "write access to exchange 'amq.default' in vhost '$v'";
    asker.is_refused(&declare("q", ""), default, (50, 10));
}

#[test]
fn alternate_exchange_needs_read_and_write() {
    let place = Place::new(".*", "^ae$", "^x");
    let mut asker = asker(&place);
    let declare = |exchange: &str, alternate: &str| {
        format!(
            "exchange.declare exchange={exchange} type=direct \
             arguments=(alternate-exchange=\"{alternate}\")"
        )
    };
    let read = "read access to exchange 'other' in vhost '$v'";
    asker.is_refused(&declare("other", "ae"), read, (40, 10));
    let write = "write access to exchange 'none' in vhost '$v'";
    asker.is_refused(&declare("x", "none"), write, (40, 10));
    asker.may(&declare("x", "ae"));
    // What exists already is compared and nothing else.
    place.permit(".*", "", "");
    asker.may(&declare("x", "ae"));
}

#[test]
fn vhost_queue_limit() {
    let place = Place::with(json!({}), |place| vhost_limits(place, json!({"max-queues": 1})));
    let mut client = place.open();
    client.call(1, "queue.declare queue=q");
    client.call(1, "queue.declare queue=q");
    client.send(1, "queue.declare queue=r");
    let text = place.text(
        "PRECONDITION_FAILED - cannot declare queue 'r': queue limit in vhost '$v' (1) is reached",
    );
    client.expect_channel_close(1, 406, &text, (50, 10));
}

// ---- binding ----

#[test]
fn binding_needs_write_on_the_destination_and_read_on_the_source() {
    let place = Place::new(".*", "^to", "^from");
    let mut asker = asker(&place);
    for name in ["to", "from"] {
        asker.may(&format!("exchange.declare exchange={name} type=direct"));
        asker.may(&format!("queue.declare queue={name}"));
    }
    let write = "write access to queue 'from' in vhost '$v'";
    asker.is_refused("queue.bind queue=from exchange=from", write, (50, 20));
    asker.is_refused("queue.unbind queue=from exchange=from", write, (50, 50));
    let read = "read access to exchange 'to' in vhost '$v'";
    asker.is_refused("queue.bind queue=to exchange=to", read, (50, 20));
    asker.is_refused("queue.unbind queue=to exchange=to", read, (50, 50));
    asker.is_refused("exchange.bind destination=to source=to", read, (40, 30));
    asker.is_refused("exchange.unbind destination=to source=to", read, (40, 40));
    let write = "write access to exchange 'from' in vhost '$v'";
    asker.is_refused("exchange.bind destination=from source=from", write, (40, 30));
    asker.is_refused("exchange.unbind destination=from source=from", write, (40, 40));
    // Permission is asked for before existence.
    let write = "write access to queue 'missing' in vhost '$v'";
    asker.is_refused("queue.bind queue=missing exchange=none", write, (50, 20));
    asker.may("queue.bind queue=to exchange=from");
    asker.may("exchange.bind destination=to source=from");
    asker.may("queue.unbind queue=to exchange=from");
    asker.may("exchange.unbind destination=to source=from");
}

#[test]
fn binding_to_a_topic_exchange_needs_its_keys() {
    let place = Place::with(json!({}), |place| {
        let mut more = all_permitted(place);
        more["topic_permissions"] = json!([{
            "vhost": place.vhost, "user": place.user, "exchange": "t",
            "write": ".*", "read": "^{username}\\.{vhost}",
        }]);
        more
    });
    let mut asker = asker(&place);
    asker.may("exchange.declare exchange=t type=topic");
    asker.may("exchange.declare exchange=u type=topic");
    asker.may("queue.declare queue=q");
    let read = "read access to topic 'k' in exchange 't' in vhost '$v'";
    asker.is_refused("queue.bind queue=q exchange=t routing_key=k", read, (50, 20));
    asker.is_refused("queue.unbind queue=q exchange=t routing_key=k", read, (50, 50));
    asker.is_refused("exchange.bind destination=u source=t routing_key=k", read, (40, 30));
    asker.may("queue.bind queue=q exchange=u routing_key=k");
    let key = place.text("$u.$v.k");
    asker.may(&format!("queue.bind queue=q exchange=t routing_key={key}"));
}

// ---- publishing ----

#[test]
fn publishing_needs_write() {
    let place = Place::new(".*", "^open$", ".*");
    let mut asker = asker(&place);
    asker.may("exchange.declare exchange=open type=fanout");
    asker.may("exchange.declare exchange=shut type=fanout");
    asker.may_publish("exchange=open routing_key=a", "");
    let shut = "write access to exchange 'shut' in vhost '$v'";
    asker.publish_is_refused("exchange=shut routing_key=a", "", shut);
    asker.publish_is_refused("exchange=shut routing_key=a", "headers=(CC=[b])", shut);
    // Permission is asked for before anything else, also before existence.
    asker.publish_is_refused("exchange=shut routing_key=a", "user_id=other", shut);
    let missing = "write access to exchange 'missing' in vhost '$v'";
    asker.publish_is_refused("exchange=missing routing_key=a", "", missing);
    let default = "write access to exchange 'amq.default' in vhost '$v'";
    asker.publish_is_refused("routing_key=q", "", default);
    place.permit("", "^amq\\.default$", "");
    wait_until("the permission", || {
        asker.client.publish(1, "routing_key=q", "", b"x");
        asker.client.send(1, "channel.flow active");
        let answer = asker.client.next_method(1);
        if answer.name == "channel.close" {
            asker.client.send(1, "channel.close-ok");
            asker.client.call(1, "channel.open");
        }
        answer.name == "channel.flow-ok"
    });
}

#[test]
fn publishing_to_headers_exchanges_needs_write_each_time() {
    let place = Place::new(".*", ".*", ".*");
    let mut asker = asker(&place);
    asker.may("exchange.declare exchange=h type=headers");
    asker.may("queue.declare queue=q");
    asker.may("queue.bind queue=q exchange=h arguments=(a=1)");
    asker.may_publish("exchange=h routing_key=k", "headers=(a=1)");
    assert_eq!(asker.client.counts(1, "q"), (1, 0));
    if subject().broker.is_rabbitmq() {
        // It remembers what it has permitted on a channel.
        asker.may("channel.close reply_code=200 reply_text=bye");
        asker.may("channel.open");
    }
    place.permit(".*", "", ".*");
    let shut = "write access to exchange 'h' in vhost '$v'";
    asker.publish_is_refused("exchange=h routing_key=k", "headers=(a=1)", shut);
}

#[test]
fn publishing_stops_when_write_is_revoked() {
    let place = Place::new(".*", ".*", ".*");
    let mut asker = asker(&place);
    asker.may("queue.declare queue=q");
    asker.may("confirm.select");
    for number in 1..=3 {
        asker.client.put(1, "q", "x");
        assert!(asker.client.confirmed_after(1, number - 1, number));
    }
    if subject().broker.is_rabbitmq() {
        // It remembers what it has permitted on a channel.
        asker.may("channel.close reply_code=200 reply_text=bye");
        asker.may("channel.open");
    }
    place.permit(".*", "", ".*");
    let default = "write access to exchange 'amq.default' in vhost '$v'";
    asker.publish_is_refused("routing_key=q", "", default);
    assert_eq!(asker.client.counts(1, "q"), (3, 0));
}

#[test]
fn publishing_to_a_topic_exchange_needs_its_keys() {
    let place = Place::with(json!({}), |place| {
        let mut more = all_permitted(place);
        more["topic_permissions"] = json!([{
            "vhost": place.vhost, "user": place.user, "exchange": "t",
            "write": "^mine", "read": ".*",
        }, {
            "vhost": place.vhost, "user": place.user, "exchange": "d", "write": "", "read": "",
        }]);
        more
    });
    let mut asker = asker(&place);
    asker.may("exchange.declare exchange=t type=topic");
    asker.may("exchange.declare exchange=d type=direct");
    asker.may_publish("exchange=t routing_key=mine.1", "");
    let text = "write access to topic 'yours' in exchange 't' in vhost '$v'";
    asker.publish_is_refused("exchange=t routing_key=yours", "", text);
    asker.publish_is_refused("exchange=t routing_key=yours", "headers=(CC=[mine])", text);
    // Other exchanges have no topics.
    asker.may_publish("exchange=d routing_key=yours", "");
    asker.may_publish("exchange=amq.topic routing_key=yours", "");
    if !subject().broker.is_rabbitmq() {
        // 3.10 looks at the routing key only.
        asker.publish_is_refused("exchange=t routing_key=mine", "headers=(CC=[yours])", text);
    }
}

#[test]
fn impersonator_sends_in_anyones_name() {
    let place = Place::with(json!({"tags": ["impersonator"]}), all_permitted);
    let mut client = place.open();
    client.call(1, "queue.declare queue=q");
    client.publish(1, "routing_key=q", "user_id=somebody", b"x");
    client.publish(1, "routing_key=q", &format!("user_id={}", place.user), b"x");
    client.expect_nothing(1);
    wait_until("both messages", || client.counts(1, "q").0 == 2);
    let place = Place::new(".*", ".*", ".*");
    let mut client = place.open();
    client.publish(1, "routing_key=q", "user_id=somebody", b"x");
    let text = "PRECONDITION_FAILED - user_id property set to 'somebody' but authenticated user \
                was '$u'";
    client.expect_channel_close(1, 406, &place.text(text), (60, 40));
}

// ---- consuming ----

#[test]
fn reading_needs_read() {
    let place = Place::new(".*", ".*", "^open");
    let mut asker = asker(&place);
    asker.may("queue.declare queue=open");
    asker.may("queue.declare queue=shut");
    let text = "read access to queue 'shut' in vhost '$v'";
    asker.is_refused("basic.consume queue=shut", text, (60, 20));
    asker.is_refused("basic.get queue=shut", text, (60, 70));
    asker.is_refused("queue.purge queue=shut", text, (50, 30));
    let missing = text.replace("shut", "missing");
    asker.is_refused("basic.get queue=missing", &missing, (60, 70));
    asker.may("basic.consume queue=open");
    asker.may("basic.get queue=open");
    asker.may("queue.purge queue=open");
}

#[test]
fn an_empty_pattern_permits_nothing() {
    let place = Place::new("", "", "");
    let mut asker = asker(&place);
    let text = "configure access to queue 'q' in vhost '$v'";
    asker.is_refused("queue.declare queue=q", text, (50, 10));
    let text = "write access to exchange 'amq.default' in vhost '$v'";
    asker.publish_is_refused("routing_key=q", "", text);
    let text = "read access to queue 'q' in vhost '$v'";
    asker.is_refused("basic.get queue=q", text, (60, 70));
}

#[test]
fn consumers_end_when_read_is_revoked() {
    if subject().broker.is_rabbitmq() {
        // Its consumers stay as long as their channel.
        return;
    }
    let place = Place::new(".*", ".*", ".*");
    let mut client = place.open();
    client.call(1, "queue.declare queue=a");
    client.call(1, "queue.declare queue=b");
    client.call(1, "basic.consume queue=a consumer_tag=one");
    client.call(1, "basic.consume queue=b consumer_tag=two");
    place.permit(".*", ".*", "^b");
    client.expect("1 basic.cancel consumer_tag=one");
    assert_eq!(client.counts(1, "a"), (0, 0));
    assert_eq!(client.counts(1, "b"), (0, 1));
    client.put(1, "b", "still");
    assert_eq!(client.delivery(1).text(), "still");
}

// ---- vhosts, and what is deleted under open connections ----

#[test]
fn vhosts_have_their_own_names() {
    let (one, other) = (Place::new(".*", ".*", ".*"), Place::new(".*", ".*", ".*"));
    let (mut here, mut there) = (one.open(), other.open());
    here.call(1, "queue.declare queue=q");
    here.call(1, "exchange.declare exchange=x type=fanout");
    there.call(1, "queue.declare queue=q durable");
    there.call(1, "exchange.declare exchange=x type=topic");
    here.put(1, "q", "here");
    wait_until("the message", || here.counts(1, "q").0 == 1);
    assert_eq!(there.counts(1, "q").0, 0);
    there.send(1, "queue.declare queue=none passive");
    let text = other.text("NOT_FOUND - no queue 'none' in vhost '$v'");
    there.expect_channel_close(1, 404, &text, (50, 10));
}

#[test]
fn deleting_a_user_closes_connections() {
    let place = Place::new(".*", ".*", ".*");
    let (mut idle, mut busy) = (place.open(), place.open());
    busy.call(1, "queue.declare queue=q");
    busy.call(1, "basic.consume queue=q");
    place.delete_user();
    let text = place.text("CONNECTION_FORCED - user '$u' is deleted");
    idle.expect_connection_close(320, &text, (0, 0));
    busy.expect_connection_close(320, &text, (0, 0));
    let mut client = Client::dial(&subject().broker);
    client.log_in(&subject().broker, &place.handshake());
    assert_eq!(client.next_close()["reply_code"].int(), 403);
}

#[test]
fn deleting_a_user_closes_connections_that_are_blocked() {
    if Broker::external().is_some() {
        // It cannot be made short of memory from here.
        return;
    }
    let memory_high_watermark = MemoryWatermark::Bytes(1 << 20);
    let Subject { broker, inside } =
        serve_here(Limits { memory_high_watermark, ..Limits::default() });
    let inside = inside.expect("it runs here");
    inside.add_user("u", Some("secret"), &[]).expect("a new user");
    let all = json!({"vhost": "/", "user": "u", "configure": ".*", "write": ".*", "read": ".*"});
    inside.set_permissions(&permission_of(&all)).expect("valid");
    let (user, password) = (Some("u".to_owned()), Some("secret".to_owned()));
    let mut client =
        Client::open_with(&broker, &Handshake { user, password, ..Handshake::default() });
    client.call(1, "queue.declare queue=q");
    client.publish(1, "routing_key=q", "", &vec![0; 2 << 20]);
    wait_until("the alarm", || inside.alarms().is_any());
    client.put(1, "q", "x");
    client.expect("0 connection.blocked");
    inside.delete_user("u").expect("it exists");
    client.expect("0 connection.unblocked");
    client.expect_connection_close(320, "CONNECTION_FORCED - user 'u' is deleted", (0, 0));
}

#[test]
fn deleting_a_vhost_closes_connections() {
    let place = Place::new(".*", ".*", ".*");
    let (mut idle, mut busy) = (place.open(), place.open());
    busy.call(1, "queue.declare queue=q");
    busy.call(1, "basic.consume queue=q");
    place.delete_vhost();
    let text = place.text("CONNECTION_FORCED - vhost '$v' is deleted");
    for client in [&mut idle, &mut busy] {
        let close = client.next_close();
        let came = (close["reply_code"].int(), close["reply_text"].text());
        assert_eq!(came, (320, text.clone()));
    }
    place.refused(&place.text("NOT_ALLOWED - vhost $v not found"));
}

#[test]
fn default_queue_type_is_for_queues_that_last() {
    if subject().broker.is_rabbitmq() {
        // It is of 3.11.
        return;
    }
    let place = Place::new(".*", ".*", ".*");
    let broker = subject().inside.as_ref().expect("it runs here");
    let default_queue_type = Some("quorum".to_owned());
    let metadata = VhostMetadata { default_queue_type, ..VhostMetadata::default() };
    broker.put_vhost(&place.vhost, metadata).expect("it exists");
    let mut client = place.open();
    client.call(1, "queue.declare queue=q durable");
    client.call(1, "queue.declare queue=q durable arguments=(x-queue-type=quorum)");
    client.call(1, "queue.declare queue=transient auto_delete");
    client.call(1, "queue.declare queue=transient auto_delete arguments=(x-queue-type=classic)");
}

#[test]
fn a_user_who_is_added_again_is_another_one() {
    if subject().broker.is_rabbitmq() {
        // It closes connections by the user's name, some time after the deletion.
        return;
    }
    let place = Place::new(".*", ".*", ".*");
    let mut client = place.open();
    place.delete_user();
    let broker = subject().inside.as_ref().expect("it runs here");
    broker.add_user(&place.user, Some("secret"), &[]).expect("a new user");
    place.permit(".*", ".*", ".*");
    let text = place.text("CONNECTION_FORCED - user '$u' is deleted");
    client.expect_connection_close(320, &text, (0, 0));
    place.open().close();
}

// ---- passwords ----

#[test]
fn password_hashes_of_rabbitmq() {
    for (algorithm, hash) in [
        ("rabbit_password_hashing_sha256", "AQIDBDB9kM21iEUzN1lZ+6VReCsdNqS0sERdAQTcY6Xs3PMz"),
        (
            "rabbit_password_hashing_sha512",
            "AQIDBPhTH2L5HGYB1LWOrn+YpvuQmVOXKGqgsuiJRIZTILRoEvblSJo/WAsym3IZTfuaIaK5KR2o5KwFfTv6Ks\
             xfMIE=",
        ),
        ("rabbit_password_hashing_md5", "AQIDBDgk9ci8Lfh6CKE9Y0AUfmU="),
    ] {
        let hash = json!({"hashing_algorithm": algorithm, "password_hash": hash});
        let place = Place::with(hash, all_permitted);
        place.open().close();
        let mut client = Client::dial(&subject().broker);
        let wrong = Handshake { password: Some("Secret".into()), ..place.handshake() };
        client.log_in(&subject().broker, &wrong);
        assert_eq!(client.next_close()["reply_code"].int(), 403);
    }
}

#[test]
fn users_without_password_cannot_log_in() {
    let place = Place::with(json!({"password_hash": ""}), all_permitted);
    for password in ["", "secret"] {
        let mut client = Client::dial(&subject().broker);
        let handshake = Handshake { password: Some(password.into()), ..place.handshake() };
        client.log_in(&subject().broker, &handshake);
        let text = "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. \
                    For details see the broker logfile.";
        client.expect_connection_close(403, text, (0, 0));
    }
}

// ---- passwords that take time to check ----

/// A broker with a user `slow`, whose password is `secret` and takes this long to check: each
/// step of the cost doubles it; 10 is 50 ms or so.
fn serve_slow_user(cost: u32, limits: Limits) -> Subject {
    let subject = serve_here(limits);
    let inside = subject.inside.as_ref().expect("it runs here");
    let hash = bcrypt::hash("secret", cost).expect("a cost in range");
    let definitions = json!({
        "users": [{
            "name": "slow", "password_hash": hash, "hashing_algorithm": "Bcrypt", "tags": [],
        }],
        "permissions": [{
            "vhost": "/", "user": "slow", "configure": "", "write": "", "read": "",
        }],
    });
    import_here(inside, &definitions).expect("valid definitions");
    subject
}

/// The user of [`serve_slow_user`].
fn slow(password: &str) -> Handshake {
    let (user, password) = (Some("slow".to_owned()), Some(password.to_owned()));
    Handshake { user, password, ..Handshake::default() }
}

#[test]
fn wrong_passwords_do_not_hold_up_others() {
    const REFUSALS: usize = 24;
    if Broker::external().is_some() {
        // It gets its users from elsewhere.
        return;
    }
    let Subject { broker, .. } = &serve_slow_user(10, Limits::default());
    let mut client = Client::open(broker);
    client.call(1, "queue.declare queue=q");
    client.call(1, "basic.consume queue=q no_ack");
    let refusals = AtomicUsize::new(0);
    let round_trips = std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while refusals.load(Ordering::Relaxed) < REFUSALS {
                    let mut guesser = Client::dial(broker);
                    guesser.log_in(broker, &slow("guess"));
                    assert_eq!(guesser.next_close()["reply_code"].int(), 403);
                    refusals.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut round_trips = 0;
        while refusals.load(Ordering::Relaxed) < REFUSALS {
            client.put(1, "q", "x");
            assert_eq!(client.delivery(1).text(), "x");
            round_trips += 1;
        }
        round_trips
    });
    // If passwords were checked on the threads that serve connections, each round trip would wait
    // for about one of them.
    assert!(round_trips > 5 * REFUSALS, "{round_trips} round trips beside {REFUSALS} refusals");
}

#[test]
fn logins_in_line_end_with_their_handshake() {
    /// All of their passwords would take at least 15 s.
    const CLIENTS: usize = 200;
    const PATIENCE: Duration = Duration::from_secs(10);
    if Broker::external().is_some() {
        return;
    }
    let limits = Limits { handshake_timeout_ms: 1000, ..Limits::default() };
    let Subject { broker, .. } = &serve_slow_user(12, limits);
    let clients = (0..CLIENTS).map(|_| {
        let mut client = Client::dial(broker);
        client.log_in(broker, &slow("guess"));
        client
    });
    let mut clients: Vec<Client> = clients.collect();
    // Whoever is known does not stand in line.
    Client::open(broker).close();
    let last = clients.last_mut().expect("there are some");
    assert!(last.poll_frame(PATIENCE).is_none(), "it was answered in time");
    assert!(last.is_at_eof(), "it still waits");
}

#[test]
fn clients_that_are_gone_keep_nobody_in_line() {
    if Broker::external().is_some() {
        return;
    }
    let limits = Limits { handshake_timeout_ms: 4000, ..Limits::default() };
    let Subject { broker, .. } = &serve_slow_user(10, limits);
    for _ in 0..300 {
        let mut client = Client::dial(broker);
        client.log_in(broker, &slow("guess"));
        client.die();
    }
    Client::open_with(broker, &slow("secret")).close();
}
