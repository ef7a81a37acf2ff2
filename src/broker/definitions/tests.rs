//! Definitions into brokers and out again.

use super::*;
use crate::config::Config;
use std::sync::Arc;

fn broker() -> Broker {
    Broker::without_defaults(Arc::new(Config::default()), u64::MAX)
}

fn import(broker: &Broker, text: &str) -> Result<Imported, String> {
    let definitions = Definitions::parse(text.as_bytes()).map_err(|error| error.to_string())?;
    let imported = broker.import_definitions(&definitions, &mut Drive::default());
    imported.map_err(|error| error.to_string())
}

fn with_vhost() -> Broker {
    let broker = broker();
    import(&broker, r#"{"vhosts":[{"name":"/"}]}"#).expect("a vhost");
    broker
}

fn refusal(text: &str) -> String {
    import(&with_vhost(), text).expect_err(text)
}

#[test]
fn an_object_that_is_wrong_is_named_with_the_reason() {
    for (text, expected) in [
        ("nojson", "this is no JSON: expected ident at line 1 column 2"),
        ("5", "the file must be an object"),
        (r#"{"queues":{"a":1}}"#, r#""queues" must be a list"#),
        (
            r#"{"queues":[{"name":"q","vhost":"/","auto_delete":false}]}"#,
            r#"number 1 of "queues" ('q'): "durable" is missing: it is true or false"#,
        ),
        (
            r#"{"queues":[{"name":"q","durable":1,"auto_delete":false}]}"#,
            r#"number 1 of "queues" ('q'): "durable" must be true or false"#,
        ),
        (r#"{"users":[5]}"#, r#"number 1 of "users" must be an object"#),
        (
            r#"{"parameters":[{"component":"shovel","name":"s","vhost":"/","value":{}}]}"#,
            r#"number 1 of "parameters" ('s'): component shovel not found (//shovel/s)"#,
        ),
        (
            r#"{"parameters":[{"component":"vhost-limits","name":"limits","vhost":"/",
                "value":{"max-queues":"x"}}]}"#,
            r#"number 1 of "parameters" ('limits'), "value": "max-queues" must be a whole number"#,
        ),
        (
            r#"{"queues":[{"name":"q","vhost":"nope","durable":true,"auto_delete":false}]}"#,
            "queue 'q': Virtual host 'nope' does not exist",
        ),
        (
            r#"{"queues":[{"name":"q","durable":true,"auto_delete":false,
                "arguments":{"x-max-length":-1}}]}"#,
            "queue 'q' in vhost '/': invalid arg 'x-max-length' for queue 'q' in vhost '/': \
             {value_negative,-1}",
        ),
        (
            r#"{"exchanges":[{"name":"e","type":"nope","durable":true,"auto_delete":false}]}"#,
            "exchange 'e' in vhost '/': unknown exchange type 'nope'",
        ),
        (
            r#"{"policies":[{"name":"p","vhost":"/","pattern":"x","definition":{"foo":1}}]}"#,
            "policy 'p' in vhost '/': [{<<\"foo\">>,1}] are not recognised policy settings",
        ),
        (
            r#"{"permissions":[{"user":"u","vhost":"/","configure":"","write":"","read":""}]}"#,
            "permissions of user 'u': User \"u\" does not exist",
        ),
    ] {
        assert_eq!(refusal(text), expected, "{text}");
    }
}

#[test]
fn a_mistake_anywhere_changes_nothing() {
    let broker = with_vhost();
    let before = broker.export_definitions();
    let text = r#"{
        "users":[{"name":"u","password":"p","tags":""}],
        "policies":[{"name":"p","vhost":"/","pattern":"x","definition":{"expires":1}}],
        "queues":[{"name":"q1","durable":true,"auto_delete":false},
                  {"name":"q2","durable":true,"auto_delete":false,
                   "arguments":{"x-max-length":-1}}]}"#;
    import(&broker, text).expect_err("a bad argument");
    assert_eq!(broker.export_definitions(), before);
}

#[test]
fn what_exists_stays_and_is_named_when_it_differs() {
    let broker = with_vhost();
    let queue = |durable, arguments: &str| {
        format!(
            r#"{{"queues":[{{"name":"q","vhost":"/","durable":{durable},"auto_delete":false,
                "arguments":{arguments}}}]}}"#
        )
    };
    import(&broker, &queue(true, r#"{"x-max-length":5}"#)).expect("new");
    let same = import(&broker, &queue(true, r#"{"x-max-length":5}"#)).expect("the same");
    assert_eq!(same, Imported { counts: vec![("queues".to_owned(), 1)], notes: Vec::new() });
    let other = import(&broker, &queue(true, "{}")).expect("kept");
    let note = "queue 'q' in vhost '/' was kept as it is: inequivalent arg 'x-max-length' for \
                queue 'q' in vhost '/': received none but current is the value '5' of type 'long'";
    assert_eq!(other.notes, [note]);
    let exchange = |kind: &str| {
        format!(
            r#"{{"exchanges":[{{"name":"e","type":"{kind}","durable":true,"auto_delete":false}}]}}"#
        )
    };
    import(&broker, &exchange("topic")).expect("new");
    let other = import(&broker, &exchange("fanout")).expect("kept");
    assert!(other.notes[0].starts_with("exchange 'e' in vhost '/' was kept as it is: "));
}

#[test]
fn reserved_names_and_loose_bindings_are_left_out() {
    let imported = import(
        &with_vhost(),
        r#"{
        "queues":[{"name":"amq.x","durable":true,"auto_delete":false}],
        "exchanges":[{"name":"amq.direct","type":"direct","durable":true,"auto_delete":false},
                     {"name":"amq.x","type":"direct","durable":true,"auto_delete":false}],
        "bindings":[{"source":"amq.direct","destination":"q","destination_type":"queue",
                     "routing_key":"k","arguments":{}},
                    {"source":"","destination":"q","destination_type":"queue","routing_key":"q"},
                    {"source":"amq.direct","destination":"amq.fanout",
                     "destination_type":"exchange","routing_key":"k","arguments":[]}]}"#,
    )
    .expect("valid");
    let expected = [
        "exchange 'amq.x' in vhost '/' was left out: its name is reserved",
        "queue 'amq.x' in vhost '/' was left out: its name is reserved",
        "binding from exchange 'amq.direct' to queue 'q' in vhost '/' was left out: \
         no queue 'q' in vhost '/'",
    ];
    assert_eq!(imported.notes, expected);
}

#[test]
fn a_file_of_one_vhost_goes_where_it_is_sent() {
    let text = r#"{"rabbitmq_definition_format":"single_virtual_host",
        "original_vhost_name":"from",
        "policies":[{"name":"p","pattern":"","definition":{"expires":1},"apply-to":"all"}],
        "parameters":[{"component":"operator_policy","name":"o",
            "value":{"pattern":"","priority":0,"definition":[["expires",1]]}}],
        "queues":[{"name":"q","durable":true,"auto_delete":false,"arguments":{}}]}"#;
    let definitions = Definitions::parse(text.as_bytes()).expect("valid");
    let broker = broker();
    import(&broker, r#"{"vhosts":[{"name":"/"},{"name":"from"},{"name":"to"}]}"#).expect("vhosts");
    let mut drive = Drive::default();
    for (vhost, named) in [("to", Some("to")), ("from", None)] {
        broker.import_definitions(&definitions.with_vhost(named), &mut drive).expect("valid");
        let vhost = broker.vhost(vhost).expect("it exists");
        assert_eq!(vhost.policies(PolicyScope::User).len(), 1);
        assert_eq!(vhost.policies(PolicyScope::Operator).len(), 1);
        assert!(vhost.queue("q").is_ok());
    }
    assert_eq!(broker.vhost("/").expect("it exists").queue_count(), 0);
}

#[test]
fn forms_of_all_releases_are_read() {
    let broker = broker();
    // Twenty bytes: a salt of four and MD5, which is what files before 3.6 mean.
    let old = r#"{"rabbit_version":"3.5.7","unknown":[{"x":1}],"users":[{"name":"md5",
        "password_hash":"AAAAAAAAAAAAAAAAAAAAAAAAAAA=","tags":"administrator, monitoring"}]}"#;
    import(&broker, old).expect("valid");
    let user = &broker.users()[0];
    assert_eq!(user.hashing_algorithm, "rabbit_password_hashing_md5");
    assert_eq!(user.tags, ["administrator", "monitoring"]);
    let text = r#"{"vhosts":[{"name":"a"},{"name":"b","description":"B","tags":["x"]},
        {"name":"c","metadata":{"description":"C","tags":"x,y","default_queue_type":"quorum"}},
        {"name":"d","limits":[["max-queues",1]],"default_queue_type":"undefined"}]}"#;
    import(&broker, text).expect("valid");
    let vhosts = broker.vhosts();
    let metadata: Vec<_> = vhosts.iter().map(|vhost| vhost.metadata.clone()).collect();
    assert_eq!(
        (metadata[1].description.as_str(), &metadata[1].tags[..]),
        ("B", &["x".to_owned()][..])
    );
    assert_eq!(metadata[2].tags, ["x", "y"]);
    assert_eq!(metadata[2].default_queue_type.as_deref(), Some("quorum"));
    assert_eq!(metadata[3].default_queue_type, None);
}

#[test]
fn limits_that_hold_before_an_import_hold_for_it() {
    let broker = with_vhost();
    let limit = r#"{"parameters":[{"component":"vhost-limits","name":"limits","vhost":"/",
        "value":{"max-queues":1,"max-connections":-1}}]}"#;
    import(&broker, limit).expect("valid");
    let queues = |names: &[&str]| {
        let queues = names.iter().map(|name| {
            format!(r#"{{"name":"{name}","durable":true,"auto_delete":false,"vhost":"/"}}"#)
        });
        format!(r#"{{"queues":[{}]}}"#, queues.collect::<Vec<_>>().join(","))
    };
    import(&broker, &queues(&["a"])).expect("as many as may be");
    import(&broker, &queues(&["a"])).expect("nothing new");
    let error = import(&broker, &queues(&["a", "b"])).expect_err("too many");
    assert!(error.starts_with(
        "Adding 1 queue(s) to virtual host \"/\" would exceed the limit of 1 queue(s)."
    ));
}

#[test]
fn an_export_is_imported_and_exported_the_same() {
    let text = include_str!("../../../tests/definitions/rabbitmq.json");
    let first = broker();
    let imported = import(&first, text).expect("RabbitMQ's export");
    assert_eq!(imported.notes, Vec::<String>::new());
    let export = first.export_definitions();
    let second = broker();
    import(&second, &export.to_text()).expect("our export");
    assert_eq!(second.export_definitions().to_text(), export.to_text());
}
