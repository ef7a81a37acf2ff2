//! Definitions into a store and back, by way of broker after broker.

use std::sync::mpsc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::broker::{ConnectionId, DeleteIf, PolicyScope, UserLimits, VhostMetadata};
use crate::codec::method::{AMQPValue, FieldTable};
use crate::config::Config;
use crate::routing::{Destination, ExchangeKind, ExchangeSpec};
use crate::store::{Change, MemoryEngine, Options, Store};

const ME: ConnectionId = ConnectionId(1);

/// A broker on this disk, ready to serve; and whether it is the first.
fn start(disk: &MemoryEngine) -> (Broker, bool) {
    let store = Store::in_memory(disk, &Options::default()).expect("a store");
    let broker =
        Broker::with_store(Config::default().into(), u64::MAX, Some(Arc::new(store)), None);
    let drive = &mut Drive::default();
    let recovered = broker.recover(drive).expect("readable");
    let is_new = recovered.is_new;
    if is_new {
        broker.keep_as_started();
    }
    broker.begin_serving();
    broker.recover_messages(recovered, drive).expect("readable");
    (broker, is_new)
}

fn settle(broker: &Broker) {
    let (decided, outcome) = mpsc::channel();
    broker.when_definitions_durable(move |outcome| decided.send(outcome).expect("waited for"));
    outcome.recv().expect("an outcome").expect("durable");
}

/// The machine crashes once everything is durable, and starts again.
fn restart(broker: &Broker, disk: &MemoryEngine) -> (Broker, MemoryEngine) {
    settle(broker);
    let disk = disk.after_crash(0);
    (start(&disk).0, disk)
}

fn entries(broker: &Broker) -> Vec<(Vec<u8>, Vec<u8>)> {
    settle(broker);
    let store = broker.services.store.as_ref().expect("a store");
    store.entries(Space::Definitions).expect("readable")
}

/// A broker with a vhost, on a new disk.
fn with_vhost() -> (Broker, Arc<Vhost>, MemoryEngine) {
    let disk = MemoryEngine::default();
    let (broker, is_new) = start(&disk);
    assert!(is_new);
    broker.put_vhost("v", VhostMetadata::default()).expect("a valid name");
    let vhost = broker.vhost("v").expect("just added");
    (broker, vhost, disk)
}

fn durable() -> Declaration {
    Declaration { durable: true, ..Declaration::default() }
}

fn spec(durable: bool, auto_delete: bool) -> ExchangeSpec {
    ExchangeSpec { durable, auto_delete, ..ExchangeSpec::durable(ExchangeKind::Direct) }
}

fn table(fields: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in fields {
        table.insert((*name).into(), value.clone());
    }
    table
}

/// Arguments that JSON cannot tell apart or has no form for.
fn exact_arguments() -> FieldTable {
    let inner = table(&[("u", AMQPValue::ShortUInt(7)), ("void", AMQPValue::Void)]);
    let array = vec![AMQPValue::LongUInt(1), AMQPValue::FieldTable(inner)];
    table(&[
        ("x-max-length", AMQPValue::ShortShortInt(5)),
        ("x-byte", AMQPValue::ShortShortUInt(200)),
        ("x-long", AMQPValue::LongLongInt(i64::MIN)),
        ("x-time", AMQPValue::Timestamp(u64::MAX)),
        ("x-bytes", AMQPValue::ByteArray(vec![0, 255].into())),
        ("x-text", AMQPValue::LongString(vec![255, 254].into())),
        ("x-not-a-number", AMQPValue::Float(f32::INFINITY)),
        ("x-array", AMQPValue::FieldArray(array.into())),
    ])
}

#[test]
fn everything_comes_back_as_it_was() {
    let text = include_str!("../../../../tests/definitions/rabbitmq.json");
    let (disk, drive) = (MemoryEngine::default(), &mut Drive::default());
    let (broker, _) = start(&disk);
    let file = super::super::Definitions::parse(text.as_bytes()).expect("RabbitMQ's export");
    broker.import_definitions(&file, drive).expect("valid");
    broker.add_user("late", Some("secret"), &["monitoring".to_owned()]).expect("a new user");
    let limits = UserLimits { max_connections: Some(0), max_channels: Some(3) };
    broker.set_user_limits("late", limits).expect("it is there");
    let vhost = broker.vhost("shop").expect("it is in the file");
    let transient = vhost.queue("transient").expect("it is in the file");
    vhost.delete_queue(&transient, DeleteIf::default(), drive).expect("it is there");
    vhost.delete_exchange("temp", false, drive).expect("it is in the file");
    let arguments = exact_arguments();
    let declaration = Declaration { arguments: arguments.clone(), ..durable() };
    let queue = vhost.declare_queue("exact", ME, declaration, drive).expect("valid");
    let with_arguments = ExchangeSpec { arguments: arguments.clone(), ..spec(true, false) };
    vhost.declare_exchange("exact", with_arguments.clone(), drive).expect("valid");
    let (to, key) = (Destination::Queue("exact"), "k\u{e9}y".as_bytes());
    vhost.bind("exact", to, key, &arguments, drive).expect("valid");
    vhost.bind("exact", to, key, &table(&[]), drive).expect("another one");

    // Twice, for what comes from a store must not be written differently.
    let (second, disk) = restart(&broker, &disk);
    let (third, _) = restart(&second, &disk);
    for copy in [&second, &third] {
        assert!(copy.export_definitions() == broker.export_definitions());
        assert!(copy.access().check_login("late", "secret", true, &[]).is_ok());
        let vhost = copy.vhost("shop").expect("it was there");
        let restored = vhost.queue("exact").expect("it was there");
        assert_eq!(restored.id(), queue.id());
        assert_eq!(restored.declaration.arguments, arguments);
        vhost.look(|topology| {
            let exchange = topology.exchange("exact").expect("it was there");
            assert_eq!(*exchange.spec(), with_arguments);
            assert!(topology.is_bound("exact", to, key, &arguments));
        });
    }
    let objects = |broker: &Broker| {
        let all = entries(broker).into_iter();
        // Each start sets numbers aside.
        all.filter(|(key, _)| *key != b"i").collect::<Vec<_>>()
    };
    assert_eq!(objects(&third), objects(&broker));
}

#[test]
fn what_does_not_last_does_not_come_back() {
    let (broker, vhost, disk) = with_vhost();
    let drive = &mut Drive::default();
    let before = entries(&broker).len();
    let exclusive = Declaration { owner: Some(ME), ..durable() };
    vhost.declare_queue("exclusive", ME, exclusive, drive).expect("valid");
    vhost.declare_queue("transient", ME, Declaration::default(), drive).expect("valid");
    vhost.declare_exchange("transient", spec(false, false), drive).expect("valid");
    let bind = |from, to, drive: &mut Drive| vhost.bind(from, to, b"", &table(&[]), drive);
    bind("amq.direct", Destination::Queue("transient"), drive).expect("both are there");
    bind("amq.direct", Destination::Queue("exclusive"), drive).expect("both are there");
    bind("amq.direct", Destination::Exchange("transient"), drive).expect("both are there");
    vhost.delete_exchange("transient", false, drive).expect("it is there");
    assert!(broker.is_durable(drive.ticket), "nobody waits for those");
    assert_eq!(entries(&broker).len(), before);
    vhost.declare_queue("durable", ME, durable(), drive).expect("valid");
    bind("amq.direct", Destination::Queue("durable"), drive).expect("both are there");
    vhost.declare_exchange("transient", spec(false, false), drive).expect("valid");
    bind("transient", Destination::Queue("durable"), drive).expect("both are there");
    let (broker, _) = restart(&broker, &disk);
    let vhost = broker.vhost("v").expect("it was there");
    assert_eq!(vhost.queue_count(), 1);
    vhost.look(|topology| {
        assert_eq!(topology.exchanges().count(), 7, "the predeclared ones");
        assert_eq!(topology.bindings().filter(|binding| !binding.source.is_empty()).count(), 1);
    });
}

#[test]
fn deletions_leave_nothing_in_the_store() {
    let disk = MemoryEngine::default();
    let (broker, _) = start(&disk);
    broker.put_vhost("other", VhostMetadata::default()).expect("a valid name");
    broker.add_user("other", None, &[]).expect("a new user");
    let (before, drive) = (entries(&broker), &mut Drive::default());
    let file = json!({
        "users": [{"name": "u", "password_hash": "", "tags": ""}],
        "vhosts": [{"name": "v"}],
        "permissions": [
            {"user": "u", "vhost": "v", "configure": "", "write": "", "read": ""},
            {"user": "u", "vhost": "other", "configure": "", "write": "", "read": ""},
            {"user": "other", "vhost": "v", "configure": "", "write": "", "read": ""}],
        "topic_permissions": [
            {"user": "u", "vhost": "other", "exchange": "a", "write": "", "read": ""},
            {"user": "u", "vhost": "other", "exchange": "b", "write": "", "read": ""},
            {"user": "other", "vhost": "v", "exchange": "a", "write": "", "read": ""}],
        "policies": [{"vhost": "v", "name": "p", "pattern": "", "definition": {"expires": 9}}],
        "parameters": [
            {"vhost": "v", "component": "vhost-limits", "name": "limits",
             "value": {"max-queues": 7}},
            {"vhost": "other", "component": "operator_policy", "name": "o",
             "value": {"pattern": "", "definition": {"expires": 9}}},
            {"vhost": "v", "component": "operator_policy", "name": "o",
             "value": {"pattern": "", "definition": {"expires": 9}}}],
        "queues": [{"vhost": "v", "name": "q", "durable": true, "auto_delete": false}],
        "exchanges": [{"vhost": "v", "name": "e", "type": "topic", "durable": true,
            "auto_delete": true}],
        "bindings": [
            {"vhost": "v", "source": "e", "destination": "q", "destination_type": "queue",
             "routing_key": "a.#"},
            {"vhost": "v", "source": "e", "destination": "e", "destination_type": "exchange",
             "routing_key": "b", "arguments": {"x": 1}}],
    });
    let file = super::super::Definitions::from_json(&file).expect("valid");
    broker.import_definitions(&file, drive).expect("valid");
    assert!(entries(&broker).len() > before.len() + 10);
    broker.clear_topic_permissions("other", "u", Some("a")).expect("it is there");
    broker.clear_permissions("other", "u").expect("it is there");
    broker.delete_vhost("v").expect("it is there");
    broker.delete_user("u").expect("it is there");
    broker.delete_policy(PolicyScope::Operator, "other", "o", drive).expect("it is there");
    assert_eq!(entries(&broker), before);
}

#[test]
fn a_vhost_that_is_gone_takes_nothing_in() {
    let (broker, vhost, _) = with_vhost();
    let drive = &mut Drive::default();
    broker.delete_vhost("v").expect("it is there");
    let before = entries(&broker);
    vhost.declare_exchange("late", spec(true, false), drive).expect("its client is still there");
    vhost.bind("amq.direct", Destination::Exchange("late"), b"", &table(&[]), drive).expect("both");
    let policy = json!({"policies": [{"vhost": "v", "name": "p", "pattern": "",
        "definition": {"expires": 9}}]});
    let file = super::super::Definitions::from_json(&policy).expect("valid");
    let (_, policy) = file.policies[0].clone();
    vhost.set_policy(PolicyScope::User, policy, drive).expect("valid");
    assert_eq!(entries(&broker), before);
}

#[test]
fn a_queue_that_is_declared_again_has_no_old_bindings_and_a_new_number() {
    let (broker, vhost, disk) = with_vhost();
    let drive = &mut Drive::default();
    let first = vhost.declare_queue("q", ME, durable(), drive).expect("valid");
    let to = Destination::Queue("q");
    vhost.bind("amq.direct", to, b"old", &table(&[]), drive).expect("both are there");
    vhost.delete_queue(&first, DeleteIf::default(), drive).expect("it is there");
    let (broker, disk) = restart(&broker, &disk);
    let vhost = broker.vhost("v").expect("it was there");
    assert!(vhost.queue("q").is_err());
    let second = vhost.declare_queue("q", ME, durable(), drive).expect("valid");
    assert!(second.id() > first.id(), "its messages must not be taken for those of the other");
    vhost.bind("amq.direct", to, b"new", &table(&[]), drive).expect("both are there");
    let (broker, _) = restart(&broker, &disk);
    let vhost = broker.vhost("v").expect("it was there");
    assert_eq!(vhost.queue("q").expect("it was there").id(), second.id());
    assert!(vhost.is_bound("amq.direct", to, b"new", &table(&[])));
    assert!(!vhost.is_bound("amq.direct", to, b"old", &table(&[])));
}

#[test]
fn who_comes_second_waits_for_the_first() {
    let (broker, vhost, disk) = with_vhost();
    settle(&broker);
    disk.set_full(true);
    let mut first = Drive::default();
    vhost.declare_queue("q", ME, durable(), &mut first).expect("valid");
    vhost.declare_exchange("e", spec(true, false), &mut first).expect("valid");
    let to = Destination::Queue("q");
    vhost.bind("e", to, b"", &table(&[]), &mut first).expect("both are there");
    assert!(!broker.is_durable(first.ticket));
    let waits = |ask: &dyn Fn(&mut Drive)| {
        let mut second = Drive::default();
        ask(&mut second);
        second.ticket == first.ticket
    };
    assert!(waits(&|drive| drop(vhost.declare_queue("q", ME, durable(), drive))));
    assert!(waits(&|drive| drop(vhost.declare_exchange("e", spec(true, false), drive))));
    assert!(waits(&|drive| drop(vhost.bind("e", to, b"", &table(&[]), drive))));
    assert!(waits(&|drive| drop(vhost.unbind("e", to, b"other", &table(&[]), drive))));
    let transient = |drive: &mut Drive| {
        let declared = vhost.declare_queue("t", ME, Declaration::default(), drive);
        declared.map(drop).expect("valid");
    };
    assert!(!waits(&transient) && !waits(&transient));
    disk.set_full(false);
    settle(&broker);
    assert!(broker.is_durable(first.ticket));
}

#[test]
fn what_is_broken_is_left_out_and_left_in_place() {
    let (broker, vhost, disk) = with_vhost();
    vhost.declare_queue("q", ME, durable(), &mut Drive::default()).expect("valid");
    let queue = json!({"vhost": "nowhere", "name": "q", "durable": true, "auto_delete": false,
        "id": 5});
    let unknown = json!({"vhost": "v", "name": "s", "durable": true, "auto_delete": false,
        "id": 6, "amqp_arguments": "DHgtcXVldWUtdHlwZVMAAAAGc3RyZWFt"});
    let of_other = json!({"vhost": "v", "name": "t", "durable": true, "auto_delete": false,
        "id": 7, "amqp_arguments": "AAAA"});
    let broken: Vec<(&[u8], Vec<u8>)> = vec![
        (b"q\x00\x00\x00\x01vno json", b"{".to_vec()),
        (b"q\xff\xff", b"[]".to_vec()),
        (b"q1", queue.to_string().into()),
        (b"q2", unknown.to_string().into()),
        (b"q3", of_other.to_string().into()),
        (b"e", b"{}".to_vec()),
        (b"b", b"5".to_vec()),
        (b"p", br#"{"user":"u","vhost":"v","configure":"(","write":"","read":""}"#.to_vec()),
        (b"?", b"{}".to_vec()),
        (b"", Vec::new()),
    ];
    let changes = broken.iter().map(|(key, value)| {
        let (key, value) = (key.to_vec(), Some(value.clone()));
        Change { space: Space::Definitions, key, value }
    });
    broker.services.store.as_ref().expect("a store").change(changes.collect());
    // In order after that.
    broker.put_vhost("last", VhostMetadata::default()).expect("a valid name");
    let (broker, _) = restart(&broker, &disk);
    assert_eq!(broker.vhost("v").expect("it was there").queue_count(), 1);
    let kept = entries(&broker);
    for (key, value) in broken {
        assert!(kept.contains(&(key.to_vec(), value)), "{key:?}");
    }
}

#[test]
fn a_start_is_kept_as_a_whole_and_once() {
    let disk = MemoryEngine::default();
    let store = Store::in_memory(&disk, &Options::default()).expect("a store");
    let broker =
        Broker::with_store(Config::default().into(), u64::MAX, Some(Arc::new(store)), None);
    assert!(broker.recover(&mut Drive::default()).expect("readable").is_new);
    broker.add_defaults();
    broker.keep_as_started();
    settle(&broker);
    let (again, is_new) = start(&disk.after_crash(0));
    assert!(is_new && again.users().is_empty(), "nothing was handed over yet");
    broker.begin_serving();
    settle(&broker);
    let disk = disk.after_crash(0);
    let (again, is_new) = start(&disk);
    assert!(!is_new);
    assert_eq!((again.users(), again.permissions()), (broker.users(), broker.permissions()));
    again.delete_user("guest").expect("it is there");
    let (again, _) = restart(&again, &disk);
    assert!(again.users().is_empty() && again.permissions().is_empty());
}

/// One of few names, and what is done with it.
#[derive(Clone, Debug)]
enum Step {
    Exchange { name: usize, durable: bool, auto_delete: bool },
    Queue { name: usize, durable: bool, exclusive: bool },
    BindQueue { source: usize, queue: usize, key: u8 },
    BindExchange { source: usize, destination: usize },
    UnbindQueue { source: usize, queue: usize, key: u8 },
    UnbindExchange { source: usize, destination: usize },
    DeleteExchange { name: usize },
    DeleteQueue { name: usize },
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn arb_step() -> impl Strategy<Value = Step> {
    let (name, other) = (0..NAMES.len(), 0..NAMES.len());
    let flags = (any::<bool>(), any::<bool>());
    let pair = (name.clone(), other);
    prop_oneof![
        (name.clone(), flags).prop_map(|(name, (durable, auto_delete))| {
            Step::Exchange { name, durable, auto_delete }
        }),
        (name.clone(), flags)
            .prop_map(|(name, (durable, exclusive))| { Step::Queue { name, durable, exclusive } }),
        (pair.clone(), 0..2u8).prop_map(|((source, queue), key)| Step::BindQueue {
            source,
            queue,
            key
        }),
        pair.clone().prop_map(|(source, destination)| Step::BindExchange { source, destination }),
        (pair.clone(), 0..2u8).prop_map(|((source, queue), key)| Step::UnbindQueue {
            source,
            queue,
            key
        }),
        pair.prop_map(|(source, destination)| Step::UnbindExchange { source, destination }),
        name.clone().prop_map(|name| Step::DeleteExchange { name }),
        name.prop_map(|name| Step::DeleteQueue { name }),
    ]
}

/// Refusals, such as of what is not there, are part of the history.
fn take(step: &Step, vhost: &Vhost, drive: &mut Drive) {
    let none = FieldTable::default();
    let _ = match *step {
        Step::Exchange { name, durable, auto_delete } => {
            vhost.declare_exchange(NAMES[name], spec(durable, auto_delete), drive)
        }
        Step::Queue { name, durable, exclusive } => {
            let owner = exclusive.then_some(ME);
            let declaration = Declaration { durable, owner, ..Declaration::default() };
            vhost.declare_queue(NAMES[name], ME, declaration, drive).map(drop)
        }
        Step::BindQueue { source, queue, key } => {
            vhost.bind(NAMES[source], Destination::Queue(NAMES[queue]), &[key], &none, drive)
        }
        Step::BindExchange { source, destination } => {
            let to = Destination::Exchange(NAMES[destination]);
            vhost.bind(NAMES[source], to, b"", &none, drive)
        }
        Step::UnbindQueue { source, queue, key } => {
            vhost.unbind(NAMES[source], Destination::Queue(NAMES[queue]), &[key], &none, drive)
        }
        Step::UnbindExchange { source, destination } => {
            let to = Destination::Exchange(NAMES[destination]);
            vhost.unbind(NAMES[source], to, b"", &none, drive)
        }
        Step::DeleteExchange { name } => vhost.delete_exchange(NAMES[name], false, drive),
        Step::DeleteQueue { name } => match vhost.queue(NAMES[name]) {
            Ok(cell) => vhost.delete_queue(&cell, DeleteIf::default(), drive).map(drop),
            Err(error) => Err(error),
        },
    };
}

/// What of an export is to be there after a restart, by RabbitMQ's rules.
fn lasting(broker: &Broker) -> Vec<Value> {
    let all = broker.export_definitions().to_json();
    let objects = |kind: &str| all[kind].as_array().expect("a list").clone();
    let durable = |kind: &str| -> Vec<Value> {
        objects(kind).into_iter().filter(|object| object["durable"] == true).collect()
    };
    let (exchanges, mut lasting) = (durable("exchanges"), durable("queues"));
    let is_among = |objects: &[Value], name: &Value| objects.iter().any(|o| o["name"] == *name);
    let queues = lasting.clone();
    lasting.extend(objects("bindings").into_iter().filter(|binding| {
        let ends = if binding["destination_type"] == "queue" { &queues } else { &exchanges };
        is_among(&exchanges, &binding["source"]) && is_among(ends, &binding["destination"])
    }));
    lasting.extend(exchanges);
    lasting
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_restart_brings_back_what_lasts(
        before in prop::collection::vec(arb_step(), 0..40),
        after in prop::collection::vec(arb_step(), 0..20),
    ) {
        let (broker, vhost, disk) = with_vhost();
        let mut drive = Drive::default();
        before.iter().for_each(|step| take(step, &vhost, &mut drive));
        let (second, disk) = restart(&broker, &disk);
        prop_assert_eq!(lasting(&second), lasting(&broker));
        let vhost = second.vhost("v").expect("it was there");
        after.iter().for_each(|step| take(step, &vhost, &mut drive));
        let (third, _) = restart(&second, &disk);
        prop_assert_eq!(lasting(&third), lasting(&second));
    }
}
