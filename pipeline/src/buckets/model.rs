//! The files of a model or a tokenizer in a bucket, in a folder of the cache.
//!
//! In: the address of the folder that holds `config.json` and the weights, or a tokenizer's files.
//! Out: a local folder, and the name to record, `ADDRESS@VERSION`. The version is a hash of the
//! names, lengths and tags of the model's files in the bucket: it changes with each of them. An
//! address with a version means that version and no other.

use super::address::BucketAddress;
use super::cache::CacheFolder;
use super::folder::{BucketFolder, BucketObject};
use crate::error::{Error, Result};
use crate::model_names::{
    CONFIG_FILES, INDEX, NAMED_TEMPLATES, SINGLE, SMALL_BYTES, TOKENIZER_FILES, shards,
};
use crate::progress::Progress;
use dlm_datasets::hash::sha256;
use std::path::PathBuf;

/// Letters of a version.
const VERSION: usize = 16;

/// An address without its version, and the version.
pub(crate) fn split_version(address: &BucketAddress) -> (BucketAddress, Option<String>) {
    let hex = |v: &str| v.len() == VERSION && v.bytes().all(|b| b.is_ascii_hexdigit());
    match address.path.rsplit_once('@') {
        Some((path, version)) if hex(version) => {
            (BucketAddress { path: path.to_string(), ..address.clone() }, Some(version.to_string()))
        }
        _ => (address.clone(), None),
    }
}

/// Fetches a model's files besides weights, and with `weights` these too.
pub(crate) fn fetch_model(
    address: &BucketAddress,
    weights: bool,
    progress: &dyn Progress,
) -> Result<(PathBuf, String)> {
    let (address, wanted) = split_version(address);
    let bucket = BucketFolder::open(&address, progress)?;
    let listed = bucket.list()?;
    let refuse = |reason: String| Error::Input { path: address.to_string(), reason };
    if listed.is_empty() {
        return Err(refuse("there is no such folder in the bucket, or it is empty".to_string()));
    }
    let is_small = |o: &&BucketObject| {
        let template = |path: &str| path.starts_with('/') && path.ends_with(".jinja");
        let name = o.name.as_str();
        TOKENIZER_FILES.contains(&name)
            || CONFIG_FILES.contains(&name)
            || [INDEX, "tokenizer.model"].contains(&name)
            || name.strip_prefix(NAMED_TEMPLATES).is_some_and(template)
    };
    let is_weights = |o: &&BucketObject| {
        !o.name.contains('/') && o.name.starts_with("model") && o.name.ends_with(".safetensors")
    };
    let of_model: Vec<&BucketObject> =
        listed.iter().filter(|o| is_small(o) || is_weights(o)).collect();
    if of_model.is_empty() {
        let names = names(&listed);
        let inside = |o: &&BucketObject| o.name.ends_with("/config.json");
        let hint = match listed.iter().find(inside).and_then(|o| o.name.rsplit_once('/')) {
            Some((folder, _)) => format!("; did you mean {}?", address.join(folder)),
            None => String::new(),
        };
        return Err(refuse(format!("holds no file of a model or tokenizer, only {names}{hint}")));
    }
    if let Some(long) = of_model.iter().find(|o| is_small(o) && o.bytes > SMALL_BYTES) {
        return Err(refuse(format!(
            "{} has {} bytes, more than the {SMALL_BYTES} that such a file may have",
            long.name, long.bytes
        )));
    }
    let lines: Vec<String> =
        of_model.iter().map(|o| format!("{} {} {:?}", o.name, o.bytes, o.tag)).collect();
    let version = sha256(lines.join("\n").as_bytes())[..VERSION].to_string();
    if wanted.as_ref().is_some_and(|wanted| *wanted != version) {
        return Err(refuse(format!(
            "the files there are version {version}, not the {} that was asked for: they were replaced since; give the address without @ to take what is there",
            wanted.unwrap_or_default()
        )));
    }
    let cache = CacheFolder::lock(bucket.settings.folder(&address, &version))?;
    let small: Vec<&BucketObject> = of_model.iter().copied().filter(|o| is_small(o)).collect();
    cache.fetch(&bucket, &small, |_| None)?;
    if weights {
        let has = |name: &str| listed.iter().any(|o| o.name == name);
        let names = if has(SINGLE) {
            vec![SINGLE.to_string()]
        } else if has(INDEX) {
            shards(&cache.dir.join(INDEX))
                .ok_or_else(|| refuse(format!("its {INDEX} names no weights (weight_map)")))?
        } else {
            Vec::new()
        };
        let files: Vec<&BucketObject> =
            of_model.iter().copied().filter(|o| names.contains(&o.name)).collect();
        if let Some(missing) = names.iter().find(|name| !files.iter().any(|o| o.name == **name)) {
            return Err(refuse(format!("its {INDEX} names {missing}, which is not there")));
        }
        cache.fetch(&bucket, &files, |_| None)?;
    }
    Ok((cache.dir.clone(), format!("{address}@{version}")))
}

/// Some names of a listing.
pub(super) fn names(objects: &[BucketObject]) -> String {
    let first: Vec<&str> = objects.iter().take(6).map(|o| o.name.as_str()).collect();
    match objects.len() {
        0 => "nothing".to_string(),
        n if n > first.len() => format!("{} and {} more", first.join(", "), n - first.len()),
        _ => first.join(", "),
    }
}
