//! Which files of a dataset on a hub are read.
//!
//! In: dataset id, revision, config, splits, globs. Out: a commit, its data files that are chosen
//! (`selection.rs`), and what was left. If no revision is given: parquet on `main`; else the hub's
//! own conversion (`refs/convert/parquet`) if it is complete; else JSON lines on `main`.

use super::address::encode;
use super::cache::{RemoteFile, RepoCache, RepoKind, is_commit, make_parent};
use super::client::HubClient;
use super::tree::{Listing, tree};
use crate::error::{Error, Result};
use crate::input::card::Card;
use crate::input::files::{
    CARD, CARD_BYTES, FileFormat, card_is_long, not_data, parse_card, read_card, walk_folder,
};
use crate::input::not_read::NotRead;
use crate::input::selection::{FileSelection, Layout, Taken, choose};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// The branch that holds the hub's own conversion of a dataset to parquet.
pub(crate) const CONVERTED: &str = "refs/convert/parquet";

/// All data files at a revision, and what else is there.
struct Found {
    listing: Listing,
    not_read: NotRead,
    /// The file that holds the card.
    card: Option<RemoteFile>,
}

/// The commit and the files that are read of dataset `id`.
pub(crate) fn list(
    client: &HubClient,
    id: &str,
    revision: Option<&str>,
    selection: &FileSelection,
) -> Result<(Listing, Taken)> {
    let repo = RepoCache::new(&client.settings.cache, RepoKind::Dataset, id);
    if client.settings.offline {
        return offline(&repo, id, revision, selection);
    }
    let missing = |revision: &str| {
        Error::Input {
        path: format!("{id} at {revision}"),
        reason: "the hub answers 404: there is no such revision (a private dataset looks the same without HF_TOKEN)".to_string(),
    }
    };
    if let Some(revision) = revision {
        let found = find(client, &repo, id, revision)?.ok_or_else(|| missing(revision))?;
        let card = load_card(client, &repo, id, &found, selection)?;
        let layout = match revision {
            CONVERTED => Layout::Converted(card.as_ref()),
            _ => Layout::Card(card.as_ref()),
        };
        return take(id, found, layout, selection);
    }
    let found = find(client, &repo, id, "main")?.ok_or_else(|| missing("main"))?;
    let card = load_card(client, &repo, id, &found, selection)?;
    let main = take(id, found, Layout::Card(card.as_ref()), selection);
    let is_parquet =
        |f: &RemoteFile| FileFormat::of(Path::new(&f.path)) == Some(FileFormat::Parquet);
    if main.as_ref().is_ok_and(|(l, _)| l.files.iter().any(is_parquet)) {
        return main;
    }
    // Where the hub converted only the first part of a dataset, folder names begin with `partial`.
    if let Some(found) = find(client, &repo, id, CONVERTED)?
        && let Ok((converted, taken)) = take(id, found, Layout::Converted(card.as_ref()), selection)
        && converted.files.iter().any(is_parquet)
        && !converted.files.iter().any(|f| f.path.split('/').any(|p| p.starts_with("partial")))
    {
        return Ok((converted, taken));
    }
    main
}

/// The data files at a revision; none if there is no such revision.
fn find(client: &HubClient, repo: &RepoCache, id: &str, revision: &str) -> Result<Option<Found>> {
    let mut not_read = NotRead::default();
    let mut keep = |path: &str| {
        // `..` and `.` are no names; such a path is refused as a whole.
        let hidden = |part: &str| {
            (part.starts_with('.') && part != "." && part != "..") || part.starts_with("__")
        };
        let why = match path.split('/').any(hidden) {
            true => Some("with a hidden name"),
            false => not_data(path),
        };
        if let Some(why) = why
            && path != CARD
            && path != ".gitattributes"
        {
            not_read.add(why, path);
        }
        why.is_none() || path == CARD
    };
    let Some(mut listing) = tree(client, repo, RepoKind::Dataset, id, revision, &mut keep)? else {
        return Ok(None);
    };
    let card = listing.files.iter().position(|f| f.path == CARD);
    let card = card.map(|k| listing.files.remove(k));
    Ok(Some(Found { listing, not_read, card }))
}

/// The files of `found` that are read.
fn take(
    id: &str,
    found: Found,
    layout: Layout,
    selection: &FileSelection,
) -> Result<(Listing, Taken)> {
    let Found { mut listing, not_read, .. } = found;
    let place = format!("{id} at {}", listing.revision);
    let mut taken = Taken { place: id.to_string(), not_read, ..Default::default() };
    let refuse = |reason: String| Error::Input { path: place.clone(), reason };
    let paths: Vec<&str> = listing.files.iter().map(|f| f.path.as_str()).collect();
    let filter = || {
        let splits = selection.splits.iter().map(|s| format!(" --split {s}"));
        let globs = selection.globs.iter().map(|g| format!(" --files {g}"));
        splits.chain(globs).collect::<String>()
    };
    let none = |taken: &Taken| {
        let fits = if filter().is_empty() { String::new() } else { " and fits".to_string() };
        let holds = match taken.not_read.is_empty() {
            true => "it holds no files".to_string(),
            false => format!("it holds {}", taken.not_read),
        };
        refuse(format!("none of its files is parquet, JSONL or Arrow{fits}{}; {holds}", filter()))
    };
    if paths.is_empty() {
        return Err(none(&taken));
    }
    let chosen = choose(&paths, layout, selection, &mut taken).map_err(refuse)?;
    if chosen.is_empty() {
        return Err(none(&taken));
    }
    for file in chosen.iter().map(|&k| &listing.files[k]).filter(|f| f.bytes == 0) {
        taken.not_read.add("without content", &file.path);
    }
    let files = chosen.into_iter().map(|k| listing.files[k].clone()).collect();
    listing.files = files;
    Ok((listing, taken))
}

/// The card at a commit: from the cache, else from the hub.
fn load_card(
    client: &HubClient,
    repo: &RepoCache,
    id: &str,
    found: &Found,
    selection: &FileSelection,
) -> Result<Option<Card>> {
    let Some(file) = found.card.as_ref().filter(|_| selection.globs.is_empty()) else {
        return Ok(None);
    };
    let commit = &found.listing.commit;
    let refuse = |reason: String| Error::Input { path: format!("{id} at {commit}"), reason };
    let known = repo.snapshot(commit).join(CARD);
    if std::fs::metadata(&known).is_ok_and(|m| m.is_file() && m.len() == file.bytes) {
        return read_card(&known).map_err(refuse);
    }
    if file.bytes > CARD_BYTES {
        return Err(refuse(card_is_long(file.bytes)));
    }
    let endpoint = &client.settings.endpoint;
    let prefix = RepoKind::Dataset.prefix();
    let url = format!("{endpoint}/{prefix}{}/resolve/{commit}/{CARD}", encode(id, true));
    let (bytes, _) = client.bytes(&url, CARD_BYTES)?;
    if bytes.len() as u64 != file.bytes {
        let (sent, listed) = (bytes.len(), file.bytes);
        return Err(refuse(format!(
            "the hub sends {sent} bytes of {CARD}, its listing says {listed}"
        )));
    }
    // For runs without network; the cache may be somebody else's, who allows no writing.
    let blob = repo.blob(&file.etag);
    let _ = make_parent(&blob)
        .and_then(|()| Ok(dlm_datasets::fs::write_atomic(&blob, &bytes)?))
        .and_then(|()| repo.link(commit, CARD, &file.etag));
    parse_card(&bytes).map_err(refuse)
}

/// A file whose name says that it is one of several parts (`…-00002-of-00005…`) of which not all
/// are there, and their number.
fn missing_part(files: &[RemoteFile]) -> Option<(&str, u64)> {
    let mut parts: HashMap<(&str, u64), HashSet<u64>> = HashMap::new();
    let part_of = |path: &'_ str| -> Option<(usize, u64, u64)> {
        let at = path.find("-of-")?;
        let (head, tail) = (&path[..at], &path[at + 4..]);
        let name = head.rfind(|c: char| !c.is_ascii_digit())? + 1;
        let end = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
        Some((name, head[name..].parse().ok()?, tail[..end].parse().ok()?))
    };
    let known: Vec<(&RemoteFile, (usize, u64, u64))> =
        files.iter().filter_map(|f| Some((f, part_of(&f.path)?))).collect();
    for (f, (name, number, of)) in &known {
        parts.entry((&f.path[..*name], *of)).or_default().insert(*number);
    }
    let lacking = |(f, (name, _, of)): &&(&RemoteFile, (usize, u64, u64))| {
        parts.get(&(&f.path[..*name], *of)).is_some_and(|found| (found.len() as u64) < *of)
    };
    known.iter().find(lacking).map(|(f, (_, _, of))| (f.path.as_str(), *of))
}

/// The listing of a dataset in the cache, under HF_HUB_OFFLINE.
fn offline(
    repo: &RepoCache,
    id: &str,
    revision: Option<&str>,
    selection: &FileSelection,
) -> Result<(Listing, Taken)> {
    let revisions = revision.map_or(vec!["main", CONVERTED], |r| vec![r]);
    let (mut card, mut problem) = (None, None);
    for revision in &revisions {
        let commit =
            if is_commit(revision) { Some(revision.to_string()) } else { repo.read_ref(revision) };
        let Some(commit) = commit else { continue };
        let root = repo.snapshot(&commit);
        if !root.is_dir() {
            continue;
        }
        let refuse = |reason: String| Error::Input { path: format!("{id} at {commit}"), reason };
        if selection.globs.is_empty() {
            card = read_card(&root.join(CARD)).map_err(refuse)?.or(card);
        }
        let (found, not_read) = walk_folder(&root)?;
        let of = |file: crate::input::files::LocalFile| {
            let blob = std::fs::canonicalize(&file.path).ok();
            let name = blob.as_deref().and_then(Path::file_name);
            let etag = name.map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            RemoteFile { path: file.name, bytes: file.bytes, sha256: None, etag }
        };
        let mut files: Vec<RemoteFile> = found.into_iter().map(of).collect();
        if files.is_empty() {
            continue;
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let listing = Listing { commit: commit.clone(), revision: revision.to_string(), files };
        let layout = match *revision {
            CONVERTED => Layout::Converted(card.as_ref()),
            _ => Layout::Card(card.as_ref()),
        };
        match take(id, Found { listing, not_read, card: None }, layout, selection) {
            Ok((listing, taken)) => match missing_part(&listing.files) {
                None => return Ok((listing, taken)),
                Some((file, parts)) => {
                    problem = problem.or(Some(refuse(format!(
                        "HF_HUB_OFFLINE is set and the cache lacks some of the {parts} parts that {file} is one of; run once with the network, or name files with --files"
                    ))));
                }
            },
            Err(e) => problem = problem.or(Some(e)),
        }
    }
    Err(problem.unwrap_or_else(|| Error::Input {
        path: id.to_string(),
        reason: "HF_HUB_OFFLINE is set and the cache holds no data files of this dataset; run once with the network, or unset it"
            .to_string(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_are_not_in_the_cache() {
        let lacks = |paths: &[&str]| {
            let file = |p: &&str| RemoteFile {
                path: p.to_string(),
                bytes: 1,
                sha256: None,
                etag: "a".to_string(),
            };
            let files: Vec<RemoteFile> = paths.iter().map(file).collect();
            missing_part(&files).map(|(file, parts)| (file.to_string(), parts))
        };
        let whole = ["d/train-00000-of-00002.parquet", "d/train-00001-of-00002-a1b2.parquet"];
        assert_eq!(lacks(&whole), None);
        assert_eq!(lacks(&whole[..1]), Some((whole[0].to_string(), 2)));
        assert_eq!(lacks(&["x-1-of-1.jsonl", "kind-of-blue.jsonl", "a.jsonl"]), None);
        let other = ["a/t-0-of-2.jsonl", "b/t-1-of-2.jsonl"];
        assert_eq!(lacks(&other), Some((other[0].to_string(), 2)));
    }
}
