//! The checks can fail: each wrong finding is told for what it is, and right ones are not.

use super::*;
use crate::crash::ledger::{Event, Settlement, Sort};

const Q: usize = 0;
const DEAD: usize = 1;
const PASSING: usize = 2;
const CRASH_MS: u64 = 1000;

fn id(number: u32) -> MessageId {
    MessageId { publisher: 1, number }
}

/// A queue whose dead letters go to the next, and one that is not durable.
fn queues() -> Vec<Queue> {
    let dead = Queue { order: Order::Any, ..Queue::durable("dead") };
    let passing = Queue { durable: false, ..Queue::durable("passing") };
    vec![Queue { dead_letters: vec![DEAD], ..Queue::durable("q") }, dead, passing]
}

fn sent_as(number: u32, sort: Sort, group: Option<u32>) -> Event {
    Event::Sent { id: id(number), queues: vec![Q], sort, at_ms: 100, group }
}

fn sent(number: u32) -> Event {
    sent_as(number, Sort::PLAIN, None)
}

fn confirmed(number: u32) -> Event {
    Event::Confirmed { id: id(number), at_ms: 110 }
}

fn delivered(number: u32) -> Event {
    Event::Delivered { queue: Q, id: id(number), redelivered: false, priority: None }
}

fn settled(number: u32, how: Settlement) -> Event {
    Event::Settled { queue: Q, id: id(number), how }
}

/// Another publisher's message, as a sign that what came before is on disk.
fn synced() -> [Event; 2] {
    let mark = MessageId { publisher: 9, number: 1 };
    [
        Event::Sent { id: mark, queues: vec![DEAD], sort: Sort::PLAIN, at_ms: 1, group: None },
        Event::Confirmed { id: mark, at_ms: 2 },
    ]
}

/// A crash after these events of one client.
fn crashed(queues: Vec<Queue>, log: Vec<Event>) -> Ledger {
    let mut ledger = Ledger::new(queues);
    assert_eq!(ledger.absorb(&[log], CRASH_MS), []);
    ledger.crash(1);
    ledger
}

/// Five messages that are confirmed, and then these events.
fn five(then: &[Event]) -> Ledger {
    let mut log: Vec<Event> = (1..=5).flat_map(|n| [sent(n), confirmed(n)]).collect();
    log.extend_from_slice(then);
    crashed(queues(), log)
}

fn seen(number: u32) -> Seen {
    Seen {
        id: Ok(id(number)),
        redelivered: false,
        asked_ms: CRASH_MS + 100,
        came_ms: CRASH_MS + 100,
        count: 0,
        persistent: true,
        priority: None,
        expiration: None,
        properties: String::new(),
        deaths: Vec::new(),
    }
}

fn again(number: u32) -> Seen {
    Seen { redelivered: true, ..seen(number) }
}

fn dead(number: u32, queue: &str, reason: &str) -> Seen {
    let death = Death { queue: queue.to_owned(), reason: reason.to_owned() };
    Seen { deaths: vec![death], ..seen(number) }
}

fn mark() -> Seen {
    Seen { id: Ok(MessageId { publisher: 9, number: 1 }), ..seen(1) }
}

fn found(queue: usize, seen: Vec<Seen>) -> Found {
    Found { queue, seen, ended_ms: CRASH_MS + 200 }
}

fn numbers(numbers: &[u32]) -> Vec<Seen> {
    numbers.iter().map(|n| seen(*n)).collect()
}

/// What is found is reported as exactly these kinds.
#[track_caller]
fn reports(ledger: &Ledger, found: &[Found], kinds: &[Kind]) {
    let violations = judge(ledger, found);
    let came: BTreeSet<Kind> = violations.iter().map(|violation| violation.kind).collect();
    assert_eq!(came, kinds.iter().copied().collect(), "{violations:?}");
}

#[test]
fn what_is_right_is_not_reported() {
    reports(&five(&[]), &[found(Q, numbers(&[1, 2, 3, 4, 5])), found(DEAD, vec![])], &[]);
}

#[test]
fn each_wrong_content_is_reported() {
    let ledger = five(&[]);
    let wrong = |seen: Vec<Seen>, kind| reports(&ledger, &[found(Q, seen)], &[kind]);
    wrong(numbers(&[1, 2, 4, 5]), Kind::Lost);
    wrong(numbers(&[]), Kind::Lost);
    wrong(numbers(&[1, 2, 3, 3, 4, 5]), Kind::Duplicated);
    wrong(numbers(&[1, 3, 2, 4, 5]), Kind::Reordered);
    wrong(numbers(&[1, 2, 3, 4, 5, 6]), Kind::Invented);
    let damaged = Seen { id: Err("half of it".to_owned()), ..seen(6) };
    wrong(numbers(&[1, 2, 3, 4, 5]).into_iter().chain([damaged]).collect(), Kind::Damaged);
    let flagged = vec![again(1), seen(2), seen(3), seen(4), seen(5)];
    wrong(flagged, Kind::Flag);
    let transient = Seen { persistent: false, ..seen(1) };
    wrong(vec![transient, seen(2), seen(3), seen(4), seen(5)], Kind::Changed);
    let urgent = Seen { priority: Some(3), ..seen(1) };
    wrong(vec![urgent, seen(2), seen(3), seen(4), seen(5)], Kind::Changed);
}

#[test]
fn a_message_in_another_queue_is_invented() {
    reports(
        &five(&[]),
        &[found(Q, numbers(&[1, 2, 3, 4, 5])), found(PASSING, vec![seen(1)])],
        &[Kind::Invented],
    );
}

#[test]
fn unconfirmed_messages_may_be_there_or_not() {
    let ledger = five(&[sent(6), sent(7)]);
    for there in [&[1, 2, 3, 4, 5][..], &[1, 2, 3, 4, 5, 6], &[1, 2, 3, 4, 5, 6, 7]] {
        reports(&ledger, &[found(Q, numbers(there))], &[]);
    }
    reports(&ledger, &[found(Q, numbers(&[1, 2, 3, 4, 5, 6, 6]))], &[Kind::Duplicated]);
}

#[test]
fn an_ack_counts_when_something_after_it_was_confirmed() {
    let acked = [delivered(1), settled(1, Settlement::Ack)];
    let maybe = five(&acked);
    reports(&maybe, &[found(Q, numbers(&[2, 3, 4, 5]))], &[]);
    reports(&maybe, &[found(Q, vec![again(1), seen(2), seen(3), seen(4), seen(5)])], &[]);
    let stored = five(&[&acked[..], &synced()].concat());
    reports(&stored, &[found(Q, numbers(&[2, 3, 4, 5])), found(DEAD, vec![mark()])], &[]);
    reports(
        &stored,
        &[found(Q, vec![again(1), seen(2), seen(3), seen(4), seen(5)])],
        &[Kind::CameBack],
    );
    // Sent before the ack and confirmed after it says nothing.
    let [mark_sent, mark_confirmed] = synced();
    let order = [mark_sent, acked[0].clone(), acked[1].clone(), mark_confirmed];
    reports(&five(&order), &[found(Q, vec![again(1), seen(2), seen(3), seen(4), seen(5)])], &[]);
    // A transaction's answer does as well.
    let committed = [&acked[..], &[Event::Synced { before: 12 }]].concat();
    reports(
        &five(&committed),
        &[found(Q, numbers(&[1, 2, 3, 4, 5]))],
        &[Kind::CameBack, Kind::Flag],
    );
}

#[test]
fn a_receipt_that_is_on_disk_is_flagged() {
    let ledger = five(&[&[delivered(1)][..], &synced()].concat());
    reports(&ledger, &[found(Q, numbers(&[1, 2, 3, 4, 5]))], &[Kind::Flag]);
    reports(&ledger, &[found(Q, vec![again(1), seen(2), seen(3), seen(4), seen(5)])], &[]);
    let consumed: Vec<Queue> =
        queues().into_iter().map(|queue| Queue { is_consumed: true, ..queue }).collect();
    let ledger = crashed(consumed, vec![sent(1), confirmed(1)]);
    reports(&ledger, &[found(Q, vec![again(1)])], &[]);
    reports(&ledger, &[found(Q, vec![seen(1)])], &[]);
}

#[test]
fn a_dead_letter_is_in_one_place_at_least() {
    let rejected = [delivered(1), settled(1, Settlement::Reject)];
    let ledger = five(&[&rejected[..], &synced()].concat());
    let rest = || numbers(&[2, 3, 4, 5]);
    let back = || [vec![again(1)], rest()].concat();
    let buried = || vec![dead(1, "q", "rejected")];
    let both = |q: Vec<Seen>, d: Vec<Seen>| [found(Q, q), found(DEAD, [vec![mark()], d].concat())];
    reports(&ledger, &both(rest(), buried()), &[]);
    reports(&ledger, &both(back(), vec![]), &[]);
    reports(&ledger, &both(back(), buried()), &[]);
    reports(&ledger, &both(rest(), vec![]), &[Kind::Lost]);
    reports(&ledger, &both(rest(), [buried(), buried()].concat()), &[Kind::Duplicated]);
    reports(&ledger, &both(rest(), vec![dead(1, "q", "expired")]), &[Kind::Changed]);
    reports(&ledger, &both(rest(), vec![dead(1, "dead", "rejected")]), &[Kind::Changed]);
    let two = [buried(), vec![dead(2, "q", "rejected")]].concat();
    reports(&ledger, &both(rest(), two), &[Kind::Invented, Kind::Changed]);
}

#[test]
fn copies_that_died_apart_may_differ() {
    let mut ledger = five(&[delivered(1), settled(1, Settlement::Reject)]);
    let later = || Seen { properties: "later".to_owned(), ..dead(1, "q", "rejected") };
    let both =
        [found(Q, numbers(&[2, 3, 4, 5])), found(DEAD, vec![dead(1, "q", "rejected"), later()])];
    ledger.rebase(&both, false);
    reports(&ledger, &[both[1].clone()], &[]);
    ledger.rebase(&[found(DEAD, vec![later()])], false);
    reports(&ledger, &[found(DEAD, vec![dead(1, "q", "rejected")])], &[Kind::Changed]);
}

#[test]
fn a_rejected_message_that_has_nowhere_to_go_is_as_good_as_acknowledged() {
    let plain = vec![Queue::durable("q"), Queue::durable("dead"), Queue::durable("more")];
    let log = [sent(1), confirmed(1), delivered(1), settled(1, Settlement::Reject)];
    let ledger = crashed(plain, [&log[..], &synced()].concat());
    reports(&ledger, &[found(Q, vec![])], &[]);
    reports(&ledger, &[found(Q, vec![again(1)])], &[Kind::CameBack]);
}

#[test]
fn transient_messages_and_queues_do_not_come_back() {
    let transient = Sort { persistent: false, ..Sort::PLAIN };
    let ledger = crashed(queues(), vec![sent_as(1, transient, None), confirmed(1)]);
    let there = Seen { persistent: false, ..seen(1) };
    reports(&ledger, &[found(Q, vec![there])], &[Kind::CameBack]);
    let to =
        Event::Sent { id: id(1), queues: vec![PASSING], sort: Sort::PLAIN, at_ms: 1, group: None };
    let ledger = crashed(queues(), vec![to, confirmed(1)]);
    reports(&ledger, &[found(PASSING, vec![seen(1)])], &[Kind::CameBack]);
    reports(&ledger, &[found(PASSING, vec![])], &[]);
}

#[test]
fn time_goes_on_while_the_broker_is_down() {
    let lives = |ttl_ms| Sort { ttl_ms: Some(ttl_ms), ..Sort::PLAIN };
    let looked = |asked_ms, ttl| Seen { asked_ms, expiration: Some(ttl), ..seen(1) };
    // Sent at 100, confirmed at 110; the queue has no dead letters here.
    let plain = || vec![Queue::durable("q"), Queue::durable("dead")];
    let ledger = crashed(plain(), vec![sent_as(1, lives(1050), None), confirmed(1)]);
    let at = |seen: Vec<Seen>, ended_ms| [Found { queue: Q, seen, ended_ms }];
    reports(&ledger, &at(vec![looked(1100, 1050)], 1101), &[]);
    reports(&ledger, &at(vec![], 1101), &[Kind::Lost]);
    reports(&ledger, &at(vec![], 1200), &[]);
    reports(&ledger, &at(vec![looked(1300, 1050)], 1301), &[Kind::CameBack]);
    reports(&ledger, &at(vec![looked(1100, 2000)], 1101), &[Kind::Changed]);
    // The queue's own time, which the message does not show.
    let short =
        || vec![Queue { ttl_ms: Some(1050), ..Queue::durable("q") }, Queue::durable("dead")];
    let ledger = crashed(short(), vec![sent(1), confirmed(1)]);
    let late = Seen { asked_ms: 1300, ..seen(1) };
    reports(&ledger, &at(vec![late], 1301), &[Kind::CameBack]);
    // An expired message is a dead letter where there is a place for them.
    let ledger = crashed(queues(), vec![sent_as(1, lives(500), None), confirmed(1)]);
    let gone = |d: Vec<Seen>| [found(Q, vec![]), found(DEAD, d)];
    let buried = || dead(1, "q", "expired");
    reports(&ledger, &gone(vec![buried()]), &[]);
    // It may have died before the crash and once more after it.
    reports(&ledger, &gone(vec![buried(), buried()]), &[]);
    reports(&ledger, &gone(vec![buried(), buried(), buried()]), &[Kind::Duplicated]);
    reports(&ledger, &gone(vec![]), &[Kind::Lost]);
}

#[test]
fn delayed_messages_come_in_time() {
    let late = Sort { delay_ms: Some(2000), ..Sort::PLAIN };
    let mut ledger = crashed(queues(), vec![sent_as(1, late, None), confirmed(1)]);
    let at = |asked_ms, ended_ms, seen: Vec<Seen>| {
        let seen =
            seen.into_iter().map(|seen| Seen { asked_ms, came_ms: asked_ms, ..seen }).collect();
        [Found { queue: Q, seen, ended_ms }]
    };
    let copies = |count| vec![seen(1); count];
    reports(&ledger, &at(1100, 1101, vec![]), &[]);
    reports(&ledger, &at(1100, 1101, copies(1)), &[Kind::Early]);
    reports(&ledger, &at(4000, 4001, vec![]), &[Kind::Lost]);
    // The kill may have come when it was passed on: then once more, but not oftener.
    reports(&ledger, &at(4000, 4001, copies(1)), &[]);
    reports(&ledger, &at(4000, 4001, copies(2)), &[]);
    reports(&ledger, &at(4000, 4001, copies(3)), &[Kind::Duplicated]);
    // No kill came since it was not there yet.
    ledger.rebase(&at(1100, 1101, vec![]), false);
    reports(&ledger, &at(4000, 4001, copies(1)), &[]);
    reports(&ledger, &at(4000, 4001, copies(2)), &[Kind::Duplicated]);
    reports(&ledger, &at(4000, 4001, vec![]), &[Kind::Lost]);
    // It is due, and may be late.
    ledger.rebase(&at(2200, 2201, vec![]), false);
    reports(&ledger, &at(4000, 4001, copies(1)), &[]);
    ledger.rebase(&at(4000, 4001, copies(1)), false);
    reports(&ledger, &at(9000, 9001, copies(2)), &[Kind::Duplicated]);
}

#[test]
fn priorities_go_first_and_keep_their_order() {
    let kinds = || {
        let first = Queue { order: Order::Priority(5), ..Queue::durable("q") };
        vec![first, Queue::durable("dead")]
    };
    let of = |priority| Sort { priority: Some(priority), ..Sort::PLAIN };
    let log = [(1, 1), (2, 9), (3, 1), (4, 5)];
    let log = log.iter().flat_map(|(n, p)| [sent_as(*n, of(*p), None), confirmed(*n)]).collect();
    let ledger = crashed(kinds(), log);
    let shown = |n, p| Seen { priority: Some(p), ..seen(n) };
    let order = |all: [Seen; 4]| [found(Q, all.to_vec())];
    reports(&ledger, &order([shown(2, 9), shown(4, 5), shown(1, 1), shown(3, 1)]), &[]);
    for wrong in [
        [shown(1, 1), shown(2, 9), shown(4, 5), shown(3, 1)],
        [shown(4, 5), shown(2, 9), shown(1, 1), shown(3, 1)],
        [shown(2, 9), shown(4, 5), shown(3, 1), shown(1, 1)],
    ] {
        reports(&ledger, &order(wrong), &[Kind::Reordered]);
    }
}

#[test]
fn delivery_counts_go_on() {
    let kinds = || vec![Queue { quorum: true, ..Queue::durable("q") }, Queue::durable("dead")];
    let requeue = |n| settled(n, Settlement::Requeue);
    let redelivered = Event::Delivered { queue: Q, id: id(1), redelivered: true, priority: None };
    let mut log = vec![sent(1), confirmed(1), delivered(1), requeue(1), redelivered, requeue(1)];
    log.extend(synced());
    let ledger = crashed(kinds(), log);
    let counted = |count| [found(Q, vec![Seen { count, ..again(1) }])];
    for count in 2..=4 {
        reports(&ledger, &counted(count), &[]);
    }
    reports(&ledger, &counted(1), &[Kind::Changed]);
    reports(&ledger, &counted(5), &[Kind::Changed]);
}

#[test]
fn a_transaction_is_there_as_a_whole_or_not_at_all() {
    let plain = Sort::PLAIN;
    let in_one = |n| sent_as(n, plain, Some(7));
    let log = vec![sent(1), confirmed(1), in_one(2), in_one(3), in_one(4)];
    let ledger = crashed(queues(), log);
    reports(&ledger, &[found(Q, numbers(&[1]))], &[]);
    reports(&ledger, &[found(Q, numbers(&[1, 2, 3, 4]))], &[]);
    reports(&ledger, &[found(Q, numbers(&[1, 2, 3]))], &[Kind::Split]);
    let log = vec![in_one(2), in_one(3), confirmed(2), confirmed(3)];
    reports(&crashed(queues(), log), &[found(Q, numbers(&[2]))], &[Kind::Lost]);
    let log = vec![sent(1), Event::RolledBack { id: id(1) }];
    reports(&crashed(queues(), log), &[found(Q, numbers(&[1]))], &[Kind::CameBack]);
}

#[test]
fn what_was_found_once_must_stay_as_it_was() {
    let mut ledger = five(&[sent(6), sent(7)]);
    ledger.rebase(&[found(Q, numbers(&[1, 2, 3, 4, 5, 6])), found(DEAD, vec![])], true);
    ledger.crash(1);
    let all = || (1..=6).map(again).collect::<Vec<_>>();
    let swap = |a, b| {
        let mut all = all();
        all.swap(a, b);
        all
    };
    let mut changed = all();
    changed[2].properties = "another".to_owned();
    reports(&ledger, &[found(Q, all())], &[]);
    reports(&ledger, &[found(Q, all()[..5].to_vec())], &[Kind::Lost]);
    reports(&ledger, &[found(Q, swap(2, 3))], &[Kind::Reordered]);
    reports(&ledger, &[found(Q, changed)], &[Kind::Changed]);
    reports(&ledger, &[found(Q, [all(), vec![seen(7)]].concat())], &[Kind::CameBack]);
    // The order among several publishers counts as well, once it is known.
    let other = |number| Seen { id: Ok(MessageId { publisher: 2, number }), ..seen(number) };
    let log = (1..=2).flat_map(|n| {
        let (other, at_ms) = (MessageId { publisher: 2, number: n }, 1);
        let queues = vec![Q];
        let sort = Sort::PLAIN;
        let sent_other = Event::Sent { id: other, queues, sort, at_ms, group: None };
        [sent(n), confirmed(n), sent_other, Event::Confirmed { id: other, at_ms }]
    });
    let mut ledger = crashed(queues(), log.collect());
    let before = vec![seen(1), other(1), seen(2), other(2)];
    let after = vec![other(1), seen(1), seen(2), other(2)];
    reports(&ledger, &[found(Q, after.clone())], &[]);
    ledger.rebase(&[found(Q, before)], false);
    reports(&ledger, &[found(Q, after)], &[Kind::Reordered]);
}

/// What is wrong before the crash already.
fn live(log: Vec<Event>) -> Vec<Kind> {
    let mut ledger = Ledger::new(queues());
    ledger.absorb(&[log], CRASH_MS).into_iter().map(|violation| violation.kind).collect()
}

#[test]
fn wrong_deliveries_are_reported() {
    let ack = |n| settled(n, Settlement::Ack);
    let again = |n| Event::Delivered { queue: Q, id: id(n), redelivered: true, priority: None };
    assert_eq!(live(vec![sent(1), delivered(1), ack(1)]), []);
    assert_eq!(live(vec![delivered(1)]), [Kind::Invented]);
    assert_eq!(live(vec![sent(1), sent(2), delivered(2), delivered(1)]), [Kind::Reordered]);
    let twice = vec![sent(1), delivered(1), ack(1), delivered(1), ack(1)];
    assert_eq!(live(twice), [Kind::Duplicated, Kind::Flag]);
    assert_eq!(live(vec![sent(1), again(1)]), [Kind::Flag]);
    let requeued = vec![sent(1), delivered(1), settled(1, Settlement::Requeue), again(1)];
    assert_eq!(live(requeued), []);
    let rolled_back = vec![sent(1), Event::RolledBack { id: id(1) }, delivered(1)];
    assert!(live(rolled_back).contains(&Kind::CameBack));
    let elsewhere = Event::Delivered { queue: 2, id: id(1), redelivered: false, priority: None };
    assert_eq!(live(vec![sent(1), elsewhere]), [Kind::Invented]);
}
