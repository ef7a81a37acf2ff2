//! Sockets, timers and tasks: the only module that waits.
//!
//! Owns the listeners, two tasks for each connection (one reads and drives, one writes), three
//! tasks for all (they look after heartbeats, what is due at a certain time, and the disk), the
//! thread that reads from the store, and the line in which logins wait for their passwords to be
//! checked. It must not know the protocol: it moves bytes between sockets,
//! [`crate::connection::Connection`] and [`crate::broker::Outbox`].

mod control;
mod disk_space;
mod freed_memory;
mod housekeeping;
mod listener;
mod loader;
mod login;
mod memory_limit;
mod notice;
mod registry;
mod socket;
mod stop;
mod timer;
mod worker;

pub use control::Control;
pub use listener::Server;

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::clock::Millis;

/// The time. The system's clock is read once, so that it never jumps.
fn now() -> Millis {
    static START: OnceLock<(Instant, u64)> = OnceLock::new();
    let (start, unix_ms) = START.get_or_init(|| {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (Instant::now(), since_1970.as_millis() as u64)
    });
    Millis(unix_ms + start.elapsed().as_millis() as u64)
}
