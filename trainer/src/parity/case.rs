//! A case file of `dlm-train parity`: inputs and expected values of one batch.
//!
//! In: safetensors with `input_ids` `[rows, len]` and what else the case has (see `parity.rs`).
//! Out: [`Case`], checked: shapes agree, ids are in the vocabulary.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use crate::compute::tensor_io::decode_floats;
use crate::diffusion::{IGNORE, PackedRow};
use crate::error::{Error, Result};

/// One case.
pub(crate) struct Case {
    pub rows: usize,
    pub len: usize,
    pub packed: Vec<PackedRow>,
    pub valid: Vec<bool>,
    pub mask: Option<Vec<bool>>,
    pub labelled: bool,
    pub logits: Option<Vec<f32>>,
    pub loss: Option<f64>,
}

/// Read a case for a model of `vocab` ids.
pub(crate) fn read_case(path: &Path, vocab: usize) -> Result<Case> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "reading the case", e))?;
    let st = SafeTensors::deserialize(&bytes)
        .map_err(|e| Error::format(path, format!("not a whole safetensors file: {e}")))?;
    let ints = |name: &str| -> Result<Option<(Vec<usize>, Vec<i64>)>> {
        let Ok(v) = st.tensor(name) else {
            return Ok(None);
        };
        let d = v.data();
        let values = match v.dtype() {
            Dtype::I64 => d
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
                .collect(),
            Dtype::I32 => d
                .chunks_exact(4)
                .map(|b| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])))
                .collect(),
            Dtype::U8 | Dtype::BOOL => d.iter().map(|b| i64::from(*b)).collect(),
            other => {
                return Err(Error::format(
                    path,
                    format!("{name} is {other:?}; expected I64, I32, U8 or BOOL"),
                ));
            }
        };
        Ok(Some((v.shape().to_vec(), values)))
    };
    let floats = |name: &str| st.tensor(name).ok().and_then(|v| decode_floats(v.dtype(), v.data()));
    let (shape, ids) = ints("input_ids")?.ok_or_else(|| Error::format(path, "no input_ids"))?;
    let [rows, len] = shape[..] else {
        return Err(Error::format(
            path,
            format!("input_ids has shape {shape:?}; expected [rows, len]"),
        ));
    };
    if let Some(bad) = ids.iter().find(|i| **i < 0 || **i >= vocab as i64) {
        return Err(Error::format(
            path,
            format!("input_ids holds {bad}; the model's vocabulary is 0..{vocab}"),
        ));
    }
    let same = |name: &str| -> Result<Option<Vec<i64>>> {
        match ints(name)? {
            Some((s, v)) if s == shape => Ok(Some(v)),
            Some((s, _)) => Err(Error::format(
                path,
                format!("{name} has shape {s:?}; expected {shape:?} as input_ids"),
            )),
            None => Ok(None),
        }
    };
    let labels = same("labels")?;
    if let Some(bad) = labels
        .iter()
        .flatten()
        .find(|l| **l != i64::from(IGNORE) && (**l < 0 || **l >= vocab as i64))
    {
        return Err(Error::format(
            path,
            format!("labels holds {bad}; expected -100 or an id in 0..{vocab}"),
        ));
    }
    let attention = same("attention_mask")?;
    let doc_ids = same("doc_ids")?;
    let mask = same("mask")?.map(|m| m.iter().map(|v| *v != 0).collect::<Vec<bool>>());
    let positions = same("position_ids")?;
    let mut packed = Vec::with_capacity(rows);
    for r in 0..rows {
        let span = r * len..(r + 1) * len;
        let documents = match (&doc_ids, &attention) {
            (Some(d), _) => runs(&d[span.clone()]),
            (None, Some(a)) => {
                let n = a[span.clone()].iter().take_while(|v| **v != 0).count();
                vec![(0, n)]
            }
            (None, None) => vec![(0, len)],
        };
        if let Some(p) = &positions {
            for &(start, n) in &documents {
                if (0..n).any(|j| p[r * len + start + j] != j as i64) {
                    return Err(Error::format(
                        path,
                        format!(
                            "row {r}: position_ids do not restart at 0 in the document at {start}"
                        ),
                    ));
                }
            }
        }
        packed.push(PackedRow {
            input_ids: ids[span.clone()].iter().map(|v| *v as i32).collect(),
            labels: match &labels {
                Some(l) => l[span].iter().map(|v| *v as i32).collect(),
                None => vec![IGNORE; len],
            },
            documents,
        });
    }
    let valid = match &attention {
        Some(a) => a.iter().map(|v| *v != 0).collect(),
        None => vec![true; rows * len],
    };
    Ok(Case {
        rows,
        len,
        packed,
        valid,
        mask,
        labelled: labels.is_some(),
        logits: floats("logits"),
        loss: floats("loss").and_then(|v| v.first().map(|x| f64::from(*x))),
    })
}

/// Runs of equal document ids as (start, length); -1 is padding.
fn runs(ids: &[i64]) -> Vec<(usize, usize)> {
    let mut out: Vec<(usize, usize)> = Vec::new();
    let mut start = 0;
    for i in 1..=ids.len() {
        if i == ids.len() || ids[i] != ids[start] {
            if ids[start] >= 0 {
                out.push((start, i - start));
            }
            start = i;
        }
    }
    out
}
