//! What exchanges are declared with: their types and arguments.
//!
//! Owns the names of the types, the checks of a declaration in RabbitMQ's words, and when a
//! redeclaration agrees. It must not know how an exchange arranges its bindings.

use amq_protocol::types::{AMQPValue, FieldTable};

use super::keeping::Keeping;
use super::spread::{self, HashOn};
use super::{Destination, headers};
use crate::codec::value::{shown, type_name};
use crate::error::{AmqpError, ReplyCode};

/// The argument that names the exchange for messages that match no binding.
const ALTERNATE: &str = "alternate-exchange";

/// The argument that says how a delayed exchange routes.
const DELAYED_TYPE: &str = "x-delayed-type";

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
    /// To one binding, by a hash that moves little when bindings change.
    ConsistentHash,
    /// To one binding, by the routing key's hash modulo the number of bindings.
    ModulusHash,
    /// To one binding at random.
    Random,
    /// To one of the queues on this node at random.
    LocalRandom,
    /// To all bindings, and a new one gets the latest messages first.
    RecentHistory,
    /// To all bindings, but each message only once.
    Deduplication,
    /// As another type, but possibly later.
    Delayed,
}

/// Their names in `exchange.declare` and in listings.
const NAMES: [(&str, ExchangeKind); 11] = [
    ("direct", ExchangeKind::Direct),
    ("fanout", ExchangeKind::Fanout),
    ("topic", ExchangeKind::Topic),
    ("headers", ExchangeKind::Headers),
    ("x-consistent-hash", ExchangeKind::ConsistentHash),
    ("x-modulus-hash", ExchangeKind::ModulusHash),
    ("x-random", ExchangeKind::Random),
    ("x-local-random", ExchangeKind::LocalRandom),
    ("x-recent-history", ExchangeKind::RecentHistory),
    ("x-message-deduplication", ExchangeKind::Deduplication),
    ("x-delayed-message", ExchangeKind::Delayed),
];

impl ExchangeKind {
    /// The kind of this name.
    pub fn parse(name: &str) -> Option<Self> {
        NAMES.iter().find(|entry| entry.0 == name).map(|entry| entry.1)
    }

    /// The kind of this name, or RabbitMQ's refusal.
    pub fn named(name: &str) -> Result<Self, AmqpError> {
        Self::parse(name).ok_or_else(|| {
            let text = format!("unknown exchange type '{name}'");
            AmqpError::new(ReplyCode::PreconditionFailed, text)
        })
    }

    /// The name in `exchange.declare` and in listings.
    pub fn name(self) -> &'static str {
        let known = NAMES.iter().find(|entry| entry.1 == self);
        known.expect("each kind has a name").0
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

    /// How messages are routed: as the kind says, or its delayed type.
    pub fn routes_as(&self) -> ExchangeKind {
        match self.kind {
            ExchangeKind::Delayed => self.delayed_type().unwrap_or(ExchangeKind::Delayed),
            kind => kind,
        }
    }

    fn delayed_type(&self) -> Result<ExchangeKind, AmqpError> {
        let named = match self.arguments.inner().get(DELAYED_TYPE) {
            Some(AMQPValue::LongString(name)) => Some(ExchangeKind::named(&name.to_string())?),
            _ => None,
        };
        named.filter(|kind| *kind != ExchangeKind::Delayed).ok_or_else(|| {
            let text = "Invalid argument, 'x-delayed-type' must be an existing exchange type";
            AmqpError::new(ReplyCode::PreconditionFailed, text)
        })
    }

    /// Checks the arguments of a new exchange; of an existing one they are only compared.
    pub(crate) fn check(&self, name: &str, vhost: &str) -> Result<(), AmqpError> {
        if let Some(other) = self.arguments.inner().get(ALTERNATE)
            && !matches!(other, AMQPValue::LongString(_))
        {
            let kind = type_name(other);
            let text = format!(
                "invalid type '{kind}' for arg '{ALTERNATE}' in exchange '{name}' in vhost \
                 '{vhost}'"
            );
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
        }
        if self.kind == ExchangeKind::Delayed {
            self.delayed_type()?;
        }
        if self.routes_as() == ExchangeKind::ConsistentHash {
            HashOn::of(self)?;
        }
        Keeping::of(self).map(|_| ())
    }

    /// Checks a binding from such an exchange, as its kind does.
    pub(crate) fn check_binding(
        &self,
        destination: Destination<'_>,
        key: &[u8],
        arguments: &FieldTable,
    ) -> Result<(), AmqpError> {
        match self.routes_as() {
            ExchangeKind::Headers => headers::check_arguments(arguments),
            ExchangeKind::ConsistentHash => spread::weight(key).map(|_| ()),
            ExchangeKind::LocalRandom => spread::check_local(destination, key),
            _ => Ok(()),
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
        for (name, kind) in NAMES {
            assert_eq!((ExchangeKind::parse(name), kind.name()), (Some(kind), name));
        }
        let unknown = ExchangeKind::named("x-fancy").unwrap_err();
        assert_eq!(unknown.reply_text(), "PRECONDITION_FAILED - unknown exchange type 'x-fancy'");
    }
}
