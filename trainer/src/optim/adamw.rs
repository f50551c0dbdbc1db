//! AdamW on fp32 master weights (Loshchilov & Hutter, arXiv:1711.05101), optionally with Muon for
//! the layers' matrices.
//!
//! In: gradients in the order of the parameter table, a factor from clipping, a factor on the
//! learning rate. Out: new weights in place. Norms and biases have no weight decay. A parameter
//! without a gradient in a step keeps its value and its state.

use burn::prelude::*;
use burn::tensor::DType;

use super::muon;
use crate::config::{Optim, OptimName};
use crate::kernels::cast::to_f32;
use crate::kernels::{self, AdamwStep};
use crate::model::{Gradients, ParamKind, Params, Weights};

/// Optimizer state of one parameter.
#[derive(Clone, Debug)]
pub(crate) enum State {
    /// First and second moment, `[rows, cols]` fp32.
    Adam(Tensor<2>, Tensor<2>),
    /// Momentum, `[rows, cols]` fp32.
    Muon(Tensor<2>),
}

/// Optimizer state for every trained parameter.
#[derive(Clone, Debug)]
pub(crate) struct Optimizer {
    /// In the order of the trained parameters.
    pub state: Vec<State>,
    /// Number of updates so far, for Adam's bias correction.
    pub updates: u64,
}

impl Optimizer {
    /// State before the first update.
    pub(crate) fn new(optim: &Optim, params: &Params, device: &Device) -> Self {
        let zeros = |shape: [usize; 2]| Tensor::<2>::zeros(shape, (device, DType::F32));
        let state = params
            .trained_specs()
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

    /// One update; `lr_factor` comes from [`super::schedule`], `clip` from [`super::clip`].
    pub(crate) fn step(
        &mut self,
        optim: &Optim,
        params: &Params,
        weights: &mut Weights,
        gradients: Gradients,
        lr_factor: f64,
        clip: f64,
    ) {
        let factors = UpdateFactors { lr: lr_factor, clip };
        let updates = self.updates(params, weights, gradients);
        updates.into_iter().for_each(|update| update.apply(optim, factors));
        weights.set_mask_row(params);
    }

    /// Counts one more update, and takes it apart into those of the parameters that have a
    /// gradient. They may be applied in any order and at the same time; behind all of them comes
    /// [`Weights::set_mask_row`].
    pub(crate) fn updates<'a>(
        &'a mut self,
        params: &Params,
        weights: &'a mut Weights,
        gradients: Gradients,
    ) -> Vec<Update<'a>> {
        self.updates += 1;
        let number = self.updates;
        let trained = params.trained();
        let weights = &mut weights.0[trained.clone()];
        let places = self.state.iter_mut().zip(weights).zip(params.trained_specs());
        let gradients = gradients.0.into_iter().enumerate().skip(trained.start);
        gradients
            .zip(places)
            .filter_map(|((parameter, gradient), ((state, weight), spec))| {
                let (kind, gradient) = (spec.kind, gradient?);
                Some(Update { parameter, kind, number, state, weight, gradient })
            })
            .collect()
    }
}

/// Factors of an update.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UpdateFactors {
    /// On the learning rate, from [`super::schedule`].
    pub lr: f64,
    /// On all gradients, from [`super::clip`].
    pub clip: f64,
}

/// The update of one parameter.
pub(crate) struct Update<'a> {
    /// Its place in the parameter table.
    pub parameter: usize,
    kind: ParamKind,
    /// From 1, for Adam's bias correction.
    number: u64,
    state: &'a mut State,
    weight: &'a mut Tensor<2>,
    gradient: Tensor<2>,
}

impl Update<'_> {
    /// Writes the new weight and the new state.
    pub(crate) fn apply(self, optim: &Optim, factors: UpdateFactors) {
        let g = to_f32(self.gradient);
        let decay = match self.kind {
            ParamKind::Norm | ParamKind::Bias => 0.0,
            ParamKind::Matrix | ParamKind::Embedding => optim.weight_decay,
        };
        match self.state {
            State::Adam(m, v) => {
                let step = AdamwStep::new(optim, decay, factors.lr, factors.clip, self.number);
                // moved out, so that the kernel holds the only copy and works in place
                let (w, m0, v0) = (take(self.weight), take(m), take(v));
                (*self.weight, *m, *v) = kernels::adamw(w, m0, v0, g, step);
            }
            State::Muon(m) => {
                let lr = optim.muon_lr * factors.lr;
                let (momentum, d) =
                    muon::direction(g * factors.clip, m.clone(), optim.muon_momentum);
                *m = momentum;
                let w = self.weight.clone();
                *self.weight = (if decay > 0.0 { w * (1.0 - lr * decay) } else { w }) - d * lr;
            }
        }
    }
}

impl AdamwStep {
    /// The update number `updates`, from 1, by a configuration and the factors on learning rate and
    /// gradients.
    pub(crate) fn new(optim: &Optim, decay: f64, lr_factor: f64, clip: f64, updates: u64) -> Self {
        let t = updates as i32;
        AdamwStep {
            lr: (optim.lr * lr_factor) as f32,
            beta1: optim.beta1 as f32,
            beta2: optim.beta2 as f32,
            eps: optim.eps as f32,
            decay: decay as f32,
            clip: clip as f32,
            correction1: (1.0 - optim.beta1.powi(t)) as f32,
            correction2: (1.0 - optim.beta2.powi(t)) as f32,
        }
    }
}

/// Moves a tensor out and leaves an empty one.
fn take(place: &mut Tensor<2>) -> Tensor<2> {
    let empty = Tensor::empty([1, 1], (&place.device(), DType::F32));
    std::mem::replace(place, empty)
}

/// Whether Muon updates a parameter: matrices of the layers, not embeddings, head, norms or biases.
pub(crate) fn uses_muon(optim: &Optim, kind: ParamKind) -> bool {
    optim.name == OptimName::Muon && kind == ParamKind::Matrix
}
