//! Ternary linear weights, packed four to a byte.
//!
//! In: fp32 master weights `[out, in]`. Out: bytes `[out/4, in]`, and the scale `a` that the
//! ternary values are multiplied by. Bits 2i and 2i+1 of packed row r hold one plus the value (-1,
//! 0 or 1) of output row i·(out/4) + r. This is the layout of BitNet checkpoints on the hub, as
//! transformers' `unpack_weights` reads it.

use burn::prelude::*;
use safetensors::Dtype;

use super::checkpoint_file::Checkpoint;
use crate::compute::tensor_io::download;
use crate::error::{Error, Result};
use crate::kernels::linear::ternary_codes;

/// Output rows that share a byte.
pub(crate) const PER_BYTE: usize = 4;

/// A packed ternary matrix.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Packed {
    /// Shape of `bytes`: `[out / 4, in]`.
    pub shape: [usize; 2],
    /// Codes, row by row.
    pub bytes: Vec<u8>,
    /// The online quantiser's -1, 0, 1 are multiplied by this: mean|W| of the master weights, at
    /// least 1e-5.
    pub scale: f32,
}

/// Packs master weights exactly as [`crate::kernels::linear::ternary_weight`] quantises them;
/// `name` is used in the error.
pub(crate) fn pack(name: &str, master: &Tensor<2>) -> Result<Packed> {
    let [rows, cols] = master.dims();
    check(name, rows)?;
    let (codes, scale) = ternary_codes(master.clone());
    let (codes, scale) = (download(&codes)?, download(&scale)?);
    let quarter = rows / PER_BYTE;
    let mut bytes = vec![0u8; quarter * cols];
    for (i, part) in codes.chunks(quarter * cols).enumerate() {
        for (byte, code) in bytes.iter_mut().zip(part) {
            // the quantiser yields exactly -1, 0 or 1; the training loop stops before weights are
            // NaN
            *byte |= ((*code as i8 + 1) as u8) << (2 * i);
        }
    }
    Ok(Packed { shape: [quarter, cols], bytes, scale: scale.first().map_or(1e-5, |s| 1.0 / s) })
}

/// Refuses a matrix whose number of output rows is not a multiple of [`PER_BYTE`].
pub(crate) fn check(name: &str, rows: usize) -> Result<()> {
    if rows.is_multiple_of(PER_BYTE) && rows > 0 {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "export.format=packed-ternary: {name} has {rows} output rows; packing needs a multiple of {PER_BYTE}; use export.format=hf"
    )))
}

/// Reads packed values `t` and their scale. Returns the unpacked shape and master weights `W = t ·
/// a / density`, where `a` is the dequantisation scale and the density is the share of values that
/// are not 0: then `mean|W| = a`, and the online quantiser reproduces `t · a`.
///
/// `divide`: the stored scale is `1 / a` (linear_class `bitlinear`).
pub(crate) fn unpack(
    ck: &Checkpoint,
    name: &str,
    scale_name: &str,
    divide: bool,
) -> Result<(Vec<usize>, Vec<f32>)> {
    let (path, dtype, shape, data) = ck.view(name)?;
    if dtype != Dtype::U8 || shape.len() != 2 {
        return Err(Error::format(
            path,
            format!("{name} is {dtype:?} {shape:?}; expected packed ternary U8 [out/4, in]"),
        ));
    }
    let scale = match ck.f32(scale_name)?.1.as_slice() {
        [s] if *s != 0.0 => *s,
        other => {
            return Err(Error::format(
                path,
                format!("{scale_name} holds {} values; expected one that is not zero", other.len()),
            ));
        }
    };
    let a = if divide { 1.0 / scale } else { scale };
    let (quarter, cols) = (shape[0], shape[1]);
    let mut w = Vec::with_capacity(data.len() * PER_BYTE);
    let mut nonzero = 0usize;
    for i in 0..PER_BYTE {
        for (at, byte) in data.iter().enumerate() {
            let code = (byte >> (2 * i)) & 3;
            if code == 3 {
                let (r, c) = (at / cols.max(1), at % cols.max(1));
                return Err(Error::format(
                    path,
                    format!("{name}: code 3 at packed row {r}, column {c}; expected 0, 1 or 2"),
                ));
            }
            nonzero += usize::from(code != 1);
            w.push(f32::from(code) - 1.0);
        }
    }
    let density = nonzero as f64 / w.len().max(1) as f64;
    let master = if density > 0.0 { (f64::from(a) / density) as f32 } else { 0.0 };
    w.iter_mut().for_each(|v| *v *= master);
    Ok((vec![quarter * PER_BYTE, cols], w))
}
