//! One connection's socket: the task that reads and the task that writes.
//!
//! Owns the reading (into the thread's buffer, parsed at once), the waiting that
//! [`crate::connection::Progress`] asks for, and the writing of what the outbox holds. A panic
//! while a connection is being driven ends that connection only.

use std::future::Future;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::login::LoginLine;
use super::now;
use super::registry::{Entry, Registry};
use super::stop::Stop;
use super::worker::{self, READ_BYTES};
use crate::broker::{Broker, Outbox, Outgoing, QueueCell};
use crate::connection::{Connection, Liveness, LoginVerdict, Next, Worker};

/// Reads of this size (bytes) and more count for a turn. A yield after every small read would cost
/// two system calls a round trip.
const YIELD_BYTES: usize = 16 * 1024;

/// What a read into a body's place counts for: it leads to nothing but a copy.
const BODY_READ: Duration = Duration::from_micros(20);

/// After so much work other tasks get their turn.
const TURN: Duration = Duration::from_micros(200);

/// How often a paced publisher looks whether waiting pays, and how often at most.
const PACE_LOOK: Duration = Duration::from_millis(2);
const PACE_LOOKS: usize = 10;

/// How often a blocked connection looks whether its peer is still there.
const BLOCKED_LOOK: Duration = Duration::from_secs(1);

/// What is left in the outbox has this long to be written when a connection ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the peer has to close when both sides are done.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// What a connection keeps of an incomplete frame when nothing is incomplete (bytes).
const IDLE_CARRY_BYTES: usize = 512;

/// Slices in one vectored write.
const SLICES_MAX: usize = 64;

/// Serves an accepted connection.
pub(super) fn start(
    stream: TcpStream,
    peer: SocketAddr,
    broker: &Arc<Broker>,
    registry: &Arc<Registry>,
    logins: &Arc<LoginLine>,
) {
    // Small replies must not wait for more to come.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, "cannot switch Nagle's algorithm off: {error}");
    }
    let Ok(local) = stream.local_addr() else { return };
    let canonical = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
    let connection = Connection::new(broker.clone(), canonical(peer), canonical(local), now());
    let (outbox, liveness) = (connection.outbox().clone(), connection.liveness().clone());
    let stop = Arc::new(Stop::default());
    let name: Arc<str> = connection.name().into();
    tracing::debug!(connection = &*name, "connection accepted");
    let entry =
        Entry { name, outbox: outbox.clone(), liveness: liveness.clone(), stop: stop.clone() };
    registry.add(outbox.id(), entry);
    let (read, write) = stream.into_split();
    let (registry, logins) = (registry.clone(), logins.clone());
    let reader = Reader { connection, read, carry: Vec::new(), stop, registry, logins };
    tokio::spawn(reader.run(write));
}

/// A connection with its reading half; releases what the connection holds when it is dropped, also
/// by a panic.
struct Reader {
    connection: Connection,
    read: OwnedReadHalf,
    /// The beginning of a frame that is not complete.
    carry: Vec<u8>,
    stop: Arc<Stop>,
    registry: Arc<Registry>,
    logins: Arc<LoginLine>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let name = self.connection.name();
        if std::thread::panicking() {
            tracing::error!(connection = name, "connection crashed: this is a bug in the broker");
        }
        // A second panic while the first unwinds would end the process.
        let release = std::panic::AssertUnwindSafe(|| self.release());
        if std::panic::catch_unwind(release).is_err() {
            tracing::error!(connection = name, "connection left something behind in its crash");
            self.connection.outbox().abort();
        }
        self.registry.remove(self.connection.outbox().id());
    }
}

/// What a read led to.
enum Step {
    /// The peer closed, or the socket failed.
    Ended(Option<std::io::Error>),
    /// Housekeeping or shutdown wants the connection to end.
    Stopped,
    Fed {
        bytes: usize,
        /// How long that took.
        took: Duration,
        fed: Fed,
    },
}

/// What feeding bytes to the connection led to.
struct Fed {
    next: Next,
    /// A queue whose consumers this publisher outruns.
    outrun: Option<Arc<QueueCell>>,
}

impl Reader {
    async fn run(mut self, write: OwnedWriteHalf) {
        // The writer is begun from here: two tasks begun at once would have the runtime wake a
        // second thread for one of them.
        let mut writer = {
            let (outbox, liveness) = (self.connection.outbox(), self.connection.liveness());
            let writing = write_all(write, outbox.clone(), liveness.clone(), self.stop.clone());
            tokio::spawn(writing)
        };
        let linger_ms = self.read_to_end().await;
        // This ends the outbox, too, and with it the writer once all is written.
        self.release();
        let Ok(written) = timeout(FLUSH_TIMEOUT, &mut writer).await else {
            writer.abort();
            return;
        };
        if let (Some(linger_ms), Ok(Some(write))) = (linger_ms, written) {
            self.discard(Duration::from_millis(linger_ms)).await;
            drop(write);
            // Closing with unread bytes would reset the connection, and the peer might never
            // see what was written last.
            self.discard(END_TIMEOUT).await;
        }
    }

    /// Reads until the connection is over. Answers how long to go on listening without a word, or
    /// `None` when the peer is gone.
    async fn read_to_end(&mut self) -> Option<u64> {
        let mut busy = Duration::ZERO;
        loop {
            match std::future::poll_fn(|context| self.poll_step(context)).await {
                Step::Stopped => return None,
                Step::Ended(error) => {
                    self.log_end(error);
                    return None;
                }
                Step::Fed { bytes, took, mut fed } => {
                    let mut had_turn = false;
                    loop {
                        if let Some(queue) = fed.outrun.take() {
                            pace(&queue).await;
                            had_turn = true;
                        }
                        match fed.next {
                            Next::Close { linger_ms } => return Some(linger_ms),
                            Next::Read => break,
                            Next::Again => tokio::task::yield_now().await,
                            Next::AwaitDrain => self.until_drained().await,
                            Next::AwaitRoom => self.until_room().await,
                            Next::AwaitAlarms => self.until_unblocked().await,
                            Next::AwaitLogin => self.until_logged_in().await,
                            Next::AwaitStore => self.until_stored().await,
                        }
                        if self.stop.is_asked() {
                            return None;
                        }
                        fed = self.feed_carried();
                    }
                    if had_turn {
                        busy = Duration::ZERO;
                    } else if bytes >= YIELD_BYTES {
                        busy += took;
                        if busy >= TURN {
                            busy = Duration::ZERO;
                            tokio::task::yield_now().await;
                        }
                    }
                }
            }
        }
    }

    fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<Step> {
        if self.stop.poll_asked(context) {
            return Poll::Ready(Step::Stopped);
        }
        if self.stop.take_nudge() {
            let fed = self.feed_carried();
            return Poll::Ready(Step::Fed { bytes: 0, took: Duration::ZERO, fed });
        }
        if let Some(read) = self.poll_body(context) {
            return read;
        }
        worker::with(|lent| {
            let carried = self.carry.len();
            let size = carried + self.connection.read_max(READ_BYTES);
            if lent.buffer.len() < size {
                lent.buffer.resize(size, 0);
            }
            let buffer = &mut lent.buffer[..size];
            let mut read = ReadBuf::new(&mut buffer[carried..]);
            match Pin::new(&mut self.read).poll_read(context, &mut read) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Step::Ended(Some(error))),
                Poll::Ready(Ok(())) => {}
            }
            let bytes = read.filled().len();
            if bytes == 0 {
                return Poll::Ready(Step::Ended(None));
            }
            let begin = Instant::now();
            buffer[..carried].copy_from_slice(&self.carry);
            self.connection.liveness().received(now());
            let filled = &buffer[..carried + bytes];
            let progress = self.connection.feed(filled, &mut lent.worker);
            self.keep(&filled[progress.consumed..]);
            let outrun = lent.worker.drive.take_outrun();
            let took = begin.elapsed();
            Poll::Ready(Step::Fed { bytes, took, fed: Fed { next: progress.next, outrun } })
        })
    }

    /// Reads what belongs to a large body into its place, if that is what comes next.
    fn poll_body(&mut self, context: &mut Context<'_>) -> Option<Poll<Step>> {
        let (body, bytes_max) = self.connection.body_room()?;
        let mut room = body.limit(bytes_max);
        let read = std::pin::pin!(self.read.read_buf(&mut room));
        Some(match read.poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Step::Ended(Some(error))),
            Poll::Ready(Ok(0)) => Poll::Ready(Step::Ended(None)),
            Poll::Ready(Ok(bytes)) => {
                self.connection.liveness().received(now());
                self.connection.body_came(bytes);
                let fed = Fed { next: Next::Read, outrun: None };
                Poll::Ready(Step::Fed { bytes, took: BODY_READ, fed })
            }
        })
    }

    fn keep(&mut self, rest: &[u8]) {
        self.carry.clear();
        if rest.is_empty() && self.carry.capacity() > IDLE_CARRY_BYTES {
            self.carry = Vec::new();
        }
        self.carry.extend_from_slice(rest);
    }

    /// Goes on with what was read before a wait.
    fn feed_carried(&mut self) -> Fed {
        worker::with(|lent| {
            let carried = std::mem::take(&mut self.carry);
            let progress = self.connection.feed(&carried, &mut lent.worker);
            self.keep(&carried[progress.consumed..]);
            Fed { next: progress.next, outrun: lent.worker.drive.take_outrun() }
        })
    }

    /// Waits until the client has read its replies.
    async fn until_drained(&self) {
        let (outbox, stop) = (self.connection.outbox().clone(), self.stop.clone());
        // What the client sends meanwhile, heartbeats too, is not seen.
        self.connection.liveness().set_reading(false, now());
        std::future::poll_fn(|context| {
            if stop.poll_asked(context) || stop.take_nudge() {
                return Poll::Ready(());
            }
            outbox.poll_drained(context)
        })
        .await;
        self.connection.liveness().set_reading(true, now());
    }

    /// Waits until the store has caught up, or the connection is to end.
    async fn until_room(&self) {
        self.wait_until(|context| self.connection.poll_room(context)).await;
    }

    /// Waits until the connection's reply may be sent, or it has to look at something else.
    async fn until_stored(&self) {
        let (stored, mut waited) = oneshot::channel::<()>();
        self.connection.when_stored(move || {
            // Nobody listens any more when the connection has ended first.
            let _ = stored.send(());
        });
        self.wait_until(|context| Pin::new(&mut waited).poll(context).map(drop)).await;
    }

    /// Waits until no alarm is set, or the client is gone.
    async fn until_unblocked(&self) {
        let alarms = self.connection.alarms().clone();
        let Some(reason) = alarms.reason() else { return };
        worker::with(|lent| self.connection.notify_blocked(Some(reason), &mut lent.worker));
        self.wait_until(|context| alarms.poll_clear(context)).await;
        worker::with(|lent| self.connection.notify_blocked(None, &mut lent.worker));
    }

    /// Waits, and does not read meanwhile. Ends before its time when the client is gone, or when
    /// something has happened to the connection that it has to look at.
    async fn wait_until(&self, mut is_ready: impl FnMut(&mut Context<'_>) -> Poll<()>) {
        self.connection.liveness().set_reading(false, now());
        loop {
            let ready = std::future::poll_fn(|context| {
                if self.stop.poll_asked(context) { Poll::Ready(()) } else { is_ready(context) }
            });
            if timeout(BLOCKED_LOOK, ready).await.is_ok() {
                break;
            }
            if self.is_peer_gone().await {
                self.stop.ask();
            }
            if self.connection.is_expelled() || self.connection.outbox().has_closed_channels() {
                break;
            }
        }
        self.connection.liveness().set_reading(true, now());
    }

    /// Waits for the login's verdict, or until the connection is to end.
    async fn until_logged_in(&mut self) {
        let stop = self.stop.clone();
        let stopped = std::future::poll_fn(|context| {
            if stop.poll_asked(context) { Poll::Ready(()) } else { Poll::Pending }
        });
        let verdict = tokio::select! {
            verdict = self.check_login() => verdict,
            () = stopped => None,
        };
        match verdict {
            Some(verdict) => worker::with(|lent| {
                self.connection.finish_login(&verdict, &mut lent.worker);
            }),
            None => stop.ask(),
        }
    }

    /// Answers nothing when the client has not waited.
    async fn check_login(&self) -> Option<LoginVerdict> {
        let login = self.connection.login()?;
        let turn = self.logins.turn().await;
        if self.is_peer_gone().await {
            return None;
        }
        turn.run(move || login.check()).await
    }

    /// Whether the peer has closed its side, also while what it sent before is not read.
    async fn is_peer_gone(&self) -> bool {
        // What was sent makes the socket readable at once; if nothing was, there is no end either.
        let ready = timeout(Duration::ZERO, self.read.ready(Interest::READABLE)).await;
        ready.is_ok_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed()))
    }

    /// Reads and forgets, until the peer closes.
    async fn discard(&mut self, at_most: Duration) {
        let mut buffer = vec![0; 4096];
        let _ = timeout(at_most, async {
            while self.read.read(&mut buffer).await.is_ok_and(|bytes| bytes > 0) {}
        })
        .await;
    }

    /// Releases what the connection holds; more than once does no harm.
    fn release(&mut self) {
        // Not the thread's memory: that is lent out when a panic leads here.
        let mut worker = Worker::default();
        worker.drive.now = now();
        self.connection.release(&mut worker);
        worker.drive.finish();
    }

    fn log_end(&self, error: Option<std::io::Error>) {
        let name = self.connection.name();
        match error {
            _ if !self.connection.is_open() => {
                tracing::debug!(connection = name, "connection ended by the peer");
            }
            None => tracing::warn!(connection = name, "client closed the socket unexpectedly"),
            Some(error) => tracing::warn!(connection = name, "connection lost: {error}"),
        }
    }
}

/// Waits for the consumers of a queue that its publisher outruns, as long as that pays.
async fn pace(queue: &QueueCell) {
    // The first look only sets the mark.
    let mut delivered = 0;
    queue.is_catching_up(&mut delivered);
    for _ in 0..PACE_LOOKS {
        let caught_up = std::future::poll_fn(|context| queue.poll_caught_up(context));
        if timeout(PACE_LOOK, caught_up).await.is_ok() || !queue.is_catching_up(&mut delivered) {
            return;
        }
    }
}

/// Writes what comes into the outbox until that ends. Answers the socket, to be closed; nothing
/// when it has failed.
async fn write_all(
    mut write: OwnedWriteHalf,
    outbox: Arc<Outbox>,
    liveness: Arc<Liveness>,
    stop: Arc<Stop>,
) -> Option<OwnedWriteHalf> {
    let mut out = Outgoing::default();
    let mut parked = Vec::new();
    while std::future::poll_fn(|context| outbox.poll_take(context, &mut out)).await {
        if let Err(error) = write_outgoing(&mut write, &out).await {
            tracing::debug!("cannot write: {error}");
            outbox.abort();
            stop.ask();
            return None;
        }
        liveness.sent(now());
        outbox.written(std::mem::take(&mut out), &mut parked);
        if !parked.is_empty() {
            worker::with(|lent| {
                for (queue, consumer) in parked.drain(..) {
                    queue.grant(consumer, &mut lent.worker.drive);
                }
            });
        }
    }
    Some(write)
}

async fn write_outgoing(write: &mut OwnedWriteHalf, out: &Outgoing) -> std::io::Result<()> {
    if out.large.is_empty() {
        return write.write_all(&out.buffer).await;
    }
    let mut from = 0;
    let mut slices = Vec::with_capacity(SLICES_MAX);
    for (at, body) in &out.large {
        slices.push(IoSlice::new(&out.buffer[from..*at]));
        slices.push(IoSlice::new(body));
        from = *at;
        if slices.len() == SLICES_MAX {
            write_slices(write, &mut slices).await?;
            slices.clear();
        }
    }
    slices.push(IoSlice::new(&out.buffer[from..]));
    write_slices(write, &mut slices).await
}

async fn write_slices(
    write: &mut OwnedWriteHalf,
    slices: &mut [IoSlice<'_>],
) -> std::io::Result<()> {
    let mut rest = slices;
    // Slices that are empty, at the beginning too, do not count.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let written = write.write_vectored(rest).await?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}
