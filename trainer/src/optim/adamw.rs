//! AdamW over fp32 masters (Loshchilov & Hutter, arXiv:1711.05101), with Muon for the layers' matrices on request.
//!
//! In: gradients in the order of the parameter table, a clip factor, a learning rate factor. Out: new weights in place.
//! No weight decay on norms and biases. A parameter without a gradient in a step is left alone, state included.

use burn::prelude::*;
use burn::tensor::DType;

use super::muon;
use crate::config::{Optim, OptimName};
use crate::diffusion::objective::Gradients;
use crate::model::{ParamKind, Params, Weights, ops};

/// State of one parameter.
#[derive(Clone, Debug)]
pub enum State {
    /// First and second moment, `[rows, cols]` fp32.
    Adam(Tensor<2>, Tensor<2>),
    /// Momentum, `[rows, cols]` fp32.
    Muon(Tensor<2>),
}

/// Optimizer state for every parameter.
#[derive(Clone, Debug)]
pub struct Optimizer {
    /// By position in the parameter table.
    pub state: Vec<State>,
    /// Updates made; drives Adam's bias correction.
    pub updates: u64,
}

impl Optimizer {
    /// Zero state.
    pub fn new(optim: &Optim, params: &Params, device: &Device) -> Self {
        let zeros = |shape: [usize; 2]| Tensor::<2>::zeros(shape, (device, DType::F32));
        let state =
            params
                .specs
                .iter()
                .map(|s| {
                    if uses_muon(optim, s.kind) {
                        State::Muon(zeros(s.shape2()))
                    } else {
                        State::Adam(zeros(s.shape2()), zeros(s.shape2()))
                    }
                })
                .collect();
        Optimizer { state, updates: 0 }
    }

    /// One update; `lr_factor` comes from the schedule, `clip` from the norm bounds.
    pub fn step(&mut self, optim: &Optim, params: &Params, weights: &mut Weights, grads: Gradients, lr_factor: f64, clip: f64) {
        self.updates += 1;
        let t = self.updates as i32;
        let (c1, c2) = (1.0 - optim.beta1.powi(t), 1.0 - optim.beta2.powi(t));
        for (i, g) in grads.0.into_iter().enumerate() {
            let Some(g) = g else { continue };
            let g = ops::to_f32(g);
            let g = if clip == 1.0 { g } else { g * clip };
            let decay = match params.specs[i].kind {
                ParamKind::Norm | ParamKind::Bias => 0.0,
                ParamKind::Matrix | ParamKind::Embedding => optim.weight_decay,
            };
            let w = weights.0[i].clone();
            let (lr, update) = match &mut self.state[i] {
                State::Adam(m, v) => {
                    *m = m.clone() * optim.beta1 + g.clone() * (1.0 - optim.beta1);
                    *v = v.clone() * optim.beta2 + g.square() * (1.0 - optim.beta2);
                    let denominator = (v.clone() / c2).sqrt() + optim.eps;
                    (optim.lr * lr_factor, (m.clone() / c1) / denominator)
                }
                State::Muon(m) => {
                    let (momentum, d) = muon::direction(g, m.clone(), optim.muon_momentum);
                    *m = momentum;
                    (optim.muon_lr * lr_factor, d)
                }
            };
            let w = if decay > 0.0 { w * (1.0 - lr * decay) } else { w };
            weights.0[i] = w - update * lr;
        }
    }
}

/// Whether a parameter is Muon's: matrices of the layers, not embeddings, head, norms or biases.
pub fn uses_muon(optim: &Optim, kind: ParamKind) -> bool {
    optim.name == OptimName::Muon && kind == ParamKind::Matrix
}
