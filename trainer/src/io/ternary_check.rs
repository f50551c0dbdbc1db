//! Whether the ternary values that readers of an export compute are those that were trained.
//!
//! In: an exported folder, the master weights it was written from. Out: how many of BitLinear's
//! values differ. Rounding masters to bf16 moves some of them across the border between two values;
//! packed weights and fp32 masters keep all.

use std::path::Path;

use burn::prelude::*;

use crate::compute::tensor_io::download;
use crate::config::ExportFormat;
use crate::error::{Error, Result};
use crate::io::description::linear_class;
use crate::kernels::linear::ternary_codes;
use crate::model::{Checkpoint, Decoder, Weights, ternary};

/// Ternary values of an export beside those of its master weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TernaryCheck {
    /// Matrices of BitLinear layers.
    pub matrices: usize,
    /// Their values.
    pub values: usize,
    /// Those that are another one of -1, 0 and 1 when the folder is read back and quantised.
    pub changed: usize,
}

impl std::fmt::Display for TernaryCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let TernaryCheck { matrices, values, changed } = *self;
        match changed {
            0 => write!(
                f,
                "BitLinear: read back and quantised, all {values} ternary values of {matrices} matrices are those that were trained"
            ),
            _ => write!(
                f,
                "warning: BitLinear: read back and quantised, {changed} of {values} ternary values of {matrices} matrices are not those that were trained, since the weights are stored in bf16; export.dtype=fp32 and export.format=packed-ternary keep all of them"
            ),
        }
    }
}

/// Compare the folder with the weights it was written from; one matrix at a time is in memory.
///
/// # Errors
/// [`Error::Format`] for tensors that cannot be read, and for packed values that differ.
pub(crate) fn compare(
    dir: &Path,
    decoder: &Decoder,
    w: &Weights,
    format: ExportFormat,
) -> Result<TernaryCheck> {
    let checkpoint = Checkpoint::open(dir)?;
    let divide = linear_class(decoder) == "bitlinear";
    let mut check = TernaryCheck::default();
    let quantised = decoder.params.specs.iter().zip(&w.0).filter(|(spec, _)| spec.may_quantize);
    for (spec, master) in quantised {
        let (shape, values) = match format {
            ExportFormat::PackedTernary => {
                let scale = format!("{}_scale", spec.name);
                ternary::unpack(&checkpoint, &spec.name, &scale, divide)?
            }
            _ => checkpoint.f32(&spec.name)?,
        };
        let [rows, cols] = master.dims();
        if shape != [rows, cols] {
            return Err(Error::format(
                dir,
                format!("{} reads back as {shape:?}; expected {:?}", spec.name, [rows, cols]),
            ));
        }
        let back = Tensor::<2>::from_data(TensorData::new(values, [rows, cols]), &master.device());
        let (trained, stored) = (codes(master.clone())?, codes(back)?);
        let changed = trained.iter().zip(&stored).filter(|(a, b)| a != b).count();
        if changed > 0 && format == ExportFormat::PackedTernary {
            return Err(Error::format(
                dir,
                format!(
                    "{changed} packed values of {} are not those that were trained; is the disk failing?",
                    spec.name
                ),
            ));
        }
        check.matrices += 1;
        check.values += trained.len();
        check.changed += changed;
    }
    Ok(check)
}

/// -1, 0 and 1 of a matrix, as the quantiser of the forward pass computes them.
fn codes(matrix: Tensor<2>) -> Result<Vec<f32>> {
    download(&ternary_codes(matrix).0)
}
