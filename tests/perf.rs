//! `leveret perf` as its users run it.
//!
//! Owns the proof that each scenario of the program runs against a broker from beginning to end
//! and reports what it is for. Figures are checked for being there and for agreeing with each
//! other, never for speed. With `AMQP_URI` set, all of it runs against that broker.

#[path = "perf/relay.rs"]
mod relay;
mod support;

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::{Broker, Client, unique};

/// What a run of the program left behind.
struct Run {
    code: Option<i32>,
    report: Value,
    stderr: String,
}

fn uri(broker: &Broker) -> String {
    let Broker { user, password, address, vhost, .. } = broker;
    format!("amqp://{user}:{password}@{address}/{}", vhost.replace('/', "%2F"))
}

/// Runs `leveret perf` with these options, blanks between them.
fn perf(uri: &str, options: &str) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leveret"));
    command.args(["perf", "--json", "--uri", uri]).args(options.split_whitespace());
    let output = command.output().expect("the program runs");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    Run { code: output.status.code(), report, stderr }
}

impl Run {
    /// The report of a run that succeeded.
    #[track_caller]
    fn whole(self) -> Value {
        assert_eq!(self.code, Some(0), "{}\n{}", self.report, self.stderr);
        self.report
    }
}

#[track_caller]
fn number(report: &Value, key: &str) -> f64 {
    report[key].as_f64().unwrap_or_else(|| panic!("no number {key} in {report}"))
}

/// Asserts that the percentiles are there and in order; returns the largest.
#[track_caller]
fn check_percentiles(report: &Value, prefix: &str) -> f64 {
    let mut last = 0.0;
    for name in ["p50", "p75", "p90", "p95", "p99", "p999", "p9999", "max"] {
        let us = number(report, &format!("{prefix}{name}_us"));
        assert!(us >= last, "{prefix}{name}_us is below the percentile before: {report}");
        last = us;
    }
    assert!(last > 0.0, "{report}");
    last
}

#[test]
fn a_steady_run_reports_its_seconds() {
    let broker = Broker::start();
    let pid = broker.pid().map_or(String::new(), |pid| format!("--broker-pid {pid}"));
    let options = format!(
        "--confirms 100 --warmup 0.1 --duration 1.3 --queue-prefix {} {pid}",
        unique("perf")
    );
    let report = perf(&uri(&broker), &options).whole();
    assert!(report["generator_bound"].is_boolean(), "{report}");
    let samples = report["samples"].as_array().expect("a list");
    assert_eq!(samples.len(), 2, "a second and the rest: {report}");
    for key in ["published", "delivered", "confirmed"] {
        assert!(number(&samples[0], key) > 0.0, "{report}");
    }
    assert!(number(&samples[1], "at_s") >= 1.3, "{report}");
    let of_process = ["broker_cpu_us_per_message", "broker_cores", "broker_resident_peak"];
    for key in of_process.iter().filter(|_| !pid.is_empty()) {
        assert!(number(&report, key) > 0.0, "{report}");
    }
    if !pid.is_empty() {
        assert!(number(&samples[0], "broker_resident") > 0.0, "{report}");
    }
}

#[test]
fn the_phases_of_a_backlog_are_told_apart() {
    let broker = Broker::start();
    let options = format!("--fill 1000 --persistent --verify --queue-prefix {}", unique("perf"));
    let report = perf(&uri(&broker), &options).whole();
    let samples = report["samples"].as_array().expect("a list").iter();
    let phases: Vec<&str> = samples.filter_map(|sample| sample["phase"].as_str()).collect();
    assert_eq!(phases, ["fill", "drain"], "{report}");
    assert_eq!(report["waiting"], 1000, "{report}");
}

#[test]
fn idle_connections_are_opened_and_held() {
    let broker = Broker::start();
    let report = perf(&uri(&broker), "--idle-connections 20 --duration 0.1").whole();
    assert_eq!(report["connections"], 20, "{report}");
    assert!(number(&report["samples"][0], "connections") > 0.0, "{report}");
}

#[test]
fn one_message_in_flight_is_timed() {
    let broker = Broker::start();
    let prefix = unique("perf");
    let options = format!("--latency --count 50 --warmup 0 --queue-prefix {prefix}");
    let report = perf(&uri(&broker), &options).whole();
    assert_eq!(report["round_trips"], 50);
    check_percentiles(&report, "");
    let report = perf(&uri(&broker), &format!("{options} --confirms 1 --persistent")).whole();
    assert_eq!(report["round_trips"], 50);
    check_percentiles(&report, "");
}

#[test]
fn an_open_loop_reports_deliveries_and_confirms() {
    let broker = Broker::start();
    let prefix = unique("perf");
    let options = format!(
        "--latency --rate 300 --producers 2 --consumers 2 --queues 2 --warmup 0.2 --duration 1 \
         --ack-every 10 --confirms 100 --verify --queue-prefix {prefix}"
    );
    let report = perf(&uri(&broker), &options).whole();
    for prefix in ["", "confirm_", "sent_late_"] {
        check_percentiles(&report, prefix);
    }
    let published = number(&report, "published_per_s");
    assert!((400.0..800.0).contains(&published), "the rate is 600/s: {report}");
    assert_eq!(number(&report, "lost"), 0.0);
    let options = format!(
        "--latency --rate 100 --consumers 0 --confirms 10 --count 30 --queue-prefix {prefix}"
    );
    let report = perf(&uri(&broker), &options).whole();
    check_percentiles(&report, "confirm_");
    assert_eq!(report["p50_us"], Value::Null, "{report}");
}

/// Half the messages of the run are due while nothing comes through. Timed from when they were
/// due, the middle one of those is late by half the stall. With confirms one by one, all but the
/// first of them are not even written before the stall is over, and still they are late.
#[test]
fn a_stall_counts_for_every_message_that_was_due_meanwhile() {
    let broker = Broker::start();
    for confirms in ["", "--confirms 1"] {
        let relay = relay::stalling(&broker.address, 6000, Duration::from_millis(500));
        let relayed = uri(&broker).replace(&broker.address, &relay.to_string());
        let prefix = unique("perf");
        let options =
            format!("--latency --rate 200 --count 200 {confirms} --queue-prefix {prefix}");
        let report = perf(&relayed, &options).whole();
        let max = check_percentiles(&report, "");
        assert!(max > 400_000.0, "{report}");
        assert!(number(&report, "p90_us") > 150_000.0, "{report}");
        assert!(number(&report, "p75_us") > 50_000.0, "{report}");
        if !confirms.is_empty() {
            assert!(number(&report, "sent_late_p75_us") > 50_000.0, "{report}");
        }
    }
}

#[test]
fn what_never_comes_is_an_error_and_not_left_out() {
    let broker = Broker::start();
    let options = format!(
        "--latency --rate 100 --count 50 --queue-argument x-max-length=0 --deadline 1 \
         --consume-rate 5 --ack-every 1 --prefetch 1 --queue-prefix {}",
        unique("perf")
    );
    let run = perf(&uri(&broker), &options);
    assert_eq!(run.code, Some(1), "{}\n{}", run.report, run.stderr);
    assert!(number(&run.report, "undelivered") > 0.0, "{}", run.report);
    assert!(run.stderr.contains("--deadline"), "{}", run.stderr);
}

/// Whether this queue or exchange is there: `queue.declare queue=q`.
fn exists(client: &mut Client, declare: &str) -> bool {
    client.send(1, &format!("{declare} passive"));
    if client.next_method(1).name == "channel.close" {
        client.send(1, "channel.close-ok");
        client.call(1, "channel.open");
        return false;
    }
    true
}

#[test]
fn every_churn_does_its_count_and_leaves_nothing_behind() {
    let broker = Broker::start();
    let mut client = Client::open(&broker);
    for churn in [
        "connections",
        "session",
        "session --persistent --size 100000",
        "channels",
        "channels --pipeline 5",
        "queues",
        "queues --pipeline 5 --persistent",
        "declare",
        "declare --pipeline 5 --exchange topic",
        "bind --exchange fanout",
        "bind --pipeline 5 --persistent --exchange headers",
    ] {
        let prefix = unique("perf");
        let options = format!("--churn {churn} --count 22 --producers 2 --queue-prefix {prefix}");
        let report = perf(&uri(&broker), &options).whole();
        assert_eq!((&report["operations"], &report["errors"]), (&22.into(), &0.into()), "{report}");
        check_percentiles(&report, "");
        for (class, name) in [("queue", "0"), ("queue", "1-000000000010"), ("exchange", "exchange")]
        {
            let declare = format!("{class}.declare {class}={prefix}-{name}");
            assert!(!exists(&mut client, &declare), "{churn} left {declare} behind");
        }
    }
}

#[test]
fn churn_by_time_measures_its_time() {
    let broker = Broker::start();
    let options = format!(
        "--churn queues --pipeline 10 --warmup 0.1 --duration 0.5 --queue-prefix {}",
        unique("perf")
    );
    let report = perf(&uri(&broker), &options).whole();
    assert!(number(&report, "seconds") >= 0.5, "{report}");
    let per_second = number(&report, "operations") / number(&report, "seconds");
    let share = number(&report, "operations_per_s") / per_second;
    assert!((0.99..1.01).contains(&share), "{report}");
    check_percentiles(&report, "");
}

#[test]
fn declared_queues_stay_bound_when_they_are_kept() {
    let broker = Broker::start();
    let prefix = unique("perf");
    let options =
        format!("--churn declare --count 3 --pipeline 2 --keep-queues --queue-prefix {prefix}");
    perf(&uri(&broker), &options).whole();
    let mut client = Client::open(&broker);
    for number in 0..3 {
        let fields = format!("exchange={prefix}-exchange routing_key=0-00000000000{number}");
        client.publish(1, &fields, "", b"x");
        let queue = format!("{prefix}-0-00000000000{number}");
        assert!(client.get(1, &format!("queue={queue} no_ack")).is_some(), "{queue} is not bound");
        client.call(1, &format!("queue.delete queue={queue}"));
    }
    client.call(1, &format!("exchange.delete exchange={prefix}-exchange"));
}

#[test]
fn operations_that_fail_are_counted_and_the_run_fails() {
    let broker = Broker::start();
    for churn in ["queues", "session"] {
        let options = format!(
            "--churn {churn} --duration 0.2 --warmup 0 --queue-argument x-queue-type=none \
             --queue-prefix {}",
            unique("perf")
        );
        let run = perf(&uri(&broker), &options);
        assert_eq!(run.code, Some(1), "{}\n{}", run.report, run.stderr);
        assert_eq!(run.report["operations"], 0);
        assert!(number(&run.report, "errors") > 1.0, "{}", run.report);
        assert!(run.stderr.contains("operations failed"), "{}", run.stderr);
    }
}

#[test]
fn every_type_of_exchange_brings_every_message() {
    let broker = Broker::start();
    let mut client = Client::open(&broker);
    for exchange in [
        "direct",
        "direct --routing-keys 20 --bindings 100",
        "fanout --bindings 10 --routing-keys 3",
        "topic --bindings 300 --routing-keys 20 --priorities 3",
        "headers --bindings 30 --persistent --confirms 100",
    ] {
        let prefix = unique("perf");
        let options = format!(
            "--exchange {exchange} --queues 2 --producers 3 --consumers 3 --count 3001 --verify \
             --queue-prefix {prefix}"
        );
        let report = perf(&uri(&broker), &options).whole();
        let copies = number(&report, "delivered_per_s") / number(&report, "published_per_s");
        let expected = if exchange.starts_with("fanout") { 2.0 } else { 1.0 };
        assert!((copies - expected).abs() < 0.01, "{exchange}: {report}");
        for (class, name) in [("queue", "0"), ("queue", "1"), ("exchange", "exchange")] {
            let declare = format!("{class}.declare {class}={prefix}-{name}");
            assert!(!exists(&mut client, &declare), "{exchange} left {declare} behind");
        }
    }
}

#[test]
fn a_fanned_out_backlog_is_drained_whole() {
    let broker = Broker::start();
    let options = format!(
        "--exchange fanout --queues 3 --consumers 3 --fill 500 --verify --queue-prefix {}",
        unique("perf")
    );
    let report = perf(&uri(&broker), &options).whole();
    assert_eq!(report["waiting"], 1500, "{report}");
    assert_eq!(report["lost"], 0, "{report}");
}

#[test]
fn messages_carry_the_properties_that_were_asked_for() {
    let broker = Broker::start();
    let prefix = unique("perf");
    let options = format!(
        "--consumers 0 --count 10 --keep-queues --persistent --priorities 2 --expiration 60000 \
         --property content-type=text/plain --property content-encoding=utf-8 \
         --property correlation-id=c --property reply-to=r --property message-id=m \
         --property type=t --property app-id=a --property timestamp=1700000000 \
         --property header.tenant=blue --property header.weight=7 --property header.last=true \
         --queue-prefix {prefix}"
    );
    perf(&uri(&broker), &options).whole();
    let mut client = Client::open(&broker);
    let delivery = client.get(1, &format!("queue={prefix}-0 no_ack")).expect("10 were published");
    let text = |name: &str| delivery.properties[name].text();
    for (name, value) in [
        ("content_type", "text/plain"),
        ("content_encoding", "utf-8"),
        ("correlation_id", "c"),
        ("reply_to", "r"),
        ("message_id", "m"),
        ("type", "t"),
        ("app_id", "a"),
        ("timestamp", "1700000000"),
        ("delivery_mode", "2"),
        ("priority", "1"),
        ("expiration", "60000"),
    ] {
        assert_eq!(text(name), value, "{name}");
    }
    for (name, value) in [("tenant", "blue"), ("weight", "7"), ("last", "true")] {
        assert_eq!(delivery.header(name).map(|value| value.text()), Some(value.into()), "{name}");
    }
    client.call(1, &format!("queue.delete queue={prefix}-0"));
}

#[test]
fn what_an_operator_has_declared_is_used_and_left_alone() {
    let broker = Broker::start();
    let (mut client, queue) = (Client::open(&broker), unique("perf-own"));
    let options = format!("--predeclared --queue {queue} --count 100");
    let run = perf(&uri(&broker), &options);
    assert_eq!(run.code, Some(1), "the queue does not exist: {}", run.report);
    assert!(run.stderr.contains("404"), "{}", run.stderr);
    client.declare(1, &format!("queue={queue} arguments={{x-max-length=5000}}"));
    perf(&uri(&broker), &format!("{options} --verify")).whole();
    perf(&uri(&broker), &format!("{options} --consumers 0")).whole();
    assert_eq!(client.counts(1, &queue).0, 100);
    let run = perf(&uri(&broker), &format!("{options} --verify"));
    assert!(run.stderr.contains("holds 100 messages"), "{}", run.stderr);
    perf(&uri(&broker), &format!("{options} --producers 0")).whole();
    assert_eq!(client.counts(1, &queue).0, 0);
    client.call(1, &format!("queue.delete queue={queue}"));
}

#[test]
fn all_goes_through_tls_as_well() {
    let broker = Broker::start();
    let relay = relay::Tls::new(&broker.address);
    let secure = uri(&broker).replace("amqp://", "amqps://");
    let secure = secure.replace(&broker.address, &relay.address.to_string());
    let authority = format!("--tls-ca {}", relay.authority.path().display());
    for load in [
        "--count 5000 --verify",
        "--count 600 --verify --size 200000 --confirms 10 --ack-every 5 --prefetch 20",
        "--latency --rate 200 --count 100 --confirms 100",
        "--latency --count 20 --warmup 0",
        "--exchange topic --bindings 20 --fill 500",
        "--churn connections --count 5",
        "--churn bind --count 50 --pipeline 10",
        "--idle-connections 3 --duration 0.1",
    ] {
        perf(&secure, &format!("{load} {authority} --queue-prefix {}", unique("perf"))).whole();
    }
    let options = format!("--count 10 --queue-prefix {}", unique("perf"));
    perf(&secure, &format!("{options} --tls-insecure")).whole();

    let other = relay::Tls::new(&broker.address);
    let stranger = format!("{options} --tls-ca {}", other.authority.path().display());
    let run = perf(&secure, &stranger);
    assert_eq!(run.code, Some(1), "{}", run.report);
    assert!(run.stderr.contains("certificate"), "{}", run.stderr);
    let run = perf(&uri(&broker).replace("amqp://", "amqps://"), &stranger);
    assert_eq!(run.code, Some(1), "there is no TLS: {}", run.report);
    assert!(run.stderr.contains("cannot connect to"), "{}", run.stderr);
}
