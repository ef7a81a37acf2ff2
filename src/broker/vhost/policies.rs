//! The policies of a vhost, in effect.
//!
//! Owns the lock around the policies and the way from them to queues and exchanges: to new ones
//! when they are declared, to all when policies change, at once. It must not know what a policy
//! means: that is `broker::policy`.
//!
//! Lock order: the policies, then the topology, then a queue. A declaration holds the policies for
//! reading until its queue or exchange can be found, so that no change passes it by.

use super::{REPLIES, Vhost};
use crate::broker::definitions::record::{self, Record};
use crate::broker::policy::{InEffect, Policies, Policy, Target};
use crate::broker::{
    Broker, Declaration, Drive, PolicyDefinition, PolicyError, PolicyNames, PolicyScope, QueueCell,
};
use crate::queue::{Kind, Settings};
use crate::store::Change;

impl Vhost {
    /// Adds a policy, or replaces the one with its name and scope.
    ///
    /// # Errors
    /// When it is not valid.
    pub fn set_policy(
        &self,
        scope: PolicyScope,
        definition: PolicyDefinition,
        drive: &mut Drive,
    ) -> Result<(), PolicyError> {
        let change = record::policy(scope, &self.name, &definition);
        self.put_policy(scope, definition, [change].into(), drive)
    }

    /// The same, until the broker ends.
    ///
    /// # Errors
    /// When it is not valid.
    pub fn set_transient_policy(
        &self,
        scope: PolicyScope,
        definition: PolicyDefinition,
        drive: &mut Drive,
    ) -> Result<(), PolicyError> {
        self.put_policy(scope, definition, Vec::new(), drive)
    }

    fn put_policy(
        &self,
        scope: PolicyScope,
        definition: PolicyDefinition,
        changes: Vec<Change>,
        drive: &mut Drive,
    ) -> Result<(), PolicyError> {
        let policy = Policy::new(scope, definition)?;
        let mut policies = self.policies.write();
        policies.set(scope, policy);
        self.store(drive, || changes);
        self.apply(&policies, drive);
        Ok(())
    }

    /// Deletes a policy.
    ///
    /// # Errors
    /// When there is none with this name and scope.
    pub fn delete_policy(
        &self,
        scope: PolicyScope,
        name: &str,
        drive: &mut Drive,
    ) -> Result<(), PolicyError> {
        let mut policies = self.policies.write();
        if !policies.delete(scope, name) {
            return Err(PolicyError("Parameter does not exist".to_owned()));
        }
        self.store(drive, || [Record::Policy(scope, &self.name, name).gone()]);
        self.apply(&policies, drive);
        Ok(())
    }

    /// All policies of a scope, by name.
    pub fn policies(&self, scope: PolicyScope) -> Vec<PolicyDefinition> {
        self.policies.read().list(scope).cloned().collect()
    }

    /// The policies that are in effect for a queue, for listings.
    pub fn policies_of_queue(&self, queue: &QueueCell) -> PolicyNames {
        self.policies.read().of_queue(queue.name(), queue.declaration.kind).names()
    }

    /// The policies that are in effect for an exchange, for listings.
    pub fn policies_of_exchange(&self, name: &str) -> PolicyNames {
        self.policies.read().of(Target::Exchange, name).names()
    }

    /// Puts the policies into effect for all exchanges and queues.
    fn apply(&self, policies: &Policies, drive: &mut Drive) {
        let exchanges: Vec<String> = {
            let topology = self.topology.read();
            topology.exchanges().map(|exchange| exchange.name().to_owned()).collect()
        };
        // Matching takes a while: not under the topology's lock.
        let alternates: Vec<_> =
            exchanges.into_iter().map(|name| (policies.alternate(&name), name)).collect();
        let mut topology = self.topology.write();
        for (alternate, name) in alternates {
            topology.set_policy_alternate(&name, alternate);
        }
        self.changed();
        drop(topology);
        for cell in self.queues() {
            cell.configure(policies.settings(cell.name(), &cell.declaration), drive);
        }
    }
}

impl Policies {
    fn of_queue(&self, name: &str, kind: Kind) -> InEffect<'_> {
        if name.starts_with(REPLIES) {
            return InEffect::default();
        }
        self.of(Target::Queue(kind), name)
    }

    /// What a queue of this name does that was declared like this.
    pub(super) fn settings(&self, name: &str, declaration: &Declaration) -> Settings {
        let in_effect = self.of_queue(name, declaration.kind);
        in_effect.settings(declaration.kind, &declaration.arguments)
    }

    /// The alternate exchange that the policies give an exchange. The default exchange has none:
    /// RabbitMQ routes by it without asking policies.
    pub(super) fn alternate(&self, name: &str) -> Option<String> {
        let in_effect = (!name.is_empty()).then(|| self.of(Target::Exchange, name))?;
        in_effect.alternate().map(str::to_owned)
    }
}

impl Broker {
    /// See [`Vhost::set_policy`].
    ///
    /// # Errors
    /// When there is no such vhost, or the policy is not valid.
    pub fn set_policy(
        &self,
        scope: PolicyScope,
        vhost: &str,
        definition: PolicyDefinition,
        drive: &mut Drive,
    ) -> Result<(), PolicyError> {
        self.vhost(vhost)
            .ok_or_else(|| PolicyError::no_vhost(vhost))?
            .set_policy(scope, definition, drive)
    }

    /// See [`Vhost::set_transient_policy`].
    ///
    /// # Errors
    /// When there is no such vhost, or the policy is not valid.
    pub fn set_transient_policy(
        &self,
        scope: PolicyScope,
        vhost: &str,
        definition: PolicyDefinition,
        drive: &mut Drive,
    ) -> Result<(), PolicyError> {
        self.vhost(vhost)
            .ok_or_else(|| PolicyError::no_vhost(vhost))?
            .set_transient_policy(scope, definition, drive)
    }

    /// See [`Vhost::delete_policy`].
    ///
    /// # Errors
    /// When there is no such vhost or policy.
    pub fn delete_policy(
        &self,
        scope: PolicyScope,
        vhost: &str,
        name: &str,
        drive: &mut Drive,
    ) -> Result<(), PolicyError> {
        self.vhost(vhost)
            .ok_or_else(|| PolicyError::no_vhost(vhost))?
            .delete_policy(scope, name, drive)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::broker::{ConnectionId, Declaration, Services};
    use crate::routing::{ExchangeKind, ExchangeSpec};

    fn policy(name: &str, pattern: &str, json: &str) -> PolicyDefinition {
        let (name, pattern, apply_to) = (name.to_owned(), pattern.to_owned(), "all".to_owned());
        let definition = serde_json::from_str(json).expect("a JSON object");
        PolicyDefinition { name, pattern, apply_to, priority: 0, definition }
    }

    fn vhost() -> (Arc<Vhost>, Drive) {
        (Vhost::new("/", Services::for_test()), Drive::default())
    }

    #[test]
    fn policies_take_effect_for_what_is_there_and_what_comes() {
        let (vhost, mut drive) = vhost();
        let mut declare = |name| {
            let declaration = Declaration::default();
            vhost.declare_queue(name, ConnectionId(1), declaration, &mut drive).expect("a queue")
        };
        let before = declare("q1");
        assert!(!before.may_reject());
        let reject = r#"{"max-length":1,"overflow":"reject-publish"}"#;
        let mut other = Drive::default();
        vhost.set_policy(PolicyScope::User, policy("p", "^q", reject), &mut other).expect("valid");
        let (after, unmatched) = (declare("q2"), declare("x"));
        assert!(before.may_reject() && after.may_reject() && !unmatched.may_reject());
        assert_eq!(vhost.policies_of_queue(&after).user.as_deref(), Some("p"));
        assert_eq!(vhost.policies_of_queue(&unmatched), PolicyNames::default());
        vhost.delete_policy(PolicyScope::User, "p", &mut other).expect("it is there");
        assert!(!before.may_reject() && !after.may_reject());
        let gone = vhost.delete_policy(PolicyScope::User, "p", &mut other).expect_err("gone");
        assert_eq!(gone.to_string(), "Parameter does not exist");
    }

    #[test]
    fn reply_queues_are_out_of_their_reach() {
        let (vhost, mut drive) = vhost();
        let reject = r#"{"max-length":1,"overflow":"reject-publish"}"#;
        vhost.set_policy(PolicyScope::User, policy("p", "", reject), &mut drive).expect("valid");
        let name = format!("{REPLIES}x");
        let queue = vhost.add_queue(&name, Declaration::default(), &mut drive).expect("new");
        assert!(!queue.may_reject());
    }

    #[test]
    fn alternate_exchanges_follow_policies() {
        let (vhost, mut drive) = vhost();
        let declare = |name| {
            vhost
                .declare_exchange(
                    name,
                    ExchangeSpec::durable(ExchangeKind::Fanout),
                    &mut Drive::default(),
                )
                .expect("new");
        };
        let alternate = |name| {
            let topology = vhost.topology.read();
            topology.exchange(name).and_then(|exchange| exchange.alternate()).map(str::to_owned)
        };
        declare("e1");
        let to = |name| format!(r#"{{"alternate-exchange":"{name}"}}"#);
        let generation = vhost.generation();
        vhost.set_policy(PolicyScope::User, policy("p", "", &to("a")), &mut drive).expect("valid");
        assert_ne!(vhost.generation(), generation, "cached routes are forgotten");
        declare("e2");
        assert_eq!(
            (alternate("e1").as_deref(), alternate("e2").as_deref()),
            (Some("a"), Some("a"))
        );
        assert_eq!(alternate(""), None);
        vhost.set_policy(PolicyScope::User, policy("p", "2", &to("b")), &mut drive).expect("valid");
        assert_eq!((alternate("e1"), alternate("e2").as_deref()), (None, Some("b")));
    }
}
