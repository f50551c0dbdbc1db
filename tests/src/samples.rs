//! Small runs on the sample data that several tests need.
//!
//! In: a temporary folder and further arguments. Out: a packed dataset, or a training run of a few
//! steps.

use std::path::Path;

use anyhow::{Context, Result};

use dlm_test_support::{Run, repository, run};

/// Packs the sample into `dir/name` and returns its path.
pub fn pack(dir: &Path, name: &str, more: &[&str]) -> Result<String> {
    let out =
        dir.join(name).to_str().context("the temporary folder's path is not UTF-8")?.to_string();
    let mut arguments = vec![
        "--input",
        "datasets/sample/train.parquet",
        "--tokenizer",
        "datasets/sample/tokenizer",
        "--out",
        &out,
    ];
    arguments.extend(more);
    run("dlm-prep", &repository(), &arguments)?.ok()?;
    Ok(out)
}

/// Trains the sample's model from random weights into `out`.
pub fn train(data: &str, out: &str, more: &[&str]) -> Result<Run> {
    let output = format!("output.dir={out}");
    let mut arguments =
        vec!["--data", data, "--device", "cpu", "model=sample", "conversion=sample_ar", &output];
    arguments.extend(more);
    run("dlm-train", &repository(), &arguments)
}
