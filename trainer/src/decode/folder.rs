//! A model folder as decoding sees it.
//!
//! In: a Hugging Face folder, converted or not. Out: block size and mask token id
//! (`dlm_config.json`, `config.json`), stop tokens (`generation_config.json`, else `config.json`,
//! and the tokenizer's end of text), how the assistant's turn opens (`dlm_config.json`), and an
//! [`Engine`].

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::compute::{ComputePlan, EngineChoice};
use crate::error::{Error, Result};
use crate::io::json;
use crate::io::load_model::{LoadOptions, LoadedModel, load_model};
use crate::io::tokenizer_eos;
use crate::model::ModelConfig;
use crate::native;

use super::Engine;

/// Mask token id of the published Fast-dLLM v2 checkpoints, which have Qwen2.5's tokenizer and do
/// not state the id in any file.
const PUBLISHED_MASK_ID: i64 = 151_665;

/// The JSON files of a model folder; the weights are not read yet.
#[derive(Debug, Clone)]
pub(crate) struct ModelFolder {
    dir: PathBuf,
    pub config: ModelConfig,
    /// Tokens per diffusion block; `None` for a model that was not converted.
    pub block_size: Option<usize>,
    /// Id of the mask token; `None` for a model that was not converted.
    pub mask_id: Option<i64>,
    /// Ids that end a completion.
    pub stop_ids: Vec<i64>,
    /// Ids with which the assistant's turn opened in the training data, behind the prompt.
    pub opening_ids: Vec<i64>,
}

impl ModelFolder {
    /// Reads the folder's JSON files.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let config = ModelConfig::read(dir)?;
        let converted: Option<Value> =
            json::read_if_present(&dir.join("dlm_config.json"), "valid JSON")?;
        let integer = |key: &str| converted.as_ref()?.get(key)?.as_i64();
        let opening = converted.as_ref().and_then(|record| record.get("assistant_opening_ids"));
        let opening_ids: Vec<i64> = opening
            .and_then(Value::as_array)
            .map(|ids| ids.iter().filter_map(Value::as_i64).collect())
            .unwrap_or_default();
        let block_size = integer("bd_size").and_then(|n| usize::try_from(n).ok());
        let mask_id = agree(dir, "mask_token_id", integer("mask_token_id"), config.mask_token_id)?;
        let is_published =
            config.raw.get("model_type").and_then(Value::as_str) == Some("Fast_dLLM_Qwen");
        let generation: Option<Value> =
            json::read_if_present(&dir.join("generation_config.json"), "valid JSON")?;
        let mut stop_ids: Vec<i64> =
            match generation.as_ref().and_then(|value| value.get("eos_token_id")) {
                Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_i64).collect(),
                Some(Value::Number(id)) => id.as_i64().into_iter().collect(),
                _ => config.eos_token_ids.clone(),
            };
        if let Some(id) = tokenizer_eos::id(dir)?.filter(|id| !stop_ids.contains(id)) {
            stop_ids.push(id);
        }
        Ok(ModelFolder {
            dir: dir.into(),
            block_size: agree(dir, "bd_size", block_size, config.bd_size)?,
            mask_id: mask_id.or(is_published.then_some(PUBLISHED_MASK_ID)),
            stop_ids,
            opening_ids,
            config,
        })
    }

    /// A prompt continued by the opening that the model was trained to answer behind.
    pub(crate) fn opened(&self, mut prompt: Vec<i64>) -> Vec<i64> {
        if !prompt.ends_with(&self.opening_ids) {
            prompt.extend(&self.opening_ids);
        }
        prompt
    }

    /// Loads the weights onto the device of a plan.
    pub(crate) fn load(&self, compute: ComputePlan, engine: EngineChoice) -> Result<Engine> {
        let compute = match native::is_chosen(engine, &compute, &self.config, None)? {
            true => compute.on_native_engine(),
            false => compute,
        };
        let LoadedModel { decoder, weights } =
            load_model(&self.dir, LoadOptions::default(), &compute.device.device)?;
        Engine::new(decoder, weights, compute)
    }
}

/// The value of a key that two files may have; an error where they contradict each other.
fn agree<T: PartialEq + std::fmt::Display>(
    dir: &Path,
    key: &str,
    dlm_config: Option<T>,
    config: Option<T>,
) -> Result<Option<T>> {
    match (dlm_config, config) {
        (Some(a), Some(b)) if a != b => Err(Error::format(
            dir,
            format!(
                "dlm_config.json says {key} {a}, config.json says {b}; the folder is a mixture of two models"
            ),
        )),
        (a, b) => Ok(a.or(b)),
    }
}
