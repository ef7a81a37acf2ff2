//! Clients that come while others take all they can get.
//!
//! Owns the proof that whoever asks for little is served while publishers saturate a queue: new
//! connections, traffic on other queues, the consumers of that queue; and that the consumers of
//! one queue take turns. What must happen here has a bound that only starvation reaches, on
//! whatever machine: how fast it is, is measured elsewhere.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::{Broker, Client, client, unique, wait_until};

/// Who waits this long in the crowd is starved.
const STARVED: Duration = Duration::from_secs(5);

/// Publishers that send as much as the broker takes.
const PUBLISHERS: usize = 4;

/// What each of them has sent (bytes) when sockets and buffers are full, so that from then on the
/// broker decides who goes on.
const SATURATED: u64 = 4 << 20;

/// Ends the publishers, also when a test fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` while publishers saturate `queue`, which they did before and do afterwards.
fn in_a_crowd(broker: &Broker, queue: &str, work: impl FnOnce()) {
    let (ended, sent) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; PUBLISHERS]);
    let fields = format!("routing_key={queue}");
    let bytes = client::publish_bytes(131_072, 1, &fields, "", &[1; 100]).repeat(300);
    std::thread::scope(|scope| {
        let ending = Ending(&ended);
        for sent in &sent {
            let (ended, bytes) = (&ended, &bytes);
            scope.spawn(move || {
                let mut publisher = Client::open(broker);
                while !ended.load(Ordering::Relaxed) {
                    publisher.send_bytes(bytes);
                    sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                }
            });
        }
        let all_sent = |more: &[u64]| {
            let each = sent.iter().zip(more);
            each.into_iter().all(|(sent, more)| sent.load(Ordering::Relaxed) > *more)
        };
        wait_until("a crowd", || all_sent(&[SATURATED; PUBLISHERS]));
        work();
        let before = sent.each_ref().map(|sent| sent.load(Ordering::Relaxed));
        wait_until("the publishers to go on", || all_sent(&before));
        drop(ending);
    });
}

/// A queue that drops the oldest, so that its publishers are never held back.
fn declare_for_a_crowd(client: &mut Client) -> String {
    let queue = unique("crowded");
    client.declare(1, &format!("queue={queue} arguments=(x-max-length=1000)"));
    queue
}

fn check_time(begun: Instant, what: &str) {
    let took = begun.elapsed();
    assert!(took < STARVED, "{what} took {took:?}");
}

#[test]
fn new_clients_are_served_while_a_queue_is_saturated() {
    let broker = Broker::start();
    let mut owner = Client::open(&broker);
    let crowded = declare_for_a_crowd(&mut owner);
    in_a_crowd(&broker, &crowded, || {
        for _ in 0..10 {
            let begun = Instant::now();
            let mut client = Client::open(&broker);
            let q = unique("served");
            client.declare(1, &format!("queue={q} exclusive"));
            client.call(1, "confirm.select");
            client.put(1, &q, "mine");
            client.put(1, &crowded, "one more");
            assert!(client.confirmed_up_to(1, 2));
            assert_eq!(client.get(1, &format!("queue={q} no_ack")).unwrap().text(), "mine");
            client.close();
            check_time(begun, "a visit");
        }
    });
    owner.call(1, &format!("queue.delete queue={crowded}"));
}

#[test]
fn a_conversation_on_other_queues_goes_on() {
    let broker = Broker::start();
    let (mut ping, mut pong) = (Client::open(&broker), Client::open(&broker));
    let crowded = declare_for_a_crowd(&mut ping);
    let (there, back) = (unique("there"), unique("back"));
    for (client, queue) in [(&mut pong, &there), (&mut ping, &back)] {
        client.declare(1, &format!("queue={queue} exclusive"));
        client.call(1, &format!("basic.consume queue={queue} no_ack"));
    }
    in_a_crowd(&broker, &crowded, || {
        for round in 0..100 {
            let begun = Instant::now();
            ping.put(1, &there, &round.to_string());
            assert_eq!(pong.delivery(1).text(), round.to_string());
            pong.put(1, &back, "and back");
            assert_eq!(ping.delivery(1).text(), "and back");
            check_time(begun, "a round");
        }
    });
    ping.call(1, &format!("queue.delete queue={crowded}"));
}

#[test]
fn each_consumer_of_a_saturated_queue_gets_what_it_has_room_for() {
    const PREFETCH: u64 = 10;
    let broker = Broker::start();
    let mut consumers: Vec<Client> = (0..3).map(|_| Client::open(&broker)).collect();
    let crowded = declare_for_a_crowd(&mut consumers[0]);
    for consumer in &mut consumers {
        consumer.call(1, &format!("basic.qos prefetch_count={PREFETCH}"));
        consumer.call(1, &format!("basic.consume queue={crowded}"));
    }
    in_a_crowd(&broker, &crowded, || {
        for round in 1..=30 {
            for consumer in &mut consumers {
                let begun = Instant::now();
                let tags = (0..PREFETCH).map(|_| consumer.delivery(1).tag());
                assert_eq!(tags.last(), Some(round * PREFETCH));
                check_time(begun, "a consumer's share");
                let last = round * PREFETCH;
                consumer.send(1, &format!("basic.ack delivery_tag=l:{last} multiple"));
            }
        }
    });
    consumers[0].call(1, &format!("queue.delete queue={crowded}"));
}

#[test]
fn consumers_take_turns_and_one_that_is_full_holds_nobody_back() {
    let broker = Broker::start();
    let mut publisher = Client::open(&broker);
    let q = unique("turns");
    publisher.declare(1, &format!("queue={q}"));
    // Two on each connection: whose they are does not matter.
    let mut clients: Vec<Client> = (0..2).map(|_| Client::open(&broker)).collect();
    for client in &mut clients {
        client.open_channels(2..=2);
        for channel in 1..=2 {
            client.call(channel, "basic.qos prefetch_count=10");
            client.call(channel, &format!("basic.consume queue={q}"));
            // Room for deliveries is given once that answer was written.
            client.expect_nothing(channel);
        }
    }
    let places = [(0, 1), (0, 2), (1, 1), (1, 2)];
    let mut give = |clients: &mut Vec<Client>, places: &[(usize, u16)]| {
        places.iter().for_each(|_| publisher.put(1, &q, "m"));
        for (client, channel) in places {
            clients[*client].delivery(*channel);
        }
        for (client, channel) in places {
            clients[*client].expect_nothing(*channel);
        }
    };
    // Nobody settles: each fills up as fast as the others.
    (0..10).for_each(|_| give(&mut clients, &places));
    // All but one settle all the time.
    let (lazy, busy) = places.split_first().expect("four");
    for round in 1..=30 {
        for (client, channel) in busy {
            let client = &mut clients[*client];
            client.send(*channel, &format!("basic.ack delivery_tag=l:{round}"));
            client.expect_nothing(*channel);
        }
        give(&mut clients, busy);
    }
    // It has not lost its turn.
    clients[lazy.0].send(lazy.1, "basic.ack delivery_tag=l:1");
    give(&mut clients, &[*lazy]);
    publisher.call(1, &format!("queue.delete queue={q}"));
}
