//! safetensors files of our own: written from device tensors, read back to the device.
//!
//! In: tensors with names, shapes and a stored type (fp32, bf16, or bytes as they are). Out: one
//! file, written atomically; at most one tensor is in host memory at a time. Reading back gives
//! fp32 tensors.
#![allow(unsafe_code)] // memory-mapping a file is unsafe in Rust; see the SAFETY comment

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use burn::prelude::*;
use burn::tensor::DType;
use dlm_datasets::fs;
use dlm_datasets::hash::HashWriter;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;

use crate::compute::mapped_files;
use crate::compute::tensor_io::{decode_floats, download};
use crate::error::{Error, Result};
use crate::model::checkpoint_file::check_header;

/// Bytes converted and written at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// One tensor of a file.
pub(crate) struct TensorEntry {
    pub name: String,
    /// Type in the file.
    pub dtype: Dtype,
    /// Shape in the file.
    pub shape: Vec<usize>,
    pub content: TensorContent,
}

/// Where a tensor's bytes come from.
pub(crate) enum TensorContent {
    /// A device tensor, downloaded when its turn comes and stored as F32 or BF16.
    Floats(Tensor<2>),
    /// A device tensor that is computed when its turn comes.
    Computed(Box<dyn Fn() -> Tensor<2>>),
    /// The bytes as stored.
    Bytes(Vec<u8>),
}

impl TensorEntry {
    /// A device tensor to be stored in `dtype` (F32 or BF16).
    pub(crate) fn floats(name: String, dtype: Dtype, shape: Vec<usize>, values: Tensor<2>) -> Self {
        TensorEntry { name, dtype, shape, content: TensorContent::Floats(values) }
    }

    /// The values of floats.
    pub(crate) fn values(&self) -> Result<Vec<f32>> {
        match &self.content {
            TensorContent::Floats(tensor) => download(tensor),
            TensorContent::Computed(compute) => download(&compute()),
            TensorContent::Bytes(_) => Ok(Vec::new()),
        }
    }

    /// Length in the file, bytes.
    pub(crate) fn byte_len(&self) -> usize {
        match &self.content {
            TensorContent::Floats(_) | TensorContent::Computed(_) => {
                self.shape.iter().product::<usize>() * if self.dtype == Dtype::F32 { 4 } else { 2 }
            }
            TensorContent::Bytes(bytes) => bytes.len(),
        }
    }
}

/// Write a file atomically.
pub(crate) fn write(path: &Path, entries: &[TensorEntry]) -> Result<()> {
    let partial = fs::partial_path(path);
    let mut out = create(&partial)?;
    write_to(&mut out, &partial, entries)?;
    finish(out, &partial, path)
}

/// Write a file atomically; returns the sha256 of its bytes, computed while writing.
pub(crate) fn write_hashed(path: &Path, entries: &[TensorEntry]) -> Result<String> {
    let partial = fs::partial_path(path);
    let mut out = HashWriter::new(create(&partial)?);
    write_to(&mut out, &partial, entries)?;
    let (out, _, sha256) = out.finish();
    finish(out, &partial, path)?;
    Ok(sha256)
}

fn create(path: &Path) -> Result<BufWriter<File>> {
    Ok(BufWriter::with_capacity(CHUNK_BYTES, fs::create_partial(path)?))
}

/// Flush what was written to `partial` and give it its final name.
fn finish(out: BufWriter<File>, partial: &Path, path: &Path) -> Result<()> {
    let file = out.into_inner().map_err(|e| Error::io(partial, "writing", e.into_error()))?;
    Ok(fs::finish_partial(file, partial, path)?)
}

/// Write header and tensors to `out`; `path` is named in errors.
fn write_to(out: &mut impl Write, path: &Path, entries: &[TensorEntry]) -> Result<()> {
    let header = header(entries).map_err(|e| Error::format(path, e.to_string()))?;
    let failed = |e: io::Error| Error::io(path, "writing", e);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    out.write_all(&header).map_err(failed)?;
    for entry in entries {
        let TensorEntry { name, dtype, shape, content } = entry;
        if let TensorContent::Bytes(bytes) = content {
            out.write_all(bytes).map_err(failed)?;
            continue;
        }
        let values = entry.values()?;
        if values.len() != shape.iter().product::<usize>() {
            return Err(Error::format(
                path,
                format!("{name} has {} values for shape {shape:?}", values.len()),
            ));
        }
        write_floats(out, &values, *dtype).map_err(failed)?;
    }
    Ok(())
}

/// The JSON header, padded so that the data starts at a multiple of 8 bytes.
fn header(entries: &[TensorEntry]) -> serde_json::Result<Vec<u8>> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut start = 0usize;
    for entry in entries {
        let end = start + entry.byte_len();
        header.insert(
            entry.name.clone(),
            json!({"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, end]}),
        );
        start = end;
    }
    let mut text = serde_json::to_vec(&header)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok(text)
}

/// Write fp32 values as F32 or BF16, little-endian.
fn write_floats(out: &mut impl Write, values: &[f32], dtype: Dtype) -> io::Result<()> {
    let mut buffer = vec![0u8; CHUNK_BYTES];
    let width = if dtype == Dtype::F32 { 4 } else { 2 };
    for chunk in values.chunks(CHUNK_BYTES / width) {
        let bytes = &mut buffer[..chunk.len() * width];
        for (to, v) in bytes.chunks_exact_mut(width).zip(chunk) {
            if dtype == Dtype::F32 {
                to.copy_from_slice(&v.to_le_bytes());
            } else {
                to.copy_from_slice(&half::bf16::from_f32(*v).to_le_bytes());
            }
        }
        out.write_all(bytes)?;
    }
    Ok(())
}

/// Read tensors of a file to the device as fp32. `expected` gives name, shape in the file and shape
/// on the device; every one of them must be there with that shape.
pub(crate) fn read_f32(
    path: &Path,
    expected: impl Iterator<Item = (String, Vec<usize>, [usize; 2])>,
    device: &Device,
) -> Result<Vec<Tensor<2>>> {
    let file = fs::open_file(path).map_err(|e| Error::io(path, "opening", e))?;
    // SAFETY: the mapping is read-only, and the file is a checkpoint that this program wrote and
    // never changes in place: checkpoints are only renamed or removed.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "mapping", e))?;
    check_header(path, &map)?;
    let tensors = SafeTensors::deserialize(&map)
        .map_err(|e| Error::format(path, format!("not a whole safetensors file: {e}")))?;
    let read = expected
        .map(|(name, shape, device_shape)| {
            let view = tensors.tensor(&name).map_err(|_| {
                Error::format(
                    path,
                    format!("tensor {name} is missing; was the run configured differently?"),
                )
            })?;
            if view.shape() != shape {
                return Err(Error::format(
                    path,
                    format!("{name} has shape {:?}, expected {shape:?}", view.shape()),
                ));
            }
            let values = decode_floats(view.dtype(), view.data())
                .ok_or_else(|| Error::format(path, format!("{name} is {:?}", view.dtype())))?;
            Ok(Tensor::<2>::from_data(TensorData::new(values, device_shape), (device, DType::F32)))
        })
        .collect();
    mapped_files::check(path)?;
    read
}

#[cfg(test)]
mod tests {
    use dlm_datasets::hash;

    use super::*;

    /// Counts calls of `write`.
    #[derive(Default)]
    struct CountingWriter {
        bytes: Vec<u8>,
        calls: usize,
    }

    impl Write for CountingWriter {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            self.bytes.extend_from_slice(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn values(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 - 7.0) * 0.37).collect()
    }

    #[test]
    fn floats_are_written_in_large_pieces_and_with_the_right_bytes() {
        let values = values(3 * CHUNK_BYTES / 4 + 5);
        let (mut fp32, mut bf16) = (CountingWriter::default(), CountingWriter::default());
        write_floats(&mut fp32, &values, Dtype::F32).unwrap();
        write_floats(&mut bf16, &values, Dtype::BF16).unwrap();
        let expected: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert!(fp32.bytes == expected);
        let expected: Vec<u8> =
            values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
        assert!(bf16.bytes == expected);
        assert!(fp32.calls <= 4 && bf16.calls <= 2, "{} and {}", fp32.calls, bf16.calls);
    }

    #[test]
    fn a_file_reads_back_and_its_hash_is_that_of_its_bytes() {
        let device = Device::flex();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let tensor = Tensor::<2>::from_data(TensorData::new(values(12), [3, 4]), &device);
        let entries = [
            TensorEntry::floats("a".into(), Dtype::F32, vec![3, 4], tensor.clone()),
            TensorEntry::floats("b".into(), Dtype::BF16, vec![12], tensor),
        ];
        let sha256 = write_hashed(&path, &entries).unwrap();
        assert_eq!(sha256, hash::sha256_file(&path).unwrap());
        assert!(!fs::partial_path(&path).exists());
        let expected = [("a".to_string(), vec![3, 4], [3, 4]), ("b".into(), vec![12], [1, 12])];
        let read = read_f32(&path, expected.into_iter(), &device).unwrap();
        assert_eq!(download(&read[0]).unwrap(), values(12));
        let rounded: Vec<f32> =
            values(12).iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
        assert_eq!(download(&read[1]).unwrap(), rounded);
        let misshapen = [("a".to_string(), vec![4, 3], [4, 3])];
        let error = read_f32(&path, misshapen.into_iter(), &device).unwrap_err().to_string();
        assert!(error.contains("[3, 4], expected [4, 3]"), "{error}");
    }
}
