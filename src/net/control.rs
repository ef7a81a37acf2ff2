//! The control socket: how this machine's operator talks to a running broker.
//!
//! Owns a Unix domain socket in the data directory, which only the broker's user can open, and its
//! protocol: each line is a JSON object, a command from one side and its outcome from the other.
//! It must not know what a command does to the broker.
//!
//! - `{"command": "export"}` is answered with `{"ok": DEFINITIONS}`;
//! - `{"command": "import", "payload": DEFINITIONS, "vhost": NAME or null}` with
//!   `{"ok": {"counts": ..., "notes": ...}}`;
//! - whatever is refused with `{"error": REASON}`.
//!
//! One client is served at a time. An import is answered when it is durable.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

use super::worker;
use crate::broker::{Broker, Definitions};

/// How long a client may take to send a command and to read the answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest command.
const LINE_BYTES_MAX: u64 = 1 << 30;

/// See the module's description.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

#[derive(Deserialize)]
struct Request {
    command: String,
    #[serde(default)]
    payload: Value,
    #[serde(default)]
    vhost: Option<String>,
}

impl Control {
    /// Opens the socket at `path`, in the place of one that an earlier process has left behind:
    /// the caller holds the lock of the directory.
    ///
    /// # Errors
    /// When the system refuses, as it does for paths of more than about 100 bytes.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        // Whoever was faster than this is turned away by `is_trusted`.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Serves until it is dropped.
    pub(super) async fn run(self, broker: Arc<Broker>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) if is_trusted(&stream) => {
                    let served = tokio::time::timeout(PATIENCE, serve(stream, &broker));
                    if let Ok(Err(error)) = served.await {
                        tracing::debug!("control connection: {error}");
                    }
                }
                Ok(_) => tracing::warn!("another user was refused on the control socket"),
                Err(error) => {
                    tracing::warn!("cannot accept a control connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Left behind, it would only be refused.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether the peer is the broker's user, or root.
fn is_trusted(stream: &UnixStream) -> bool {
    let own = fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own));
    match (stream.peer_cred(), own) {
        (Ok(peer), Ok(own)) => peer.uid() == own || peer.uid() == 0,
        _ => false,
    }
}

async fn serve(stream: UnixStream, broker: &Arc<Broker>) -> io::Result<()> {
    let (input, mut output) = stream.into_split();
    let mut lines = BufReader::new(input.take(LINE_BYTES_MAX));
    let mut line = String::new();
    while lines.read_line(&mut line).await? > 0 {
        let (request, broker) = (std::mem::take(&mut line), broker.clone());
        let answer = tokio::task::spawn_blocking(move || answer(&request, &broker));
        let mut text = answer.await.map_err(io::Error::other)?.to_string();
        text.push('\n');
        output.write_all(text.as_bytes()).await?;
    }
    Ok(())
}

fn answer(request: &str, broker: &Broker) -> Value {
    let request: Result<Request, _> = serde_json::from_str(request);
    let outcome = match request {
        Err(error) => Err(format!("this is no command: {error}")),
        Ok(request) => match request.command.as_str() {
            "export" => Ok(broker.export_definitions().to_json()),
            "import" => import(&request, broker),
            other => Err(format!("there is no command \"{other}\"")),
        },
    };
    match outcome {
        Ok(outcome) => json!({ "ok": outcome }),
        Err(reason) => json!({ "error": reason }),
    }
}

fn import(request: &Request, broker: &Broker) -> Result<Value, String> {
    let definitions =
        Definitions::from_json(&request.payload).map_err(|error| error.to_string())?;
    let definitions = definitions.with_vhost(request.vhost.as_deref());
    let imported =
        worker::with(|lent| broker.import_definitions(&definitions, &mut lent.worker.drive));
    let imported = imported.map_err(|error| error.to_string())?;
    tracing::info!("definitions were imported: {imported}");
    imported.notes.iter().for_each(|note| tracing::warn!("definitions: {note}"));
    let (decided, outcome) = oneshot::channel();
    broker.when_definitions_durable(|outcome| drop(decided.send(outcome)));
    outcome.blocking_recv().unwrap_or_else(|gone| Err(gone.to_string())).map_err(|reason| {
        format!("the definitions are in effect, but may not survive a restart: {reason}")
    })?;
    serde_json::to_value(imported).map_err(|error| error.to_string())
}
