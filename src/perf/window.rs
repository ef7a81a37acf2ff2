//! The window of publishes that wait for their confirm.
//!
//! Owns the count of outstanding publishes from the tags of acks and nacks, cumulative or single,
//! in any order. It does no IO.

use std::collections::BTreeSet;

/// Publishes sent and confirmed on one channel.
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// The tag of the last publish.
    sent: u64,
    /// Every tag up to this one is settled.
    settled_below: u64,
    /// Settled tags above `settled_below`: RabbitMQ confirms out of order.
    settled_early: BTreeSet<u64>,
}

impl Window {
    /// Notes `count` more publishes.
    pub(crate) fn sent(&mut self, count: u64) {
        self.sent += count;
    }

    /// Publishes that wait for their confirm.
    pub(crate) fn outstanding(&self) -> u64 {
        self.sent - self.settled_below - self.settled_early.len() as u64
    }

    /// The tags that [`Window::settle`] with these arguments settles newly.
    pub(crate) fn settling(&self, tag: u64, is_multiple: bool) -> impl Iterator<Item = u64> {
        let last = if tag == 0 && is_multiple { self.sent } else { tag.min(self.sent) };
        let first = if is_multiple { 1 } else { last };
        let tags = first.max(self.settled_below + 1)..=last;
        tags.filter(|tag| !self.settled_early.contains(tag))
    }

    /// Settles one tag, or all up to it; returns how many publishes that settled newly, or `None`
    /// for a tag that was never sent.
    pub(crate) fn settle(&mut self, tag: u64, is_multiple: bool) -> Option<u64> {
        // Tag 0 with `multiple` means all outstanding (specification, basic.ack).
        let tag = if tag == 0 && is_multiple { self.sent } else { tag };
        if tag == 0 || tag > self.sent {
            return None;
        }
        let before = self.outstanding();
        if is_multiple {
            self.settled_below = self.settled_below.max(tag);
            self.settled_early = self.settled_early.split_off(&(tag + 1));
        } else if tag > self.settled_below {
            self.settled_early.insert(tag);
        }
        while self.settled_early.remove(&(self.settled_below + 1)) {
            self.settled_below += 1;
        }
        Some(before - self.outstanding())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_cumulative_and_single_confirms_in_any_order() {
        let mut window = Window::default();
        window.sent(10);
        let settling = |window: &Window, tag, multiple| -> Vec<u64> {
            window.settling(tag, multiple).collect()
        };
        assert_eq!(settling(&window, 3, false), [3]);
        assert_eq!(window.settle(3, false), Some(1));
        assert!(settling(&window, 3, false).is_empty());
        assert_eq!(window.settle(3, false), Some(0));
        assert_eq!(window.settle(1, false), Some(1));
        assert_eq!(window.outstanding(), 8);
        assert_eq!(settling(&window, 5, true), [2, 4, 5]);
        assert_eq!(window.settle(5, true), Some(3));
        assert!(settling(&window, 4, false).is_empty());
        assert_eq!(window.settle(4, true), Some(0));
        assert_eq!(window.settle(7, false), Some(1));
        assert_eq!(settling(&window, 0, true), [6, 8, 9, 10]);
        assert_eq!(window.settle(0, true), Some(4));
        assert_eq!(window.outstanding(), 0);
        assert!(window.settled_early.is_empty());
    }

    #[test]
    fn refuses_tags_that_were_never_sent() {
        let mut window = Window::default();
        window.sent(2);
        assert_eq!(window.settle(3, true), None);
        assert_eq!(window.settle(0, false), None);
        assert_eq!(window.outstanding(), 2);
    }
}
