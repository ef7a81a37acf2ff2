//! The latest messages of a recent-history exchange.
//!
//! Owns at most so many messages, oldest first. It must not know who gets them: a queue or exchange
//! that is bound does (see `Vhost::bind`).

use std::collections::VecDeque;
use std::sync::Arc;

use super::exchange_memory::KeptMessage;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct RecentHistory {
    messages: VecDeque<Arc<KeptMessage>>,
}

impl RecentHistory {
    /// Adds a message to the latest `length`; answers the ones that no longer belong to them.
    pub(super) fn push(
        &mut self,
        message: Arc<KeptMessage>,
        length: usize,
    ) -> Vec<Arc<KeptMessage>> {
        self.messages.push_back(message);
        let excess = self.messages.len().saturating_sub(length);
        self.messages.drain(..excess).collect()
    }

    /// The messages, oldest first.
    pub(super) fn messages(&self) -> impl Iterator<Item = Arc<KeptMessage>> {
        self.messages.iter().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Memory;
    use crate::queue::{Body, Content};

    #[test]
    fn the_latest_are_kept_in_order() {
        let memory = Arc::new(Memory::new(u64::MAX, 0));
        let mut history = RecentHistory::default();
        for n in b'0'..=b'9' {
            let content = Content { address: b"\0\0", header: b"", body: Body::Inline(&[n]) };
            let message = Arc::new(KeptMessage::new(&content, &[b""], &memory));
            drop(history.push(message, 3));
        }
        let bodies: Vec<u8> = history.messages().map(|kept| kept.message().body[0]).collect();
        assert_eq!(bodies, b"789");
        drop(history);
        assert_eq!(memory.used(), 0);
    }
}
