//! Weights between safetensors files and the device.
//!
//! In: a Hugging Face folder with `model.safetensors` or shards and `model.safetensors.index.json`,
//! in f32, f16 or bf16, or packed ternary (BitNet). Out: [`Weights`] in fp32 in the order of
//! [`Params::specs`]. Every missing, unexpected or misshapen tensor is listed; nothing is silently
//! skipped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::prelude::*;
use burn::tensor::DType;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::config::{ModelConfig, Quantization};
use super::params::{ParamKind, Params, Weights};
use super::ternary;
use crate::error::{Error, Result};
use dlm_datasets::rng;

/// A checkpoint folder, mapped; tensors are converted when asked for.
pub struct Checkpoint {
    files: Vec<(PathBuf, Mmap)>,
    /// tensor name → index into `files`
    index: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Map the safetensors of a folder: one file, or the shards that the index names.
    pub fn open(dir: &Path) -> Result<Self> {
        let single = dir.join("model.safetensors");
        let index_file = dir.join("model.safetensors.index.json");
        let paths: Vec<PathBuf> = if single.is_file() {
            vec![single]
        } else if index_file.is_file() {
            let text = std::fs::read_to_string(&index_file)
                .map_err(|e| Error::io(&index_file, "reading the shard index", e))?;
            let json: serde_json::Value = serde_json::from_str(&text)
                .map_err(|e| Error::format(&index_file, format!("not valid JSON: {e}")))?;
            let map = json
                .get("weight_map")
                .and_then(|m| m.as_object())
                .ok_or_else(|| Error::format(&index_file, "no weight_map object"))?;
            let mut names: Vec<&str> = map.values().filter_map(|v| v.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            for n in &names {
                if n.contains('/') || n.contains("..") {
                    return Err(Error::format(
                        &index_file,
                        format!("shard name {n:?} is not a plain file name"),
                    ));
                }
            }
            names.iter().map(|n| dir.join(n)).collect()
        } else {
            return Err(Error::format(
                dir,
                "no model.safetensors and no model.safetensors.index.json; expected a Hugging Face model folder (convert .bin checkpoints with transformers' save_pretrained first)",
            ));
        };
        let mut files = Vec::new();
        let mut index = BTreeMap::new();
        for path in paths {
            let file = std::fs::File::open(&path)
                .map_err(|e| Error::io(&path, "opening the weights", e))?;
            // SAFETY: the mapping is read-only; a file truncated by someone else while mapped is
            // outside our control.
            let map = unsafe { Mmap::map(&file) }
                .map_err(|e| Error::io(&path, "mapping the weights", e))?;
            let st = SafeTensors::deserialize(&map).map_err(|e| {
                Error::format(
                    &path,
                    format!("not a whole safetensors file: {e}; is the download complete?"),
                )
            })?;
            for name in st.names() {
                index.insert(name.to_string(), files.len());
            }
            files.push((path, map));
        }
        Ok(Checkpoint { files, index })
    }

    /// Tensor names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// Whether a tensor is there.
    pub fn has(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// Shape and values in fp32 of a floating-point tensor.
    pub fn f32(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let (path, dtype, shape, data) = self.view(name)?;
        let values = decode_floats(dtype, data).ok_or_else(|| {
            Error::format(path, format!("{name} has dtype {dtype:?}; expected F32, F16 or BF16"))
        })?;
        Ok((shape, values))
    }

    /// Dtype, shape and bytes of a tensor, with the file it is in.
    pub fn view(&self, name: &str) -> Result<(&Path, Dtype, Vec<usize>, &[u8])> {
        let i = *self
            .index
            .get(name)
            .ok_or_else(|| Error::Tensors(format!("tensor {name} is missing")))?;
        let (path, map) = &self.files[i];
        let st = SafeTensors::deserialize(map).map_err(|e| Error::format(path, e.to_string()))?;
        let v = st.tensor(name).map_err(|e| Error::format(path, format!("{name}: {e}")))?;
        Ok((path, v.dtype(), v.shape().to_vec(), v.data()))
    }
}

/// Little-endian floats of a dtype as fp32; `None` for other dtypes.
pub fn decode_floats(dtype: Dtype, data: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        Dtype::F32 => {
            data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        Dtype::F16 => {
            data.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
        Dtype::BF16 => {
            data.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
        _ => return None,
    })
}

/// Read the weights of `cfg` from a folder into host memory, in the order of `params`.
///
/// `cfg.quantization` is turned to [`Quantization::Online`] when the folder holds packed ternary
/// weights: the masters are the unpacked weights, scaled so that the online quantiser gives the
/// packed values back.
pub fn read_host(dir: &Path, cfg: &mut ModelConfig, params: &Params) -> Result<Vec<Vec<f32>>> {
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
        let mut text = format!(
            "{}: the tensors do not fit the {:?} architecture of its config.json:",
            dir.display(),
            cfg.family
        );
        let mut list = |title: &str, items: Vec<String>| {
            if !items.is_empty() {
                let shown = items.iter().take(12).cloned().collect::<Vec<_>>().join("; ");
                let more = items.len().saturating_sub(12);
                text += &format!(
                    "\n  {title} ({}): {shown}{}",
                    items.len(),
                    if more > 0 { format!("; and {more} more") } else { String::new() }
                );
            }
        };
        list("missing", missing);
        list("wrong shape", wrong);
        list("not used by this architecture", unused.iter().map(|s| s.to_string()).collect());
        return Err(Error::Tensors(text));
    }
    if packed {
        cfg.quantization = Some(Quantization::Online);
    }
    Ok(out)
}

/// Random initialisation: normal(0, `initializer_range`) for matrices and embeddings, ones for
/// norms, zeros for biases.
///
/// Drawn from a counter-based generator by (seed, parameter, element), so it is the same on every
/// device.
pub fn random_host(cfg: &ModelConfig, params: &Params, seed: u64) -> Vec<Vec<f32>> {
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

/// Upload host values in the order of `params`.
pub fn upload(host: Vec<Vec<f32>>, params: &Params, device: &Device) -> Weights {
    Weights(
        host.into_iter()
            .zip(&params.specs)
            .map(|(v, s)| {
                Tensor::<2>::from_data(TensorData::new(v, s.shape2()), (device, DType::F32))
            })
            .collect(),
    )
}

/// Download a parameter as fp32.
pub fn download(t: &Tensor<2>) -> Result<Vec<f32>> {
    t.clone()
        .try_into_data_dtype(DType::F32)
        .map_err(|e| Error::Device(format!("reading a tensor back failed: {e}")))?
        .try_into_vec::<f32>()
        .map_err(|e| Error::Device(format!("reading a tensor back failed: {e:?}")))
}
