//! The environments: what each language needs on the machine and in the build folder.
//!
//! Preparing is idempotent. A stamp holds a hash of the manifests and of the toolchain's version,
//! so that a second run prepares nothing. Nothing is written beside the sources.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::Command;

use crate::process::{self, End};
use crate::{Outcome, target_folder};

const PROBE_TIME: Duration = Duration::from_secs(30);
const STEP_TIME: Duration = Duration::from_secs(600);
const TAIL_LINES: usize = 40;
const STAMP: &str = "stamp";

/// What a client needs before it can run. The Python clients share one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Environment {
    Python,
    Node,
    Go,
    Java,
    Rust,
    AmqpTools,
}

/// Why a client cannot run.
#[derive(Clone)]
pub(crate) enum Obstacle {
    /// The machine lacks its toolchain; the text says what to install.
    Missing(String),
    /// Its preparation failed; the text says how.
    Broken(String),
}

/// One program that an environment needs, and a call that succeeds if it can be used.
struct Tool {
    program: &'static str,
    probe: &'static [&'static str],
}

const fn tool(program: &'static str, probe: &'static [&'static str]) -> Tool {
    Tool { program, probe }
}

impl Environment {
    /// Every environment, in the order in which they are prepared.
    pub(crate) const ALL: [Self; 6] =
        [Self::Python, Self::Node, Self::Go, Self::Java, Self::Rust, Self::AmqpTools];

    /// The name of its folders, of sources and of builds.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Node => "node",
            Self::Go => "go",
            Self::Java => "java",
            Self::Rust => "rust",
            Self::AmqpTools => "c",
        }
    }

    /// Its folder in the build folder.
    pub(crate) fn folder(self, build: &Path) -> PathBuf {
        build.join(self.name())
    }

    fn tools(self) -> &'static [Tool] {
        const PYTHON: &str = "import sys, venv, ensurepip; print(sys.version); \
            sys.exit(sys.version_info < (3, 11))";
        const NODE: &str = "console.log(process.version); \
            process.exit(parseInt(process.versions.node) >= 18 ? 0 : 1)";
        const AMQP_TOOLS: &[Tool] = &[
            tool("amqp-publish", &["--help"]),
            tool("amqp-consume", &["--help"]),
            tool("amqp-get", &["--help"]),
            tool("amqp-declare-queue", &["--help"]),
            tool("amqp-delete-queue", &["--help"]),
            tool("timeout", &["--version"]),
        ];
        const JAVA: &[Tool] = &[
            tool("java", &["-version"]),
            tool("javac", &["--release", "11", "-version"]),
            tool("mvn", &["--version"]),
        ];
        match self {
            Self::Python => const { &[tool("python3", &["-c", PYTHON])] },
            Self::Node => const { &[tool("node", &["-e", NODE]), tool("npm", &["--version"])] },
            Self::Go => const { &[tool("go", &["version"])] },
            Self::Java => JAVA,
            Self::Rust => const { &[tool("cargo", &["--version"])] },
            Self::AmqpTools => AMQP_TOOLS,
        }
    }

    /// What to install when a tool is missing.
    fn remedy(self) -> &'static str {
        match self {
            Self::Python => "install Python 3.11 or newer with venv (Debian: python3-venv)",
            Self::Node => "install Node.js 18 or newer with npm (Debian: nodejs npm)",
            Self::Go => "install Go 1.20 or newer (Debian: golang-go)",
            Self::Java => "install a JDK 11 or newer and Maven (Debian: default-jdk maven)",
            Self::Rust => "install Cargo, as for building the broker",
            Self::AmqpTools => "install rabbitmq-c's tools (Debian: amqp-tools)",
        }
    }

    /// The sources that a new build is due to when they change.
    fn manifests(self) -> &'static [&'static str] {
        match self {
            Self::Python => &["requirements.txt"],
            Self::Node => &["package.json", "package-lock.json"],
            Self::Go => &["go.mod", "go.sum", "main.go", "checks.go", "queues.go"],
            Self::Java => &[
                "pom.xml",
                "src/main/java/conformance/Checks.java",
                "src/main/java/conformance/Client.java",
                "src/main/java/conformance/Queues.java",
                "src/main/java/conformance/Routing.java",
                "src/main/java/conformance/Tally.java",
            ],
            Self::Rust | Self::AmqpTools => &[],
        }
    }

    /// The sources that run from the build folder, where their libraries are.
    fn copied(self) -> &'static [&'static str] {
        match self {
            Self::Node => {
                &["package.json", "package-lock.json", "client.mjs", "queues.mjs", "session.mjs"]
            }
            _ => &[],
        }
    }

    /// The commands that make the build, from the manifests to something that runs.
    fn steps(self, folder: &Path) -> Outcome<Vec<Command>> {
        let sources = sources(self);
        let step = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments).current_dir(&sources);
            command
        };
        let path = |name: &str| folder.join(name).display().to_string();
        Ok(match self {
            Self::Python => vec![
                step("python3", &["-m", "venv", "--clear", &path("venv")]),
                step(
                    &path("venv/bin/python"),
                    &["-m", "pip", "install", "--quiet", "-r", "requirements.txt"],
                ),
            ],
            Self::Node => {
                let mut install = step("npm", &["ci", "--no-audit", "--no-fund"]);
                install.current_dir(folder);
                vec![install]
            }
            Self::Go => vec![step("go", &["build", "-mod=readonly", "-o", &path("client"), "."])],
            Self::Java => {
                let target = format!("-Dbuild.folder={}", folder.display());
                vec![step("mvn", &["-q", "-B", &target, "package"])]
            }
            Self::Rust => vec![cargo_build()?],
            Self::AmqpTools => vec![],
        })
    }

    /// Makes the environment ready, doing only what the last run did not.
    pub(crate) async fn prepare(self, build: &Path) -> Result<(), Obstacle> {
        let folder = self.folder(build);
        let broken =
            |reason: String| Obstacle::Broken(format!("preparing {}: {reason}", self.name()));
        std::fs::create_dir_all(&folder).map_err(|error| broken(error.to_string()))?;
        let mut stamp = DefaultHasher::new();
        for tool in self.tools() {
            let version = tool.probe().await.ok_or_else(|| {
                Obstacle::Missing(format!(
                    "{} is missing or too old: {}",
                    tool.program,
                    self.remedy()
                ))
            })?;
            version.hash(&mut stamp);
        }
        self.copy_sources(&folder, &mut stamp).map_err(|error| broken(error.to_string()))?;
        let stamp = format!("{:016x}", stamp.finish());
        let stamp_file = folder.join(STAMP);
        // Cargo knows better than a stamp what is fresh, and says so at once.
        let is_fresh = self != Self::Rust
            && std::fs::read_to_string(&stamp_file).is_ok_and(|last| last == stamp);
        if is_fresh || self == Self::AmqpTools {
            println!("prepare  {}: nothing to do", self.name());
            return Ok(());
        }
        println!("prepare  {} ...", self.name());
        let began = Instant::now();
        // Without its stamp, a preparation that breaks off is done again.
        let _ = std::fs::remove_file(&stamp_file);
        for command in self.steps(&folder).map_err(broken)? {
            take_step(command, &folder).await.map_err(broken)?;
        }
        std::fs::write(&stamp_file, stamp).map_err(|error| broken(error.to_string()))?;
        println!("prepare  {}: done in {:.1} s", self.name(), began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Copies what runs from the build folder and hashes the manifests.
    fn copy_sources(self, folder: &Path, stamp: &mut DefaultHasher) -> std::io::Result<()> {
        for name in self.copied() {
            std::fs::copy(sources(self).join(name), folder.join(name))?;
        }
        for name in self.manifests() {
            std::fs::read(sources(self).join(name))?.hash(stamp);
        }
        Ok(())
    }
}

impl Tool {
    /// What the tool says of its version, or nothing if it cannot be used.
    async fn probe(&self) -> Option<Vec<u8>> {
        let mut command = Command::new(self.program);
        command.args(self.probe).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(PROBE_TIME, command.output()).await.ok()?.ok()?;
        output.status.success().then_some(output.stdout)
    }
}

async fn take_step(command: Command, folder: &Path) -> Outcome {
    let shown = format!("{:?}", command.as_std());
    let (stdout, stderr) = (folder.join("prepare.stdout"), folder.join("prepare.stderr"));
    let reason = match process::run(command, STEP_TIME, &stdout, &stderr).await {
        Ok(End::Exit(status)) if status.success() => return Ok(()),
        Ok(End::Exit(status)) => status.to_string(),
        Ok(End::Deadline) => format!("killed after {STEP_TIME:?}"),
        Err(error) => error.to_string(),
    };
    let tails = [process::tail(&stdout, TAIL_LINES), process::tail(&stderr, TAIL_LINES)];
    Err(format!("{shown}: {reason}\n{}", tails.concat()))
}

/// The folder of an environment's sources.
pub(crate) fn sources(environment: Environment) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(environment.name())
}

/// The Rust client's program, which Cargo puts beside this one.
pub(crate) fn lapin_client() -> Outcome<PathBuf> {
    let program = std::env::current_exe().map_err(|error| format!("where am I? {error}"))?;
    Ok(program.with_file_name("lapin-client"))
}

fn cargo_build() -> Outcome<Command> {
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    command.args(["build", "--quiet", "--package", "conformance", "--bin", "lapin-client"]);
    command.arg("--target-dir").arg(target_folder()?);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    Ok(command)
}
