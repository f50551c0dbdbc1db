//! Evaluation on held-out rows under masks that are the same in every evaluation: the loss, whether
//! hidden tokens are predicted right, and how many tokens a pass of decoding would fix.
//!
//! In: what predicts, the first rows of a split. Out: [`Evaluation`].

use dlm_datasets::{Split, mask};

use crate::compute::ComputePlan;
use crate::diffusion::scored::scored;
use crate::diffusion::{
    Batch, DeviceBatch, Losses, Objective, PassOptions, Scored, build_batch, count_targets,
    distill, noise, objective,
};
use crate::error::Result;
use crate::model::{Decoder, Weights};
use crate::native::Native;
use crate::report::held_out::{Acceptance, SimulatedDecode};
use crate::report::proposals::ProposalAcceptance;
use crate::train::acceptance::Tally;
use crate::train::checked_dataset::CheckedDataset;
use crate::train::data::BatchPlan;
use crate::train::simulated_decode::simulate;

/// Rows that an evaluation in training decodes: one in 16, at most 32, since a decode takes many
/// passes.
pub(crate) fn rows_to_decode(rows: usize) -> usize {
    rows.div_ceil(16).min(32)
}

/// What an evaluation found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evaluation {
    /// Mean loss over counted targets, nats; nothing where no target is counted.
    pub loss: Option<f64>,
    /// Its parts where the source is computed beside proposals: the mean cross-entropy …
    pub cross_entropy: Option<f64>,
    /// … and the mean KL(source ‖ proposal).
    pub divergence: Option<f64>,
    /// Nothing for other objectives than the lossless one.
    pub proposals: Option<ProposalAcceptance>,
    /// Nothing for other objectives than block diffusion, which hide no token in a block.
    pub acceptance: Option<Acceptance>,
    /// Nothing for other objectives than block diffusion, and where the decoded rows hold no
    /// completion.
    pub decode: Option<SimulatedDecode>,
}

/// What computes the passes of an evaluation.
pub(crate) enum Scorer<'a> {
    /// Burn, on any device.
    Burn {
        decoder: &'a Decoder,
        weights: &'a Weights,
        pass: &'a PassOptions,
        compute: &'a ComputePlan,
    },
    Native(&'a mut Native),
}

impl Scorer<'_> {
    /// Sum of the losses of a batch.
    pub(crate) fn loss_sum(&mut self, batch: &Batch) -> Result<f64> {
        match self {
            Scorer::Burn { decoder, weights, pass, compute } => {
                let inputs = DeviceBatch::upload(decoder, batch, compute)?;
                objective::loss_sum(decoder, weights, &inputs, pass)
            }
            Scorer::Native(native) => native.loss_sum(batch),
        }
    }

    /// Losses of a batch with teachers.
    fn taught(&mut self, batch: &Batch) -> Result<Losses> {
        match self {
            Scorer::Burn { decoder, weights, pass, compute } => {
                let inputs = DeviceBatch::upload(decoder, batch, compute)?;
                distill::losses(decoder, weights, &inputs, pass)
            }
            Scorer::Native(native) => native.losses(batch),
        }
    }

    /// The sum of the cross-entropies, and what is predicted for each target; the token `never` is
    /// not predicted.
    fn scored(&mut self, batch: &Batch, never: i64) -> Result<Scored> {
        match self {
            Scorer::Burn { decoder, weights, pass, compute } => {
                let inputs = DeviceBatch::upload(decoder, batch, compute)?;
                scored(decoder, weights, &inputs, pass, never)
            }
            Scorer::Native(native) => native.scored(batch, never),
        }
    }
}

/// Evaluates the first `rows` rows of a split under fixed masks, and decodes the first `decoded` of
/// them.
pub(crate) fn evaluate(
    data: &CheckedDataset,
    split: Split,
    plan: &BatchPlan,
    (rows, decoded): (usize, usize),
    mut scorer: Scorer<'_>,
) -> Result<Evaluation> {
    let (mut sum, mut counted) = (0.0, 0usize);
    let (spec, never) = (&plan.spec, i64::from(plan.spec.mask_token_id));
    let hides = matches!(plan.objective, Objective::BlockDiffusion(_));
    let objective = match plan.objective {
        Objective::Lossless { layout, offsets, .. } => {
            Objective::Lossless { layout, offsets, taught: true }
        }
        other => other,
    };
    let mut losses = Losses::default();
    let mut tally = Tally::new(spec.bd_size);
    let mut to_decode = Vec::new();
    let decoded = if hides { decoded } else { 0 };
    for first in (0..rows).step_by(plan.micro_batch_rows.max(1)) {
        let (mut packed, mut masks) = (Vec::new(), Vec::new());
        let taken: Vec<usize> = (first..(first + plan.micro_batch_rows).min(rows)).collect();
        for &i in &taken {
            let row = data.packed_row(split, i, plan.vocab_size)?;
            let key = (plan.seed, mask::EVAL_EPOCH, i as u64);
            let len = row.input_ids.len();
            let mask = noise::draw(plan.objective, spec, key, len, plan.noise_eps);
            counted += count_targets(&row, spec, plan.objective, Some(&mask));
            packed.push(row);
            masks.push(mask);
        }
        data.check_files(split, &taken)?;
        let batch = build_batch(objective, &packed, &masks, spec, plan.shape);
        if hides {
            let scored = scorer.scored(&batch, never)?;
            sum += scored.loss_sum;
            tally.add(&batch, &scored.best, spec);
        } else if batch.teachers.is_empty() {
            sum += scorer.loss_sum(&batch)?;
        } else {
            losses.add(&scorer.taught(&batch)?);
        }
        to_decode.extend(packed.into_iter().take(decoded - decoded.min(to_decode.len())));
    }
    let at_a_time = plan.micro_batch_rows.div_ceil(2);
    let decode = simulate(&to_decode, at_a_time, spec, plan.shape, |batch| {
        Ok(scorer.scored(batch, never)?.best)
    })?;
    let mean = |sum: f64| sum / counted as f64;
    let taught = losses.taught.as_ref();
    Ok(Evaluation {
        loss: (counted > 0).then(|| mean(sum + losses.sum)),
        cross_entropy: taught.map(|taught| mean(taught.cross_entropy)),
        divergence: taught.map(|taught| mean(taught.divergence)),
        proposals: taught.and_then(|taught| taught.proposals.finish()),
        acceptance: tally.finish(),
        decode,
    })
}
