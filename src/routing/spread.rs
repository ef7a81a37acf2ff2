//! Exchanges that send each message along one of their bindings: by hash, at random, in turn of a
//! modulus.
//!
//! Owns the choice and the checks of weights and hash arguments in RabbitMQ's words. A choice by
//! hash is the same for the same bindings after a restart and whatever the order of binding, for it
//! depends on the names of the destinations only. It must not know other exchanges.

use amq_protocol::types::AMQPValue;

use super::Destination;
use super::binding::BindingId;
use super::direct::{Matches, Target};
use super::route::Message;
use super::spec::{ExchangeKind, ExchangeSpec};
use crate::codec::table;
use crate::codec::value::{erlang_binary, type_name};
use crate::error::{AmqpError, ReplyCode};

/// What of a message is hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HashOn {
    Key,
    Header(Box<[u8]>),
    CorrelationId,
    MessageId,
    Timestamp,
}

impl HashOn {
    /// What the arguments of a consistent-hash exchange ask for; `x-hash-on` is LavinMQ's name for
    /// the header.
    pub(crate) fn of(spec: &ExchangeSpec) -> Result<Self, AmqpError> {
        let text = |name: &str| match spec.arguments.inner().get(name) {
            None => Ok(None),
            Some(AMQPValue::LongString(text)) => Ok(Some(text.as_bytes())),
            Some(other) => refuse(format!("invalid type '{}' for arg '{name}'", type_name(other))),
        };
        let header = text("hash-header")?.or(text("x-hash-on")?);
        match (header, text("hash-property")?) {
            (None, None) => Ok(Self::Key),
            (Some(header), None) => Ok(Self::Header(header.into())),
            (None, Some(b"correlation_id")) => Ok(Self::CorrelationId),
            (None, Some(b"message_id")) => Ok(Self::MessageId),
            (None, Some(b"timestamp")) => Ok(Self::Timestamp),
            (None, Some(other)) => {
                refuse(format!("Unsupported property: {}", String::from_utf8_lossy(other)))
            }
            (Some(_), Some(_)) => refuse("hash-header and hash-property are mutually exclusive"),
        }
    }

    /// The hash of a message; what lacks the header or property hashes like all others that do.
    fn hash(&self, message: &Message<'_>) -> u64 {
        let properties = &message.properties;
        match self {
            Self::Key => hash(message.keys.first().copied().unwrap_or_default()),
            Self::Header(name) => {
                let headers = properties.headers().unwrap_or_default();
                table::find(headers, name).map_or(0, |value| hash(&value.identity()))
            }
            Self::CorrelationId => properties.correlation_id().map_or(0, hash),
            Self::MessageId => properties.message_id().map_or(0, hash),
            Self::Timestamp => properties.timestamp().map_or(0, |at| hash(&at.to_be_bytes())),
        }
    }
}

#[derive(Debug)]
enum Choice {
    Hash(HashOn),
    Modulus,
    Random,
}

#[derive(Debug)]
struct Entry {
    /// From the destination's name.
    seed: u64,
    id: BindingId,
    target: Target,
    weight: f64,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Spread {
    choice: Choice,
    /// In the order of seed and id.
    entries: Vec<Entry>,
}

impl Spread {
    /// The empty index of an exchange whose declaration was checked.
    pub(crate) fn new(spec: &ExchangeSpec) -> Self {
        let choice = match spec.routes_as() {
            ExchangeKind::ConsistentHash => Choice::Hash(HashOn::of(spec).unwrap_or(HashOn::Key)),
            ExchangeKind::ModulusHash => Choice::Modulus,
            _ => Choice::Random,
        };
        Self { choice, entries: Vec::new() }
    }

    fn position(&self, destination: Destination<'_>, id: BindingId) -> (u64, Result<usize, usize>) {
        let seed = seed(destination);
        let at = self.entries.binary_search_by_key(&(seed, id), |entry| (entry.seed, entry.id));
        (seed, at)
    }

    pub(crate) fn insert(
        &mut self,
        id: BindingId,
        target: Target,
        destination: Destination<'_>,
        key: &[u8],
    ) {
        let (seed, Err(at)) = self.position(destination, id) else {
            debug_assert!(false, "a binding is inserted once");
            return;
        };
        let weight = match self.choice {
            Choice::Hash(_) => weight(key).map_or(1.0, |weight| weight as f64),
            _ => 1.0,
        };
        self.entries.insert(at, Entry { seed, id, target, weight });
    }

    pub(crate) fn remove(&mut self, id: BindingId, destination: Destination<'_>) {
        if let (_, Ok(at)) = self.position(destination, id) {
            self.entries.remove(at);
        }
    }

    /// Chooses a binding; returns whether more than the routing key had a say in it.
    pub(crate) fn find(
        &self,
        message: &Message<'_>,
        dice: &mut u64,
        matches: &mut Matches,
    ) -> bool {
        let len = self.entries.len() as u64;
        let chosen = match &self.choice {
            Choice::Hash(on) => self.heaviest(on.hash(message)),
            Choice::Modulus => {
                let keys = message.keys.iter().fold(0, |hashed, key| mix(hashed) ^ hash(key));
                keys.checked_rem(len).map(|at| &self.entries[at as usize])
            }
            Choice::Random => {
                // The sequence of splitmix64.
                *dice = dice.wrapping_add(0x9E37_79B9_7F4A_7C15);
                mix(*dice).checked_rem(len).map(|at| &self.entries[at as usize])
            }
        };
        chosen.into_iter().for_each(|entry| matches.push(entry.target));
        !matches!(self.choice, Choice::Modulus | Choice::Hash(HashOn::Key))
    }

    /// Weighted rendezvous hashing: each binding draws a number for this hash, and the best wins.
    /// A binding that comes takes from the others only what it wins, one that goes leaves to the
    /// others only what it had won. (The buckets of RabbitMQ's plugin shift when one goes.) Of
    /// several bindings to one destination the heaviest counts, for all draw alike.
    fn heaviest(&self, hash: u64) -> Option<&Entry> {
        let draw = |entry: &Entry| {
            let drawn = mix(entry.seed ^ hash) >> 11;
            let share = (drawn as f64 + 0.5) / (1_u64 << 53) as f64;
            -share.ln() / entry.weight
        };
        let drawn = self.entries.iter().map(|entry| (draw(entry), entry));
        drawn.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, entry)| entry)
    }
}

fn refuse<T>(text: impl Into<String>) -> Result<T, AmqpError> {
    Err(AmqpError::new(ReplyCode::PreconditionFailed, text.into()))
}

/// The weight that a binding key of a consistent-hash exchange gives.
pub(crate) fn weight(key: &[u8]) -> Result<u64, AmqpError> {
    let digits = key.strip_prefix(b"+").or(key.strip_prefix(b"-")).unwrap_or(key);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return refuse(format!("The binding key must be an integer: {}", erlang_binary(key)));
    }
    if key.starts_with(b"-") || digits.iter().all(|digit| *digit == b'0') {
        return refuse("The binding key must be greater than 0");
    }
    let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
    number.map_or_else(|| refuse(format!("The binding key must not exceed {}", u64::MAX)), Ok)
}

/// A local-random exchange takes queues only, and no keys.
pub(crate) fn check_local(destination: Destination<'_>, key: &[u8]) -> Result<(), AmqpError> {
    if !key.is_empty() {
        let key = String::from_utf8_lossy(key);
        return refuse(format!("Non empty binding '{key}' key not permitted"));
    }
    match destination {
        Destination::Queue(_) => Ok(()),
        Destination::Exchange(_) => refuse("Destination not found"),
    }
}

fn seed(destination: Destination<'_>) -> u64 {
    let kind = u64::from(matches!(destination, Destination::Queue(_)));
    mix(hash(destination.name().as_bytes()) ^ kind)
}

/// A hash that is the same on every machine and in every version: where messages go depends on it.
/// FNV-1a, whose high bits are then mixed into the low ones.
fn hash(bytes: &[u8]) -> u64 {
    let fold = |hashed: u64, byte: &u8| (hashed ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3);
    mix(bytes.iter().fold(0xCBF2_9CE4_8422_2325, fold))
}

/// The last steps of splitmix64: each bit of the outcome depends on all of `bits`.
fn mix(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}
