//! What the integration tests share: a broker process of their own, and a client that speaks raw
//! frames to it.
//!
//! Owns the life of the broker process (a temporary directory, the ready file, the log that is
//! shown when a test fails). It must not use the broker's library: the tests see what a client
//! sees. With `AMQP_URI` in the environment, tests that need a standard broker only run against
//! that one instead, which is how they are proven right against RabbitMQ; the others are skipped.

// Each test binary compiles this module for itself and uses only a part of it.
#![allow(dead_code, unused_imports)]

pub mod catalogue;
pub mod client;
pub mod notation;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

pub use client::{Client, Delivery, Handshake};

/// How long anything that must happen may take. Long, because it only matters when a test fails.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The configuration keys of the broker that tests set, in one place.
pub mod settings {
    /// A broker that gives a client this long to finish the handshake.
    pub fn handshake_timeout(millis: u64) -> String {
        format!("[limits]\nhandshake_timeout_ms = {millis}\n")
    }

    /// A broker that takes this many connections at once, each with a short handshake.
    pub fn connection_max(connections: u32, handshake_millis: u64) -> String {
        format!(
            "[limits]\nconnection_max = {connections}\nhandshake_timeout_ms = {handshake_millis}\n"
        )
    }

    /// A broker that takes messages up to this size.
    pub fn message_size_max(bytes: u64) -> String {
        format!("[limits]\nmax_message_size_bytes = {bytes}\n")
    }

    /// A broker that blocks publishers when it uses this much memory.
    pub fn memory_high_watermark(bytes: u64) -> String {
        format!("[limits]\nmemory_high_watermark_bytes = {bytes}\n")
    }

    /// A broker that blocks publishers when there is less room on its disk.
    pub fn disk_free_limit(bytes: u64) -> String {
        format!("[store]\ndisk_free_limit = {bytes}\n")
    }
}

/// Runs the broker as a child and kills it when this process closes the pipe, also when it is
/// killed itself. The exit code is the broker's.
pub const WATCHDOG: &str = "exec 3<&0; \"$@\" 3<&- & broker=$!; \
    { read -r _ <&3; kill -9 $broker; } & guard=$!; \
    wait $broker; code=$?; kill $guard; exit $code";

/// A broker to test: a process that this test started, or the one that `AMQP_URI` names.
pub struct Broker {
    /// Where it listens, as `host:port`.
    pub address: String,
    pub user: String,
    pub password: String,
    pub vhost: String,
    pid: Option<u32>,
    rabbitmq: OnceLock<bool>,
    data_dir: Option<PathBuf>,
    process: Option<Process>,
}

struct Process {
    watchdog: Mutex<Child>,
    dir: tempfile::TempDir,
    /// A data directory that goes with the broker.
    data_dir: Option<tempfile::TempDir>,
}

impl Broker {
    /// The broker named by `AMQP_URI`, else a new one with its default configuration.
    pub fn start() -> Broker {
        Self::external().unwrap_or_else(|| Self::spawn(""))
    }

    /// A new broker with this configuration file; none, and a message, when `AMQP_URI` is set.
    pub fn with_config(toml: &str) -> Option<Broker> {
        if std::env::var_os("AMQP_URI").is_some() {
            eprintln!("skipped: AMQP_URI is set and this test needs a broker of its own");
            return None;
        }
        Some(Self::spawn(toml))
    }

    /// The same without a disk, which messages could be moved to.
    pub fn in_memory(toml: &str) -> Option<Broker> {
        if std::env::var_os("AMQP_URI").is_some() {
            eprintln!("skipped: AMQP_URI is set and this test needs a broker of its own");
            return None;
        }
        Some(Self::spawn_with(toml, &[], &["--no-store"]))
    }

    /// A broker that runs elsewhere, such as in the test's own process.
    pub fn at(address: String) -> Broker {
        Broker {
            address,
            user: "guest".into(),
            password: "guest".into(),
            vhost: "/".into(),
            pid: None,
            rabbitmq: OnceLock::new(),
            data_dir: None,
            process: None,
        }
    }

    /// The broker named by `AMQP_URI`, if any.
    pub fn external() -> Option<Broker> {
        let uri = std::env::var("AMQP_URI").ok()?;
        let rest = uri.strip_prefix("amqp://").expect("AMQP_URI is amqp://user:password@host:port");
        let (login, place) = rest.split_once('@').unwrap_or(("guest:guest", rest));
        let (user, password) = login.split_once(':').expect("AMQP_URI has a user and a password");
        let (host, vhost) = place.split_once('/').unwrap_or((place, ""));
        let address = if host.contains(':') { host.into() } else { format!("{host}:5672") };
        Some(Broker {
            address,
            user: user.into(),
            password: password.into(),
            vhost: if vhost.is_empty() { "/".into() } else { vhost.replace("%2F", "/") },
            pid: None,
            rabbitmq: OnceLock::new(),
            data_dir: None,
            process: None,
        })
    }

    /// The broker named by `AMQP_URI`, else a new one with a data directory.
    pub fn start_with_data_dir() -> Broker {
        Self::external().unwrap_or_else(|| {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let data = dir.path().join("data");
            let mut broker = Self::on_data_dir(&data, "");
            broker.process.as_mut().expect("it was just started").data_dir = Some(dir);
            broker
        })
    }

    /// A new broker on this data directory, which stays when the broker goes.
    pub fn on_data_dir(data_dir: &Path, toml: &str) -> Broker {
        let data_dir = data_dir.to_str().expect("a path in UTF-8");
        let mut broker = Self::spawn_with(toml, &[], &["--data-dir", data_dir]);
        broker.data_dir = Some(data_dir.into());
        broker
    }

    /// A new broker on a disk of its own, a tmpfs of this size, and the directory where others find
    /// that; none, and a message, where nothing can be mounted. The disk goes with the broker.
    pub fn on_small_disk(bytes: u64, toml: &str) -> Option<(Broker, PathBuf)> {
        const UNSHARE: [&str; 6] = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"];
        let mut probe = Command::new(UNSHARE[0]);
        probe.args(&UNSHARE[1..]).arg("mount -t tmpfs tmpfs .").current_dir(std::env::temp_dir());
        if !probe.output().is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: this test mounts a disk of its own, and that is not permitted");
            return None;
        }
        let mount =
            format!("mkdir disk && mount -t tmpfs -o size={bytes} tmpfs disk && exec \"$@\"");
        let wrapper = [&UNSHARE[..], &[&mount, "sh"]].concat();
        let broker = Self::spawn_with(toml, &wrapper, &["--data-dir", "disk/data"]);
        let disk = format!("/proc/{}/cwd/disk", broker.pid.expect("it was just started"));
        Some((broker, disk.into()))
    }

    /// Imports definitions: with the reference's tool, which `AMQP_CTL` names, or ours. The error
    /// is what the tool printed.
    pub fn import(&self, definitions: &str) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), definitions).expect("it can be written");
        self.definitions("import", "import_definitions", file.path())
    }

    /// All definitions, as JSON.
    pub fn export(&self) -> serde_json::Value {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        self.definitions("export", "export_definitions", file.path()).expect("an export");
        let text = fs::read(file.path()).expect("the tool has written it");
        serde_json::from_slice(&text).expect("JSON")
    }

    fn definitions(&self, ours: &str, theirs: &str, file: &Path) -> Result<String, String> {
        let output = match &self.data_dir {
            Some(data_dir) => Command::new(env!("CARGO_BIN_EXE_leveret"))
                .args(["definitions", ours])
                .arg(file)
                .arg("--data-dir")
                .arg(data_dir)
                .output(),
            None => {
                let ctl = std::env::var("AMQP_CTL").expect("AMQP_CTL is set when AMQP_URI is");
                let mut words = ctl.split_whitespace();
                let program = words.next().expect("AMQP_CTL names a program");
                Command::new(program).args(words).args(["-q", theirs]).arg(file).output()
            }
        };
        let output = output.expect("the tool runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let all = text(&output.stdout) + &text(&output.stderr);
        if output.status.success() { Ok(all) } else { Err(all) }
    }

    /// In a directory of its own, which goes with it.
    fn spawn(toml: &str) -> Broker {
        Self::spawn_with(toml, &[], &[])
    }

    /// `wrapper` is a command that runs its arguments in its own place.
    fn spawn_with(toml: &str, wrapper: &[&str], store: &[&str]) -> Broker {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ready = dir.path().join("ready.json");
        let mut command = Command::new("sh");
        command.args(["-c", WATCHDOG, "sh"]).args(wrapper);
        command.args([env!("CARGO_BIN_EXE_leveret"), "serve"]).args(store);
        command.args(["--amqp-listen", "127.0.0.1:0", "--ready-file"]).arg(&ready);
        if !toml.is_empty() {
            let config = dir.path().join("leveret.toml");
            fs::write(&config, toml).expect("the configuration file can be written");
            command.arg("--config").arg(&config);
        }
        let log = File::create(dir.path().join("log")).expect("the log can be written");
        command.current_dir(dir.path()).stdin(Stdio::piped());
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        let watchdog = Mutex::new(command.spawn().expect("sh starts"));
        let process = Process { watchdog, dir, data_dir: None };
        let started = process.wait_until_ready(&ready);
        Broker {
            address: started["amqp"][0].as_str().expect("an address").into(),
            user: "guest".into(),
            password: "guest".into(),
            vhost: "/".into(),
            pid: Some(started["pid"].as_u64().expect("a process id") as u32),
            rabbitmq: OnceLock::from(false),
            data_dir: None,
            process: Some(process),
        }
    }

    /// Whether this is RabbitMQ (a reference run), whose answers differ in marked places.
    pub fn is_rabbitmq(&self) -> bool {
        *self.rabbitmq.get_or_init(|| {
            let mut client = Client::dial(self);
            client.send_bytes(client::PROTOCOL_HEADER);
            let start = client.expect("0 connection.start");
            let platform = start["server_properties"].entry("platform").map(notation::Value::text);
            platform.is_some_and(|text| text.starts_with("Erlang"))
        })
    }

    /// The broker's process, when this test started it.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Resident memory of the broker's process in bytes; 0 where `/proc` has no such figure.
    pub fn resident_bytes(&self) -> u64 {
        let Some(pid) = self.pid else { return 0 };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// Whether the process that this test started still runs (an external broker always does).
    pub fn is_running(&self) -> bool {
        self.process.as_ref().is_none_or(|process| {
            matches!(process.watchdog.lock().expect("not poisoned").try_wait(), Ok(None))
        })
    }

    /// What the broker has logged so far.
    pub fn log(&self) -> String {
        self.process.as_ref().map_or(String::new(), Process::log)
    }

    /// Sends a signal by its name and returns the exit code.
    pub fn signal(&self, name: &str) -> Option<i32> {
        let pid = self.pid.expect("only a process of this test is signalled").to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status();
        assert!(sent.expect("kill runs").success());
        let process = self.process.as_ref().expect("a pid comes with a process");
        let mut code = None;
        wait_until("the broker to exit", || {
            let status = process.watchdog.lock().expect("not poisoned").try_wait();
            code = status.expect("the watchdog is our child").map(|status| status.code());
            code.is_some()
        });
        code.flatten()
    }
}

impl Process {
    fn wait_until_ready(&self, ready: &PathBuf) -> serde_json::Value {
        let end = Instant::now() + DEADLINE;
        loop {
            let written = fs::read(ready).ok();
            if let Some(value) = written.and_then(|text| serde_json::from_slice(&text).ok()) {
                return value;
            }
            let exited = self.watchdog.lock().expect("not poisoned").try_wait();
            if !matches!(exited, Ok(None)) || Instant::now() > end {
                panic!("the broker did not become ready ({exited:?}); its log:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn log(&self) -> String {
        let bytes = fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.len().saturating_sub(8000);
            let tail = (tail..log.len()).find(|&i| log.is_char_boundary(i)).unwrap_or(log.len());
            eprintln!("--- the broker's log ---\n{}", &log[tail..]);
        }
        let watchdog = self.watchdog.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        drop(watchdog.stdin.take());
        let _ = watchdog.wait();
    }
}

/// Waits for something that has no event to wait for, such as another connection's end.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A name that no other test uses, also not one of an earlier run against the same broker.
pub fn unique(what: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let run = now.expect("after 1970").as_nanos() as u64 % 1_000_000_007;
    // All of one length, for the tests that cut or count what was encoded with them.
    format!("{what}-{run:08x}-{:05}", NEXT.fetch_add(1, Ordering::Relaxed))
}
