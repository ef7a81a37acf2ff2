//! A broker that is killed and started again on the same data directory.
//!
//! Owns the process, its directory, and the ways to end it. It must not use the broker's library,
//! nor know what the broker is to keep.
//!
//! With `AMQP_URI` in the environment, another broker stands in: `AMQP_KILL` is the command that
//! kills it, `AMQP_START` starts it and returns when it serves.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::power::Power;
use super::random::Random;
use crate::support::{Broker, WATCHDOG};

/// How long a start may take: many syncs, on a disk that other brokers keep busy.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// How the broker's machine fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// SIGKILL: what was written stays.
    Kill,
    /// The power goes: what was not synced may be gone, in part.
    PowerLoss,
    /// Nothing is stored in the first place: a run must find losses, or it looks at nothing.
    NoStore,
}

impl Failure {
    /// What its tests are called.
    pub fn name(self) -> &'static str {
        match self {
            Failure::Kill => "kill",
            Failure::PowerLoss => "power_loss",
            Failure::NoStore => "no_store",
        }
    }
}

/// See the module's description.
pub struct Node {
    dir: tempfile::TempDir,
    config: String,
    power: Option<Power>,
    has_store: bool,
    process: Option<Process>,
    external: Option<Broker>,
    /// Where it listens while it runs.
    pub address: String,
    starts: u32,
}

struct Process {
    watchdog: Child,
    pid: Option<u32>,
}

impl Node {
    /// A node that was never started, with these settings.
    pub fn new(failure: Failure, config: &str) -> Node {
        let dir = tempfile::Builder::new().prefix("crash-").tempdir().expect("a directory");
        let data = dir.path().join("data");
        fs::create_dir(&data).expect("a new directory");
        let power = (failure == Failure::PowerLoss).then(|| Power::new(dir.path(), &data));
        Node {
            dir,
            config: config.to_owned(),
            power,
            has_store: failure != Failure::NoStore,
            process: None,
            external: Broker::external(),
            address: String::new(),
            starts: 0,
        }
    }

    /// Whether another broker stands in.
    pub fn is_external() -> bool {
        std::env::var_os("AMQP_URI").is_some()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Starts the broker and waits until it serves.
    pub fn start(&mut self) {
        if let Some(external) = &self.external {
            run("AMQP_START");
            self.address = external.address.clone();
            return;
        }
        let ready = self.spawn();
        let end = Instant::now() + START_DEADLINE;
        let started = loop {
            let written = fs::read(&ready).ok();
            if let Some(value) =
                written.and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok())
            {
                break value;
            }
            if !self.is_running() || Instant::now() > end {
                panic!("the broker did not become ready; its log:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        self.address = started["amqp"][0].as_str().expect("an address").to_owned();
        let process = self.process.as_mut().expect("it was just started");
        process.pid = Some(started["pid"].as_u64().expect("a process id") as u32);
    }

    /// Starts the broker and kills it while it is starting.
    pub fn start_and_kill(&mut self, after: Duration, random: &mut Random) {
        if self.external.is_some() {
            return;
        }
        self.spawn();
        std::thread::sleep(after);
        self.kill(random);
    }

    fn spawn(&mut self) -> PathBuf {
        assert!(self.process.is_none(), "it runs already");
        self.starts += 1;
        let dir = self.dir.path();
        let ready = dir.join(format!("ready-{}.json", self.starts));
        let config = dir.join("leveret.toml");
        fs::write(&config, &self.config).expect("the configuration can be written");
        let log = File::options().create(true).append(true).open(dir.join("log")).expect("a log");
        let mut command = Command::new("sh");
        command.args(["-c", WATCHDOG, "sh", "env"]);
        if let Some(power) = &self.power {
            command.args(power.environment());
        }
        command.args([env!("CARGO_BIN_EXE_leveret"), "serve", "--amqp-listen", "127.0.0.1:0"]);
        if self.has_store {
            command.arg("--data-dir").arg(self.data_dir());
        } else {
            command.arg("--no-store");
        }
        command.arg("--config").arg(&config).arg("--ready-file").arg(&ready);
        command.current_dir(dir).stdin(Stdio::piped());
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        let watchdog = command.spawn().expect("sh starts");
        self.process = Some(Process { watchdog, pid: None });
        ready
    }

    /// Whether the broker has not ended by itself.
    pub fn is_running(&mut self) -> bool {
        self.external.is_some()
            || self.process.as_mut().is_some_and(|p| matches!(p.watchdog.try_wait(), Ok(None)))
    }

    /// Kills the broker and, where the power goes, takes back what was not synced.
    pub fn kill(&mut self, random: &mut Random) {
        if self.external.is_some() {
            run("AMQP_KILL");
            return;
        }
        let mut process = self.process.take().expect("it runs");
        // The watchdog kills the broker when this end is closed, and waits for its end.
        drop(process.watchdog.stdin.take());
        process.watchdog.wait().expect("the watchdog is our child");
        if let Some(power) = &self.power {
            power.take_back(random);
        }
    }

    /// Stops the broker as an operator does; false when it does not end as it should.
    pub fn stop(&mut self) -> bool {
        if self.external.is_some() {
            return true;
        }
        let mut process = self.process.take().expect("it runs");
        let pid = process.pid.expect("it is ready").to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.expect("kill runs").success());
        // Waiting closes the pipe, upon which the watchdog would kill: it is held until the end.
        let _pipe = process.watchdog.stdin.take();
        process.watchdog.wait().expect("the watchdog is our child").code() == Some(0)
    }

    /// What all runs of the broker have logged.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Leaves the directory for whoever looks into a failure.
    pub fn keep(mut self) -> PathBuf {
        drop(self.process.take());
        self.dir.disable_cleanup(true);
        self.dir.path().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// Runs the command that an environment variable holds.
fn run(variable: &str) {
    let command = std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set"));
    let status = Command::new("sh").args(["-c", &command]).stdin(Stdio::null()).status();
    assert!(status.expect("sh starts").success(), "{variable} failed: {command}");
}
