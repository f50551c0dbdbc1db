//! Lists of the files of a folder: names, lengths and sha256, as they stand beside the copies of
//! the files in a bucket.

use std::collections::BTreeMap;
use std::path::Path;

use dlm_datasets::{fs, hash};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub(crate) const FORMAT_VERSION: u32 = 1;

/// A file of a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    pub path: String,
    pub bytes: u64,
    pub sha256: String,
}

/// The list of the files of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileList {
    pub format_version: u32,
    pub files: Vec<FileEntry>,
}

pub(crate) fn text_of(list: &FileList, name: &str) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(list).map_err(|e| Error::format(name, e.to_string()))
}

/// The files of a folder for which `take` is true, with the known sha256 or their own.
pub(crate) fn list_of(
    dir: &Path,
    take: impl Fn(&str) -> bool,
    known: &BTreeMap<String, String>,
) -> Result<FileList> {
    let mut files = Vec::new();
    for (path, bytes) in files_below(dir)? {
        if take(&path) {
            let sha256 = match known.get(&path) {
                Some(sha256) => sha256.clone(),
                None => hash::sha256_file(&dir.join(&path))?,
            };
            files.push(FileEntry { path, bytes, sha256 });
        }
    }
    files.sort();
    Ok(FileList { format_version: FORMAT_VERSION, files })
}

/// Paths and lengths of the files below a folder, without hidden and unfinished ones.
pub(crate) fn files_below(dir: &Path) -> Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    let mut open = vec![(dir.to_path_buf(), String::new())];
    while let Some((folder, prefix)) = open.pop() {
        let failed = |e| Error::io(&folder, "listing", e);
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with('.') || name.ends_with(fs::PARTIAL) {
                continue;
            }
            let name = format!("{prefix}{name}");
            let meta = entry.metadata().map_err(failed)?;
            if meta.is_dir() {
                open.push((entry.path(), format!("{name}/")));
            } else if meta.is_file() {
                found.push((name, meta.len()));
            }
        }
    }
    found.sort();
    Ok(found)
}
