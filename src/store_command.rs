//! `leveret store`: checking what is stored, from the command line.
//!
//! Owns the options, what is printed and the exit codes. It needs the data directory for itself,
//! and changes nothing in it.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Subcommand;

use crate::data_dir::DataDir;
use crate::store::{self, Report};

const EXAMPLES: &str = "\
Examples:
  leveret store check                      what is stored in ./data
  leveret store check /var/lib/leveret     in another data directory
  leveret store check --json               for a program

The broker must not run on the directory. Nothing is changed.

Exit codes: 0 all is well, 1 something is damaged or the store cannot be opened, 2 wrong arguments";

/// So often is said how far a check has come.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// The options of `leveret store`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Read everything that is stored, and say whether it is as it was written
    #[command(after_help = EXAMPLES)]
    Check {
        /// The broker's data directory
        #[arg(value_name = "DIR", default_value = "./data")]
        data_dir: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command and prints the outcome.
pub fn run(args: Args) -> ExitCode {
    let Action::Check { data_dir, json } = args.action;
    let checked = check(&data_dir).and_then(|report| {
        let text = if json { as_json(&report) } else { as_text(&report) };
        let printed = writeln!(io::stdout(), "{text}");
        printed.map(|()| report.damage.is_empty()).map_err(|error| error.to_string())
    });
    match checked {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(reason) => {
            eprintln!("leveret: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn check(data_dir: &Path) -> Result<Report, String> {
    if !data_dir.is_dir() {
        return Err(format!("there is no data directory {}", data_dir.display()));
    }
    let _claim = DataDir::claim(data_dir).map_err(|error| error.to_string())?;
    let is_watched = io::stderr().is_terminal();
    let mut said = Instant::now();
    let mut progress = |report: &Report| {
        if is_watched && said.elapsed() >= PROGRESS_INTERVAL {
            said = Instant::now();
            let (messages, mib) = (report.messages, report.bytes >> 20);
            eprintln!("leveret: {messages} messages ({mib} MiB) so far");
        }
    };
    store::check(&store::directory_in(data_dir), &mut progress).map_err(|error| error.to_string())
}

fn as_json(report: &Report) -> String {
    serde_json::to_string_pretty(report).expect("numbers and strings become JSON")
}

fn as_text(report: &Report) -> String {
    let mut text = format!(
        "store: format {}, group {}\n\
         queues: {}\n\
         messages: {} ({} of them not settled), {} bytes\n\
         shared bodies: {}\n\
         definitions: {}, delayed messages: {}\n",
        report.format,
        report.group,
        report.queues,
        report.messages,
        report.live_messages,
        report.bytes,
        report.shared_bodies,
        report.definitions,
        report.delayed,
    );
    if report.damage.is_empty() {
        text.push_str("all is well");
        return text;
    }
    for damage in &report.damage {
        text.push_str("damaged: ");
        text.push_str(damage);
        text.push('\n');
    }
    text.push_str("restore a backup, or go on without what is damaged");
    text
}
