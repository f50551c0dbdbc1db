//! Passes that may not fit into the device's memory.
//!
//! In: a pass and its number of rows. Out: its result, or `None` where the device ran out of
//! memory, which GPU backends report by an error or by a panic, depending on the operation that
//! fails first. The caller then runs fewer rows at a time; the effective batch does not change. (On
//! a CPU the system kills a process that takes too much, so `micro_batch.rs` sizes micro-batches by
//! the memory that is free beforehand.) For tests, `DLM_FAULT_MEMORY_ROWS=N` makes every pass of
//! more than N rows fail.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::error::{Error, Result};

/// Run `pass` over `rows` rows; `None` where memory did not suffice.
pub(super) fn within<T>(rows: usize, pass: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    let limit = std::env::var("DLM_FAULT_MEMORY_ROWS").ok().and_then(|n| n.parse::<usize>().ok());
    let run = AssertUnwindSafe(|| {
        if limit.is_some_and(|limit| rows > limit) {
            return Err(Error::Device(format!(
                "out of device memory allocating {rows} rows (DLM_FAULT_MEMORY_ROWS)"
            )));
        }
        pass()
    });
    match catch_unwind(run) {
        Ok(Ok(value)) => Ok(Some(value)),
        Ok(Err(error)) if is_exhaustion(&error.to_string()) => Ok(None),
        Ok(Err(error)) => Err(error),
        Err(panic) => {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            if message.is_some_and(is_exhaustion) { Ok(None) } else { resume_unwind(panic) }
        }
    }
}

/// Whether a backend's message means that memory ran out.
fn is_exhaustion(message: &str) -> bool {
    let message = message.to_lowercase();
    ["out of device memory", "out of memory", "out_of_memory", "outofmemory"]
        .iter()
        .any(|words| message.contains(words))
}

/// The largest divisor of `batch_rows` that is at most half of `rows`; an error at one row.
pub(super) fn fewer(rows: usize, batch_rows: usize) -> Result<usize> {
    (1..=rows / 2).rev().find(|n| batch_rows % n == 0).ok_or_else(|| {
        Error::Device(
            "the device has no memory for one row at a time; try train.activation_checkpointing=layer, a smaller train.loss_chunk, train.dtype=bf16, or shorter rows (dlm-prep --seq-len)"
                .into(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lack_of_memory_is_distinguished_from_other_failures() {
        let failing =
            |message: &str| within(8, || -> Result<()> { Err(Error::Device(message.into())) });
        assert!(
            failing("reading back failed: out of device memory allocating 5 bytes")
                .unwrap()
                .is_none()
        );
        assert!(failing("CUDA_ERROR_OUT_OF_MEMORY").unwrap().is_none());
        assert!(failing("an illegal memory access was encountered").is_err());
        assert_eq!(within(8, || Ok(3)).unwrap(), Some(3));
        assert!(
            within(8, || -> Result<()> { panic!("Server is out of memory: {}", 1) })
                .unwrap()
                .is_none()
        );
        assert!(
            catch_unwind(|| within(8, || -> Result<()> { panic!("index out of bounds") })).is_err()
        );
    }

    #[test]
    fn halves_divide_the_batch() {
        for batch in 1..60 {
            for rows in (1..=batch).filter(|r| batch % r == 0) {
                match fewer(rows, batch) {
                    Ok(n) => assert!(n >= 1 && 2 * n <= rows && batch % n == 0),
                    Err(e) => assert!(
                        rows == 1 && e.to_string().contains("train.activation_checkpointing=layer")
                    ),
                }
            }
        }
        assert_eq!((fewer(32, 256).unwrap(), fewer(9, 45).unwrap()), (16, 3));
    }
}
