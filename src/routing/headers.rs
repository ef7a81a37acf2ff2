//! The headers exchange: bindings whose arguments are compared with a message's headers.
//!
//! Owns the reading of `x-match` (AMQP 0-9-1 section 3.1.3.4, with RabbitMQ's refinements) and the
//! bindings by what they ask for. What one header has to be is a condition; a clause is a set of
//! conditions, of which all have to be met. A binding with `all` is one clause, one with `any` a
//! clause for each of its conditions. Equal conditions and equal clauses are kept once, whoever's
//! they are.
//!
//! A clause is listed under one of its conditions: the one with the shortest list when the clause
//! came. A message's headers are looked up, which gives the conditions that they meet, and only the
//! clauses listed under these are looked at. So the time depends on the message and on the bindings
//! that share a condition with it, not on how many others there are, and no clause is looked at
//! twice. Adding and removing a binding takes time in proportion to its arguments.

mod condition;
mod numbered;

use amq_protocol::types::{AMQPValue, FieldTable};

use super::direct::{Matches, Target, TargetSet};
use crate::codec::table;
use crate::codec::value::{erlang_binary, erlang_term, type_name};
use crate::error::{AmqpError, ReplyCode};
use condition::{name_of, parts, put_value};
use numbered::Numbered;

const X_MATCH: &str = "x-match";

type ConditionNumber = u32;
type ClauseNumber = u32;

/// What follows when all conditions of a clause are met.
#[derive(Debug, Default)]
struct Clause {
    targets: TargetSet,
    /// The condition that it is listed under, and where in that list.
    listed_under: ConditionNumber,
    listed_at: u32,
}

/// The conditions that one message meets, kept between messages so that a warm look allocates
/// nothing.
#[derive(Debug, Default)]
pub(crate) struct MetConditions {
    /// For each header whose name matters: the condition that it is there, its place among the
    /// others, and the condition that it has the value it has.
    headers: Vec<(ConditionNumber, usize, Option<ConditionNumber>)>,
    /// In the order of the numbers.
    conditions: Vec<ConditionNumber>,
    condition: Vec<u8>,
}

/// The bindings of a headers exchange.
#[derive(Debug, Default)]
pub(crate) struct HeadersIndex {
    /// The conditions, with the clauses listed under them. Whatever is asked of a header, there is
    /// also the condition that it is there, by which other headers are passed over.
    conditions: Numbered<u8, Vec<ClauseNumber>>,
    /// The clauses by their conditions, in the order of their numbers.
    clauses: Numbered<ConditionNumber, Clause>,
    /// Where everything goes: the targets of bindings that ask for nothing.
    unconditional: TargetSet,
}

/// Checks a binding's `x-match`, as RabbitMQ does when it is made.
pub(crate) fn check_arguments(arguments: &FieldTable) -> Result<(), AmqpError> {
    let refuse = |text: String| Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
    let Some(value) = arguments.inner().get(X_MATCH) else { return Ok(()) };
    match value {
        AMQPValue::LongString(text) => match text.as_bytes() {
            b"all" | b"any" | b"all-with-x" | b"any-with-x" => Ok(()),
            other => refuse(format!(
                "Invalid x-match field value {}; expected all, any, all-with-x, or any-with-x",
                erlang_binary(other)
            )),
        },
        other => refuse(format!(
            "Invalid x-match field type {} (value {}); expected longstr",
            type_name(other),
            erlang_term(other)
        )),
    }
}

/// The clauses that a binding's arguments make, each a list of conditions.
fn clauses(arguments: &FieldTable) -> Vec<Vec<Vec<u8>>> {
    let kind = match arguments.inner().get(X_MATCH) {
        Some(AMQPValue::LongString(text)) => text.as_bytes(),
        _ => b"all",
    };
    let conditions = condition::conditions(arguments, kind.ends_with(b"-with-x")).into_iter();
    if kind.starts_with(b"any") {
        // Without any condition, "any" does not hold and "all" does.
        return conditions.flatten().map(|condition| vec![condition]).collect();
    }
    conditions.collect::<Option<_>>().into_iter().collect()
}

impl HeadersIndex {
    pub(crate) fn insert(&mut self, target: Target, arguments: &FieldTable) {
        for clause in clauses(arguments) {
            if clause.is_empty() {
                self.unconditional.insert(target);
                continue;
            }
            let number = self.take_clause(&clause);
            self.clauses.value_mut(number).targets.insert(target);
        }
    }

    /// Takes back one [`HeadersIndex::insert`].
    pub(crate) fn remove(&mut self, target: Target, arguments: &FieldTable) {
        for clause in clauses(arguments) {
            if clause.is_empty() {
                self.unconditional.remove(target);
                continue;
            }
            self.release_clause(&clause, target);
        }
    }

    /// The number of a clause that has one more user now; lists it if it is new.
    fn take_clause(&mut self, clause: &[Vec<u8>]) -> ClauseNumber {
        let mut take = |condition| parts(condition).map(|part| self.conditions.take(part)).last();
        let mut conditions: Vec<_> =
            clause.iter().filter_map(|condition| take(condition)).collect();
        conditions.sort_unstable();
        let number = self.clauses.take(&conditions);
        if self.clauses.users(number) == 1 {
            // Where many lists are short, the rarest condition has the best prospects.
            let rank = |&condition: &ConditionNumber| {
                (self.conditions.value(condition).len(), self.conditions.users(condition))
            };
            let listed_under = conditions.into_iter().min_by_key(rank);
            let listed_under = listed_under.expect("a clause has conditions");
            let list = self.conditions.value_mut(listed_under);
            let listed_at = u32::try_from(list.len()).expect("fewer than 2^32 clauses");
            list.push(number);
            *self.clauses.value_mut(number) =
                Clause { targets: TargetSet::default(), listed_under, listed_at };
        }
        number
    }

    /// Takes a target from a clause, and what then nobody needs any more.
    fn release_clause(&mut self, clause: &[Vec<u8>], target: Target) {
        let find = |condition: &Vec<u8>| self.conditions.find(condition);
        let mut conditions: Vec<_> = clause.iter().filter_map(find).collect();
        conditions.sort_unstable();
        let Some(number) = self.clauses.find(&conditions) else {
            debug_assert!(false, "a binding is removed as often as it was inserted");
            return;
        };
        self.clauses.value_mut(number).targets.remove(target);
        if let Some(gone) = self.clauses.release(number) {
            let list = self.conditions.value_mut(gone.listed_under);
            list.swap_remove(gone.listed_at as usize);
            if let Some(moved) = list.get(gone.listed_at as usize) {
                self.clauses.value_mut(*moved).listed_at = gone.listed_at;
            }
        }
        for part in clause.iter().flat_map(|condition| parts(condition)) {
            if let Some(condition) = self.conditions.find(part) {
                self.conditions.release(condition);
            }
        }
    }

    /// Collects the targets of all bindings that these headers (a table's contents) satisfy.
    pub(crate) fn find(&self, headers: &[u8], met: &mut MetConditions, matches: &mut Matches) {
        self.unconditional.append_to(matches);
        if self.conditions.is_empty() {
            return;
        }
        self.meet(headers, met);
        for condition in &met.conditions {
            for number in self.conditions.value(*condition) {
                let is_met = |other| met.conditions.binary_search(other).is_ok();
                if self.clauses.key(*number).iter().all(is_met) {
                    self.clauses.value(*number).targets.append_to(matches);
                }
            }
        }
    }

    /// Finds the conditions that headers meet. What follows a malformed one is not seen.
    fn meet(&self, headers: &[u8], met: &mut MetConditions) {
        met.headers.clear();
        met.conditions.clear();
        let mut walk = table::entries(headers);
        loop {
            let entry = walk.rest();
            let Some(Ok((_, value))) = walk.next() else { break };
            let name = name_of(entry);
            let Some(is_there) = self.conditions.find(name) else { continue };
            met.condition.clear();
            met.condition.extend_from_slice(name);
            let has_value = put_value(&mut met.condition, &value)
                .then(|| self.conditions.find(&met.condition))
                .flatten();
            met.headers.push((is_there, met.headers.len(), has_value));
        }
        // Of several headers with one name the first counts.
        met.headers.sort_unstable();
        met.headers.dedup_by_key(|header| header.0);
        for (is_there, _, has_value) in &met.headers {
            met.conditions.push(*is_there);
            met.conditions.extend(has_value);
        }
        met.conditions.sort_unstable();
    }
}

#[cfg(test)]
mod tests;
