//! The definitions that a start brings along.
//!
//! Owns `definitions.json` in the data directory, which keeps what operators have imported, and the
//! order in which a broker is filled before clients can connect: that file, then the one that
//! `load_definitions` names, then the default user if there is none, then the policies of the
//! configuration. It must not know who asks for an import.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::StartError;
use crate::atomic_file;
use crate::broker::{Broker, Definitions, Drive, PolicyDefinition, PolicyScope, VhostMetadata};
use crate::config::{Auth, Config};

const NAME: &str = "definitions.json";

/// Definitions that operators have imported.
#[derive(Clone, Debug)]
pub struct DefinitionsFile {
    path: PathBuf,
}

impl DefinitionsFile {
    /// The one of a data directory.
    pub fn of(data_dir: &Path) -> Self {
        Self { path: data_dir.join(NAME) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was imported; `None` when nothing was.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub fn read(&self) -> Result<Option<Definitions>, String> {
        match fs::read(&self.path) {
            Ok(text) => Definitions::parse(&text).map(Some).map_err(|error| error.to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("it cannot be read: {error}")),
        }
    }

    /// Replaces what was imported. Only the broker's user can read it: it has password hashes.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, definitions: &Definitions) -> Result<(), String> {
        atomic_file::replace_private(&self.path, definitions.to_text().as_bytes())
            .map_err(|error| format!("cannot write {}: {error}", self.path.display()))
    }

    /// Adds what a running broker has imported. Its users stay as they are now: with users of its
    /// own a start makes no default user.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn keep(&self, broker: &Broker, imported: &Definitions) -> Result<(), String> {
        let mut kept = self.read()?.unwrap_or_default();
        kept.absorb(imported.clone());
        kept.replace_access(broker.export_definitions());
        self.write(&kept)
    }
}

/// Fills a new broker; `data_dir` is none where no disk is used.
///
/// # Errors
/// When a file cannot be imported as a whole, or a policy is refused.
pub fn fill(
    broker: &Broker,
    config: &Config,
    data_dir: Option<&Path>,
    drive: &mut Drive,
) -> Result<(), StartError> {
    let refused =
        |path: &Path, reason: String| StartError::Definitions { path: path.to_owned(), reason };
    let mut files = Vec::new();
    if let Some(file) = data_dir.map(DefinitionsFile::of) {
        let definitions = file.read().map_err(|reason| refused(file.path(), reason))?;
        files.extend(definitions.map(|definitions| (file.path, definitions)));
    }
    if let Some(path) = &config.load_definitions {
        let text = fs::read(path).map_err(|error| refused(path, error.to_string()))?;
        let definitions = Definitions::parse(&text);
        let definitions = definitions.map_err(|error| refused(path, error.to_string()))?;
        files.push((path.clone(), definitions));
    }
    add_missing(broker, files.iter().map(|(_, definitions)| definitions));
    let with_users = files.iter().find(|(_, definitions)| definitions.has_users());
    if let Some((path, _)) = with_users
        && config.auth != Auth::default()
    {
        let (path, user) = (path.display(), &config.auth.default_user);
        tracing::warn!(%path, user, "auth.default_user is not used: this file has users");
    }
    for (path, definitions) in &files {
        let imported = broker
            .import_definitions(definitions, drive)
            .map_err(|error| refused(path, error.to_string()))?;
        tracing::info!(path = %path.display(), "definitions were imported: {imported}");
        imported.notes.iter().for_each(|note| tracing::warn!("definitions: {note}"));
    }
    add_policies(broker, config, drive)
}

/// What a start adds to files that do not bring it: without users, all defaults; without vhosts,
/// the one that everybody expects.
pub fn add_missing<'a>(broker: &Broker, files: impl Iterator<Item = &'a Definitions> + Clone) {
    if !files.clone().any(Definitions::has_users) {
        broker.add_defaults();
    } else if !files.clone().any(Definitions::has_vhosts) {
        let put = broker.put_vhost(crate::broker::DEFAULT_VHOST, VhostMetadata::default());
        put.expect("a valid name");
    }
}

fn add_policies(broker: &Broker, config: &Config, drive: &mut Drive) -> Result<(), StartError> {
    for policy in &config.policies {
        let scope = if policy.is_operator { PolicyScope::Operator } else { PolicyScope::User };
        let definition = PolicyDefinition {
            name: policy.name.clone(),
            pattern: policy.pattern.clone(),
            apply_to: policy.apply_to.clone(),
            priority: policy.priority,
            definition: policy.definition.clone(),
        };
        let set = broker.set_policy(scope, &policy.vhost, definition, drive);
        set.map_err(|error| StartError::Policy {
            name: policy.name.clone(),
            reason: error.to_string(),
        })?;
    }
    Ok(())
}
