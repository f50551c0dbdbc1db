//! Which files of a model repository are needed, and their download.
//!
//! In: a listing of the repository's top folder and a [`ModelPart`]. Out: the files in the cache.
//! Weights are downloaded last, so a cache folder that has them has the other files, too.

use super::cache::RepoKind;
use super::client::HubClient;
use super::fetch::HubSource;
use super::tree::Listing;
use crate::error::{Error, Result};
use crate::model_names::{CONFIG_FILES, INDEX, SINGLE, SMALL_BYTES, TOKENIZER_FILES, shards};
use crate::progress::{DownloadCounters, Progress, report_while};
use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

/// Which files of a model are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelPart {
    /// Tokenizer files and chat template.
    Tokenizer,
    /// Tokenizer files and config.json: enough if the weights come from a checkpoint.
    Shapes,
    /// Tokenizer files, config.json and weights.
    Whole,
}

/// Whether the folder of a commit holds all files of `part`. A file appears in it only when it is
/// complete.
pub(crate) fn is_complete(folder: &Path, part: ModelPart) -> bool {
    let has = |file: &str| folder.join(file).is_file();
    match part {
        ModelPart::Tokenizer => has("tokenizer.json") && has("tokenizer_config.json"),
        ModelPart::Shapes => has("config.json"),
        ModelPart::Whole => {
            let weights = has(SINGLE)
                || shards(&folder.join(INDEX)).is_some_and(|names| names.iter().all(|n| has(n)));
            has("config.json") && weights
        }
    }
}

/// Downloads the files of `part` into the cache.
pub(crate) fn download(
    client: HubClient,
    id: &str,
    listing: Listing,
    part: ModelPart,
    progress: &dyn Progress,
) -> Result<()> {
    let listed: HashSet<&str> = listing.files.iter().map(|f| f.path.as_str()).collect();
    let has = |file: &str| listed.contains(file);
    let lacks =
        |reason: String| Error::Input { path: format!("hf://{id}@{}", listing.commit), reason };
    let names = |filter: &dyn Fn(&str) -> bool| -> String {
        let names: Vec<&str> =
            listing.files.iter().map(|f| f.path.as_str()).filter(|p| filter(p)).take(6).collect();
        if names.is_empty() { "nothing of the kind".to_string() } else { names.join(", ") }
    };
    if part == ModelPart::Tokenizer && !has("tokenizer.json") {
        return Err(lacks(format!(
            "has no tokenizer.json (it has {}); make one with transformers: AutoTokenizer.from_pretrained({id:?}).save_pretrained(DIR), and give DIR",
            names(&|p| p.contains("token") || p.contains("vocab"))
        )));
    }
    if part != ModelPart::Tokenizer && !has("config.json") {
        return Err(lacks(format!(
            "has no config.json (it has {}); it is not a transformers model",
            names(&|_| true)
        )));
    }
    if part == ModelPart::Whole && !has(SINGLE) && !has(INDEX) {
        let weights = |p: &str| {
            [".bin", ".pt", ".pth", ".gguf", ".safetensors", ".h5", ".msgpack"]
                .iter()
                .any(|e| p.ends_with(e))
        };
        return Err(lacks(format!(
            "has no {SINGLE} and no {INDEX} (it has {}); convert it with transformers: AutoModelForCausalLM.from_pretrained({id:?}).save_pretrained(DIR), and give DIR",
            names(&weights)
        )));
    }
    let sharded = part == ModelPart::Whole && !has(SINGLE);
    let small = |p: &str| {
        TOKENIZER_FILES.contains(&p)
            || (part != ModelPart::Tokenizer && CONFIG_FILES.contains(&p))
            || (sharded && p == INDEX)
    };
    let index_of = |pick: &dyn Fn(&str) -> bool| -> Vec<usize> {
        listing.files.iter().enumerate().filter(|(_, f)| pick(&f.path)).map(|(k, _)| k).collect()
    };
    let first = index_of(&small);
    if let Some(file) = first.iter().map(|&k| &listing.files[k]).find(|f| f.bytes > SMALL_BYTES) {
        return Err(lacks(format!(
            "lists {} bytes for {}, more than the {SMALL_BYTES} that such a file may have",
            file.bytes, file.path
        )));
    }
    let source = HubSource::new(client, RepoKind::Model, id, listing.clone());
    let fetch = |k: usize| source.fetch(k, &|| false);
    let mut index = None;
    for &k in &first {
        let path = fetch(k)?;
        if listing.files[k].path == INDEX {
            index = Some(path);
        }
    }
    if part != ModelPart::Whole {
        return Ok(());
    }
    let weights = match index {
        None => index_of(&|p| p == SINGLE),
        Some(path) => {
            let names = shards(&path)
                .ok_or_else(|| lacks(format!("its {INDEX} names no weights (weight_map)")))?;
            if let Some(missing) = names.iter().find(|n| !has(n)) {
                return Err(lacks(format!(
                    "its {INDEX} names {missing}, which it does not list; take another revision"
                )));
            }
            let names: HashSet<&str> = names.iter().map(String::as_str).collect();
            index_of(&|p| names.contains(p))
        }
    };
    let total_bytes: u64 = weights.iter().map(|&k| listing.files[k].bytes).sum();
    let bytes_on_disk = || weights.iter().map(|&k| source.bytes_on_disk(k)).sum::<u64>();
    let fetch_weights = || weights.iter().try_for_each(|&k| fetch(k).map(|_| ()));
    if bytes_on_disk() == total_bytes {
        return fetch_weights();
    }
    let short = listing.commit.get(..8).unwrap_or_default();
    let files =
        if weights.len() == 1 { "1 file".to_string() } else { format!("{} files", weights.len()) };
    progress.notice(&format!(
        "fetching   hf://{id}@{short}, {:.1} MB of weights in {files}",
        total_bytes as f64 / 1e6
    ));
    let report = || progress.downloading(&DownloadCounters { bytes: bytes_on_disk(), total_bytes });
    report_while(progress, Duration::from_millis(200), report, fetch_weights)
}
