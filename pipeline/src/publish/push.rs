//! A push: what the hub has, what it lacks, one commit, and a look at what arrived.
//!
//! In: local files and a repository. Out: a commit in which each of them has its sha256 (git's id
//! for small files). Only files that are missing or different are sent; a push that was cut off
//! has committed nothing, and is repeated.

use super::commit::{Refused, Writer};
use super::contents::{Content, walk};
use crate::error::{Error, Result};
use crate::input::hub::address::{self, encode};
use crate::input::hub::cache::{RepoKind, is_id};
use crate::input::hub::client::HubClient;
use crate::input::hub::settings::HubSettings;
use crate::input::hub::tree::{Listing, tree_at};
use crate::progress::{Progress, Silent};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The branch that is pushed to.
const BRANCH: &str = "main";
/// Bytes from which on a file is stored as a large one by every hub; shorter ones are by their
/// names, too.
const LARGE: u64 = 10_000_000;
const LARGE_NAMES: [&str; 5] = [".arrow", ".safetensors", ".parquet", ".bin", ".model"];

/// What is pushed, and where to.
#[derive(Debug, Clone)]
pub struct Push {
    /// `ORG/NAME`.
    pub id: String,
    /// Whether it is a dataset; else it is a model.
    pub is_dataset: bool,
    /// Whether a repository that has to be made can be seen by everybody.
    pub public: bool,
    /// Title of the commit.
    pub message: String,
    /// Path in the repository → local file.
    pub files: BTreeMap<String, PathBuf>,
    /// Files of an earlier push of the same kind, which this one replaces: whether a path is one.
    /// Such files are removed unless they are in `files`; all others stay.
    pub replaces: fn(&str) -> bool,
}

/// A finished push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Address of the repository's page.
    pub url: String,
    /// The commit at which all files are there.
    pub commit: String,
    /// Whether the repository was made.
    pub created: bool,
    /// Paths that were sent.
    pub sent: Vec<String>,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Paths that were removed.
    pub removed: Vec<String>,
    /// Number of files that the repository had already.
    pub unchanged: usize,
}

/// Checks what can be checked of a push before there is anything to push: the `ORG/NAME`, that
/// there is a token, and that the network may be used.
///
/// # Errors
/// [`Error::Usage`], which names `key`.
pub fn check_push(key: &str, id: &str) -> Result<()> {
    settings_for(key, id).map(drop)
}

fn settings_for(key: &str, id: &str) -> Result<HubSettings> {
    let wrong = |why: &str| Err(Error::Usage(format!("{key} {id:?}: {why}")));
    if !(is_id(id) && id.contains('/') && !id.starts_with('.')) {
        return wrong("expected ORG/NAME, such as my-organisation/my-model");
    }
    let settings = HubSettings::from_env();
    if settings.offline {
        return wrong("HF_HUB_OFFLINE is set; a push needs the network");
    }
    if settings.token.is_none() {
        return wrong(
            "a push needs a token that may write: set HF_TOKEN, or log in with `hf auth login`",
        );
    }
    HubClient::new(settings.clone()).check_settings()?;
    Ok(settings)
}

/// Pushes files to a hub: `HF_ENDPOINT`, with the token of `HF_TOKEN` or of the token file.
///
/// # Errors
/// [`Error::Usage`] without a token or under `HF_HUB_OFFLINE`; [`Error::Input`] if the hub refuses,
/// if a file changes during the push, or if what arrived is not what was sent.
pub fn push(push: &Push, progress: &dyn Progress) -> Result<Pushed> {
    let settings = settings_for("push", &push.id)?;
    let kind = if push.is_dataset { RepoKind::Dataset } else { RepoKind::Model };
    let mut contents = Vec::with_capacity(push.files.len());
    for (path, file) in &push.files {
        contents.push(Content::of(path, file)?);
    }
    let client = HubClient::with_progress(settings.clone(), progress);
    let (id, writer) = (push.id.as_str(), Writer::new(&settings, kind, &push.id)?);
    let (before, created) = before(&client, &writer, kind, push, progress)?;
    let listed: HashMap<&str, _> =
        before.files.iter().map(|file| (file.path.as_str(), file)).collect();
    let is_there = |content: &&Content| {
        listed.get(content.path.as_str()).is_some_and(|remote| content.is_at(remote))
    };
    let missing: Vec<&Content> = contents.iter().filter(|content| !is_there(content)).collect();
    let stale = |path: &&str| (push.replaces)(path) && !push.files.contains_key(*path);
    let paths = before.files.iter().map(|file| file.path.as_str());
    let removed: Vec<String> = paths.filter(stale).map(String::from).collect();
    let bytes: u64 = missing.iter().map(|content| content.bytes).sum();
    let page = format!("{}/{}{id}", settings.endpoint, kind.prefix());
    let mut pushed = Pushed {
        url: page,
        commit: before.commit.clone(),
        created,
        sent: missing.iter().map(|content| content.path.clone()).collect(),
        bytes_sent: bytes,
        removed,
        unchanged: contents.len() - missing.len(),
    };
    if missing.is_empty() && pushed.removed.is_empty() {
        return Ok(pushed);
    }
    let named = |path: &str| LARGE_NAMES.iter().any(|name| path.ends_with(name));
    let is_large = |content: &&&Content| content.bytes > LARGE || named(&content.path);
    if let Some(large) = missing.iter().find(is_large) {
        check_storage(&client, kind, id, large)?;
    }
    let unchanged = match pushed.unchanged {
        0 => String::new(),
        n => format!("; {n} are there already"),
    };
    progress.notice(&format!(
        "pushing    {} files, {:.1} MB, to {}{unchanged}",
        missing.len(),
        bytes as f64 / 1e6,
        pushed.url
    ));
    let parent = Some(before.commit.as_str()).filter(|commit| !commit.is_empty());
    writer.commit(&missing, &pushed.removed, &push.message, parent).map_err(|e| match e {
        Refused::Conflict => Error::Input {
            path: push.id.clone(),
            reason:
                "somebody else committed to it during this push; nothing was committed: push again"
                    .to_string(),
        },
        Refused::Other(e) => e,
    })?;
    contents.iter().try_for_each(Content::check_unchanged)?;
    pushed.commit = check_arrived(&client, kind, id, &contents, &pushed.removed)?;
    Ok(pushed)
}

/// What the repository holds, which is made if it is missing, and whether it was made.
fn before(
    client: &HubClient,
    writer: &Writer,
    kind: RepoKind,
    push: &Push,
    progress: &dyn Progress,
) -> Result<(Listing, bool)> {
    // Without a repository most hubs answer as they answer a wrong token.
    let silent = HubClient::with_progress(client.settings.clone(), &Silent);
    let found = tree_at(&silent, kind, true, &push.id, BRANCH, &mut |_| true);
    if let Ok(Some(listing)) = found {
        return Ok((listing, false));
    }
    let made = match writer.create(!push.public) {
        Ok(()) => true,
        // It is there; what was asked before says why it cannot be seen.
        Err(Refused::Conflict) => false,
        Err(Refused::Other(e)) => return Err(e),
    };
    if made {
        let to = if push.public { "everybody" } else { "its owner only" };
        progress.notice(&format!("made       {}, visible to {to}", push.id));
    } else {
        found?;
    }
    let listing = tree_at(client, kind, true, &push.id, BRANCH, &mut |_| true)?;
    // A new repository may have no commit yet.
    let none = Listing { commit: String::new(), revision: BRANCH.to_string(), files: Vec::new() };
    Ok((listing.unwrap_or(none), made))
}

/// Refuses a hub that takes no large files by xet, with the reason why: hf-hub would send them
/// within the commit, whole in memory. And refuses a storage that is no server.
fn check_storage(client: &HubClient, kind: RepoKind, id: &str, large: &Content) -> Result<()> {
    let refuse = |reason: &str| Error::Input { path: id.to_string(), reason: reason.to_string() };
    let endpoint = &client.settings.endpoint;
    let url =
        format!("{endpoint}/{}{}.git/info/lfs/objects/batch", kind.prefix(), encode(id, true));
    let body = serde_json::json!({
        "operation": "upload",
        "transfers": ["xet"],
        "objects": [{"oid": large.sha256, "size": large.bytes}],
        "hash_algo": "sha256",
        "ref": {"name": BRANCH},
    });
    let answer: serde_json::Value = client.post_json(&url, &body)?;
    if answer.get("transfer").and_then(|t| t.as_str()) != Some("xet") {
        return Err(refuse(
            "this hub does not take large files by xet, the one way in which they are sent; push the folder with `hf upload`",
        ));
    }
    let url =
        format!("{endpoint}/api/{}/{}/xet-write-token/{BRANCH}", kind.plural(), encode(id, true));
    let answer: Option<serde_json::Value> = client.json_if_found(&url, 1 << 16)?;
    let storage = answer.as_ref().and_then(|a| a.get("casUrl")).and_then(|u| u.as_str());
    address::check_storage(endpoint, storage.unwrap_or_default()).map_err(|why| refuse(&why))
}

/// The commit at which every file has its content, as the hub lists it.
fn check_arrived(
    client: &HubClient,
    kind: RepoKind,
    id: &str,
    contents: &[Content],
    removed: &[String],
) -> Result<String> {
    let refuse = |reason: String| Error::Input { path: id.to_string(), reason };
    let listing = tree_at(client, kind, true, id, BRANCH, &mut |_| true)?
        .ok_or_else(|| refuse("the hub has no main branch after the push".to_string()))?;
    let listed: HashMap<&str, _> =
        listing.files.iter().map(|file| (file.path.as_str(), file)).collect();
    for content in contents {
        let wrong = match listed.get(content.path.as_str()) {
            None => "is missing".to_string(),
            Some(remote) if content.is_at(remote) => continue,
            Some(remote) if remote.bytes != content.bytes => {
                format!("has {} bytes there and {} here", remote.bytes, content.bytes)
            }
            Some(_) => "has other content there than here".to_string(),
        };
        return Err(refuse(format!(
            "{} {wrong} after the push (commit {}); push again",
            content.path, listing.commit
        )));
    }
    match removed.iter().find(|path| listed.contains_key(path.as_str())) {
        Some(path) => Err(refuse(format!("{path} is still there after the push; push again"))),
        None => Ok(listing.commit),
    }
}

impl Push {
    /// The push of a folder's files that `keep` accepts, with the paths of those that it does not.
    /// Hidden files are never pushed.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn of_folder(
        folder: &Path,
        keep: &dyn Fn(&str) -> bool,
        replaces: fn(&str) -> bool,
    ) -> Result<(Push, Vec<String>)> {
        let (kept, left) = walk(folder, keep)?;
        let files = kept.into_iter().map(|path| (path.clone(), folder.join(path))).collect();
        let (id, message) = (String::new(), String::new());
        Ok((Push { id, is_dataset: false, public: false, message, files, replaces }, left))
    }
}
