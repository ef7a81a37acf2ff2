//! The traffic between a durable queue and the store.
//!
//! Owns the handing over of what each drive leaves, while the queue is locked, so that the order in
//! the store is the queue's; the queue's window of memory; and the reading of what is to come into
//! it, which takes place without the lock. It must not wait for the disk under the lock.

use std::sync::Arc;

use bytes::Bytes;

use super::{QueueCell, State, no_content};
use crate::broker::drive::Drive;
use crate::broker::memory::CountedBody;
use crate::clock::Millis;
use crate::queue::{LaneHead, Loaded, Place, Queue, Wanted};
use crate::store::Store;

/// So much is read at once (bytes).
const LOAD_BYTES: usize = 512 * 1024;

/// After this many milliseconds, what could not be read is tried again.
const RETRY_MS: u64 = 1000;

/// Whether messages are being read from the store.
#[derive(Debug, Default)]
pub(super) struct Loading {
    is_under_way: bool,
    /// Not before: reading has failed.
    pub(super) retry_at: Option<Millis>,
    /// Nothing is put aside before: that has failed.
    spill_at: Option<Millis>,
}

/// While memory is short, a queue keeps no more than this of its ready messages there (bytes).
const PRESSED_BYTES: usize = 1024 * 1024;

/// Messages that were read.
enum Read {
    /// From the store.
    Stored(Loaded),
    /// What was put aside under this number.
    Piece(u64, Vec<u8>),
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Lets a queue be read for again after a crash of its reading: its consumers would wait for ever.
struct UnderWay<'a> {
    queue: &'a QueueCell,
    retry_at: Millis,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let loading = &mut self.queue.lock().loading;
            (loading.is_under_way, loading.retry_at) = (false, Some(self.retry_at));
        }
    }
}

impl QueueCell {
    /// Where the queue's messages are kept, if anywhere.
    pub(in crate::broker) fn store(&self) -> Option<&Arc<Store>> {
        self.store.as_ref()
    }

    /// Hands over what this drive leaves to the store, lets go of what need not be in memory, and
    /// asks for what is needed there. Ends a drive.
    pub(super) fn keep(self: &Arc<Self>, state: &mut State, drive: &mut Drive) {
        let is_pressed = self.services.memory.is_pressed();
        if let Some(store) = &self.store {
            state.queue.hand_over(&mut drive.records);
            if !drive.records.is_empty() && !state.gone {
                drive.stores |= !drive.records.runs.is_empty();
                drive.records.is_answered = drive.is_answered;
                let ticket = store.submit(self.id.0, &mut drive.records);
                state.queue.handed_over(ticket.group());
                drive.await_store(ticket);
            }
            drive.records.clear();
            if drive.effects.take_dropped_duplicate() {
                // Its original may still be on its way to the disk.
                drive.await_store(store.latest());
            }
            let budget = self.services.queue_memory();
            let budget = if is_pressed { budget.min(PRESSED_BYTES) } else { budget };
            let is_written = |group| store.is_written(group);
            state.queue.evict(budget, &is_written, &mut drive.effects);
        }
        if let Some(spill) = &self.services.spill {
            let may_spill = state.loading.spill_at.is_none_or(|at| at <= drive.now);
            if is_pressed && may_spill {
                state.loading.spill_at = None;
                let spilled =
                    state.queue.spill(PRESSED_BYTES, |piece| spill.put(piece), &mut drive.effects);
                if let Err(error) = spilled {
                    let queue = self.name();
                    tracing::warn!(queue, "messages cannot be moved to the disk: {error}");
                    state.loading.spill_at = Some(Millis(drive.now.0 + RETRY_MS));
                }
            }
            let dropped = drive.effects.take_dropped_pieces();
            dropped.into_iter().for_each(|piece| spill.remove(piece));
        }
        let is_due = state.loading.retry_at.is_none_or(|at| at <= drive.now);
        if !state.loading.is_under_way && is_due && !state.gone && state.queue.wanted().is_some() {
            state.loading.is_under_way = true;
            state.loading.retry_at = None;
            self.services.loads.ask(self.clone());
        }
    }

    /// Moves messages to the disk if memory is short.
    pub(crate) fn relieve(self: &Arc<Self>, drive: &mut Drive) {
        let mut state = self.lock();
        self.keep(&mut state, drive);
        self.count_memory(&mut state);
    }

    /// Reads what the queue wants, which takes a while; then delivers.
    pub(crate) fn load_wanted(self: &Arc<Self>, drive: &mut Drive) {
        let retry_at = Millis(drive.now.0 + RETRY_MS);
        let _under_way = UnderWay { queue: self, retry_at };
        let wanted = self.lock().queue.wanted();
        let is_read = wanted.is_none_or(|wanted| self.load(wanted, drive));
        let mut state = self.lock();
        let state = &mut *state;
        state.loading.is_under_way = false;
        state.loading.retry_at = (!is_read).then_some(retry_at);
        self.dispatch(state, &no_content, drive);
    }

    /// Reads messages into the queue; `false` when that fails. The queue is not locked meanwhile.
    pub(super) fn load(self: &Arc<Self>, wanted: Wanted, drive: &mut Drive) -> bool {
        match self.read(wanted) {
            Ok(read) => {
                let mut state = self.lock();
                self.take_in(&mut state, wanted, read);
                self.keep(&mut state, drive);
                self.count_memory(&mut state);
                true
            }
            // Somebody else may have read it meanwhile.
            Err(_) if self.lock().queue.wanted_at_once() != Some(wanted) => true,
            Err(error) => {
                let queue = self.name();
                tracing::error!(queue, "messages cannot be read from the disk: {error}");
                false
            }
        }
    }

    fn read(&self, wanted: Wanted) -> Result<Read, String> {
        if let Some(number) = wanted.spilled {
            let spill = self.services.spill.as_ref().expect("it was put there");
            return spill.get(number).map(|piece| Read::Piece(number, piece)).map_err(text);
        }
        let store = self.store.as_ref().expect("only a durable queue has messages there");
        let mut chunk =
            store.read(self.id.0, wanted.lane, wanted.from, LOAD_BYTES).map_err(text)?;
        for body in chunk.runs.iter_mut().flat_map(|run| &mut run.bodies) {
            *body = self.counted(std::mem::take(body).into());
        }
        Ok(Read::Stored(Loaded::build(wanted, chunk.end, &chunk.runs, &chunk.marks)))
    }

    /// A large body with its place in the memory gauge.
    fn counted(&self, body: Vec<u8>) -> Bytes {
        Bytes::from_owner(CountedBody::new(body, &self.services.memory))
    }

    fn take_in(&self, state: &mut State, wanted: Wanted, read: Read) {
        if state.gone {
            return;
        }
        match read {
            Read::Piece(number, piece) => {
                let share = |body: &[u8]| self.counted(body.to_vec());
                if state.queue.take_back(wanted, number, &piece, &share)
                    && let Some(spill) = &self.services.spill
                {
                    spill.remove(number);
                }
            }
            Read::Stored(loaded) => {
                let lost = state.queue.install(loaded);
                if lost > 0 {
                    let queue = self.name();
                    tracing::error!(queue, lost, "the store has lost messages of this queue");
                }
            }
        }
    }

    /// Makes a queue that was just made hold what the store has of it.
    pub(crate) fn restore(self: &Arc<Self>, heads: &[LaneHead], drive: &mut Drive) {
        let mut state = self.lock();
        let state = &mut *state;
        state.queue.restore(heads);
        self.dispatch(state, &no_content, drive);
    }

    /// Removes what a deleted queue, which this was, has put aside.
    pub(super) fn remove_pieces(&self, queue: &Queue) {
        if let Some(spill) = &self.services.spill {
            queue.pieces().into_iter().for_each(|piece| spill.remove(piece));
        }
    }

    /// Lets the store forget the messages of a deleted queue. Called when its definition is gone,
    /// so that no crash leaves the queue without them.
    pub(in crate::broker) fn forget_messages(&self, drive: &mut Drive) {
        if let Some(store) = &self.store {
            drive.await_store(store.forget_queue(self.id.0));
        }
    }

    /// Lets the store forget dead letters whose copies it has by now.
    pub(in crate::broker) fn bury(self: &Arc<Self>, dead: &[Place], drive: &mut Drive) {
        if dead.is_empty() {
            return;
        }
        let mut state = self.lock();
        let state = &mut *state;
        if !state.gone {
            state.queue.bury(dead);
            self.keep(state, drive);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::broker::outbox::{ConnectionId, Outbox};
    use crate::broker::queue_cell::{Declaration, Operation, Settlement};
    use crate::broker::{Memory, Services, Vhost};
    use crate::codec::properties;
    use crate::queue::{Body, Content};
    use crate::routing::QueueId;
    use crate::store::{MemoryEngine, Options, Ticket};

    const QUEUE: QueueId = QueueId(7);

    /// A broker's share of a store, as after a start.
    struct Node {
        services: Arc<Services>,
        queue: Arc<QueueCell>,
        outbox: Arc<Outbox>,
        drive: Drive,
        _vhost: Arc<Vhost>,
    }

    impl Node {
        /// Starts with what `engine` has; queues keep `budget` bytes in memory.
        fn start(engine: &MemoryEngine, budget: usize) -> Self {
            let store = Arc::new(Store::in_memory(engine, &Options::default()).expect("a store"));
            let memory = Arc::new(Memory::new(u64::MAX, 0));
            let services = Services::new(memory, None, Some(store.clone()), None, budget);
            let services = Arc::new(services);
            let vhost = Vhost::new("/", services.clone());
            let declaration = Declaration { durable: true, ..Declaration::default() };
            let vhost_of_queue = Arc::downgrade(&vhost);
            let queue = QueueCell::new(QUEUE, "q", declaration, vhost_of_queue, services.clone());
            let (queue, mut drive) = (Arc::new(queue), Drive::default());
            for (id, heads) in store.heads().expect("readable") {
                assert_eq!(id, QUEUE.0);
                queue.restore(&heads, &mut drive);
            }
            let outbox = Arc::new(Outbox::new(ConnectionId(1)));
            outbox.lock().open_channel(1);
            Self { services, queue, outbox, drive, _vhost: vhost }
        }

        /// Publishes messages with these numbers as bodies, and waits until they are durable.
        fn publish(&mut self, numbers: std::ops::Range<u32>) {
            let plain = [&[0, 60, 0, 0][..], &[0; 8], &properties::DELIVERY_MODE.to_be_bytes()];
            let header = [&plain.concat()[..], &[2]].concat();
            let bodies: Vec<_> = numbers.map(|number| number.to_be_bytes().repeat(25)).collect();
            let content = |token: u32| Content {
                address: b"\0\x01q",
                header: &header,
                body: Body::Inline(&bodies[token as usize]),
            };
            for token in 0..bodies.len() as u32 {
                self.queue.commit(&[Operation::Publish(token)], content, &mut self.drive);
            }
            let ticket = self.drive.take_ticket();
            self.until_durable(ticket);
        }

        fn store(&self) -> &Arc<Store> {
            self.services.store.as_ref().expect("there is one")
        }

        fn until_durable(&self, ticket: Ticket) {
            let deadline = Instant::now() + Duration::from_secs(20);
            self.store().when_durable(ticket, Box::new(|_| {}));
            while !self.store().is_durable(ticket) {
                assert!(Instant::now() < deadline, "it never came");
                std::thread::yield_now();
            }
        }

        /// Fetches a message; answers its number and whether it was delivered before.
        fn get(&mut self) -> Option<(u32, bool)> {
            let got = self.queue.get(false, &self.outbox, 1, 0, &mut self.drive);
            if !got.expect("the queue is there") {
                return None;
            }
            let out = &mut self.outbox.lock();
            let bytes = std::mem::take(out.buffer());
            let number = bytes[bytes.len() - 5..].first_chunk::<4>().expect("a body");
            // basic.get-ok: after head (7), class and method (4) and tag (8) comes the flag.
            Some((u32::from_be_bytes(*number), bytes[19] != 0))
        }

        /// Settles what was fetched `from` on, as counted since the last call.
        fn settle(&mut self, which: impl Fn(usize) -> Option<Settlement>) {
            let mut held = Vec::new();
            self.outbox.lock().take_unsettled(1, &mut held);
            let settled = held.iter().enumerate();
            let operations: Vec<_> = settled
                .filter_map(|(at, held)| Some(Operation::Settle(held.slot, which(at)?)))
                .collect();
            let nothing = |_| unreachable!("nothing is published");
            self.queue.commit(&operations, nothing, &mut self.drive);
            let ticket = self.drive.take_ticket();
            self.until_durable(ticket);
        }
    }

    #[test]
    fn a_queue_comes_back_with_what_was_not_settled() {
        let engine = MemoryEngine::default();
        let mut node = Node::start(&engine, usize::MAX);
        node.publish(0..10);
        (0..6).for_each(|number| assert_eq!(node.get(), Some((number, false))));
        node.settle(|at| match at {
            0 | 1 | 3 => Some(Settlement::Done),
            4 => Some(Settlement::Requeue),
            _ => None,
        });
        let engine = engine.after_crash(usize::MAX);
        let mut node = Node::start(&engine, usize::MAX);
        assert_eq!(node.queue.counts().0, 7);
        let expected =
            [(2, true), (4, true), (5, true), (6, false), (7, false), (8, false), (9, false)];
        expected.iter().for_each(|message| assert_eq!(node.get(), Some(*message)));
        assert_eq!(node.get(), None);
        node.settle(|_| Some(Settlement::Done));
        node.publish(10..12);
        let mut node = Node::start(&engine.after_crash(usize::MAX), usize::MAX);
        assert_eq!((node.get(), node.get()), (Some((10, false)), Some((11, false))));
        assert_eq!(node.get(), None);
    }

    #[test]
    fn a_long_queue_is_in_the_store_for_the_most_part_and_keeps_its_order() {
        let engine = MemoryEngine::default();
        let mut node = Node::start(&engine, 512 * 1024);
        for start in (0..60_000).step_by(1000) {
            node.publish(start..start + 1000);
        }
        let used = node.services.memory.used();
        assert!(used < 1024 * 1024, "{used} bytes for 9 MB of messages");
        for number in 0..60_000 {
            assert_eq!(node.get(), Some((number, false)));
            if number % 1000 == 999 {
                node.settle(|_| Some(Settlement::Done));
            }
        }
        assert_eq!((node.get(), node.queue.counts().0), (None, 0));
        let mut node = Node::start(&engine.after_crash(usize::MAX), 512 * 1024);
        assert_eq!(node.get(), None);
    }

    #[test]
    fn what_is_settled_stays_so_where_a_read_ends_within_it() {
        let engine = MemoryEngine::default();
        let mut node = Node::start(&engine, usize::MAX);
        for start in (0..60_000).step_by(1000) {
            node.publish(start..start + 1000);
        }
        let is_held = |number| number == 0 || number == 51_000;
        for number in 0..59_900 {
            assert_eq!(node.get(), Some((number, false)));
            if is_held(number) {
                node.settle(|_| None);
            } else if number % 100 == 50 || is_held(number + 1) {
                node.settle(|_| Some(Settlement::Done));
            }
        }
        node.settle(|_| Some(Settlement::Done));
        let engine = engine.after_crash(usize::MAX);
        let mut node = Node::start(&engine, usize::MAX);
        assert_eq!((node.get(), node.get()), (Some((0, true)), Some((51_000, true))));
        // So much that the store deletes it, with the marks up to there.
        node.settle(|_| Some(Settlement::Done));
        let engine = engine.after_crash(usize::MAX);
        let mut node = Node::start(&engine, usize::MAX);
        assert_eq!(node.queue.counts().0, 100);
        (59_900..60_000).for_each(|number| assert_eq!(node.get(), Some((number, false))));
        assert_eq!(node.get(), None);
    }

    #[test]
    fn a_purged_queue_stays_empty() {
        let engine = MemoryEngine::default();
        let mut node = Node::start(&engine, 256 * 1024);
        node.publish(0..20_000);
        assert_eq!(node.get(), Some((0, false)));
        assert_eq!(node.queue.purge(&mut node.drive), 19_999);
        node.publish(20_000..20_001);
        let mut node = Node::start(&engine.after_crash(usize::MAX), usize::MAX);
        assert_eq!((node.get(), node.get()), (Some((0, true)), Some((20_000, false))));
        assert_eq!(node.get(), None);
    }
}
