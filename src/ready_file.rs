//! The ready file: tells a supervisor or a script that the broker serves, and where.
//!
//! Owns the file from the moment the broker is told of it: what an earlier process left there is
//! removed first, the content appears as a whole once all listeners are bound, and it is removed
//! when this is dropped. It must not decide when the broker is ready.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::atomic_file;
use crate::start_error::StartError;

/// A ready file, present on disk from [`ReadyFile::announce`] until this is dropped.
#[derive(Debug)]
pub struct ReadyFile {
    path: PathBuf,
    is_announced: bool,
}

#[derive(Serialize)]
struct Content<'a> {
    pid: u32,
    amqp: &'a [SocketAddr],
    version: &'a str,
}

impl ReadyFile {
    /// Takes over `path`; whoever waits for the file does not see an old one from here on.
    pub fn claim(path: &Path) -> Result<Self, StartError> {
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StartError::ReadyFile { path: path.to_owned(), source })
            }
            _ => Ok(Self { path: path.to_owned(), is_announced: false }),
        }
    }

    /// Writes the file: a JSON object with the process id, the bound addresses and the version.
    pub fn announce(&mut self, amqp: &[SocketAddr]) -> Result<(), StartError> {
        let version = env!("CARGO_PKG_VERSION");
        let content = Content { pid: std::process::id(), amqp, version };
        let mut text = serde_json::to_vec(&content).expect("strings and numbers become JSON");
        text.push(b'\n');
        atomic_file::replace(&self.path, &text)
            .map_err(|source| StartError::ReadyFile { path: self.path.clone(), source })?;
        self.is_announced = true;
        Ok(())
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        if self.is_announced {
            // Nothing is left to do about a failure: the process ends, and its id in the file
            // tells that the file is stale.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appears_when_announced_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("ready.json");
        fs::write(&path, "stale").expect("written");
        let mut ready = ReadyFile::claim(&path).expect("claimed");
        assert!(!path.exists(), "a stale file must not look like readiness");
        let addresses = ["127.0.0.1:5672".parse().unwrap(), "[::1]:5673".parse().unwrap()];
        ready.announce(&addresses).expect("written");
        let text = fs::read_to_string(&path).expect("present");
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(json["pid"], std::process::id());
        assert_eq!(json["amqp"], serde_json::json!(["127.0.0.1:5672", "[::1]:5673"]));
        assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
        drop(ready);
        assert!(!path.exists());
    }

    #[test]
    fn an_impossible_place_is_an_error() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert!(ReadyFile::claim(dir.path()).is_err(), "a directory");
        let mut nowhere = ReadyFile::claim(&dir.path().join("no/such")).expect("nothing there");
        assert!(nowhere.announce(&[]).is_err());
    }
}
