//! Adapters as folders of the Python library `peft`: written from a run, read back beside their
//! base model.
//!
//! `adapter_config.json` says rank, alpha and targets; `adapter_model.safetensors` has for each
//! target `base_model.model.MODULE.lora_A.weight` `[r, in]` and `lora_B.weight` `[out, r]` in fp32.
//! The mask token's row travels as `peft`'s trainable tokens: `trainable_token_indices` names the
//! rows and `…embed_tokens.token_adapter.trainable_tokens_delta` `[rows, hidden_size]` holds their
//! values (the values themselves, whatever the name says). Where training added rows to the table,
//! all of these are in it, so that the base model may fill them with anything when it is resized.
//! A head that is not tied to the table has the same rows under `lm_head`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use burn::prelude::*;
use burn::tensor::DType;
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::config::LoraTarget;
use crate::error::{Error, Result};
use crate::io::description::{ExportInfo, check_tokenizer_folder, write_generation_and_tokenizer};
use crate::io::json as json_file;
use crate::io::load_model::{HostModel, LoadedModel};
use crate::io::safetensors_file::{self, TensorEntry};
use crate::kernels::cast::to_f32;
use crate::model::lora::{ALL_TARGETS, TOKEN_ROWS};
use crate::model::params::LoraShape;
use crate::model::{Checkpoint, Decoder, ParamKind, ParamSpec, Params, Weights};

/// Says what an adapter is.
pub(crate) const CONFIG: &str = "adapter_config.json";
/// Holds its tensors.
pub(crate) const WEIGHTS: &str = "adapter_model.safetensors";
/// `peft`'s name of rows of an output head of its own.
const HEAD_ROWS: &str = "base_model.model.lm_head.token_adapter.trainable_tokens_delta";

/// Write the folder, all but `dlm_config.json`: the adapter, generation_config.json and the
/// tokenizer.
pub(crate) fn write(dir: &Path, decoder: &Decoder, w: &Weights, info: &ExportInfo) -> Result<()> {
    check_tokenizer_folder(&info.tokenizer)?;
    let params = &decoder.params;
    let Some(lora) = &params.lora else {
        return Err(Error::Usage("export.lora=adapter: the run has no adapters".into()));
    };
    let added = &w.0[params.trained()];
    let of = |(spec, t): (&ParamSpec, &Tensor<2>)| {
        TensorEntry::floats(spec.name.clone(), Dtype::F32, spec.shape.clone(), t.clone())
    };
    let adapters = lora.specs.iter().zip(added).filter(|(spec, _)| spec.kind == ParamKind::Matrix);
    let mut entries: Vec<TensorEntry> = adapters.map(of).collect();
    let ids = carried_rows(decoder, lora.shape.mask_token_id);
    let mut carried = serde_json::Map::new();
    let mut carry = |module: &str, name: &str, table: &Tensor<2>| {
        let rows = Tensor::cat(ids.iter().map(|id| table.clone().narrow(0, *id, 1)).collect(), 0);
        let shape = rows.dims().to_vec();
        entries.push(TensorEntry::floats(name.into(), Dtype::F32, shape, rows));
        carried.insert(module.into(), json!(ids));
    };
    // the trained row is in the table too, in the dtype of the passes
    let table = to_f32(w[params.embed_tokens].clone());
    let (id, row) = (lora.shape.mask_token_id, w[lora.mask_row].clone());
    let width = table.dims()[1];
    let table = table.slice_assign([id..id + 1, 0..width], row);
    carry("embed_tokens", TOKEN_ROWS, &table);
    if params.lm_head != params.embed_tokens {
        carry("lm_head", HEAD_ROWS, &w[params.lm_head]);
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    safetensors_file::write(&dir.join(WEIGHTS), &entries)?;
    verify(dir, &entries)?;
    let alpha = lora.shape.alpha;
    let whole = alpha.fract() == 0.0 && alpha.abs() < 1e15;
    let (base, revision) = base_model(info);
    let config = json!({
        "alpha_pattern": {},
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": if whole { json!(alpha as i64) } else { json!(alpha) },
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": lora.shape.rank,
        "rank_pattern": {},
        "revision": revision,
        "target_modules": lora.shape.targets.iter().map(|t| t.as_str()).collect::<Vec<_>>(),
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": carried,
        "use_dora": false,
        "use_rslora": false,
    });
    json_file::write(&dir.join(CONFIG), &config)?;
    write_generation_and_tokenizer(dir, info)
}

/// Rows of the embedding table that the source does not have as they are here: the mask token's,
/// and those that were added.
fn carried_rows(decoder: &Decoder, mask: usize) -> Vec<usize> {
    let rows = decoder.cfg.vocab_size;
    let before = decoder.cfg.raw.get("vocab_size").and_then(Value::as_u64);
    let before = before.map_or(rows, |n| n as usize);
    let mut ids: Vec<usize> = (before..rows).collect();
    if !ids.contains(&mask) {
        ids.insert(0, mask);
    }
    ids
}

/// Name and revision of the source, as `peft` names base models.
fn base_model(info: &ExportInfo) -> (String, Option<String>) {
    let name = info.record.get("source_checkpoint").and_then(Value::as_str).unwrap_or_default();
    match name.strip_prefix("hf://").map(|id| id.split_once('@').unwrap_or((id, ""))) {
        Some((id, revision)) => {
            (id.into(), Some(revision.into()).filter(|r: &String| !r.is_empty()))
        }
        None => (name.into(), None),
    }
}

/// Read the tensors back and compare them with what was written.
fn verify(dir: &Path, entries: &[TensorEntry]) -> Result<()> {
    let ck = Checkpoint::open_file(&dir.join(WEIGHTS))?;
    for entry in entries {
        let (shape, back) = ck.f32(&entry.name)?;
        let values = entry.values()?;
        if shape != entry.shape || values.iter().zip(&back).any(|(a, b)| a.to_bits() != b.to_bits())
        {
            let reason = format!(
                "{} does not read back as written; is the disk full or failing?",
                entry.name
            );
            return Err(Error::format(dir, reason));
        }
    }
    Ok(())
}

/// An adapter folder, read and checked, without its base model.
pub(crate) struct Adapter {
    path: PathBuf,
    tensors: Checkpoint,
    rank: usize,
    alpha: f64,
    targets: Vec<LoraTarget>,
    /// Rows of the embedding table, with their values under [`TOKEN_ROWS`].
    rows: Vec<usize>,
    /// Rows of an output head of its own, with their values under [`HEAD_ROWS`].
    head_rows: Vec<usize>,
}

/// Hash of an adapter's configuration and tensors.
pub(crate) fn hash(dir: &Path) -> Result<String> {
    let of = |name: &str| Ok::<_, Error>(dlm_datasets::hash::sha256_file(&dir.join(name))?);
    Ok(dlm_datasets::hash::sha256(format!("{} {}", of(CONFIG)?, of(WEIGHTS)?).as_bytes()))
}

/// Keys of `adapter_config.json` that change nothing in a forward pass, or are read.
const READ: [&str; 16] = [
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "target_modules",
    "trainable_token_indices",
    "lora_dropout",
    "init_lora_weights",
    "inference_mode",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "megatron_core",
    "qalora_group_size",
    "bias",
];

impl Adapter {
    /// Reads the folder's configuration and maps its tensors.
    ///
    /// # Errors
    /// [`Error::Format`] for another kind of adapter, and for every setting that is not computed
    /// here, by its name.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG);
        if !path.is_file() {
            let reason = format!("no {CONFIG}; expected the folder of a peft adapter (LoRA)");
            return Err(Error::format(dir, reason));
        }
        let config: serde_json::Map<String, Value> = json_file::read(&path, "an object of keys")?;
        let wrong = |key: &str, expected: &str| {
            let found = config.get(key).unwrap_or(&Value::Null);
            Error::format(&path, format!("{key} is {found}; expected {expected}"))
        };
        let is_off = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        if config.get("peft_type").and_then(Value::as_str) != Some("LORA") {
            return Err(wrong("peft_type", "LORA"));
        }
        if config.get("bias").is_some_and(|bias| bias != "none") {
            return Err(wrong("bias", "none: trained biases are not computed here"));
        }
        let unread =
            config.iter().find(|(key, value)| !READ.contains(&key.as_str()) && !is_off(value));
        if let Some((key, _)) = unread {
            return Err(wrong(key, "null or false: this is not computed here"));
        }
        let rank = config.get("r").and_then(Value::as_u64).filter(|r| (1..=1 << 20).contains(r));
        let rank = rank.ok_or_else(|| wrong("r", "a rank of 1 or more"))? as usize;
        let alpha = config.get("lora_alpha").and_then(Value::as_f64);
        let alpha = alpha.filter(|a| a.is_finite() && *a > 0.0);
        let alpha = alpha.ok_or_else(|| wrong("lora_alpha", "a number above 0"))?;
        let by_root = config.get("use_rslora").and_then(Value::as_bool) == Some(true);
        let targets = targets_of(config.get("target_modules")).ok_or_else(|| {
            let known: Vec<&str> = ALL_TARGETS.iter().map(|t| t.as_str()).collect();
            wrong("target_modules", &format!("all-linear, or a list of {}", known.join(", ")))
        })?;
        let (rows, head_rows) =
            rows_of(config.get("trainable_token_indices")).ok_or_else(|| {
                wrong("trainable_token_indices", "lists of token ids for embed_tokens and lm_head")
            })?;
        let file = dir.join(WEIGHTS);
        if !file.is_file() {
            let reason =
                format!("no {WEIGHTS}; expected the tensors of the adapter in safetensors");
            return Err(Error::format(dir, reason));
        }
        Ok(Adapter {
            tensors: Checkpoint::open_file(&file)?,
            path: file,
            rank,
            alpha: if by_root { alpha * (rank as f64).sqrt() } else { alpha },
            targets,
            rows,
            head_rows,
        })
    }

    /// Rows that the embedding table of a model with `rows` of them has with the adapter.
    pub(crate) fn vocabulary(&self, rows: usize) -> usize {
        self.rows.iter().map(|id| id + 1).fold(rows, usize::max)
    }

    /// The base model with the adapter beside its frozen weights; rows of the embedding table are
    /// replaced, and added where the table has too few. `mask_token_id`: of the folder, where it
    /// says. `gated`: see [`LoraShape::gated`].
    ///
    /// # Errors
    /// [`Error::Format`] where the adapter belongs to a model of other shapes: every tensor must
    /// be used.
    pub(crate) fn attach(
        &self,
        mut model: HostModel,
        mask_token_id: Option<i64>,
        gated: bool,
        dtype: DType,
        device: &Device,
    ) -> Result<LoadedModel> {
        let mask = match (mask_token_id, &self.rows[..]) {
            (Some(id), _) => id as usize,
            (None, [id]) => *id,
            // the row of no token is replaced then, and any will do
            (None, _) => 0,
        };
        let mut used: Vec<String> = Vec::new();
        let mut mask_row = None;
        let own = model.config.vocab_size;
        let tables = [
            (TOKEN_ROWS, &self.rows, model.params.embed_tokens),
            (HEAD_ROWS, &self.head_rows, model.params.lm_head),
        ];
        let grown = self.vocabulary(own);
        let width = model.config.hidden_size;
        for (name, rows, table) in tables {
            let tied = model.params.lm_head == model.params.embed_tokens;
            if name == HEAD_ROWS && tied {
                continue;
            }
            let there: BTreeSet<usize> = rows.iter().copied().collect();
            if let Some(id) = (own..grown).find(|id| !there.contains(id)) {
                return Err(self.wrong(format!(
                    "token {id} is beyond the {own} rows of the base model, and {name} has no row for it; is this the adapter's base model?"
                )));
            }
            model.values[table].resize(grown * width, 0.0);
            if rows.is_empty() {
                continue;
            }
            let values = self.tensor(name, &[rows.len(), width])?;
            for (id, row) in rows.iter().zip(values.chunks_exact(width)) {
                if gated && *id == mask && name == TOKEN_ROWS {
                    mask_row = Some(row.to_vec());
                    if *id < own {
                        continue;
                    }
                }
                model.values[table][id * width..][..width].copy_from_slice(row);
            }
            used.push(name.into());
        }
        model.config.vocab_size = grown;
        let shape = LoraShape {
            rank: self.rank,
            alpha: self.alpha,
            targets: self.targets.clone(),
            mask_token_id: mask.min(grown - 1),
            gated,
        };
        let first = |params: &Params, table: &[f32]| {
            let start = params.first_adapters(table, 0);
            let specs = params.trained_specs().iter().zip(start);
            specs
                .map(|(spec, start)| match spec.kind {
                    ParamKind::Matrix => {
                        used.push(spec.name.clone());
                        self.tensor(&spec.name, &spec.shape)
                    }
                    _ => Ok(mask_row.take().unwrap_or(start)),
                })
                .collect()
        };
        let loaded = model.adapted(shape, first, dtype, device)?;
        if let Some(name) = self.tensors.names().find(|name| !used.iter().any(|used| used == name))
        {
            return Err(self.wrong(format!(
                "holds {name}, which is no adapter of this base model by {CONFIG}"
            )));
        }
        Ok(loaded)
    }

    fn wrong(&self, reason: String) -> Error {
        Error::format(&self.path, reason)
    }

    /// The values of a tensor, which must have this shape and be finite.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        if !self.tensors.has(name) {
            return Err(self.wrong(format!("no tensor {name}; is this the adapter's base model?")));
        }
        let (found, values) = self.tensors.f32(name)?;
        if found != shape {
            return Err(self.wrong(format!(
                "{name} is {found:?}, expected {shape:?}; is this the adapter's base model?"
            )));
        }
        match values.iter().position(|v| !v.is_finite()) {
            Some(at) => Err(self.wrong(format!("{name} has {} at {at}", values[at]))),
            None => Ok(values),
        }
    }
}

/// The targets that `target_modules` names.
fn targets_of(value: Option<&Value>) -> Option<Vec<LoraTarget>> {
    match value? {
        Value::String(all) if all == "all-linear" => Some(ALL_TARGETS.to_vec()),
        Value::Array(names) if !names.is_empty() => {
            let target = |name: &Value| ALL_TARGETS.into_iter().find(|t| name == t.as_str());
            names.iter().map(target).collect()
        }
        _ => None,
    }
}

/// Rows of the embedding table and of the head in `trainable_token_indices`.
fn rows_of(value: Option<&Value>) -> Option<(Vec<usize>, Vec<usize>)> {
    const MOST: u64 = 1 << 31;
    let ids = |value: &Value| -> Option<Vec<usize>> {
        let id = |id: &Value| id.as_u64().filter(|id| *id < MOST).map(|id| id as usize);
        value.as_array()?.iter().map(id).collect()
    };
    match value {
        None | Some(Value::Null) => Some((Vec::new(), Vec::new())),
        Some(list @ Value::Array(_)) => Some((ids(list)?, Vec::new())),
        Some(Value::Object(map)) => {
            let (mut rows, mut head) = (Vec::new(), Vec::new());
            for (module, list) in map {
                match module.as_str() {
                    "embed_tokens" | "model.embed_tokens" => rows = ids(list)?,
                    "lm_head" => head = ids(list)?,
                    _ => return None,
                }
            }
            Some((rows, head))
        }
        Some(_) => None,
    }
}
