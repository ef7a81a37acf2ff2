//! One AMQP connection, without IO: bytes in, replies to its outbox.
//!
//! Owns the protocol's state for one client: handshake, channels, content being received, and the
//! order in which things happen. It must not know sockets, tasks or clocks: `net` feeds it what was
//! read and does what [`Progress`] says.
//!
//! The unit of work is one read. Publishes and settlements are staged while the read buffer is
//! parsed and applied together at its end, or before any other method, so that what a client sees
//! is the same as if each were applied at once.

mod access;
mod body_frame;
mod channel;
mod closing;
mod consume;
mod content;
mod dispatch;
mod handshake;
mod held;
mod liveness;
mod login;
mod owned;
mod publish;
mod publish_run;
mod sasl;
mod settle;
mod sources;
mod topology;
mod transaction;
mod unacked;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::broker::{
    Alarms, Batch, Broker, ConnectionId, DeleteIf, Drive, Outbox, Presence, Rights, Vhost,
};
use crate::clock::Millis;
use crate::codec::method::AMQPClass;
use crate::codec::{frame, hot};
use crate::error::{AmqpError, ReplyCode};

use body_frame::BodyFrame;
use channel::{Channel, Mode};
use handshake::Phase;
use held::Held;
pub use liveness::{Liveness, Verdict};
pub use login::{Login, LoginVerdict};
use owned::Owned;
use publish::{Refusable, Routes};

/// A batch is applied, and others get their turn, when it has put this many messages into queues.
/// More than an ordinary read holds; a read of messages that fan out widely is taken in parts.
const BATCH_WORK_MAX: usize = 8192;

/// The scratch memory of one worker thread, lent to whichever connection is being fed.
#[derive(Debug, Default)]
pub struct Worker {
    /// Publishes and settlements of the current read.
    pub batch: Batch,
    /// See [`Drive`].
    pub drive: Drive,
    /// Tokens of publishes in the batch that a queue refused.
    rejected: Vec<u32>,
}

impl Worker {
    /// Cleans up after a connection that crashed before its batch was applied: what it had settled
    /// stays settled, what it published was never confirmed and is dropped.
    pub fn abandon_staged(&mut self) {
        if !self.batch.is_empty() || !self.rejected.is_empty() || !self.drive.is_idle() {
            self.drive.forget();
            self.batch.abandon(&mut self.drive);
            self.rejected.clear();
        }
    }
}

/// What a read has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read on.
    Read,
    /// Let others have their turn, then feed what is left again.
    Again,
    /// The client does not read its replies: wait until they are written, then feed what is left
    /// again.
    AwaitDrain,
    /// The store does not keep up with what this client and others publish: wait until it has
    /// room, then feed what is left again.
    AwaitRoom,
    /// An alarm is set and this client publishes: wait until none is, then feed what
    /// is left again.
    AwaitAlarms,
    /// A password is to be checked, which takes a while: let [`Connection::login`] do that
    /// elsewhere, tell [`Connection::finish_login`], then feed what is left again.
    AwaitLogin,
    /// Replies wait until what they tell of is durable: wait for [`Connection::when_stored`], then
    /// feed what is left again.
    AwaitStore,
    /// The connection is over: write what is in the outbox, wait, and close the socket.
    Close {
        /// How long to wait, so that guessing passwords takes its time.
        linger_ms: u64,
    },
}

/// How far the bytes were understood, and what to do then.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Bytes that are done with; the rest is to be fed again, with what follows it.
    pub consumed: usize,
    /// What to do next.
    pub next: Next,
}

/// See the module's description.
#[derive(Debug)]
pub struct Connection {
    broker: Arc<Broker>,
    outbox: Arc<Outbox>,
    liveness: Arc<Liveness>,
    /// Where the client is.
    peer: IpAddr,
    /// See [`Connection::name`].
    name: Box<str>,
    phase: Phase,
    /// Whether the connection counts among those that have logged in.
    admitted: bool,
    frame_max: u32,
    channel_max: u16,
    heartbeat_s: u16,
    user: String,
    /// The client's login, while its password is being checked.
    login: Option<Arc<Login>>,
    vhost: Option<Arc<Vhost>>,
    /// What the user may do in the vhost.
    rights: Option<Rights>,
    /// Counts the connection in its vhost and among its user's.
    presence: Option<[Presence; 2]>,
    /// The client understands connection.blocked.
    knows_blocked: bool,
    /// Replies that wait for the store.
    held: Held,
    /// By channel number; the first entry is not used.
    channels: Vec<Option<Box<Channel>>>,
    channel_count: usize,
    /// Queues exclusive to this connection.
    owned: Owned,
    routes: Routes,
    /// Channels that may be receiving content.
    receiving: Vec<u16>,
    /// The frame in whose payload the next bytes are.
    body_frame: Option<BodyFrame>,
    /// Channels whose publishes in the current batch are to be confirmed.
    confirming: Vec<u16>,
    refusable: Vec<Refusable>,
    /// Whether the bytes being fed have left anything to the store.
    has_stored: bool,
    /// Channels whose shared prefetch limit has room again.
    reopening: Vec<u16>,
    /// Reused for taking over deliveries.
    noted: Vec<crate::broker::Unsettled>,
}

impl Connection {
    /// A connection that has just been accepted.
    pub fn new(broker: Arc<Broker>, peer: SocketAddr, local: SocketAddr, now: Millis) -> Self {
        let id = broker.next_connection_id();
        let timeout_ms = broker.config().limits.handshake_timeout_ms;
        Self {
            outbox: Arc::new(Outbox::new(id)),
            liveness: Arc::new(Liveness::new(now, timeout_ms)),
            peer: peer.ip(),
            name: format!("{peer} -> {local}").into(),
            phase: Phase::ProtocolHeader,
            admitted: false,
            frame_max: frame::FRAME_MIN * 2,
            channel_max: 0,
            heartbeat_s: 0,
            user: String::new(),
            login: None,
            vhost: None,
            rights: None,
            presence: None,
            knows_blocked: false,
            held: Held::default(),
            channels: Vec::new(),
            channel_count: 0,
            owned: Owned::default(),
            routes: Routes::default(),
            receiving: Vec::new(),
            body_frame: None,
            confirming: Vec::new(),
            refusable: Vec::new(),
            has_stored: false,
            reopening: Vec::new(),
            noted: Vec::new(),
            broker,
        }
    }

    /// Where the connection's output is gathered.
    pub fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    /// The connection's signs of life.
    pub fn liveness(&self) -> &Arc<Liveness> {
        &self.liveness
    }

    /// How logs name the connection: who connects to where, as RabbitMQ names connections.
    pub fn name(&self) -> String {
        self.name.to_string()
    }

    /// What blocks publishers.
    pub fn alarms(&self) -> &Arc<Alarms> {
        self.broker.alarms()
    }

    /// Ready when the store has room for what clients publish.
    pub fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        self.broker.store().map_or(Poll::Ready(()), |store| store.poll_room(context))
    }

    /// Whether the handshake is done and nobody has closed yet.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open && !self.outbox.is_asked_to_close()
    }

    /// The largest body that is taken, in bytes.
    fn message_size_max(&self) -> u64 {
        self.broker.config().limits.max_message_size_bytes
    }

    fn id(&self) -> ConnectionId {
        self.outbox.id()
    }

    fn vhost(&self) -> &Arc<Vhost> {
        self.vhost.as_ref().expect("an open connection has a vhost")
    }

    /// Understands as much of `bytes` as is complete and may be taken now. Never panics on what a
    /// client sends.
    pub fn feed(&mut self, bytes: &[u8], worker: &mut Worker) -> Progress {
        if self.is_outdated() {
            self.notice_changes(worker);
        }
        self.end_closed_channels(worker);
        if !self.release_held(worker) {
            return Progress { consumed: 0, next: Next::AwaitStore };
        }
        self.refresh_routes();
        // What others have left to the store is not this connection's to wait for.
        worker.drive.take_ticket();
        worker.drive.take_stores();
        let (mut consumed, next) = self.take_frames(bytes, worker);
        self.commit(bytes, worker);
        worker.drive.publish_dead_letters();
        self.keep_incoming(bytes);
        if let Phase::Over { linger_ms } = self.phase {
            consumed = bytes.len();
            return Progress { consumed, next: Next::Close { linger_ms } };
        }
        let is_store_behind = std::mem::take(&mut self.has_stored) && self.is_store_behind(worker);
        let next = match next {
            _ if self.outbox.is_congested() => Next::AwaitDrain,
            Next::Read | Next::Again if is_store_behind => Next::AwaitRoom,
            next => next,
        };
        Progress { consumed, next }
    }

    /// Looks at how the store is after this client has left messages to it. When it has failed,
    /// whoever has no confirms to be refused is told by the end of the connection.
    fn is_store_behind(&mut self, worker: &mut Worker) -> bool {
        let Some(store) = self.broker.store() else { return false };
        let Some(reason) = store.failure() else { return store.is_congested() };
        let channels = self.channels.iter().flatten();
        let mut confirms = channels.map(|channel| matches!(channel.mode, Mode::Confirm(_)));
        if self.phase == Phase::Open && !confirms.any(|confirms| confirms) {
            let text = format!("the store has failed, restart the broker: {reason}");
            self.fail_connection(&AmqpError::new(ReplyCode::InternalError, text), worker);
        }
        false
    }

    /// Takes frames as long as there are whole ones and nothing speaks against it.
    fn take_frames(&mut self, bytes: &[u8], worker: &mut Worker) -> (usize, Next) {
        let mut consumed = 0;
        let alarmed = self.broker.alarms().is_any();
        while !self.is_over() {
            if self.login.is_some() {
                return (consumed, Next::AwaitLogin);
            }
            if self.body_frame.is_some() {
                let used = self.continue_body_frame(consumed, bytes, worker);
                consumed += used;
                if used == 0 {
                    break;
                }
                continue;
            }
            let rest = &bytes[consumed..];
            if self.held.holds_up(rest) {
                return (consumed, Next::AwaitStore);
            }
            if self.phase == Phase::ProtocolHeader {
                let Some(used) = self.take_protocol_header(rest, worker) else { break };
                consumed += used;
                continue;
            }
            if worker.batch.work() >= BATCH_WORK_MAX {
                return (consumed, Next::Again);
            }
            // Content that is being received is taken to its end, for that frees what it holds.
            // What comes after connection.close is not taken in at all.
            if alarmed && self.phase != Phase::Closing && hot::begins_publish(rest) {
                return (consumed, Next::AwaitAlarms);
            }
            if self.phase == Phase::Open && !alarmed {
                let used = self.take_run(bytes, consumed, worker);
                if used > 0 {
                    consumed += used;
                    continue;
                }
            }
            match frame::split(rest, self.frame_max) {
                Ok(None) => {
                    consumed += self.begin_body_frame(rest);
                    break;
                }
                Ok(Some((frame, used))) => {
                    // A frame begins with type (1 byte), channel (2 bytes) and size (4 bytes).
                    let payload_at = consumed + 7;
                    consumed += used;
                    let replied = self.take_frame(&frame, payload_at, bytes, worker);
                    if replied && self.outbox.is_congested() {
                        return (consumed, Next::AwaitDrain);
                    }
                }
                Err(error) => {
                    // What follows cannot be told apart into frames any more.
                    self.commit(bytes, worker);
                    self.fail_framing(&error, worker);
                }
            }
        }
        let next = if self.held.is_empty() { Next::Read } else { Next::AwaitStore };
        (consumed, next)
    }

    /// Copies what the content being received still has in the read buffer.
    fn keep_incoming(&mut self, bytes: &[u8]) {
        let channels = &mut self.channels;
        self.receiving.retain(|number| {
            let channel = channels.get_mut(usize::from(*number)).and_then(Option::as_mut);
            let incoming = channel.and_then(|channel| channel.incoming.as_mut());
            incoming.map(|incoming| incoming.keep(bytes)).is_some()
        });
    }

    /// Applies what is staged, and answers publishes in confirm mode.
    fn commit(&mut self, bytes: &[u8], worker: &mut Worker) {
        if !worker.batch.is_empty() {
            worker.batch.commit(bytes, &mut worker.drive, &mut worker.rejected);
        }
        self.send_confirms(worker);
        self.reopen_gates(worker);
    }

    fn send(&self, channel: u16, method: AMQPClass, worker: &mut Worker) {
        self.outbox.send(channel, &method, &mut worker.drive.wakes);
    }

    fn channel(&self, number: u16) -> &Channel {
        self.channels[usize::from(number)].as_ref().expect("dispatched to an open channel")
    }

    fn channel_mut(&mut self, number: u16) -> &mut Channel {
        self.channels[usize::from(number)].as_mut().expect("dispatched to an open channel")
    }

    /// Releases everything that the connection holds: consumers end, what is not settled is
    /// requeued in its place, exclusive queues go. Called once, whichever way it ended, also
    /// after a panic.
    pub fn release(&mut self, worker: &mut Worker) {
        self.release_holdings(worker);
        if std::mem::take(&mut self.admitted) {
            self.broker.release_connection();
        }
        self.outbox.close();
    }

    fn release_holdings(&mut self, worker: &mut Worker) {
        self.end_all_channels(worker);
        self.presence = None;
        for queue in self.owned.take() {
            // Without conditions, deleting can only find that it is gone already.
            let _ = self.vhost().delete_queue(&queue, DeleteIf::default(), &mut worker.drive);
        }
    }

    /// Asks the client to go, because the broker is stopping.
    pub fn request_close(outbox: &Outbox, wakes: &mut Vec<Waker>) {
        closing::force_close(outbox, wakes);
    }

    /// Tells the client why it is not read, or that it is read again.
    pub fn notify_blocked(&self, reason: Option<&str>, worker: &mut Worker) {
        if self.knows_blocked {
            closing::notify_blocked(&self.outbox, reason, &mut worker.drive.wakes);
        }
    }
}
