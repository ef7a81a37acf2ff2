//! The scenario of messages that are published by the clock, whatever the broker does.
//!
//! Owns the order of steps and what is reported; the timetable says when messages are due.

use super::crew::Crew;
use super::latency::Latencies;
use super::link::{Link, PerfError};
use super::measure::report_memory;
use super::plan::Plan;
use super::report::Report;
use super::throughput::{is_drained, judge, report_rates, undelivered};

/// Publishes by the timetable until the last message is due, then waits for all that were due.
pub(crate) fn latency(
    plan: &Plan,
    _control: &mut Link,
    report: &mut Report,
) -> Result<(), PerfError> {
    report.text("scenario", format!("open loop: {}", plan.summary()));
    let mut crew = Crew::connect(plan, plan.paces(), plan.consumers)?;
    crew.start()?;
    crew.wait(plan.warmup, |_| false);
    let begin = crew.begin();
    crew.wait(plan.duration, |_| false);
    let end = crew.end("", report);
    let is_done = crew.wait(plan.deadline, |crew| is_drained(plan, crew));
    report_memory(report, plan.broker);
    let undelivered = undelivered(plan, &crew);
    let outcome = crew.finish()?;
    report_rates(plan, &begin.until(&end), report);
    if plan.consumers > 0 {
        let seen = outcome.seen.iter().filter_map(|seen| seen.latencies.as_ref());
        report_latencies(seen, "", report);
    }
    if plan.window.is_some() {
        report_latencies(outcome.sent.iter().map(|sent| &sent.confirmed), "confirm_", report);
    }
    report_latencies(outcome.sent.iter().map(|sent| &sent.late), "sent_late_", report);
    if plan.is_verified {
        judge(plan, &outcome, &outcome, report)?;
    }
    if !is_done {
        report.count("undelivered", undelivered);
        return Err(PerfError::Late("take and deliver all that was due (see --deadline)"));
    }
    Ok(())
}

fn report_latencies<'a>(
    each: impl Iterator<Item = &'a Latencies>,
    prefix: &str,
    report: &mut Report,
) {
    let mut all = Latencies::new();
    each.for_each(|latencies| all.merge(latencies));
    all.report(report, prefix);
}
