//! Matrices on Burn's tensors as the CPU's matrix product reads them best in decoding.

use burn::prelude::*;
use burn::tensor::DType;

use crate::compute::tensor_io::download;
use crate::error::Result;

/// The same matrix with contiguous columns. A decoding pass has few rows, and in this form the
/// CPU's matrix product does not pack the matrix anew for each of them.
pub(super) fn column_major(tensor: &Tensor<2>, device: &Device) -> Result<Tensor<2>> {
    const TILE: usize = 32;
    let [rows, columns] = tensor.dims();
    let values = download(tensor)?;
    let mut transposed = vec![0f32; values.len()];
    for top in (0..rows).step_by(TILE) {
        for left in (0..columns).step_by(TILE) {
            for row in top..rows.min(top + TILE) {
                for column in left..columns.min(left + TILE) {
                    transposed[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    Ok(Tensor::from_data(TensorData::new(transposed, [columns, rows]), (device, DType::F32))
        .transpose())
}
