//! The configuration file, turned into a checked [`Config`].
//!
//! Owns every setting's name, default and allowed range. A [`Config`] that exists is valid: the
//! rest of the program never checks a setting again. It must not read the command line, open
//! sockets or touch the data directory. `config/leveret.toml` states the same defaults for
//! people; a test below holds the two together.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;
use toml::Value;
use tracing_subscriber::EnvFilter;

mod policies;
mod size;
mod store;

pub use policies::ConfiguredPolicy;
pub use store::{StoreConfig, SyncMode};

/// Everything that can be set, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where the broker keeps what must survive it. One broker per directory.
    pub data_dir: PathBuf,
    /// A file of definitions that is imported at each start.
    pub load_definitions: Option<PathBuf>,
    /// Policies that are set at each start.
    pub policies: Vec<ConfiguredPolicy>,
    /// Where clients connect.
    pub listeners: Listeners,
    /// The bounds that keep one client from harming the others.
    pub limits: Limits,
    /// How messages are kept on disk.
    pub store: StoreConfig,
    /// Who may connect to a broker without users of its own.
    pub auth: Auth,
    /// What is logged.
    pub log: Log,
}

/// Where clients connect.
#[derive(Clone, Debug, PartialEq)]
pub struct Listeners {
    /// Addresses that take AMQP 0-9-1 over plain TCP; port 0 picks a free port. Never empty.
    pub amqp: Vec<SocketAddr>,
}

/// The bounds that keep one client from harming the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Largest frame that is offered at connection.tune, in bytes.
    pub frame_max: u32,
    /// Most channels that a connection may have open at once.
    pub channel_max: u16,
    /// Most connections that the broker holds at once.
    pub connection_max: usize,
    /// Heartbeat interval that is offered at connection.tune; 0 offers none.
    pub heartbeat_s: u16,
    /// How long a client may take from connecting to connection.open.
    pub handshake_timeout_ms: u64,
    /// Largest message body that is taken.
    pub max_message_size_bytes: u64,
    /// Memory taken by messages at which publishers are paused.
    pub memory_high_watermark: MemoryWatermark,
    /// Most consumers on one channel; 0 sets no bound.
    pub consumers_per_channel_max: u32,
    /// How long a delivery may stay unsettled before its consumer is cancelled or its channel is
    /// closed; 0 sets no bound.
    pub consumer_timeout_ms: u64,
}

/// Memory taken by messages at which publishers are paused.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MemoryWatermark {
    /// A share of the memory that the process may use, above 0 and at most 1.
    Fraction(f64),
    /// A number of bytes.
    Bytes(u64),
}

/// Who may connect to a broker without users of its own.
#[derive(Clone, PartialEq)]
pub struct Auth {
    /// Name of the user that exists from the first start.
    pub default_user: String,
    /// That user's password.
    pub default_password: String,
    /// Users that may connect from this machine only.
    pub loopback_users: Vec<String>,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// A filter in the syntax of tracing's `EnvFilter`, known to parse.
    pub filter: String,
}

/// Why a configuration is refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}", path = .path.display())]
    Read {
        /// The file as it was named.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A file was read and is refused.
    #[error("{path}: {message}", path = .path.display())]
    InFile {
        /// The file as it was named.
        path: PathBuf,
        /// The error within it.
        message: Box<ConfigError>,
    },
    /// The text is not TOML, or has a section or key that does not exist.
    #[error("{0}")]
    Syntax(String),
    /// A setting has a value that it cannot take.
    #[error("{key} = {value}: must be {allowed}")]
    Value {
        /// The setting with its section, such as `limits.frame_max`.
        key: &'static str,
        /// The value as TOML.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// Two settings that exclude each other are both given.
    #[error("{first} and {second} are both set: keep one of them")]
    Both {
        /// One of the two.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text)
            .map_err(|error| ConfigError::InFile { path: path.to_owned(), message: error.into() })
    }

    /// Checks a configuration given as TOML text; what is not mentioned has its default.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let document: Document = toml::from_str(text)
            .map_err(|error| ConfigError::Syntax(error.to_string().trim_end().to_owned()))?;
        Ok(Self {
            data_dir: check_data_dir(document.data_dir)?,
            load_definitions: check_load_definitions(document.load_definitions)?,
            policies: policies::check(document.policies, document.operator_policies)?,
            listeners: Listeners::check(document.listeners)?,
            limits: Limits::check(document.limits)?,
            store: StoreConfig::check(document.store)?,
            auth: Auth::check(document.auth)?,
            log: Log::check(document.log)?,
        })
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("./data"),
            load_definitions: None,
            policies: Vec::new(),
            listeners: Listeners::default(),
            limits: Limits::default(),
            store: StoreConfig::default(),
            auth: Auth::default(),
            log: Log::default(),
        }
    }
}

impl Default for Listeners {
    fn default() -> Self {
        Self { amqp: vec![SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 5672))] }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_max: 131_072,
            channel_max: 2047,
            connection_max: 65_536,
            heartbeat_s: 60,
            handshake_timeout_ms: 10_000,
            max_message_size_bytes: 128 << 20,
            memory_high_watermark: MemoryWatermark::Fraction(0.4),
            consumers_per_channel_max: 0,
            consumer_timeout_ms: 0,
        }
    }
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            default_user: "guest".to_owned(),
            default_password: "guest".to_owned(),
            loopback_users: vec!["guest".to_owned()],
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".to_owned() }
    }
}

impl Auth {
    /// Whether anyone who can reach the port may log in with the well-known password.
    pub fn is_open_to_all(&self) -> bool {
        self.default_password == "guest" && !self.loopback_users.contains(&self.default_user)
    }
}

/// The password stays out of logs and panics.
impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth")
            .field("default_user", &self.default_user)
            .field("loopback_users", &self.loopback_users)
            .finish_non_exhaustive()
    }
}

/// The file as it is written. Values are checked one by one afterwards, so that every error can
/// name the key, the value and what is allowed.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Document {
    data_dir: Option<Value>,
    load_definitions: Option<Value>,
    policies: Vec<policies::PolicyTable>,
    operator_policies: Vec<policies::PolicyTable>,
    listeners: ListenersTable,
    limits: LimitsTable,
    store: store::StoreTable,
    auth: AuthTable,
    log: LogTable,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ListenersTable {
    amqp: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LimitsTable {
    frame_max: Option<Value>,
    channel_max: Option<Value>,
    connection_max: Option<Value>,
    heartbeat_s: Option<Value>,
    handshake_timeout_ms: Option<Value>,
    max_message_size_bytes: Option<Value>,
    memory_high_watermark: Option<Value>,
    memory_high_watermark_bytes: Option<Value>,
    consumers_per_channel_max: Option<Value>,
    consumer_timeout_ms: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AuthTable {
    default_user: Option<Value>,
    default_password: Option<Value>,
    loopback_users: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LogTable {
    filter: Option<Value>,
}

impl Listeners {
    fn check(table: ListenersTable) -> Result<Self, ConfigError> {
        let Some(value) = table.amqp else { return Ok(Self::default()) };
        let addresses = || -> Option<Vec<SocketAddr>> {
            value.as_array()?.iter().map(|item| item.as_str()?.parse().ok()).collect()
        };
        match addresses() {
            Some(amqp) if !amqp.is_empty() => Ok(Self { amqp }),
            _ => refuse(
                "listeners.amqp",
                &value,
                "a list of one or more IP addresses with ports, such as [\"127.0.0.1:5672\"]",
            ),
        }
    }
}

impl Limits {
    fn check(table: LimitsTable) -> Result<Self, ConfigError> {
        let default = Self::default();
        Ok(Self {
            // 4096 is the least that the specification allows (section 4.2.3, frame-min-size).
            frame_max: integer(
                "limits.frame_max",
                table.frame_max,
                4096..=1_048_576,
                default.frame_max,
            )?,
            channel_max: integer(
                "limits.channel_max",
                table.channel_max,
                1..=u16::MAX,
                default.channel_max,
            )?,
            connection_max: integer(
                "limits.connection_max",
                table.connection_max,
                1..=1_048_576,
                default.connection_max,
            )?,
            heartbeat_s: integer(
                "limits.heartbeat_s",
                table.heartbeat_s,
                0..=u16::MAX,
                default.heartbeat_s,
            )?,
            handshake_timeout_ms: integer(
                "limits.handshake_timeout_ms",
                table.handshake_timeout_ms,
                100..=600_000,
                default.handshake_timeout_ms,
            )?,
            // The upper end is RabbitMQ's hard cap.
            max_message_size_bytes: match table.max_message_size_bytes {
                None => default.max_message_size_bytes,
                Some(value) => size_of("limits.max_message_size_bytes", &value, 1..=512 << 20)?,
            },
            memory_high_watermark: MemoryWatermark::check(
                table.memory_high_watermark,
                table.memory_high_watermark_bytes,
            )?,
            consumers_per_channel_max: integer(
                "limits.consumers_per_channel_max",
                table.consumers_per_channel_max,
                0..=u32::MAX,
                default.consumers_per_channel_max,
            )?,
            // The upper end is that of queue arguments: ten years.
            consumer_timeout_ms: integer(
                "limits.consumer_timeout_ms",
                table.consumer_timeout_ms,
                0..=315_360_000_000,
                default.consumer_timeout_ms,
            )?,
        })
    }
}

impl MemoryWatermark {
    fn check(fraction: Option<Value>, bytes: Option<Value>) -> Result<Self, ConfigError> {
        const FRACTION: &str = "limits.memory_high_watermark";
        const BYTES: &str = "limits.memory_high_watermark_bytes";
        match (fraction, bytes) {
            (None, None) => Ok(Limits::default().memory_high_watermark),
            (Some(_), Some(_)) => Err(ConfigError::Both { first: FRACTION, second: BYTES }),
            (None, Some(value)) => size_of(BYTES, &value, 1 << 20..=1 << 50).map(Self::Bytes),
            (Some(value), None) => {
                let fraction = match &value {
                    Value::Float(number) => Some(*number),
                    Value::Integer(number) => Some(*number as f64),
                    Value::String(text) => text.trim().parse().ok(),
                    _ => None,
                };
                match fraction {
                    Some(fraction) if fraction > 0.0 && fraction <= 1.0 => {
                        Ok(Self::Fraction(fraction))
                    }
                    _ => refuse(FRACTION, &value, "a number above 0 and at most 1, such as 0.4"),
                }
            }
        }
    }
}

impl Auth {
    fn check(table: AuthTable) -> Result<Self, ConfigError> {
        let default = Self::default();
        let default_user = match table.default_user {
            None => default.default_user,
            Some(value) => match value.as_str() {
                Some(name) if is_user_name(name) => name.to_owned(),
                _ => {
                    return refuse(
                        "auth.default_user",
                        &value,
                        "a string of 1 to 255 bytes that has no spaces around it",
                    );
                }
            },
        };
        let default_password = match table.default_password {
            None => default.default_password,
            Some(Value::String(password)) if !password.is_empty() => password,
            Some(_) => {
                let hidden = Value::String("(hidden)".to_owned());
                return refuse("auth.default_password", &hidden, "a string that is not empty");
            }
        };
        let loopback_users = match table.loopback_users {
            None => default.loopback_users,
            Some(value) => match user_names(&value) {
                Some(names) => names,
                None => {
                    return refuse(
                        "auth.loopback_users",
                        &value,
                        "a list of user names, such as [\"guest\"], or [] for none",
                    );
                }
            },
        };
        Ok(Self { default_user, default_password, loopback_users })
    }
}

impl Log {
    fn check(table: LogTable) -> Result<Self, ConfigError> {
        let Some(value) = table.filter else { return Ok(Self::default()) };
        match value.as_str() {
            Some(filter) if Self::parse_filter(filter).is_ok() => {
                Ok(Self { filter: filter.to_owned() })
            }
            _ => refuse(
                "log.filter",
                &value,
                "off, error, warn, info or debug, or levels by module such as \
                 \"info,leveret::net=debug\"",
            ),
        }
    }

    /// Reads a filter. A word alone has to be a level: tracing would take a misspelt one for a
    /// module, and nothing at all would be logged. There is no level `trace` in release builds.
    pub fn parse_filter(filter: &str) -> Result<EnvFilter, String> {
        const LEVELS: [&str; 5] = ["off", "error", "warn", "info", "debug"];
        let parts = filter.split(',').map(|part| part.rsplit('=').next().unwrap_or(part).trim());
        for level in parts {
            if !LEVELS.contains(&level.to_ascii_lowercase().as_str()) {
                return Err(format!("\"{level}\" is no level"));
            }
        }
        EnvFilter::try_new(filter).map_err(|error| error.to_string())
    }
}

fn check_data_dir(value: Option<Value>) -> Result<PathBuf, ConfigError> {
    match value {
        None => Ok(Config::default().data_dir),
        Some(Value::String(path)) if !path.is_empty() => Ok(PathBuf::from(path)),
        Some(value) => refuse("data_dir", &value, "the path of a directory"),
    }
}

fn check_load_definitions(value: Option<Value>) -> Result<Option<PathBuf>, ConfigError> {
    match value {
        None => Ok(None),
        Some(Value::String(path)) if !path.is_empty() => Ok(Some(PathBuf::from(path))),
        Some(value) => refuse("load_definitions", &value, "the path of a definitions file"),
    }
}

fn is_user_name(name: &str) -> bool {
    (1..=255).contains(&name.len()) && name.trim() == name
}

fn user_names(value: &Value) -> Option<Vec<String>> {
    let names = value.as_array()?.iter().map(|item| item.as_str().filter(|n| is_user_name(n)));
    names.map(|name| name.map(str::to_owned)).collect()
}

/// An integer within `allowed`, or `default` when the setting is not there.
fn integer<T>(
    key: &'static str,
    value: Option<Value>,
    allowed: RangeInclusive<T>,
    default: T,
) -> Result<T, ConfigError>
where
    T: TryFrom<i64> + PartialOrd + fmt::Display,
{
    let Some(value) = value else { return Ok(default) };
    match value.as_integer().and_then(|number| T::try_from(number).ok()) {
        Some(number) if allowed.contains(&number) => Ok(number),
        _ => {
            let (least, most) = allowed.into_inner();
            refuse(key, &value, format!("a whole number from {least} to {most}"))
        }
    }
}

/// A size within `allowed`, given in bytes or as text with a unit.
fn size_of(
    key: &'static str,
    value: &Value,
    allowed: RangeInclusive<u64>,
) -> Result<u64, ConfigError> {
    let bytes = match value {
        Value::Integer(bytes) => u64::try_from(*bytes).ok(),
        Value::String(text) => size::parse(text),
        _ => None,
    };
    match bytes {
        Some(bytes) if allowed.contains(&bytes) => Ok(bytes),
        _ => {
            let (least, most) = allowed.into_inner();
            let allowed = format!(
                "a size from {least} to {most} bytes: a whole number, or text with a unit such as \
                 \"64MiB\" or \"1GB\""
            );
            refuse(key, value, allowed)
        }
    }
}

fn refuse<T>(
    key: &'static str,
    value: &Value,
    allowed: impl Into<String>,
) -> Result<T, ConfigError> {
    Err(ConfigError::Value { key, value: value.to_string(), allowed: allowed.into() })
}

#[cfg(test)]
mod tests;
