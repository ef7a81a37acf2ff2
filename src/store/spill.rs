//! Files for messages that are in memory only when there is room.
//!
//! Owns a directory with a file for each piece that was put aside. Nothing here outlives the
//! process, and nothing is synced: what a crash leaves is removed at the next start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Spill {
    directory: PathBuf,
    next: AtomicU64,
}

impl Spill {
    /// An empty one in this directory, which is emptied.
    ///
    /// # Errors
    /// When the directory cannot be emptied or made.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir_all(directory)?;
        Ok(Self { directory: directory.to_owned(), next: AtomicU64::new(1) })
    }

    /// Puts a piece aside; answers the number by which it is found.
    ///
    /// # Errors
    /// When it cannot be written. Then nothing is left of it.
    pub(crate) fn put(&self, piece: &[u8]) -> io::Result<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.path(number);
        fs::write(&path, piece).inspect_err(|_| drop(fs::remove_file(&path)))?;
        Ok(number)
    }

    /// The piece of this number, which stays.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn get(&self, number: u64) -> io::Result<Vec<u8>> {
        fs::read(self.path(number))
    }

    /// Forgets a piece.
    pub(crate) fn remove(&self, number: u64) {
        if let Err(error) = fs::remove_file(self.path(number)) {
            tracing::warn!(number, "a spilled piece is left behind until the next start: {error}");
        }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(number.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_back_until_they_are_removed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("spill");
        let spill = Spill::open(&path).expect("made");
        let (one, two) = (spill.put(b"one").expect("put"), spill.put(b"two").expect("put"));
        assert_eq!(spill.get(one).expect("there"), b"one");
        spill.remove(one);
        assert!(spill.get(one).is_err());
        assert_eq!(spill.get(two).expect("there"), b"two");
        let again = Spill::open(&path).expect("made again");
        assert!(again.get(two).is_err(), "nothing outlives the process");
    }
}
