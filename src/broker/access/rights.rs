//! What one connection's user may do in its vhost.
//!
//! Owns the permissions as they were last looked up, good for one generation of [`Access`], and
//! RabbitMQ's texts of refusals. It must not know channels or methods.

use std::sync::Arc;

use super::{Access, IMPERSONATOR, Occupancy, Permission, TopicPermissions, UserLimits};
use crate::error::{AmqpError, ReplyCode};

/// How RabbitMQ names the default exchange where permissions are concerned.
const DEFAULT_EXCHANGE: &str = "amq.default";

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    Configure,
    Write,
    Read,
}

impl Right {
    fn name(self) -> &'static str {
        match self {
            Self::Configure => "configure",
            Self::Write => "write",
            Self::Read => "read",
        }
    }
}

/// What it is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Resource<'a> {
    Queue(&'a str),
    Exchange(&'a str),
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Rights {
    access: Arc<Access>,
    user: String,
    vhost: String,
    generation: u64,
    /// None: no access to the vhost.
    permission: Option<Arc<Permission>>,
    topic_permissions: Option<Arc<TopicPermissions>>,
    limits: UserLimits,
    is_impersonator: bool,
    occupancy: Arc<Occupancy>,
    /// The exchange that was last found to be open to publishing, in this generation.
    publishes_to: Option<Box<[u8]>>,
}

impl Rights {
    /// The rights of a user; `None` when there is no such user.
    pub(crate) fn new(access: &Arc<Access>, user: &str, vhost: &str) -> Option<Self> {
        let occupancy = access.state.read().users.get(user)?.occupancy.clone();
        let mut rights = Self {
            access: access.clone(),
            user: user.to_owned(),
            vhost: vhost.to_owned(),
            generation: 0,
            permission: None,
            topic_permissions: None,
            limits: UserLimits::default(),
            is_impersonator: false,
            occupancy,
            publishes_to: None,
        };
        rights.refresh();
        Some(rights)
    }

    /// Whether something has changed since the last look: one atomic load.
    pub(crate) fn is_outdated(&self) -> bool {
        self.generation != self.access.generation()
    }

    /// The generation of all permissions: what was found to be allowed holds while it lasts.
    pub(crate) fn current_generation(&self) -> u64 {
        self.access.generation()
    }

    /// Looks everything up again, if anything has changed.
    pub(crate) fn refresh(&mut self) {
        if !self.is_outdated() {
            return;
        }
        let state = self.access.state.read();
        self.generation = self.access.generation();
        self.publishes_to = None;
        let key = (self.vhost.clone(), self.user.clone());
        self.permission = state.permissions.get(&key).cloned();
        self.topic_permissions = state.topic_permissions.get(&key).cloned();
        if let Some(user) = state.users.get(&self.user) {
            self.limits = user.limits;
            self.is_impersonator = user.tags.iter().any(|tag| tag == IMPERSONATOR);
        }
    }

    /// The user's connections and channels.
    pub(crate) fn occupancy(&self) -> &Arc<Occupancy> {
        &self.occupancy
    }

    pub(crate) fn limits(&mut self) -> UserLimits {
        self.refresh();
        self.limits
    }

    /// Whether the user may use the vhost at all.
    pub(crate) fn has_access(&mut self) -> bool {
        self.refresh();
        self.permission.is_some()
    }

    /// Whether messages may bear another user's name.
    pub(crate) fn is_impersonator(&mut self) -> bool {
        self.refresh();
        self.is_impersonator
    }

    pub(crate) fn may(&mut self, right: Right, resource: Resource<'_>) -> bool {
        self.refresh();
        let Some(permission) = &self.permission else { return false };
        let grant = match right {
            Right::Configure => &permission.configure,
            Right::Write => &permission.write,
            Right::Read => &permission.read,
        };
        grant.pattern.is_match(checked_name(resource).as_bytes())
    }

    /// RabbitMQ's refusal, unless it is permitted.
    pub(crate) fn check(&mut self, right: Right, resource: Resource<'_>) -> Result<(), AmqpError> {
        if self.may(right, resource) {
            return Ok(());
        }
        let kind = match resource {
            Resource::Queue(_) => "queue",
            Resource::Exchange(_) => "exchange",
        };
        let (name, vhost) = (checked_name(resource), &self.vhost);
        Err(self.refused(right, &format!("{kind} '{name}' in vhost '{vhost}'")))
    }

    /// Publishing to an exchange: as a rule the same as before.
    pub(crate) fn check_publish(&mut self, exchange: &[u8]) -> Result<(), AmqpError> {
        self.refresh();
        if self.publishes_to.as_deref() == Some(exchange) {
            return Ok(());
        }
        let name = String::from_utf8_lossy(exchange);
        self.check(Right::Write, Resource::Exchange(&name))?;
        self.publishes_to = Some(exchange.into());
        Ok(())
    }

    /// Whether the user may use only some routing keys on some topic exchanges.
    pub(crate) fn has_topic_permissions(&mut self) -> bool {
        self.refresh();
        self.topic_permissions.as_ref().is_some_and(|exchanges| !exchanges.is_empty())
    }

    /// A routing key on a topic exchange. Without a topic permission it is allowed.
    pub(crate) fn check_topic(
        &mut self,
        right: Right,
        exchange: &str,
        key: &[u8],
    ) -> Result<(), AmqpError> {
        self.refresh();
        let exchanges = self.topic_permissions.as_ref();
        let Some(permission) = exchanges.and_then(|exchanges| exchanges.get(exchange)) else {
            return Ok(());
        };
        let grant = if right == Right::Write { &permission.write } else { &permission.read };
        if grant.pattern.is_match(key) {
            return Ok(());
        }
        let key = String::from_utf8_lossy(key);
        let topic = format!("topic '{key}' in exchange '{exchange}' in vhost '{}'", self.vhost);
        Err(self.refused(right, &topic))
    }

    fn refused(&self, right: Right, what: &str) -> AmqpError {
        let text = format!("{} access to {what} refused for user '{}'", right.name(), self.user);
        AmqpError::new(ReplyCode::AccessRefused, text)
    }
}

fn checked_name(resource: Resource<'_>) -> &str {
    match resource {
        Resource::Exchange("") => DEFAULT_EXCHANGE,
        Resource::Queue(name) | Resource::Exchange(name) => name,
    }
}
