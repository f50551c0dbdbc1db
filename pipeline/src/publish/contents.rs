//! The files that are pushed: where they are, how long, and what they hold.
//!
//! In: paths. Out: sizes, sha256 and git's ids, and a check that the files are still the same.

use super::git_id::GitId;
use crate::error::{Error, Result};
use crate::input::hub::cache::{RemoteFile, is_safe};
use crate::input::not_read::shown;
use dlm_datasets::hash::HashWriter;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What hubs take at most in one file.
const MOST_BYTES: u64 = 500_000_000_000;

/// A local file and its content.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    /// Path in the repository.
    pub path: String,
    /// The local file.
    pub file: PathBuf,
    pub bytes: u64,
    pub sha256: String,
    /// git's id of the content.
    pub git_id: String,
    modified: Option<SystemTime>,
}

impl Content {
    /// Reads a file whole.
    pub(crate) fn of(path: &str, file: &Path) -> Result<Content> {
        let refuse = |reason: String| Error::Input { path: file.display().to_string(), reason };
        if !is_safe(path) {
            return Err(refuse("its name has characters that a hub does not take".to_string()));
        }
        let mut reader = File::open(file).map_err(Error::io("opening", file))?;
        let about = reader.metadata().map_err(Error::io("reading", file))?;
        if !about.is_file() {
            return Err(refuse("is no file".to_string()));
        }
        if about.len() > MOST_BYTES {
            return Err(refuse(format!(
                "has {} bytes, more than the {MOST_BYTES} that a hub takes in one file",
                about.len()
            )));
        }
        let mut git = GitId::new(about.len());
        let mut hash = HashWriter::new(std::io::sink());
        let mut buffer = vec![0u8; 1 << 20];
        loop {
            let n = reader.read(&mut buffer).map_err(Error::io("reading", file))?;
            if n == 0 {
                break;
            }
            git.update(&buffer[..n]);
            hash.write_all(&buffer[..n]).map_err(Error::io("hashing", file))?;
        }
        let (_, bytes, sha256) = hash.finish();
        if bytes != about.len() {
            return Err(refuse(CHANGED.to_string()));
        }
        Ok(Content {
            path: path.to_string(),
            file: file.to_path_buf(),
            bytes,
            sha256,
            git_id: git.finish(),
            modified: about.modified().ok(),
        })
    }

    /// Whether the hub's listing says that it has this content under this path.
    pub(crate) fn is_at(&self, remote: &RemoteFile) -> bool {
        let same = match &remote.sha256 {
            Some(sha256) => *sha256 == self.sha256,
            None => remote.etag == self.git_id,
        };
        remote.path == self.path && remote.bytes == self.bytes && same
    }

    /// Refuses a file whose length or time of change is another than when it was read.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        let about = std::fs::metadata(&self.file);
        let same = about.as_ref().is_ok_and(|about| {
            about.is_file() && about.len() == self.bytes && about.modified().ok() == self.modified
        });
        if same {
            return Ok(());
        }
        Err(Error::Input { path: self.file.display().to_string(), reason: CHANGED.to_string() })
    }
}

/// What is said of a file that is not the same as when the push began.
pub(crate) const CHANGED: &str =
    "changed while it was pushed; nothing was committed: push again when it is complete";

/// The files of a folder whose paths `keep` accepts, and the paths of the others; both sorted.
/// Hidden files and folders are left out of both.
pub(crate) fn walk(root: &Path, keep: &dyn Fn(&str) -> bool) -> Result<(Vec<String>, Vec<String>)> {
    let (mut kept, mut left) = (Vec::new(), Vec::new());
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let at = root.join(&folder);
        for entry in std::fs::read_dir(&at).map_err(Error::io("reading", &at))? {
            let entry = entry.map_err(Error::io("reading", &at))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                return Err(Error::Input {
                    path: entry.path().display().to_string(),
                    reason: "its name is not UTF-8; rename it".to_string(),
                });
            };
            if name.starts_with('.') {
                continue;
            }
            let path = match folder.as_str() {
                "" => name.to_string(),
                above => format!("{above}/{name}"),
            };
            let about =
                std::fs::metadata(entry.path()).map_err(Error::io("reading", entry.path()))?;
            let link = entry.file_type().is_ok_and(|t| t.is_symlink());
            if about.is_dir() && !link {
                folders.push(path);
            } else if about.is_file() && keep(&path) {
                kept.push(path);
            } else {
                left.push(shown(&path).to_string());
            }
        }
    }
    kept.sort();
    left.sort();
    Ok((kept, left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_what_a_hub_says_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.json");
        std::fs::write(&file, "test content\n").unwrap();
        let content = Content::of("a.json", &file).unwrap();
        assert_eq!(content.git_id, "d670460b4b4aece5915caf5c68d12f560a9fe3e4");
        assert_eq!(content.sha256, dlm_datasets::hash::sha256(b"test content\n"));
        let remote = |sha256: Option<&str>, etag: &str, bytes: u64| RemoteFile {
            path: "a.json".to_string(),
            bytes,
            sha256: sha256.map(String::from),
            etag: etag.to_string(),
        };
        assert!(content.is_at(&remote(None, &content.git_id, 13)));
        assert!(content.is_at(&remote(Some(&content.sha256), "x", 13)));
        assert!(!content.is_at(&remote(Some(&content.sha256), "x", 14)));
        assert!(!content.is_at(&remote(Some("0"), &content.git_id, 13)));
        assert!(!content.is_at(&remote(None, "x", 13)));
        assert!(content.check_unchanged().is_ok());
        std::fs::write(&file, "other content").unwrap();
        let e = content.check_unchanged().unwrap_err().to_string();
        assert!(e.contains("a.json") && e.contains("changed while it was pushed"), "{e}");
        std::fs::remove_file(&file).unwrap();
        assert!(content.check_unchanged().is_err());
        assert!(Content::of("../a", &file).is_err() && Content::of("d", dir.path()).is_err());
    }

    #[test]
    fn hidden_files_stay_here() {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("a.json", "1"),
            (".secret", "2"),
            (".git/config", "3"),
            ("t/b.json", "4"),
            ("c.log", "5"),
        ] {
            let file = dir.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        let (kept, left) = walk(dir.path(), &|path| path.ends_with(".json")).unwrap();
        assert_eq!(kept, ["a.json", "t/b.json"]);
        assert_eq!(left, ["c.log"]);
    }
}
