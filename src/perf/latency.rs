//! How long things took: a histogram, and its percentiles in a report.
//!
//! Owns the precision (three digits of nanoseconds up to an hour) and the names of percentiles.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::report::Report;

/// What takes longer counts as this.
const MAX_NS: u64 = 3_600_000_000_000;

/// Percentiles, and what they are called in a report.
const PERCENTILES: &[(&str, f64)] = &[
    ("p50_us", 0.5),
    ("p75_us", 0.75),
    ("p90_us", 0.9),
    ("p95_us", 0.95),
    ("p99_us", 0.99),
    ("p999_us", 0.999),
    ("p9999_us", 0.9999),
    ("max_us", 1.0),
];

/// A histogram of times.
#[derive(Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    /// An empty one.
    pub(crate) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, MAX_NS, 3);
        Self(histogram.expect("bounds and digits are in range"))
    }

    /// Notes one time.
    pub(crate) fn record(&mut self, took: Duration) {
        self.0.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Takes over what another one has.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    /// The number of times.
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// Adds all percentiles, in microseconds, with `prefix` before their names.
    pub(crate) fn report(&self, report: &mut Report, prefix: &str) {
        for (name, share) in PERCENTILES {
            let us = self.0.value_at_quantile(*share) as f64 / 1e3;
            report.number(format!("{prefix}{name}"), us, "us");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_three_digits() {
        let (mut low, mut high) = (Latencies::new(), Latencies::new());
        (1..=5000).for_each(|us| low.record(Duration::from_micros(us)));
        (5001..=10_000).for_each(|us| high.record(Duration::from_micros(us)));
        low.merge(&high);
        assert_eq!(low.count(), 10_000);
        let mut report = Report::default();
        low.report(&mut report, "confirm_");
        let json: serde_json::Value = serde_json::from_str(&report.json()).expect("an object");
        let expected = [5000, 7500, 9000, 9500, 9900, 9990, 9999, 10_000];
        for ((name, _), expected) in PERCENTILES.iter().zip(expected) {
            let got = json[format!("confirm_{name}")].as_f64().expect("a number");
            assert!((got / f64::from(expected) - 1.0).abs() < 0.001, "{name}: {got}");
        }
    }

    #[test]
    fn what_is_out_of_bounds_counts_all_the_same() {
        let mut latencies = Latencies::new();
        latencies.record(Duration::ZERO);
        latencies.record(Duration::MAX);
        assert_eq!(latencies.count(), 2);
    }
}
