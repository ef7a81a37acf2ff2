//! The topic exchange: a trie of the words of binding keys.
//!
//! A binding key is words with dots between them; `*` stands for exactly one word and `#` for any
//! number, also none (AMQP 0-9-1 section 3.1.3.3). The empty key has no words, while an empty
//! word between dots is a word, as in RabbitMQ. Keys are bytes: nothing here asks for UTF-8.
//!
//! Matching walks all reachable nodes word by word. A node is in the walk at most once for each
//! word, so that the time is bounded by words times nodes whatever wildcards the keys have.
//! Adding and removing a key takes time in proportion to the key.

use std::collections::HashMap;

use rustc_hash::{FxHashMap, FxHashSet};

use super::direct::{Matches, Target, TargetSet};

/// A word's number; words of all keys are counted and numbered once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct WordId(u32);

const STAR: WordId = WordId(0);
const HASH: WordId = WordId(1);
const FIRST_LITERAL: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct NodeId(u32);

const ROOT: NodeId = NodeId(0);

impl NodeId {
    fn at(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug)]
struct Node {
    parent: NodeId,
    word: WordId,
    children: u32,
    /// The children under the wildcards; literal ones are in `TopicIndex::edges`.
    star: Option<NodeId>,
    hash: Option<NodeId>,
    targets: TargetSet,
}

impl Node {
    fn new(parent: NodeId, word: WordId) -> Self {
        let targets = TargetSet::default();
        Self { parent, word, children: 0, star: None, hash: None, targets }
    }
}

/// The literal words in use, numbered. They come from clients, so they are hashed with a seed.
#[derive(Debug, Default)]
struct Words {
    /// The number of each word and how many edges have it.
    numbers: HashMap<Box<[u8]>, (WordId, u32)>,
    /// The words by number less [`FIRST_LITERAL`], for removal.
    texts: Vec<Box<[u8]>>,
    free: Vec<WordId>,
}

impl Words {
    fn find(&self, text: &[u8]) -> Option<WordId> {
        self.numbers.get(text).map(|entry| entry.0)
    }

    /// The word's number, with one more edge counted.
    fn take(&mut self, text: &[u8]) -> WordId {
        if let Some((word, edges)) = self.numbers.get_mut(text) {
            *edges += 1;
            return *word;
        }
        let word = match self.free.pop() {
            Some(word) => {
                self.texts[(word.0 - FIRST_LITERAL) as usize] = text.into();
                word
            }
            None => {
                self.texts.push(text.into());
                let number = u32::try_from(self.texts.len() - 1).expect("fewer than 2^32 words");
                WordId(FIRST_LITERAL + number)
            }
        };
        self.numbers.insert(text.into(), (word, 1));
        word
    }

    fn release(&mut self, word: WordId) {
        let text = &mut self.texts[(word.0 - FIRST_LITERAL) as usize];
        let Some((_, edges)) = self.numbers.get_mut(text) else { return };
        *edges -= 1;
        if *edges == 0 {
            self.numbers.remove(text);
            *text = Box::default();
            self.free.push(word);
        }
    }
}

/// The sets of a walk, kept between walks so that a warm one allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct TopicWalk {
    /// Nodes of literal words and `*` that the words so far lead to.
    current: Vec<NodeId>,
    next: Vec<NodeId>,
    /// Nodes of `#` reached so far: they stay, for any word leads from them to themselves.
    hashes: Vec<NodeId>,
    reached: FxHashSet<NodeId>,
}

impl TopicWalk {
    fn start(&mut self) {
        self.current.clear();
        self.next.clear();
        self.hashes.clear();
        self.reached.clear();
    }
}

/// The bindings of a topic exchange.
#[derive(Debug)]
pub(crate) struct TopicIndex {
    nodes: Vec<Node>,
    free: Vec<NodeId>,
    /// All edges of literal words. The key is of numbers given out here, hence the plain hash.
    edges: FxHashMap<(NodeId, WordId), NodeId>,
    words: Words,
}

impl Default for TopicIndex {
    fn default() -> Self {
        Self {
            nodes: vec![Node::new(ROOT, HASH)],
            free: Vec::new(),
            edges: FxHashMap::default(),
            words: Words::default(),
        }
    }
}

fn words_of(key: &[u8]) -> impl Iterator<Item = &[u8]> {
    // The empty key has no words, though splitting it gives one.
    (!key.is_empty()).then(|| key.split(|byte| *byte == b'.')).into_iter().flatten()
}

impl TopicIndex {
    pub(crate) fn insert(&mut self, key: &[u8], target: Target) {
        let node = words_of(key).fold(ROOT, |node, text| match self.child(node, text) {
            Some(child) => child,
            None => self.grow(node, text),
        });
        self.nodes[node.at()].targets.insert(target);
    }

    /// Takes back one [`TopicIndex::insert`], and the nodes that only it needed.
    pub(crate) fn remove(&mut self, key: &[u8], target: Target) {
        let found = words_of(key).try_fold(ROOT, |node, text| self.child(node, text));
        let Some(mut node) = found else {
            debug_assert!(false, "a key is removed as often as it was inserted");
            return;
        };
        self.nodes[node.at()].targets.remove(target);
        while node != ROOT && self.is_bare(node) {
            node = self.prune(node);
        }
    }

    fn is_bare(&self, node: NodeId) -> bool {
        let node = &self.nodes[node.at()];
        node.children == 0 && node.targets.is_empty()
    }

    fn child(&self, node: NodeId, text: &[u8]) -> Option<NodeId> {
        match text {
            b"*" => self.nodes[node.at()].star,
            b"#" => self.nodes[node.at()].hash,
            _ => self.edges.get(&(node, self.words.find(text)?)).copied(),
        }
    }

    fn grow(&mut self, parent: NodeId, text: &[u8]) -> NodeId {
        let word = match text {
            b"*" => STAR,
            b"#" => HASH,
            _ => self.words.take(text),
        };
        let child = match self.free.pop() {
            Some(child) => {
                self.nodes[child.at()] = Node::new(parent, word);
                child
            }
            None => {
                self.nodes.push(Node::new(parent, word));
                NodeId(u32::try_from(self.nodes.len() - 1).expect("fewer than 2^32 nodes"))
            }
        };
        self.nodes[parent.at()].children += 1;
        match word {
            STAR => self.nodes[parent.at()].star = Some(child),
            HASH => self.nodes[parent.at()].hash = Some(child),
            _ => {
                self.edges.insert((parent, word), child);
            }
        }
        child
    }

    /// Removes a node without children and targets; returns its parent.
    fn prune(&mut self, node: NodeId) -> NodeId {
        let (parent, word) = (self.nodes[node.at()].parent, self.nodes[node.at()].word);
        match word {
            STAR => self.nodes[parent.at()].star = None,
            HASH => self.nodes[parent.at()].hash = None,
            _ => {
                self.edges.remove(&(parent, word));
                self.words.release(word);
            }
        }
        self.nodes[parent.at()].children -= 1;
        self.free.push(node);
        parent
    }

    /// Collects the targets of all binding keys that match a routing key.
    pub(crate) fn find(&self, key: &[u8], walk: &mut TopicWalk, matches: &mut Matches) {
        walk.start();
        self.reach(ROOT, walk);
        for text in words_of(key) {
            // A `*` or `#` in a routing key is a word like any other, and no literal edge has it.
            self.step(self.words.find(text), walk);
            if walk.current.is_empty() && walk.hashes.is_empty() {
                return;
            }
        }
        for node in walk.current.iter().chain(&walk.hashes) {
            self.nodes[node.at()].targets.append_to(matches);
        }
    }

    /// Takes all nodes of the walk over one word.
    fn step(&self, word: Option<WordId>, walk: &mut TopicWalk) {
        let TopicWalk { current, next, hashes, .. } = walk;
        for &node in current.iter().chain(hashes.iter()) {
            next.extend(self.nodes[node.at()].star);
            if let Some(word) = word {
                next.extend(self.edges.get(&(node, word)));
            }
        }
        current.clear();
        let mut arrived = std::mem::take(&mut walk.next);
        for node in arrived.drain(..) {
            self.reach(node, walk);
        }
        walk.next = arrived;
    }

    /// Adds a node, and the `#` nodes that follow it without any word.
    ///
    /// A node of a literal word or `*` is reached from its one parent only, so it comes here at
    /// most once for each word; `#` nodes stay for the rest of the walk and are added once.
    fn reach(&self, node: NodeId, walk: &mut TopicWalk) {
        walk.current.push(node);
        let mut hash = self.nodes[node.at()].hash;
        while let Some(node) = hash {
            if !walk.reached.insert(node) {
                return;
            }
            walk.hashes.push(node);
            hash = self.nodes[node.at()].hash;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::QueueId;
    use super::*;

    fn queue(n: u64) -> Target {
        Target::Queue(QueueId(n))
    }

    fn found(index: &TopicIndex, key: &[u8]) -> Vec<u64> {
        let mut matches = Matches::default();
        index.find(key, &mut TopicWalk::default(), &mut matches);
        let mut ids: Vec<u64> = matches.queues.iter().map(|id| id.0).collect();
        ids.sort_unstable();
        ids
    }

    fn matches_naively(pattern: &[&[u8]], key: &[&[u8]]) -> bool {
        match pattern.split_first() {
            None => key.is_empty(),
            Some((&b"#", rest)) => (0..=key.len()).any(|n| matches_naively(rest, &key[n..])),
            Some((word, rest)) => key.split_first().is_some_and(|(first, key)| {
                (*word == b"*" || word == first) && matches_naively(rest, key)
            }),
        }
    }

    fn naive(pattern: &[u8], key: &[u8]) -> bool {
        let words = |key| words_of(key).collect::<Vec<_>>();
        matches_naively(&words(pattern), &words(key))
    }

    #[test]
    fn wildcards_match_words() {
        let patterns: [&[u8]; 10] =
            [b"", b"#", b"*", b"a", b"a.*", b"a.#", b"*.*", b"a..b", b"a.*.b", b"#.b.#"];
        let mut index = TopicIndex::default();
        for (n, pattern) in patterns.iter().enumerate() {
            index.insert(pattern, queue(n as u64));
        }
        let cases: [(&[u8], &[u64]); 8] = [
            (b"", &[0, 1]),
            (b"a", &[1, 2, 3, 5]),
            (b"a.", &[1, 4, 5, 6]),
            (b".", &[1, 6]),
            (b"a..b", &[1, 5, 7, 8, 9]),
            (b"a.c.b", &[1, 5, 8, 9]),
            (b"b", &[1, 2, 9]),
            (b"\xff.b", &[1, 6, 9]),
        ];
        for (key, expected) in cases {
            assert_eq!(found(&index, key), expected, "{key:?}");
        }
    }

    #[test]
    fn wildcards_in_a_routing_key_are_plain_words() {
        let mut index = TopicIndex::default();
        index.insert(b"a.*", queue(1));
        index.insert(b"a.#", queue(2));
        index.insert(b"a.b", queue(3));
        assert_eq!(found(&index, b"a.*"), [1, 2]);
        assert_eq!(found(&index, b"*.b"), [] as [u64; 0]);
    }

    #[test]
    fn many_hashes_do_not_multiply() {
        let mut index = TopicIndex::default();
        index.insert(&[&b"#.*.".repeat(63)[..], b"x"].concat(), queue(1));
        index.insert(&[&b"#.".repeat(127)[..], b"a"].concat(), queue(2));
        index.insert(&[&b"#.a.".repeat(63)[..], b"x"].concat(), queue(3));
        let key = [&b"a.".repeat(127)[..], b"a"].concat();
        let mut walk = TopicWalk::default();
        let mut matches = Matches::default();
        index.find(&key, &mut walk, &mut matches);
        assert_eq!(matches.queues, [QueueId(2)]);
        let reached = walk.current.len() + walk.hashes.len();
        assert!(reached <= index.nodes.len(), "{reached} of {}", index.nodes.len());
    }

    #[test]
    fn emptied_tries_keep_nothing() {
        let mut index = TopicIndex::default();
        for n in 0..100_u64 {
            index.insert(format!("a.{n}.*.#.x").as_bytes(), queue(n));
            index.insert(format!("a.{n}").as_bytes(), queue(n));
        }
        for n in 0..100_u64 {
            index.remove(format!("a.{n}").as_bytes(), queue(n));
            index.remove(format!("a.{n}.*.#.x").as_bytes(), queue(n));
        }
        assert!(index.edges.is_empty() && index.words.numbers.is_empty());
        assert_eq!(index.free.len() + 1, index.nodes.len());
        assert_eq!(index.words.free.len(), index.words.texts.len());
    }

    fn arb_key(words: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(proptest::sample::select(words), 0..6)
            .prop_map(|words| words.join(".").into_bytes())
    }

    proptest! {
        #[test]
        fn trie_agrees_with_naive_matching(
            patterns in proptest::collection::vec(arb_key(&["a", "b", "", "*", "#", "#"]), 1..12),
            removed in proptest::collection::vec(any::<bool>(), 12),
            keys in proptest::collection::vec(arb_key(&["a", "b", "c", "", "*"]), 1..12),
        ) {
            let mut index = TopicIndex::default();
            for (n, pattern) in patterns.iter().enumerate() {
                index.insert(pattern, queue(n as u64));
            }
            for (n, pattern) in patterns.iter().enumerate().filter(|(n, _)| removed[*n]) {
                index.remove(pattern, queue(n as u64));
            }
            for key in &keys {
                let expected: Vec<u64> = patterns.iter().enumerate()
                    .filter(|(n, pattern)| !removed[*n] && naive(pattern, key))
                    .map(|(n, _)| n as u64)
                    .collect();
                prop_assert_eq!(found(&index, key), expected);
            }
        }
    }
}
