//! Samples of counters, CPU and memory, and the figures between two of them.
//!
//! Owns the arithmetic of a measurement and the judgement whether the generator was its limit.

use std::time::Instant;

use super::board::{Board, Totals};
use super::process::{Process, Thread};
use super::report::Report;

/// A thread this busy limits the run.
const BUSY_SHARE: f64 = 0.9;

/// Everything that is known at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    at: Instant,
    totals: Totals,
    broker_us: Option<u64>,
    broker_written: Option<u64>,
    broker_threads: Vec<Thread>,
    own_us: Option<u64>,
    own_threads: Vec<Thread>,
}

impl Sample {
    /// Takes a sample.
    pub(crate) fn take(board: &Board, broker: Option<Process>) -> Self {
        let own = Process::own();
        let mut own_threads = own.threads();
        own_threads.extend(board.ended());
        Self {
            at: Instant::now(),
            totals: board.totals(),
            broker_us: broker.and_then(Process::cpu_us),
            broker_written: broker.and_then(Process::written),
            broker_threads: broker.map_or_else(Vec::new, Process::threads),
            own_us: own.cpu_us(),
            own_threads,
        }
    }

    /// The figures from this sample to a later one.
    pub(crate) fn until(&self, end: &Self) -> Figures {
        let seconds = end.at.duration_since(self.at).as_secs_f64().max(1e-6);
        let since = |later: Option<u64>, earlier: Option<u64>| later?.checked_sub(earlier?);
        Figures {
            seconds,
            published: end.totals.published - self.totals.published,
            confirmed: end.totals.confirmed - self.totals.confirmed,
            refused: end.totals.refused - self.totals.refused,
            delivered: end.totals.delivered - self.totals.delivered,
            operations: end.totals.operations - self.totals.operations,
            broker_us: since(end.broker_us, self.broker_us),
            broker_written: since(end.broker_written, self.broker_written),
            broker_busiest: busiest(&self.broker_threads, &end.broker_threads, seconds),
            own_us: since(end.own_us, self.own_us),
            own_busiest: busiest(&self.own_threads, &end.own_threads, seconds),
        }
    }
}

/// The thread that took the largest share of a core.
fn busiest(before: &[Thread], after: &[Thread], seconds: f64) -> Option<(String, f64)> {
    let shares = after.iter().map(|thread| {
        let earlier = before.iter().find(|earlier| earlier.id == thread.id);
        let used = thread.cpu_us.saturating_sub(earlier.map_or(0, |earlier| earlier.cpu_us));
        (thread.name.clone(), used as f64 / 1e6 / seconds)
    });
    shares.max_by(|a, b| a.1.total_cmp(&b.1))
}

/// What happened between two samples.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    /// The time between them.
    pub(crate) seconds: f64,
    /// Messages written.
    pub(crate) published: u64,
    /// Messages confirmed.
    pub(crate) confirmed: u64,
    /// Messages refused by basic.nack.
    pub(crate) refused: u64,
    /// Messages received.
    pub(crate) delivered: u64,
    /// Operations completed.
    pub(crate) operations: u64,
    broker_us: Option<u64>,
    broker_written: Option<u64>,
    broker_busiest: Option<(String, f64)>,
    own_us: Option<u64>,
    own_busiest: Option<(String, f64)>,
}

impl Figures {
    /// Adds CPU figures, with time divided by the number of `nouns` (messages, connections);
    /// `phase` tells the parts of one run apart and is empty otherwise.
    pub(crate) fn report_cpu(&self, report: &mut Report, phase: &str, nouns: u64, noun: &str) {
        for (who, us) in [("broker", self.broker_us), ("generator", self.own_us)] {
            let Some(us) = us.map(|us| us as f64) else { continue };
            let key = format!("{phase}{who}_cpu_us_per_{noun}");
            report.number(key, us / nouns.max(1) as f64, "us");
            report.number(format!("{phase}{who}_cores"), us / 1e6 / self.seconds, "");
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if let Some(note) = self.bottleneck(cores as f64) {
            report.generator_bound(note);
        }
    }

    /// Adds what the broker wrote to its disk, by message; `phase` as for CPU figures.
    pub(crate) fn report_written(&self, report: &mut Report, phase: &str, messages: u64) {
        if let Some(written) = self.broker_written {
            let key = format!("{phase}broker_written_bytes_per_message");
            report.number(key, written as f64 / messages.max(1) as f64, "bytes");
        }
    }

    /// Why the generator and not the broker may have set the pace, if so.
    fn bottleneck(&self, cores: f64) -> Option<String> {
        let is_busy = |(_, share): &&(String, f64)| *share > BUSY_SHARE;
        let own = self.own_busiest.as_ref().filter(is_busy);
        let is_broker_busy = self.broker_busiest.as_ref().filter(is_busy).is_some();
        if let Some((name, share)) = own.filter(|_| !is_broker_busy) {
            let percent = (share * 100.0).min(100.0);
            return Some(format!(
                "the generator is the bottleneck: its thread {name} was busy {percent:.0} % of \
                 the time; the broker may be faster than shown"
            ));
        }
        let (own, broker) = (self.own_us? as f64, self.broker_us? as f64);
        let is_full = (own + broker) / 1e6 / self.seconds > BUSY_SHARE * cores;
        (is_full && own > broker).then(|| {
            "generator and broker share a full machine and the generator takes the larger part: \
             with more cores the broker would be faster than shown"
                .to_owned()
        })
    }
}

/// Adds the broker's memory now and at its peak.
pub(crate) fn report_memory(report: &mut Report, broker: Option<Process>) {
    if let Some(memory) = broker.and_then(Process::memory) {
        report.bytes("broker_resident", memory.resident);
        report.bytes("broker_resident_peak", memory.peak);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn thread(id: u32, name: &str, cpu_us: u64) -> Thread {
        Thread { id, name: name.into(), cpu_us }
    }

    fn figures(own_us: u64, broker_us: u64, busy_us: u64) -> Figures {
        let begin = Sample {
            at: Instant::now(),
            totals: Totals::default(),
            broker_us: Some(1_000_000),
            broker_written: Some(4096),
            broker_threads: vec![thread(7, "worker", 0), thread(8, "worker", 5_000_000)],
            own_us: Some(1_000_000),
            own_threads: vec![thread(1, "producer-0", 100), thread(2, "consumer-0", 0)],
        };
        let mut end = begin.clone();
        end.at += Duration::from_secs(1);
        end.totals.delivered = 1_000_000;
        end.broker_us = Some(1_000_000 + broker_us);
        end.broker_written = Some(4096 + 2_500_000);
        end.own_us = Some(1_000_000 + own_us);
        end.own_threads[0].cpu_us += busy_us;
        begin.until(&end)
    }

    #[test]
    fn cpu_is_divided_by_messages() {
        let mut report = Report::default();
        let figures = figures(100_000, 500_000, 100_000);
        figures.report_cpu(&mut report, "", figures.delivered, "message");
        let json: serde_json::Value = serde_json::from_str(&report.json()).expect("an object");
        assert_eq!(json["broker_cpu_us_per_message"], 0.5);
        assert_eq!(json["generator_cores"], 0.1);
        assert_eq!(json["notes"].as_array().map(Vec::len), Some(0));
        assert_eq!(json["generator_bound"], false);
    }

    #[test]
    fn threads_are_told_apart_by_number() {
        let before = [thread(1, "w", 900_000), thread(2, "w", 0)];
        let after = [thread(1, "w", 900_000), thread(2, "w", 300_000), thread(3, "new", 400_000)];
        assert_eq!(busiest(&before, &after, 2.0), Some(("new".into(), 0.2)));
        assert_eq!(busiest(&before, &after[..2], 2.0), Some(("w".into(), 0.15)));
        assert_eq!(busiest(&[], &[], 1.0), None);
    }

    #[test]
    fn what_was_written_is_divided_by_messages() {
        let mut report = Report::default();
        figures(0, 0, 0).report_written(&mut report, "fill_", 1_000_000);
        let json: serde_json::Value = serde_json::from_str(&report.json()).expect("an object");
        assert_eq!(json["fill_broker_written_bytes_per_message"], 2.5);
    }

    #[test]
    fn the_generator_says_when_it_is_the_limit() {
        let note = figures(1_000_000, 200_000, 950_000).bottleneck(2.0).expect("a busy thread");
        assert!(note.contains("producer-0"), "{note}");
        // A thread of the broker that is as busy may as well be what limits the run.
        let mut both = figures(1_000_000, 980_000, 950_000);
        both.broker_busiest = Some(("worker".into(), 0.95));
        assert_eq!(both.bottleneck(4.0), None);
        assert!(figures(1_100_000, 850_000, 600_000).bottleneck(2.0).is_some());
        assert!(figures(850_000, 1_100_000, 600_000).bottleneck(2.0).is_none());
        assert!(figures(600_000, 500_000, 500_000).bottleneck(2.0).is_none());
    }
}
