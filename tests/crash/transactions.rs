//! A client that publishes and acknowledges in transactions, until its broker dies.
//!
//! Owns what a transaction holds and how it ends. It must not look at what becomes of it.

use super::channel::{Channel, Route, now_ms};
use super::ledger::{Event, Settlement, Sort};
use super::message::{self, MessageId};
use super::random::Random;
use super::session::{Gone, Incoming};

/// Where transactions go. The first route's queue is also read from.
#[derive(Clone, Debug)]
pub struct Transactions {
    pub routes: Vec<Route>,
}

impl Transactions {
    pub fn run(self, mut channel: Channel, mut random: Random) -> Vec<Event> {
        let Err(Gone) = self.transact(&mut channel, &mut random);
        channel.log
    }

    fn transact(
        &self,
        channel: &mut Channel,
        random: &mut Random,
    ) -> Result<std::convert::Infallible, Gone> {
        channel.session.call("tx.select", |_| {})?.expect("a channel takes transactions");
        for group in 0_u32.. {
            let route = random.pick(&self.routes).clone();
            let (mut sent, mut bytes) = (Vec::new(), Vec::new());
            for _ in 0..random.between(1, 20) {
                let (id, publish) = channel.message(&route, Sort::PLAIN, message::size(random));
                sent.push(id);
                bytes.extend(publish);
            }
            let sending = channel.session.send(&bytes);
            let acked = match sending {
                Ok(()) => self.acknowledge(channel, random),
                Err(Gone) => Err(Gone),
            };
            let queues = || route.queues.clone();
            let commits = acked.is_ok() && random.percent(80);
            for id in &sent {
                let (id, at_ms, sort) = (*id, now_ms(), Sort::PLAIN);
                let group = commits.then_some(group);
                channel.log.push(Event::Sent { id, queues: queues(), sort, at_ms, group });
                if !commits {
                    channel.log.push(Event::RolledBack { id });
                }
            }
            let acked = acked?;
            if !commits {
                channel.session.call("tx.rollback", |_| {})?.expect("it is rolled back");
                continue;
            }
            for id in acked {
                channel.settled(self.routes[0].queues[0], id, Settlement::Ack);
            }
            let before = channel.log.len();
            channel.session.call("tx.commit", |_| {})?.expect("it is committed");
            let at_ms = now_ms();
            sent.into_iter().for_each(|id| channel.confirmed(id, at_ms));
            channel.log.push(Event::Synced { before });
        }
        unreachable!("no test has so many transactions")
    }

    /// Takes some messages and acknowledges some of those, which counts once it is committed.
    fn acknowledge(
        &self,
        channel: &mut Channel,
        random: &mut Random,
    ) -> Result<Vec<MessageId>, Gone> {
        let mut acked = Vec::new();
        let queue = self.routes[0].queues[0];
        for _ in 0..random.between(0, 3) {
            channel.session.method(&format!("basic.get queue=\"{}\"", self.routes[0].key))?;
            let Some(Incoming::Message(delivery)) = channel.next(crate::support::DEADLINE)? else {
                break;
            };
            let Some(id) = channel.delivered(queue, &delivery) else { continue };
            if random.percent(70) {
                channel.session.method(&format!("basic.ack delivery_tag={}", delivery.tag()))?;
                acked.push(id);
            }
        }
        Ok(acked)
    }
}
