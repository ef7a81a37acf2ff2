//! Queues that want messages from the store.
//!
//! Owns the line in which they wait for the thread that reads. It must not read.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::QueueCell;

#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<Arc<QueueCell>>,
    is_closed: bool,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Loads {
    line: Mutex<Line>,
    changed: Condvar,
}

impl Loads {
    /// Puts a queue in the line. A queue does that once, until it was read for.
    pub(super) fn ask(&self, queue: Arc<QueueCell>) {
        let mut line = self.line.lock();
        if !line.is_closed {
            line.waiting.push_back(queue);
            self.changed.notify_one();
        }
    }

    /// Waits for the next queue; `None` when there will be none.
    pub(super) fn next(&self) -> Option<Arc<QueueCell>> {
        let mut line = self.line.lock();
        loop {
            if line.is_closed {
                return None;
            }
            if let Some(queue) = line.waiting.pop_front() {
                return Some(queue);
            }
            self.changed.wait(&mut line);
        }
    }

    /// Lets nobody wait any more.
    pub(super) fn close(&self) {
        let mut line = self.line.lock();
        line.is_closed = true;
        // Their queues hold what they are part of.
        let waiting = std::mem::take(&mut line.waiting);
        self.changed.notify_all();
        drop(line);
        drop(waiting);
    }
}
