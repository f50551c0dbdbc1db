//! Attention over key ranges, on any device and dtype: scores by the device's matrix products, mask
//! and softmax in one pass over them.
//!
//! In: `q` `[B, H, S, D]`, `k`, `v` `[B, K, S, D]` and, per query, the one or two contiguous ranges
//! of keys it sees ([`Tile`]); out: `[B, H, S, D]`. There is no mask tensor, key/value heads are
//! not repeated (the heads of a group are rows of one product), statistics are fp32, and scores are
//! read and written once forward and once backward.
//!
//! Tests compare it with the reference, [`super::dense::attention`].

mod cpu;
#[cfg(feature = "gpu")]
mod gpu;

use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::prelude::*;

use super::plan::Tile;

/// Entries per query in the table: start and end of its first range, start and end of its second.
pub(crate) const COLUMNS: usize = 4;

/// The table `[B · S · 4]` of a rectangular batch with streams of `len` positions: keys count from
/// the start of the query's own row.
pub(crate) fn table(tiles: &[Tile], tokens: usize, len: usize) -> Vec<i32> {
    let mut out = vec![0; tokens * COLUMNS];
    for tile in tiles {
        for i in 0..tile.len() {
            let query = tile.query() + i;
            let row = query / len * len;
            let in_row = |start: usize| start.saturating_sub(row) as i32;
            let (prefix, own) = (tile.prefix(), tile.own());
            let (a, b) = (in_row(prefix.start), in_row(own.start));
            out[query * COLUMNS..(query + 1) * COLUMNS].copy_from_slice(&[
                a,
                a + prefix.len as i32,
                b,
                b + tile.own_seen_by(i) as i32,
            ]);
        }
    }
    out
}

/// The operations, per backend.
#[backend_extension(Autodiff, Flex, Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"))]
pub(crate) trait RangeSoftmaxOp: Backend {
    /// `softmax(scale · scores)` over the keys that a query sees, 0 elsewhere; written over the
    /// scores unless another tensor shares them.
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

impl<B: Backend + RangeSoftmaxOp, C: CheckpointStrategy> RangeSoftmaxOp for Autodiff<B, C> {
    fn range_softmax(
        scores: FloatTensor<Self>,
        ranges: IntTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: Backend + RangeSoftmaxOp> Backward<B, 1> for Step {
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
        unreachable!("gradients are not differentiated again")
    }
}

/// Attention: `q` `[B, H, S, D]`, `k`, `v` `[B, K, S, D]`, `ranges` from [`table`] → `[B, H, S,
/// D]`.
pub(crate) fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    ranges: &Tensor<1, Int>,
) -> Tensor<4> {
    let [b, h, s, d] = q.dims();
    let kv = k.dims()[1];
    let scores = q.reshape([b, kv, h / kv * s, d]).matmul(k.swap_dims(2, 3));
    let scale = 1.0 / (d as f64).sqrt();
    let p: Tensor<4> = Tensor::from_dispatch(<Dispatch as RangeSoftmaxOp>::range_softmax(
        scores.into_dispatch(),
        ranges.clone().into_dispatch(),
        scale,
    ));
    p.matmul(v).reshape([b, h, s, d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::dense;
    use crate::attention::plan::KeyRange;
    use crate::kernels::test_support::{devices, distance, leaf, random};

    /// Two rows of 24: a document of three blocks of 4 with noised copies behind it, and padding
    /// that sees itself.
    fn tiles() -> Vec<Tile> {
        let mut out = Vec::new();
        for row in [0, 24] {
            for b in 0..3 {
                let at = row + 4 * b;
                let prefix = KeyRange::new(row, 4 * b);
                out.push(match row > 0 && b == 1 {
                    true => Tile::causal(at, 4, prefix, at),
                    false => Tile::new(at, 4, prefix, KeyRange::new(at, 4)),
                });
                out.push(Tile::new(at + 12, 4, prefix, KeyRange::new(at + 12, 4)));
            }
        }
        out
    }

    #[test]
    fn equals_attention_under_the_dense_mask() {
        for device in devices() {
            let heads = |n: usize| random([2, n, 24, 8], &device);
            let (q, k, v, up) = (heads(6), heads(2), heads(2), heads(6));
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
            let leaves = || [&q, &k, &v].map(leaf);
            let ([qa, ka, va], [qb, kb, vb]) = (leaves(), leaves());
            let fast = attention(qa.clone(), ka.clone(), va.clone(), &ranges.autodiff());
            let slow = dense::attention(qb.clone(), kb.clone(), vb.clone(), &hidden.autodiff());
            assert!(distance(fast.clone().inner(), slow.clone().inner()) < 1e-5);
            let ga = (fast * up.clone().autodiff()).sum().backward();
            let gb = (slow * up.autodiff()).sum().backward();
            for (a, b) in [(qa, qb), (ka, kb), (va, vb)] {
                assert!(distance(a.grad(&ga).unwrap(), b.grad(&gb).unwrap()) < 3e-5);
            }
        }
    }
}
