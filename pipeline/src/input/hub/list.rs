//! Which commit, which files.
//!
//! In: dataset id, revision, splits, globs. Out: a commit and its data files. Without a revision
//! asked for: parquet on `main`; else the hub's own conversion (`refs/convert/parquet`) when it is
//! whole; else JSONL on `main`.

use super::RemoteFile;
use super::cache::{Repo, RepoKind, is_commit, safe};
use super::client::{HubClient, encode};
use crate::error::{Error, Result};
use crate::input::source::{self, FileFormat};
use std::path::Path;

/// The branch the hub converts datasets into.
pub const CONVERTED: &str = "refs/convert/parquet";

/// What was found.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The commit.
    pub commit: String,
    /// The revision it was found under.
    pub revision: String,
    /// Data files, sorted by path.
    pub files: Vec<RemoteFile>,
}

/// What to look for.
#[derive(Debug, Clone, Default)]
pub struct FileSelection {
    /// A revision, if one was asked for.
    pub revision: Option<String>,
    /// Splits or categories: a folder's or a file's name.
    pub splits: Vec<String>,
    /// Globs over paths.
    pub globs: Vec<String>,
}

impl FileSelection {
    fn takes(&self, path: &str) -> bool {
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

/// Finds the commit and files of dataset `id`.
pub fn list(client: &HubClient, id: &str, wanted: &FileSelection) -> Result<Listing> {
    let repo = Repo::new(&client.settings.cache, RepoKind::Dataset, id);
    if client.settings.offline {
        return offline(&repo, id, wanted);
    }
    let none = |revision: &str, seen: usize| {
        let filter = format!(
            "{}{}",
            wanted.splits.iter().map(|s| format!(" --split {s}")).collect::<String>(),
            wanted.globs.iter().map(|g| format!(" --files {g}")).collect::<String>()
        );
        Error::Input {
            path: format!("{id} at {revision}"),
            reason: format!(
                "none of its {seen} files is parquet, JSONL or Arrow{}",
                if filter.is_empty() { filter } else { format!(" and fits{filter}") }
            ),
        }
    };
    if let Some(revision) = &wanted.revision {
        let (listing, seen) =
            at(client, &repo, id, revision, wanted)?.ok_or_else(|| none(revision, 0))?;
        return if listing.files.is_empty() { Err(none(revision, seen)) } else { Ok(listing) };
    }
    let (main, seen) = at(client, &repo, id, "main", wanted)?.ok_or_else(|| none("main", 0))?;
    let parquet = |l: &Listing| {
        l.files.iter().any(|f| source::kind(Path::new(&f.path)) == Some(FileFormat::Parquet))
    };
    if parquet(&main) {
        return Ok(main);
    }
    // A conversion the hub stopped in the middle has `partial` in its folders' names, and lacks the
    // rest.
    if let Some((converted, _)) = at(client, &repo, id, CONVERTED, wanted)?
        && parquet(&converted)
        && !converted.files.iter().any(|f| f.path.split('/').any(|p| p.starts_with("partial")))
    {
        return Ok(converted);
    }
    if main.files.is_empty() { Err(none("main", seen)) } else { Ok(main) }
}

/// The data files at a revision, and how many files there are of any kind; none if there is no such
/// revision.
fn at(
    client: &HubClient,
    repo: &Repo,
    id: &str,
    revision: &str,
    wanted: &FileSelection,
) -> Result<Option<(Listing, usize)>> {
    let keep = |path: &str| {
        source::kind(Path::new(path)).is_some() && wanted.takes(path) && !source::is_metadata(path)
    };
    tree(client, repo, RepoKind::Dataset, id, revision, &keep)
}

/// The files at a revision that `keep` takes, and how many files there are; none if there is no
/// such revision. Of a model only the top folder is listed.
pub fn tree(
    client: &HubClient,
    repo: &Repo,
    kind: RepoKind,
    id: &str,
    revision: &str,
    keep: &dyn Fn(&str) -> bool,
) -> Result<Option<(Listing, usize)>> {
    let base = format!("{}/api/{}/{}", client.settings.endpoint, kind.plural(), encode(id, true));
    let Some(info) = client.exists(&format!("{base}/revision/{}", encode(revision, false)))? else {
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
                path: safe(path)?.to_string(),
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

/// What an earlier run left in the cache.
fn offline(repo: &Repo, id: &str, wanted: &FileSelection) -> Result<Listing> {
    let tried: Vec<&str> = match &wanted.revision {
        Some(r) => vec![r],
        None => vec!["main", CONVERTED],
    };
    for revision in &tried {
        let commit =
            if is_commit(revision) { Some(revision.to_string()) } else { repo.read_ref(revision) };
        let Some(commit) = commit else { continue };
        let root = repo.snapshot(&commit);
        if !root.is_dir() {
            continue;
        }
        let mut files = Vec::new();
        for input in source::expand(std::slice::from_ref(&root)).unwrap_or_default() {
            if wanted.takes(&input.name) && !source::is_metadata(&input.name) {
                let etag = std::fs::canonicalize(&input.path)
                    .ok()
                    .and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()))
                    .unwrap_or_default();
                files.push(RemoteFile { path: input.name, bytes: input.bytes, sha256: None, etag });
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

/// `*` within a name, `**` across names, `?` for one character.
pub fn glob(pattern: &str, path: &str) -> bool {
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
    // Enough for file names; a pattern that would take long is no file pattern.
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
        let w = FileSelection { splits: vec!["chat".to_string()], ..Default::default() };
        assert!(
            w.takes("SFT/chat/x.jsonl")
                && w.takes("data/chat-00000-of-00001.parquet")
                && w.takes("chat.jsonl")
        );
        assert!(!w.takes("SFT/chatter/x.jsonl") && !w.takes("SFT/code/x.jsonl"));
    }
}
