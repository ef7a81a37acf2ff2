//! The waiting messages that a broker brings back from its store when it starts.
//!
//! Owns which entries go back to their exchange, and that the others are deleted. It must not know
//! how they came into the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::entry;
use crate::broker::exchange_memory::KeptMessage;
use crate::broker::{Broker, Drive};
use crate::routing::ExchangeKind;
use crate::store::{Space, StoreError};

impl Broker {
    /// Brings back the messages that wait at delayed-message exchanges. Called once, when the
    /// definitions are there and before anything is published or due: what is overdue by then is
    /// published by the timer. What has no exchange goes, unless definitions are missing
    /// (`is_whole` is false).
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) fn restore_delayed(
        &self,
        is_whole: bool,
        drive: &mut Drive,
    ) -> Result<(), StoreError> {
        let Some(store) = self.store() else { return Ok(()) };
        let mut restored = 0_u64;
        let mut useless = Vec::new();
        let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
        for (key, value) in store.entries(Space::Delayed)? {
            match self.restore_entry(&key, &value, drive) {
                Ok(()) => restored += 1,
                Err(reason) => {
                    *reasons.entry(reason).or_default() += 1;
                    useless.push(entry::change(key, None));
                }
            }
        }
        for (reason, messages) in reasons {
            tracing::warn!(messages, is_whole, "delayed messages are left out: {reason}");
        }
        tracing::info!(messages = restored, "delayed messages of the store");
        if is_whole {
            store.change(useless);
        }
        Ok(())
    }

    /// Puts a message back into its exchange; says why that cannot be.
    fn restore_entry(&self, key: &[u8], value: &[u8], drive: &mut Drive) -> Result<(), String> {
        let damaged = || "they cannot be understood".to_owned();
        let (vhost, exchange, turn) = entry::read_key(key).ok_or_else(damaged)?;
        let (keys, message) = entry::read_value(value).ok_or_else(damaged)?;
        let gone = || format!("there is no such exchange '{exchange}' in vhost '{vhost}' any more");
        let vhost = self.vhost(vhost).ok_or_else(gone)?;
        let topology = vhost.topology.read();
        let exchange = topology.exchange(exchange).filter(|exchange| {
            let spec = exchange.spec();
            spec.durable && spec.kind == ExchangeKind::Delayed
        });
        let waiting = vhost.kept.waiting_at(exchange.ok_or_else(gone)?);
        let message = message.counted(self.memory());
        let kept = KeptMessage::new(&message.content(), &keys, self.memory());
        waiting.restore(turn, Arc::new(kept), drive);
        Ok(())
    }
}
