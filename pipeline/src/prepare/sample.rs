//! Reads a sample of a file: some rows at a few places.
//!
//! In: a file and a number of bytes. Out: batches of about that many bytes in all, and which share
//! of the file they are. Parquet and plain JSON lines are read at places all over the file, other
//! formats from the start.

use crate::error::{Error, Result};
use crate::input::decoder_guard::guarded;
use crate::input::files::FileFormat;
use crate::input::json_lines::JsonRows;
use crate::input::parquet_rows;
use crate::input::raw_rows::RawRows;
use crate::input::source::Input;

const PLACES: u64 = 16;

/// Start of place `k` of `n` in a file of `size`, such that `length` from there stays before the
/// next place. The distance to the start of its n-th of the file varies without a pattern, because
/// the content of files often has one.
fn start(k: u64, n: u64, size: u64, length: u64) -> u64 {
    let free = (size / n).saturating_sub(length) as f64;
    size * k / n + (free * (k as f64 * 0.618_034).fract()) as u64
}

/// Calls `each` with batches of a file, about `budget` bytes in all; returns their share of the
/// file, from 0 to 1.
pub(crate) fn read_sample(
    input: &Input,
    budget: u64,
    each: &mut dyn FnMut(RawRows) -> Result<()>,
) -> Result<f64> {
    let path = input.local_path()?;
    match FileFormat::of(&input.path) {
        Some(FileFormat::Parquet) => {
            let (rows, bytes) = guarded(&path.display().to_string(), || parquet_rows::size(&path))?;
            let sampled =
                (budget as f64 / (bytes as f64 / rows.max(1) as f64).max(1.0)).ceil() as u64;
            let (places, per_place) = if sampled + PLACES >= rows {
                (1, rows)
            } else {
                (PLACES, sampled.div_ceil(PLACES))
            };
            let mut read = 0;
            for place in 0..places {
                let mut left = per_place;
                for batch in input.open(start(place, places, rows, per_place))? {
                    let batch = match batch? {
                        RawRows::Table(b) if b.num_rows() as u64 > left => {
                            RawRows::Table(b.slice(0, left as usize))
                        }
                        other => other,
                    };
                    left -= batch.len() as u64;
                    read += batch.len() as u64;
                    each(batch)?;
                    if left == 0 {
                        break;
                    }
                }
            }
            Ok(if rows == 0 { 1.0 } else { read as f64 / rows as f64 })
        }
        Some(FileFormat::Json) => {
            let size = input.bytes.max(1);
            if size > budget
                && let Some(places) = (0..PLACES)
                    .map(|p| {
                        JsonRows::from_byte(&path, start(p, PLACES, size, budget / PLACES))
                            .transpose()
                    })
                    .collect::<Option<Vec<_>>>()
            {
                let mut read = 0;
                for rows in places {
                    let mut left = (budget / PLACES) as i64;
                    for batch in rows? {
                        let batch = batch?;
                        let RawRows::Lines { bytes, ends } = &batch else {
                            continue;
                        };
                        let n = (bytes.len() + ends.len()) as i64;
                        (left, read) = (left - n, read + n);
                        each(batch)?;
                        if left <= 0 {
                            break;
                        }
                    }
                }
                return Ok((read as f64 / size as f64).min(1.0));
            }
            // Compressed, or one array: only the start can be read.
            let (mut rows, mut left) = (JsonRows::open(&path, 0)?, budget as i64);
            while let Some(batch) = rows.next() {
                let batch = batch?;
                if let RawRows::Lines { bytes, .. } = &batch {
                    left -= bytes.len() as i64;
                }
                each(batch)?;
                if left <= 0 {
                    return Ok((rows.consumed() as f64 / size as f64).clamp(1e-6, 1.0));
                }
            }
            Ok(1.0)
        }
        Some(FileFormat::Arrow) => {
            let mut read = 0;
            for batch in input.open(0)? {
                let batch = batch?;
                if let RawRows::Table(b) = &batch {
                    read += b
                        .columns()
                        .iter()
                        .map(|c| c.to_data().get_slice_memory_size().unwrap_or(0) as u64)
                        .sum::<u64>();
                }
                each(batch)?;
                if read >= budget {
                    return Ok((read as f64 / input.bytes.max(1) as f64).min(1.0));
                }
            }
            Ok(1.0)
        }
        None => Err(Error::Internal(format!("{}: unknown file format", path.display()))),
    }
}
