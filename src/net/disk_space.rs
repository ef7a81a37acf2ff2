//! The room on the data directory's file system.
//!
//! Owns when it is looked at, and the disk alarm: set while there is less than
//! `store.disk_free_limit`, as in RabbitMQ, or the store waits for room. It must not know what
//! takes the room.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::broker::{Alarm, Broker};

/// The fastest that the room is expected to shrink. It is looked at again before that could take
/// what is above the limit.
const BYTES_PER_MS: u64 = 1_000_000;

/// How soon and how late it is looked at again. RabbitMQ takes up to 10 s, but a store that waits
/// for room is to be noticed, too, and looking takes some microseconds.
const LOOK_MIN: Duration = Duration::from_millis(100);
const LOOK_MAX: Duration = Duration::from_secs(1);

/// See the module's description.
#[derive(Debug)]
pub(super) struct DiskSpace {
    directory: PathBuf,
    limit_bytes: u64,
    is_readable: bool,
}

impl DiskSpace {
    /// Looks at once: who connects first may be one who must not publish.
    pub(super) fn new(directory: &Path, limit_bytes: u64, broker: &Broker) -> Self {
        if limit_bytes > 0 {
            let path = directory.display();
            tracing::info!(limit_bytes, %path, "disk limit: with less room publishers are blocked");
        }
        let mut this = Self { directory: directory.to_owned(), limit_bytes, is_readable: true };
        this.judge(free_bytes(directory), broker);
        this
    }

    /// Runs until it is dropped.
    pub(super) async fn run(mut self, broker: Arc<Broker>) {
        loop {
            let directory = self.directory.clone();
            // A file system that hangs must not take a thread that serves connections with it.
            let look = tokio::task::spawn_blocking(move || free_bytes(&directory));
            let Ok(seen) = look.await else { return };
            tokio::time::sleep(self.judge(seen, &broker)).await;
        }
    }

    /// Sets or clears the alarm; answers when to look again.
    fn judge(&mut self, seen: io::Result<u64>, broker: &Broker) -> Duration {
        let (path, limit_bytes) = (self.directory.display(), self.limit_bytes);
        let free_bytes = match seen {
            Ok(free_bytes) => free_bytes,
            Err(error) => {
                if self.is_readable {
                    tracing::warn!(%path, "cannot see how much room the disk has: {error}");
                }
                self.is_readable = false;
                return LOOK_MAX;
            }
        };
        self.is_readable = true;
        let is_short = || free_bytes < limit_bytes || broker.is_store_full();
        match broker.alarms().switch(Alarm::Disk, is_short) {
            Some(true) => tracing::warn!(
                free_bytes, limit_bytes, %path,
                "disk alarm set: publishers are blocked until there is more room"
            ),
            Some(false) => tracing::info!(free_bytes, limit_bytes, "disk alarm cleared"),
            None => {}
        }
        next_look(free_bytes, limit_bytes)
    }
}

/// What users without privileges may still write (bytes).
fn free_bytes(directory: &Path) -> io::Result<u64> {
    let file_system = rustix::fs::statvfs(directory)?;
    Ok(file_system.f_bavail.saturating_mul(file_system.f_frsize))
}

fn next_look(free_bytes: u64, limit_bytes: u64) -> Duration {
    match free_bytes.checked_sub(limit_bytes) {
        None => LOOK_MAX,
        Some(above) => Duration::from_millis(above / BYTES_PER_MS).clamp(LOOK_MIN, LOOK_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const GB: u64 = 1_000_000_000;

    #[test]
    fn the_nearer_the_limit_the_sooner_the_next_look() {
        assert_eq!(next_look(1000 * GB, GB), LOOK_MAX);
        assert_eq!(next_look(GB + GB / 2, GB), Duration::from_millis(500));
        assert_eq!(next_look(GB + 1, GB), LOOK_MIN);
        assert_eq!(next_look(GB, GB), LOOK_MIN, "this is enough");
        assert_eq!(next_look(GB - 1, GB), LOOK_MAX, "publishers are blocked");
    }

    #[test]
    fn less_room_than_the_limit_sets_the_alarm() {
        let broker = Broker::new(Arc::new(Config::default()), u64::MAX);
        let mut disk = DiskSpace::new(Path::new("."), 0, &broker);
        disk.limit_bytes = 1000;
        disk.judge(Ok(1000), &broker);
        assert!(!broker.alarms().is_any(), "this is enough");
        disk.judge(Ok(999), &broker);
        assert_eq!(broker.alarms().reason(), Some("low on disk"));
        disk.judge(Ok(1000), &broker);
        assert!(!broker.alarms().is_any());
    }

    #[test]
    fn the_alarm_stays_as_it_is_while_nothing_can_be_seen() {
        let broker = Broker::new(Arc::new(Config::default()), u64::MAX);
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut disk = DiskSpace::new(directory.path(), u64::MAX, &broker);
        assert!(broker.alarms().is_any(), "no disk is as large");
        let path = directory.path().to_owned();
        drop(directory);
        assert_eq!(disk.judge(free_bytes(&path), &broker), LOOK_MAX);
        assert!(broker.alarms().is_any() && !disk.is_readable);
    }
}
