//! One round: a broker, clients, some crashes, and what is found after each.
//!
//! Owns the course of events. What clients do is a plan's, what must be found is the ledger's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::channel::{Channel, Route, now_ms, seen};
use super::consumer::Consumer;
use super::ledger::{Event, Kind, Ledger, Queue, Settlement, Violation};
use super::node::{Failure, Node};
use super::publisher::Publisher;
use super::random::Random;
use super::session::{Incoming, Session};
use super::transactions::Transactions;
use super::verdict::{Found, due_in, judge};
use crate::support::DEADLINE;

/// What one client does.
#[derive(Clone, Debug)]
pub enum Work {
    Publish(Publisher),
    Consume(Consumer),
    Transact(Transactions),
}

/// What a round is about.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The broker's configuration.
    pub config: String,
    /// The queues with their fields of `queue.declare`, arguments included.
    pub queues: Vec<(Queue, String)>,
    /// Further methods after their declaration, such as exchanges and bindings.
    pub setup: Vec<String>,
    pub clients: Vec<Work>,
    /// How long clients are at work before a crash, at most.
    pub work_ms_max: u64,
    pub crashes: u32,
    /// How long to wait, after the last crash, for what is delayed.
    pub settle_ms: u64,
}

impl Plan {
    /// Adds a queue and returns its number.
    pub fn queue(&mut self, queue: Queue, fields: &str) -> usize {
        self.queues.push((queue, fields.to_owned()));
        self.queues.len() - 1
    }

    /// Adds a durable classic queue, and returns its number and the way to it.
    pub fn durable(&mut self, name: &str) -> (usize, Route) {
        let queue = self.queue(Queue::durable(name), "durable");
        (queue, Route::to(name, queue))
    }
}

/// What rounds have seen so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub crashes: u64,
    pub messages: u64,
}

/// A round's failure.
#[derive(Debug)]
pub struct Failed {
    pub violations: Vec<Violation>,
    pub report: String,
}

/// A round that is being run.
pub struct Round {
    pub node: Node,
    pub random: Random,
    pub tally: Tally,
    /// Pieces of work that were done since the last crash.
    pub progress: Arc<AtomicU64>,
    next_publisher: u32,
}

impl Round {
    pub fn new(failure: Failure, config: &str, seed: u64) -> Round {
        let node = Node::new(failure, config);
        let (random, tally) = (Random::new(seed), Tally::default());
        Round { node, random, tally, progress: Arc::default(), next_publisher: 1 }
    }

    /// A number that no other publisher of this round has.
    pub fn publisher(&mut self) -> u32 {
        self.next_publisher += 1;
        self.next_publisher - 1
    }

    /// Fails with what is wrong, and leaves the directory behind.
    pub fn fail_if(self, mut violations: Vec<Violation>, when: &str) -> Result<Round, Failed> {
        // RabbitMQ, when it is killed, takes all messages for redelivered ones and forgets acks.
        let is_known = |kind| Node::is_external() && matches!(kind, Kind::Flag | Kind::CameBack);
        violations.retain(|violation| !is_known(violation.kind));
        if violations.is_empty() {
            return Ok(self);
        }
        let mut counts = std::collections::BTreeMap::new();
        violations.iter().for_each(|v| *counts.entry(v.kind).or_insert(0) += 1);
        let mut report = format!("{when}: {counts:?}\n");
        for violation in violations.iter().take(12) {
            report += &format!("  {:?}: {}\n", violation.kind, violation.what);
        }
        let log = self.node.log();
        let is_bad = |line: &&str| line.contains(" ERROR ") || line.contains("panicked");
        let bad = log.lines().filter(is_bad).take(5);
        report += &format!("  kept in {}; its log:\n", self.node.keep().display());
        let last = log.lines().skip(log.lines().count().saturating_sub(8));
        bad.chain(last).for_each(|line| report += &format!("    {line}\n"));
        Err(Failed { violations, report })
    }

    /// Kills the broker at a random moment, and starts it again, perhaps only at the second
    /// attempt. The moment is within `ms_max`, but on a machine with much to do it may come up to
    /// three times as late, while less than some of `work_max` pieces of work are done.
    pub fn crash(&mut self, ms_max: u64, work_max: u64, at_kill: impl FnOnce()) -> Vec<Violation> {
        let ms = match self.random.between(0, 9) {
            0..=1 => self.random.between(0, 10),
            2..=3 => self.random.between(10, 60),
            _ => self.random.between(60.min(ms_max), ms_max),
        };
        let work = if self.random.percent(30) { 0 } else { self.random.between(0, work_max) };
        let end = Instant::now() + Duration::from_millis(3 * ms_max);
        self.progress.store(0, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(ms));
        while self.progress.load(Ordering::Relaxed) < work && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut wrong = Vec::new();
        if !self.node.is_running() {
            wrong.push(Violation::new(Kind::Refused, "the broker ended by itself".to_owned()));
        }
        self.node.kill(&mut self.random);
        self.tally.crashes += 1;
        at_kill();
        if self.random.percent(30) {
            let after = Duration::from_millis(self.random.between(0, 80));
            self.node.start_and_kill(after, &mut self.random);
            self.tally.crashes += 1;
        }
        self.node.start();
        wrong
    }
}

/// Runs a plan.
pub fn run(plan: &Plan, failure: Failure, seed: u64) -> Result<Tally, Failed> {
    let mut round = Round::new(failure, &plan.config, seed);
    let queues: Vec<Queue> = plan.queues.iter().map(|(queue, _)| queue.clone()).collect();
    let mut ledger = Ledger::new(queues);
    round.node.start();
    declare(&round.node.address, plan);
    for number in 1..=plan.crashes {
        let before = round.tally.crashes;
        let (mut wrong, logs, until_ms) = work(&mut round, plan);
        let sent = |event: &&Event| matches!(event, Event::Sent { .. });
        round.tally.messages += logs.iter().flatten().filter(sent).count() as u64;
        wrong.extend(ledger.absorb(&logs, until_ms));
        ledger.crash((round.tally.crashes - before) as u32);
        round = look(round, plan, &mut ledger, wrong, number)?;
    }
    if plan.settle_ms > 0 {
        std::thread::sleep(Duration::from_millis(plan.settle_ms));
        round = look(round, plan, &mut ledger, Vec::new(), plan.crashes)?;
    }
    finish(round, plan, ledger)
}

/// Reads everything out, and sees that nothing of it comes back.
fn finish(mut round: Round, plan: &Plan, mut ledger: Ledger) -> Result<Tally, Failed> {
    let log = match drain(&mut round, plan, &ledger) {
        Ok(log) => log,
        Err(refused) => {
            round = round.fail_if(vec![refused], "at the end")?;
            return Ok(round.tally);
        }
    };
    let mut wrong = ledger.absorb(&[log], now_ms());
    let before = round.tally.crashes;
    wrong.extend(round.crash(0, 0, || {}));
    ledger.crash((round.tally.crashes - before) as u32);
    round = look(round, plan, &mut ledger, wrong, plan.crashes + 1)?;
    if !round.node.stop() {
        let what = "SIGTERM did not end it well".to_owned();
        round = round.fail_if(vec![Violation::new(Kind::Refused, what)], "at the end")?;
    }
    Ok(round.tally)
}

/// Declares everything. What an external broker still has of it goes first.
fn declare(address: &str, plan: &Plan) {
    let mut session = Session::open(address);
    for (queue, fields) in &plan.queues {
        session.must(&format!("queue.delete queue=\"{}\"", queue.name));
        session.must(&format!("queue.declare queue=\"{}\" {fields}", queue.name));
    }
    for method in &plan.setup {
        session.must(method);
    }
    session.close();
}

/// Lets all clients work until the broker is killed. Returns their logs and the time of its end.
fn work(round: &mut Round, plan: &Plan) -> (Vec<Violation>, Vec<Vec<Event>>, u64) {
    let address = round.node.address.clone();
    let mut clients = Vec::new();
    for work in &plan.clients {
        let (publisher, random) = (round.publisher(), round.random.fork());
        let work = work.clone();
        let mut channel = match work {
            Work::Transact(_) => Channel::plain(&address, publisher),
            _ => Channel::confirming(&address, publisher),
        };
        channel.progress = round.progress.clone();
        clients.push(std::thread::spawn(move || match work {
            Work::Publish(publisher) => publisher.run(channel, random),
            Work::Consume(consumer) => consumer.run(channel, random),
            Work::Transact(transactions) => transactions.run(channel, random),
        }));
    }
    let mut until_ms = 0;
    let wrong = round.crash(plan.work_ms_max, 3000, || until_ms = now_ms());
    let join = |client: std::thread::JoinHandle<_>| client.join().expect("a client ends well");
    (wrong, clients.into_iter().map(join).collect(), until_ms)
}

/// Compares what is there after a crash, and takes it as the new beginning.
fn look(
    round: Round,
    plan: &Plan,
    ledger: &mut Ledger,
    mut wrong: Vec<Violation>,
    crash: u32,
) -> Result<Round, Failed> {
    let mut round = round;
    wrong.extend(look_for_queues(&round.node.address, plan));
    let when = format!("after crash {crash}");
    if !wrong.is_empty() {
        round = round.fail_if(wrong, &when)?;
    }
    let publisher = round.publisher();
    let (found, log) = match look_through(&round.node.address, ledger, publisher) {
        Ok(looked) => looked,
        Err(refused) => return round.fail_if(vec![refused], &when),
    };
    round = round.fail_if(judge(ledger, &found), &when)?;
    ledger.rebase(&found, true);
    let wrong = ledger.absorb(&[log], now_ms());
    round.fail_if(wrong, &when)
}

/// Durable queues are there, the others are not, until they are declared again.
fn look_for_queues(address: &str, plan: &Plan) -> Vec<Violation> {
    let mut session = Session::open(address);
    let mut wrong = Vec::new();
    for (queue, fields) in &plan.queues {
        let passive = format!("queue.declare queue=\"{}\" passive", queue.name);
        let answer = session.call(&passive, |_| {}).expect("the broker stays");
        let mut note = |kind, what: String| wrong.push(Violation::new(kind, what));
        match answer {
            Ok(_) if queue.durable => {}
            Ok(_) => note(Kind::CameBack, format!("the queue {} is not durable", queue.name)),
            Err(refused) => {
                if queue.durable || !refused.starts_with("404") {
                    note(Kind::Lost, format!("the queue {}: {refused}", queue.name));
                }
                session.reopen().expect("the broker stays");
            }
        }
        if !queue.durable {
            session.must(&format!("queue.declare queue=\"{}\" {fields}", queue.name));
        }
    }
    session.close();
    wrong
}

/// Gets so many messages in one go.
const GETS: usize = 100;

/// Looks through all queues without settling anything. The log has what it published at the end,
/// to the first queue, so that the broker would write down who has seen what.
fn look_through(
    address: &str,
    ledger: &Ledger,
    publisher: u32,
) -> Result<(Vec<Found>, Vec<Event>), Violation> {
    let mut channel = Channel::confirming(address, publisher);
    let mut found = Vec::new();
    // Those that dead letters come from are looked through first.
    let sources = |queue: &usize| ledger.sources(*queue).count();
    let mut order: Vec<usize> = (0..ledger.queues.len()).rev().collect();
    order.sort_by_key(sources);
    for queue in order {
        let kind = &ledger.queues[queue];
        await_dead_letters(&mut channel, ledger, &found, queue);
        let mut all = Vec::new();
        let ended_ms = take_all(&mut channel, &kind.name, |_, delivery, asked_ms| {
            all.push(seen(&delivery, asked_ms));
        })?;
        found.push(Found { queue, seen: all, ended_ms });
    }
    channel.sync(&Route::to(&ledger.queues[0].name, 0)).expect("the broker stays");
    channel.session.close();
    found.sort_by_key(|found| found.queue);
    Ok((found, channel.log))
}

/// Waits, for a while, until the dead letters of the queues that were looked through have come.
fn await_dead_letters(channel: &mut Channel, ledger: &Ledger, found: &[Found], queue: usize) {
    if ledger.sources(queue).next().is_none() {
        return;
    }
    let passive = format!("queue.declare queue=\"{}\" passive", ledger.queues[queue].name);
    let end_ms = now_ms() + 3000;
    while now_ms() < end_ms {
        let due = due_in(ledger, found, queue, now_ms());
        if channel.session.must(&passive)["message_count"].int() >= i64::from(due) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Gets messages until there are no more. Returns the time of the last look.
fn take_all(
    channel: &mut Channel,
    queue: &str,
    mut each: impl FnMut(&mut Channel, crate::support::Delivery, u64),
) -> Result<u64, Violation> {
    loop {
        let asked_ms = now_ms();
        for _ in 0..GETS {
            let get = format!("basic.get queue=\"{queue}\"");
            channel.session.method(&get).expect("the broker stays");
        }
        let mut empty = 0;
        for _ in 0..GETS {
            match channel.session.next(DEADLINE).expect("the broker stays") {
                Some(Incoming::Message(delivery)) => each(channel, delivery, asked_ms),
                Some(Incoming::Method(method)) if method.name == "basic.get-empty" => empty += 1,
                other => {
                    let what = format!("{queue} is read, came {other:?}");
                    return Err(Violation::new(Kind::Refused, what));
                }
            }
        }
        if empty > 0 {
            return Ok(now_ms());
        }
    }
}

/// Acknowledges everything, the first queue last, and makes sure that this is on disk.
fn drain(round: &mut Round, plan: &Plan, ledger: &Ledger) -> Result<Vec<Event>, Violation> {
    let publisher = round.publisher();
    let mut channel = Channel::confirming(&round.node.address, publisher);
    for (queue, kind) in ledger.queues.iter().enumerate().rev() {
        take_all(&mut channel, &kind.name, |channel, delivery, _| {
            if let Some(id) = channel.delivered(queue, &delivery) {
                channel.settled(queue, id, Settlement::Ack);
            }
            let ack = format!("basic.ack delivery_tag={}", delivery.tag());
            channel.session.method(&ack).expect("the broker stays");
        })?;
    }
    assert_eq!(plan.queues.len(), ledger.queues.len(), "a plan and its ledger");
    channel.sync(&Route::to(&ledger.queues[0].name, 0)).expect("the broker stays");
    channel.session.close();
    Ok(channel.log)
}
