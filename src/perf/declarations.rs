//! What a run declares before and deletes after itself.
//!
//! Owns the order, and the care for what was there before: a queue that holds messages is refused.

use std::time::{Duration, Instant};

use super::dialogue::{Answers, Dialogue, Opening, QUEUE_BIND_OK};
use super::link::{CHANNEL, Link, PerfError};
use super::methods;
use super::plan::Plan;
use super::report::Report;
use super::topology::{Binding, Exchange};

/// Bindings that are declared at once.
const BOUND_AT_ONCE: usize = 500;

/// Declares the plan's queues, runs `scenario` and deletes them again, also after a failure, unless
/// they are to be kept.
pub(crate) fn with_queues(
    plan: &Plan,
    report: &mut Report,
    scenario: fn(&Plan, &mut Link, &mut Report) -> Result<(), PerfError>,
) -> Result<(), PerfError> {
    let mut control = Link::open(&plan.endpoint)?;
    report.text("server", control.server());
    declare(plan, &mut control)?;
    plan.broker.iter().for_each(|broker| broker.reset_peak());
    let done = scenario(plan, &mut control, report);
    let deleted = delete(plan, &mut control);
    done?;
    deleted?;
    control.close()
}

/// Declares queues and exchange, and binds them.
fn declare(plan: &Plan, control: &mut Link) -> Result<(), PerfError> {
    for (queue, options) in &plan.declarations() {
        let waiting = control.declare(queue, options)?;
        if waiting > 0 && plan.are_queues_empty {
            let text = format!("queue {queue} holds {waiting} messages: empty it or use another");
            return Err(PerfError::Refused(text));
        }
    }
    if let Some(exchange) = &plan.exchange {
        control.declare_exchange(&exchange.name, exchange.kind.name(), plan.is_persistent)?;
        if plan.churn.is_none() {
            bind(plan, exchange, control)?;
        }
    }
    Ok(())
}

/// Binds the queues, many requests at once: there may be hundreds of thousands.
fn bind(plan: &Plan, exchange: &Exchange, control: &Link) -> Result<(), PerfError> {
    let opening = Opening::like(control, &plan.endpoint);
    let mut dialogue = Dialogue::open(&opening)?;
    let mut bindings = exchange.bindings(plan.queues.len()).peekable();
    let (mut bound, mut shown) = (0, Instant::now());
    while bindings.peek().is_some() {
        let (mut requests, mut count) = (Vec::new(), 0);
        for Binding { queue, key, arguments } in bindings.by_ref().take(BOUND_AT_ONCE) {
            let bind = methods::bind(&plan.queues[queue], &exchange.name, &key, arguments);
            requests.extend(methods::frame(CHANNEL, &bind));
            count += 1;
        }
        dialogue.ask(&requests, &mut Answers::new(QUEUE_BIND_OK, count))?;
        bound += count;
        if shown.elapsed() > Duration::from_secs(1) {
            eprintln!("{bound} of {} bindings declared", exchange.bindings);
            shown = Instant::now();
        }
    }
    dialogue.close()
}

/// Deletes what was declared, unless it is to be kept.
fn delete(plan: &Plan, control: &mut Link) -> Result<(), PerfError> {
    if plan.are_queues_kept {
        return Ok(());
    }
    // The last first: a source goes before the queue that takes its dead letters.
    for (queue, _) in plan.declarations().iter().rev() {
        control.delete(queue)?;
    }
    match &plan.exchange {
        Some(exchange) => control.delete_exchange(&exchange.name),
        None => Ok(()),
    }
}
