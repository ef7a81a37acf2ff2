//! Queues that want messages from the store.
//!
//! Owns the line in which they wait for the thread that reads. It must not read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::QueueCell;

/// The thread looks up so often while nothing is wanted.
const LOOK_UP: Duration = Duration::from_millis(500);

/// What the thread that reads does next.
pub(super) enum Next {
    /// Read for this queue.
    Queue(Arc<QueueCell>),
    /// Nothing is wanted.
    Idle,
    /// Nothing will be wanted any more.
    Closed,
}

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

    /// Waits a while for the next queue.
    pub(super) fn next(&self) -> Next {
        let mut line = self.line.lock();
        if line.waiting.is_empty() && !line.is_closed {
            self.changed.wait_for(&mut line, LOOK_UP);
        }
        match line.waiting.pop_front() {
            Some(queue) => Next::Queue(queue),
            None if line.is_closed => Next::Closed,
            None => Next::Idle,
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
