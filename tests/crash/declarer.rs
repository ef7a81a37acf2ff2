//! A client that declares, deletes, binds and purges, one thing at a time, until its broker dies.
//!
//! Owns the operations as methods on the wire, and reading the world back after a restart. What
//! must be found is `world`'s.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::ledger::{Kind, Violation};
use super::message::MessageId;
use super::node::{Failure, Node};
use super::random::Random;
use super::round::{Failed, Round, Tally};
use super::session::{Gone, Incoming, Session};
use super::world::{Content, Life, NAMES, Operation, World};
use crate::support::{DEADLINE, notation::Value};

/// One client's names and what it knows of them.
struct Declarer {
    client: u64,
    world: World,
    /// What had no answer when the broker died.
    open: Option<Operation>,
    sent: u32,
    /// Counts what was answered.
    progress: Arc<AtomicU64>,
}

/// Runs clients that declare and delete, over some crashes. RabbitMQ 3.10.8 brings deleted queues
/// back.
pub fn run(failure: Failure, seed: u64) -> Result<Tally, Failed> {
    let mut round = Round::new(failure, "", seed);
    round.node.start();
    let count = round.random.between(1, 4);
    let new = |client| Declarer::new(client, round.progress.clone());
    let mut declarers: Vec<Declarer> = (0..count).map(new).collect();
    if Node::is_external() {
        declarers.iter().for_each(|declarer| declarer.clear(&round.node.address));
    }
    for number in 1..=3 {
        let mut clients = Vec::new();
        for declarer in declarers {
            let session = confirming(&round.node.address);
            let random = round.random.fork();
            let sent = declarer.sent;
            let work = move || (declarer.work(session, random), sent);
            clients.push(std::thread::spawn(work));
        }
        let mut wrong = round.crash(300, 300, || {});
        let done: Vec<_> =
            clients.into_iter().map(|c| c.join().expect("a client ends well")).collect();
        declarers = Vec::new();
        for ((mut declarer, refused), sent) in done {
            wrong.extend(refused.map(|what| Violation::new(Kind::Refused, what)));
            round.tally.messages += u64::from(declarer.sent - sent);
            wrong.extend(declarer.look(&round.node.address));
            declarers.push(declarer);
        }
        round = round.fail_if(wrong, &format!("after crash {number}"))?;
    }
    Ok(round.tally)
}

fn confirming(address: &str) -> Session {
    let mut session = Session::open(address);
    session.must("confirm.select");
    session
}

impl Declarer {
    fn new(client: u64, progress: Arc<AtomicU64>) -> Declarer {
        Declarer { client, world: World::default(), open: None, sent: 0, progress }
    }

    fn queue(&self, number: u8) -> String {
        format!("queue-{}-{number}", self.client)
    }

    fn exchange(&self, number: u8) -> String {
        format!("exchange-{}-{number}", self.client)
    }

    /// Takes away what an earlier run left in an external broker.
    fn clear(&self, address: &str) {
        let mut session = Session::open(address);
        for name in 0..NAMES {
            session.must(&format!("queue.delete queue={}", self.queue(name)));
            session.must(&format!("exchange.delete exchange={}", self.exchange(name)));
        }
        session.close();
    }

    /// Works until the broker dies. The text says what it refused.
    fn work(mut self, mut session: Session, mut random: Random) -> (Self, Option<String>) {
        loop {
            let operation = self.world.next(self.sent + 1, &mut random);
            self.open = Some(operation);
            match self.ask(&mut session, operation) {
                Err(Gone) => return (self, None),
                Ok(Err(refused)) => return (self, Some(format!("{operation:?}: {refused}"))),
                Ok(Ok(())) => self.world = self.world.after(operation),
            }
            self.open = None;
            self.progress.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn ask(
        &mut self,
        session: &mut Session,
        operation: Operation,
    ) -> Result<Result<(), String>, Gone> {
        let method = match operation {
            Operation::Declare(queue, life) => {
                format!("queue.declare queue={} {}", self.queue(queue), life.fields())
            }
            Operation::Delete(queue) => format!("queue.delete queue={}", self.queue(queue)),
            Operation::Purge(queue) => format!("queue.purge queue={}", self.queue(queue)),
            Operation::DeclareExchange(exchange) => {
                let name = self.exchange(exchange);
                format!("exchange.declare exchange={name} type=direct durable")
            }
            Operation::DeleteExchange(exchange) => {
                format!("exchange.delete exchange={}", self.exchange(exchange))
            }
            Operation::Bind(exchange, queue) | Operation::Unbind(exchange, queue) => {
                let verb = if matches!(operation, Operation::Bind(..)) { "bind" } else { "unbind" };
                let (from, to) = (self.exchange(exchange), self.queue(queue));
                format!("queue.{verb} queue={to} exchange={from} routing_key={queue}")
            }
            Operation::Publish(queue, number) => {
                let to = format!("routing_key={}", self.queue(queue));
                return self.publish(session, &to, number);
            }
            Operation::Route(exchange, queue, number) => {
                let to = format!("exchange={} routing_key={queue}", self.exchange(exchange));
                return self.publish(session, &to, number);
            }
        };
        Ok(session.call(&method, |_| {})?.map(drop))
    }

    fn publish(
        &mut self,
        session: &mut Session,
        to: &str,
        number: u32,
    ) -> Result<Result<(), String>, Gone> {
        self.sent = number;
        let id = MessageId { publisher: self.client as u32, number };
        let body = id.body(number as usize * 37 % 3000);
        let properties = format!("delivery_mode=2 message_id=\"{}\"", id.label(&body));
        let bytes = session.publish_bytes(to, &properties, &body);
        session.send(&bytes)?;
        match session.next(DEADLINE)? {
            Some(Incoming::Confirm { is_ack: true, .. }) => Ok(Ok(())),
            other => Ok(Err(format!("a confirm is due, came {other:?}"))),
        }
    }

    /// Compares what is there after a crash with what is known, and takes it as the new beginning.
    fn look(&mut self, address: &str) -> Vec<Violation> {
        let found = match self.read_world(address) {
            Ok(found) => found,
            Err(violation) => return vec![violation],
        };
        let fits = self.world.may_become(self.open, &found);
        let what = format!("{:?} before, then {:?}; found {found:?}", self.world, self.open);
        let kind = match self.world.crashed() {
            known if known.queues.len() > found.queues.len() => Kind::Lost,
            known if known.queues.len() < found.queues.len() => Kind::CameBack,
            _ => Kind::Changed,
        };
        self.world = found;
        if fits { Vec::new() } else { vec![Violation::new(kind, what)] }
    }

    /// Reads everything and takes nothing.
    fn read_world(&self, address: &str) -> Result<World, Violation> {
        let mut session = confirming(address);
        let mut world = World::default();
        for name in 0..NAMES {
            let passive = format!("queue.declare queue={} passive", self.queue(name));
            if is_there(&mut session, &passive)? {
                let messages = self.read_queue(&mut session, name)?;
                let same = Life::Durable.fields();
                let declare = format!("queue.declare queue={} {same}", self.queue(name));
                let life = match session.call(&declare, |_| {}).expect("the broker stays") {
                    Ok(_) => Life::Durable,
                    Err(_) => {
                        session.reopen().expect("the broker stays");
                        session.must("confirm.select");
                        self.other_life(&mut session, name)?
                    }
                };
                world.queues.insert(name, Content { life, messages });
            }
            let passive = format!("exchange.declare exchange={} passive", self.exchange(name));
            if is_there(&mut session, &passive)? {
                world.exchanges.insert(name);
            }
        }
        for exchange in world.exchanges.clone() {
            for queue in 0..NAMES {
                if self.is_bound(&mut session, exchange, queue) {
                    world.bindings.insert((exchange, queue));
                }
            }
        }
        session.close();
        Ok(world)
    }

    /// What a queue is that is not a durable classic one.
    fn other_life(&self, session: &mut Session, name: u8) -> Result<Life, Violation> {
        for life in Life::ALL {
            let declare = format!("queue.declare queue={} {}", self.queue(name), life.fields());
            if session.call(&declare, |_| {}).expect("the broker stays").is_ok() {
                return Ok(life);
            }
            session.reopen().expect("the broker stays");
            session.must("confirm.select");
        }
        let what = format!("{} is none of the queues that were declared", self.queue(name));
        Err(Violation::new(Kind::Changed, what))
    }

    fn read_queue(&self, session: &mut Session, name: u8) -> Result<Vec<u32>, Violation> {
        let mut numbers = Vec::new();
        let queue = self.queue(name);
        let wrong = |kind, what| Err(Violation::new(kind, format!("{queue}: {what}")));
        loop {
            let get = format!("basic.get queue={queue}");
            session.method(&get).expect("the broker stays");
            match session.next(Duration::from_secs(10)).expect("the broker stays") {
                Some(Incoming::Message(delivery)) => {
                    let label = delivery.properties.get("message_id").map(Value::text);
                    match MessageId::of(&label.unwrap_or_default(), &delivery.body) {
                        Ok(id) if u64::from(id.publisher) == self.client => numbers.push(id.number),
                        Ok(id) => return wrong(Kind::Invented, format!("{id:?}")),
                        Err(damage) => return wrong(Kind::Damaged, damage),
                    }
                }
                Some(Incoming::Method(method)) if method.name == "basic.get-empty" => {
                    return Ok(numbers);
                }
                other => return wrong(Kind::Refused, format!("read, came {other:?}")),
            }
        }
    }

    /// Whether a message finds its way: if not, it is returned before its confirm. It expires at
    /// once.
    fn is_bound(&self, session: &mut Session, exchange: u8, queue: u8) -> bool {
        let to = format!("exchange={} routing_key={queue} mandatory", self.exchange(exchange));
        let bytes = session.publish_bytes(&to, "expiration=S:0", b"probe");
        session.send(&bytes).expect("the broker stays");
        let mut is_bound = true;
        loop {
            match session.next(DEADLINE).expect("the broker stays") {
                Some(Incoming::Message(_)) => is_bound = false,
                Some(Incoming::Confirm { .. }) => return is_bound,
                other => panic!("a confirm is due, came {other:?}"),
            }
        }
    }
}

/// Whether a passive declaration finds something. Any refusal but 404 is wrong.
fn is_there(session: &mut Session, passive: &str) -> Result<bool, Violation> {
    match session.call(passive, |_| {}).expect("the broker stays") {
        Ok(_) => Ok(true),
        Err(refused) if refused.starts_with("404") => {
            session.reopen().expect("the broker stays");
            session.must("confirm.select");
            Ok(false)
        }
        Err(refused) => Err(Violation::new(Kind::Refused, format!("{passive}: {refused}"))),
    }
}
