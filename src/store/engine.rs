//! What the store asks of a key-value engine.
//!
//! Owns the contract and nothing else: ordered tables of byte strings, batches that are applied as
//! a whole or not at all, in order, and a sync that makes all batches before it durable. After a
//! crash the engine holds all synced batches and a prefix of the others.

use std::ops::{ControlFlow, Range};

use thiserror::Error;

use super::batch::{Batch, Table};

/// Why something was not written.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(super) enum WriteError {
    /// The disk is full. Nothing of the batch is there, and the same batch may be tried again.
    #[error("no space is left: {0}")]
    NoSpace(String),
    /// Whether the batch is there is not known. Nothing more may be written.
    #[error("{0}")]
    Failed(String),
}

/// Why something was not read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(super) enum ReadError {
    /// What is there is not what was written: a checksum or a length is wrong.
    #[error("{0}")]
    Damaged(String),
    /// It could not be read.
    #[error("{0}")]
    Failed(String),
}

/// Called with each key and its value; says whether to go on.
pub(super) type Each<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// See the module's description.
pub(super) trait Engine: Send + Sync {
    /// Applies the batch; with `sync` it and all before it are durable on return.
    fn write(&self, batch: &Batch, sync: bool) -> Result<(), WriteError>;

    /// Makes everything written durable.
    fn sync(&self) -> Result<(), WriteError>;

    /// The value of a key.
    fn value(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, ReadError>;

    /// Walks the keys of a range in order; `each` may ask for the value of another one. After
    /// [`ReadError::Damaged`], what was walked is sound, and the next key is the damaged one.
    fn scan(&self, table: Table, keys: Range<&[u8]>, each: Each<'_>) -> Result<(), ReadError>;

    /// Gives disk space back that deletions in this range have freed, where that takes no copying
    /// of large values. It may take seconds.
    fn compact(&self, table: Table, keys: Range<&[u8]>) -> Result<(), ReadError>;

    /// Bytes of large values that are deleted and still on disk, and of all that are on disk.
    fn garbage(&self, table: Table) -> Result<(u64, u64), ReadError>;

    /// Copies large values to get rid of the garbage between them. It may take minutes.
    fn rewrite(&self, table: Table) -> Result<(), ReadError>;

    /// Closes the files. Reads fail from here on.
    fn close(&self);
}
