//! The small files of a model folder: config.json, generation_config.json and the tokenizer. An
//! export has them, and so has every checkpoint of a run, which can therefore be exported when the
//! source is gone.
//!
//! In: the source's raw config and generation config, the dataset's tokenizer and ids.

use std::path::{Path, PathBuf};

use dlm_datasets::fs;
use dlm_prep::hub::NAMED_TEMPLATES;
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::config::ExportFormat;
use crate::error::{Error, Result};
use crate::io::engine_formats::config_keys;
use crate::io::json as json_file;
use crate::io::source::{missing_tokenizer, tokenizer_files};
use crate::model::{Decoder, ParamKind};

/// Everything in an export besides the tensors.
pub(crate) struct ExportInfo {
    /// Tokens per block; `None` where the training did not teach to fill blocks.
    pub bd_size: Option<usize>,
    /// Text of the mask token.
    pub mask_token: String,
    pub mask_token_id: i32,
    /// Ids that end a completion, as the source's config.json has them.
    pub source_eos_token_ids: Vec<i64>,
    /// Ids that end a turn or a text in the dataset.
    pub eos_token_ids: Vec<i32>,
    pub pad_token_id: i32,
    /// Folder with the tokenizer (the dataset's).
    pub tokenizer: PathBuf,
    /// Source folder, whose generation_config.json is kept.
    pub source_folder: Option<PathBuf>,
    /// Remaining keys of dlm_config.json.
    pub record: Value,
}

/// Refuse a folder without the dataset's tokenizer, with which everything that is written would be
/// a model that nobody can talk to.
pub(crate) fn check_tokenizer_folder(tokenizer: &Path) -> Result<()> {
    match tokenizer.join("tokenizer.json").is_file() {
        true => Ok(()),
        false => Err(Error::Usage(format!(
            "{}: {}; the dataset's tokenizer belongs to the exported folder: copy it there, or prepare the data again",
            tokenizer.display(),
            missing_tokenizer(tokenizer)
        ))),
    }
}

/// Write config.json, generation_config.json and the tokenizer.
pub(crate) fn write_small_files(
    dir: &Path,
    decoder: &Decoder,
    dtype: Dtype,
    format: ExportFormat,
    info: &ExportInfo,
) -> Result<()> {
    check_tokenizer_folder(&info.tokenizer)?;
    let eos = eos_ids(info, &source_generation(info)?);
    let config = model_config(decoder, dtype, format, info, &eos);
    json_file::write(&dir.join("config.json"), &config)?;
    write_generation_and_tokenizer(dir, info)
}

/// The source's generation_config.json; an empty object where it has none.
fn source_generation(info: &ExportInfo) -> Result<Value> {
    let generation = match &info.source_folder {
        Some(dir) => json_file::read_if_present(&dir.join("generation_config.json"), "valid JSON")?,
        None => None,
    };
    Ok(generation.unwrap_or_else(|| json!({})))
}

/// Write generation_config.json and the tokenizer.
pub(crate) fn write_generation_and_tokenizer(dir: &Path, info: &ExportInfo) -> Result<()> {
    let generation = source_generation(info)?;
    let eos = eos_ids(info, &generation);
    let generation = generation_config(generation, info, &eos);
    json_file::write(&dir.join("generation_config.json"), &generation)?;
    for path in tokenizer_files(&info.tokenizer) {
        let Some(file) = path.file_name() else { continue };
        let bytes =
            std::fs::read(&path).map_err(|e| Error::io(&path, "reading the tokenizer", e))?;
        fs::write_atomic(&dir.join(file), &bytes)?;
    }
    copy_named_templates(&info.tokenizer, dir)
}

/// Copy the chat templates besides the default one (`tool_use`).
fn copy_named_templates(tokenizer: &Path, dir: &Path) -> Result<()> {
    let Ok(files) = std::fs::read_dir(tokenizer.join(NAMED_TEMPLATES)) else { return Ok(()) };
    for file in files.filter_map(std::result::Result::ok) {
        let from = file.path();
        let bytes = std::fs::read(&from).map_err(|e| Error::io(&from, "reading", e))?;
        fs::create_dir(&dir.join(NAMED_TEMPLATES))?;
        fs::write_atomic(&dir.join(NAMED_TEMPLATES).join(file.file_name()), &bytes)?;
    }
    Ok(())
}

fn model_config(
    decoder: &Decoder,
    dtype: Dtype,
    format: ExportFormat,
    info: &ExportInfo,
    eos: &[i64],
) -> Value {
    let mut raw = decoder.cfg.raw.clone();
    let name = if dtype == Dtype::F32 { "float32" } else { "bfloat16" };
    if let Some(o) = raw.as_object_mut() {
        o.insert("vocab_size".into(), json!(decoder.cfg.vocab_size));
        match info.bd_size {
            Some(bd_size) => o.insert("bd_size".into(), json!(bd_size)),
            None => o.remove("bd_size"),
        };
        o.insert("mask_token_id".into(), json!(info.mask_token_id));
        // transformers 5 writes `dtype`, transformers 4 `torch_dtype`: keep the source's keys
        let key = if o.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        o.insert(key.into(), json!(name));
        if o.contains_key("torch_dtype") {
            o.insert("torch_dtype".into(), json!(name));
        }
        o.insert("eos_token_id".into(), one_or_all(eos));
        if o.get("pad_token_id").is_none_or(Value::is_null) {
            o.insert("pad_token_id".into(), json!(info.pad_token_id));
        }
        match decoder.cfg.has_token_shift() {
            true => o.remove("token_shift"),
            false => o.insert("token_shift".into(), json!(false)),
        };
        config_keys(o, decoder, format);
        if let Some(q) = o.get_mut("quantization_config").and_then(Value::as_object_mut) {
            // packed weights are quantised already, full-precision weights in every forward pass
            let (mode, class) = if format == ExportFormat::PackedTernary {
                ("offline", linear_class(decoder))
            } else {
                ("online", "autobitlinear")
            };
            q.insert("quant_method".into(), json!("bitnet"));
            q.insert("quantization_mode".into(), json!(mode));
            q.insert("linear_class".into(), json!(class));
        }
    }
    raw
}

/// The source's generation_config.json with the ids that end a completion.
fn generation_config(mut source: Value, info: &ExportInfo, eos: &[i64]) -> Value {
    if let Some(o) = source.as_object_mut() {
        o.insert("eos_token_id".into(), one_or_all(eos));
        if !o.contains_key("pad_token_id") {
            o.insert("pad_token_id".into(), json!(info.pad_token_id));
        }
    }
    source
}

/// A single id as a number, several as a list.
fn one_or_all(ids: &[i64]) -> Value {
    if let [id] = ids { json!(id) } else { json!(ids) }
}

/// Every id that ends a completion: those of the source's config.json, those of its
/// generation_config.json, and the dataset's ends of turn, which the model was trained to emit.
fn eos_ids(info: &ExportInfo, generation: &Value) -> Vec<i64> {
    let of_generation = match generation.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_i64).collect(),
        Some(id) => id.as_i64().into_iter().collect(),
        None => Vec::new(),
    };
    let mut ids: Vec<i64> = Vec::new();
    let given = info.source_eos_token_ids.iter().copied().chain(of_generation);
    for id in given.chain(info.eos_token_ids.iter().map(|id| i64::from(*id))) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

/// transformers' class for the packed linears. Its `autobitlinear` multiplies a bias by the
/// weight's scale too, so models with biases are written for `bitlinear`, which divides by the
/// inverse scale first and adds the bias after.
pub(crate) fn linear_class(decoder: &Decoder) -> &'static str {
    if decoder.params.specs.iter().any(|s| s.kind == ParamKind::Bias) {
        "bitlinear"
    } else {
        "autobitlinear"
    }
}
