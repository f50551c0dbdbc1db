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

/// The folder of a dataset's tokenizer.
const TOKENIZER: &str = "tokenizer";
/// The lock of a running process.
const LOCK: &str = ".lock";
/// Bytes in which the mark of a file stands: the schema of a data file, the first keys of JSON.
const MARK_WITHIN: u64 = 64 << 10;

/// Whose the files of a folder are.
#[derive(Default)]
struct Found {
    /// There is a file of this program.
    own: bool,
    /// A file under one of this program's names with other content.
    foreign: Option<String>,
    /// A file under another name.
    other: Option<String>,
}

/// Refuses a folder that holds a file under one of this program's names (`is_own`) with other
/// content, or other files only.
pub(crate) fn check_own(dir: &Path, is_own: impl Fn(&str) -> bool) -> Result<()> {
    let found = look(dir, is_own)?;
    match found.foreign.or(found.other.filter(|_| !found.own)) {
        Some(name) => Err(refused(dir, &name)),
        None => Ok(()),
    }
}

/// Refuses a folder in which files of somebody else would be replaced by those of a dataset with
/// this tokenizer. What a merge that was killed has copied of the tokenizer is no obstacle.
pub(crate) fn check_replaces_own(
    dir: &Path,
    tokenizer: &Path,
    is_own: impl Fn(&str) -> bool,
) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    match look(dir, is_own)?.foreign {
        Some(name) if name == TOKENIZER && is_copied(tokenizer, &dir.join(TOKENIZER)) => Ok(()),
        Some(name) => Err(refused(dir, &name)),
        None => Ok(()),
    }
}

/// Whether a folder holds nothing but copies of another one's files, and what is left of writing
/// them.
fn is_copied(from: &Path, to: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(to) else { return false };
    entries.into_iter().all(|entry| {
        let Ok(entry) = entry else { return false };
        let name = entry.file_name().to_string_lossy().into_owned();
        let source = from.join(name.strip_suffix(PARTIAL).unwrap_or(&name));
        match (source.is_dir(), name.ends_with(PARTIAL)) {
            (true, _) => is_copied(&source, &entry.path()),
            (false, true) => source.is_file(),
            (false, false) => {
                let read = |path: &Path| std::fs::read(path).ok();
                source.is_file() && read(&source) == read(&entry.path())
            }
        }
    })
}

fn refused(dir: &Path, name: &str) -> Error {
    Error::Output {
        path: dir.to_path_buf(),
        reason: format!(
            "holds {name}, which dlm-prep did not write; nothing was removed: only a dataset of dlm-prep is replaced, so give another --out or clear the folder yourself"
        ),
    }
}

fn look(dir: &Path, is_own: impl Fn(&str) -> bool) -> Result<Found> {
    let (mut found, mut tokenizer) = (Found::default(), false);
    for entry in std::fs::read_dir(dir).map_err(Error::io("listing", dir))? {
        let entry = entry.map_err(Error::io("listing", dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_own(&name) {
            if !name.ends_with(PARTIAL) && !was_written_here(&entry.path(), &name)? {
                found.foreign = Some(name);
            }
            found.own = true;
        } else if name == TOKENIZER {
            tokenizer = true;
        } else if name != LOCK {
            found.other = Some(name);
        }
    }
    // A run that was killed early leaves nothing but its tokenizer.
    if tokenizer && !found.own && !is_tokenizer_of_a_dataset(&dir.join(TOKENIZER)) {
        found.foreign = Some(TOKENIZER.to_string());
    }
    Ok(found)
}

/// Whether a folder is the tokenizer of a model with a mask token, which a run may have left, or
/// the empty beginning of one.
pub(crate) fn is_tokenizer_of_a_dataset(dir: &Path) -> bool {
    let Ok(mut entries) = std::fs::read_dir(dir) else { return false };
    if entries.next().is_none() {
        return true;
    }
    let config = std::fs::read_to_string(dir.join("tokenizer_config.json")).unwrap_or_default();
    config.contains("\"mask_token\"")
}

/// Whether the content of a file under one of this program's names is this program's.
fn was_written_here(path: &Path, name: &str) -> Result<bool> {
    let marks: &[&str] = match name {
        MANIFEST => &["\"format_version\"", "\"code_version\""],
        STATE_FILE => &["\"fingerprint\""],
        SEEN_FILE => &[],
        _ => &[dlm_datasets::schema::FORMAT_KEY],
    };
    has_marks(path, marks)
}

/// Whether a data file says in its schema that this program wrote it.
pub(crate) fn has_format_mark(path: &Path) -> bool {
    has_marks(path, &[dlm_datasets::schema::FORMAT_KEY]).unwrap_or(false)
}

fn has_marks(path: &Path, marks: &[&str]) -> Result<bool> {
    let meta = std::fs::symlink_metadata(path).map_err(Error::io("reading", path))?;
    if !meta.is_file() {
        return Ok(false);
    }
    let mut begin = Vec::new();
    let file = std::fs::File::open(path).map_err(Error::io("opening", path))?;
    file.take(MARK_WITHIN).read_to_end(&mut begin).map_err(Error::io("reading", path))?;
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
            (&[("tokenizer/tokenizer_config.json", "{\"mask_token\": \"<m>\"}")], None),
            (&[("tokenizer/tokenizer.json", "{}")], Some("tokenizer")),
            (&[(MANIFEST, ours), ("tokenizer/tokenizer.json", "{}")], None),
        ] {
            let dir = tempfile::tempdir().unwrap();
            for (name, content) in files {
                let path = dir.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, content).unwrap();
            }
            let e = check_own(dir.path(), own).err().map(|e| e.to_string());
            match refused {
                None => assert_eq!(e, None),
                Some(name) => assert!(e.as_ref().unwrap().contains(name), "{e:?}"),
            }
        }
    }
}
