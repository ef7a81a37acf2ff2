//! Mutation fuzzing of the codec on stable Rust: a fixed number of mutants of a stored corpus,
//! the same ones on every run. The cargo-fuzz target `codec` does the same without end.
//!
//! `LEVERET_FUZZ_SEED` chooses other mutants, `LEVERET_FUZZ_ROUNDS` more of them. After a change
//! of `seeds`, `cargo test --test codec_fuzz -- --ignored` writes the corpus anew.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use leveret::codec::encode;
use leveret::codec::frame::FRAME_END;
use leveret::codec::method::{
    self, AMQPClass, AMQPProperties, AMQPValue, FieldTable, basic, channel, connection, queue,
};

#[path = "codec_check/mod.rs"]
mod codec_check;

const SEED: u64 = 0x6C65_7665_7265_7421;
const ROUNDS: u64 = 20_000;
/// A slow machine does fewer rounds rather than hold everyone up.
const TIME_MAX: Duration = Duration::from_secs(20);
const MUTANT_MAX: usize = 8192;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/codec")
}

fn corpus() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder())
        .expect("the corpus")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "bin"))
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, fs::read(&path).expect("a seed"))
        })
        .collect();
    files.sort();
    files
}

/// A small generator of our own, so that mutants are the same for every version of every crate
/// (splitmix64, by Steele, Lea and Flood).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `end`; 0 when there is nothing below.
    fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.next() % end as u64) as usize }
    }
}

fn mutate(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    const TELLING: [u8; 12] = [0, 1, 2, 3, 8, 0x7F, 0x80, 0xCE, 0xFF, b'A', b'F', b'S'];
    let place = random.below(bytes.len());
    let length = 1 + random.below(16);
    let end = (place + length).min(bytes.len());
    match random.below(8) {
        _ if bytes.is_empty() => bytes.extend_from_slice(other),
        0 => bytes[place] ^= 1 << random.below(8),
        1 => bytes[place] = TELLING[random.below(TELLING.len())],
        2 => bytes[place] = random.next() as u8,
        3 => bytes.truncate(place),
        4 => drop(bytes.drain(place..end)),
        5 => bytes.insert(place, TELLING[random.below(TELLING.len())]),
        6 => bytes.extend_from_within(place..end),
        _ => {
            let from = random.below(other.len());
            let to = (from + length * 4).min(other.len());
            bytes.splice(place..end, other[from..to].iter().copied());
        }
    }
    bytes.truncate(MUTANT_MAX);
}

fn mutant(seed: u64, corpus: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = corpus[random.below(corpus.len())].1.clone();
    for _ in 0..=random.below(8) {
        let other = &corpus[random.below(corpus.len())].1;
        mutate(&mut random, &mut bytes, other);
    }
    bytes
}

fn number_from_environment(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
        Err(_) => default,
    }
}

fn check_and_name(what: &str, bytes: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| codec_check::check(bytes))) {
        eprintln!("{what} fails with {} bytes: {bytes:02x?}", bytes.len());
        resume_unwind(panic);
    }
}

#[test]
fn the_corpus_does_no_harm() {
    let corpus = corpus();
    assert!(corpus.len() >= 12, "{} seeds", corpus.len());
    for (name, bytes) in corpus {
        check_and_name(&name, &bytes);
    }
}

#[test]
fn mutants_do_no_harm() {
    let corpus = corpus();
    let base = number_from_environment("LEVERET_FUZZ_SEED", SEED);
    let rounds = number_from_environment("LEVERET_FUZZ_ROUNDS", ROUNDS);
    let time_max = if rounds > ROUNDS { Duration::MAX } else { TIME_MAX };
    let started = Instant::now();
    for round in 0..rounds {
        // Each mutant has a seed of its own: LEVERET_FUZZ_SEED=<it> makes it the first.
        let seed = base.wrapping_add(round);
        check_and_name(&format!("LEVERET_FUZZ_SEED={seed}"), &mutant(seed, &corpus));
        if started.elapsed() > time_max {
            eprintln!("stopped after {round} of {rounds} rounds");
            break;
        }
    }
}

/// One seed for each kind of frame and each way to break one.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = vec![
        ("handshake", handshake()),
        ("publish", publish(b"", b"task", AMQPProperties::default(), b"hello")),
        ("publish_every_property", publish(b"amq.topic", b"a.b.c", every_property(), &[7; 300])),
        ("publish_latin1", publish(b"ex\xe9", b"\xff\xfe", AMQPProperties::default(), b"")),
        ("settle", settle()),
        ("declare_arguments", declare()),
        ("consume", method_frame(basic::AMQPMethod::Consume(consume()), AMQPClass::Basic)),
        ("deliver", deliver()),
    ];
    let frame = |kind: u8, payload: &[u8], end: u8| {
        let size = (payload.len() as u32).to_be_bytes();
        [&[kind, 0, 1], &size[..], payload, &[end]].concat()
    };
    let declare_with = |table: &[u8]| {
        let size = (table.len() as u32).to_be_bytes();
        frame(1, &[b"\0\x32\0\x0a\0\0\x01q\x02", &size[..], table].concat(), FRAME_END)
    };
    seeds.extend([
        ("bad_end", frame(1, b"\0\x3c\0\x28\0\0\0\x01k\0", 0)),
        ("bad_size", b"\x03\0\x01\x00\x03\x0d\x40body".to_vec()),
        ("bad_kind", frame(9, b"?", FRAME_END)),
        ("bad_heartbeat", frame(8, b"abc", FRAME_END)),
        ("bad_short_method", frame(1, b"\0\x3c\0", FRAME_END)),
        ("bad_utf8", frame(1, b"\0\x32\0\x1e\0\0\x02\xc3\x28\0", FRAME_END)),
        ("bad_unknown_method", frame(1, b"\0\x3c\0\xc8", FRAME_END)),
        ("bad_trailing", frame(1, b"\0\x3c\0\x50\0\0\0\0\0\0\0\x01\0\0", FRAME_END)),
        ("bad_header_flags", frame(2, b"\0\x3c\0\0\0\0\0\0\0\0\0\x05\xff\xff\x01", FRAME_END)),
        ("bad_header_class", frame(2, b"\0\x32\0\0\0\0\0\0\0\0\0\x05\0\0", FRAME_END)),
        ("bad_table_length", declare_with(b"\x01kS\0\0\x01\0short")),
        ("bad_table_type", declare_with(b"\x01kZ")),
        ("deep_tables", declare_with(&nested(400))),
    ]);
    seeds
}

fn nested(depth: usize) -> Vec<u8> {
    let mut table = Vec::new();
    for _ in 0..depth {
        let size = (table.len() as u32).to_be_bytes();
        table = [b"\x01kF", &size[..], &table].concat();
    }
    table
}

fn method_frame<M>(method: M, class: impl Fn(M) -> AMQPClass) -> Vec<u8> {
    let mut out = Vec::new();
    method::put_method(&mut out, 1, &class(method));
    out
}

fn handshake() -> Vec<u8> {
    let mut capabilities = FieldTable::default();
    capabilities.insert("publisher_confirms".into(), AMQPValue::Boolean(true));
    capabilities.insert("consumer_cancel_notify".into(), AMQPValue::Boolean(true));
    let mut client = FieldTable::default();
    client.insert("product".into(), AMQPValue::LongString("seed".into()));
    client.insert("capabilities".into(), AMQPValue::FieldTable(capabilities));
    let start_ok = connection::StartOk {
        client_properties: client,
        mechanism: "PLAIN".into(),
        response: "\0guest\0guest".into(),
        locale: "en_US".into(),
    };
    let tune_ok = connection::TuneOk { channel_max: 2047, frame_max: 131_072, heartbeat: 60 };
    let open = connection::Open { virtual_host: "/".into() };
    let mut out = method_frame(connection::AMQPMethod::StartOk(start_ok), AMQPClass::Connection);
    out.extend(method_frame(connection::AMQPMethod::TuneOk(tune_ok), AMQPClass::Connection));
    out.extend(method_frame(connection::AMQPMethod::Open(open), AMQPClass::Connection));
    encode::put_heartbeat(&mut out);
    out.extend(method_frame(channel::AMQPMethod::Open(channel::Open {}), AMQPClass::Channel));
    out
}

fn publish(exchange: &[u8], key: &[u8], properties: AMQPProperties, body: &[u8]) -> Vec<u8> {
    let header = method::header_payload(60, body.len() as u64, &properties);
    let mut out = Vec::new();
    encode::put_publish(&mut out, 1, exchange, key, true);
    encode::put_content(&mut out, 1, 136, &header, body);
    out
}

/// A table with a value of every type.
fn every_type() -> FieldTable {
    let values = [
        AMQPValue::Boolean(true),
        AMQPValue::ShortShortInt(-1),
        AMQPValue::ShortShortUInt(1),
        AMQPValue::ShortInt(-2),
        AMQPValue::ShortUInt(2),
        AMQPValue::LongInt(-3),
        AMQPValue::LongUInt(3),
        AMQPValue::LongLongInt(-4),
        AMQPValue::Float(0.5),
        AMQPValue::Double(-0.25),
        AMQPValue::DecimalValue(method::DecimalValue { scale: 2, value: 314 }),
        AMQPValue::LongString("long".into()),
        AMQPValue::FieldArray(vec![AMQPValue::Void, AMQPValue::LongInt(7)].into()),
        AMQPValue::Timestamp(1_700_000_000),
        AMQPValue::FieldTable(FieldTable::default()),
        AMQPValue::ByteArray(vec![0, 255].into()),
        AMQPValue::Void,
    ];
    let mut table = FieldTable::default();
    for (index, value) in values.into_iter().enumerate() {
        table.insert(format!("key-{index}").into(), value);
    }
    table
}

fn every_property() -> AMQPProperties {
    AMQPProperties::default()
        .with_content_type("text/plain".into())
        .with_content_encoding("utf-8".into())
        .with_headers(every_type())
        .with_delivery_mode(2)
        .with_priority(5)
        .with_correlation_id("correlation".into())
        .with_reply_to("amq.rabbitmq.reply-to".into())
        .with_expiration("60000".into())
        .with_message_id("message".into())
        .with_timestamp(1_700_000_000)
        .with_type("kind".into())
        .with_user_id("guest".into())
        .with_app_id("app".into())
        .with_cluster_id("cluster".into())
}

fn settle() -> Vec<u8> {
    let reject = basic::Reject { delivery_tag: 9, requeue: true };
    let mut out = Vec::new();
    encode::put_ack(&mut out, 1, 1, true);
    encode::put_nack(&mut out, 1, u64::MAX, false);
    out.extend(method_frame(basic::AMQPMethod::Reject(reject), AMQPClass::Basic));
    out
}

fn declare() -> Vec<u8> {
    let declare = queue::Declare {
        queue: "q".into(),
        durable: true,
        arguments: every_type(),
        ..Default::default()
    };
    method_frame(queue::AMQPMethod::Declare(declare), AMQPClass::Queue)
}

fn consume() -> basic::Consume {
    basic::Consume { queue: "q".into(), consumer_tag: "tag".into(), ..Default::default() }
}

fn deliver() -> Vec<u8> {
    let header = method::header_payload(60, 4, &every_property());
    let head = encode::DeliverHead::new(1, b"tag");
    let mut out = Vec::new();
    encode::put_delivery(&mut out, &head, 1, false, 4096, b"\x02ex\x03key", &header, b"body");
    encode::put_get_ok(&mut out, 1, 2, true, b"\0\x03key", 3);
    encode::put_return(&mut out, 1, 312, "NO_ROUTE", b"\x02ex\x03key");
    out
}

#[test]
#[ignore = "writes the corpus into the source tree"]
fn writes_the_corpus() {
    fs::create_dir_all(folder()).expect("the corpus folder");
    for (name, bytes) in seeds() {
        fs::write(folder().join(format!("{name}.bin")), bytes).expect("a seed");
    }
}
