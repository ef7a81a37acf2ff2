//! Clients that take more than their share.
//!
//! Owns the proof that one client's load stays its own affair: the memory limit holds whatever is
//! half done, nobody sets the alarm with what is not stored, and the others are served meanwhile.
//! Every test starts a broker of its own, because the limit and the memory are the broker's.

mod support;

use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

use support::client::{self, Frame};
use support::{Broker, Client, notation, settings, unique, wait_until};

const MIB: u64 = 1 << 20;

/// What the process may use besides the messages that the limit counts.
const OVERHEAD: u64 = 96 * MIB;

fn method(channel: u16, line: &str) -> Vec<u8> {
    client::frame(client::METHOD, channel, &notation::encode_method(line))
}

fn publish(channel: u16, fields: &str, body: &[u8]) -> Vec<u8> {
    client::publish_bytes(131_072, channel, fields, "", body)
}

/// A publish that announces `size` bytes of body and brings only these.
fn unfinished(channel: u16, queue: &str, size: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = method(channel, &format!("basic.publish routing_key={queue}"));
    let header = notation::encode_header(60, size, "");
    bytes.extend(client::frame(client::HEADER, channel, &header));
    if !body.is_empty() {
        bytes.extend(client::frame(client::BODY, channel, body));
    }
    bytes
}

/// Sends the same bytes again and again; true when the broker took no more before `most` were sent.
fn flood(client: &mut Client, bytes: &[u8], most: u64) -> bool {
    client.stream().set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let chunk = bytes.repeat((65_536 / bytes.len()).max(1));
    let (mut sent, mut offset) = (0, 0);
    while sent < most {
        match client.stream().write(&chunk[offset..]) {
            Ok(len) => {
                sent += len as u64;
                offset = (offset + len) % chunk.len();
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return true;
            }
            Err(error) => panic!("the broker hung up on a publisher: {error}"),
        }
    }
    false
}

fn check_resident(broker: &Broker, bound: u64) {
    let resident = broker.resident_bytes();
    let (mib, most) = (resident / MIB, bound / MIB);
    assert!(resident < bound, "the broker uses {mib} MiB, more than {most}");
}

/// The broker is in good health, and was all the time.
fn check_log(broker: &Broker) {
    assert!(broker.is_running());
    let log = broker.log();
    assert!(!log.contains("crashed") && !log.contains("panicked"), "{log}");
}

/// A new client publishes, has it confirmed and reads it back.
fn check_service(broker: &Broker) {
    let mut client = Client::open(broker);
    let q = unique("served");
    client.declare(1, &format!("queue={q} exclusive"));
    client.call(1, "confirm.select");
    client.put(1, &q, "hello");
    assert!(client.confirmed_up_to(1, 1));
    assert_eq!(client.get(1, &format!("queue={q} no_ack")).unwrap().text(), "hello");
    check_log(broker);
}

fn check_no_alarm(broker: &Broker) {
    check_service(broker);
    let log = broker.log();
    assert!(!log.contains("memory alarm set"), "{log}");
}

#[test]
fn half_a_body_is_no_way_past_the_memory_limit() {
    let limit = 64 * MIB;
    let config = settings::memory_high_watermark(limit);
    let Some(broker) = Broker::in_memory(&config) else { return };
    let mut publisher = Client::open(&broker);
    publisher.open_channels(2..=2);
    let q = unique("full");
    publisher.declare(2, &format!("queue={q}"));
    publisher.send_bytes(&unfinished(1, &q, 10, b""));
    let bytes = publish(2, &format!("routing_key={q}"), &[1; 1000]);
    assert!(flood(&mut publisher, &bytes, 400 * MIB), "400 MB are not held back");
    publisher.expect("0 connection.blocked");
    check_resident(&broker, limit + OVERHEAD);
    check_log(&broker);
}

#[test]
fn who_clears_the_alarm_has_the_rest_of_that_read_served() {
    let config = settings::memory_high_watermark(32 * MIB);
    let Some(broker) = Broker::in_memory(&config) else { return };
    let mut publisher = Client::open(&broker);
    let (full, kept) = (unique("full"), unique("kept"));
    publisher.declare(1, &format!("queue={full}"));
    let bytes = publish(1, &format!("routing_key={full}"), &[1; 1000]);
    assert!(flood(&mut publisher, &bytes, 400 * MIB), "400 MB are not held back");
    publisher.expect("0 connection.blocked");
    publisher.die();
    let mut client = Client::open(&broker);
    client.call(1, "confirm.select");
    client.declare(1, &format!("queue={kept}"));
    let mut bytes = method(1, &format!("queue.purge queue={full}"));
    for body in [b"A", b"B", b"C"] {
        bytes.extend(publish(1, &format!("routing_key={kept}"), body));
    }
    client.send_bytes(&bytes);
    assert_eq!(client.next_method(1).name, "queue.purge-ok");
    assert!(client.confirmed_up_to(1, 3));
    assert_eq!(client.counts(1, &kept), (3, 0));
    check_service(&broker);
}

#[test]
fn announced_bodies_do_not_set_the_alarm() {
    let config = settings::memory_high_watermark(1024 * MIB);
    let Some(broker) = Broker::in_memory(&config) else { return };
    let mut others = Client::open(&broker);
    let q = unique("others");
    others.declare(1, &format!("queue={q}"));
    others.call(1, "confirm.select");
    let last = 2000;
    let bytes: Vec<u8> = (1..=last).flat_map(|n| unfinished(n, &q, 100 * MIB, b"x")).collect();
    let opens: Vec<u8> = (2..=last).flat_map(|n| method(n, "channel.open")).collect();
    let mut held = Vec::new();
    for round in 1..=5 {
        let mut client = Client::open(&broker);
        client.send_bytes(&opens);
        for _ in 2..=last {
            client.next_frame();
        }
        client.send_bytes(&bytes);
        // What follows a body that is still being received is answered on another channel only.
        others.put(1, &q, "mine");
        others.expect(&format!("1 basic.ack delivery_tag=l:{round}"));
        held.push(client);
    }
    // All of it is read once these are answered.
    for client in &mut held {
        client.send(0, "connection.close reply_code=200 reply_text=bye");
        assert_eq!(client.next_method(0).name, "connection.close-ok");
    }
    check_no_alarm(&broker);
}

#[test]
fn transactions_beyond_their_bound_cost_their_connection() {
    let config = settings::memory_high_watermark(64 * MIB) + "max_message_size_bytes = 1048576\n";
    let Some(broker) = Broker::in_memory(&config) else { return };
    let mut offender = Client::open(&broker);
    offender.open_channels(2..=4);
    let q = unique("tx");
    offender.declare(1, &format!("queue={q}"));
    (1..=4).for_each(|channel| drop(offender.call(channel, "tx.select")));
    let fields = format!("routing_key={q}");
    // A quarter of the limit is 16 MiB.
    for n in 0..400 {
        let taken = offender.try_send(&publish(1 + n % 4, &fields, &[1; 100_000]));
        if let Some(frame) = offender.poll_frame(Duration::from_millis(1)) {
            offender.unread(frame);
            assert!(n > 100, "refused after {n} publishes");
            break;
        }
        taken.expect("the broker tells before it hangs up");
    }
    let text = "RESOURCE_ERROR - no memory for more incomplete messages and open transactions";
    let close = offender.next_close();
    assert_eq!((close["reply_code"].int(), close["reply_text"].text()), (506, text.into()));
    let _ = offender.try_send(&method(0, "connection.close-ok"));
    let mut others = Client::open(&broker);
    assert_eq!(others.counts(1, &q), (0, 0), "nothing was committed");
    // The room is there again for who commits.
    others.call(1, "tx.select");
    for _ in 0..50 {
        others.publish(1, &fields, "", &[1; 100_000]);
    }
    others.call(1, "tx.commit");
    assert_eq!(others.counts(1, &q), (50, 0));
    check_no_alarm(&broker);
}

#[test]
fn queues_that_are_never_quite_empty_do_not_set_the_alarm() {
    let config = settings::memory_high_watermark(64 * MIB);
    let Some(broker) = Broker::in_memory(&config) else { return };
    let mut client = Client::open(&broker);
    let queues = 1000;
    let mut bytes = Vec::new();
    for n in 0..queues {
        let q = unique(&format!("short{n}"));
        let arguments = "arguments=(x-max-length=1)";
        bytes.extend(method(1, &format!("queue.declare queue={q} {arguments}")));
        bytes.extend(method(1, &format!("queue.bind queue={q} exchange=amq.fanout")));
    }
    client.send_bytes(&bytes);
    for _ in 0..2 * queues {
        client.next_method(1);
    }
    // A GiB goes through the queues, of which they keep a MiB.
    client.call(1, "confirm.select");
    let total = 1000;
    client.send_bytes(&publish(1, "exchange=amq.fanout", &[1; 1000]).repeat(total));
    assert!(client.confirmed_up_to(1, total as u64));
    check_no_alarm(&broker);
}

#[test]
fn routing_keys_that_never_repeat_are_not_kept() {
    let broker = Broker::start();
    let mut client = Client::open(&broker);
    let key = "k".repeat(240);
    let template = publish(1, &format!("exchange=amq.headers routing_key={key}"), b"");
    let end = template.windows(240).position(|some| some == key.as_bytes()).unwrap() + 240;
    let before = broker.resident_bytes();
    for thousand in 0..200 {
        let mut bytes = template.repeat(1000);
        for (n, one) in bytes.chunks_mut(template.len()).enumerate() {
            let digits = format!("{:08}", thousand * 1000 + n);
            one[end - 8..end].copy_from_slice(digits.as_bytes());
        }
        client.send_bytes(&bytes);
    }
    client.call(1, "basic.qos prefetch_count=1");
    check_resident(&broker, before + 40 * MIB);
    check_service(&broker);
}

#[test]
fn memory_goes_back_after_a_backlog_though_a_message_is_held() {
    let Some(broker) = Broker::in_memory("") else { return };
    let mut client = Client::open(&broker);
    let q = unique("backlog");
    client.declare(1, &format!("queue={q}"));
    let before = broker.resident_bytes();
    let bytes = publish(1, &format!("routing_key={q}"), &[1; 100]).repeat(1000);
    (0..600).for_each(|_| client.send_bytes(&bytes));
    client.get(1, &format!("queue={q}")).expect("it is not acknowledged");
    assert!(broker.resident_bytes() > before + 60 * MIB);
    client.call(1, &format!("queue.purge queue={q}"));
    wait_until("freed memory", || broker.resident_bytes() < before + 30 * MIB);
}

#[test]
fn many_consumers_of_a_client_that_never_reads_share_one_bound() {
    let limit = 64 * MIB;
    let config = settings::memory_high_watermark(limit);
    let Some(broker) = Broker::in_memory(&config) else { return };
    let mut stuck = Client::open(&broker);
    let q = unique("unread");
    stuck.declare(1, &format!("queue={q}"));
    let consume = |n| format!("basic.consume queue={q} consumer_tag=c{n} no_ack nowait");
    // A debug build checks all of a queue's consumers after each change.
    let consumers = if cfg!(debug_assertions) { 300 } else { 5000 };
    let bytes: Vec<u8> = (0..consumers).flat_map(|n| method(1, &consume(n))).collect();
    stuck.send_bytes(&bytes);
    assert_eq!(stuck.counts(1, &q), (0, consumers));
    let mut publisher = Client::open(&broker);
    let bytes = publish(1, &format!("routing_key={q}"), &[1; 16_000]);
    assert!(flood(&mut publisher, &bytes, 600 * MIB), "600 MB are not held back");
    check_resident(&broker, limit + OVERHEAD);
    stuck.die();
    check_log(&broker);
}

#[test]
fn refused_consumers_of_replies_leave_nothing_behind() {
    let broker = Broker::start();
    let mut client = Client::open(&broker);
    let arguments = "no_ack arguments=(x-priority=high)";
    let consume = format!("basic.consume queue=amq.rabbitmq.reply-to {arguments}");
    let mut bytes = method(2, "channel.open");
    bytes.extend(method(2, &consume));
    bytes.extend(method(2, "channel.close-ok"));
    let bytes = bytes.repeat(100);
    let round = |client: &mut Client| {
        client.send_bytes(&bytes);
        for _ in 0..100 {
            assert_eq!(client.next_method(2).name, "channel.open-ok");
            client.expect("2 channel.close reply_code=406");
        }
    };
    // What is allocated once is there before the measurement.
    round(&mut client);
    let before = broker.resident_bytes();
    (0..100).for_each(|_| round(&mut client));
    check_resident(&broker, before + 4 * MIB);
    client.call(1, "basic.consume queue=amq.rabbitmq.reply-to no_ack");
    check_service(&broker);
}

#[test]
fn consuming_from_queues_that_are_being_deleted() {
    let broker = Broker::start();
    let queues: Vec<String> = (0..4).map(|_| unique("fleeting")).collect();
    let end = Instant::now() + Duration::from_secs(2);
    std::thread::scope(|scope| {
        scope.spawn(|| publish_and_delete(&broker, &queues, end));
        let mut client = Client::open(&broker);
        let mut round = 0;
        while Instant::now() < end {
            round += 1;
            let mut bytes = Vec::new();
            for q in &queues {
                bytes.extend(method(1, &format!("queue.declare queue={q}")));
                let consume = format!("basic.consume queue={q} consumer_tag={q}-{round} nowait");
                bytes.extend(method(1, &consume));
            }
            bytes.extend(method(1, "basic.qos prefetch_count=0"));
            client.send_bytes(&bytes);
            if pass_until(&mut client, &["basic.qos-ok", "channel.close"]) == "channel.close" {
                client.send(1, "channel.close-ok");
                client.send(1, "channel.open");
                pass_until(&mut client, &["channel.open-ok"]);
            }
        }
    });
    check_service(&broker);
}

fn publish_and_delete(broker: &Broker, queues: &[String], end: Instant) {
    let mut bytes = Vec::new();
    for q in queues {
        bytes.extend(publish(1, &format!("routing_key={q}"), b"m").repeat(3));
        bytes.extend(method(1, &format!("queue.delete queue={q}")));
        bytes.extend(method(1, &format!("queue.declare queue={q}")));
    }
    let mut client = Client::open(broker);
    while Instant::now() < end {
        client.send_bytes(&bytes);
        for _ in 0..2 * queues.len() {
            client.next_method(1);
        }
    }
}

/// The name of the first of these methods that comes; all else is passed over.
fn pass_until(client: &mut Client, due: &[&str]) -> &'static str {
    loop {
        let Frame { kind, payload, .. } = client.next_frame();
        if kind == client::METHOD {
            let name = notation::decode_method(&payload).name;
            if due.contains(&name) {
                return name;
            }
            assert!(!name.ends_with(".close"), "{name} came while {due:?} are due");
        }
    }
}
