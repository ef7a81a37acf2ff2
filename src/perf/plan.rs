//! A run as it was asked for, checked: what the options mean together.
//!
//! Owns the rules between options and the shares of counts and queues. It does no IO.

use std::time::Duration;

use amq_protocol::uri::AMQPUri;

use super::Args;
use super::block::STAMP_LEN;
use super::consumer::Taking;
use super::process::Process;
use super::producer::Pace;

/// A checked run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Where the broker is.
    pub(crate) uri: AMQPUri,
    /// Producers.
    pub(crate) producers: usize,
    /// Consumers.
    pub(crate) consumers: usize,
    /// The queues' names.
    pub(crate) queues: Vec<String>,
    /// Bytes of body.
    pub(crate) size: usize,
    /// Durable queues and messages of delivery mode 2.
    pub(crate) is_persistent: bool,
    /// Stamped bodies.
    pub(crate) is_verified: bool,
    /// Outstanding publishes.
    pub(crate) window: Option<u64>,
    /// How consumers acknowledge.
    pub(crate) taking: Taking,
    /// Messages in all, for runs that end by count.
    pub(crate) count: Option<u64>,
    /// Messages per second and producer.
    pub(crate) rate: Option<f64>,
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
        let uri: AMQPUri = args.uri.parse().map_err(|error| format!("--uri: {error}"))?;
        let is_stamp_cut = args.verify && args.size < STAMP_LEN;
        let seconds = |value: f64| Duration::try_from_secs_f64(value);
        let time = |name, value| seconds(value).map_err(|error| format!("--{name}: {error}"));
        let prefix = match &args.queue_prefix {
            Some(prefix) => prefix.clone(),
            None => format!("leveret-perf-{}", std::process::id()),
        };
        if prefix.len() > 200 {
            return Err("--queue-prefix: at most 200 bytes".into());
        }
        if is_stamp_cut {
            return Err(format!("--verify needs --size {STAMP_LEN} or more"));
        }
        if args.rate.is_some_and(|rate| rate.is_nan() || rate <= 0.0) {
            return Err("--rate must be above 0".into());
        }
        if args.producers + args.consumers == 0 || args.queues == 0 {
            return Err("at least one producer or consumer and one queue are needed".into());
        }
        if let Some(every) = args.ack_every
            && args.prefetch > 0
            && every > u64::from(args.prefetch)
        {
            return Err("--ack-every must not be above --prefetch".into());
        }
        Ok(Self {
            uri,
            producers: args.producers,
            consumers: args.consumers,
            queues: (0..args.queues).map(|number| format!("{prefix}-{number}")).collect(),
            size: args.size,
            is_persistent: args.persistent,
            is_verified: args.verify,
            window: args.confirms,
            taking: Taking {
                ack_every: args.ack_every,
                prefetch: args.prefetch,
                verified_producers: args.verify.then_some(args.producers),
            },
            count: args.count.or(args.fill),
            rate: args.rate,
            duration: time("duration", args.duration)?,
            warmup: time("warmup", args.warmup)?,
            deadline: time("deadline", args.deadline)?,
            broker: args.broker_pid.map(Process::of),
        })
    }

    /// The queue of a producer or consumer.
    pub(crate) fn queue_of(&self, worker: usize) -> &str {
        &self.queues[worker % self.queues.len()]
    }

    /// Whether the messages of a producer reach a consumer.
    pub(crate) fn is_consumed(&self, producer: usize) -> bool {
        producer % self.queues.len() < self.consumers
    }

    /// A pace for each producer, with the count shared out.
    pub(crate) fn paces(&self) -> Vec<Pace> {
        let producers = self.producers as u64;
        let share = |producer: u64| {
            self.count.map(|count| count / producers + u64::from(producer < count % producers))
        };
        let pace = |producer| Pace {
            count: share(producer),
            rate: self.rate,
            window: self.window,
            is_verified: self.is_verified,
        };
        (0..producers).map(pace).collect()
    }

    /// The run in one line.
    pub(crate) fn summary(&self) -> String {
        let several = |count: usize, noun: &str| match count {
            1 => format!("1 {noun}"),
            _ => format!("{count} {noun}s"),
        };
        let mut parts = vec![
            several(self.producers, "producer"),
            several(self.queues.len(), "queue"),
            several(self.consumers, "consumer"),
            format!("{} B", self.size),
            String::from(if self.is_persistent { "persistent" } else { "transient" }),
        ];
        parts.extend(self.window.map(|window| format!("confirms {window}")));
        parts.extend(self.rate.map(|rate| format!("{rate} msgs/s per producer")));
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

    #[test]
    fn counts_are_shared_out_whole() {
        let plan = plan("--producers 3 --consumers 2 --queues 2 --count 11").expect("a plan");
        let counts: Vec<_> = plan.paces().into_iter().map(|pace| pace.count).collect();
        assert_eq!(counts, [Some(4), Some(4), Some(3)]);
        assert_eq!(plan.queue_of(2), plan.queues[0]);
    }

    #[test]
    fn a_queue_without_consumer_is_known() {
        let plan = plan("--producers 2 --consumers 1 --queues 2").expect("a plan");
        assert!(plan.is_consumed(0) && !plan.is_consumed(1));
    }

    #[test]
    fn options_that_cannot_work_together_are_refused() {
        for line in [
            "--verify --size 15",
            "--ack-every 11 --prefetch 10",
            "--auto-ack --ack-every 1",
            "--count 1 --duration 1",
            "--rate 0",
            "--producers 0 --consumers 0",
            "--queues 0",
            "--duration -1",
            "--uri http://localhost",
            "--fill 5 --latency",
        ] {
            assert!(plan(line).is_err(), "{line}");
        }
    }
}
