//! Routing: from an exchange, a routing key and headers to queues.
//!
//! Owns the exchanges, the bindings and the queue names of one vhost, as one plain value: its
//! keeper puts a lock around it. Routing reads it, declarations change it in place in time that
//! depends on what they change, not on how much else there is. It must not know connections,
//! permissions or what queues are beyond their ids and names.
//!
//! Invariants: no binding outlives its source or its destination; each binding is in the index
//! and the list of its source and in the list of its destination; the default exchange has no
//! stored bindings, for every queue is bound to it by its name.

mod binding;
mod direct;
mod exchange;
mod headers;
mod keeping;
mod route;
mod spec;
mod spread;
mod topic;

use std::collections::HashMap;

use amq_protocol::types::FieldTable;
use rustc_hash::FxHashMap;

use binding::{Binding, BindingId, Bindings, Identity};
use direct::Target;
use exchange::ExchangeSlot;

use crate::error::{AmqpError, ReplyCode};

pub use exchange::{Exchange, ExchangeId};
pub use keeping::{Keep, Kept, Sighting, without_delay};
pub use route::{IsDuplicate, Message, Origin, RouteError, Routed};
pub use spec::{ExchangeKind, ExchangeSpec};

/// A queue's number in the whole broker, never reused: a redeclared name is a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(pub u64);

/// What a binding leads to, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Destination<'a> {
    /// A queue.
    Queue(&'a str),
    /// Another exchange.
    Exchange(&'a str),
}

impl<'a> Destination<'a> {
    /// The name, of whichever it is.
    pub fn name(self) -> &'a str {
        match self {
            Self::Queue(name) | Self::Exchange(name) => name,
        }
    }
}

/// A binding as it is listed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BindingView<'a> {
    /// The exchange that it leads from.
    pub source: &'a str,
    /// What it leads to.
    pub destination: Destination<'a>,
    /// The binding key.
    pub key: &'a [u8],
    /// Its arguments.
    pub arguments: &'a FieldTable,
}

/// A binding that is gone.
#[derive(Clone, Debug, PartialEq)]
pub struct RemovedBinding {
    /// The exchange that it led from.
    pub source: String,
    /// The queue or exchange that it led to.
    pub destination: String,
    /// Whether the destination is a queue.
    pub to_queue: bool,
    /// The binding key.
    pub key: Vec<u8>,
    /// Its arguments.
    pub arguments: FieldTable,
}

impl RemovedBinding {
    /// What it led to.
    pub fn destination(&self) -> Destination<'_> {
        let name = &self.destination;
        if self.to_queue { Destination::Queue(name) } else { Destination::Exchange(name) }
    }

    /// As it was listed.
    pub fn view(&self) -> BindingView<'_> {
        let (source, destination) = (&*self.source, self.destination());
        BindingView { source, destination, key: &self.key, arguments: &self.arguments }
    }
}

/// What a deletion or an unbind took away, for those who keep definitions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Removed {
    /// The exchanges that are gone, with what they were declared as.
    pub exchanges: Vec<(String, ExchangeSpec)>,
    /// The bindings that are gone, those of the exchanges above included.
    pub bindings: Vec<RemovedBinding>,
}

fn no_exchange(name: &str, vhost: &str) -> AmqpError {
    AmqpError::new(ReplyCode::NotFound, format!("no exchange '{name}' in vhost '{vhost}'"))
}

fn refuse_default(name: &str) -> Result<(), AmqpError> {
    if !name.is_empty() {
        return Ok(());
    }
    let text = "operation not permitted on the default exchange";
    Err(AmqpError::new(ReplyCode::AccessRefused, text))
}

#[derive(Debug)]
struct QueueEnd {
    name: Box<str>,
    incoming: Vec<BindingId>,
}

/// The exchanges and bindings of one vhost. Names come from clients, so they are hashed with a
/// seed.
#[derive(Debug)]
pub struct Topology {
    vhost: String,
    exchanges: Vec<Option<Exchange>>,
    free: Vec<ExchangeSlot>,
    /// The number of the last exchange.
    last_exchange: u64,
    /// Exchanges that are gone and kept something.
    forgotten: Vec<ExchangeId>,
    exchange_names: HashMap<Box<[u8]>, ExchangeSlot>,
    queue_names: HashMap<Box<[u8]>, QueueId>,
    queues: FxHashMap<QueueId, QueueEnd>,
    bindings: Bindings,
    no_arguments: FieldTable,
}

impl Topology {
    /// The exchanges that every vhost begins with (AMQP 0-9-1 section 3.1.3, and RabbitMQ's own).
    pub fn new(vhost: &str) -> Self {
        let mut topology = Self {
            vhost: vhost.to_owned(),
            exchanges: Vec::new(),
            free: Vec::new(),
            last_exchange: 0,
            forgotten: Vec::new(),
            exchange_names: HashMap::new(),
            queue_names: HashMap::new(),
            queues: FxHashMap::default(),
            bindings: Bindings::default(),
            no_arguments: FieldTable::default(),
        };
        let predeclared = [
            ("", ExchangeKind::Direct),
            ("amq.direct", ExchangeKind::Direct),
            ("amq.fanout", ExchangeKind::Fanout),
            ("amq.topic", ExchangeKind::Topic),
            ("amq.headers", ExchangeKind::Headers),
            ("amq.match", ExchangeKind::Headers),
        ];
        for (name, kind) in predeclared {
            topology.add_exchange(name, ExchangeSpec::durable(kind));
        }
        let trace = ExchangeSpec { internal: true, ..ExchangeSpec::durable(ExchangeKind::Topic) };
        topology.add_exchange("amq.rabbitmq.trace", trace);
        topology
    }

    /// The vhost's name.
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// The exchange of this name.
    pub fn exchange(&self, name: &str) -> Option<&Exchange> {
        self.exchange_names.get(name.as_bytes()).map(|slot| self.at(*slot))
    }

    /// The exchange of this number, if it is still there.
    pub fn exchange_of(&self, id: ExchangeId) -> Option<&Exchange> {
        let found = self.exchanges.get(id.slot.at()).and_then(Option::as_ref);
        found.filter(|found| found.id() == id)
    }

    /// All exchanges, the default one included, in no particular order.
    pub fn exchanges(&self) -> impl Iterator<Item = &Exchange> {
        self.exchanges.iter().flatten()
    }

    /// The queue of this name.
    pub fn queue(&self, name: &[u8]) -> Option<QueueId> {
        self.queue_names.get(name).copied()
    }

    fn at(&self, slot: ExchangeSlot) -> &Exchange {
        self.exchanges[slot.at()].as_ref().expect("a named or bound exchange exists")
    }

    fn at_mut(&mut self, slot: ExchangeSlot) -> &mut Exchange {
        self.exchanges[slot.at()].as_mut().expect("a named or bound exchange exists")
    }

    fn slot(&self, name: &str) -> Result<ExchangeSlot, AmqpError> {
        let slot = self.exchange_names.get(name.as_bytes()).copied();
        slot.ok_or_else(|| no_exchange(name, &self.vhost))
    }

    fn add_exchange(&mut self, name: &str, spec: ExchangeSpec) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.exchanges.push(None);
            let slot = u32::try_from(self.exchanges.len() - 1);
            ExchangeSlot(slot.expect("fewer than 2^32 exchanges"))
        });
        self.last_exchange += 1;
        let id = ExchangeId { slot, number: self.last_exchange };
        self.exchanges[slot.at()] = Some(Exchange::new(id, name, spec));
        self.exchange_names.insert(name.as_bytes().into(), slot);
    }

    /// Passive declaration: the exchange must be there.
    pub fn check_exchange(&self, name: &str) -> Result<&Exchange, AmqpError> {
        refuse_default(name)?;
        self.slot(name).map(|slot| self.at(slot))
    }

    /// Declares an exchange; returns whether it is new. An existing one must be equivalent.
    pub fn declare_exchange(&mut self, name: &str, spec: ExchangeSpec) -> Result<bool, AmqpError> {
        refuse_default(name)?;
        if let Some(exchange) = self.exchange(name) {
            exchange.spec().check_equivalent(&spec, name, &self.vhost)?;
            return Ok(false);
        }
        if name.starts_with("amq.") {
            let text = format!("exchange name '{name}' contains reserved prefix 'amq.*'");
            return Err(AmqpError::new(ReplyCode::AccessRefused, text));
        }
        spec.check(name, &self.vhost)?;
        self.add_exchange(name, spec);
        Ok(true)
    }

    /// Sets or clears the alternate exchange that a policy gives; the argument's has precedence.
    pub fn set_policy_alternate(&mut self, name: &str, alternate: Option<String>) {
        if let Ok(slot) = self.slot(name) {
            self.at_mut(slot).set_policy_alternate(alternate);
        }
    }

    /// Deletes an exchange with its bindings, and the auto-delete exchanges that led to nothing
    /// else. A missing exchange is none to delete.
    pub fn delete_exchange(&mut self, name: &str, if_unused: bool) -> Result<Removed, AmqpError> {
        refuse_default(name)?;
        let vhost = &self.vhost;
        if name.starts_with("amq.") {
            let text =
                format!("deletion of system exchange '{name}' in vhost '{vhost}' not allowed");
            return Err(AmqpError::new(ReplyCode::AccessRefused, text));
        }
        let mut removed = Removed::default();
        let Ok(slot) = self.slot(name) else { return Ok(removed) };
        if if_unused && self.at(slot).is_in_use() {
            let text = format!("exchange '{name}' in vhost '{vhost}' in use");
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
        }
        self.drop_exchange(slot, &mut removed);
        Ok(removed)
    }

    /// Removes an exchange, then the auto-delete exchanges whose last binding led to it, and so
    /// on upwards.
    fn drop_exchange(&mut self, slot: ExchangeSlot, removed: &mut Removed) {
        let mut pending = vec![slot];
        while let Some(slot) = pending.pop() {
            while let Some(&id) = self.at(slot).outgoing.last() {
                self.remove_binding(id, removed);
            }
            while let Some(&id) = self.at(slot).incoming.last() {
                let source = self.remove_binding(id, removed);
                pending.extend(self.is_spent(source).then_some(source));
            }
            let exchange = self.exchanges[slot.at()].take().expect("a named exchange exists");
            self.exchange_names.remove(exchange.name().as_bytes());
            self.free.push(slot);
            self.forgotten.extend(exchange.keeping().map(|_| exchange.id()));
            removed.exchanges.push((exchange.name().to_owned(), exchange.spec().clone()));
        }
    }

    /// Whether an exchange goes, now that a binding from it was removed.
    fn is_spent(&self, slot: ExchangeSlot) -> bool {
        let exchange = self.at(slot);
        exchange.spec().auto_delete && !exchange.is_in_use()
    }

    /// The exchanges that are gone since this was last asked and that kept something of messages,
    /// for whoever holds it.
    pub fn take_forgotten(&mut self) -> Vec<ExchangeId> {
        std::mem::take(&mut self.forgotten)
    }

    /// Makes a queue known: bound to the default exchange by its name.
    pub fn add_queue(&mut self, name: &str, id: QueueId) {
        let previous = self.queue_names.insert(name.as_bytes().into(), id);
        debug_assert!(previous.is_none(), "a queue is removed before its name is used again");
        self.queues.insert(id, QueueEnd { name: name.into(), incoming: Vec::new() });
    }

    /// Forgets a queue with its bindings, and the auto-delete exchanges that led to nothing else.
    pub fn remove_queue(&mut self, id: QueueId) -> Removed {
        let mut removed = Removed::default();
        while let Some(&binding) = self.queues.get(&id).and_then(|end| end.incoming.last()) {
            let source = self.remove_binding(binding, &mut removed);
            if self.is_spent(source) {
                self.drop_exchange(source, &mut removed);
            }
        }
        if let Some(end) = self.queues.remove(&id)
            && self.queue(end.name.as_bytes()) == Some(id)
        {
            self.queue_names.remove(end.name.as_bytes());
        }
        removed
    }

    fn target(&self, destination: Destination<'_>) -> Result<Target, AmqpError> {
        match destination {
            Destination::Exchange(name) => self.slot(name).map(Target::Exchange),
            Destination::Queue(name) => match self.queue(name.as_bytes()) {
                Some(id) => Ok(Target::Queue(id)),
                None => Err(AmqpError::new(
                    ReplyCode::NotFound,
                    format!("no queue '{name}' in vhost '{}'", self.vhost),
                )),
            },
        }
    }

    /// Binds; returns whether the binding is new. The same key and arguments make one binding.
    /// When both ends are missing, the error names the source, as RabbitMQ's does.
    pub fn bind(
        &mut self,
        source: &str,
        destination: Destination<'_>,
        key: &[u8],
        arguments: &FieldTable,
    ) -> Result<bool, AmqpError> {
        refuse_default_ends(source, destination)?;
        let source = self.slot(source)?;
        let target = self.target(destination)?;
        self.at(source).spec().check_binding(destination, key, arguments)?;
        let identity = Identity::new(source, target, key, arguments);
        if self.bindings.find(&identity).is_some() {
            return Ok(false);
        }
        let id = self.bindings.insert(identity, arguments);
        let exchange = self.at_mut(source);
        exchange.index(id, target, destination, key, arguments);
        let outgoing_at = append(&mut exchange.outgoing, id);
        let incoming_at = append(self.incoming_mut(target), id);
        let binding = self.bindings.at_mut(id);
        (binding.outgoing_at, binding.incoming_at) = (outgoing_at, incoming_at);
        Ok(true)
    }

    /// Undoes a bind with the same key and arguments; what is not bound or not there is no error.
    /// An auto-delete exchange goes with the last binding from it.
    pub fn unbind(
        &mut self,
        source: &str,
        destination: Destination<'_>,
        key: &[u8],
        arguments: &FieldTable,
    ) -> Result<Removed, AmqpError> {
        refuse_default_ends(source, destination)?;
        let mut removed = Removed::default();
        let (Ok(source), Ok(target)) = (self.slot(source), self.target(destination)) else {
            return Ok(removed);
        };
        let identity = Identity::new(source, target, key, arguments);
        let Some(id) = self.bindings.find(&identity) else { return Ok(removed) };
        self.remove_binding(id, &mut removed);
        if self.is_spent(source) {
            self.drop_exchange(source, &mut removed);
        }
        Ok(removed)
    }

    /// Whether there is a binding with this key and these arguments.
    pub fn is_bound(
        &self,
        source: &str,
        destination: Destination<'_>,
        key: &[u8],
        arguments: &FieldTable,
    ) -> bool {
        let (Ok(source), Ok(target)) = (self.slot(source), self.target(destination)) else {
            return false;
        };
        self.bindings.find(&Identity::new(source, target, key, arguments)).is_some()
    }

    fn incoming_mut(&mut self, target: Target) -> &mut Vec<BindingId> {
        match target {
            Target::Queue(id) => {
                &mut self.queues.get_mut(&id).expect("a bound queue exists").incoming
            }
            Target::Exchange(slot) => &mut self.at_mut(slot).incoming,
        }
    }

    /// Takes a binding out of everything that knows it; returns its source, which stays.
    fn remove_binding(&mut self, id: BindingId, removed: &mut Removed) -> ExchangeSlot {
        let gone = self.describe(id);
        let binding = self.bindings.remove(id);
        let source = self.at_mut(binding.source);
        source.unindex(id, binding.target, gone.destination(), &binding.key, &binding.arguments);
        if let Some(moved) = take(&mut source.outgoing, binding.outgoing_at, id) {
            self.bindings.at_mut(moved).outgoing_at = binding.outgoing_at;
        }
        if let Some(moved) = take(self.incoming_mut(binding.target), binding.incoming_at, id) {
            self.bindings.at_mut(moved).incoming_at = binding.incoming_at;
        }
        removed.bindings.push(gone);
        binding.source
    }

    fn describe(&self, id: BindingId) -> RemovedBinding {
        let view = self.view(self.bindings.at(id));
        RemovedBinding {
            source: view.source.to_owned(),
            destination: view.destination.name().to_owned(),
            to_queue: matches!(view.destination, Destination::Queue(_)),
            key: view.key.to_owned(),
            arguments: view.arguments.clone(),
        }
    }

    fn view<'a>(&'a self, binding: &'a Binding) -> BindingView<'a> {
        let destination = match binding.target {
            Target::Queue(id) => Destination::Queue(&self.queues[&id].name),
            Target::Exchange(slot) => Destination::Exchange(self.at(slot).name()),
        };
        let source = self.at(binding.source).name();
        BindingView { source, destination, key: &binding.key, arguments: &binding.arguments }
    }

    fn implicit<'a>(&'a self, end: &'a QueueEnd) -> BindingView<'a> {
        let (name, arguments) = (&end.name, &self.no_arguments);
        let destination = Destination::Queue(name);
        BindingView { source: "", destination, key: name.as_bytes(), arguments }
    }

    /// All bindings, those of the default exchange included, in no particular order.
    pub fn bindings(&self) -> impl Iterator<Item = BindingView<'_>> {
        let implicit = self.queues.values().map(|end| self.implicit(end));
        implicit.chain(self.bindings.iter().map(|binding| self.view(binding)))
    }

    /// The bindings from an exchange; the default one has one for each queue.
    pub fn bindings_from(&self, source: &str) -> impl Iterator<Item = BindingView<'_>> {
        let outgoing = self.exchange(source).map_or(&[][..], |exchange| &exchange.outgoing);
        let queues = source.is_empty().then(|| self.queues.values()).into_iter().flatten();
        let implicit = queues.map(|end| self.implicit(end));
        implicit.chain(outgoing.iter().map(|id| self.view(self.bindings.at(*id))))
    }

    /// The bindings to a queue, the one from the default exchange first, or to an exchange.
    pub fn bindings_to(
        &self,
        destination: Destination<'_>,
    ) -> impl Iterator<Item = BindingView<'_>> {
        let (queue, incoming) = match destination {
            Destination::Queue(name) => {
                let end = self.queue(name.as_bytes()).map(|id| &self.queues[&id]);
                (end, end.map_or(&[][..], |end| &end.incoming))
            }
            Destination::Exchange(name) => {
                (None, self.exchange(name).map_or(&[][..], |exchange| &exchange.incoming))
            }
        };
        let implicit = queue.map(|end| self.implicit(end));
        implicit.into_iter().chain(incoming.iter().map(|id| self.view(self.bindings.at(*id))))
    }
}

fn refuse_default_ends(source: &str, destination: Destination<'_>) -> Result<(), AmqpError> {
    refuse_default(source)?;
    match destination {
        Destination::Exchange(name) => refuse_default(name),
        Destination::Queue(_) => Ok(()),
    }
}

/// Appends to a list of bindings; returns the place.
fn append(list: &mut Vec<BindingId>, id: BindingId) -> u32 {
    list.push(id);
    u32::try_from(list.len() - 1).expect("fewer than 2^32 bindings")
}

/// Takes a binding from its place in a list; returns the one that now has this place.
fn take(list: &mut Vec<BindingId>, at: u32, id: BindingId) -> Option<BindingId> {
    let taken = list.swap_remove(at as usize);
    debug_assert_eq!(taken, id, "a binding knows its place");
    list.get(at as usize).copied()
}

#[cfg(test)]
mod tests;
