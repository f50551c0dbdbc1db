//! Whether what `--overwrite` would remove was written by this program.
//!
//! In: an output folder. Nothing is removed there before every file that would go has shown by its
//! content whose it is, so that a mistyped `--out` costs nothing.

use crate::error::{Error, Result};
use crate::pack::resume::STATE_FILE;
use crate::pack::seen::SEEN_FILE;
use dlm_datasets::fs::PARTIAL;
use dlm_datasets::manifest::FILE_NAME as MANIFEST;
use std::io::Read;
use std::path::Path;

/// What stands beside the files of a dataset: its tokenizer, and the lock of a running process.
const BESIDE: [&str; 2] = ["tokenizer", ".lock"];
/// Bytes in which the mark of a file stands: the schema of a data file, the first keys of JSON.
const MARK_WITHIN: u64 = 64 << 10;

/// Refuses a folder that holds a file under one of this program's names (`is_own`) with other
/// content, or other files only.
pub(crate) fn check_own(dir: &Path, is_own: impl Fn(&str) -> bool) -> Result<()> {
    let (mut own, mut other) = (false, None);
    for entry in std::fs::read_dir(dir).map_err(Error::io("listing", dir))? {
        let entry = entry.map_err(Error::io("listing", dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let refuse = || Error::Output {
            path: dir.to_path_buf(),
            reason: format!(
                "holds {name}, which dlm-prep did not write; nothing was removed: --overwrite replaces a dataset of dlm-prep only, so give another --out or clear the folder yourself"
            ),
        };
        if is_own(&name) {
            if !name.ends_with(PARTIAL) && !was_written_here(&entry.path(), &name)? {
                return Err(refuse());
            }
            own = true;
        } else if !BESIDE.contains(&&*name) && other.is_none() {
            other = Some(refuse());
        }
    }
    match other {
        Some(refused) if !own => Err(refused),
        _ => Ok(()),
    }
}

/// Whether the content of a file under one of this program's names is this program's.
fn was_written_here(path: &Path, name: &str) -> Result<bool> {
    let meta = std::fs::symlink_metadata(path).map_err(Error::io("reading", path))?;
    if !meta.is_file() {
        return Ok(false);
    }
    let mut begin = Vec::new();
    let file = std::fs::File::open(path).map_err(Error::io("opening", path))?;
    file.take(MARK_WITHIN).read_to_end(&mut begin).map_err(Error::io("reading", path))?;
    let marks: &[&str] = match name {
        MANIFEST => &["\"format_version\"", "\"code_version\""],
        STATE_FILE => &["\"fingerprint\""],
        SEEN_FILE => &[],
        _ => &[dlm_datasets::schema::FORMAT_KEY],
    };
    Ok(marks.iter().all(|mark| memchr::memmem::find(&begin, mark.as_bytes()).is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_tells_whose_a_file_is() {
        let own = |name: &str| name.starts_with("train-") || name == MANIFEST;
        let ours = "{\"format_version\": 1, \"code_version\": \"0.1.0\"}";
        for (files, refused) in [
            (&[][..], None),
            (&[(MANIFEST, ours), ("notes.txt", "x")], None),
            (&[(MANIFEST, "{\"name\": \"a web page\"}")], Some(MANIFEST)),
            (&[(MANIFEST, ours), ("train-00000.arrow", "ARROW1 x")], Some("train-00000.arrow")),
            (&[("train-00000.arrow", "ARROW1 dlm.format_version 1")], None),
            (&[("notes.txt", "x")], Some("notes.txt")),
            (&[(".lock", "1")], None),
        ] {
            let dir = tempfile::tempdir().unwrap();
            for (name, content) in files {
                std::fs::write(dir.path().join(name), content).unwrap();
            }
            let e = check_own(dir.path(), own).err().map(|e| e.to_string());
            match refused {
                None => assert_eq!(e, None),
                Some(name) => assert!(e.as_ref().unwrap().contains(name), "{e:?}"),
            }
        }
    }
}
