//! Rows of the dataset as batches for the decoder, read ahead on a separate thread.
//!
//! In: the mapped dataset and a cursor (rows consumed since the run began). Out: [`StepBatch`]es in
//! cursor order. A step's content is a pure function of (seed, cursor): the row order of an epoch
//! is a seeded permutation, and masks are drawn by (seed, epoch, row). The cursor is therefore all
//! a resume needs.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use dlm_datasets::verify::summarize;
use dlm_datasets::{Manifest, RowOrder, Split};
use dlm_prep::ConsoleProgress;
use dlm_prep::bucket::{BucketAddress, fetch_dataset};

use crate::compute::StreamShape;
use crate::diffusion::{
    Batch, Objective, ObjectiveSpec, PackedRow, build_batch, count_targets, noise,
};
use crate::error::{Error, Result};
use crate::train::checked_dataset::CheckedDataset;

/// How steps are cut from the dataset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchPlan {
    /// Seed of row order and masks.
    pub seed: u64,
    /// Rows per optimizer step.
    pub batch_rows: usize,
    /// Rows per forward pass.
    pub micro_batch_rows: usize,
    pub objective: Objective,
    /// Block size, mask id, views, document isolation.
    pub spec: ObjectiveSpec,
    /// Smallest share of a block that is hidden.
    pub noise_eps: f64,
    /// Layout of a micro-batch's token streams.
    pub shape: StreamShape,
    /// Rows of the embedding table; every id must be below.
    pub vocab_size: usize,
}

/// Everything one optimizer step needs.
pub(crate) struct StepBatch {
    pub micro_batches: Vec<Batch>,
    /// (epoch, row) of every row, in order.
    pub rows: Vec<(u64, usize)>,
    /// Counted targets over all micro-batches: the loss's denominator.
    pub counted: usize,
    /// Tokens consumed, padding not counted.
    pub tokens: u64,
    /// Dataset positions consumed, padding counted (rows · seq_len).
    pub slots: u64,
    /// Cursor after this step.
    pub cursor: u64,
}

/// Open the packed dataset in `dir`; one in a bucket is fetched first.
pub(crate) fn open(dir: &Path) -> Result<CheckedDataset> {
    let address = dir.to_str().map(|text| BucketAddress::parse("--data", text)).transpose()?;
    if let Some(address) = address.flatten() {
        let dir = fetch_dataset(&address, "--data", &ConsoleProgress::default())?;
        return CheckedDataset::open(&dir);
    }
    if !dir.join("manifest.json").exists() {
        let problem = if dir.is_dir() {
            "has no manifest.json: it is no packed dataset, or dlm-prep did not finish"
        } else {
            "no such folder"
        };
        return Err(Error::Usage(format!(
            "--data {}: {problem}; expected a folder written by `dlm-prep --out {}`",
            dir.display(),
            dir.display()
        )));
    }
    CheckedDataset::open(dir)
}

/// Tokens of a row without padding: neither that after its last document nor that at the end of
/// each document, which the manifest's padding policy tells from text.
fn row_tokens(row: &PackedRow, manifest: &Manifest) -> u64 {
    row.documents
        .iter()
        .map(|&(start, length)| {
            let span = start..start + length;
            summarize(&row.input_ids[span.clone()], &row.labels[span], manifest).tokens
        })
        .sum()
}

/// The step that starts at `cursor`.
pub(crate) fn build_step(
    data: &CheckedDataset,
    plan: &BatchPlan,
    cursor: u64,
) -> Result<StepBatch> {
    let total = data.rows(Split::Train) as u64;
    if total == 0 {
        return Err(Error::Mismatch("the dataset has no training rows".into()));
    }
    let mut step = StepBatch {
        micro_batches: Vec::new(),
        rows: Vec::with_capacity(plan.batch_rows),
        counted: 0,
        tokens: 0,
        slots: 0,
        cursor: cursor + plan.batch_rows as u64,
    };
    let mut rows = Vec::with_capacity(plan.batch_rows);
    let mut masks = Vec::with_capacity(plan.batch_rows);
    let mut order: Option<(u64, RowOrder)> = None;
    for c in cursor..cursor + plan.batch_rows as u64 {
        let (epoch, at) = (c / total, (c % total) as usize);
        if order.as_ref().is_none_or(|(e, _)| *e != epoch) {
            order = Some((epoch, RowOrder::new(plan.seed, epoch, total as usize)));
        }
        let i = order.as_ref().map_or(at, |(_, o)| o.get(at));
        let row = data.packed_row(Split::Train, i, plan.vocab_size)?;
        let key = (plan.seed, epoch, i as u64);
        let len = row.input_ids.len();
        let mask = noise::draw(plan.objective, &plan.spec, key, len, plan.noise_eps);
        step.counted += count_targets(&row, &plan.spec, plan.objective, Some(&mask));
        step.tokens += row_tokens(&row, data.manifest());
        step.slots += row.input_ids.len() as u64;
        step.rows.push((epoch, i));
        rows.push(row);
        masks.push(mask);
    }
    let taken: Vec<usize> = step.rows.iter().map(|(_, row)| *row).collect();
    data.check_files(Split::Train, &taken)?;
    step.micro_batches = rows
        .chunks(plan.micro_batch_rows)
        .zip(masks.chunks(plan.micro_batch_rows))
        .map(|(r, m)| build_batch(plan.objective, r, m, &plan.spec, plan.shape))
        .collect();
    Ok(step)
}

/// Steps that a thread reads ahead. Dropping this ends the thread.
pub(crate) struct Prefetch {
    receiver: Receiver<Result<StepBatch>>,
}

impl Prefetch {
    /// Start reading at `cursor`, up to `depth` steps ahead.
    pub(crate) fn start(
        data: Arc<CheckedDataset>,
        plan: BatchPlan,
        cursor: u64,
        depth: usize,
    ) -> Self {
        let (sender, receiver) = bounded(depth.max(1));
        std::thread::spawn(move || {
            let mut cursor = cursor;
            loop {
                let step = build_step(&data, &plan, cursor);
                let failed = step.is_err();
                cursor += plan.batch_rows as u64;
                if sender.send(step).is_err() || failed {
                    return;
                }
            }
        });
        Prefetch { receiver }
    }

    /// The next step and how long the caller waited for it.
    pub(crate) fn next(&self) -> Result<(StepBatch, Duration)> {
        let started = Instant::now();
        let step = self.receiver.recv().map_err(|_| {
            Error::Mismatch(
                "the data thread ended unexpectedly; this is a bug, please report it".into(),
            )
        })??;
        Ok((step, started.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use dlm_datasets::IGNORE;
    use dlm_datasets::manifest::{Alignment, Padding};

    use super::*;

    const MASK: i32 = 9;
    const PAD: i32 = 0;
    const EOS: i32 = 1;
    const NONE: i32 = IGNORE;

    /// Tokens counted in a row of one document and row padding.
    fn tokens(padding: Padding, alignment: Alignment, ids: [i32; 8], labels: [i32; 8]) -> u64 {
        let mut manifest = Manifest::new(16, 8, 10, MASK, PAD, EOS);
        (manifest.padding, manifest.alignment) = (padding, alignment);
        let row = PackedRow {
            input_ids: [ids.as_slice(), &[PAD; 8]].concat(),
            labels: [labels.as_slice(), &[NONE; 8]].concat(),
            documents: vec![(0, 8)],
        };
        row_tokens(&row, &manifest)
    }

    #[test]
    fn block_padding_is_not_counted_whatever_the_policy() {
        let labels = [NONE, NONE, NONE, 4, EOS, NONE, NONE, NONE];
        let ids = [5, 5, 5, 4, EOS, MASK, MASK, MASK];
        assert_eq!(tokens(Padding::Mask, Alignment::Sample, ids, labels), 5);
        let ids = [5, 5, 5, 4, EOS, EOS, EOS, EOS];
        assert_eq!(tokens(Padding::Eos, Alignment::Sample, ids, labels), 5);
        let ids = [5, 5, 5, 4, EOS, EOS, PAD, PAD];
        assert_eq!(tokens(Padding::Eos, Alignment::Response, ids, labels), 5);
        let ids = [5, 5, 5, 4, EOS, MASK, PAD, PAD];
        assert_eq!(tokens(Padding::Mask, Alignment::Response, ids, labels), 5);
        // a whole block has no padding
        let labels = [NONE, NONE, NONE, 4, 4, 4, 4, EOS];
        let ids = [5, 5, 5, 4, 4, 4, 4, EOS];
        assert_eq!(tokens(Padding::Eos, Alignment::Sample, ids, labels), 8);
    }
}
