//! Prepares the sample dataset: `cargo run --release --example prepare [FOLDER]`.

#![allow(clippy::print_stdout, reason = "an example prints what it got")]

use dlm_prep::{Prepare, verify};
use std::path::PathBuf;

fn main() -> dlm_prep::Result<()> {
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../datasets/sample");
    let temporary = || std::env::temp_dir().join("dlm-prep-example");
    let out = std::env::args_os().nth(1).map_or_else(temporary, PathBuf::from);
    let prepared = Prepare::new(format!("{sample}/tokenizer"))
        .input(format!("{sample}/train.parquet"))
        .seq_len(256)
        .eval_fraction(0.02)
        .run(&out)?;
    let (counts, rows) = (prepared.counts(), verify(&out)?.train_rows);
    println!(
        "{}: {} conversations in {rows} rows, {} tokens, {} with loss",
        out.display(),
        counts.rows_kept,
        counts.tokens,
        counts.response_tokens
    );
    Ok(())
}
