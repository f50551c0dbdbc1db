//! Unparsed rows, as the readers of this room hand them on.
//!
//! The readers aim at batches of `BATCH_BYTES` bytes with at most `BATCH_ROWS` rows.

use crate::error::Result;
use crate::input::table_size::row_sizes;
use arrow::array::RecordBatch;

/// Bytes that a batch aims at.
pub(crate) const BATCH_BYTES: usize = 256 << 10;
/// Largest number of rows in a batch.
pub(crate) const BATCH_ROWS: usize = 1024;

/// The batches of one file, in order.
pub(crate) type RowBatches = Box<dyn Iterator<Item = Result<RawRows>> + Send>;

/// A batch of rows of one file.
#[derive(Debug)]
pub(crate) enum RawRows {
    /// Lines of JSON, without their line ends. A line that was too long to be read is empty.
    Lines {
        /// All lines, one after another.
        bytes: Vec<u8>,
        /// For each line the index just behind its last byte.
        ends: Vec<usize>,
    },
    /// Rows of a table.
    Table(RecordBatch),
}

impl RawRows {
    pub(crate) fn len(&self) -> usize {
        match self {
            RawRows::Lines { ends, .. } => ends.len(),
            RawRows::Table(b) => b.num_rows(),
        }
    }

    /// Bytes of the rows.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            RawRows::Lines { bytes, .. } => bytes.len() as u64,
            RawRows::Table(b) => row_sizes(b).iter().sum(),
        }
    }

    /// Line `i`; none in a table, and none for a line that was too long to be read.
    pub(crate) fn line(&self, i: usize) -> Option<&[u8]> {
        match self {
            RawRows::Lines { bytes, ends } => {
                let from = if i == 0 { 0 } else { ends[i - 1] };
                Some(&bytes[from..ends[i]]).filter(|l| !l.is_empty())
            }
            RawRows::Table(_) => None,
        }
    }
}
