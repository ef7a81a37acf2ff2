//! The naive reference: what a queue should do, with nothing clever in it.
//!
//! Owns a plain list of messages in order of arrival, in which a message keeps its place until it
//! is gone, and finds everything else (who holds what, what is counted, what is ready) by walking
//! it. It shares no code with the queue.

use crate::queue::{Overflow, Settings};

use super::history::{Payload, Subscription};
use super::{Command, Counts, Delivered, Outcome};

#[derive(Debug)]
struct Message {
    number: usize,
    body_len: u64,
    cost: i64,
    came_back: bool,
    /// `None` when it is ready.
    taken: Option<Taken>,
}

#[derive(Debug)]
struct Taken {
    delivery: usize,
    /// `None` for `basic.get`.
    consumer: Option<usize>,
    is_counted: bool,
}

#[derive(Debug)]
struct Consumer {
    number: usize,
    subscription: Subscription,
    window: i64,
    /// Among equals the lowest is next. `None` for one that does not wait for a message.
    turn: Option<u64>,
    /// Refused by the gate: passed over until the gate is reopened.
    is_stopped: bool,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Reference {
    settings: Settings,
    gate_limit: u32,
    /// Ready and unsettled ones, in order of arrival.
    messages: Vec<Message>,
    consumers: Vec<Consumer>,
    published: usize,
    deliveries: usize,
    subscribed: usize,
    turns: u64,
    outcome: Outcome,
}

impl Reference {
    pub(super) fn new(settings: Settings, gate_limit: u32) -> Self {
        Self {
            settings,
            gate_limit,
            messages: Vec::new(),
            consumers: Vec::new(),
            published: 0,
            deliveries: 0,
            subscribed: 0,
            turns: 0,
            outcome: Outcome::default(),
        }
    }

    pub(super) fn apply(&mut self, command: &Command) -> Outcome {
        match command {
            Command::Commit { settled, published } => {
                for (delivery, requeue) in settled {
                    self.settle(*delivery, *requeue);
                }
                for payload in published {
                    self.publish(payload);
                }
                self.deliver();
            }
            Command::Subscribe(subscription) => self.subscribe(*subscription),
            Command::Cancel(consumer) => self.consumers.retain(|it| it.number != *consumer),
            Command::Get { no_ack } => self.take_one(*no_ack),
            Command::Purge => {
                let before = self.messages.len();
                self.messages.retain(|message| message.taken.is_some());
                self.outcome.purged = before - self.messages.len();
            }
            Command::Grant { consumer, window } => self.grant(*consumer, *window),
            Command::Reopen => self.reopen(),
        }
        self.outcome.counts = self.counts();
        std::mem::take(&mut self.outcome)
    }

    /// Whether the queue still holds a message, ready or unsettled.
    pub(super) fn holds(&self, number: usize) -> bool {
        self.messages.iter().any(|message| message.number == number)
    }

    fn counts(&self) -> Counts {
        let ready = self.messages.iter().filter(|message| message.taken.is_none());
        Counts {
            ready: ready.clone().count(),
            unsettled: self.messages.len() - ready.clone().count(),
            consumers: self.consumers.len(),
            backlog_bytes: ready.map(|message| message.cost as u64).sum(),
        }
    }

    fn subscribe(&mut self, subscription: Subscription) {
        let number = self.subscribed;
        let window = i64::from(subscription.window);
        self.subscribed += 1;
        let consumer = Consumer { number, subscription, window, turn: None, is_stopped: false };
        self.consumers.push(consumer);
        self.wait_for_turn(number);
        self.deliver();
    }

    fn grant(&mut self, consumer: usize, window: u32) {
        if let Some(it) = self.consumers.iter_mut().find(|it| it.number == consumer) {
            it.window = i64::from(window);
        }
        self.wait_for_turn(consumer);
        self.deliver();
    }

    /// Those who were stopped go to the end of the line, in the order in which they stood there.
    fn reopen(&mut self) {
        let mut stopped: Vec<&mut Consumer> =
            self.consumers.iter_mut().filter(|it| it.is_stopped).collect();
        stopped.sort_by_key(|it| it.turn);
        for consumer in stopped {
            consumer.is_stopped = false;
            consumer.turn = Some(self.turns);
            self.turns += 1;
        }
        self.deliver();
    }

    fn take_one(&mut self, no_ack: bool) {
        let Some(at) = self.messages.iter().position(|message| message.taken.is_none()) else {
            return;
        };
        let (number, came_back) = (self.messages[at].number, self.messages[at].came_back);
        let delivery = self.hand_out(at, no_ack, None, false);
        self.outcome.got = Some((number, came_back, delivery));
    }

    fn settle(&mut self, delivery: usize, requeue: bool) {
        let holds = |message: &Message| message.taken.as_ref().map(|it| it.delivery);
        let at = self.messages.iter().position(|message| holds(message) == Some(delivery));
        let Some(at) = at else { return };
        let taken = self.messages[at].taken.take().expect("found by it");
        if requeue {
            self.messages[at].came_back = true;
        } else {
            self.messages.remove(at);
        }
        if let Some(consumer) = taken.consumer {
            self.wait_for_turn(consumer);
        }
    }

    fn publish(&mut self, payload: &Payload) {
        let number = self.published;
        self.published += 1;
        let is_limited = self.settings.length_max.is_some() || self.settings.bytes_max.is_some();
        if is_limited {
            // Whoever can take what is there makes room before the limits are looked at.
            self.deliver();
        }
        let body_len = payload.body_len as u64;
        if self.settings.overflow == Some(Overflow::RejectPublish)
            && self.is_beyond_limits(1, body_len)
        {
            self.outcome.rejected.push(number);
            return;
        }
        let cost = payload.cost();
        self.messages.push(Message { number, body_len, cost, came_back: false, taken: None });
        if is_limited {
            self.deliver();
        } else {
            self.deliver_in_order();
        }
    }

    /// Delivers what can be delivered, and fills windows where there is room, until neither leads
    /// any further.
    fn deliver(&mut self) {
        loop {
            self.deliver_in_order();
            self.drop_from_head();
            let used_up = self.consumers.iter().filter(|it| it.window <= 0);
            let with_room = used_up.filter(|it| it.subscription.has_room);
            let mut numbers: Vec<usize> = with_room.map(|it| it.number).collect();
            if numbers.is_empty() {
                return;
            }
            // They are filled in the order in which they were used up.
            numbers.sort_by_key(|number| {
                self.outcome.exhausted.iter().rposition(|it| it == number).expect("reported")
            });
            for number in numbers {
                let it = self.consumers.iter_mut().find(|it| it.number == number);
                let it = it.expect("found above");
                it.window = i64::from(it.subscription.window);
                self.wait_for_turn(number);
            }
        }
    }

    fn deliver_in_order(&mut self) {
        while let Some(at) = self.messages.iter().position(|message| message.taken.is_none()) {
            let Some((next, is_counted)) = self.next_consumer() else { return };
            let cost = self.messages[at].cost;
            let consumer = &mut self.consumers[next];
            let (number, no_ack) = (consumer.number, consumer.subscription.no_ack);
            consumer.window -= cost;
            if consumer.window <= 0 {
                self.outcome.exhausted.push(number);
            }
            let (message, redelivered) = (self.messages[at].number, self.messages[at].came_back);
            let delivery = self.hand_out(at, no_ack, Some(number), is_counted);
            // Having been served, it goes to the end of the line.
            self.consumers[next].turn = None;
            self.wait_for_turn(number);
            self.outcome.deliveries.push(Delivered {
                consumer: number,
                message,
                redelivered,
                delivery,
                is_counted,
            });
        }
    }

    /// Gives a message away; answers the number that settles it, if anything needs to.
    fn hand_out(
        &mut self,
        at: usize,
        no_ack: bool,
        consumer: Option<usize>,
        is_counted: bool,
    ) -> Option<usize> {
        if no_ack {
            self.messages.remove(at);
            return None;
        }
        let delivery = self.deliveries;
        self.deliveries += 1;
        self.messages[at].taken = Some(Taken { delivery, consumer, is_counted });
        Some(delivery)
    }

    /// The place of whose turn it is, and whether the gate counts the delivery.
    fn next_consumer(&mut self) -> Option<(usize, bool)> {
        loop {
            let waits = |it: &Consumer| it.turn.is_some() && !it.is_stopped;
            let waiting = self.consumers.iter().enumerate().filter(|(_, it)| waits(it));
            let key = |it: &Consumer| (-it.subscription.priority, it.turn);
            let (next, consumer) = waiting.min_by_key(|(_, it)| key(it))?;
            let subscription = &consumer.subscription;
            if subscription.no_ack || !subscription.is_gated || self.gate_limit == 0 {
                return Some((next, false));
            }
            let is_counted =
                |message: &&Message| message.taken.as_ref().is_some_and(|taken| taken.is_counted);
            if self.messages.iter().filter(is_counted).count() < self.gate_limit as usize {
                return Some((next, true));
            }
            self.consumers[next].is_stopped = true;
        }
    }

    /// Puts a consumer at the end of the line, if it is not in it and can take a message.
    fn wait_for_turn(&mut self, number: usize) {
        let holds = |message: &&Message| {
            message.taken.as_ref().is_some_and(|taken| taken.consumer == Some(number))
        };
        let held = self.messages.iter().filter(holds).count();
        let Some(consumer) = self.consumers.iter_mut().find(|it| it.number == number) else {
            return;
        };
        let Subscription { no_ack, prefetch, .. } = consumer.subscription;
        let has_credit = no_ack || prefetch == 0 || held < prefetch as usize;
        if consumer.turn.is_none() && has_credit && consumer.window > 0 {
            consumer.turn = Some(self.turns);
            self.turns += 1;
        }
    }

    fn drop_from_head(&mut self) {
        while self.settings.overflow == Some(Overflow::DropHead) && self.is_beyond_limits(0, 0) {
            let head = self.messages.iter().position(|message| message.taken.is_none());
            self.messages.remove(head.expect("a limit is exceeded by something"));
        }
    }

    /// Whether the ready messages and these further ones are more than the queue may hold.
    fn is_beyond_limits(&self, more: u64, more_bytes: u64) -> bool {
        let ready = self.messages.iter().filter(|message| message.taken.is_none());
        let bytes: u64 = ready.clone().map(|message| message.body_len).sum();
        self.settings.length_max.is_some_and(|max| ready.count() as u64 + more > max)
            || self.settings.bytes_max.is_some_and(|max| bytes + more_bytes > max)
    }
}
