//! RMSNorm on the CPU: one pass over rows forward, one backward, in parallel chunks.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::RmsNormOp;
use crate::kernels::flex::{Rows, rows_per_task, tensor};

impl RmsNormOp for Flex {
    fn rms_norm(x: FlexTensor, weight: FlexTensor, eps: f64) -> FlexTensor {
        let (x, w) = (Rows::new(x), Rows::new(weight));
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
        tensor(out, &x.shape)
    }

    /// dx = r·(g∘w) - x·r³·mean(x∘g∘w), dw = Σ_rows g∘x·r.
    fn rms_norm_backward(
        x: FlexTensor,
        weight: FlexTensor,
        grad: FlexTensor,
        eps: f64,
    ) -> (FlexTensor, FlexTensor) {
        let (x, w, g) = (Rows::new(x), Rows::new(weight), Rows::new(grad));
        let (n, eps) = (x.width(), eps as f32);
        let mut dx = vec![0f32; x.values().len()];
        let task = rows_per_task(n) * n;
        let partial: Vec<Vec<f32>> = dx
            .par_chunks_mut(task)
            .zip(x.values().par_chunks(task))
            .zip(g.values().par_chunks(task))
            .map(|((dx, x), g)| {
                let mut dw = vec![0f32; n];
                for ((dx, x), g) in
                    dx.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(g.chunks_exact(n))
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
        (tensor(dx, &x.shape), tensor(dw, &w.shape))
    }
}

fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum(x.iter().map(|v| v * v)) / x.len() as f32 + eps).sqrt()
}

/// A sum in eight lanes, which vectorises and rounds less than a running sum.
fn sum(it: impl Iterator<Item = f32>) -> f32 {
    let mut lanes = [0f32; 8];
    it.enumerate().for_each(|(i, v)| lanes[i & 7] += v);
    lanes.iter().sum()
}
