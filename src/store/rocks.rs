//! The engine on disk: RocksDB.
//!
//! Owns the database's files and options, and what its errors mean. The table of messages is kept
//! in BlobDB: what is large is written to the log and to a blob file once each and never moved by
//! compaction, so that the trees hold little more than keys. Everything else is small.
//!
//! Invariant: after an error of a write other than a full disk, nothing is written.

use std::fs::{self, File};
use std::io::Write;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{RwLock, RwLockWriteGuard};
use rocksdb::{
    BlockBasedOptions, BottommostLevelCompaction, Cache, ColumnFamily, ColumnFamilyDescriptor,
    CompactOptions, DB, DBCompressionType, DBRecoveryMode, ErrorKind, FlushOptions, LogLevel,
    Options, ReadOptions, WriteBatch, WriteOptions,
};

use super::batch::{Batch, Operation, Table};
use super::engine::{Each, Engine, ReadError, WriteError};

const MIB: usize = 1024 * 1024;

/// What is in memory of all tables until they are flushed, all at once. So much, twice at most, is
/// in the log, and is read again after a crash.
const BUFFER_BYTES: usize = 16 * MIB;
const BUFFERS_MAX: i32 = 3;

/// The same of one table: more than the log ever has, so that opening flushes nothing.
const TABLE_BUFFER_BYTES: usize = 64 * MIB;

/// Blocks of tables in memory.
const CACHE_BYTES: usize = 8 * MIB;

/// Values of this size and more go to blob files, which are this large.
const BLOB_BYTES_MIN: u64 = 4 * 1024;
const BLOB_FILE_BYTES: u64 = 64 * MIB as u64;

/// Of the blob files, the oldest part that is rewritten at once when there is too much garbage in
/// them: until it is done, it takes the space twice.
const REWRITE_PART: f64 = 0.3;

/// Writes wait for compaction with so many new files. They are small.
const FILES_SLOW: i32 = 40;
const FILES_MAX: i32 = 80;

const OPEN_FILES_MAX: i32 = 256;

/// Room that must be there before a full disk counts as mended (bytes), beside the batch's.
const ROOM_BYTES: usize = 4 * MIB;

/// See the module's description.
pub(super) struct RocksEngine {
    path: PathBuf,
    /// `None` once it is closed. Taken for writing only to close it, or to open it again.
    db: RwLock<Option<DB>>,
    /// The disk was full: the database takes no write until it is opened again.
    was_full: AtomicBool,
}

impl RocksEngine {
    /// Opens the database in this directory, or makes one.
    pub(super) fn open(path: &Path) -> Result<Self, ReadError> {
        Self::over(path, open(path))
    }

    /// Opens the database for reading, and leaves it as it is.
    pub(super) fn open_read_only(path: &Path) -> Result<Self, ReadError> {
        let open = |options| DB::open_cf_descriptors_read_only(&options, path, families(), false);
        Self::over(path, database_options().and_then(open))
    }

    fn over(path: &Path, db: Result<DB, rocksdb::Error>) -> Result<Self, ReadError> {
        let db = RwLock::new(Some(db.map_err(|error| read_error(&error))?));
        Ok(Self { path: path.to_owned(), db, was_full: AtomicBool::new(false) })
    }

    /// Calls `read` with the open database.
    fn with<T>(&self, read: impl FnOnce(&DB) -> Result<T, rocksdb::Error>) -> Result<T, ReadError> {
        match &*self.db.read() {
            Some(db) => read(db).map_err(|error| read_error(&error)),
            None => Err(closed()),
        }
    }

    /// Calls `write` with the open database, which is opened again first if the disk was full and
    /// has room for `bytes` again.
    fn with_room(
        &self,
        bytes: usize,
        write: impl FnOnce(&DB) -> Result<(), rocksdb::Error>,
    ) -> Result<(), WriteError> {
        if self.was_full.load(Ordering::Relaxed) {
            self.reopen(bytes)?;
        }
        let written = match &*self.db.read() {
            Some(db) => write(db).map_err(|error| write_error(&error)),
            None => Err(WriteError::Failed("it is closed".to_owned())),
        };
        if let Err(WriteError::NoSpace(_)) = written {
            self.was_full.store(true, Ordering::Relaxed);
        }
        written
    }

    /// After a full disk the database only reads, until it is opened again.
    fn reopen(&self, bytes: usize) -> Result<(), WriteError> {
        self.try_room(ROOM_BYTES + bytes)?;
        let mut db = self.take();
        *db = Some(open(&self.path).map_err(|error| write_error(&error))?);
        self.was_full.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Closes the database, and keeps everybody else out.
    fn take(&self) -> RwLockWriteGuard<'_, Option<DB>> {
        if let Some(db) = &*self.db.read() {
            // Whoever compacts lets go of it by that.
            db.cancel_all_background_work(true);
        }
        let mut db = self.db.write();
        *db = None;
        db
    }

    /// Whether a file of this size can be written.
    fn try_room(&self, bytes: usize) -> Result<(), WriteError> {
        let path = self.path.join("room");
        let write = || {
            let mut file = File::create(&path)?;
            let zeroes = vec![0; MIB];
            for _ in 0..bytes.div_ceil(MIB) {
                file.write_all(&zeroes)?;
            }
            file.sync_data()
        };
        let written = write();
        // It is tried again with the next write.
        let _ = fs::remove_file(&path);
        written.map_err(|error| match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                WriteError::NoSpace(error.to_string())
            }
            _ => WriteError::Failed(error.to_string()),
        })
    }
}

impl Engine for RocksEngine {
    fn write(&self, batch: &Batch, sync: bool) -> Result<(), WriteError> {
        self.with_room(batch.size(), |db| {
            let mut options = WriteOptions::default();
            options.set_sync(sync);
            db.write_opt(write_batch(db, batch), &options)
        })
    }

    fn sync(&self) -> Result<(), WriteError> {
        match &*self.db.read() {
            Some(db) => db.flush_wal(true).map_err(|e| WriteError::Failed(e.into_string())),
            None => Err(WriteError::Failed("it is closed".to_owned())),
        }
    }

    fn value(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
        // Whoever asks may be in the middle of a walk, and somebody may wait to open it again.
        match &*self.db.read_recursive() {
            Some(db) => {
                let ((family, prefix), mut room) = (place(table), Vec::new());
                let key = full_key(prefix, key, &mut room);
                let value = db.get_cf_opt(family.of(db), key, &read_options());
                value.map_err(|error| read_error(&error))
            }
            None => Err(closed()),
        }
    }

    fn scan(&self, table: Table, keys: Range<&[u8]>, each: Each<'_>) -> Result<(), ReadError> {
        self.with(|db| {
            let ((family, prefix), mut room) = (place(table), Vec::new());
            let mut options = read_options();
            options.set_iterate_upper_bound(full_key(prefix, keys.end, &mut room));
            let mut iterator = db.raw_iterator_cf_opt(family.of(db), options);
            iterator.seek(full_key(prefix, keys.start, &mut room));
            while let Some((key, value)) = iterator.item() {
                if let ControlFlow::Break(()) = each(&key[prefix.len()..], value) {
                    return Ok(());
                }
                iterator.next();
            }
            iterator.status()
        })
    }

    fn compact(&self, table: Table, keys: Range<&[u8]>) -> Result<(), ReadError> {
        self.with(|db| {
            let (family, prefix) = place(table);
            let (mut first, mut second) = (Vec::new(), Vec::new());
            let start = full_key(prefix, keys.start, &mut first);
            let end = full_key(prefix, keys.end, &mut second);
            // All of them, so that the log goes, too.
            db.flush_cfs_opt(&Family::ALL.map(|family| family.of(db)), &FlushOptions::default())?;
            let mut options = CompactOptions::default();
            options.set_exclusive_manual_compaction(false);
            db.compact_range_cf_opt(family.of(db), Some(start), Some(end), &options);
            Ok(())
        })
    }

    fn garbage(&self, table: Table) -> Result<(u64, u64), ReadError> {
        self.with(|db| {
            let bytes = |name| db.property_int_value_cf(place(table).0.of(db), name);
            let garbage = bytes("rocksdb.live-blob-file-garbage-size")?;
            let all = bytes("rocksdb.live-blob-file-size")?;
            Ok((garbage.unwrap_or(0), all.unwrap_or(0)))
        })
    }

    fn rewrite(&self, table: Table) -> Result<(), ReadError> {
        self.with(|db| {
            let family = place(table).0.of(db);
            db.set_options_cf(family, &[("enable_blob_garbage_collection", "true")])?;
            let mut options = CompactOptions::default();
            options.set_exclusive_manual_compaction(false);
            options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
            db.compact_range_cf_opt(family, None::<&[u8]>, None::<&[u8]>, &options);
            db.set_options_cf(family, &[("enable_blob_garbage_collection", "false")])
        })
    }

    fn close(&self) {
        drop(self.take());
    }
}

fn open(path: &Path) -> Result<DB, rocksdb::Error> {
    DB::open_cf_descriptors(&database_options()?, path, families())
}

/// A column family. Each costs files of its own with each flush, so small tables share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Small,
    Messages,
    Bodies,
    Delayed,
}

impl Family {
    const ALL: [Self; 4] = [Self::Small, Self::Messages, Self::Bodies, Self::Delayed];

    fn name(self) -> &'static str {
        match self {
            Self::Small => "default",
            Self::Messages => "messages",
            Self::Bodies => "bodies",
            Self::Delayed => "delayed",
        }
    }

    fn of(self, db: &DB) -> &ColumnFamily {
        db.cf_handle(self.name()).expect("all of them are opened together")
    }
}

/// Where a table is, and what its keys begin with there.
fn place(table: Table) -> (Family, &'static [u8]) {
    match table {
        Table::Meta => (Family::Small, b"0"),
        Table::Heads => (Family::Small, b"h"),
        Table::Marks => (Family::Small, b"m"),
        Table::Definitions => (Family::Small, b"d"),
        Table::Messages => (Family::Messages, b""),
        Table::Bodies => (Family::Bodies, b""),
        Table::Delayed => (Family::Delayed, b""),
    }
}

fn families() -> impl Iterator<Item = ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(CACHE_BYTES);
    Family::ALL.into_iter().map(move |family| {
        ColumnFamilyDescriptor::new(family.name(), family_options(family, &cache))
    })
}

fn database_options() -> Result<Options, rocksdb::Error> {
    // What is in the log stays there and in memory: opening writes no messages.
    let mut options = Options::default().get_options_from_string(
        "avoid_flush_during_recovery=true;enforce_write_buffer_manager_during_recovery=false",
    )?;
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    // A torn end is what a crash leaves. What was lost of synced data is noticed by its number.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_db_write_buffer_size(BUFFER_BYTES);
    options.set_atomic_flush(true);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_skip_stats_update_on_db_open(true);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(MIB);
    options.set_log_level(LogLevel::Warn);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    // One thread writes.
    options.set_allow_concurrent_memtable_write(false);
    options.set_enable_write_thread_adaptive_yield(false);
    Ok(options)
}

fn family_options(family: Family, cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_block_size(16 * 1024);
    blocks.set_format_version(5);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(TABLE_BUFFER_BYTES);
    options.set_arena_block_size(MIB / 4);
    options.set_max_write_buffer_number(BUFFERS_MAX);
    options.set_level_zero_slowdown_writes_trigger(FILES_SLOW);
    options.set_level_zero_stop_writes_trigger(FILES_MAX);
    if family != Family::Small {
        options.set_enable_blob_files(true);
        options.set_min_blob_size(BLOB_BYTES_MIN);
        options.set_blob_file_size(BLOB_FILE_BYTES);
        options.set_blob_compression_type(DBCompressionType::None);
        // Blobs are moved by `rewrite` only: most die of age where they are.
        options.set_enable_blob_gc(false);
        options.set_blob_gc_age_cutoff(REWRITE_PART);
    }
    options
}

fn read_options() -> ReadOptions {
    let mut options = ReadOptions::default();
    // What is read here is read once.
    options.fill_cache(false);
    options
}

fn write_batch(db: &DB, batch: &Batch) -> WriteBatch {
    let families = Family::ALL.map(|family| family.of(db));
    let mut out = WriteBatch::with_capacity_bytes(batch.size() + batch.size() / 8 + 64);
    // Keys with what they begin with.
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for operation in batch.operations() {
        match operation {
            Operation::Put { table, key, value } => {
                let (family, prefix) = place(table);
                out.put_cf(families[family as usize], full_key(prefix, key, &mut first), value);
            }
            Operation::Delete { table, key } => {
                let (family, prefix) = place(table);
                out.delete_cf(families[family as usize], full_key(prefix, key, &mut first));
            }
            Operation::DeleteRange { table, from, to } => {
                let (family, prefix) = place(table);
                let from = full_key(prefix, from, &mut first);
                let to = full_key(prefix, to, &mut second);
                out.delete_range_cf(families[family as usize], from, to);
            }
        }
    }
    out
}

/// The key with what it begins with, in `room` if need be.
fn full_key<'a>(prefix: &[u8], key: &'a [u8], room: &'a mut Vec<u8>) -> &'a [u8] {
    if prefix.is_empty() {
        return key;
    }
    room.clear();
    room.extend_from_slice(prefix);
    room.extend_from_slice(key);
    room
}

fn closed() -> ReadError {
    ReadError::Failed("it is closed".to_owned())
}

fn read_error(error: &rocksdb::Error) -> ReadError {
    match error.kind() {
        ErrorKind::Corruption => ReadError::Damaged(error.to_string()),
        _ => ReadError::Failed(error.to_string()),
    }
}

/// A sync that fails for want of room has failed like any other: it cannot be tried again.
fn write_error(error: &rocksdb::Error) -> WriteError {
    let message = error.to_string();
    let is_full = ["No space left on device", "Disk quota exceeded"]
        .iter()
        .any(|text| message.contains(text));
    if is_full && !["While fsync", "While fdatasync"].iter().any(|text| message.contains(text)) {
        WriteError::NoSpace(message)
    } else {
        WriteError::Failed(message)
    }
}
