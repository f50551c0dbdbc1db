//! Convert a small model with random weights, then check the exported folder against the dataset:
//! `cargo run --release -p dlm-train --example convert [DATASET [OUT]]`.

use dlm_train::{Conversion, DatasetOptions, convert, validate};

fn main() -> dlm_train::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let data = arguments.next().unwrap_or("datasets/packed".into());
    let out = arguments.next().unwrap_or("output/example".into());

    let conversion = Conversion::new()
        .group("model", "sample") // its choice includes source.init=random
        .token_budget(20_000)
        .set("train.batch_rows", "8");
    let converted = convert(&conversion, &data, &out)?;
    let loss = converted.loss.unwrap_or(f64::NAN);
    println!("{} steps, {} tokens, loss {loss:.3} nats", converted.steps, converted.tokens);

    let report = validate(&converted.export, DatasetOptions::new(&data))?;
    println!("{} fits {data}: {report:?}", converted.export.display());
    Ok(())
}
