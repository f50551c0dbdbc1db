//! Answer one prompt with a converted model:
//! `cargo run --release -p dlm-train --example generate [MODEL [PROMPT]]`.

#![allow(clippy::print_stdout, reason = "an example prints what it got")]

use dlm_train::{GenerateOptions, Model, ModelOptions, Prompt};

fn main() -> dlm_train::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap_or("output/example".into());
    let prompt = arguments.next().unwrap_or("What is a diffusion language model?".into());

    let mut model = Model::load(folder, &ModelOptions::default())?;
    let options = GenerateOptions { max_new_tokens: 64, ..GenerateOptions::default() };
    for completion in model.generate(&[Prompt::Text(prompt)], &options)? {
        println!("{}", completion.text.as_deref().unwrap_or_default());
        println!("{:.2} tokens per forward pass", completion.tokens_per_forward());
    }
    Ok(())
}
