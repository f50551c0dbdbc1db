//! Where a run's model comes from: `source.*` of the configuration as a local folder.
//!
//! In: the configuration, and on a resume the source that the checkpoint recorded. Out:
//! [`ModelSource`]; a model named on a hub is downloaded first. `train/prepare_model.rs` loads it.

use std::path::{Path, PathBuf};

use dlm_datasets::hash;
use dlm_prep::ConsoleProgress;
use dlm_prep::hub::{HubName, ModelPart, TOKENIZER_FILES, resolve_model};

use crate::config::{Config, Init};
use crate::error::{Error, Result};
use crate::io::json;

/// Where a run's model comes from.
#[derive(Clone, Debug)]
pub(crate) struct ModelSource {
    /// Local folder; none with `source.init=random`.
    pub folder: Option<PathBuf>,
    /// What is recorded: the folder as configured, `hf://ORG/NAME@COMMIT`, or `random`.
    pub name: String,
    /// The checkpoint whose config.json describes the model, where a checkpoint supplies the
    /// weights.
    pub checkpoint: Option<PathBuf>,
}

/// Resolve `source.path` to a local folder, downloading what is missing.
///
/// `recorded` is the source of the checkpoint that will be resumed. The checkpoint supplies the
/// weights then, so only shapes and tokenizer are needed, except with adapters; and where
/// `source.path` names the recorded repository without a revision, the recorded commit is used,
/// whatever the repository's main branch has become.
pub(crate) fn locate(cfg: &Config, recorded: Option<&str>) -> Result<ModelSource> {
    if cfg.source.init == Init::Random {
        return Ok(ModelSource { folder: None, name: "random".into(), checkpoint: None });
    }
    let path = cfg.source.path.as_deref().ok_or_else(|| {
        Error::Usage(
            "source.path is not set: give a model with source.path=DIR|hf://ORG/NAME, or source.init=random with source.config".into(),
        )
    })?;
    let pinned = recorded.and_then(HubName::parse).filter(HubName::is_pinned);
    let path = match (HubName::unless_local(path), pinned, recorded) {
        (Some(name), Some(pinned), Some(recorded))
            if name.id == pinned.id && name.revision.is_none() =>
        {
            recorded
        }
        _ => path,
    };
    let all = recorded.is_none() || cfg.conversion.lora.is_some();
    let part = if all { ModelPart::Whole } else { ModelPart::Shapes };
    let model = resolve_model(path, part, "source.path", &ConsoleProgress::default())?;
    Ok(ModelSource { folder: Some(model.folder), name: model.name, checkpoint: None })
}

/// Hash of a model folder's `config.json` and weights; `None` where one of them is missing.
pub(crate) fn content_hash(folder: &Path) -> Result<Option<String>> {
    let mut names = vec!["config.json".to_string()];
    if folder.join("model.safetensors").is_file() {
        names.push("model.safetensors".into());
    } else {
        let index = folder.join("model.safetensors.index.json");
        let Some(index) = json::read_if_present::<serde_json::Value>(&index, "valid JSON")? else {
            return Ok(None);
        };
        let map = index.get("weight_map").and_then(|map| map.as_object()).into_iter().flatten();
        let mut shards: Vec<_> = map.filter_map(|(_, file)| file.as_str()).collect();
        shards.sort_unstable();
        shards.dedup();
        names.extend(shards.into_iter().map(String::from));
    }
    let mut lines = String::new();
    for name in names {
        let path = folder.join(&name);
        if !path.is_file() {
            return Ok(None);
        }
        lines += &format!("{} {name}\n", hash::sha256_file(&path)?);
    }
    Ok(Some(hash::sha256(lines.as_bytes())))
}

/// The tokenizer files of a folder, those that exist.
pub(crate) fn tokenizer_files(dir: &Path) -> Vec<PathBuf> {
    TOKENIZER_FILES.iter().map(|name| dir.join(name)).filter(|path| path.is_file()).collect()
}

/// What a folder without `tokenizer.json` has instead, in words: "no tokenizer.json", and how to
/// make one.
pub(crate) fn missing_tokenizer(dir: &Path) -> String {
    let other = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json"];
    match other.iter().find(|name| dir.join(name).is_file()) {
        Some(name) => format!(
            "no tokenizer.json, only {name}: write one with transformers' AutoTokenizer.from_pretrained(\"{}\").save_pretrained(\"{}\")",
            dir.display(),
            dir.display()
        ),
        None => "no tokenizer.json".into(),
    }
}
