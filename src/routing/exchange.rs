//! Exchanges with their bindings.
//!
//! Owns [`Exchange`] with the index of its kind and the lists of its bindings. It must not know
//! other exchanges: what spans several is in the parent module.

use amq_protocol::types::FieldTable;

use super::Destination;
use super::binding::BindingId;
use super::direct::{DirectIndex, Matches, Target, TargetSet};
use super::headers::{HeadersIndex, MetConditions};
use super::keeping::Keeping;
use super::route::Message;
use super::spec::{ExchangeKind, ExchangeSpec};
use super::spread::Spread;
use super::topic::{TopicIndex, TopicWalk};

/// Where an exchange is kept; reused once the exchange is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ExchangeSlot(pub(crate) u32);

impl ExchangeSlot {
    pub(crate) fn at(self) -> usize {
        self.0 as usize
    }
}

/// An exchange's number in its vhost, never reused, and where it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExchangeId {
    pub(super) slot: ExchangeSlot,
    pub(super) number: u64,
}

/// The bindings from an exchange, arranged for routing.
#[derive(Debug)]
enum Index {
    Direct(DirectIndex),
    Fanout(TargetSet),
    Topic(TopicIndex),
    Headers(HeadersIndex),
    Spread(Spread),
}

/// Working memory of the indexes, kept between messages.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    walk: TopicWalk,
    met: MetConditions,
}

/// An exchange with its bindings.
#[derive(Debug)]
pub struct Exchange {
    id: ExchangeId,
    name: Box<str>,
    spec: ExchangeSpec,
    policy_alternate: Option<String>,
    index: Index,
    keeping: Option<Box<Keeping>>,
    pub(crate) outgoing: Vec<BindingId>,
    pub(crate) incoming: Vec<BindingId>,
}

impl Exchange {
    /// An exchange without bindings; its declaration was checked.
    pub(crate) fn new(id: ExchangeId, name: &str, spec: ExchangeSpec) -> Self {
        let index = match spec.routes_as() {
            ExchangeKind::Direct | ExchangeKind::Delayed => Index::Direct(DirectIndex::default()),
            ExchangeKind::Fanout | ExchangeKind::RecentHistory | ExchangeKind::Deduplication => {
                Index::Fanout(TargetSet::default())
            }
            ExchangeKind::Topic => Index::Topic(TopicIndex::default()),
            ExchangeKind::Headers => Index::Headers(HeadersIndex::default()),
            ExchangeKind::ConsistentHash
            | ExchangeKind::ModulusHash
            | ExchangeKind::Random
            | ExchangeKind::LocalRandom => Index::Spread(Spread::new(&spec)),
        };
        Self {
            id,
            keeping: Keeping::of(&spec).unwrap_or_default(),
            name: name.into(),
            spec,
            policy_alternate: None,
            index,
            outgoing: Vec::new(),
            incoming: Vec::new(),
        }
    }

    /// Its number, by which it is told from later exchanges of its name.
    pub fn id(&self) -> ExchangeId {
        self.id
    }

    /// What it keeps of messages, if anything.
    pub(crate) fn keeping(&self) -> Option<&Keeping> {
        self.keeping.as_deref()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it was declared with.
    pub fn spec(&self) -> &ExchangeSpec {
        &self.spec
    }

    /// The alternate exchange in effect: the argument's, else the policy's.
    pub fn alternate(&self) -> Option<&str> {
        self.spec.alternate().or(self.policy_alternate.as_deref())
    }

    /// Whether any binding leads from it.
    pub fn is_in_use(&self) -> bool {
        !self.outgoing.is_empty()
    }

    pub(crate) fn set_policy_alternate(&mut self, alternate: Option<String>) {
        self.policy_alternate = alternate;
    }

    pub(crate) fn index(
        &mut self,
        id: BindingId,
        target: Target,
        destination: Destination<'_>,
        key: &[u8],
        arguments: &FieldTable,
    ) {
        match &mut self.index {
            Index::Direct(direct) => direct.insert(key, target),
            Index::Fanout(targets) => targets.insert(target),
            Index::Topic(topic) => topic.insert(key, target),
            Index::Headers(headers) => headers.insert(target, arguments),
            Index::Spread(spread) => spread.insert(id, target, destination, key),
        }
    }

    pub(crate) fn unindex(
        &mut self,
        id: BindingId,
        target: Target,
        destination: Destination<'_>,
        key: &[u8],
        arguments: &FieldTable,
    ) {
        match &mut self.index {
            Index::Direct(direct) => direct.remove(key, target),
            Index::Fanout(targets) => targets.remove(target),
            Index::Topic(topic) => topic.remove(key, target),
            Index::Headers(headers) => headers.remove(target, arguments),
            Index::Spread(spread) => spread.remove(id, destination),
        }
    }

    /// Collects what a message leads to; returns whether more than its routing keys had a say.
    pub(crate) fn find(
        &self,
        message: &Message<'_>,
        dice: &mut u64,
        scratch: &mut Scratch,
        matches: &mut Matches,
    ) -> bool {
        match &self.index {
            Index::Direct(direct) => message.keys.iter().for_each(|key| direct.find(key, matches)),
            Index::Fanout(targets) => targets.append_to(matches),
            Index::Topic(topic) => {
                message.keys.iter().for_each(|key| topic.find(key, &mut scratch.walk, matches));
            }
            Index::Headers(index) => {
                let headers = message.properties.headers().unwrap_or_default();
                index.find(headers, &mut scratch.met, matches);
                return true;
            }
            Index::Spread(spread) => return spread.find(message, dice, matches),
        }
        false
    }
}
