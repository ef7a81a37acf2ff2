//! The files of the store beside the engine's.
//!
//! Owns the stamp of the format and the number of the newest group that was synced. The latter is
//! written after each sync and not synced itself: it survives the end of the process, and if the
//! engine comes back with an older group than that, then what was synced was lost.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use crate::atomic_file;

use super::StoreError;

const FORMAT_FILE: &str = "format";
pub(super) const SYNCED_FILE: &str = "synced";
const ENGINE_DIRECTORY: &str = "rocksdb";

/// Each leads from one format to the next, the first one from format 1.
const MIGRATIONS: &[Migration] = &[refuse_the_first];

type Migration = fn(&Path) -> Result<(), StoreError>;

/// The version of the layout that this program writes, and the newest that it reads.
pub(super) const FORMAT: u32 = MIGRATIONS.len() as u32 + 1;

/// Format 1 was never released.
fn refuse_the_first(directory: &Path) -> Result<(), StoreError> {
    let path = directory.display();
    Err(StoreError::Damaged(format!(
        "{path} was written by a development version, in a format that was given up: export the \
         definitions with that version, then move the directory away"
    )))
}

/// Where the engine's files are in a store's directory.
pub(super) fn engine(directory: &Path) -> PathBuf {
    directory.join(ENGINE_DIRECTORY)
}

/// Makes the directory, or brings what is there to this program's format.
pub(super) fn prepare(directory: &Path) -> Result<(), StoreError> {
    let failed = |error: io::Error| failed(directory, &error);
    // Nobody else's business: there are messages and password hashes in it.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    match found_format(directory)? {
        Some(FORMAT) => return Ok(()),
        Some(found) => {
            for migrate in MIGRATIONS.iter().skip(found as usize - 1) {
                migrate(directory)?;
            }
        }
        None => {
            if let Some(parent) = directory.parent().filter(|parent| *parent != Path::new("")) {
                File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
            }
        }
    }
    // Before the first message, so that nothing is ever there without a stamp.
    let stamp = format!("{FORMAT}\n");
    atomic_file::replace(&directory.join(FORMAT_FILE), stamp.as_bytes()).map_err(failed)
}

/// The format of what is there, if anything is.
pub(super) fn found_format(directory: &Path) -> Result<Option<u32>, StoreError> {
    let path = directory.join(FORMAT_FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match engine(directory).exists() {
                true => Err(StoreError::Damaged(format!("{} is missing", path.display()))),
                false => Ok(None),
            };
        }
        Err(error) => return Err(failed(directory, &error)),
    };
    match text.trim().parse() {
        Ok(found) if found > FORMAT => {
            Err(StoreError::Newer { path: directory.to_owned(), found, known: FORMAT })
        }
        Ok(0) | Err(_) => {
            Err(StoreError::Damaged(format!("{} does not hold a version", path.display())))
        }
        Ok(found) => Ok(Some(found)),
    }
}

fn failed(directory: &Path, error: &io::Error) -> StoreError {
    StoreError::Io { path: directory.to_owned(), reason: error.to_string() }
}

/// The number of the newest synced group.
#[derive(Debug)]
pub(super) struct SyncedMark {
    file: File,
}

impl SyncedMark {
    /// Opens the file, and says what it holds. What is no number is as good as nothing.
    pub(super) fn open(directory: &Path) -> Result<(Self, Option<u64>), StoreError> {
        let path = directory.join(SYNCED_FILE);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(|error| failed(directory, &error))?;
        Ok((Self { file }, Self::read(directory)))
    }

    /// What the file holds.
    pub(super) fn read(directory: &Path) -> Option<u64> {
        fs::read_to_string(directory.join(SYNCED_FILE)).ok()?.trim().parse().ok()
    }

    /// Notes that all groups up to this one are synced.
    pub(super) fn set(&self, group: u64) -> io::Result<()> {
        self.file.write_all_at(format!("{group:020}\n").as_bytes(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_format_is_refused_by_its_number() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("data/store");
        prepare(&path).expect("made");
        assert_eq!(found_format(&path).expect("stamped"), Some(FORMAT));
        prepare(&path).expect("opened again");
        fs::write(path.join(FORMAT_FILE), format!("{}\n", FORMAT + 1)).expect("written");
        let refused = prepare(&path).expect_err("newer").to_string();
        assert!(refused.contains(&format!("format {}", FORMAT + 1)), "{refused}");
        assert!(refused.contains(&format!("format {FORMAT}")), "{refused}");
        for text in ["", "0", "one", "1"] {
            fs::write(path.join(FORMAT_FILE), text).expect("written");
            assert!(matches!(prepare(&path), Err(StoreError::Damaged(_))), "{text:?}");
        }
    }

    #[test]
    fn files_without_a_stamp_are_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(engine(dir.path())).expect("made");
        assert!(matches!(prepare(dir.path()), Err(StoreError::Damaged(_))));
    }

    #[test]
    fn the_mark_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (mark, found) = SyncedMark::open(dir.path()).expect("made");
        assert_eq!(found, None);
        mark.set(u64::MAX).expect("written");
        mark.set(12).expect("written");
        assert_eq!(SyncedMark::open(dir.path()).expect("opened").1, Some(12));
        fs::write(dir.path().join(SYNCED_FILE), "12 and more").expect("written");
        assert_eq!(SyncedMark::read(dir.path()), None);
    }
}
