//! A channel in confirm mode with the log of what was done on it.
//!
//! Owns numbering, confirms, and the form in which messages carry who they are. It must not decide
//! what to publish or how to settle.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::ledger::{Event, Kind, Settlement, Sort, Violation};
use super::message::MessageId;
use super::session::{Gone, Incoming, Session};
use super::verdict::{Death, Seen};
use crate::support::Delivery;
use crate::support::notation::Value;

/// Milliseconds since the first call: the clock of all logs.
pub fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u64
}

/// Where a publish goes, and the queues that it leads to.
#[derive(Clone, Debug)]
pub struct Route {
    pub exchange: String,
    pub key: String,
    pub queues: Vec<usize>,
}

impl Route {
    /// Through the default exchange.
    pub fn to(name: &str, queue: usize) -> Route {
        Route { exchange: String::new(), key: name.to_owned(), queues: vec![queue] }
    }

    pub fn fields(&self) -> String {
        format!("exchange=\"{}\" routing_key=\"{}\"", self.exchange, self.key)
    }
}

/// See the module's description.
pub struct Channel {
    pub session: Session,
    pub log: Vec<Event>,
    /// Counts what was confirmed, for whoever waits for the work to get on.
    pub progress: Arc<AtomicU64>,
    publisher: u32,
    sent: u32,
    /// Publishes without an answer, by their number.
    open: BTreeMap<u64, MessageId>,
}

impl Channel {
    /// A channel in confirm mode on a connection of its own.
    pub fn confirming(address: &str, publisher: u32) -> Channel {
        let mut channel = Channel::plain(address, publisher);
        channel.session.must("confirm.select");
        channel
    }

    pub fn plain(address: &str, publisher: u32) -> Channel {
        let (session, progress) = (Session::open(address), Arc::default());
        Channel { session, log: Vec::new(), progress, publisher, sent: 0, open: BTreeMap::new() }
    }

    /// Publishes that wait for their confirm.
    pub fn unconfirmed(&self) -> usize {
        self.open.len()
    }

    /// Makes the next message, with its number.
    pub fn message(&mut self, route: &Route, sort: Sort, size: usize) -> (MessageId, Vec<u8>) {
        self.sent += 1;
        let id = MessageId { publisher: self.publisher, number: self.sent };
        let body = id.body(size);
        let properties = properties(id, &body, sort);
        (id, self.session.publish_bytes(&route.fields(), &properties, &body))
    }

    /// Logs the next message and returns its bytes.
    pub fn next_publish(&mut self, route: &Route, sort: Sort, size: usize) -> Vec<u8> {
        let (id, bytes) = self.message(route, sort, size);
        let (queues, at_ms) = (route.queues.clone(), now_ms());
        self.log.push(Event::Sent { id, queues, sort, at_ms, group: None });
        self.open.insert(u64::from(self.sent), id);
        bytes
    }

    /// Takes what comes next: confirms and refusals are logged, messages and answers returned.
    pub fn next(&mut self, patience: Duration) -> Result<Option<Incoming>, Gone> {
        match self.session.next(patience)? {
            Some(Incoming::Confirm { tag, multiple, is_ack }) => {
                self.settle_publishes(tag, multiple, is_ack);
                Ok(None)
            }
            Some(Incoming::Closed { code, text }) => {
                self.wrong(Kind::Refused, format!("{code} {text}"));
                Err(Gone)
            }
            other => Ok(other),
        }
    }

    fn settle_publishes(&mut self, tag: u64, multiple: bool, is_ack: bool) {
        let at_ms = now_ms();
        let settled = if multiple {
            let later = self.open.split_off(&(tag + 1));
            std::mem::replace(&mut self.open, later)
        } else {
            self.open.remove_entry(&tag).into_iter().collect()
        };
        if settled.is_empty() {
            self.wrong(Kind::Invented, format!("a confirm of {tag}, which is not open"));
        }
        for id in settled.into_values() {
            if is_ack {
                self.confirmed(id, at_ms);
            } else {
                self.wrong(Kind::Refused, format!("basic.nack of {id:?}"));
            }
        }
    }

    /// Logs that the broker has answered for a message.
    pub fn confirmed(&mut self, id: MessageId, at_ms: u64) {
        self.log.push(Event::Confirmed { id, at_ms });
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    /// Publishes something that is confirmed, after which all that was logged before is on disk.
    pub fn sync(&mut self, marks: &Route) -> Result<(), Gone> {
        let bytes = self.next_publish(marks, Sort::PLAIN, 10);
        self.session.send(&bytes)?;
        while self.unconfirmed() > 0 {
            self.next(Duration::from_secs(1))?;
        }
        Ok(())
    }

    /// Logs a delivery; none when it is none of ours or damaged, which is logged as wrong.
    pub fn delivered(&mut self, queue: usize, delivery: &Delivery) -> Option<MessageId> {
        match identity(delivery) {
            Ok(id) => {
                let redelivered = delivery.redelivered();
                let priority = number(delivery, "priority").map(|n| n as u8);
                self.log.push(Event::Delivered { queue, id, redelivered, priority });
                Some(id)
            }
            Err(what) => {
                self.wrong(Kind::Damaged, what);
                None
            }
        }
    }

    pub fn settled(&mut self, queue: usize, id: MessageId, how: Settlement) {
        self.log.push(Event::Settled { queue, id, how });
    }

    pub fn wrong(&mut self, kind: Kind, what: String) {
        self.log.push(Event::Wrong(Violation::new(kind, what)));
    }
}

/// The properties of a message in the tests' notation.
fn properties(id: MessageId, body: &[u8], sort: Sort) -> String {
    let mut text = format!("message_id=\"{}\"", id.label(body));
    text += if sort.persistent { " delivery_mode=2" } else { " delivery_mode=1" };
    if let Some(priority) = sort.priority {
        text += &format!(" priority={priority}");
    }
    if let Some(ttl) = sort.ttl_ms {
        text += &format!(" expiration=S:{ttl}");
    }
    match sort.delay_ms {
        Some(delay) => text += &format!(" headers=(x-delay={delay})"),
        None if id.number.is_multiple_of(3) => {
            text += &format!(" headers=(n={},nested=(l=[1,two]))", id.number);
        }
        None => {}
    }
    text
}

fn identity(delivery: &Delivery) -> Result<MessageId, String> {
    let label = delivery.properties.get("message_id").map(Value::text).unwrap_or_default();
    MessageId::of(&label, &delivery.body)
}

fn number(delivery: &Delivery, property: &str) -> Option<u64> {
    delivery.properties.get(property).and_then(|value| value.text().parse().ok())
}

/// A delivery that has just come, as a finding that was asked for at this time.
pub fn seen(delivery: &Delivery, asked_ms: u64) -> Seen {
    let count = delivery.header("x-delivery-count").map_or(0, Value::int);
    let mut properties = delivery.properties.clone();
    if let Some(Value::Table(entries)) = properties.get_mut("headers") {
        entries.retain(|(key, _)| key != "x-delivery-count");
    }
    // Headers that hold only the count are none.
    properties.retain(|_, value| *value != Value::Table(Vec::new()));
    Seen {
        id: identity(delivery),
        redelivered: delivery.redelivered(),
        asked_ms,
        came_ms: now_ms(),
        count: count as u32,
        persistent: number(delivery, "delivery_mode") == Some(2),
        priority: number(delivery, "priority").map(|n| n as u8),
        expiration: number(delivery, "expiration"),
        properties: format!("{} {properties:?}", delivery.method["routing_key"].text()),
        deaths: deaths(delivery),
    }
}

fn deaths(delivery: &Delivery) -> Vec<Death> {
    let Some(Value::List(entries)) = delivery.header("x-death") else { return Vec::new() };
    let text = |entry: &Value, key| entry.entry(key).map(Value::text).unwrap_or_default();
    let death = |entry| Death { queue: text(entry, "queue"), reason: text(entry, "reason") };
    entries.iter().map(death).collect()
}
