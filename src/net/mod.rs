//! Sockets, timers and tasks: the only module that waits.
//!
//! Owns the listeners, two tasks for each connection (one reads and drives, one writes), and the
//! one task that looks after all connections' heartbeats. It must not know the protocol: it moves
//! bytes between sockets, [`crate::connection::Connection`] and [`crate::broker::Outbox`].

mod housekeeping;
mod listener;
mod memory_limit;
mod registry;
mod socket;
mod stop;
mod worker;

pub use listener::Server;

use std::sync::OnceLock;
use std::time::Instant;

use crate::clock::Millis;

/// The time since the process began to serve.
fn now() -> Millis {
    static START: OnceLock<Instant> = OnceLock::new();
    Millis(START.get_or_init(Instant::now).elapsed().as_millis() as u64)
}
