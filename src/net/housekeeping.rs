//! One task that looks after all connections.
//!
//! Owns the timer behind heartbeats, handshake and closing deadlines, and the giving back of idle
//! buffers and of freed memory. One timer for all costs nothing for each read, and little for each
//! connection.

use std::sync::Arc;
use std::time::Duration;

use super::freed_memory::{self, FreedMemory};
use super::now;
use super::registry::{Entry, Registry};
use crate::broker::Broker;
use crate::codec::encode::put_heartbeat;
use crate::connection::Verdict;

/// Half a second serves heartbeats of 1 s, the shortest there are.
const PERIOD: Duration = Duration::from_millis(500);

/// Runs until it is dropped.
pub(super) async fn run(registry: Arc<Registry>, broker: Arc<Broker>) {
    let mut freed = FreedMemory::default();
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        registry.for_each(look_at);
        if freed.look(broker.memory().take_peak()) {
            // Nobody waits for it.
            tokio::task::spawn_blocking(freed_memory::give_back);
        }
    }
}

fn look_at(entry: &Entry) {
    match entry.liveness.look(now()) {
        Verdict::Alive => {}
        Verdict::SendHeartbeat => {
            entry.outbox.send_raw(put_heartbeat);
            entry.liveness.sent(now());
        }
        Verdict::MissedHeartbeats => {
            tracing::warn!(connection = &*entry.name, "missed heartbeats from client");
            entry.outbox.abort();
            entry.stop.ask();
        }
        Verdict::TimedOut => {
            tracing::warn!(connection = &*entry.name, "handshake or closing timed out");
            entry.outbox.abort();
            entry.stop.ask();
        }
    }
    if entry.outbox.has_closed_channels() {
        // Its client may have nothing more to say.
        entry.stop.nudge();
    }
    entry.outbox.shrink_if_idle();
}
