//! What a queue does, as its arguments and policies say.
//!
//! Owns the meaning of valid arguments (see `arguments`) and of the limits in them. It must not
//! know where a policy comes from: `broker::policy` merges one into the settings of the arguments.

use super::arguments::find;
use crate::codec::method::{AMQPValue, FieldTable};
use crate::codec::value::integer;

/// How often a message may come back to a quorum queue that sets no limit of its own (4.0).
const QUORUM_DELIVERY_LIMIT: u32 = 20;

/// The header that tells duplicates, unless `x-deduplication-header` names another one.
const DEDUPLICATION_HEADER: &str = "x-deduplication-header";

/// The type of a queue (`x-queue-type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `classic`.
    #[default]
    Classic,
    /// `quorum`.
    Quorum,
}

impl Kind {
    /// RabbitMQ's module for the type, which is how its texts name it.
    pub(crate) fn module(self) -> &'static str {
        match self {
            Self::Classic => "rabbit_classic_queue",
            Self::Quorum => "rabbit_quorum_queue",
        }
    }
}

/// What happens to a message that would exceed a limit (`x-overflow`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Overflow {
    /// The oldest messages go.
    #[default]
    DropHead,
    /// The new message is refused; with confirms, the publisher gets `basic.nack`.
    RejectPublish,
    /// The new message is refused and dead-lettered.
    RejectPublishDlx,
}

impl Overflow {
    /// The value of this name.
    pub(crate) fn parse(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"drop-head" => Self::DropHead,
            b"reject-publish" => Self::RejectPublish,
            b"reject-publish-dlx" => Self::RejectPublishDlx,
            _ => return None,
        })
    }
}

/// Which messages are dropped as duplicates of others (`x-message-deduplication`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Deduplication {
    /// `x-deduplication-header`: the header whose value tells.
    pub(crate) header: Box<str>,
    /// `x-cache-size`: values that are remembered.
    pub(crate) cache_size: Option<usize>,
    /// `x-cache-ttl`: for how long, in milliseconds.
    pub(crate) cache_ttl_ms: Option<u64>,
}

/// Everything that arguments and policies can ask of a queue; see the module's description.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) kind: Kind,
    /// `x-message-ttl`: how long a message may wait, in milliseconds.
    pub(crate) message_ttl_ms: Option<u64>,
    /// `x-expires`: how long the queue may be unused, in milliseconds.
    pub(crate) expires_ms: Option<u64>,
    /// `x-max-length`: messages that are ready.
    pub(crate) length_max: Option<u64>,
    /// `x-max-length-bytes`: bytes of bodies that are ready.
    pub(crate) bytes_max: Option<u64>,
    /// `x-overflow`.
    pub(crate) overflow: Option<Overflow>,
    /// `x-dead-letter-exchange`; empty is the default exchange.
    pub(crate) dead_letter_exchange: Option<Box<str>>,
    /// `x-dead-letter-routing-key`, instead of the message's own keys.
    pub(crate) dead_letter_routing_key: Option<Box<str>>,
    /// `x-dead-letter-strategy` is `at-least-once`: a dead letter stays until its targets took it.
    pub(crate) dead_letter_at_least_once: bool,
    /// `x-delivery-limit`: how often a message may come back; `None` for no limit.
    pub(crate) delivery_limit: Option<u32>,
    /// `x-consumer-timeout`: how long a delivery may stay unsettled, in milliseconds. 0 switches
    /// the broker's default off.
    pub(crate) consumer_timeout_ms: Option<u64>,
    /// `x-max-priority`; only as an argument.
    pub(crate) priority_max: Option<u8>,
    /// `x-single-active-consumer`; only as an argument.
    pub(crate) single_active_consumer: bool,
    /// `x-message-deduplication`; only as an argument.
    pub(crate) deduplication: Option<Deduplication>,
}

impl Settings {
    /// What valid queue arguments ask for.
    pub(crate) fn from_arguments(kind: Kind, arguments: &FieldTable) -> Self {
        let number = |name: &str| find(arguments, name).and_then(integer);
        let positive = |name: &str| number(name).and_then(|n| u64::try_from(n).ok());
        let text = |name: &str| match find(arguments, name) {
            Some(AMQPValue::LongString(text)) => {
                Some(String::from_utf8_lossy(text.as_bytes()).into_owned().into_boxed_str())
            }
            _ => None,
        };
        let is_true = |name: &str| find(arguments, name) == Some(&AMQPValue::Boolean(true));
        let deduplication = is_true("x-message-deduplication").then(|| Deduplication {
            header: text("x-deduplication-header").unwrap_or(DEDUPLICATION_HEADER.into()),
            cache_size: positive("x-cache-size").and_then(|size| usize::try_from(size).ok()),
            cache_ttl_ms: positive("x-cache-ttl"),
        });
        Self {
            kind,
            message_ttl_ms: positive("x-message-ttl"),
            expires_ms: positive("x-expires"),
            length_max: positive("x-max-length"),
            bytes_max: positive("x-max-length-bytes"),
            overflow: text("x-overflow").and_then(|name| Overflow::parse(name.as_bytes())),
            dead_letter_exchange: text("x-dead-letter-exchange"),
            dead_letter_routing_key: text("x-dead-letter-routing-key"),
            dead_letter_at_least_once: text("x-dead-letter-strategy").as_deref()
                == Some("at-least-once"),
            delivery_limit: delivery_limit(kind, find(arguments, "x-delivery-limit")),
            consumer_timeout_ms: positive("x-consumer-timeout"),
            priority_max: positive("x-max-priority").and_then(|n| u8::try_from(n).ok()),
            single_active_consumer: is_true("x-single-active-consumer"),
            deduplication,
        }
    }

    /// Whether a message may be dropped or refused for want of room.
    pub(crate) fn is_limited(&self) -> bool {
        self.length_max.is_some() || self.bytes_max.is_some()
    }

    /// Whether dead letters stay until their targets took them. As in RabbitMQ, only where a full
    /// queue refuses new messages: otherwise it could not hold what cannot leave.
    pub(crate) fn keeps_dead_letters(&self) -> bool {
        self.dead_letter_at_least_once && self.overflow == Some(Overflow::RejectPublish)
    }

    /// Whether a full queue refuses new messages, rather than to drop old ones.
    pub(crate) fn rejects_publishes(&self) -> bool {
        !matches!(self.overflow, None | Some(Overflow::DropHead))
    }

    /// Whether one more message of `body_len` bytes is to be refused.
    pub(super) fn refuses(&self, ready: usize, ready_bytes: u64, body_len: u64) -> bool {
        self.rejects_publishes()
            && (self.length_max.is_some_and(|max| ready as u64 + 1 > max)
                || self.bytes_max.is_some_and(|max| ready_bytes + body_len > max))
    }

    /// Whether messages are to be dropped from the head. Messages that came back never cause
    /// drops when new ones are refused: what was accepted stays.
    pub(super) fn are_exceeded(&self, ready: usize, ready_bytes: u64) -> bool {
        !self.rejects_publishes()
            && (self.length_max.is_some_and(|max| ready as u64 > max)
                || self.bytes_max.is_some_and(|max| ready_bytes > max))
    }
}

/// RabbitMQ does not check the argument: what is no number, or negative, sets no limit.
fn delivery_limit(kind: Kind, argument: Option<&AMQPValue>) -> Option<u32> {
    match argument {
        None => (kind == Kind::Quorum).then_some(QUORUM_DELIVERY_LIMIT),
        Some(value) => integer(value).and_then(|n| u32::try_from(n).ok()),
    }
}
