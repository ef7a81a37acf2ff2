//! The control socket: how this machine's operator talks to a running broker.
//!
//! Owns a Unix domain socket in the data directory, which only the broker's user can open, and its
//! protocol: each line is a JSON object, a command from one side and its outcome from the other.
//! It must not know what a command does to the broker, nor where definitions are kept.
//!
//! - `{"command": "export"}` is answered with `{"ok": DEFINITIONS}`;
//! - `{"command": "import", "payload": DEFINITIONS, "vhost": NAME or null}` with
//!   `{"ok": {"counts": ..., "notes": ...}}`;
//! - whatever is refused with `{"error": REASON}`.
//!
//! One client is served at a time, so that imports are kept in the order in which they were made.

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

use super::worker;
use crate::broker::{Broker, Definitions};

/// How long a client may take to send a command and to read the answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest command.
const LINE_BYTES_MAX: u64 = 1 << 30;

/// Keeps definitions that were imported; the error says why they are not kept.
pub type Keep = Arc<dyn Fn(&Broker, &Definitions) -> Result<(), String> + Send + Sync>;

/// See the module's description.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    keep: Keep,
}

#[derive(Deserialize)]
struct Request {
    command: String,
    #[serde(default)]
    payload: Value,
    #[serde(default)]
    vhost: Option<String>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Control {
    /// Opens the socket at `path`, in the place of one that an earlier process has left behind:
    /// the caller holds the lock of the directory.
    ///
    /// # Errors
    /// When the system refuses, as it does for paths of more than about 100 bytes.
    pub fn bind(path: &Path, keep: Keep) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        // Whoever was faster than this is turned away by `is_trusted`.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path: path.to_owned(), keep })
    }

    /// Serves until it is dropped.
    pub(super) async fn run(self, broker: Arc<Broker>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) if is_trusted(&stream) => {
                    let served = tokio::time::timeout(PATIENCE, serve(stream, &broker, &self.keep));
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

async fn serve(stream: UnixStream, broker: &Arc<Broker>, keep: &Keep) -> io::Result<()> {
    let (input, mut output) = stream.into_split();
    let mut lines = BufReader::new(input.take(LINE_BYTES_MAX));
    let mut line = String::new();
    while lines.read_line(&mut line).await? > 0 {
        let (request, broker, keep) = (std::mem::take(&mut line), broker.clone(), keep.clone());
        let answer = tokio::task::spawn_blocking(move || answer(&request, &broker, &keep));
        let mut text = answer.await.map_err(io::Error::other)?.to_string();
        text.push('\n');
        output.write_all(text.as_bytes()).await?;
    }
    Ok(())
}

fn answer(request: &str, broker: &Broker, keep: &Keep) -> Value {
    let request: Result<Request, _> = serde_json::from_str(request);
    let outcome = match request {
        Err(error) => Err(format!("this is no command: {error}")),
        Ok(request) => match request.command.as_str() {
            "export" => Ok(broker.export_definitions().to_json()),
            "import" => import(&request, broker, keep),
            other => Err(format!("there is no command \"{other}\"")),
        },
    };
    match outcome {
        Ok(outcome) => json!({ "ok": outcome }),
        Err(reason) => json!({ "error": reason }),
    }
}

fn import(request: &Request, broker: &Broker, keep: &Keep) -> Result<Value, String> {
    let definitions =
        Definitions::from_json(&request.payload).map_err(|error| error.to_string())?;
    let definitions = definitions.with_vhost(request.vhost.as_deref());
    let imported =
        worker::with(|lent| broker.import_definitions(&definitions, &mut lent.worker.drive));
    let imported = imported.map_err(|error| error.to_string())?;
    tracing::info!("definitions were imported: {imported}");
    imported.notes.iter().for_each(|note| tracing::warn!("definitions: {note}"));
    keep(broker, &definitions).map_err(|reason| {
        format!("the definitions are in effect, but will not survive a restart: {reason}")
    })?;
    serde_json::to_value(imported).map_err(|error| error.to_string())
}
