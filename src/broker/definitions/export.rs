//! What a broker exports.
//!
//! Owns the choice of objects: as in RabbitMQ without exclusive queues and predeclared exchanges,
//! but with internal exchanges, because bindings lead to them.

use serde_json::Value;

use super::model::{
    Binding, Definitions, Exchange, GlobalParameter, Parameter, Queue, User, VhostEntry,
};
use super::{RESERVED, table};
use crate::broker::{Broker, PolicyScope, Vhost, VhostLimits};
use crate::routing::Destination;

impl Broker {
    /// All definitions, in the order of their names.
    pub fn export_definitions(&self) -> Definitions {
        let mut all = Definitions::default();
        let users = self.users().into_iter();
        all.users = users.map(|definition| User { definition, password: None }).collect();
        all.permissions = self.permissions();
        all.topic_permissions = self.topic_permissions();
        let parameters = self.global_parameters().into_iter();
        all.global_parameters =
            parameters.map(|(name, value)| GlobalParameter { name, value }).collect();
        for definition in self.vhosts() {
            if definition.limits != VhostLimits::default() {
                let name = definition.name.clone();
                all.parameters.push(Parameter::VhostLimits(name, definition.limits));
            }
            if let Some(vhost) = self.vhost(&definition.name) {
                all.add_contents(&vhost);
            }
            let (name, metadata) = (definition.name, definition.metadata);
            all.vhosts.push(VhostEntry { name, metadata });
        }
        all
    }
}

impl Definitions {
    fn add_contents(&mut self, vhost: &Vhost) {
        let name = || vhost.name().to_owned();
        let of_users = vhost.policies(PolicyScope::User).into_iter();
        self.policies.extend(of_users.map(|policy| (name(), policy)));
        let of_operators = vhost.policies(PolicyScope::Operator).into_iter();
        self.parameters.extend(of_operators.map(|p| Parameter::OperatorPolicy(name(), p)));
        let mut queues = vhost.queues();
        queues.retain(|cell| cell.declaration.owner.is_none());
        queues.sort_unstable_by(|a, b| a.name().cmp(b.name()));
        self.queues.extend(queues.iter().map(|cell| Queue::of(vhost.name(), cell)));
        let exported = |queue: &str| queues.binary_search_by(|cell| cell.name().cmp(queue)).is_ok();
        vhost.look(|topology| {
            let exchanges = topology.exchanges().filter(|exchange| {
                !exchange.name().is_empty() && !exchange.name().starts_with(RESERVED)
            });
            let exchanges = exchanges
                .map(|exchange| Exchange::of(vhost.name(), exchange.name(), exchange.spec()));
            let mut exchanges: Vec<_> = exchanges.collect();
            exchanges.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            self.exchanges.extend(exchanges);
            let explicit = topology.bindings().filter(|binding| !binding.source.is_empty());
            let lasting = explicit.filter(|binding| match binding.destination {
                Destination::Queue(queue) => exported(queue),
                Destination::Exchange(_) => true,
            });
            let mut bindings: Vec<_> =
                lasting.map(|binding| Binding::of(vhost.name(), &binding)).collect();
            bindings.sort_by_cached_key(|binding| {
                let Binding { source, destination, routing_key, arguments, .. } = binding;
                let arguments = Value::Object(table::to_json(arguments)).to_string();
                (source.clone(), destination.clone(), routing_key.clone(), arguments)
            });
            self.bindings.extend(bindings);
        });
    }
}
