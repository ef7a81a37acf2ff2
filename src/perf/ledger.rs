//! What a verified run received: order, duplicates and losses.
//!
//! Owns one consumer's record of stamps and the comparison of all records with what was sent.
//! A redelivered message may come out of order and twice (RabbitMQ promises no more), so it is
//! counted apart.

use super::block::Stamp;

/// One consumer's record.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    lanes: Vec<Lane>,
    priorities: u64,
    foreign: u64,
}

/// What one consumer got from one producer.
#[derive(Clone, Debug, Default)]
struct Lane {
    /// For each priority, the sequence that may come next at least.
    next_min: Vec<u64>,
    received: u64,
    disordered: u64,
    redelivered: u64,
    /// A bit for each sequence that came without the redelivered flag, and with it.
    seen_first: Vec<u64>,
    seen_again: Vec<u64>,
}

/// The outcome of a verified run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Verdict {
    /// Messages that were published and reached no consumer.
    pub(crate) lost: u64,
    /// Messages that came twice without the redelivered flag.
    pub(crate) duplicated: u64,
    /// Messages that a consumer got after a later one of the same producer and priority.
    pub(crate) disordered: u64,
    /// Messages that were not stamped by this run.
    pub(crate) foreign: u64,
    /// Messages with the redelivered flag.
    pub(crate) redelivered: u64,
}

impl Verdict {
    /// Takes over the counts of another one.
    pub(crate) fn add(&mut self, other: &Self) {
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.disordered += other.disordered;
        self.foreign += other.foreign;
        self.redelivered += other.redelivered;
    }

    /// Whether nothing is wrong; redelivered messages are allowed.
    pub(crate) fn is_clean(&self) -> bool {
        self.lost + self.duplicated + self.disordered + self.foreign == 0
    }
}

impl Ledger {
    /// A record for messages of `producers` producers, whose priorities go round.
    pub(crate) fn new(producers: usize, priorities: u8) -> Self {
        let lane = Lane { next_min: vec![0; usize::from(priorities)], ..Lane::default() };
        Self { lanes: vec![lane; producers], priorities: priorities.into(), foreign: 0 }
    }

    /// Notes one delivery.
    pub(crate) fn note(&mut self, stamp: Option<Stamp>, is_redelivered: bool) {
        let lane = stamp.and_then(|stamp| self.lanes.get_mut(stamp.producer as usize));
        let (Some(stamp), Some(lane)) = (stamp, lane) else {
            self.foreign += 1;
            return;
        };
        if is_redelivered {
            lane.redelivered += 1;
            mark(&mut lane.seen_again, stamp.sequence);
        } else {
            lane.received += 1;
            let next_min = &mut lane.next_min[(stamp.sequence % self.priorities) as usize];
            lane.disordered += u64::from(stamp.sequence < *next_min);
            *next_min = (*next_min).max(stamp.sequence + 1);
            mark(&mut lane.seen_first, stamp.sequence);
        }
    }

    /// Compares the records of all consumers of a queue with the number that each producer sent to
    /// that queue.
    pub(crate) fn judge(ledgers: &[&Self], sent: &[u64]) -> Verdict {
        let foreign = ledgers.iter().map(|ledger| ledger.foreign).sum();
        let mut verdict = Verdict { foreign, ..Verdict::default() };
        for (producer, &sent) in sent.iter().enumerate() {
            let (mut first, mut all, mut first_times) = (Vec::new(), Vec::new(), 0);
            for lane in ledgers.iter().filter_map(|ledger| ledger.lanes.get(producer)) {
                verdict.disordered += lane.disordered;
                verdict.redelivered += lane.redelivered;
                first_times += lane.received;
                merge(&mut first, &lane.seen_first);
                merge(&mut all, &lane.seen_first);
                merge(&mut all, &lane.seen_again);
            }
            verdict.duplicated += first_times.saturating_sub(ones(&first));
            verdict.lost += sent.saturating_sub(ones(&all));
            verdict.foreign += ones(&all).saturating_sub(sent);
        }
        verdict
    }
}

/// Sequences beyond this are no numbers of ours but garbage: they must not size the record.
const SEQUENCE_MAX: u64 = 1 << 36;

fn mark(seen: &mut Vec<u64>, sequence: u64) {
    if sequence >= SEQUENCE_MAX {
        return;
    }
    let word = (sequence / 64) as usize;
    if word >= seen.len() {
        seen.resize((word + 1).max(seen.len() * 2), 0);
    }
    seen[word] |= 1 << (sequence % 64);
}

fn merge(into: &mut Vec<u64>, from: &[u64]) {
    into.resize(into.len().max(from.len()), 0);
    into.iter_mut().zip(from).for_each(|(word, more)| *word |= more);
}

fn ones(bits: &[u64]) -> u64 {
    bits.iter().map(|word| u64::from(word.count_ones())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(notes: &[(u64, bool)]) -> Ledger {
        noted(Ledger::new(1, 1), notes)
    }

    fn noted(mut ledger: Ledger, notes: &[(u64, bool)]) -> Ledger {
        for &(sequence, is_redelivered) in notes {
            ledger.note(Some(Stamp { producer: 0, sequence }), is_redelivered);
        }
        ledger
    }

    fn judge(ledgers: &[Ledger], sent: &[u64]) -> Verdict {
        let mut verdict = Verdict::default();
        verdict.add(&Ledger::judge(&ledgers.iter().collect::<Vec<_>>(), sent));
        verdict
    }

    #[test]
    fn two_consumers_that_share_everything_in_order_are_clean() {
        let ledgers = [ledger(&[(0, false), (2, false)]), ledger(&[(1, false), (3, false)])];
        let verdict = judge(&ledgers, &[4]);
        assert_eq!(verdict, Verdict::default());
        assert!(verdict.is_clean());
    }

    #[test]
    fn losses_duplicates_disorder_and_strangers_are_told_apart() {
        let mut first = ledger(&[(0, false), (5, false), (4, false)]);
        first.note(None, false);
        first.note(Some(Stamp { producer: 9, sequence: 0 }), false);
        let ledgers = [first, ledger(&[(0, false), (1, true)])];
        let verdict = judge(&ledgers, &[6]);
        let expected =
            Verdict { lost: 2, duplicated: 1, disordered: 1, foreign: 2, redelivered: 1 };
        assert_eq!(verdict, expected);
        assert!(!verdict.is_clean());
    }

    #[test]
    fn order_counts_within_a_priority() {
        let mut ledger = noted(Ledger::new(1, 2), &[(3, false), (0, false), (5, false)]);
        assert_eq!(ledger.lanes[0].disordered, 0);
        ledger = noted(ledger, &[(1, false), (2, false), (4, false)]);
        assert_eq!(judge(&[ledger], &[6]), Verdict { disordered: 1, ..Verdict::default() });
    }

    #[test]
    fn a_duplicate_is_counted_across_consumers() {
        let ledgers = [ledger(&[(0, false), (1, false)]), ledger(&[(1, false)])];
        assert_eq!(judge(&ledgers, &[2]).duplicated, 1);
    }
}
