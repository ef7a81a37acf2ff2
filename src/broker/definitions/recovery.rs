//! What a broker brings back from its store when it starts.
//!
//! Owns the order (that of an import) and what becomes of entries that cannot be taken: they are
//! logged, left out and left in the store, and the start goes on. It must not know how a new store
//! is filled.
//!
//! Queues come back with their numbers, by which their messages are found. Those of queues that are
//! gone are not given out again: each start sets a range aside.

use std::sync::Arc;

use super::record::{self, Found};
use super::{Import, Queue};
use crate::broker::{Broker, Declaration, Drive, Vhost};
use crate::queue::{LaneHead, check_kind};
use crate::routing::QueueId;
use crate::store::Space;

/// How many numbers of queues a start sets aside: for a million each second there are 12 days.
const IDS_PER_START: u64 = 1 << 40;

impl Broker {
    /// Brings back what the store has, before clients can connect. What is changed afterwards is
    /// kept, from [`Broker::begin_serving`] on. Answers whether no broker has served with this store
    /// yet; there is always none where there is no store.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn recover(&self, drive: &mut Drive) -> Result<bool, String> {
        let Some(store) = &self.services.store else { return Ok(true) };
        let entries = store.entries(Space::Definitions).map_err(|error| error.to_string())?;
        let mut found = Found::default();
        let mut is_whole = true;
        for (key, value) in &entries {
            if let Err(reason) = found.take(key, value) {
                tracing::error!("the store has something that is left out: {reason}");
                is_whole = false;
            }
        }
        let heads = store.heads().map_err(|error| error.to_string())?;
        let ids = heads.iter().map(|(id, _)| *id);
        let ids = ids.chain(found.definitions.queues.iter().filter_map(|queue| queue.id));
        let free_from = ids.max().map_or(0, |highest| highest + 1).max(found.ids_free_from);
        self.services.begin_ids(free_from);
        let import = Import { is_recovery: true, ..Import::new(self, drive) };
        let recovered = import.run(&found.definitions).map_err(|error| error.to_string())?;
        recovered.notes.iter().for_each(|note| tracing::error!("the store: {note}"));
        tracing::info!("definitions of the store: {recovered}");
        is_whole &= recovered.notes.is_empty();
        self.restore_messages(heads, is_whole, drive);
        self.restore_delayed(is_whole, drive).map_err(|error| error.to_string())?;
        self.services.definitions.gather();
        self.services.definitions.change(|| [record::ids(free_from + IDS_PER_START)]);
        Ok(!found.is_started)
    }

    /// Gives the queues what the store has of their messages. Messages without a queue are those of
    /// one whose deletion a crash has interrupted; they go, unless definitions are missing.
    fn restore_messages(
        &self,
        heads: Vec<(u64, Vec<LaneHead>)>,
        is_whole: bool,
        drive: &mut Drive,
    ) {
        let vhosts: Vec<_> = self.vhosts.iter().map(|vhost| vhost.clone()).collect();
        let (mut queues, mut messages) = (0_u64, 0);
        for (id, lanes) in heads {
            let cell = vhosts.iter().find_map(|vhost| vhost.cell(QueueId(id)));
            let count = lanes.iter().map(|lane| lane.count).sum::<u64>();
            match cell {
                Some(cell) => {
                    queues += 1;
                    messages += count;
                    cell.restore(&lanes, drive);
                }
                None if is_whole => drop(self.services.store.as_ref().map(|s| s.forget_queue(id))),
                None => tracing::error!(id, count, "the store has messages without their queue"),
            }
        }
        tracing::info!(queues, messages, "queues of the store");
    }

    /// Notes that this store is not new any more: no default user is made for it again.
    pub fn keep_as_started(&self) {
        self.services.definitions.change(|| [record::started()]);
    }
}

impl Import<'_> {
    pub(super) fn restore_queue(
        &mut self,
        vhost: &Arc<Vhost>,
        queue: &Queue,
        id: QueueId,
    ) -> Result<(), String> {
        let what = vhost.describe_queue(&queue.name);
        // Its other arguments were checked when it was declared.
        let kind = check_kind(&queue.arguments, &what).map_err(|error| error.text)?;
        let declaration = Declaration {
            kind,
            durable: queue.durable,
            auto_delete: queue.auto_delete,
            owner: None,
            arguments: queue.arguments.clone(),
        };
        let restored = vhost.restore_queue(id, &queue.name, declaration, self.drive);
        restored.map(|_| ()).ok_or_else(|| format!("{what} is there already"))
    }
}
