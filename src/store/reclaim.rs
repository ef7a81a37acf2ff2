//! Giving disk space back, in small steps between groups.
//!
//! Owns the search for shared bodies that nobody refers to any more, and the thread that compacts
//! what a queue has left behind. Bodies have no counts of references: a list of those who refer to
//! a body is written once with it, and is compared with watermarks. It must not delay a group by
//! more than some milliseconds.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::warn;

use super::batch::{Batch, Table};
use super::engine::{Engine, ReadError};
use super::keys;
use super::lanes::Lanes;
use super::waiting::Shared;

/// The next step comes so long after one that has left something to do.
const STEP_DELAY: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 100 });

/// So many lists of references are looked at in one step.
const BODIES_PER_STEP: usize = 1_000;

/// After so many deleted bytes it is looked how much garbage there is.
const GARBAGE_CHECK_BYTES: u64 = 64 * 1024 * 1024;

/// Large values are copied to get rid of garbage if there is so much of it, and it makes up half
/// of what is on disk: then, no more is copied than is freed.
const GARBAGE_BYTES_MIN: u64 = 256 * 1024 * 1024;

/// See the module's description.
pub(super) struct Reclaim {
    /// Whether there may be bodies at all.
    has_bodies: bool,
    /// The id from which on the search goes on; `None` while there is no reason to search.
    next_body: Option<u64>,
    last_step: Instant,
    compaction: Option<JoinHandle<()>>,
}

impl Reclaim {
    pub(super) fn new(now: Instant) -> Self {
        Self { has_bodies: true, next_body: Some(0), last_step: now, compaction: None }
    }

    /// Bodies were written.
    pub(super) fn note_bodies(&mut self) {
        self.has_bodies = true;
    }

    /// When the next step is due, if there is anything to do.
    pub(super) fn due_at(&self, lanes: &Lanes) -> Option<Instant> {
        let next_step = self.last_step + STEP_DELAY;
        let has_work = self.next_body.is_some()
            || (self.has_bodies && lanes.has_deleted())
            || lanes.has_marked();
        let can_compact = lanes.has_to_compact() || lanes.has_deleted_bytes(GARBAGE_CHECK_BYTES);
        if has_work || (can_compact && !self.is_compacting()) {
            return Some(next_step);
        }
        lanes.due_at().map(|at| at.max(next_step))
    }

    /// Does a little, and puts into `batch` what is to be written for it.
    pub(super) fn step(&mut self, lanes: &mut Lanes, shared: &Arc<Shared>, batch: &mut Batch) {
        self.last_step = Instant::now();
        let engine = &*shared.engine;
        let cleared = lanes.clear_marked(engine, batch);
        let tidied = lanes.tidy(self.last_step, engine, batch);
        let searched = self.search_bodies(lanes, engine, batch);
        if let Err(error) = cleared.and(tidied).and(searched) {
            // It is tried again when more is deleted.
            warn!(%error, "cannot look for what can be deleted from the store");
            self.next_body = None;
        }
        if self.is_compacting() {
            return;
        }
        if let Some(queue) = lanes.next_to_compact() {
            self.spawn(shared, move |engine| {
                let (start, end) = (queue.to_be_bytes(), keys::queue_end(queue));
                engine.compact(Table::Messages, &start..&end)?;
                engine.compact(Table::Bodies, &[]..&keys::END)
            });
        } else if lanes.has_deleted_bytes(GARBAGE_CHECK_BYTES) {
            lanes.reset_deleted_bytes();
            self.spawn(shared, |engine| {
                for table in [Table::Messages, Table::Bodies, Table::Delayed] {
                    let (garbage, all) = engine.garbage(table)?;
                    if garbage >= GARBAGE_BYTES_MIN && garbage >= all / 2 {
                        engine.rewrite(table)?;
                    }
                }
                Ok(())
            });
        }
    }

    fn search_bodies(
        &mut self,
        lanes: &mut Lanes,
        engine: &dyn Engine,
        batch: &mut Batch,
    ) -> Result<(), ReadError> {
        if self.has_bodies && self.next_body.is_none() && lanes.take_has_deleted() {
            self.next_body = Some(0);
        }
        let Some(from) = self.next_body else { return Ok(()) };
        let mut seen = 0;
        let mut next = None;
        let (start, end) = (keys::references(from), keys::references(u64::MAX));
        engine.scan(Table::Bodies, &start..&end, &mut |key, value| {
            let Some((_, id)) = keys::parse_body(key) else { return ControlFlow::Continue(()) };
            if seen == BODIES_PER_STEP {
                next = Some(id);
                return ControlFlow::Break(());
            }
            seen += 1;
            let references = keys::parse_references(value);
            if references.is_some_and(|places| places.iter().all(|place| lanes.is_gone(*place))) {
                batch.delete(Table::Bodies, key);
                batch.delete(Table::Bodies, &keys::body(id));
            }
            ControlFlow::Continue(())
        })?;
        self.has_bodies &= from > 0 || seen > 0;
        self.next_body = next;
        Ok(())
    }

    fn is_compacting(&self) -> bool {
        self.compaction.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Runs `work` on a thread of its own, one at a time.
    fn spawn(
        &mut self,
        shared: &Arc<Shared>,
        work: impl FnOnce(&dyn Engine) -> Result<(), ReadError> + Send + 'static,
    ) {
        let shared = shared.clone();
        let run = move || {
            if let Err(error) = work(&*shared.engine) {
                warn!(%error, "cannot give disk space of the store back");
            }
        };
        match thread::Builder::new().name("store-compact".to_owned()).spawn(run) {
            Ok(thread) => self.compaction = Some(thread),
            Err(error) => warn!(%error, "cannot start a thread to give disk space back"),
        }
    }
}
