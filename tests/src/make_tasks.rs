//! `make-tasks FORM DIR [SEED] [TRAIN] [HELD_OUT]` writes the sample's tasks as JSON lines: for
//! proofs that need more held-out prompts than the shipped sample has, or a pretrained chat model.
//!
//! FORM is `sample` (the wording of `datasets/sample`) or `plain` (as one asks a chat model). Out:
//! `train.jsonl` (TRAIN conversations), `val.jsonl` and `test.jsonl` (HELD_OUT prompts each, with
//! their expected answers): settings are chosen on the first and reported on the second. The two
//! leading values of a held-out record never occur together in training, whatever the seed.

#![allow(clippy::print_stdout, reason = "a tool of the repository")]

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use dlm_tests::sample::text::Conversation;
use dlm_tests::sample::{plain, text};
use serde_json::{Value, json};

const USAGE: &str = "usage: make-tasks sample|plain DIR [SEED] [TRAIN] [HELD_OUT]";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some(form), Some(dir)) = (arguments.first(), arguments.get(1)) else { bail!(USAGE) };
    let dir = PathBuf::from(dir);
    let number = |at: usize, default: u64| match arguments.get(at) {
        Some(n) => n.parse().with_context(|| format!("{n:?} is not a number; {USAGE}")),
        None => Ok(default),
    };
    let seed: u64 = number(2, 42)?;
    let (train, held_out) = (number(3, 8000)? as usize, number(4, 512)? as usize);
    let (train, held) = match form.as_str() {
        "sample" => text::conversations(seed, train, 2 * held_out),
        "plain" => plain::conversations(seed, train, 2 * held_out),
        other => bail!("{other:?} is no form; {USAGE}"),
    };
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let (val, test) = held.split_at(held_out);
    for (name, lines) in [
        ("train.jsonl", lines(&train, conversation)),
        ("val.jsonl", lines(val, task)),
        ("test.jsonl", lines(test, task)),
    ] {
        let path = dir.join(name);
        fs::write(&path, lines).with_context(|| format!("writing {}", path.display()))?;
    }
    println!(
        "{}: {} conversations, {} and {} held-out prompts",
        dir.display(),
        train.len(),
        val.len(),
        test.len()
    );
    Ok(())
}

fn lines(rows: &[Conversation], form: fn(&Conversation) -> Value) -> String {
    rows.iter().map(|row| format!("{}\n", form(row))).collect()
}

fn turns(row: &Conversation) -> Vec<Value> {
    row.input.iter().map(|t| json!({"role": t.role, "content": t.content})).collect()
}

fn conversation(row: &Conversation) -> Value {
    let mut messages = turns(row);
    messages.push(json!({"role": "assistant", "content": row.output}));
    json!({"messages": messages})
}

fn task(row: &Conversation) -> Value {
    json!({"messages": turns(row), "expected": row.output, "task": row.task})
}
