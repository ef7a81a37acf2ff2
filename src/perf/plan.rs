//! A run as it was asked for, checked: what the options mean together.
//!
//! Owns the shares of counts and queues. It does no IO but to read certificates.

use std::time::Duration;

use amq_protocol::uri::{AMQPScheme, AMQPUri};
use clap::ValueEnum;

use super::args::{Args, Churn, Kind};
use super::block::Shape;
use super::consumer::Taking;
use super::link::CHANNEL;
use super::methods::Declare;
use super::name_value::{message_properties, queue_arguments};
use super::process::Process;
use super::rules;
use super::schedule::Pace;
use super::socket::Endpoint;
use super::timetable::Timetable;
use super::tls::Trust;
use super::topology::Exchange;
use crate::codec::method::{AMQPProperties, AMQPValue, FieldTable, ShortString};

/// A checked run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Where the broker is.
    pub(crate) endpoint: Endpoint,
    /// Producers.
    pub(crate) producers: usize,
    /// Consumers.
    pub(crate) consumers: usize,
    /// What the names of everything declared begin with.
    pub(crate) prefix: String,
    /// The queues' names.
    pub(crate) queues: Vec<String>,
    /// The exchange to declare.
    pub(crate) exchange: Option<Exchange>,
    /// What to do instead of sending messages.
    pub(crate) churn: Option<Churn>,
    /// Operations of a churn run that a connection does at once.
    pub(crate) pipeline: u64,
    /// Bytes of body.
    pub(crate) size: usize,
    /// Durable queues and messages of delivery mode 2.
    pub(crate) is_persistent: bool,
    /// Levels of priority.
    pub(crate) priorities: Option<u8>,
    /// Messages reach their queues as dead letters.
    pub(crate) is_dead_lettered: bool,
    /// The messages' expiration.
    pub(crate) expiration_ms: Option<u32>,
    /// The messages' other properties.
    pub(crate) properties: AMQPProperties,
    /// What the queues are declared with, besides what other options ask for.
    pub(crate) queue_arguments: FieldTable,
    /// Stamped bodies.
    pub(crate) is_verified: bool,
    /// Outstanding publishes.
    pub(crate) window: Option<u64>,
    /// How consumers acknowledge.
    pub(crate) taking: Taking,
    /// Messages in all, for runs that end by count.
    pub(crate) count: Option<u64>,
    /// When producers publish, if not as fast as they can.
    pub(crate) timetable: Option<Timetable>,
    /// The run is about how late messages come that are published by the clock.
    pub(crate) is_open_loop: bool,
    /// The queues exist: nothing is declared or deleted.
    pub(crate) is_predeclared: bool,
    /// The queues stay at the end.
    pub(crate) are_queues_kept: bool,
    /// The queues must not hold messages at the beginning.
    pub(crate) are_queues_empty: bool,
    /// Measured time.
    pub(crate) duration: Duration,
    /// Time before the measurement.
    pub(crate) warmup: Duration,
    /// The longest that a run by count may take.
    pub(crate) deadline: Duration,
    /// The broker's process, if it is to be watched.
    pub(crate) broker: Option<Process>,
}

impl Plan {
    /// Checks options against each other; the error says what to change.
    pub(crate) fn checked(args: &Args) -> Result<Self, String> {
        rules::check(args)?;
        let endpoint = endpoint(args)?;
        let seconds = |value: f64| Duration::try_from_secs_f64(value);
        let time = |name, value| seconds(value).map_err(|error| format!("--{name}: {error}"));
        let prefix = match &args.queue_prefix {
            Some(prefix) => prefix.clone(),
            None => format!("leveret-perf-{}", std::process::id()),
        };
        let mut plan = Self {
            endpoint,
            producers: args.producers,
            consumers: args.consumers,
            queues: queues(args, &prefix),
            exchange: exchange(args, &prefix),
            prefix,
            churn: args.churn,
            pipeline: args.pipeline,
            size: args.size,
            is_persistent: args.persistent,
            priorities: args.priorities,
            is_dead_lettered: args.dead_letter,
            expiration_ms: args.expiration,
            properties: message_properties(&args.property)?,
            queue_arguments: queue_arguments(&args.queue_argument)?,
            is_verified: args.verify,
            window: args.confirms,
            taking: Taking {
                ack_every: args.ack_every,
                prefetch: args.prefetch,
                rate: args.consume_rate,
                verified_producers: args.verify.then_some(args.producers),
                priorities: args.priorities.unwrap_or(1),
                timetable: None,
            },
            count: args.count.or(args.fill),
            timetable: None,
            is_open_loop: args.is_open_loop(),
            is_predeclared: args.predeclared,
            are_queues_kept: args.keep_queues || args.predeclared,
            are_queues_empty: args.verify || args.latency || !args.keep_queues && !args.predeclared,
            duration: time("duration", args.duration)?,
            warmup: time("warmup", args.warmup)?,
            deadline: time("deadline", args.deadline)?,
            broker: args.broker_pid.map(Process::of),
        };
        if let Some(rate) = args.rate {
            plan.keep_to(rate);
        }
        Ok(plan)
    }

    /// Lets each producer publish at a rate. In an open loop the rate also says how many messages
    /// a time takes, or how long a count takes.
    fn keep_to(&mut self, rate: f64) {
        let mut timetable =
            Timetable { rate, producers: self.producers, counts_from: Duration::ZERO };
        if self.is_open_loop {
            if let Some(count) = self.count {
                let seconds = count as f64 / rate / self.producers as f64;
                self.warmup = Duration::ZERO;
                self.duration = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
            } else {
                let each = timetable.count_within(self.warmup.saturating_add(self.duration));
                self.count = Some(each.saturating_mul(self.producers as u64));
            }
            timetable.counts_from = self.warmup;
            self.taking.timetable = Some(timetable);
        }
        self.timetable = Some(timetable);
    }

    /// The queue of a producer or consumer.
    pub(crate) fn queue_of(&self, worker: usize) -> &str {
        &self.queues[worker % self.queues.len()]
    }

    /// What a producer's messages look like.
    pub(crate) fn shape_of(&self, producer: usize, frame_max: u32) -> Shape {
        let (number, queue) = (producer % self.queues.len(), self.queue_of(producer));
        let exchange = self.exchange.as_ref();
        let keys = match exchange {
            Some(exchange) => exchange.keys_of(number),
            None if self.is_dead_lettered => vec![source_of(queue)],
            None => vec![queue.to_owned()],
        };
        let mut properties = self.properties.clone();
        if self.is_persistent {
            properties = properties.with_delivery_mode(2);
        }
        if let Some(ms) = self.expiration_ms {
            properties = properties.with_expiration(ms.to_string().into());
        }
        if let Some((name, value)) = exchange.and_then(|exchange| exchange.header_of(number)) {
            let mut headers = properties.headers().clone().unwrap_or_default();
            headers.insert(name, value);
            properties = properties.with_headers(headers);
        }
        Shape {
            channel: CHANNEL,
            exchange: exchange.map_or_else(String::new, |exchange| exchange.name.clone()),
            keys,
            size: self.size,
            properties,
            priorities: self.priorities,
            frame_max,
        }
    }

    /// All queues and how to declare them, those that take dead letters first.
    pub(crate) fn declarations(&self) -> Vec<(String, Declare)> {
        if self.churn.is_some_and(|churn| churn != Churn::Bind) {
            return Vec::new();
        }
        let options = self.declare_options();
        let consumed = self.queues.iter().map(|name| (name.clone(), options.clone()));
        let sources = self.queues.iter().filter(|_| self.is_dead_lettered);
        let sources = sources.map(|name| {
            let options = Declare { arguments: source_arguments(name), ..options.clone() };
            (source_of(name), options)
        });
        consumed.chain(sources).collect()
    }

    /// How to declare the queues that are consumed.
    pub(crate) fn declare_options(&self) -> Declare {
        if self.is_predeclared {
            return Declare { is_passive: true, ..Declare::default() };
        }
        let mut arguments = self.queue_arguments.clone();
        if let Some(levels) = self.priorities {
            arguments.insert("x-max-priority".into(), AMQPValue::LongInt(levels.into()));
        }
        Declare { is_durable: self.is_persistent, arguments, ..Declare::default() }
    }

    /// Whether each message goes to all queues.
    pub(crate) fn is_fanout(&self) -> bool {
        self.exchange.as_ref().is_some_and(|exchange| exchange.kind == Kind::Fanout)
    }

    /// How many queues have consumers: those with the lowest numbers.
    pub(crate) fn consumed_queues(&self) -> usize {
        self.consumers.min(self.queues.len())
    }

    /// Whether the messages of a producer go to a queue.
    pub(crate) fn reaches(&self, producer: usize, queue: usize) -> bool {
        self.is_fanout() || producer % self.queues.len() == queue
    }

    /// How many deliveries come of what each producer published.
    pub(crate) fn deliveries_of(&self, published: &[u64]) -> u64 {
        self.copies_in(self.consumed_queues(), published)
    }

    /// How many messages come into all queues of what each producer published.
    pub(crate) fn copies_of(&self, published: &[u64]) -> u64 {
        self.copies_in(self.queues.len(), published)
    }

    fn copies_in(&self, queues: usize, published: &[u64]) -> u64 {
        let copies = |producer: usize| match self.is_fanout() {
            true => queues as u64,
            false => u64::from(producer % self.queues.len() < queues),
        };
        let all = published.iter().enumerate();
        all.map(|(producer, count)| count.saturating_mul(copies(producer))).sum()
    }

    /// A pace for each producer, with the count shared out.
    pub(crate) fn paces(&self) -> Vec<Pace> {
        let pace = |producer| Pace {
            count: self.share_of(producer),
            timetable: self.timetable,
            is_timed: self.is_open_loop,
            window: self.window,
            is_stamped: self.is_verified || self.is_open_loop,
        };
        (0..self.producers).map(pace).collect()
    }

    /// A producer's share of the count.
    pub(crate) fn share_of(&self, producer: usize) -> Option<u64> {
        let (producer, producers) = (producer as u64, self.producers as u64);
        self.count.map(|count| count / producers + u64::from(producer < count % producers))
    }

    /// A churn run in one line.
    pub(crate) fn churn_summary(&self, churn: Churn) -> String {
        let name = churn.to_possible_value().expect("no value is hidden");
        let mut parts = vec![
            format!("churn of {}", name.get_name()),
            format!(
                "{} at once on each of {}",
                self.pipeline,
                several(self.producers, "connection")
            ),
        ];
        parts.extend(self.exchange.as_ref().map(|exchange| exchange.kind.name().to_owned()));
        parts.extend(self.is_persistent.then(|| String::from("durable")));
        parts.extend(self.queue_arguments.inner().keys().map(ShortString::to_string));
        parts.join(", ")
    }

    /// The run in one line.
    pub(crate) fn summary(&self) -> String {
        let mut parts = vec![
            several(self.producers, "producer"),
            several(self.queues.len(), "queue"),
            several(self.consumers, "consumer"),
            format!("{} B", self.size),
            String::from(if self.is_persistent { "persistent" } else { "transient" }),
        ];
        if let Some(Exchange { kind, keys, bindings, .. }) = &self.exchange {
            parts.push(format!("{} exchange of {}", kind.name(), several(*bindings, "binding")));
            parts.push(several(*keys, "routing key"));
        }
        parts.extend(self.window.map(|window| format!("confirms {window}")));
        parts.extend(self.priorities.map(|levels| format!("{levels} priorities")));
        parts.extend(self.is_dead_lettered.then(|| String::from("dead-lettered")));
        parts.extend(self.expiration_ms.map(|ms| format!("expiration {ms} ms")));
        let has_properties = self.properties != AMQPProperties::default();
        parts.extend(has_properties.then(|| String::from("with properties")));
        let arguments = self.queue_arguments.inner().keys().map(ShortString::to_string);
        parts.extend(arguments);
        parts.extend(self.timetable.map(|table| format!("{} msgs/s per producer", table.rate)));
        parts.extend(self.taking.rate.map(|rate| format!("{rate} msgs/s per consumer")));
        parts.push(match self.taking.ack_every {
            Some(every) => format!("ack every {every}"),
            None => "auto-ack".into(),
        });
        if self.taking.prefetch > 0 {
            parts.push(format!("prefetch {}", self.taking.prefetch));
        }
        parts.join(", ")
    }
}

fn endpoint(args: &Args) -> Result<Endpoint, String> {
    let uri: AMQPUri = args.uri.parse().map_err(|error| format!("--uri: {error}"))?;
    let trust = match &args.tls_ca {
        _ if args.tls_insecure => Trust::Anything,
        Some(file) => Trust::Authorities(file),
        None => Trust::System,
    };
    let has_tls_option = args.tls_ca.is_some() || args.tls_insecure;
    if has_tls_option && uri.scheme != AMQPScheme::AMQPS {
        return Err("--tls-ca and --tls-insecure are for amqps:// in --uri".into());
    }
    Endpoint::new(uri, trust)
}

fn queues(args: &Args, prefix: &str) -> Vec<String> {
    if args.queue.is_empty() {
        return (0..args.queues).map(|number| format!("{prefix}-{number}")).collect();
    }
    args.queue.clone()
}

fn exchange(args: &Args, prefix: &str) -> Option<Exchange> {
    let is_bound = matches!(args.churn, Some(Churn::Declare | Churn::Bind));
    let kind = args.exchange.or(is_bound.then_some(Kind::Direct))?;
    let keys = args.routing_keys as usize;
    let bindings = args.bindings.unwrap_or(kind.bindings_min(args.queues, keys));
    Some(Exchange { name: format!("{prefix}-exchange"), kind, keys, bindings })
}

fn several(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// The queue whose messages become dead letters for `queue`.
fn source_of(queue: &str) -> String {
    format!("{queue}-source")
}

fn source_arguments(queue: &str) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(0));
    arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
    arguments.insert("x-dead-letter-routing-key".into(), AMQPValue::LongString(queue.into()));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn plan(line: &str) -> Result<Plan, String> {
        let words = std::iter::once("perf").chain(line.split_whitespace());
        Plan::checked(&Cli::try_parse_from(words).map_err(|error| error.to_string())?.args)
    }

    fn plan_of(line: &str) -> Plan {
        plan(line).expect("a plan")
    }

    #[test]
    fn counts_are_shared_out_whole() {
        let plan = plan("--producers 3 --consumers 2 --queues 2 --count 11").expect("a plan");
        let counts: Vec<_> = plan.paces().into_iter().map(|pace| pace.count).collect();
        assert_eq!(counts, [Some(4), Some(4), Some(3)]);
        assert_eq!(plan.queue_of(2), plan.queues[0]);
    }

    #[test]
    fn an_open_loop_has_a_count_and_a_time() {
        let plan = plan_of("--latency --rate 100 --producers 2 --warmup 0.5 --duration 2");
        assert_eq!(plan.count, Some(500));
        let timetable = plan.taking.timetable.expect("its consumers know when messages are due");
        assert_eq!(timetable.counts_from, Duration::from_millis(500));
        assert!(plan.paces().iter().all(|pace| pace.is_stamped && pace.is_timed));
        let plan = plan_of("--latency --rate 100 --producers 2 --count 500");
        assert_eq!((plan.warmup, plan.duration), (Duration::ZERO, Duration::from_millis(2500)));
        let plan = plan_of("--rate 100");
        assert!(plan.taking.timetable.is_none() && plan.count.is_none());
        assert!(plan.paces().iter().all(|pace| !pace.is_stamped && !pace.is_timed));
    }

    #[test]
    fn a_queue_without_consumer_is_known() {
        let plan = plan("--producers 2 --consumers 1 --queues 2").expect("a plan");
        assert_eq!((plan.deliveries_of(&[3, 5]), plan.copies_of(&[3, 5])), (3, 8));
        let plan = plan_of("--producers 2 --consumers 5 --queues 3 --exchange fanout");
        assert_eq!(plan.deliveries_of(&[3, 5]), 24);
    }

    #[test]
    fn queues_are_declared_with_what_the_options_ask_for() {
        let line = "--queues 2 --queue-prefix p --priorities 10 --dead-letter \
                    --queue-argument x-max-length=5 --queue-argument x-overflow=reject-publish";
        let plan = plan(line).expect("a plan");
        let declarations = plan.declarations();
        let names: Vec<_> = declarations.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["p-0", "p-1", "p-0-source", "p-1-source"]);
        let argument = |queue: usize, name| declarations[queue].1.arguments.inner().get(name);
        assert_eq!(argument(1, "x-max-priority"), Some(&AMQPValue::LongInt(10)));
        assert_eq!(argument(1, "x-max-length"), Some(&AMQPValue::LongLongInt(5)));
        let overflow = AMQPValue::LongString("reject-publish".into());
        assert_eq!(argument(1, "x-overflow"), Some(&overflow));
        let target = AMQPValue::LongString("p-1".into());
        assert_eq!(argument(3, "x-dead-letter-routing-key"), Some(&target));
        assert_eq!(argument(3, "x-max-priority"), None);
        assert_eq!(plan.shape_of(3, 4096).keys, ["p-1-source"]);
    }

    #[test]
    fn what_is_predeclared_is_looked_at_only() {
        let plan = plan_of("--predeclared --queue a --queue b --persistent");
        let declarations = plan.declarations();
        assert_eq!(plan.queues, ["a", "b"]);
        assert!(declarations.iter().all(|(_, declare)| declare.is_passive));
        assert!(plan.are_queues_kept && !plan.are_queues_empty);
        assert!(plan_of("--predeclared --queue-prefix p --verify").are_queues_empty);
        assert!(plan_of("").are_queues_empty);
    }

    #[test]
    fn headers_that_match_come_beside_others() {
        let plan = plan_of("--exchange headers --property header.a=1 --property type=t");
        let properties = plan.shape_of(0, 4096).properties;
        assert_eq!(properties.headers().as_ref().map(|headers| headers.inner().len()), Some(2));
        assert!(properties.kind().is_some());
    }

    #[test]
    fn options_that_cannot_work_together_are_refused() {
        for line in [
            "--verify --size 15",
            "--ack-every 11 --prefetch 10",
            "--auto-ack --ack-every 1",
            "--count 1 --duration 1",
            "--rate 0",
            "--consume-rate 0",
            "--consume-rate NaN",
            "--latency --confirms 2",
            "--latency --rate 10 --size 15",
            "--latency --rate 10 --producers 0",
            "--latency --rate 10 --consumers 0",
            "--latency --rate 10 --fill 5",
            "--keep-queues",
            "--keep-queues --queue-prefix p --verify",
            "--keep-queues --queue-prefix p --latency",
            "--producers 0 --consumers 0",
            "--queues 0",
            "--duration -1",
            "--uri http://localhost",
            "--tls-insecure",
            "--uri amqps://localhost --tls-insecure --tls-ca Cargo.toml",
            "--uri amqps://localhost --tls-ca Cargo.toml",
            "--uri amqps://localhost --tls-ca /none",
            "--fill 5 --latency",
            "--fill 5 --dead-letter",
            "--priorities 0",
            "--priorities 256",
            "--expiration -1",
            "--churn connections --pipeline 2",
            "--churn session --pipeline 2",
            "--churn channels --exchange topic",
            "--churn channels --producers 0",
            "--churn channels --persistent",
            "--churn queues --property type=t",
            "--churn channels --pipeline 0",
            "--churn channels --verify",
            "--churn nothing",
            "--pipeline 2",
            "--bindings 2",
            "--property priority=1",
            "--predeclared",
            "--queue q",
            "--predeclared --queue q --queue-prefix p",
            "--predeclared --queue q --queues 2",
            "--predeclared --queue q --exchange topic",
            "--predeclared --queue q --dead-letter",
            "--predeclared --queue q --churn bind",
            "--predeclared --queue q --queue-argument a=1",
            "--predeclared --queue q --idle-connections 1",
            "--routing-keys 2",
            "--exchange direct --queues 3 --bindings 2",
            "--exchange direct --routing-keys 10 --bindings 9",
            "--exchange topic --routing-keys 0",
            "--exchange topic --routing-keys 2000000",
            "--exchange topic --routing-keys 10000 --size 1000000",
            "--exchange topic --dead-letter",
            "--exchange topic --idle-connections 1",
            "--exchange none",
            "--queue-argument x-max-length",
            "--queue-argument =1",
            "--queue-argument a=1 --queue-argument a=2",
        ] {
            assert!(plan(line).is_err(), "{line}");
        }
    }
}
