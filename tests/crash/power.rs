//! What is left on a disk after the power went.
//!
//! Owns the library that is preloaded into the broker (`unsynced.c`), its log, and taking back
//! what was not synced. It must not know what the files mean.
//!
//! The disk that is played here:
//! - A file has the bytes that it had at its last fsync or fdatasync, and the size with them. Of
//!   what was written since, a random part from the first write on is kept: none, all, or some, the
//!   last of it torn at a sector of 512 bytes; now and then a sector of what is kept beyond the
//!   synced size reads as zeros. That is what an ordered journal with delayed allocation leaves.
//! - A name (created, renamed, removed) is there for certain once its directory was synced, or the
//!   file itself after it got that name, as on ext4 and XFS, where a file's sync commits the
//!   journal. Names that were changed since come from a random point between then and the end.
//!   Names that do not depend on each other are drawn independently, which a single journal would
//!   not do: it is harsher than any one file system.
//! - Syncing anything below a new directory keeps the directory itself.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::random::Random;

const SECTOR: u64 = 512;

/// A data directory whose writes are followed. See the module's description.
pub struct Power {
    dir: PathBuf,
    log: PathBuf,
    links: PathBuf,
}

impl Power {
    /// Follows `data`, which lies in `dir`.
    pub fn new(dir: &Path, data: &Path) -> Power {
        let links = dir.join("removed");
        fs::create_dir(&links).expect("a new directory");
        let dir_of = |path: &Path| path.canonicalize().expect("it is there");
        Power { dir: dir_of(data), log: dir.join("unsynced.log"), links }
    }

    /// The assignments that `env` takes, for the broker's next start.
    pub fn environment(&self) -> Vec<String> {
        let pair = |key: &str, value: &Path| format!("{key}={}", value.display());
        vec![
            pair("LD_PRELOAD", library()),
            pair("UNSYNCED_DIR", &self.dir),
            pair("UNSYNCED_LOG", &self.log),
            pair("UNSYNCED_LINKS", &self.links),
        ]
    }

    /// Leaves in the directory what a disk might, now that the process is dead.
    pub fn take_back(&self, random: &mut Random) {
        let log = fs::read(&self.log).unwrap_or_default();
        let records = read_log(&log);
        let unknown = records.iter().find(|record| record.kind == Kind::Unknown);
        assert!(unknown.is_none(), "unsynced.c does not follow {}", unknown.unwrap().path);
        self.take_back_contents(&records, random);
        self.take_back_names(&records, random);
        fs::remove_file(&self.log).unwrap_or(());
        fs::remove_dir_all(&self.links).expect("it can be removed");
        fs::create_dir(&self.links).expect("a new directory");
    }

    fn take_back_contents(&self, records: &[Record], random: &mut Random) {
        let mut paths = BTreeMap::new();
        find_files(&self.dir, &mut paths);
        find_files(&self.links, &mut paths);
        let mut changes: BTreeMap<u64, Vec<&Record>> = BTreeMap::new();
        for record in records {
            match record.kind {
                Kind::Write | Kind::Size => changes.entry(record.inode).or_default().push(record),
                Kind::Sync => {
                    let file = changes.entry(record.inode).or_default();
                    file.retain(|change| change.number > record.at);
                }
                Kind::All => {
                    changes.values_mut().for_each(|c| c.retain(|r| r.number > record.at));
                }
                _ => {}
            }
        }
        for (inode, changes) in changes.iter().filter(|(_, changes)| !changes.is_empty()) {
            let Some(path) = paths.get(inode) else { continue };
            let file = File::options().read(true).write(true).open(path).expect("a file of ours");
            take_back_content(&file, changes, random);
        }
    }

    fn take_back_names(&self, records: &[Record], random: &mut Random) {
        let names: Vec<&Record> = records.iter().filter(|record| record.is_name()).collect();
        let mut kept = keep_names(&names, records, random);
        for record in names.iter().rev() {
            if !kept.remove(&record.number) {
                self.undo(record);
            }
        }
    }

    fn undo(&self, record: &Record) {
        let path = Path::new(&record.path);
        let saved = |inode: u64| self.links.join(inode.to_string());
        let is_at = |path: &Path, inode| fs::metadata(path).is_ok_and(|m| m.ino() == inode);
        match record.kind {
            Kind::Create => drop(fs::remove_file(path)),
            Kind::Mkdir => drop(fs::remove_dir_all(path)),
            Kind::Rmdir => drop(fs::create_dir(path)),
            Kind::Unlink if !path.exists() => drop(fs::hard_link(saved(record.inode), path)),
            // The kill may have come between the record and the call.
            Kind::Rename if is_at(Path::new(&record.other), record.inode) => {
                let new = Path::new(&record.other);
                fs::rename(new, path).expect("it was renamed the other way");
                if record.at != 0 {
                    fs::hard_link(saved(record.at), new).expect("it was kept");
                }
            }
            _ => {}
        }
    }
}

/// Which changes of names stay, by number: those that are durable, and more at random.
fn keep_names(
    names: &[&Record],
    records: &[Record],
    random: &mut Random,
) -> std::collections::BTreeSet<u64> {
    // Changes that share a name depend on each other, also by way of others.
    let mut groups: HashMap<&str, usize> = HashMap::new();
    let mut members: Vec<Vec<&Record>> = Vec::new();
    for record in names {
        let mut of: Vec<usize> =
            record.paths().filter_map(|path| groups.get(path).copied()).collect();
        of.sort_unstable();
        of.dedup();
        let group = of.first().copied().unwrap_or_else(|| {
            members.push(Vec::new());
            members.len() - 1
        });
        for other in of.iter().skip(1) {
            let moved = std::mem::take(&mut members[*other]);
            members[group].extend(moved);
            groups.values_mut().filter(|at| *at == other).for_each(|at| *at = group);
        }
        members[group].push(record);
        for path in record.paths() {
            groups.insert(path, group);
        }
    }
    let mut kept = std::collections::BTreeSet::new();
    for mut group in members {
        group.sort_by_key(|record| record.number);
        let durable = group.iter().rposition(|record| is_durable(record, records));
        let least = durable.map_or(0, |at| at + 1);
        let stays = match random.between(0, 2) {
            0 => least,
            1 => group.len(),
            _ => random.between(least as u64, group.len() as u64) as usize,
        };
        kept.extend(group[..stays].iter().map(|record| record.number));
    }
    kept
}

/// Whether a later sync has made this change of a name durable.
fn is_durable(name: &Record, records: &[Record]) -> bool {
    let covers = |sync: &Record| {
        let below = |path: &str| sync.path == path || sync.path.starts_with(&format!("{path}/"));
        let directory = |path: &str| Path::new(path).parent() == Some(Path::new(&sync.path));
        sync.at >= name.number
            && match sync.kind {
                Kind::All => true,
                Kind::DirSync => {
                    name.paths().any(directory) || name.kind == Kind::Mkdir && below(&name.path)
                }
                Kind::Sync => match name.kind {
                    Kind::Create | Kind::Rename => sync.inode == name.inode,
                    Kind::Mkdir => below(&name.path),
                    _ => false,
                },
                _ => false,
            }
    };
    records.iter().any(covers)
}

/// Takes back a random part of the changes from the last on, perhaps cutting one in two.
fn take_back_content(file: &File, changes: &[&Record], random: &mut Random) {
    let kept = match random.between(0, 9) {
        0..=3 => 0,
        4..=5 => changes.len(),
        _ => random.between(0, changes.len() as u64) as usize,
    };
    let synced_size = changes[0].old_size;
    let is_torn = random.percent(50);
    for (at, change) in changes.iter().enumerate().skip(kept).rev() {
        let mut from = change.at;
        if is_torn && at == kept && change.kind == Kind::Write {
            let end = change.at + change.length;
            from = random.between(change.at, end) / SECTOR * SECTOR;
            from = from.clamp(change.at, end);
        }
        restore(file, change, from);
    }
    if kept > 0 && random.percent(30) {
        let size = file.metadata().expect("an open file").len();
        let sector = random.between(synced_size / SECTOR, size / SECTOR) * SECTOR;
        let (start, end) = (sector.max(synced_size), (sector + SECTOR).min(size));
        if start < end {
            let zeros = vec![0; (end - start) as usize];
            file.write_all_at(&zeros, start).expect("it can be written");
        }
    }
}

/// Puts back what stood in the file from `from` on, before this change.
fn restore(file: &File, change: &Record, from: u64) {
    let size = file.metadata().expect("an open file").len();
    let start = if change.kind == Kind::Write { change.at } else { change.length };
    let from = from.max(start);
    let skip = (from - start).min(change.data.len() as u64) as usize;
    file.write_all_at(&change.data[skip..], start + skip as u64).expect("it can be written");
    let grew = change.kind == Kind::Size || change.at + change.length > change.old_size;
    let old_size = if from > start { change.old_size.max(from) } else { change.old_size };
    if grew && size > old_size {
        file.set_len(old_size).expect("it can be cut");
    }
}

/// All files below a directory by their inode.
fn find_files(dir: &Path, found: &mut BTreeMap<u64, PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("readable").path();
        let status = fs::symlink_metadata(&path).expect("it is there");
        if status.is_dir() {
            find_files(&path, found);
        } else if status.is_file() {
            found.insert(status.ino(), path);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Write = 1,
    Size,
    Sync,
    Create,
    Rename,
    Unlink,
    Mkdir,
    Rmdir,
    DirSync,
    All,
    Cancel,
    Unknown,
}

const KINDS: [Kind; 12] = [
    Kind::Write,
    Kind::Size,
    Kind::Sync,
    Kind::Create,
    Kind::Rename,
    Kind::Unlink,
    Kind::Mkdir,
    Kind::Rmdir,
    Kind::DirSync,
    Kind::All,
    Kind::Cancel,
    Kind::Unknown,
];

/// A record of the log; `unsynced.c` says what its fields mean.
#[derive(Clone, Debug)]
struct Record {
    kind: Kind,
    number: u64,
    inode: u64,
    at: u64,
    length: u64,
    old_size: u64,
    path: String,
    other: String,
    data: Vec<u8>,
}

impl Record {
    fn is_name(&self) -> bool {
        use Kind::{Create, Mkdir, Rename, Rmdir, Unlink};
        matches!(self.kind, Create | Rename | Unlink | Mkdir | Rmdir)
    }

    fn paths(&self) -> impl Iterator<Item = &str> {
        [self.path.as_str(), self.other.as_str()].into_iter().filter(|path| !path.is_empty())
    }
}

const MAGIC: u32 = 0x5953_4e55;
const HEAD: usize = 64;

/// The records of a log whose last one may be cut off: its call was not made then.
fn read_log(mut log: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    while let Some((record, rest)) = read_record(log) {
        records.push(record);
        log = rest;
    }
    let failed: Vec<u64> =
        records.iter().filter(|r| r.kind == Kind::Cancel).map(|r| r.at).collect();
    records.retain(|record| !failed.contains(&record.number));
    records
}

fn read_record(log: &[u8]) -> Option<(Record, &[u8])> {
    let head = log.get(..HEAD)?;
    let half = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
    let long = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    assert_eq!(half(0), MAGIC, "the log of unsynced.c holds together");
    let lens = [half(48) as usize, half(52) as usize, long(56) as usize];
    let rest = log.get(HEAD..HEAD + lens.iter().sum::<usize>())?;
    let (path, after) = rest.split_at(lens[0]);
    let (other, data) = after.split_at(lens[1]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let record = Record {
        kind: KINDS[half(4) as usize - 1],
        number: long(8),
        inode: long(16),
        at: long(24),
        length: long(32),
        old_size: long(40),
        path: text(path),
        other: text(other),
        data: data.to_vec(),
    };
    Some((record, &log[HEAD + rest.len()..]))
}

/// The library, compiled once for all tests of this process.
fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| compile("unsynced.c", "unsynced.so", &["-shared", "-fPIC"]))
}

/// Compiles a C file that lies beside this one.
fn compile(source: &str, name: &str, options: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash").join(source);
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // Another test process may be using the last one.
    let fresh = built.with_extension(format!("{}", std::process::id()));
    let output = Command::new("cc")
        .args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&fresh)
        .args(options)
        .arg(&source)
        .args(["-ldl", "-lpthread"])
        .output()
        .expect("a C compiler is there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} does not compile:\n{said}", source.display());
    fs::rename(&fresh, &built).expect("beside each other");
    built
}

#[cfg(test)]
#[path = "power_tests.rs"]
mod tests;
