//! Micro-benchmarks: what single parts of the broker cost, without sockets and disks.
//!
//! Owns their list and how long each takes. `make bench-micro` runs them all and compares with the
//! run before; `ARGS='queue --quick'` runs those with this in their name, for a shorter time. What
//! a broker does as a whole is measured by `make bench`.

mod client;
mod codec;
mod messages;
mod queue;
mod routing;
mod store;

use std::time::{Duration, Instant};

use criterion::{Bencher, Criterion};

/// Times one part of a cycle. All parts get the same state, in this order; the first and the last
/// one are not timed.
fn time_part<S>(
    bencher: &mut Bencher<'_>,
    state: &mut S,
    before: impl Fn(&mut S),
    timed: impl Fn(&mut S),
    after: impl Fn(&mut S),
) {
    bencher.iter_custom(|cycles| {
        let mut spent = Duration::ZERO;
        for _ in 0..cycles {
            before(state);
            let began = Instant::now();
            timed(state);
            spent += began.elapsed();
            after(state);
        }
        spent
    });
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .sample_size(30)
        .configure_from_args();
    codec::run(&mut criterion);
    routing::run(&mut criterion);
    queue::run(&mut criterion);
    store::run(&mut criterion);
    client::run(&mut criterion);
    criterion.final_summary();
}
