//! What a broker exports.
//!
//! Owns the choice of objects: as in RabbitMQ without exclusive queues and predeclared exchanges,
//! but with internal exchanges, because bindings lead to them.

use super::model::{
    Binding, Definitions, Exchange, GlobalParameter, Parameter, Queue, User, VhostEntry,
};
use super::{RESERVED, table};
use crate::broker::{Broker, PolicyScope, Vhost, VhostLimits};
use crate::queue::Kind;
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
        self.queues.extend(queues.iter().map(|cell| {
            let declaration = &cell.declaration;
            let kind = if declaration.kind == Kind::Quorum { "quorum" } else { "classic" };
            Queue {
                vhost: name(),
                name: cell.name().to_owned(),
                kind: Some(kind.to_owned()),
                durable: declaration.durable,
                auto_delete: declaration.auto_delete,
                arguments: table::to_json(&declaration.arguments),
            }
        }));
        let exported = |queue: &str| queues.binary_search_by(|cell| cell.name().cmp(queue)).is_ok();
        vhost.look(|topology| {
            let exchanges = topology.exchanges().filter(|exchange| {
                !exchange.name().is_empty() && !exchange.name().starts_with(RESERVED)
            });
            let mut exchanges: Vec<_> = exchanges
                .map(|exchange| {
                    let spec = exchange.spec();
                    Exchange {
                        vhost: name(),
                        name: exchange.name().to_owned(),
                        kind: spec.kind.name().to_owned(),
                        durable: spec.durable,
                        auto_delete: spec.auto_delete,
                        internal: spec.internal,
                        arguments: table::to_json(&spec.arguments),
                    }
                })
                .collect();
            exchanges.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            self.exchanges.extend(exchanges);
            let explicit = topology.bindings().filter(|binding| !binding.source.is_empty());
            let mut bindings: Vec<_> = explicit
                .filter_map(|binding| {
                    let destination_type = match binding.destination {
                        Destination::Queue(queue) if !exported(queue) => return None,
                        Destination::Queue(_) => "queue",
                        Destination::Exchange(_) => "exchange",
                    };
                    Some(Binding {
                        vhost: name(),
                        source: binding.source.to_owned(),
                        destination: binding.destination.name().to_owned(),
                        destination_type: destination_type.to_owned(),
                        routing_key: String::from_utf8_lossy(binding.key).into_owned(),
                        arguments: table::to_json(binding.arguments),
                    })
                })
                .collect();
            bindings.sort_by_cached_key(|binding| {
                let Binding { source, destination, routing_key, arguments, .. } = binding;
                let arguments = serde_json::to_string(arguments).unwrap_or_default();
                (source.clone(), destination.clone(), routing_key.clone(), arguments)
            });
            self.bindings.extend(bindings);
        });
    }
}
