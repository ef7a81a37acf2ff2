//! What clients declare and delete, across restarts of the broker.
//!
//! Owns the promise that what a client was told about durable exchanges, queues and bindings holds
//! when the broker is killed at any time after: what was declared is there with the same arguments,
//! and what was deleted stays away. Messages are not its business. Each test kills brokers of its
//! own, so nothing runs against `AMQP_URI`.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Broker, Client, wait_until};

fn start(data_dir: &Path) -> Option<Broker> {
    if std::env::var_os("AMQP_URI").is_some() {
        eprintln!("skipped: AMQP_URI is set and this test needs brokers of its own");
        return None;
    }
    Some(Broker::on_data_dir(data_dir, ""))
}

/// Kills the broker and starts another one in its place.
fn restart(broker: &Broker, data_dir: &Path) -> Broker {
    broker.signal("KILL");
    start(data_dir).expect("it was started before")
}

/// The bindings from an exchange in an export, as their keys.
fn keys_from(export: &Value, source: &str) -> Vec<String> {
    let bindings = export["bindings"].as_array().expect("a list").iter();
    let from = bindings.filter(|binding| binding["source"] == source);
    from.map(|binding| binding["routing_key"].as_str().expect("a text").to_owned()).collect()
}

fn names(export: &Value, kind: &str) -> Vec<String> {
    let objects = export[kind].as_array().expect("a list").iter();
    objects.map(|object| object["name"].as_str().expect("a text").to_owned()).collect()
}

const ARGUMENTS: &str = concat!(
    r#"(x-max-length=b:5,x-time=T:7,x-text="\xff\xfe",x-ratio=d:0.1,"#,
    "x-list=[l:1,u:2,void,true,(x=s:3)])"
);

#[test]
fn what_was_declared_is_there_with_the_same_arguments() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let Some(broker) = start(dir.path()) else { return };
    let mut client = Client::open(&broker);
    client
        .call(1, &format!("exchange.declare exchange=e type=topic durable arguments={ARGUMENTS}"));
    client.call(1, "exchange.declare exchange=inner type=direct durable internal auto_delete");
    client.call(1, "exchange.declare exchange=gone type=direct");
    client.declare(1, &format!("queue=q durable arguments={ARGUMENTS}"));
    client.declare(1, "queue=auto durable auto_delete");
    client.declare(1, "queue=exclusive durable exclusive");
    client.declare(1, "queue=transient");
    let (named, ..) = client.declare(1, "durable");
    client.call(1, &format!("queue.bind queue=q exchange=e routing_key=a.# arguments={ARGUMENTS}"));
    client.call(1, "queue.bind queue=q exchange=e routing_key=a.#");
    client.call(1, "queue.bind queue=transient exchange=e routing_key=transient");
    client.call(1, "queue.bind queue=exclusive exchange=e routing_key=exclusive");
    client.call(1, "exchange.bind source=e destination=inner routing_key=in");
    client.call(1, "queue.bind queue=q exchange=inner routing_key=b");
    client.call(1, "queue.bind queue=q exchange=gone routing_key=c");
    let broker = restart(&broker, dir.path());

    let export = broker.export();
    assert_eq!(names(&export, "queues"), [&named, "auto", "q"]);
    assert_eq!(names(&export, "exchanges"), ["e", "inner"]);
    assert_eq!(keys_from(&export, "e"), ["in", "a.#", "a.#"]);
    assert_eq!(keys_from(&export, "inner"), ["b"]);
    let mut client = Client::open(&broker);
    // The same again is the same: nothing is refused or added.
    client
        .call(1, &format!("exchange.declare exchange=e type=topic durable arguments={ARGUMENTS}"));
    client.call(1, "exchange.declare exchange=inner type=direct durable internal auto_delete");
    client.declare(1, &format!("queue=q durable arguments={ARGUMENTS}"));
    client.declare(1, "queue=auto durable auto_delete");
    client.call(1, &format!("queue.bind queue=q exchange=e routing_key=a.# arguments={ARGUMENTS}"));
    assert_eq!(keys_from(&broker.export(), "e").len(), 3);
    // Bindings are told apart by the types of their arguments.
    let other = ARGUMENTS.replace("u:2", "i:2");
    client.call(1, &format!("queue.unbind queue=q exchange=e routing_key=a.# arguments={other}"));
    assert_eq!(keys_from(&broker.export(), "e").len(), 3);
    client
        .call(1, &format!("queue.unbind queue=q exchange=e routing_key=a.# arguments={ARGUMENTS}"));
    assert_eq!(keys_from(&broker.export(), "e"), ["in", "a.#"]);
    client.publish(1, "exchange=e routing_key=a.b", "", b"by a binding that was restored");
    wait_until("the message", || client.counts(1, "q").0 == 1);
    client.send(1, "queue.declare queue=q durable");
    let text = "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'q' in vhost '/': \
                received none but current is the value '5' of type 'byte'";
    client.expect_channel_close(1, 406, text, (50, 10));
}

#[test]
fn what_was_deleted_stays_away() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let Some(broker) = start(dir.path()) else { return };
    let mut client = Client::open(&broker);
    for name in ["top", "middle", "kept"] {
        let flags = if name == "kept" { "" } else { "auto_delete" };
        client.call(1, &format!("exchange.declare exchange={name} type=fanout durable {flags}"));
    }
    client.call(1, "exchange.bind source=top destination=middle routing_key=t");
    for name in ["q", "auto", "unbound"] {
        let flags = if name == "auto" { "auto_delete" } else { "" };
        client.declare(1, &format!("queue={name} durable {flags}"));
    }
    client.declare(1, "queue=expiring durable arguments=(x-expires=1)");
    client.call(1, "queue.bind queue=q exchange=middle routing_key=m");
    client.call(1, "queue.bind queue=q exchange=kept routing_key=k");
    client.call(1, "queue.bind queue=unbound exchange=kept routing_key=u");
    let broker = restart(&broker, dir.path());

    let mut client = Client::open(&broker);
    // With its last queue each of the two exchanges goes that lead to nothing else.
    client.call(1, "queue.delete queue=q");
    client.call(1, "queue.unbind queue=unbound exchange=kept routing_key=u");
    client.call(1, "basic.consume queue=auto consumer_tag=c");
    client.call(1, "basic.cancel consumer_tag=c");
    wait_until("the queue to expire", || {
        !names(&broker.export(), "queues").contains(&"expiring".into())
    });
    // What goes by itself is kept in the order of what clients ask for.
    client.declare(1, "queue=q durable");
    let broker = restart(&broker, dir.path());

    let export = broker.export();
    assert_eq!(names(&export, "queues"), ["q", "unbound"]);
    assert_eq!(names(&export, "exchanges"), ["kept"]);
    assert_eq!(export["bindings"].as_array().expect("a list").len(), 0, "{}", export["bindings"]);
}

#[test]
fn what_was_imported_can_be_deleted() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let Some(broker) = start(dir.path()) else { return };
    let file = r#"{"queues": [{"vhost": "/", "name": "q", "durable": true, "auto_delete": false}],
        "users": [{"name": "guest", "password": "changed", "tags": "administrator"}]}"#;
    broker.import(file).expect("valid");
    let mut broker = restart(&broker, dir.path());
    broker.password = "changed".to_owned();
    let mut client = Client::open(&broker);
    client.call(1, "queue.delete queue=q");
    let mut broker = restart(&broker, dir.path());
    broker.password = "changed".to_owned();
    assert_eq!(names(&broker.export(), "queues"), [""; 0]);
    Client::open(&broker).close();
}

#[test]
fn policies_of_the_configuration_go_with_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    if std::env::var_os("AMQP_URI").is_some() {
        return;
    }
    let toml = "[[policies]]\nname = \"p\"\npattern = \"x\"\ndefinition = { max-length = 1 }\n";
    let broker = Broker::on_data_dir(dir.path(), toml);
    assert_eq!(names(&broker.export(), "policies"), ["p"]);
    let broker = restart(&broker, dir.path());
    assert_eq!(names(&broker.export(), "policies"), [""; 0]);
}

#[test]
fn a_stopped_brokers_messages_are_left_alone() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let Some(broker) = start(dir.path()) else { return };
    let mut client = Client::open(&broker);
    client.declare(1, "queue=dead durable");
    let arguments =
        r#"(x-message-ttl=300,x-dead-letter-exchange="",x-dead-letter-routing-key=dead)"#;
    client.declare(1, &format!("queue=q durable arguments={arguments}"));
    client.call(1, "confirm.select");
    client.publish(1, "routing_key=q", "delivery_mode=2", b"m");
    assert!(client.confirmed_up_to(1, 1));
    let confirmed = Instant::now();
    broker.signal("KILL");
    wait_until("it to be overdue", || confirmed.elapsed() > Duration::from_millis(400));
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_leveret"));
        command.arg("definitions").args(arguments).arg("--data-dir").arg(dir.path());
        assert!(command.output().expect("it runs").status.success());
    };
    run(&["export"]);
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), r#"{"vhosts": [{"name": "v"}]}"#).expect("written");
    run(&["import", file.path().to_str().expect("UTF-8")]);
    let broker = start(dir.path()).expect("it was started before");
    let mut client = Client::open(&broker);
    wait_until("the dead letter", || client.counts(1, "dead").0 == 1);
    assert_eq!(names(&broker.export(), "vhosts"), ["/", "v"]);
}

#[test]
fn ten_thousand_queues_are_back_soon() {
    const QUEUES: usize = 10_000;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let Some(broker) = start(dir.path()) else { return };
    let mut client = Client::open(&broker);
    for number in 0..QUEUES {
        client.send(1, &format!("queue.declare queue=q{number} durable nowait"));
        client.send(
            1,
            &format!("queue.bind queue=q{number} exchange=amq.topic routing_key=k nowait"),
        );
    }
    // The answer to the last is that of all.
    client.declare(1, "queue=last durable");
    let before = broker.resident_bytes();
    broker.signal("KILL");
    let begin = Instant::now();
    // This has a deadline.
    let broker = start(dir.path()).expect("it was started before");
    let (took, after) = (begin.elapsed(), broker.resident_bytes());
    println!("{QUEUES} queues: {took:?}, {} MiB, before {} MiB", after >> 20, before >> 20);
    let export = broker.export();
    assert_eq!(names(&export, "queues").len(), QUEUES + 1);
    assert_eq!(keys_from(&export, "amq.topic").len(), QUEUES);
}
