//! Transactions: publishes and settlements kept until `tx.commit` (specification section 1.9).
//!
//! Owns what a channel in transaction mode has gathered. As in RabbitMQ, a transaction is atomic
//! for one queue only, and consuming is not part of it.

use std::sync::Arc;

use super::settle::Settled;
use super::{Connection, Worker};
use crate::broker::{Memory, OwnedMessage, QueueCell, Staged, Unfinished};
use crate::codec::hot;
use crate::codec::method::{AMQPClass, tx};
use crate::error::{AmqpError, ReplyCode};
use crate::routing::Kept;

use super::channel::Mode;

/// A message published in a transaction.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) message: OwnedMessage,
    pub(super) mandatory: bool,
    /// Where it was routed when it was published, as RabbitMQ does it.
    pub(super) queues: Vec<Arc<QueueCell>>,
    /// What exchanges on its way want kept, once it is committed.
    pub(super) kept: Option<Box<PendingKept>>,
}

/// See [`Pending`].
#[derive(Debug)]
pub(super) struct PendingKept {
    pub(super) kept: Vec<Kept>,
    /// The routing keys besides the one in the message's address.
    pub(super) more_keys: Vec<Vec<u8>>,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Transaction {
    publishes: Vec<Pending>,
    settled: Vec<Settled>,
    unfinished: Unfinished,
    bytes: usize,
}

impl Transaction {
    pub(super) fn new(memory: &Arc<Memory>) -> Self {
        Self {
            publishes: Vec::new(),
            settled: Vec::new(),
            unfinished: Unfinished::new(memory),
            bytes: 0,
        }
    }

    pub(super) fn publish(&mut self, pending: Pending) -> Result<(), AmqpError> {
        let message = &pending.message;
        let small = message.address.len() + message.header.len() + size_of::<Pending>();
        let queues = pending.queues.len() * size_of::<Arc<QueueCell>>();
        self.bytes += small + queues + message.body.len();
        self.unfinished.resize(self.bytes)?;
        self.publishes.push(pending);
        Ok(())
    }

    pub(super) fn settle(&mut self, settled: Settled) {
        self.settled.push(settled);
    }

    /// Takes everything out; the transaction is empty then.
    pub(super) fn take(&mut self) -> (Vec<Pending>, Vec<Settled>) {
        self.bytes = 0;
        // Less is always taken.
        let _ = self.unfinished.resize(0);
        (std::mem::take(&mut self.publishes), std::mem::take(&mut self.settled))
    }
}

impl Connection {
    pub(super) fn handle_tx(
        &mut self,
        number: u16,
        method: tx::AMQPMethod,
        worker: &mut Worker,
    ) -> Result<(), AmqpError> {
        let memory = self.broker.memory().clone();
        let channel = self.channel_mut(number);
        match method {
            tx::AMQPMethod::Select(_) => {
                match &channel.mode {
                    Mode::Plain => channel.mode = Mode::Transactional(Transaction::new(&memory)),
                    Mode::Transactional(_) => {}
                    Mode::Confirm(_) => {
                        let text = "cannot switch from confirm to tx mode";
                        return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
                    }
                }
                self.send(number, AMQPClass::Tx(tx::AMQPMethod::SelectOk(tx::SelectOk {})), worker);
                Ok(())
            }
            tx::AMQPMethod::Commit(_) => {
                let taken = self.take_transaction(number)?;
                self.commit_transaction(number, taken, worker)?;
                let ok = tx::AMQPMethod::CommitOk(tx::CommitOk {});
                self.send_durable(number, AMQPClass::Tx(ok), worker);
                Ok(())
            }
            tx::AMQPMethod::Rollback(_) => {
                let (_, settled) = self.take_transaction(number)?;
                let channel = self.channel_mut(number);
                channel.unacked.restore(settled.into_iter().map(|settled| settled.delivery));
                let ok = tx::AMQPMethod::RollbackOk(tx::RollbackOk {});
                self.send(number, AMQPClass::Tx(ok), worker);
                Ok(())
            }
            _ => Err(super::dispatch::unimplemented()),
        }
    }

    fn take_transaction(&mut self, number: u16) -> Result<(Vec<Pending>, Vec<Settled>), AmqpError> {
        self.transaction_mut(number).map(Transaction::take)
    }

    /// The transaction of a channel that has one.
    pub(super) fn transaction_mut(&mut self, number: u16) -> Result<&mut Transaction, AmqpError> {
        match &mut self.channel_mut(number).mode {
            Mode::Transactional(transaction) => Ok(transaction),
            _ => {
                let text = "channel is not transactional";
                Err(AmqpError::new(ReplyCode::PreconditionFailed, text))
            }
        }
    }

    fn keep(&self, pending: &Pending, worker: &mut Worker) {
        let Some(PendingKept { kept, more_keys }) = pending.kept.as_deref() else { return };
        let content = pending.message.content();
        let mut keys = vec![hot::split_address(content.address).1];
        keys.extend(more_keys.iter().map(Vec::as_slice));
        self.vhost().keep(kept, &content, &keys, &mut worker.drive);
    }

    fn commit_transaction(
        &mut self,
        number: u16,
        (publishes, settled): (Vec<Pending>, Vec<Settled>),
        worker: &mut Worker,
    ) -> Result<(), AmqpError> {
        for mut pending in publishes {
            pending.message = pending.message.counted(self.broker.memory());
            self.keep(&pending, worker);
            if pending.queues.is_empty() {
                if pending.mandatory {
                    self.send_return(number, &pending.message.content(), worker);
                }
                continue;
            }
            let message = pending.message;
            let token = worker.batch.stage(Staged::Owned(Box::new(message)));
            for queue in &pending.queues {
                worker.batch.enqueue(queue, token);
            }
        }
        for settled in settled {
            self.apply_settled(number, settled, worker);
        }
        let mut rejected = Vec::new();
        worker.drive.is_answered = true;
        worker.batch.commit(&[], &mut worker.drive, &mut rejected);
        worker.drive.is_answered = false;
        self.reopen_gates(worker);
        if !rejected.is_empty() {
            let text = "partial tx completion";
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
        }
        Ok(())
    }
}
