//! Rotary position embedding, rotate-half form (Su et al., arXiv:2104.09864).

mod cpu;

use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::prelude::*;

/// The operation and its gradient, per backend.
#[backend_extension(Autodiff, Flex)]
pub(crate) trait RopeOp: Backend {
    /// Rotate-half RoPE of `x` `[T, heads, D]` with `cos`, `sin` `[T, 1, D]`; `inverse` turns the
    /// other way, which is the gradient.
    fn rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self>;
}

impl<B: Backend + RopeOp, C: CheckpointStrategy> RopeOp for Autodiff<B, C> {
    fn rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: Backend + RopeOp> Backward<B, 1> for Step {
            type State = (FloatTensor<B>, FloatTensor<B>, bool);

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let [node] = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                let (cos, sin, inverse) = ops.state;
                if let Some(n) = node {
                    grads.register::<B>(n.id, B::rope(grad, cos, sin, !inverse));
                }
            }
        }
        // the tables are constants: only x has a gradient
        let (cos, sin) = (cos.into_parts().0, sin.into_parts().0);
        match Step.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let out = B::rope(x.into_parts().0, cos.clone(), sin.clone(), inverse);
                prep.finish((cos, sin, inverse), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::rope(x.into_parts().0, cos, sin, inverse)),
        }
    }
}

/// RoPE in one pass on the CPU in fp32, see [`composed`]: `x` `[T, heads, D]`, tables `[T, 1, D]`.
pub(crate) fn fused(x: Tensor<3>, cos: &Tensor<3>, sin: &Tensor<3>) -> Tensor<3> {
    Tensor::from_dispatch(<Dispatch as RopeOp>::rope(
        x.into_dispatch(),
        cos.clone().into_dispatch(),
        sin.clone().into_dispatch(),
        false,
    ))
}

/// Rotary embedding, rotate-half form, over the last dimension D of `x`, from Burn's operations on
/// any device and dtype; `cos` and `sin` broadcast against `x`.
pub(crate) fn composed<const N: usize>(
    x: Tensor<N>,
    cos: &Tensor<N>,
    sin: &Tensor<N>,
) -> Tensor<N> {
    let half = x.dims()[N - 1] / 2;
    let first = x.clone().narrow(N - 1, 0, half);
    let second = x.clone().narrow(N - 1, half, half);
    let rotated = Tensor::cat(vec![second.neg(), first], N - 1);
    x * cos.clone() + rotated * sin.clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::test_support::{close, leaf, random};

    #[test]
    fn rope_equals_the_composed_form() {
        let device = Device::flex();
        let (x, up) = (random([23, 3, 16], &device), random([23, 3, 16], &device));
        let half = random([23, 1, 8], &device);
        let (cos, sin) =
            (Tensor::cat(vec![half.clone().cos(); 2], 2), Tensor::cat(vec![half.sin(); 2], 2));
        let (xa, xb) = (leaf(&x), leaf(&x));
        let (ca, sa) = (cos.autodiff(), sin.autodiff());
        let (a, b) = (fused(xa.clone(), &ca, &sa), composed(xb.clone(), &ca, &sa));
        close(a.clone().inner(), b.clone().inner(), "value");
        let da = (a * up.clone().autodiff()).sum().backward();
        let db = (b * up.autodiff()).sum().backward();
        close(xa.grad(&da).unwrap(), xb.grad(&db).unwrap(), "dx");
    }
}
