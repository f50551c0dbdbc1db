//! Weights from a checkpoint, or random ones, to the device.
//!
//! In: a Hugging Face folder with `model.safetensors` or shards and `model.safetensors.index.json`,
//! in f32, f16 or bf16, or packed ternary (BitNet). Out: [`Weights`] in fp32 in the order of
//! [`Params::specs`]. Every missing or unexpected tensor and every wrong shape is listed in the
//! error; nothing is skipped silently.

use std::collections::BTreeSet;

use burn::prelude::*;
use burn::tensor::DType;
use rayon::prelude::*;

use super::checkpoint_file::Checkpoint;
use super::config::{ModelConfig, Quantization};
use super::misfit::{self, Misfit};
use super::params::{ParamKind, ParamSpec, Params, Weights};
use super::ternary;
use crate::error::{Error, Result};
use crate::kernels::cast::cast_to;
use crate::kernels::linear::ternary_weight;
use dlm_datasets::rng;

const EMBEDDINGS: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Gives the output head a table of its own where the checkpoint has one that differs from the
/// embedding table, although `config.json` says that the two are tied: transformers 5 does not tie
/// them then.
pub(crate) fn settle_head(ck: &Checkpoint, cfg: &mut ModelConfig) -> Result<()> {
    let Some(embeddings) = stored_name(ck, EMBEDDINGS, false) else { return Ok(()) };
    if !cfg.tie_word_embeddings || !ck.has(HEAD) {
        return Ok(());
    }
    let ((_, dtype, shape, bytes), head) = (ck.view(&embeddings)?, ck.view(HEAD)?);
    if (dtype, &shape, bytes) == (head.1, &head.2, head.3)
        || (shape == head.2 && ck.f32(&embeddings)?.1 == ck.f32(HEAD)?.1)
    {
        return Ok(());
    }
    cfg.untie();
    cfg.warnings.push(format!(
        "tie_word_embeddings is true, but {HEAD} differs from {embeddings}: they are not tied, as in transformers 5, and tie_word_embeddings is false from here on"
    ));
    Ok(())
}

/// The name under which a checkpoint holds a parameter: its own, that without `model.` (checkpoints
/// of models without a head), or with `tied` that of the output head for the embedding table.
fn stored_name(ck: &Checkpoint, name: &str, tied: bool) -> Option<String> {
    let without_prefix = name.strip_prefix("model.");
    let head = (tied && name == EMBEDDINGS).then_some(HEAD);
    [Some(name), without_prefix, head].into_iter().flatten().find(|n| ck.has(n)).map(String::from)
}

/// Reads the weights of a checkpoint into host memory, in the order of `params`.
///
/// When it holds packed ternary weights, `cfg.quantization` becomes [`Quantization::Online`]: the
/// master weights are the unpacked ones, scaled so that the online quantiser reproduces the packed
/// values.
pub(crate) fn read_host(
    ck: &Checkpoint,
    cfg: &mut ModelConfig,
    params: &Params,
) -> Result<Vec<Vec<f32>>> {
    let packed =
        matches!(cfg.quantization, Some(Quantization::PackedMultiply | Quantization::PackedDivide));
    let mut used: BTreeSet<String> = BTreeSet::new();
    let mut misfit = Misfit::default();
    let stored: Vec<Option<String>> = params
        .specs
        .iter()
        .map(|spec| stored_name(ck, &spec.name, cfg.tie_word_embeddings))
        .collect();
    for (spec, name) in params.specs.iter().zip(&stored) {
        match name {
            None => misfit.missing.push(spec.name.clone()),
            Some(name) => {
                if packed && spec.may_quantize {
                    used.insert(format!("{name}_scale"));
                }
                used.insert(name.clone());
            }
        }
    }
    if cfg.tie_word_embeddings {
        used.insert(HEAD.into());
    }
    misfit.unused = ck
        .names()
        .filter(|name| !used.contains(*name) && !name.ends_with("rotary_emb.inv_freq"))
        .map(String::from)
        .collect();
    if !misfit.is_empty() {
        return Err(misfit.error(ck, cfg));
    }
    let mut out = Vec::with_capacity(params.specs.len());
    for (spec, name) in params.specs.iter().zip(stored.into_iter().flatten()) {
        let (shape, values) = if packed && spec.may_quantize {
            let divide = cfg.quantization == Some(Quantization::PackedDivide);
            ternary::unpack(ck, &name, &format!("{name}_scale"), divide)?
        } else {
            ck.f32(&name)?
        };
        if shape != spec.shape {
            misfit.wrong.push(format!("{name} is {shape:?}, expected {:?}", spec.shape));
        } else if let Some(problem) = misfit::not_finite(&name, &shape, &values) {
            return Err(Error::format(ck.view(&name)?.0, problem));
        }
        out.push(values);
    }
    ck.check_whole()?;
    if !misfit.is_empty() {
        return Err(misfit.error(ck, cfg));
    }
    if packed {
        cfg.quantization = Some(Quantization::Online);
    }
    Ok(out)
}

/// Random initialisation: normal(0, `initializer_range`) for matrices and embeddings, ones for
/// norms, zeros for biases.
///
/// Values come from a counter-based generator by (seed, parameter, element), so they are the same
/// on every device.
pub(crate) fn random_host(cfg: &ModelConfig, params: &Params, seed: u64) -> Vec<Vec<f32>> {
    params
        .specs
        .iter()
        .enumerate()
        .map(|(i, spec)| match spec.kind {
            ParamKind::Norm => vec![1.0; spec.numel()],
            ParamKind::Bias => vec![0.0; spec.numel()],
            ParamKind::Matrix | ParamKind::Embedding => {
                let std = cfg.initializer_range as f32;
                let key = rng::key(&[seed, 0x1717, i as u64]);
                (0..spec.numel())
                    .into_par_iter()
                    .map(|e| rng::normal(key, e as u64) * std)
                    .collect()
            }
        })
        .collect()
}

/// Copies host values, in the order of `params`, to the device, in fp32.
pub(crate) fn upload(host: Vec<Vec<f32>>, params: &Params, device: &Device) -> Weights {
    let specs = params.specs.iter().chain(params.lora.iter().flat_map(|lora| &lora.specs));
    Weights(host.into_iter().zip(specs).map(|(v, s)| on_device(v, s, device)).collect())
}

/// As [`upload`], with the model's own matrices and tables as a forward pass in `dtype` needs them
/// while they are not trained: in that dtype, and ternary where `quantized` says that the layers
/// compute BitLinear. What adapters add stays in fp32, and so do norms and biases.
pub(crate) fn upload_frozen(
    host: Vec<Vec<f32>>,
    params: &Params,
    quantized: bool,
    dtype: DType,
    device: &Device,
) -> Weights {
    let mut host = host.into_iter();
    let mut weights = Vec::with_capacity(params.tensors());
    for (values, spec) in host.by_ref().take(params.specs.len()).zip(&params.specs) {
        let tensor = on_device(values, spec, device);
        weights.push(match spec.kind {
            ParamKind::Matrix if quantized && spec.may_quantize => {
                cast_to(ternary_weight(tensor), dtype)
            }
            ParamKind::Matrix | ParamKind::Embedding => cast_to(tensor, dtype),
            ParamKind::Norm | ParamKind::Bias => tensor,
        });
    }
    let added = host.zip(params.trained_specs()).map(|(v, s)| on_device(v, s, device));
    weights.extend(added);
    Weights(weights)
}

fn on_device(values: Vec<f32>, spec: &ParamSpec, device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, spec.shape2()), (device, DType::F32))
}
