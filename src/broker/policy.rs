//! Policies: settings for all queues and exchanges whose names match a pattern.
//!
//! Owns what a policy is, which of them is in effect for a queue or exchange, and how its keys
//! merge with an operator policy's and with the queue's arguments; all of it as RabbitMQ does
//! (`rabbit_policy`, `rabbit_policies`). It must not know vhosts, nor apply anything: that is
//! `vhost::policies`.
//!
//! One user policy and one operator policy are in effect for a queue at most: of those that match,
//! the one with the highest priority. RabbitMQ leaves open which it is among equal priorities;
//! here it is the first by name, so that it stays the same.

mod definition;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use fancy_regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use crate::codec::method::FieldTable;
use crate::queue::{EXPIRY_MAX_MS, Kind, Overflow, Settings};

/// Steps back that matching one name may take, with patterns that look around. Clients choose the
/// names, and declarations wait meanwhile.
const BACKTRACKS_MAX: usize = 10_000;

/// Who sets a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyScope {
    /// Users with the tag `policymaker`.
    User,
    /// Administrators: these policies bound what users' policies and arguments may ask for.
    Operator,
}

/// A policy as it is set and listed.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyDefinition {
    /// Its name, one of its scope in the vhost.
    pub name: String,
    /// A regular expression that matches anywhere in a name.
    pub pattern: String,
    /// `all`, `queues`, `exchanges`, `classic_queues`, `quorum_queues` or `streams`.
    pub apply_to: String,
    /// Of several policies that match, the highest is in effect.
    pub priority: i64,
    /// The settings by their keys.
    pub definition: Map<String, Value>,
}

/// A change of policies that is refused, in RabbitMQ's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PolicyError(pub(crate) String);

impl PolicyError {
    pub(crate) fn no_vhost(name: &str) -> Self {
        Self(format!("Virtual host '{name}' does not exist"))
    }
}

/// The policies in effect for a queue or exchange, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyNames {
    /// The user policy.
    pub user: Option<String>,
    /// The operator policy.
    pub operator: Option<String>,
}

/// What a policy may be in effect for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Queue(Kind),
    Exchange,
}

/// A policy that was checked.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pattern: Regex,
    definition: PolicyDefinition,
}

/// The policies of a vhost, by scope and name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policies {
    user: BTreeMap<String, Policy>,
    operator: BTreeMap<String, Policy>,
}

/// The policies that are in effect for one queue or exchange.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct InEffect<'a> {
    user: Option<&'a Policy>,
    operator: Option<&'a Policy>,
}

impl Policy {
    /// Checks a policy.
    ///
    /// # Errors
    /// All that is wrong with it, one line each.
    pub(crate) fn new(
        scope: PolicyScope,
        definition: PolicyDefinition,
    ) -> Result<Self, PolicyError> {
        let mut wrong = Vec::new();
        let pattern =
            RegexBuilder::new(&definition.pattern).backtrack_limit(BACKTRACKS_MAX).build();
        let pattern = pattern.map_err(|error| {
            let text = "pattern should be regular expression but is invalid";
            wrong.push(format!("{text}: {}", error.to_string().replace('\n', " ")));
        });
        if let Err(reason) = definition::check(scope, &definition.definition) {
            wrong.push(reason);
        }
        let known = ["all", "queues", "exchanges", "classic_queues", "quorum_queues", "streams"];
        if !known.contains(&definition.apply_to.as_str()) {
            wrong.push(format!(
                "apply-to '{}' unrecognised; should be one of: 'queues', 'classic_queues', \
                 'quorum_queues', 'streams', 'exchanges', or 'all'",
                definition.apply_to
            ));
        }
        match pattern {
            Ok(pattern) if wrong.is_empty() => Ok(Self { pattern, definition }),
            _ => Err(PolicyError(wrong.join("\n"))),
        }
    }

    fn matches(&self, target: Target, name: &str) -> bool {
        let applies = match (self.definition.apply_to.as_str(), target) {
            ("all", _) => true,
            ("queues", Target::Queue(_)) => true,
            ("classic_queues", Target::Queue(kind)) => kind == Kind::Classic,
            ("quorum_queues", Target::Queue(kind)) => kind == Kind::Quorum,
            ("exchanges", Target::Exchange) => true,
            _ => false,
        };
        // RabbitMQ: one key that is not for this type of queue, and the whole policy is not.
        let suits = match target {
            Target::Exchange => true,
            Target::Queue(kind) => {
                self.definition.definition.keys().all(|key| definition::suits(key, kind))
            }
        };
        // A pattern that goes back and forth for too long does not match.
        applies && suits && self.pattern.is_match(name).unwrap_or(false)
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.definition.definition.get(key)
    }
}

impl Policies {
    fn scope(&self, scope: PolicyScope) -> &BTreeMap<String, Policy> {
        match scope {
            PolicyScope::User => &self.user,
            PolicyScope::Operator => &self.operator,
        }
    }

    fn scope_mut(&mut self, scope: PolicyScope) -> &mut BTreeMap<String, Policy> {
        match scope {
            PolicyScope::User => &mut self.user,
            PolicyScope::Operator => &mut self.operator,
        }
    }

    /// Adds a policy, or puts it in the place of the one with its name.
    pub(crate) fn set(&mut self, scope: PolicyScope, policy: Policy) {
        let name = policy.definition.name.clone();
        self.scope_mut(scope).insert(name, policy);
    }

    /// Removes a policy; answers whether there was one.
    pub(crate) fn delete(&mut self, scope: PolicyScope, name: &str) -> bool {
        self.scope_mut(scope).remove(name).is_some()
    }

    /// All policies of a scope, by name.
    pub(crate) fn list(&self, scope: PolicyScope) -> impl Iterator<Item = &PolicyDefinition> {
        self.scope(scope).values().map(|policy| &policy.definition)
    }

    /// The policies in effect for a queue or exchange of this name.
    pub(crate) fn of(&self, target: Target, name: &str) -> InEffect<'_> {
        InEffect {
            user: best(&self.user, target, name),
            operator: best(&self.operator, target, name),
        }
    }
}

fn best<'a>(
    policies: &'a BTreeMap<String, Policy>,
    target: Target,
    name: &str,
) -> Option<&'a Policy> {
    let matching = policies.values().filter(|policy| policy.matches(target, name));
    matching.min_by_key(|policy| Reverse(policy.definition.priority))
}

impl<'a> InEffect<'a> {
    /// The policies' names.
    pub(crate) fn names(&self) -> PolicyNames {
        let name = |policy: Option<&Policy>| policy.map(|policy| policy.definition.name.clone());
        PolicyNames { user: name(self.user), operator: name(self.operator) }
    }

    /// The alternate exchange that the policies ask for. Its argument wins over it.
    pub(crate) fn alternate(&self) -> Option<&'a str> {
        self.text("alternate-exchange")
    }

    /// What a queue with these valid arguments does under these policies.
    pub(crate) fn settings(&self, kind: Kind, arguments: &FieldTable) -> Settings {
        let asked = Settings::from_arguments(kind, arguments);
        // More is as good as what an argument may ask for at most.
        let timer = |key| self.count(key).map(|ms| ms.min(EXPIRY_MAX_MS));
        let text = |asked: Option<Box<str>>, key| asked.or_else(|| self.text(key).map(Into::into));
        let asks_for_deliveries = arguments.inner().contains_key("x-delivery-limit");
        Settings {
            message_ttl_ms: least(asked.message_ttl_ms, timer("message-ttl")),
            expires_ms: least(asked.expires_ms, timer("expires")),
            length_max: least(asked.length_max, self.count("max-length")),
            bytes_max: least(asked.bytes_max, self.count("max-length-bytes")),
            overflow: self.overflow(kind, asked.overflow),
            dead_letter_exchange: text(asked.dead_letter_exchange, "dead-letter-exchange"),
            dead_letter_routing_key: text(asked.dead_letter_routing_key, "dead-letter-routing-key"),
            // The argument wins, as with the other keys of dead letters.
            dead_letter_at_least_once: match arguments.inner().get("x-dead-letter-strategy") {
                Some(_) => asked.dead_letter_at_least_once,
                None => {
                    kind == Kind::Quorum
                        && self.text("dead-letter-strategy") == Some("at-least-once")
                }
            },
            delivery_limit: match self.number("delivery-limit") {
                None => asked.delivery_limit,
                // A negative number sets no limit.
                Some(limit) => {
                    let limit = u64::try_from(limit).ok();
                    let limit = limit.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX));
                    let asked = asked.delivery_limit.filter(|_| asks_for_deliveries);
                    least(asked, limit)
                }
            },
            consumer_timeout_ms: match (asked.consumer_timeout_ms, self.count("consumer-timeout")) {
                // 0 is no bound.
                (Some(0), other) | (other, Some(0)) => other.or(Some(0)),
                (asked, policy) => least(asked, policy.map(|ms| ms.min(EXPIRY_MAX_MS))),
            },
            ..asked
        }
    }

    /// RabbitMQ: the argument wins in classic queues, the policy in quorum queues, which know no
    /// `reject-publish-dlx` and drop from the head instead.
    fn overflow(&self, kind: Kind, asked: Option<Overflow>) -> Option<Overflow> {
        let policy = self.text("overflow").and_then(|name| Overflow::parse(name.as_bytes()));
        match kind {
            Kind::Classic => asked.or(policy),
            Kind::Quorum => match policy {
                Some(Overflow::RejectPublishDlx) => Some(Overflow::DropHead),
                policy => policy.or(asked),
            },
        }
    }

    /// A number of the two policies, of which the operator may set the smaller.
    fn number(&self, key: &str) -> Option<i64> {
        let of = |policy: Option<&Policy>| policy.and_then(|policy| integer(policy.value(key)?));
        match (of(self.user), of(self.operator)) {
            // A negative limit of deliveries is none.
            (Some(user), Some(operator)) if user < 0 || operator < 0 => Some(user.max(operator)),
            (user, operator) => least(user, operator),
        }
    }

    fn count(&self, key: &str) -> Option<u64> {
        self.number(key).and_then(|number| u64::try_from(number).ok())
    }

    /// A text of the two policies, of which the operator's wins.
    fn text(&self, key: &str) -> Option<&'a str> {
        let of = |policy: Option<&'a Policy>| policy.and_then(|policy| policy.value(key)?.as_str());
        of(self.operator).or_else(|| of(self.user))
    }
}

/// A whole number; one beyond 63 bits is as good as the largest.
fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_u64().map(|_| i64::MAX))
}

/// The smaller of those that there are.
fn least<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests;
