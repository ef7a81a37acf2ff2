//! What some exchanges do with messages besides routing them: delay them, keep the latest, drop
//! duplicates.
//!
//! Owns the arguments and headers that ask for it, with RabbitMQ's plugins' refusals, and the
//! decision for each message. It must not hold messages or what was seen: the caller of routing
//! does, and is told by [`Kept`] and asked by [`Sighting`].

use std::borrow::Cow;

use amq_protocol::types::{AMQPValue, FieldTable};

use super::exchange::ExchangeId;
use super::route::{IsDuplicate, Message};
use super::spec::{ExchangeKind, ExchangeSpec};
use crate::codec::table::{self, Value};
use crate::codec::value::{erlang_term, integer};
use crate::error::{AmqpError, ReplyCode};

const HISTORY_LENGTH: &str = "x-recent-history-length";
const HISTORY_LENGTH_DEFAULT: usize = 20;
const CACHE_SIZE: &str = "x-cache-size";
/// What an exchange remembers that asks for no size (LavinMQ).
const CACHE_SIZE_DEFAULT: usize = 128;
const CACHE_TTL: &str = "x-cache-ttl";
const CACHE_PERSISTENCE: &str = "x-cache-persistence";
const DEDUPLICATION: &str = "x-message-deduplication";
const DEDUPLICATION_HEADER: &str = "x-deduplication-header";

/// Something of a message that an exchange on its way wants kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The exchange.
    pub exchange: ExchangeId,
    /// What it wants.
    pub keep: Keep,
}

/// See [`Kept`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The message is to leave the exchange only when so much time has passed.
    Delay {
        /// How long it waits, in milliseconds.
        ms: u64,
    },
    /// The message is one of the latest.
    History {
        /// How many of them are kept.
        length: usize,
    },
}

/// A message at an exchange that drops duplicates.
#[derive(Clone, Copy, Debug)]
pub struct Sighting<'a> {
    /// The exchange.
    pub exchange: ExchangeId,
    /// How many values it remembers.
    pub size: usize,
    /// How long it remembers this value, in milliseconds.
    pub ttl_ms: Option<u64>,
    /// What two messages have in common that are the same.
    pub value: &'a [u8],
}

/// What becomes of a message at an exchange that keeps something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is routed now.
    Pass,
    /// It matches nothing.
    Drop,
    /// It stays, to be routed later.
    Wait,
}

#[derive(Debug, PartialEq)]
struct Deduplication {
    size: usize,
    ttl_ms: Option<u64>,
    header: Box<[u8]>,
}

/// What an exchange was declared to keep.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Keeping {
    delays: bool,
    history: Option<usize>,
    deduplication: Option<Deduplication>,
}

impl Keeping {
    /// What the exchange keeps; none for most.
    ///
    /// # Errors
    /// 406 in the words of RabbitMQ's plugins.
    pub(crate) fn of(spec: &ExchangeSpec) -> Result<Option<Box<Self>>, AmqpError> {
        let routes_as = spec.routes_as();
        let history = match routes_as {
            ExchangeKind::RecentHistory => Some(history_length(&spec.arguments)?),
            _ => None,
        };
        let keeping = Self {
            delays: spec.kind == ExchangeKind::Delayed,
            history,
            deduplication: deduplication(routes_as, &spec.arguments)?,
        };
        Ok((keeping != Self::default()).then(|| Box::new(keeping)))
    }

    /// Judges a message that has come to the exchange.
    pub(crate) fn receive(
        &self,
        exchange: ExchangeId,
        message: &Message<'_>,
        is_duplicate: IsDuplicate<'_>,
        kept: &mut Vec<Kept>,
    ) -> Step {
        let headers = message.properties.headers().unwrap_or_default();
        if let Some(deduplication) = &self.deduplication
            && let Some(value) = table::find(headers, &deduplication.header)
        {
            let own_ttl = table::find(headers, CACHE_TTL.as_bytes());
            let own_ttl = own_ttl.and_then(|ttl| u64::try_from(ttl.as_integer()?).ok());
            let ttl_ms = own_ttl.or(deduplication.ttl_ms);
            let (size, value) = (deduplication.size, &*value.identity());
            if is_duplicate(&Sighting { exchange, size, ttl_ms, value }) {
                return Step::Drop;
            }
        }
        if self.delays
            && let Some(ms) = delay_ms(headers)
        {
            kept.push(Kept { exchange, keep: Keep::Delay { ms } });
            return Step::Wait;
        }
        Step::Pass
    }

    /// Notes what is kept of a message that is being routed.
    pub(crate) fn pass(&self, exchange: ExchangeId, message: &Message<'_>, kept: &mut Vec<Kept>) {
        let Some(length) = self.history else { return };
        let headers = message.properties.headers().unwrap_or_default();
        if table::find(headers, b"x-recent-history-no-store") != Some(Value::Bool(true)) {
            kept.push(Kept { exchange, keep: Keep::History { length } });
        }
    }
}

/// The delay that a message asks for: a positive number, of whatever type the plugin reads.
fn delay_ms(headers: &[u8]) -> Option<u64> {
    let delay = match table::find(headers, DELAY)? {
        Value::F32(n) => n as i64,
        Value::F64(n) => n as i64,
        Value::LongString(text) => std::str::from_utf8(text).ok()?.parse().ok()?,
        other => other.as_integer()?,
    };
    u64::try_from(delay).ok().filter(|ms| *ms > 0)
}

/// The header with the delay, in milliseconds.
const DELAY: &[u8] = b"x-delay";

/// The headers of a message whose delay is over: it is negative now, so that no exchange delays
/// the message again and consumers see that it was delayed.
pub fn without_delay(headers: &[u8]) -> Cow<'_, [u8]> {
    let Some(ms) = delay_ms(headers) else { return Cow::Borrowed(headers) };
    let mut out = table::without(headers, &[DELAY]);
    let delay = -i64::try_from(ms).unwrap_or(i64::MAX);
    let delay = i32::try_from(delay).map_or(AMQPValue::LongLongInt(delay), AMQPValue::LongInt);
    let mut field = FieldTable::default();
    field.insert("x-delay".into(), delay);
    out.extend_from_slice(&table::encode(&field));
    Cow::Owned(out)
}

fn refuse<T>(text: impl Into<String>) -> Result<T, AmqpError> {
    Err(AmqpError::new(ReplyCode::PreconditionFailed, text.into()))
}

fn history_length(arguments: &FieldTable) -> Result<usize, AmqpError> {
    let Some(value) = arguments.inner().get(HISTORY_LENGTH) else {
        return Ok(HISTORY_LENGTH_DEFAULT);
    };
    match integer(value).and_then(|length| usize::try_from(length).ok()) {
        Some(length) if length > 0 => Ok(length),
        _ => refuse(format!(
            "Invalid argument {}, '{HISTORY_LENGTH}' must be a positive integer",
            erlang_term(value)
        )),
    }
}

/// A number above zero, which the plugin also takes as text.
fn positive(value: &AMQPValue) -> Option<u64> {
    let number = match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok()?.parse().ok()?,
        other => integer(other)?,
    };
    u64::try_from(number).ok().filter(|number| *number > 0)
}

fn deduplication(
    kind: ExchangeKind,
    arguments: &FieldTable,
) -> Result<Option<Deduplication>, AmqpError> {
    let argument = |name: &str| arguments.inner().get(name);
    let by_type = kind == ExchangeKind::Deduplication;
    if !by_type && argument(DEDUPLICATION) != Some(&AMQPValue::Boolean(true)) {
        return Ok(None);
    }
    let size = argument(CACHE_SIZE).map(|value| positive(value).ok_or(()));
    let Ok(size) = size.transpose() else {
        return refuse(format!(
            "Missing or invalid argument, '{CACHE_SIZE}' must be an integer greater than 0"
        ));
    };
    if by_type && size.is_none() {
        return refuse(format!(
            "Missing or invalid argument, '{CACHE_SIZE}' must be an integer greater than 0"
        ));
    }
    let Ok(ttl_ms) = argument(CACHE_TTL).map(|value| positive(value).ok_or(())).transpose() else {
        return refuse(format!(
            "Invalid argument, '{CACHE_TTL}' must be an integer greater than 0"
        ));
    };
    let header = match argument(DEDUPLICATION_HEADER) {
        None => DEDUPLICATION_HEADER.as_bytes().into(),
        Some(AMQPValue::LongString(name)) => name.as_bytes().into(),
        Some(_) => {
            return refuse(format!("Invalid argument, '{DEDUPLICATION_HEADER}' must be a string"));
        }
    };
    match argument(CACHE_PERSISTENCE) {
        None => {}
        Some(AMQPValue::LongString(kind)) if kind.as_bytes() == b"memory" => {}
        Some(AMQPValue::LongString(kind)) if kind.as_bytes() == b"disk" => {
            return refuse(format!("'{CACHE_PERSISTENCE}' 'disk' is not supported"));
        }
        Some(_) => {
            return refuse(format!(
                "Invalid argument, '{CACHE_PERSISTENCE}' must be either 'disk' or 'memory'"
            ));
        }
    }
    let size = size.map_or(CACHE_SIZE_DEFAULT, |size| usize::try_from(size).unwrap_or(usize::MAX));
    Ok(Some(Deduplication { size, ttl_ms, header }))
}
