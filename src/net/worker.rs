//! What each worker thread lends to the connection that it is working on.
//!
//! Owns the read buffer and the scratch memory of a thread: large, in the cache, and shared by all
//! connections, so that an idle connection holds none.

use std::cell::RefCell;

use super::now;
use crate::connection::Worker;

/// The most that one read takes in (bytes). 256 KiB is a third cheaper for each message than
/// 64 KiB, by measurement.
pub(super) const READ_BYTES: usize = 256 * 1024;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Lent {
    pub(super) buffer: Vec<u8>,
    pub(super) worker: Worker,
}

thread_local! {
    static LENT: RefCell<Lent> = RefCell::default();
}

/// Runs `work` with this thread's memory. A panic during earlier work is cleaned up
/// after first.
pub(super) fn with<T>(work: impl FnOnce(&mut Lent) -> T) -> T {
    LENT.with(|lent| {
        let lent = &mut *lent.borrow_mut();
        lent.worker.drive.now = now();
        lent.worker.abandon_staged();
        let outcome = work(lent);
        lent.worker.drive.finish();
        outcome
    })
}
