//! A trained model as a Hugging Face folder that other tools load.
//!
//! In: decoder, weights, the source's raw config, the dataset's tokenizer. Out: `config.json` (the source's, plus `bd_size`
//! and `mask_token_id`), `model.safetensors` or shards with an index, `tokenizer.json`, `tokenizer_config.json`,
//! `generation_config.json`, and last of all `dlm_config.json`: a folder without it is not a whole export.

use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::checkpoint::{files, tensors};
use crate::config::ExportFormat;
use crate::error::{Error, Result};
use crate::model::config::Family;
use crate::model::{Decoder, Weights, weights::Checkpoint};

/// Shards are cut above this many bytes, as transformers does.
const SHARD_BYTES: usize = 5_000_000_000;

/// What an export says besides the tensors.
pub struct ExportInfo {
    /// Tokens per block.
    pub bd_size: usize,
    /// The mask token's text.
    pub mask_token: String,
    /// Its id.
    pub mask_token_id: i32,
    /// End-of-turn / end-of-text ids, the first being the main one.
    pub eos_token_ids: Vec<i32>,
    /// Padding id.
    pub pad_token_id: i32,
    /// Folder with the tokenizer (the dataset's).
    pub tokenizer: PathBuf,
    /// Source folder, for generation_config.json.
    pub source_folder: Option<PathBuf>,
    /// Remaining keys of dlm_config.json.
    pub record: Value,
}

/// Write the folder.
pub fn export(dir: &Path, decoder: &Decoder, w: &Weights, dtype: Dtype, format: ExportFormat, info: &ExportInfo) -> Result<()> {
    if format == ExportFormat::FastDllm && decoder.cfg.family != Family::Qwen2 {
        return Err(Error::Usage(format!(
            "export.format=fast-dllm is the published Fast_dLLM_Qwen architecture, which is Qwen2's; this model is {:?}; use export.format=hf",
            decoder.cfg.family
        )));
    }
    files::create_dir(dir)?;
    let marker = dir.join("dlm_config.json");
    if marker.exists() {
        std::fs::remove_file(&marker).map_err(|e| Error::io(&marker, "removing the old export's marker", e))?;
        files::sync_parent(&marker)?;
    }
    write_weights(dir, decoder, w, dtype)?;
    write_json(&dir.join("config.json"), &model_config(decoder, dtype, format, info))?;
    write_json(&dir.join("generation_config.json"), &generation_config(info)?)?;
    for name in crate::train::source::tokenizer_files(&info.tokenizer) {
        let Some(file) = name.file_name() else { continue };
        let bytes = std::fs::read(&name).map_err(|e| Error::io(&name, "reading the tokenizer", e))?;
        files::write_atomic(&dir.join(file), &bytes)?;
    }
    let mut record = json!({
        "bd_size": info.bd_size,
        "mask_token": info.mask_token,
        "mask_token_id": info.mask_token_id,
    });
    if let (Some(r), Some(more)) = (record.as_object_mut(), info.record.as_object()) {
        r.extend(more.iter().map(|(k, v)| (k.clone(), v.clone())));
    }
    verify(dir, decoder, w, dtype)?;
    write_json(&marker, &record)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| Error::format(path, e.to_string()))?;
    bytes.push(b'\n');
    files::write_atomic(path, &bytes)
}

fn model_config(decoder: &Decoder, dtype: Dtype, format: ExportFormat, info: &ExportInfo) -> Value {
    let mut raw = decoder.cfg.raw.clone();
    let name = if dtype == Dtype::F32 { "float32" } else { "bfloat16" };
    if let Some(o) = raw.as_object_mut() {
        o.insert("vocab_size".into(), json!(decoder.cfg.vocab_size));
        o.insert("bd_size".into(), json!(info.bd_size));
        o.insert("mask_token_id".into(), json!(info.mask_token_id));
        // one dialect or the other, whichever the source spoke
        o.insert(if o.contains_key("dtype") { "dtype" } else { "torch_dtype" }.into(), json!(name));
        if o.get("eos_token_id").is_none_or(Value::is_null) {
            o.insert("eos_token_id".into(), json!(info.eos_token_ids.first()));
        }
        if o.get("pad_token_id").is_none_or(Value::is_null) {
            o.insert("pad_token_id".into(), json!(info.pad_token_id));
        }
        if format == ExportFormat::FastDllm {
            fast_dllm_keys(o);
        }
        if let Some(q) = o.get_mut("quantization_config").and_then(Value::as_object_mut) {
            // full-precision masters, quantised in every forward pass
            q.insert("quantization_mode".into(), json!("online"));
            q.insert("linear_class".into(), json!("autobitlinear"));
        }
    }
    raw
}

/// The keys by which the published Fast-dLLM v2 hub code recognises its models; `conplemenrary_mask` is spelt as there.
fn fast_dllm_keys(config: &mut serde_json::Map<String, Value>) {
    const HUB: &str = "Efficient-Large-Model/Fast_dLLM_v2_7B";
    config.insert("architectures".into(), json!(["Fast_dLLM_QwenForCausalLM"]));
    config.insert("model_type".into(), json!("Fast_dLLM_Qwen"));
    config.insert(
        "auto_map".into(),
        json!({
            "AutoConfig": format!("{HUB}--configuration.Fast_dLLM_QwenConfig"),
            "AutoModel": format!("{HUB}--modeling.Fast_dLLM_QwenModel"),
            "AutoModelForCausalLM": format!("{HUB}--modeling.Fast_dLLM_QwenForCausalLM"),
        }),
    );
    config.insert("conplemenrary_mask".into(), json!(true));
}

fn generation_config(info: &ExportInfo) -> Result<Value> {
    let from_source = info.source_folder.as_ref().map(|d| d.join("generation_config.json")).filter(|p| p.is_file());
    let mut value = match from_source {
        Some(path) => {
            let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "reading", e))?;
            serde_json::from_str(&text).map_err(|e| Error::format(&path, format!("not valid JSON: {e}")))?
        }
        None => json!({}),
    };
    if let Some(o) = value.as_object_mut() {
        if !o.contains_key("eos_token_id") {
            o.insert("eos_token_id".into(), if info.eos_token_ids.len() == 1 { json!(info.eos_token_ids[0]) } else { json!(info.eos_token_ids) });
        }
        if !o.contains_key("pad_token_id") {
            o.insert("pad_token_id".into(), json!(info.pad_token_id));
        }
    }
    Ok(value)
}

/// One file, or shards with an index.
fn write_weights(dir: &Path, decoder: &Decoder, w: &Weights, dtype: Dtype) -> Result<()> {
    let width = if dtype == Dtype::F32 { 4 } else { 2 };
    let mut shards: Vec<Vec<tensors::Named>> = vec![Vec::new()];
    let (mut size, mut total) = (0usize, 0usize);
    for (spec, t) in decoder.params.specs.iter().zip(&w.0) {
        let bytes = spec.numel() * width;
        if size + bytes > SHARD_BYTES && size > 0 {
            shards.push(Vec::new());
            size = 0;
        }
        size += bytes;
        total += bytes;
        if let Some(last) = shards.last_mut() {
            last.push((spec.name.clone(), spec.shape.clone(), t.clone()));
        }
    }
    let n = shards.len();
    let index_path = dir.join("model.safetensors.index.json");
    if n == 1 {
        tensors::write(&dir.join("model.safetensors"), &shards[0], dtype)?;
        let _ = std::fs::remove_file(&index_path);
        return Ok(());
    }
    let mut map = serde_json::Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{n:05}.safetensors", i + 1);
        tensors::write(&dir.join(&name), shard, dtype)?;
        map.extend(shard.iter().map(|(k, _, _)| (k.clone(), json!(name))));
    }
    let _ = std::fs::remove_file(dir.join("model.safetensors"));
    write_json(&index_path, &json!({"metadata": {"total_size": total}, "weight_map": map}))
}

/// Read the folder back: every tensor is there with the values it should have.
fn verify(dir: &Path, decoder: &Decoder, w: &Weights, dtype: Dtype) -> Result<()> {
    let ck = Checkpoint::open(dir)?;
    for (spec, t) in decoder.params.specs.iter().zip(&w.0) {
        let (shape, back) = ck.f32(&spec.name)?;
        let ours = crate::model::weights::download(t)?;
        let same = shape == spec.shape
            && ours.iter().zip(&back).all(|(a, b)| {
                let a = if dtype == Dtype::F32 { *a } else { half::bf16::from_f32(*a).to_f32() };
                a.to_bits() == b.to_bits()
            });
        if !same {
            return Err(Error::format(dir, format!("{} does not read back as written; is the disk full or failing?", spec.name)));
        }
    }
    Ok(())
}

