//! The `leveret` program: command line, logs, signals and exit codes.
//!
//! Owns the process: what its arguments mean, in which order a start takes place, how it stops
//! and with which code it exits. It must not know the protocol; the library does the work.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use leveret::StartError;
use leveret::config::{Config, Log};
use leveret::data_dir::DataDir;
use leveret::definitions_command;
use leveret::net::{Control, Server};
use leveret::perf;
use leveret::provision;
use leveret::ready_file::ReadyFile;
use leveret::store_command;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tracing::{info, warn};

/// A stop takes at most this long from the signal on; the server itself needs less.
const STOP_TIMEOUT: Duration = Duration::from_millis(4_500);

/// What is left of the 5 seconds that a supervisor is promised, for threads to end.
const THREADS_TIMEOUT: Duration = Duration::from_millis(250);

const EXAMPLES: &str = "\
Examples:
  leveret                                        serve on port 5672, keep everything in ./data
  leveret --config config/leveret.toml           with settings from a file
  leveret --no-store --amqp-listen 127.0.0.1:0 --ready-file ready.json
                                                 for a test: no disk, any free port
  leveret definitions import definitions.json    bring users, queues and policies from RabbitMQ
  leveret store check data                       verify what a stopped broker has stored
  leveret perf --help                            measure a broker

Environment:
  LEVERET_LOG   what is logged, such as debug or info,leveret::net=debug (log.filter in the file)

Exit codes: 0 stopped by SIGTERM or SIGINT, 1 cannot start, 2 wrong arguments or configuration";

/// A message broker that speaks AMQP 0-9-1 and behaves as RabbitMQ does.
#[derive(Debug, Parser)]
#[command(name = "leveret", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the broker (this is what happens without a subcommand, too)
    #[command(after_help = EXAMPLES)]
    Serve(ServeArguments),
    /// Import or export users, vhosts, policies, queues and more
    Definitions(definitions_command::Args),
    /// Verify what a stopped broker has stored
    Store(store_command::Args),
    /// Measure a broker's speed
    Perf(Box<perf::Args>),
}

#[derive(clap::Args, Clone, Debug, Default, PartialEq)]
struct ServeArguments {
    /// Read settings from this TOML file; config/leveret.toml documents them all
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keep what must survive in this directory [default: ./data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Listen for AMQP clients here; may be repeated, port 0 picks a free port [default: [::]:5672]
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_address)]
    amqp_listen: Vec<SocketAddr>,
    /// Touch no disk: nothing survives the broker
    #[arg(long, conflicts_with = "data_dir")]
    no_store: bool,
    /// Once clients can connect, write a JSON object with pid, addresses and version to this
    /// file; it is removed at exit
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

fn main() -> ExitCode {
    // clap prints its own errors and exits with 2.
    let arguments = Arguments::parse();
    let serve_arguments = match arguments.command {
        None => arguments.serve,
        Some(Command::Serve(serve)) => serve,
        Some(Command::Definitions(args)) => return definitions_command::run(args),
        Some(Command::Store(args)) => return store_command::run(args),
        Some(Command::Perf(args)) => return perf::run(&args),
    };
    match serve(serve_arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leveret: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Starts the broker and returns when it has stopped. Everything that can be wrong with what the
/// user wrote is found before anything is created.
fn serve(arguments: ServeArguments) -> Result<(), StartError> {
    let config = checked_config(&arguments)?;
    start_log(&config)?;
    let ready_file = arguments.ready_file.as_deref().map(ReadyFile::claim).transpose()?;
    // Held until the end: it is the lock against a second broker on the same directory.
    let data_dir = if arguments.no_store { None } else { Some(open_data_dir(&config)?) };
    if config.auth.is_open_to_all() {
        warn!(
            user = config.auth.default_user,
            "anyone who reaches the port can log in with the well-known password: set \
             auth.default_password, or put the user on auth.loopback_users"
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| StartError::System { action: "start threads", source })?;
    let served = runtime.block_on(run(Arc::new(config), data_dir.is_some(), ready_file));
    runtime.shutdown_timeout(THREADS_TIMEOUT);
    served
}

/// The file's settings, with the command line's on top.
fn checked_config(arguments: &ServeArguments) -> Result<Config, StartError> {
    let mut config = match &arguments.config {
        None => Config::default(),
        Some(path) => Config::load(path)?,
    };
    if let Some(path) = &arguments.data_dir {
        config.data_dir.clone_from(path);
    }
    if !arguments.amqp_listen.is_empty() {
        config.listeners.amqp.clone_from(&arguments.amqp_listen);
    }
    Ok(config)
}

fn start_log(config: &Config) -> Result<(), StartError> {
    let filter = match std::env::var("LEVERET_LOG") {
        Ok(filter) if !filter.is_empty() => filter,
        _ => config.log.filter.clone(),
    };
    let parsed =
        Log::parse_filter(&filter).map_err(|reason| StartError::LogFilter { filter, reason })?;
    tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}

fn open_data_dir(config: &Config) -> Result<DataDir, StartError> {
    let data_dir = DataDir::open(&config.data_dir)?;
    let identity = data_dir.identity();
    let (node_id, boots) = (&identity.node_id, identity.boots);
    info!(path = %config.data_dir.display(), %node_id, boots, "data directory opened");
    Ok(data_dir)
}

/// Fills the broker, binds, announces, serves and stops.
async fn run(
    config: Arc<Config>,
    has_data_dir: bool,
    mut ready_file: Option<ReadyFile>,
) -> Result<(), StartError> {
    // Before the ready file: whoever reads it may send a signal at once.
    let signals = Signals::subscribe()?;
    let data_dir = has_data_dir.then_some(config.data_dir.as_path());
    let fill = |broker: &_, drive: &mut _| provision::fill(broker, &config, data_dir, drive);
    let store_dir = data_dir.map(provision::store_dir);
    let mut server = Server::bind_filled(config.clone(), store_dir.as_deref(), fill).await?;
    let broker = server.broker().clone();
    if let Some(data_dir) = data_dir {
        server = with_control(server.watching_disk(data_dir), data_dir);
    }
    let addresses = server.addresses();
    for address in &addresses {
        info!(%address, version = env!("CARGO_PKG_VERSION"), "listening for AMQP");
    }
    if let Some(file) = &mut ready_file {
        file.announce(&addresses)?;
    }
    serve_until_signal(server, signals).await;
    broker.close_store();
    info!("stopped");
    Ok(())
}

/// Lets `leveret definitions` reach the broker. Without that it serves its clients all the same.
fn with_control(server: Server, data_dir: &Path) -> Server {
    let path = data_dir.join(definitions_command::SOCKET);
    match Control::bind(&path) {
        Ok(control) => server.with_control(control),
        Err(error) => {
            let path = path.display();
            warn!("no definitions can be imported while this runs: cannot open {path}: {error}");
            server
        }
    }
}

/// Serves until a signal comes and all connections are closed, or [`STOP_TIMEOUT`] has passed.
async fn serve_until_signal(server: Server, mut signals: Signals) {
    let stopping = Notify::new();
    let shutdown = async {
        let name = signals.recv().await;
        info!(signal = name, "stopping");
        stopping.notify_one();
    };
    let overdue = async {
        stopping.notified().await;
        tokio::time::sleep(STOP_TIMEOUT).await;
    };
    tokio::select! {
        () = server.run(shutdown) => {}
        () = overdue => warn!("some connections did not close in time and are cut"),
    }
}

/// The signals that stop the broker.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn subscribe() -> Result<Self, StartError> {
        let subscribe = |kind| {
            signal(kind).map_err(|source| StartError::System { action: "watch signals", source })
        };
        Ok(Self {
            terminate: subscribe(SignalKind::terminate())?,
            interrupt: subscribe(SignalKind::interrupt())?,
        })
    }

    /// The name of the next signal.
    async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "must be an IP address and a port, such as 127.0.0.1:5672, [::]:5672 or 0.0.0.0:0"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn serve_is_the_default() {
        let bare = parse("leveret --data-dir d --amqp-listen 127.0.0.1:0 --amqp-listen [::1]:1");
        let named =
            parse("leveret serve --data-dir d --amqp-listen 127.0.0.1:0 --amqp-listen [::1]:1");
        let Some(Command::Serve(named)) = named.expect("valid").command else {
            panic!("serve was named");
        };
        let bare = bare.expect("valid");
        assert!(bare.command.is_none());
        assert_eq!(bare.serve, named);
        assert_eq!(named.amqp_listen.len(), 2);
    }

    #[test]
    fn mistakes_exit_with_2_and_name_the_option() {
        for line in [
            "leveret --amqp-listen 5672",
            "leveret --amqp-listen localhost:5672",
            "leveret --no-store --data-dir d",
            "leveret --no-such-option",
            "leveret no-such-command",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
        let error = parse("leveret --amqp-listen 5672").expect_err("no address").to_string();
        assert!(error.contains("--amqp-listen") && error.contains("127.0.0.1:5672"), "{error}");
    }

    #[test]
    fn the_command_line_wins_over_the_defaults() {
        let arguments = parse("leveret --data-dir d --amqp-listen 127.0.0.1:7").expect("valid");
        let config = checked_config(&arguments.serve).expect("valid");
        assert_eq!(config.data_dir, PathBuf::from("d"));
        assert_eq!(config.listeners.amqp, vec![SocketAddr::from(([127, 0, 0, 1], 7))]);
        assert_eq!(config.limits, Config::default().limits);
    }
}
