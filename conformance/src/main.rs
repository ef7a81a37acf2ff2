//! Runs real AMQP clients, in six languages, against a broker, and reports what each one saw.
//!
//! Owns the command line and the order of the work. It speaks no AMQP itself: whatever it knows of
//! the broker it learns from the clients, so that the verdict is theirs.

mod broker;
mod client;
mod environment;
mod process;
mod report;

use std::fs::{File, TryLockError};
use std::num::NonZeroU8;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::broker::Broker;
use crate::client::{Client, Output, Place};
use crate::environment::Environment;
use crate::report::{Report, Verdict};

/// How a step of the runner ends; the text says what happened and what to do.
pub(crate) type Outcome<T = ()> = Result<T, String>;

const EXAMPLES: &str = "\
Examples:
  cargo run -p conformance -- --broker target/release/leveret
      start that broker on a free port, run every client against it, stop it
  cargo run -p conformance -- --uri amqp://guest:guest@127.0.0.1:5672 --only python,go
      run the Python and Go clients against a broker that runs already, of any make
  cargo run -p conformance -- --require-all
      as CI does: a client whose toolchain is missing is a failure
  cargo run -p conformance -- --list
      the clients, their libraries and the checks

The URI's user must be allowed to configure, write and read everything in its virtual host; the
check of a wrong password logs in as the user guest.";

/// Runs real AMQP clients in six languages against a broker.
#[derive(Parser)]
#[command(name = "conformance", after_help = EXAMPLES)]
struct Options {
    /// The leveret binary to start for the run [default: target/release/leveret]
    #[arg(long, value_name = "PATH", conflicts_with = "uri")]
    broker: Option<PathBuf>,
    /// A running broker to use instead
    #[arg(long)]
    uri: Option<String>,
    /// Only these clients, by language or by library
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    only: Vec<String>,
    /// Fail when a client's toolchain is missing, instead of skipping it
    #[arg(long)]
    require_all: bool,
    /// How many clients run at a time
    #[arg(long, value_name = "N", default_value = "2")]
    jobs: NonZeroU8,
    /// Where the clients are prepared [default: conformance/ in Cargo's target folder]
    #[arg(long, value_name = "PATH")]
    build_dir: Option<PathBuf>,
    /// List the clients and the checks, and run nothing
    #[arg(long)]
    list: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        report::print_list();
        return ExitCode::SUCCESS;
    }
    let mut terminate = signal(SignalKind::terminate()).expect("a process may watch its signals");
    // Leaving the run early drops it, and with it the broker and the clients that it started.
    let outcome = tokio::select! {
        outcome = run(&options) => outcome,
        _ = tokio::signal::ctrl_c() => Err("interrupted".to_owned()),
        _ = terminate.recv() => Err("terminated".to_owned()),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(reason) => {
            eprintln!("conformance: {reason}");
            ExitCode::from(2)
        }
    }
}

/// Does the whole run; whether nothing failed.
async fn run(options: &Options) -> Outcome<bool> {
    let clients = client::select(&options.only)?;
    let build = build_folder(options)?;
    let mut report = Report::new(clients.clone(), options.require_all);
    let mut ready = Vec::new();
    let alone = lock(&build).await?;
    for environment in Environment::ALL {
        let wanted: Vec<_> = clients.iter().filter(|one| one.environment == environment).collect();
        if wanted.is_empty() {
            continue;
        }
        match environment.prepare(&build).await {
            Ok(()) => ready.extend(wanted),
            Err(obstacle) => wanted.iter().for_each(|one| report.set_aside(one, &obstacle)),
        }
    }
    drop(alone);
    let output = Output::new(&build)?;
    if !ready.is_empty() {
        let broker = match &options.uri {
            Some(uri) => Broker::running(uri),
            None => Broker::start(&broker_binary(options)?).await?,
        };
        println!("broker   {}", broker.uri());
        let place = Place { build, output: output.path().to_owned() };
        run_clients(ready, &broker, &place, options.jobs, &mut report).await;
        if let Err(fault) = broker.stop(report.has_failed()) {
            report.blame_broker(fault);
        }
    }
    output.finish(report.has_failed());
    Ok(report.print())
}

/// Keeps other runs from preparing the same clients at the same time.
async fn lock(build: &Path) -> Outcome<File> {
    let path = build.join("lock");
    let complain = |error| format!("cannot lock {}: {error}", path.display());
    let file = File::create(&path).map_err(complain)?;
    let mut has_said = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(complain(error)),
            Err(TryLockError::WouldBlock) if has_said => {}
            Err(TryLockError::WouldBlock) => println!("prepare  waiting for another run"),
        }
        has_said = true;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Runs the clients, so many at a time, and adds what they say to the report.
async fn run_clients(
    clients: Vec<&Client>,
    broker: &Broker,
    place: &Place,
    jobs: NonZeroU8,
    report: &mut Report,
) {
    let places = Arc::new(tokio::sync::Semaphore::new(usize::from(jobs.get())));
    let mut running = JoinSet::new();
    for one in clients {
        let (one, place, uri) = (one.clone(), place.clone(), broker.uri().to_owned());
        let places = Arc::clone(&places);
        running.spawn(async move {
            let _place = places.acquire_owned().await.expect("the semaphore is never closed");
            println!("run      {}", one.name);
            let verdict = Verdict::new(one.run(&uri, &place).await, one.checks);
            (one, verdict)
        });
    }
    while let Some(finished) = running.join_next().await {
        let (one, verdict) = finished.expect("running a client does not panic");
        println!("done     {} ({})", one.name, verdict.summary());
        report.add(&one, verdict);
    }
}

/// Cargo's target folder, as the place of this very program shows it.
fn target_folder() -> Outcome<PathBuf> {
    let program = std::env::current_exe().map_err(|error| format!("where am I? {error}"))?;
    let folder = program.parent().and_then(Path::parent);
    folder.map(Path::to_owned).ok_or_else(|| format!("{} has no folder", program.display()))
}

fn build_folder(options: &Options) -> Outcome<PathBuf> {
    let folder = match &options.build_dir {
        Some(folder) => folder.clone(),
        None => target_folder()?.join("conformance"),
    };
    let complain = |error| format!("cannot use the build folder {}: {error}", folder.display());
    std::fs::create_dir_all(&folder).map_err(complain)?;
    folder.canonicalize().map_err(complain)
}

fn broker_binary(options: &Options) -> Outcome<PathBuf> {
    let binary = match &options.broker {
        Some(binary) => binary.clone(),
        None => target_folder()?.join("release").join("leveret"),
    };
    binary.canonicalize().map_err(|error| {
        format!(
            "cannot use the broker {}: {error}; build it with `make build`, or name \
             another with --broker, or a running one with --uri",
            binary.display()
        )
    })
}
