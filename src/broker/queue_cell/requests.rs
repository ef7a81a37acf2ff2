//! What is asked of a queue, and how it refuses.
//!
//! Owns plain data.

use crate::broker::outbox::ConnectionId;
use crate::codec::method::FieldTable;
use crate::queue::{Kind, Slot};

/// What a queue was declared with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Declaration {
    /// The type that the arguments ask for.
    pub(crate) kind: Kind,
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    /// The connection that the queue is exclusive to.
    pub(crate) owner: Option<ConnectionId>,
    pub(crate) arguments: FieldTable,
}

/// What a settled delivery does to its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// The message is done with.
    Done,
    /// The message is refused: dropped, or dead-lettered.
    Reject,
    /// The message comes back to its original place.
    Requeue,
}

/// What a batch does to one queue, in the order in which its client said so.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    /// Takes in the message that this token names.
    Publish(u32),
    /// Settles a delivery.
    Settle(Slot, Settlement),
}

/// Why a consumer or a get was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The queue was deleted.
    Gone,
    /// An exclusive consumer is there, or was asked for while others are.
    InUse,
    /// A quorum queue with a single active consumer is for that one (RabbitMQ).
    SingleActive,
    /// The store cannot be read.
    Unreadable,
}

/// Why a queue was not deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    Gone,
    InUse,
    NotEmpty,
}

/// Conditions on deleting a queue.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DeleteIf {
    pub(crate) unused: bool,
    pub(crate) empty: bool,
    /// It has been unused for as long as `x-expires` says.
    pub(crate) expired: bool,
}
