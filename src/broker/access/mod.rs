//! Users and what they may do.
//!
//! Owns the users, their password hashes, tags and limits, the permissions and topic permissions,
//! and the check of a login. Everything is behind one lock that is held for a look-up or a change;
//! connections keep what concerns them ([`Rights`]) and compare one number to see whether it still
//! holds. It must not know vhosts beyond their names, SASL's encodings, nor tell a client why it
//! was refused: that is for the log.

mod definitions;
mod occupancy;
mod password;
mod pattern;
mod rights;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use sha2::{Digest, Sha256};

use super::Services;
use super::definitions::record::{self, Record};
use crate::store::Change;

pub use definitions::{
    PermissionDefinition, TopicPermissionDefinition, UserDefinition, UserLimits, VhostDefinition,
    VhostLimits, VhostMetadata,
};
pub(crate) use occupancy::{Occupancy, Presence};
use password::{PasswordHash, is_same};
use pattern::Pattern;
pub(crate) use rights::{Resource, Right, Rights};

/// Users who may do everything have this tag.
pub(crate) const ADMINISTRATOR: &str = "administrator";

/// Users with this tag may put another user's name on messages.
const IMPERSONATOR: &str = "impersonator";

/// A change of users, vhosts or permissions that is refused, with the reason for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AccessError(pub(crate) String);

impl AccessError {
    pub(crate) fn no_user(name: &str) -> Self {
        Self(format!("User \"{name}\" does not exist"))
    }

    pub(crate) fn no_vhost(name: &str) -> Self {
        Self(format!("Virtual host '{name}' does not exist"))
    }
}

/// Why a login was refused, in RabbitMQ's words for its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LoginRefused {
    InvalidCredentials { user: String },
    LoopbackOnly { user: String },
    BlankPassword { user: String },
}

impl std::fmt::Display for LoginRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InvalidCredentials { user } => write!(f, "user '{user}' - invalid credentials"),
            Self::LoopbackOnly { user } => {
                write!(f, "user '{user}' can only connect via localhost")
            }
            Self::BlankPassword { user } => {
                write!(f, "user '{user}' attempted to log in with a blank password")
            }
        }
    }
}

#[derive(Debug)]
struct User {
    hash: Option<PasswordHash>,
    tags: Vec<String>,
    limits: UserLimits,
    /// Shared with the user's connections; a user who is deleted and added again has another one.
    occupancy: Arc<Occupancy>,
}

#[derive(Debug)]
struct Permission {
    configure: Grant,
    write: Grant,
    read: Grant,
}

#[derive(Debug)]
struct TopicPermission {
    write: Grant,
    read: Grant,
}

/// A pattern with the text that it was made of.
#[derive(Debug)]
struct Grant {
    text: String,
    pattern: Pattern,
}

/// By exchange.
type TopicPermissions = BTreeMap<String, Arc<TopicPermission>>;

#[derive(Debug, Default)]
struct State {
    users: BTreeMap<String, User>,
    /// By vhost and user.
    permissions: BTreeMap<(String, String), Arc<Permission>>,
    topic_permissions: BTreeMap<(String, String), Arc<TopicPermissions>>,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Access {
    services: Arc<Services>,
    state: RwLock<State>,
    /// Rises with each change, after it; what a connection has looked up is good for one
    /// generation.
    generation: AtomicU64,
    /// The last login of each user whose password is slow to check, as a digest with a key that
    /// nobody knows: when thousands of connections come back at once, one of them pays.
    verified: Mutex<HashMap<String, [u8; 32]>>,
    key: [u8; 32],
    /// Compared with where a user has no hash, or one that takes no time.
    decoy: PasswordHash,
}

impl Access {
    pub(crate) fn new(services: Arc<Services>) -> Self {
        let mut key = [0; 32];
        getrandom::fill(&mut key).expect("the system has random numbers");
        Self {
            services,
            state: RwLock::default(),
            generation: AtomicU64::new(1),
            verified: Mutex::default(),
            key,
            decoy: PasswordHash::decoy(),
        }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Notes that something has changed which connections have to look at.
    pub(crate) fn changed(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Runs a change, which answers what the store is to keep of it.
    fn change(
        &self,
        change: impl FnOnce(&mut State) -> Result<Vec<Change>, AccessError>,
    ) -> Result<(), AccessError> {
        let mut state = self.state.write();
        let changes = change(&mut state)?;
        self.services.definitions.change(|| changes);
        self.changed();
        Ok(())
    }

    fn change_user(&self, name: &str, change: impl FnOnce(&mut User)) -> Result<(), AccessError> {
        self.change(|state| {
            let user = state.users.get_mut(name).ok_or_else(|| AccessError::no_user(name))?;
            change(user);
            Ok(vec![record::user(&user.definition(name))])
        })
    }

    pub(crate) fn has_users(&self) -> bool {
        !self.state.read().users.is_empty()
    }

    pub(crate) fn add_user(
        &self,
        name: &str,
        password: Option<&str>,
        tags: &[String],
    ) -> Result<(), AccessError> {
        check_name("user", name)?;
        let hash = password.map(new_hash).transpose()?;
        self.change(|state| {
            if state.users.contains_key(name) {
                return Err(AccessError(format!("User \"{name}\" already exists")));
            }
            let (tags, limits) = (tags.to_vec(), UserLimits::default());
            let user = User { hash, tags, limits, occupancy: Arc::default() };
            let change = record::user(&user.definition(name));
            state.users.insert(name.to_owned(), user);
            Ok(vec![change])
        })?;
        self.remember(name, password);
        Ok(())
    }

    /// Adds a user or replaces everything that is known of one.
    pub(crate) fn put_user(&self, definition: &UserDefinition) -> Result<(), AccessError> {
        let UserDefinition { name, password_hash, hashing_algorithm, tags, limits } = definition;
        check_name("user", name)?;
        let hash = parse_hash(name, password_hash, hashing_algorithm)?;
        self.change(|state| {
            let occupancy = match state.users.get(name) {
                Some(user) => user.occupancy.clone(),
                None => Arc::default(),
            };
            let user = User { hash, tags: tags.clone(), limits: *limits, occupancy };
            let change = record::user(&user.definition(name));
            state.users.insert(name.clone(), user);
            Ok(vec![change])
        })
    }

    pub(crate) fn delete_user(&self, name: &str) -> Result<(), AccessError> {
        self.change(|state| {
            let user = state.users.remove(name).ok_or_else(|| AccessError::no_user(name))?;
            user.occupancy.set_gone();
            let mut changes = state.changes_of(|(_, user)| user == name);
            changes.push(Record::User(name).gone());
            state.permissions.retain(|(_, user), _| user != name);
            state.topic_permissions.retain(|(_, user), _| user != name);
            Ok(changes)
        })?;
        self.verified.lock().remove(name);
        Ok(())
    }

    pub(crate) fn set_password(&self, name: &str, password: &str) -> Result<(), AccessError> {
        let hash = new_hash(password)?;
        self.change_user(name, |user| user.hash = Some(hash))?;
        self.remember(name, Some(password));
        Ok(())
    }

    pub(crate) fn set_password_hash(
        &self,
        name: &str,
        hash: &str,
        algorithm: &str,
    ) -> Result<(), AccessError> {
        let hash = parse_hash(name, hash, algorithm)?;
        self.change_user(name, |user| user.hash = hash)
    }

    pub(crate) fn clear_password(&self, name: &str) -> Result<(), AccessError> {
        self.change_user(name, |user| user.hash = None)
    }

    pub(crate) fn set_tags(&self, name: &str, tags: &[String]) -> Result<(), AccessError> {
        self.change_user(name, |user| user.tags = tags.to_vec())
    }

    pub(crate) fn set_user_limits(
        &self,
        name: &str,
        limits: UserLimits,
    ) -> Result<(), AccessError> {
        self.change_user(name, |user| user.limits = limits)
    }

    /// The caller has seen to it that the vhost exists.
    pub(crate) fn set_permissions(
        &self,
        definition: &PermissionDefinition,
    ) -> Result<(), AccessError> {
        let PermissionDefinition { vhost, user, configure, write, read } = definition;
        let permission = Permission {
            configure: Grant::parse(configure)?,
            write: Grant::parse(write)?,
            read: Grant::parse(read)?,
        };
        self.change(|state| {
            state.check_user(user)?;
            let key = (vhost.clone(), user.clone());
            state.permissions.insert(key, Arc::new(permission));
            Ok(vec![record::permission(definition)])
        })
    }

    pub(crate) fn clear_permissions(&self, vhost: &str, user: &str) -> Result<(), AccessError> {
        self.change(|state| {
            state.check_user(user)?;
            state.permissions.remove(&(vhost.to_owned(), user.to_owned()));
            Ok(vec![Record::Permission(vhost, user).gone()])
        })
    }

    /// The caller has seen to it that the vhost exists.
    pub(crate) fn set_topic_permissions(
        &self,
        definition: &TopicPermissionDefinition,
    ) -> Result<(), AccessError> {
        let TopicPermissionDefinition { vhost, user, exchange, write, read } = definition;
        let permission = TopicPermission {
            write: Grant::parse_topic(write, vhost, user)?,
            read: Grant::parse_topic(read, vhost, user)?,
        };
        self.change(|state| {
            state.check_user(user)?;
            let key = (vhost.clone(), user.clone());
            let of_user = Arc::make_mut(state.topic_permissions.entry(key).or_default());
            of_user.insert(exchange.clone(), Arc::new(permission));
            Ok(vec![record::topic_permission(definition)])
        })
    }

    /// Without an exchange, all of the user's in the vhost.
    pub(crate) fn clear_topic_permissions(
        &self,
        vhost: &str,
        user: &str,
        exchange: Option<&str>,
    ) -> Result<(), AccessError> {
        self.change(|state| {
            state.check_user(user)?;
            let key = (vhost.to_owned(), user.to_owned());
            let mut changes = Vec::new();
            if let Some(of_user) = state.topic_permissions.get_mut(&key) {
                Arc::make_mut(of_user).retain(|name, _| {
                    let goes = exchange.is_none_or(|exchange| exchange == name);
                    if goes {
                        changes.push(Record::TopicPermission(vhost, user, name).gone());
                    }
                    !goes
                });
            }
            Ok(changes)
        })
    }

    /// What the store has to forget when a vhost goes.
    pub(crate) fn changes_of_vhost(&self, name: &str) -> Vec<Change> {
        self.state.read().changes_of(|(vhost, _)| vhost == name)
    }

    /// The vhost is gone, and with it all permissions in it.
    pub(crate) fn forget_vhost(&self, name: &str) {
        let mut state = self.state.write();
        state.permissions.retain(|(vhost, _), _| vhost != name);
        state.topic_permissions.retain(|(vhost, _), _| vhost != name);
        self.changed();
    }

    /// All users, by name.
    pub(crate) fn users(&self) -> Vec<UserDefinition> {
        let state = self.state.read();
        state.users.iter().map(|(name, user)| user.definition(name)).collect()
    }

    /// All permissions, by vhost and user.
    pub(crate) fn permissions(&self) -> Vec<PermissionDefinition> {
        let state = self.state.read();
        let permissions = state.permissions.iter().map(|((vhost, user), permission)| {
            let Permission { configure, write, read } = &**permission;
            PermissionDefinition {
                vhost: vhost.clone(),
                user: user.clone(),
                configure: configure.text.clone(),
                write: write.text.clone(),
                read: read.text.clone(),
            }
        });
        permissions.collect()
    }

    /// All topic permissions, by vhost, user and exchange.
    pub(crate) fn topic_permissions(&self) -> Vec<TopicPermissionDefinition> {
        let state = self.state.read();
        let of_users = state.topic_permissions.iter();
        let all = of_users.flat_map(|((vhost, user), exchanges)| {
            exchanges.iter().map(|(exchange, permission)| TopicPermissionDefinition {
                vhost: vhost.clone(),
                user: user.clone(),
                exchange: exchange.clone(),
                write: permission.write.text.clone(),
                read: permission.read.text.clone(),
            })
        });
        all.collect()
    }

    /// Judges a login as far as that takes no time; the others need [`Self::check_login`].
    pub(crate) fn recall_login(
        &self,
        user: &str,
        password: &str,
        is_local: bool,
        loopback_users: &[String],
    ) -> Option<Result<(), LoginRefused>> {
        if password.is_empty() {
            // Whoever the user is, so this tells nothing about who exists.
            return Some(Err(LoginRefused::BlankPassword { user: user.to_owned() }));
        }
        let is_known = self.hash_of(user).is_some_and(|hash| self.is_known(user, password, &hash));
        is_known.then(|| check_origin(user, is_local, loopback_users))
    }

    /// Checks a login, which takes milliseconds, and a wrong password no longer than an unknown
    /// user. `is_local` tells whether it comes over the loopback interface, which is all that the
    /// users on `loopback_users` may use.
    pub(crate) fn check_login(
        &self,
        user: &str,
        password: &str,
        is_local: bool,
        loopback_users: &[String],
    ) -> Result<(), LoginRefused> {
        if password.is_empty() {
            return Err(LoginRefused::BlankPassword { user: user.to_owned() });
        }
        if !self.is_password(user, password) {
            return Err(LoginRefused::InvalidCredentials { user: user.to_owned() });
        }
        check_origin(user, is_local, loopback_users)
    }

    /// The locks are not held while a hash is worked out.
    fn is_password(&self, user: &str, password: &str) -> bool {
        let hash = self.hash_of(user);
        if hash.as_ref().is_some_and(|hash| self.is_known(user, password, hash)) {
            return true;
        }
        let Some(hash) = hash.filter(PasswordHash::is_slow) else {
            // Time must not tell whether there is such a user.
            std::hint::black_box(self.decoy.is_of(password));
            return false;
        };
        let is_right = hash.is_of(password);
        if is_right {
            let digest = self.digest(password, &hash);
            self.verified.lock().insert(user.to_owned(), digest);
        }
        is_right
    }

    /// Whether it is the right password, as far as that can be told at once.
    fn is_known(&self, user: &str, password: &str, hash: &PasswordHash) -> bool {
        if !hash.is_slow() {
            return hash.is_of(password);
        }
        let digest = self.digest(password, hash);
        self.verified.lock().get(user).is_some_and(|known| is_same(known, &digest))
    }

    fn hash_of(&self, user: &str) -> Option<PasswordHash> {
        self.state.read().users.get(user).and_then(|user| user.hash.clone())
    }

    /// The password that was just set is the one that will be used.
    fn remember(&self, user: &str, password: Option<&str>) {
        if let (Some(hash), Some(password)) = (self.hash_of(user), password) {
            let digest = self.digest(password, &hash);
            self.verified.lock().insert(user.to_owned(), digest);
        }
    }

    /// With the hash in it, another password's digest is of no use.
    fn digest(&self, password: &str, hash: &PasswordHash) -> [u8; 32] {
        let digest = Sha256::new().chain_update(self.key).chain_update(hash.text());
        digest.chain_update([0]).chain_update(password).finalize().into()
    }
}

impl User {
    fn definition(&self, name: &str) -> UserDefinition {
        UserDefinition {
            name: name.to_owned(),
            password_hash: self.hash.as_ref().map_or("", PasswordHash::text).to_owned(),
            hashing_algorithm: match &self.hash {
                Some(hash) => hash.algorithm().to_owned(),
                None => password::DEFAULT_ALGORITHM.to_owned(),
            },
            tags: self.tags.clone(),
            limits: self.limits,
        }
    }
}

impl State {
    /// Deletions of all permissions whose vhost and user are meant.
    fn changes_of(&self, is_meant: impl Fn(&(String, String)) -> bool) -> Vec<Change> {
        let meant = self.permissions.keys().filter(|key| is_meant(key));
        let mut changes: Vec<_> =
            meant.map(|(vhost, user)| Record::Permission(vhost, user).gone()).collect();
        let meant = self.topic_permissions.iter().filter(|(key, _)| is_meant(key));
        for ((vhost, user), exchanges) in meant {
            let exchanges = exchanges.keys();
            changes.extend(exchanges.map(|name| Record::TopicPermission(vhost, user, name).gone()));
        }
        changes
    }

    fn check_user(&self, name: &str) -> Result<(), AccessError> {
        if self.users.contains_key(name) { Ok(()) } else { Err(AccessError::no_user(name)) }
    }
}

impl Grant {
    fn parse(text: &str) -> Result<Self, AccessError> {
        let pattern = Pattern::parse(text).map_err(AccessError)?;
        Ok(Self { text: text.to_owned(), pattern })
    }

    /// `{client_id}` is of MQTT: for AMQP 0-9-1 clients RabbitMQ leaves it as it is.
    fn parse_topic(text: &str, vhost: &str, user: &str) -> Result<Self, AccessError> {
        let expanded = pattern::expand(text, "{username}", user);
        let expanded = pattern::expand(&expanded, "{vhost}", vhost);
        let pattern = Pattern::parse(&expanded).map_err(AccessError)?;
        Ok(Self { text: text.to_owned(), pattern })
    }
}

/// The password is right; where may the user come from?
fn check_origin(user: &str, is_local: bool, loopback_users: &[String]) -> Result<(), LoginRefused> {
    if !is_local && loopback_users.iter().any(|name| name == user) {
        return Err(LoginRefused::LoopbackOnly { user: user.to_owned() });
    }
    Ok(())
}

/// Names go into short strings on the wire.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), AccessError> {
    if name.is_empty() || name.len() > 255 {
        return Err(AccessError(format!("a {what}'s name has 1 to 255 bytes")));
    }
    Ok(())
}

/// What is kept of a new password, and the name of its form.
pub(super) fn hash_password(password: &str) -> Result<(String, String), AccessError> {
    let hash = new_hash(password)?;
    Ok((hash.text().to_owned(), hash.algorithm().to_owned()))
}

fn new_hash(password: &str) -> Result<PasswordHash, AccessError> {
    if password.is_empty() {
        return Err(AccessError("a password must not be blank".to_owned()));
    }
    Ok(PasswordHash::of(password))
}

fn parse_hash(
    user: &str,
    hash: &str,
    algorithm: &str,
) -> Result<Option<PasswordHash>, AccessError> {
    if hash.is_empty() {
        return Ok(None);
    }
    let parsed = PasswordHash::parse(hash, algorithm);
    parsed.map(Some).map_err(|reason| AccessError(format!("user '{user}': {reason}")))
}

#[cfg(test)]
mod tests;
