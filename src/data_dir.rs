//! The data directory: who this node is, and that it is the only broker there.
//!
//! Owns the directory's lock and `node.json`, which holds the identities that last for ever (the
//! cluster's and the node's) and the number of starts. It must not know about messages or
//! definitions: those are a store's, in files of its own.
//!
//! Invariants: an open [`DataDir`] holds the lock; identities never change once written; each
//! opening raises the boot counter by one, durably, before anything is served.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::atomic_file;

const IDENTITY_FILE: &str = "node.json";
const LOCK_FILE: &str = "lock";

/// The version of `node.json` that this program writes, and the newest that it reads.
const FORMAT: u32 = 1;

/// Who this node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The version of the file's layout.
    format: u32,
    /// Which cluster the node belongs to: 128 random bits in hexadecimal digits.
    pub cluster_id: String,
    /// Which node this is: 128 random bits in hexadecimal digits.
    pub node_id: String,
    /// How often the node was started, this start included.
    pub boots: u64,
}

/// An open data directory. No other broker can open it until this is dropped.
#[derive(Debug)]
pub struct DataDir {
    identity: Identity,
    /// Held for its lock only, which the operating system releases with the process at the
    /// latest.
    _lock: File,
}

/// A data directory on which no broker can start until this is dropped.
#[derive(Debug)]
pub struct Claim {
    _lock: File,
}

/// Why a data directory cannot be used.
#[derive(Debug, Error)]
pub enum DataDirError {
    /// The directory or a file in it cannot be created, read or written.
    #[error(
        "cannot {action} {path}: {source}. The directory must belong to the broker's user; \
         choose another with --data-dir, or run without any by --no-store",
        path = .path.display()
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// Another process holds the lock.
    #[error(
        "the data directory {path} is in use by another broker: stop that one, or choose another \
         directory with --data-dir",
        path = .path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The identity file cannot be understood.
    #[error(
        "{path} does not hold a node's identity ({reason}): restore it from a backup, or choose \
         another directory with --data-dir",
        path = .path.display()
    )]
    Damaged {
        /// The identity file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system has no random bits to make an identity from.
    #[error("the operating system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

impl DataDir {
    /// Opens `path` for this process alone, creating what is missing, and counts the start.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        fs::create_dir_all(path).map_err(|source| failed("create", path, source))?;
        let lock = lock(path)?;
        let file = path.join(IDENTITY_FILE);
        let mut identity = match Identity::read(&file)? {
            Some(identity) => identity,
            None => Identity::new()?,
        };
        identity.boots = identity.boots.saturating_add(1);
        identity.write(&file)?;
        Ok(Self { identity, _lock: lock })
    }

    /// Takes the directory for a change while no broker runs on it, which is no start. It is free
    /// again when what this returns is dropped.
    ///
    /// # Errors
    /// [`DataDirError::InUse`] while a broker runs on it.
    pub fn claim(path: &Path) -> Result<Claim, DataDirError> {
        fs::create_dir_all(path).map_err(|source| failed("create", path, source))?;
        Ok(Claim { _lock: lock(path)? })
    }

    /// Who this node is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

impl Identity {
    /// A node that was never started, alone in a cluster of its own.
    fn new() -> Result<Self, DataDirError> {
        Ok(Self { format: FORMAT, cluster_id: random_id()?, node_id: random_id()?, boots: 0 })
    }

    fn read(file: &Path) -> Result<Option<Self>, DataDirError> {
        let text = match fs::read(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed("read", file, source)),
        };
        let damaged = |reason| DataDirError::Damaged { path: file.to_owned(), reason };
        let identity: Self =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if identity.format != FORMAT {
            let format = identity.format;
            let reason = format!("its format is {format}, this version knows format {FORMAT}");
            return Err(damaged(reason));
        }
        if !is_id(&identity.cluster_id) || !is_id(&identity.node_id) {
            return Err(damaged("an id is not 32 hexadecimal digits".to_owned()));
        }
        Ok(Some(identity))
    }

    fn write(&self, file: &Path) -> Result<(), DataDirError> {
        let mut text = serde_json::to_vec_pretty(self).expect("strings and numbers become JSON");
        text.push(b'\n');
        atomic_file::replace(file, &text).map_err(|source| failed("write", file, source))
    }
}

fn lock(directory: &Path) -> Result<File, DataDirError> {
    let path = directory.join(LOCK_FILE);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|source| failed("open", &path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DataDirError::InUse { path: directory.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed("lock", &path, source)),
    }
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> DataDirError {
    DataDirError::Io { action, path: path.to_owned(), source }
}

fn random_id() -> Result<String, DataDirError> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).map_err(DataDirError::Random)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bits)))
}

fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_last_and_starts_are_counted() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("new/data");
        let first = DataDir::open(&path).expect("created").identity().clone();
        let second = DataDir::open(&path).expect("opened again").identity().clone();
        assert_eq!((first.boots, second.boots), (1, 2));
        assert_eq!(first.node_id, second.node_id);
        assert_eq!(first.cluster_id, second.cluster_id);
        assert!(is_id(&first.node_id) && is_id(&first.cluster_id));
        assert_ne!(first.node_id, first.cluster_id);
    }

    #[test]
    fn a_second_broker_is_refused_while_the_first_holds_the_directory() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let first = DataDir::open(dir.path()).expect("free");
        let refused = DataDir::open(dir.path()).expect_err("held");
        assert!(matches!(refused, DataDirError::InUse { .. }), "{refused}");
        assert!(refused.to_string().contains("--data-dir"), "{refused}");
        drop(first);
        assert_eq!(DataDir::open(dir.path()).expect("free again").identity().boots, 2);
    }

    #[test]
    fn a_damaged_identity_is_refused_and_left_alone() {
        let id = "0".repeat(32);
        let other_format =
            format!(r#"{{"format":2,"cluster_id":"{id}","node_id":"{id}","boots":1}}"#);
        let no_id = format!(r#"{{"format":1,"cluster_id":"{id}","node_id":"x","boots":1}}"#);
        for text in ["", "{}", other_format.as_str(), no_id.as_str()] {
            let dir = tempfile::tempdir().expect("temporary directory");
            let file = dir.path().join(IDENTITY_FILE);
            fs::write(&file, text).expect("written");
            let refused = DataDir::open(dir.path()).expect_err(text);
            assert!(matches!(refused, DataDirError::Damaged { .. }), "{refused}");
            assert!(refused.to_string().contains(IDENTITY_FILE), "{refused}");
            assert_eq!(fs::read_to_string(&file).expect("still there"), text);
        }
    }

    #[test]
    fn a_file_in_its_place_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        let refused = DataDir::open(file.path()).expect_err("not a directory");
        assert!(matches!(refused, DataDirError::Io { action: "create", .. }), "{refused}");
    }
}
