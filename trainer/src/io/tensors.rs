//! Device tensors ⇄ safetensors files of our own, fp32 or bf16, one tensor in host memory at a
//! time.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use burn::prelude::*;
use burn::tensor::DType;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;

use crate::compute::tensor_io::{decode_floats, download};
use crate::error::{Error, Result};
use dlm_datasets::fs;

/// Name, shape in the file, values.
pub type Named = (String, Vec<usize>, Tensor<2>);

/// Write tensors as fp32, atomically.
pub fn write_f32(path: &Path, tensors: &[Named]) -> Result<()> {
    write(path, tensors, Dtype::F32)
}

/// One tensor of a file.
pub struct TensorEntry {
    /// Name in the file.
    pub name: String,
    /// Type in the file.
    pub dtype: Dtype,
    /// Shape in the file.
    pub shape: Vec<usize>,
    /// Its values.
    pub content: TensorContent,
}

/// Where a tensor's bytes come from.
pub enum TensorContent {
    /// A device tensor, downloaded when its turn comes and stored as F32 or BF16.
    Floats(Tensor<2>),
    /// The bytes as stored.
    Bytes(Vec<u8>),
}

impl TensorEntry {
    /// Bytes in the file.
    pub fn len(&self) -> usize {
        match &self.content {
            TensorContent::Floats(_) => {
                self.shape.iter().product::<usize>() * if self.dtype == Dtype::F32 { 4 } else { 2 }
            }
            TensorContent::Bytes(b) => b.len(),
        }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Write tensors in `dtype` (F32 or BF16), atomically. Tensors are downloaded one after another.
pub fn write(path: &Path, tensors: &[Named], dtype: Dtype) -> Result<()> {
    let entry = |(name, shape, t): &Named| TensorEntry {
        name: name.clone(),
        dtype,
        shape: shape.clone(),
        content: TensorContent::Floats(t.clone()),
    };
    write_entries(path, &tensors.iter().map(entry).collect::<Vec<_>>())
}

/// Write tensors of several types, atomically.
pub fn write_entries(path: &Path, entries: &[TensorEntry]) -> Result<()> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut at = 0usize;
    for e in entries {
        let end = at + e.len();
        header.insert(
            e.name.clone(),
            json!({"dtype": e.dtype, "shape": e.shape, "data_offsets": [at, end]}),
        );
        at = end;
    }
    let mut text = serde_json::to_vec(&header).map_err(|e| Error::format(path, e.to_string()))?;
    // the data starts at a multiple of 8, as the format asks
    text.resize(text.len().next_multiple_of(8), b' ');
    let tmp = fs::partial_path(path);
    let file = File::create(&tmp).map_err(|e| Error::io(&tmp, "creating", e))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let fail = |e| Error::io(&tmp, "writing", e);
    out.write_all(&(text.len() as u64).to_le_bytes()).map_err(fail)?;
    out.write_all(&text).map_err(fail)?;
    for TensorEntry { name, dtype, shape, content } in entries {
        let values = match content {
            TensorContent::Bytes(bytes) => {
                out.write_all(bytes).map_err(fail)?;
                continue;
            }
            TensorContent::Floats(t) => download(t)?,
        };
        if values.len() != shape.iter().product::<usize>() {
            return Err(Error::format(
                path,
                format!("{name} has {} values for shape {shape:?}", values.len()),
            ));
        }
        for v in values {
            if *dtype == Dtype::F32 {
                out.write_all(&v.to_le_bytes()).map_err(fail)?;
            } else {
                out.write_all(&half::bf16::from_f32(v).to_le_bytes()).map_err(fail)?;
            }
        }
    }
    let file = out.into_inner().map_err(|e| fail(e.into_error()))?;
    file.sync_all().map_err(|e| Error::io(&tmp, "flushing", e))?;
    drop(file);
    Ok(fs::rename(&tmp, path)?)
}

/// Read the named tensors of a file to the device as fp32; names and shapes must be there exactly.
pub fn read_f32(
    path: &Path,
    wanted: impl Iterator<Item = (String, Vec<usize>, [usize; 2])>,
    device: &Device,
) -> Result<Vec<Tensor<2>>> {
    let file = File::open(path).map_err(|e| Error::io(path, "opening", e))?;
    // SAFETY: read-only mapping of a file that this program wrote and nobody else changes.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "mapping", e))?;
    let st = SafeTensors::deserialize(&map)
        .map_err(|e| Error::format(path, format!("not a whole safetensors file: {e}")))?;
    wanted
        .map(|(name, shape, shape2)| {
            let v = st.tensor(&name).map_err(|_| {
                Error::format(
                    path,
                    format!("tensor {name} is missing; was the run configured differently?"),
                )
            })?;
            if v.shape() != shape {
                return Err(Error::format(
                    path,
                    format!("{name} has shape {:?}, expected {shape:?}", v.shape()),
                ));
            }
            let values = decode_floats(v.dtype(), v.data())
                .ok_or_else(|| Error::format(path, format!("{name} is {:?}", v.dtype())))?;
            Ok(Tensor::<2>::from_data(TensorData::new(values, shape2), (device, DType::F32)))
        })
        .collect()
}
