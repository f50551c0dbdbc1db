//! RMSNorm, RoPE and the MLP gate as single operations with their own gradients (CPU, fp32).
//!
//! Each is one pass over memory forward and one backward, where the composed forms in
//! [`super::ops`] take five to ten. The composed forms stay as what these are tested against, and
//! as what other devices and dtypes run.

use burn::backend::autodiff::{
    NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::prelude::*;

use super::fused_cpu as cpu;
use crate::model::config::Activation;

/// The operations and their gradients, per backend.
#[backend_extension(Autodiff, Flex)]
pub trait FusedOps: Backend {
    /// `x` `[T, n]`, `weight` `[1, n]` → `[T, n]`.
    fn fused_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self>;
    /// Gradients of `x` and `weight`.
    fn fused_rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// `act(gate) * up`, all `[T, n]`.
    fn fused_gate(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self>;
    /// Gradients of `gate` and `up`.
    fn fused_gate_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// Rotate-half RoPE of `x` `[T, heads, D]` with `cos`, `sin` `[T, 1, D]`; `inverse` turns the
    /// other way, which is the gradient.
    fn fused_rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self>;
}

impl FusedOps for Flex {
    fn fused_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        cpu::rms_norm(x, weight, eps)
    }

    fn fused_rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        cpu::rms_norm_backward(x, weight, grad, eps)
    }

    fn fused_gate(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        cpu::gate(gate, up, activation)
    }

    fn fused_gate_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        cpu::gate_backward(gate, up, grad, activation)
    }

    fn fused_rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self> {
        cpu::rope(x, cos, sin, inverse)
    }
}

impl<B: Backend + FusedOps, C: CheckpointStrategy> FusedOps for Autodiff<B, C> {
    fn fused_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: Backend + FusedOps> Backward<B, 2> for Step {
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
                let (dx, dw) = B::fused_rms_norm_backward(x, weight, grad, eps);
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
                let out = B::fused_rms_norm(x.into_parts().0, weight.into_parts().0, eps);
                prep.finish(state, out)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::fused_rms_norm(x.into_parts().0, weight.into_parts().0, eps))
            }
        }
    }

    fn fused_rms_norm_backward(
        _x: FloatTensor<Self>,
        _w: FloatTensor<Self>,
        _g: FloatTensor<Self>,
        _eps: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("gradients are not differentiated")
    }

    fn fused_gate(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: Backend + FusedOps> Backward<B, 2> for Step {
            type State = (NodeId, NodeId, Activation);

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                checkpointer: &mut Checkpointer,
            ) {
                let [node_g, node_u] = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                let (gate, up, activation) = ops.state;
                let gate: FloatTensor<B> = checkpointer.retrieve_node_output(gate);
                let up: FloatTensor<B> = checkpointer.retrieve_node_output(up);
                let (dg, du) = B::fused_gate_backward(gate, up, grad, activation);
                if let Some(n) = node_g {
                    grads.register::<B>(n.id, dg);
                }
                if let Some(n) = node_u {
                    grads.register::<B>(n.id, du);
                }
            }
        }
        match Step.prepare::<C>([gate.node(), up.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&gate), prep.checkpoint(&up), activation);
                let out = B::fused_gate(gate.into_parts().0, up.into_parts().0, activation);
                prep.finish(state, out)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::fused_gate(gate.into_parts().0, up.into_parts().0, activation))
            }
        }
    }

    fn fused_gate_backward(
        _gate: FloatTensor<Self>,
        _up: FloatTensor<Self>,
        _g: FloatTensor<Self>,
        _a: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("gradients are not differentiated")
    }

    fn fused_rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: Backend + FusedOps> Backward<B, 1> for Step {
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
                    grads.register::<B>(n.id, B::fused_rope(grad, cos, sin, !inverse));
                }
            }
        }
        // the tables are constants: only x has a gradient
        let (cos, sin) = (cos.into_parts().0, sin.into_parts().0);
        match Step.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let out = B::fused_rope(x.into_parts().0, cos.clone(), sin.clone(), inverse);
                prep.finish((cos, sin, inverse), out)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::fused_rope(x.into_parts().0, cos, sin, inverse))
            }
        }
    }
}

/// [`super::ops::rms_norm`] in one pass.
pub fn rms_norm(x: Tensor<2>, weight: &Tensor<2>, eps: f64) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as FusedOps>::fused_rms_norm(
        x.into_dispatch(),
        weight.clone().into_dispatch(),
        eps,
    ))
}

/// `act(gate) * up` in one pass.
pub fn gate(gate: Tensor<2>, up: Tensor<2>, activation: Activation) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as FusedOps>::fused_gate(
        gate.into_dispatch(),
        up.into_dispatch(),
        activation,
    ))
}

/// [`super::ops::rope`] in one pass, `x` `[T, heads, D]`, tables `[T, 1, D]`.
pub fn rope(x: Tensor<3>, cos: &Tensor<3>, sin: &Tensor<3>) -> Tensor<3> {
    Tensor::from_dispatch(<Dispatch as FusedOps>::fused_rope(
        x.into_dispatch(),
        cos.clone().into_dispatch(),
        sin.clone().into_dispatch(),
        false,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::ops;
    use burn::tensor::Distribution;

    fn random<const N: usize>(shape: [usize; N]) -> Tensor<N> {
        Tensor::<N>::random(shape, Distribution::Normal(0.0, 1.5), &Device::flex())
    }

    fn leaf<const N: usize>(t: &Tensor<N>) -> Tensor<N> {
        t.clone().autodiff().require_grad()
    }

    fn close<const N: usize>(a: Tensor<N>, b: Tensor<N>, what: &str) {
        let diff = (a - b).abs().max().into_scalar::<f32>();
        assert!(diff < 2e-5, "{what}: {diff}");
    }

    #[test]
    fn rms_norm_equals_the_composed_form() {
        for (t, n) in [(1, 8), (37, 96), (300, 33)] {
            let (x, w, up) = (random([t, n]), random([1, n]), random([t, n]));
            let (xa, wa, xb, wb) = (leaf(&x), leaf(&w), leaf(&x), leaf(&w));
            let (a, b) = (rms_norm(xa.clone(), &wa, 1e-5), ops::rms_norm(xb.clone(), &wb, 1e-5));
            close(a.clone().inner(), b.clone().inner(), "value");
            let ga = (a * up.clone().autodiff()).sum().backward();
            let gb = (b * up.autodiff()).sum().backward();
            close(xa.grad(&ga).unwrap(), xb.grad(&gb).unwrap(), "dx");
            close(wa.grad(&ga).unwrap() / t as f32, wb.grad(&gb).unwrap() / t as f32, "dw");
        }
    }

    #[test]
    fn gates_equal_the_composed_forms() {
        for activation in [Activation::Silu, Activation::Relu2] {
            let (g, u, up) = (random([41, 19]), random([41, 19]), random([41, 19]));
            let (ga, ua, gb, ub) = (leaf(&g), leaf(&u), leaf(&g), leaf(&u));
            let (a, b) = (
                gate(ga.clone(), ua.clone(), activation),
                ops::gate(gb.clone(), ub.clone(), activation),
            );
            close(a.clone().inner(), b.clone().inner(), "value");
            let da = (a * up.clone().autodiff()).sum().backward();
            let db = (b * up.autodiff()).sum().backward();
            close(ga.grad(&da).unwrap(), gb.grad(&db).unwrap(), "d gate");
            close(ua.grad(&da).unwrap(), ub.grad(&db).unwrap(), "d up");
        }
    }

    #[test]
    fn rope_equals_the_composed_form() {
        let (x, up) = (random([23, 3, 16]), random([23, 3, 16]));
        let half = random([23, 1, 8]);
        let (cos, sin) =
            (Tensor::cat(vec![half.clone().cos(); 2], 2), Tensor::cat(vec![half.sin(); 2], 2));
        let (xa, xb) = (leaf(&x), leaf(&x));
        let (ca, sa) = (cos.autodiff(), sin.autodiff());
        let (a, b) = (rope(xa.clone(), &ca, &sa), ops::rope(xb.clone(), &ca, &sa));
        close(a.clone().inner(), b.clone().inner(), "value");
        let da = (a * up.clone().autodiff()).sum().backward();
        let db = (b * up.autodiff()).sum().backward();
        close(xa.grad(&da).unwrap(), xb.grad(&db).unwrap(), "dx");
    }
}
