//! What the store does with messages that are to survive a restart, and with its disk.
//!
//! Owns the section `[store]`. It must not know how the store keeps them.

use serde::Deserialize;
use toml::Value;

use super::{ConfigError, integer, refuse, size_of};

/// How messages are kept on disk. All of it is without effect where there is no data directory.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreConfig {
    /// When the disk is told to make good what was written to it.
    pub sync: SyncMode,
    /// How long that may take with [`SyncMode::Interval`].
    pub sync_interval_ms: u64,
    /// Bytes of ready messages that one queue keeps in memory, beside having them on disk.
    pub queue_memory_bytes: u64,
    /// Bytes that may wait to be written before publishers of persistent messages are paused.
    pub backlog_bytes: u64,
    /// Publishers are blocked while the data directory's file system has less room than this; 0
    /// switches that off.
    pub disk_free_limit_bytes: u64,
}

/// When a message counts as stored, so that its publisher has it confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// Once it is on the disk. Survives the loss of power.
    Always,
    /// Once the operating system has it. What was written reaches the disk within an interval.
    Interval,
    /// Once the operating system has it, which writes it to the disk when it sees fit.
    Os,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            sync: SyncMode::Always,
            sync_interval_ms: 100,
            queue_memory_bytes: 8 << 20,
            backlog_bytes: 32 << 20,
            // RabbitMQ's.
            disk_free_limit_bytes: 50_000_000,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct StoreTable {
    sync: Option<Value>,
    sync_interval_ms: Option<Value>,
    queue_memory: Option<Value>,
    backlog: Option<Value>,
    disk_free_limit: Option<Value>,
}

impl StoreConfig {
    pub(super) fn check(table: StoreTable) -> Result<Self, ConfigError> {
        let default = Self::default();
        let size = |key, value: Option<Value>, allowed, default| match value {
            None => Ok(default),
            Some(value) => size_of(key, &value, allowed),
        };
        Ok(Self {
            sync: SyncMode::check(table.sync)?,
            sync_interval_ms: integer(
                "store.sync_interval_ms",
                table.sync_interval_ms,
                1..=60_000,
                default.sync_interval_ms,
            )?,
            queue_memory_bytes: size(
                "store.queue_memory",
                table.queue_memory,
                1 << 16..=1 << 40,
                default.queue_memory_bytes,
            )?,
            backlog_bytes: size(
                "store.backlog",
                table.backlog,
                1 << 20..=1 << 40,
                default.backlog_bytes,
            )?,
            disk_free_limit_bytes: size(
                "store.disk_free_limit",
                table.disk_free_limit,
                0..=1 << 50,
                default.disk_free_limit_bytes,
            )?,
        })
    }
}

impl SyncMode {
    fn check(value: Option<Value>) -> Result<Self, ConfigError> {
        let Some(value) = value else { return Ok(StoreConfig::default().sync) };
        match value.as_str() {
            Some("always") => Ok(Self::Always),
            Some("interval") => Ok(Self::Interval),
            Some("os") => Ok(Self::Os),
            _ => refuse("store.sync", &value, "\"always\", \"interval\" or \"os\""),
        }
    }
}
