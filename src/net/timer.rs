//! One task for everything in the broker that is due at a certain time.
//!
//! Owns the timer behind the broker's deadlines. It sleeps until the first of them, and costs
//! nothing while there is none.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use super::{now, worker};
use crate::broker::Broker;
use crate::clock::Millis;

/// Runs until it is dropped.
pub(super) async fn run(broker: Arc<Broker>) {
    let mut known: Option<Millis> = None;
    loop {
        tokio::select! {
            next = poll_fn(|context| broker.poll_next_deadline(known, context)) => known = next,
            () = until(known) => {
                worker::with(|lent| broker.tick(&mut lent.worker.drive));
                // Others get their turn even if more is due.
                tokio::task::yield_now().await;
                known = None;
            }
        }
    }
}

async fn until(at: Option<Millis>) {
    match at {
        // Even a sleep of no time takes a millisecond.
        Some(at) if at <= now() => {}
        Some(at) => tokio::time::sleep(Duration::from_millis(at.since(now()))).await,
        None => std::future::pending().await,
    }
}
