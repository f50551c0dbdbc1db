//! A model folder as decoding sees it.
//!
//! In: a Hugging Face folder, converted or not. Out: block size and mask token id
//! (`dlm_config.json`, `config.json`), stop tokens (`generation_config.json`, else `config.json`,
//! and the tokenizer's end of text), how the assistant's turn opens (`dlm_config.json`), and an
//! [`Engine`].

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::compute::{ComputePlan, EngineChoice, WeightFormat};
use crate::error::{Error, Result};
use crate::io::conversion_record::ConversionRecord;
use crate::io::json;
use crate::io::load_model::{LoadOptions, LoadedModel, load_model};
use crate::io::tokenizer_ids;
use crate::model::{ModelConfig, TokenIds};
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
        let ConversionRecord { bd_size, mask_token_id, opening_ids } =
            ConversionRecord::read(dir, &config)?;
        let is_published =
            config.raw.get("model_type").and_then(Value::as_str) == Some("Fast_dLLM_Qwen");
        let generation: Option<Value> =
            json::read_if_present(&dir.join("generation_config.json"), "valid JSON")?;
        let named = |file: &&Value| file.get("eos_token_id").is_some_and(|ids| !ids.is_null());
        let mut stop_ids = match generation.as_ref().filter(named) {
            Some(file) => {
                let ids = TokenIds { file, rows: config.vocab_size }.all("eos_token_id");
                ids.map_err(|e| Error::format(dir.join("generation_config.json"), e.to_string()))?
            }
            None => config.eos_token_ids.clone(),
        };
        if let Some(id) = tokenizer_ids::end_of_text(dir)?.filter(|id| !stop_ids.contains(id)) {
            stop_ids.push(id);
        }
        Ok(ModelFolder {
            dir: dir.into(),
            block_size: bd_size,
            mask_id: mask_token_id.or(is_published.then_some(PUBLISHED_MASK_ID)),
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
    pub(crate) fn load(
        &self,
        compute: ComputePlan,
        engine: EngineChoice,
        format: WeightFormat,
    ) -> Result<Engine> {
        let compute = match native::is_chosen(engine, &compute, &self.config, None)? {
            true => compute.on_native_engine(),
            false => compute,
        };
        let LoadedModel { decoder, weights } =
            load_model(&self.dir, LoadOptions::default(), &compute.device.device)?;
        Engine::open(decoder, weights, compute, engine, format)
    }
}
