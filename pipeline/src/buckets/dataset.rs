//! A packed dataset in a bucket, in a folder of the cache.
//!
//! In: the address of the folder that holds `manifest.json`. Out: a local folder to map. The
//! manifest says length and sha256 of every data file, and the sha256 of the tokenizer; both are
//! checked. The manifest gets its name last, so that a folder which has one is whole.

use super::address::{BucketAddress, is_plain};
use super::cache::CacheFolder;
use super::folder::{BucketFolder, BucketObject};
use crate::error::{Error, Result};
use crate::progress::Progress;
use dlm_datasets::hash::sha256;
use dlm_datasets::manifest::{FILE_NAME, Manifest};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The longest manifest.
const MANIFEST_BYTES: u64 = 1 << 30;
/// The longest file of a tokenizer, and their number.
const TOKENIZER_BYTES: u64 = 256 << 20;
const TOKENIZER_FILES: usize = 100;

/// The local folder of a packed dataset, fetched if it is not in the cache. `key` is what the
/// address was given as.
///
/// # Errors
/// [`Error::Input`] with the bucket's reason, or where a file is not what the manifest says;
/// [`Error::Dataset`] for a manifest that cannot be read.
pub fn fetch_dataset(
    address: &BucketAddress,
    key: &str,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let bucket = BucketFolder::open(address, progress)?;
    let refuse = |reason: String| Error::Input { path: address.to_string(), reason };
    let Some(text) = bucket.read(FILE_NAME, MANIFEST_BYTES)? else {
        return Err(refuse(format!(
            "{key}: there is no {FILE_NAME}: it is no packed dataset, or dlm-prep did not finish writing it there"
        )));
    };
    let version = sha256(&text);
    let cache = CacheFolder::lock(bucket.settings.folder(address, &version[..16]))?;
    if cache.dir.join(FILE_NAME).is_file() {
        return Ok(cache.dir.clone());
    }
    let manifest = parse(&cache.dir, &text)?;
    let mut files = Vec::new();
    for file in &manifest.files {
        if !is_plain(&file.path) || file.path.contains('/') || file.path.starts_with('.') {
            return Err(refuse(format!(
                "its manifest names the data file {:?}; expected a plain file name",
                file.path
            )));
        }
        files.push(BucketObject { name: file.path.clone(), bytes: file.bytes, tag: None });
    }
    let tokenizer: Vec<BucketObject> = BucketFolder::open(&address.join("tokenizer"), progress)?
        .list()?
        .into_iter()
        .map(|o| BucketObject { name: format!("tokenizer/{}", o.name), ..o })
        .collect();
    let long = tokenizer.iter().any(|o| o.bytes > TOKENIZER_BYTES);
    if long || tokenizer.len() > TOKENIZER_FILES {
        return Err(refuse("its folder tokenizer holds more than a tokenizer".to_string()));
    }
    if !tokenizer.iter().any(|o| o.name == "tokenizer/tokenizer.json") {
        return Err(refuse("there is no tokenizer/tokenizer.json".to_string()));
    }
    let expected: HashMap<&str, &str> =
        manifest.files.iter().map(|f| (f.path.as_str(), f.sha256.as_str())).collect();
    let of_tokenizer = Some(manifest.tokenizer_sha256.clone()).filter(|sha256| !sha256.is_empty());
    let sha256_of = |name: &str| match name {
        "tokenizer/tokenizer.json" => of_tokenizer.clone(),
        name => expected.get(name).map(|sha256| sha256.to_string()),
    };
    check_sizes(&bucket, &files, &cache)?;
    let objects: Vec<&BucketObject> = tokenizer.iter().chain(&files).collect();
    cache.fetch(&bucket, &objects, sha256_of)?;
    dlm_datasets::fs::write_atomic(&cache.dir.join(FILE_NAME), &text)?;
    Ok(cache.dir.clone())
}

/// Refuses a dataset with a file of another length than its manifest says, before any is fetched.
fn check_sizes(bucket: &BucketFolder, files: &[BucketObject], cache: &CacheFolder) -> Result<()> {
    for file in files.iter().filter(|file| !cache.has(file)) {
        let there = bucket.stat(&file.name)?;
        let found = there.map(|there| there.bytes);
        if found != Some(file.bytes) {
            let found = found.map_or("is missing".to_string(), |n| format!("has {n} bytes"));
            return Err(Error::Input {
                path: bucket.address().join(&file.name).to_string(),
                reason: format!(
                    "{found}, the manifest says {} bytes; copy the dataset again",
                    file.bytes
                ),
            });
        }
    }
    Ok(())
}

/// Reads a manifest as if it lay in `dir`, which gives its errors a place.
fn parse(dir: &Path, text: &[u8]) -> Result<Manifest> {
    let scratch = dir.join(".manifest");
    std::fs::create_dir_all(&scratch).map_err(Error::io("making the folder", &scratch))?;
    let path = scratch.join(FILE_NAME);
    std::fs::write(&path, text).map_err(Error::io("writing", &path))?;
    let manifest = Manifest::read(&scratch);
    let _ = std::fs::remove_dir_all(&scratch);
    Ok(manifest?)
}
