//! What publishers are blocked for: the alarms.
//!
//! Owns which resources are short, and who waits until none is. It must not know when a resource is
//! short (that is for the memory gauge, and for whoever looks at the disk), nor how a publisher is
//! blocked.

use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// One for each resource that can be short.
#[derive(Clone, Copy, Debug)]
pub enum Alarm {
    /// Memory taken by messages.
    Memory = 1,
    /// Room on the data directory's file system.
    Disk = 2,
}

/// See the module's description.
#[derive(Debug, Default)]
pub struct Alarms {
    /// The sum of the resources that are short.
    set: AtomicU8,
    waiting: Mutex<Vec<Waker>>,
}

impl Alarms {
    /// Whether publishers are to be blocked.
    pub fn is_any(&self) -> bool {
        self.set.load(Ordering::SeqCst) != 0
    }

    /// Whether this one is set.
    pub fn is_set(&self, alarm: Alarm) -> bool {
        self.set.load(Ordering::SeqCst) & alarm as u8 != 0
    }

    /// What publishers are told, in RabbitMQ's words; nothing when they are not to be blocked.
    pub fn reason(&self) -> Option<&'static str> {
        match (self.is_set(Alarm::Memory), self.is_set(Alarm::Disk)) {
            (false, false) => None,
            (true, false) => Some("low on memory"),
            (false, true) => Some("low on disk"),
            (true, true) => Some("low on memory & disk"),
        }
    }

    /// Ready when publishers may go on.
    pub fn poll_clear(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut waiting = self.waiting.lock();
        if !self.is_any() {
            return Poll::Ready(());
        }
        waiting.push(context.waker().clone());
        Poll::Pending
    }

    /// Sets or clears the alarm of a resource, until it fits what `is_short` says: whoever changes
    /// something before the alarm was switched has not seen that there is something to switch back.
    /// Answers what it is when that is not what it was.
    #[cold]
    pub fn switch(&self, alarm: Alarm, is_short: impl Fn() -> bool) -> Option<bool> {
        let (is_set, wakers) = {
            let mut waiting = self.waiting.lock();
            let before = self.is_set(alarm);
            let is_set = loop {
                let short = is_short();
                if self.replace(alarm, short) == short {
                    break short;
                }
            };
            if is_set == before {
                return None;
            }
            (is_set, if self.is_any() { Vec::new() } else { std::mem::take(&mut *waiting) })
        };
        wakers.into_iter().for_each(Waker::wake);
        Some(is_set)
    }

    /// What it was before.
    fn replace(&self, alarm: Alarm, set: bool) -> bool {
        let bit = alarm as u8;
        let before = match set {
            true => self.set.fetch_or(bit, Ordering::SeqCst),
            false => self.set.fetch_and(!bit, Ordering::SeqCst),
        };
        before & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;
    use Alarm::{Disk, Memory};

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn publishers_are_told_all_that_is_short() {
        let alarms = Alarms::default();
        assert_eq!((alarms.is_any(), alarms.reason()), (false, None));
        assert_eq!(alarms.switch(Disk, || true), Some(true));
        assert_eq!((alarms.is_any(), alarms.reason()), (true, Some("low on disk")));
        assert_eq!(alarms.switch(Memory, || true), Some(true));
        assert_eq!(alarms.reason(), Some("low on memory & disk"));
        assert_eq!(alarms.switch(Disk, || false), Some(false));
        assert_eq!(alarms.reason(), Some("low on memory"));
        assert_eq!(alarms.switch(Disk, || false), None, "nothing has changed");
        assert_eq!(alarms.switch(Memory, || false), Some(false));
        assert_eq!((alarms.is_any(), alarms.reason()), (false, None));
    }

    #[test]
    fn publishers_go_on_when_nothing_is_short_any_more() {
        let woken = Arc::new(Count::default());
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        let alarms = Alarms::default();
        assert!(alarms.poll_clear(&mut context).is_ready());
        alarms.switch(Memory, || true);
        alarms.switch(Disk, || true);
        assert!(alarms.poll_clear(&mut context).is_pending());
        alarms.switch(Memory, || false);
        assert_eq!(woken.0.load(Ordering::SeqCst), 0, "the disk is still short");
        alarms.switch(Disk, || false);
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert!(alarms.poll_clear(&mut context).is_ready());
    }
}
