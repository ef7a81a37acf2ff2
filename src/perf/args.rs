//! The options of `leveret perf`, their help and its examples.
//!
//! Owns names and words; what options mean together is the plan's.

use std::path::PathBuf;

use clap::ValueEnum;

/// What a churn run does again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Churn {
    /// Open a connection with a channel, close it
    Connections,
    /// Open and close a channel
    Channels,
    /// Declare and delete a queue
    Queues,
    /// Declare a queue of a new name and bind it
    Declare,
    /// Bind one queue with a new key
    Bind,
    /// Connect, declare an exclusive queue, publish to it, get the message, close
    Session,
}

/// A type of exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "AMQP's own words")]
pub enum Kind {
    Direct,
    Fanout,
    Topic,
    Headers,
}

// The groups of options in --help.
const THE_BROKER: &str = "The broker";
const WHAT_TO_MEASURE: &str = "What to measure, if not how many messages flow";
const LOAD: &str = "Load";
const MESSAGES: &str = "Messages";
const QUEUES_AND_EXCHANGES: &str = "Queues and exchanges";
const OUTPUT: &str = "Output";

/// The options of `leveret perf`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = NOTES)]
pub struct Args {
    /// The broker; %2F is the virtual host "/", and amqps:// is TLS
    #[arg(help_heading = THE_BROKER)]
    #[arg(long, default_value = "amqp://guest:guest@127.0.0.1:5672/%2F")]
    pub uri: String,
    /// With amqps://, trust the certificates in this PEM file instead of the machine's
    #[arg(help_heading = THE_BROKER)]
    #[arg(long, value_name = "FILE", conflicts_with = "tls_insecure")]
    pub tls_ca: Option<PathBuf>,
    /// With amqps://, take any certificate
    #[arg(long, help_heading = THE_BROKER)]
    pub tls_insecure: bool,
    /// The broker's process on this machine: adds its CPU time per message and its memory
    #[arg(help_heading = THE_BROKER)]
    #[arg(long, value_name = "PID")]
    pub broker_pid: Option<u32>,
    /// One message in flight: the time from publish to delivery, in percentiles; with --confirms 1,
    /// the time from publish to confirm, without consumers. With --rate, messages at that rate
    /// whatever the broker does (see below)
    #[arg(help_heading = WHAT_TO_MEASURE)]
    #[arg(long, conflicts_with = "fill")]
    pub latency: bool,
    /// Publish N messages without consumers, then consume them without producers
    #[arg(help_heading = WHAT_TO_MEASURE)]
    #[arg(long, value_name = "N", conflicts_with_all = ["count", "duration"])]
    pub fill: Option<u64>,
    /// Open N connections with one channel each and hold them for --duration
    #[arg(help_heading = WHAT_TO_MEASURE)]
    #[arg(long, value_name = "N", conflicts_with_all = ["count", "fill", "latency"])]
    pub idle_connections: Option<usize>,
    /// Instead of messages, do this on --producers connections for --duration, or --count times
    #[arg(help_heading = WHAT_TO_MEASURE)]
    #[arg(long, value_name = "WHAT", conflicts_with_all = [
        "fill", "idle_connections", "latency", "verify", "rate", "consume_rate", "confirms",
        "auto_ack", "ack_every", "dead_letter", "priorities", "expiration",
    ])]
    pub churn: Option<Churn>,
    /// Requests of --churn that each connection writes at once before it waits for the answers
    #[arg(help_heading = WHAT_TO_MEASURE)]
    #[arg(long, value_name = "N", default_value_t = 1, requires = "churn",
        value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub pipeline: u64,
    /// Number the messages and check order, loss and duplicates (at least 16 bytes of body)
    #[arg(long, help_heading = WHAT_TO_MEASURE)]
    pub verify: bool,
    /// Connections that publish
    #[arg(help_heading = LOAD)]
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub producers: usize,
    /// Connections that consume
    #[arg(help_heading = LOAD)]
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub consumers: usize,
    /// Use publisher confirms, with at most this many unconfirmed messages per producer
    #[arg(help_heading = LOAD)]
    #[arg(long, value_name = "WINDOW", value_parser = clap::value_parser!(u64).range(1..))]
    pub confirms: Option<u64>,
    /// Consume with automatic acknowledgement (this is the default)
    #[arg(help_heading = LOAD)]
    #[arg(long, conflicts_with_all = ["ack_every", "prefetch"])]
    pub auto_ack: bool,
    /// Acknowledge every N messages, by one ack with "multiple"
    #[arg(help_heading = LOAD)]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub ack_every: Option<u64>,
    /// Unacknowledged messages per consumer; 0 for no limit
    #[arg(help_heading = LOAD)]
    #[arg(long, value_name = "N", default_value_t = 0, requires = "ack_every")]
    pub prefetch: u16,
    /// Messages per second of each producer; without it, as many as the broker takes
    #[arg(help_heading = LOAD)]
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<f64>,
    /// Messages per second that each consumer takes at most; without it, as many as come
    #[arg(help_heading = LOAD)]
    #[arg(long, value_name = "PER_SECOND")]
    pub consume_rate: Option<f64>,
    /// End after this many messages of all producers instead, once all are delivered
    #[arg(help_heading = LOAD)]
    #[arg(long, value_name = "N", conflicts_with = "duration")]
    pub count: Option<u64>,
    /// Length of the measurement, after the warm-up
    #[arg(help_heading = LOAD)]
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub duration: f64,
    /// Time before the measurement that does not count
    #[arg(help_heading = LOAD)]
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub warmup: f64,
    /// The longest that a run by --count or --fill may take, and that messages of --latency --rate
    /// may be late
    #[arg(help_heading = LOAD)]
    #[arg(long, value_name = "SECONDS", default_value_t = 120.0)]
    pub deadline: f64,
    /// Size of each message's body
    #[arg(help_heading = MESSAGES)]
    #[arg(long, value_name = "BYTES", default_value_t = 16)]
    pub size: usize,
    /// Declare durable queues and publish persistent messages
    #[arg(long, help_heading = MESSAGES)]
    pub persistent: bool,
    /// Declare priority queues with x-max-priority=N; the messages' priorities go round 0 to N-1
    #[arg(help_heading = MESSAGES)]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub priorities: Option<u8>,
    /// Publish with this expiration; what expires before it is delivered counts as lost
    #[arg(help_heading = MESSAGES)]
    #[arg(long, value_name = "MS")]
    pub expiration: Option<u32>,
    /// A property of the messages: content-type, content-encoding, correlation-id, reply-to,
    /// message-id, type, app-id, timestamp, or header.NAME with a number, true, false, or text; may
    /// be repeated
    #[arg(help_heading = MESSAGES)]
    #[arg(long, value_name = "NAME=VALUE", conflicts_with = "idle_connections")]
    pub property: Vec<String>,
    /// Queues
    #[arg(help_heading = QUEUES_AND_EXCHANGES)]
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub queues: usize,
    /// The queues are named NAME-0, NAME-1, ... [default: leveret-perf-<pid>]
    #[arg(help_heading = QUEUES_AND_EXCHANGES)]
    #[arg(long, value_name = "NAME")]
    pub queue_prefix: Option<String>,
    /// An argument for the declaration of the consumed queues, as a number, true, false, or text;
    /// may be repeated
    #[arg(help_heading = QUEUES_AND_EXCHANGES)]
    #[arg(long, value_name = "NAME=VALUE")]
    pub queue_argument: Vec<String>,
    /// Leave the queues and their messages behind, and take what already waits in them as well
    #[arg(help_heading = QUEUES_AND_EXCHANGES)]
    #[arg(long, requires = "queue_prefix", conflicts_with_all = ["verify", "latency"])]
    pub keep_queues: bool,
    /// Use queues that exist, take what waits in them as well, and declare and delete nothing
    #[arg(help_heading = QUEUES_AND_EXCHANGES)]
    #[arg(long, conflicts_with_all =
        ["exchange", "churn", "dead_letter", "queue_argument", "idle_connections"])]
    pub predeclared: bool,
    /// With --predeclared, the name of a queue; may be repeated
    #[arg(help_heading = QUEUES_AND_EXCHANGES)]
    #[arg(long, value_name = "NAME", requires = "predeclared",
        conflicts_with_all = ["queues", "queue_prefix"])]
    pub queue: Vec<String>,
    /// Publish to queues of their own whose messages expire at once and are dead-lettered, through
    /// the default exchange, to those that are consumed
    #[arg(help_heading = QUEUES_AND_EXCHANGES)]
    #[arg(long, conflicts_with_all = ["fill", "idle_connections"])]
    pub dead_letter: bool,
    /// Publish through an exchange of this type instead of the default one; a fanout exchange gives
    /// each message to all queues, which counts as so many deliveries. --churn declare and --churn
    /// bind bind to it [default there: direct]
    #[arg(help_heading = QUEUES_AND_EXCHANGES)]
    #[arg(long, value_name = "TYPE", conflicts_with_all = ["dead_letter", "idle_connections"])]
    pub exchange: Option<Kind>,
    /// Bindings of the exchange in all, of which one matches for each queue (in a direct exchange
    /// for each queue and routing key, in a fanout exchange all do) [default: no others]
    #[arg(help_heading = QUEUES_AND_EXCHANGES)]
    #[arg(long, value_name = "N", requires = "exchange", conflicts_with = "churn")]
    pub bindings: Option<usize>,
    /// Routing keys that each producer's messages have in turn; all of them match
    #[arg(help_heading = QUEUES_AND_EXCHANGES)]
    #[arg(long, value_name = "N", default_value_t = 1, requires = "exchange",
        conflicts_with = "churn", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub routing_keys: u64,
    /// Print the summary as one JSON object, with the figures of each second ("samples")
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
}

impl Args {
    /// Messages are published by the clock, and their latencies count from when they were due.
    pub(crate) fn is_open_loop(&self) -> bool {
        self.latency && self.rate.is_some()
    }
}

const NOTES: &str = r#"Producers publish to queues through the default exchange, consumers take from
them; producer and consumer number i use queue number i modulo the number of queues. A line of
progress goes to standard error each second, the summary to standard output. What was declared is
deleted at the end, unless --keep-queues says otherwise.
With --dead-letter, producers publish to NAME-0-source and so on. With --priorities, --verify checks
the order among messages of one priority.
With --exchange, each queue is bound to NAME-exchange. A producer's messages have routing keys such
as perf.q0.k7.end; topic bindings are patterns such as *.q0.# for those that match and #.n5 for
those that do not.
--latency --rate R is an open loop: each of the producers publishes R messages a second, by the
clock, and the time of a message counts from when it was due. So a stall of the broker shows in all
messages that it held up, also in those that could not even be written (no coordinated omission).
With --confirms, the times from due to confirm are shown, too. The times "sent late" are how long
after their time messages were written: what the generator or a blocked socket adds to the others.
--churn reports operations per second and how long each took, from its first byte written to its
last answer. --pipeline N does N operations of a connection at once, step by step: N requests are
written, then all answers awaited. The deletion at the end is not measured.
The summary says so ("generator_bound" with --json) when the generator and not the broker was the
bottleneck; with --broker-pid it can tell the two apart better.

Exit codes: 0 after a whole run; 1 when the broker failed, closed a connection, refused an
operation, missed the deadline or did not pass --verify; 2 for options that make no sense.

Examples:
  One producer, one queue, one consumer, automatic acknowledgement, for 10 seconds:
    leveret perf
  Confirms with 1000 outstanding, acknowledgement by 100:
    leveret perf --confirms 1000 --ack-every 100 --prefetch 1000
  Four producers and four consumers on one queue, with the broker's CPU and memory:
    leveret perf --producers 4 --consumers 4 --ack-every 10 --prefetch 100 --broker-pid 4711
  Ten million messages, each checked for order, loss and duplicates:
    leveret perf --count 10000000 --verify
  A backlog of a million persistent messages, filled and drained:
    leveret perf --fill 1000000 --persistent --confirms 1000 --ack-every 100
  The same in two runs, with whatever is to happen in between:
    leveret perf --queue-prefix b --keep-queues --persistent --confirms 1000 --consumers 0 \
        --count 1000000
    leveret perf --queue-prefix b --keep-queues --persistent --ack-every 100 --producers 0 \
        --count 1000000
  A queue that an operator has declared, with messages like those of an application:
    leveret perf --predeclared --queue orders --size 2000 --property content-type=text/plain \
        --property header.tenant=blue
  TLS with an authority of one's own:
    leveret perf --uri amqps://guest:guest@broker.example/%2F --tls-ca ca.pem
  Memory of 1000 idle connections, held for 5 seconds:
    leveret perf --idle-connections 1000 --duration 5 --broker-pid 4711
  A priority queue of ten levels, and a queue of dead letters, each message checked:
    leveret perf --priorities 10 --verify
    leveret perf --dead-letter --verify
  A queue that keeps at most 1000 messages:
    leveret perf --queue-argument x-max-length=1000 --queue-argument x-overflow=reject-publish
  Latency with one message in flight, for programs:
    leveret perf --latency --json
  Latency at 20000 messages a second from two producers, as users would see it:
    leveret perf --latency --rate 10000 --producers 2 --duration 30
  How long a publisher waits for the confirm of a persistent message:
    leveret perf --latency --confirms 1 --persistent
  Routing by patterns: 10000 bindings, 100 keys, and every message to three queues:
    leveret perf --exchange topic --bindings 10000 --routing-keys 100
    leveret perf --exchange fanout --queues 3 --consumers 3
  Connections per second of clients that come and go, from four of them at once:
    leveret perf --churn connections --producers 4 --broker-pid 4711
  Durable queues declared per second, 100 requests at once:
    leveret perf --churn declare --persistent --pipeline 100"#;
