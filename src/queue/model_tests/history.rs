//! Random histories: what publishers, consumers, channels and operators may do to one queue, and
//! what a store and a crash may do to a durable one.
//!
//! Owns the shape of a history and how likely each step is. Steps name deliveries and consumers by
//! small numbers that are resolved when they run, so that a history stays meaningful when proptest
//! shortens it. It knows nothing of what the steps lead to.

use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;

use crate::queue::{Kind, LARGE_DISCOUNT, Overflow, SHARED_BODY_MIN, Settings};

/// The life of one queue.
#[derive(Clone, Debug)]
pub(super) struct History {
    pub(super) settings: Settings,
    /// What the gate of the gated consumers lets pass, 0 for no limit.
    pub(super) gate_limit: u32,
    pub(super) steps: Vec<Step>,
}

/// The life of one queue that may have messages on the disk.
#[derive(Clone, Debug)]
pub(super) struct DurableHistory {
    pub(super) history: History,
    pub(super) is_durable: bool,
    /// As it begins.
    pub(super) conditions: Conditions,
    /// Whether what is left is taken out one by one, rather than purged.
    pub(super) is_drained: bool,
}

/// How the store, and what drives the queue, behave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conditions {
    /// The memory that the queue may take (bytes).
    pub(super) budget: usize,
    /// Beyond this, what the store does not have is put aside, unless there are so many pieces
    /// already: there is no more room for them (bytes, pieces).
    pub(super) aside: Option<(usize, usize)>,
    /// Commands whose effects are written as one group.
    pub(super) group_commands: u8,
    /// Groups that wait to be written.
    pub(super) lag: u8,
    /// About so much is read at once (bytes).
    pub(super) chunk: usize,
    /// The longest run that is read (messages).
    pub(super) run_max: u8,
    /// With so many messages before those that are wanted a run may begin.
    pub(super) early: u8,
    /// Where a chunk ends: see `Kept::read`.
    pub(super) late: u8,
    pub(super) cleaning: Cleaning,
    /// Whether everything that is wanted is loaded at once.
    pub(super) is_eager: bool,
}

/// What a store drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cleaning {
    /// Nothing yet.
    Never,
    /// What is below the watermark.
    Below,
    /// Also what is settled above.
    Settled,
}

/// What happens between a queue and the disk.
#[derive(Clone, Copy, Debug)]
pub(super) enum StoreStep {
    Conditions(Conditions),
    /// What is wanted is read and taken in; with `at_once`, also what nobody waits for.
    Load {
        at_once: bool,
    },
    /// What is wanted is read, to be taken in later.
    Fetch {
        at_once: bool,
    },
    /// What was read first is taken in.
    Install,
    /// So many dead letters have arrived where they go.
    Bury(u8),
    /// The broker dies and starts again. So many of the groups that were not written are lost.
    Crash {
        lost: u8,
    },
}

/// One thing that happens to the queue.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// One batch: settlements, then publishes; or the other way round.
    Commit {
        settles: Vec<Pick>,
        publishes: Vec<Payload>,
        publishes_first: bool,
    },
    /// Many small publishes in one batch.
    Burst {
        count: u16,
        priority: Option<u8>,
        expiration_ms: Option<u64>,
        persistent: bool,
    },
    SettleAll(Settlement),
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
    /// Time goes by, and nobody looks.
    Wait {
        ms: u64,
    },
    /// Time goes by until the queue wants to be looked at, if that is not a long time.
    WaitForDeadline,
    /// What is due is looked after.
    Tick,
    /// Another policy takes effect. The queue keeps its structure.
    Configure(Settings),
    /// Means something to queues that use a disk only.
    Store(StoreStep),
}

/// What becomes of a delivered message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settlement {
    Done,
    Reject,
    Requeue,
}

/// A run of deliveries to settle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pick {
    /// Where the run begins.
    pub(super) at: u8,
    pub(super) count: u8,
    pub(super) settlement: Settlement,
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

/// The sizes of a message, and the properties with a meaning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Payload {
    pub(super) body_len: usize,
    /// Bytes of the routing key beyond the four that carry the message's number.
    pub(super) key_pad: usize,
    /// Bytes of a text among the properties: `content-type` or, if odd, `message-id`, which stand
    /// before and after the others. 0 for neither.
    pub(super) text_len: u8,
    pub(super) priority: Option<u8>,
    pub(super) expiration_ms: Option<u64>,
    /// Whether a durable queue keeps it.
    pub(super) persistent: bool,
}

impl Payload {
    pub(super) const SMALL: Self = Self {
        body_len: 1,
        key_pad: 0,
        text_len: 0,
        priority: None,
        expiration_ms: None,
        persistent: false,
    };

    /// What a byte window is charged for a delivery: the message and a fixed overhead.
    pub(super) fn cost(&self) -> i64 {
        let address = 2 + 4 + self.key_pad;
        // Class, weight, body size and flags (AMQP 0-9-1, 4.2.6.1).
        let mut header = 2 + 2 + 8 + 2;
        header += usize::from(self.text_len) + usize::from(self.text_len > 0);
        header += usize::from(self.priority.is_some()) + usize::from(self.persistent);
        header += self.expiration_ms.map_or(0, |ms| 1 + ms.to_string().len());
        // Large bodies are not copied.
        let part = if self.body_len >= SHARED_BODY_MIN { LARGE_DISCOUNT } else { 1 };
        (64 + address + header + self.body_len / part) as i64
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
    /// Whether the broker may cancel it when it holds a delivery for too long. Otherwise its
    /// channel is closed, and what it holds comes back later.
    pub(super) knows_cancel: bool,
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

pub(super) fn arb_durable_history() -> impl Strategy<Value = DurableHistory> {
    let step = prop_oneof![5 => arb_step(), 3 => arb_store_step().prop_map(Step::Store)];
    let history = (arb_settings(), 0..6_u32, vec(step, 1..80));
    let kind = (any::<bool>(), 0..3_usize, any::<bool>(), prop::bool::weighted(0.9));
    (history, arb_conditions(), kind).prop_map(
        |((settings, gate_limit, steps), conditions, kind)| {
            let (is_mixed, consumers, is_drained, is_durable) = kind;
            let mut history = History { settings, gate_limit, steps };
            if !is_mixed {
                history.every_message(|it| *it.persistent = true);
            }
            if consumers > 0 {
                history.have_few_consumers(consumers);
            }
            DurableHistory { history, is_durable, conditions, is_drained }
        },
    )
}

fn arb_store_step() -> impl Strategy<Value = StoreStep> {
    let at_once = prop::bool::weighted(0.3);
    prop_oneof![
        1 => arb_conditions().prop_map(StoreStep::Conditions),
        4 => at_once.prop_map(|at_once| StoreStep::Load { at_once }),
        4 => at_once.prop_map(|at_once| StoreStep::Fetch { at_once }),
        3 => Just(StoreStep::Install),
        3 => (1..20_u8).prop_map(StoreStep::Bury),
        2 => (0..6_u8).prop_map(|lost| StoreStep::Crash { lost }),
    ]
}

fn arb_conditions() -> impl Strategy<Value = Conditions> {
    let budget = prop_oneof![2 => Just(0), 3 => 0..8_000_usize, 2 => 8_000..100_000_usize];
    let pieces = prop_oneof![3 => Just(usize::MAX), 1 => 0..4_usize];
    let aside = weighted(0.3, (prop_oneof![1 => Just(0), 1 => 0..8_000_usize], pieces));
    let group_commands = prop_oneof![2 => Just(1), 1 => 2..5_u8];
    let lag = prop_oneof![1 => Just(0), 1 => 1..5_u8];
    let chunk = prop_oneof![1 => 1..500_usize, 1 => 500..20_000_usize];
    let run = (prop_oneof![1 => 1..4_u8, 1 => Just(u8::MAX)], 0..4_u8, 0..12_u8);
    let cleaning =
        prop_oneof![Just(Cleaning::Never), Just(Cleaning::Below), Just(Cleaning::Settled)];
    let flags = (cleaning, any::<bool>());
    ((budget, aside, group_commands, lag, chunk), run, flags).prop_map(
        |(sizes, (run_max, early, late), (cleaning, is_eager))| {
            let (budget, aside, group_commands, lag, chunk) = sizes;
            Conditions {
                budget,
                aside,
                group_commands,
                lag,
                chunk,
                run_max,
                early,
                late,
                cleaning,
                is_eager,
            }
        },
    )
}

/// Most queues have few of the features at a time, so that these get room to show.
fn arb_settings() -> impl Strategy<Value = Settings> {
    let kind = prop_oneof![2 => Just(Kind::Classic), 1 => Just(Kind::Quorum)];
    let priority_max = prop_oneof![2 => 0..4_u8, 1 => 4..=255_u8, 1 => Just(255)];
    let structure = (kind, weighted(0.4, priority_max), prop::bool::weighted(0.2));
    (structure, arb_policy()).prop_map(|((kind, priority_max, single), policy)| Settings {
        kind,
        priority_max: priority_max.filter(|_| kind == Kind::Classic),
        single_active_consumer: single,
        ..policy
    })
}

/// What policies can change.
fn arb_policy() -> impl Strategy<Value = Settings> {
    let overflow = prop_oneof![
        Just(Overflow::DropHead),
        Just(Overflow::RejectPublish),
        Just(Overflow::RejectPublishDlx)
    ];
    let bytes_max = prop_oneof![1 => 0..12_u64, 1 => 0..20_000_u64];
    let timeout_ms = prop_oneof![1 => Just(0), 4 => 1..500_u64];
    let limits = (weighted(0.35, 0..12_u64), weighted(0.2, bytes_max), weighted(0.8, overflow));
    let lives = (weighted(0.3, arb_ttl()), weighted(0.3, timeout_ms));
    let endings = (any::<bool>(), weighted(0.3, 0..4_u32));
    (limits, lives, endings).prop_map(
        |((length_max, bytes_max, overflow), (message_ttl_ms, timeout_ms), (dlx, limit))| {
            Settings {
                length_max,
                bytes_max,
                overflow,
                message_ttl_ms,
                consumer_timeout_ms: timeout_ms,
                dead_letter_exchange: dlx.then(|| "dlx".into()),
                delivery_limit: limit,
                ..Settings::default()
            }
        },
    )
}

/// A time to live (milliseconds), up to the longest that is accepted.
fn arb_ttl() -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(0), 6 => 1..10_u64, 6 => 10..400_u64, 1 => Just(315_360_000_000)]
}

fn arb_priority() -> impl Strategy<Value = Option<u8>> {
    weighted(0.6, prop_oneof![3 => 0..4_u8, 2 => 4..7_u8, 1 => 7..=255_u8, 1 => Just(255)])
}

fn arb_step() -> impl Strategy<Value = Step> {
    let commit = (vec(arb_pick(), 0..3), vec(arb_payload(), 0..6), prop::bool::weighted(0.2))
        .prop_map(|(settles, publishes, publishes_first)| Step::Commit {
            settles,
            publishes,
            publishes_first,
        });
    let count = prop_oneof![2 => 70..300_u16, 1 => 1050..1200_u16];
    let burst = (count, arb_priority(), weighted(0.7, arb_ttl()), any::<bool>()).prop_map(
        |(count, priority, expiration_ms, persistent)| Step::Burst {
            count,
            priority,
            expiration_ms,
            persistent,
        },
    );
    let wait = prop_oneof![3 => 1..6_u64, 3 => 6..120_u64, 1 => 120..2_000_u64];
    prop_oneof![
        200 => commit,
        2 => burst,
        15 => arb_settlement().prop_map(Step::SettleAll),
        45 => arb_subscription().prop_map(Step::Subscribe),
        20 => arb_consumer_pick().prop_map(Step::Cancel),
        30 => any::<bool>().prop_map(|no_ack| Step::Get { no_ack }),
        8 => Just(Step::Purge),
        50 => (arb_consumer_pick(), arb_window())
            .prop_map(|(consumer, window)| Step::Grant { consumer, window }),
        30 => Just(Step::Reopen),
        70 => wait.prop_map(|ms| Step::Wait { ms }),
        20 => Just(Step::WaitForDeadline),
        50 => Just(Step::Tick),
        8 => arb_policy().prop_map(Step::Configure),
    ]
}

fn arb_settlement() -> impl Strategy<Value = Settlement> {
    prop_oneof![
        2 => Just(Settlement::Done),
        1 => Just(Settlement::Reject),
        3 => Just(Settlement::Requeue)
    ]
}

fn arb_pick() -> impl Strategy<Value = Pick> {
    let flags = (prop::bool::weighted(0.15), prop::bool::weighted(0.1));
    (any::<u8>(), 1..5_u8, arb_settlement(), flags).prop_map(
        |(at, count, settlement, (stale, twice))| Pick { at, count, settlement, stale, twice },
    )
}

fn arb_consumer_pick() -> impl Strategy<Value = ConsumerPick> {
    let stale = prop::bool::weighted(0.15);
    (any::<u8>(), stale).prop_map(|(at, stale)| ConsumerPick { at, stale })
}

fn arb_payload() -> impl Strategy<Value = Payload> {
    let body_len = prop_oneof![
        3 => Just(0),
        3 => 1..4_usize,
        4 => 4..200_usize,
        2 => 200..3_000_usize,
        2 => 8_000..SHARED_BODY_MIN,
        1 => SHARED_BODY_MIN..SHARED_BODY_MIN + 2_000,
    ];
    let text_len = prop_oneof![1 => Just(0), 2 => 1..60_u8];
    let sizes = (body_len, 0..40_usize, text_len);
    let persistent = prop::bool::weighted(0.7);
    (sizes, arb_priority(), weighted(0.3, arb_ttl()), persistent).prop_map(
        |((body_len, key_pad, text_len), priority, expiration_ms, persistent)| Payload {
            body_len,
            key_pad,
            text_len,
            priority,
            expiration_ms,
            persistent,
        },
    )
}

fn arb_window() -> impl Strategy<Value = u32> {
    prop_oneof![2 => 1..600_u32, 1 => 600..20_000_u32, 3 => Just(1 << 20)]
}

fn arb_subscription() -> impl Strategy<Value = Subscription> {
    let no_ack = prop::bool::weighted(0.3);
    let flags = (no_ack, prop::bool::weighted(0.4), any::<bool>(), any::<bool>());
    (0..6_u32, -1..2_i64, arb_window(), flags).prop_map(
        |(prefetch, priority, window, (no_ack, is_gated, has_room, knows_cancel))| Subscription {
            no_ack,
            prefetch,
            priority,
            window,
            is_gated,
            has_room,
            knows_cancel,
        },
    )
}

/// What properties of a message the queue looks at.
struct Meaning<'a> {
    priority: &'a mut Option<u8>,
    expiration_ms: &'a mut Option<u64>,
    persistent: &'a mut bool,
}

impl History {
    fn every_policy(&mut self, change: impl Fn(&mut Settings)) {
        change(&mut self.settings);
        for step in &mut self.steps {
            if let Step::Configure(settings) = step {
                change(settings);
            }
        }
    }

    fn every_message(&mut self, change: impl Fn(Meaning<'_>)) {
        for step in &mut self.steps {
            match step {
                Step::Commit { publishes, .. } => {
                    for Payload { priority, expiration_ms, persistent, .. } in publishes {
                        change(Meaning { priority, expiration_ms, persistent });
                    }
                }
                Step::Burst { priority, expiration_ms, persistent, .. } => {
                    change(Meaning { priority, expiration_ms, persistent });
                }
                _ => {}
            }
        }
    }

    /// Leaves out all subscriptions but the last ones of so many, so that messages wait.
    fn have_few_consumers(&mut self, count: usize) {
        let is_subscription = |step: &Step| matches!(step, Step::Subscribe(_));
        let mut others = self.steps.iter().filter(|it| is_subscription(it)).count();
        others = others.saturating_sub(count);
        self.steps.retain(|step| {
            let is_other = is_subscription(step) && others > 0;
            others -= usize::from(is_other);
            !is_other
        });
    }

    /// The same history without what depends, by design, on where batches of publishes end:
    ///
    /// - the windows of consumers are filled by [`Step::Grant`] only, as the other moment is the
    ///   end of a batch;
    /// - settlements come first in a batch, as what they bring back goes before what is published;
    /// - all messages have one priority, as a batch gives away its most urgent message first;
    /// - where room is limited nothing expires, as what is dead and in the way leaves for either
    ///   reason, and what expires at once waits for the end of its batch;
    /// - no consumer times out, as that needs no batches at all.
    pub(super) fn with_batches_of_no_account(mut self) -> Self {
        for step in &mut self.steps {
            match step {
                Step::Subscribe(subscription) => subscription.has_room = false,
                Step::Commit { publishes_first, .. } => *publishes_first = false,
                _ => {}
            }
        }
        self.every_message(|it| *it.priority = None);
        let may_expire = !self.is_limited();
        self.every_policy(|policy| {
            policy.consumer_timeout_ms = None;
            policy.message_ttl_ms = policy.message_ttl_ms.filter(|_| may_expire);
        });
        self.every_message(|it| *it.expiration_ms = it.expiration_ms.filter(|_| may_expire));
        self
    }

    /// Whether a limit ever holds.
    fn is_limited(&self) -> bool {
        let policies = self.steps.iter().filter_map(|step| match step {
            Step::Configure(settings) => Some(settings),
            _ => None,
        });
        let mut policies = policies.chain([&self.settings]);
        policies.any(|policy| policy.length_max.is_some() || policy.bytes_max.is_some())
    }

    /// The same history, reduced to what does not depend on the order in which the settlements of
    /// one batch come back: every consumer acknowledges within its own prefetch and stays,
    /// messages are requeued one at a time, and none expires in the very millisecond of a batch
    /// (times to live are odd, steps of time even).
    pub(super) fn with_credit_alone(mut self) -> Self {
        self.steps.retain(|step| !matches!(step, Step::Cancel(_) | Step::WaitForDeadline));
        self.every_policy(|policy| policy.message_ttl_ms = policy.message_ttl_ms.map(|ms| ms | 1));
        self.every_message(|it| *it.expiration_ms = it.expiration_ms.map(|ms| ms | 1));
        for step in &mut self.steps {
            match step {
                Step::Subscribe(it) => {
                    (it.no_ack, it.is_gated, it.window) = (false, false, u32::MAX);
                    it.prefetch = it.prefetch.max(1);
                }
                Step::Commit { settles, publishes, .. } => {
                    let alone = settles.len() == 1 && publishes.is_empty();
                    for pick in settles {
                        (pick.stale, pick.twice) = (false, false);
                        let is_requeue = pick.settlement == Settlement::Requeue;
                        if is_requeue && !(alone && pick.count == 1) {
                            pick.settlement = Settlement::Done;
                        }
                    }
                }
                Step::Grant { window, .. } => *window = u32::MAX,
                Step::SettleAll(it) if *it == Settlement::Requeue => *it = Settlement::Done,
                Step::Wait { ms } => *ms &= !1,
                _ => {}
            }
        }
        self
    }
}
