//! A model folder as decoding sees it.
//!
//! In: a Hugging Face folder, converted or not, with or without the folder of an adapter beside it,
//! whose files count then wherever it has them. Out: block size and mask token id
//! (`dlm_config.json`, `config.json`), stop tokens (`generation_config.json`, else `config.json`,
//! and the tokenizer's end of text), how the assistant's turn opens (`dlm_config.json`), and an
//! [`Engine`].

use std::path::{Path, PathBuf};

use burn::tensor::DType;
use serde_json::Value;

use crate::compute::{ComputePlan, EngineChoice, WeightFormat};
use crate::error::{Error, Result};
use crate::io::adapter::{self, Adapter};
use crate::io::conversion_record::ConversionRecord;
use crate::io::json;
use crate::io::load_model::{HostModel, LoadOptions, LoadedModel, load_model};
use crate::io::source::content_hash;
use crate::io::tokenizer_ids;
use crate::model::{ModelConfig, SDAR, TokenIds};
use crate::native;

use super::gate::Gate;
use super::generate_options::{DecodeMode, GenerateOptions};
use super::{BlockOptions, Engine, Request, RowMode, Sampling, VerifyOptions};

/// Tokens per block where the model folder does not say.
const BLOCK_SIZE: usize = 32;

/// The same of the published SDAR checkpoints.
const SDAR_BLOCK_SIZE: usize = 4;

/// Proposals and masks of a pass that verifies (docs/decode.md).
const PROPOSE: usize = 7;

/// Longest block: a pass over it attends from each of its tokens to each.
const MOST_BLOCK_SIZE: usize = 1 << 16;

/// Tokens per sub-block, where that divides the block.
const SUB_BLOCK_SIZE: usize = 8;

/// The JSON files of a model folder; the weights are not read yet.
#[derive(Debug, Clone)]
pub(crate) struct ModelFolder {
    dir: PathBuf,
    /// Folder of the adapter.
    adapter: Option<PathBuf>,
    /// Where the adapter acts on mask tokens alone.
    gate: Option<Gate>,
    pub config: ModelConfig,
    /// Tokens per diffusion block; `None` for a model that was not converted.
    pub block_size: Option<usize>,
    /// Id of the mask token; `None` for a model that was not converted.
    pub mask_id: Option<i64>,
    /// Whether the logits at position i-1 predict token i.
    pub token_shift: bool,
    /// Ids that end a completion.
    pub stop_ids: Vec<i64>,
    /// Ids with which the assistant's turn opened in the training data, behind the prompt.
    pub opening_ids: Vec<i64>,
    /// Whether the last training was causal, which does not teach to fill blocks.
    pub is_causal: bool,
}

impl ModelFolder {
    /// Reads the folder's JSON files.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        Self::read_files(dir, None)
    }

    /// Reads the JSON files of a model folder and of the adapter beside it. With adapters that act
    /// on mask tokens alone the vocabulary, and a mask token that is never produced, are those of
    /// the model: its own answers are decoded.
    pub(crate) fn read_files(dir: &Path, adapter: Option<&Path>) -> Result<Self> {
        let mut config = ModelConfig::read(dir)?;
        let model_dir = dir;
        let gate = match adapter {
            Some(adapter) => Gate::read(adapter, dir, &config)?,
            None => None,
        };
        if let Some(adapter) = adapter {
            config.vocab_size = Adapter::read(adapter)?.vocabulary(config.vocab_size);
        }
        let described = adapter.filter(|adapter| adapter.join("dlm_config.json").is_file());
        let dir = described.unwrap_or(dir);
        let record = match described {
            Some(adapter) => ConversionRecord::of_adapter(adapter, &config)?,
            None => ConversionRecord::read(dir, &config)?,
        };
        let token_shift = record.has_token_shift();
        let ConversionRecord { bd_size, mask_token_id, opening_ids, is_causal, .. } = record;
        let is_sdar = config.raw.get("model_type").and_then(Value::as_str) == Some(SDAR);
        let (block_size, mask_id) = match &gate {
            Some(gate) => {
                config.vocab_size = gate.rows;
                (None, gate.never)
            }
            None => (bd_size.or(is_sdar.then_some(SDAR_BLOCK_SIZE)), mask_token_id),
        };
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
            dir: model_dir.into(),
            adapter: adapter.map(PathBuf::from),
            gate,
            block_size,
            mask_id,
            token_shift,
            stop_ids,
            opening_ids,
            is_causal,
            config,
        })
    }

    /// The same prompts and ends, decoded by the model without its adapter.
    pub(crate) fn without_adapter(&self) -> Self {
        ModelFolder { adapter: None, gate: None, ..self.clone() }
    }

    /// A prompt continued by the opening that the model was trained to answer behind.
    pub(crate) fn opened(&self, mut prompt: Vec<i64>) -> Vec<i64> {
        if !prompt.ends_with(&self.opening_ids) {
            prompt.extend(&self.opening_ids);
        }
        prompt
    }

    /// Hash of configuration and weights, the adapter's among them; `None` where a file is missing.
    pub(crate) fn identity(&self) -> Result<Option<String>> {
        let own = content_hash(&self.dir)?;
        match (own, &self.adapter) {
            (Some(own), Some(adapter)) => Ok(Some(format!("{own} {}", adapter::hash(adapter)?))),
            (own, _) => Ok(own),
        }
    }

    /// What to say where an adapter names another source than the model beside it: hashes are of
    /// config.json and weights. Nothing where a file is missing, which loading says.
    pub(crate) fn other_source(&self) -> Option<String> {
        let record = self.adapter.as_ref()?.join("dlm_config.json");
        let record: Value = json::read_if_present(&record, "valid JSON").ok()??;
        let trained = record.get("source_sha256")?.as_str()?;
        let beside = content_hash(&self.dir).ok()??;
        (trained != beside).then(|| {
            format!(
                "the adapter was trained beside a model whose config.json and weights have sha256 {trained} (source_sha256 in its dlm_config.json), and those of {} have {beside}: with other weights, unless they are the same in another dtype, it does not do what it was trained for",
                self.dir.display()
            )
        })
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
        let device = &compute.device.device;
        let LoadedModel { decoder, weights } = match &self.adapter {
            None => load_model(&self.dir, LoadOptions::default(), device)?,
            Some(adapter) => {
                let host = HostModel::read(&self.dir)?;
                let adapter = Adapter::read(adapter)?;
                match &self.gate {
                    Some(Gate { mask_id, rows, .. }) => {
                        let mask = Some(*mask_id);
                        let model = adapter.attach(host, mask, true, DType::F32, device)?;
                        model.with_vocabulary(*rows)
                    }
                    // merged in fp32, and rounded after that
                    None => adapter.attach(host, self.mask_id, false, DType::F32, device)?.merged(),
                }
            }
        };
        Engine::open(decoder, weights, compute, engine, format)
    }

    /// How prompts are completed where nothing else is asked for.
    pub(crate) fn usual_mode(&self) -> DecodeMode {
        match self.gate {
            Some(_) => DecodeMode::Verify,
            None => GenerateOptions::default().mode,
        }
    }

    /// The settings of verify mode.
    fn verify(&self, name: &str, options: &GenerateOptions) -> Result<RowMode> {
        let Some(Gate { mask_id, most_masks, .. }) = self.gate else {
            let found = match self.adapter {
                Some(_) => "its adapters act on all tokens",
                None => "there is none (--adapter DIR)",
            };
            return Err(Error::Usage(format!(
                "verify mode needs {name} with adapters that propose tokens at mask tokens alone (conversion.objective=lossless), and {found}"
            )));
        };
        let propose = options.propose.unwrap_or(PROPOSE);
        Ok(RowMode::Verify(VerifyOptions { propose, most_masks, mask_id }))
    }

    /// A request without its prompt: the options of the requested mode, with what the folder says
    /// where nothing was requested. `name` is how the user named the model.
    pub(crate) fn request(&self, name: &str, options: &GenerateOptions) -> Result<Request> {
        let wrong = |what: String| Err(Error::Usage(what));
        let mask_id = options.mask_token_id.or(self.mask_id);
        let stop_ids = options.stop_token_ids.clone().unwrap_or_else(|| self.stop_ids.clone());
        let rows = self.config.vocab_size;
        let outside = |id: &&i64| !usize::try_from(**id).is_ok_and(|id| id < rows);
        let named = mask_id.iter().map(|id| ("mask", id));
        let named = named.chain(stop_ids.iter().map(|id| ("stop", id)));
        if let Some((kind, id)) = named.into_iter().find(|(_, id)| outside(id)) {
            return wrong(format!(
                "the {kind} token id is {id}, but {name} has {rows} token ids (0 to {}); give another one (--{kind}-token-id)",
                rows - 1
            ));
        }
        let request = Request {
            prompt: Vec::new(),
            mode: RowMode::Ar,
            max_new_tokens: options.max_new_tokens,
            stop_ids,
            mask_id,
            sampling: sampling(options)?,
            stop: None,
        };
        if options.mode == DecodeMode::Ar {
            return match self.token_shift {
                true => Ok(request),
                false => wrong(format!(
                    "{name} was trained without the token shift (token_shift: false): its logits at a position predict the token there, so that nothing predicts the next token in autoregressive mode; use block mode (--mode block), with --block-size 1 for one token at a time"
                )),
            };
        }
        if options.mode == DecodeMode::Verify {
            return Ok(Request { mode: self.verify(name, options)?, ..request });
        }
        if self.gate.is_some() {
            return wrong(format!(
                "the adapters of {name} act on mask tokens alone and only propose what the model itself verifies (gate in dlm_config.json): nothing fills blocks; use --mode verify, or --mode ar for the model without them"
            ));
        }
        if mask_id.is_none() {
            return wrong(format!(
                "{name} names no mask token (mask_token_id in dlm_config.json or config.json), so that it was not converted; use autoregressive mode (--mode ar), or give the id (--mask-token-id)"
            ));
        }
        let threshold = options.threshold;
        if !(0.0..=1.0).contains(&threshold) {
            return wrong(format!("threshold {threshold}: expected a probability, 0 to 1"));
        }
        let block_size = self.block_size_of(options);
        if !(1..=MOST_BLOCK_SIZE).contains(&block_size) {
            return wrong(format!(
                "blocks of {block_size} tokens (--block-size): expected 1 to {MOST_BLOCK_SIZE}"
            ));
        }
        let mode = RowMode::Block(BlockOptions {
            block_size,
            sub_block_size: self.sub_block_size_of(options),
            threshold,
            sub_block_cache: options.sub_block_cache,
            fuse_prefill: options.fuse_prefill,
            fuse_commit: options.fuse_commit,
            blocks_in_flight: options.blocks_in_flight,
            token_shift: self.token_shift,
        });
        Ok(Request { mode, ..request })
    }

    /// Tokens per block in block mode.
    pub(crate) fn block_size_of(&self, options: &GenerateOptions) -> usize {
        options.block_size.or(self.block_size).unwrap_or(BLOCK_SIZE)
    }

    /// Tokens per sub-block in block mode.
    pub(crate) fn sub_block_size_of(&self, options: &GenerateOptions) -> usize {
        let block_size = self.block_size_of(options);
        let usual =
            if block_size.is_multiple_of(SUB_BLOCK_SIZE) { SUB_BLOCK_SIZE } else { block_size };
        options.sub_block_size.unwrap_or(usual)
    }
}

/// How tokens are drawn; `None` at temperature 0.
fn sampling(options: &GenerateOptions) -> Result<Option<Sampling>> {
    let GenerateOptions { temperature, top_p, top_k, seed, .. } = *options;
    if !(temperature >= 0.0 && temperature.is_finite()) {
        return Err(Error::Usage(format!(
            "temperature {temperature}: expected a number from 0 (the most likely tokens) on, usually at most 2"
        )));
    }
    if !(0.0..=1.0).contains(&top_p) {
        return Err(Error::Usage(format!("top-p {top_p}: expected a probability, 0 to 1")));
    }
    Ok((temperature > 0.0).then_some(Sampling { temperature, top_p, top_k, seed }))
}
