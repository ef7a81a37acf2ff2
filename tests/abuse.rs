//! Clients that do harm, by accident or on purpose.
//!
//! Owns the proof that the broker stays up and bounded whatever comes in: after each attack a
//! witness that was connected all the time still publishes and consumes, a new client may connect,
//! and the broker's memory is below a bound that the attack would have to break. Every test starts
//! a broker of its own, so that memory is its own doing. Random input comes from fixed seeds.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use support::notation::{self, Value};
use support::{Broker, Client, Handshake, client, settings, unique, wait_until};

const MIB: u64 = 1 << 20;

/// Resident memory that no attack may push a broker beyond, unless the test says otherwise. A
/// broker that buffered what these tests send would need several times as much.
const RESIDENT_MAX: u64 = 192 * MIB;

/// A well-behaved client beside the attack.
struct Witness {
    client: Client,
    queue: String,
    confirmed: u64,
}

impl Witness {
    fn new(broker: &Broker) -> Witness {
        let mut client = Client::open(broker);
        let queue = unique("witness");
        client.declare(1, &format!("queue={queue} exclusive"));
        client.call(1, "confirm.select");
        client.open_channels(2..=2);
        client.call(2, "basic.qos prefetch_count=10");
        client.call(2, &format!("basic.consume queue={queue} consumer_tag=witness"));
        Witness { client, queue, confirmed: 0 }
    }

    /// Publishes, has it confirmed, consumes and acknowledges.
    fn check(&mut self) {
        for _ in 0..20 {
            self.confirmed += 1;
            let text = self.confirmed.to_string();
            self.client.put(1, &self.queue, &text);
            self.client.expect(&format!("1 basic.ack delivery_tag=l:{text}"));
            let delivery = self.client.delivery(2);
            assert_eq!((delivery.text(), delivery.redelivered()), (text, false));
            self.client.send(2, &format!("basic.ack delivery_tag=l:{}", delivery.tag()));
        }
    }

    /// The broker survived the attack.
    fn conclude(&mut self, broker: &Broker) {
        self.check();
        assert!(broker.is_running());
        let mut late = Client::open(broker);
        late.expect_nothing(1);
        check_memory(broker, RESIDENT_MAX);
        let log = broker.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}

fn check_memory(broker: &Broker, bound: u64) {
    let resident = broker.resident_bytes();
    let (mib, most) = (resident / MIB, bound / MIB);
    assert!(resident < bound, "the broker uses {mib} MiB, more than {most}");
}

/// A generator of numbers that is the same in every run (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

fn method(channel: u16, line: &str) -> Vec<u8> {
    client::frame(client::METHOD, channel, &notation::encode_method(line))
}

/// What a client sends that logs in, declares, publishes, consumes and closes, as one stream that
/// does not wait for answers.
fn conversation(broker: &Broker) -> Vec<u8> {
    let (user, password, vhost) = (&broker.user, &broker.password, &broker.vhost);
    let response = format!("\"\\x00{user}\\x00{password}\"");
    let q = unique("talk");
    let mut bytes = client::PROTOCOL_HEADER.to_vec();
    for (channel, line) in [
        (0, format!("connection.start-ok mechanism=PLAIN response={response} locale=en_US")),
        (0, "connection.tune-ok channel_max=2047 frame_max=131072 heartbeat=0".into()),
        (0, format!("connection.open vhost={vhost}")),
        (1, "channel.open".into()),
        (1, "confirm.select".into()),
        (1, format!("queue.declare queue={q} exclusive arguments=(x-max-length=10,a=[1,(b=c)])")),
        (1, format!("queue.bind queue={q} exchange=amq.headers arguments=(x-match=any,h=1)")),
        (1, format!("basic.consume queue={q} consumer_tag=c")),
    ] {
        bytes.extend(method(channel, &line));
    }
    let properties = "headers=(h=1,CC=[other]) delivery_mode=2 user_id=guest";
    bytes.extend(client::publish_bytes(4096, 1, &format!("routing_key={q}"), properties, &[7; 99]));
    bytes.extend(client::publish_bytes(4096, 1, "exchange=amq.headers mandatory", properties, b""));
    for line in ["basic.ack delivery_tag=l:1", "basic.nack delivery_tag=l:2 requeue"] {
        bytes.extend(method(1, line));
    }
    bytes.extend(method(1, "channel.close reply_code=200 reply_text=bye"));
    bytes.extend(method(0, "connection.close reply_code=200 reply_text=bye"));
    bytes
}

/// Sends these bytes, says that no more will come, and reads whatever is answered to its end.
fn play(broker: &Broker, bytes: &[u8]) {
    let mut client = Client::dial(broker);
    // The broker may hang up in the middle, which is its right.
    let _ = client.try_send(bytes);
    let stream = client.stream();
    let _ = stream.shutdown(Shutdown::Write);
    stream.set_read_timeout(Some(support::DEADLINE)).unwrap();
    let mut sink = [0; 4096];
    loop {
        match stream.read(&mut sink) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
            Err(error) => panic!("the broker keeps a connection that ended: {error}"),
        }
    }
}

#[test]
fn conversation_cut_off_anywhere() {
    let broker = Broker::start();
    let mut witness = Witness::new(&broker);
    let whole = conversation(&broker).len();
    // Every place within the frames of a publish, every third elsewhere.
    for cut in (0..whole).filter(|cut| cut % 3 == 0 || *cut > whole - 300) {
        play(&broker, &conversation(&broker)[..cut]);
    }
    witness.conclude(&broker);
}

#[test]
fn conversation_with_flipped_bits() {
    let broker = Broker::start();
    let mut witness = Witness::new(&broker);
    // Side by side, because a refused login is kept waiting.
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let broker = &broker;
            scope.spawn(move || {
                let mut random = Random(0x5eed_0100 + thread);
                (0..50).for_each(|round| flip_bits_and_play(broker, &mut random, round % 8 == 0));
            });
        }
        (0..20).for_each(|_| witness.check());
    });
    witness.conclude(&broker);
}

fn flip_bits_and_play(broker: &Broker, random: &mut Random, login_too: bool) {
    let mut bytes = conversation(broker);
    // The login is about this long; most damage is to be done to an open connection.
    let start = if login_too { 0 } else { 200 };
    for _ in 0..=random.below(4) {
        let place = start + random.below(bytes.len() - start);
        bytes[place] ^= 1 << random.below(8);
    }
    play(broker, &bytes);
}

#[test]
fn random_frames() {
    let broker = Broker::start();
    let mut witness = Witness::new(&broker);
    let mut random = Random(0x5eed_0002);
    let classes = [10, 20, 30, 40, 50, 60, 85, 90, 99];
    for round in 0..300 {
        let mut client = Client::open(&broker);
        let mut bytes = Vec::new();
        for _ in 0..=random.below(6) {
            let len = random.below(60);
            let mut payload = random.bytes(len);
            if random.below(4) > 0 && payload.len() >= 4 {
                // A method that exists more often than not, with arguments that make no sense.
                payload[0] = 0;
                payload[1] = classes[random.below(classes.len())];
                payload[2] = 0;
                payload[3] = 10 * random.below(13) as u8 + random.below(2) as u8;
            }
            let kinds = [client::METHOD, client::HEADER, client::BODY, client::HEARTBEAT, 9];
            let kind = kinds[random.below(kinds.len()).min(random.below(kinds.len()))];
            bytes.extend(client::frame(kind, random.below(3) as u16, &payload));
        }
        let _ = client.try_send(&bytes);
        client.die();
        if round % 100 == 0 {
            witness.check();
        }
    }
    witness.conclude(&broker);
}

#[test]
fn random_bytes() {
    let broker = Broker::start();
    let mut witness = Witness::new(&broker);
    let mut random = Random(0x5eed_0003);
    for round in 0..200 {
        let len = random.below(3000);
        let noise = random.bytes(len);
        if round % 2 == 0 {
            let mut client = Client::open(&broker);
            let _ = client.try_send(&noise);
            client.die();
        } else {
            let mut client = Client::dial(&broker);
            let _ = client.try_send(&noise);
            client.die();
        }
    }
    witness.conclude(&broker);
}

#[test]
fn announced_frames_and_bodies_that_never_come() {
    let broker = Broker::start();
    let mut witness = Witness::new(&broker);
    let mut held = Vec::new();
    for _ in 0..50 {
        let mut client = Client::open(&broker);
        client.open_channels(2..=20);
        for channel in 1..=20 {
            client.send(channel, &format!("basic.publish routing_key={}", witness.queue));
            let header = notation::encode_header(60, 16 * MIB, "");
            client.frame(client::HEADER, channel, &header);
            client.frame(client::BODY, channel, b"only this");
        }
        // The largest frame that may come, of which only the head comes: 16 GiB are announced.
        client.send_bytes(&[3, 0, 1, 0, 1, 0xff, 0xf8]);
        held.push(client);
    }
    witness.conclude(&broker);
    held.into_iter().for_each(Client::die);
    witness.conclude(&broker);
}

#[test]
fn flood_of_half_open_connections() {
    let Some(broker) = Broker::with_config(&settings::connection_max(200, 2000)) else { return };
    let mut witness = Witness::new(&broker);
    let mut idle = Vec::new();
    for n in 0..600 {
        let mut client = Client::dial(&broker);
        if n % 2 == 0 {
            let _ = client.try_send(&client::PROTOCOL_HEADER[..n / 2 % 9]);
        }
        idle.push(client);
        if n % 100 == 0 {
            witness.check();
        }
    }
    for client in &mut idle {
        // Some were sent the broker's greeting before they were cut off.
        while client.poll_frame(support::DEADLINE).is_some() {}
        assert!(client.is_at_eof(), "a half-open connection is kept");
    }
    witness.conclude(&broker);
}

#[test]
fn connections_beyond_the_limit_are_refused() {
    let Some(broker) = Broker::with_config(&settings::connection_max(5, 5000)) else { return };
    let mut witness = Witness::new(&broker);
    let mut held: Vec<Client> = (0..4).map(|_| Client::open(&broker)).collect();
    for _ in 0..20 {
        let mut refused = Client::dial(&broker);
        let _ = refused.try_send(client::PROTOCOL_HEADER);
        let mut told = Vec::new();
        while let Some(frame) = refused.poll_frame(support::DEADLINE) {
            let came = notation::decode_method(&frame.payload);
            if came.name == "connection.start" {
                let line = "connection.start-ok mechanism=PLAIN response=\"\\x00guest\\x00guest\"";
                let _ = refused.try_send(&method(0, line));
            } else if came.name == "connection.tune" {
                let tune = "connection.tune-ok channel_max=10 frame_max=4096 heartbeat=0";
                let _ = refused.try_send(&method(0, tune));
                let _ = refused.try_send(&method(0, "connection.open vhost=/"));
            } else if came.name == "connection.close" {
                let _ = refused.try_send(&method(0, "connection.close-ok"));
            }
            told.push(came.name);
        }
        assert!(refused.is_at_eof() && !told.contains(&"connection.open-ok"), "{told:?}");
        witness.check();
    }
    held.pop().unwrap().close();
    wait_until("room for a connection", || {
        let mut next = Client::dial(&broker);
        let _ = next.try_send(client::PROTOCOL_HEADER);
        next.poll_frame(support::DEADLINE).is_some()
    });
    witness.check();
}

#[test]
fn consumer_that_never_reads() {
    let broker = Broker::start();
    let mut witness = Witness::new(&broker);
    let q = unique("unread");
    let mut stuck = Client::open(&broker);
    stuck.declare(1, &format!("queue={q} exclusive arguments=(x-max-length-bytes=20000000)"));
    stuck.call(1, &format!("basic.consume queue={q} no_ack"));
    let mut publisher = Client::open(&broker);
    publisher.call(1, "confirm.select");
    let bytes = client::publish_bytes(131_072, 1, &format!("routing_key={q}"), "", &[1; 10_000]);
    // 400 MB, of which the queue keeps 20.
    for round in 1..=40u64 {
        for _ in 0..1000 {
            publisher.send_bytes(&bytes);
        }
        publisher.confirmed_after(1, (round - 1) * 1000, round * 1000);
        witness.check();
        check_memory(&broker, RESIDENT_MAX);
    }
    witness.conclude(&broker);
}

#[test]
fn consumer_that_never_reads_does_not_starve_the_others() {
    let broker = Broker::start();
    let q = unique("shared");
    let mut stuck = Client::open(&broker);
    stuck.declare(1, &format!("queue={q}"));
    stuck.call(1, &format!("basic.consume queue={q}"));
    let mut good = Client::open(&broker);
    good.call(1, "basic.qos prefetch_count=50");
    good.call(1, &format!("basic.consume queue={q} consumer_tag=good"));
    let mut publisher = Client::open(&broker);
    publisher.call(1, "confirm.select");
    let (total, size) = (4000u64, 20_000);
    for n in 0..total {
        let mut body = n.to_be_bytes().to_vec();
        body.resize(size, 0);
        publisher.publish(1, &format!("routing_key={q}"), "", &body);
    }
    assert!(publisher.confirmed_up_to(1, total));
    let mut seen = std::collections::BTreeSet::new();
    let mut take = |good: &mut Client| {
        let delivery = good.delivery(1);
        seen.insert(u64::from_be_bytes(delivery.body[..8].try_into().unwrap()));
        good.send(1, &format!("basic.ack delivery_tag=l:{}", delivery.tag()));
        seen.len() as u64
    };
    // What the stuck one was sent stays with it, which is its window and not a half of all.
    while take(&mut good) < total / 2 + total / 4 {}
    check_memory(&broker, RESIDENT_MAX);
    stuck.die();
    while take(&mut good) < total {}
    assert_eq!(good.call(1, &format!("queue.delete queue={q}"))["message_count"].int(), 0);
}

#[test]
fn memory_limit_blocks_publishers_and_releases_them() {
    let limit = 64 * MIB;
    // Many messages in a read, and messages that a read hardly ever ends with.
    for size in [1_000, 131_000] {
        let config = settings::memory_high_watermark(limit);
        let Some(broker) = Broker::in_memory(&config) else { return };
        let mut reader = Client::open(&broker);
        let q = unique("full");
        reader.declare(1, &format!("queue={q}"));
        let mut publisher = Client::open(&broker);
        publisher.stream().set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let fields = format!("routing_key={q}");
        let bytes = client::publish_bytes(131_072, 1, &fields, "", &vec![1; size]);
        let (sent, stalled) = flood(&mut publisher, &bytes, 1024 * MIB);
        assert!(stalled, "messages of {size}: 1 GiB is not held back by a limit of 64 MiB");
        let blocked = publisher.expect("0 connection.blocked");
        assert_eq!(blocked["reason"].text(), "low on memory");
        check_memory(&broker, limit + RESIDENT_MAX / 2);
        // Who does not publish is served, and makes room.
        let (ready, _) = reader.counts(1, &q);
        assert!(ready > 0 && (ready as u64) < 96 * MIB / size as u64, "{ready} are queued");
        reader.call(1, &format!("queue.purge queue={q}"));
        publisher.expect("0 connection.unblocked");
        publisher.send_bytes(&bytes[sent % bytes.len()..]);
        publisher.call(1, "channel.flow active");
        reader.call(1, &format!("queue.delete queue={q}"));
    }
}

/// Sends the same bytes again and again until the broker takes no more or `most` bytes are sent.
fn flood(client: &mut Client, bytes: &[u8], most: u64) -> (usize, bool) {
    let (mut sent, mut offset) = (0, 0);
    let chunk = bytes.repeat((65_536 / bytes.len()).max(1));
    while (sent as u64) < most {
        match client.stream().write(&chunk[offset..]) {
            Ok(len) => {
                sent += len;
                offset = (offset + len) % chunk.len();
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return (sent, true);
            }
            Err(error) => panic!("the broker hung up on a client that only asks: {error}"),
        }
    }
    (sent, false)
}

#[test]
fn flood_of_questions_whose_answers_are_not_read() {
    let broker = Broker::start();
    let mut witness = Witness::new(&broker);
    for (question, answer) in [
        ("queue.declare queue=$q exclusive", "queue.declare-ok"),
        ("basic.get queue=$q", "basic.get-empty"),
        ("basic.qos prefetch_count=1", "basic.qos-ok"),
    ] {
        let mut flooder = Client::open(&broker);
        let q = unique("flooded");
        flooder.declare(1, &format!("queue={q} exclusive"));
        let frame = method(1, &question.replace("$q", &q));
        flooder.stream().set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        // RabbitMQ reads for longer than this test has time.
        let reference = broker.is_rabbitmq();
        let most = if reference { MIB } else { 300 * MIB };
        let (sent, stalled) = flood(&mut flooder, &frame, most);
        assert!(
            stalled || reference,
            "{question}: the broker reads on while nobody reads its answers"
        );
        check_memory(&broker, RESIDENT_MAX);
        witness.check();
        // Nothing is lost: every question that was sent whole has its answer.
        for n in 0..sent / frame.len() {
            let came = flooder.next_method(1).name;
            assert_eq!(came, answer, "answer {n}");
        }
    }
    witness.conclude(&broker);
}

#[test]
fn deeply_nested_tables() {
    let broker = Broker::start();
    let mut witness = Witness::new(&broker);
    // As deep as a frame has room for, as tables and as arrays.
    let tables = nested(b"\x01kF", 10_000);
    let arrays = nested(b"A", 10_000);
    let field = [&[1, b'k'][..], &arrays].concat();
    let wrapped = [&(field.len() as u32).to_be_bytes()[..], &field].concat();
    for table in [&tables, &wrapped] {
        let mut client = Client::open(&broker);
        let q = unique("deep");
        let mut declare = notation::encode_method(&format!("queue.declare queue={q} exclusive"));
        declare.truncate(declare.len() - 4);
        declare.extend(table.iter());
        client.frame(client::METHOD, 1, &declare);
        // Taken or refused, but answered.
        client.next_frame();
        let mut client = Client::open(&broker);
        client.declare(1, &format!("queue={q}2 exclusive"));
        let matching = "arguments=(x-match=any,k=1)";
        client.call(1, &format!("queue.bind queue={q}2 exchange=amq.headers {matching}"));
        let mut header = notation::encode_header(60, 2, "headers=()");
        header.truncate(header.len() - 4);
        header.extend(table.iter());
        client.send(1, "basic.publish exchange=amq.headers");
        client.frame(client::HEADER, 1, &header);
        let _ = client.try_send(&client::frame(client::BODY, 1, b"hi"));
        let _ = client.try_send(&method(1, "basic.qos prefetch_count=1"));
        client.next_frame();
    }
    witness.conclude(&broker);
}

/// A table or array within another, `depth` times; `head` is what precedes each length.
fn nested(head: &[u8], depth: usize) -> Vec<u8> {
    let each = head.len() + 4;
    let is_table = head.len() > 1;
    let mut out = Vec::new();
    if is_table {
        out.extend(((depth * each) as u32).to_be_bytes());
    }
    for level in (0..depth).rev() {
        out.extend(head);
        out.extend(((level * each) as u32).to_be_bytes());
    }
    out
}

#[test]
fn as_many_channels_as_allowed() {
    let broker = Broker::start();
    let mut witness = Witness::new(&broker);
    let mut client = Client::connect_with(&broker, &Handshake::default());
    client.open_channels(1..=2047);
    let q = unique("q");
    client.declare(1, &format!("queue={q} exclusive"));
    // Consumers on some of them, the highest among these.
    let consuming: Vec<u16> = (0..256).map(|n| 2047 - 8 * n).collect();
    for &channel in &consuming {
        client.call(channel, &format!("basic.consume queue={q} consumer_tag=c no_ack"));
    }
    for channel in 1..=256 {
        client.put(channel, &q, "one for each");
    }
    let mut served = Vec::new();
    for _ in 0..256 {
        let frame = client.next_frame();
        let channel = frame.channel;
        client.unread(frame);
        client.delivery(channel);
        served.push(channel);
    }
    served.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!(served, consuming, "each consumer has its turn");
    client.send(2048, "channel.open");
    let text = "NOT_ALLOWED - number of channels opened (2047) has reached the negotiated \
        channel_max (2047)";
    client.expect_connection_close(530, text, (0, 0));
    witness.conclude(&broker);
}

#[test]
fn connections_that_die_leave_nothing_behind() {
    let broker = Broker::start();
    let mut witness = Witness::new(&broker);
    let q = unique("survivor");
    witness.client.declare(1, &format!("queue={q}"));
    for n in 0..10 {
        witness.client.publish(1, &format!("routing_key={q}"), "", &[n]);
    }
    witness.client.confirmed_after(1, 0, 10);
    witness.confirmed = 10;
    for _ in 0..300 {
        let mut client = Client::open(&broker);
        client.declare(1, "queue=\"\" exclusive");
        client.call(1, &format!("basic.consume queue={q}"));
        client.delivery(1);
        client.die();
    }
    wait_until("every message to be back", || witness.client.counts(1, &q) == (10, 0));
    for n in 0..10u8 {
        let got = witness.client.get(1, &format!("queue={q} no_ack")).unwrap();
        assert_eq!((got.body[0], &got.method["redelivered"]), (n, &Value::Bool(true)));
    }
    witness.client.call(1, &format!("queue.delete queue={q}"));
    witness.conclude(&broker);
    if let Some(pid) = broker.pid() {
        wait_until("the sockets to be closed", || open_files(pid) < 60);
    }
}

fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

#[test]
fn busy_neighbours_do_not_disturb() {
    let broker = Broker::start();
    let mut witness = Witness::new(&broker);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..100 {
                let mut wrong = Client::open(&broker);
                wrong.frame(9, 1, &[]);
                wrong.next_close();
            }
        });
        scope.spawn(|| {
            let mut churn = Client::open(&broker);
            for _ in 0..200 {
                let (name, _, _) = churn.declare(1, "queue=\"\" exclusive");
                churn.call(1, &format!("queue.bind queue={name} exchange=amq.fanout"));
                churn.call(1, &format!("queue.delete queue={name}"));
            }
        });
        for _ in 0..50 {
            witness.check();
        }
    });
    witness.conclude(&broker);
}
