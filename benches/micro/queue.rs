//! What a queue takes for a message: to come in, to be delivered, to be settled in order and out of
//! order, and to come back.

use criterion::{BenchmarkId, Criterion, Throughput};
use leveret::bench_api::BareQueue;

use crate::messages::{address, header};
use crate::time_part;

/// Messages of a batch.
const BATCHES: [usize; 2] = [10, 1000];
const BODY: [u8; 16] = [b'.'; 16];

/// A queue, and the orders in which its deliveries can be settled.
struct Bench {
    queue: BareQueue,
    address: Vec<u8>,
    header: Vec<u8>,
    in_order: Vec<usize>,
    mixed: Vec<usize>,
}

impl Bench {
    fn new(batch: usize) -> Self {
        // Each number once: the step has no divisor in common with the batch.
        let mixed = (0..batch).map(|index| index * 377 % batch).collect();
        Self {
            queue: BareQueue::new(false),
            address: address("", "queue"),
            header: header(BODY.len()),
            in_order: (0..batch).collect(),
            mixed,
        }
    }

    fn push(&mut self) {
        self.queue.push(&self.address, &self.header, &BODY, self.in_order.len() as u32);
    }

    fn deliver(&mut self) {
        assert_eq!(self.queue.deliver(), self.in_order.len());
    }

    fn push_and_deliver(&mut self) {
        self.push();
        self.deliver();
    }

    fn acknowledge(&mut self) {
        self.queue.acknowledge(&self.in_order);
    }

    fn acknowledge_mixed(&mut self) {
        self.queue.acknowledge(&self.mixed);
    }

    fn put_back(&mut self) {
        self.queue.put_back(&self.mixed);
    }

    fn purge(&mut self) {
        self.queue.purge();
    }
}

/// A part of a message's life, with what comes before and after it.
type Part = (&'static str, Consumer, fn(&mut Bench), fn(&mut Bench), fn(&mut Bench));

#[derive(Clone, Copy, PartialEq)]
enum Consumer {
    None,
    Acknowledges,
    DoesNot,
}

fn nothing(_: &mut Bench) {}

const PARTS: [Part; 6] = [
    ("push", Consumer::None, nothing, Bench::push, Bench::purge),
    ("hand on", Consumer::DoesNot, nothing, Bench::push_and_deliver, nothing),
    ("deliver", Consumer::Acknowledges, Bench::push, Bench::deliver, Bench::acknowledge),
    ("ack in order", Consumer::Acknowledges, Bench::push_and_deliver, Bench::acknowledge, nothing),
    (
        "ack out of order",
        Consumer::Acknowledges,
        Bench::push_and_deliver,
        Bench::acknowledge_mixed,
        nothing,
    ),
    ("requeue", Consumer::Acknowledges, Bench::push_and_deliver, Bench::put_back, Bench::purge),
];

pub fn run(criterion: &mut Criterion) {
    for (name, consumer, before, timed, after) in PARTS {
        let mut group = criterion.benchmark_group(format!("queue {name}"));
        for batch in BATCHES {
            let mut bench = Bench::new(batch);
            if consumer != Consumer::None {
                bench.queue.consume(consumer == Consumer::DoesNot);
            }
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(BenchmarkId::from_parameter(batch), |b| {
                time_part(b, &mut bench, before, timed, after);
            });
        }
        group.finish();
    }
}
