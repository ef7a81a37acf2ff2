//! Exchanges: their kinds, what they are declared with, and when a redeclaration agrees.
//!
//! Owns [`Exchange`] with the index of its kind and the lists of its bindings. It must not know
//! other exchanges: what spans several is in the parent module.

use amq_protocol::types::{AMQPValue, FieldTable};

use super::binding::BindingId;
use super::direct::{DirectIndex, Matches, Target, TargetSet};
use super::headers::{HeadersIndex, SortedFields};
use super::topic::{TopicIndex, TopicWalk};
use crate::codec::value::{shown, type_name};
use crate::error::{AmqpError, ReplyCode};

/// Where an exchange is kept; reused once the exchange is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ExchangeSlot(pub(crate) u32);

impl ExchangeSlot {
    pub(crate) fn at(self) -> usize {
        self.0 as usize
    }
}

/// The argument that names the exchange for messages that match no binding.
const ALTERNATE: &str = "alternate-exchange";

/// How an exchange routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExchangeKind {
    /// By equal keys.
    Direct,
    /// To all bindings.
    Fanout,
    /// By keys with wildcards.
    Topic,
    /// By the headers of the message.
    Headers,
}

impl ExchangeKind {
    /// The kind of this name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "direct" => Some(Self::Direct),
            "fanout" => Some(Self::Fanout),
            "topic" => Some(Self::Topic),
            "headers" => Some(Self::Headers),
            _ => None,
        }
    }

    /// The name in `exchange.declare` and in listings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Topic => "topic",
            Self::Headers => "headers",
        }
    }
}

/// What an exchange is declared with.
#[derive(Clone, Debug, PartialEq)]
pub struct ExchangeSpec {
    /// How it routes.
    pub kind: ExchangeKind,
    /// Whether it outlives the broker's process.
    pub durable: bool,
    /// Whether it goes with the last binding from it.
    pub auto_delete: bool,
    /// Whether clients may not publish to it.
    pub internal: bool,
    /// The `x-` and other arguments, as they were declared.
    pub arguments: FieldTable,
}

impl ExchangeSpec {
    /// A durable exchange without arguments.
    pub fn durable(kind: ExchangeKind) -> Self {
        let arguments = FieldTable::default();
        Self { kind, durable: true, auto_delete: false, internal: false, arguments }
    }

    /// The alternate exchange that the arguments name.
    pub fn alternate(&self) -> Option<&str> {
        match self.arguments.inner().get(ALTERNATE)? {
            AMQPValue::LongString(name) => std::str::from_utf8(name.as_bytes()).ok(),
            _ => None,
        }
    }

    /// Checks the arguments of a new exchange; of an existing one they are only compared.
    pub(crate) fn check(&self, name: &str, vhost: &str) -> Result<(), AmqpError> {
        match self.arguments.inner().get(ALTERNATE) {
            None | Some(AMQPValue::LongString(_)) => Ok(()),
            Some(other) => Err(AmqpError::new(
                ReplyCode::PreconditionFailed,
                format!(
                    "invalid type '{}' for arg '{ALTERNATE}' in exchange '{name}' in vhost \
                     '{vhost}'",
                    type_name(other)
                ),
            )),
        }
    }

    /// Whether a declaration of the exchange that has this spec asks for the same
    /// (AMQP 0-9-1 `exchange.declare`, rule "equivalent"); in RabbitMQ's order, and like there
    /// with the alternate exchange as the only argument that counts.
    pub(crate) fn check_equivalent(
        &self,
        requested: &Self,
        name: &str,
        vhost: &str,
    ) -> Result<(), AmqpError> {
        let quoted = |text: &dyn std::fmt::Display| format!("'{text}'");
        let fields = [
            ("type", quoted(&requested.kind.name()), quoted(&self.kind.name())),
            ("durable", quoted(&requested.durable), quoted(&self.durable)),
            ("auto_delete", quoted(&requested.auto_delete), quoted(&self.auto_delete)),
            ("internal", quoted(&requested.internal), quoted(&self.internal)),
        ];
        let alternate = |spec: &Self| spec.arguments.inner().get(ALTERNATE).cloned();
        let (received, current) = match (alternate(requested), alternate(self)) {
            (None, None) => ("none".to_owned(), "none".to_owned()),
            (Some(received), Some(current)) => (value_text(&received), value_text(&current)),
            (received, current) => (typed_text(received), typed_text(current)),
        };
        let alternates = (ALTERNATE, received, current);
        for (field, received, current) in fields.into_iter().chain([alternates]) {
            if received != current {
                let text = format!(
                    "inequivalent arg '{field}' for exchange '{name}' in vhost '{vhost}': \
                     received {received} but current is {current}"
                );
                return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
            }
        }
        Ok(())
    }
}

fn value_text(value: &AMQPValue) -> String {
    match value {
        AMQPValue::Void => "none".to_owned(),
        other => format!("'{}'", shown(other)),
    }
}

fn typed_text(value: Option<AMQPValue>) -> String {
    value.map_or_else(
        || "none".to_owned(),
        |value| format!("the value '{}' of type '{}'", shown(&value), type_name(&value)),
    )
}

/// The bindings from an exchange, arranged for routing.
#[derive(Debug)]
enum Index {
    Direct(DirectIndex),
    Fanout(TargetSet),
    Topic(TopicIndex),
    Headers(HeadersIndex),
}

/// Working memory of the indexes, kept between messages.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    walk: TopicWalk,
    fields: SortedFields,
}

/// An exchange with its bindings.
#[derive(Debug)]
pub struct Exchange {
    name: Box<str>,
    spec: ExchangeSpec,
    policy_alternate: Option<String>,
    index: Index,
    pub(crate) outgoing: Vec<BindingId>,
    pub(crate) incoming: Vec<BindingId>,
}

impl Exchange {
    pub(crate) fn new(name: &str, spec: ExchangeSpec) -> Self {
        let index = match spec.kind {
            ExchangeKind::Direct => Index::Direct(DirectIndex::default()),
            ExchangeKind::Fanout => Index::Fanout(TargetSet::default()),
            ExchangeKind::Topic => Index::Topic(TopicIndex::default()),
            ExchangeKind::Headers => Index::Headers(HeadersIndex::default()),
        };
        Self {
            name: name.into(),
            spec,
            policy_alternate: None,
            index,
            outgoing: Vec::new(),
            incoming: Vec::new(),
        }
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
        key: &[u8],
        arguments: &FieldTable,
    ) {
        match &mut self.index {
            Index::Direct(direct) => direct.insert(key, target),
            Index::Fanout(targets) => targets.insert(target),
            Index::Topic(topic) => topic.insert(key, target),
            Index::Headers(headers) => headers.insert(id, target, arguments),
        }
    }

    pub(crate) fn unindex(&mut self, id: BindingId, target: Target, key: &[u8]) {
        match &mut self.index {
            Index::Direct(direct) => direct.remove(key, target),
            Index::Fanout(targets) => targets.remove(target),
            Index::Topic(topic) => topic.remove(key, target),
            Index::Headers(headers) => headers.remove(id),
        }
    }

    /// Collects what a message with these routing keys leads to; returns whether the headers
    /// had a say in it.
    pub(crate) fn find(
        &self,
        keys: &[&[u8]],
        headers: &[u8],
        scratch: &mut Scratch,
        matches: &mut Matches,
    ) -> bool {
        match &self.index {
            Index::Direct(direct) => keys.iter().for_each(|key| direct.find(key, matches)),
            Index::Fanout(targets) => targets.append_to(matches),
            Index::Topic(topic) => {
                keys.iter().for_each(|key| topic.find(key, &mut scratch.walk, matches));
            }
            Index::Headers(index) => index.find(headers, &mut scratch.fields, matches),
        }
        matches!(self.index, Index::Headers(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(alternate: Option<AMQPValue>) -> ExchangeSpec {
        let mut spec = ExchangeSpec::durable(ExchangeKind::Direct);
        if let Some(value) = alternate {
            spec.arguments.insert(ALTERNATE.into(), value);
        }
        spec
    }

    fn text(text: &str) -> Option<AMQPValue> {
        Some(AMQPValue::LongString(text.into()))
    }

    fn compare(current: &ExchangeSpec, requested: &ExchangeSpec) -> String {
        match current.check_equivalent(requested, "x", "/") {
            Ok(()) => "same".to_owned(),
            Err(error) => error.reply_text(),
        }
    }

    fn inequivalent(field: &str, received: &str, current: &str) -> String {
        format!(
            "PRECONDITION_FAILED - inequivalent arg '{field}' for exchange 'x' in vhost '/': \
             received {received} but current is {current}"
        )
    }

    #[test]
    fn redeclaration_is_compared_in_order() {
        let current = spec(None);
        assert_eq!(compare(&current, &current), "same");
        let fanout = ExchangeSpec { kind: ExchangeKind::Fanout, durable: false, ..spec(None) };
        assert_eq!(compare(&current, &fanout), inequivalent("type", "'fanout'", "'direct'"));
        let transient = ExchangeSpec { durable: false, auto_delete: true, ..spec(None) };
        assert_eq!(compare(&current, &transient), inequivalent("durable", "'false'", "'true'"));
        let fleeting = ExchangeSpec { auto_delete: true, internal: true, ..spec(None) };
        assert_eq!(compare(&current, &fleeting), inequivalent("auto_delete", "'true'", "'false'"));
        let internal = ExchangeSpec { internal: true, ..spec(None) };
        assert_eq!(compare(&current, &internal), inequivalent("internal", "'true'", "'false'"));
        let mut other = spec(None);
        other.arguments.insert("x-other".into(), AMQPValue::Void);
        assert_eq!(compare(&current, &other), "same");
    }

    #[test]
    fn alternates_are_compared_with_rabbitmqs_texts() {
        let field = ALTERNATE;
        let a = spec(text("a"));
        assert_eq!(a.alternate(), Some("a"));
        assert_eq!(compare(&a, &a), "same");
        assert_eq!(compare(&a, &spec(text("b"))), inequivalent(field, "'b'", "'a'"));
        let typed = "the value 'a' of type 'longstr'";
        assert_eq!(compare(&a, &spec(None)), inequivalent(field, "none", typed));
        assert_eq!(compare(&spec(None), &a), inequivalent(field, typed, "none"));
        let five = spec(Some(AMQPValue::LongInt(5)));
        assert_eq!(compare(&a, &five), inequivalent(field, "'5'", "'a'"));
        let typed = "the value '5' of type 'signedint'";
        assert_eq!(compare(&spec(None), &five), inequivalent(field, typed, "none"));
        let void = spec(Some(AMQPValue::Void));
        assert_eq!(compare(&a, &void), inequivalent(field, "none", "'a'"));
        assert_eq!(
            five.check("x", "/").unwrap_err().reply_text(),
            "PRECONDITION_FAILED - invalid type 'signedint' for arg 'alternate-exchange' in \
             exchange 'x' in vhost '/'"
        );
    }

    #[test]
    fn kinds_have_names() {
        for kind in ["direct", "fanout", "topic", "headers"] {
            assert_eq!(ExchangeKind::parse(kind).map(ExchangeKind::name), Some(kind));
        }
        assert_eq!(ExchangeKind::parse("x-random"), None);
    }
}
