//! Attention that follows the block structure (CPU, fp32): no more than one tile's scores exist at
//! a time.
//!
//! In: `q` `[T, H, D]`, `k`, `v` `[S, K, D]` fp32 and a [`TilePlan`]; out: `[T, H, D]`. A tile is a
//! run of queries that see the same one or two contiguous key ranges, so no mask is needed, hidden
//! pairs cost nothing and key/value heads are never repeated. The backward pass recomputes the
//! tile's probabilities. The tiles of one group share keys and are processed by one task per
//! key/value head, so the result does not depend on the number of threads.
//!
//! Tests compare it with the reference, [`super::dense::attention`].

mod cpu;

use std::sync::Arc;

use burn::backend::autodiff::{
    NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::prelude::*;

use super::plan::TilePlan;

/// The operation and its gradient, per backend.
#[backend_extension(Autodiff, Flex)]
pub(crate) trait TileAttentionOp: Backend {
    /// See [`attention`].
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

impl<B: Backend + TileAttentionOp, C: CheckpointStrategy> TileAttentionOp for Autodiff<B, C> {
    fn tile_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        plan: Arc<TilePlan>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: Backend + TileAttentionOp> Backward<B, 3> for Step {
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
        unreachable!("gradients are not differentiated again")
    }
}

/// Attention by tiles: `q` `[T, H, D]`, `k`, `v` `[S, K, D]` fp32 on the CPU backend → `[T, H, D]`,
/// with T and S the queries and keys of the plan.
///
/// # Panics
/// When the shapes do not fit the plan or each other.
pub(crate) fn attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    plan: &Arc<TilePlan>,
) -> Tensor<3> {
    Tensor::from_dispatch(<Dispatch as TileAttentionOp>::tile_attention(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        plan.clone(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::plan::{KeyRange, Tile};

    fn attend(q: [usize; 3], k: [usize; 3], v: [usize; 3]) -> std::thread::Result<()> {
        let device = Device::flex();
        let tile = Tile::new(0, 8, KeyRange::new(0, 4), KeyRange::new(4, 8));
        let plan = Arc::new(TilePlan::new(&[tile], 8, 12).unwrap());
        let tensor = |shape| Tensor::<3>::ones(shape, &device);
        let (q, k, v) = (tensor(q), tensor(k), tensor(v));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let out: Vec<f32> = attention(q, k, v, &plan).into_data().try_to_vec().unwrap();
            assert!(out.iter().all(|value| (value - 1.0).abs() < 1e-6));
        }))
    }

    #[test]
    fn tensors_that_do_not_fit_the_plan_are_refused() {
        assert!(attend([8, 4, 16], [12, 2, 16], [12, 2, 16]).is_ok());
        for (q, k, v) in [
            ([7, 4, 16], [12, 2, 16], [12, 2, 16]),
            ([8, 4, 16], [11, 2, 16], [11, 2, 16]),
            ([8, 4, 16], [12, 2, 16], [11, 2, 16]),
            ([8, 4, 16], [12, 2, 16], [12, 1, 16]),
            ([8, 4, 16], [12, 2, 16], [12, 2, 8]),
            ([8, 4, 16], [12, 2, 8], [12, 2, 8]),
            ([8, 3, 16], [12, 2, 16], [12, 2, 16]),
        ] {
            assert!(attend(q, k, v).is_err(), "{q:?} {k:?} {v:?}");
        }
    }

    /// A slice that starts inside its buffer is read at its own place.
    #[test]
    fn views_are_read_at_their_place() {
        let device = Device::flex();
        let tile = Tile::new(0, 2, KeyRange::new(0, 0), KeyRange::new(0, 2));
        let plan = Arc::new(TilePlan::new(&[tile], 2, 2).unwrap());
        let all = Tensor::<3>::cat(
            vec![Tensor::zeros([3, 1, 4], &device), Tensor::ones([2, 1, 4], &device)],
            0,
        );
        let view = all.narrow(0, 3, 2);
        let out = attention(view.clone(), view.clone(), view, &plan);
        let out: Vec<f32> = out.into_data().try_to_vec().unwrap();
        assert_eq!(out, [1.0; 8]);
    }
}
