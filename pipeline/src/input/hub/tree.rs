//! The files of a repository at a revision, as the hub lists them: page by page, each entry
//! checked.
//!
//! A listing that cannot be right is an error, never a shorter one: pages that go in a circle or
//! without an end, entries without a size, two files in one place. Sizes and numbers are bounded
//! before anything is allocated for them.

use super::address::{encode, next_page, page_at};
use super::cache::{RemoteFile, RepoCache, RepoKind, check_safe, is_commit};
use super::client::{ANSWER_BYTES, HubClient};
use crate::error::{Error, Result};
use crate::input::files::FileFormat;
use crate::input::not_read::shown;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::Value;
use std::collections::HashSet;
use std::path::Path;
use std::time::Instant;

/// Pages of a listing; a hub's have 1,000 entries.
const MOST_PAGES: usize = 2_500;
/// Time of a whole listing, in times of [`patience`](super::settings::HubSettings).
const LISTING_PATIENCE: u32 = 3;
/// Files of a listing that are kept.
const MOST_FILES: usize = 500_000;
/// The largest file: 2 TB, of which hubs allow a tenth.
const MOST_BYTES: u64 = 2 << 40;
/// The longest answer about a revision, which names every file.
const REVISION_BYTES: u64 = 64 << 20;
/// git's id of a file without content.
const EMPTY: &str = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391";

/// Files of a repository at a commit.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    pub commit: String,
    /// The revision that was resolved to the commit.
    pub revision: String,
    /// Selected files, sorted by path.
    pub files: Vec<RemoteFile>,
}

/// What a hub says about a revision.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Revision {
    sha: Value,
    /// All its files; not every mirror names them.
    siblings: Option<Vec<Sibling>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Sibling {
    rfilename: String,
}

/// The files at a revision for which `keep` is true; none if there is no such revision. Of a model
/// only the top folder is listed. The commit is noted in the cache, for runs without network.
pub(crate) fn tree(
    client: &HubClient,
    repo: &RepoCache,
    kind: RepoKind,
    id: &str,
    revision: &str,
    keep: &mut dyn FnMut(&str) -> bool,
) -> Result<Option<Listing>> {
    let listing = tree_at(client, kind, kind == RepoKind::Dataset, id, revision, keep)?;
    if let Some(listing) = &listing
        && let Err(e) = repo.write_ref(revision, &listing.commit)
    {
        client.notice(&format!("not noted for runs without network: {e}"));
    }
    Ok(listing)
}

/// The files at a revision for which `keep` is true, of all folders if `recursive`; none if there
/// is no such revision.
pub(crate) fn tree_at(
    client: &HubClient,
    kind: RepoKind,
    recursive: bool,
    id: &str,
    revision: &str,
    keep: &mut dyn FnMut(&str) -> bool,
) -> Result<Option<Listing>> {
    let endpoint = &client.settings.endpoint;
    let base = format!("{endpoint}/api/{}/{}", kind.plural(), encode(id, true));
    let url = format!("{base}/revision/{}", encode(revision, false));
    let Some(info) = client.json_if_found::<Revision>(&url, REVISION_BYTES)? else {
        return Ok(None);
    };
    let commit = info.sha.as_str().filter(|s| is_commit(s)).map(String::from);
    let wrong = |reason: String| Error::Input { path: format!("{id} at {revision}"), reason };
    let commit =
        commit.ok_or_else(|| wrong("the hub names no commit for this revision".to_string()))?;
    let mut url = format!("{base}/tree/{commit}?recursive={recursive}");
    let (mut files, mut pages, begin) = (Vec::new(), HashSet::new(), Instant::now());
    // What the hub names here must be in its listing, or the listing was cut off.
    let siblings = info.siblings.into_iter().flatten().map(|s| s.rfilename);
    let mut unlisted: HashSet<String> = siblings.filter(|f| matters(kind, f)).collect();
    loop {
        if !pages.insert(url.clone()) {
            return Err(wrong("the pages of the hub's listing go in a circle".to_string()));
        }
        if pages.len() > MOST_PAGES {
            return Err(wrong(format!("the hub's listing has more than {MOST_PAGES} pages")));
        }
        if begin.elapsed() > client.settings.patience * LISTING_PATIENCE {
            let (seconds, pages) = (begin.elapsed().as_secs(), pages.len() - 1);
            return Err(wrong(format!(
                "the hub's listing takes too long: {seconds} s for {pages} pages"
            )));
        }
        let (page, links) = client.bytes(&url, ANSWER_BYTES)?;
        let mut problem = None;
        let mut each = |entry: Value| {
            if let Some(path) = entry.get("path").and_then(Value::as_str) {
                unlisted.remove(path);
            }
            match remote_file(&entry, keep) {
                Ok(file) => {
                    files.extend(file);
                    files.len() <= MOST_FILES
                }
                Err(e) => {
                    problem = Some(e);
                    false
                }
            }
        };
        let read = Entries(&mut each).deserialize(&mut serde_json::Deserializer::from_slice(&page));
        if let Some(reason) = problem {
            return Err(wrong(reason));
        }
        if files.len() > MOST_FILES {
            return Err(wrong(format!("the hub lists more than {MOST_FILES} data files")));
        }
        read.map_err(|e| HubClient::not_json(&url, &e))?;
        match next_page(&links).map_err(wrong)? {
            Some(next) => url = page_at(endpoint, &next).map_err(wrong)?,
            None => break,
        }
    }
    if let Some(first) = unlisted.iter().min() {
        return Err(wrong(format!(
            "the hub's listing was cut off: it lacks {} of the files that the revision has, as {}",
            unlisted.len(),
            shown(first)
        )));
    }
    let files = one_per_place(files).map_err(wrong)?;
    Ok(Some(Listing { commit, revision: revision.to_string(), files }))
}

/// Whether a file must be in the listing: data files, and the files of a model's top folder.
fn matters(kind: RepoKind, path: &str) -> bool {
    match kind {
        RepoKind::Dataset => FileFormat::of(Path::new(path)).is_some(),
        RepoKind::Model => !path.contains('/') && !path.is_empty(),
    }
}

/// The file that an entry of a listing stands for; none if it is something else, or not kept.
fn remote_file(
    entry: &Value,
    keep: &mut dyn FnMut(&str) -> bool,
) -> std::result::Result<Option<RemoteFile>, String> {
    let text = |k: &str| entry.get(k).and_then(|v| v.as_str());
    if !entry.is_object() {
        return Err("the hub's listing holds something that is no entry".to_string());
    }
    let sort = text("type").ok_or("the hub's listing holds an entry without a type")?;
    if sort == "directory" {
        return Ok(None);
    }
    let path = text("path").ok_or("the hub lists a file without a path")?;
    if !keep(path) {
        return Ok(None);
    }
    if sort != "file" {
        return Err(format!("the hub lists {} as a {}, no file", shown(path), shown(sort)));
    }
    let path = check_safe(path).map_err(|e| e.to_string())?;
    let wrong = |what: &str| format!("the hub lists {what} for {}", shown(path));
    let bytes = entry.get("size").and_then(Value::as_u64).ok_or_else(|| wrong("no size"))?;
    let lfs = entry.get("lfs").filter(|l| !l.is_null());
    if lfs.and_then(|l| l.get("size")).is_some_and(|s| s.as_u64() != Some(bytes)) {
        return Err(wrong("two different sizes"));
    }
    if bytes > MOST_BYTES {
        return Err(wrong(&format!("{bytes} bytes, more than the {MOST_BYTES} that are read,")));
    }
    let hex = |s: &str| s.bytes().all(|b| b.is_ascii_hexdigit());
    let sha256 = match lfs.and_then(|l| l.get("oid")).filter(|o| !o.is_null()) {
        None => None,
        Some(oid) => {
            let oid = oid.as_str().unwrap_or_default().trim_start_matches("sha256:");
            if oid.len() != 64 || !hex(oid) {
                return Err(wrong("no sha256"));
            }
            Some(oid.to_ascii_lowercase())
        }
    };
    let etag = sha256.clone().or_else(|| text("oid").map(String::from)).unwrap_or_default();
    let usable = (1..=128).contains(&etag.len()) && etag.bytes().all(|b| b.is_ascii_alphanumeric());
    if !usable {
        return Err(wrong("no usable content id"));
    }
    // Nothing would be asked for, and nothing be noticed.
    if bytes == 0 && sha256.is_none() && etag != EMPTY {
        return Err(wrong("no bytes, but an id of content,"));
    }
    Ok(Some(RemoteFile { path: path.to_string(), bytes, sha256, etag }))
}

/// The files sorted by path, each once. Refuses two files in one place of the cache.
fn one_per_place(mut files: Vec<RemoteFile>) -> std::result::Result<Vec<RemoteFile>, String> {
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files.dedup();
    if let Some(w) = files.windows(2).find(|w| w[0].path == w[1].path) {
        return Err(format!("the hub lists {} twice, with different content", w[0].path));
    }
    let paths: HashSet<&str> = files.iter().map(|f| f.path.as_str()).collect();
    for file in &files {
        let mut above = file.path.as_str();
        while let Some((folder, _)) = above.rsplit_once('/') {
            above = folder;
            if paths.contains(above) {
                return Err(format!("the hub lists {above} as a file and as a folder"));
            }
        }
    }
    let mut sizes = std::collections::HashMap::new();
    for file in &files {
        if *sizes.entry(file.etag.as_str()).or_insert(file.bytes) != file.bytes {
            return Err(format!(
                "the hub lists the content of {} under two different sizes",
                file.path
            ));
        }
    }
    Ok(files)
}

/// Hands the elements of a JSON array on, one at a time, until `0` returns false.
struct Entries<'f>(&'f mut dyn FnMut(Value) -> bool);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a list of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<(), A::Error> {
        while let Some(entry) = list.next_element::<Value>()? {
            if !(self.0)(entry) {
                // The error that ended this is known to the caller.
                while list.next_element::<IgnoredAny>()?.is_some() {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn entries_that_cannot_be_right() {
        let sha = "a".repeat(64);
        let check = |entry: Value| remote_file(&entry, &mut |_| true);
        let good = json!({"type": "file", "path": "a.jsonl", "size": 5, "oid": "ab12"});
        assert_eq!(check(good.clone()).unwrap().unwrap().bytes, 5);
        assert_eq!(check(json!({"type": "directory", "path": 5})).unwrap(), None);
        let with = |key: &str, value: Value| {
            let mut entry = good.clone();
            entry[key] = value;
            check(entry)
        };
        for (key, value, says) in [
            ("path", json!(5), "without a path"),
            ("type", json!(5), "without a type"),
            ("type", json!("symlink"), "as a symlink"),
            ("path", json!("../a.jsonl"), "could leave the cache"),
            ("size", json!(-5), "no size"),
            ("size", json!("x"), "no size"),
            ("size", json!(u64::MAX), "bytes, more than"),
            ("size", json!(0), "no bytes, but"),
            ("oid", json!("../x"), "no usable content id"),
            ("oid", json!("a".repeat(5000)), "no usable content id"),
            ("oid", json!(""), "no usable content id"),
            ("lfs", json!({"oid": "../../x", "size": 5}), "no sha256"),
            ("lfs", json!({"oid": sha, "size": 6}), "two different sizes"),
        ] {
            let e = with(key, value.clone()).unwrap_err();
            assert!(e.contains(says), "{key} {value}: {e}");
        }
        assert!(check(json!(7)).is_err() && check(Value::Null).is_err());
        let upper = with("lfs", json!({"oid": "A".repeat(64), "size": 5})).unwrap().unwrap();
        assert_eq!(upper.sha256, Some(sha));
    }

    #[test]
    fn two_files_in_one_place() {
        let file = |path: &str, etag: &str, bytes: u64| RemoteFile {
            path: path.to_string(),
            bytes,
            sha256: None,
            etag: etag.to_string(),
        };
        let (a, b) = (file("a", "x", 1), file("b/c", "y", 2));
        assert_eq!(one_per_place(vec![b.clone(), a.clone(), b.clone()]), Ok(vec![a.clone(), b]));
        // Steps in a square of the number of files would not end here.
        let many = (0..100_000).map(|k| file(&format!("{k}/{k}"), &k.to_string(), k)).collect();
        assert_eq!(one_per_place(many).unwrap().len(), 100_000);
        for (other, says) in [
            (file("a", "z", 1), "twice"),
            (file("a/b", "z", 1), "as a file and as a folder"),
            (file("d", "x", 9), "two different sizes"),
        ] {
            let e = one_per_place(vec![a.clone(), other]).unwrap_err();
            assert!(e.contains(says), "{e}");
        }
    }
}
