//! The scenarios without load: idle connections and one message at a time.
//!
//! Owns the order of steps. Both run in the main thread, as there is nothing to overlap.

use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use super::block::Block;
use super::board::Board;
use super::confirms::Asking;
use super::consumer::Echo;
use super::inbox::Inbox;
use super::latency::Latencies;
use super::link::{Link, PerfError};
use super::measure::{Sample, report_memory};
use super::plan::Plan;
use super::process::Process;
use super::progress::Progress;
use super::report::Report;

/// How long polite goodbyes to idle connections may take in all.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a broker may take for one round trip.
const ROUND_TRIP_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens `connections` connections with a channel each and holds them.
pub(crate) fn idle(plan: &Plan, connections: usize, report: &mut Report) -> Result<(), PerfError> {
    // One connection first: what the broker sets up once must not be divided by the others.
    let first = Link::open(&plan.endpoint)?;
    report.text("server", first.server());
    report.text("scenario", format!("{connections} idle connections, one channel each"));
    thread::sleep(Duration::from_millis(500));
    let resident = || plan.broker.and_then(Process::memory).map(|memory| memory.resident);
    let before = resident();
    let (board, progress) = (Board::new(1), Progress::new(plan.broker, Some("connections")));
    let begin = progress.begin(&board);
    let mut links = Vec::with_capacity(connections);
    for _ in 0..connections {
        links.push(Link::open(&plan.endpoint)?);
        board.tally(0).operations.store(links.len() as u64, Relaxed);
        progress.show(&board);
    }
    let opened = begin.until(&Sample::take(&board, plan.broker));
    progress.wait(&board, plan.duration, || false);
    progress.end(&board, "", report);
    let held = resident();
    report.count("connections", connections as u64);
    report.rate("opened_per_s", connections as f64 / opened.seconds);
    if let (Some(before), Some(held)) = (before, held) {
        let each = held.saturating_sub(before) / connections.max(1) as u64;
        report.bytes("broker_bytes_per_connection", each);
    }
    opened.report_cpu(report, "", connections as u64, "connection");
    report_memory(report, plan.broker);
    let deadline = Instant::now() + GOODBYE_TIMEOUT;
    for link in links.into_iter().chain([first]) {
        if Instant::now() < deadline {
            link.close()?;
        }
    }
    Ok(())
}

/// Sends one message, waits for it or for its confirm, sends the next.
pub(crate) fn latency(
    plan: &Plan,
    _control: &mut Link,
    report: &mut Report,
) -> Result<(), PerfError> {
    let kind = if plan.is_persistent { "persistent" } else { "transient" };
    let board = Board::new(1);
    if plan.window.is_some() {
        let scenario = format!("a confirm for each message, no consumer, {} B, {kind}", plan.size);
        report.text("scenario", scenario);
        let link = Link::open(&plan.endpoint)?;
        let block = Block::new(&plan.shape_of(0, link.frame_max()), 1, 1);
        let mut asking = Asking::new(link, &board)?;
        round_trips(plan, report, &board, |number| {
            asking.once(block.run(number, 1), ROUND_TRIP_TIMEOUT)
        })?;
        return asking.close();
    }
    report.text("scenario", format!("ping-pong, one message in flight, {} B, {kind}", plan.size));
    let queue = plan.queue_of(0);
    let mut consuming = Link::open(&plan.endpoint)?;
    consuming.consume(queue, 0, true)?;
    let (socket, leftover) = consuming.into_parts();
    let inbox = Inbox::new(socket, leftover, 64 << 10);
    let producing = Link::open(&plan.endpoint)?;
    let block = Block::new(&plan.shape_of(0, producing.frame_max()), 1, 1);
    let (publishing, _) = producing.into_parts();
    let mut echo = Echo { publishing: &publishing, inbox, board: &board };
    round_trips(plan, report, &board, |number| echo.once(block.run(number, 1), ROUND_TRIP_TIMEOUT))
}

/// Makes round trips, of which `once` makes that of a number, and reports how long they took.
fn round_trips(
    plan: &Plan,
    report: &mut Report,
    board: &Board,
    mut once: impl FnMut(u64) -> Result<Duration, PerfError>,
) -> Result<(), PerfError> {
    let warm = Instant::now() + plan.warmup;
    while Instant::now() < warm {
        once(0)?;
    }
    let progress = Progress::new(plan.broker, Some("round_trips"));
    let begin = progress.begin(board);
    let end = Instant::now() + plan.duration;
    let mut latencies = Latencies::new();
    while Instant::now() < end && plan.count.is_none_or(|count| latencies.count() < count) {
        let took = once(latencies.count())?;
        latencies.record(took);
        board.tally(0).operations.store(latencies.count(), Relaxed);
        progress.show(board);
    }
    let figures = begin.until(&progress.end(board, "", report));
    report.count("round_trips", latencies.count());
    report.rate("round_trips_per_s", latencies.count() as f64 / figures.seconds);
    latencies.report(report, "");
    figures.report_cpu(report, "", latencies.count(), "round_trip");
    report_memory(report, plan.broker);
    Ok(())
}
