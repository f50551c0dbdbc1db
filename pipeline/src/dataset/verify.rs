//! Checks a finished dataset.

use crate::error::Result;
use dlm_datasets::{Dataset, verify as format};
use serde::Serialize;
use std::path::Path;

/// What a check of a dataset has read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Packed rows of the train split.
    pub train_rows: u64,
    /// Packed rows of the eval split.
    pub eval_rows: u64,
    /// Documents in all rows.
    pub documents: u64,
    /// Tokens of the documents, padding not included.
    pub tokens: u64,
    /// Tokens that carry loss.
    pub response_tokens: u64,
    /// Padding tokens inside documents.
    pub block_padding: u64,
    /// Padding tokens after the last document of each row.
    pub row_padding: u64,
    /// Bytes of data files, all of them hashed.
    pub bytes: u64,
    /// Whether rows can be read without copying them.
    pub zero_copy: bool,
    /// sha256 of the manifest.
    pub fingerprint: String,
}

/// Checks every hash, every row and every total of the dataset in the folder `dir`.
///
/// # Errors
///
/// [`Error::Dataset`](crate::Error::Dataset) with the file and the row if anything differs from
/// what the manifest or the format (docs/format.md) says, or cannot be read.
pub fn verify(dir: impl AsRef<Path>) -> Result<VerifyReport> {
    let ds = Dataset::open(dir.as_ref())?;
    let r = format::check_dataset(&ds)?;
    let t = r.totals;
    Ok(VerifyReport {
        train_rows: r.train_rows as u64,
        eval_rows: r.eval_rows as u64,
        documents: t.documents,
        tokens: t.tokens,
        response_tokens: t.response_tokens,
        block_padding: t.block_padding,
        row_padding: t.row_padding,
        bytes: r.bytes,
        zero_copy: ds.is_zero_copy(),
        fingerprint: ds.fingerprint(),
    })
}
