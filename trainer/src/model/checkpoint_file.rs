//! The safetensors files of a Hugging Face folder, mapped into memory.
#![allow(unsafe_code, reason = "memory-mapped files")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use crate::compute::tensor_io::decode_floats;
use crate::error::{Error, Result};

/// The tensors of a checkpoint folder; they are read when asked for.
pub(crate) struct Checkpoint {
    files: Vec<(PathBuf, Mmap)>,
    /// Tensor name → index into `files`.
    index: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Maps the safetensors of a folder: one file, or the shards that the index names.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
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
            // SAFETY: the mapping is read-only and lives as long as `Checkpoint`. As with every
            // mapped file, other processes must not change or truncate it meanwhile; model folders
            // are written once.
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

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// Shape and values of a floating-point tensor, in fp32.
    pub(crate) fn f32(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let (path, dtype, shape, data) = self.view(name)?;
        let values = decode_floats(dtype, data).ok_or_else(|| {
            Error::format(path, format!("{name} has dtype {dtype:?}; expected F32, F16 or BF16"))
        })?;
        Ok((shape, values))
    }

    /// The file, dtype, shape and bytes of a tensor.
    pub(crate) fn view(&self, name: &str) -> Result<(&Path, Dtype, Vec<usize>, &[u8])> {
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
