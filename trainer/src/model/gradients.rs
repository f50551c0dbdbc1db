//! Gradients by parameter, summed over the micro-batches of an optimizer step.

use burn::prelude::*;
use burn::tensor::{DType, Gradients as Tape};

use super::params::Weights;
use crate::kernels::cast::to_f32;
use crate::kernels::{self, RowIndex};

/// Gradients in the order of the parameter table; none for parameters that had no part yet.
pub(crate) struct Gradients(pub Vec<Option<Tensor<2>>>);

impl Gradients {
    /// Without gradients, for `n` parameters.
    pub(crate) fn new(n: usize) -> Self {
        Gradients((0..n).map(|_| None).collect())
    }

    /// Adds `source` `[N, D]` to rows of the gradient of parameter `i`, whose shape is that of
    /// `weight`.
    pub(crate) fn add_rows(
        &mut self,
        i: usize,
        source: Tensor<2>,
        rows: &RowIndex,
        weight: &Tensor<2>,
    ) {
        let table = self.0[i]
            .take()
            .map_or_else(|| Tensor::zeros(weight.dims(), (&weight.device(), DType::F32)), to_f32);
        self.0[i] = Some(kernels::add_rows(table, source, rows));
    }

    pub(crate) fn add(&mut self, i: usize, g: Tensor<2>) {
        self.0[i] = Some(match self.0[i].take() {
            Some(old) => old + g,
            None => g,
        });
    }

    /// Moves the gradients of `parameters` from a tape.
    pub(crate) fn take_from(
        &mut self,
        w: &Weights,
        grads: &mut Tape,
        parameters: impl Iterator<Item = usize>,
    ) {
        for i in parameters {
            if let Some(g) = w[i].grad_remove(grads) {
                self.add(i, g);
            }
        }
    }
}
