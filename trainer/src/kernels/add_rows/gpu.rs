//! Adding rows to rows of a table as two CubeCL kernels: sums of pieces, then sums of those.

use std::sync::Arc;

use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::{AddRowsOp, RowGroups};
use crate::kernels::cube::owned;

/// One unit per (piece, column): the sum of the piece's source rows.
#[cube(launch)]
fn piece_sums_kernel<F: Float, I: Int>(
    source: &Tensor<F>,
    index: &Tensor<I>,
    sums: &mut Tensor<f32>,
    rows: usize,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    if ABSOLUTE_POS >= sums.len() {
        terminate!();
    }
    let width = source.shape(1);
    let piece = ABSOLUTE_POS / width;
    let column = ABSOLUTE_POS % width;
    let from = usize::cast_from(index[rows + piece]);
    let to = usize::cast_from(index[rows + piece + 1]);
    let mut sum = f32::new(0.0);
    for at in from..to {
        sum += f32::cast_from(source[usize::cast_from(index[at]) * width + column]);
    }
    sums[ABSOLUTE_POS] = sum;
}

/// One unit per (destination, column): the sums of its pieces are added to the table.
#[cube(launch)]
fn add_pieces_kernel<I: Int>(
    sums: &Tensor<f32>,
    index: &Tensor<I>,
    table: &mut Tensor<f32>,
    firsts: usize,
    destinations: usize,
    #[define(I)] _dtype: ElemType,
) {
    let width = table.shape(1);
    if ABSOLUTE_POS >= destinations * width {
        terminate!();
    }
    let u = ABSOLUTE_POS / width;
    let column = ABSOLUTE_POS % width;
    let from = usize::cast_from(index[firsts + u]);
    let to = usize::cast_from(index[firsts + u + 1]);
    let mut sum = f32::new(0.0);
    for piece in from..to {
        sum += sums[piece * width + column];
    }
    table[usize::cast_from(index[firsts + destinations + 1 + u]) * width + column] += sum;
}

impl AddRowsOp for CubeBackend {
    fn add_rows(
        table: FloatTensor<Self>,
        source: FloatTensor<Self>,
        index: IntTensor<Self>,
        groups: Arc<RowGroups>,
    ) -> FloatTensor<Self> {
        let (table, source, index) =
            (owned(table), into_contiguous(source), into_contiguous(index));
        let (width, destinations) = (source.meta.shape()[1], groups.rows.len());
        let pieces = groups.pieces.len() - 1;
        if destinations * width == 0 {
            return table;
        }
        let client = table.client.clone();
        let sums = empty_device_contiguous_dtype(
            client.clone(),
            table.device.clone(),
            Shape::new([pieces, width]),
            DType::F32,
        );
        let (float, int) =
            (dtype_to_storage_type(source.dtype), dtype_to_storage_type(index.dtype));
        let dim = CubeDim::new(&client, pieces * width);
        piece_sums_kernel::launch(
            &client,
            calculate_cube_count_elemwise(&client, pieces * width, dim),
            dim,
            source.into_tensor_arg(),
            index.clone().into_tensor_arg(),
            sums.clone().into_tensor_arg(),
            groups.order.len(),
            [float, int],
        );
        let dim = CubeDim::new(&client, destinations * width);
        add_pieces_kernel::launch(
            &client,
            calculate_cube_count_elemwise(&client, destinations * width, dim),
            dim,
            sums.into_tensor_arg(),
            index.into_tensor_arg(),
            table.clone().into_tensor_arg(),
            groups.order.len() + groups.pieces.len(),
            destinations,
            int,
        );
        table
    }
}
