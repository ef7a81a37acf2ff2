//! The exchange that messages go through, and the bindings of its type.
//!
//! Owns what a binding and a message must look like to match. It does no IO.

use super::args::Kind;
use crate::codec::method::{AMQPValue, FieldTable};

/// An exchange that the run declares.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    /// Its name.
    pub(crate) name: String,
    /// Its type.
    pub(crate) kind: Kind,
}

impl Kind {
    /// The type's name in AMQP.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Topic => "topic",
            Self::Headers => "headers",
        }
    }

    /// Routing key and arguments of a binding for what is about `word`.
    pub(crate) fn binding(self, word: &str) -> (String, FieldTable) {
        let mut arguments = FieldTable::default();
        let key = match self {
            Self::Direct | Self::Fanout => word.to_owned(),
            Self::Topic => format!("*.{word}.#"),
            Self::Headers => {
                arguments.insert("x-match".into(), AMQPValue::LongString("all".into()));
                arguments.insert("about".into(), AMQPValue::LongString(word.into()));
                String::new()
            }
        };
        (key, arguments)
    }
}
