//! The CPU forms of [`super::Kernels`]: rows in parallel, results independent of the number of
//! threads.

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Element, TensorData};
use half::{bf16, f16};
use rayon::prelude::*;

use super::{AdamwStep, RowGroups};
use crate::kernels::simd;

/// Elements a parallel task of [`adamw`] works on.
const CHUNK: usize = 16 * 1024;

/// A tensor whose storage is its values in order, no more and no less.
fn plain<E: Element + bytemuck::Pod>(t: FlexTensor) -> FlexTensor {
    let t = t.to_contiguous();
    match t.as_slice::<E>() {
        Some(values) if values.len() != t.storage::<E>().len() => {
            let shape = t.layout().shape().to_vec();
            FlexTensor::from_data(TensorData::new(values.to_vec(), shape))
        }
        _ => t,
    }
}

/// Ids, whatever integer they are stored as.
pub(crate) fn ids(t: FlexTensor) -> Vec<usize> {
    match t.dtype() {
        DType::I64 => plain::<i64>(t).storage::<i64>().iter().map(|i| *i as usize).collect(),
        _ => plain::<i32>(t).storage::<i32>().iter().map(|i| *i as usize).collect(),
    }
}

/// See [`super::cross_entropy`].
pub fn cross_entropy(
    logits: FlexTensor,
    targets: FlexTensor,
    scale: f64,
) -> (FlexTensor, FlexTensor) {
    let targets = ids(targets);
    match logits.dtype() {
        DType::BF16 => halves::<bf16>(logits, &targets, scale as f32, bf16::to_f32, bf16::from_f32),
        DType::F16 => halves::<f16>(logits, &targets, scale as f32, f16::to_f32, f16::from_f32),
        _ => {
            let mut logits = plain::<f32>(logits);
            let width = logits.layout().shape()[1].max(1);
            let mut losses = vec![0f32; targets.len()];
            let rows = logits.storage_mut::<f32>().par_chunks_exact_mut(width);
            rows.zip(&mut losses)
                .zip(&targets)
                .for_each(|((row, loss), target)| *loss = one_row(row, *target, scale as f32));
            (FlexTensor::from_data(TensorData::new(losses, [targets.len()])), logits)
        }
    }
}

/// The loss of a row of logits, which become its gradient.
fn one_row(row: &mut [f32], target: usize, scale: f32) -> f32 {
    let (logit, mut log_sum) = (row[target], 0.0);
    simd::scaled_softmax(row, scale, &mut log_sum);
    row[target] -= scale;
    log_sum - logit
}

fn halves<E: Element + bytemuck::Pod + Send + Sync>(
    logits: FlexTensor,
    targets: &[usize],
    scale: f32,
    get: fn(E) -> f32,
    put: fn(f32) -> E,
) -> (FlexTensor, FlexTensor) {
    let mut logits = plain::<E>(logits);
    let width = logits.layout().shape()[1].max(1);
    let mut losses = vec![0f32; targets.len()];
    let rows = logits.storage_mut::<E>().par_chunks_exact_mut(width);
    rows.zip(&mut losses).zip(targets).for_each_init(
        Vec::new,
        |scratch: &mut Vec<f32>, ((row, loss), target)| {
            scratch.clear();
            scratch.extend(row.iter().map(|v| get(*v)));
            *loss = one_row(scratch, *target, scale);
            row.iter_mut().zip(scratch).for_each(|(v, s)| *v = put(*s));
        },
    );
    (FlexTensor::from_data(TensorData::new(losses, [targets.len()])), logits)
}

/// See [`super::add_rows`].
pub fn add_rows(table: FlexTensor, source: FlexTensor, plan: &RowGroups) -> FlexTensor {
    let source = as_f32(source);
    let mut table = plain::<f32>(table);
    let width = table.layout().shape()[1].max(1);
    let values: &[f32] = source.storage();
    // Rows of the table that something goes to, in order; each is one task.
    let mut wanted = plan.rows.iter().enumerate().peekable();
    let mut tasks: Vec<(usize, &mut [f32])> = Vec::with_capacity(plan.rows.len());
    for (r, row) in table.storage_mut::<f32>().chunks_exact_mut(width).enumerate() {
        match wanted.peek() {
            Some(&(u, &to)) if to as usize == r => {
                tasks.push((u, row));
                wanted.next();
            }
            Some(_) => {}
            None => break,
        }
    }
    tasks.into_par_iter().with_min_len(16).for_each(|(u, row)| {
        let (from, to) = (
            plan.pieces[plan.firsts[u] as usize] as usize,
            plan.pieces[plan.firsts[u + 1] as usize] as usize,
        );
        for &i in &plan.order[from..to] {
            let i = i as usize;
            row.iter_mut().zip(&values[i * width..(i + 1) * width]).for_each(|(a, b)| *a += b);
        }
    });
    table
}

/// The tensor in fp32, contiguous.
pub(crate) fn as_f32(t: FlexTensor) -> FlexTensor {
    let shape = t.layout().shape().to_vec();
    let values: Vec<f32> = match t.dtype() {
        DType::BF16 => plain::<bf16>(t).storage::<bf16>().iter().map(|v| v.to_f32()).collect(),
        DType::F16 => plain::<f16>(t).storage::<f16>().iter().map(|v| v.to_f32()).collect(),
        _ => return plain::<f32>(t),
    };
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// A contiguous fp32 tensor in `dtype`.
pub(crate) fn back_to(t: FlexTensor, dtype: DType) -> FlexTensor {
    let shape = t.layout().shape().to_vec();
    let values = t.storage::<f32>().iter();
    match dtype {
        DType::BF16 => FlexTensor::from_data(TensorData::new(
            values.map(|v| bf16::from_f32(*v)).collect::<Vec<_>>(),
            shape,
        )),
        DType::F16 => FlexTensor::from_data(TensorData::new(
            values.map(|v| f16::from_f32(*v)).collect::<Vec<_>>(),
            shape,
        )),
        _ => t,
    }
}

/// See [`super::adamw`].
pub fn adamw(
    w: FlexTensor,
    m: FlexTensor,
    v: FlexTensor,
    g: FlexTensor,
    s: AdamwStep,
) -> (FlexTensor, FlexTensor, FlexTensor) {
    let (mut w, mut m, mut v, g) =
        (plain::<f32>(w), plain::<f32>(m), plain::<f32>(v), plain::<f32>(g));
    {
        let (w, m, v) = (w.storage_mut::<f32>(), m.storage_mut::<f32>(), v.storage_mut::<f32>());
        let moments = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
        let each = w.par_chunks_mut(CHUNK).zip(moments).zip(g.storage::<f32>().par_chunks(CHUNK));
        each.for_each(|((w, (m, v)), g)| simd::adamw(w, m, v, g, s));
    }
    (w, m, v)
}
