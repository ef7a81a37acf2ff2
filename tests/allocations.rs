//! What a small message costs in allocations on its way from a publisher to a consumer: nothing.
//!
//! Owns an allocator that counts, a broker in this process, and clients that allocate nothing while
//! they are measured, so that all that is counted is the broker's, its sockets and timers included.
//! What is allocated once for a read or a write is shared by all messages in it and is let through.
//! It must not say anything about time.

mod support;

use std::alloc::System;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use leveret::config::{Config, Listeners};
use leveret::net::Server;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use support::client::publish_bytes;
use support::{Broker, Client};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The counter is the process's, so loads take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Messages that are written at once; what comes of them is read before the next are written.
const ROUND: usize = 4000;
const WARM_UP_ROUNDS: usize = 10;
const ROUNDS: usize = 25;
/// Deliveries to one allocation, at least. A queue that was empty allocates a dozen times for the
/// messages of a round.
const DELIVERIES_PER_ALLOCATION: usize = 50;

/// A `basic.ack` of one message, and where its delivery tag stands.
const ACK: [u8; 21] = *b"\x01\0\x01\0\0\0\x0d\0\x3c\0\x50\0\0\0\0\0\0\0\0\0\xce";
const TAG: Range<usize> = 11..19;
/// The byte that says whether all before it are meant, too.
const MULTIPLE: usize = 19;

/// What goes around.
struct Load<'a> {
    /// Methods that prepare exchanges and queues.
    topology: &'a [&'a str],
    /// The queues that are consumed from, each of which gets every message.
    queues: &'a [&'a str],
    /// Exchange and routing key of the messages in turn, all of one length.
    addresses: &'a [&'a str],
    properties: &'a str,
    acks: Acks,
}

/// What is confirmed and acknowledged.
#[derive(Clone, Copy, PartialEq)]
enum Acks {
    /// Nothing.
    None,
    /// All publishes by the broker; each delivery by the consumer.
    Each,
    /// All publishes by the broker; the deliveries of a round by one `basic.ack`.
    Together,
}

impl Load<'_> {
    fn deliveries(&self, rounds: usize) -> usize {
        rounds * ROUND * self.queues.len()
    }

    /// What the consumer sends after the first round; before that it acknowledged one message.
    fn acks_of_a_round(&self) -> Vec<u8> {
        let copies = self.queues.len();
        let (first, last) = (copies + 1, copies + self.deliveries(1));
        let (tags, multiple) = match self.acks {
            Acks::None => return Vec::new(),
            Acks::Each => (first..=last, 0),
            Acks::Together => (last..=last, 1),
        };
        let ack = |tag: usize| {
            let mut ack = ACK;
            ack[TAG].copy_from_slice(&(tag as u64).to_be_bytes());
            ack[MULTIPLE] = multiple;
            ack
        };
        tags.flat_map(ack).collect()
    }
}

/// Two clients, and what they send and receive in a round.
struct Traffic {
    publisher: Client,
    consumer: Client,
    publishes: Vec<u8>,
    deliveries: Vec<u8>,
    acks: Vec<u8>,
    deliveries_of_a_round: u64,
    has_confirms: bool,
    published: u64,
}

impl Traffic {
    /// Sends one message around, which tells how long a delivery is.
    fn begin(broker: &Broker, load: &Load<'_>) -> Traffic {
        let (mut publisher, mut consumer) = (Client::open(broker), Client::open(broker));
        for method in load.topology {
            consumer.call(1, method);
        }
        let has_confirms = load.acks != Acks::None;
        let no_ack = if has_confirms { "" } else { "no_ack" };
        for queue in load.queues {
            consumer.call(1, &format!("basic.consume queue={queue} consumer_tag={queue} {no_ack}"));
        }
        if has_confirms {
            publisher.call(1, "confirm.select");
        }
        let frame_max = publisher.frame_max;
        let publish = |address| publish_bytes(frame_max, 1, address, load.properties, &[b'.'; 16]);
        publisher.send_bytes(&publish(load.addresses[0]));
        assert!(!has_confirms || publisher.confirmed_up_to(1, 1));
        let frames = 3 * load.queues.len();
        let bytes: usize = (0..frames).map(|_| consumer.next_frame().payload.len() + 8).sum();
        if has_confirms {
            consumer.send(1, "basic.ack delivery_tag=0 multiple");
        }
        let in_turn = load.addresses.iter().cycle().take(ROUND).copied();
        Traffic {
            publisher,
            consumer,
            publishes: in_turn.flat_map(publish).collect(),
            deliveries: vec![0; ROUND * bytes],
            acks: load.acks_of_a_round(),
            deliveries_of_a_round: load.deliveries(1) as u64,
            has_confirms,
            published: 1,
        }
    }

    /// Publishes a round and takes all that comes of it, without an allocation of its own.
    fn go_around(&mut self) {
        self.publisher.stream().write_all(&self.publishes).expect("the broker reads");
        self.published += ROUND as u64;
        if self.has_confirms {
            self.await_confirms();
        }
        self.consumer.stream().read_exact(&mut self.deliveries).expect("the deliveries");
        assert_eq!(self.deliveries.last(), Some(&0xCE), "as long as the first ones");
        self.consumer.stream().write_all(&self.acks).expect("the broker reads");
        for ack in self.acks.chunks_exact_mut(ACK.len()) {
            let tag = u64::from_be_bytes(ack[TAG].try_into().expect("eight bytes"));
            ack[TAG].copy_from_slice(&(tag + self.deliveries_of_a_round).to_be_bytes());
        }
    }

    fn await_confirms(&mut self) {
        let (mut confirm, mut confirmed) = (ACK, 0);
        while confirmed < self.published {
            self.publisher.stream().read_exact(&mut confirm).expect("a confirm");
            assert_eq!(confirm[..TAG.start], ACK[..TAG.start], "a basic.ack");
            confirmed = u64::from_be_bytes(confirm[TAG].try_into().expect("eight bytes"));
        }
    }
}

/// Fails when a load allocates for each message.
fn check(load: &Load<'_>) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    let listeners = Listeners { amqp: vec![SocketAddr::from(([127, 0, 0, 1], 0))] };
    let config = Config { listeners, ..Config::default() };
    let began = Region::new(ALLOCATOR);
    let server = runtime.block_on(Server::bind(Arc::new(config))).unwrap();
    assert!(began.change().allocations > 0, "the counter counts");
    let broker = Broker::at(server.addresses()[0].to_string());
    runtime.spawn(server.run(std::future::pending()));

    let mut traffic = Traffic::begin(&broker, load);
    (0..WARM_UP_ROUNDS).for_each(|_| traffic.go_around());
    let warm = Region::new(ALLOCATOR);
    (0..ROUNDS).for_each(|_| traffic.go_around());
    let change = warm.change();
    let (count, deliveries) = (change.allocations + change.reallocations, load.deliveries(ROUNDS));
    println!("{count} allocations for {deliveries} deliveries");
    let is_little = count * DELIVERIES_PER_ALLOCATION <= deliveries;
    assert!(is_little, "{count} allocations for {deliveries} deliveries: {change:?}");
}

const HANDED_ON: Load<'_> = Load {
    topology: &["queue.declare queue=q"],
    queues: &["q"],
    addresses: &["routing_key=q"],
    properties: "",
    acks: Acks::None,
};

#[test]
fn handing_a_message_to_a_consumer_allocates_nothing() {
    check(&HANDED_ON);
}

#[test]
fn confirms_and_acknowledgements_allocate_nothing() {
    check(&Load { acks: Acks::Each, ..HANDED_ON });
    check(&Load { acks: Acks::Together, ..HANDED_ON });
}

#[test]
fn routes_copies_and_properties_allocate_nothing() {
    check(&Load {
        topology: &[
            "exchange.declare exchange=e type=topic",
            "queue.declare queue=qa arguments=(x-max-priority=3)",
            "queue.declare queue=qb arguments=(x-message-ttl=600000)",
            "queue.declare queue=qc arguments=(x-max-length=1000000)",
            "queue.bind queue=qa exchange=e routing_key=*.a.#",
            "queue.bind queue=qb exchange=e routing_key=#",
            "queue.bind queue=qc exchange=e routing_key=*.*.x",
        ],
        queues: &["qa", "qb", "qc"],
        addresses: &["exchange=e routing_key=k.a.x", "exchange=e routing_key=n.a.x"],
        properties: "content_type=text/plain priority=2 message_id=m headers=(h=1,text=word)",
        acks: Acks::Together,
    });
}
