//! basic.ack, basic.nack and basic.reject: from delivery tags to settled messages.
//!
//! Owns the refusal of unknown tags, and what settling gives back: prefetch credit of the channel.
//! It must not lock a queue: that happens when the batch is committed.

use super::channel::Mode;
use super::{Connection, Worker};
use crate::broker::{Settlement, Unsettled};
use crate::codec::hot::Settle;
use crate::error::{AmqpError, ReplyCode};

/// A delivery with what its client decided.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settled {
    pub(super) delivery: Unsettled,
    pub(super) settlement: Settlement,
}

impl Connection {
    /// A tag of 0 with `multiple` means all, even none (specification section 1.8.3.13).
    pub(super) fn handle_settle(
        &mut self,
        number: u16,
        settle: Settle,
        worker: &mut Worker,
    ) -> Result<(), AmqpError> {
        let refusal = |requeue| if requeue { Settlement::Requeue } else { Settlement::Reject };
        let (tag, multiple, settlement) = match settle {
            Settle::Ack { tag, multiple } => (tag, multiple, Settlement::Done),
            Settle::Nack { tag, multiple, requeue } => (tag, multiple, refusal(requeue)),
            Settle::Reject { tag, requeue } => (tag, false, refusal(requeue)),
        };
        let all = multiple && tag == 0;
        if all || self.channel(number).unacked.is_ahead(tag) {
            self.take_over(number);
        }
        let unacked = &mut self.channel_mut(number).unacked;
        let unknown = || {
            let text = format!("unknown delivery tag {tag}");
            AmqpError::new(ReplyCode::PreconditionFailed, text)
        };
        if !multiple {
            let delivery = unacked.take(tag).ok_or_else(unknown)?;
            self.settle(number, Settled { delivery, settlement }, worker);
            return Ok(());
        }
        let taken =
            if all { unacked.take_all() } else { unacked.take_up_to(tag).ok_or_else(unknown)? };
        for delivery in taken {
            self.settle(number, Settled { delivery, settlement }, worker);
        }
        Ok(())
    }

    fn settle(&mut self, number: u16, settled: Settled, worker: &mut Worker) {
        match &mut self.channel_mut(number).mode {
            Mode::Transactional(transaction) => transaction.settle(settled),
            _ => self.apply_settled(number, settled, worker),
        }
    }

    /// Hands a settled delivery to its queue, by way of the batch.
    pub(super) fn apply_settled(&mut self, number: u16, settled: Settled, worker: &mut Worker) {
        let Settled { delivery, settlement } = settled;
        let channel = self.channel_mut(number);
        worker.batch.settle(channel.sources.queue(delivery.source), delivery.slot, settlement);
        channel.sources.leave(delivery.source);
        if delivery.counted && channel.gate.give_back() && !self.reopening.contains(&number) {
            self.reopening.push(number);
        }
    }

    /// Takes over the deliveries that were noted in the outbox meanwhile.
    pub(super) fn take_over(&mut self, number: u16) {
        let mut noted = std::mem::take(&mut self.noted);
        self.outbox.lock().take_unsettled(number, &mut noted);
        self.channel_mut(number).take_over(noted.drain(..));
        self.noted = noted;
    }

    /// Lets consumers go on that a channel's shared prefetch limit had stopped, now that it has
    /// room. To be called when the batch is committed.
    pub(super) fn reopen_gates(&mut self, worker: &mut Worker) {
        for number in std::mem::take(&mut self.reopening) {
            let Some(channel) = &self.channels[usize::from(number)] else { continue };
            for consumer in channel.consumers.values() {
                consumer.queue.reopen(&mut worker.drive);
            }
        }
    }
}
