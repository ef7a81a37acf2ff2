//! A publisher with confirms, until its broker dies.
//!
//! Owns what it sends and how far it goes ahead of its confirms. It must not look at queues.

use std::time::Duration;

use super::channel::{Channel, Route};
use super::ledger::{Event, Sort};
use super::message;
use super::random::Random;
use super::session::Gone;

/// What a publisher sends.
#[derive(Clone, Debug)]
pub struct Publisher {
    pub routes: Vec<Route>,
    /// Publishes that may wait for their confirm.
    pub window: usize,
    /// It stops after so many, and stays connected.
    pub limit: u32,
    pub persistent_percent: u64,
    /// The highest priority that it sends, if any.
    pub priority_max: Option<u8>,
    /// Times to live; none sends without.
    pub ttls_ms: Vec<Option<u64>>,
    /// Delays, for an exchange that delays.
    pub delay_ms_max: Option<u64>,
    /// Only messages of this many bytes, instead of all sizes.
    pub size: Option<(u64, u64)>,
}

impl Publisher {
    /// Persistent messages of all sizes to these places.
    pub fn to(routes: Vec<Route>, random: &mut Random) -> Publisher {
        Publisher {
            routes,
            window: *random.pick(&[1, 10, 100, 1000]),
            limit: *random.pick(&[200, 1000, 3000]),
            persistent_percent: 100,
            priority_max: None,
            ttls_ms: vec![None],
            delay_ms_max: None,
            size: None,
        }
    }

    pub fn run(self, mut channel: Channel, mut random: Random) -> Vec<Event> {
        let Err(Gone) = self.publish(&mut channel, &mut random);
        channel.log
    }

    fn publish(
        &self,
        channel: &mut Channel,
        random: &mut Random,
    ) -> Result<std::convert::Infallible, Gone> {
        let mut left = self.limit;
        let pause = Duration::from_micros(*random.pick(&[0, 0, 500, 5000]));
        loop {
            let room = (self.window - channel.unconfirmed()).min(left as usize).min(32);
            let mut bytes = Vec::new();
            for _ in 0..room {
                let route = random.pick(&self.routes).clone();
                let size = match self.size {
                    None => message::size(random),
                    Some((low, high)) => random.between(low, high) as usize,
                };
                bytes.extend(channel.next_publish(&route, self.sort(random), size));
                left -= 1;
            }
            channel.session.send(&bytes)?;
            std::thread::sleep(pause);
            // Long where there is nothing else to do: the kill ends it.
            let is_full = left == 0 || channel.unconfirmed() >= self.window;
            channel.next(Duration::from_millis(if is_full { 100 } else { 1 }))?;
        }
    }

    fn sort(&self, random: &mut Random) -> Sort {
        Sort {
            persistent: random.percent(self.persistent_percent),
            priority: self.priority_max.map(|max| random.between(0, u64::from(max)) as u8),
            ttl_ms: *random.pick(&self.ttls_ms),
            delay_ms: self.delay_ms_max.map(|max| random.between(0, max)),
        }
    }
}
