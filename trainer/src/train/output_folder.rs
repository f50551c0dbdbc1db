//! Folders that a run or an export may write to: never the source, the dataset or another model's
//! folder.
//!
//! In: the folder as configured. Out: the folder with `~` expanded, or a refusal.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::ExportFormat;
use crate::error::{Error, Result};
use crate::io::adapter;
use crate::io::checkpoint::Identity;
use crate::io::engine_formats;
use crate::io::export::UNFINISHED;
use crate::io::json;
use dlm_datasets::fs;
use dlm_prep::bucket::BucketAddress;
use dlm_prep::hub::{NAMED_TEMPLATES, TOKENIZER_FILES};

/// What is about to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose<'a> {
    /// A run with checkpoints and metrics, whose folder holds its config.yaml.
    Run,
    /// An export of a checkpoint.
    Export {
        /// The folder of the run.
        run: &'a Path,
        /// Identity of the run.
        identity: &'a Identity,
    },
}

/// The folder with a leading `~` replaced by the home folder. An empty path, `~user` and a path
/// that ends in `..` are refused; `key` names the option.
pub(crate) fn expanded(key: &str, dir: &Path) -> Result<PathBuf> {
    let refused = |found: &str| {
        Error::Usage(format!(
            "{key}={}: {found}; expected a folder of its own, such as output/NAME",
            dir.display()
        ))
    };
    if dir.as_os_str().is_empty() {
        return Err(refused("empty"));
    }
    let dir_text = dir.to_string_lossy();
    if BucketAddress::looks_like_one(&dir_text) {
        return Err(refused("a bucket (output.remote=… sends a run there)"));
    }
    let path = match dir_text.strip_prefix('~') {
        None => dir.to_path_buf(),
        Some(rest) if rest.is_empty() || rest.starts_with('/') => match std::env::var_os("HOME") {
            Some(home) if !rest.trim_matches('/').is_empty() => {
                PathBuf::from(home).join(rest.trim_start_matches('/'))
            }
            Some(_) => return Err(refused("the home folder itself")),
            None => return Err(refused("~ stands for the home folder, but HOME is not set")),
        },
        Some(_) => return Err(refused("~USER is not expanded")),
    };
    if path.file_name().is_none() && path != Path::new(".") {
        return Err(refused("names a folder above, or the root"));
    }
    Ok(path)
}

/// Refuse a folder that belongs to something else: one of `taken` (a name for people and the path),
/// or a model folder or dataset that is not what would be written again.
pub(crate) fn check(
    key: &str,
    dir: &Path,
    purpose: Purpose,
    taken: &[(&str, Option<&Path>)],
) -> Result<()> {
    let refused = |what: &str| {
        Err(Error::Usage(format!(
            "{key}={}: {what}, which would be overwritten; choose another folder",
            dir.display()
        )))
    };
    let Ok(own) = dir.canonicalize() else { return Ok(()) };
    for (name, path) in taken {
        let other = path.and_then(|path| path.canonicalize().ok());
        if other.is_some_and(|other| other == own) {
            return refused(&format!("this is {name}"));
        }
    }
    let has = |name: &str| dir.join(name).exists();
    if !dir.is_dir() {
        return refused("this is a file");
    }
    if has("manifest.json") {
        return refused("this is a packed dataset");
    }
    let is_model = has("config.json") || has("model.safetensors") || has("adapter_config.json");
    let is_run = has("config.yaml") || has("checkpoints");
    match purpose {
        Purpose::Run if is_model && !is_run => {
            refused("this is the folder of a model that no run here wrote (no config.yaml)")
        }
        Purpose::Export { run, .. } if run.canonicalize().is_ok_and(|run| run == own) => Ok(()),
        Purpose::Export { .. } if is_run => refused("this is the folder of another run"),
        Purpose::Export { identity, .. } if is_model && !is_export_of(dir, identity)? => {
            refused("this is the folder of a model that is no export of this run")
        }
        _ => Ok(()),
    }
}

/// Whether `dir` is an export of the run with this identity, whole or not: dataset and source are
/// the same.
fn is_export_of(dir: &Path, identity: &Identity) -> Result<bool> {
    let read = |name: &str| json::read_if_present::<Value>(&dir.join(name), "valid JSON");
    let record = match read("dlm_config.json")? {
        Some(record) => Some(record),
        None => read(UNFINISHED)?,
    };
    let Some(record) = record else { return Ok(false) };
    Ok([("data_fingerprint", "data"), ("source_checkpoint", "source")].iter().all(|(key, own)| {
        record.get(*key).and_then(Value::as_str) == identity.get(*own).map(String::as_str)
    }))
}

/// Remove the export of an earlier run, its marker first.
pub(crate) fn remove_export(dir: &Path) -> Result<()> {
    const MARKER: &str = "dlm_config.json";
    const CONFIGS: [&str; 7] = [
        MARKER,
        UNFINISHED,
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        adapter::CONFIG,
        adapter::WEIGHTS,
    ];
    let remove = |path: &Path| match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(path, "removing the old export", e))
        }
        _ => Ok(()),
    };
    for name in CONFIGS.iter().chain(&TOKENIZER_FILES) {
        remove(&dir.join(name))?;
    }
    engine_formats::write_modeling_file(dir, ExportFormat::Hf)?;
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.filter_map(std::result::Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            remove(&entry.path())?;
        }
    }
    let templates = dir.join(NAMED_TEMPLATES);
    match std::fs::remove_dir_all(&templates) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io(&templates, "removing the old export", e));
        }
        _ => {}
    }
    Ok(fs::sync_parent(&dir.join(MARKER))?)
}
