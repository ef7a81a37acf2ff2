//! The scenario of clients that come and go, or declare and delete, instead of sending messages.
//!
//! Owns the threads and the order of steps; the requests are encoded elsewhere.

use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::args::Churn;
use super::board::{Board, Totals};
use super::dialogue::{Answers, Dialogue, Opening, QUEUE_DELETE_OK};
use super::latency::Latencies;
use super::link::{Link, PerfError};
use super::measure::{Figures, report_memory};
use super::plan::Plan;
use super::process::Process;
use super::progress::Progress;
use super::report::Report;
use super::requests::{self, Operation};

/// How long a worker waits after a failure, so that a broker that refuses is not flooded.
const PAUSE: Duration = Duration::from_millis(10);

/// Queues that are deleted at once at the end.
const DELETED_AT_ONCE: u64 = 200;

/// Does the plan's operations until its time or count is over.
pub(crate) fn churn(plan: &Plan, control: &mut Link, report: &mut Report) -> Result<(), PerfError> {
    let Some(churn) = plan.churn else { return Ok(()) };
    report.text("scenario", plan.churn_summary(churn));
    let channels = u64::from(control.channel_max()).saturating_sub(1);
    if churn == Churn::Channels && control.channel_max() > 0 && plan.pipeline > channels {
        let text = format!("the broker takes {channels} channels at once: lower --pipeline");
        return Err(PerfError::Refused(text));
    }
    let opening = Opening::like(control, &plan.endpoint);
    let resident = || plan.broker.and_then(Process::memory).map(|memory| memory.resident);
    let before = resident();
    let run = Run { plan, churn, opening: &opening, board: Board::new(plan.producers) };
    let (done, figures) = run.go(control.frame_max(), report)?;
    let totals = run.board.totals();
    report.number("seconds", figures.seconds, "s");
    report.count("operations", figures.operations);
    report.rate("operations_per_s", figures.operations as f64 / figures.seconds);
    report.count("errors", totals.errors);
    let mut latencies = Latencies::new();
    done.iter().for_each(|done| latencies.merge(&done.latencies));
    latencies.report(report, "");
    figures.report_cpu(report, "", figures.operations, "operation");
    let is_growing = matches!(churn, Churn::Declare | Churn::Bind);
    if let (true, Some(before), Some(after)) = (is_growing, before, resident()) {
        let each = after.saturating_sub(before) / totals.operations.max(1);
        report.bytes("broker_bytes_per_operation", each);
    }
    report_memory(report, plan.broker);
    if churn == Churn::Declare && !plan.are_queues_kept {
        run.delete_queues(&done)?;
    }
    verdict(plan, done, totals)
}

/// What the whole run was like.
fn verdict(plan: &Plan, done: Vec<Done>, totals: Totals) -> Result<(), PerfError> {
    if let Some(error) = done.into_iter().find_map(|done| done.error) {
        let (failed, all) = (totals.errors, totals.errors + totals.operations);
        let text = format!("{failed} of {all} operations failed, the first because {error}");
        return Err(PerfError::Refused(text));
    }
    if plan.count.is_some_and(|count| totals.operations < count) {
        return Err(PerfError::Late("finish the whole count (see --deadline)"));
    }
    Ok(())
}

/// One run.
struct Run<'a> {
    plan: &'a Plan,
    churn: Churn,
    opening: &'a Opening,
    board: Board,
}

impl Run<'_> {
    /// Runs all workers; returns what they did, and the figures of the measured time.
    fn go(&self, frame_max: u32, report: &mut Report) -> Result<(Vec<Done>, Figures), PerfError> {
        let Self { plan, churn, opening, board } = self;
        let warmup = if plan.count.is_some() { Duration::ZERO } else { plan.warmup };
        let counts_from = board.began() + warmup;
        let worker = |number| Worker {
            number,
            operation: Operation::of(plan, *churn, number, frame_max),
            opening,
            pipeline: plan.pipeline,
            count: plan.share_of(number).unwrap_or(u64::MAX),
            counts_from,
            next: 0,
            requests: Vec::new(),
            latencies: Latencies::new(),
        };
        let progress = Progress::new(plan.broker, Some("operations"));
        let mut begin = progress.begin(board);
        thread::scope(|scope| {
            let spawn = |number| {
                let (worker, name) = (worker(number), format!("churn-{number}"));
                thread::Builder::new().name(name).spawn_scoped(scope, || worker.run(board))
            };
            let threads: Result<Vec<_>, _> = (0..plan.producers).map(spawn).collect();
            // Those that did start must end before the scope does.
            let threads = threads.inspect_err(|_| board.stop())?;
            if !warmup.is_zero() {
                progress.wait(board, warmup, || false);
                begin = progress.begin(board);
            }
            let are_done = || threads.iter().all(ScopedJoinHandle::is_finished);
            let limit = if plan.count.is_some() { plan.deadline } else { plan.duration };
            progress.wait(board, limit, are_done);
            let end = progress.end(board, "", report);
            board.stop();
            let crashed = |_| PerfError::Refused("a thread of the generator crashed".into());
            let joined = threads.into_iter().map(|thread| thread.join().map_err(crashed));
            Ok((joined.collect::<Result<_, _>>()?, begin.until(&end)))
        })
    }

    /// Deletes what the workers have declared.
    fn delete_queues(&self, done: &[Done]) -> Result<(), PerfError> {
        let mut dialogue = Dialogue::open(self.opening)?;
        let (deadline, mut requests) = (Instant::now() + self.plan.deadline, Vec::new());
        let all: u64 = done.iter().map(|done| done.next).sum();
        let (mut deleted, mut shown) = (0, Instant::now());
        for (worker, done) in done.iter().enumerate() {
            let deletion = requests::deletion(self.plan, worker);
            for first in (0..done.next).step_by(DELETED_AT_ONCE as usize) {
                let count = DELETED_AT_ONCE.min(done.next - first);
                requests.clear();
                (first..first + count).for_each(|number| deletion.put(&mut requests, number));
                dialogue.ask(&requests, &mut Answers::new(QUEUE_DELETE_OK, count))?;
                deleted += count;
                if Instant::now() > deadline {
                    return Err(PerfError::Late("delete the queues (see --deadline)"));
                }
                if shown.elapsed() > Duration::from_secs(1) {
                    eprintln!("{deleted} of {all} queues deleted");
                    shown = Instant::now();
                }
            }
        }
        dialogue.close()
    }
}

/// One connection's thread, or that of one connection after the other.
struct Worker<'a> {
    number: usize,
    operation: Operation,
    opening: &'a Opening,
    pipeline: u64,
    count: u64,
    counts_from: Instant,
    /// The first number that no request has had yet.
    next: u64,
    requests: Vec<u8>,
    latencies: Latencies,
}

/// What a worker did.
struct Done {
    latencies: Latencies,
    next: u64,
    /// The first failure.
    error: Option<PerfError>,
}

impl<'a> Worker<'a> {
    fn run(mut self, board: &Board) -> Done {
        let tally = board.tally(self.number);
        let (mut dialogue, mut error, mut operations) = (None, None, 0);
        while board.is_running() && operations < self.count {
            let batch = self.pipeline.min(self.count - operations);
            let done = if self.operation.is_connecting {
                self.connect_and_close()
            } else {
                self.batch(&mut dialogue, batch)
            };
            if let Err(failure) = done {
                error.get_or_insert(failure);
                dialogue = None;
                tally.errors.fetch_add(1, Relaxed);
                thread::sleep(PAUSE);
                continue;
            }
            operations += batch;
            tally.operations.store(operations, Relaxed);
        }
        // A courtesy: failures no longer count.
        let _ = dialogue.map(Dialogue::close);
        board.note_end();
        Done { latencies: self.latencies, next: self.next, error }
    }

    /// One operation on a connection of its own.
    fn connect_and_close(&mut self) -> Result<(), PerfError> {
        let began = Instant::now();
        let mut dialogue = Dialogue::open(self.opening)?;
        self.next += 1;
        for (template, answer) in &self.operation.steps {
            self.requests.clear();
            template.put(&mut self.requests, self.next);
            dialogue.ask(&self.requests, &mut Answers::new(*answer, 1))?;
        }
        dialogue.close()?;
        if began >= self.counts_from {
            self.latencies.record(began.elapsed());
        }
        Ok(())
    }

    /// So many operations at once, step by step.
    fn batch(&mut self, dialogue: &mut Option<Dialogue<'a>>, count: u64) -> Result<(), PerfError> {
        let dialogue = match dialogue {
            Some(dialogue) => dialogue,
            None => dialogue.insert(Dialogue::open(self.opening)?),
        };
        let first = if self.operation.is_distinct { self.next } else { 0 };
        self.next = first + count;
        let began = Instant::now();
        let last = self.operation.steps.len().saturating_sub(1);
        for (step, (template, answer)) in self.operation.steps.iter().enumerate() {
            self.requests.clear();
            (first..first + count).for_each(|number| template.put(&mut self.requests, number));
            let mut answers = Answers::new(*answer, count);
            if step == last && began >= self.counts_from {
                answers = answers.timed(began, &mut self.latencies);
            }
            dialogue.ask(&self.requests, &mut answers)?;
        }
        Ok(())
    }
}
