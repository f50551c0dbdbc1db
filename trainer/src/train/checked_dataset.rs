//! The dataset of a run, each row of which is checked when it is first read.
//!
//! In: a packed folder. Out: rows that keep the invariants of the format, as `dlm-prep verify`
//! checks them; a row that breaks one is refused with its file, its place and the value.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use dlm_datasets::verify::check_row;
use dlm_datasets::{Dataset, Manifest, Split};

use crate::compute::mapped_files;
use crate::diffusion::PackedRow;
use crate::error::{Error, Result};

/// A dataset with a note of the rows that were checked.
pub(crate) struct CheckedDataset {
    dataset: Dataset,
    train: RowSet,
    eval: RowSet,
    /// Of the data files, in the manifest's order.
    identities: Vec<Option<(u64, u64)>>,
}

impl Deref for CheckedDataset {
    type Target = Dataset;

    fn deref(&self) -> &Dataset {
        &self.dataset
    }
}

impl CheckedDataset {
    /// Opens the packed dataset in `dir`, whose manifest must name each file once.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let dataset = Dataset::open(dir)?;
        let mut names: Vec<&str> =
            dataset.manifest().files.iter().map(|file| file.path.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::format(
                dir.join("manifest.json"),
                format!(
                    "files names {:?} twice, so that its rows would be trained on twice; expected each file once: prepare the data again",
                    twice[0]
                ),
            ));
        }
        let rows = |split| RowSet::new(dataset.rows(split));
        let identity = |name: &str| identity_of(&std::fs::metadata(dir.join(name)).ok()?);
        let files = &dataset.manifest().files;
        let identities: Vec<_> = files.iter().map(|file| identity(&file.path)).collect();
        let mut names = BTreeMap::new();
        for (file, identity) in files.iter().zip(&identities) {
            let Some(identity) = identity else { continue };
            if let Some(other) = names.insert(*identity, &file.path) {
                return Err(Error::format(
                    dir.join(&file.path),
                    format!(
                        "the same file as {other}, so that its rows would be trained on twice; expected two files: copy the dataset again"
                    ),
                ));
            }
        }
        Ok(CheckedDataset {
            train: rows(Split::Train),
            eval: rows(Split::Eval),
            identities,
            dataset,
        })
    }

    /// Row `i` of a split as the objective takes it. Its ids must be below `vocab_size`, the rows
    /// of the model's embedding table.
    pub(crate) fn packed_row(
        &self,
        split: Split,
        i: usize,
        vocab_size: usize,
    ) -> Result<PackedRow> {
        self.read(split, i, vocab_size).map_err(|error| {
            // where the file was cut off, what was read is not to blame
            self.check_files(split, &[i]).err().unwrap_or(error)
        })
    }

    fn read(&self, split: Split, i: usize, vocab_size: usize) -> Result<PackedRow> {
        let row = self.dataset.row(split, i);
        let copy = row.as_ref().ok().map(|row| PackedRow {
            input_ids: row.input_ids.to_vec(),
            labels: row.labels.to_vec(),
            documents: row.documents.iter().map(|d| (d.start, d.length)).collect(),
        });
        // nothing of a file that was cut off is looked at
        if mapped_files::fault().is_some() {
            return Err(self.cut_off());
        }
        let (row, Some(copy)) = (row?, copy) else {
            return Err(self.cut_off());
        };
        let outside = |id: &&i32| **id < 0 || **id as usize >= vocab_size;
        if let Some(bad) = copy.input_ids.iter().find(outside) {
            return Err(Error::Mismatch(format!(
                "{} row {i} holds token id {bad}; the model's embedding table has {vocab_size} rows; was the dataset prepared with this model's tokenizer?",
                split.name()
            )));
        }
        let checked = if split == Split::Train { &self.train } else { &self.eval };
        if !checked.holds(i) {
            let manifest = self.dataset.manifest();
            check_row(&copy.input_ids, &copy.labels, &row.documents, manifest)
                .map_err(|reason| self.bad_row(split, i, &reason))?;
            checked.add(i);
        }
        Ok(copy)
    }

    /// Refuses rows that were read from files which are shorter than when the run began. What is
    /// missing of a page reads as zeros, and only whole pages are noted as faults.
    pub(crate) fn check_files(&self, split: Split, rows: &[usize]) -> Result<()> {
        let manifest = self.dataset.manifest();
        let names: BTreeSet<&str> = rows.iter().map(|row| place(manifest, split, *row).0).collect();
        for (file, identity) in manifest.files.iter().zip(&self.identities) {
            // a file that was replaced meanwhile stays mapped as it was
            let cut = || {
                let now = std::fs::metadata(self.dataset.dir().join(&file.path)).ok()?;
                Some(identity_of(&now) == *identity && now.len() < file.bytes)
            };
            if names.contains(file.path.as_str()) && cut() == Some(true) {
                return Err(self.cut_off());
            }
        }
        Ok(())
    }

    fn bad_row(&self, split: Split, i: usize, reason: &str) -> Error {
        let (file, row) = place(self.dataset.manifest(), split, i);
        let dir = self.dataset.dir();
        Error::format(
            dir.join(file),
            format!(
                "row {row} ({} row {i}): {reason}; `dlm-prep verify {}` checks the whole dataset: prepare it again",
                split.name(),
                dir.display()
            ),
        )
    }

    /// A data file that is shorter than it was, or cannot be read any more.
    fn cut_off(&self) -> Error {
        let dir = self.dataset.dir();
        let length = |name: &str| std::fs::metadata(dir.join(name)).map_or(0, |m| m.len());
        let files = &self.dataset.manifest().files;
        let again = "copy the dataset again, then give the same command";
        match files.iter().find(|file| length(&file.path) != file.bytes) {
            Some(file) => Error::format(
                dir.join(&file.path),
                format!(
                    "{} bytes, {} when the run began: the file was changed while it was read; {again}",
                    length(&file.path),
                    file.bytes
                ),
            ),
            None => {
                Error::format(dir, format!("a data file could not be read to its end; {again}"))
            }
        }
    }
}

/// What tells a file from another one of the same name: device and inode.
#[cfg(unix)]
fn identity_of(file: &std::fs::Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    Some((file.dev(), file.ino()))
}

#[cfg(not(unix))]
fn identity_of(_file: &std::fs::Metadata) -> Option<(u64, u64)> {
    None
}

/// The file of row `i` of a split, and the row's number in the file.
fn place(manifest: &Manifest, split: Split, i: usize) -> (&str, usize) {
    let mut row = i;
    for file in manifest.files.iter().filter(|file| file.split == split) {
        if row < file.rows {
            return (&file.path, row);
        }
        row -= file.rows;
    }
    ("manifest.json", i)
}

/// A set of row numbers, one bit each.
struct RowSet(Vec<AtomicU64>);

impl RowSet {
    fn new(rows: usize) -> Self {
        RowSet((0..rows.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn holds(&self, row: usize) -> bool {
        self.0.get(row / 64).is_some_and(|bits| bits.load(Ordering::Relaxed) >> (row % 64) & 1 == 1)
    }

    fn add(&self, row: usize) {
        if let Some(bits) = self.0.get(row / 64) {
            bits.fetch_or(1 << (row % 64), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_noted_one_by_one_and_placed_in_their_file() {
        let set = RowSet::new(130);
        set.add(64);
        set.add(129);
        let noted: Vec<usize> = (0..140).filter(|row| set.holds(*row)).collect();
        assert_eq!(noted, [64, 129]);
        let mut manifest = Manifest::new(16, 8, 10, 9, 0, 1);
        for (path, split, rows) in
            [("a", Split::Train, 2), ("b", Split::Eval, 3), ("c", Split::Train, 4)]
        {
            let (path, sha256) = (path.to_string(), String::new());
            let file = dlm_datasets::manifest::FileEntry { path, split, rows, bytes: 0, sha256 };
            manifest.files.push(file);
        }
        assert_eq!(place(&manifest, Split::Train, 1), ("a", 1));
        assert_eq!(place(&manifest, Split::Train, 2), ("c", 0));
        assert_eq!(place(&manifest, Split::Eval, 2), ("b", 2));
    }
}
