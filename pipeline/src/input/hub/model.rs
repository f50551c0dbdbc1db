//! Resolves a model or a tokenizer to a local folder: a folder as it is, a repository of the hub
//! after download into the cache.
//!
//! In: a folder, `hf://ORG/NAME[@REVISION]`, `gs://BUCKET/PATH` (`s3://`, `az://`, `file://`), or
//! `ORG/NAME` where no folder of that name exists. Out: a local folder, and the name to record. For
//! a repository that is `hf://ORG/NAME@COMMIT`, for a bucket `ADDRESS@VERSION`; both always mean
//! the same bytes. Only the files that will be loaded are downloaded: config.json, tokenizer files,
//! and `model.safetensors` or the shards its index names; never `.bin`, `.gguf` or other copies.

use super::cache::{RepoCache, RepoKind, is_commit};
use super::client::HubClient;
use super::model_files::{ModelPart, download, is_complete};
use super::name::HubName;
use super::settings::HubSettings;
use super::tree::tree;
use crate::buckets::address::BucketAddress;
use crate::buckets::model::fetch_model;
use crate::error::{Error, Result};
use crate::progress::Progress;
use std::path::{Path, PathBuf};

/// A model that lies in a local folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedModel {
    /// The folder with its files.
    pub folder: PathBuf,
    /// The name to record: the local path as it was given, or `hf://ORG/NAME@COMMIT`.
    pub name: String,
}

/// Resolves `text` to a local folder and downloads the files of `part` if they are not in the
/// cache.
///
/// `key` is what the text was given as (`source.path`, `--model`); it appears in errors. Notices:
/// an `ORG/NAME` without `hf://` is taken as a repository; a download begins.
///
/// # Errors
///
/// [`Error::Usage`] if `text` is neither a folder nor the name of a repository nor the address of a
/// folder in a bucket; [`Error::Input`] if the repository or the folder does not exist, is not
/// accessible, lacks a file of `part`, or if `HF_HUB_OFFLINE` is set and the cache does not hold
/// it.
pub fn resolve_model(
    text: &str,
    part: ModelPart,
    key: &str,
    progress: &dyn Progress,
) -> Result<ResolvedModel> {
    let usage = |reason: String| Error::Usage(format!("{key} {text}: {reason}"));
    if let Some(address) = BucketAddress::parse(key, text)? {
        return from_bucket(&address, part, key, progress);
    }
    if let Some(name) = HubName::unless_local(text) {
        if !text.starts_with("hf://") {
            progress.notice(&format!("{key} {text}: no such folder; taking it as hf://{text}"));
        }
        return fetch(&name, part, progress).map_err(|e| match e {
            // A mistyped folder looks like a repository.
            Error::Input { path, reason } if !text.starts_with("hf://") => Error::Input {
                path,
                reason: format!(
                    "{reason} ({key} {text} is no local folder, so it was looked up on the hub)"
                ),
            },
            other => other,
        });
    }
    let folder = PathBuf::from(text);
    if folder.is_dir() {
        return Ok(ResolvedModel { folder, name: text.to_string() });
    }
    let problem = if folder.exists() { "is a file" } else { "no such folder" };
    Err(usage(format!(
        "{problem}; expected a folder with a model's files, hf://ORG/NAME[@REVISION], or ORG/NAME"
    )))
}

/// Fetches a model of a bucket into the cache.
fn from_bucket(
    address: &BucketAddress,
    part: ModelPart,
    key: &str,
    progress: &dyn Progress,
) -> Result<ResolvedModel> {
    let (folder, name) = fetch_model(address, part == ModelPart::Whole, progress)?;
    if !is_complete(&folder, part) {
        let needs = match part {
            ModelPart::Tokenizer => "tokenizer.json and tokenizer_config.json",
            ModelPart::Shapes => "config.json",
            ModelPart::Whole => {
                "config.json and model.safetensors, or an index that names its parts"
            }
        };
        let path = format!("{key} {address}");
        return Err(Error::Input { path, reason: format!("lacks files; expected {needs}") });
    }
    Ok(ResolvedModel { folder, name })
}

/// The folder of a tokenizer given as `--tokenizer`.
pub(crate) fn resolve_tokenizer(tokenizer: &Path, progress: &dyn Progress) -> Result<PathBuf> {
    match tokenizer.to_str() {
        Some(text) => {
            let model = resolve_model(text, ModelPart::Tokenizer, "--tokenizer", progress)?;
            if model.name.contains("://") {
                progress.notice(&format!("from       {}", model.name));
            }
            Ok(model.folder)
        }
        None => Ok(tokenizer.to_path_buf()),
    }
}

/// Downloads a repository's files into the cache, unless they are there.
fn fetch(name: &HubName, part: ModelPart, progress: &dyn Progress) -> Result<ResolvedModel> {
    let client = HubClient::with_progress(HubSettings::from_env(), progress);
    let repo = RepoCache::new(&client.settings.cache, RepoKind::Model, &name.id);
    let revision = name.revision.as_deref().unwrap_or("main");
    let resolved = |commit: &str| ResolvedModel {
        folder: repo.snapshot(commit),
        name: format!("hf://{}@{commit}", name.id),
    };
    let commit =
        if is_commit(revision) { Some(revision.to_string()) } else { repo.read_ref(revision) };
    let cached = commit.filter(|commit| is_complete(&repo.snapshot(commit), part));
    let offline = client.settings.offline;
    match &cached {
        // The files of a commit never change. The tokenizer is looked for because another client
        // may have downloaded the other files only.
        Some(commit)
            if offline
                || (is_commit(revision)
                    && resolved(commit).folder.join("tokenizer.json").is_file()) =>
        {
            return Ok(resolved(commit));
        }
        None if offline => {
            return Err(Error::Input {
                path: format!("{} at {revision}", name.id),
                reason: "HF_HUB_OFFLINE is set and the cache does not hold all of it; run once with the network, or unset it".to_string(),
            });
        }
        _ => {}
    }
    let mut keep = |path: &str| !path.contains('/');
    let listed = tree(&client, &repo, RepoKind::Model, &name.id, revision, &mut keep);
    let listed = listed.map_err(|e| match (e, &cached) {
        (Error::Input { path, reason }, Some(commit)) => Error::Input {
            path,
            reason: format!(
                "{reason} (the cache holds this model at commit {commit}: HF_HUB_OFFLINE=1 takes it)"
            ),
        },
        (e, _) => e,
    })?;
    let listing = listed.ok_or_else(|| Error::Input {
        path: format!("hf://{}", name.id),
        reason: format!(
            "the hub answers 404: no such model, or it has no revision {revision} (a private one looks the same without HF_TOKEN)"
        ),
    })?;
    let commit = listing.commit.clone();
    download(client, &name.id, listing, part, progress)?;
    Ok(resolved(&commit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    #[test]
    fn local_folders_come_first_and_other_schemes_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().to_str().unwrap();
        let resolve = |text: &str| resolve_model(text, ModelPart::Whole, "--model", &Silent);
        assert_eq!(
            resolve(text).unwrap(),
            ResolvedModel { folder: dir.path().into(), name: text.to_string() }
        );
        let message = |text: &str| resolve(text).unwrap_err().to_string();
        let bucket = message("s3a://bucket/x");
        assert!(bucket.contains("--model s3a://bucket/x") && bucket.contains("s3://"), "{bucket}");
        let missing = message("no-such-folder");
        assert!(missing.contains("no such folder"), "{missing}");
    }
}
