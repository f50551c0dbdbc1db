//! Proposals beside what the source itself says: the divergence that distillation trains, and how
//! many would be accepted.
//!
//! In: a batch with teachers: for each target the clean token of the same pass that predicts the
//! same token. Clean tokens have the source's hidden states, so their logits are the source's own;
//! they are computed without a gradient, for a chunk of targets at a time, each clean token once a
//! chunk. Out: losses ([`Losses`]), gradients of logits.

use std::ops::Range;

use burn::prelude::*;

use super::device_batch::{DeviceBatch, int_tensor};
use super::losses::{Losses, PassOptions, total};
use crate::error::Result;
use crate::kernels::cast::cast_to;
use crate::kernels::distill::{Mixture, composed, fused};
use crate::kernels::linear;
use crate::model::{AttentionPlan, Decoder, Weights};

/// The source within a pass: the hidden states of clean tokens, and the head.
pub(super) struct Source<'a> {
    pub decoder: &'a Decoder,
    pub w: &'a Weights,
    /// Before the final norm, of every stream position: `[T, hidden_size]`.
    pub hidden: &'a Tensor<2>,
    /// `[vocab_size, hidden_size]` in the compute dtype.
    pub head: &'a Tensor<2>,
}

impl Source<'_> {
    /// Compares the logits of a chunk of targets, `[N, vocab_size]`, with the right tokens and with
    /// the source. Out: cross-entropy, divergence and whether both say the same for each target,
    /// `[3 N]`, and `scale ·` the gradient of the loss with the share `distill` of the divergence.
    pub(super) fn judge(
        &self,
        logits: Tensor<2>,
        inputs: &DeviceBatch,
        chunk: Range<usize>,
        (distill, scale): (f64, f64),
    ) -> (Tensor<1>, Tensor<2>) {
        let (device, count) = (logits.device(), chunk.len());
        let (clean, rows) = distinct(&inputs.teachers[chunk.clone()]);
        let teacher = self.hidden.clone().select(0, int_tensor(&clean, &device));
        let teacher = linear::linear(self.decoder.final_norm(self.w, teacher), self.head, None);
        let (rows, targets) =
            (int_tensor(&rows, &device), int_tensor(&inputs.targets[chunk], &device));
        let lora = self.decoder.params.lora.as_ref();
        let never = lora.map_or(usize::MAX, |lora| lora.shape.mask_token_id);
        let mixture = Mixture { teacher: distill, scale, never };
        let (judged, gradient) = match inputs.cx.mask {
            // the CPU and fp32
            AttentionPlan::Tiles(_) => fused(logits, teacher, rows, targets, mixture),
            _ => composed(logits, teacher, rows, targets, mixture),
        };
        (judged.reshape([3 * count]), gradient)
    }
}

/// The different numbers in ascending order, and for each number its place among them.
fn distinct(numbers: &[i32]) -> (Vec<i32>, Vec<i32>) {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let place = |number: &i32| sorted.partition_point(|other| other < number) as i32;
    let places = numbers.iter().map(place).collect();
    (sorted, places)
}

/// The losses of a batch with teachers, without gradients.
pub(crate) fn losses(
    decoder: &Decoder,
    w: &Weights,
    inputs: &DeviceBatch,
    opts: &PassOptions,
) -> Result<Losses> {
    if inputs.teachers.is_empty() {
        return Ok(Losses::default());
    }
    let device = inputs.ids.device();
    let hidden = decoder.hidden(w, inputs.ids.clone(), &inputs.cx);
    let head = cast_to(w[decoder.params.lm_head].clone(), inputs.cx.dtype);
    let picked = hidden.clone().select(0, int_tensor(&inputs.at, &device));
    let states = decoder.final_norm(w, picked);
    let source = Source { decoder, w, hidden: &hidden, head: &head };
    let mut judged = Vec::new();
    for first in (0..inputs.at.len()).step_by(opts.loss_chunk.max(1)) {
        let end = first.saturating_add(opts.loss_chunk.max(1)).min(inputs.at.len());
        let logits = linear::linear(states.clone().slice([first..end]), &head, None);
        judged.push(source.judge(logits, inputs, first..end, (opts.distill, 1.0)).0);
    }
    total(judged, inputs, opts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clean_token_is_taken_once() {
        let (clean, rows) = distinct(&[7, 3, 3, 12, 7, 0]);
        assert_eq!((clean, rows), (vec![0, 3, 7, 12], vec![2, 1, 1, 3, 2, 0]));
        assert_eq!(distinct(&[]), (vec![], vec![]));
    }
}
