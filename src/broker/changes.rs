//! Users, vhosts and permissions of a broker: what an operator changes and lists.
//!
//! Owns the part of [`Broker`]'s interface that definitions and administration use. Names and
//! meanings are those of RabbitMQ's definitions files. Changes take effect on connections that are
//! open. It must not know how definitions are written down.

use super::access::{ADMINISTRATOR, check_name};
use super::{
    AccessError, Broker, DEFAULT_VHOST, Drive, PermissionDefinition, TopicPermissionDefinition,
    UserDefinition, UserLimits, Vhost, VhostDefinition, VhostLimits, VhostMetadata,
};

impl Broker {
    /// What a broker without users begins with, as RabbitMQ's does: the vhost `/`, and the
    /// configuration's default user as administrator with all permissions on it.
    pub fn add_defaults(&self) {
        if self.access.has_users() {
            return;
        }
        if self.vhost(DEFAULT_VHOST).is_none() {
            self.put_vhost(DEFAULT_VHOST, VhostMetadata::default()).expect("a valid name");
        }
        let auth = &self.config.auth;
        let (user, all) = (auth.default_user.clone(), || ".*".to_owned());
        let tags = [ADMINISTRATOR.to_owned()];
        self.add_user(&user, Some(&auth.default_password), &tags)
            .expect("the configuration was checked and there is no user yet");
        let permission = PermissionDefinition {
            vhost: DEFAULT_VHOST.to_owned(),
            user,
            configure: all(),
            write: all(),
            read: all(),
        };
        self.set_permissions(&permission).expect("the user was just added");
    }

    /// All users, by name.
    pub fn users(&self) -> Vec<UserDefinition> {
        self.access.users()
    }

    /// Adds a user. Without a password nobody can log in as this user.
    ///
    /// # Errors
    /// When the user exists, or the name or the password is empty.
    pub fn add_user(
        &self,
        name: &str,
        password: Option<&str>,
        tags: &[String],
    ) -> Result<(), AccessError> {
        self.access.add_user(name, password, tags)
    }

    /// Adds a user, or replaces hash, tags and limits of the one that exists.
    ///
    /// # Errors
    /// When the name is empty or the hash is of no known form.
    pub fn put_user(&self, definition: &UserDefinition) -> Result<(), AccessError> {
        self.access.put_user(definition)
    }

    /// Deletes a user with all permissions; connections are closed.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn delete_user(&self, name: &str) -> Result<(), AccessError> {
        self.access.delete_user(name)
    }

    /// Gives a user a new password; connections stay.
    ///
    /// # Errors
    /// When there is no such user, or the password is empty.
    pub fn set_password(&self, name: &str, password: &str) -> Result<(), AccessError> {
        self.access.set_password(name, password)
    }

    /// Gives a user a password by its hash; see [`UserDefinition::password_hash`].
    ///
    /// # Errors
    /// When there is no such user, or the hash is of no known form.
    pub fn set_password_hash(
        &self,
        name: &str,
        hash: &str,
        algorithm: &str,
    ) -> Result<(), AccessError> {
        self.access.set_password_hash(name, hash, algorithm)
    }

    /// Takes a user's password away: nobody can log in as this user.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn clear_password(&self, name: &str) -> Result<(), AccessError> {
        self.access.clear_password(name)
    }

    /// Replaces a user's tags.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn set_tags(&self, name: &str, tags: &[String]) -> Result<(), AccessError> {
        self.access.set_tags(name, tags)
    }

    /// Replaces a user's limits, for connections and channels opened from now on.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn set_user_limits(&self, name: &str, limits: UserLimits) -> Result<(), AccessError> {
        self.access.set_user_limits(name, limits)
    }

    /// All permissions, by vhost and user.
    pub fn permissions(&self) -> Vec<PermissionDefinition> {
        self.access.permissions()
    }

    /// Sets what a user may do in a vhost.
    ///
    /// # Errors
    /// When there is no such user or vhost, or a pattern is not valid.
    pub fn set_permissions(&self, definition: &PermissionDefinition) -> Result<(), AccessError> {
        let _ordered = self.vhost_changes.lock();
        self.check_vhost(&definition.vhost)?;
        self.access.set_permissions(definition)
    }

    /// Takes a user's access to a vhost away.
    ///
    /// # Errors
    /// When there is no such user or vhost.
    pub fn clear_permissions(&self, vhost: &str, user: &str) -> Result<(), AccessError> {
        let _ordered = self.vhost_changes.lock();
        self.check_vhost(vhost)?;
        self.access.clear_permissions(vhost, user)
    }

    /// All topic permissions, by vhost, user and exchange.
    pub fn topic_permissions(&self) -> Vec<TopicPermissionDefinition> {
        self.access.topic_permissions()
    }

    /// Sets which routing keys a user may use on a topic exchange, which need not exist yet.
    ///
    /// # Errors
    /// When there is no such user or vhost, or a pattern is not valid.
    pub fn set_topic_permissions(
        &self,
        definition: &TopicPermissionDefinition,
    ) -> Result<(), AccessError> {
        let _ordered = self.vhost_changes.lock();
        self.check_vhost(&definition.vhost)?;
        self.access.set_topic_permissions(definition)
    }

    /// Takes away a topic permission, or all of a user's in a vhost when no exchange is named.
    ///
    /// # Errors
    /// When there is no such user or vhost.
    pub fn clear_topic_permissions(
        &self,
        vhost: &str,
        user: &str,
        exchange: Option<&str>,
    ) -> Result<(), AccessError> {
        let _ordered = self.vhost_changes.lock();
        self.check_vhost(vhost)?;
        self.access.clear_topic_permissions(vhost, user, exchange)
    }

    /// All vhosts, by name.
    pub fn vhosts(&self) -> Vec<VhostDefinition> {
        let vhosts: Vec<_> = self.vhosts.iter().map(|vhost| vhost.clone()).collect();
        let mut all: Vec<_> = vhosts.iter().map(|vhost| vhost.definition()).collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Adds a vhost, or replaces what is said about the one that exists.
    ///
    /// # Errors
    /// When the name is empty or too long.
    pub fn put_vhost(&self, name: &str, metadata: VhostMetadata) -> Result<(), AccessError> {
        check_name("vhost", name)?;
        let _ordered = self.vhost_changes.lock();
        let new = || Vhost::new(name, self.services.clone());
        let vhost = self.vhosts.entry(name.into()).or_insert_with(new).clone();
        vhost.set_metadata(metadata);
        Ok(())
    }

    /// Replaces a vhost's limits, for connections and queues from now on.
    ///
    /// # Errors
    /// When there is no such vhost.
    pub fn set_vhost_limits(&self, name: &str, limits: VhostLimits) -> Result<(), AccessError> {
        let _ordered = self.vhost_changes.lock();
        let vhost = self.vhost(name).ok_or_else(|| AccessError::no_vhost(name))?;
        vhost.set_limits(limits);
        Ok(())
    }

    /// Deletes a vhost with all that is in it, messages too; connections are closed.
    ///
    /// # Errors
    /// When there is no such vhost.
    pub fn delete_vhost(&self, name: &str) -> Result<(), AccessError> {
        let mut drive = Drive::default();
        {
            let _ordered = self.vhost_changes.lock();
            let (_, vhost) = self.vhosts.remove(name).ok_or_else(|| AccessError::no_vhost(name))?;
            vhost.delete_contents(self.access.changes_of_vhost(name), &mut drive);
            self.access.forget_vhost(name);
        }
        drive.finish();
        Ok(())
    }

    fn check_vhost(&self, name: &str) -> Result<(), AccessError> {
        if self.vhosts.contains_key(name) { Ok(()) } else { Err(AccessError::no_vhost(name)) }
    }
}
