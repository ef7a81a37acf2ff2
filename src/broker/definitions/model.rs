//! The content of a definitions file, read and written.
//!
//! Owns the names in the file, the forms that RabbitMQ's releases have given them, and the errors
//! that say which object is wrong. It must not know what the objects mean to a broker.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use serde_json::{Map, Value, json};

use super::object::Object;
use super::{
    PermissionDefinition, PolicyDefinition, TopicPermissionDefinition, UserDefinition, UserLimits,
    VhostLimits, VhostMetadata,
};
use crate::broker::DEFAULT_VHOST;

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
    pub(super) arguments: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Exchange {
    pub(super) vhost: String,
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) durable: bool,
    pub(super) auto_delete: bool,
    pub(super) internal: bool,
    pub(super) arguments: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Binding {
    pub(super) vhost: String,
    pub(super) source: String,
    pub(super) destination: String,
    pub(super) destination_type: String,
    pub(super) routing_key: String,
    pub(super) arguments: Map<String, Value>,
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
            permissions: file.each("permissions", |object| {
                Ok(PermissionDefinition {
                    vhost: object.vhost()?,
                    user: object.text("user")?,
                    configure: object.text("configure")?,
                    write: object.text("write")?,
                    read: object.text("read")?,
                })
            })?,
            topic_permissions: file.each("topic_permissions", |object| {
                Ok(TopicPermissionDefinition {
                    vhost: object.vhost()?,
                    user: object.text("user")?,
                    exchange: object.text("exchange")?,
                    write: object.text("write")?,
                    read: object.text("read")?,
                })
            })?,
            parameters: file.each("parameters", Parameter::read)?,
            global_parameters: file.each("global_parameters", |object| {
                let value = object.map.get("value").cloned().unwrap_or_default();
                Ok(GlobalParameter { name: object.text("name")?, value })
            })?,
            policies: file.each("policies", |object| {
                Ok((object.vhost()?, policy(object.text("name")?, object)?))
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
        let permission = |p: &PermissionDefinition| {
            json!({"user": p.user, "vhost": p.vhost, "configure": p.configure, "write": p.write,
                   "read": p.read})
        };
        let topic_permission = |p: &TopicPermissionDefinition| {
            json!({"user": p.user, "vhost": p.vhost, "exchange": p.exchange, "write": p.write,
                   "read": p.read})
        };
        let global = |p: &GlobalParameter| json!({"name": p.name, "value": p.value});
        let list = |(vhost, policy): &(String, PolicyDefinition)| {
            let mut object = policy_to_json(policy);
            object["vhost"] = json!(vhost);
            object["name"] = json!(policy.name);
            object
        };
        json!({
            "rabbit_version": FORMAT_VERSION,
            "rabbitmq_version": FORMAT_VERSION,
            "product_name": "Leveret",
            "product_version": env!("CARGO_PKG_VERSION"),
            "rabbitmq_definition_format": "cluster",
            "users": self.users.iter().map(User::to_json).collect::<Vec<_>>(),
            "vhosts": self.vhosts.iter().map(VhostEntry::to_json).collect::<Vec<_>>(),
            "permissions": self.permissions.iter().map(permission).collect::<Vec<_>>(),
            "topic_permissions":
                self.topic_permissions.iter().map(topic_permission).collect::<Vec<_>>(),
            "parameters": self.parameters.iter().map(Parameter::to_json).collect::<Vec<_>>(),
            "global_parameters": self.global_parameters.iter().map(global).collect::<Vec<_>>(),
            "policies": self.policies.iter().map(list).collect::<Vec<_>>(),
            "queues": self.queues.iter().map(Queue::to_json).collect::<Vec<_>>(),
            "exchanges": self.exchanges.iter().map(Exchange::to_json).collect::<Vec<_>>(),
            "bindings": self.bindings.iter().map(Binding::to_json).collect::<Vec<_>>(),
        })
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

    /// Puts what another has of users, vhosts and permissions into the place of these.
    pub fn replace_access(&mut self, other: Self) {
        self.users = other.users;
        self.vhosts = other.vhosts;
        self.permissions = other.permissions;
        self.topic_permissions = other.topic_permissions;
    }

    /// Puts hashes into the places of passwords: those of a broker that has the users.
    pub fn hash_passwords(&mut self, users: &[UserDefinition]) {
        for user in self.users.iter_mut().filter(|user| user.password.is_some()) {
            let hashed = users.iter().find(|hashed| hashed.name == user.definition.name);
            if let Some(hashed) = hashed {
                *user = User { definition: hashed.clone(), password: None };
            }
        }
    }

    /// Adds what another import has brought, as an import adds it to a broker: it replaces what has
    /// its name, but queues and exchanges stay as they are.
    pub fn absorb(&mut self, other: Self) {
        let of = |vhost: &str, name: &str| (vhost.to_owned(), name.to_owned());
        replace(&mut self.users, other.users, |user| user.definition.name.clone());
        replace(&mut self.vhosts, other.vhosts, |vhost| vhost.name.clone());
        replace(&mut self.permissions, other.permissions, |p| of(&p.vhost, &p.user));
        replace(&mut self.topic_permissions, other.topic_permissions, |p| {
            (of(&p.vhost, &p.user), p.exchange.clone())
        });
        replace(&mut self.parameters, other.parameters, |parameter| match parameter {
            Parameter::OperatorPolicy(vhost, policy) => (of(vhost, &policy.name), true),
            Parameter::VhostLimits(vhost, _) => (of(vhost, ""), false),
        });
        replace(&mut self.global_parameters, other.global_parameters, |p| p.name.clone());
        replace(&mut self.policies, other.policies, |(vhost, policy)| of(vhost, &policy.name));
        keep(&mut self.queues, other.queues, |queue| of(&queue.vhost, &queue.name));
        keep(&mut self.exchanges, other.exchanges, |exchange| of(&exchange.vhost, &exchange.name));
        keep(&mut self.bindings, other.bindings, |binding| binding.to_json().to_string());
    }
}

/// Adds `added`, in the places of those with the same key.
fn replace<T, K: Hash + Eq>(objects: &mut Vec<T>, added: Vec<T>, key: impl Fn(&T) -> K) {
    let mut places: HashMap<K, usize> =
        objects.iter().enumerate().map(|(at, object)| (key(object), at)).collect();
    for object in added {
        let end = objects.len();
        match *places.entry(key(&object)).or_insert(end) {
            at if at == end => objects.push(object),
            at => objects[at] = object,
        }
    }
}

/// Adds those of `added` whose keys are new.
fn keep<T, K: Hash + Eq>(objects: &mut Vec<T>, added: Vec<T>, key: impl Fn(&T) -> K) {
    let mut known: HashSet<K> = objects.iter().map(&key).collect();
    objects.extend(added.into_iter().filter(|object| known.insert(key(object))));
}

impl User {
    fn read(object: &Object<'_>) -> Result<Self, String> {
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

    fn to_json(&self) -> Value {
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
    fn read(object: &Object<'_>) -> Result<Self, String> {
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

    fn to_json(&self) -> Value {
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
            "operator_policy" => Ok(Self::OperatorPolicy(vhost, policy(name, &value?)?)),
            "vhost-limits" => {
                let value = value?;
                let known = ["max-connections", "max-queues"];
                if let Some(other) = value.map.keys().find(|key| !known.contains(&key.as_str())) {
                    return Err(format!("{}: there is no limit \"{other}\"", value.what));
                }
                let max_connections = value.limit("max-connections")?;
                let limits =
                    VhostLimits { max_connections, max_queues: value.limit("max-queues")? };
                Ok(Self::VhostLimits(vhost, limits))
            }
            _ => {
                // RabbitMQ's words when the plugin of a component is not enabled.
                let place = format!("{vhost}/{component}/{name}");
                Err(format!("{}: component {component} not found ({place})", object.what))
            }
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::OperatorPolicy(vhost, policy) => {
                json!({"vhost": vhost, "component": "operator_policy", "name": policy.name,
                       "value": policy_to_json(policy)})
            }
            Self::VhostLimits(vhost, limits) => {
                let mut of = Map::new();
                put_limit(&mut of, "max-connections", limits.max_connections);
                put_limit(&mut of, "max-queues", limits.max_queues);
                json!({"vhost": vhost, "component": "vhost-limits", "name": "limits", "value": of})
            }
        }
    }
}

fn policy(name: String, object: &Object<'_>) -> Result<PolicyDefinition, String> {
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

fn policy_to_json(policy: &PolicyDefinition) -> Value {
    json!({"pattern": policy.pattern, "apply-to": policy.apply_to, "priority": policy.priority,
           "definition": policy.definition})
}

fn put_limit(limits: &mut Map<String, Value>, name: &str, limit: Option<u32>) {
    if let Some(limit) = limit {
        limits.insert(name.to_owned(), json!(limit));
    }
}

impl Queue {
    fn read(object: &Object<'_>) -> Result<Self, String> {
        Ok(Self {
            vhost: object.vhost()?,
            name: object.text("name")?,
            kind: object.optional_text("type")?,
            durable: object.flag("durable", None)?,
            auto_delete: object.flag("auto_delete", None)?,
            arguments: object.arguments()?,
        })
    }

    fn to_json(&self) -> Value {
        json!({"vhost": self.vhost, "name": self.name,
               "type": self.kind.as_deref().unwrap_or("classic"), "durable": self.durable,
               "auto_delete": self.auto_delete, "arguments": self.arguments})
    }
}

impl Exchange {
    fn read(object: &Object<'_>) -> Result<Self, String> {
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

    fn to_json(&self) -> Value {
        json!({"vhost": self.vhost, "name": self.name, "type": self.kind, "durable": self.durable,
               "auto_delete": self.auto_delete, "internal": self.internal,
               "arguments": self.arguments})
    }
}

impl Binding {
    fn read(object: &Object<'_>) -> Result<Self, String> {
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

    fn to_json(&self) -> Value {
        json!({"vhost": self.vhost, "source": self.source, "destination": self.destination,
               "destination_type": self.destination_type, "routing_key": self.routing_key,
               "arguments": self.arguments})
    }
}
