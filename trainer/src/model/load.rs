//! Weights from a checkpoint, or random ones, to the device.
//!
//! In: a Hugging Face folder with `model.safetensors` or shards and `model.safetensors.index.json`,
//! in f32, f16 or bf16, or packed ternary (BitNet). Out: [`Weights`] in fp32 in the order of
//! [`Params::specs`]. Every missing or unexpected tensor and every wrong shape is listed in the
//! error; nothing is skipped silently.

use std::path::Path;

use burn::prelude::*;
use burn::tensor::DType;

use super::checkpoint_file::Checkpoint;
use super::config::{ModelConfig, Quantization};
use super::params::{ParamKind, Params, Weights};
use super::ternary;
use crate::error::{Error, Result};
use dlm_datasets::rng;

/// Reads the weights of a folder into host memory, in the order of `params`.
///
/// When the folder holds packed ternary weights, `cfg.quantization` becomes
/// [`Quantization::Online`]: the master weights are the unpacked ones, scaled so that the online
/// quantiser reproduces the packed values.
pub(crate) fn read_host(
    dir: &Path,
    cfg: &mut ModelConfig,
    params: &Params,
) -> Result<Vec<Vec<f32>>> {
    let ck = Checkpoint::open(dir)?;
    let packed =
        matches!(cfg.quantization, Some(Quantization::PackedMultiply | Quantization::PackedDivide));
    let mut used: Vec<String> = Vec::new();
    let mut missing = Vec::new();
    let mut wrong = Vec::new();
    let mut out = Vec::with_capacity(params.specs.len());
    for spec in &params.specs {
        if !ck.has(&spec.name) {
            missing.push(spec.name.clone());
            out.push(Vec::new());
            continue;
        }
        used.push(spec.name.clone());
        let (shape, values) = if packed && spec.kind == ParamKind::Matrix {
            let scale = format!("{}_scale", spec.name);
            used.push(scale.clone());
            ternary::unpack(
                &ck,
                &spec.name,
                &scale,
                cfg.quantization == Some(Quantization::PackedDivide),
            )?
        } else {
            ck.f32(&spec.name)?
        };
        if shape != spec.shape {
            wrong.push(format!("{} is {:?}, expected {:?}", spec.name, shape, spec.shape));
        }
        out.push(values);
    }
    let tied_head = cfg.tie_word_embeddings.then_some("lm_head.weight");
    let unused: Vec<&str> = ck
        .names()
        .filter(|n| {
            !used.iter().any(|u| u == n)
                && Some(*n) != tied_head
                && !n.ends_with("rotary_emb.inv_freq")
        })
        .collect();
    if !missing.is_empty() || !wrong.is_empty() || !unused.is_empty() {
        let unused = unused.iter().map(|name| name.to_string()).collect();
        return Err(misfit(dir, cfg, [missing, wrong, unused]));
    }
    if packed {
        cfg.quantization = Some(Quantization::Online);
    }
    Ok(out)
}

/// The error that lists the tensors which are missing, have a wrong shape, or are not used.
fn misfit(dir: &Path, cfg: &ModelConfig, tensors: [Vec<String>; 3]) -> Error {
    const SHOWN: usize = 12;
    let mut text = format!(
        "{}: the tensors do not fit the {:?} architecture of its config.json:",
        dir.display(),
        cfg.family
    );
    let titles = ["missing", "wrong shape", "not used by this architecture"];
    for (title, items) in titles.into_iter().zip(tensors).filter(|(_, items)| !items.is_empty()) {
        let shown = items.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
        text += &format!("\n  {title} ({}): {shown}", items.len());
        if items.len() > SHOWN {
            text += &format!("; and {} more", items.len() - SHOWN);
        }
    }
    Error::Tensors(text)
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
                (0..spec.numel())
                    .map(|e| rng::normal(rng::key(&[seed, 0x1717, i as u64]), e as u64) * std)
                    .collect()
            }
        })
        .collect()
}

/// Copies host values, in the order of `params`, to the device.
pub(crate) fn upload(host: Vec<Vec<f32>>, params: &Params, device: &Device) -> Weights {
    Weights(
        host.into_iter()
            .zip(&params.specs)
            .map(|(v, s)| {
                Tensor::<2>::from_data(TensorData::new(v, s.shape2()), (device, DType::F32))
            })
            .collect(),
    )
}
