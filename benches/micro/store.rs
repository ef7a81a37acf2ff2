//! What one group commit takes: handing over, writing without a sync, and being told. The disk's
//! share is `scripts/bench-durability`'s.

use criterion::{BenchmarkId, Criterion, Throughput};
use leveret::bench_api::{BareQueue, BareStore};
use leveret::codec::method::{AMQPProperties, header_payload};

use crate::messages::address;
use crate::time_part;

/// Queues of a group, messages of each, and bytes of a body.
const GROUPS: [(usize, u32, usize); 5] =
    [(1, 1, 16), (1, 1000, 16), (1, 1000, 1024), (100, 10, 16), (1, 10, 128 * 1024)];

pub fn run(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = match BareStore::open(&directory.path().join("store")) {
        Ok(store) => store,
        Err(reason) => {
            println!("the store is left out: {reason}");
            return;
        }
    };
    let mut group = criterion.benchmark_group("store append");
    for (count, each, size) in GROUPS {
        let (address, body) = (address("", "queue"), vec![b'.'; size]);
        let persistent = AMQPProperties::default().with_delivery_mode(2);
        let header = header_payload(60, size as u64, &persistent);
        let mut queues: Vec<_> = (0..count).map(|_| BareQueue::new(true)).collect();
        group.throughput(Throughput::Elements(count as u64 * u64::from(each)));
        let name = format!("{count} queues, {each} messages each, {size} B");
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            let push = |queues: &mut Vec<BareQueue>| {
                queues.iter_mut().for_each(|queue| queue.push(&address, &header, &body, each));
            };
            let commit = |queues: &mut Vec<BareQueue>| store.commit(queues);
            let drop_all = |queues: &mut Vec<BareQueue>| {
                queues.iter_mut().for_each(BareQueue::purge);
                store.commit(queues);
            };
            time_part(b, &mut queues, push, commit, drop_all);
        });
    }
    group.finish();
}
