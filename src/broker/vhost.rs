//! A vhost: the exchanges, queues and bindings that share a name space.
//!
//! Owns the topology lock and the way from a queue's name to its cell. Declarations change the
//! topology under the lock; a publisher reads it only when its connection's route cache misses.
//! The texts of refusals are RabbitMQ's. It must not know channels or frames.
//!
//! Lock order: the policies, the topology, then a queue.

mod durable;
mod policies;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use dashmap::DashMap;
use parking_lot::{RwLock, RwLockWriteGuard};

use super::access::{Occupancy, VhostDefinition, VhostLimits, VhostMetadata};
use super::definitions::record;
use super::drive::Drive;
use super::exchange_memory::ExchangeMemory;
use super::outbox::ConnectionId;
use super::policy::Policies;
use super::queue_cell::{self, Declaration, DeleteIf, QueueCell};
use super::{Services, token};
use crate::codec::method::{AMQPValue, FieldTable};
use crate::error::{AmqpError, ReplyCode};
use crate::queue::{Kind, check_arguments, check_equivalence, check_kind};
use crate::routing::{BindingView, Destination, ExchangeKind, ExchangeSpec, QueueId, Topology};
use crate::store::Change;

/// Names that only the broker gives out begin with this.
const RESERVED: &str = "amq.";

/// Names of reply queues begin with this. In RabbitMQ these are none, so no policy is for them.
const REPLIES: &str = "amq.rabbitmq.reply-to.";

/// See the module's description.
#[derive(Debug)]
pub struct Vhost {
    name: Box<str>,
    pub(super) topology: RwLock<Topology>,
    policies: RwLock<Policies>,
    /// Rises with each change of the topology; cached routes are good for one generation.
    generation: AtomicU64,
    queues: DashMap<QueueId, Arc<QueueCell>>,
    pub(super) services: Arc<Services>,
    settings: RwLock<(VhostMetadata, VhostLimits)>,
    pub(crate) occupancy: Arc<Occupancy>,
    /// What exchanges keep of messages.
    pub(super) kept: ExchangeMemory,
    /// Itself, for its queues.
    this: Weak<Self>,
}

/// Who asks: an exclusive queue serves its own connection only.
pub(crate) type Asker = ConnectionId;

impl Vhost {
    pub(crate) fn new(name: &str, services: Arc<Services>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            name: name.into(),
            topology: RwLock::new(Topology::new(name)),
            policies: RwLock::default(),
            generation: AtomicU64::new(1),
            queues: DashMap::new(),
            settings: RwLock::default(),
            occupancy: Arc::default(),
            kept: ExchangeMemory::new(this.clone(), services.clone()),
            services,
            this: this.clone(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// How the vhost is listed.
    pub(crate) fn definition(&self) -> VhostDefinition {
        let (metadata, limits) = self.settings.read().clone();
        VhostDefinition { name: self.name.as_ref().to_owned(), metadata, limits }
    }

    pub(crate) fn set_metadata(&self, metadata: VhostMetadata) {
        self.set(|settings| settings.0 = metadata);
    }

    pub(crate) fn set_limits(&self, limits: VhostLimits) {
        self.set(|settings| settings.1 = limits);
    }

    fn set(&self, set: impl FnOnce(&mut (VhostMetadata, VhostLimits))) {
        let mut settings = self.settings.write();
        set(&mut settings);
        let (name, (metadata, limits)) = (self.name.to_string(), settings.clone());
        let definition = VhostDefinition { name, metadata, limits };
        self.services.definitions.change(|| [record::vhost(&definition)]);
    }

    pub(crate) fn limits(&self) -> VhostLimits {
        self.settings.read().1
    }

    /// The vhost is deleted: no queue is left, and none comes any more. What else goes along in the
    /// store goes in the same step.
    pub(crate) fn delete_contents(&self, along: Vec<Change>, drive: &mut Drive) {
        let policies = self.policies.write();
        let mut topology = self.topology.write();
        let changes = || along.into_iter().chain(self.changes_of_all(&topology, &policies));
        self.services.definitions.change(changes);
        // Under these locks, so that no declaration and no policy comes between.
        self.occupancy.set_gone();
        let cells: Vec<_> = self.queues.iter().map(|cell| cell.clone()).collect();
        for cell in cells {
            // Without conditions, deleting can only find that it is gone already.
            let _ = cell.delete(DeleteIf::default(), drive);
            cell.forget_messages(drive);
            self.queues.remove(&cell.id());
        }
        *topology = Topology::new(&self.name);
        let forgotten = self.kept.forget_all();
        self.unlock_changed(topology);
        drop(forgotten);
    }

    /// See `Vhost::route`: what is known of routes holds while this does not change.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// How RabbitMQ prints a queue in its reply texts.
    pub(crate) fn describe_queue(&self, name: &str) -> String {
        format!("queue '{name}' in vhost '{}'", self.name)
    }

    /// The queue with this number.
    pub(super) fn cell(&self, id: QueueId) -> Option<Arc<QueueCell>> {
        self.queues.get(&id).map(|cell| cell.clone())
    }

    /// The queue of this name, or RabbitMQ's 404.
    pub(crate) fn queue(&self, name: &str) -> Result<Arc<QueueCell>, AmqpError> {
        let id = self.topology.read().queue(name.as_bytes());
        let cell = id.and_then(|id| self.queues.get(&id).map(|cell| cell.clone()));
        cell.filter(|cell| !cell.is_gone()).ok_or_else(|| {
            let text = format!("no {}", self.describe_queue(name));
            AmqpError::new(ReplyCode::NotFound, text)
        })
    }

    /// The queue of this name for a connection that wants to use it.
    pub(crate) fn queue_for(&self, name: &str, asker: Asker) -> Result<Arc<QueueCell>, AmqpError> {
        let cell = self.queue(name)?;
        self.check_owner(&cell, asker)?;
        Ok(cell)
    }

    fn check_owner(&self, cell: &QueueCell, asker: Asker) -> Result<(), AmqpError> {
        match cell.declaration.owner {
            Some(owner) if owner != asker => Err(self.locked(cell.name())),
            _ => Ok(()),
        }
    }

    fn locked(&self, name: &str) -> AmqpError {
        let text = format!(
            "cannot obtain exclusive access to locked {}. It could be originally declared on \
             another connection or the exclusive property value does not match that of the \
             original declaration.",
            self.describe_queue(name)
        );
        AmqpError::new(ReplyCode::ResourceLocked, text)
    }

    /// The name of a queue that is declared: an empty one asks for a generated one.
    pub(crate) fn name_to_declare(&self, name: &str) -> Result<String, AmqpError> {
        if name.is_empty() {
            return Ok(token::name("amq.gen-"));
        }
        if name.starts_with(RESERVED) {
            let text = format!("queue name '{name}' contains reserved prefix 'amq.*'");
            return Err(AmqpError::new(ReplyCode::AccessRefused, text));
        }
        Ok(name.to_owned())
    }

    /// Whether one more queue may be declared.
    pub(crate) fn check_queue_limit(&self, name: &str) -> Result<(), AmqpError> {
        match self.limits().max_queues {
            Some(max) if self.queues.len() >= max as usize => {
                let vhost = &self.name;
                let text = format!(
                    "cannot declare queue '{name}': queue limit in vhost '{vhost}' ({max}) is \
                     reached"
                );
                Err(AmqpError::new(ReplyCode::PreconditionFailed, text))
            }
            _ => Ok(()),
        }
    }

    /// queue.declare, not passive; see [`Vhost::name_to_declare`].
    pub(crate) fn declare_queue(
        &self,
        name: &str,
        asker: Asker,
        mut declaration: Declaration,
        drive: &mut Drive,
    ) -> Result<Arc<QueueCell>, AmqpError> {
        self.settle_type(name, &mut declaration);
        loop {
            if let Ok(cell) = self.queue(name) {
                self.check_redeclare(&cell, asker, &declaration)?;
                if cell.touch(drive) {
                    self.await_queue(&cell, drive);
                    return Ok(cell);
                }
                // It has expired meanwhile: its name is free in a moment.
                continue;
            }
            self.check_crashed(name)?;
            self.check_new(name, &mut declaration)?;
            // None: another connection was faster.
            if let Some(cell) = self.add_queue(name, declaration.clone(), drive) {
                return Ok(cell);
            }
        }
    }

    /// Checks what a new queue is declared with, and finds its type.
    fn check_new(&self, name: &str, declaration: &mut Declaration) -> Result<(), AmqpError> {
        let queue = self.describe_queue(name);
        // No client gives out such a name.
        let is_ours = name.starts_with(RESERVED);
        if is_ours && check_kind(&declaration.arguments, &queue)? == Kind::Quorum {
            let module = Kind::Quorum.module();
            let text = format!("Cannot declare a server-named queue for type {module}");
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
        }
        declaration.kind = check_arguments(&declaration.arguments, &queue)?;
        if declaration.kind == Kind::Quorum {
            let refused = [
                (declaration.auto_delete, "auto-delete"),
                (declaration.owner.is_some(), "exclusive-owner"),
                (!declaration.durable, "non-durable"),
            ];
            if let Some((_, property)) = refused.iter().find(|(refused, _)| *refused) {
                let text = format!("invalid property '{property}' for {queue}");
                return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
            }
        }
        Ok(())
    }

    /// A queue without a type is of the vhost's default type, if that can be what is declared;
    /// otherwise it is classic (RabbitMQ 3.11 and later).
    fn settle_type(&self, name: &str, declaration: &mut Declaration) {
        const TYPE: &str = "x-queue-type";
        let lasting =
            declaration.durable && !declaration.auto_delete && declaration.owner.is_none();
        // Names from the broker are for classic queues.
        if !lasting || name.starts_with(RESERVED) || declaration.arguments.contains_key(TYPE) {
            return;
        }
        let default = self.settings.read().0.default_queue_type.clone();
        if let Some(kind) = default.filter(|kind| kind != "classic") {
            let kind = AMQPValue::LongString(kind.as_str().into());
            declaration.arguments.insert(TYPE.into(), kind);
        }
    }

    fn check_redeclare(
        &self,
        cell: &QueueCell,
        asker: Asker,
        declaration: &Declaration,
    ) -> Result<(), AmqpError> {
        self.check_owner(cell, asker)?;
        let current = &cell.declaration;
        if current.owner.is_some() != declaration.owner.is_some() {
            return Err(self.locked(cell.name()));
        }
        let queue = self.describe_queue(cell.name());
        let flags = [
            ("durable", declaration.durable, current.durable),
            ("auto_delete", declaration.auto_delete, current.auto_delete),
        ];
        for (name, received, current) in flags {
            if received != current {
                let text = format!(
                    "inequivalent arg '{name}' for {queue}: \
                     received '{received}' but current is '{current}'"
                );
                return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
            }
        }
        check_equivalence(&current.arguments, &declaration.arguments, &queue)
    }

    /// A durable queue that a bug in the broker has stopped keeps its name: its messages are in the
    /// store, and come back with the next start. The text is RabbitMQ's.
    fn check_crashed(&self, name: &str) -> Result<(), AmqpError> {
        let topology = self.topology.read();
        let cell = topology.queue(name.as_bytes()).and_then(|id| self.cell(id));
        if cell.is_some_and(|cell| cell.is_gone() && cell.store().is_some()) {
            let text = format!("{} has crashed and failed to restart", self.describe_queue(name));
            return Err(AmqpError::new(ReplyCode::NotFound, text));
        }
        Ok(())
    }

    /// Adds a queue, unless the name is taken.
    pub(crate) fn add_queue(
        &self,
        name: &str,
        declaration: Declaration,
        drive: &mut Drive,
    ) -> Option<Arc<QueueCell>> {
        self.restore_queue(QueueId(self.services.next_id()), name, declaration, drive)
    }

    /// The same with a number that the queue has had before.
    pub(crate) fn restore_queue(
        &self,
        id: QueueId,
        name: &str,
        declaration: Declaration,
        drive: &mut Drive,
    ) -> Option<Arc<QueueCell>> {
        // Held until the queue can be found, so that no change passes it by.
        let policies = self.policies.read();
        let settings = policies.settings(name, &declaration);
        let mut topology = self.topology.write();
        if let Some(left) = topology.queue(name.as_bytes()) {
            let stays = |cell: &QueueCell| !cell.is_gone() || cell.store().is_some();
            if self.queues.get(&left).is_some_and(|cell| stays(&cell)) {
                return None;
            }
            // A crash has left it behind (see `QueueCell`).
            let removed = topology.remove_queue(left);
            if let Some((_, cell)) = self.queues.remove(&left) {
                self.store_removed_queue(&topology, &removed, &cell, drive);
            }
        }
        let (this, services) = (self.this.clone(), self.services.clone());
        let cell = Arc::new(QueueCell::new(id, name, declaration, this, services));
        if self.occupancy.is_gone() {
            // Its connection is about to be closed: nobody else can find the queue.
            return Some(cell);
        }
        cell.configure(settings, drive);
        cell.touch(drive);
        self.queues.insert(id, cell.clone());
        topology.add_queue(name, id);
        self.store_queue(&cell, drive);
        self.unlock_changed(topology);
        Some(cell)
    }

    /// Deletes a queue with its bindings; answers how many messages were ready.
    pub(crate) fn delete_queue(
        &self,
        cell: &Arc<QueueCell>,
        condition: DeleteIf,
        drive: &mut Drive,
    ) -> Result<u32, AmqpError> {
        let mut topology = self.topology.write();
        let count = match cell.delete(condition, drive) {
            Ok(count) => count,
            Err(queue_cell::Kept::Gone) => {
                self.await_others(drive);
                return Ok(0);
            }
            Err(kept) => {
                let why = if kept == queue_cell::Kept::InUse { "in use" } else { "not empty" };
                let text = format!("{} {why}", self.describe_queue(cell.name()));
                return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
            }
        };
        let removed = topology.remove_queue(cell.id());
        self.queues.remove(&cell.id());
        self.store_removed_queue(&topology, &removed, cell, drive);
        cell.forget_messages(drive);
        self.unlock_changed(topology);
        Ok(count)
    }

    /// queue.bind and exchange.bind. What is bound to a recent-history exchange gets the latest
    /// messages at once.
    pub(crate) fn bind(
        &self,
        source: &str,
        destination: Destination<'_>,
        key: &[u8],
        arguments: &FieldTable,
        drive: &mut Drive,
    ) -> Result<(), AmqpError> {
        let mut topology = self.topology.write();
        self.check_local_random(&topology, source, destination)?;
        let is_new = topology.bind(source, destination, key, arguments)?;
        self.store_binding(
            &topology,
            &BindingView { source, destination, key, arguments },
            is_new,
            drive,
        );
        if is_new {
            self.changed();
            self.replay(&topology, source, destination, drive);
        }
        Ok(())
    }

    /// queue.unbind and exchange.unbind.
    pub(crate) fn unbind(
        &self,
        source: &str,
        destination: Destination<'_>,
        key: &[u8],
        arguments: &FieldTable,
        drive: &mut Drive,
    ) -> Result<(), AmqpError> {
        let mut topology = self.topology.write();
        let removed = topology.unbind(source, destination, key, arguments)?;
        self.store_removed(&topology, &removed, drive);
        if !removed.bindings.is_empty() {
            self.unlock_changed(topology);
        }
        Ok(())
    }

    /// RabbitMQ 4 binds such exchanges to classic queues only, the others having no one node.
    fn check_local_random(
        &self,
        topology: &Topology,
        source: &str,
        destination: Destination<'_>,
    ) -> Result<(), AmqpError> {
        let source = topology.exchange(source).map(|exchange| exchange.spec().kind);
        let Destination::Queue(queue) = destination else { return Ok(()) };
        if source != Some(ExchangeKind::LocalRandom) {
            return Ok(());
        }
        let cell = topology.queue(queue.as_bytes()).and_then(|id| self.cell(id));
        match cell.map(|cell| cell.declaration.kind) {
            Some(Kind::Quorum) => {
                let module = Kind::Quorum.module();
                let text = format!("Queue type {module} not valid for this exchange type");
                Err(AmqpError::new(ReplyCode::PreconditionFailed, text))
            }
            _ => Ok(()),
        }
    }

    /// All queues, in no particular order.
    pub(crate) fn queues(&self) -> Vec<Arc<QueueCell>> {
        self.queues.iter().map(|cell| cell.clone()).filter(|cell| !cell.is_gone()).collect()
    }

    pub(crate) fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// Looks at exchanges and bindings as they are.
    pub(crate) fn look(&self, look: impl FnOnce(&Topology)) {
        look(&self.topology.read());
    }

    /// exchange.declare, passive.
    pub(crate) fn check_exchange(&self, name: &str) -> Result<(), AmqpError> {
        self.topology.read().check_exchange(name).map(|_| ())
    }

    pub(crate) fn is_topic_exchange(&self, name: &str) -> bool {
        let topology = self.topology.read();
        topology.exchange(name).is_some_and(|exchange| exchange.spec().kind == ExchangeKind::Topic)
    }

    /// Whether the name is free, and a client may take it.
    pub(crate) fn is_new_exchange(&self, name: &str) -> bool {
        !name.starts_with(RESERVED) && self.topology.read().exchange(name).is_none()
    }

    /// exchange.declare, not passive.
    pub(crate) fn declare_exchange(
        &self,
        name: &str,
        spec: ExchangeSpec,
        drive: &mut Drive,
    ) -> Result<(), AmqpError> {
        let policies = self.policies.read();
        let alternate = policies.alternate(name);
        let mut topology = self.topology.write();
        let is_new = topology.declare_exchange(name, spec)?;
        self.store_exchange(&topology, name, is_new, drive);
        if is_new {
            topology.set_policy_alternate(name, alternate);
            self.unlock_changed(topology);
        }
        Ok(())
    }

    /// exchange.delete.
    pub(crate) fn delete_exchange(
        &self,
        name: &str,
        if_unused: bool,
        drive: &mut Drive,
    ) -> Result<(), AmqpError> {
        let mut topology = self.topology.write();
        let removed = topology.delete_exchange(name, if_unused)?;
        self.store_removed(&topology, &removed, drive);
        if !removed.exchanges.is_empty() {
            self.unlock_changed(topology);
        }
        Ok(())
    }

    /// queue.bind and queue.unbind: the queue has to be there and open to the asker.
    pub(crate) fn check_bind_queue(
        &self,
        source: &str,
        queue: &str,
        asker: Asker,
    ) -> Result<(), AmqpError> {
        // With both missing RabbitMQ names the exchange.
        if !source.is_empty() {
            self.check_exchange(source)?;
        }
        self.queue_for(queue, asker).map(|_| ())
    }

    /// Whether there is such a binding.
    pub(crate) fn is_bound(
        &self,
        source: &str,
        destination: Destination<'_>,
        key: &[u8],
        arguments: &FieldTable,
    ) -> bool {
        self.topology.read().is_bound(source, destination, key, arguments)
    }

    /// Makes a change known.
    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Makes a change known by which exchanges may be gone. What was kept for them is freed when
    /// the topology is unlocked.
    fn unlock_changed(&self, mut topology: RwLockWriteGuard<'_, Topology>) {
        self.changed();
        let forgotten = self.kept.forget(&topology.take_forgotten());
        drop(topology);
        drop(forgotten);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declaration() -> Declaration {
        Declaration::default()
    }

    #[test]
    fn a_crashed_queue_can_be_declared_again() {
        let vhost = Vhost::new("/", Services::for_test());
        let asker = ConnectionId(1);
        let first = vhost
            .declare_queue("q", asker, declaration(), &mut Drive::default())
            .expect("a new queue");
        let same = vhost
            .declare_queue("q", asker, declaration(), &mut Drive::default())
            .expect("an equivalent one");
        assert_eq!(first.id(), same.id());
        let crash = std::panic::AssertUnwindSafe(|| first.crash_for_test());
        assert!(std::panic::catch_unwind(crash).is_err());
        assert!(vhost.queue("q").is_err());
        let second = vhost
            .declare_queue("q", asker, declaration(), &mut Drive::default())
            .expect("a new queue");
        assert_ne!(first.id(), second.id());
        assert_eq!(second.counts(), (0, 0));
    }

    #[test]
    fn the_default_type_is_for_queues_that_last() {
        let vhost = Vhost::new("/", Services::for_test());
        let default_queue_type = Some("quorum".to_owned());
        vhost.set_metadata(VhostMetadata { default_queue_type, ..VhostMetadata::default() });
        let settled = |mut declaration: Declaration| {
            vhost.settle_type("q", &mut declaration);
            declaration.arguments.contains_key("x-queue-type")
        };
        let durable = Declaration { durable: true, ..declaration() };
        assert!(settled(durable.clone()) && !settled(declaration()));
        assert!(!settled(Declaration { auto_delete: true, ..durable.clone() }));
        assert!(!settled(Declaration { owner: Some(ConnectionId(1)), ..durable }));
    }

    #[test]
    fn a_deleted_vhost_holds_nothing() {
        let vhost = Vhost::new("/", Services::for_test());
        let drive = &mut Drive::default();
        vhost.declare_queue("q", ConnectionId(1), declaration(), drive).expect("a queue");
        vhost.delete_contents(Vec::new(), drive);
        assert!(vhost.queue("q").is_err());
        vhost.declare_queue("q", ConnectionId(1), declaration(), drive).expect("nobody is told");
        assert!(vhost.queue("q").is_err(), "but nobody else finds it");
    }

    #[test]
    fn releasing_in_a_panic_harms_no_queue() {
        struct Release(Arc<QueueCell>);

        impl Drop for Release {
            fn drop(&mut self) {
                assert!(std::thread::panicking());
                self.0.purge(&mut Drive::default());
            }
        }

        let vhost = Vhost::new("/", Services::for_test());
        let queue = vhost
            .declare_queue("q", ConnectionId(1), declaration(), &mut Drive::default())
            .expect("a queue");
        let release = Release(queue.clone());
        let crash = std::panic::AssertUnwindSafe(move || {
            let _release = release;
            panic!("as a bug in a connection would");
        });
        assert!(std::panic::catch_unwind(crash).is_err());
        assert!(!queue.is_gone());
    }
}
