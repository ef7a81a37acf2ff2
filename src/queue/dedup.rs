//! The values that were seen lately, to tell duplicates by.
//!
//! Owns a set of values that is bounded by size and time: the oldest goes first, each value goes
//! when its time is over. It must not know what the values are of, nor what becomes of a duplicate.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::clock::Millis;

/// Entries of `order` that stand for nothing any more are cleared away when there are this many
/// more of them than of the others.
const STALE_MAX: usize = 64;

#[derive(Debug)]
struct Entry {
    number: u64,
    until: Option<Millis>,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Dedup {
    size: usize,
    ttl_ms: Option<u64>,
    /// Values come from clients, so they are hashed with a seed.
    entries: HashMap<Arc<[u8]>, Entry>,
    /// The values in the order of insertion; the number tells one that was inserted again.
    order: VecDeque<(u64, Arc<[u8]>)>,
    last: u64,
    bytes: usize,
}

impl Dedup {
    /// A set of at most `size` values, each of which is remembered for `ttl_ms`, or for as long as
    /// there is room.
    pub(crate) fn new(size: usize, ttl_ms: Option<u64>) -> Self {
        Self { size, ttl_ms, entries: HashMap::new(), order: VecDeque::new(), last: 0, bytes: 0 }
    }

    /// Whether the value is there. If not, it is from now on; `ttl_ms` has precedence over the
    /// set's own. Seeing a value again does not prolong its time.
    pub(crate) fn seen_or_insert(
        &mut self,
        value: &[u8],
        now: Millis,
        ttl_ms: Option<u64>,
    ) -> bool {
        match self.entries.get(value) {
            Some(entry) if entry.until.is_none_or(|until| now < until) => return true,
            Some(_) => self.forget(value),
            None => {}
        }
        while self.entries.len() >= self.size.max(1) {
            self.drop_oldest();
        }
        let until = ttl_ms.or(self.ttl_ms).map(|ttl_ms| Millis(now.0.saturating_add(ttl_ms)));
        self.last += 1;
        let value: Arc<[u8]> = value.into();
        self.bytes += size_of_entry(&value);
        self.entries.insert(value.clone(), Entry { number: self.last, until });
        self.order.push_back((self.last, value));
        false
    }

    /// Forgets the value, so that the next one like it is no duplicate.
    pub(crate) fn forget(&mut self, value: &[u8]) {
        if self.entries.remove(value).is_none() {
            return;
        }
        self.bytes -= size_of_entry(value);
        if self.order.len() > 2 * self.entries.len() + STALE_MAX {
            let entries = &self.entries;
            self.order.retain(|(number, value)| is_current(entries, *number, value));
        }
    }

    /// Bytes that the values take, roughly.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn drop_oldest(&mut self) {
        while let Some((number, value)) = self.order.pop_front() {
            if is_current(&self.entries, number, &value) {
                self.entries.remove(&value);
                self.bytes -= size_of_entry(&value);
                return;
            }
        }
    }
}

fn is_current(entries: &HashMap<Arc<[u8]>, Entry>, number: u64, value: &[u8]) -> bool {
    entries.get(value).is_some_and(|entry| entry.number == number)
}

/// A value with its places in the map and in the order.
fn size_of_entry(value: &[u8]) -> usize {
    const OVERHEAD: usize = 96;
    value.len() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(dedup: &mut Dedup, value: &str, now: u64) -> bool {
        dedup.seen_or_insert(value.as_bytes(), Millis(now), None)
    }

    #[test]
    fn the_oldest_goes_first() {
        let mut dedup = Dedup::new(2, None);
        assert!(!seen(&mut dedup, "a", 0) && seen(&mut dedup, "a", 0));
        assert!(!seen(&mut dedup, "b", 0));
        assert!(!seen(&mut dedup, "c", 0), "there is room for two");
        assert!(!seen(&mut dedup, "a", 0), "the oldest has gone");
        assert!(seen(&mut dedup, "c", 0));
        assert_eq!((dedup.entries.len(), dedup.bytes()), (2, 2 * size_of_entry(b"a")));
    }

    #[test]
    fn values_go_when_their_time_is_over() {
        let mut dedup = Dedup::new(10, Some(100));
        assert!(!seen(&mut dedup, "a", 0));
        assert!(!dedup.seen_or_insert(b"b", Millis(0), Some(10)));
        assert!(seen(&mut dedup, "a", 99), "which does not prolong it");
        assert!(!seen(&mut dedup, "b", 10));
        assert!(!seen(&mut dedup, "a", 100));
        assert!(seen(&mut dedup, "a", 199));
    }

    #[test]
    fn what_is_forgotten_is_new_again_and_takes_no_memory() {
        let mut dedup = Dedup::new(2, None);
        for n in 0..10_000 {
            assert!(!seen(&mut dedup, "a", n));
            dedup.forget(b"a");
            dedup.forget(b"never there");
        }
        assert_eq!(dedup.bytes(), 0);
        assert!(dedup.order.len() <= 2 * STALE_MAX);
        // Stale places in the order push nothing out.
        assert!(!seen(&mut dedup, "a", 0) && !seen(&mut dedup, "b", 0));
        assert!(seen(&mut dedup, "a", 0) && seen(&mut dedup, "b", 0));
    }
}
