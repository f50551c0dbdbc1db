//! Data files on the local disk: which formats are read, and which files a list of paths stands
//! for.
//!
//! In: files and folders. Out: [`LocalFile`]s: a file as it is; of a folder all data files below
//! it, sorted by path. Hidden files and small JSON files that describe something are skipped.

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// Format of a data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    Parquet,
    /// One JSON object per line, or one array of objects; plain, gzip or zstd.
    Json,
    /// Arrow IPC, file or stream.
    Arrow,
}

impl FileFormat {
    /// The format that a file's name stands for; none if the file is not a data file.
    pub fn of(path: &Path) -> Option<FileFormat> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let bare = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
        match bare.rsplit_once('.')?.1 {
            "parquet" if bare == name => Some(FileFormat::Parquet),
            "arrow" | "feather" if bare == name => Some(FileFormat::Arrow),
            "jsonl" | "json" | "ndjson" => Some(FileFormat::Json),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    pub path: PathBuf,
    /// Its name in the manifest: the path below the folder that was searched, else the file name;
    /// the whole path where two files would have the same name.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// The data files that `paths` stand for, in the order of `paths`.
pub fn list_files(paths: &[PathBuf]) -> Result<Vec<LocalFile>> {
    let mut out: Vec<LocalFile> = Vec::new();
    for a in paths {
        let meta = std::fs::metadata(a).map_err(Error::io("reading", a))?;
        if meta.is_dir() {
            let mut files = Vec::new();
            walk(a, 0, &mut files)?;
            files.sort();
            if files.is_empty() {
                return Err(Error::Usage(format!(
                    "{}: no parquet, JSONL or Arrow file in this folder",
                    a.display()
                )));
            }
            for path in files {
                let name =
                    path.strip_prefix(a).unwrap_or(&path).to_string_lossy().replace('\\', "/");
                let bytes = std::fs::metadata(&path).map_err(Error::io("reading", &path))?.len();
                out.push(LocalFile { path, name, bytes });
            }
        } else {
            if FileFormat::of(a).is_none() {
                let reason = "unknown file format; expected .parquet, .jsonl, .json, .ndjson (also .gz, .zst) or .arrow";
                return Err(Error::Usage(format!("{}: {reason}", a.display())));
            }
            let name = a.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            out.push(LocalFile { path: a.clone(), name, bytes: meta.len() });
        }
    }
    for i in 0..out.len() {
        if out.iter().enumerate().any(|(j, o)| j != i && o.name == out[i].name) {
            out[i].name = out[i].path.to_string_lossy().replace('\\', "/");
        }
    }
    Ok(out)
}

/// Whether a file has the name of a small JSON file that holds metadata and no rows.
pub fn is_metadata(path: &str) -> bool {
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    let known = [
        "dataset_infos.json",
        "dataset_info.json",
        "state.json",
        "config.json",
        "metadata.json",
        "manifest.json",
        "vocab.json",
        "added_tokens.json",
    ];
    known.contains(&name)
        || name.starts_with('.')
        || (name.ends_with(".json")
            && (name.starts_with("tokenizer") || name.starts_with("special_tokens")))
}

fn walk(dir: &Path, depth: usize, out: &mut Vec<PathBuf>) -> Result<()> {
    if depth > 32 {
        return Err(Error::Usage(format!(
            "{}: more than 32 folders deep; give the folder that holds the files",
            dir.display()
        )));
    }
    for entry in std::fs::read_dir(dir).map_err(Error::io("listing", dir))? {
        let path = entry.map_err(Error::io("listing", dir))?.path();
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(['.', '_']));
        if hidden {
            continue;
        }
        if path.is_dir() {
            walk(&path, depth + 1, out)?;
        } else if FileFormat::of(&path).is_some() && !is_metadata(&path.to_string_lossy()) {
            out.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_by_name() {
        for (name, format) in [
            ("a.parquet", Some(FileFormat::Parquet)),
            ("a.JSONL.gz", Some(FileFormat::Json)),
            ("a.parquet.gz", None),
            ("a.txt", None),
            ("a.arrow", Some(FileFormat::Arrow)),
        ] {
            assert_eq!(FileFormat::of(Path::new(name)), format, "{name}");
        }
    }
}
