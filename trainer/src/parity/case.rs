//! A case file: inputs and expected values of one batch.
//!
//! In: safetensors with `input_ids` `[rows, len]` and any of the tensors that
//! [`super::ParityOptions::case`] lists. Out: [`Case`], in which shapes agree and ids are in the
//! vocabulary.

use std::ops::Range;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use crate::compute::tensor_io::decode_floats;
use crate::compute::{ComputePlan, StreamShape};
use crate::diffusion::{Batch, IGNORE, Objective, ObjectiveSpec, PackedRow, build_batch};
use crate::error::{Error, Result};
use crate::model::checkpoint_file::check_header;

/// Inputs and expected values of one batch of `rows` rows of `len` tokens.
pub(super) struct Case {
    pub rows: usize,
    pub len: usize,
    pub packed: Vec<PackedRow>,
    /// Positions `[rows · len]` whose logits are compared: those that `attention_mask` does not
    /// exclude.
    pub valid: Vec<bool>,
    /// Hidden positions `[rows · len]` of view A; `None` in a causal case.
    pub mask: Option<Vec<bool>>,
    /// Starting offsets of blocks, in a case of the lossless objective.
    pub offsets: Option<Vec<i64>>,
    /// Share of the divergence from the source in the loss, in such a case.
    pub distill: f64,
    /// Whether the file has labels, so that there is a loss to compute.
    pub labelled: bool,
    /// Expected logits: `[rows, len, vocab]`, twice the rows in a block-diffusion case (view A of
    /// every row, then view B).
    pub logits: Option<Vec<f32>>,
    /// Expected mean loss, nats.
    pub loss: Option<f64>,
}

/// Whether a case is one of the lossless objective.
pub(super) fn has_offsets(path: &Path) -> Result<bool> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "reading the case", e))?;
    check_header(path, &bytes)?;
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|e| Error::format(path, format!("not a whole safetensors file: {e}")))?;
    Ok(tensors.tensor("offsets").is_ok())
}

/// Reads a case for a model with ids 0 to `vocab - 1`.
pub(super) fn read_case(path: &Path, vocab: usize) -> Result<Case> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "reading the case", e))?;
    check_header(path, &bytes)?;
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|e| Error::format(path, format!("not a whole safetensors file: {e}")))?;
    let file = CaseFile { path, tensors };
    let (shape, ids) = file.integers("input_ids")?.ok_or_else(|| file.malformed("no input_ids"))?;
    let [rows, len] = shape[..] else {
        return Err(file.malformed(format!("input_ids has shape {shape:?}; expected [rows, len]")));
    };
    let in_vocabulary = |id: &i64| (0..vocab as i64).contains(id);
    if let Some(bad) = ids.iter().find(|id| !in_vocabulary(id)) {
        return Err(
            file.malformed(format!("input_ids holds {bad}; the model's vocabulary is 0..{vocab}"))
        );
    }
    let labels = file.integers_like("labels", &shape)?;
    let is_label = |label: &i64| *label == i64::from(IGNORE) || in_vocabulary(label);
    if let Some(bad) = labels.iter().flatten().find(|label| !is_label(label)) {
        return Err(
            file.malformed(format!("labels holds {bad}; expected -100 or an id in 0..{vocab}"))
        );
    }
    let attention_mask = file.integers_like("attention_mask", &shape)?;
    let doc_ids = file.integers_like("doc_ids", &shape)?;
    let mask = file.integers_like("mask", &shape)?;
    let position_ids = file.integers_like("position_ids", &shape)?;
    let mut packed = Vec::with_capacity(rows);
    for row in 0..rows {
        let span = row * len..(row + 1) * len;
        let documents = documents(&span, doc_ids.as_deref(), attention_mask.as_deref());
        if let Some(positions) = &position_ids {
            file.check_positions(row, &positions[span.clone()], &documents)?;
        }
        packed.push(PackedRow {
            input_ids: ids[span.clone()].iter().map(|id| *id as i32).collect(),
            labels: match &labels {
                Some(labels) => labels[span].iter().map(|label| *label as i32).collect(),
                None => vec![IGNORE; len],
            },
            documents,
        });
    }
    let are_set = |values: Vec<i64>| values.iter().map(|v| *v != 0).collect::<Vec<bool>>();
    Ok(Case {
        rows,
        len,
        packed,
        valid: attention_mask.map_or_else(|| vec![true; rows * len], are_set),
        mask: mask.map(are_set),
        offsets: file.integers("offsets")?.map(|(_, offsets)| offsets),
        distill: file
            .floats("distill")
            .and_then(|values| values.first().map(|v| f64::from(*v)))
            .unwrap_or(0.0),
        labelled: labels.is_some(),
        logits: file.floats("logits"),
        loss: file.floats("loss").and_then(|values| values.first().map(|v| f64::from(*v))),
    })
}

/// What is drawn for each row: hidden positions, or offsets of blocks.
pub(super) fn drawn(case: &Case, spec: &ObjectiveSpec) -> Vec<Vec<bool>> {
    match (&case.offsets, &case.mask) {
        (Some(offsets), _) => {
            let taken = (0..spec.bd_size as i64).map(|offset| offsets.contains(&offset));
            vec![taken.collect(); case.rows]
        }
        (None, Some(mask)) => mask.chunks(case.len).map(<[bool]>::to_vec).collect(),
        (None, None) => vec![Vec::new(); case.rows],
    }
}

/// The batch of a case.
pub(super) fn batch_of(
    case: &Case,
    drawn: &[Vec<bool>],
    objective: Objective,
    spec: &ObjectiveSpec,
    compute: &ComputePlan,
) -> Batch {
    let shape = match objective {
        Objective::Sft => StreamShape::Rectangular { multiple: 1 },
        Objective::BlockDiffusion(_) | Objective::Lossless { .. } => compute.stream_shape,
    };
    build_batch(objective, &case.packed, drawn, spec, shape)
}

/// The documents of a row as (start, length): runs of equal `doc_ids`, else the positions that
/// `attention_mask` lets through, else the whole row.
fn documents(
    row: &Range<usize>,
    doc_ids: Option<&[i64]>,
    attention_mask: Option<&[i64]>,
) -> Vec<(usize, usize)> {
    match (doc_ids, attention_mask) {
        (Some(ids), _) => runs(&ids[row.clone()]),
        (None, Some(mask)) => {
            vec![(0, mask[row.clone()].iter().take_while(|v| **v != 0).count())]
        }
        (None, None) => vec![(0, row.len())],
    }
}

/// Runs of equal document ids as (start, length); -1 is padding.
fn runs(ids: &[i64]) -> Vec<(usize, usize)> {
    let mut runs = Vec::new();
    let mut start = 0;
    for run in ids.chunk_by(|a, b| a == b) {
        if run[0] >= 0 {
            runs.push((start, run.len()));
        }
        start += run.len();
    }
    runs
}

struct CaseFile<'a> {
    path: &'a Path,
    tensors: SafeTensors<'a>,
}

impl CaseFile<'_> {
    fn malformed(&self, reason: impl Into<String>) -> Error {
        Error::format(self.path, reason)
    }

    /// Shape and values of an integer or boolean tensor; `None` where the file has none.
    fn integers(&self, name: &str) -> Result<Option<(Vec<usize>, Vec<i64>)>> {
        let Ok(view) = self.tensors.tensor(name) else { return Ok(None) };
        let data = view.data();
        let values = match view.dtype() {
            Dtype::I64 => data
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
                .collect(),
            Dtype::I32 => data
                .chunks_exact(4)
                .map(|b| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])))
                .collect(),
            Dtype::U8 | Dtype::BOOL => data.iter().map(|b| i64::from(*b)).collect(),
            other => {
                let reason = format!("{name} is {other:?}; expected I64, I32, U8 or BOOL");
                return Err(self.malformed(reason));
            }
        };
        Ok(Some((view.shape().to_vec(), values)))
    }

    /// Values of an integer tensor that must have the shape of `input_ids`.
    fn integers_like(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<i64>>> {
        match self.integers(name)? {
            Some((own, values)) if own == shape => Ok(Some(values)),
            Some((own, _)) => Err(self
                .malformed(format!("{name} has shape {own:?}; expected {shape:?} as input_ids"))),
            None => Ok(None),
        }
    }

    fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let view = self.tensors.tensor(name).ok()?;
        decode_floats(view.dtype(), view.data())
    }

    /// Positions must count from 0 in every document, which is how the decoder computes them.
    fn check_positions(
        &self,
        row: usize,
        positions: &[i64],
        documents: &[(usize, usize)],
    ) -> Result<()> {
        for &(start, length) in documents {
            if (0..length).any(|i| positions[start + i] != i as i64) {
                return Err(self.malformed(format!(
                    "row {row}: position_ids do not restart at 0 in the document at {start}"
                )));
            }
        }
        Ok(())
    }
}
