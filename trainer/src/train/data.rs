//! Rows of the dataset as batches for the decoder, read ahead on a thread of its own.
//!
//! In: the mapped dataset and a cursor (rows consumed since the run began). Out: [`StepBatch`]es in
//! cursor order. What a step contains is a pure function of (seed, cursor): the row order of an
//! epoch is a seeded permutation, the masks are drawn by (seed, epoch, row). The cursor is all a
//! resume needs.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use dlm_datasets::{Dataset, RowOrder, Split};

use crate::compute::StreamShape;
use crate::diffusion::{
    Batch, IGNORE, Objective, ObjectiveSpec, PackedRow, build_batch, count_targets,
};
use crate::error::{Error, Result};
use dlm_datasets::mask;

/// How steps are cut from the dataset.
#[derive(Clone, Copy, Debug)]
pub struct BatchPlan {
    /// Seed of order and masks.
    pub seed: u64,
    /// Rows an optimizer step.
    pub batch_rows: usize,
    /// Rows a forward pass.
    pub micro_batch_rows: usize,
    /// Layout.
    pub objective: Objective,
    /// Block size, mask id, views, document isolation.
    pub spec: ObjectiveSpec,
    /// Smallest share hidden.
    pub noise_eps: f64,
    /// How the streams of a micro-batch lie.
    pub shape: StreamShape,
    /// Rows of the embedding table; ids must be below.
    pub vocab_size: usize,
}

/// Everything one optimizer step needs.
pub struct StepBatch {
    /// Micro-batches.
    pub micro: Vec<Batch>,
    /// (epoch, row) of every row, in order.
    pub rows: Vec<(u64, usize)>,
    /// Counted targets over all micro-batches: the loss's denominator.
    pub counted: usize,
    /// Tokens consumed, padding not counted.
    pub tokens: u64,
    /// Slots consumed, padding counted (rows · seq_len).
    pub slots: u64,
    /// Cursor after this step.
    pub cursor: u64,
}

/// The packed dataset in `dir`.
pub fn open(dir: &Path) -> Result<Dataset> {
    if !dir.join("manifest.json").exists() {
        let found = if dir.is_dir() {
            "has no manifest.json: it is no packed dataset, or dlm-prep did not finish"
        } else {
            "no such folder"
        };
        return Err(Error::Usage(format!(
            "--data {}: {found}; expected a folder written by `dlm-prep --out {}`",
            dir.display(),
            dir.display()
        )));
    }
    Ok(Dataset::open(dir)?)
}

/// Row `i` of a split as the objective wants it; ids are checked against the vocabulary.
pub fn packed_row(data: &Dataset, split: Split, i: usize, vocab_size: usize) -> Result<PackedRow> {
    let row = data.row(split, i)?;
    if let Some(bad) = row.input_ids.iter().find(|t| **t < 0 || **t as usize >= vocab_size) {
        return Err(Error::Mismatch(format!(
            "{} row {i} holds token id {bad}; the model's embedding table has {vocab_size} rows; was the dataset prepared with this model's tokenizer?",
            split.name()
        )));
    }
    Ok(PackedRow {
        input_ids: row.input_ids.to_vec(),
        labels: row.labels.to_vec(),
        documents: row.documents.iter().map(|d| (d.start, d.length)).collect(),
    })
}

/// Tokens of a row that are not padding: everything in documents but the run of pad or mask ids at
/// a document's end.
pub fn row_tokens(row: &PackedRow, mask_token_id: i32, pad_token_id: i32) -> u64 {
    row.documents
        .iter()
        .map(|&(start, n)| {
            let padding = (start..start + n)
                .rev()
                .take_while(|&i| {
                    row.labels[i] == IGNORE
                        && (row.input_ids[i] == mask_token_id || row.input_ids[i] == pad_token_id)
                })
                .count();
            (n - padding) as u64
        })
        .sum()
}

/// The step that starts at `cursor`.
pub fn build_step(
    data: &Dataset,
    plan: &BatchPlan,
    cursor: u64,
    pad_token_id: i32,
) -> Result<StepBatch> {
    let total = data.rows(Split::Train) as u64;
    if total == 0 {
        return Err(Error::Mismatch("the dataset has no training rows".into()));
    }
    let mut step = StepBatch {
        micro: Vec::new(),
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
        let row = packed_row(data, Split::Train, i, plan.vocab_size)?;
        let mask = mask::row_mask(
            plan.seed,
            epoch,
            i as u64,
            row.input_ids.len(),
            plan.spec.bd_size,
            plan.noise_eps,
        );
        step.counted += count_targets(&row, &plan.spec, plan.objective, Some(&mask));
        step.tokens += row_tokens(&row, plan.spec.mask_token_id, pad_token_id);
        step.slots += row.input_ids.len() as u64;
        step.rows.push((epoch, i));
        rows.push(row);
        masks.push(mask);
    }
    step.micro = rows
        .chunks(plan.micro_batch_rows)
        .zip(masks.chunks(plan.micro_batch_rows))
        .map(|(r, m)| build_batch(plan.objective, r, m, &plan.spec, plan.shape))
        .collect();
    Ok(step)
}

/// Steps read ahead by a thread; dropped together with this handle.
pub struct Prefetch {
    receiver: Receiver<Result<StepBatch>>,
}

impl Prefetch {
    /// Start reading at `cursor`, at most `depth` steps ahead.
    pub fn start(
        data: Arc<Dataset>,
        plan: BatchPlan,
        cursor: u64,
        pad_token_id: i32,
        depth: usize,
    ) -> Self {
        let (sender, receiver) = bounded(depth.max(1));
        std::thread::spawn(move || {
            let mut cursor = cursor;
            loop {
                let step = build_step(&data, &plan, cursor, pad_token_id);
                let failed = step.is_err();
                cursor += plan.batch_rows as u64;
                if sender.send(step).is_err() || failed {
                    return;
                }
            }
        });
        Prefetch { receiver }
    }

    /// The next step and how long it had to be waited for.
    pub fn next(&self) -> Result<(StepBatch, Duration)> {
        let t = Instant::now();
        let step = self.receiver.recv().map_err(|_| {
            Error::Mismatch(
                "the data thread ended unexpectedly; this is a bug, please report it".into(),
            )
        })??;
        Ok((step, t.elapsed()))
    }
}
