//! Attention over key ranges: scores by the device's matrix products, mask and softmax in one pass
//! over them (any device and dtype).
//!
//! In: `q` `[B, H, S, D]`, `k`, `v` `[B, K, S, D]` and, per query, the one or two contiguous ranges
//! of keys it sees ([`Tile`]); out: `[B, H, S, D]`. No mask tensor exists, key/value heads are not
//! repeated (the heads of a group are rows of one product), statistics are fp32, and scores are
//! read and written once forward and once backward. The obvious form that this is tested against is
//! [`crate::kernels::ops::attention`].

use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::prelude::*;
use rayon::prelude::*;

use super::tiles::Tile;
use crate::kernels::cpu;
use crate::kernels::simd;

/// Numbers a query has in the table: start and end of its first range, start and end of its second.
pub const COLUMNS: usize = 4;

/// The table `[B · S · 4]` of a rectangular batch with streams of `len`: keys count from the start
/// of the query's own row.
pub fn table(tiles: &[Tile], tokens: usize, len: usize) -> Vec<i32> {
    let mut out = vec![0; tokens * COLUMNS];
    for t in tiles {
        for i in 0..t.len {
            let at = t.query + i;
            let row = at / len * len;
            let own = if t.causal { i + 1 } else { t.own.1 };
            let from = |start: usize| start.saturating_sub(row) as i32;
            let (a, b) = (from(t.prefix.0), from(t.own.0));
            out[at * COLUMNS..(at + 1) * COLUMNS].copy_from_slice(&[
                a,
                a + t.prefix.1 as i32,
                b,
                b + own as i32,
            ]);
        }
    }
    out
}

/// The operations, per backend.
#[backend_extension(Autodiff, Flex, Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"))]
pub trait RangeSoftmax: Backend {
    /// `softmax(scale · scores)` over the keys that a query sees, 0 elsewhere; over the scores
    /// where nobody else holds them.
    ///
    /// `scores` `[B, K, G·S, S]`: row `g · S + s` of a key/value head is query s of its head g.
    /// `ranges` `[B · S · 4]`, see [`table`].
    #[fusion(dtype = scores, shape = scores)]
    fn range_softmax(
        scores: FloatTensor<Self>,
        ranges: IntTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self>;

    /// Gradient of the scores for probabilities and their gradient: `scale · p ∘ (dp - Σ p ∘ dp)`.
    #[fusion(dtype = dp, shape = dp)]
    fn range_softmax_backward(
        p: FloatTensor<Self>,
        dp: FloatTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self>;
}

impl RangeSoftmax for Flex {
    fn range_softmax(
        scores: FloatTensor<Self>,
        ranges: IntTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        let shape = scores.layout().shape().to_vec();
        let (heads, keys) = (shape[1] * shape[2] / shape[3].max(1), shape[3].max(1));
        let ranges = cpu::ids(ranges);
        let (scale, dtype) = (scale as f32, scores.dtype());
        let mut scores = cpu::as_f32(scores);
        scores.storage_mut::<f32>().par_chunks_exact_mut(keys).enumerate().for_each(|(row, p)| {
            let query = row / (heads * keys) * keys + row % keys;
            let [a, b, c, d] = [0, 1, 2, 3].map(|i| ranges[query * COLUMNS + i]);
            // the two ranges side by side, so that one softmax does
            let mut seen: Vec<f32> = p[a..b].iter().chain(&p[c..d]).map(|s| s * scale).collect();
            simd::softmax(&mut seen);
            p.fill(0.0);
            p[a..b].copy_from_slice(&seen[..b - a]);
            p[c..d].copy_from_slice(&seen[b - a..]);
        });
        cpu::back_to(scores, dtype)
    }

    fn range_softmax_backward(
        p: FloatTensor<Self>,
        dp: FloatTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        let keys = dp.layout().shape()[3].max(1);
        let (scale, dtype) = (scale as f32, dp.dtype());
        let (p, mut dp): (FlexTensor, FlexTensor) = (cpu::as_f32(p), cpu::as_f32(dp));
        let rows = dp.storage_mut::<f32>().par_chunks_exact_mut(keys);
        rows.zip(p.storage::<f32>().par_chunks_exact(keys)).for_each(|(dp, p)| {
            let dot: f32 = p.iter().zip(dp.iter()).map(|(a, b)| a * b).sum();
            dp.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - dot) * scale);
        });
        cpu::back_to(dp, dtype)
    }
}

impl<B: Backend + RangeSoftmax, C: CheckpointStrategy> RangeSoftmax for Autodiff<B, C> {
    fn range_softmax(
        scores: FloatTensor<Self>,
        ranges: IntTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: Backend + RangeSoftmax> Backward<B, 1> for Step {
            type State = (FloatTensor<B>, f64);

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let [node] = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                let (p, scale) = ops.state;
                if let Some(n) = node {
                    grads.register::<B>(n.id, B::range_softmax_backward(p, grad, scale));
                }
            }
        }
        match Step.prepare::<C>([scores.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let p = B::range_softmax(scores.into_parts().0, ranges, scale);
                prep.finish((p.clone(), scale), p)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::range_softmax(scores.into_parts().0, ranges, scale))
            }
        }
    }

    fn range_softmax_backward(
        _p: FloatTensor<Self>,
        _dp: FloatTensor<Self>,
        _scale: f64,
    ) -> FloatTensor<Self> {
        unreachable!("the gradient of a softmax is not itself differentiated")
    }
}

/// Attention: `q` `[B, H, S, D]`, `k`, `v` `[B, K, S, D]`, `ranges` as [`table`] makes them → `[B,
/// H, S, D]`.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, ranges: &Tensor<1, Int>) -> Tensor<4> {
    let [b, h, s, d] = q.dims();
    let kv = k.dims()[1];
    let scores = q.reshape([b, kv, h / kv * s, d]).matmul(k.swap_dims(2, 3));
    let scale = 1.0 / (d as f64).sqrt();
    let p: Tensor<4> = Tensor::from_dispatch(<Dispatch as RangeSoftmax>::range_softmax(
        scores.into_dispatch(),
        ranges.clone().into_dispatch(),
        scale,
    ));
    p.matmul(v).reshape([b, h, s, d])
}

#[cfg(feature = "gpu")]
mod gpu {
    //! One cube a row of scores.

    use burn::backend::cubecl::dtype_to_storage_type;
    use burn::backend::tensor::{FloatTensor, IntTensor};
    use burn_cubecl::CubeBackend;
    use burn_cubecl::kernel::into_contiguous;
    use cubecl::prelude::*;

    use super::RangeSoftmax;
    use crate::kernels::gpu::{join_softmax, join_sums, owned};

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

    impl RangeSoftmax for CubeBackend {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::device;
    use crate::kernels::ops;
    use burn::tensor::{DType, Distribution};
    use std::io::Write as _;

    /// Two rows of 24: a document of three blocks of 4 with noised copies behind it, and padding
    /// that sees itself.
    fn tiles() -> Vec<Tile> {
        let mut out = Vec::new();
        for row in [0, 24] {
            for b in 0..3 {
                let at = row + 4 * b;
                out.push(Tile {
                    query: at,
                    len: 4,
                    prefix: (row, 4 * b),
                    own: (at, 4),
                    causal: row > 0 && b == 1,
                });
                out.push(Tile {
                    query: at + 12,
                    len: 4,
                    prefix: (row, 4 * b),
                    own: (at + 12, 4),
                    causal: false,
                });
            }
        }
        out
    }

    #[test]
    fn equals_attention_under_the_dense_mask() {
        for name in ["cpu", "cuda", "wgpu"] {
            let device = match device::choose(name) {
                Ok(d) => d.device,
                Err(e) => {
                    drop(std::io::stderr().write_all(format!("SKIP: {name}: {e}\n").as_bytes()));
                    continue;
                }
            };
            let random = |heads: usize| {
                Tensor::<4>::random(
                    [2, heads, 24, 8],
                    Distribution::Normal(0.0, 1.5),
                    (&device, DType::F32),
                )
            };
            let (q, k, v, up) = (random(6), random(2), random(2), random(6));
            let ranges = table(&tiles(), 48, 24);
            let mut hidden = vec![true; 2 * 24 * 24];
            for (query, r) in ranges.chunks(COLUMNS).enumerate() {
                for j in (r[0]..r[1]).chain(r[2]..r[3]) {
                    hidden[query * 24 + j as usize] = false;
                }
            }
            let n = ranges.len();
            let ranges = Tensor::<1, Int>::from_data(TensorData::new(ranges, [n]), &device);
            let hidden =
                Tensor::<4, Bool>::from_data(TensorData::new(hidden, [2, 1, 24, 24]), &device);
            let leaves = || [&q, &k, &v].map(|t| t.clone().autodiff().require_grad());
            let ([qa, ka, va], [qb, kb, vb]) = (leaves(), leaves());
            let fast = attention(qa.clone(), ka.clone(), va.clone(), &ranges.autodiff());
            let slow = ops::attention(qb.clone(), kb.clone(), vb.clone(), &hidden.autodiff());
            let far = |a: Tensor<4>, b: Tensor<4>| (a - b).abs().max().into_scalar::<f32>();
            assert!(far(fast.clone().inner(), slow.clone().inner()) < 1e-5, "{name}");
            let ga = (fast * up.clone().autodiff()).sum().backward();
            let gb = (slow * up.autodiff()).sum().backward();
            for (a, b) in [(qa, qb), (ka, kb), (va, vb)] {
                assert!(far(a.grad(&ga).unwrap(), b.grad(&gb).unwrap()) < 3e-5, "{name}");
            }
        }
    }
}
