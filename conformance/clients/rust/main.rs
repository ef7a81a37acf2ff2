//! The conformance checks through lapin: the run, its deadlines and its report.
//!
//! Each check runs on connections of its own, as a task that is dropped at its deadline. No check
//! knows of another, and nothing here is shared with the broker.

mod checks;
mod routing;
mod session;

use std::process::ExitCode;
use std::time::Duration;

use checks::Check;
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
        match within(limit, check.run(&session)).await {
            Ok(()) => println!("ok {}", check.name()),
            Err(error) => {
                failed += 1;
                let reason = error.to_string();
                let words: Vec<_> = reason.split_whitespace().collect();
                println!("FAIL {}: {}", check.name(), words.join(" "));
            }
        }
    }
    if let Err(error) = within(SWEEP_TIME, session.sweep()).await {
        eprintln!("sweep: {error}");
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn within(limit: Duration, check: impl Future<Output = Outcome>) -> Outcome {
    match tokio::time::timeout(limit, check).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("no end within {limit:?}").into()),
    }
}
