//! Inputs and output are kept apart: what is read is never in what is written, and the other way
//! round, whatever links and relative paths lead there.

use crate::error::{Error, Result};
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

/// Refuses an output folder that is an input, lies in one, or holds one.
///
/// # Errors
/// [`Error::Usage`] with both paths.
pub(crate) fn check_apart<'p>(inputs: impl Iterator<Item = &'p Path>, out: &Path) -> Result<()> {
    check(inputs, out, &mut HashMap::new())
}

/// As [`check_apart`]. `folders` holds the real paths of folders, so that each is looked up once
/// for the 100,000 files in it.
fn check<'p>(
    inputs: impl Iterator<Item = &'p Path>,
    out: &Path,
    folders: &mut HashMap<PathBuf, PathBuf>,
) -> Result<()> {
    let real_out = real(out);
    for input in inputs {
        let is_link = std::fs::symlink_metadata(input).is_ok_and(|m| m.is_symlink());
        let real_input = match (input.parent(), input.file_name()) {
            (Some(parent), Some(name)) if !is_link => {
                let folder =
                    folders.entry(parent.to_path_buf()).or_insert_with_key(|parent| real(parent));
                folder.join(name)
            }
            _ => real(input),
        };
        let how = if real_input == real_out {
            "are the same"
        } else if real_input.starts_with(&real_out) {
            "overlap: the input lies in the output folder"
        } else if real_out.starts_with(&real_input) {
            "overlap: the output folder lies in the input"
        } else {
            continue;
        };
        return Err(Error::Usage(format!(
            "input {} and output {} {how}; nothing was changed, give another --out",
            input.display(),
            out.display()
        )));
    }
    Ok(())
}

/// Refuses a tokenizer that lies where the dataset's own will be written.
pub(crate) fn check_not_written(tokenizer: &Path, written: &Path) -> Result<()> {
    if real(tokenizer) != real(written) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "tokenizer {} lies in the output folder, where the dataset's tokenizer is written; nothing was changed, give another --out or copy the tokenizer first",
        tokenizer.display()
    )))
}

/// The path without links and `..`, as far as it exists; what does not exist yet follows as it is.
fn real(path: &Path) -> PathBuf {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let mut out = PathBuf::new();
    for part in absolute.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
        if let Ok(real) = std::fs::canonicalize(&out) {
            out = real;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn links_and_relative_paths_are_seen_through() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("data/deep")).unwrap();
        std::fs::write(at("data/a.jsonl"), "{}").unwrap();
        std::os::unix::fs::symlink(at("data"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("data/a.jsonl"), at("b.jsonl")).unwrap();
        let check = |input: &str, out: &str| {
            let e = check_apart([at(input).as_path()].into_iter(), &at(out)).err();
            e.map(|e| e.to_string()).unwrap_or_default()
        };
        for (input, out, says) in [
            ("data", "data", "are the same"),
            ("link", "data", "are the same"),
            ("data", "new/../link/deep/..", "are the same"),
            ("data", "data/out", "lies in the input"),
            ("data", "link/deep/not/yet", "lies in the input"),
            ("data/a.jsonl", "data", "lies in the output"),
            ("link/a.jsonl", "data", "lies in the output"),
            ("b.jsonl", "data", "lies in the output"),
            ("data/a.jsonl", "out/../link/.", "lies in the output"),
            ("data", "data-out", ""),
            ("data/a.jsonl", "data/out", ""),
        ] {
            let said = check(input, out);
            assert!(
                said.contains(says) && said.is_empty() == says.is_empty(),
                "{input} {out}: {said}"
            );
        }
    }

    #[test]
    fn folders_are_looked_up_once_for_all_their_files() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let files: Vec<PathBuf> =
            (0..2_000).map(|k| dir.path().join(format!("{k}.jsonl"))).collect();
        let mut folders = HashMap::new();
        check(files.iter().map(PathBuf::as_path), other.path(), &mut folders).unwrap();
        assert_eq!(folders.len(), 1);
    }
}
