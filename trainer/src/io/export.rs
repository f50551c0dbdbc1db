//! Writing a trained model as a Hugging Face folder that other tools load.
//!
//! In: decoder, weights, the source's raw config, the dataset's tokenizer. Out: `config.json` (the
//! source's, plus `bd_size` and `mask_token_id`), `model.safetensors` or shards with an index,
//! `tokenizer.json`, `tokenizer_config.json`, `generation_config.json`, and at the end
//! `dlm_config.json`: a folder without it is not a whole export. Weights are stored in `dtype`
//! (fp32 or bf16); with `packed-ternary` BitLinear's weights are `u8 [out/4, in]`, each with a
//! `weight_scale` f32 `[1]`, as transformers reads BitNet checkpoints.

use std::path::{Path, PathBuf};

use burn::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::compute::tensor_io::download;
use crate::config::ExportFormat;
use crate::error::{Error, Result};
use crate::io::json as json_file;
use crate::io::load_model::HostModel;
use crate::io::safetensors_file::{self, TensorContent, TensorEntry};
use crate::io::source::tokenizer_files;
use crate::model::config::Family;
use crate::model::{Checkpoint, Decoder, ParamKind, Weights, ternary};
use dlm_datasets::fs;

/// Largest shard, bytes; the default of transformers.
const SHARD_BYTES: usize = 5_000_000_000;

/// Everything in an export besides the tensors.
pub(crate) struct ExportInfo {
    /// Tokens per block.
    pub bd_size: usize,
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

/// Refuse a format that this model cannot be written in. Also called before training, so that a
/// long run does not end with this error.
pub(crate) fn check(decoder: &Decoder, format: ExportFormat) -> Result<()> {
    let cfg = &decoder.cfg;
    match format {
        ExportFormat::Hf => Ok(()),
        ExportFormat::FastDllm if cfg.family == Family::Qwen2 => Ok(()),
        ExportFormat::FastDllm => Err(Error::Usage(format!(
            "export.format=fast-dllm is the published Fast_dLLM_Qwen architecture, which is Qwen2's; this model is {:?}; use export.format=hf",
            cfg.family
        ))),
        ExportFormat::PackedTernary if cfg.quantization.is_none() => Err(Error::Usage(format!(
            "export.format=packed-ternary stores BitLinear's ternary weights; this {:?} model has no BitLinear (no quantization_config in its config.json): use export.format=hf, or train with conversion.bitlinear=on",
            cfg.family
        ))),
        ExportFormat::PackedTernary => {
            let mut matrices = decoder.params.specs.iter().filter(|s| s.may_quantize);
            matrices.try_for_each(|s| ternary::check(&s.name, s.shape[0]))
        }
    }
}

/// Write the folder.
pub(crate) fn export(
    dir: &Path,
    decoder: &Decoder,
    w: &Weights,
    dtype: Dtype,
    format: ExportFormat,
    info: &ExportInfo,
) -> Result<()> {
    check(decoder, format)?;
    fs::create_dir(dir)?;
    let marker = dir.join("dlm_config.json");
    if marker.exists() {
        std::fs::remove_file(&marker)
            .map_err(|e| Error::io(&marker, "removing the old export's marker", e))?;
        fs::sync_parent(&marker)?;
    }
    write_weights(dir, decoder, w, dtype, format)?;
    write_configs(dir, decoder, dtype, format, info)?;
    for name in tokenizer_files(&info.tokenizer) {
        let Some(file) = name.file_name() else {
            continue;
        };
        let bytes =
            std::fs::read(&name).map_err(|e| Error::io(&name, "reading the tokenizer", e))?;
        fs::write_atomic(&dir.join(file), &bytes)?;
    }
    let mut record = json!({
        "bd_size": info.bd_size,
        "mask_token": info.mask_token,
        "mask_token_id": info.mask_token_id,
    });
    if let (Some(r), Some(more)) = (record.as_object_mut(), info.record.as_object()) {
        r.extend(more.iter().map(|(k, v)| (k.clone(), v.clone())));
    }
    verify(dir, decoder, w, dtype, format)?;
    json_file::write(&marker, &record)
}

/// Write config.json and generation_config.json.
fn write_configs(
    dir: &Path,
    decoder: &Decoder,
    dtype: Dtype,
    format: ExportFormat,
    info: &ExportInfo,
) -> Result<()> {
    let generation = match &info.source_folder {
        Some(dir) => json_file::read_if_present(&dir.join("generation_config.json"), "valid JSON")?,
        None => None,
    };
    let generation = generation.unwrap_or_else(|| json!({}));
    let eos = eos_ids(info, &generation);
    let config = model_config(decoder, dtype, format, info, &eos);
    json_file::write(&dir.join("config.json"), &config)?;
    let generation = generation_config(generation, info, &eos);
    json_file::write(&dir.join("generation_config.json"), &generation)
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
        o.insert("bd_size".into(), json!(info.bd_size));
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
        if format == ExportFormat::FastDllm {
            fast_dllm_keys(o);
        }
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

/// The keys by which the published Fast-dLLM v2 code recognises its models; `conplemenrary_mask` is
/// spelt as in that code.
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
    let layers = config.get("num_hidden_layers").and_then(Value::as_u64).unwrap_or(0) as usize;
    config.entry("layer_types").or_insert_with(|| json!(vec!["full_attention"; layers]));
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
fn linear_class(decoder: &Decoder) -> &'static str {
    if decoder.params.specs.iter().any(|s| s.kind == ParamKind::Bias) {
        "bitlinear"
    } else {
        "autobitlinear"
    }
}

/// The packed matrix and its `weight_scale` as they are stored.
fn packed_entries(decoder: &Decoder, name: &str, master: &Tensor<2>) -> Result<[TensorEntry; 2]> {
    let p = ternary::pack(name, master)?;
    let scale = if linear_class(decoder) == "bitlinear" { 1.0 / p.scale } else { p.scale };
    Ok([
        TensorEntry {
            name: name.to_string(),
            dtype: Dtype::U8,
            shape: p.shape.to_vec(),
            content: TensorContent::Bytes(p.bytes),
        },
        TensorEntry {
            name: format!("{name}_scale"),
            dtype: Dtype::F32,
            shape: vec![1],
            content: TensorContent::Bytes(scale.to_le_bytes().to_vec()),
        },
    ])
}

/// Write one file, or shards with an index.
fn write_weights(
    dir: &Path,
    decoder: &Decoder,
    w: &Weights,
    dtype: Dtype,
    format: ExportFormat,
) -> Result<()> {
    let mut shards: Vec<Vec<TensorEntry>> = vec![Vec::new()];
    let (mut shard_bytes, mut total_bytes) = (0usize, 0usize);
    let mut add = |entry: TensorEntry| {
        let bytes = entry.byte_len();
        if shard_bytes + bytes > SHARD_BYTES && shard_bytes > 0 {
            shards.push(Vec::new());
            shard_bytes = 0;
        }
        shard_bytes += bytes;
        total_bytes += bytes;
        if let Some(last) = shards.last_mut() {
            last.push(entry);
        }
    };
    for (spec, t) in decoder.params.specs.iter().zip(&w.0) {
        if format == ExportFormat::PackedTernary && spec.may_quantize {
            packed_entries(decoder, &spec.name, t)?.into_iter().for_each(&mut add);
        } else {
            add(TensorEntry::floats(spec.name.clone(), dtype, spec.shape.clone(), t.clone()));
        }
    }
    let n = shards.len();
    let index_path = dir.join("model.safetensors.index.json");
    if n == 1 {
        safetensors_file::write(&dir.join("model.safetensors"), &shards[0])?;
        let _ = std::fs::remove_file(&index_path);
        return Ok(());
    }
    let mut map = serde_json::Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{n:05}.safetensors", i + 1);
        safetensors_file::write(&dir.join(&name), shard)?;
        map.extend(shard.iter().map(|e| (e.name.clone(), json!(name))));
    }
    let _ = std::fs::remove_file(dir.join("model.safetensors"));
    json_file::write(
        &index_path,
        &json!({"metadata": {"total_size": total_bytes}, "weight_map": map}),
    )
}

/// Read the folder back and compare every tensor with the weights.
fn verify(
    dir: &Path,
    decoder: &Decoder,
    w: &Weights,
    dtype: Dtype,
    format: ExportFormat,
) -> Result<()> {
    let damaged = |name: &str| {
        Error::format(
            dir,
            format!("{name} does not read back as written; is the disk full or failing?"),
        )
    };
    let ck = Checkpoint::open(dir)?;
    for (spec, t) in decoder.params.specs.iter().zip(&w.0) {
        if format == ExportFormat::PackedTernary && spec.may_quantize {
            for entry in packed_entries(decoder, &spec.name, t)? {
                let (_, dtype, shape, data) = ck.view(&entry.name)?;
                let same = matches!(&entry.content, TensorContent::Bytes(b) if b == data)
                    && dtype == entry.dtype
                    && shape == entry.shape;
                if !same {
                    return Err(damaged(&entry.name));
                }
            }
            continue;
        }
        let (shape, back) = ck.f32(&spec.name)?;
        let values = download(t)?;
        let same = shape == spec.shape
            && values.iter().zip(&back).all(|(a, b)| {
                let a = if dtype == Dtype::F32 { *a } else { half::bf16::from_f32(*a).to_f32() };
                a.to_bits() == b.to_bits()
            });
        if !same {
            return Err(damaged(&spec.name));
        }
    }
    if format == ExportFormat::PackedTernary {
        // the loader, which follows the new config.json, must find and unpack every tensor
        HostModel::read(dir)?;
    }
    Ok(())
}
