//! The store on a disk.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proptest::sample::Index;
use tempfile::TempDir;

use super::model::Disk;
use super::*;
use crate::store::directory::{self, SyncedMark};

/// A store's directory, and how long its newest log was when all in it was durable.
pub(super) struct Files {
    dir: TempDir,
    durable: Option<(PathBuf, u64)>,
}

impl Files {
    pub(super) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("temporary directory"), durable: None }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn store(&self) -> Store {
        Store::open(&self.path(), &Options::default()).expect("opened")
    }

    /// A copy of the files as they are. The engine may remove one meanwhile.
    fn copy(&self) -> Self {
        until(|| {
            let copy = Self::new();
            copy_directory(&self.path(), &copy.path()).ok().map(|()| copy)
        })
    }

    /// The files of the engine with this extension, by name.
    fn files(&self, extension: &str) -> Vec<PathBuf> {
        let files = fs::read_dir(directory::engine(&self.path())).expect("a directory");
        let mut files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
        files.retain(|path| path.extension().is_some_and(|of| of == extension));
        files.sort();
        files
    }

    fn newest_log(&self) -> (PathBuf, u64) {
        let path = self.files("log").pop().expect("there is a log");
        let len = path.metadata().expect("it is there").len();
        (PathBuf::from(path.file_name().expect("it has a name")), len)
    }

    /// Waits until the last file of an extension is gone.
    fn wait_for_no(&self, extension: &str) {
        until(|| self.files(extension).is_empty().then_some(()));
    }
}

impl Disk for Files {
    fn open(&self) -> Store {
        self.store()
    }

    fn note_durable(&mut self) {
        self.durable = Some(self.newest_log());
    }

    fn crash(&self, kept: Index) -> Self {
        let copy = self.copy();
        let (name, len) = copy.newest_log();
        let synced = match &self.durable {
            Some((durable, synced)) if *durable == name => *synced,
            _ => 0,
        };
        let keep = synced + kept.index((len - synced) as usize + 1) as u64;
        let log = directory::engine(&copy.path()).join(name);
        let log = OpenOptions::new().write(true).open(log).expect("opened");
        log.set_len(keep).expect("cut");
        // What the store has synced by itself since then is taken back, and so is the note of it.
        let _ = fs::remove_file(copy.path().join(directory::SYNCED_FILE));
        copy
    }
}

fn copy_directory(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_directory(&entry.path(), &target)?,
            false => drop(fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

/// Turns a byte of a file into another one.
fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("opened");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 0x55], at).expect("written");
}

fn len(path: &Path) -> u64 {
    File::open(path).and_then(|file| file.metadata()).expect("a file").len()
}

/// Messages of which each is an entry of its own, with a body that tells its number.
fn put_entries(store: &Store, first: u64, count: u64, bytes: usize) {
    (first..first + count).for_each(|seq| put_to(store, 1, seq, bytes));
}

fn put_to(store: &Store, queue: u64, seq: u64, bytes: usize) {
    let mut body = vec![7; bytes];
    body[..8].copy_from_slice(&seq.to_le_bytes());
    let ticket = store.submit(queue, &mut messages(seq, &[&body]));
    assert_eq!(outcome(store, ticket), Outcome::Durable);
}

/// What is read back, which must be right as far as it is, and what is reported lost.
fn read_entries(store: &Store) -> Result<(Vec<u64>, Vec<Range<u64>>), StoreError> {
    let (mut seqs, mut lost, mut from) = (Vec::new(), Vec::new(), 0);
    while from < u64::MAX {
        let chunk = store.read(1, 0, from, 10_000)?;
        for run in chunk.runs {
            let mut rest = &run.bytes[..];
            for seq in run.first..=run.last {
                let (record, others) = rest.split_at(crate::queue::record_len(rest).unwrap());
                assert_eq!(record[8..16], seq.to_le_bytes(), "never a wrong one");
                assert!(record[16..].iter().all(|byte| *byte == 7), "never a wrong one");
                seqs.push(seq);
                rest = others;
            }
        }
        lost.extend(chunk.lost);
        from = chunk.end;
    }
    Ok((seqs, lost))
}

#[test]
fn a_store_that_was_closed_is_as_it_was() {
    let files = Files::new();
    let store = files.store();
    put_entries(&store, 0, 5, 100);
    let ticket = store.change(change(b"k"));
    assert_eq!(outcome(&store, ticket), Outcome::Durable);
    store.close();
    drop(store);
    for _ in 0..3 {
        let store = files.store();
        assert_eq!(read_entries(&store).unwrap(), ((0..5).collect(), vec![]));
        assert_eq!(store.heads().unwrap(), [(1, vec![head(0, 5)])]);
        assert_eq!(store.entries(Space::Delayed).unwrap(), [(b"k".to_vec(), b"value".to_vec())]);
        assert_eq!(store.lost_at_open(), None);
    }
}

#[test]
fn synced_groups_that_are_missing_are_noticed() {
    let files = Files::new();
    let store = files.store();
    put_entries(&store, 0, 20, 1_000);
    store.close();
    let (name, len) = files.newest_log();
    let log = OpenOptions::new().write(true).open(directory::engine(&files.path()).join(name));
    log.expect("opened").set_len(len / 2).expect("cut");
    let lost = files.store().lost_at_open().expect("half of it is gone");
    assert!(lost.newest < lost.synced && lost.synced >= 20, "{lost:?}");
    assert_eq!(SyncedMark::read(&files.path()), Some(lost.newest), "it is told once");
    assert_eq!(files.store().lost_at_open(), None);
}

#[test]
fn a_log_that_was_changed_is_not_served_as_if_it_were_right() {
    let files = Files::new();
    let store = files.store();
    put_entries(&store, 0, 20, 1_000);
    store.close();
    let (name, len) = files.newest_log();
    for at in (50..len - 50).step_by(997) {
        let copy = files.copy();
        flip(&directory::engine(&copy.path()).join(&name), at);
        let Ok(store) = Store::open(&copy.path(), &Options::default()) else { continue };
        let lost = store.lost_at_open().expect("a byte of it was changed");
        let (seqs, _) = read_entries(&store).unwrap();
        assert!(seqs.len() < 20 && lost.newest < 20, "{lost:?}");
    }
}

/// A store of which each message is in a file of its own kind.
fn flushed(bytes: usize) -> Files {
    let files = Files::new();
    let store = files.store();
    put_entries(&store, 0, 20, bytes);
    store.shared.engine.compact(Table::Messages, &[]..&keys::END).expect("flushed");
    store.close();
    files
}

/// Flips bytes all over a file; whatever is lost of it must be reported by reads and by the check.
fn flip_all_over(files: &Files, extension: &str, steps: u64) {
    let path = files.files(extension).pop().expect("there is one");
    let name = path.file_name().expect("it has a name");
    let all: Vec<u64> = (0..20).collect();
    let mut noticed = 0;
    for at in (0..len(&path)).step_by((len(&path) / steps) as usize) {
        let copy = files.copy();
        flip(&directory::engine(&copy.path()).join(name), at);
        let report = check(&copy.path(), &mut |_| {});
        let is_noticed = report.as_ref().map_or(true, |report| !report.damage.is_empty());
        let store = Store::open(&copy.path(), &Options::default());
        match store.and_then(|store| read_entries(&store)) {
            Ok((seqs, lost)) if seqs == all => assert!(lost.is_empty(), "at {at}: {lost:?}"),
            Ok((seqs, lost)) => {
                let is_lost = |seq: &u64| lost.iter().any(|range| range.contains(seq));
                let missing = all.iter().filter(|seq| !seqs.contains(seq));
                assert!(missing.into_iter().all(is_lost), "at {at}: {seqs:?}, {lost:?}");
                assert!(is_noticed, "the check finds it, at {at}: {report:?}");
                noticed += 1;
            }
            Err(error) => {
                assert!(is_noticed, "the check finds it, at {at}: {error}, {report:?}");
                noticed += 1;
            }
        }
    }
    assert!(noticed > 0, "it is tried on something that matters");
}

#[test]
fn a_table_that_was_changed_is_noticed() {
    flip_all_over(&flushed(1_000), "sst", 40);
}

#[test]
fn large_messages_that_were_changed_are_left_out_one_by_one() {
    let files = flushed(10_000);
    let blob = files.files("blob").pop().expect("large ones go there");
    flip(&blob, len(&blob) / 2);
    let store = files.store();
    let (seqs, lost) = read_entries(&store).unwrap();
    assert_eq!((seqs.len(), lost.len()), (19, 1), "{lost:?}");
    store.close();
    let report = check(&files.path(), &mut |_| {}).unwrap();
    assert_eq!(report.damage.len(), 1, "{report:?}");
    flip(&blob, len(&blob) / 2);
    flip_all_over(&files, "blob", 25);
}

#[test]
fn files_go_when_a_queue_has_run_empty() {
    let files = Files::new();
    let store = files.store();
    put_entries(&store, 0, 60, 50_000);
    store.shared.engine.compact(Table::Messages, &[]..&keys::END).expect("flushed");
    assert!(!files.files("blob").is_empty());
    assert_eq!(outcome(&store, store.submit(1, &mut heads(60, 60))), Outcome::Durable);
    files.wait_for_no("blob");
    assert!(store.read(1, 0, 0, 1).unwrap().runs.is_empty());
}

#[test]
fn files_go_when_a_queue_is_gone() {
    let files = Files::new();
    let store = files.store();
    put_entries(&store, 0, 60, 50_000);
    store.shared.engine.compact(Table::Messages, &[]..&keys::END).expect("flushed");
    assert_eq!(outcome(&store, store.forget_queue(1)), Outcome::Durable);
    files.wait_for_no("blob");
    assert_eq!(store.heads().unwrap(), []);
}

#[test]
fn garbage_goes_and_what_lives_stays() {
    let files = Files::new();
    let store = files.store();
    let flush = || {
        store.shared.engine.compact(Table::Messages, &[]..&keys::END).expect("flushed");
        files.files("blob").iter().map(|file| len(file)).sum::<u64>()
    };
    let mut before = 0;
    for first in (0..40).step_by(4) {
        put_entries(&store, first, 4, 10_000);
        put_to(&store, 2, first, 40_000);
        before = flush();
    }
    assert_eq!(outcome(&store, store.forget_queue(2)), Outcome::Durable);
    flush();
    let (garbage, all) = store.shared.engine.garbage(Table::Messages).expect("counted");
    assert!(garbage >= 400_000 && all >= 800_000, "{garbage} of {all}");
    store.shared.engine.rewrite(Table::Messages).expect("rewritten");
    // Of ten files, the oldest three.
    until(|| (flush() < before - 100_000).then_some(()));
    assert_eq!(read_entries(&store).unwrap(), ((0..40).collect(), vec![]));
}

#[test]
fn a_newer_format_is_refused() {
    let files = flushed(100);
    fs::write(files.path().join("format"), "9\n").expect("written");
    let refused = Store::open(&files.path(), &Options::default()).expect_err("it is newer");
    assert!(matches!(refused, StoreError::Newer { found: 9, .. }), "{refused}");
    assert!(check(&files.path(), &mut |_| {}).is_err());
}

#[test]
fn the_check_counts_what_is_there() {
    let files = Files::new();
    let store = files.store();
    put_entries(&store, 0, 5, 100);
    let mut acks =
        Records { heads: vec![LaneHead { count: 2, ..head(1, 5) }], ..Records::default() };
    acks.marks = vec![
        Mark::Settled { lane: 0, start: 2, end: 4 },
        Mark::Settled { lane: 0, start: 3, end: 4 },
    ];
    assert_eq!(outcome(&store, store.submit(1, &mut acks)), Outcome::Durable);
    assert_eq!(outcome(&store, store.change(change(b"k"))), Outcome::Durable);
    store.close();
    let report = check(&files.path(), &mut |_| {}).unwrap();
    let expected = Report {
        format: directory::FORMAT,
        group: report.group,
        synced_group: Some(report.group),
        queues: 1,
        messages: 5,
        live_messages: 2,
        bytes: 5 * 108,
        delayed: 1,
        ..Report::default()
    };
    assert_eq!(report, expected);
}

#[test]
fn the_check_finds_what_does_not_agree() {
    let files = Files::new();
    let store = files.store();
    put_entries(&store, 0, 5, 100);
    assert_eq!(outcome(&store, store.submit(1, &mut heads(0, 3))), Outcome::Durable);
    let mut batch = crate::store::batch::Batch::default();
    batch.put(Table::Messages, &keys::place(9, 3, 7), b"what is this");
    batch.put(Table::Messages, b"short", b"");
    batch.put(Table::Marks, b"short", b"");
    batch.put(Table::Bodies, &keys::body(5), b"body");
    store.shared.engine.write(&batch, true).expect("written");
    store.close();
    let report = check(&files.path(), &mut |_| {}).unwrap();
    for what in [
        "queue 1, lane 0 has 5 messages, and 3 by its head",
        "message 4 of queue 1, lane 0 is not given out yet",
        "queue 9, lane 3 has messages and no head",
        "of queue 9, lane 3 are damaged",
        "a key of messages is malformed",
        "a mark is malformed",
        "only one of body 5",
    ] {
        assert!(report.damage.iter().any(|damage| damage.contains(what)), "{what}: {report:#?}");
    }
}
