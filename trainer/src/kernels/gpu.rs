//! The GPU forms of [`super::Kernels`], in CubeCL: one source for CUDA and for what wgpu drives.
//!
//! Statistics and sums are fp32 whatever the tensors' dtype, and every sum is taken by one owner in
//! one order: no atomics, so the same launch gives the same bits. No plane (warp) operations, so
//! nothing depends on a device's plane size.

use std::sync::Arc;

use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::{AdamwStep, Kernels, RowGroups};

/// Units that share a row of logits.
const UNITS: usize = 256;

/// The tensor, contiguous and with nobody else holding it.
pub(crate) fn owned(t: CubeTensor) -> CubeTensor {
    let t = into_contiguous(t);
    if t.can_mut() { t } else { t.copy() }
}

/// Adds up what the units left in `part`; the sum then stands in entry 0. `units` is a power of
/// two.
#[cube]
pub(crate) fn join_sums(part: &mut Shared<[f32]>, unit: usize, #[comptime] units: usize) {
    sync_cube();
    let mut half = (units / 2).runtime();
    while half > 0 {
        if unit < half {
            part[unit] += part[unit + half];
        }
        sync_cube();
        half /= 2;
    }
}

/// Joins the units' maxima and their sums of exponentials below those; the whole row's then stand
/// in entry 0. `units` is a power of two.
#[cube]
pub(crate) fn join_softmax(
    most_of: &mut Shared<[f32]>,
    sum_of: &mut Shared<[f32]>,
    unit: usize,
    #[comptime] units: usize,
) {
    sync_cube();
    let mut half = (units / 2).runtime();
    while half > 0 {
        if unit < half {
            let a = most_of[unit];
            let b = most_of[unit + half];
            let top = max(a, b);
            sum_of[unit] = sum_of[unit] * (a - top).exp() + sum_of[unit + half] * (b - top).exp();
            most_of[unit] = top;
        }
        sync_cube();
        half /= 2;
    }
}

/// One cube a row: the logarithm of the sum of exponentials, then the loss, then the gradient over
/// the logits.
#[cube(launch)]
fn cross_entropy_kernel<F: Float, I: Int>(
    logits: &mut Tensor<F>,
    targets: &Tensor<I>,
    losses: &mut Tensor<f32>,
    scale: f32,
    #[comptime] units: usize,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let row = CUBE_POS;
    let width = logits.shape(1);
    let base = row * width;
    let unit = UNIT_POS as usize;
    let mut most_of = Shared::<[f32]>::new_slice(units);
    let mut sum_of = Shared::<[f32]>::new_slice(units);

    // each unit's own maximum and sum, in one pass
    let mut most = f32::new(-1.0e30);
    let mut sum = f32::new(0.0);
    let mut i = unit;
    while i < width {
        let x = f32::cast_from(logits[base + i]);
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
    let sum = sum_of[0];
    let target = usize::cast_from(targets[row]);
    if unit == 0 {
        losses[row] = most + sum.ln() - f32::cast_from(logits[base + target]);
    }
    // the target's logit is read before anyone writes
    sync_cube();
    let mut i = unit;
    while i < width {
        let mut d = (f32::cast_from(logits[base + i]) - most).exp() / sum * scale;
        if i == target {
            d -= scale;
        }
        logits[base + i] = F::cast_from(d);
        i += units;
    }
}

/// One unit a (piece, column): the sum of the piece's source rows.
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

/// One unit a (destination, column): the sums of its pieces are added to the table.
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

/// One unit an element.
#[cube(launch)]
fn adamw_kernel(
    w: &mut Tensor<f32>,
    m: &mut Tensor<f32>,
    v: &mut Tensor<f32>,
    g: &Tensor<f32>,
    keep: f32,
    lr: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    clip: f32,
    correction1: f32,
    correction2: f32,
) {
    if ABSOLUTE_POS >= w.len() {
        terminate!();
    }
    let g = g[ABSOLUTE_POS] * clip;
    let first = m[ABSOLUTE_POS] * beta1 + g * (1.0 - beta1);
    let second = v[ABSOLUTE_POS] * beta2 + g * g * (1.0 - beta2);
    m[ABSOLUTE_POS] = first;
    v[ABSOLUTE_POS] = second;
    w[ABSOLUTE_POS] =
        w[ABSOLUTE_POS] * keep - first / correction1 / ((second / correction2).sqrt() + eps) * lr;
}

impl Kernels for CubeBackend {
    fn cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        scale: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (logits, targets) = (owned(logits), into_contiguous(targets));
        let rows = logits.meta.shape()[0];
        let (client, device) = (logits.client.clone(), logits.device.clone());
        let losses =
            empty_device_contiguous_dtype(client.clone(), device, Shape::new([rows]), DType::F32);
        let dtypes = [dtype_to_storage_type(logits.dtype), dtype_to_storage_type(targets.dtype)];
        let units = UNITS.min(client.properties().hardware.max_cube_dim.0 as usize);
        cross_entropy_kernel::launch(
            &client,
            CubeCount::Static(rows as u32, 1, 1),
            CubeDim::new_1d(units as u32),
            logits.clone().into_tensor_arg(),
            targets.into_tensor_arg(),
            losses.clone().into_tensor_arg(),
            scale as f32,
            units,
            dtypes,
        );
        (losses, logits)
    }

    fn add_rows(
        table: FloatTensor<Self>,
        source: FloatTensor<Self>,
        index: IntTensor<Self>,
        plan: Arc<RowGroups>,
    ) -> FloatTensor<Self> {
        let (table, source, index) =
            (owned(table), into_contiguous(source), into_contiguous(index));
        let (width, destinations) = (source.meta.shape()[1], plan.rows.len());
        let pieces = plan.pieces.len() - 1;
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
            plan.order.len(),
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
            plan.order.len() + plan.pieces.len(),
            destinations,
            int,
        );
        table
    }

    fn adamw(
        w: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        g: FloatTensor<Self>,
        s: AdamwStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (w, m, v, g) = (owned(w), owned(m), owned(v), into_contiguous(g));
        let (client, n) = (w.client.clone(), w.meta.num_elements());
        let dim = CubeDim::new(&client, n);
        adamw_kernel::launch(
            &client,
            calculate_cube_count_elemwise(&client, n, dim),
            dim,
            w.clone().into_tensor_arg(),
            m.clone().into_tensor_arg(),
            v.clone().into_tensor_arg(),
            g.into_tensor_arg(),
            1.0 - s.lr * s.decay,
            s.lr,
            s.beta1,
            s.beta2,
            s.eps,
            s.clip,
            s.correction1,
            s.correction2,
        );
        (w, m, v)
    }
}
