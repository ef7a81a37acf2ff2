//! What finding the queues of one message takes, by the exchange's type and number of bindings,
//! where no route is remembered.
//!
//! Owns bindings of which one matches; the others only stand in the way. A fanout has one for each
//! queue's key, all of which lead to one queue.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use leveret::codec::method::{AMQPProperties, AMQPValue, FieldTable, header_payload};
use leveret::codec::properties::Properties;
use leveret::routing::{
    Destination, ExchangeKind, ExchangeSpec, Message, Origin, QueueId, Routed, Topology,
};

use crate::messages::header;

pub const BINDINGS: [usize; 3] = [10, 1000, 100_000];

const KINDS: [(&str, ExchangeKind); 4] = [
    ("direct", ExchangeKind::Direct),
    ("fanout", ExchangeKind::Fanout),
    ("topic", ExchangeKind::Topic),
    ("headers", ExchangeKind::Headers),
];

/// Matches the binding [`MATCHING`] of a topic exchange, whatever its last word is.
pub const MATCHED: &str = "site.here";
/// See [`MATCHED`].
pub const MATCHING: &str = "site.here.*";

/// A binding key of a topic exchange that matches nothing that is published.
pub fn other_key(number: usize) -> String {
    match number % 3 {
        0 => format!("site.other{number}.*"),
        1 => format!("*.other{number}.#"),
        _ => format!("site.*.other{number}"),
    }
}

pub fn run(criterion: &mut Criterion) {
    for (name, kind) in KINDS {
        let mut group = criterion.benchmark_group(format!("route {name}"));
        for bindings in BINDINGS {
            let mut topology = None;
            let (key, header) = (format!("{MATCHED}.now"), message_header(kind));
            let properties = Properties::of_header(&header);
            let mut routed = Routed::default();
            group.throughput(Throughput::Elements(1));
            group.bench_function(BenchmarkId::from_parameter(bindings), |b| {
                let topology = topology.get_or_insert_with(|| make(kind, bindings));
                b.iter(|| {
                    let keys = [black_box(key.as_bytes())];
                    let message = Message { keys: &keys, properties };
                    topology
                        .route(b"e", &message, Origin::Client, &mut |_| false, &mut routed)
                        .expect("the exchange is there");
                    assert_eq!(routed.queues.len(), 1);
                });
            });
        }
        group.finish();
    }
}

fn make(kind: ExchangeKind, bindings: usize) -> Topology {
    let mut topology = Topology::new("/");
    topology.declare_exchange("e", ExchangeSpec::durable(kind)).expect("it is new");
    topology.add_queue("q", QueueId(1));
    let mut bind = |key: &str, arguments: &FieldTable| {
        let queue = Destination::Queue("q");
        topology.bind("e", queue, key.as_bytes(), arguments).expect("both ends are there");
    };
    let is_headers = kind == ExchangeKind::Headers;
    for number in 1..bindings {
        let arguments =
            if is_headers { fields(&number.to_string()) } else { FieldTable::default() };
        bind(&other_key(number), &arguments);
    }
    let key = if kind == ExchangeKind::Topic { MATCHING } else { "site.here.now" };
    bind(key, &if is_headers { fields("here") } else { FieldTable::default() });
    topology
}

/// Binding arguments and message headers.
fn fields(site: &str) -> FieldTable {
    let mut fields = FieldTable::default();
    fields.insert("site".into(), AMQPValue::LongString(site.into()));
    fields.insert("kind".into(), AMQPValue::LongString("temperature".into()));
    fields
}

fn message_header(kind: ExchangeKind) -> Vec<u8> {
    match kind {
        ExchangeKind::Headers => {
            header_payload(60, 16, &AMQPProperties::default().with_headers(fields("here")))
        }
        _ => header(16),
    }
}
