//! Tests of the configuration: defaults, each setting's range, and the text of errors.

use super::*;

#[track_caller]
fn check_refused(text: &str, parts: &[&str]) {
    let error = Config::parse(text).expect_err(text).to_string();
    for part in parts {
        assert!(error.contains(part), "{text}\n  {part:?} is not in: {error}");
    }
}

#[test]
fn nothing_set_means_the_defaults() {
    assert_eq!(Config::parse("").expect("empty"), Config::default());
    let sections = "[listeners]\n[limits]\n[store]\n[auth]\n[log]\n";
    assert_eq!(Config::parse(sections).expect("sections"), Config::default());
}

#[test]
fn the_documented_file_states_the_defaults() {
    let text = include_str!("../../config/leveret.toml");
    assert_eq!(Config::parse(text).expect("config/leveret.toml"), Config::default());

    // Every setting is in the file: each key of the tables above stands there at a line's start.
    let keys = [
        "data_dir",
        "amqp",
        "frame_max",
        "channel_max",
        "connection_max",
        "heartbeat_s",
        "handshake_timeout_ms",
        "max_message_size_bytes",
        "memory_high_watermark",
        "consumers_per_channel_max",
        "consumer_timeout_ms",
        "sync",
        "sync_interval_ms",
        "queue_memory",
        "backlog",
        "disk_free_limit",
        "default_user",
        "default_password",
        "loopback_users",
        "filter",
    ];
    for key in keys {
        let line = format!("{key} = ");
        assert!(text.lines().any(|l| l.starts_with(&line)), "{key} is not documented");
    }
    assert!(text.contains("# load_definitions = ") && text.contains("# [[policies]]"));
    assert!(text.contains("# [[operator_policies]]"));
    assert!(text.contains("# memory_high_watermark_bytes = "), "the alternative is shown too");
}

#[test]
fn settings_are_taken() {
    let config = Config::parse(
        r#"
        data_dir = "/var/lib/leveret"
        load_definitions = "definitions.json"
        [listeners]
        amqp = ["127.0.0.1:0", "[::1]:5673"]
        [limits]
        frame_max = 4096
        channel_max = 65535
        connection_max = 1
        heartbeat_s = 0
        handshake_timeout_ms = 100
        max_message_size_bytes = "512MiB"
        memory_high_watermark_bytes = "1GB"
        consumers_per_channel_max = 7
        consumer_timeout_ms = 60000
        [store]
        sync = "interval"
        sync_interval_ms = 1
        queue_memory = "64KiB"
        backlog = 1048576
        disk_free_limit = 0
        [auth]
        default_user = "admin"
        default_password = "s3cret"
        loopback_users = []
        [log]
        filter = "warn,leveret::net=debug"
        "#,
    )
    .expect("valid");
    assert_eq!(config.data_dir, Path::new("/var/lib/leveret"));
    assert_eq!(config.load_definitions.as_deref(), Some(Path::new("definitions.json")));
    assert_eq!(config.listeners.amqp.len(), 2);
    assert_eq!(config.listeners.amqp[1].port(), 5673);
    let limits = Limits {
        frame_max: 4096,
        channel_max: 65535,
        connection_max: 1,
        heartbeat_s: 0,
        handshake_timeout_ms: 100,
        max_message_size_bytes: 512 << 20,
        memory_high_watermark: MemoryWatermark::Bytes(1_000_000_000),
        consumers_per_channel_max: 7,
        consumer_timeout_ms: 60_000,
    };
    assert_eq!(config.limits, limits);
    let store = StoreConfig {
        sync: SyncMode::Interval,
        sync_interval_ms: 1,
        queue_memory_bytes: 64 << 10,
        backlog_bytes: 1 << 20,
        disk_free_limit_bytes: 0,
    };
    assert_eq!(config.store, store);
    assert_eq!(config.auth.default_user, "admin");
    assert!(config.auth.loopback_users.is_empty());
    assert_eq!(config.log.filter, "warn,leveret::net=debug");
}

#[test]
fn fractions_may_be_numbers_or_text() {
    for text in ["0.5", "\"0.5\"", "5e-1"] {
        let config = Config::parse(&format!("limits.memory_high_watermark = {text}"));
        let watermark = config.expect(text).limits.memory_high_watermark;
        assert_eq!(watermark, MemoryWatermark::Fraction(0.5), "{text}");
    }
    assert!(Config::parse("limits.memory_high_watermark = 1").is_ok());
}

#[test]
fn each_way_of_syncing_has_a_name() {
    let cases =
        [("always", SyncMode::Always), ("interval", SyncMode::Interval), ("os", SyncMode::Os)];
    for (name, sync) in cases {
        let config = Config::parse(&format!("store.sync = \"{name}\"")).expect(name);
        assert_eq!(config.store.sync, sync);
    }
}

#[test]
fn errors_name_the_key_the_value_and_what_is_allowed() {
    check_refused(
        "limits.frame_max = 4095",
        &["limits.frame_max = 4095", "a whole number from 4096 to 1048576"],
    );
    check_refused("limits.frame_max = \"big\"", &["limits.frame_max = \"big\"", "whole number"]);
    check_refused("limits.channel_max = 0", &["limits.channel_max = 0", "from 1 to 65535"]);
    check_refused("limits.channel_max = 65536", &["limits.channel_max = 65536"]);
    check_refused("limits.connection_max = 0", &["limits.connection_max = 0", "from 1 to"]);
    check_refused("limits.heartbeat_s = -1", &["limits.heartbeat_s = -1", "from 0 to 65535"]);
    check_refused("limits.handshake_timeout_ms = 99", &["from 100 to 600000"]);
    check_refused(
        "limits.max_message_size_bytes = \"513MiB\"",
        &["limits.max_message_size_bytes = \"513MiB\"", "536870912 bytes", "\"64MiB\""],
    );
    check_refused("limits.max_message_size_bytes = 0", &["from 1 to"]);
    check_refused("limits.memory_high_watermark = 1.01", &["= 1.01", "above 0 and at most 1"]);
    check_refused("limits.memory_high_watermark = 0.0", &["above 0"]);
    check_refused("limits.memory_high_watermark = nan", &["above 0"]);
    check_refused("limits.memory_high_watermark_bytes = 5", &["_bytes = 5", "from 1048576 to"]);
    check_refused("limits.consumers_per_channel_max = 4294967296", &["from 0 to 4294967295"]);
    check_refused("limits.consumer_timeout_ms = -1", &["from 0 to 315360000000"]);
    check_refused(
        "store.sync = \"never\"",
        &["store.sync = \"never\"", "\"always\", \"interval\""],
    );
    check_refused("store.sync = true", &["store.sync = true"]);
    check_refused("store.sync_interval_ms = 0", &["from 1 to 60000"]);
    check_refused("store.queue_memory = \"63KiB\"", &["store.queue_memory", "from 65536 to"]);
    check_refused("store.backlog = 1048575", &["store.backlog = 1048575", "from 1048576 to"]);
    check_refused("store.disk_free_limit = -1", &["store.disk_free_limit = -1", "from 0 to"]);
    check_refused("listeners.amqp = []", &["listeners.amqp = []", "127.0.0.1:5672"]);
    check_refused("listeners.amqp = [\"5672\"]", &["listeners.amqp = [\"5672\"]"]);
    check_refused("listeners.amqp = \"127.0.0.1:5672\"", &["a list of"]);
    check_refused("auth.default_user = \"\"", &["auth.default_user = \"\"", "1 to 255 bytes"]);
    check_refused("auth.loopback_users = [5]", &["auth.loopback_users = [5]"]);
    check_refused("log.filter = \"leveret=loud\"", &["log.filter = \"leveret=loud\"", "debug"]);
    check_refused("data_dir = \"\"", &["data_dir = \"\"", "a directory"]);
}

#[test]
fn the_two_watermarks_exclude_each_other() {
    check_refused(
        "limits.memory_high_watermark = 0.4\nlimits.memory_high_watermark_bytes = 5000000",
        &["limits.memory_high_watermark and limits.memory_high_watermark_bytes are both set"],
    );
}

#[test]
fn unknown_names_and_bad_toml_name_the_line() {
    check_refused("[limits]\nframe_maxx = 1", &["line 2", "frame_maxx", "frame_max"]);
    check_refused("[limit]\n", &["limit", "limits"]);
    check_refused("[limits]\nframe_max = ", &["line 2"]);
    check_refused("limits = 5", &["line 1"]);
}

#[test]
fn passwords_are_not_shown() {
    check_refused("auth.default_password = \"\"", &["auth.default_password = \"(hidden)\""]);
    let error = Config::parse("auth.default_password = 1234").expect_err("a number").to_string();
    assert!(!error.contains("1234"), "{error}");
    let config = Config::parse("auth.default_password = \"s3cret\"").expect("valid");
    assert!(!format!("{config:?}").contains("s3cret"));
}

#[test]
fn only_a_well_known_password_from_anywhere_is_open_to_all() {
    assert!(!Config::default().auth.is_open_to_all());
    let open = Config::parse("auth.loopback_users = []").expect("valid");
    assert!(open.auth.is_open_to_all());
    let own = Config::parse("auth.loopback_users = []\nauth.default_password = \"x\"");
    assert!(!own.expect("valid").auth.is_open_to_all());
}

#[test]
fn errors_of_a_file_name_it() {
    let missing = Config::load(Path::new("no/such/leveret.toml")).expect_err("missing");
    assert!(missing.to_string().contains("no/such/leveret.toml"), "{missing}");
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("bad.toml");
    std::fs::write(&path, "limits.frame_max = 1").expect("written");
    let error = Config::load(&path).expect_err("too small").to_string();
    assert!(error.contains("bad.toml: limits.frame_max = 1: must be"), "{error}");
}

#[test]
fn policies_are_taken() {
    let config = Config::parse(
        r#"
        [[policies]]
        name = "short"
        pattern = "^s"
        definition = { message-ttl = 5, overflow = "drop-head" }
        [[operator_policies]]
        name = "bounds"
        vhost = "shop"
        pattern = ""
        apply_to = "queues"
        priority = 7
        [operator_policies.definition]
        max-length = 9
        "#,
    )
    .expect("valid");
    let [short, bounds] = &config.policies[..] else { panic!("{:?}", config.policies) };
    assert!(!short.is_operator && bounds.is_operator);
    assert_eq!((short.vhost.as_str(), short.apply_to.as_str(), short.priority), ("/", "all", 0));
    let definition = serde_json::json!({"message-ttl": 5, "overflow": "drop-head"});
    assert_eq!(serde_json::Value::Object(short.definition.clone()), definition);
    assert_eq!((bounds.vhost.as_str(), bounds.priority), ("shop", 7));
    check_refused("[[policies]]\nname = \"p\"", &["pattern"]);
    check_refused("[[policies]]\nnames = \"p\"", &["names"]);
    check_refused(
        "[[policies]]\nname = \"p\"\npattern = \"\"\ndefinition = { a = { b = 1 } }",
        &["policies", "key a"],
    );
    check_refused("load_definitions = 5", &["load_definitions = 5", "definitions file"]);
}
