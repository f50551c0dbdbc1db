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
use crate::progress::Progress;
use dlm_datasets::hash::sha256;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Files besides weights.
const SMALL: [&str; 12] = [
    "config.json",
    "generation_config.json",
    "dlm_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    INDEX,
];
/// Folder of the templates besides the default one.
const TEMPLATES: &str = "additional_chat_templates/";
/// The longest file besides weights, which is read whole.
const SMALL_BYTES: u64 = 256 << 20;
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
        SMALL.contains(&o.name.as_str())
            || (o.name.starts_with(TEMPLATES) && o.name.ends_with(".jinja"))
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
        let names = match listed.iter().any(|o| o.name == SINGLE) {
            true => BTreeSet::from([SINGLE.to_string()]),
            false => shards(&cache),
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

/// The weight files that the index names; none without an index.
fn shards(cache: &CacheFolder) -> BTreeSet<String> {
    let text = std::fs::read(cache.dir.join(INDEX)).unwrap_or_default();
    let json: Value = serde_json::from_slice(&text).unwrap_or_default();
    let map = json.get("weight_map").and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(_, file)| file.as_str().map(String::from)).collect()
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
