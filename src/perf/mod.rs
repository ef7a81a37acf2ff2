//! `leveret perf`: a load generator for any AMQP 0-9-1 broker.
//!
//! Owns the command's exit codes and the choice of scenario; each file below owns one part of a
//! run. It speaks raw frames on blocking sockets, a thread for each connection, so that it costs
//! far less CPU than any broker: publishes are encoded once and written in blocks, deliveries are
//! counted by a walk over frame headers. It imports the codec and nothing else of the broker, and
//! must not reach into a broker in any other way than a client can (and /proc, for `--broker-pid`).

mod args;
mod block;
mod board;
mod churn;
mod confirms;
mod consumer;
mod crew;
mod declarations;
mod dialogue;
mod ears;
mod inbox;
mod latency;
mod ledger;
mod link;
mod measure;
mod methods;
mod name_value;
mod open_loop;
mod plan;
mod process;
mod producer;
mod progress;
mod quiet;
mod report;
mod requests;
mod rules;
mod schedule;
mod socket;
mod throughput;
mod timetable;
mod tls;
mod topology;
mod walk;
mod window;

use std::process::ExitCode;

pub use self::args::Args;
use self::plan::Plan;
use self::report::Report;

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let plan = match Plan::checked(args) {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("leveret perf: {error}");
            return ExitCode::from(2);
        }
    };
    let mut report = Report::default();
    let done = if plan.churn.is_some() {
        declarations::with_queues(&plan, &mut report, churn::churn)
    } else if let Some(connections) = args.idle_connections {
        quiet::idle(&plan, connections, &mut report)
    } else if plan.is_open_loop {
        declarations::with_queues(&plan, &mut report, open_loop::latency)
    } else if args.latency {
        declarations::with_queues(&plan, &mut report, quiet::latency)
    } else if args.fill.is_some() {
        declarations::with_queues(&plan, &mut report, throughput::backlog)
    } else {
        declarations::with_queues(&plan, &mut report, throughput::steady)
    };
    // A failed run shows what it had found until then; the exit code tells the two apart.
    if args.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.table());
    }
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leveret perf: {error}");
            ExitCode::FAILURE
        }
    }
}
