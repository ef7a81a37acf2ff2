//! Definitions as the store keeps them: one entry for each object.
//!
//! Owns keys and values, so that a change writes what it is about and nothing else. It must not
//! know when something changes, nor what an object means.
//!
//! A key is a letter for the kind, then each name with its length before it (4 bytes, big endian);
//! that of a binding ends with its arguments as on the wire, which tell it from others. A value is
//! the JSON object of a definitions file, but for the arguments: JSON has fewer types than AMQP, so
//! they stand there as on the wire, in base64 (`amqp_arguments`). A queue has its `id`, by which
//! its messages are found, a vhost its `limits`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::model::{
    Binding, Definitions, Exchange, GlobalParameter, Parameter, Queue, User, VhostEntry,
    destination_type, limits_to_json, permission_to_json, policy_of, policy_to_json,
    read_permission, read_topic_permission, topic_permission_to_json,
};
use super::object::Object;
use crate::broker::{
    PermissionDefinition, PolicyDefinition, PolicyScope, QueueCell, TopicPermissionDefinition,
    UserDefinition, VhostDefinition, VhostLimits,
};
use crate::codec::method::FieldTable;
use crate::codec::table;
use crate::routing::{BindingView, ExchangeSpec};
use crate::store::{Change, Space};

const USER: u8 = b'u';
const VHOST: u8 = b'v';
const PERMISSION: u8 = b'p';
const TOPIC_PERMISSION: u8 = b't';
const GLOBAL_PARAMETER: u8 = b'g';
const POLICY: u8 = b'y';
const OPERATOR_POLICY: u8 = b'o';
const EXCHANGE: u8 = b'e';
const QUEUE: u8 = b'q';
const BINDING: u8 = b'b';
/// Not an object: from where on numbers of queues are free.
const IDS: u8 = b'i';
/// Not an object: a broker has begun to serve with this store.
const STARTED: u8 = b's';

const ARGUMENTS: &str = "amqp_arguments";
const ID: &str = "id";

/// What a key names.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Record<'a> {
    User(&'a str),
    Vhost(&'a str),
    /// Vhost and user.
    Permission(&'a str, &'a str),
    /// Vhost, user and exchange.
    TopicPermission(&'a str, &'a str, &'a str),
    GlobalParameter(&'a str),
    /// Scope, vhost and name.
    Policy(PolicyScope, &'a str, &'a str),
    /// Vhost and name.
    Exchange(&'a str, &'a str),
    /// Vhost and name.
    Queue(&'a str, &'a str),
    /// Vhost and the rest.
    Binding(&'a str, BindingView<'a>),
    Ids,
    Started,
}

impl Record<'_> {
    fn key(self) -> Vec<u8> {
        match self {
            Self::User(name) => key(USER, &[name]),
            Self::Vhost(name) => key(VHOST, &[name]),
            Self::Permission(vhost, user) => key(PERMISSION, &[vhost, user]),
            Self::TopicPermission(vhost, user, exchange) => {
                key(TOPIC_PERMISSION, &[vhost, user, exchange])
            }
            Self::GlobalParameter(name) => key(GLOBAL_PARAMETER, &[name]),
            Self::Policy(PolicyScope::User, vhost, name) => key(POLICY, &[vhost, name]),
            Self::Policy(PolicyScope::Operator, vhost, name) => {
                key(OPERATOR_POLICY, &[vhost, name])
            }
            Self::Exchange(vhost, name) => key(EXCHANGE, &[vhost, name]),
            Self::Queue(vhost, name) => key(QUEUE, &[vhost, name]),
            Self::Binding(vhost, binding) => {
                let BindingView { source, destination, key: routing_key, arguments } = binding;
                let kind = destination_type(destination);
                let mut key = key(BINDING, &[vhost, source, kind, destination.name()]);
                put_name(&mut key, routing_key);
                key.extend_from_slice(&table::encode(arguments));
                key
            }
            Self::Ids => vec![IDS],
            Self::Started => vec![STARTED],
        }
    }

    /// It does not exist any more.
    pub(crate) fn gone(self) -> Change {
        Change { space: Space::Definitions, key: self.key(), value: None }
    }

    fn is(self, value: &Value) -> Change {
        let value = serde_json::to_vec(value).expect("plain values");
        Change { space: Space::Definitions, key: self.key(), value: Some(value) }
    }
}

fn key(kind: u8, names: &[&str]) -> Vec<u8> {
    let mut key = vec![kind];
    names.iter().for_each(|name| put_name(&mut key, name.as_bytes()));
    key
}

fn put_name(key: &mut Vec<u8>, name: &[u8]) {
    let len = u32::try_from(name.len()).expect("a name comes in one frame or file");
    key.extend_from_slice(&len.to_be_bytes());
    key.extend_from_slice(name);
}

pub(crate) fn user(user: &UserDefinition) -> Change {
    let entry = User { definition: user.clone(), password: None };
    Record::User(&user.name).is(&entry.to_json())
}

pub(crate) fn vhost(vhost: &VhostDefinition) -> Change {
    let entry = VhostEntry { name: vhost.name.clone(), metadata: vhost.metadata.clone() };
    let mut object = entry.to_json();
    if vhost.limits != VhostLimits::default() {
        object["limits"] = limits_to_json(&vhost.limits);
    }
    Record::Vhost(&vhost.name).is(&object)
}

pub(crate) fn permission(permission: &PermissionDefinition) -> Change {
    let record = Record::Permission(&permission.vhost, &permission.user);
    record.is(&permission_to_json(permission))
}

pub(crate) fn topic_permission(permission: &TopicPermissionDefinition) -> Change {
    let TopicPermissionDefinition { vhost, user, exchange, .. } = permission;
    Record::TopicPermission(vhost, user, exchange).is(&topic_permission_to_json(permission))
}

pub(crate) fn global_parameter(name: &str, value: &Value) -> Change {
    Record::GlobalParameter(name).is(&json!({"name": name, "value": value}))
}

pub(crate) fn policy(scope: PolicyScope, vhost: &str, policy: &PolicyDefinition) -> Change {
    Record::Policy(scope, vhost, &policy.name).is(&policy_to_json(vhost, policy))
}

pub(crate) fn exchange(vhost: &str, name: &str, spec: &ExchangeSpec) -> Change {
    let object = Exchange::of(vhost, name, spec).to_json();
    Record::Exchange(vhost, name).is(&exact(object, &spec.arguments))
}

pub(crate) fn queue(vhost: &str, cell: &QueueCell) -> Change {
    let mut object = exact(Queue::of(vhost, cell).to_json(), &cell.declaration.arguments);
    object[ID] = json!(cell.id().0);
    Record::Queue(vhost, cell.name()).is(&object)
}

pub(crate) fn binding(vhost: &str, binding: &BindingView<'_>) -> Change {
    let object = Binding::of(vhost, binding).to_json();
    Record::Binding(vhost, *binding).is(&exact(object, binding.arguments))
}

/// Numbers of queues below were, or may have been, given out.
pub(super) fn ids(free_from: u64) -> Change {
    Record::Ids.is(&json!({ "free_from": free_from }))
}

pub(super) fn started() -> Change {
    Record::Started.is(&json!({}))
}

/// Puts the arguments into an object as they stand on the wire.
fn exact(mut object: Value, arguments: &FieldTable) -> Value {
    let map = object.as_object_mut().expect("definitions are objects");
    map.remove("arguments");
    if !arguments.inner().is_empty() {
        map.insert(ARGUMENTS.to_owned(), json!(BASE64.encode(table::encode(arguments))));
    }
    object
}

/// What was found in a store.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) definitions: Definitions,
    pub(super) ids_free_from: u64,
    pub(super) is_started: bool,
}

impl Found {
    /// Takes an entry; says what it was about when that cannot be understood.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let value = serde_json::from_slice(value);
        let value: Value = value.map_err(|error| format!("{}: {error}", describe(key)))?;
        self.read(key, &Object::of(describe(key), &value)?)
    }

    fn read(&mut self, key: &[u8], object: &Object<'_>) -> Result<(), String> {
        let found = &mut self.definitions;
        match key.first() {
            Some(&USER) => found.users.push(User::read(object)?),
            Some(&VHOST) => {
                let entry = VhostEntry::read(object)?;
                if let Some(limits) = object.table("limits")? {
                    found.parameters.push(Parameter::limits(entry.name.clone(), &limits)?);
                }
                found.vhosts.push(entry);
            }
            Some(&PERMISSION) => found.permissions.push(read_permission(object)?),
            Some(&TOPIC_PERMISSION) => {
                found.topic_permissions.push(read_topic_permission(object)?);
            }
            Some(&GLOBAL_PARAMETER) => {
                found.global_parameters.push(GlobalParameter::read(object)?);
            }
            Some(&POLICY) => {
                found.policies.push((object.vhost()?, policy_of(object.text("name")?, object)?));
            }
            Some(&OPERATOR_POLICY) => {
                let policy = policy_of(object.text("name")?, object)?;
                found.parameters.push(Parameter::OperatorPolicy(object.vhost()?, policy));
            }
            Some(&EXCHANGE) => {
                let arguments = arguments(object)?;
                found.exchanges.push(Exchange { arguments, ..Exchange::read(object)? });
            }
            Some(&QUEUE) => {
                let (arguments, id) = (arguments(object)?, Some(number(object, ID)?));
                found.queues.push(Queue { arguments, id, ..Queue::read(object)? });
            }
            Some(&BINDING) => {
                let arguments = arguments(object)?;
                found.bindings.push(Binding { arguments, ..Binding::read(object)? });
            }
            Some(&IDS) => self.ids_free_from = number(object, "free_from")?,
            Some(&STARTED) => self.is_started = true,
            _ => return Err(format!("{}: this version knows no such kind", object.what)),
        }
        Ok(())
    }
}

fn arguments(object: &Object<'_>) -> Result<FieldTable, String> {
    let Some(text) = object.optional_text(ARGUMENTS)? else { return Ok(FieldTable::default()) };
    let bytes = BASE64.decode(text).map_err(|_| object.wrong(ARGUMENTS, "base64"))?;
    table::decode(&bytes).map_err(|error| format!("{}: its arguments: {error}", object.what))
}

fn number(object: &Object<'_>, key: &str) -> Result<u64, String> {
    let number = object.map.get(key).and_then(Value::as_u64);
    number.ok_or_else(|| object.wrong(key, "a whole number"))
}

/// What a key is about, for logs.
fn describe(key: &[u8]) -> String {
    let kind = match key.first() {
        Some(&USER) => "user",
        Some(&VHOST) => "vhost",
        Some(&PERMISSION) => "permissions in vhost, of user",
        Some(&TOPIC_PERMISSION) => "topic permissions in vhost, of user, on exchange",
        Some(&GLOBAL_PARAMETER) => "global parameter",
        Some(&POLICY) => "policy in vhost, of name",
        Some(&OPERATOR_POLICY) => "operator policy in vhost, of name",
        Some(&EXCHANGE) => "exchange in vhost, of name",
        Some(&QUEUE) => "queue in vhost, of name",
        Some(&BINDING) => "binding in vhost, from, to, key",
        Some(&IDS) => "numbers of queues",
        Some(&STARTED) => "start",
        _ => "object of unknown kind",
    };
    let mut rest = key.get(1..).unwrap_or_default();
    let mut text = kind.to_owned();
    while let Some((len, after)) = rest.split_first_chunk::<4>() {
        let Some((name, after)) = after.split_at_checked(u32::from_be_bytes(*len) as usize) else {
            break;
        };
        text.push_str(&format!(" '{}'", String::from_utf8_lossy(name)));
        rest = after;
    }
    text
}
