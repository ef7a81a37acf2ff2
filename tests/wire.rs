//! What a client sees on the wire when it does something wrong: the scripts in `tests/wire/`.
//!
//! Owns the runner of the scripts. A script is a list of cases, each on connections of its own:
//!
//! ```text
//! ## publish to an exchange that does not exist
//! > 1 publish exchange=$x | | hello
//! < 1 close 404 60/40 NOT_FOUND - no exchange '$x' in vhost '/'
//! ```
//!
//! `>` sends and `<` expects on connection `a`, which is open with channel 1 open; `b>` and `b<`
//! are a second connection; `a tcp` begins with a bare socket. `$name` is a name that only this
//! case uses. `[rabbitmq]` and `[leveret]` before a line or a title restrict it to that broker:
//! RabbitMQ is 3.10 in reference runs (`AMQP_URI`), and where 4.x answers otherwise, Leveret takes
//! the answer that tells the client more. What may be sent and expected is listed in `send` and
//! `expect` below. A channel that was closed is opened again, so the connection must be alive.

mod support;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use support::{Broker, Client, client, notation, settings, unique};

/// Cases of a script that run at the same time.
const PARALLEL: usize = 8;

struct Case {
    title: String,
    line: usize,
    steps: Vec<(usize, String)>,
}

fn shared() -> &'static Broker {
    static BROKER: OnceLock<Broker> = OnceLock::new();
    BROKER.get_or_init(Broker::start)
}

/// The line without its restriction, unless it is restricted to another broker.
fn for_broker(line: &str, rabbitmq: bool) -> Option<&str> {
    let (ours, theirs) =
        if rabbitmq { ("[rabbitmq] ", "[leveret] ") } else { ("[leveret] ", "[rabbitmq] ") };
    if line.starts_with(theirs) {
        return None;
    }
    Some(line.strip_prefix(ours).unwrap_or(line))
}

fn cases(script: &str, rabbitmq: bool) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut skipping = false;
    for (number, line) in script.lines().enumerate() {
        let line = line.trim();
        if let Some(title) = line.strip_prefix("## ") {
            let title = for_broker(title, rabbitmq);
            skipping = title.is_none();
            let title = title.unwrap_or_default().to_string();
            if !skipping {
                cases.push(Case { title, line: number + 1, steps: Vec::new() });
            }
        } else if !skipping && !line.is_empty() && !line.starts_with("# ") {
            let case = cases.last_mut().expect("a script begins with a title");
            let step = for_broker(line, rabbitmq).map(|step| (number + 1, step.to_string()));
            case.steps.extend(step);
        }
    }
    cases
}

fn run_script(name: &str, script: &str) {
    let broker = shared();
    let cases = cases(script, broker.is_rabbitmq());
    let only = std::env::var("WIRE_CASE").unwrap_or_default();
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let chosen = case.title.contains(&only);
                    if chosen && catch_unwind(AssertUnwindSafe(|| run(broker, case))).is_err() {
                        failed.lock().unwrap().push(format!("{name}:{} {}", case.line, case.title));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(broker.is_running(), "the broker died; its log:\n{}", broker.log());
    assert!(
        failed.is_empty(),
        "{} of {} cases failed:\n  {}",
        failed.len(),
        cases.len(),
        failed.join("\n  ")
    );
}

fn run(broker: &Broker, case: &Case) {
    let prefix = unique("wire");
    let mut clients: HashMap<char, Client> = HashMap::new();
    for (number, step) in &case.steps {
        let step = substitute(step, &prefix);
        let outcome = catch_unwind(AssertUnwindSafe(|| run_step(broker, &mut clients, &step)));
        if let Err(panic) = outcome {
            eprintln!("  in case \"{}\", line {number}: {step}", case.title);
            std::panic::resume_unwind(panic);
        }
    }
}

/// Replaces `$name` by a name that only this case uses.
fn substitute(step: &str, prefix: &str) -> String {
    let mut parts = step.split('$');
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        out.push_str(prefix);
        out.push('.');
        out.push_str(part);
    }
    out
}

fn run_step(broker: &Broker, clients: &mut HashMap<char, Client>, step: &str) {
    if let Some(letter) = step.strip_suffix(" tcp") {
        clients.insert(letter.chars().next().unwrap(), Client::dial(broker));
        return;
    }
    let (who, what) = step.split_once(' ').expect("a step is a direction and what to do");
    let letter = if who.len() == 1 { 'a' } else { who.chars().next().unwrap() };
    let client = clients.entry(letter).or_insert_with(|| Client::open(broker));
    match who.chars().last() {
        Some('>') => send(client, what),
        Some('<') => expect(client, what),
        _ => panic!("a step sends (>) or expects (<): {step}"),
    }
}

fn text(value: &str) -> Vec<u8> {
    match notation::value(value.trim()) {
        notation::Value::Text(bytes) => bytes,
        other => other.text().into_bytes(),
    }
}

/// `bytes "raw"`, or a channel and one of: `frame TYPE "payload"`, `header CLASS SIZE properties`,
/// `body "bytes"`, `publish fields | properties | "body"`, `method fields`.
fn send(client: &mut Client, what: &str) {
    let (first, rest) = what.split_once(' ').unwrap_or((what, ""));
    if first == "bytes" {
        return client.send_bytes(&text(rest));
    }
    let channel = first.parse().expect("a channel number");
    let (verb, operand) = rest.split_once(' ').unwrap_or((rest, ""));
    match verb {
        "frame" => {
            let (kind, payload) = operand.split_once(' ').unwrap_or((operand, "\"\""));
            client.frame(kind.parse().expect("a frame type"), channel, &text(payload));
        }
        "header" => {
            let mut words = operand.splitn(3, ' ');
            let class = words.next().and_then(|word| word.parse().ok()).expect("a class id");
            let size = words.next().and_then(|word| word.parse().ok()).expect("a body size");
            let header = notation::encode_header(class, size, words.next().unwrap_or(""));
            client.frame(client::HEADER, channel, &header);
        }
        "body" => client.frame(client::BODY, channel, &text(operand)),
        "publish" => {
            let mut parts = operand.splitn(3, '|').map(str::trim);
            let fields = parts.next().unwrap_or("");
            let properties = parts.next().unwrap_or("");
            client.publish(channel, fields, properties, &text(parts.next().unwrap_or("\"\"")));
        }
        _ => client.send(channel, rest),
    }
}

/// `eof`, `bytes "raw"`, or a channel and one of: `close CODE CLASS/METHOD text` (channel 0: the
/// connection's), `nothing`, `content method fields | "body"`, `method fields`.
fn expect(client: &mut Client, what: &str) {
    let (first, rest) = what.split_once(' ').unwrap_or((what, ""));
    match first {
        "eof" => return client.expect_eof(),
        "bytes" => return client.expect_bytes(&text(rest)),
        _ => {}
    }
    let channel = first.parse().expect("a channel number");
    let (verb, operand) = rest.split_once(' ').unwrap_or((rest, ""));
    match verb {
        "close" => {
            let mut words = operand.splitn(3, ' ');
            let code = words.next().and_then(|word| word.parse().ok()).expect("a reply code");
            let (class, method) = words.next().and_then(|w| w.split_once('/')).expect("two ids");
            let ids = (class.parse().expect("a class id"), method.parse().expect("a method id"));
            let reply = words.next().unwrap_or("").replace("\\n", "\n");
            if channel == 0 {
                return client.expect_connection_close(code, &reply, ids);
            }
            client.expect_channel_close(channel, code, &reply, ids);
            client.call(channel, "channel.open");
        }
        "nothing" => client.expect_nothing(channel),
        "content" => {
            let (method, body) = operand.split_once('|').expect("content has a body");
            let (name, fields) = notation::parse(method.trim());
            let content = client.content(channel, &name);
            for (field, value) in fields {
                assert!(value.is_like(&content.method[&field]), "{method}: came {content:?}");
            }
            assert_eq!(content.body, text(body), "the body");
        }
        _ => drop(client.expect(&format!("{channel} {rest}"))),
    }
}

#[test]
fn handshake() {
    run_script("handshake.txt", include_str!("wire/handshake.txt"));
}

#[test]
fn frames() {
    run_script("frames.txt", include_str!("wire/frames.txt"));
}

#[test]
fn channels() {
    run_script("channels.txt", include_str!("wire/channels.txt"));
}

#[test]
fn publishing() {
    run_script("publishing.txt", include_str!("wire/publishing.txt"));
}

#[test]
fn exchanges() {
    run_script("exchanges.txt", include_str!("wire/exchanges.txt"));
}

#[test]
fn queues() {
    run_script("queues.txt", include_str!("wire/queues.txt"));
}

#[test]
fn consuming() {
    run_script("consuming.txt", include_str!("wire/consuming.txt"));
}

#[test]
fn slow_handshake_is_cut_off() {
    let Some(broker) = Broker::with_config(&settings::handshake_timeout(300)) else { return };
    let mut silent = Client::dial(&broker);
    let mut halfway = Client::dial(&broker);
    halfway.send_bytes(client::PROTOCOL_HEADER);
    halfway.expect("0 connection.start");
    let mut done = Client::open(&broker);
    silent.expect_eof();
    halfway.expect_eof();
    done.expect_nothing(1);
    assert!(broker.log().contains("handshake"), "{}", broker.log());
}

#[test]
fn message_larger_than_configured() {
    let Some(broker) = Broker::with_config(&settings::message_size_max(1000)) else { return };
    let mut client = Client::open(&broker);
    client.publish(1, "routing_key=nowhere", "", &[0; 1000]);
    client.expect_nothing(1);
    client.publish(1, "routing_key=nowhere", "", &[0; 1001]);
    client.expect_channel_close(
        1,
        406,
        "PRECONDITION_FAILED - message size 1001 is larger than configured max size 1000",
        (60, 40),
    );
}
