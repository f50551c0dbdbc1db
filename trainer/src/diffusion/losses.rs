//! What a pass over a batch says about its targets, how it is read back, and how a pass is made.
//!
//! In: losses of chunks of targets on the device. Out: [`Losses`].

use burn::prelude::*;

use super::device_batch::DeviceBatch;
use crate::error::{Error, Result};
use crate::report::proposals::ProposalCounts;

/// Choices that trade memory for time in a forward and backward pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PassOptions {
    /// Keep only the input of each layer and run the layer again in the backward pass.
    pub activation_checkpointing: bool,
    /// Rows of logits computed at a time; bounds the `[rows, vocab_size]` buffers.
    pub loss_chunk: usize,
    /// Share of the divergence from the source in the loss, 0 to 1, where a batch has teachers.
    pub distill: f64,
}

/// Probability of the right token above which a target counts as sure: decoding at this threshold
/// would fix it.
const SURE: f64 = 0.9;

/// What a forward pass says about its targets.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Losses {
    /// Sum of the losses, nats: the cross-entropies, or their mixture with divergences.
    pub sum: f64,
    /// Targets whose right token has a probability above 0.9.
    pub sure: usize,
    /// Beside what the source says, where the batch has teachers.
    pub taught: Option<Taught>,
}

impl Losses {
    /// Of the cross-entropy of each target.
    pub(crate) fn of(losses: &[f32]) -> Self {
        let bound = -SURE.ln();
        Losses {
            sum: losses.iter().copied().map(f64::from).sum(),
            sure: losses.iter().filter(|loss| f64::from(**loss) < bound).count(),
            taught: None,
        }
    }

    /// Adds those of other targets.
    pub(crate) fn add(&mut self, other: &Losses) {
        self.sum += other.sum;
        self.sure += other.sure;
        if let Some(taught) = &other.taught {
            self.taught.get_or_insert_default().add(taught);
        }
    }
}

/// What targets say beside the source.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Taught {
    /// Sum of the cross-entropies, nats.
    pub cross_entropy: f64,
    /// Sum of the divergences KL(source ‖ proposal), nats.
    pub divergence: f64,
    pub proposals: ProposalCounts,
}

impl Taught {
    /// Adds those of other targets.
    pub(super) fn add(&mut self, other: &Taught) {
        self.cross_entropy += other.cross_entropy;
        self.divergence += other.divergence;
        self.proposals.add(&other.proposals);
    }
}

impl Losses {
    /// Of three values of each target ([`Source::judge`]) and its distance in the run.
    pub(crate) fn of_judged(values: &[f32], distances: &[usize], distill: f64) -> Self {
        let column = |i: usize| values.iter().skip(i).step_by(3).copied();
        let sum = |i: usize| column(i).map(f64::from).sum::<f64>();
        let (cross_entropy, divergence) = (sum(0), sum(1));
        let mut proposals = ProposalCounts::default();
        column(2).zip(distances).for_each(|(same, at)| proposals.count(*at, same > 0.5));
        let of_targets = Losses::of(&column(0).collect::<Vec<f32>>());
        Losses {
            sum: match distill > 0.0 {
                true => (1.0 - distill) * cross_entropy + distill * divergence,
                false => cross_entropy,
            },
            taught: Some(Taught { cross_entropy, divergence, proposals }),
            ..of_targets
        }
    }
}

/// A tensor of one number, read back.
pub(super) fn scalar(t: Tensor<1>) -> Result<f64> {
    let v: f32 = t
        .try_into_scalar::<f32>()
        .map_err(|e| Error::Device(format!("reading the loss back failed: {e}")))?;
    Ok(f64::from(v))
}

/// The losses of all targets, read back once.
pub(super) fn total(
    losses: Vec<Tensor<1>>,
    inputs: &DeviceBatch,
    opts: &PassOptions,
) -> Result<Losses> {
    let failed = |e: String| Error::Device(format!("reading the losses back failed: {e}"));
    let data = Tensor::cat(losses, 0).try_into_data().map_err(|e| failed(format!("{e:?}")))?;
    let values = data.try_to_vec::<f32>().map_err(|e| failed(format!("{e:?}")))?;
    Ok(match inputs.teachers.is_empty() {
        true => Losses::of(&values),
        false => Losses::of_judged(&values, &inputs.distances, opts.distill),
    })
}
