//! The MLP's gate: `act(gate) * up`.

mod cpu;

pub(crate) use cpu::forward_slice as slice;

use burn::backend::autodiff::{
    NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::prelude::*;
use burn::tensor::activation::{relu, silu};

/// The activation of the MLP's gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// max(x, 0)².
    Relu2,
}

/// The operation and its gradient, per backend.
#[backend_extension(Autodiff, Flex)]
pub(crate) trait GateOp: Backend {
    /// `act(gate) * up`, all `[T, n]`.
    fn gate(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self>;
    /// Gradients of `gate` and `up`.
    fn gate_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

impl<B: Backend + GateOp, C: CheckpointStrategy> GateOp for Autodiff<B, C> {
    fn gate(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl<B: Backend + GateOp> Backward<B, 2> for Step {
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
                let (dg, du) = B::gate_backward(gate, up, grad, activation);
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
                let out = B::gate(gate.into_parts().0, up.into_parts().0, activation);
                prep.finish(state, out)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::gate(gate.into_parts().0, up.into_parts().0, activation))
            }
        }
    }

    fn gate_backward(
        _gate: FloatTensor<Self>,
        _up: FloatTensor<Self>,
        _g: FloatTensor<Self>,
        _a: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("gradients are not differentiated again")
    }
}

/// The gate in one pass on the CPU in fp32, see [`composed`].
pub(crate) fn fused(gate: Tensor<2>, up: Tensor<2>, activation: Activation) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as GateOp>::gate(
        gate.into_dispatch(),
        up.into_dispatch(),
        activation,
    ))
}

/// The MLP's gate `act(gate) * up`, all `[T, n]`, from Burn's operations on any device and dtype.
pub(crate) fn composed(gate: Tensor<2>, up: Tensor<2>, activation: Activation) -> Tensor<2> {
    match activation {
        Activation::Silu => silu(gate) * up,
        Activation::Relu2 => relu(gate).square() * up,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::test_support::{close, leaf, random};

    #[test]
    fn gates_equal_the_composed_forms() {
        let device = Device::flex();
        for activation in [Activation::Silu, Activation::Relu2] {
            let (g, u, up) =
                (random([41, 19], &device), random([41, 19], &device), random([41, 19], &device));
            let (ga, ua, gb, ub) = (leaf(&g), leaf(&u), leaf(&g), leaf(&u));
            let (a, b) = (
                fused(ga.clone(), ua.clone(), activation),
                composed(gb.clone(), ub.clone(), activation),
            );
            close(a.clone().inner(), b.clone().inner(), "value");
            let da = (a * up.clone().autodiff()).sum().backward();
            let db = (b * up.autodiff()).sum().backward();
            close(ga.grad(&da).unwrap(), gb.grad(&db).unwrap(), "d gate");
            close(ua.grad(&da).unwrap(), ub.grad(&db).unwrap(), "d up");
        }
    }
}
