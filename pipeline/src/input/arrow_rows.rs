//! Rows of an Arrow IPC file or stream.
//!
//! In: a file and the row to begin with. Out: batches ([`RawRows::Table`]), slices of the file's
//! record batches.

use crate::error::{Error, Result};
use crate::input::arrow_check::check;
use crate::input::raw_rows::{BATCH_BYTES, BATCH_ROWS, RawRows, RowBatches};
use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// The rows of `path` from row `skip` on.
pub(crate) fn open(path: &Path, skip: u64) -> Result<RowBatches> {
    let display = path.display().to_string();
    let bad = move |e: ArrowError| Error::Input {
        path: display.clone(),
        reason: format!("not readable as Arrow IPC: {e}"),
    };
    let mut magic = [0u8; 6];
    let mut file = File::open(path).map_err(Error::io("opening", path))?;
    let _ = file.read(&mut magic).map_err(Error::io("reading", path))?;
    check(file, &magic == b"ARROW1").map_err(|reason| Error::Input {
        path: path.display().to_string(),
        reason: format!("not readable as Arrow IPC: {reason}"),
    })?;
    let file =
        BufReader::with_capacity(1 << 20, File::open(path).map_err(Error::io("opening", path))?);
    let batches: Box<dyn Iterator<Item = std::result::Result<RecordBatch, ArrowError>> + Send> =
        if &magic == b"ARROW1" {
            Box::new(arrow::ipc::reader::FileReader::try_new(file, None).map_err(&bad)?)
        } else {
            Box::new(arrow::ipc::reader::StreamReader::try_new(file, None).map_err(&bad)?)
        };
    let mut left = skip as usize;
    let slices = batches.flat_map(move |b| -> Vec<Result<RawRows>> {
        let b = match b {
            Ok(b) => b,
            Err(e) => return vec![Err(bad(e))],
        };
        let from = left.min(b.num_rows());
        left -= from;
        let step = BATCH_ROWS
            .min((BATCH_BYTES * b.num_rows().max(1) / b.get_array_memory_size().max(1)).max(1));
        (from..b.num_rows())
            .step_by(step)
            .map(|at| Ok(RawRows::Table(b.slice(at, step.min(b.num_rows() - at)))))
            .collect()
    });
    Ok(Box::new(slices))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, StringArray};
    use arrow::ipc::CompressionType;
    use arrow::ipc::writer::{FileWriter, IpcWriteOptions};
    use std::sync::Arc;

    /// pyarrow compresses with lz4 unless told otherwise.
    #[test]
    fn compressed_files() {
        let dir = tempfile::tempdir().unwrap();
        let column: ArrayRef = Arc::new(StringArray::from(vec!["a".repeat(1000); 50]));
        let batch = RecordBatch::try_from_iter([("prompt", column)]).unwrap();
        for codec in [CompressionType::LZ4_FRAME, CompressionType::ZSTD] {
            let path = dir.path().join("x.arrow");
            let options = IpcWriteOptions::default().try_with_compression(Some(codec)).unwrap();
            let file = File::create(&path).unwrap();
            let mut w = FileWriter::try_new_with_options(file, &batch.schema(), options).unwrap();
            w.write(&batch).unwrap();
            w.finish().unwrap();
            let rows: usize = open(&path, 0).unwrap().map(|b| b.unwrap().len()).sum();
            assert_eq!(rows, 50, "{codec:?}");
        }
    }
}
