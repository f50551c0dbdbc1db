//! Resolves a revision of a repository to a commit and lists its files.
//!
//! In: dataset id, revision, splits, globs. Out: a commit and its data files. If no revision is
//! given: parquet on `main`; else the hub's own conversion (`refs/convert/parquet`) if it is
//! complete; else JSON lines on `main`.

use super::cache::{RemoteFile, RepoCache, RepoKind, check_safe, is_commit};
use super::client::{HubClient, encode};
use crate::error::{Error, Result};
use crate::input::files::{FileFormat, is_metadata, list_files};
use std::path::Path;

/// The branch that holds the hub's own conversion of a dataset to parquet.
pub(crate) const CONVERTED: &str = "refs/convert/parquet";

/// Files of a repository at a commit.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    pub commit: String,
    /// The revision that was resolved to the commit.
    pub revision: String,
    /// Selected files, sorted by path.
    pub files: Vec<RemoteFile>,
}

/// Which files of a dataset are read.
#[derive(Debug, Clone, Default)]
pub(crate) struct FileSelection {
    /// Branch, tag or commit; see the file's header for the choice if there is none.
    pub revision: Option<String>,
    /// Splits or categories: names of folders or files. All if empty.
    pub splits: Vec<String>,
    /// Globs over paths. All files if empty.
    pub globs: Vec<String>,
}

impl FileSelection {
    fn contains(&self, path: &str) -> bool {
        let split = |s: &String| {
            path.split('/').any(|part| {
                let stem = part.split('.').next().unwrap_or(part);
                stem == s
                    || stem.strip_prefix(s.as_str()).is_some_and(|r| r.starts_with(['-', '_']))
            })
        };
        (self.splits.is_empty() || self.splits.iter().any(split))
            && (self.globs.is_empty() || self.globs.iter().any(|g| glob(g, path)))
    }
}

/// The commit and the selected files of dataset `id`.
pub(crate) fn list(client: &HubClient, id: &str, selection: &FileSelection) -> Result<Listing> {
    let repo = RepoCache::new(&client.settings.cache, RepoKind::Dataset, id);
    if client.settings.offline {
        return offline(&repo, id, selection);
    }
    let none = |revision: &str, seen: usize| {
        let filter = format!(
            "{}{}",
            selection.splits.iter().map(|s| format!(" --split {s}")).collect::<String>(),
            selection.globs.iter().map(|g| format!(" --files {g}")).collect::<String>()
        );
        Error::Input {
            path: format!("{id} at {revision}"),
            reason: format!(
                "none of its {seen} files is parquet, JSONL or Arrow{}",
                if filter.is_empty() { filter } else { format!(" and fits{filter}") }
            ),
        }
    };
    if let Some(revision) = &selection.revision {
        let (listing, seen) = list_revision(client, &repo, id, revision, selection)?
            .ok_or_else(|| none(revision, 0))?;
        return if listing.files.is_empty() { Err(none(revision, seen)) } else { Ok(listing) };
    }
    let (main, seen) =
        list_revision(client, &repo, id, "main", selection)?.ok_or_else(|| none("main", 0))?;
    let parquet = |l: &Listing| {
        l.files.iter().any(|f| FileFormat::of(Path::new(&f.path)) == Some(FileFormat::Parquet))
    };
    if parquet(&main) {
        return Ok(main);
    }
    // Where the hub converted only the first part of a dataset, folder names begin with `partial`.
    if let Some((converted, _)) = list_revision(client, &repo, id, CONVERTED, selection)?
        && parquet(&converted)
        && !converted.files.iter().any(|f| f.path.split('/').any(|p| p.starts_with("partial")))
    {
        return Ok(converted);
    }
    if main.files.is_empty() { Err(none("main", seen)) } else { Ok(main) }
}

/// The selected data files at a revision, and the number of files of any kind; none if there is no
/// such revision.
fn list_revision(
    client: &HubClient,
    repo: &RepoCache,
    id: &str,
    revision: &str,
    selection: &FileSelection,
) -> Result<Option<(Listing, usize)>> {
    let keep = |path: &str| {
        FileFormat::of(Path::new(path)).is_some() && selection.contains(path) && !is_metadata(path)
    };
    tree(client, repo, RepoKind::Dataset, id, revision, &keep)
}

/// The files at a revision for which `keep` is true, and the number of all files; none if there is
/// no such revision. Of a model only the top folder is listed.
pub(crate) fn tree(
    client: &HubClient,
    repo: &RepoCache,
    kind: RepoKind,
    id: &str,
    revision: &str,
    keep: &dyn Fn(&str) -> bool,
) -> Result<Option<(Listing, usize)>> {
    let base = format!("{}/api/{}/{}", client.settings.endpoint, kind.plural(), encode(id, true));
    let Some(info) =
        client.json_if_found(&format!("{base}/revision/{}", encode(revision, false)))?
    else {
        return Ok(None);
    };
    let commit =
        info.get("sha").and_then(|s| s.as_str()).filter(|s| is_commit(s)).map(String::from);
    let commit = commit.ok_or_else(|| Error::Input {
        path: format!("{id} at {revision}"),
        reason: "the hub names no commit for this revision".to_string(),
    })?;
    let recursive = kind == RepoKind::Dataset;
    let mut url = format!("{base}/tree/{commit}?recursive={recursive}");
    let (mut files, mut seen) = (Vec::new(), 0);
    for _page in 0..10_000 {
        let (page, next) = client.json(&url)?;
        for e in page.as_array().into_iter().flatten() {
            let text = |k: &str| e.get(k).and_then(|v| v.as_str());
            if text("type") != Some("file") {
                continue;
            }
            seen += 1;
            let path = text("path").unwrap_or("");
            if !keep(path) {
                continue;
            }
            let sha256 = e
                .get("lfs")
                .and_then(|l| l.get("oid"))
                .and_then(|o| o.as_str())
                .map(|o| o.trim_start_matches("sha256:").to_string());
            let etag = sha256.clone().or_else(|| text("oid").map(String::from)).unwrap_or_default();
            if etag.is_empty() || !etag.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return Err(Error::Input {
                    path: path.to_string(),
                    reason: "the hub lists no usable content id for this file".to_string(),
                });
            }
            files.push(RemoteFile {
                path: check_safe(path)?.to_string(),
                bytes: e.get("size").and_then(|s| s.as_u64()).unwrap_or(0),
                sha256,
                etag,
            });
        }
        match next {
            Some(n) => url = n,
            None => break,
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files.dedup_by(|a, b| a.path == b.path);
    repo.write_ref(revision, &commit)?;
    Ok(Some((Listing { commit, revision: revision.to_string(), files }, seen)))
}

/// The listing of a dataset in the cache, under HF_HUB_OFFLINE.
fn offline(repo: &RepoCache, id: &str, selection: &FileSelection) -> Result<Listing> {
    let revisions: Vec<&str> = match &selection.revision {
        Some(r) => vec![r],
        None => vec!["main", CONVERTED],
    };
    for revision in &revisions {
        let commit =
            if is_commit(revision) { Some(revision.to_string()) } else { repo.read_ref(revision) };
        let Some(commit) = commit else { continue };
        let root = repo.snapshot(&commit);
        if !root.is_dir() {
            continue;
        }
        let mut files = Vec::new();
        for file in list_files(std::slice::from_ref(&root)).unwrap_or_default() {
            if selection.contains(&file.name) && !is_metadata(&file.name) {
                let etag = std::fs::canonicalize(&file.path)
                    .ok()
                    .and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()))
                    .unwrap_or_default();
                files.push(RemoteFile { path: file.name, bytes: file.bytes, sha256: None, etag });
            }
        }
        if !files.is_empty() {
            files.sort_by(|a, b| a.path.cmp(&b.path));
            return Ok(Listing { commit, revision: revision.to_string(), files });
        }
    }
    Err(Error::Input {
        path: id.to_string(),
        reason: "HF_HUB_OFFLINE is set and the cache holds no data files of this dataset; run once with the network, or unset it"
            .to_string(),
    })
}

/// Whether `path` matches a glob: `*` matches within a name, `**` across names, `?` one character.
pub(crate) fn glob(pattern: &str, path: &str) -> bool {
    fn go(p: &[u8], s: &[u8]) -> bool {
        match p {
            [] => s.is_empty(),
            [b'*', b'*', b'/', rest @ ..] => {
                go(rest, s) || (0..s.len()).any(|i| s[i] == b'/' && go(rest, &s[i + 1..]))
            }
            [b'*', b'*', rest @ ..] => (0..=s.len()).any(|i| go(rest, &s[i..])),
            [b'*', rest @ ..] => {
                (0..=s.len()).take_while(|&i| i == 0 || s[i - 1] != b'/').any(|i| go(rest, &s[i..]))
            }
            [b'?', rest @ ..] => s.first().is_some_and(|&c| c != b'/') && go(rest, &s[1..]),
            [c, rest @ ..] => s.first() == Some(c) && go(rest, &s[1..]),
        }
    }
    // Limits the time that matching can take; file patterns are far below.
    pattern.len() <= 256
        && pattern.matches('*').count() <= 6
        && go(pattern.as_bytes(), path.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_and_splits() {
        for (p, s, yes) in [
            ("SFT/*/*.jsonl", "SFT/chat/chat.jsonl", true),
            ("SFT/*.jsonl", "SFT/chat/chat.jsonl", false),
            ("SFT/**", "SFT/chat/chat.jsonl", true),
            ("**/*.parquet", "a.parquet", true),
            ("**/*.parquet", "a/b/c.parquet", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
        ] {
            assert_eq!(glob(p, s), yes, "{p} {s}");
        }
        let chat = FileSelection { splits: vec!["chat".to_string()], ..Default::default() };
        assert!(
            chat.contains("SFT/chat/x.jsonl")
                && chat.contains("data/chat-00000-of-00001.parquet")
                && chat.contains("chat.jsonl")
        );
        assert!(!chat.contains("SFT/chatter/x.jsonl") && !chat.contains("SFT/code/x.jsonl"));
    }
}
