//! Passes that may not fit into the device's memory.
//!
//! In: a pass and its rows. Out: its result, or nothing where the device ran out of memory, which
//! GPU backends tell by an error or by a panic, depending on which operation meets it first. The
//! caller takes fewer rows at a time: the effective batch stays. (On a CPU the system ends a
//! process that takes too much; there `micro.rs` chooses by what is free beforehand.)
//! `DLM_FAULT_MEMORY_ROWS=N` makes every pass of more than N rows fail, for tests.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::error::{Error, Result};

/// Runs `pass` over `rows` rows; none where memory did not suffice.
pub fn within<T>(rows: usize, pass: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
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
            let said = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            if said.is_some_and(is_exhaustion) { Ok(None) } else { resume_unwind(panic) }
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

/// Half the rows, or less where half does not divide the batch; an error at one row.
pub fn fewer(rows: usize, batch_rows: usize) -> Result<usize> {
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
    fn exhaustion_is_told_from_other_failures() {
        let failing = |what: &str| within(8, || -> Result<()> { Err(Error::Device(what.into())) });
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
