//! Loss and predictions of a batch together, from the same logits.
//!
//! In: a batch on the device, weights. Out: [`Scored`].

use super::device_batch::{DeviceBatch, int_tensor};
use super::losses::{PassOptions, scalar};
use crate::error::Result;
use crate::kernels::cross_entropy::cross_entropy_sum;
use crate::kernels::most_probable::{MostProbable, most_probable};
use crate::model::{Decoder, Weights};

/// What a forward pass says about the targets of a batch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scored {
    /// Sum of the cross-entropies, as [`super::objective::loss_sum`] computes it.
    pub loss_sum: f64,
    /// The most probable token for each target, in the order of the batch's targets.
    pub best: Vec<MostProbable>,
}

/// Loss and predictions of a batch; the token `never` is not predicted.
pub(crate) fn scored(
    decoder: &Decoder,
    w: &Weights,
    inputs: &DeviceBatch,
    opts: &PassOptions,
    never: i64,
) -> Result<Scored> {
    let mut scored = Scored::default();
    if inputs.at.is_empty() {
        return Ok(scored);
    }
    let device = inputs.ids.device();
    let h = decoder.hidden(w, inputs.ids.clone(), &inputs.cx);
    let h = h.select(0, int_tensor(&inputs.at, &device));
    for first in (0..inputs.at.len()).step_by(opts.loss_chunk.max(1)) {
        let end = first.saturating_add(opts.loss_chunk.max(1)).min(inputs.at.len());
        let logits = decoder.logits(w, h.clone().slice([first..end]));
        let targets = int_tensor(&inputs.targets[first..end], &device);
        scored.loss_sum += scalar(cross_entropy_sum(logits.clone(), targets))?;
        scored.best.extend(most_probable(logits, Some(never))?);
    }
    Ok(scored)
}
