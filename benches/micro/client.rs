//! What a message takes on its whole way through a broker but for sockets: parsed, routed, put into
//! a queue or handed on, written to the consumer, settled.
//!
//! Owns connections that are fed by hand. Where routes are remembered, they are met with so few
//! routing keys that all are, or with so many that none is when its turn comes.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput};
use leveret::bench_api::write_out;
use leveret::broker::{Broker, Outgoing};
use leveret::clock::Millis;
use leveret::codec::encode::{PROTOCOL_HEADER, put_ack};
use leveret::codec::method::{
    AMQPClass, FieldTable, basic, channel, confirm, connection, exchange, put_method, queue,
};
use leveret::config::Config;
use leveret::connection::{Connection, Next, Worker};

use crate::messages::{FRAME_MAX, publishes};
use crate::routing::{BINDINGS, MATCHED, MATCHING, other_key};
use crate::time_part;

/// Messages of a batch, as a read would bring them.
const BATCH: usize = 1000;
/// Routing keys in turn: more than a connection remembers routes for.
const KEYS_COLD: usize = 10_000;

/// A client without a socket, with channel 1 open.
struct Client {
    connection: Connection,
    worker: Worker,
    out: Outgoing,
}

impl Client {
    fn new(broker: &Arc<Broker>) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 5672));
        let connection = Connection::new(broker.clone(), address, address, Millis(0));
        let mut client = Self { connection, worker: Worker::default(), out: Outgoing::default() };
        client.feed(&PROTOCOL_HEADER);
        let start_ok = connection::StartOk {
            client_properties: FieldTable::default(),
            mechanism: "PLAIN".into(),
            response: "\0guest\0guest".into(),
            locale: "en_US".into(),
        };
        let tune_ok = connection::TuneOk { channel_max: 10, frame_max: FRAME_MAX, heartbeat: 0 };
        let open = connection::Open { virtual_host: "/".into() };
        use connection::AMQPMethod as Method;
        for method in [Method::StartOk(start_ok), Method::TuneOk(tune_ok), Method::Open(open)] {
            client.send(0, AMQPClass::Connection(method));
        }
        client.send(1, AMQPClass::Channel(channel::AMQPMethod::Open(channel::Open {})));
        assert!(client.connection.is_open());
        client
    }

    fn send(&mut self, channel: u16, method: AMQPClass) {
        let mut bytes = Vec::new();
        put_method(&mut bytes, channel, &method);
        self.feed(&bytes);
        self.take();
    }

    /// As a reader does with what it has read.
    fn feed(&mut self, bytes: &[u8]) {
        let mut fed = 0;
        loop {
            let progress = self.connection.feed(&bytes[fed..], &mut self.worker);
            fed += progress.consumed;
            self.worker.drive.finish();
            match progress.next {
                Next::Read => break,
                Next::Again => {}
                Next::AwaitLogin => {
                    let verdict = self.connection.login().expect("it waits").check();
                    self.connection.finish_login(&verdict, &mut self.worker);
                }
                next => panic!("nothing is to be waited for: {next:?}"),
            }
        }
        assert_eq!(fed, bytes.len(), "whole frames");
    }

    /// Takes what the broker has sent; answers how many bytes.
    fn take(&mut self) -> usize {
        write_out(&self.connection, &mut self.worker, &mut self.out)
    }

    fn declare_queue(&mut self) {
        let declare = queue::Declare { queue: "q".into(), ..queue::Declare::default() };
        self.send(1, AMQPClass::Queue(queue::AMQPMethod::Declare(declare)));
    }

    fn declare_exchange(&mut self, kind: &str) {
        let (exchange, kind) = ("e".into(), kind.into());
        let declare = exchange::Declare { exchange, kind, ..exchange::Declare::default() };
        self.send(1, AMQPClass::Exchange(exchange::AMQPMethod::Declare(declare)));
    }

    fn bind(&mut self, key: &str) {
        let (queue, exchange) = ("q".into(), "e".into());
        let bind =
            queue::Bind { queue, exchange, routing_key: key.into(), ..queue::Bind::default() };
        self.send(1, AMQPClass::Queue(queue::AMQPMethod::Bind(bind)));
    }

    fn consume(&mut self, no_ack: bool) {
        let (queue, consumer_tag) = ("q".into(), "c".into());
        let consume = basic::Consume { queue, consumer_tag, no_ack, ..basic::Consume::default() };
        self.send(1, AMQPClass::Basic(basic::AMQPMethod::Consume(consume)));
    }

    fn select_confirms(&mut self) {
        let select = confirm::Select { nowait: false };
        self.send(1, AMQPClass::Confirm(confirm::AMQPMethod::Select(select)));
    }
}

/// A publisher and a consumer of one queue.
struct Pair {
    publisher: Client,
    consumer: Client,
    /// Batches to publish, in turn.
    batches: Vec<Vec<u8>>,
    next: usize,
    /// The tag of the last delivery, where deliveries are acknowledged.
    acknowledged: Option<u64>,
}

impl Pair {
    fn new(
        batches: Vec<Vec<u8>>,
        is_acknowledged: bool,
        prepare: impl FnOnce(&mut Client),
    ) -> Self {
        let broker = Arc::new(Broker::new(Arc::new(Config::default()), 1 << 30));
        let (mut publisher, mut consumer) = (Client::new(&broker), Client::new(&broker));
        consumer.declare_queue();
        prepare(&mut consumer);
        consumer.consume(!is_acknowledged);
        if is_acknowledged {
            publisher.select_confirms();
        }
        let acknowledged = is_acknowledged.then_some(0);
        Self { publisher, consumer, batches, next: 0, acknowledged }
    }

    /// Publishes a batch, and takes what comes of it.
    fn go_around(&mut self) {
        let batch = &self.batches[self.next];
        self.next = (self.next + 1) % self.batches.len();
        self.publisher.feed(batch);
        let bytes = self.consumer.take();
        assert!(bytes > BATCH * 16, "{bytes} bytes for a batch: all of it is delivered");
        if let Some(tag) = &mut self.acknowledged {
            *tag += BATCH as u64;
            assert!(self.publisher.take() > 0, "confirms");
            let mut ack = Vec::new();
            put_ack(&mut ack, 1, *tag, true);
            self.consumer.feed(&ack);
        }
    }
}

fn bench(criterion: &mut Criterion, group: &str, name: String, make: impl Fn() -> Pair) {
    let mut group = criterion.benchmark_group(group);
    group.throughput(Throughput::Elements(BATCH as u64));
    // Made when it is needed: not when only others are run.
    let mut pair = None;
    group.bench_function(BenchmarkId::from_parameter(name), |b| {
        let pair = pair.get_or_insert_with(&make);
        time_part(b, pair, |_| {}, Pair::go_around, |_| {});
    });
    group.finish();
}

/// Batches that go through as many keys, in turn.
fn batches(exchange: &str, keys: &[String], size: usize) -> Vec<Vec<u8>> {
    let parts = keys.chunks(BATCH);
    parts.map(|keys| publishes(exchange, keys, size, BATCH)).collect()
}

pub fn run(criterion: &mut Criterion) {
    for size in [16, 1024, 16 * 1024] {
        for (is_acknowledged, how) in [(false, "auto-ack"), (true, "confirms and acks")] {
            bench(criterion, "broker", format!("{size} B, {how}"), || {
                Pair::new(batches("", &["q".to_owned()], size), is_acknowledged, |_| {})
            });
        }
    }
    for (count, how) in [(BATCH, "remembered"), (KEYS_COLD, "forgotten")] {
        for bindings in BINDINGS {
            let name = format!("{bindings} bindings, {how} routes");
            bench(criterion, "broker topic", name, || {
                let keys: Vec<_> = (0..count).map(|key| format!("{MATCHED}.{key}")).collect();
                Pair::new(batches("e", &keys, 16), false, |client| {
                    client.declare_exchange("topic");
                    client.bind(MATCHING);
                    (1..bindings).for_each(|number| client.bind(&other_key(number)));
                })
            });
        }
        let name = format!("{KEYS_COLD} bindings, {how} routes");
        bench(criterion, "broker direct", name, || {
            let keys: Vec<_> = (0..KEYS_COLD).map(|key| format!("key.{key}")).collect();
            Pair::new(batches("e", &keys[..count], 16), false, |client| {
                client.declare_exchange("direct");
                keys.iter().for_each(|key| client.bind(key));
            })
        });
    }
}
