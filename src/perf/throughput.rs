//! The scenarios that move messages: steady throughput, and a backlog filled and then drained.
//!
//! Owns the order of steps; workers, counters and figures are others'.

use std::thread;
use std::time::{Duration, Instant};

use super::consumer::Seen;
use super::crew::{Crew, Outcome};
use super::ledger::{Ledger, Verdict};
use super::link::{Link, PerfError};
use super::measure::{Figures, report_memory};
use super::methods::Declare;
use super::plan::Plan;
use super::process::Process;
use super::report::Report;

/// When a queue's length has not changed for this long, it is what it is.
const SETTLE_TIME: Duration = Duration::from_secs(1);

/// How long a verified run by duration may take to deliver what is still on its way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

/// Producers and consumers at once, by duration or count.
pub(crate) fn steady(
    plan: &Plan,
    _control: &mut Link,
    report: &mut Report,
) -> Result<(), PerfError> {
    report.text("scenario", plan.summary());
    let mut crew = Crew::connect(plan, plan.paces(), plan.consumers)?;
    let mut begin = crew.begin();
    crew.start()?;
    let is_done = match plan.count {
        Some(count) => crew.wait(plan.deadline, |crew| is_count_done(plan, crew, count)),
        None => {
            crew.wait(plan.warmup, |_| false);
            begin = crew.begin();
            crew.wait(plan.duration, |_| false);
            true
        }
    };
    let end = crew.end("", report);
    crew.stop_publishing();
    if plan.count.is_none() && plan.is_verified {
        crew.wait(DRAIN_TIMEOUT, |crew| is_drained(plan, crew));
    }
    report_memory(report, plan.broker);
    let outcome = crew.finish()?;
    let figures = begin.until(&end);
    report_rates(plan, &figures, report);
    if plan.is_verified {
        judge(plan, &outcome, &outcome, report)?;
    }
    if !is_done {
        return Err(PerfError::Late("deliver the whole count (see --deadline)"));
    }
    Ok(())
}

/// Adds messages per second and what each cost.
pub(crate) fn report_rates(plan: &Plan, figures: &Figures, report: &mut Report) {
    report.number("seconds", figures.seconds, "s");
    let rate = |count: u64| count as f64 / figures.seconds;
    report.rate("published_per_s", rate(figures.published));
    if plan.window.is_some() {
        report.rate("confirmed_per_s", rate(figures.confirmed));
    }
    if figures.refused > 0 {
        report.count("refused", figures.refused);
    }
    report.rate("delivered_per_s", rate(figures.delivered));
    let has_deliveries = plan.consumers > 0;
    let messages = if has_deliveries { figures.delivered } else { figures.published };
    figures.report_cpu(report, "", messages, "message");
    figures.report_written(report, "", messages);
}

fn is_count_done(plan: &Plan, crew: &Crew, count: u64) -> bool {
    if plan.consumers == 0 {
        return crew.are_producers_done();
    }
    let totals = crew.totals();
    if plan.producers == 0 {
        return totals.delivered >= count;
    }
    // A message may come before its producer has counted it.
    let is_sent = totals.published >= count;
    let is_settled = plan.window.is_none() || totals.confirmed + totals.refused >= count;
    let counts: Vec<u64> = plan.paces().iter().filter_map(|pace| pace.count).collect();
    is_sent && is_settled && totals.delivered + totals.refused >= plan.deliveries_of(&counts)
}

/// Whether the producers have ended and all that they published has come.
pub(crate) fn is_drained(plan: &Plan, crew: &Crew) -> bool {
    // Published counts grow until the producers have ended.
    crew.are_producers_done() && undelivered(plan, crew) == 0
}

/// Deliveries that are still to come of what was published until now.
pub(crate) fn undelivered(plan: &Plan, crew: &Crew) -> u64 {
    let expected = plan.deliveries_of(&crew.published());
    let totals = crew.totals();
    expected.saturating_sub(totals.delivered + totals.refused)
}

/// Adds what a verified run found, from what the workers know that published and that consumed,
/// which may be the same; anything wrong is an error.
pub(crate) fn judge(
    plan: &Plan,
    published: &Outcome,
    consumed: &Outcome,
    report: &mut Report,
) -> Result<(), PerfError> {
    let mut verdict = Verdict::default();
    for queue in 0..plan.consumed_queues() {
        let is_its = |seen: &&Seen| seen.consumer % plan.queues.len() == queue;
        let seen = consumed.seen.iter().filter(is_its);
        let ledgers: Vec<_> = seen.filter_map(|seen| seen.ledger.as_ref()).collect();
        let sent = published.published.iter().enumerate();
        let sent: Vec<u64> = sent
            .map(|(producer, sent)| if plan.reaches(producer, queue) { *sent } else { 0 })
            .collect();
        verdict.add(&Ledger::judge(&ledgers, &sent));
    }
    verdict.lost = verdict.lost.saturating_sub(published.refused);
    report.count("lost", verdict.lost);
    report.count("duplicated", verdict.duplicated);
    report.count("out_of_order", verdict.disordered);
    report.count("foreign", verdict.foreign);
    report.count("redelivered", verdict.redelivered);
    if !verdict.is_clean() {
        return Err(PerfError::Refused("verification failed: see the counts above".into()));
    }
    Ok(())
}

/// Fills the queues without consumers, then drains them without producers.
pub(crate) fn backlog(
    plan: &Plan,
    control: &mut Link,
    report: &mut Report,
) -> Result<(), PerfError> {
    let count = plan.count.unwrap_or(0);
    report.text("scenario", format!("fill {count}, then drain: {}", plan.summary()));
    let empty = resident(plan.broker);
    let mut crew = Crew::connect(plan, plan.paces(), 0)?;
    let begin = crew.begin();
    crew.start()?;
    let is_filled = crew.wait(plan.deadline, Crew::are_producers_done);
    let fill = begin.until(&crew.end("fill", report));
    let filled = crew.finish()?;
    if !is_filled {
        return Err(PerfError::Late("take the whole backlog (see --deadline)"));
    }
    report.rate("filled_per_s", fill.published as f64 / fill.seconds);
    fill.report_cpu(report, "fill_", fill.published, "message");
    fill.report_written(report, "fill_", fill.published);
    if let (Some(empty), Some(full)) = (empty, resident(plan.broker)) {
        let each = full.saturating_sub(empty) as f64 / count.max(1) as f64;
        report.number("broker_bytes_per_message", each, "bytes");
    }
    let waiting =
        waiting(plan, control, plan.copies_of(&filled.published).saturating_sub(filled.refused))?;
    report.count("waiting", waiting);
    let mut crew = Crew::connect(plan, Vec::new(), plan.consumers)?;
    let begin = crew.begin();
    crew.start()?;
    let is_drained = crew.wait(plan.deadline, |crew| crew.totals().delivered >= waiting);
    let drain = begin.until(&crew.end("drain", report));
    let outcome = crew.finish()?;
    report.rate("drained_per_s", drain.delivered as f64 / drain.seconds);
    drain.report_cpu(report, "drain_", drain.delivered, "message");
    drain.report_written(report, "drain_", drain.delivered);
    report_memory(report, plan.broker);
    if plan.is_verified {
        judge(plan, &filled, &outcome, report)?;
    }
    if !is_drained {
        return Err(PerfError::Late("deliver the whole backlog (see --deadline)"));
    }
    Ok(())
}

/// How many messages wait in all queues, once there are as many as expected or no more come:
/// without confirms, a broker may have taken messages that are not in their queues yet.
fn waiting(plan: &Plan, control: &mut Link, expected: u64) -> Result<u64, PerfError> {
    let options = Declare { is_passive: true, ..Declare::default() };
    let (mut last, mut changed) = (0, Instant::now());
    loop {
        let mut waiting = 0;
        for queue in &plan.queues {
            waiting += u64::from(control.declare(queue, &options)?);
        }
        if waiting >= expected || (waiting == last && changed.elapsed() > SETTLE_TIME) {
            return Ok(waiting);
        }
        if waiting != last {
            (last, changed) = (waiting, Instant::now());
        }
        thread::sleep(SETTLE_TIME / 50);
    }
}

fn resident(broker: Option<Process>) -> Option<u64> {
    broker.and_then(Process::memory).map(|memory| memory.resident)
}
