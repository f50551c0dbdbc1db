//! The output folder: which files in it are this program's, and what may be replaced.
//!
//! A folder with a manifest is a finished dataset; one with a state file is an unfinished one. Data
//! files without either are of unknown origin and are not touched.

use crate::error::{Error, Result};
use crate::pack::ownership::{check_own, check_replaces_own, is_tokenizer_of_a_dataset};
use crate::pack::resume::STATE_FILE;
use crate::pack::seen::SEEN_FILE;
use dlm_datasets::fs::{LOCK, PARTIAL, lock_dir};
use dlm_datasets::manifest::{FILE_NAME as MANIFEST, Split};
use std::path::Path;

/// Makes the folder ready for a run: creates it if needed, refuses a finished dataset and data
/// files of unknown origin. With `overwrite` all files of earlier runs are removed instead.
pub(crate) fn prepare_folder(dir: &Path, overwrite: bool) -> Result<()> {
    let refuse = |reason: String| Error::Output { path: dir.to_path_buf(), reason };
    std::fs::create_dir_all(dir).map_err(Error::io("making the output folder", dir))?;
    let manifest = dir.join(MANIFEST);
    if overwrite {
        check_own(dir, is_own)?;
        // The manifest goes first: without it the rest is not a dataset.
        if manifest.exists() {
            std::fs::remove_file(&manifest).map_err(Error::io("removing", &manifest))?;
        }
        return remove_own_files(dir);
    }
    if manifest.exists() {
        return Err(refuse(
            "holds a finished dataset; give --overwrite to replace it, or another --out"
                .to_string(),
        ));
    }
    if dir.join(STATE_FILE).exists() {
        return Ok(());
    }
    match foreign_file(dir)? {
        Some(name) => Err(refuse(format!(
            "holds {name}, which this run did not make; give an empty folder, or --overwrite to replace a dataset of dlm-prep"
        ))),
        None => Ok(()),
    }
}

/// Removes what a process that was killed at the end of its run left in the folder of a finished
/// dataset: its state, files under their temporary names, the lock. A folder without such files is
/// not written to.
pub(crate) fn remove_leftovers(dir: &Path) -> Result<()> {
    let unfinished = |name: &str| {
        is_own(name) && (name.ends_with(PARTIAL) || [STATE_FILE, SEEN_FILE].contains(&name))
    };
    if !names(dir)?.iter().any(|name| name == LOCK || unfinished(name)) {
        return Ok(());
    }
    let _lock = lock_dir(dir)?;
    remove_files(dir, unfinished)
}

/// Removes every file that this program writes.
fn remove_own_files(dir: &Path) -> Result<()> {
    remove_files(dir, is_own)
}

/// Removes the files whose names are chosen by `which`.
fn remove_files(dir: &Path, which: impl Fn(&str) -> bool) -> Result<()> {
    for name in names(dir)?.iter().filter(|name| which(name)) {
        let path = dir.join(name);
        std::fs::remove_file(&path).map_err(Error::io("removing", &path))?;
    }
    Ok(())
}

/// Names of the files in the folder; those that are no text belong to somebody else.
fn names(dir: &Path) -> Result<Vec<String>> {
    let listed = std::fs::read_dir(dir).and_then(|entries| {
        entries.map(|entry| Ok(entry?.file_name().into_string().ok())).collect()
    });
    let names: Vec<Option<String>> = listed.map_err(Error::io("listing", dir))?;
    Ok(names.into_iter().flatten().collect())
}

/// Whether a file name is one that this program writes.
pub(crate) fn is_own(name: &str) -> bool {
    let bare = name.strip_suffix(PARTIAL).unwrap_or(name);
    let shard = |split: Split| {
        let digits = bare
            .strip_prefix(split.name())
            .and_then(|r| r.strip_prefix('-'))
            .and_then(|r| r.strip_suffix(".arrow"));
        digits.is_some_and(|d| d.len() >= 5 && d.bytes().all(|b| b.is_ascii_digit()))
    };
    [STATE_FILE, SEEN_FILE, MANIFEST].contains(&bare) || shard(Split::Train) || shard(Split::Eval)
}

/// Refuses a folder in which the files of a dataset with this tokenizer would replace those of
/// somebody else.
pub(crate) fn check_folder_to_fill(dir: &Path, tokenizer: &Path) -> Result<()> {
    check_replaces_own(dir, tokenizer, is_own)
}

/// A data file, or a tokenizer of somebody else, in a folder that has neither manifest nor state
/// file.
fn foreign_file(dir: &Path) -> Result<Option<String>> {
    Ok(names(dir)?.into_iter().find(|name| {
        let foreign = || name == "tokenizer" && !is_tokenizer_of_a_dataset(&dir.join(name));
        is_own(name) && !name.ends_with(PARTIAL) || foreign()
    }))
}
