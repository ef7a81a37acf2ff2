//! The producers and consumers of one run: connected together, started together, ended in time.
//!
//! Owns the threads and their sockets. It ends in bounded time even when the broker has died or
//! hangs: a worker that does not stop by itself has its socket shut down.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::board::{Board, Totals};
use super::consumer::{Consumer, Seen};
use super::link::{Link, PerfError};
use super::measure::Sample;
use super::plan::Plan;
use super::producer::Producer;
use super::progress::{LOOK, Progress};
use super::report::Report;
use super::schedule::{Pace, Sent};
use super::socket::Socket;

/// How long workers may take to stop by themselves, and again after their sockets are shut.
const STOP_TIMEOUT: Duration = Duration::from_secs(6);

/// The workers of one run.
pub(crate) struct Crew {
    board: Arc<Board>,
    producers: Vec<Producer>,
    consumers: Vec<Consumer>,
    sockets: Vec<Socket>,
    producing: Vec<JoinHandle<Option<Sent>>>,
    consuming: Vec<JoinHandle<Seen>>,
    progress: Progress,
}

/// What the workers of a run know in the end.
pub(crate) struct Outcome {
    /// What consumers saw.
    pub(crate) seen: Vec<Seen>,
    /// What producers of a timed run sent.
    pub(crate) sent: Vec<Sent>,
    /// How many messages each producer published.
    pub(crate) published: Vec<u64>,
    /// How many messages the broker refused.
    pub(crate) refused: u64,
}

impl Crew {
    /// Connects `consumers` consumers and a producer for each pace. Consumers begin to receive at
    /// once, but nobody counts before [`Crew::start`].
    pub(crate) fn connect(
        plan: &Plan,
        paces: Vec<Pace>,
        consumers: usize,
    ) -> Result<Self, PerfError> {
        let mut crew = Self {
            board: Arc::new(Board::new(paces.len() + consumers)),
            producers: Vec::new(),
            consumers: Vec::new(),
            sockets: Vec::new(),
            producing: Vec::new(),
            consuming: Vec::new(),
            progress: Progress::new(plan.broker, None),
        };
        let workers = paces.len();
        for (number, pace) in paces.into_iter().enumerate() {
            let link = Link::open(&plan.endpoint)?;
            let shape = plan.shape_of(number, link.frame_max());
            let producer = Producer::new(link, number, number as u32, pace, &shape)?;
            crew.sockets.push(producer.socket());
            crew.producers.push(producer);
        }
        for number in 0..consumers {
            let (link, queue) = (Link::open(&plan.endpoint)?, plan.queue_of(number));
            let worker = workers + number;
            let consumer = Consumer::new(link, worker, number, plan.taking, queue)?;
            crew.sockets.push(consumer.socket());
            crew.consumers.push(consumer);
        }
        Ok(crew)
    }

    /// Starts the threads, consumers first.
    pub(crate) fn start(&mut self) -> Result<(), PerfError> {
        self.board.began();
        for consumer in self.consumers.drain(..) {
            let board = Arc::clone(&self.board);
            let name = consumer.name().to_owned();
            self.consuming.push(spawn(name, move || {
                let seen = consumer.run(&board);
                board.note_end();
                seen
            })?);
        }
        for producer in self.producers.drain(..) {
            let board = Arc::clone(&self.board);
            let name = producer.name().to_owned();
            self.producing.push(spawn(name, move || {
                let sent = producer.run(&board);
                board.note_end();
                sent
            })?);
        }
        Ok(())
    }

    /// The sums of all counters.
    pub(crate) fn totals(&self) -> Totals {
        self.board.totals()
    }

    /// What each producer has published until now.
    pub(crate) fn published(&self) -> Vec<u64> {
        published(&self.board, self.producing.len())
    }

    /// Whether every producer has ended.
    pub(crate) fn are_producers_done(&self) -> bool {
        self.producing.iter().all(JoinHandle::is_finished)
    }

    /// Ends the producers; consumers go on.
    pub(crate) fn stop_publishing(&self) {
        self.board.stop_publishing();
    }

    /// Begins the measurement.
    pub(crate) fn begin(&self) -> Sample {
        self.progress.begin(&self.board)
    }

    /// Ends the measurement; `phase` tells the parts of one run apart and is empty otherwise.
    pub(crate) fn end(&self, phase: &str, report: &mut Report) -> Sample {
        self.progress.end(&self.board, phase, report)
    }

    /// Waits, with a line of progress each second, until `is_done`, a failure or the timeout;
    /// returns whether it was done.
    pub(crate) fn wait(&self, timeout: Duration, is_done: impl Fn(&Self) -> bool) -> bool {
        self.progress.wait(&self.board, timeout, || is_done(self))
    }

    /// Ends everything; returns what the workers saw, or the failure that ended the run.
    pub(crate) fn finish(mut self) -> Result<Outcome, PerfError> {
        self.board.stop();
        self.await_stop();
        for socket in self.sockets.drain(..) {
            socket.shut_down();
        }
        self.await_stop();
        if let Some((worker, error)) = self.board.take_failure() {
            eprintln!("{worker} failed");
            return Err(error);
        }
        // Counts grow until the threads have ended.
        let producers = self.producing.len();
        let sent = joined(self.producing)?.into_iter().flatten().collect();
        let seen = joined(self.consuming)?;
        let published = published(&self.board, producers);
        Ok(Outcome { seen, sent, published, refused: self.board.totals().refused })
    }

    fn await_stop(&self) {
        let deadline = Instant::now() + STOP_TIMEOUT;
        let is_done =
            || self.are_producers_done() && self.consuming.iter().all(JoinHandle::is_finished);
        while !is_done() && Instant::now() < deadline {
            thread::sleep(LOOK);
        }
    }
}

fn published(board: &Board, producers: usize) -> Vec<u64> {
    (0..producers).map(|worker| board.tally(worker).published.load(Relaxed)).collect()
}

/// What the threads return that have ended.
fn joined<T>(threads: Vec<JoinHandle<T>>) -> Result<Vec<T>, PerfError> {
    let crashed = |_| PerfError::Refused("a thread of the generator crashed".into());
    let ended = threads.into_iter().filter(JoinHandle::is_finished);
    ended.map(|thread| thread.join().map_err(crashed)).collect()
}

fn spawn<T: Send + 'static>(
    name: String,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, io::Error> {
    thread::Builder::new().name(name).spawn(work)
}
