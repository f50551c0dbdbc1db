//! The MLP's gate on the CPU: one pass forward, one backward, in parallel chunks.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::{Activation, GateOp};
use crate::kernels::flex::{CHUNK, Rows, tensor};
use crate::kernels::simd::{sigmoid, widest};

impl GateOp for Flex {
    fn gate(gate: FlexTensor, up: FlexTensor, activation: Activation) -> FlexTensor {
        let (g, u) = (Rows::new(gate), Rows::new(up));
        let mut out = vec![0f32; g.values().len()];
        out.par_chunks_mut(CHUNK)
            .zip(g.values().par_chunks(CHUNK))
            .zip(u.values().par_chunks(CHUNK))
            .for_each(|((o, g), u)| {
                forward_slice(o, g, u, activation);
            });
        tensor(out, &g.shape)
    }

    /// Gradients of `act(gate) * up`.
    fn gate_backward(
        gate: FlexTensor,
        up: FlexTensor,
        grad: FlexTensor,
        activation: Activation,
    ) -> (FlexTensor, FlexTensor) {
        let (g, u, d) = (Rows::new(gate), Rows::new(up), Rows::new(grad));
        let (mut dg, mut du) = (vec![0f32; g.values().len()], vec![0f32; g.values().len()]);
        dg.par_chunks_mut(CHUNK)
            .zip(du.par_chunks_mut(CHUNK))
            .zip(g.values().par_chunks(CHUNK))
            .zip(u.values().par_chunks(CHUNK))
            .zip(d.values().par_chunks(CHUNK))
            .for_each(|((((dg, du), g), u), d)| backward_slice(dg, du, g, u, d, activation));
        (tensor(dg, &g.shape), tensor(du, &u.shape))
    }
}

widest! {
    /// `out = act(gate) · up`.
    pub(crate) fn forward_slice(out: &mut [f32], gate: &[f32], up: &[f32], activation: Activation) {
        let each = out.iter_mut().zip(gate.iter().zip(up));
        match activation {
            Activation::Silu => each.for_each(|(o, (g, u))| *o = g * sigmoid(*g) * u),
            Activation::Relu2 => each.for_each(|(o, (g, u))| {
                let r = if *g < 0.0 { 0.0 } else { *g };
                *o = r * r * u;
            }),
        }
    }
}

widest! {
    /// Gradients of `gate` and `up` for the gradient `grad` of `act(gate) · up`.
    fn backward_slice(d_gate: &mut [f32], d_up: &mut [f32], gate: &[f32], up: &[f32], grad: &[f32], activation: Activation) {
        let each = d_gate.iter_mut().zip(d_up).zip(gate.iter().zip(up).zip(grad));
        match activation {
            Activation::Silu => each.for_each(|((dg, du), ((g, u), d))| {
                let s = sigmoid(*g);
                *dg = d * u * (s * (1.0 + g * (1.0 - s)));
                *du = d * (g * s);
            }),
            Activation::Relu2 => each.for_each(|((dg, du), ((g, u), d))| {
                let r = if *g < 0.0 { 0.0 } else { *g };
                *dg = d * u * (2.0 * r);
                *du = d * (r * r);
            }),
        }
    }
}
