//! The conformance checks through lapin: the run, its deadlines and its report.
//!
//! Each check runs on connections of its own, as a task that is dropped at its deadline. No check
//! knows of another, and nothing here is shared with the broker.

mod checks;
mod queues;
mod routing;
mod session;

use std::process::ExitCode;
use std::time::Duration;

use checks::Check;
use queues::QueueCheck;
use session::{Outcome, Session};

const CHECK_TIME: Duration = Duration::from_secs(30);
const BULK_TIME: Duration = Duration::from_secs(60);
const SWEEP_TIME: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> ExitCode {
    let uri = std::env::args().nth(1).or_else(|| std::env::var("AMQP_URI").ok());
    let Some(uri) = uri.filter(|uri| !uri.is_empty()) else {
        eprintln!("usage: lapin-client amqp://user:password@host:port/%2F   (or set AMQP_URI)");
        return ExitCode::from(2);
    };
    let session = Session::new(uri);
    let mut failed = 0;
    for check in Check::ALL {
        let limit = if check.is_bulk() { BULK_TIME } else { CHECK_TIME };
        let outcome = within(limit, check.run(&session)).await;
        failed += report(check.name(), outcome);
    }
    for check in QueueCheck::ALL {
        let outcome = within(CHECK_TIME, check.run(&session)).await;
        failed += report(check.name(), outcome);
    }
    if let Err(error) = within(SWEEP_TIME, session.sweep()).await {
        eprintln!("sweep: {error}");
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints how a check ended; how many failed.
fn report(name: &str, outcome: Outcome) -> usize {
    let Err(error) = outcome else {
        println!("ok {name}");
        return 0;
    };
    let reason = error.to_string();
    let words: Vec<_> = reason.split_whitespace().collect();
    println!("FAIL {name}: {}", words.join(" "));
    1
}

async fn within(limit: Duration, check: impl Future<Output = Outcome>) -> Outcome {
    match tokio::time::timeout(limit, check).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("no end within {limit:?}").into()),
    }
}
