//! Samples of counters, CPU and memory, and the figures between two of them.
//!
//! Owns the arithmetic of a measurement and the judgement whether the generator was its limit.

use std::time::Instant;

use super::board::Totals;
use super::process::Process;
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
    own_us: Option<u64>,
    threads: Vec<(String, u64)>,
}

impl Sample {
    /// Takes a sample.
    pub(crate) fn take(totals: Totals, broker: Option<Process>) -> Self {
        let own = Process::own();
        Self {
            at: Instant::now(),
            totals,
            broker_us: broker.and_then(Process::cpu_us),
            broker_written: broker.and_then(Process::written),
            own_us: own.cpu_us(),
            threads: own.threads(),
        }
    }

    /// The figures from this sample to a later one.
    pub(crate) fn until(&self, end: &Self) -> Figures {
        let seconds = end.at.duration_since(self.at).as_secs_f64().max(1e-6);
        let since = |later: Option<u64>, earlier: Option<u64>| later?.checked_sub(earlier?);
        let busiest = end.threads.iter().filter_map(|(name, us)| {
            let before = self.threads.iter().find(|(earlier, _)| earlier == name);
            let used = us.saturating_sub(before.map_or(0, |(_, us)| *us));
            Some((name.clone(), used as f64 / 1e6 / seconds)).filter(|(_, share)| *share > 0.0)
        });
        Figures {
            seconds,
            published: end.totals.published - self.totals.published,
            confirmed: end.totals.confirmed - self.totals.confirmed,
            refused: end.totals.refused - self.totals.refused,
            delivered: end.totals.delivered - self.totals.delivered,
            operations: end.totals.operations - self.totals.operations,
            broker_us: since(end.broker_us, self.broker_us),
            broker_written: since(end.broker_written, self.broker_written),
            own_us: since(end.own_us, self.own_us),
            busiest: busiest.max_by(|a, b| a.1.total_cmp(&b.1)),
        }
    }
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
    own_us: Option<u64>,
    busiest: Option<(String, f64)>,
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
            report.note(note);
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
        if let Some((name, share)) = self.busiest.as_ref().filter(|(_, share)| *share > BUSY_SHARE)
        {
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

    fn figures(own_us: u64, broker_us: u64, busy_us: u64) -> Figures {
        let begin = Sample {
            at: Instant::now(),
            totals: Totals::default(),
            broker_us: Some(1_000_000),
            broker_written: Some(4096),
            own_us: Some(1_000_000),
            threads: vec![("producer-0".into(), 100), ("consumer-0".into(), 0)],
        };
        let mut end = begin.clone();
        end.at += Duration::from_secs(1);
        end.totals.delivered = 1_000_000;
        end.broker_us = Some(1_000_000 + broker_us);
        end.broker_written = Some(4096 + 2_500_000);
        end.own_us = Some(1_000_000 + own_us);
        end.threads[0].1 += busy_us;
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
        assert!(figures(1_100_000, 850_000, 600_000).bottleneck(2.0).is_some());
        assert!(figures(850_000, 1_100_000, 600_000).bottleneck(2.0).is_none());
        assert!(figures(600_000, 500_000, 500_000).bottleneck(2.0).is_none());
    }
}
