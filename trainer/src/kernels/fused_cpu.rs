//! The CPU kernels of [`super::fused`]: one pass over rows in parallel chunks, fp32.
//!
//! Chunks have a fixed size and partial sums are added in order, so results do not depend on the
//! number of threads.

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, TensorData};
use rayon::prelude::*;

use super::simd;
use crate::model::config::Activation;

/// Elements a parallel task works on, about.
const CHUNK: usize = 16 * 1024;

struct RowChunks {
    tensor: FlexTensor,
    shape: Vec<usize>,
}

impl RowChunks {
    fn new(t: FlexTensor) -> Self {
        let tensor = t.to_contiguous();
        assert_eq!(tensor.dtype(), DType::F32, "fused operations compute in fp32");
        let shape = tensor.layout().shape().to_vec();
        RowChunks { tensor, shape }
    }

    fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    fn values(&self) -> &[f32] {
        self.tensor.storage()
    }
}

fn finish(values: Vec<f32>, shape: &[usize]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.to_vec()))
}

/// Rows of `width` per task.
fn rows_per_task(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum(x.iter().map(|v| v * v)) / x.len() as f32 + eps).sqrt()
}

/// A sum in eight lanes, which vectorises and loses less than a running sum.
fn sum(it: impl Iterator<Item = f32>) -> f32 {
    let mut lanes = [0f32; 8];
    it.enumerate().for_each(|(i, v)| lanes[i & 7] += v);
    lanes.iter().sum()
}

/// See [`super::fused::FusedOps::fused_rms_norm`].
pub fn rms_norm(x: FlexTensor, weight: FlexTensor, eps: f64) -> FlexTensor {
    let (x, w) = (RowChunks::new(x), RowChunks::new(weight));
    let (n, eps) = (x.width(), eps as f32);
    let mut out = vec![0f32; x.values().len()];
    let task = rows_per_task(n) * n;
    out.par_chunks_mut(task).zip(x.values().par_chunks(task)).for_each(|(o, x)| {
        for (o, x) in o.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
            let r = inverse_rms(x, eps);
            for ((o, x), w) in o.iter_mut().zip(x).zip(w.values()) {
                *o = x * r * w;
            }
        }
    });
    finish(out, &x.shape)
}

/// dx = r·(g∘w) - x·r³·mean(x∘g∘w), dw = Σ_rows g∘x·r.
pub fn rms_norm_backward(
    x: FlexTensor,
    weight: FlexTensor,
    grad: FlexTensor,
    eps: f64,
) -> (FlexTensor, FlexTensor) {
    let (x, w, g) = (RowChunks::new(x), RowChunks::new(weight), RowChunks::new(grad));
    let (n, eps) = (x.width(), eps as f32);
    let mut dx = vec![0f32; x.values().len()];
    let task = rows_per_task(n) * n;
    let partial: Vec<Vec<f32>> = dx
        .par_chunks_mut(task)
        .zip(x.values().par_chunks(task))
        .zip(g.values().par_chunks(task))
        .map(|((dx, x), g)| {
            let mut dw = vec![0f32; n];
            for ((dx, x), g) in dx.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(g.chunks_exact(n))
            {
                let r = inverse_rms(x, eps);
                let dot = sum(x.iter().zip(g).zip(w.values()).map(|((x, g), w)| x * g * w));
                let c = dot * r * r * r / n as f32;
                for i in 0..n {
                    dx[i] = r * g[i] * w.values()[i] - x[i] * c;
                    dw[i] += g[i] * x[i] * r;
                }
            }
            dw
        })
        .collect();
    let mut dw = vec![0f32; n];
    for p in partial {
        dw.iter_mut().zip(p).for_each(|(a, b)| *a += b);
    }
    (finish(dx, &x.shape), finish(dw, &w.shape))
}

/// See [`super::fused::FusedOps::fused_gate`].
pub fn gate(gate: FlexTensor, up: FlexTensor, activation: Activation) -> FlexTensor {
    let (g, u) = (RowChunks::new(gate), RowChunks::new(up));
    let mut out = vec![0f32; g.values().len()];
    out.par_chunks_mut(CHUNK)
        .zip(g.values().par_chunks(CHUNK))
        .zip(u.values().par_chunks(CHUNK))
        .for_each(|((o, g), u)| {
            simd::gate(o, g, u, activation);
        });
    finish(out, &g.shape)
}

/// Gradients of `act(gate) * up`.
pub fn gate_backward(
    gate: FlexTensor,
    up: FlexTensor,
    grad: FlexTensor,
    activation: Activation,
) -> (FlexTensor, FlexTensor) {
    let (g, u, d) = (RowChunks::new(gate), RowChunks::new(up), RowChunks::new(grad));
    let (mut dg, mut du) = (vec![0f32; g.values().len()], vec![0f32; g.values().len()]);
    dg.par_chunks_mut(CHUNK)
        .zip(du.par_chunks_mut(CHUNK))
        .zip(g.values().par_chunks(CHUNK))
        .zip(u.values().par_chunks(CHUNK))
        .zip(d.values().par_chunks(CHUNK))
        .for_each(|((((dg, du), g), u), d)| simd::gate_backward(dg, du, g, u, d, activation));
    (finish(dg, &g.shape), finish(du, &u.shape))
}

/// See [`super::fused::FusedOps::fused_rope`].
pub fn rope(x: FlexTensor, cos: FlexTensor, sin: FlexTensor, inverse: bool) -> FlexTensor {
    let (x, cos, sin) = (RowChunks::new(x), RowChunks::new(cos), RowChunks::new(sin));
    let d = x.width();
    let (half, row) = (d / 2, d * x.shape[1]);
    let sign = if inverse { -1.0 } else { 1.0 };
    let mut out = vec![0f32; x.values().len()];
    let tokens = rows_per_task(row);
    out.par_chunks_mut(tokens * row)
        .zip(x.values().par_chunks(tokens * row))
        .zip(cos.values().par_chunks(tokens * d).zip(sin.values().par_chunks(tokens * d)))
        .for_each(|((o, x), (cos, sin))| {
            for ((o, x), (c, s)) in o
                .chunks_exact_mut(row)
                .zip(x.chunks_exact(row))
                .zip(cos.chunks_exact(d).zip(sin.chunks_exact(d)))
            {
                for (o, x) in o.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                    let ((o1, o2), (x1, x2)) = (o.split_at_mut(half), x.split_at(half));
                    for i in 0..half {
                        o1[i] = x1[i] * c[i] - sign * x2[i] * s[i];
                        o2[i] = x2[i] * c[half + i] + sign * x1[i] * s[half + i];
                    }
                }
            }
        });
    finish(out, &x.shape)
}
