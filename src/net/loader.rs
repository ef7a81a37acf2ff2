//! The thread that reads what queues want from the store.
//!
//! Owns the thread: reading waits for the disk, which no task may do. What is read is delivered
//! from here, too.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::now;
use crate::broker::{Broker, Drive};

/// Starts it. It ends with [`Broker::end_loads`].
pub(super) fn start(broker: &Arc<Broker>) -> Option<JoinHandle<()>> {
    let broker = broker.clone();
    let run = move || {
        let mut drive = Drive::default();
        loop {
            match catch_unwind(AssertUnwindSafe(|| broker.load(now, &mut drive))) {
                Ok(true) => {}
                Ok(false) => return,
                Err(_) => {
                    tracing::error!("reading from the store crashed: this is a bug in the broker");
                    drive.forget();
                }
            }
        }
    };
    let started = thread::Builder::new().name("loader".to_owned()).spawn(run);
    started.inspect_err(|error| tracing::error!("cannot start a thread: {error}")).ok()
}
