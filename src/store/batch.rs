//! One group as the engine gets it: puts, deletions and range deletions, in order.
//!
//! Owns one buffer with all keys and values, so that a group costs no allocation each time and can
//! be tried again. It must not know what the keys mean.

use std::ops::Range;

/// The tables of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Table {
    /// Facts about the store itself.
    Meta,
    /// Runs of messages.
    Messages,
    /// What was settled or has come back above a watermark.
    Marks,
    /// The state of each lane.
    Heads,
    /// Large bodies that several queues share.
    Bodies,
    /// Definitions, opaque.
    Definitions,
    /// Delayed messages, opaque.
    Delayed,
}

impl Table {
    /// The name of the table in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Messages => "messages",
            Self::Marks => "marks",
            Self::Heads => "heads",
            Self::Bodies => "bodies",
            Self::Definitions => "definitions",
            Self::Delayed => "delayed",
        }
    }
}

/// One change, with keys and values borrowed from the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation<'a> {
    Put {
        table: Table,
        key: &'a [u8],
        value: &'a [u8],
    },
    Delete {
        table: Table,
        key: &'a [u8],
    },
    /// Everything from `from` on and before `to`.
    DeleteRange {
        table: Table,
        from: &'a [u8],
        to: &'a [u8],
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Put,
    Delete,
    DeleteRange,
}

#[derive(Clone, Debug)]
struct Entry {
    kind: Kind,
    table: Table,
    /// Where the key, or the range's beginning, ends.
    key_end: usize,
    /// Where the value, or the range's end, ends.
    end: usize,
}

/// See the module's description.
#[derive(Clone, Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of keys and values.
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Forgets everything; keeps the memory up to `bytes_max`.
    pub(super) fn clear(&mut self, bytes_max: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(bytes_max);
        self.entries.clear();
    }

    pub(super) fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.put_with(table, key, |bytes| bytes.extend_from_slice(value));
    }

    /// A put whose value is appended by `write`.
    pub(super) fn put_with(&mut self, table: Table, key: &[u8], write: impl FnOnce(&mut Vec<u8>)) {
        self.bytes.extend_from_slice(key);
        let key_end = self.bytes.len();
        write(&mut self.bytes);
        self.entries.push(Entry { kind: Kind::Put, table, key_end, end: self.bytes.len() });
    }

    pub(super) fn delete(&mut self, table: Table, key: &[u8]) {
        self.bytes.extend_from_slice(key);
        let end = self.bytes.len();
        self.entries.push(Entry { kind: Kind::Delete, table, key_end: end, end });
    }

    pub(super) fn delete_range(&mut self, table: Table, from: &[u8], to: &[u8]) {
        self.bytes.extend_from_slice(from);
        let key_end = self.bytes.len();
        self.bytes.extend_from_slice(to);
        let end = self.bytes.len();
        self.entries.push(Entry { kind: Kind::DeleteRange, table, key_end, end });
    }

    pub(super) fn operations(&self) -> impl Iterator<Item = Operation<'_>> {
        let mut start = 0;
        self.entries.iter().map(move |entry| {
            let Entry { kind, table, key_end, end } = *entry;
            let Range { start: from, end: to } = start..end;
            start = end;
            let (key, value) = (&self.bytes[from..key_end], &self.bytes[key_end..to]);
            match kind {
                Kind::Put => Operation::Put { table, key, value },
                Kind::Delete => Operation::Delete { table, key },
                Kind::DeleteRange => Operation::DeleteRange { table, from: key, to: value },
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_come_back_in_order() {
        let mut batch = Batch::default();
        for _ in 0..2 {
            assert!(batch.is_empty());
            batch.put(Table::Heads, b"k", b"value");
            batch.delete(Table::Marks, b"gone");
            batch.delete_range(Table::Messages, b"a", b"c");
            batch.put_with(Table::Meta, b"", |out| out.push(7));
            let operations: Vec<_> = batch.operations().collect();
            let expected = [
                Operation::Put { table: Table::Heads, key: b"k", value: b"value" },
                Operation::Delete { table: Table::Marks, key: b"gone" },
                Operation::DeleteRange { table: Table::Messages, from: b"a", to: b"c" },
                Operation::Put { table: Table::Meta, key: b"", value: &[7] },
            ];
            assert_eq!(operations, expected);
            assert_eq!(batch.size(), 13);
            batch.clear(1024);
        }
    }
}
