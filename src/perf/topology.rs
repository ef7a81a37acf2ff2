//! The exchange that messages go through: its bindings, and what makes messages match them.
//!
//! Owns keys, patterns and headers, of bindings that match and of those that never do. It does no
//! IO.

use super::args::Kind;
use crate::codec::method::{AMQPValue, FieldTable, ShortString};

/// The header by which messages match in a headers exchange.
const HEADER: &str = "leveret-perf-queue";

/// An exchange that the run declares.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    /// Its name.
    pub(crate) name: String,
    /// Its type.
    pub(crate) kind: Kind,
    /// Routing keys that each producer's messages have in turn.
    pub(crate) keys: usize,
    /// Bindings in all.
    pub(crate) bindings: usize,
}

/// One binding.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Binding {
    /// The number of the queue.
    pub(crate) queue: usize,
    /// The binding key.
    pub(crate) key: String,
    /// The binding's arguments.
    pub(crate) arguments: FieldTable,
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

    /// Bindings that it takes for all messages to come through, with so many keys for each of so
    /// many queues.
    pub(crate) fn bindings_min(self, queues: usize, keys: usize) -> usize {
        // One pattern is for all keys of a queue, but in a direct exchange there are no patterns.
        if self == Self::Direct { queues.saturating_mul(keys) } else { queues }
    }

    /// Routing key and arguments of a binding for what is about `word`.
    pub(crate) fn binding(self, word: &str) -> (String, FieldTable) {
        match self {
            Self::Direct | Self::Fanout => (word.to_owned(), FieldTable::default()),
            Self::Topic => (format!("*.{word}.#"), FieldTable::default()),
            Self::Headers => (String::new(), table(&[("x-match", "all"), (HEADER, word)])),
        }
    }
}

impl Exchange {
    /// The routing keys of messages for a queue, all of one length.
    pub(crate) fn keys_of(&self, queue: usize) -> Vec<String> {
        let width = (self.keys - 1).to_string().len();
        (0..self.keys).map(|number| format!("perf.q{queue}.k{number:0width$}.end")).collect()
    }

    /// The header that messages for a queue need.
    pub(crate) fn header_of(&self, queue: usize) -> Option<(ShortString, AMQPValue)> {
        let value = || AMQPValue::LongString(format!("q{queue}").into());
        (self.kind == Kind::Headers).then(|| (HEADER.into(), value()))
    }

    /// Its bindings to so many queues: first those that match, then those that never do. In a
    /// fanout exchange, all do.
    pub(crate) fn bindings(&self, queues: usize) -> impl Iterator<Item = Binding> {
        let matching = (0..queues).flat_map(move |queue| {
            let all = match self.kind {
                Kind::Direct => {
                    self.keys_of(queue).iter().map(|key| self.kind.binding(key)).collect()
                }
                _ => vec![self.kind.binding(&format!("q{queue}"))],
            };
            all.into_iter().map(move |(key, arguments)| Binding { queue, key, arguments })
        });
        let others = (0..).map(move |number| self.idle_binding(number, number % queues));
        matching.chain(others).take(self.bindings)
    }

    /// A binding that no message matches but in a fanout exchange. It looks like one that does, so
    /// that the broker cannot tell by the first glance.
    fn idle_binding(&self, number: usize, queue: usize) -> Binding {
        let word = format!("n{number}");
        let (key, arguments) = match (self.kind, number % 4) {
            (Kind::Direct | Kind::Fanout, _) => {
                (format!("perf.q{queue}.{word}.end"), FieldTable::default())
            }
            (Kind::Topic, 0) => (format!("perf.{word}.*.end"), FieldTable::default()),
            (Kind::Topic, 1) => (format!("*.q{queue}.*.{word}"), FieldTable::default()),
            (Kind::Topic, 2) => (format!("#.{word}"), FieldTable::default()),
            (Kind::Topic, _) => (format!("perf.*.{word}.#"), FieldTable::default()),
            (Kind::Headers, 0 | 2) => {
                let about = format!("q{queue}");
                let all = [("x-match", "all"), (HEADER, &about), ("leveret-perf-other", &word)];
                (String::new(), table(&all))
            }
            (Kind::Headers, _) => (String::new(), table(&[("x-match", "any"), (HEADER, &word)])),
        };
        Binding { queue, key, arguments }
    }
}

fn table(fields: &[(&str, &str)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in fields {
        table.insert((*name).into(), AMQPValue::LongString((*value).into()));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(kind: Kind, keys: usize, bindings: usize) -> Exchange {
        Exchange { name: "x".into(), kind, keys, bindings }
    }

    /// AMQP 0-9-1, section 3.1.3.3: `*` is one word, `#` any number of them.
    fn is_match(pattern: &[&str], key: &[&str]) -> bool {
        match (pattern.first(), key.first()) {
            (None, None) => true,
            (Some(&"#"), None) => is_match(&pattern[1..], key),
            (Some(&"#"), Some(_)) => is_match(&pattern[1..], key) || is_match(pattern, &key[1..]),
            (Some(word), Some(other)) if word == other || *word == "*" => {
                is_match(&pattern[1..], &key[1..])
            }
            _ => false,
        }
    }

    fn words(text: &str) -> Vec<&str> {
        text.split('.').collect()
    }

    #[test]
    fn one_topic_binding_matches_for_each_queue() {
        let exchange = exchange(Kind::Topic, 12, 100);
        let bindings: Vec<Binding> = exchange.bindings(3).collect();
        assert_eq!(bindings.len(), 100);
        for queue in 0..3 {
            let keys = exchange.keys_of(queue);
            assert_eq!(keys.len(), 12);
            assert!(keys.iter().all(|key| key.len() == keys[0].len()));
            for key in &keys {
                let matches = |binding: &&Binding| is_match(&words(&binding.key), &words(key));
                let matching: Vec<_> = bindings.iter().filter(matches).collect();
                assert_eq!(matching.len(), 1, "{key}: {matching:?}");
                assert_eq!(matching[0].queue, queue);
            }
        }
    }

    #[test]
    fn a_direct_exchange_has_a_binding_for_each_key() {
        let exchange = exchange(Kind::Direct, 4, 10);
        assert_eq!(Kind::Direct.bindings_min(2, 4), 8);
        let bindings: Vec<Binding> = exchange.bindings(2).collect();
        for queue in 0..2 {
            for key in exchange.keys_of(queue) {
                let mut matching = bindings.iter().filter(|binding| binding.key == key);
                assert_eq!(matching.next().map(|binding| binding.queue), Some(queue));
                assert_eq!(matching.next(), None);
            }
        }
    }

    #[test]
    fn headers_match_one_binding_for_each_queue() {
        let exchange = exchange(Kind::Headers, 1, 20);
        let bindings: Vec<Binding> = exchange.bindings(2).collect();
        assert_eq!(bindings.len(), 20);
        for queue in 0..2 {
            let (header, about) = exchange.header_of(queue).expect("it is what matches");
            let is_met = |binding: &&Binding| {
                let mut fields = binding.arguments.inner().iter();
                fields.all(|(name, value)| match name.as_str() {
                    "x-match" => true,
                    _ => *name == header && *value == about,
                })
            };
            let matching: Vec<_> = bindings.iter().filter(is_met).collect();
            assert_eq!(matching.len(), 1, "{matching:?}");
            assert_eq!(matching[0].queue, queue);
        }
    }

    #[test]
    fn no_two_bindings_are_equal() {
        for kind in [Kind::Direct, Kind::Fanout, Kind::Topic, Kind::Headers] {
            let all: Vec<Binding> = exchange(kind, 1, 60).bindings(3).collect();
            for (number, one) in all.iter().enumerate() {
                assert!(!all[..number].contains(one), "{kind:?}: {one:?} comes twice");
            }
        }
    }
}
