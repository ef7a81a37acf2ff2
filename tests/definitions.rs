//! Definitions in and out, as operators see it: the command line, the start, and what clients find
//! afterwards.
//!
//! Owns the promise that a file exported from RabbitMQ does here what it does there. With
//! `AMQP_URI` and `AMQP_CTL` in the environment, what does not need a broker of its own runs
//! against that one.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Map, Value, json};
use support::{Broker, Client, Handshake, unique, wait_until};

/// What `rabbitmqctl export_definitions` of 3.10 has written: users with hashes, several vhosts,
/// policies of both scopes, limits, queues of both types, bindings with arguments.
const EXPORTED: &str = include_str!("definitions/rabbitmq.json");

const KINDS: [&str; 9] = [
    "users",
    "vhosts",
    "permissions",
    "topic_permissions",
    "parameters",
    "global_parameters",
    "policies",
    "queues",
    "exchanges",
];

fn leveret(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_leveret")).args(arguments).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The outcome of `leveret definitions import` of this text: exit code and what was printed.
fn import(data_dir: &Path, definitions: &str) -> (Option<i32>, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), definitions).unwrap();
    let (file, data_dir) = (file.path().to_str().unwrap(), data_dir.to_str().unwrap());
    let output = leveret(&["definitions", "import", file, "--data-dir", data_dir]);
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

fn export(data_dir: &Path) -> Value {
    let output = leveret(&["definitions", "export", "--data-dir", data_dir.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The objects of all kinds in one form and order: RabbitMQ writes some objects as lists of pairs
/// and leaves out what is false.
fn contents(file: &Value) -> Vec<String> {
    let kinds = KINDS.iter().chain(&["bindings"]);
    let objects = kinds.flat_map(|kind| {
        let objects = file[*kind].as_array().unwrap_or_else(|| panic!("no {kind}"));
        objects.iter().map(move |object| format!("{kind} {}", plain(kind, object)))
    });
    let mut all: Vec<_> = objects.collect();
    all.sort_unstable();
    all
}

fn plain(kind: &str, object: &Value) -> Value {
    let mut object = object.clone();
    match kind {
        "exchanges" if object["internal"].is_null() => object["internal"] = json!(false),
        "vhosts" => {
            // Limits are parameters, too.
            object.as_object_mut().unwrap().remove("limits");
            let tags = object["metadata"]["tags"].as_str().map(|tags| {
                tags.split(',').filter(|tag| !tag.is_empty()).map(Value::from).collect::<Value>()
            });
            if let Some(tags) = tags {
                object["metadata"]["tags"] = tags;
            }
        }
        "parameters" => object["value"] = table(&object["value"]),
        _ => {}
    }
    if kind == "parameters" && !object["value"]["definition"].is_null() {
        object["value"]["definition"] = table(&object["value"]["definition"]);
    }
    object
}

fn table(value: &Value) -> Value {
    let Some(pairs) = value.as_array() else { return value.clone() };
    let pairs = pairs.iter().map(|pair| (pair[0].as_str().unwrap().to_owned(), pair[1].clone()));
    Value::Object(pairs.collect::<Map<_, _>>())
}

/// Imports RabbitMQ's own export, in which RabbitMQ itself does not take the operator policies: it
/// writes them in another form than it reads.
fn import_exported(broker: &Broker) {
    let mut file: Value = serde_json::from_str(EXPORTED).unwrap();
    if broker.is_rabbitmq() {
        for parameter in file["parameters"].as_array_mut().unwrap() {
            *parameter = plain("parameters", parameter);
        }
    }
    broker.import(&file.to_string()).expect("RabbitMQ's own export");
}

fn as_alice(vhost: &str) -> Handshake {
    Handshake {
        user: Some("alice".into()),
        password: Some("s3cret".into()),
        vhost: Some(vhost.into()),
        ..Handshake::default()
    }
}

#[test]
fn rabbitmqs_export_comes_out_as_it_went_in() {
    let broker = Broker::start_with_data_dir();
    import_exported(&broker);
    let expected = contents(&serde_json::from_str(EXPORTED).unwrap());
    let exported = contents(&broker.export());
    let missing: Vec<_> = expected.iter().filter(|object| !exported.contains(object)).collect();
    assert!(missing.is_empty(), "{missing:#?}\nare not in\n{exported:#?}");
    import_exported(&broker);
    assert_eq!(contents(&broker.export()), exported);
}

#[test]
fn imported_users_queues_and_policies_work() {
    let broker = Broker::start_with_data_dir();
    import_exported(&broker);
    let mut alice = Client::open_with(&broker, &as_alice("shop"));
    alice.call(1, "queue.purge queue=shop.orders");
    alice.publish(1, "exchange=events routing_key=order.new", "", b"by the binding");
    wait_until("the order", || alice.counts(1, "shop.orders").0 == 1);
    alice.publish(1, "exchange=events routing_key=mail.new", "", b"by topic permission");
    let operation = if broker.is_rabbitmq() { "" } else { "write " };
    let refusal = format!(
        "ACCESS_REFUSED - {operation}access to topic 'mail.new' in exchange 'events' in vhost \
         'shop' refused for user 'alice'"
    );
    alice.expect_channel_close(1, 403, &refusal, (60, 40));
    alice.call(1, "channel.open");
    let policed = unique("shop.short");
    alice.declare(1, &format!("queue={policed} exclusive"));
    alice.call(1, "confirm.select");
    // The operator's 5000 are more than the policy's 1000, which rejects.
    for _ in 0..1001 {
        alice.publish(1, &format!("routing_key={policed}"), "", b"");
    }
    assert!(!alice.confirmed_up_to(1, 1001), "the last is refused");
    assert_eq!(alice.counts(1, &policed).0, 1000);
}

#[test]
fn mistakes_change_nothing_and_are_named() {
    let broker = Broker::start_with_data_dir();
    let name = unique("q");
    let file = json!({
        "vhosts": [{"name": "/"}],
        "queues": [{"vhost": "/", "name": name, "durable": true, "auto_delete": false,
            "arguments": {"x-max-length": -1}}],
    });
    let refused = broker.import(&file.to_string()).expect_err("a negative length");
    let text = format!("invalid arg 'x-max-length' for queue '{name}' in vhost '/'");
    // RabbitMQ's tool prints an Erlang term, with quotes escaped.
    let refused = refused.replace('\\', "");
    assert!(refused.contains(&text), "{refused}");
    let queues = broker.export()["queues"].clone();
    assert!(queues.as_array().unwrap().iter().all(|queue| queue["name"] != name.as_str()));
    let nowhere = json!({"queues": [{"vhost": "nowhere", "name": name, "durable": true,
        "auto_delete": false}]});
    let refused = broker.import(&nowhere.to_string()).expect_err("no such vhost");
    assert!(refused.contains("Virtual host 'nowhere' does not exist"), "{refused}");
}

#[test]
fn existing_queues_stay_as_they_are() {
    let broker = Broker::start_with_data_dir();
    let name = unique("kept");
    let queue = |arguments: Value| {
        json!({"queues": [{"vhost": "/", "name": name, "durable": true, "auto_delete": false,
            "arguments": arguments}]})
        .to_string()
    };
    broker.import(&queue(json!({}))).expect("a new queue");
    let mut client = Client::open(&broker);
    client.put(1, &name, "here");
    wait_until("the message", || client.counts(1, &name).0 == 1);
    let printed = broker.import(&queue(json!({"x-max-length": 5}))).expect("no mistake");
    assert_eq!(client.counts(1, &name).0, 1);
    if !broker.is_rabbitmq() {
        let note = format!("queue '{name}' in vhost '/' was kept as it is: inequivalent arg");
        assert!(printed.contains(&note), "{printed}");
    }
    client.call(1, &format!("queue.delete queue={name}"));
}

#[test]
fn what_a_stopped_broker_is_given_is_there_when_it_starts() {
    if std::env::var_os("AMQP_URI").is_some() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (code, printed) = import(dir.path(), EXPORTED);
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains("imported users: 3, vhosts: 3"), "{printed}");
    assert!(printed.contains("in effect when one starts there"), "{printed}");
    for what in ["queue 'transient'", "exchange 'temp'"] {
        let note = format!("{what} in vhost 'shop' was left out: it is not durable");
        assert!(printed.contains(&note), "{printed}");
    }
    let mut expected = contents(&serde_json::from_str(EXPORTED).unwrap());
    expected.retain(|object| !object.contains("\"durable\":false"));
    assert_eq!(contents(&export(dir.path())), expected);
    let broker = Broker::on_data_dir(dir.path(), "");
    assert_eq!(contents(&export(dir.path())), expected);
    Client::open_with(&broker, &as_alice("shop")).close();
}

#[test]
fn keys_that_mean_nothing_are_named() {
    if std::env::var_os("AMQP_URI").is_some() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (code, printed) = import(dir.path(), r#"{"queeus": [], "queues": []}"#);
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains("'queeus' is no part of definitions"), "{printed}");
    assert!(!printed.contains("'queues'"), "{printed}");
}

#[test]
fn what_a_running_broker_is_given_survives_it() {
    if std::env::var_os("AMQP_URI").is_some() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let queue = |name: &str| {
        json!({
            "users": [{"name": "carol", "password": "in plain text", "tags": ""}],
            "queues": [{"name": name, "durable": true, "auto_delete": false, "arguments": {}}],
        })
        .to_string()
    };
    let broker = Broker::on_data_dir(dir.path(), "");
    for name in ["first", "second"] {
        let (code, printed) = import(dir.path(), &queue(name));
        assert_eq!(code, Some(0), "{printed}");
        assert!(
            printed.contains("imported users: 1, queues: 1; in effect in the broker on"),
            "{printed}"
        );
    }
    broker.signal("KILL");
    let broker = Broker::on_data_dir(dir.path(), "");
    let mut client = Client::open(&broker);
    assert_eq!((client.counts(1, "first").0, client.counts(1, "second").0), (0, 0));
    let user = Some("carol".into());
    let password = Some("in plain text".into());
    let mut carol = Client::dial(&broker);
    carol.log_in(&broker, &Handshake { user, password, ..Handshake::default() });
    assert_eq!(broker.signal("TERM"), Some(0));
    assert!(!dir.path().join("control.sock").exists());
    let users = export(dir.path())["users"].to_string();
    assert!(users.contains("carol") && !users.contains("in plain text"), "{users}");
}

#[test]
fn imports_before_the_first_start_decide_on_the_default_user() {
    if std::env::var_os("AMQP_URI").is_some() {
        return;
    }
    let names = |data_dir: &Path, kind: &str| {
        let objects = export(data_dir)[kind].as_array().unwrap().clone();
        objects.iter().map(|object| object["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let user = json!({"users": [{"name": "ann", "password": "p", "tags": ""}]}).to_string();
    let queue = json!({"queues": [{"name": "q", "durable": true, "auto_delete": false}]});
    let vhost = json!({"vhosts": [{"name": "v"}]}).to_string();
    for (files, users, vhosts) in [
        (vec![&user, &vhost], vec!["ann"], vec!["/", "v"]),
        (vec![&queue.to_string(), &vhost], vec!["guest"], vec!["/", "v"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let (code, printed) = import(dir.path(), file);
            assert_eq!(code, Some(0), "{printed}");
        }
        let _broker = Broker::on_data_dir(dir.path(), "");
        assert_eq!((names(dir.path(), "users"), names(dir.path(), "vhosts")), {
            let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
            (owned(users), owned(vhosts))
        });
    }
}

#[test]
fn what_an_earlier_version_has_kept_goes_into_the_store_once() {
    if std::env::var_os("AMQP_URI").is_some() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let kept = json!({
        "users": [{"name": "guest", "password": "changed", "tags": "administrator"}],
        "vhosts": [{"name": "/"}],
        "permissions": [{"vhost": "/", "user": "guest", "configure": ".*", "write": ".*",
            "read": ".*"}],
        "queues": [{"vhost": "/", "name": "old", "durable": true, "auto_delete": false}],
    });
    let file = dir.path().join("definitions.json");
    fs::write(&file, kept.to_string()).unwrap();
    // Looking changes nothing.
    assert_eq!(export(dir.path())["queues"][0]["name"], "old");
    let mut broker = Broker::on_data_dir(dir.path(), "");
    assert!(broker.log().contains("renamed to definitions.json.migrated"), "{}", broker.log());
    assert!(!file.exists() && dir.path().join("definitions.json.migrated").exists());
    broker.password = "changed".to_owned();
    let mut client = Client::open(&broker);
    assert_eq!(client.counts(1, "old"), (0, 0));
    client.call(1, "queue.delete queue=old");
    broker.signal("KILL");
    let mut broker = Broker::on_data_dir(dir.path(), "");
    broker.password = "changed".to_owned();
    let mut client = Client::open(&broker);
    client.send(1, "queue.declare queue=old passive");
    client.expect_channel_close(1, 404, "NOT_FOUND - no queue 'old' in vhost '/'", (50, 10));
}

#[test]
fn a_start_brings_along_what_the_configuration_names() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file.json");
    fs::write(&file, EXPORTED).unwrap();
    let toml = format!(
        "load_definitions = {file:?}\n\
         [[policies]]\nname = \"tight\"\nvhost = \"shop\"\npattern = \"^tight\"\npriority = 9\n\
         definition = {{ max-length = 1 }}\n\
         [[operator_policies]]\nname = \"o\"\npattern = \"^o\"\ndefinition = {{ expires = 9 }}\n"
    );
    let Some(broker) = Broker::with_config(&toml) else { return };
    let vhost = Some("shop".into());
    let (user, password) = (Some("guest".into()), Some("guest".into()));
    let handshake = Handshake { user, password, vhost, ..Handshake::default() };
    let mut client = Client::open_with(&broker, &handshake);
    client.declare(1, "queue=tight exclusive");
    client.put(1, "tight", "1");
    client.put(1, "tight", "2");
    let message = client.get(1, "queue=tight no_ack").expect("the last message");
    assert_eq!((message.text().as_str(), message.method["message_count"].int()), ("2", 0));
    assert_eq!(client.counts(1, "shop.orders"), (0, 0));
}

#[test]
fn a_start_with_a_bad_file_or_policy_fails_with_a_reason() {
    if std::env::var_os("AMQP_URI").is_some() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.json");
    fs::write(&bad, r#"{"queues":[{"name":"q","durable":"yes"}]}"#).unwrap();
    let policy = "[[policies]]\nname = \"p\"\npattern = \"\"\ndefinition = { foo = 1 }";
    for (toml, code, expected) in [
        (
            format!("load_definitions = {bad:?}"),
            1,
            "bad.json: number 1 of \"queues\" ('q'): \"durable\" must be true or false.",
        ),
        ("load_definitions = \"no/such/file\"".into(), 1, "no/such/file: No such file"),
        (policy.into(), 2, "policy 'p' of the configuration file is refused: [{<<\"foo\">>,1}]"),
    ] {
        let config = dir.path().join("leveret.toml");
        fs::write(&config, toml).unwrap();
        let config = config.to_str().unwrap();
        let output = leveret(&["--config", config, "--no-store", "--amqp-listen", "127.0.0.1:0"]);
        let printed = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{printed}");
        assert!(printed.contains(expected), "{printed}");
    }
}

#[test]
fn the_command_says_what_is_wrong() {
    if std::env::var_os("AMQP_URI").is_some() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().to_str().unwrap();
    let run = |arguments: &[&str]| {
        let output = leveret(&[&["definitions"], arguments, &["--data-dir", data_dir]].concat());
        (output.status.code(), text(&output.stderr))
    };
    let (code, printed) = run(&["export"]);
    assert_eq!(code, Some(1));
    assert!(printed.contains("no broker has run here, and nothing was imported"), "{printed}");
    let (code, printed) = run(&["import", "no-such-file"]);
    assert_eq!(code, Some(1));
    assert!(printed.contains("cannot read no-such-file"), "{printed}");
    assert_eq!(run(&["import"]).0, Some(2));
    let output = leveret(&["definitions", "export", "--data-dir", "no/such/directory"]);
    assert!(text(&output.stderr).contains("there is no data directory no/such/directory"));
    let help = text(&leveret(&["definitions", "--help"]).stdout);
    assert!(help.contains("leveret definitions import definitions.json"), "{help}");
    assert!(help.contains("Exit codes"), "{help}");
}
