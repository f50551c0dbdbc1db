//! Attention that follows the block structure: nothing is materialised beyond one tile's scores
//! (CPU).
//!
//! In: `q` `[T, H, D]`, `k`, `v` `[T, K, D]` fp32 and a [`TilePlan`]; out: `[T, H, D]`. A tile is a
//! run of queries that see the same one or two contiguous key ranges, so no mask is needed, hidden
//! pairs cost nothing and key/value heads are never repeated. Backward recomputes the tile's
//! probabilities. Tiles of one group share keys and are worked off by one task per key/value head,
//! so the result does not depend on the number of threads.
//!
//! The slow, obvious form that this is tested against is [`crate::kernels::ops::attention`] with a
//! dense mask.

use std::sync::Arc;

use burn::backend::autodiff::{
    NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::prelude::*;

use super::tiles_cpu;

/// A run of queries that see the same keys: at most two contiguous ranges of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// First query.
    pub query: usize,
    /// Number of queries.
    pub len: usize,
    /// First range of keys (start, length): the clean prefix; may be empty.
    pub prefix: (usize, usize),
    /// Second range of keys (start, length): the tile's own tokens.
    pub own: (usize, usize),
    /// Within `own`, query j sees keys 0..=j only.
    pub causal: bool,
}

/// Tiles in groups: two tiles of different groups have no key in common.
#[derive(Clone, Debug, Default)]
pub struct TilePlan {
    /// Groups of tiles.
    pub groups: Vec<Vec<Tile>>,
    /// Stream positions covered.
    pub tokens: usize,
}

/// Long causal tiles are cut into pieces of this many queries.
const CAUSAL_PIECE: usize = 64;

impl TilePlan {
    /// Group tiles by their clean prefix. Tiles with the same `prefix.0` belong to one document.
    pub fn new(tiles: &[Tile], tokens: usize) -> Self {
        let mut by_prefix: std::collections::BTreeMap<usize, Vec<Tile>> =
            std::collections::BTreeMap::new();
        for t in tiles {
            let group = by_prefix.entry(t.prefix.0).or_default();
            if !t.causal || t.len <= CAUSAL_PIECE {
                group.push(*t);
                continue;
            }
            for first in (0..t.len).step_by(CAUSAL_PIECE) {
                let len = CAUSAL_PIECE.min(t.len - first);
                let at = t.query + first;
                // everything before the piece is a plain prefix; t.prefix is empty or adjacent for
                // causal tiles
                group.push(Tile {
                    query: at,
                    len,
                    prefix: (t.prefix.0, t.prefix.1 + first),
                    own: (at, len),
                    causal: true,
                });
            }
        }
        TilePlan { groups: by_prefix.into_values().collect(), tokens }
    }
}

/// The operation and its gradient, per backend.
#[backend_extension(Autodiff, Flex)]
pub trait TileAttention: Backend {
    /// Forward, see the module text.
    fn tile_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        plan: Arc<TilePlan>,
    ) -> FloatTensor<Self>;
    /// Gradients of q, k and v for the gradient of the output.
    fn tile_attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        plan: Arc<TilePlan>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

impl TileAttention for Flex {
    fn tile_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        plan: Arc<TilePlan>,
    ) -> FloatTensor<Self> {
        tiles_cpu::forward(q, k, v, &plan)
    }

    fn tile_attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        plan: Arc<TilePlan>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        tiles_cpu::backward(q, k, v, grad, &plan)
    }
}

impl<B: Backend + TileAttention, C: CheckpointStrategy> TileAttention for Autodiff<B, C> {
    fn tile_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        plan: Arc<TilePlan>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: Backend + TileAttention> Backward<B, 3> for Step {
            type State = ([NodeId; 3], Arc<TilePlan>);

            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                grads: &mut Gradients,
                checkpointer: &mut Checkpointer,
            ) {
                let parents = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                let ([q, k, v], plan) = ops.state;
                let q: FloatTensor<B> = checkpointer.retrieve_node_output(q);
                let k: FloatTensor<B> = checkpointer.retrieve_node_output(k);
                let v: FloatTensor<B> = checkpointer.retrieve_node_output(v);
                let (dq, dk, dv) = B::tile_attention_backward(q, k, v, grad, plan);
                for (node, d) in parents.into_iter().zip([dq, dk, dv]) {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, d);
                    }
                }
            }
        }
        match Step.prepare::<C>([q.node(), k.node(), v.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let ids = [prep.checkpoint(&q), prep.checkpoint(&k), prep.checkpoint(&v)];
                let out = B::tile_attention(
                    q.into_parts().0,
                    k.into_parts().0,
                    v.into_parts().0,
                    plan.clone(),
                );
                prep.finish((ids, plan), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::tile_attention(
                q.into_parts().0,
                k.into_parts().0,
                v.into_parts().0,
                plan,
            )),
        }
    }

    fn tile_attention_backward(
        _q: FloatTensor<Self>,
        _k: FloatTensor<Self>,
        _v: FloatTensor<Self>,
        _grad: FloatTensor<Self>,
        _plan: Arc<TilePlan>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("the gradient of attention is not itself differentiated")
    }
}

/// Attention by tiles: `q` `[T, H, D]`, `k`, `v` `[T, K, D]` fp32 on the CPU backend → `[T, H, D]`.
pub fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, plan: &Arc<TilePlan>) -> Tensor<3> {
    Tensor::from_dispatch(<Dispatch as TileAttention>::tile_attention(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        plan.clone(),
    ))
}
