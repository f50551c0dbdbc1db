//! The conversations that a run with `--dedup` has seen, in memory and on the disk.
//!
//! In: fingerprints. Out: whether each is new, and the side file `prep-state.seen`: 16 bytes
//! (little-endian) per fingerprint, in the order in which they were first seen. Every save appends
//! the new ones; only then the state file is written, which says how many entries belong to it and
//! their sha256 ([`SeenMark`]). Entries behind that number were written by a run that was killed
//! between the two files; resuming cuts them off, and their rows are read again.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// Name of the side file.
pub(crate) const SEEN_FILE: &str = "prep-state.seen";
const ENTRY_BYTES: usize = 16;

/// The part of the side file that belongs to a state file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SeenMark {
    entries: u64,
    /// sha256 of their bytes; empty if there are none.
    sha256: String,
}

/// The set of fingerprints.
pub(crate) struct SeenSet {
    path: PathBuf,
    set: HashSet<u128>,
    /// Bytes that are not in the side file yet.
    unsaved: Vec<u8>,
    /// Of all bytes in the side file.
    hasher: Sha256,
    mark: SeenMark,
}

impl SeenSet {
    /// An empty set that will be saved in the folder `dir`.
    pub(crate) fn new(dir: &Path) -> SeenSet {
        SeenSet {
            path: dir.join(SEEN_FILE),
            set: HashSet::new(),
            unsaved: Vec::new(),
            hasher: Sha256::new(),
            mark: SeenMark::default(),
        }
    }

    /// Adds a fingerprint; false if it was there.
    pub(crate) fn insert(&mut self, fingerprint: u128) -> bool {
        let new = self.set.insert(fingerprint);
        if new {
            self.unsaved.extend_from_slice(&fingerprint.to_le_bytes());
        }
        new
    }

    /// Appends the new fingerprints to the side file and flushes it to the disk. The mark must be
    /// written into the state file afterwards.
    pub(crate) fn save(&mut self) -> Result<SeenMark> {
        if self.unsaved.is_empty() {
            return Ok(self.mark.clone());
        }
        let first = self.mark.entries == 0;
        // A file without a mark was left by a run that never wrote its state.
        let mut file = if first {
            dlm_datasets::fs::create_partial(&self.path)?
        } else {
            let opened = OpenOptions::new().append(true).open(&self.path);
            opened.map_err(Error::io("opening", &self.path))?
        };
        file.write_all(&self.unsaved).map_err(Error::io("writing", &self.path))?;
        file.sync_data().map_err(Error::io("flushing", &self.path))?;
        if first {
            dlm_datasets::fs::sync_parent(&self.path)?;
        }
        self.hasher.update(&self.unsaved);
        self.mark.entries += (self.unsaved.len() / ENTRY_BYTES) as u64;
        self.mark.sha256 = hex(self.hasher.clone());
        self.unsaved.clear();
        Ok(self.mark.clone())
    }

    /// Reads the fingerprints that belong to `mark` and cuts off what follows them. `rows` is the
    /// number of rows that were read so far, the most fingerprints there can be. The error says
    /// what is wrong with the side file.
    pub(crate) fn restore(&mut self, mark: SeenMark, rows: u64) -> std::result::Result<(), String> {
        if mark.entries == 0 {
            return Ok(());
        }
        let failed = |e: std::io::Error| format!("{SEEN_FILE} cannot be read ({e})");
        let file = OpenOptions::new().read(true).write(true).open(&self.path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        if mark.entries > rows || mark.entries > bytes / ENTRY_BYTES as u64 {
            return Err(format!(
                "{SEEN_FILE} is damaged: {bytes} bytes, expected {} fingerprints of {ENTRY_BYTES}",
                mark.entries
            ));
        }
        let end = mark.entries * ENTRY_BYTES as u64;
        let mut reader = BufReader::with_capacity(1 << 18, Read::take(&file, end));
        let mut entry = [0u8; ENTRY_BYTES];
        for _ in 0..mark.entries {
            reader.read_exact(&mut entry).map_err(failed)?;
            self.hasher.update(entry);
            self.set.insert(u128::from_le_bytes(entry));
        }
        if hex(self.hasher.clone()) != mark.sha256 || self.set.len() as u64 != mark.entries {
            return Err(format!("{SEEN_FILE} is damaged: its content has changed"));
        }
        file.set_len(end).map_err(failed)?;
        self.mark = mark;
        Ok(())
    }

    /// Removes the side file.
    pub(crate) fn remove_file(&self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("removing", &self.path)(e))
            }
            _ => Ok(()),
        }
    }
}

fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restored(dir: &Path, mark: &SeenMark) -> std::result::Result<SeenSet, String> {
        let mut set = SeenSet::new(dir);
        set.restore(mark.clone(), 100).map(|()| set)
    }

    #[test]
    fn a_kill_between_the_files_neither_loses_nor_duplicates() {
        let dir = tempfile::tempdir().unwrap();
        let length = || std::fs::metadata(dir.path().join(SEEN_FILE)).map(|m| m.len()).unwrap_or(0);
        let mut set = SeenSet::new(dir.path());
        let none = set.save().unwrap();
        assert_eq!(length(), 0, "no file without fingerprints");
        assert!(set.insert(1) && set.insert(u128::MAX) && !set.insert(1));
        let two = set.save().unwrap();
        assert_eq!((length(), set.save().unwrap()), (32, two.clone()));
        // The third entry reaches the side file, the mark never reaches the state file.
        assert!(set.insert(3));
        set.save().unwrap();
        assert_eq!(length(), 48);
        let mut set = restored(dir.path(), &two).unwrap();
        assert_eq!(length(), 32, "the entry without a mark is cut off");
        assert!(!set.insert(1) && !set.insert(u128::MAX) && set.insert(3));
        let three = set.save().unwrap();
        assert_eq!(length(), 48);
        assert!(!restored(dir.path(), &three).unwrap().insert(3));
        // The same before the first mark.
        let mut set = restored(dir.path(), &none).unwrap();
        assert!(set.insert(7));
        set.save().unwrap();
        assert_eq!(length(), 16);
    }

    #[test]
    fn damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SEEN_FILE);
        let mut set = SeenSet::new(dir.path());
        assert!((0..50).all(|i| set.insert(i)));
        let mark = set.save().unwrap();
        let whole = std::fs::read(&path).unwrap();
        let problem = |mark: &SeenMark| match restored(dir.path(), mark) {
            Ok(_) => panic!("accepted"),
            Err(e) => e,
        };
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(problem(&mark).contains("799 bytes, expected 50"), "{}", problem(&mark));
        let mut changed = whole.clone();
        changed[100] ^= 1;
        std::fs::write(&path, &changed).unwrap();
        assert!(problem(&mark).contains("has changed"));
        std::fs::write(&path, &whole).unwrap();
        let more = SeenMark { entries: 101, ..mark.clone() };
        assert!(problem(&more).contains("expected 101"));
        std::fs::remove_file(&path).unwrap();
        assert!(problem(&mark).contains("cannot be read"));
        set.remove_file().unwrap();
    }
}
