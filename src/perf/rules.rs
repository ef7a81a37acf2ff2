//! Which options make sense together, as far as the command line's parser cannot tell.
//!
//! Owns the refusals; each says what to change.

use super::args::{Args, Churn};
use super::block::{self, STAMP_LEN};

/// The most that a producer may encode beforehand: all its keys with all priorities.
const BLOCK_BYTES_MAX: usize = 1 << 30;

/// What a message takes besides its body, properties of usual length included.
const MESSAGE_OVERHEAD: usize = 256;

/// Refuses options that contradict each other.
pub(crate) fn check(args: &Args) -> Result<(), String> {
    sizes(args)?;
    latency(args)?;
    exchange(args)?;
    churn(args)
}

fn sizes(args: &Args) -> Result<(), String> {
    if args.queue_prefix.as_ref().is_some_and(|prefix| prefix.len() > 200) {
        return Err("--queue-prefix: at most 200 bytes".into());
    }
    let is_rate = |rate: f64| rate > 0.0;
    if !args.rate.is_none_or(is_rate) || !args.consume_rate.is_none_or(is_rate) {
        return Err("--rate and --consume-rate must be above 0".into());
    }
    if args.predeclared && args.queue.is_empty() && args.queue_prefix.is_none() {
        return Err("--predeclared needs the queues' names: --queue or --queue-prefix".into());
    }
    if args.queue.iter().any(|name| name.len() > 255) {
        return Err("--queue: at most 255 bytes".into());
    }
    if args.producers + args.consumers == 0 || args.queues == 0 {
        return Err("at least one producer or consumer and one queue are needed".into());
    }
    let prefetch = u64::from(args.prefetch);
    if prefetch > 0 && args.ack_every.is_some_and(|every| every > prefetch) {
        return Err("--ack-every must not be above --prefetch".into());
    }
    if (args.verify || args.is_open_loop()) && args.size < STAMP_LEN {
        return Err(format!("--verify and --latency --rate need --size {STAMP_LEN} or more"));
    }
    Ok(())
}

fn latency(args: &Args) -> Result<(), String> {
    let is_measurable = args.producers > 0 && (args.consumers > 0 || args.confirms.is_some());
    if args.is_open_loop() && !is_measurable {
        return Err("--latency --rate needs producers, and consumers or --confirms".into());
    }
    let has_window = args.confirms.is_some_and(|window| window > 1);
    if args.latency && !args.is_open_loop() && has_window {
        let text = "--latency without --rate has one message in flight: it takes --confirms 1";
        return Err(text.into());
    }
    Ok(())
}

fn exchange(args: &Args) -> Result<(), String> {
    let keys = args.routing_keys as usize;
    let period = block::period(keys, args.priorities);
    if period.saturating_mul(args.size.saturating_add(MESSAGE_OVERHEAD)) > BLOCK_BYTES_MAX {
        return Err("so many --routing-keys of such messages take more than 1 GiB".into());
    }
    let Some(kind) = args.exchange else { return Ok(()) };
    let min = kind.bindings_min(args.queues, keys);
    if args.bindings.is_some_and(|bindings| bindings < min) {
        return Err(format!("--bindings must be {min} or more, for all messages to come through"));
    }
    Ok(())
}

fn churn(args: &Args) -> Result<(), String> {
    let Some(churn) = args.churn else { return Ok(()) };
    if args.producers == 0 {
        return Err("--churn needs producers".into());
    }
    if args.pipeline > 1 && matches!(churn, Churn::Connections | Churn::Session) {
        return Err("--churn connections and session take no --pipeline: use --producers".into());
    }
    if !args.property.is_empty() && churn != Churn::Session {
        return Err("--property is for messages, of which only --churn session has one".into());
    }
    let is_declaring = !matches!(churn, Churn::Connections | Churn::Channels);
    if !is_declaring && (args.persistent || !args.queue_argument.is_empty()) {
        return Err("--churn connections and channels declare nothing".into());
    }
    if args.exchange.is_some() && !matches!(churn, Churn::Declare | Churn::Bind) {
        return Err("--exchange is for --churn declare and --churn bind".into());
    }
    Ok(())
}
