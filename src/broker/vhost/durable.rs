//! What of a vhost survives a restart.
//!
//! Owns the decision which exchanges, queues and bindings do (RabbitMQ's rules), and tells the
//! store of their changes while the lock of the topology is held, so that the store's order is that
//! of effect. Whoever asked for the change waits for it (`Drive::ticket`). It must not know how
//! definitions are written down.
//!
//! A binding lasts if both of its ends do. Who changes nothing, because somebody else was faster,
//! waits for that one's change: what is not durable yet must not be reported as done.

use super::Vhost;
use crate::broker::definitions::record::{self, Record};
use crate::broker::policy::Policies;
use crate::broker::{Declaration, Drive, PolicyScope, QueueCell};
use crate::routing::{BindingView, Destination, Removed, RemovedBinding, Topology};
use crate::store::Change;

impl Declaration {
    /// Whether the queue survives a restart.
    pub(crate) fn lasts(&self) -> bool {
        self.durable && self.owner.is_none()
    }
}

impl Vhost {
    /// Hands changes over; whoever asked for them waits.
    pub(super) fn store<I>(&self, drive: &mut Drive, changes: impl FnOnce() -> I)
    where
        I: IntoIterator<Item = Change>,
    {
        // What is done in a deleted vhost ends with the connections that are still in it.
        if !self.occupancy.is_gone() {
            drive.await_store(self.services.definitions.change(changes));
        }
    }

    /// Nothing was changed: waits for who was faster.
    pub(crate) fn await_others(&self, drive: &mut Drive) {
        drive.await_store(self.services.definitions.latest());
    }

    /// A queue was added.
    pub(super) fn store_queue(&self, cell: &QueueCell, drive: &mut Drive) {
        if cell.declaration.lasts() {
            self.store(drive, || [record::queue(&self.name, cell)]);
        }
    }

    /// A queue is there already.
    pub(super) fn await_queue(&self, cell: &QueueCell, drive: &mut Drive) {
        if cell.declaration.lasts() {
            self.await_others(drive);
        }
    }

    /// An exchange was declared.
    pub(super) fn store_exchange(
        &self,
        topology: &Topology,
        name: &str,
        is_new: bool,
        drive: &mut Drive,
    ) {
        let spec = topology.exchange(name).map(|exchange| exchange.spec());
        match spec.filter(|spec| spec.durable) {
            Some(spec) if is_new => {
                self.store(drive, || [record::exchange(&self.name, name, spec)])
            }
            Some(_) => self.await_others(drive),
            None => {}
        }
    }

    /// A binding was declared.
    pub(super) fn store_binding(
        &self,
        topology: &Topology,
        binding: &BindingView<'_>,
        is_new: bool,
        drive: &mut Drive,
    ) {
        if !self.ends_last(topology, binding, &Removed::default(), None) {
            return;
        }
        if is_new {
            self.store(drive, || [record::binding(&self.name, binding)]);
        } else {
            self.await_others(drive);
        }
    }

    /// A queue was removed, with whatever went along.
    pub(super) fn store_removed_queue(
        &self,
        topology: &Topology,
        removed: &Removed,
        cell: &QueueCell,
        drive: &mut Drive,
    ) {
        // What was bound to a queue that does not last lasts neither.
        if cell.declaration.lasts() || !removed.exchanges.is_empty() {
            let changes = || self.changes_of(topology, removed, Some(cell));
            self.store(drive, changes);
        }
    }

    /// Exchanges or bindings were removed, or there was nothing to remove.
    pub(super) fn store_removed(&self, topology: &Topology, removed: &Removed, drive: &mut Drive) {
        if removed.exchanges.is_empty() && removed.bindings.is_empty() {
            self.await_others(drive);
        } else {
            self.store(drive, || self.changes_of(topology, removed, None));
        }
    }

    fn changes_of(
        &self,
        topology: &Topology,
        removed: &Removed,
        queue: Option<&QueueCell>,
    ) -> Vec<Change> {
        let vhost = &*self.name;
        let mut changes = Vec::new();
        if let Some(cell) = queue.filter(|cell| cell.declaration.lasts()) {
            changes.push(Record::Queue(vhost, cell.name()).gone());
        }
        let exchanges = removed.exchanges.iter().filter(|(_, spec)| spec.durable);
        changes.extend(exchanges.map(|(name, _)| Record::Exchange(vhost, name).gone()));
        let bindings = removed.bindings.iter().map(RemovedBinding::view);
        let lasting = bindings.filter(|binding| self.ends_last(topology, binding, removed, queue));
        changes.extend(lasting.map(|binding| Record::Binding(vhost, binding).gone()));
        changes
    }

    /// All that lasts, to be deleted.
    pub(super) fn changes_of_all(&self, topology: &Topology, policies: &Policies) -> Vec<Change> {
        let vhost = &*self.name;
        let mut changes = vec![Record::Vhost(vhost).gone()];
        for scope in [PolicyScope::User, PolicyScope::Operator] {
            let policies = policies.list(scope);
            changes
                .extend(policies.map(|policy| Record::Policy(scope, vhost, &policy.name).gone()));
        }
        let exchanges = topology.exchanges().filter(|exchange| exchange.spec().durable);
        changes.extend(exchanges.map(|exchange| Record::Exchange(vhost, exchange.name()).gone()));
        let queues = self.queues.iter().filter(|cell| cell.declaration.lasts());
        changes.extend(queues.map(|cell| Record::Queue(vhost, cell.name()).gone()));
        let nothing = Removed::default();
        let lasting =
            topology.bindings().filter(|binding| self.ends_last(topology, binding, &nothing, None));
        changes.extend(lasting.map(|binding| Record::Binding(vhost, binding).gone()));
        changes
    }

    /// Whether both ends of a binding last. They may just have been removed.
    fn ends_last(
        &self,
        topology: &Topology,
        binding: &BindingView<'_>,
        removed: &Removed,
        queue: Option<&QueueCell>,
    ) -> bool {
        let exchange_lasts = |name: &str| {
            let there = topology.exchange(name).map(|exchange| exchange.spec());
            let gone = || removed.exchanges.iter().find(|(gone, _)| gone == name);
            there.or_else(|| gone().map(|(_, spec)| spec)).is_some_and(|spec| spec.durable)
        };
        exchange_lasts(binding.source)
            && match (binding.destination, queue) {
                (Destination::Exchange(name), _) => exchange_lasts(name),
                (Destination::Queue(name), Some(cell)) if cell.name() == name => {
                    cell.declaration.lasts()
                }
                (Destination::Queue(name), _) => {
                    let cell = topology.queue(name.as_bytes()).and_then(|id| self.cell(id));
                    cell.is_some_and(|cell| cell.declaration.lasts())
                }
            }
    }
}
