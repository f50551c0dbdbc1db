//! `make-sample [DIR]` writes the sample data set (default `datasets/sample` of this repository).

#![allow(clippy::print_stdout, reason = "a tool of the repository")]

use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    let dir = std::env::args_os()
        .nth(1)
        .map_or_else(|| dlm_test_support::repository().join("datasets/sample"), PathBuf::from);
    let written = dlm_tests::sample::files::write(&dir)?;
    println!(
        "{}: {} conversations, {} tokens ({} in answers, longest {}), {} held-out prompts, {} ids",
        dir.display(),
        written.train,
        written.tokens,
        written.answer_tokens,
        written.longest,
        written.held_out,
        written.ids
    );
    Ok(())
}
