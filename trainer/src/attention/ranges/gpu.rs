//! The range softmax and its gradient as CubeCL kernels: one cube per row of scores.

use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use cubecl::prelude::*;

use super::RangeSoftmaxOp;
use crate::kernels::cube::{join_softmax, join_sums, owned};

/// Units that share a row.
const UNITS: usize = 128;

#[cube(launch)]
fn softmax_kernel<F: Float, I: Int>(
    scores: &mut Tensor<F>,
    ranges: &Tensor<I>,
    scale: f32,
    #[comptime] units: usize,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let keys = scores.shape(3);
    let rows = scores.shape(2);
    let row = CUBE_POS_X as usize;
    let head = CUBE_POS_Y as usize;
    let base = (head * rows + row) * keys;
    let query = (head / scores.shape(1) * keys + row % keys) * 4;
    let a = usize::cast_from(ranges[query]);
    let b = usize::cast_from(ranges[query + 1]);
    let c = usize::cast_from(ranges[query + 2]);
    let d = usize::cast_from(ranges[query + 3]);
    let unit = UNIT_POS as usize;
    let mut most_of = Shared::<[f32]>::new_slice(units);
    let mut sum_of = Shared::<[f32]>::new_slice(units);
    let mut most = f32::new(-1.0e30);
    let mut sum = f32::new(0.0);
    let first = b - a;
    let seen = first + d - c;
    let mut i = unit;
    while i < seen {
        let mut j = a + i;
        if i >= first {
            j = c + i - first;
        }
        let x = f32::cast_from(scores[base + j]) * scale;
        if x > most {
            sum = sum * (most - x).exp() + 1.0;
            most = x;
        } else {
            sum += (x - most).exp();
        }
        i += units;
    }
    most_of[unit] = most;
    sum_of[unit] = sum;
    join_softmax(&mut most_of, &mut sum_of, unit, units);
    let most = most_of[0];
    let part = 1.0 / sum_of[0];
    let mut j = unit;
    while j < keys {
        let mut p = f32::new(0.0);
        if (j >= a && j < b) || (j >= c && j < d) {
            p = (f32::cast_from(scores[base + j]) * scale - most).exp() * part;
        }
        scores[base + j] = F::cast_from(p);
        j += units;
    }
}

#[cube(launch)]
fn backward_kernel<F: Float>(
    p: &Tensor<F>,
    dp: &mut Tensor<F>,
    scale: f32,
    #[comptime] units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let keys = dp.shape(3);
    let base = (CUBE_POS_Y as usize * dp.shape(2) + CUBE_POS_X as usize) * keys;
    let unit = UNIT_POS as usize;
    let mut dot_of = Shared::<[f32]>::new_slice(units);
    let mut dot = f32::new(0.0);
    let mut j = unit;
    while j < keys {
        dot += f32::cast_from(p[base + j]) * f32::cast_from(dp[base + j]);
        j += units;
    }
    dot_of[unit] = dot;
    join_sums(&mut dot_of, unit, units);
    let dot = dot_of[0];
    let mut j = unit;
    while j < keys {
        let d = f32::cast_from(p[base + j]) * (f32::cast_from(dp[base + j]) - dot) * scale;
        dp[base + j] = F::cast_from(d);
        j += units;
    }
}

impl RangeSoftmaxOp for CubeBackend {
    fn range_softmax(
        scores: FloatTensor<Self>,
        ranges: IntTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        let (scores, ranges) = (owned(scores), into_contiguous(ranges));
        let shape = scores.meta.shape();
        let (heads, rows) = (shape[0] * shape[1], shape[2]);
        let client = scores.client.clone();
        let dtypes = [dtype_to_storage_type(scores.dtype), dtype_to_storage_type(ranges.dtype)];
        softmax_kernel::launch(
            &client,
            CubeCount::Static(rows as u32, heads as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            scores.clone().into_tensor_arg(),
            ranges.into_tensor_arg(),
            scale as f32,
            UNITS,
            dtypes,
        );
        scores
    }

    fn range_softmax_backward(
        p: FloatTensor<Self>,
        dp: FloatTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        let (p, dp) = (into_contiguous(p), owned(dp));
        let shape = dp.meta.shape();
        let (heads, rows) = (shape[0] * shape[1], shape[2]);
        let client = dp.client.clone();
        let dtype = dtype_to_storage_type(dp.dtype);
        backward_kernel::launch(
            &client,
            CubeCount::Static(rows as u32, heads as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            p.into_tensor_arg(),
            dp.clone().into_tensor_arg(),
            scale as f32,
            UNITS,
            dtype,
        );
        dp
    }
}
