//! Writing a trained model as a Hugging Face folder that other tools load.
//!
//! In: decoder, weights, the source's raw config, the dataset's tokenizer. Out: `config.json` (the
//! source's, plus `bd_size` and `mask_token_id`), `model.safetensors` or shards with an index,
//! `tokenizer.json`, `tokenizer_config.json`, `generation_config.json`, and at the end
//! `dlm_config.json`: a folder without it is not a whole export. Weights are stored in `dtype`
//! (fp32 or bf16); with `packed-ternary` BitLinear's weights are `u8 [out/4, in]`, each with a
//! `weight_scale` f32 `[1]`, as transformers reads BitNet checkpoints. `fast-dllm` and `sdar` have
//! the config of those architectures and a modeling file (`engine_formats.rs`). Of a run that
//! trained adapters either the merged model is written, or the adapter alone (`adapter.rs`).

use std::path::Path;

use burn::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::config::{ExportFormat, LoraExport};
use crate::error::{Error, Result};
use crate::io::adapter;
use crate::io::description::{ExportInfo, check_tokenizer_folder, linear_class, write_small_files};
use crate::io::engine_formats::{Trained, added_tensors, check, write_modeling_file};
use crate::io::json as json_file;
use crate::io::load_model::HostModel;
use crate::io::safetensors_file::{self, TensorContent, TensorEntry};
use crate::io::ternary_check::{self, TernaryCheck};
use crate::model::{Checkpoint, Decoder, Weights, ternary};
use dlm_datasets::fs;

/// Says, while an export is under way, which run it is of, so that the same command may finish it.
pub(crate) const UNFINISHED: &str = ".unfinished_export.json";
/// Largest shard, bytes; the default of transformers.
const SHARD_BYTES: usize = 5_000_000_000;

/// Refuse what cannot be written of a model with adapters. Also called before training, so that a
/// long run does not end with this error.
pub(crate) fn check_adapters(decoder: &Decoder, lora: LoraExport) -> Result<()> {
    let cfg = &decoder.cfg;
    let adapted = |i: &usize| decoder.params.adapter_of(*i).is_some();
    let ternary = (0..decoder.params.specs.len())
        .filter(|i| cfg.quantization.is_some() && decoder.params.specs[*i].may_quantize)
        .find(adapted);
    if let (Some(i), LoraExport::Merged) = (ternary, lora) {
        return Err(Error::Usage(format!(
            "export.lora=merged: {} is ternary (BitLinear), and ternary weights plus an adapter are not ternary any more; use export.lora=adapter",
            decoder.params.specs[i].name
        )));
    }
    let is_gated = decoder.params.lora.as_ref().is_some_and(|lora| lora.shape.gated);
    if is_gated && lora == LoraExport::Merged {
        return Err(Error::Usage(
            "export.lora=merged: the adapters act on mask tokens alone (conversion.objective=lossless) and cannot be added to the weights; use export.lora=adapter".into(),
        ));
    }
    Ok(())
}

/// What a folder is written as.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExportAs {
    /// Of the stored weights; adapters are always in fp32.
    pub dtype: Dtype,
    pub format: ExportFormat,
    pub lora: LoraExport,
}

/// Write the folder. For a whole model with BitLinear: how the ternary values that it holds compare
/// with the trained ones.
pub(crate) fn export(
    dir: &Path,
    decoder: &Decoder,
    w: &Weights,
    written: ExportAs,
    info: &ExportInfo,
) -> Result<Option<TernaryCheck>> {
    let ExportAs { dtype, format, lora } = written;
    let objective = info.record.get("objective").and_then(Value::as_str);
    let block_diffusion = objective.is_none_or(|name| name == "block_diffusion");
    check(decoder, format, Trained { mask_token_id: info.mask_token_id, block_diffusion })?;
    check_adapters(decoder, lora)?;
    check_tokenizer_folder(&info.tokenizer)?;
    fs::create_dir(dir)?;
    let unfinished = dir.join(UNFINISHED);
    let identity = ["data_fingerprint", "source_checkpoint"];
    let identity = identity.map(|key| (key, info.record.get(key).cloned().unwrap_or_default()));
    json_file::write(&unfinished, &serde_json::Value::from_iter(identity))?;
    let marker = dir.join("dlm_config.json");
    if marker.exists() {
        std::fs::remove_file(&marker)
            .map_err(|e| Error::io(&marker, "removing the old export's marker", e))?;
        fs::sync_parent(&marker)?;
    }
    remove_other_kind(dir, lora)?;
    match lora {
        LoraExport::Adapter => adapter::write(dir, decoder, w, info)?,
        LoraExport::Merged => {
            write_weights(dir, decoder, w, dtype, format)?;
            write_small_files(dir, decoder, dtype, format, info)?;
            write_modeling_file(dir, format)?;
            verify(dir, decoder, w, dtype, format)?;
        }
    }
    let mut record = json!({
        "bd_size": info.bd_size,
        "mask_token": info.mask_token,
        "mask_token_id": info.mask_token_id,
    });
    if let (None, Some(record)) = (info.bd_size, record.as_object_mut()) {
        record.remove("bd_size");
    }
    if let (Some(r), false) = (record.as_object_mut(), decoder.cfg.has_token_shift()) {
        r.insert("token_shift".into(), json!(false));
    }
    if let (Some(r), Some(more)) = (record.as_object_mut(), info.record.as_object()) {
        r.extend(more.iter().map(|(k, v)| (k.clone(), v.clone())));
    }
    let ternary = match (decoder.cfg.quantization, lora) {
        (Some(_), LoraExport::Merged) => Some(ternary_check::compare(dir, decoder, w, format)?),
        _ => None,
    };
    json_file::write(&marker, &record)?;
    std::fs::remove_file(&unfinished).map_err(|e| Error::io(&unfinished, "removing", e))?;
    Ok(ternary)
}

/// Remove what an earlier export of the other kind left: a folder is a model or an adapter.
fn remove_other_kind(dir: &Path, lora: LoraExport) -> Result<()> {
    let of_model = |name: &str| {
        name == "config.json" || name.starts_with("model") && name.contains(".safetensors")
    };
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io(dir, "listing", e))?;
    for entry in entries {
        let path = entry.map_err(|e| Error::io(dir, "listing", e))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let other = match lora {
            LoraExport::Adapter => of_model(name),
            LoraExport::Merged => [adapter::CONFIG, adapter::WEIGHTS].contains(&name),
        };
        if other {
            std::fs::remove_file(&path).map_err(|e| Error::io(&path, "removing", e))?;
        }
    }
    Ok(())
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

/// A weight as it is stored, with its adapter added.
fn weight_entry(decoder: &Decoder, w: &Weights, i: usize, dtype: Dtype) -> TensorEntry {
    let spec = &decoder.params.specs[i];
    let content = match w.merge(&decoder.params, i) {
        Some(merge) => TensorContent::Computed(Box::new(merge)),
        None => TensorContent::Floats(w[i].clone()),
    };
    TensorEntry { name: spec.name.clone(), dtype, shape: spec.shape.clone(), content }
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
    for (i, (spec, t)) in decoder.params.specs.iter().zip(&w.0).enumerate() {
        if format == ExportFormat::PackedTernary && spec.may_quantize {
            packed_entries(decoder, &spec.name, t)?.into_iter().for_each(&mut add);
        } else {
            add(weight_entry(decoder, w, i, dtype));
        }
    }
    added_tensors(decoder, dtype, format).into_iter().for_each(&mut add);
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
    for (i, (spec, t)) in decoder.params.specs.iter().zip(&w.0).enumerate() {
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
        let values = weight_entry(decoder, w, i, dtype).values()?;
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
    for added in added_tensors(decoder, dtype, format) {
        let (_, dtype, shape, data) = ck.view(&added.name)?;
        let is_zero = data.iter().all(|byte| *byte == 0);
        if !(is_zero && dtype == added.dtype && shape == added.shape) {
            return Err(damaged(&added.name));
        }
    }
    Ok(())
}
