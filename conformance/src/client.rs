//! The clients: which there are, and how each one is run against a broker.
//!
//! A client is a program that takes the URI from AMQP_URI and prints one line per check; this
//! module only starts it and keeps what it printed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::Command;

use crate::Outcome;
use crate::environment::{Environment, lapin_client, sources};
use crate::process::{self, End};
use crate::report::{CHECKS, Check, FRAMEWORK_CHECKS};

const CLIENT_TIME: Duration = Duration::from_secs(180);
const TAIL_LINES: usize = 40;

/// One client library, or a framework upon one, and its program.
#[derive(Clone, PartialEq)]
pub(crate) struct Client {
    /// Its name, which the report's column has.
    pub(crate) name: &'static str,
    /// The language it is written in, for --only.
    pub(crate) language: &'static str,
    /// What must be prepared before it can run.
    pub(crate) environment: Environment,
    /// What it must answer for.
    pub(crate) checks: &'static [Check],
}

const fn client(name: &'static str, language: &'static str, environment: Environment) -> Client {
    Client { name, language, environment, checks: CHECKS }
}

const fn framework(name: &'static str, language: &'static str, environment: Environment) -> Client {
    Client { name, language, environment, checks: FRAMEWORK_CHECKS }
}

/// Every client, in the order of the report.
pub(crate) const CLIENTS: [Client; 8] = [
    client("pika", "python", Environment::Python),
    client("aio-pika", "python", Environment::Python),
    client("amqplib", "node", Environment::Node),
    client("amqp091-go", "go", Environment::Go),
    client("amqp-client", "java", Environment::Java),
    client("lapin", "rust", Environment::Rust),
    client("amqp-tools", "c", Environment::AmqpTools),
    framework("celery", "python", Environment::Python),
];

/// Where a client's program and libraries are, and where its outputs go.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) build: PathBuf,
    pub(crate) output: PathBuf,
}

/// The folder of one run's outputs. It is this run's alone: a line that another run's client
/// wrote must not count here.
pub(crate) struct Output(TempDir);

impl Output {
    /// Makes the folder.
    pub(crate) fn new(build: &Path) -> Outcome<Self> {
        let folder = TempDir::with_prefix_in("output-", build);
        folder.map(Self).map_err(|error| format!("cannot make a folder for outputs: {error}"))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Keeps the outputs of a run that failed, and removes them otherwise.
    pub(crate) fn finish(self, has_failed: bool) {
        if has_failed {
            println!("\nall outputs are in {}", self.0.keep().display());
        }
    }
}

/// What a client's run left: its standard output, and why it ended badly, if it did.
pub(crate) struct Transcript {
    pub(crate) stdout: String,
    pub(crate) fault: Option<String>,
    /// The end of its outputs, to be shown if a check failed.
    pub(crate) tail: String,
}

/// The clients that the names mean, or all.
pub(crate) fn select(names: &[String]) -> Outcome<Vec<Client>> {
    for name in names {
        if !CLIENTS.iter().any(|one| one.is_called(name)) {
            let known: Vec<_> = CLIENTS.iter().map(|one| one.name).collect();
            let languages = "python, node, go, java, rust, c";
            let known = known.join(", ");
            return Err(format!(
                "no client {name:?}; there are {known}, and as languages {languages}"
            ));
        }
    }
    let wanted = |one: &&Client| names.is_empty() || names.iter().any(|name| one.is_called(name));
    Ok(CLIENTS.iter().filter(wanted).cloned().collect())
}

impl Client {
    fn is_called(&self, name: &str) -> bool {
        name == self.name || name == self.language
    }

    /// Runs the client against the broker.
    pub(crate) async fn run(&self, uri: &str, place: &Place) -> Transcript {
        let stdout = place.output.join(format!("{}.stdout", self.name));
        let stderr = place.output.join(format!("{}.stderr", self.name));
        let mut command = match self.command(&place.build) {
            Ok(command) => command,
            Err(reason) => return Transcript::failed(reason),
        };
        command.env("AMQP_URI", uri);
        let fault = match process::run(command, CLIENT_TIME, &stdout, &stderr).await {
            Ok(End::Exit(status)) if status.success() => None,
            Ok(End::Exit(status)) => Some(format!("ended with {status}")),
            Ok(End::Deadline) => Some(format!("killed after {CLIENT_TIME:?}")),
            Err(error) => Some(format!("could not be started: {error}")),
        };
        let printed = std::fs::read(&stdout).unwrap_or_default();
        let mut tail = process::tail(&stderr, TAIL_LINES);
        tail.push_str(&process::tail(&stdout, TAIL_LINES));
        Transcript { stdout: String::from_utf8_lossy(&printed).into_owned(), fault, tail }
    }

    fn command(&self, build: &Path) -> Outcome<Command> {
        let (sources, build) = (sources(self.environment), self.environment.folder(build));
        let command = match self.environment {
            Environment::Python => {
                let script = format!("{}_client.py", self.name.replace('-', "_"));
                let mut command = Command::new(build.join("venv/bin/python"));
                // Without -B it would leave its compiled modules beside the sources.
                command.arg("-B").arg(sources.join(script));
                command
            }
            Environment::Node => program("node", &build.join("client.mjs")),
            Environment::Go => Command::new(build.join("client")),
            Environment::Java => {
                let (classes, libraries) = (build.join("classes"), build.join("lib"));
                let mut command = Command::new("java");
                let path = format!("{}:{}/*", classes.display(), libraries.display());
                command.args(["-cp", &path, "conformance.Client"]);
                command
            }
            Environment::Rust => Command::new(lapin_client()?),
            Environment::AmqpTools => program("sh", &sources.join("client.sh")),
        };
        Ok(command)
    }
}

impl Transcript {
    fn failed(fault: String) -> Self {
        Self { stdout: String::new(), fault: Some(fault), tail: String::new() }
    }
}

fn program(name: &str, script: &Path) -> Command {
    let mut command = Command::new(name);
    command.arg(script);
    command
}
