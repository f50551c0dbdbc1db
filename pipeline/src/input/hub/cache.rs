//! The cache folder, in the Python client's layout: `{datasets,models}--ORG--NAME/{refs, blobs,
//! snapshots}`, and checks of the names that go into it.

use crate::error::{Error, Result};
use crate::input::not_read::is_direction_mark;
use std::path::{Path, PathBuf};

/// Type of a repository. Addresses on the hub and the folder in the cache depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RepoKind {
    Dataset,
    Model,
}

impl RepoKind {
    /// The name in `/api/…` addresses and in the cache.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            RepoKind::Dataset => "datasets",
            RepoKind::Model => "models",
        }
    }

    /// What precedes the repository's id in the address of a file.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            RepoKind::Dataset => "datasets/",
            RepoKind::Model => "",
        }
    }
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    /// Path in the repository.
    pub path: String,
    pub bytes: u64,
    /// sha256 of the content, which the hub lists for large files only.
    pub sha256: Option<String>,
    /// Name of the blob in the cache: the sha256, or git's id for small files.
    pub etag: String,
}

/// The cache folder of one repository.
#[derive(Debug, Clone)]
pub(crate) struct RepoCache {
    root: PathBuf,
}

/// Whether a path of a listing, or a revision, stays below the folder it is joined to.
pub(crate) fn is_safe(path: &str) -> bool {
    let part_ok = |p: &str| {
        !p.is_empty() && p != "." && p != ".." && !p.ends_with(['.', ' ']) && p.len() < 256
    };
    path.len() < 4096
        && path.split('/').all(part_ok)
        && !path.contains(['\\', ':', '\0'])
        && !path.chars().any(|c| c.is_control() || is_direction_mark(c))
}

/// Refuses a path that could leave the folder it is joined to ([`is_safe`]).
pub(crate) fn check_safe(path: &str) -> Result<&str> {
    if is_safe(path) {
        return Ok(path);
    }
    Err(Error::Input {
        path: format!("{path:?}"),
        reason: "the hub lists a file whose path could leave the cache folder; refused".to_string(),
    })
}

/// Whether a text is an `ORG/NAME` (or bare `NAME`).
pub(crate) fn is_id(id: &str) -> bool {
    let word = |w: &str| {
        !w.is_empty()
            && w.len() <= 96
            && w != "."
            && w != ".."
            && w.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let parts: Vec<&str> = id.split('/').collect();
    parts.len() <= 2 && parts.iter().all(|p| word(p))
}

/// Refuses a text that is not an `ORG/NAME`.
pub(crate) fn check_id(id: &str) -> Result<&str> {
    if is_id(id) {
        Ok(id)
    } else {
        Err(Error::Usage(format!("--dataset {id:?}: expected ORG/NAME")))
    }
}

impl RepoCache {
    /// The folder of repository `id` under `cache`.
    pub(crate) fn new(cache: &Path, kind: RepoKind, id: &str) -> RepoCache {
        RepoCache { root: cache.join(format!("{}--{}", kind.plural(), id.replace('/', "--"))) }
    }

    /// Path of the blob `etag`.
    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// Path of a blob's lock file.
    pub(crate) fn lock(&self, etag: &str) -> PathBuf {
        let name = self.root.file_name().unwrap_or_default();
        self.root
            .parent()
            .unwrap_or(Path::new("."))
            .join(".locks")
            .join(name)
            .join(format!("{etag}.lock"))
    }

    /// Folder of a commit's files.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The commit that `revision` stood for when the hub was last asked.
    pub(crate) fn read_ref(&self, revision: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.root.join("refs").join(check_safe(revision).ok()?))
            .ok()?;
        Some(text.trim().to_string()).filter(|c| is_commit(c))
    }

    /// Records the commit that `revision` stands for, which only runs without network need.
    pub(crate) fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) || self.read_ref(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(check_safe(revision)?);
        make_parent(&path)?;
        Ok(dlm_datasets::fs::write_atomic(&path, commit.as_bytes())?)
    }

    /// Links the blob `etag` as `path` into the folder of a commit; the path of the link.
    pub(crate) fn link(&self, commit: &str, path: &str, etag: &str) -> Result<PathBuf> {
        let target = self.snapshot(commit).join(check_safe(path)?);
        if target.exists() {
            return Ok(target);
        }
        make_parent(&target)?;
        let up = "../".repeat(path.split('/').count() + 1);
        let _ = std::fs::remove_file(&target);
        #[cfg(unix)]
        std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), &target)
            .map_err(Error::io("linking", &target))?;
        #[cfg(not(unix))]
        {
            let _ = up;
            std::fs::copy(self.blob(etag), &target).map_err(Error::io("copying", &target))?;
        }
        Ok(target)
    }
}

/// Whether a string is a full commit id.
pub(crate) fn is_commit(s: &str) -> bool {
    s.len() == 40 && s.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Creates the folder that the file `path` goes into.
pub(crate) fn make_parent(path: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(Error::io("making", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for bad in [
            "../x",
            "a/../b",
            "/etc/x",
            "a//b",
            "",
            "a\\b",
            "C:x",
            "a/.",
            "a\0b",
            "a/..",
            "x/\u{1b}",
            "\u{202e}a",
            "a\u{2028}b",
            "a\u{85}b",
        ] {
            assert!(check_safe(bad).is_err(), "{bad:?}");
        }
        for good in ["SFT/chat/chat.jsonl", "a.b/c-d_e", "refs/convert/parquet"] {
            assert!(is_safe(good));
        }
        assert!(check_id("a/b").is_ok() && check_id("gsm8k").is_ok());
        for bad in ["a/b/c", "a/", "../x", "a b/c", ""] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
    }
}
