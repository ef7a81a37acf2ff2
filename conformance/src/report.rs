//! The verdict: what the clients' lines say, as a table, and the numbers of the last line.
//!
//! A client must answer for every check on the list: one that it does not mention has failed.

use crate::client::{CLIENTS, Client, Transcript};
use crate::environment::Obstacle;

/// A check: its name, and what it shows.
pub(crate) type Check = (&'static str, &'static str);

/// The checks that every client library goes through.
pub(crate) const CHECKS: &[Check] = &[
    ("wrong-password", "a wrong password is the library's own authentication error"),
    ("declare", "declare, redeclare, server names, purge, delete, 406 for an inequivalent one"),
    ("bind-default", "the default exchange routes by queue name"),
    ("bind-direct", "a direct exchange routes by key; unbinding ends it"),
    ("bind-fanout", "a fanout exchange routes to every queue"),
    ("bind-topic", "a topic exchange routes by * and #, one copy per queue"),
    ("bind-headers", "a headers exchange routes by x-match all and any"),
    ("bind-exchange", "an exchange bound to another passes messages on"),
    ("confirms", "10,000 messages are published and each is confirmed"),
    ("consume-two", "two consumers, prefetch 100, manual acks: 10,000 messages once, in order"),
    ("nack-requeue", "a nacked message comes back, marked redelivered; a rejected one does not"),
    ("get", "basic.get, from an empty queue too, with its properties intact"),
    ("mandatory-return", "an unroutable mandatory message returns with 312 before its confirm"),
    ("passive-missing", "a missing queue is 404, and the connection goes on"),
    ("exclusive-locked", "another connection's exclusive queue is 405, and goes with its owner"),
    ("rpc-reply-to", "calls and replies through amq.rabbitmq.reply-to"),
    ("tx", "transactions over publishes and acks, committed and rolled back"),
    ("close", "channels and connections close cleanly, one by one"),
    ("ttl", "queue and message TTLs, of which the shorter wins: expired, uncounted, undelivered"),
    ("queue-expires", "an unused queue goes after its x-expires, one in use does not"),
    ("dead-letter", "rejected, expired and surplus messages through a DLX, with their x-death"),
    ("retry-loop", "work queue, reject, wait queue with a TTL, and back: three rounds, counted"),
    ("max-length", "drop-head keeps the newest; reject-publish nacks, and dead-letters if told to"),
    ("priority-queue", "higher priorities first, those beyond the maximum as the maximum"),
    ("single-active", "one consumer at a time; the next after a cancel and after a close"),
    ("consumer-priority", "the consumer of higher priority first, until its prefetch is full"),
    ("delivery-limit", "a quorum queue counts deliveries and dead-letters at its limit"),
    ("quorum-declare", "a quorum queue is declared, declared again, and refused otherwise: 406"),
];

/// The checks that every framework goes through, with a worker process of its own.
pub(crate) const FRAMEWORK_CHECKS: &[Check] = &[
    ("task", "a worker runs 100 tasks, and their results come back"),
    ("task-countdown", "a task with a countdown runs then, and not before"),
    ("task-retry", "a task that asks to be retried is, three times"),
    ("task-late-ack", "a task acked late runs again when its worker is killed"),
    ("worker-ping", "the worker answers to remote control"),
    ("task-quorum", "a task through a quorum queue, and one delayed by the broker's queues"),
];

const CHECK_WIDTH: usize = 19;
const COLUMN_GAP: usize = 2;

/// How one check of one client ended.
#[derive(Clone, Debug, PartialEq)]
enum Cell {
    Ok,
    Fail(String),
    NotApplicable,
}

/// What one client said.
pub(crate) struct Verdict {
    cells: Vec<(String, Cell)>,
    fault: Option<String>,
    tail: String,
}

impl Verdict {
    /// Reads a client's lines: `ok NAME`, `FAIL NAME: reason`, `n/a NAME: reason`.
    pub(crate) fn new(transcript: Transcript, checks: &[Check]) -> Self {
        let Transcript { stdout, mut fault, tail } = transcript;
        let said: Vec<_> = stdout.lines().filter_map(parse_line).collect();
        let is_known = |name: &str| checks.iter().any(|(check, _)| *check == name);
        if let Some((name, _)) = said.iter().find(|(name, _)| !is_known(name)) {
            fault = Some(format!("reported a check that is not on the list: {name}"));
        }
        let answer = |check: &str| {
            let cell = said.iter().rev().find(|(name, _)| name == check).map(|(_, cell)| cell);
            let silent = || Cell::Fail(fault.clone().unwrap_or_else(|| "not reported".to_owned()));
            (check.to_owned(), cell.cloned().unwrap_or_else(silent))
        };
        let cells: Vec<_> = checks.iter().map(|(check, _)| answer(check)).collect();
        // Failed checks make a client exit so; any other bad end is a failure of its own.
        if cells.iter().any(|(_, cell)| matches!(cell, Cell::Fail(_))) {
            fault = None;
        }
        Self { cells, fault, tail }
    }

    fn count(&self, wanted: fn(&Cell) -> bool) -> usize {
        self.cells.iter().filter(|(_, cell)| wanted(cell)).count()
    }

    fn passed(&self) -> usize {
        self.count(|cell| *cell == Cell::Ok)
    }

    fn failed(&self) -> usize {
        self.count(|cell| matches!(cell, Cell::Fail(_))) + usize::from(self.fault.is_some())
    }

    /// One line on the client.
    pub(crate) fn summary(&self) -> String {
        let (passed, failed) = (self.passed(), self.failed());
        let rest = self.count(|cell| *cell == Cell::NotApplicable);
        format!("{passed} ok, {failed} failed, {rest} not applicable")
    }
}

fn parse_line(line: &str) -> Option<(String, Cell)> {
    let (word, rest) = line.split_once(' ')?;
    let (name, reason) = rest.split_once(": ").unwrap_or((rest, "no reason given"));
    let cell = match word {
        "ok" => Cell::Ok,
        "FAIL" => Cell::Fail(reason.trim().to_owned()),
        "n/a" => Cell::NotApplicable,
        _ => return None,
    };
    Some((name.trim_end_matches(':').to_owned(), cell))
}

/// What is known of one client: what it said, or why it said nothing.
enum Column {
    Pending,
    Said(Verdict),
    SetAside(Obstacle),
}

/// The report of a run.
pub(crate) struct Report {
    columns: Vec<(Client, Column)>,
    broker_fault: Option<String>,
    require_all: bool,
}

/// The numbers of the last line.
#[derive(Default)]
struct Totals {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Report {
    /// A report on these clients, of which nothing is known yet.
    pub(crate) fn new(clients: Vec<Client>, require_all: bool) -> Self {
        let columns = clients.into_iter().map(|one| (one, Column::Pending)).collect();
        Self { columns, broker_fault: None, require_all }
    }

    /// Adds what a client said.
    pub(crate) fn add(&mut self, client: &Client, verdict: Verdict) {
        self.set(client, Column::Said(verdict));
    }

    /// Notes that a client cannot run.
    pub(crate) fn set_aside(&mut self, client: &Client, obstacle: &Obstacle) {
        self.set(client, Column::SetAside(obstacle.clone()));
    }

    /// Notes that the broker itself misbehaved.
    pub(crate) fn blame_broker(&mut self, fault: String) {
        self.broker_fault = Some(fault);
    }

    fn set(&mut self, client: &Client, column: Column) {
        if let Some((_, place)) = self.columns.iter_mut().find(|(one, _)| one == client) {
            *place = column;
        }
    }

    /// Whether anything failed so far.
    pub(crate) fn has_failed(&self) -> bool {
        self.totals().failed > 0
    }

    fn totals(&self) -> Totals {
        let mut totals =
            Totals { failed: usize::from(self.broker_fault.is_some()), ..Totals::default() };
        for (client, column) in &self.columns {
            match column {
                Column::Pending => {}
                Column::Said(verdict) => {
                    totals.passed += verdict.passed();
                    totals.failed += verdict.failed();
                }
                Column::SetAside(Obstacle::Missing(_)) if !self.require_all => {
                    totals.skipped += client.checks.len();
                }
                Column::SetAside(_) => totals.failed += client.checks.len(),
            }
        }
        totals
    }

    /// Prints failures, table and numbers; whether nothing failed.
    pub(crate) fn print(&self) -> bool {
        for (client, column) in &self.columns {
            self.print_details(client, column);
        }
        if let Some(fault) = &self.broker_fault {
            println!("\nFAIL broker: {fault}");
        }
        self.print_table(CHECKS);
        self.print_table(FRAMEWORK_CHECKS);
        let Totals { passed, failed, skipped } = self.totals();
        println!("\n{passed} passed, {failed} failed, {skipped} skipped");
        failed == 0
    }

    fn print_details(&self, client: &Client, column: &Column) {
        let name = client.name;
        match column {
            Column::Pending => {}
            Column::Said(verdict) => {
                if verdict.failed() == 0 {
                    return;
                }
                println!("\n{name} failed; its output ends:\n{}", verdict.tail);
                for (check, cell) in &verdict.cells {
                    if let Cell::Fail(reason) = cell {
                        println!("FAIL {name} {check}: {reason}");
                    }
                }
                if let Some(fault) = &verdict.fault {
                    println!("FAIL {name}: {fault}");
                }
            }
            Column::SetAside(Obstacle::Missing(what)) => {
                let word = if self.require_all { "FAIL" } else { "skipped" };
                println!("\n{word} {name}: {what}");
            }
            Column::SetAside(Obstacle::Broken(reason)) => println!("\nFAIL {name}: {reason}"),
        }
    }

    /// One table for the libraries and one for the frameworks, whose checks differ.
    fn print_table(&self, checks: &[Check]) {
        let columns: Vec<_> =
            self.columns.iter().filter(|(client, _)| client.checks == checks).collect();
        if columns.is_empty() {
            return;
        }
        let names: Vec<_> = columns.iter().map(|(client, _)| client.name).collect();
        println!("\n{:CHECK_WIDTH$}{}", "", names.join(&" ".repeat(COLUMN_GAP)));
        for (row, (check, _)) in checks.iter().enumerate() {
            let mut line = format!("{check:CHECK_WIDTH$}");
            for (client, column) in &columns {
                let width = client.name.len() + COLUMN_GAP;
                line.push_str(&format!("{:width$}", self.cell_text(column, row)));
            }
            println!("{}", line.trim_end());
        }
    }

    fn cell_text(&self, column: &Column, row: usize) -> &'static str {
        match column {
            Column::Pending => "?",
            Column::Said(verdict) => match verdict.cells[row].1 {
                Cell::Ok => "ok",
                Cell::Fail(_) => "FAIL",
                Cell::NotApplicable => "n/a",
            },
            Column::SetAside(Obstacle::Missing(_)) if !self.require_all => "skip",
            Column::SetAside(_) => "FAIL",
        }
    }
}

/// Prints the clients and the checks.
pub(crate) fn print_list() {
    println!("Clients (library or framework, language):");
    for one in CLIENTS {
        println!("  {:CHECK_WIDTH$} {}", one.name, one.language);
    }
    for (title, checks) in [("libraries", CHECKS), ("frameworks", FRAMEWORK_CHECKS)] {
        println!("\nChecks of {title}:");
        for (name, meaning) in checks {
            println!("  {name:CHECK_WIDTH$} {meaning}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CHECKS, Cell, Verdict, parse_line};
    use crate::client::Transcript;

    fn verdict(stdout: &str, fault: Option<&str>) -> Verdict {
        let fault = fault.map(str::to_owned);
        let stdout = stdout.to_owned();
        Verdict::new(Transcript { stdout, fault, tail: String::new() }, CHECKS)
    }

    fn all_ok() -> String {
        CHECKS.iter().map(|(name, _)| format!("ok {name}\n")).collect()
    }

    #[test]
    fn lines_are_read_as_the_clients_write_them() {
        assert_eq!(parse_line("ok get"), Some(("get".to_owned(), Cell::Ok)));
        assert_eq!(parse_line("n/a tx: none"), Some(("tx".to_owned(), Cell::NotApplicable)));
        let reason = "got: 1".to_owned();
        assert_eq!(parse_line("FAIL get: got: 1"), Some(("get".to_owned(), Cell::Fail(reason))));
        assert_eq!(parse_line("some other line"), None);
    }

    #[test]
    fn a_check_that_a_client_leaves_out_has_failed() {
        let all = verdict(&all_ok(), None);
        assert_eq!((all.passed(), all.failed()), (CHECKS.len(), 0));
        let fewer = verdict(&all_ok().replace("ok tx\n", ""), None);
        assert_eq!((fewer.passed(), fewer.failed()), (CHECKS.len() - 1, 1));
    }

    #[test]
    fn a_bad_end_after_good_checks_is_a_failure() {
        assert_eq!(verdict(&all_ok(), Some("ended with signal 6")).failed(), 1);
        let failing = all_ok().replace("ok tx", "FAIL tx: reason");
        assert_eq!(verdict(&failing, Some("ended with exit status 1")).failed(), 1);
        assert_eq!(verdict(&format!("{}ok what\n", all_ok()), None).failed(), 1);
    }
}
