//! Child processes with a deadline, and their output in files.
//!
//! A child leads a process group, so that a script's own children go with it.

use std::fs::File;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::Command;

/// How a child came to its end.
pub(crate) enum End {
    /// By itself, with this status.
    Exit(ExitStatus),
    /// Killed at its deadline.
    Deadline,
}

/// A running child's process group, killed when the value is dropped before the child's end.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            send_signal("KILL", &format!("-{leader}"));
        }
    }
}

/// Runs the command to its end, its outputs written to the two files.
pub(crate) async fn run(
    mut command: Command,
    limit: Duration,
    stdout: &Path,
    stderr: &Path,
) -> std::io::Result<End> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(File::create(stdout)?)
        .stderr(File::create(stderr)?)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let mut group = Group(child.id());
    match tokio::time::timeout(limit, child.wait()).await {
        Ok(status) => {
            group.0 = None;
            Ok(End::Exit(status?))
        }
        Err(_) => Ok(End::Deadline),
    }
}

/// Sends a signal by the system's `kill`, which needs no unsafe code here. A target that is gone
/// already is no error.
pub(crate) fn send_signal(name: &str, target: &str) {
    let kill = std::process::Command::new("kill")
        .args(["-s", name, "--", target])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if let Err(error) = kill {
        eprintln!("conformance: cannot run kill for process {target}: {error}");
    }
}

/// The last lines of a text file, indented; nothing if there are none.
pub(crate) fn tail(file: &Path, lines_max: usize) -> String {
    let text = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let first = lines.len().saturating_sub(lines_max);
    lines[first..].iter().map(|line| format!("    {line}\n")).collect()
}
