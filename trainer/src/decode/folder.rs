//! A model folder made ready to decode.
//!
//! In: a Hugging Face folder, converted or not. Out: an [`Engine`] and what the folder says about
//! decoding: block size and mask id (`dlm_config.json`, `config.json`), stop tokens
//! (`generation_config.json`, else `config.json`).

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::compute::ComputePlan;
use crate::error::{Error, Result};
use crate::io::load_model::{LoadOptions, LoadedModel, load_model};
use crate::model::ModelConfig;

use super::Engine;

/// The mask id that the published Fast-dLLM v2 checkpoints use without writing it down (Qwen2.5's
/// tokenizer).
const PUBLISHED_MASK_ID: i64 = 151_665;

/// What a folder says about its model; the weights are not read yet.
#[derive(Debug, Clone)]
pub struct ModelFolder {
    dir: PathBuf,
    /// Shapes and switches.
    pub config: ModelConfig,
    /// Tokens a diffusion block; none for a model that was not converted.
    pub block_size: Option<usize>,
    /// The mask token; none for a model that was not converted.
    pub mask_id: Option<i64>,
    /// Tokens that end a completion.
    pub stop_ids: Vec<i64>,
}

impl ModelFolder {
    /// Reads the folder's JSON files.
    pub fn read(dir: &Path) -> Result<Self> {
        let config = ModelConfig::read(dir)?;
        let record = read_json(&dir.join("dlm_config.json"))?;
        let own_block = integer(record.as_ref(), "bd_size").and_then(|n| usize::try_from(n).ok());
        let own_mask = integer(record.as_ref(), "mask_token_id");
        let published =
            config.raw.get("model_type").and_then(Value::as_str) == Some("Fast_dLLM_Qwen");
        let mask_id = agree(dir, "mask_token_id", own_mask, config.mask_token_id)?;
        let generation = read_json(&dir.join("generation_config.json"))?;
        let stop_ids = match generation.as_ref().and_then(|value| value.get("eos_token_id")) {
            Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_i64).collect(),
            Some(Value::Number(id)) => id.as_i64().into_iter().collect(),
            _ => config.eos_token_ids.clone(),
        };
        Ok(ModelFolder {
            dir: dir.into(),
            block_size: agree(dir, "bd_size", own_block, config.bd_size)?,
            mask_id: mask_id.or(published.then_some(PUBLISHED_MASK_ID)),
            stop_ids,
            config,
        })
    }

    /// Loads the weights onto the device of a plan.
    pub fn load(&self, compute: ComputePlan) -> Result<Engine> {
        let LoadedModel { decoder, weights } =
            load_model(&self.dir, LoadOptions::default(), &compute.device.device)?;
        Engine::new(decoder, weights, compute)
    }
}

/// A JSON file, or none where there is none.
fn read_json(path: &Path) -> Result<Option<Value>> {
    match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| Error::format(path, format!("not valid JSON: {error}"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path, "reading", error)),
    }
}

fn integer(json: Option<&Value>, key: &str) -> Option<i64> {
    json?.get(key)?.as_i64()
}

/// One value from two files that must not contradict each other.
fn agree<T: PartialEq + std::fmt::Display>(
    dir: &Path,
    key: &str,
    record: Option<T>,
    config: Option<T>,
) -> Result<Option<T>> {
    match (record, config) {
        (Some(a), Some(b)) if a != b => Err(Error::format(
            dir,
            format!(
                "dlm_config.json says {key} {a}, config.json says {b}; the folder is a mixture of two models"
            ),
        )),
        (a, b) => Ok(a.or(b)),
    }
}
