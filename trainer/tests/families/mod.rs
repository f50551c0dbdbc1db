//! Runs of the real `dlm-train` on the datasets and configs of `dlm_test_support::families`.

// Every test file uses only a part of this.
#![allow(dead_code, unused_imports)]

use std::path::Path;
use std::process::Command;

pub(crate) use dlm_test_support::families::*;
pub(crate) use dlm_test_support::{Run, capture, fixtures};

/// Runs `dlm-train`, which must not panic.
#[track_caller]
pub(crate) fn dlm_train(arguments: &[&str]) -> Run {
    let run =
        capture(dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train")).args(arguments))
            .unwrap();
    assert!(!run.stderr.contains("panicked"), "{arguments:?}: {}", run.stderr);
    run
}

/// Three steps of training into `out`.
#[track_caller]
pub(crate) fn train(data: &Path, out: &Path, more: &[&str]) -> Run {
    let (data, out) = (data.to_str().unwrap(), format!("output.dir={}", out.to_str().unwrap()));
    let mut arguments = vec!["--device", "cpu", "--data", data, &out];
    arguments.extend([
        "conversion.total_tokens=100000",
        "train.max_steps=3",
        "train.batch_rows=2",
        "optim.lr=1e-3",
        "export.dtype=fp32",
    ]);
    arguments.extend(more);
    dlm_train(&arguments)
}
