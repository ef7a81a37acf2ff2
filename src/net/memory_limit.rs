//! How much memory the process may use, for the limit that blocks publishers.
//!
//! Owns the reading of the machine's and the control group's size. It must not know what the
//! memory is used for.

use std::fs;

use crate::config::MemoryWatermark;

/// What is assumed where the system does not say (bytes).
const UNKNOWN_TOTAL: u64 = 1024 * 1024 * 1024;

/// The memory limit in bytes.
pub(super) fn limit_bytes(watermark: MemoryWatermark) -> u64 {
    match watermark {
        MemoryWatermark::Bytes(bytes) => bytes,
        MemoryWatermark::Fraction(fraction) => (total_bytes() as f64 * fraction) as u64,
    }
}

/// The smaller of the machine's memory and the control group's limit (a container's).
fn total_bytes() -> u64 {
    let read = |path: &str| fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| mem_total(&text));
    let groups = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let group = groups.iter().filter_map(|path| read(path)?.trim().parse::<u64>().ok()).min();
    machine.into_iter().chain(group).min().unwrap_or(UNKNOWN_TOTAL)
}

fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_machines_memory() {
        assert_eq!(mem_total("MemFree: 1 kB\nMemTotal:       2048 kB\n"), Some(2 * 1024 * 1024));
        assert_eq!(mem_total("nothing"), None);
        assert!(total_bytes() > 0);
    }

    #[test]
    fn a_fraction_is_of_the_whole() {
        assert_eq!(limit_bytes(MemoryWatermark::Bytes(7)), 7);
        let half = limit_bytes(MemoryWatermark::Fraction(0.5));
        assert!(half <= total_bytes() / 2 + 1 && half >= total_bytes() / 2 - 1);
    }
}
