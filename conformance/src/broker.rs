//! The broker under test: one that runs already, or one started for the run and stopped after it.
//!
//! A started broker has a directory of its own and a port that the system chose, and it is gone
//! when its value is dropped, however the run ends.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{Outcome, process};

const START_TIME: Duration = Duration::from_secs(30);
// The broker promises to be gone five seconds after SIGTERM.
const STOP_TIME: Duration = Duration::from_secs(7);
const POLL_TIME: Duration = Duration::from_millis(20);
const TAIL_LINES: usize = 40;

/// The broker under test.
pub(crate) struct Broker {
    uri: String,
    started: Option<Started>,
}

struct Started {
    child: Child,
    folder: TempDir,
}

impl Broker {
    /// A broker that someone else runs.
    pub(crate) fn running(uri: &str) -> Self {
        Self { uri: with_vhost(uri), started: None }
    }

    /// Starts the binary and waits until it serves.
    pub(crate) async fn start(binary: &Path) -> Outcome<Self> {
        let folder = TempDir::with_prefix("leveret-conformance-")
            .map_err(|error| format!("cannot make a directory for the broker: {error}"))?;
        let ready_file = folder.path().join("ready.json");
        let complain = |error| format!("cannot start {}: {error}", binary.display());
        let log = File::create(log_file(&folder)).map_err(complain)?;
        let child = Command::new(binary)
            .args(["serve", "--amqp-listen", "127.0.0.1:0", "--ready-file"])
            .arg(&ready_file)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(complain)?)
            .stderr(log)
            .spawn()
            .map_err(complain)?;
        let mut started = Started { child, folder };
        let address = started.address(&ready_file).await?;
        let uri = format!("amqp://guest:guest@{address}/%2F");
        Ok(Self { uri, started: Some(started) })
    }

    /// Where the clients connect.
    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    /// Stops a started broker; an error if it had died or does not stop as it promises.
    pub(crate) fn stop(self, show_log: bool) -> Outcome {
        let Some(mut started) = self.started else { return Ok(()) };
        let outcome = match started.child.try_wait() {
            Ok(Some(status)) => Err(format!("the broker died during the run ({status})")),
            _ => match started.end() {
                Some(status) if status.success() => Ok(()),
                Some(status) => Err(format!("the broker ended with {status} after SIGTERM")),
                None => Err(format!("the broker ran on {STOP_TIME:?} after SIGTERM")),
            },
        };
        if show_log || outcome.is_err() {
            println!("\nthe broker's log ends:\n{}", started.log_tail());
        }
        outcome
    }
}

impl Started {
    /// Waits for the ready file and reads the address from it.
    async fn address(&mut self, ready_file: &Path) -> Outcome<String> {
        let deadline = Instant::now() + START_TIME;
        loop {
            if let Ok(text) = std::fs::read_to_string(ready_file) {
                return parse_address(&text);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("the broker ended with {status}:\n{}", self.log_tail()));
            }
            if Instant::now() > deadline {
                let tail = self.log_tail();
                return Err(format!("the broker is not ready after {START_TIME:?}:\n{tail}"));
            }
            tokio::time::sleep(POLL_TIME).await;
        }
    }

    /// Asks the broker to stop and, if it will not, kills it.
    fn end(&mut self) -> Option<ExitStatus> {
        process::send_signal("TERM", &self.child.id().to_string());
        let deadline = Instant::now() + STOP_TIME;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(POLL_TIME);
        }
        // Both fail only for a process that is gone, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        None
    }

    fn log_tail(&self) -> String {
        process::tail(&log_file(&self.folder), TAIL_LINES)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.end();
        }
    }
}

fn log_file(folder: &TempDir) -> PathBuf {
    folder.path().join("broker.log")
}

/// The first AMQP address of the ready file.
fn parse_address(text: &str) -> Outcome<String> {
    let ready: serde_json::Value = serde_json::from_str(text)
        .map_err(|error| format!("the broker's ready file is not JSON: {error}"))?;
    let address = ready["amqp"][0].as_str();
    address.map(str::to_owned).ok_or_else(|| format!("no AMQP address in the ready file: {text}"))
}

/// Client libraries disagree on what a URI without a path means; all agree on an explicit vhost.
fn with_vhost(uri: &str) -> String {
    let start = uri.find("://").map_or(0, |scheme| scheme + 3);
    match uri[start..].split_once('/') {
        None => format!("{uri}/%2F"),
        Some((_, "")) => format!("{uri}%2F"),
        Some(_) => uri.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{parse_address, with_vhost};

    #[test]
    fn a_uri_without_a_vhost_means_the_default_one() {
        assert_eq!(with_vhost("amqp://h:1"), "amqp://h:1/%2F");
        assert_eq!(with_vhost("amqp://h:1/"), "amqp://h:1/%2F");
        assert_eq!(with_vhost("amqp://h:1/v"), "amqp://h:1/v");
    }

    #[test]
    fn the_ready_file_names_the_address() {
        let ready = r#"{"pid": 7, "amqp": ["127.0.0.1:40001", "[::1]:40001"]}"#;
        assert_eq!(parse_address(ready).as_deref(), Ok("127.0.0.1:40001"));
        assert!(parse_address("{}").is_err());
        assert!(parse_address("{").is_err());
    }
}
