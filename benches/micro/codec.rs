//! What reading a publish and writing a delivery takes, by the size of the body.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use leveret::codec::encode::{DeliverHead, put_delivery};
use leveret::codec::frame::{FrameKind, split};
use leveret::codec::hot::{ContentHeader, Publish};

use crate::messages::{FRAME_MAX, address, header, publishes};

const BODY_SIZES: [usize; 4] = [16, 1024, 16 * 1024, 128 * 1024];

pub fn run(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse publish");
    for size in BODY_SIZES {
        let bytes = publishes("exchange", &["routing.key".to_owned()], size, 1);
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| parse(black_box(&bytes)));
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("write deliver");
    for size in BODY_SIZES {
        let (head, address) = (DeliverHead::new(1, b"consumer"), address("exchange", "key"));
        let (header, body, mut out) = (header(size), vec![b'.'; size], Vec::new());
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| {
                out.clear();
                put_delivery(&mut out, &head, 7, false, FRAME_MAX, &address, &header, &body);
                black_box(&out);
            });
        });
    }
    group.finish();
}

/// Reads all frames; answers the bytes of bodies.
fn parse(mut bytes: &[u8]) -> usize {
    let mut body_bytes = 0;
    while let Some((frame, used)) = split(bytes, FRAME_MAX).expect("well-formed frames") {
        match frame.kind {
            FrameKind::Method => {
                black_box(Publish::parse(frame.payload).expect("a publish"));
            }
            FrameKind::Header => {
                black_box(ContentHeader::parse(frame.payload).expect("a content header"));
            }
            FrameKind::Body => body_bytes += frame.payload.len(),
            FrameKind::Heartbeat => {}
        }
        bytes = &bytes[used..];
    }
    body_bytes
}
