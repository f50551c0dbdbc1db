//! Converts a small model on the sample dataset and checks the exported folder:
//! `cargo run --release --example convert [DATASET [OUT]]`.

#![allow(clippy::print_stdout, reason = "an example prints what it got")]

use dlm_train::{Conversion, DatasetOptions, convert, validate};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let data = arguments.next().map_or_else(packed_sample, Ok)?;
    let out = arguments.next().unwrap_or("output/example".into());

    let conversion = Conversion::new()
        .group("model", "sample") // this choice starts from random weights
        .token_budget(20_000)
        .set("train.batch_rows", "8");
    let converted = convert(&conversion, &data, &out)?;
    println!("{} steps, {} tokens, loss {:?}", converted.steps, converted.tokens, converted.loss);

    let report = validate(&converted.export, DatasetOptions::new(&data))?;
    println!("{} fits {data}: {report:?}", converted.export.display());
    Ok(())
}

/// The sample dataset, packed into a temporary folder.
fn packed_sample() -> dlm_prep::Result<String> {
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../datasets/sample");
    let out = std::env::temp_dir().join("dlm-convert-example");
    let prepare = dlm_prep::Prepare::new(format!("{sample}/tokenizer"));
    let prepare = prepare.input(format!("{sample}/train.parquet")).seq_len(256);
    prepare.eval_fraction(0.02).overwrite(true).run(&out)?;
    Ok(out.display().to_string())
}
