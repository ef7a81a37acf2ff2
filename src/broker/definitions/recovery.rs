//! What a broker brings back from its store when it starts.
//!
//! Owns the order (that of an import) and what becomes of entries that cannot be taken: they are
//! logged, left out and left in the store, and the start goes on. It must not know how a new store
//! is filled.
//!
//! Messages come back in a second step: a stopped broker's definitions can be looked at without
//! letting any of its messages expire.
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

/// What a store had.
#[derive(Debug, Default)]
pub struct Recovered {
    /// No broker has served with this store yet; without a store it is always so.
    pub is_new: bool,
    /// Whether all of it could be taken.
    is_whole: bool,
    /// By the numbers of queues.
    heads: Vec<(u64, Vec<LaneHead>)>,
}

impl Broker {
    /// Brings back the definitions that the store has. What is changed afterwards is kept, from
    /// [`Broker::begin_serving`] on.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn recover(&self, drive: &mut Drive) -> Result<Recovered, String> {
        let Some(store) = &self.services.store else {
            return Ok(Recovered { is_new: true, ..Recovered::default() });
        };
        let entries = store.entries(Space::Definitions).map_err(|error| error.to_string())?;
        let mut found = Found::default();
        let mut left_out = 0;
        for (key, value) in &entries {
            if let Err(reason) = found.take(key, value) {
                tracing::error!("the store has something that is left out: {reason}");
                left_out += 1;
            }
        }
        let heads = store.heads().map_err(|error| error.to_string())?;
        let ids = heads.iter().map(|(id, _)| *id);
        let ids = ids.chain(found.definitions.queues.iter().filter_map(|queue| queue.id));
        let free_from = ids.max().map_or(0, |highest| highest + 1).max(found.ids_free_from);
        self.services.begin_ids(free_from);
        let import = Import { is_recovery: true, ..Import::new(self, drive) };
        let imported = import.run(&found.definitions).map_err(|error| error.to_string())?;
        imported.notes.iter().for_each(|note| tracing::error!("the store: {note}"));
        tracing::info!("definitions of the store: {imported}");
        self.services.definitions.gather();
        self.services.definitions.change(|| [record::ids(free_from + IDS_PER_START)]);
        let is_whole = left_out == 0 && imported.notes.is_empty();
        Ok(Recovered { is_new: !found.is_started, is_whole, heads })
    }

    /// Notes that this store is not new any more: no default user is made for it again.
    pub fn keep_as_started(&self) {
        self.services.definitions.change(|| [record::started()]);
    }

    /// Brings back the messages, once everything is there that dead letters may need. Called before
    /// anything is published.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn recover_messages(&self, recovered: Recovered, drive: &mut Drive) -> Result<(), String> {
        let Recovered { is_new, is_whole, heads } = recovered;
        // Then messages have their queue, unless definitions are missing.
        let is_known = is_whole && !is_new;
        self.restore_messages(heads, is_known, drive);
        self.restore_delayed(is_known, drive).map_err(|error| error.to_string())
    }

    /// Gives the queues what the store has of their messages. Messages without a queue are those of
    /// one whose deletion a crash has interrupted; they go, unless definitions are missing.
    fn restore_messages(
        &self,
        heads: Vec<(u64, Vec<LaneHead>)>,
        is_known: bool,
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
                None if is_known => drop(self.services.store.as_ref().map(|s| s.forget_queue(id))),
                None => tracing::error!(id, count, "the store has messages without their queue"),
            }
        }
        tracing::info!(queues, messages, "queues of the store");
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

#[cfg(test)]
mod tests;
