//! Users, vhosts and permissions as they are set and listed.
//!
//! Owns plain values that are named as in RabbitMQ's definitions files, and the limits in them.
//! It must not check anything: [`super::Access`] and [`crate::broker::Broker`] do.

/// A user. An empty `password_hash` means one who cannot log in with a password.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserDefinition {
    /// The name to log in with.
    pub name: String,
    /// What is kept of the password, in the form that `hashing_algorithm` says.
    pub password_hash: String,
    /// A name such as `rabbit_password_hashing_sha256`; empty means that one, as in files of
    /// RabbitMQ 3.6.
    pub hashing_algorithm: String,
    /// What the user may do besides messaging, such as `administrator` or `impersonator`.
    pub tags: Vec<String>,
    /// Limits of this user's.
    pub limits: UserLimits,
}

/// Limits of a user's. `None` sets none, 0 allows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserLimits {
    /// `max-connections`: most connections at once.
    pub max_connections: Option<u32>,
    /// `max-channels`: most channels at once, of all connections together.
    pub max_channels: Option<u32>,
}

/// A vhost and what is known of it besides its contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VhostDefinition {
    /// Its name.
    pub name: String,
    /// See [`VhostMetadata`].
    pub metadata: VhostMetadata,
    /// In a definitions file these are the parameters of component `vhost-limits`.
    pub limits: VhostLimits,
}

/// What people say about a vhost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VhostMetadata {
    /// What it is for.
    pub description: String,
    /// Any words.
    pub tags: Vec<String>,
    /// The type of queues that are declared without one.
    pub default_queue_type: Option<String>,
}

/// Limits of a vhost. `None` sets none, 0 allows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VhostLimits {
    /// `max-connections`: most connections at once.
    pub max_connections: Option<u32>,
    /// `max-queues`: most queues.
    pub max_queues: Option<u32>,
}

/// What a user may do in a vhost: regular expressions for the names of queues and exchanges.
/// A user without one has no access to the vhost at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PermissionDefinition {
    /// The vhost.
    pub vhost: String,
    /// The user.
    pub user: String,
    /// What may be declared and deleted.
    pub configure: String,
    /// What may be published to and bound.
    pub write: String,
    /// What may be consumed, purged and bound to.
    pub read: String,
}

/// Which routing keys a user may use on a topic exchange: regular expressions, in which
/// `{username}` and `{vhost}` stand for those names. Without one all are allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicPermissionDefinition {
    /// The vhost.
    pub vhost: String,
    /// The user.
    pub user: String,
    /// The exchange.
    pub exchange: String,
    /// Keys to publish with.
    pub write: String,
    /// Keys to bind with.
    pub read: String,
}
