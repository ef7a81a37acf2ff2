//! Giving memory back to the system.
//!
//! Owns when the allocator is asked to. By itself, glibc's gives back what is free at the end of a
//! heap only: after a backlog of a million messages of 100 bytes was drained but for the last
//! hundred, 83 MB stayed resident, and 26 MB when it was asked. It must not know what the memory
//! was used for.

/// It is worth asking when so many bytes are free, and a quarter of what was in use.
const WORTH_BYTES: u64 = 16 * 1024 * 1024;

/// Less of a change between two looks is none: while a backlog is drained, asking would only be in
/// the way.
const STEADY_BYTES: u64 = 1024 * 1024;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct FreedMemory {
    /// The most that was in use since memory was given back last.
    high: u64,
    last: u64,
}

impl FreedMemory {
    /// Takes notice of how much is in use, and the most that was since the last look, in bytes.
    /// Answers whether there is something worth giving back.
    pub(super) fn look(&mut self, (used, peak): (u64, u64)) -> bool {
        let is_steady = self.last.abs_diff(used).max(peak - used) < STEADY_BYTES;
        self.last = used;
        self.high = self.high.max(peak);
        let freed = self.high - used;
        let is_worth = is_steady && freed >= WORTH_BYTES.max(self.high / 4);
        if is_worth {
            self.high = used;
        }
        is_worth
    }
}

/// Asks the allocator, which takes some milliseconds.
pub(super) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code)]
    // SAFETY: malloc_trim(3) may be called at any time from any thread, and touches nothing but
    // free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn memory_is_given_back_once_after_a_drain() {
        let mut freed = FreedMemory::default();
        let mut look = |used, peak| freed.look((used * MIB, peak * MIB));
        for used in [0, 40, 100, 60, 20] {
            assert!(!look(used, used), "it is still changing");
        }
        assert!(look(20, 20));
        assert!(!look(20, 20), "that was done");
        assert!(!look(10, 20) && !look(10, 10), "it is not worth it");
        assert!(!look(3, 10) && look(3, 3));
        assert!(!look(3, 50) && look(3, 3), "it came and went between two looks");
    }

    #[test]
    fn little_of_much_is_not_worth_it() {
        let mut freed = FreedMemory::default();
        let mut look = |used, peak| freed.look((used * MIB, peak * MIB));
        assert!(!look(1000, 1000));
        assert!(!look(900, 1000) && !look(900, 900));
        assert!(!look(750, 900) && look(750, 750));
    }
}
