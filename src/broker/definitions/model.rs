//! The content of a definitions file, read and written.
//!
//! Owns the names in the file, the forms that RabbitMQ's releases have given them, and the errors
//! that say which object is wrong. It must not know what the objects mean to a broker.

use serde_json::{Map, Value, json};

use super::object::Object;
use super::{
    PermissionDefinition, PolicyDefinition, TopicPermissionDefinition, UserDefinition, UserLimits,
    VhostLimits, VhostMetadata, table,
};
use crate::broker::access::hash_password;
use crate::broker::{DEFAULT_VHOST, QueueCell};
use crate::codec::method::FieldTable;
use crate::queue::Kind;
use crate::routing::{BindingView, Destination, ExchangeSpec};

/// The release whose format the files are in.
const FORMAT_VERSION: &str = "3.10.8";

/// What RabbitMQ's files have at the top.
const KEYS: [&str; 21] = [
    "bindings",
    "description",
    "default_queue_type",
    "exchanges",
    "explanation",
    "global_parameters",
    "metadata",
    "original_cluster_name",
    "original_vhost_name",
    "parameters",
    "permissions",
    "policies",
    "product_name",
    "product_version",
    "queues",
    "rabbit_version",
    "rabbitmq_definition_format",
    "rabbitmq_version",
    "topic_permissions",
    "users",
    "vhosts",
];

/// Why definitions are not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DefinitionsError(pub(crate) String);

/// The content of a definitions file. An empty vhost is one that the file does not name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Definitions {
    version: Option<String>,
    /// The vhost that a file of a single vhost was exported from.
    original_vhost: Option<String>,
    pub(super) users: Vec<User>,
    pub(super) vhosts: Vec<VhostEntry>,
    pub(super) permissions: Vec<PermissionDefinition>,
    pub(super) topic_permissions: Vec<TopicPermissionDefinition>,
    pub(super) parameters: Vec<Parameter>,
    pub(super) global_parameters: Vec<GlobalParameter>,
    pub(super) policies: Vec<(String, PolicyDefinition)>,
    pub(super) queues: Vec<Queue>,
    pub(super) exchanges: Vec<Exchange>,
    pub(super) bindings: Vec<Binding>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct User {
    pub(super) definition: UserDefinition,
    /// A password that is hashed on import.
    pub(super) password: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct VhostEntry {
    pub(super) name: String,
    pub(super) metadata: VhostMetadata,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Parameter {
    OperatorPolicy(String, PolicyDefinition),
    VhostLimits(String, VhostLimits),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct GlobalParameter {
    pub(super) name: String,
    pub(super) value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Queue {
    pub(super) vhost: String,
    pub(super) name: String,
    pub(super) kind: Option<String>,
    pub(super) durable: bool,
    pub(super) auto_delete: bool,
    pub(super) arguments: FieldTable,
    /// The number of a queue that a store has; files have none.
    pub(super) id: Option<u64>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Exchange {
    pub(super) vhost: String,
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) durable: bool,
    pub(super) auto_delete: bool,
    pub(super) internal: bool,
    pub(super) arguments: FieldTable,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Binding {
    pub(super) vhost: String,
    pub(super) source: String,
    pub(super) destination: String,
    pub(super) destination_type: String,
    pub(super) routing_key: String,
    pub(super) arguments: FieldTable,
}

impl Definitions {
    /// Reads the text of a file. What it does not know is passed over.
    ///
    /// # Errors
    /// When it is no JSON, or an object lacks something or has it in the wrong type.
    pub fn parse(text: &[u8]) -> Result<Self, DefinitionsError> {
        let value: Value = serde_json::from_slice(text)
            .map_err(|error| DefinitionsError(format!("this is no JSON: {error}")))?;
        Self::from_json(&value)
    }

    /// Reads the content of a file; see [`Definitions::parse`].
    ///
    /// # Errors
    /// When an object lacks something or has it in the wrong type.
    pub fn from_json(value: &Value) -> Result<Self, DefinitionsError> {
        Self::read(value).map_err(DefinitionsError)
    }

    /// The keys of a file that mean nothing in any release of RabbitMQ: mistakes, mostly.
    pub fn unknown_keys(value: &Value) -> Vec<&str> {
        let keys = value.as_object().into_iter().flat_map(Map::keys).map(String::as_str);
        keys.filter(|key| !KEYS.contains(key)).collect()
    }

    fn read(value: &Value) -> Result<Self, String> {
        let file = Object::of("the file".to_owned(), value)?;
        let version = file.optional_text("rabbitmq_version")?;
        Ok(Self {
            version: match version {
                None => file.optional_text("rabbit_version")?,
                version => version,
            },
            original_vhost: file.optional_text("original_vhost_name")?,
            users: file.each("users", User::read)?,
            vhosts: file.each("vhosts", VhostEntry::read)?,
            permissions: file.each("permissions", read_permission)?,
            topic_permissions: file.each("topic_permissions", read_topic_permission)?,
            parameters: file.each("parameters", Parameter::read)?,
            global_parameters: file.each("global_parameters", GlobalParameter::read)?,
            policies: file.each("policies", |object| {
                Ok((object.vhost()?, policy_of(object.text("name")?, object)?))
            })?,
            queues: file.each("queues", Queue::read)?,
            exchanges: file.each("exchanges", Exchange::read)?,
            bindings: file.each("bindings", Binding::read)?,
        })
    }

    /// The text of a file with this content.
    pub fn to_text(&self) -> String {
        let mut text = serde_json::to_string_pretty(&self.to_json()).expect("plain values");
        text.push('\n');
        text
    }

    /// The content of such a file.
    pub fn to_json(&self) -> Value {
        let policy = |(vhost, policy): &(String, PolicyDefinition)| policy_to_json(vhost, policy);
        json!({
            "rabbit_version": FORMAT_VERSION,
            "rabbitmq_version": FORMAT_VERSION,
            "product_name": "Leveret",
            "product_version": env!("CARGO_PKG_VERSION"),
            "rabbitmq_definition_format": "cluster",
            "users": self.users.iter().map(User::to_json).collect::<Vec<_>>(),
            "vhosts": self.vhosts.iter().map(VhostEntry::to_json).collect::<Vec<_>>(),
            "permissions": self.permissions.iter().map(permission_to_json).collect::<Vec<_>>(),
            "topic_permissions":
                self.topic_permissions.iter().map(topic_permission_to_json).collect::<Vec<_>>(),
            "parameters": self.parameters.iter().map(Parameter::to_json).collect::<Vec<_>>(),
            "global_parameters":
                self.global_parameters.iter().map(GlobalParameter::to_json).collect::<Vec<_>>(),
            "policies": self.policies.iter().map(policy).collect::<Vec<_>>(),
            "queues": self.queues.iter().map(Queue::to_json).collect::<Vec<_>>(),
            "exchanges": self.exchanges.iter().map(Exchange::to_json).collect::<Vec<_>>(),
            "bindings": self.bindings.iter().map(Binding::to_json).collect::<Vec<_>>(),
        })
    }

    /// The same with what is kept of passwords instead of them. That takes a while.
    ///
    /// # Errors
    /// When a password is empty.
    pub(super) fn with_hashes(mut self) -> Result<Self, String> {
        for user in &mut self.users {
            let Some(password) = user.password.take() else { continue };
            let definition = &mut user.definition;
            let (hash, algorithm) = hash_password(&password)
                .map_err(|error| format!("user '{}': {error}", definition.name))?;
            (definition.password_hash, definition.hashing_algorithm) = (hash, algorithm);
        }
        Ok(self)
    }

    /// The same with every vhost named: `vhost`, or else the one that a file of a single vhost was
    /// exported from, or else `/`.
    pub fn with_vhost(&self, vhost: Option<&str>) -> Self {
        let original = self.original_vhost.as_deref();
        let name = vhost.or(original).unwrap_or(DEFAULT_VHOST);
        let mut named = self.clone();
        let fill = |vhost: &mut String| {
            if vhost.is_empty() {
                name.clone_into(vhost);
            }
        };
        named.permissions.iter_mut().for_each(|permission| fill(&mut permission.vhost));
        named.topic_permissions.iter_mut().for_each(|permission| fill(&mut permission.vhost));
        named.parameters.iter_mut().for_each(|parameter| match parameter {
            Parameter::OperatorPolicy(vhost, _) | Parameter::VhostLimits(vhost, _) => fill(vhost),
        });
        named.policies.iter_mut().for_each(|(vhost, _)| fill(vhost));
        named.queues.iter_mut().for_each(|queue| fill(&mut queue.vhost));
        named.exchanges.iter_mut().for_each(|exchange| fill(&mut exchange.vhost));
        named.bindings.iter_mut().for_each(|binding| fill(&mut binding.vhost));
        named
    }

    /// The queues and exchanges that do not survive a restart, for messages.
    pub fn transient(&self) -> Vec<String> {
        let queues = self.queues.iter().filter(|queue| !queue.durable);
        let queues =
            queues.map(|queue| format!("queue '{}' in vhost '{}'", queue.name, queue.vhost));
        let exchanges = self.exchanges.iter().filter(|exchange| !exchange.durable);
        let exchanges = exchanges
            .map(|exchange| format!("exchange '{}' in vhost '{}'", exchange.name, exchange.vhost));
        queues.chain(exchanges).collect()
    }

    /// Whether hashes without an algorithm are of the one that RabbitMQ had before 3.6.
    pub(super) fn hashes_are_md5(&self) -> bool {
        let Some(version) = &self.version else { return false };
        let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
        matches!((parts.next().flatten(), parts.next().flatten()), (Some(major), Some(minor))
            if (major, minor) < (3, 6))
    }

    /// Whether there is any user.
    pub fn has_users(&self) -> bool {
        !self.users.is_empty()
    }

    /// Whether there is any vhost.
    pub fn has_vhosts(&self) -> bool {
        !self.vhosts.is_empty()
    }
}

pub(super) fn read_permission(object: &Object<'_>) -> Result<PermissionDefinition, String> {
    Ok(PermissionDefinition {
        vhost: object.vhost()?,
        user: object.text("user")?,
        configure: object.text("configure")?,
        write: object.text("write")?,
        read: object.text("read")?,
    })
}

pub(super) fn permission_to_json(permission: &PermissionDefinition) -> Value {
    let PermissionDefinition { vhost, user, configure, write, read } = permission;
    json!({"user": user, "vhost": vhost, "configure": configure, "write": write, "read": read})
}

pub(super) fn read_topic_permission(
    object: &Object<'_>,
) -> Result<TopicPermissionDefinition, String> {
    Ok(TopicPermissionDefinition {
        vhost: object.vhost()?,
        user: object.text("user")?,
        exchange: object.text("exchange")?,
        write: object.text("write")?,
        read: object.text("read")?,
    })
}

pub(super) fn topic_permission_to_json(permission: &TopicPermissionDefinition) -> Value {
    let TopicPermissionDefinition { vhost, user, exchange, write, read } = permission;
    json!({"user": user, "vhost": vhost, "exchange": exchange, "write": write, "read": read})
}

impl GlobalParameter {
    pub(super) fn read(object: &Object<'_>) -> Result<Self, String> {
        let value = object.map.get("value").cloned().unwrap_or_default();
        Ok(Self { name: object.text("name")?, value })
    }

    pub(super) fn to_json(&self) -> Value {
        json!({"name": self.name, "value": self.value})
    }
}

impl User {
    pub(super) fn read(object: &Object<'_>) -> Result<Self, String> {
        let definition = UserDefinition {
            name: object.text("name")?,
            password_hash: object.optional_text("password_hash")?.unwrap_or_default(),
            hashing_algorithm: object.optional_text("hashing_algorithm")?.unwrap_or_default(),
            tags: object.words("tags")?,
            limits: match object.table("limits")? {
                None => UserLimits::default(),
                Some(limits) => UserLimits {
                    max_connections: limits.limit("max-connections")?,
                    max_channels: limits.limit("max-channels")?,
                },
            },
        };
        Ok(Self { definition, password: object.optional_text("password")? })
    }

    pub(super) fn to_json(&self) -> Value {
        let UserDefinition { name, password_hash, hashing_algorithm, tags, limits } =
            &self.definition;
        let mut of = Map::new();
        put_limit(&mut of, "max-connections", limits.max_connections);
        put_limit(&mut of, "max-channels", limits.max_channels);
        json!({"name": name, "password_hash": password_hash,
               "hashing_algorithm": hashing_algorithm, "tags": tags, "limits": of})
    }
}

impl VhostEntry {
    /// Releases before 3.8 name a vhost only, and later ones say more in either of two places.
    pub(super) fn read(object: &Object<'_>) -> Result<Self, String> {
        let metadata = object.table("metadata")?;
        let text = |key| -> Result<Option<String>, String> {
            let inner =
                metadata.as_ref().map(|metadata| metadata.optional_text(key)).transpose()?;
            Ok(object.optional_text(key)?.or(inner.flatten()))
        };
        let tags = match (object.map.get("tags"), &metadata) {
            (None, Some(metadata)) => metadata.words("tags")?,
            _ => object.words("tags")?,
        };
        let default_queue_type = text("default_queue_type")?.filter(|kind| kind != "undefined");
        let description = text("description")?.unwrap_or_default();
        let metadata = VhostMetadata { description, tags, default_queue_type };
        Ok(Self { name: object.text("name")?, metadata })
    }

    pub(super) fn to_json(&self) -> Value {
        let VhostMetadata { description, tags, default_queue_type } = &self.metadata;
        let mut metadata = json!({"description": description, "tags": tags});
        if let Some(kind) = default_queue_type {
            metadata["default_queue_type"] = json!(kind);
        }
        json!({"name": self.name, "metadata": metadata})
    }
}

impl Parameter {
    fn read(object: &Object<'_>) -> Result<Self, String> {
        let (vhost, component) = (object.vhost()?, object.text("component")?);
        let name = object.optional_text("name")?.unwrap_or_default();
        let value = object.table("value")?;
        let value = value.ok_or_else(|| object.wrong("value", "an object"));
        match component.as_str() {
            "operator_policy" => Ok(Self::OperatorPolicy(vhost, policy_of(name, &value?)?)),
            "vhost-limits" => Self::limits(vhost, &value?),
            _ => {
                // RabbitMQ's words when the plugin of a component is not enabled.
                let place = format!("{vhost}/{component}/{name}");
                Err(format!("{}: component {component} not found ({place})", object.what))
            }
        }
    }

    /// The limits of a vhost.
    pub(super) fn limits(vhost: String, value: &Object<'_>) -> Result<Self, String> {
        let known = ["max-connections", "max-queues"];
        if let Some(other) = value.map.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(format!("{}: there is no limit \"{other}\"", value.what));
        }
        let max_connections = value.limit("max-connections")?;
        let limits = VhostLimits { max_connections, max_queues: value.limit("max-queues")? };
        Ok(Self::VhostLimits(vhost, limits))
    }

    fn to_json(&self) -> Value {
        match self {
            Self::OperatorPolicy(vhost, policy) => {
                json!({"vhost": vhost, "component": "operator_policy", "name": policy.name,
                       "value": settings_to_json(policy)})
            }
            Self::VhostLimits(vhost, limits) => {
                json!({"vhost": vhost, "component": "vhost-limits", "name": "limits",
                       "value": limits_to_json(limits)})
            }
        }
    }
}

pub(super) fn limits_to_json(limits: &VhostLimits) -> Value {
    let mut of = Map::new();
    put_limit(&mut of, "max-connections", limits.max_connections);
    put_limit(&mut of, "max-queues", limits.max_queues);
    Value::Object(of)
}

/// The policy of this name.
pub(super) fn policy_of(name: String, object: &Object<'_>) -> Result<PolicyDefinition, String> {
    let definition = object.table("definition")?;
    let definition = definition.ok_or_else(|| object.wrong("definition", "an object"))?;
    Ok(PolicyDefinition {
        name,
        pattern: object.text("pattern")?,
        apply_to: object.optional_text("apply-to")?.unwrap_or_else(|| "all".to_owned()),
        priority: match object.map.get("priority") {
            None | Some(Value::Null) => 0,
            Some(value) => {
                value.as_i64().ok_or_else(|| object.wrong("priority", "a whole number"))?
            }
        },
        definition: definition.map.into_owned(),
    })
}

pub(super) fn policy_to_json(vhost: &str, policy: &PolicyDefinition) -> Value {
    let mut object = settings_to_json(policy);
    object["vhost"] = json!(vhost);
    object["name"] = json!(policy.name);
    object
}

/// A policy without its name and vhost.
fn settings_to_json(policy: &PolicyDefinition) -> Value {
    json!({"pattern": policy.pattern, "apply-to": policy.apply_to, "priority": policy.priority,
           "definition": policy.definition})
}

fn put_limit(limits: &mut Map<String, Value>, name: &str, limit: Option<u32>) {
    if let Some(limit) = limit {
        limits.insert(name.to_owned(), json!(limit));
    }
}

impl Queue {
    pub(super) fn of(vhost: &str, cell: &QueueCell) -> Self {
        let declaration = &cell.declaration;
        let kind = if declaration.kind == Kind::Quorum { "quorum" } else { "classic" };
        Self {
            vhost: vhost.to_owned(),
            name: cell.name().to_owned(),
            kind: Some(kind.to_owned()),
            durable: declaration.durable,
            auto_delete: declaration.auto_delete,
            arguments: declaration.arguments.clone(),
            id: None,
        }
    }

    pub(super) fn read(object: &Object<'_>) -> Result<Self, String> {
        Ok(Self {
            vhost: object.vhost()?,
            name: object.text("name")?,
            kind: object.optional_text("type")?,
            durable: object.flag("durable", None)?,
            auto_delete: object.flag("auto_delete", None)?,
            arguments: object.arguments()?,
            id: None,
        })
    }

    pub(super) fn to_json(&self) -> Value {
        json!({"vhost": self.vhost, "name": self.name,
               "type": self.kind.as_deref().unwrap_or("classic"), "durable": self.durable,
               "auto_delete": self.auto_delete, "arguments": table::to_json(&self.arguments)})
    }
}

impl Exchange {
    pub(super) fn of(vhost: &str, name: &str, spec: &ExchangeSpec) -> Self {
        Self {
            vhost: vhost.to_owned(),
            name: name.to_owned(),
            kind: spec.kind.name().to_owned(),
            durable: spec.durable,
            auto_delete: spec.auto_delete,
            internal: spec.internal,
            arguments: spec.arguments.clone(),
        }
    }

    pub(super) fn read(object: &Object<'_>) -> Result<Self, String> {
        Ok(Self {
            vhost: object.vhost()?,
            name: object.text("name")?,
            kind: object.text("type")?,
            durable: object.flag("durable", None)?,
            auto_delete: object.flag("auto_delete", None)?,
            internal: object.flag("internal", Some(false))?,
            arguments: object.arguments()?,
        })
    }

    pub(super) fn to_json(&self) -> Value {
        json!({"vhost": self.vhost, "name": self.name, "type": self.kind, "durable": self.durable,
               "auto_delete": self.auto_delete, "internal": self.internal,
               "arguments": table::to_json(&self.arguments)})
    }
}

impl Binding {
    pub(super) fn of(vhost: &str, binding: &BindingView<'_>) -> Self {
        Self {
            vhost: vhost.to_owned(),
            source: binding.source.to_owned(),
            destination: binding.destination.name().to_owned(),
            destination_type: destination_type(binding.destination).to_owned(),
            routing_key: String::from_utf8_lossy(binding.key).into_owned(),
            arguments: binding.arguments.clone(),
        }
    }

    pub(super) fn read(object: &Object<'_>) -> Result<Self, String> {
        let destination_type = object.text("destination_type")?;
        if !["queue", "exchange"].contains(&destination_type.as_str()) {
            return Err(object.wrong("destination_type", "\"queue\" or \"exchange\""));
        }
        Ok(Self {
            vhost: object.vhost()?,
            source: object.text("source")?,
            destination: object.text("destination")?,
            destination_type,
            routing_key: object.optional_text("routing_key")?.unwrap_or_default(),
            arguments: object.arguments()?,
        })
    }

    pub(super) fn to_json(&self) -> Value {
        json!({"vhost": self.vhost, "source": self.source, "destination": self.destination,
               "destination_type": self.destination_type, "routing_key": self.routing_key,
               "arguments": table::to_json(&self.arguments)})
    }
}

/// How files name the type of a binding's destination.
pub(super) fn destination_type(destination: Destination<'_>) -> &'static str {
    match destination {
        Destination::Queue(_) => "queue",
        Destination::Exchange(_) => "exchange",
    }
}
