//! The routing tables: what is bound, what is published, and what each queue must then hold.
//!
//! Data only; `checks` plays it against the broker.

use lapin::ExchangeKind;
use lapin::types::{AMQPValue, FieldTable, LongString};

/// One queue's binding.
pub(crate) struct Binding {
    pub(crate) queue: &'static str,
    pub(crate) key: &'static str,
    pub(crate) arguments: FieldTable,
}

/// One message to publish.
pub(crate) struct Sent {
    pub(crate) key: &'static str,
    pub(crate) headers: FieldTable,
}

/// Which messages, by index, each queue must hold: in this order and nothing else.
pub(crate) struct Routing {
    pub(crate) label: &'static str,
    pub(crate) kind: ExchangeKind,
    pub(crate) bindings: Vec<Binding>,
    pub(crate) messages: Vec<Sent>,
    pub(crate) wanted: Vec<(&'static str, Vec<usize>)>,
}

fn bind(queue: &'static str, key: &'static str) -> Binding {
    Binding { queue, key, arguments: FieldTable::default() }
}

fn send(key: &'static str) -> Sent {
    Sent { key, headers: FieldTable::default() }
}

fn table(texts: &[(&'static str, &str)], pages: Option<i32>) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in texts {
        table.insert((*key).into(), AMQPValue::LongString(LongString::from(*value)));
    }
    if let Some(pages) = pages {
        table.insert("pages".into(), AMQPValue::LongInt(pages));
    }
    table
}

/// A direct exchange: two keys to one queue, one to another, one to none.
pub(crate) fn direct() -> Routing {
    Routing {
        label: "direct",
        kind: ExchangeKind::Direct,
        bindings: vec![bind("a", "red"), bind("a", "blue"), bind("b", "green")],
        messages: vec![send("red"), send("green"), send("blue"), send("black")],
        wanted: vec![("a", vec![0, 2]), ("b", vec![1])],
    }
}

/// A fanout exchange, which looks at no key.
pub(crate) fn fanout() -> Routing {
    Routing {
        label: "fanout",
        kind: ExchangeKind::Fanout,
        bindings: vec![bind("a", ""), bind("b", "ignored")],
        messages: vec![send(""), send("other")],
        wanted: vec![("a", vec![0, 1]), ("b", vec![0, 1])],
    }
}

/// A topic exchange with both wildcards.
pub(crate) fn topic() -> Routing {
    Routing {
        label: "topic",
        kind: ExchangeKind::Topic,
        bindings: vec![
            bind("a", "stock.*.nyse"),
            bind("b", "stock.#"),
            bind("c", "#"),
            bind("d", "*.usd"),
            // A second path to the same queue must not make a second copy.
            bind("b", "stock.usd"),
        ],
        messages: vec![
            send("stock.usd.nyse"),
            send("stock"),
            send("stock.usd"),
            send("weather"),
            send("stock.a.b.nyse"),
        ],
        wanted: vec![
            ("a", vec![0]),
            ("b", vec![0, 1, 2, 4]),
            ("c", vec![0, 1, 2, 3, 4]),
            ("d", vec![2]),
        ],
    }
}

/// A headers exchange, matching all and any.
pub(crate) fn headers() -> Routing {
    let pdf = |queue, how| Binding {
        queue,
        key: "",
        arguments: table(&[("x-match", how), ("kind", "pdf")], Some(3)),
    };
    let sent = |kind, pages| Sent { key: "", headers: table(&[("kind", kind)], pages) };
    Routing {
        label: "headers",
        kind: ExchangeKind::Headers,
        bindings: vec![pdf("a", "all"), pdf("b", "any")],
        messages: vec![sent("pdf", Some(3)), sent("pdf", Some(4)), sent("doc", None), send("")],
        wanted: vec![("a", vec![0]), ("b", vec![0, 1])],
    }
}
