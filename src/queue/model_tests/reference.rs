//! The naive reference: what a queue should do, with nothing clever in it.
//!
//! Owns a plain list of messages in order of arrival, in which a message keeps its place until it
//! is gone, and finds everything else (who holds what, what is counted, what is ready, which one is
//! next, what is due) by walking it. It shares no code with the queue, but for the numbers that
//! bound a drive.

use std::collections::{BTreeMap, BTreeSet};

use crate::clock::Millis;
use crate::queue::{
    DROPS_MAX, EXPIRIES_MAX, Kind, LaneHead, OVERDUE_LOOK_MS, Overflow, Reason, Settings,
};

use super::history::{Payload, Settlement, Subscription};
use super::{Command, Counts, Delivered, Operation, Outcome};

#[derive(Clone, Debug)]
struct Message {
    number: usize,
    body_len: u64,
    cost: i64,
    /// Of those with the same level, the first one goes first.
    level: u8,
    expires_at: Option<u64>,
    returns: u32,
    /// `None` when it is ready.
    taken: Option<Taken>,
    /// Whether it was ever taken since the broker was started.
    was_taken: bool,
    /// Whether it survives a crash.
    is_stored: bool,
}

#[derive(Clone, Debug)]
struct Taken {
    delivery: usize,
    /// `None` for `basic.get`.
    consumer: Option<usize>,
    is_counted: bool,
    since: u64,
    /// Whether it was found to be overdue before.
    was_reported: bool,
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

impl Message {
    /// What the broker finds after a crash: whoever had taken the message does not have it any
    /// more, and it counts as having come back at least once.
    fn after_crash(&self) -> Self {
        let returns = self.returns.max(u32::from(self.was_taken));
        Self { returns, taken: None, was_taken: false, ..self.clone() }
    }
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Reference {
    settings: Settings,
    gate_limit: u32,
    now: u64,
    /// Ready and unsettled ones, in order of arrival.
    messages: Vec<Message>,
    consumers: Vec<Consumer>,
    /// The one that receives, where only one may.
    active: Option<usize>,
    published: usize,
    deliveries: usize,
    subscribed: usize,
    turns: u64,
    /// Of a quorum queue: messages of high priority that went since one of normal priority did.
    high_in_a_row: usize,
    /// Who used up a window since windows were last filled.
    used_up: Vec<usize>,
    /// What went in this drive, and whether the last one stopped at a bound.
    expired: usize,
    dropped: usize,
    was_bounded: bool,
    last_tick: Option<u64>,
    /// When the next look was due, where the last tick surely looked for what is overdue: it was
    /// due, and for nothing else.
    looked: Option<Option<u64>>,
    is_durable: bool,
    /// Dead letters that the store is to keep until they have arrived.
    dying: Vec<Message>,
    /// Of a level whose messages are not all in memory, the number of the first that cannot be
    /// reached.
    blocked: BTreeMap<u8, usize>,
    /// What a crash leaves after each number of commands since the broker was started.
    lasting: Vec<Vec<Message>>,
    outcome: Outcome,
}

impl Reference {
    pub(super) fn new(settings: Settings, gate_limit: u32, now: Millis) -> Self {
        Self { settings, gate_limit, now: now.0, ..Self::default() }
    }

    /// That of a durable queue, which a crash leaves its stored messages.
    pub(super) fn durable(settings: Settings, gate_limit: u32, now: Millis) -> Self {
        let lasting = vec![Vec::new()];
        Self { is_durable: true, lasting, ..Self::new(settings, gate_limit, now) }
    }

    /// `reachable` says of the levels whose messages are not all in memory how many of those that
    /// are ready can be reached.
    pub(super) fn apply(&mut self, command: &Command, reachable: &[(u8, usize)]) -> Outcome {
        if let Command::Crash { commands, stored } = command {
            self.crash(*commands, stored);
        }
        self.block(reachable);
        match command {
            Command::Commit(operations) => self.commit(operations),
            Command::Subscribe(subscription) => self.subscribe(*subscription),
            Command::Cancel(consumer) => {
                self.cancel(*consumer);
                self.drive();
            }
            Command::Get { no_ack } => {
                self.take_one(*no_ack);
                self.drive();
            }
            Command::Purge => {
                let before = self.messages.len();
                self.messages.retain(|message| message.taken.is_some());
                self.outcome.purged = before - self.messages.len();
            }
            Command::Grant { consumer, window } => self.grant(*consumer, *window),
            Command::Reopen => self.reopen(),
            Command::Wait { ms } => self.now += ms,
            Command::Tick { overdue, is_due } => self.tick(overdue, *is_due),
            Command::Configure(policy) => {
                // What waits keeps its time.
                self.settings = policy.clone();
                self.drive();
            }
            Command::Bury(numbers) => self.dying.retain(|it| !numbers.contains(&it.number)),
            Command::Load | Command::Crash { .. } => self.drive(),
        }
        self.outcome.counts = self.counts();
        if self.is_durable {
            self.lasting.push(self.stored().map(Message::after_crash).collect());
        }
        std::mem::take(&mut self.outcome)
    }

    fn block(&mut self, reachable: &[(u8, usize)]) {
        let first_blocked = |(level, reachable): &(u8, usize)| {
            let of_level = self.messages.iter().filter(|it| it.level == *level);
            let first = of_level.filter(|it| it.taken.is_none()).nth(*reachable);
            (*level, first.map_or(self.published, |it| it.number))
        };
        self.blocked = reachable.iter().map(first_blocked).collect();
    }

    fn is_blocked(&self, at: usize) -> bool {
        let Message { number, level, .. } = self.messages[at];
        self.blocked.get(&level).is_some_and(|first| number >= *first)
    }

    /// What the store should have, in order of arrival.
    fn stored(&self) -> impl Iterator<Item = &Message> {
        let mut stored: Vec<&Message> =
            self.messages.iter().chain(&self.dying).filter(|it| it.is_stored).collect();
        stored.sort_by_key(|it| it.number);
        stored.into_iter()
    }

    /// Goes back to what lasts of the first `commands` since the broker was started, which the
    /// store has, too: `stored` are the numbers of messages and how often each came back.
    fn crash(&mut self, commands: usize, stored: &[(usize, u32)]) {
        let messages = std::mem::take(&mut self.lasting[commands]);
        let expected: Vec<(usize, u32)> =
            messages.iter().map(|it| (it.number, it.returns)).collect();
        assert_eq!(stored, expected, "what the store has after {commands} commands");
        let new = Self::durable(self.settings.clone(), self.gate_limit, Millis(self.now));
        let published = self.published;
        *self = Self { lasting: vec![messages.clone()], messages, published, ..new };
    }

    /// Checks what the store was told last of each level.
    pub(super) fn check_heads(&self, heads: &BTreeMap<u8, LaneHead>) {
        let mut expected: BTreeMap<u8, (u64, u64, u64)> =
            heads.keys().map(|level| (*level, (0, 0, 0))).collect();
        for message in self.stored() {
            let totals = expected.entry(message.level).or_default();
            totals.0 += 1;
            totals.1 += message.body_len;
            totals.2 += message.cost as u64;
            if message.expires_at.is_some() {
                assert!(heads[&message.level].may_expire, "message {} does", message.number);
            }
        }
        let totals = |head: &LaneHead| (head.count, head.body_bytes, head.cost);
        let told = heads.iter().map(|(level, head)| (*level, totals(head)));
        assert_eq!(told.collect::<BTreeMap<_, _>>(), expected);
    }

    /// Checks that what someone waits for is wanted, and that the same dead letters are kept.
    pub(super) fn check_waiting(&self, is_wanted: bool, dying: impl Iterator<Item = usize>) {
        let is_next = self.next().is_some_and(|at| self.is_blocked(at));
        let is_waited_for = is_next && (!self.consumers.is_empty() || self.is_to_drop());
        let hides_expiry =
            |at: &usize| self.is_blocked(*at) && self.messages[*at].expires_at.is_some();
        let hides_expiry = self.heads().values().any(hides_expiry);
        assert!(is_wanted || !(is_waited_for || hides_expiry), "what is wanted is not read");
        let expected = self.dying.iter().map(|it| it.number);
        assert_eq!(dying.collect::<BTreeSet<_>>(), expected.collect::<BTreeSet<_>>());
    }

    /// Whether the queue still holds a message, ready or unsettled.
    pub(super) fn holds(&self, number: usize) -> bool {
        self.messages.iter().any(|message| message.number == number)
    }

    /// Checks when the queue wants to be looked at again: not after anything is due, and not at all
    /// if nothing will be.
    pub(super) fn check_deadline(&self, deadline: Option<Millis>, command: &Command) {
        let deadline = deadline.map(|at| at.0);
        if self.is_to_drop() && !self.next().is_some_and(|at| self.is_blocked(at)) {
            assert!(deadline.is_some_and(|at| at <= self.now), "there is more to drop");
            return;
        }
        if self.was_bounded && deadline.is_some_and(|at| at <= self.now) {
            // One tick too many, perhaps, as what was left over went another way.
            return;
        }
        let expiry = self.heads().into_values().filter(|at| !self.is_blocked(*at));
        let expiry = expiry.filter_map(|at| self.messages[at].expires_at).min();
        let Some(timeout_ms) = self.timeout_ms() else {
            assert_eq!(deadline, expiry, "nothing but expiry has a time");
            return;
        };
        let taken = self.messages.iter().filter_map(|message| message.taken.as_ref());
        let unreported = taken.filter(|taken| !taken.was_reported);
        let may_look = self.last_tick.map_or(0, |at| at + OVERDUE_LOOK_MS);
        let looks = unreported.clone().map(|taken| (taken.since + timeout_ms).max(may_look));
        if let Some(due) = looks.chain(expiry).min() {
            let due = due.max(self.now);
            assert!(deadline.is_some_and(|at| at <= due), "{deadline:?} is later than {due}");
        }
        if matches!(command, Command::Tick { .. }) && !self.was_bounded {
            assert!(deadline.is_none_or(|at| at > self.now), "a tick would follow the other");
        }
        if matches!(command, Command::Tick { .. })
            && let Some(look) = self.looked
            && deadline.is_some()
        {
            // Nor before anything is due, as far as that was known when it was looked through.
            let is_new = unreported.clone().any(|taken| taken.since == self.now);
            let new = is_new.then_some(self.now + timeout_ms);
            let first = look.into_iter().chain(new).chain(expiry).min();
            assert!(first.is_some() && deadline >= first, "{deadline:?} is before {first:?}");
        }
    }

    fn timeout_ms(&self) -> Option<u64> {
        self.settings.consumer_timeout_ms.filter(|timeout_ms| *timeout_ms != 0)
    }

    fn is_limited(&self) -> bool {
        self.settings.length_max.is_some() || self.settings.bytes_max.is_some()
    }

    fn has_dlx(&self) -> bool {
        self.settings.dead_letter_exchange.is_some()
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

    fn commit(&mut self, operations: &[Operation]) {
        let mut has_room = false;
        for operation in operations {
            match operation {
                Operation::Settle(delivery, settlement) => {
                    self.settle(*delivery, *settlement);
                    has_room = true;
                }
                Operation::Publish(payload) => {
                    if self.is_limited() && (has_room || !self.used_up.is_empty()) {
                        self.drive();
                        has_room = false;
                    }
                    self.publish(payload);
                }
            }
        }
        self.drive();
    }

    fn subscribe(&mut self, subscription: Subscription) {
        let number = self.subscribed;
        let window = i64::from(subscription.window);
        self.subscribed += 1;
        let consumer = Consumer { number, subscription, window, turn: None, is_stopped: false };
        self.consumers.push(consumer);
        self.elect();
        self.wait_for_turn(number);
        self.drive();
    }

    fn cancel(&mut self, consumer: usize) {
        self.consumers.retain(|it| it.number != consumer);
        self.elect();
    }

    /// Where only one consumer may receive, it does until it is gone. Then it is the one of the
    /// highest priority that came first.
    fn elect(&mut self) {
        let is_there = |number| self.consumers.iter().any(|it| it.number == number);
        if self.settings.single_active_consumer && !self.active.is_some_and(is_there) {
            let best = self
                .consumers
                .iter()
                .max_by_key(|it| (it.subscription.priority, std::cmp::Reverse(it.number)));
            self.active = best.map(|it| it.number);
        }
    }

    fn grant(&mut self, consumer: usize, window: u32) {
        self.fill(consumer, i64::from(window));
        self.drive();
    }

    fn fill(&mut self, consumer: usize, window: i64) {
        if let Some(it) = self.consumers.iter_mut().find(|it| it.number == consumer) {
            it.window = window;
        }
        self.wait_for_turn(consumer);
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
        self.drive();
    }

    /// Checks what was found to be overdue, and ends who can be told: a consumer that knows, and
    /// whoever holds a message without being a consumer.
    fn tick(&mut self, overdue: &[usize], is_due: bool) {
        let timeout_ms = self.timeout_ms();
        for message in &mut self.messages {
            let Some(taken) = &mut message.taken else { continue };
            let is_due = timeout_ms.is_some_and(|timeout_ms| taken.since + timeout_ms <= self.now);
            if overdue.contains(&taken.delivery) {
                assert!(is_due, "delivery {} is not overdue", taken.delivery);
                taken.was_reported = true;
            } else if is_due && !taken.was_reported {
                let looked = self.last_tick.is_some_and(|at| self.now < at + OVERDUE_LOOK_MS);
                assert!(looked, "delivery {} is overdue", taken.delivery);
            }
        }
        self.last_tick = Some(self.now);
        let later = self.messages.iter().filter_map(|it| it.taken.as_ref());
        let later = later.filter(|it| !overdue.contains(&it.delivery));
        let looks = later.filter_map(|it| Some(it.since + timeout_ms?));
        let look = looks.map(|due| due.max(self.now + OVERDUE_LOOK_MS)).min();
        let has_expired = |at: &usize| {
            !self.is_blocked(*at) && self.messages[*at].expires_at.is_some_and(|at| at <= self.now)
        };
        let is_for_overdue = !self.was_bounded && !self.heads().values().any(has_expired);
        self.looked = (is_due && is_for_overdue).then_some(look);
        for delivery in overdue {
            let taken = self.messages.iter().filter_map(|it| it.taken.as_ref());
            let holder = taken.clone().find(|it| it.delivery == *delivery).map(|it| it.consumer);
            let Some(holder) = holder else { continue };
            let consumer = self.consumers.iter().find(|it| Some(it.number) == holder);
            match consumer {
                Some(it) if it.subscription.knows_cancel => {
                    let number = it.number;
                    let held = taken.filter(|it| it.consumer == holder).map(|it| it.delivery);
                    for delivery in held.collect::<Vec<usize>>() {
                        self.settle(delivery, Settlement::Requeue);
                    }
                    self.cancel(number);
                }
                Some(_) => {}
                None => self.settle(*delivery, Settlement::Requeue),
            }
        }
        // What comes back at once comes in no particular order.
        self.outcome.dead.sort_by_key(|(message, _)| *message);
        self.drive();
    }

    fn take_one(&mut self, no_ack: bool) {
        loop {
            let Some(at) = self.next() else { return };
            if self.is_blocked(at) {
                self.outcome.is_absent = true;
                return;
            }
            self.note_taken(at);
            if self.messages[at].expires_at.is_none_or(|expiry| expiry > self.now) {
                let (number, returns) = (self.messages[at].number, self.messages[at].returns);
                let delivery = self.hand_out(at, no_ack, None, false);
                self.outcome.got = Some((number, returns, delivery));
                return;
            }
            if self.expired == EXPIRIES_MAX {
                // It goes on in another drive.
                self.expired = 0;
            }
            self.expired += 1;
            self.bury(at, Reason::Expired);
        }
    }

    fn settle(&mut self, delivery: usize, settlement: Settlement) {
        let holds = |message: &Message| message.taken.as_ref().map(|it| it.delivery);
        let at = self.messages.iter().position(|message| holds(message) == Some(delivery));
        let Some(at) = at else { return };
        let taken = self.messages[at].taken.take().expect("found by it");
        let returns = self.messages[at].returns;
        match settlement {
            Settlement::Done => drop(self.messages.remove(at)),
            Settlement::Reject => self.bury(at, Reason::Rejected),
            Settlement::Requeue if self.settings.delivery_limit.is_some_and(|n| returns >= n) => {
                self.bury(at, Reason::DeliveryLimit);
            }
            Settlement::Requeue => self.messages[at].returns += 1,
        }
        if let Some(consumer) = taken.consumer {
            self.wait_for_turn(consumer);
        }
    }

    /// A message leaves for good.
    fn bury(&mut self, at: usize, reason: Reason) {
        let mut message = self.messages.remove(at);
        if self.has_dlx() {
            self.outcome.dead.push((message.number, reason));
            if message.is_stored {
                message.was_taken = true;
                self.dying.push(message);
            }
        }
    }

    fn publish(&mut self, payload: &Payload) {
        let number = self.published;
        self.published += 1;
        if self.is_limited() {
            // Whoever can take what is there makes room before the limits are looked at.
            self.assign();
        }
        let body_len = payload.body_len as u64;
        if !self.drops_head() && self.is_beyond_limits(1, body_len) {
            self.outcome.rejected.push(number);
            if self.settings.overflow == Some(Overflow::RejectPublishDlx) && self.has_dlx() {
                self.outcome.dead.push((number, Reason::MaxLength));
            }
            return;
        }
        let ttl_ms = match (self.settings.message_ttl_ms, payload.expiration_ms) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let none_waits = self.next().is_none();
        self.messages.push(Message {
            number,
            body_len,
            cost: payload.cost(),
            level: self.level(payload.priority.unwrap_or(0)),
            expires_at: ttl_ms.map(|ttl_ms| self.now + ttl_ms),
            returns: 0,
            taken: None,
            was_taken: false,
            is_stored: self.is_durable
                && (payload.persistent || self.settings.kind == Kind::Quorum),
        });
        // What needs no keeping is passed on at once; the rest waits for the end of the batch.
        let next = self.waiting().min_by_key(|(_, it)| (-it.subscription.priority, it.turn));
        if none_waits && next.is_some_and(|(_, it)| it.subscription.no_ack) {
            let (next, is_counted) = self.next_consumer().expect("there is one");
            self.deliver(self.messages.len() - 1, next, is_counted);
        } else if self.is_limited() {
            self.assign();
            self.drop_from_head();
        }
    }

    fn level(&self, priority: u8) -> u8 {
        match (self.settings.kind, self.settings.priority_max) {
            (Kind::Quorum, _) => u8::from(priority > 4),
            (Kind::Classic, max) => priority.min(max.unwrap_or(0)),
        }
    }

    /// The first ready message of each level.
    fn heads(&self) -> BTreeMap<u8, usize> {
        let mut heads = BTreeMap::new();
        for (at, message) in self.messages.iter().enumerate() {
            if message.taken.is_none() {
                heads.entry(message.level).or_insert(at);
            }
        }
        heads
    }

    /// The message that leaves next.
    fn next(&self) -> Option<usize> {
        if self.settings.kind == Kind::Classic && self.settings.priority_max.is_none() {
            return self.messages.iter().position(|message| message.taken.is_none());
        }
        let heads = self.heads();
        if self.settings.kind == Kind::Quorum
            && self.high_in_a_row >= 2
            && let Some(normal) = heads.get(&0)
        {
            return Some(*normal);
        }
        heads.last_key_value().map(|(_, at)| *at)
    }

    fn note_taken(&mut self, at: usize) {
        self.high_in_a_row = if self.messages[at].level > 0 { self.high_in_a_row + 1 } else { 0 };
    }

    /// Delivers what can be delivered, and fills windows where there is room, until neither leads
    /// any further. Then what has expired goes.
    fn drive(&mut self) {
        loop {
            self.assign();
            self.drop_from_head();
            let mut was_granted = false;
            for number in std::mem::take(&mut self.used_up) {
                let Some(it) = self.consumers.iter().find(|it| it.number == number) else {
                    continue;
                };
                if it.subscription.has_room {
                    self.fill(number, i64::from(it.subscription.window));
                    was_granted = true;
                }
            }
            if !was_granted {
                break;
            }
        }
        while self.expired < EXPIRIES_MAX {
            let heads = self.heads().into_values().rev();
            let is_due = |at: &usize| {
                let expires_at = self.messages[*at].expires_at;
                !self.is_blocked(*at) && expires_at.is_some_and(|expiry| expiry <= self.now)
            };
            let Some(at) = heads.into_iter().find(is_due) else { break };
            self.expired += 1;
            self.bury(at, Reason::Expired);
        }
        self.was_bounded = self.expired == EXPIRIES_MAX || self.dropped == DROPS_MAX;
        (self.expired, self.dropped) = (0, 0);
    }

    fn assign(&mut self) {
        while let Some(at) = self.next().filter(|at| !self.is_blocked(*at)) {
            if self.messages[at].expires_at.is_some_and(|expiry| expiry < self.now) {
                if self.expired == EXPIRIES_MAX {
                    return;
                }
                self.expired += 1;
                self.note_taken(at);
                self.bury(at, Reason::Expired);
                continue;
            }
            let Some((next, is_counted)) = self.next_consumer() else { return };
            self.note_taken(at);
            self.deliver(at, next, is_counted);
        }
    }

    fn deliver(&mut self, at: usize, next: usize, is_counted: bool) {
        let cost = self.messages[at].cost;
        let consumer = &mut self.consumers[next];
        let (number, no_ack) = (consumer.number, consumer.subscription.no_ack);
        consumer.window -= cost;
        if consumer.window <= 0 {
            self.outcome.exhausted.push(number);
            self.used_up.push(number);
        }
        let (message, returns) = (self.messages[at].number, self.messages[at].returns);
        let delivery = self.hand_out(at, no_ack, Some(number), is_counted);
        // Having been served, it goes to the end of the line.
        self.consumers[next].turn = None;
        self.wait_for_turn(number);
        self.outcome.deliveries.push(Delivered {
            consumer: number,
            message,
            returns,
            delivery,
            is_counted,
        });
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
        let (since, was_reported) = (self.now, false);
        let taken = Taken { delivery, consumer, is_counted, since, was_reported };
        self.messages[at].taken = Some(taken);
        self.messages[at].was_taken = true;
        Some(delivery)
    }

    /// Who waits for a message, with their places.
    fn waiting(&self) -> impl Iterator<Item = (usize, &Consumer)> {
        let single = self.settings.single_active_consumer;
        let may_receive = move |it: &Consumer| !single || self.active == Some(it.number);
        let waits = move |it: &Consumer| it.turn.is_some() && !it.is_stopped && may_receive(it);
        self.consumers.iter().enumerate().filter(move |(_, it)| waits(it))
    }

    /// The place of whose turn it is, and whether the gate counts the delivery.
    fn next_consumer(&mut self) -> Option<(usize, bool)> {
        loop {
            let key = |it: &Consumer| (-it.subscription.priority, it.turn);
            let (next, consumer) = self.waiting().min_by_key(|(_, it)| key(it))?;
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

    fn drops_head(&self) -> bool {
        matches!(self.settings.overflow, None | Some(Overflow::DropHead))
    }

    /// Whether more is ready than there may be.
    fn is_to_drop(&self) -> bool {
        self.drops_head() && self.is_limited() && self.is_beyond_limits(0, 0)
    }

    fn drop_from_head(&mut self) {
        while self.is_to_drop() && self.dropped < DROPS_MAX {
            let head = self.next().expect("a limit is exceeded by something");
            if self.is_blocked(head) {
                return;
            }
            self.dropped += 1;
            self.note_taken(head);
            self.bury(head, Reason::MaxLength);
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
