//! A connection's signs of life, and when it is given up.
//!
//! Owns the rules of heartbeats (specification section 4.2.7; RabbitMQ's timing) and the deadlines
//! of handshake and closing. It is shared with the one task that looks after all connections, so
//! that no connection needs a timer of its own. It must not read a clock.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::clock::Millis;

/// How long the client has to answer connection.close when no heartbeat says so.
const CLOSING_MS: u32 = 30_000;

/// No deadline.
const NEVER: u32 = 0;

/// What a look at a connection says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to do.
    Alive,
    /// Nothing was sent for half an interval: send a heartbeat.
    SendHeartbeat,
    /// Nothing was received for two intervals.
    MissedHeartbeats,
    /// The handshake or the answer to connection.close takes too long.
    TimedOut,
}

/// See the module's description. Times are milliseconds since the process began.
#[derive(Debug)]
pub struct Liveness {
    last_read: AtomicU64,
    last_written: AtomicU64,
    /// 0 means that there are none.
    heartbeat_ms: AtomicU32,
    reading: AtomicBool,
    /// When the current phase began.
    since: AtomicU64,
    timeout_ms: AtomicU32,
    /// The time of the last look: for those who have no clock.
    looked: AtomicU64,
}

impl Liveness {
    pub(super) fn new(now: Millis, handshake_timeout_ms: u64) -> Self {
        Self {
            last_read: AtomicU64::new(now.0),
            last_written: AtomicU64::new(now.0),
            heartbeat_ms: AtomicU32::new(0),
            reading: AtomicBool::new(true),
            since: AtomicU64::new(now.0),
            timeout_ms: AtomicU32::new(u32::try_from(handshake_timeout_ms).unwrap_or(u32::MAX)),
            looked: AtomicU64::new(now.0),
        }
    }

    /// The handshake is over; `heartbeat_s` is what the client has chosen.
    pub(super) fn begin_open(&self, heartbeat_s: u16) {
        self.heartbeat_ms.store(u32::from(heartbeat_s) * 1000, Ordering::Relaxed);
        self.timeout_ms.store(NEVER, Ordering::Relaxed);
    }

    /// connection.close was sent. RabbitMQ waits for one heartbeat interval, at most 30 s.
    pub(super) fn begin_closing(&self) {
        let heartbeat_ms = self.heartbeat_ms.load(Ordering::Relaxed);
        let timeout_ms = if heartbeat_ms == 0 { CLOSING_MS } else { heartbeat_ms.min(CLOSING_MS) };
        self.since.store(self.looked.load(Ordering::Relaxed), Ordering::Relaxed);
        self.timeout_ms.store(timeout_ms, Ordering::Relaxed);
    }

    /// Something was received.
    pub fn received(&self, now: Millis) {
        self.last_read.store(now.0, Ordering::Relaxed);
    }

    /// Whether the connection is being read. While it is not, its silence means nothing.
    pub fn set_reading(&self, reading: bool, now: Millis) {
        self.reading.store(reading, Ordering::Relaxed);
        self.received(now);
    }

    /// Something was sent.
    pub fn sent(&self, now: Millis) {
        self.last_written.store(now.0, Ordering::Relaxed);
    }

    /// Looks at the connection; called a few times a second.
    pub fn look(&self, now: Millis) -> Verdict {
        self.looked.store(now.0, Ordering::Relaxed);
        let timeout_ms = self.timeout_ms.load(Ordering::Relaxed);
        let since = Millis(self.since.load(Ordering::Relaxed));
        if timeout_ms != NEVER && now.since(since) >= u64::from(timeout_ms) {
            return Verdict::TimedOut;
        }
        let interval = u64::from(self.heartbeat_ms.load(Ordering::Relaxed));
        if interval == 0 {
            return Verdict::Alive;
        }
        let silent_ms = now.since(Millis(self.last_read.load(Ordering::Relaxed)));
        if silent_ms > 2 * interval && self.reading.load(Ordering::Relaxed) {
            return Verdict::MissedHeartbeats;
        }
        if now.since(Millis(self.last_written.load(Ordering::Relaxed))) >= interval / 2 {
            return Verdict::SendHeartbeat;
        }
        Verdict::Alive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_peer_is_given_up_after_two_intervals() {
        let liveness = Liveness::new(Millis(0), 10_000);
        liveness.begin_open(10);
        assert_eq!(liveness.look(Millis(4_000)), Verdict::Alive);
        assert_eq!(liveness.look(Millis(5_000)), Verdict::SendHeartbeat);
        liveness.sent(Millis(5_000));
        assert_eq!(liveness.look(Millis(6_000)), Verdict::Alive);
        liveness.received(Millis(9_000));
        liveness.sent(Millis(29_000));
        assert_eq!(liveness.look(Millis(29_000)), Verdict::Alive);
        assert_eq!(liveness.look(Millis(29_001)), Verdict::MissedHeartbeats);
    }

    #[test]
    fn handshake_and_closing_have_deadlines() {
        let liveness = Liveness::new(Millis(100), 10_000);
        assert_eq!(liveness.look(Millis(10_099)), Verdict::Alive);
        assert_eq!(liveness.look(Millis(10_100)), Verdict::TimedOut);
        liveness.begin_open(0);
        assert_eq!(liveness.look(Millis(100_000)), Verdict::Alive);
        liveness.begin_closing();
        assert_eq!(liveness.look(Millis(129_999)), Verdict::Alive);
        assert_eq!(liveness.look(Millis(130_000)), Verdict::TimedOut);
    }
}
