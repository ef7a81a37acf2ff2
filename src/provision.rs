//! What a broker begins with.
//!
//! Owns the order in which a broker is filled before clients can connect: what its store has, then
//! the definitions that a version without a store has kept, then those that `load_definitions`
//! names, and the policies of the configuration. It must not know who asks for an import later.
//!
//! A store on which no broker has served yet also gets the default user, unless it has users.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use crate::StartError;
use crate::broker::{
    Broker, DEFAULT_VHOST, Definitions, Drive, Imported, PolicyDefinition, PolicyScope,
    VhostMetadata,
};
use crate::config::{Auth, Config};

/// The store's directory in the data directory.
const STORE: &str = "store";

/// What a version without a store has kept of imports.
const EARLIER: &str = "definitions.json";

/// Its name once the store has it.
const MIGRATED: &str = "definitions.json.migrated";

/// Definitions, and the file that they are from.
type FileDefinitions = (PathBuf, Definitions);

/// Where the store of a data directory is.
pub fn store_dir(data_dir: &Path) -> PathBuf {
    data_dir.join(STORE)
}

/// Fills a new broker; `data_dir` is none where no disk is used.
///
/// # Errors
/// When the store cannot be read or written, a file cannot be imported as a whole, or a policy is
/// refused.
pub fn fill(
    broker: &Broker,
    config: &Config,
    data_dir: Option<&Path>,
    drive: &mut Drive,
) -> Result<(), StartError> {
    let failed = |reason| StartError::Store { reason };
    let recovered = broker.recover(drive).map_err(failed)?;
    let earlier = data_dir.map(read_earlier).transpose()?.flatten();
    let named = config.load_definitions.as_deref().map(read_file).transpose()?;
    let files: Vec<_> = earlier.iter().chain(&named).collect();
    if recovered.is_new {
        add_missing(broker, &files, &config.auth);
        broker.keep_as_started();
    }
    for (path, definitions) in files {
        let imported = broker
            .import_definitions(definitions, drive)
            .map_err(|error| refused(path, error.to_string()))?;
        tracing::info!(path = %path.display(), "definitions were imported: {imported}");
        imported.notes.iter().for_each(|note| tracing::warn!("definitions: {note}"));
    }
    begin_serving(broker).map_err(failed)?;
    if let (Some(data_dir), Some(_)) = (data_dir, &earlier) {
        retire_earlier(data_dir).map_err(|error| refused(&data_dir.join(EARLIER), error))?;
    }
    add_policies(broker, config, drive)?;
    broker.recover_messages(recovered, drive).map_err(failed)
}

/// A broker with what a data directory has, for whoever looks at it or changes it while no broker
/// runs there. Answers, too, whether none ever has.
///
/// # Errors
/// When the store cannot be read, or a file of an earlier version cannot be imported.
pub fn open_stopped(data_dir: &Path, drive: &mut Drive) -> Result<(Broker, bool), String> {
    let config = Config::default().into();
    let broker = Broker::open(config, u64::MAX, Some(&store_dir(data_dir)))?;
    let is_new = broker.recover(drive)?.is_new;
    if let Some((path, definitions)) = read_earlier(data_dir).map_err(|e| e.to_string())? {
        let imported = broker.import_definitions(&definitions, drive);
        imported.map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok((broker, is_new))
}

/// Whether there is anything for [`open_stopped`].
pub fn has_definitions(data_dir: &Path) -> bool {
    store_dir(data_dir).exists() || data_dir.join(EARLIER).exists()
}

/// Adds definitions to what a data directory has, for the next start there.
///
/// # Errors
/// When they are refused: then nothing was changed; or when the store cannot be written.
pub fn import_stopped(data_dir: &Path, definitions: &Definitions) -> Result<Imported, String> {
    let mut drive = Drive::default();
    let (broker, is_new) = open_stopped(data_dir, &mut drive)?;
    let (has_users, has_vhosts) = brings(&broker, &[definitions]);
    if is_new && !(has_users && has_vhosts) {
        // The first start adds what else is missing.
        broker.put_vhost(DEFAULT_VHOST, VhostMetadata::default()).expect("a valid name");
    }
    let imported = broker.import_definitions(definitions, &mut drive);
    let mut imported = imported.map_err(|error| error.to_string())?;
    let transient = definitions.transient().into_iter();
    imported.notes.extend(transient.map(|what| format!("{what} was left out: it is not durable")));
    begin_serving(&broker)?;
    broker.close_store();
    if data_dir.join(EARLIER).exists() {
        retire_earlier(data_dir)?;
    }
    Ok(imported)
}

/// Ends the filling, and waits until all of it is durable.
fn begin_serving(broker: &Broker) -> Result<(), String> {
    broker.begin_serving();
    let (decided, outcome) = mpsc::channel();
    broker.when_definitions_durable(move |outcome| {
        let _ = decided.send(outcome);
    });
    outcome.recv().unwrap_or_else(|_| Err("the store gives no answer".to_owned()))
}

fn refused(path: &Path, reason: String) -> StartError {
    StartError::Definitions { path: path.to_owned(), reason }
}

fn read_file(path: &Path) -> Result<FileDefinitions, StartError> {
    let text = fs::read(path).map_err(|error| refused(path, error.to_string()))?;
    let definitions = Definitions::parse(&text);
    let definitions = definitions.map_err(|error| refused(path, error.to_string()))?;
    Ok((path.to_owned(), definitions))
}

fn read_earlier(data_dir: &Path) -> Result<Option<FileDefinitions>, StartError> {
    let path = data_dir.join(EARLIER);
    if path.exists() { read_file(&path).map(Some) } else { Ok(None) }
}

/// The store has it now: the next start must not import it again.
fn retire_earlier(data_dir: &Path) -> Result<(), String> {
    let rename = || -> io::Result<()> {
        fs::rename(data_dir.join(EARLIER), data_dir.join(MIGRATED))?;
        File::open(data_dir)?.sync_all()
    };
    rename().map_err(|error| format!("it is in the store now, but cannot be renamed: {error}"))?;
    tracing::info!("{EARLIER} is in the store now and was renamed to {MIGRATED}");
    Ok(())
}

/// Whether a broker has users and vhosts, or these files bring some.
fn brings(broker: &Broker, files: &[&Definitions]) -> (bool, bool) {
    let has_users = !broker.users().is_empty() || files.iter().any(|file| file.has_users());
    let has_vhosts = !broker.vhosts().is_empty() || files.iter().any(|file| file.has_vhosts());
    (has_users, has_vhosts)
}

/// What the first start adds to what it is given: without users, all defaults; without vhosts, the
/// one that everybody expects.
fn add_missing(broker: &Broker, files: &[&FileDefinitions], auth: &Auth) {
    let definitions: Vec<_> = files.iter().map(|(_, definitions)| definitions).collect();
    let (has_users, has_vhosts) = brings(broker, &definitions);
    if !has_users {
        return broker.add_defaults();
    }
    if !has_vhosts {
        broker.put_vhost(DEFAULT_VHOST, VhostMetadata::default()).expect("a valid name");
    }
    if *auth != Auth::default() {
        let user = &auth.default_user;
        tracing::warn!(user, "auth.default_user is not used: imported definitions have users");
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
        // They are the configuration's to keep.
        let set = broker.set_transient_policy(scope, &policy.vhost, definition, drive);
        set.map_err(|error| StartError::Policy {
            name: policy.name.clone(),
            reason: error.to_string(),
        })?;
    }
    Ok(())
}
