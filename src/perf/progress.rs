//! The live line on standard error while a run goes on, and the same figures for the report.
//!
//! Owns the rhythm, a second, and the words.

use std::cell::RefCell;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::board::{Board, Totals};
use super::measure::Sample;
use super::process::Process;
use super::report::{Report, grouped};

/// The time between two lines.
const SECOND: Duration = Duration::from_secs(1);

/// How often the main thread looks at the counters.
pub(crate) const LOOK: Duration = Duration::from_millis(2);

/// The progress of one run.
pub(crate) struct Progress {
    began: Instant,
    broker: Option<Process>,
    /// What is counted, if not messages.
    noun: Option<&'static str>,
    seconds: RefCell<Seconds>,
}

/// What happened from second to second.
struct Seconds {
    /// When the measurement began.
    measured_from: Instant,
    /// The end of the last second, and the totals then.
    last: (Instant, Totals),
    samples: Vec<Value>,
}

impl Seconds {
    fn new(totals: Totals) -> Self {
        let now = Instant::now();
        Self { measured_from: now, last: (now, totals), samples: Vec::new() }
    }
}

impl Progress {
    /// From nothing, now; of messages, or of what `noun` says.
    pub(crate) fn new(broker: Option<Process>, noun: Option<&'static str>) -> Self {
        let seconds = RefCell::new(Seconds::new(Totals::default()));
        Self { began: Instant::now(), broker, noun, seconds }
    }

    /// Begins the measurement: what came before does not count.
    pub(crate) fn begin(&self, board: &Board) -> Sample {
        // A warm-up of a second has its line, too.
        self.show_after(board, SECOND / 2);
        self.seconds.replace(Seconds::new(board.totals()));
        Sample::take(board, self.broker)
    }

    /// Ends the measurement; `phase` tells the parts of one run apart and is empty otherwise.
    pub(crate) fn end(&self, board: &Board, phase: &str, report: &mut Report) -> Sample {
        let sample = Sample::take(board, self.broker);
        // The rest of a second says something, its last moment only noise.
        let last = self.seconds.borrow().last.0;
        let is_first = self.seconds.borrow().samples.is_empty();
        if is_first || last.elapsed() >= SECOND / 10 {
            self.second(board);
        }
        let mut samples = std::mem::take(&mut self.seconds.borrow_mut().samples);
        if !phase.is_empty() {
            samples.iter_mut().for_each(|sample| sample["phase"] = json!(phase));
        }
        report.samples(samples);
        sample
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

    /// Shows a line if the last one is a second old.
    pub(crate) fn show(&self, board: &Board) {
        self.show_after(board, SECOND);
    }

    fn show_after(&self, board: &Board, age: Duration) {
        if self.seconds.borrow().last.0.elapsed() >= age {
            let line = self.second(board);
            eprintln!("{:5.1} s{line}", self.began.elapsed().as_secs_f64());
        }
    }

    /// Ends a second, or the part of one that is left; returns its line.
    fn second(&self, board: &Board) -> String {
        let (now, totals, blocked) = (Instant::now(), board.totals(), board.blocked());
        let resident = self.broker.and_then(Process::memory).map(|memory| memory.resident);
        let mut seconds = self.seconds.borrow_mut();
        let (before, last) = std::mem::replace(&mut seconds.last, (now, totals));
        let length = now.duration_since(before).as_secs_f64().max(1e-6);
        let rate = |field: fn(&Totals) -> u64| (field(&totals) - field(&last)) as f64 / length;
        let at = now.duration_since(seconds.measured_from).as_secs_f64();
        let mut sample = json!({"at_s": (at * 1e3).round() / 1e3, "broker_resident": resident});
        let mut line = String::new();
        let mut add = |name: &str, rate: f64, is_shown: bool| {
            sample[name] = json!(rate.round());
            if is_shown {
                line.push_str(&format!("  {name} {}/s", grouped(rate as u64)));
            }
        };
        if let Some(noun) = self.noun {
            add(noun, rate(|totals| totals.operations), true);
        } else {
            add("published", rate(|totals| totals.published), true);
            add("delivered", rate(|totals| totals.delivered), true);
            add("confirmed", rate(|totals| totals.confirmed), totals.confirmed > 0);
        }
        for (name, count) in [("refused", totals.refused), ("errors", totals.errors)] {
            if count > 0 {
                line.push_str(&format!("  {name} {}", grouped(count)));
            }
        }
        if blocked > 0 {
            line.push_str(&format!("  ({blocked} connections blocked by the broker)"));
        }
        seconds.samples.push(sample);
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn the_line_says_what_the_run_does() {
        let (board, messages) = (Board::new(1), Progress::new(None, None));
        let operations = Progress::new(None, Some("operations"));
        board.tally(0).published.store(1 << 20, Relaxed);
        board.tally(0).refused.store(3, Relaxed);
        let line = messages.second(&board);
        assert!(line.starts_with("  published ") && !line.contains("published 0/s"), "{line}");
        assert!(line.ends_with("  delivered 0/s  refused 3"), "{line}");
        board.tally(0).errors.store(2, Relaxed);
        let line = operations.second(&board);
        assert_eq!(line, "  operations 0/s  refused 3  errors 2");
    }

    #[test]
    fn samples_are_those_of_the_measurement() {
        let (board, progress) = (Board::new(1), Progress::new(None, None));
        board.tally(0).delivered.store(1 << 40, Relaxed);
        progress.second(&board);
        progress.begin(&board);
        board.tally(0).published.store(5, Relaxed);
        board.tally(0).confirmed.store(5, Relaxed);
        let mut report = Report::default();
        progress.end(&board, "fill", &mut report);
        let json: Value = serde_json::from_str(&report.json()).expect("an object");
        let samples = json["samples"].as_array().expect("a list");
        assert_eq!(samples.len(), 1, "{json}");
        assert_eq!(samples[0]["phase"], "fill");
        assert_eq!(samples[0]["delivered"], 0.0);
        assert!(samples[0]["published"].as_f64() > Some(0.0));
        assert_eq!(samples[0]["published"], samples[0]["confirmed"]);
    }
}
