//! Replies that are held back until what they tell of is durable.
//!
//! Owns those replies. While some wait, only declarations and their like are taken in, up to a
//! bound, so that many of them share a sync: replies keep their order, and nobody is told of a
//! change that a crash might undo. It must not know what has changed, nor wait: `net` does.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use super::handshake::Phase;
use super::{Connection, Worker};
use crate::broker::Ticket;
use crate::codec::hot;
use crate::codec::method::AMQPClass;
use crate::error::{AmqpError, ReplyCode};

/// So many replies are held at most.
const HELD_MAX: usize = 1024;

/// What a method has led to.
#[derive(Debug)]
enum Answer {
    Reply(AMQPClass),
    Failure(AmqpError),
}

#[derive(Debug)]
struct Waiting {
    channel: u16,
    answer: Answer,
    ticket: Ticket,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Held {
    waiting: VecDeque<Waiting>,
    /// Whether all of it has become durable, once that is known to whoever waits.
    verdict: Arc<OnceLock<bool>>,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether the frame that `rest` begins with, if it is there, may not be taken in yet.
    pub(super) fn holds_up(&self, rest: &[u8]) -> bool {
        self.waiting.back().is_some_and(|last| {
            matches!(last.answer, Answer::Failure(_))
                || self.waiting.len() >= HELD_MAX
                || !hot::begins_declaration(rest)
        })
    }
}

impl Connection {
    /// Sends a method's reply once everything that the method has handed to the store is durable.
    pub(super) fn send_durable(&mut self, channel: u16, reply: AMQPClass, worker: &mut Worker) {
        let ticket = worker.drive.take_ticket();
        if self.held.is_empty() && self.broker.is_durable(ticket) {
            return self.send(channel, reply, worker);
        }
        self.held.waiting.push_back(Waiting { channel, answer: Answer::Reply(reply), ticket });
    }

    /// Closes the channel or the connection, as [`Connection::fail`] does, behind what is held.
    pub(super) fn fail_in_order(&mut self, channel: u16, error: AmqpError, worker: &mut Worker) {
        if self.held.is_empty() {
            return self.fail(channel, &error, worker);
        }
        let ticket = Ticket::default();
        self.held.waiting.push_back(Waiting { channel, answer: Answer::Failure(error), ticket });
    }

    /// After [`super::Next::AwaitStore`]: runs `then` when there is a reason to go on, on whatever
    /// thread knows of it.
    pub fn when_stored(&self, then: impl FnOnce() + Send + 'static) {
        let Some(ticket) = self.held.waiting.iter().map(|waiting| waiting.ticket).max() else {
            return then();
        };
        let verdict = self.held.verdict.clone();
        self.broker.when_durable(ticket, move |is_durable| {
            // Each time somebody waits it is the same.
            let _ = verdict.set(is_durable);
            then();
        });
    }

    /// Sends what was held back and need not wait any more; `false` while there is more.
    pub(super) fn release_held(&mut self, worker: &mut Worker) -> bool {
        while let Some(first) = self.held.waiting.front() {
            let is_durable = self.broker.is_durable(first.ticket).then_some(true);
            let verdict = is_durable.or_else(|| self.held.verdict.get().copied());
            if verdict.is_none() && self.phase == Phase::Open {
                return false;
            }
            let Waiting { channel, answer, .. } =
                self.held.waiting.pop_front().expect("looked at above");
            let its = self.channels.get(usize::from(channel)).and_then(Option::as_ref);
            // The channel or the connection may have been closed meanwhile, by somebody else.
            let is_closing = self.phase != Phase::Open || its.is_some_and(|its| its.closing);
            let is_there = its.is_some();
            match (verdict, answer) {
                _ if is_closing => {}
                (Some(false), _) => {
                    let text = "the store has failed: whether this change lasts is not known";
                    self.fail_connection(&AmqpError::new(ReplyCode::InternalError, text), worker);
                }
                (_, Answer::Reply(reply)) if is_there => self.send(channel, reply, worker),
                (_, Answer::Reply(_)) => {}
                (_, Answer::Failure(error)) => self.fail(channel, &error, worker),
            }
        }
        self.held.verdict = Arc::default();
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::sync::mpsc;
    use std::task::{Context, Waker};

    use super::*;
    use crate::broker::{Broker, Drive, Outgoing};
    use crate::clock::Millis;
    use crate::codec::encode::PROTOCOL_HEADER;
    use crate::codec::frame;
    use crate::codec::method::{
        FieldTable, channel, confirm, connection, parse_method, put_method, queue,
    };
    use crate::config::Config;
    use crate::connection::Next;
    use crate::store::{MemoryEngine, Options, Store};

    fn broker(disk: &MemoryEngine) -> Arc<Broker> {
        let store = Store::in_memory(disk, &Options::default()).expect("a store");
        let broker =
            Broker::with_store(Config::default().into(), u64::MAX, Some(Arc::new(store)), None);
        broker.recover(&mut Drive::default()).expect("readable");
        broker.add_defaults();
        broker.begin_serving();
        let (decided, outcome) = mpsc::channel();
        broker.when_definitions_durable(move |outcome| decided.send(outcome).expect("waited for"));
        outcome.recv().expect("an outcome").expect("durable");
        Arc::new(broker)
    }

    fn declare(name: &str, durable: bool) -> AMQPClass {
        AMQPClass::Queue(queue::AMQPMethod::Declare(queue::Declare {
            queue: name.into(),
            passive: false,
            durable,
            exclusive: false,
            auto_delete: false,
            nowait: false,
            arguments: FieldTable::default(),
        }))
    }

    fn frames(methods: impl IntoIterator<Item = (u16, AMQPClass)>) -> Vec<u8> {
        let mut bytes = Vec::new();
        methods.into_iter().for_each(|(number, method)| put_method(&mut bytes, number, &method));
        bytes
    }

    /// A connection with an open channel.
    fn open(broker: &Arc<Broker>, worker: &mut Worker) -> Connection {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 5672));
        let mut opened = Connection::new(broker.clone(), address, address, Millis(0));
        let start = connection::StartOk {
            client_properties: FieldTable::default(),
            mechanism: "PLAIN".into(),
            response: "\0guest\0guest".into(),
            locale: "en_US".into(),
        };
        let tune = connection::TuneOk { channel_max: 7, frame_max: 4096, heartbeat: 0 };
        let open = connection::Open { virtual_host: "/".into() };
        let mut bytes = PROTOCOL_HEADER.to_vec();
        bytes.extend(frames([
            (0, AMQPClass::Connection(connection::AMQPMethod::StartOk(start))),
            (0, AMQPClass::Connection(connection::AMQPMethod::TuneOk(tune))),
            (0, AMQPClass::Connection(connection::AMQPMethod::Open(open))),
            (1, AMQPClass::Channel(channel::AMQPMethod::Open(channel::Open {}))),
        ]));
        let progress = opened.feed(&bytes, worker);
        assert_eq!((progress.next, progress.consumed), (Next::Read, bytes.len()));
        answers(&opened);
        opened
    }

    /// What the connection has sent since the last call: names of declared queues, or the code with
    /// which it or a channel is closed.
    fn answers(connection: &Connection) -> Vec<String> {
        let mut taken = Outgoing::default();
        let mut context = Context::from_waker(Waker::noop());
        if connection.outbox().poll_take(&mut context, &mut taken).is_pending() {
            return Vec::new();
        }
        let mut rest = &taken.buffer[..];
        let mut answers = Vec::new();
        while let Some((frame, used)) = frame::split(rest, u32::MAX).expect("whole frames") {
            rest = &rest[used..];
            answers.push(match parse_method(frame.payload) {
                Ok(AMQPClass::Queue(queue::AMQPMethod::DeclareOk(ok))) => ok.queue.to_string(),
                Ok(AMQPClass::Connection(connection::AMQPMethod::Close(close))) => {
                    close.reply_code.to_string()
                }
                Ok(AMQPClass::Channel(channel::AMQPMethod::Close(close))) => {
                    format!("channel {}", close.reply_code)
                }
                _ => continue,
            });
        }
        answers
    }

    /// Waits as `net` does.
    fn wait(connection: &Connection) {
        let (stored, waited) = mpsc::channel();
        connection.when_stored(move || stored.send(()).expect("waited for"));
        waited.recv().expect("it ends");
    }

    fn select_confirms() -> AMQPClass {
        AMQPClass::Confirm(confirm::AMQPMethod::Select(confirm::Select { nowait: true }))
    }

    fn seek(name: &str) -> AMQPClass {
        let AMQPClass::Queue(queue::AMQPMethod::Declare(declare)) = declare(name, false) else {
            unreachable!("it is made above");
        };
        let declare = queue::Declare { passive: true, ..declare };
        AMQPClass::Queue(queue::AMQPMethod::Declare(declare))
    }

    #[test]
    fn replies_wait_for_the_store_in_order() {
        let disk = MemoryEngine::default();
        let (broker, mut worker) = (broker(&disk), Worker::default());
        let mut connection = open(&broker, &mut worker);
        disk.set_full(true);
        let names = [("transient", false), ("one", true), ("behind", false), ("two", true)];
        let first = frames(names.map(|(name, durable)| (1, declare(name, durable))));
        let second = frames([(1, select_confirms()), (1, declare("last", false))]);
        let progress = connection.feed(&[&first[..], &second].concat(), &mut worker);
        assert_eq!((progress.next, progress.consumed), (Next::AwaitStore, first.len()));
        assert_eq!(answers(&connection), ["transient"]);
        // It may be looked at for other reasons.
        let progress = connection.feed(&second, &mut worker);
        assert_eq!((progress.next, progress.consumed), (Next::AwaitStore, 0));
        assert!(answers(&connection).is_empty());
        disk.set_full(false);
        wait(&connection);
        let progress = connection.feed(&second, &mut worker);
        assert_eq!((progress.next, progress.consumed), (Next::Read, second.len()));
        assert_eq!(answers(&connection), ["one", "behind", "two", "last"]);
    }

    #[test]
    fn a_part_of_a_frame_waits_for_the_store_too() {
        let disk = MemoryEngine::default();
        let (broker, mut worker) = (broker(&disk), Worker::default());
        let mut connection = open(&broker, &mut worker);
        disk.set_full(true);
        let first = frames([(1, declare("one", true))]);
        let second = frames([(1, declare("two", true))]);
        let bytes = [&first[..], &second].concat();
        let progress = connection.feed(&bytes[..bytes.len() - 1], &mut worker);
        assert_eq!((progress.next, progress.consumed), (Next::AwaitStore, first.len()));
        disk.set_full(false);
        wait(&connection);
        assert_eq!(connection.feed(&second[..20], &mut worker).next, Next::Read);
        assert_eq!(answers(&connection), ["one"]);
    }

    #[test]
    fn a_failure_comes_behind_what_is_held() {
        let disk = MemoryEngine::default();
        let (broker, mut worker) = (broker(&disk), Worker::default());
        let mut connection = open(&broker, &mut worker);
        disk.set_full(true);
        let first = frames([(1, declare("one", true)), (1, seek("nowhere"))]);
        let second = frames([(1, declare("two", true))]);
        let progress = connection.feed(&[&first[..], &second].concat(), &mut worker);
        assert_eq!((progress.next, progress.consumed), (Next::AwaitStore, first.len()));
        assert!(answers(&connection).is_empty());
        disk.set_full(false);
        wait(&connection);
        connection.feed(&second, &mut worker);
        assert_eq!(answers(&connection), ["one", "channel 404"]);
    }

    #[test]
    fn a_store_that_fails_ends_the_connection() {
        let disk = MemoryEngine::default();
        let (broker, mut worker) = (broker(&disk), Worker::default());
        let mut connection = open(&broker, &mut worker);
        disk.fail_after(0);
        let bytes = frames([(1, declare("durable", true))]);
        assert_eq!(connection.feed(&bytes, &mut worker).next, Next::AwaitStore);
        wait(&connection);
        assert_eq!(connection.feed(&[], &mut worker).next, Next::Read);
        assert_eq!(answers(&connection), ["541"]);
    }

    #[test]
    fn a_connection_that_ends_meanwhile_sends_nothing() {
        let disk = MemoryEngine::default();
        let (broker, mut worker) = (broker(&disk), Worker::default());
        let mut connection = open(&broker, &mut worker);
        disk.set_full(true);
        let bytes = frames([(1, declare("durable", true))]);
        assert_eq!(connection.feed(&bytes, &mut worker).next, Next::AwaitStore);
        broker.delete_user("guest").expect("it is there");
        // What the client says then is heard.
        let close_ok = connection::AMQPMethod::CloseOk(connection::CloseOk {});
        let close_ok = frames([(0, AMQPClass::Connection(close_ok))]);
        let progress = connection.feed(&close_ok, &mut worker);
        assert_eq!(progress.next, Next::Close { linger_ms: 0 });
        assert_eq!(answers(&connection), ["320"]);
        disk.set_full(false);
    }
}
