//! CPU time, memory and disk writes of a process, as Linux tells them in /proc.
//!
//! Owns the reading and nothing else; where /proc is missing every answer is `None`.

use std::fs;

/// The kernel counts CPU time for user space in hundredths of a second on every architecture.
const TICK_US: u64 = 10_000;

/// A process that is watched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process(u32);

/// Resident memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Memory {
    /// Now.
    pub(crate) resident: u64,
    /// The most since the last [`Process::reset_peak`], or since its start without permission.
    pub(crate) peak: u64,
}

/// A thread's CPU time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Thread {
    /// Its number, which no other living thread has.
    pub(crate) id: u32,
    /// Its name, which others may have too.
    pub(crate) name: String,
    /// User and system time since it began, in microseconds.
    pub(crate) cpu_us: u64,
}

impl Thread {
    /// The thread that calls this.
    pub(crate) fn own() -> Option<Self> {
        parse_stat(&fs::read_to_string("/proc/thread-self/stat").ok()?)
    }
}

impl Process {
    /// The process with this id.
    pub(crate) fn of(pid: u32) -> Self {
        Self(pid)
    }

    /// This process.
    pub(crate) fn own() -> Self {
        Self(std::process::id())
    }

    /// User and system time of all threads since the process began, in microseconds.
    pub(crate) fn cpu_us(self) -> Option<u64> {
        parse_stat(&fs::read_to_string(format!("/proc/{}/stat", self.0)).ok()?)
            .map(|stat| stat.cpu_us)
    }

    /// Resident memory.
    pub(crate) fn memory(self) -> Option<Memory> {
        parse_status(&fs::read_to_string(format!("/proc/{}/status", self.0)).ok()?)
    }

    /// Bytes that the process had written to a disk, or is to have written: each time that it
    /// changes a page of a file, the page counts. It takes the process's own user or root.
    pub(crate) fn written(self) -> Option<u64> {
        parse_io(&fs::read_to_string(format!("/proc/{}/io", self.0)).ok()?)
    }

    /// Lets [`Memory::peak`] count from here on; it does nothing without permission.
    pub(crate) fn reset_peak(self) {
        // 5 resets the high-water mark of resident memory, see proc(5).
        let _ = fs::write(format!("/proc/{}/clear_refs", self.0), "5");
    }

    /// The living threads.
    pub(crate) fn threads(self) -> Vec<Thread> {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.0)) else {
            return Vec::new();
        };
        let stats = tasks.flatten().map(|task| fs::read_to_string(task.path().join("stat")));
        stats.flatten().filter_map(|stat| parse_stat(&stat)).collect()
    }
}

/// Reads a stat file, of a process or a thread. The name stands in parentheses and may itself
/// contain any of them.
fn parse_stat(stat: &str) -> Option<Thread> {
    let id = stat.split_ascii_whitespace().next()?.parse().ok()?;
    let (name_start, name_end) = (stat.find('(')? + 1, stat.rfind(')')?);
    let name = stat.get(name_start..name_end)?.to_owned();
    let mut fields = stat.get(name_end + 1..)?.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Thread { id, name, cpu_us: (user + system) * TICK_US })
}

fn parse_status(status: &str) -> Option<Memory> {
    let bytes = |key: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    };
    Some(Memory { resident: bytes("VmRSS:")?, peak: bytes("VmHWM:")? })
}

fn parse_io(io: &str) -> Option<u64> {
    io.lines().find_map(|line| line.strip_prefix("write_bytes:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_shift_the_fields() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 9 0 0 0 250 50 0 0 20 0 8 0 100 1 2";
        let expected = Thread { id: 7, name: "a) b (c)".into(), cpu_us: 3_000_000 };
        assert_eq!(parse_stat(stat), Some(expected));
        assert_eq!(parse_stat("7 (a"), None);
    }

    #[test]
    fn memory_is_read_in_kib() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(parse_status(status), Some(Memory { resident: 1 << 20, peak: 2 << 20 }));
        assert_eq!(parse_status("Name:\tx\n"), None);
    }

    #[test]
    fn only_what_goes_to_the_disk_counts_as_written() {
        let io = "wchar: 9\nsyscw: 3\nwrite_bytes: 4096\ncancelled_write_bytes: 1\n";
        assert_eq!(parse_io(io), Some(4096));
        assert_eq!(parse_io("wchar: 9\n"), None);
    }
}
