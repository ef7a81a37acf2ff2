//! The live line on standard error while a run goes on.
//!
//! Owns its rhythm and its words.

use std::cell::RefCell;
use std::thread;
use std::time::{Duration, Instant};

use super::board::{Board, Totals};
use super::report::grouped;

/// How often the main thread looks at the counters.
pub(crate) const LOOK: Duration = Duration::from_millis(2);

/// The progress of one run.
pub(crate) struct Progress {
    began: Instant,
    shown: RefCell<(Instant, Totals)>,
}

impl Progress {
    /// From nothing, now.
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { began: now, shown: RefCell::new((now, Totals::default())) }
    }

    /// Waits, with a line each second, until `is_done`, a failure or the timeout; returns whether
    /// it was done.
    pub(crate) fn wait(
        &self,
        board: &Board,
        timeout: Duration,
        is_done: impl Fn() -> bool,
    ) -> bool {
        // A time that no clock can show never comes.
        let deadline = Instant::now().checked_add(timeout);
        while board.is_running() {
            if is_done() {
                return true;
            }
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            self.show(board);
            thread::sleep(left.map_or(LOOK, |left| left.min(LOOK)));
        }
        false
    }

    fn show(&self, board: &Board) {
        let (shown, last) = *self.shown.borrow();
        let elapsed = shown.elapsed().as_secs_f64();
        if elapsed < 1.0 {
            return;
        }
        let totals = board.totals();
        let line = line(&totals, &last, elapsed, board.blocked());
        eprintln!("{:5.1} s{line}", self.began.elapsed().as_secs_f64());
        self.shown.replace((Instant::now(), totals));
    }
}

fn line(totals: &Totals, last: &Totals, seconds: f64, blocked: u64) -> String {
    let rate = |field: fn(&Totals) -> u64| {
        grouped(((field(totals) - field(last)) as f64 / seconds) as u64)
    };
    let mut line = String::new();
    if totals.operations + totals.errors > 0 {
        line.push_str(&format!("  {} operations/s", rate(|totals| totals.operations)));
    } else {
        let (published, delivered) = (rate(|t| t.published), rate(|t| t.delivered));
        line.push_str(&format!("  published {published}/s  delivered {delivered}/s"));
    }
    if totals.confirmed > 0 {
        line.push_str(&format!("  confirmed {}/s", rate(|totals| totals.confirmed)));
    }
    if totals.refused > 0 {
        line.push_str(&format!("  refused {}", grouped(totals.refused)));
    }
    if totals.errors > 0 {
        line.push_str(&format!("  errors {}", grouped(totals.errors)));
    }
    if blocked > 0 {
        line.push_str(&format!("  ({blocked} connections blocked by the broker)"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_the_run_does() {
        let last = Totals { published: 100, operations: 5, ..Totals::default() };
        let messages = Totals { published: 2100, operations: 0, refused: 3, ..last };
        let last = Totals { operations: 0, ..last };
        let shown = line(&messages, &last, 2.0, 1);
        assert!(shown.starts_with("  published 1,000/s  delivered 0/s  refused 3"), "{shown}");
        assert!(shown.contains("1 connections blocked"), "{shown}");
        let operations = Totals { operations: 50, errors: 2, ..Totals::default() };
        let shown = line(&operations, &Totals::default(), 1.0, 0);
        assert_eq!(shown, "  50 operations/s  errors 2");
    }
}
