//! Telling idle connections that users, vhosts or permissions have changed.
//!
//! Owns the look at the one number that says so. Busy connections see it for themselves; those
//! that wait for their clients are woken here. It must not know what has changed.

use std::sync::Arc;
use std::time::Duration;

use super::registry::Registry;
use crate::broker::Broker;

/// Many changes at once, as an import makes them, are one notice.
const PERIOD: Duration = Duration::from_millis(200);

/// Runs until it is dropped.
pub(super) async fn run(broker: Arc<Broker>, registry: Arc<Registry>) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut seen = broker.access_generation();
    loop {
        ticks.tick().await;
        let generation = broker.access_generation();
        if generation != seen {
            seen = generation;
            registry.for_each(|entry| entry.stop.nudge());
        }
    }
}
