//! Definitions: everything that is declared, as RabbitMQ's files have it, in and out of a broker.
//!
//! Owns the order of an import, what it does about objects that are there already, and what an
//! export lists. It must not know files: it takes and gives [`Definitions`].
//!
//! An import is tried on a broker without clients first, so that a file with a mistake changes
//! nothing. Users, permissions, policies and parameters replace those of their name. Queues and
//! exchanges that exist stay as they are (RabbitMQ); where the file asks for something else, the
//! outcome says so. So do bindings whose ends are not there, which RabbitMQ leaves out silently.

mod export;
mod model;
mod object;
pub(super) mod record;
mod recovery;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Broker, ConnectionId, Declaration, Drive, PermissionDefinition, PolicyDefinition, PolicyScope,
    TopicPermissionDefinition, UserDefinition, UserLimits, Vhost, VhostLimits, VhostMetadata,
};
use crate::codec::method::{AMQPValue, FieldTable};
use crate::routing::{Destination, ExchangeKind, ExchangeSpec, QueueId};
use model::{Binding, Exchange, Parameter, Queue, User, VhostEntry};
pub use model::{Definitions, DefinitionsError};
pub use recovery::Recovered;

/// Names that only the broker gives out begin with this.
const RESERVED: &str = "amq.";

/// No connection's: those count from 1.
const NOBODY: ConnectionId = ConnectionId(0);

/// What an import has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// How many objects of each kind the file had, in the order of the import.
    pub counts: Vec<(String, usize)>,
    /// What was left as it is, or out, each with the reason.
    pub notes: Vec<String>,
}

/// The counts, such as `users: 2, vhosts: 1`.
impl std::fmt::Display for Imported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.counts.is_empty() {
            return f.write_str("nothing");
        }
        let counts = self.counts.iter().map(|(kind, count)| format!("{kind}: {count}"));
        f.write_str(&counts.collect::<Vec<_>>().join(", "))
    }
}

impl Broker {
    /// Takes definitions over; see the module's description. What names no vhost goes where
    /// [`Definitions::with_vhost`] sends it.
    ///
    /// # Errors
    /// When an object is refused: then nothing was changed.
    pub fn import_definitions(
        &self,
        definitions: &Definitions,
        drive: &mut Drive,
    ) -> Result<Imported, DefinitionsError> {
        let definitions = definitions.with_vhost(None).with_hashes().map_err(DefinitionsError)?;
        let scratch = Self::without_defaults(self.config.clone(), u64::MAX);
        let mut scratch_drive = Drive::default();
        Import::new(&scratch, &mut scratch_drive).run(&self.export_definitions())?;
        Import::new(&scratch, &mut scratch_drive).run(&definitions)?;
        // A crash should find all of it or nothing.
        let _together = self.services.store.as_ref().map(|store| store.keep_together());
        Import::new(self, drive).run(&definitions)
    }

    /// Parameters of the whole cluster, by name. They mean nothing here but are kept.
    pub fn global_parameters(&self) -> BTreeMap<String, Value> {
        self.global_parameters.read().clone()
    }

    /// Sets a parameter of the whole cluster.
    pub fn set_global_parameter(&self, name: &str, value: &Value) {
        let mut parameters = self.global_parameters.write();
        parameters.insert(name.to_owned(), value.clone());
        self.services.definitions.change(|| [record::global_parameter(name, value)]);
    }
}

/// An import under way.
struct Import<'a> {
    broker: &'a Broker,
    drive: &'a mut Drive,
    imported: Imported,
    /// Whether the definitions come from the store: then what is refused is left out.
    is_recovery: bool,
}

impl<'a> Import<'a> {
    fn new(broker: &'a Broker, drive: &'a mut Drive) -> Self {
        Self { broker, drive, imported: Imported::default(), is_recovery: false }
    }

    fn run(mut self, definitions: &Definitions) -> Result<Imported, DefinitionsError> {
        let md5 = definitions.hashes_are_md5();
        self.each("users", &definitions.users, |import, user| import.user(user, md5))?;
        self.each("vhosts", &definitions.vhosts, Self::vhost)?;
        if !self.is_recovery {
            self.check_queue_limits(&definitions.queues)?;
        }
        self.each("permissions", &definitions.permissions, |import, permission| {
            let result = import.broker.set_permissions(permission);
            result.map_err(|error| format!("permissions of user '{}': {error}", permission.user))
        })?;
        self.each("topic permissions", &definitions.topic_permissions, |import, permission| {
            let TopicPermissionDefinition { user, exchange, .. } = permission;
            let result = import.broker.set_topic_permissions(permission);
            result.map_err(|error| {
                format!("topic permissions of user '{user}' on exchange '{exchange}': {error}")
            })
        })?;
        self.each("exchanges", &definitions.exchanges, Self::exchange)?;
        self.each("global parameters", &definitions.global_parameters, |import, parameter| {
            import.broker.set_global_parameter(&parameter.name, &parameter.value);
            Ok(())
        })?;
        self.each("policies", &definitions.policies, |import, (vhost, policy)| {
            import.policy(PolicyScope::User, vhost, policy.clone())
        })?;
        self.each("parameters", &definitions.parameters, Self::parameter)?;
        self.each("queues", &definitions.queues, Self::queue)?;
        self.each("bindings", &definitions.bindings, Self::binding)?;
        Ok(self.imported)
    }

    fn each<T>(
        &mut self,
        kind: &str,
        objects: &[T],
        mut import: impl FnMut(&mut Self, &T) -> Result<(), String>,
    ) -> Result<(), DefinitionsError> {
        for object in objects {
            match import(self, object) {
                Err(reason) if self.is_recovery => self.note(format!("left out: {reason}")),
                outcome => outcome.map_err(DefinitionsError)?,
            }
        }
        if !objects.is_empty() {
            self.imported.counts.push((kind.to_owned(), objects.len()));
        }
        Ok(())
    }

    fn note(&mut self, note: String) {
        self.imported.notes.push(note);
    }

    fn of_vhost(&self, name: &str) -> Result<Arc<Vhost>, String> {
        self.broker.vhost(name).ok_or_else(|| format!("Virtual host '{name}' does not exist"))
    }

    fn user(&mut self, user: &User, hashes_are_md5: bool) -> Result<(), String> {
        let mut definition = user.definition.clone();
        if definition.hashing_algorithm.is_empty() && hashes_are_md5 {
            definition.hashing_algorithm = "rabbit_password_hashing_md5".to_owned();
        }
        let put = self.broker.put_user(&definition);
        put.map_err(|error| format!("user '{}': {error}", definition.name))
    }

    fn vhost(&mut self, vhost: &VhostEntry) -> Result<(), String> {
        let put = self.broker.put_vhost(&vhost.name, vhost.metadata.clone());
        put.map_err(|error| format!("vhost '{}': {error}", vhost.name))
    }

    /// RabbitMQ: the limits that hold before the import also hold for what it brings.
    fn check_queue_limits(&self, queues: &[Queue]) -> Result<(), DefinitionsError> {
        let mut added: BTreeMap<&str, u32> = BTreeMap::new();
        for queue in queues {
            let vhost = self
                .of_vhost(&queue.vhost)
                .map_err(|error| DefinitionsError(format!("queue '{}': {error}", queue.name)))?;
            if vhost.limits().max_queues.is_some() && vhost.queue(&queue.name).is_err() {
                *added.entry(&queue.vhost).or_default() += 1;
            }
        }
        for (name, added) in added {
            let vhost = self.of_vhost(name).map_err(DefinitionsError)?;
            let count = vhost.queue_count() as u32;
            match vhost.limits().max_queues {
                Some(max) if count + added > max => {
                    return Err(DefinitionsError(format!(
                        "Adding {added} queue(s) to virtual host \"{name}\" would exceed the \
                         limit of {max} queue(s).\n\nThis virtual host currently has {count} \
                         queue(s) defined.\n\nImport aborted!"
                    )));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn exchange(&mut self, exchange: &Exchange) -> Result<(), String> {
        let Exchange { name, vhost: vhost_name, kind, .. } = exchange;
        let what = format!("exchange '{name}' in vhost '{vhost_name}'");
        let vhost = self.of_vhost(vhost_name).map_err(|error| format!("{what}: {error}"))?;
        if name.is_empty() || name.starts_with(RESERVED) {
            if vhost.check_exchange(name).is_err() && !name.is_empty() {
                self.note(format!("{what} was left out: its name is reserved"));
            }
            return Ok(());
        }
        let kind = ExchangeKind::named(kind).map_err(|error| format!("{what}: {}", error.text))?;
        let spec = ExchangeSpec {
            kind,
            durable: exchange.durable,
            auto_delete: exchange.auto_delete,
            internal: exchange.internal,
            arguments: exchange.arguments.clone(),
        };
        let exists = vhost.check_exchange(name).is_ok();
        match vhost.declare_exchange(name, spec, self.drive) {
            Ok(()) => Ok(()),
            Err(error) if exists => {
                self.note(format!("{what} was kept as it is: {}", error.text));
                Ok(())
            }
            Err(error) => Err(format!("{what}: {}", error.text)),
        }
    }

    fn policy(
        &mut self,
        scope: PolicyScope,
        vhost: &str,
        policy: PolicyDefinition,
    ) -> Result<(), String> {
        let kind = if scope == PolicyScope::User { "policy" } else { "operator policy" };
        let what = format!("{kind} '{}' in vhost '{vhost}'", policy.name);
        let set = self.broker.set_policy(scope, vhost, policy, self.drive);
        set.map_err(|error| format!("{what}: {error}"))
    }

    fn parameter(&mut self, parameter: &Parameter) -> Result<(), String> {
        match parameter {
            Parameter::OperatorPolicy(vhost, policy) => {
                self.policy(PolicyScope::Operator, vhost, policy.clone())
            }
            Parameter::VhostLimits(vhost, limits) => {
                let set = self.broker.set_vhost_limits(vhost, *limits);
                set.map_err(|error| format!("limits of vhost '{vhost}': {error}"))
            }
        }
    }

    fn queue(&mut self, queue: &Queue) -> Result<(), String> {
        let vhost = self.of_vhost(&queue.vhost)?;
        let what = vhost.describe_queue(&queue.name);
        if let Some(id) = queue.id {
            return self.restore_queue(&vhost, queue, QueueId(id));
        }
        if queue.name.is_empty() || queue.name.starts_with(RESERVED) {
            self.note(format!("{what} was left out: its name is reserved"));
            return Ok(());
        }
        let mut arguments = queue.arguments.clone();
        let is_classic_by_default = vhost.definition().metadata.default_queue_type.is_none();
        add_type(&mut arguments, queue.kind.as_deref(), is_classic_by_default);
        let declaration = Declaration {
            durable: queue.durable,
            auto_delete: queue.auto_delete,
            arguments,
            ..Declaration::default()
        };
        let exists = vhost.queue(&queue.name).is_ok();
        match vhost.declare_queue(&queue.name, NOBODY, declaration, self.drive) {
            Ok(_) => Ok(()),
            Err(error) if exists => {
                self.note(format!("{what} was kept as it is: {}", error.text));
                Ok(())
            }
            Err(error) => Err(format!("{what}: {}", error.text)),
        }
    }

    fn binding(&mut self, binding: &Binding) -> Result<(), String> {
        let Binding { source, destination, routing_key, .. } = binding;
        let (kind, end) = match binding.destination_type.as_str() {
            "queue" => ("queue", Destination::Queue(destination)),
            _ => ("exchange", Destination::Exchange(destination)),
        };
        let what = format!(
            "binding from exchange '{source}' to {kind} '{destination}' in vhost '{}'",
            binding.vhost
        );
        let vhost = self.of_vhost(&binding.vhost).map_err(|error| format!("{what}: {error}"))?;
        if source.is_empty() {
            return Ok(());
        }
        let destination_is_there = match end {
            Destination::Queue(name) => vhost.queue(name).map(|_| ()),
            Destination::Exchange(name) => vhost.check_exchange(name),
        };
        if let Err(error) = vhost.check_exchange(source).and(destination_is_there) {
            self.note(format!("{what} was left out: {}", error.text));
            return Ok(());
        }
        let key = routing_key.as_bytes();
        let bound = vhost.bind(source, end, key, &binding.arguments, self.drive);
        bound.map_err(|error| format!("{what}: {}", error.text))
    }
}

/// Files of RabbitMQ 3 name the type beside the arguments; the argument is what counts.
fn add_type(arguments: &mut FieldTable, kind: Option<&str>, is_classic_by_default: bool) {
    let Some(kind) = kind else { return };
    let is_default = kind == "classic" && is_classic_by_default;
    if !is_default && !arguments.inner().contains_key("x-queue-type") {
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
    }
}

#[cfg(test)]
mod tests;
