//! Bindings: what is bound to what, each of them once.
//!
//! Owns the set of all bindings of a vhost, found by their content or by number. It must not
//! know how exchanges arrange them for routing.

use std::hash::{BuildHasher, RandomState};

use amq_protocol::types::FieldTable;
use rustc_hash::FxHashMap;

use super::direct::Target;
use super::exchange::ExchangeSlot;
use crate::codec::table;

/// A binding's number; reused once the binding is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BindingId(pub(crate) u32);

impl BindingId {
    fn at(self) -> usize {
        self.0 as usize
    }
}

/// A binding: a message at `source` that fits `key` and `arguments` goes to `target`.
#[derive(Debug)]
pub(crate) struct Binding {
    pub(crate) source: ExchangeSlot,
    pub(crate) target: Target,
    pub(crate) key: Box<[u8]>,
    pub(crate) arguments: FieldTable,
    /// Where it stands in the lists of its source and of its destination.
    pub(crate) outgoing_at: u32,
    pub(crate) incoming_at: u32,
    /// The arguments encoded, for comparison.
    encoded: Box<[u8]>,
    /// The next binding of the same hash.
    next: Option<BindingId>,
}

/// What makes a binding the same as another: RabbitMQ compares all arguments with their types.
pub(crate) struct Identity<'a> {
    source: ExchangeSlot,
    target: Target,
    key: &'a [u8],
    encoded: Box<[u8]>,
}

impl<'a> Identity<'a> {
    pub(crate) fn new(
        source: ExchangeSlot,
        target: Target,
        key: &'a [u8],
        arguments: &FieldTable,
    ) -> Self {
        Self { source, target, key, encoded: table::encode(arguments).into() }
    }

    fn is_of(&self, binding: &Binding) -> bool {
        self.source == binding.source
            && self.target == binding.target
            && *self.key == *binding.key
            && self.encoded == binding.encoded
    }
}

/// All bindings of a vhost.
#[derive(Debug, Default)]
pub(crate) struct Bindings {
    slots: Vec<Option<Binding>>,
    free: Vec<BindingId>,
    /// The first binding of each hash; the others follow by `Binding::next`. This keeps one copy
    /// of each key. Keys come from clients, so the hash has a seed of its own.
    chains: FxHashMap<u64, BindingId>,
    hasher: RandomState,
}

impl Bindings {
    fn hash(&self, source: ExchangeSlot, target: Target, key: &[u8], encoded: &[u8]) -> u64 {
        self.hasher.hash_one((source, target, key, encoded))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Binding> {
        self.slots.iter().flatten()
    }

    pub(crate) fn at(&self, id: BindingId) -> &Binding {
        self.slots[id.at()].as_ref().expect("a listed binding exists")
    }

    pub(crate) fn at_mut(&mut self, id: BindingId) -> &mut Binding {
        self.slots[id.at()].as_mut().expect("a listed binding exists")
    }

    pub(crate) fn find(&self, identity: &Identity<'_>) -> Option<BindingId> {
        let hash = self.hash(identity.source, identity.target, identity.key, &identity.encoded);
        let mut next = self.chains.get(&hash).copied();
        while let Some(id) = next {
            let binding = self.at(id);
            if identity.is_of(binding) {
                return Some(id);
            }
            next = binding.next;
        }
        None
    }

    /// Adds a binding that is not there yet.
    pub(crate) fn insert(&mut self, identity: Identity<'_>, arguments: &FieldTable) -> BindingId {
        debug_assert!(self.find(&identity).is_none(), "a binding exists once");
        let Identity { source, target, key, encoded } = identity;
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            BindingId(u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 bindings"))
        });
        let next = self.chains.insert(self.hash(source, target, key, &encoded), id);
        self.slots[id.at()] = Some(Binding {
            source,
            target,
            key: key.into(),
            arguments: arguments.clone(),
            outgoing_at: 0,
            incoming_at: 0,
            encoded,
            next,
        });
        id
    }

    pub(crate) fn remove(&mut self, id: BindingId) -> Binding {
        let binding = self.slots[id.at()].take().expect("a listed binding exists");
        self.free.push(id);
        let hash = self.hash(binding.source, binding.target, &binding.key, &binding.encoded);
        let first = self.chains.get(&hash).copied();
        if first == Some(id) {
            match binding.next {
                Some(next) => self.chains.insert(hash, next),
                None => self.chains.remove(&hash),
            };
            return binding;
        }
        let mut previous = first.expect("a binding is in the chain of its hash");
        while self.at(previous).next != Some(id) {
            previous = self.at(previous).next.expect("a binding is in the chain of its hash");
        }
        self.at_mut(previous).next = binding.next;
        binding
    }
}
