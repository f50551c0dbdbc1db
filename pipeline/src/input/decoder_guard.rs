//! Decoders of files from anywhere, where their panics are caught, and batches of bounded size.
//!
//! In: what a reader of this room returns. Out: the same, with an error that names the file in the
//! place of a panic, and with tables cut so that a few large rows do not come together.

use crate::error::{Error, Result};
use crate::input::raw_rows::{BATCH_BYTES, RawRows, RowBatches};
use crate::input::table_size::row_sizes;
use crate::panics::caught;
use std::collections::VecDeque;

/// Calls `decode`; a panic in it becomes an error that names the file.
pub(crate) fn guarded<T>(path: &str, decode: impl FnOnce() -> Result<T>) -> Result<T> {
    caught(decode).unwrap_or_else(|text| {
        Err(Error::Input {
            path: path.to_string(),
            reason: format!(
                "is damaged, the decoder cannot go on ({text}); get the file again, or leave it out"
            ),
        })
    })
}

/// The batches of a file, decoded by [`guarded`]; nothing follows an error.
pub(crate) fn guarded_batches(path: String, rows: RowBatches) -> RowBatches {
    Box::new(Guarded { path, rows: Some(rows), pieces: VecDeque::new() })
}

struct Guarded {
    path: String,
    rows: Option<RowBatches>,
    /// Parts of the table that was read last.
    pieces: VecDeque<RawRows>,
}

impl Iterator for Guarded {
    type Item = Result<RawRows>;

    fn next(&mut self) -> Option<Result<RawRows>> {
        if let Some(piece) = self.pieces.pop_front() {
            return Some(Ok(piece));
        }
        let rows = self.rows.as_mut()?;
        match guarded(&self.path, || rows.next().transpose()).transpose() {
            Some(Ok(batch)) => {
                self.pieces = pieces(batch);
                self.pieces.pop_front().map(Ok)
            }
            other => {
                self.rows = None;
                other
            }
        }
    }
}

/// The batch, in pieces of about [`BATCH_BYTES`] if it is much larger. Of a dictionary, and of
/// views, the reader sees only how long they are before they are written out.
fn pieces(batch: RawRows) -> VecDeque<RawRows> {
    let RawRows::Table(table) = &batch else { return VecDeque::from([batch]) };
    let sizes = row_sizes(table);
    if sizes.len() < 2 || sizes.iter().sum::<u64>() <= 4 * BATCH_BYTES as u64 {
        return VecDeque::from([batch]);
    }
    let (mut out, mut from, mut bytes) = (VecDeque::new(), 0, 0u64);
    for (i, size) in sizes.iter().enumerate() {
        if i > from && bytes + size > BATCH_BYTES as u64 {
            out.push_back(RawRows::Table(table.slice(from, i - from)));
            (from, bytes) = (i, 0);
        }
        bytes += size;
    }
    out.push_back(RawRows::Table(table.slice(from, sizes.len() - from)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, RecordBatch, StringArray};
    use std::sync::Arc;

    #[test]
    fn a_panic_names_the_file() {
        let error = guarded::<()>("a.arrow", || panic!("range end {} out of range", 7));
        let error = error.unwrap_err().to_string();
        assert!(
            error.starts_with("a.arrow: is damaged") && error.contains("range end 7"),
            "{error}"
        );
    }

    #[test]
    fn large_rows_come_alone() {
        let lengths = [10, 300_000, 900_000, 10, 10];
        let column: ArrayRef =
            Arc::new(lengths.iter().map(|n| Some("x".repeat(*n))).collect::<StringArray>());
        let table = RecordBatch::try_from_iter([("text", column)]).unwrap();
        let rows: Vec<usize> = pieces(RawRows::Table(table)).iter().map(RawRows::len).collect();
        assert_eq!(rows, [1, 1, 1, 2]);
    }
}
