//! Random histories: what publishers, consumers and channels may do to one queue.
//!
//! Owns the shape of a history and how likely each step is. Steps name deliveries and consumers by
//! small numbers that are resolved when they run, so that a history stays meaningful when proptest
//! shortens it. It knows nothing of what the steps lead to.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::queue::{Overflow, SHARED_BODY_MIN, Settings};

/// The life of one queue.
#[derive(Clone, Debug)]
pub(super) struct History {
    pub(super) settings: Settings,
    /// What the gate of the gated consumers lets pass, 0 for no limit.
    pub(super) gate_limit: u32,
    pub(super) steps: Vec<Step>,
}

/// One thing that happens to the queue.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// One batch: settlements, then publishes.
    Commit {
        settles: Vec<Pick>,
        publishes: Vec<Payload>,
    },
    /// Many small publishes in one batch.
    Burst {
        count: u16,
    },
    SettleAll {
        requeue: bool,
    },
    Subscribe(Subscription),
    Cancel(ConsumerPick),
    Get {
        no_ack: bool,
    },
    Purge,
    Grant {
        consumer: ConsumerPick,
        window: u32,
    },
    Reopen,
}

/// A run of deliveries to settle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pick {
    /// Where the run begins.
    pub(super) at: u8,
    pub(super) count: u8,
    pub(super) requeue: bool,
    /// Whether to choose among all deliveries there ever were, the settled ones included.
    pub(super) stale: bool,
    /// Whether each is settled a second time.
    pub(super) twice: bool,
}

/// A consumer, possibly one that was cancelled.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConsumerPick {
    pub(super) at: u8,
    pub(super) stale: bool,
}

/// The sizes of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Payload {
    pub(super) body_len: usize,
    /// Bytes of the routing key beyond the four that carry the message's number.
    pub(super) key_pad: usize,
    /// Bytes of the content header beyond the fixed ones.
    pub(super) header_pad: usize,
}

impl Payload {
    /// Bytes of a content header without properties (AMQP 0-9-1, 4.2.6.1).
    pub(super) const HEADER_FIXED: usize = 14;

    /// What a byte window is charged for a delivery: the message and a fixed overhead.
    pub(super) fn cost(&self) -> i64 {
        let address = 2 + 4 + self.key_pad;
        (64 + address + Self::HEADER_FIXED + self.header_pad + self.body_len) as i64
    }
}

/// A consumer as it subscribes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subscription {
    pub(super) no_ack: bool,
    pub(super) prefetch: u32,
    pub(super) priority: i64,
    pub(super) window: u32,
    /// Whether it stands behind the gate that all gated consumers share.
    pub(super) is_gated: bool,
    /// Whether its window is filled again as soon as it is used up, as long as there is room in
    /// its outbox; otherwise it waits for [`Step::Grant`].
    pub(super) has_room: bool,
}

pub(super) fn arb_history() -> impl Strategy<Value = History> {
    let gate_limit = prop_oneof![1 => Just(0), 3 => 1..6_u32];
    let steps = vec(arb_step(), 1..80);
    (arb_settings(), gate_limit, steps).prop_map(|(settings, gate_limit, steps)| History {
        settings,
        gate_limit,
        steps,
    })
}

fn arb_settings() -> impl Strategy<Value = Settings> {
    let length_max = prop_oneof![2 => Just(None), 2 => (0..12_u64).prop_map(Some)];
    let bytes_max = prop_oneof![2 => Just(None), 1 => (0..20_000_u64).prop_map(Some)];
    let overflow = prop_oneof![Just(Overflow::DropHead), Just(Overflow::RejectPublish)];
    (length_max, bytes_max, overflow).prop_map(|(length_max, bytes_max, overflow)| Settings {
        length_max,
        bytes_max,
        overflow: Some(overflow),
        ..Settings::default()
    })
}

fn arb_step() -> impl Strategy<Value = Step> {
    let commit = (vec(arb_pick(), 0..3), vec(arb_payload(), 0..6))
        .prop_map(|(settles, publishes)| Step::Commit { settles, publishes });
    prop_oneof![
        200 => commit,
        1 => (1050..1200_u16).prop_map(|count| Step::Burst { count }),
        15 => any::<bool>().prop_map(|requeue| Step::SettleAll { requeue }),
        45 => arb_subscription().prop_map(Step::Subscribe),
        20 => arb_consumer_pick().prop_map(Step::Cancel),
        30 => any::<bool>().prop_map(|no_ack| Step::Get { no_ack }),
        8 => Just(Step::Purge),
        50 => (arb_consumer_pick(), arb_window())
            .prop_map(|(consumer, window)| Step::Grant { consumer, window }),
        30 => Just(Step::Reopen),
    ]
}

fn arb_pick() -> impl Strategy<Value = Pick> {
    let flags = (any::<bool>(), prop::bool::weighted(0.15), prop::bool::weighted(0.1));
    (any::<u8>(), 1..5_u8, flags).prop_map(|(at, count, (requeue, stale, twice))| Pick {
        at,
        count,
        requeue,
        stale,
        twice,
    })
}

fn arb_consumer_pick() -> impl Strategy<Value = ConsumerPick> {
    let stale = prop::bool::weighted(0.15);
    (any::<u8>(), stale).prop_map(|(at, stale)| ConsumerPick { at, stale })
}

fn arb_payload() -> impl Strategy<Value = Payload> {
    let body_len = prop_oneof![
        3 => Just(0),
        6 => 1..200_usize,
        2 => 200..3_000_usize,
        2 => 8_000..SHARED_BODY_MIN,
        1 => SHARED_BODY_MIN..SHARED_BODY_MIN + 2_000,
    ];
    (body_len, 0..40_usize, 0..60_usize).prop_map(|(body_len, key_pad, header_pad)| Payload {
        body_len,
        key_pad,
        header_pad,
    })
}

fn arb_window() -> impl Strategy<Value = u32> {
    prop_oneof![2 => 1..600_u32, 1 => 600..20_000_u32, 3 => Just(1 << 20)]
}

fn arb_subscription() -> impl Strategy<Value = Subscription> {
    let no_ack = prop::bool::weighted(0.3);
    let flags = (no_ack, prop::bool::weighted(0.4), any::<bool>());
    (0..6_u32, -1..2_i64, arb_window(), flags).prop_map(
        |(prefetch, priority, window, (no_ack, is_gated, has_room))| Subscription {
            no_ack,
            prefetch,
            priority,
            window,
            is_gated,
            has_room,
        },
    )
}

impl History {
    /// The same history with consumers whose windows are filled by [`Step::Grant`] only: the only
    /// other moment is the end of a batch, which would depend on where batches end.
    pub(super) fn with_windows_left_alone(mut self) -> Self {
        for step in &mut self.steps {
            if let Step::Subscribe(subscription) = step {
                subscription.has_room = false;
            }
        }
        self
    }

    /// The same history, reduced to what does not depend on the order in which the settlements of
    /// one batch come back: every consumer acknowledges within its own prefetch and stays, and
    /// messages are requeued one at a time.
    pub(super) fn with_credit_alone(mut self) -> Self {
        self.steps.retain(|step| !matches!(step, Step::Cancel(_)));
        for step in &mut self.steps {
            match step {
                Step::Subscribe(it) => {
                    (it.no_ack, it.is_gated, it.window) = (false, false, u32::MAX);
                    it.prefetch = it.prefetch.max(1);
                }
                Step::Commit { settles, publishes } => {
                    let alone = settles.len() == 1 && publishes.is_empty();
                    for pick in settles {
                        (pick.stale, pick.twice) = (false, false);
                        pick.requeue &= alone && pick.count == 1;
                    }
                }
                Step::Grant { window, .. } => *window = u32::MAX,
                Step::SettleAll { requeue } => *requeue = false,
                _ => {}
            }
        }
        self
    }
}
