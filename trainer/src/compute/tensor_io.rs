//! Floats between the bytes of a safetensors file, host memory and the device.

use burn::prelude::*;
use burn::tensor::DType;
use safetensors::Dtype;

use crate::error::{Error, Result};

/// Little-endian floats of a safetensors dtype as fp32; none for other dtypes.
pub(crate) fn decode_floats(dtype: Dtype, data: &[u8]) -> Option<Vec<f32>> {
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

/// Copies a tensor to host memory as fp32, row by row.
pub(crate) fn download(t: &Tensor<2>) -> Result<Vec<f32>> {
    t.clone()
        .try_into_data_dtype(DType::F32)
        .map_err(|e| Error::Device(format!("reading a tensor back failed: {e}")))?
        .try_into_vec::<f32>()
        .map_err(|e| Error::Device(format!("reading a tensor back failed: {e:?}")))
}
