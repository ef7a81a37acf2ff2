//! `leveret definitions`: import and export from the command line.
//!
//! Owns the options, what is printed and the exit codes. A running broker is found by the lock of
//! its data directory and asked over its control socket; that of a stopped one is opened while the
//! lock is held. It must not serve clients.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use crate::broker::{Definitions, Drive};
use crate::data_dir::{DataDir, DataDirError};
use crate::provision;

/// The control socket's name in the data directory.
pub const SOCKET: &str = "control.sock";

const EXAMPLES: &str = "\
Examples:
  rabbitmqctl export_definitions definitions.json    on the node to move away from
  leveret definitions import definitions.json        then here
  leveret definitions import one.json --vhost shop   a file of one vhost, into another
  leveret definitions export                         to standard output
  leveret definitions export backup.json --data-dir /var/lib/leveret

While the broker runs, an import is in effect at once, and durable when this command ends. While
it does not, the data directory is read and changed.

Exit codes: 0 done, 1 refused or not possible (then nothing was changed), 2 wrong arguments";

/// The options of `leveret definitions`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    /// The broker's data directory
    #[arg(long, value_name = "DIR", default_value = "./data", global = true)]
    data_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Take over users, vhosts, permissions, policies, queues, exchanges and bindings
    #[command(after_help = EXAMPLES)]
    Import {
        /// A definitions file as RabbitMQ exports it; - reads standard input
        file: PathBuf,
        /// Where what names no vhost goes [default: where it was exported from, or /]
        #[arg(long, value_name = "NAME")]
        vhost: Option<String>,
    },
    /// Write all definitions
    #[command(after_help = EXAMPLES)]
    Export {
        /// The file to write, which only you can read; - or none is standard output
        file: Option<PathBuf>,
    },
}

/// Runs the command and prints the outcome.
pub fn run(args: Args) -> ExitCode {
    let Args { action, data_dir } = args;
    let outcome = match action {
        Action::Import { file, vhost } => import(&data_dir, &file, vhost),
        Action::Export { file } => export(&data_dir, file.as_deref()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("leveret: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn import(data_dir: &Path, file: &Path, vhost: Option<String>) -> Result<(), String> {
    let text = if is_standard(file) {
        let mut text = Vec::new();
        io::stdin().read_to_end(&mut text).map(|_| text)
    } else {
        fs::read(file)
    };
    let text = text.map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let refused = |reason: String| format!("cannot import {}: {reason}", file.display());
    let payload: Value = serde_json::from_slice(&text)
        .map_err(|error| refused(format!("this is no JSON: {error}")))?;
    let definitions =
        Definitions::from_json(&payload).map_err(|error| refused(error.to_string()))?;
    for key in Definitions::unknown_keys(&payload) {
        eprintln!("leveret: '{key}' is no part of definitions and was left out");
    }
    let directory = data_dir.display();
    let (imported, when) = match DataDir::claim(data_dir) {
        Ok(_claim) => {
            let definitions = definitions.with_vhost(vhost.as_deref());
            let imported = provision::import_stopped(data_dir, &definitions);
            let when = format!("no broker runs on {directory}: in effect when one starts there");
            (imported.map_err(refused)?, when)
        }
        Err(DataDirError::InUse { .. }) => {
            let request = json!({"command": "import", "payload": payload, "vhost": vhost});
            let answer = ask(data_dir, &request).map_err(refused)?;
            let imported = serde_json::from_value(answer).map_err(|error| error.to_string())?;
            (imported, format!("in effect in the broker on {directory}"))
        }
        Err(error) => return Err(error.to_string()),
    };
    imported.notes.iter().for_each(|note| eprintln!("leveret: {note}"));
    println!("imported {imported}; {when}");
    Ok(())
}

fn export(data_dir: &Path, file: Option<&Path>) -> Result<(), String> {
    if !data_dir.is_dir() {
        return Err(format!(
            "there is no data directory {}: name the broker's with --data-dir",
            data_dir.display()
        ));
    }
    let definitions = match DataDir::claim(data_dir) {
        Ok(_claim) if !provision::has_definitions(data_dir) => {
            return Err("no broker has run here, and nothing was imported".to_owned());
        }
        Ok(_claim) => {
            let (broker, _) = provision::open_stopped(data_dir, &mut Drive::default())?;
            broker.export_definitions()
        }
        Err(DataDirError::InUse { .. }) => {
            let answer = ask(data_dir, &json!({"command": "export"}))?;
            Definitions::from_json(&answer).map_err(|error| error.to_string())?
        }
        Err(error) => return Err(error.to_string()),
    };
    let text = definitions.to_text();
    match file.filter(|file| !is_standard(file)) {
        None => io::stdout().write_all(text.as_bytes()).map_err(|error| error.to_string()),
        Some(file) => write_private(file, text.as_bytes())
            .map_err(|error| format!("cannot write {}: {error}", file.display())),
    }
}

fn is_standard(file: &Path) -> bool {
    file == Path::new("-")
}

/// There are password hashes in it.
fn write_private(file: &Path, text: &[u8]) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(file)?.write_all(text)
}

/// One command to the broker that runs on this data directory, and its answer.
fn ask(data_dir: &Path, request: &Value) -> Result<Value, String> {
    let path = data_dir.join(SOCKET);
    let failed = |error: io::Error| {
        format!("the broker on {} does not answer on {SOCKET}: {error}", data_dir.display())
    };
    let mut stream = UnixStream::connect(&path).map_err(failed)?;
    let mut line = request.to_string();
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(failed)?;
    let answer: Value = serde_json::from_str(&answer)
        .map_err(|_| failed(io::Error::from(io::ErrorKind::UnexpectedEof)))?;
    match (answer.get("ok"), answer.get("error").and_then(Value::as_str)) {
        (Some(ok), _) => Ok(ok.clone()),
        (None, reason) => Err(reason.unwrap_or("it gave no reason").to_owned()),
    }
}
