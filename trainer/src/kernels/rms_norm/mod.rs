//! RMSNorm: `x / sqrt(mean(x²) + eps) * weight` over the last dimension.

mod cpu;

use burn::backend::autodiff::{
    NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::prelude::*;

use super::cast::{cast_to, to_f32};

/// The operation and its gradient, per backend.
#[backend_extension(Autodiff, Flex)]
pub(crate) trait RmsNormOp: Backend {
    /// `x` `[T, n]`, `weight` `[1, n]` → `[T, n]`.
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self>;
    /// Gradients of `x` and `weight`.
    fn rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

impl<B: Backend + RmsNormOp, C: CheckpointStrategy> RmsNormOp for Autodiff<B, C> {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: Backend + RmsNormOp> Backward<B, 2> for Step {
            type State = (NodeId, NodeId, f64);

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                checkpointer: &mut Checkpointer,
            ) {
                let [node_x, node_w] = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                let (x, weight, eps) = ops.state;
                let x: FloatTensor<B> = checkpointer.retrieve_node_output(x);
                let weight: FloatTensor<B> = checkpointer.retrieve_node_output(weight);
                let (dx, dw) = B::rms_norm_backward(x, weight, grad, eps);
                if let Some(n) = node_x {
                    grads.register::<B>(n.id, dx);
                }
                if let Some(n) = node_w {
                    grads.register::<B>(n.id, dw);
                }
            }
        }
        match Step.prepare::<C>([x.node(), weight.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), prep.checkpoint(&weight), eps);
                let out = B::rms_norm(x.into_parts().0, weight.into_parts().0, eps);
                prep.finish(state, out)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::rms_norm(x.into_parts().0, weight.into_parts().0, eps))
            }
        }
    }

    fn rms_norm_backward(
        _x: FloatTensor<Self>,
        _w: FloatTensor<Self>,
        _g: FloatTensor<Self>,
        _eps: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("gradients are not differentiated again")
    }
}

/// RMSNorm in one pass on the CPU in fp32, see [`composed`].
pub(crate) fn fused(x: Tensor<2>, weight: &Tensor<2>, eps: f64) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as RmsNormOp>::rms_norm(
        x.into_dispatch(),
        weight.clone().into_dispatch(),
        eps,
    ))
}

/// RMSNorm over the last dimension, from Burn's operations on any device and dtype: `x /
/// sqrt(mean(x²) + eps) * weight`.
///
/// `x` is `[T, I]`, `weight` is `[1, I]`. Statistics are fp32; the result has the dtype of `x`.
pub(crate) fn composed(x: Tensor<2>, weight: &Tensor<2>, eps: f64) -> Tensor<2> {
    let dtype = x.dtype();
    let x = to_f32(x);
    let scale = x.clone().square().mean_dim(1).add_scalar(eps).sqrt().recip();
    cast_to(x * scale * to_f32(weight.clone()), dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::test_support::{close, leaf, random};

    #[test]
    fn rms_norm_equals_the_composed_form() {
        let device = Device::flex();
        for (t, n) in [(1, 8), (37, 96), (300, 33)] {
            let (x, w, up) =
                (random([t, n], &device), random([1, n], &device), random([t, n], &device));
            let (xa, wa, xb, wb) = (leaf(&x), leaf(&w), leaf(&x), leaf(&w));
            let (a, b) = (fused(xa.clone(), &wa, 1e-5), composed(xb.clone(), &wb, 1e-5));
            close(a.clone().inner(), b.clone().inner(), "value");
            let ga = (a * up.clone().autodiff()).sum().backward();
            let gb = (b * up.autodiff()).sum().backward();
            close(xa.grad(&ga).unwrap(), xb.grad(&gb).unwrap(), "dx");
            close(wa.grad(&ga).unwrap() / t as f32, wb.grad(&gb).unwrap() / t as f32, "dw");
        }
    }
}
