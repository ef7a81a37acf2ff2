//! The producers and consumers of one run: connected together, started together, ended in time.
//!
//! Owns the threads and their sockets. It ends in bounded time even when the broker has died or
//! hangs: a worker that does not stop by itself has its socket shut down.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
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

/// How long workers may take to stop by themselves, and again after their sockets are shut.
const STOP_TIMEOUT: Duration = Duration::from_secs(6);

/// The workers of one run.
pub(crate) struct Crew {
    board: Arc<Board>,
    producers: Vec<Producer>,
    consumers: Vec<Consumer>,
    sockets: Vec<TcpStream>,
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
            let link = Link::open(&plan.uri)?;
            let shape = plan.shape_of(number, link.frame_max());
            let producer = Producer::new(link, number, number as u32, pace, &shape)?;
            crew.sockets.push(producer.socket()?);
            crew.producers.push(producer);
        }
        for number in 0..consumers {
            let (link, queue) = (Link::open(&plan.uri)?, plan.queue_of(number));
            let worker = workers + number;
            let consumer = Consumer::new(link, worker, number, plan.taking, queue)?;
            crew.sockets.push(consumer.socket()?);
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

    /// What each of the first `producers` workers published.
    pub(crate) fn published(&self, producers: usize) -> Vec<u64> {
        use std::sync::atomic::Ordering::Relaxed;
        (0..producers).map(|worker| self.board.tally(worker).published.load(Relaxed)).collect()
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
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.await_stop();
        if let Some((worker, error)) = self.board.take_failure() {
            eprintln!("{worker} failed");
            return Err(error);
        }
        let sent = joined(self.producing)?.into_iter().flatten().collect();
        Ok(Outcome { seen: joined(self.consuming)?, sent })
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
