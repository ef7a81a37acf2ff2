//! A consumer that settles as it likes, until its broker dies.
//!
//! Owns how deliveries are kept and settled, in which order, and after how many of them it makes
//! sure that its settlements are on disk. It must not judge what it is delivered.

use std::time::Duration;

use super::channel::{Channel, Route};
use super::ledger::{Event, Settlement, Sort};
use super::message::MessageId;
use super::random::Random;
use super::session::{Gone, Incoming};

/// How a consumer behaves.
#[derive(Clone, Debug)]
pub struct Consumer {
    pub queue: usize,
    pub name: String,
    pub prefetch: u64,
    /// Of a hundred settlements, how many requeue and how many reject; the others acknowledge.
    pub requeue_percent: u64,
    pub reject_percent: u64,
    /// Of a hundred settlements, how many take everything before with them.
    pub multiple_percent: u64,
    /// A message to this place, confirmed, follows after so many settlements.
    pub marks: Route,
    pub mark_every: u32,
}

impl Consumer {
    /// One that mostly acknowledges.
    pub fn of(queue: usize, name: &str, marks: &Route, random: &mut Random) -> Consumer {
        Consumer {
            queue,
            name: name.to_owned(),
            prefetch: *random.pick(&[1, 5, 50, 500, 0]),
            requeue_percent: *random.pick(&[0, 0, 10, 40]),
            reject_percent: *random.pick(&[0, 0, 10]),
            multiple_percent: *random.pick(&[0, 5, 50]),
            marks: marks.clone(),
            mark_every: *random.pick(&[1, 20, 200]),
        }
    }

    pub fn run(self, mut channel: Channel, mut random: Random) -> Vec<Event> {
        let mut held = Vec::new();
        let Err(Gone) = self.consume(&mut channel, &mut held, &mut random);
        channel.log
    }

    fn consume(
        &self,
        channel: &mut Channel,
        held: &mut Vec<(u64, MessageId)>,
        random: &mut Random,
    ) -> Result<std::convert::Infallible, Gone> {
        channel.session.method(&format!("basic.qos prefetch_count={}", self.prefetch))?;
        channel.session.method(&format!("basic.consume queue=\"{}\"", self.name))?;
        let mut unmarked = 0;
        let mut keep = 0;
        loop {
            let message = channel.next(Duration::from_millis(20))?;
            if let Some(Incoming::Message(delivery)) = &message
                && let Some(id) = channel.delivered(self.queue, delivery)
            {
                held.push((delivery.tag(), id));
            }
            let is_full = self.prefetch > 0 && held.len() as u64 >= self.prefetch;
            while !held.is_empty() && (message.is_none() || is_full || held.len() > keep) {
                self.settle(channel, held, random)?;
                unmarked += 1;
                keep = random.between(0, self.prefetch.clamp(1, 300) - 1) as usize;
                if random.percent(50) {
                    break;
                }
            }
            if unmarked >= self.mark_every {
                unmarked = 0;
                let bytes = channel.next_publish(&self.marks, Sort::PLAIN, 10);
                channel.session.send(&bytes)?;
            }
        }
    }

    fn settle(
        &self,
        channel: &mut Channel,
        held: &mut Vec<(u64, MessageId)>,
        random: &mut Random,
    ) -> Result<(), Gone> {
        let at = random.between(0, held.len() as u64 - 1) as usize;
        let (tag, _) = held[at];
        let share = random.between(0, 99);
        let how = match share {
            n if n < self.requeue_percent => Settlement::Requeue,
            n if n < self.requeue_percent + self.reject_percent => Settlement::Reject,
            _ => Settlement::Ack,
        };
        let multiple = random.percent(self.multiple_percent);
        let settled: Vec<MessageId> = if multiple {
            let (gone, kept) = held.drain(..).partition(|(other, _)| *other <= tag);
            *held = kept;
            let gone: Vec<(u64, MessageId)> = gone;
            gone.into_iter().map(|(_, id)| id).collect()
        } else {
            vec![held.swap_remove(at).1]
        };
        for id in settled {
            channel.settled(self.queue, id, how);
        }
        let multiple = if multiple { " multiple" } else { "" };
        channel.session.method(&match how {
            Settlement::Ack => format!("basic.ack delivery_tag={tag}{multiple}"),
            Settlement::Requeue => format!("basic.nack delivery_tag={tag}{multiple} requeue"),
            Settlement::Reject => format!("basic.nack delivery_tag={tag}{multiple}"),
        })
    }
}
