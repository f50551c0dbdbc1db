//! The evaluation loss: rows of a split under masks that are the same in every evaluation.
//!
//! In: weights, the first rows of a split. Out: mean cross-entropy over counted targets, nats.

use dlm_datasets::{Split, mask};

use crate::compute::ComputePlan;
use crate::diffusion::{Batch, DeviceBatch, PassOptions, build_batch, count_targets, objective};
use crate::error::Result;
use crate::model::{Decoder, Weights};
use crate::train::checked_dataset::CheckedDataset;
use crate::train::data::BatchPlan;

/// Sum of the cross-entropies of a batch by Burn.
pub(crate) fn burn_loss<'a>(
    decoder: &'a Decoder,
    weights: &'a Weights,
    pass: &'a PassOptions,
    compute: &'a ComputePlan,
) -> impl FnMut(&Batch) -> Result<f64> + 'a {
    move |batch| {
        let inputs = DeviceBatch::upload(decoder, batch, compute)?;
        objective::loss_sum(decoder, weights, &inputs, pass)
    }
}

/// Mean loss over the first `rows` rows of a split under fixed masks; `None` where no target is
/// counted. `loss_sum` is the sum of the cross-entropies of a batch.
pub(crate) fn evaluate(
    data: &CheckedDataset,
    split: Split,
    plan: &BatchPlan,
    rows: usize,
    mut loss_sum: impl FnMut(&Batch) -> Result<f64>,
) -> Result<Option<f64>> {
    let (mut sum, mut counted) = (0.0, 0usize);
    for first in (0..rows).step_by(plan.micro_batch_rows.max(1)) {
        let (mut packed, mut masks) = (Vec::new(), Vec::new());
        let taken: Vec<usize> = (first..(first + plan.micro_batch_rows).min(rows)).collect();
        for &i in &taken {
            let row = data.packed_row(split, i, plan.vocab_size)?;
            let mask = mask::row_mask(
                plan.seed,
                mask::EVAL_EPOCH,
                i as u64,
                row.input_ids.len(),
                plan.spec.bd_size,
                plan.noise_eps,
            );
            counted += count_targets(&row, &plan.spec, plan.objective, Some(&mask));
            packed.push(row);
            masks.push(mask);
        }
        data.check_files(split, &taken)?;
        let batch = build_batch(plan.objective, &packed, &masks, &plan.spec, plan.shape);
        sum += loss_sum(&batch)?;
    }
    Ok((counted > 0).then(|| sum / counted as f64))
}
