//! The cache folder, in the Python client's layout: `{datasets,models}--ORG--NAME/{refs, blobs,
//! snapshots}`.

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// What a repository of the hub holds; its addresses and its folder in the cache differ by this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepoKind {
    /// A dataset.
    Dataset,
    /// A model.
    Model,
}

impl RepoKind {
    /// As it stands in `/api/…` and in the cache.
    pub fn plural(self) -> &'static str {
        match self {
            RepoKind::Dataset => "datasets",
            RepoKind::Model => "models",
        }
    }

    /// What stands before the id in the address of a file.
    pub fn prefix(self) -> &'static str {
        match self {
            RepoKind::Dataset => "datasets/",
            RepoKind::Model => "",
        }
    }
}

/// One repository's folder in the cache.
#[derive(Debug, Clone)]
pub struct Repo {
    root: PathBuf,
}

/// Refuses a path from a listing that could lead out of the folder it belongs in.
pub fn safe(path: &str) -> Result<&str> {
    let part_ok = |p: &str| {
        !p.is_empty() && p != "." && p != ".." && !p.ends_with(['.', ' ']) && p.len() < 256
    };
    let ok = path.len() < 4096
        && path.split('/').all(part_ok)
        && !path.contains(['\\', ':', '\0'])
        && !path.chars().any(char::is_control);
    if ok {
        Ok(path)
    } else {
        Err(Error::Input {
            path: format!("{path:?}"),
            reason: "the hub lists a file whose path could leave the cache folder; refused"
                .to_string(),
        })
    }
}

/// Whether this is an `ORG/NAME` (or bare `NAME`).
pub fn is_id(id: &str) -> bool {
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

/// Refuses what is no id.
pub fn check_id(id: &str) -> Result<&str> {
    if is_id(id) {
        Ok(id)
    } else {
        Err(Error::Usage(format!("--dataset {id:?}: expected ORG/NAME")))
    }
}

impl Repo {
    /// The folder of repository `id` under `cache`.
    pub fn new(cache: &Path, kind: RepoKind, id: &str) -> Repo {
        Repo { root: cache.join(format!("{}--{}", kind.plural(), id.replace('/', "--"))) }
    }

    /// Where blob `etag` lies.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// The lock file of a blob.
    pub fn lock(&self, etag: &str) -> PathBuf {
        let name = self.root.file_name().unwrap_or_default();
        self.root
            .parent()
            .unwrap_or(Path::new("."))
            .join(".locks")
            .join(name)
            .join(format!("{etag}.lock"))
    }

    /// Where a commit's files lie.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The commit a revision stood for when last asked.
    pub fn read_ref(&self, revision: &str) -> Option<String> {
        let text =
            std::fs::read_to_string(self.root.join("refs").join(safe(revision).ok()?)).ok()?;
        Some(text.trim().to_string()).filter(|c| is_commit(c))
    }

    /// Remembers it.
    pub fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.root.join("refs").join(safe(revision)?);
        make_parent(&path)?;
        Ok(dlm_datasets::fs::write_atomic(&path, commit.as_bytes())?)
    }

    /// Makes `path` of a commit point at a blob.
    pub fn link(&self, commit: &str, path: &str, etag: &str) -> Result<PathBuf> {
        let target = self.snapshot(commit).join(safe(path)?);
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
pub fn is_commit(s: &str) -> bool {
    s.len() == 40 && s.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Makes the folder a file goes into.
pub fn make_parent(path: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(Error::io("making", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for bad in [
            "../x", "a/../b", "/etc/x", "a//b", "", "a\\b", "C:x", "a/.", "a\0b", "a/..",
            "x/\u{1b}",
        ] {
            assert!(safe(bad).is_err(), "{bad:?}");
        }
        for good in ["SFT/chat/chat.jsonl", "a.b/c-d_e", "refs/convert/parquet"] {
            assert!(safe(good).is_ok());
        }
        assert!(check_id("a/b").is_ok() && check_id("gsm8k").is_ok());
        for bad in ["a/b/c", "a/", "../x", "a b/c", ""] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
    }
}
