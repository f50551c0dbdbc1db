//! `cargo demo`: every step from data to answers on the sample, on a CPU, with nothing downloaded.
//!
//! In: `datasets/sample`. Steps: pack it, train a small autoregressive model from scratch, convert
//! it with block_diffusion, answer the held-out prompts in both modes. Out:
//! `output/demo/{data,ar,diffusion}` and a table of tokens per forward pass, tokens per second and
//! exact answers. Stops at the first failure and shows its output.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a demo for people at a terminal")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use dlm_test_support::{binaries, repository};
use serde_json::{Value, json};

/// The expected answer to a held-out prompt.
struct HeldOut {
    expected: String,
    task: String,
}

/// One row of the table.
struct Score {
    what: String,
    prompts: usize,
    tokens: u64,
    passes: u64,
    seconds: f64,
    exact: usize,
    missed: Vec<String>,
}

fn main() -> ExitCode {
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    let root = repository();
    let out = root.join("output/demo");
    eprintln!("== building dlm-prep and dlm-train");
    let bin = binaries::build_now(true)?;
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    let held_out = held_out(&root.join("datasets/sample/heldout.jsonl"))?;

    let started = Instant::now();
    let step = |title: &str, name: &str, arguments: &str| -> Result<f64> {
        eprintln!("\n== {title}\n$ {name} {arguments}");
        let from = Instant::now();
        let mut command = Command::new(bin.join(name));
        // Command lines are shown as typed in the repository's root.
        command.current_dir(&root).args(arguments.split_whitespace()).stdin(Stdio::null());
        let status = command.status().with_context(|| format!("starting {name}"))?;
        ensure!(
            status.success(),
            "`{name} {arguments}` ended with {status}; see its message above"
        );
        Ok(from.elapsed().as_secs_f64())
    };
    let prep = step(
        "packing the sample",
        "dlm-prep",
        "--input datasets/sample/train.parquet --tokenizer datasets/sample/tokenizer --out output/demo/data --seq-len 256 --bd-size 32 --eval-fraction 0.02 --overwrite",
    )?;
    let ar = step(
        "training an autoregressive model from scratch",
        "dlm-train",
        "--data output/demo/data --resume never --overwrite model=sample conversion=sample_ar output.dir=output/demo/ar",
    )?;
    let diffusion = step(
        "converting it to block diffusion",
        "dlm-train",
        "--data output/demo/data --resume never --overwrite model=sample conversion=sample_diffusion source.path=output/demo/ar output.dir=output/demo/diffusion",
    )?;

    eprintln!("\n== answering {} held-out prompts", held_out.len());
    let runs = [
        ("AR model, ar mode", "ar", "--mode ar"),
        ("converted, block mode, threshold 0.95", "diffusion", "--mode block --threshold 0.95"),
        ("converted, block mode, threshold 0.9", "diffusion", "--mode block --threshold 0.9"),
        (
            "converted, block mode, threshold 0.9, sub-blocks of 16",
            "diffusion",
            "--mode block --threshold 0.9 --sub-block-size 16",
        ),
        (
            "converted, block mode, threshold 0.9, sub-blocks of 32",
            "diffusion",
            "--mode block --threshold 0.9 --sub-block-size 32",
        ),
        ("AR model unconverted, block mode", "ar", "--mode block --threshold 0.95"),
    ];
    let mut scores = Vec::new();
    for (what, model, mode) in runs {
        scores.push(answer(&bin, &root, what, model, mode, &held_out)?);
    }
    println!("\n{}", table(&scores));
    println!(
        "prep {prep:.1} s, AR training {ar:.0} s, conversion {diffusion:.0} s, in all {:.0} s on {} CPU threads; models in output/demo/ar and output/demo/diffusion",
        started.elapsed().as_secs_f64(),
        std::thread::available_parallelism().map_or(1, usize::from)
    );
    Ok(())
}

fn held_out(path: &Path) -> Result<Vec<HeldOut>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let parse = |line: &str| -> Result<HeldOut> {
        let value: Value =
            serde_json::from_str(line).with_context(|| format!("{}: {line}", path.display()))?;
        let text = |key: &str| {
            value[key]
                .as_str()
                .map(str::to_string)
                .with_context(|| format!("{}: no `{key}` in {line}", path.display()))
        };
        Ok(HeldOut { expected: text("expected")?, task: text("task")? })
    };
    text.lines().map(parse).collect()
}

fn answer(
    bin: &Path,
    root: &Path,
    what: &str,
    model: &str,
    mode: &str,
    held_out: &[HeldOut],
) -> Result<Score> {
    let model = PathBuf::from("output/demo").join(model);
    let arguments = format!(
        "generate --model {} --input datasets/sample/heldout.jsonl {mode} --max-new-tokens 96 --json",
        model.display()
    );
    eprintln!("$ dlm-train {arguments}");
    let mut command = Command::new(bin.join("dlm-train"));
    command.current_dir(root).args(arguments.split_whitespace()).stdin(Stdio::null());
    let lines = binaries::capture(&mut command)?.ok()?.json_lines()?;
    ensure!(lines.len() == held_out.len(), "{} answers to {} prompts", lines.len(), held_out.len());
    let mut score = Score {
        what: what.to_string(),
        prompts: lines.len(),
        tokens: 0,
        passes: 0,
        seconds: 0.0,
        exact: 0,
        missed: Vec::new(),
    };
    for (line, held) in lines.iter().zip(held_out) {
        let number = |value: &Value| value.as_u64().with_context(|| format!("no number in {line}"));
        score.tokens += line["completion_ids"]
            .as_array()
            .with_context(|| format!("no completion_ids in {line}"))?
            .len() as u64;
        score.passes += number(&line["passes"]["total"])?;
        score.seconds +=
            line["seconds"].as_f64().with_context(|| format!("no seconds in {line}"))?;
        let text = line["text"].as_str().with_context(|| format!("no text in {line}"))?;
        if text == held.expected {
            score.exact += 1;
        } else {
            score.missed.push(format!(
                "{}: {} instead of {}",
                held.task,
                json!(text),
                json!(held.expected)
            ));
        }
    }
    for missed in score.missed.iter().take(2) {
        eprintln!("  missed {missed}");
    }
    Ok(score)
}

fn table(scores: &[Score]) -> String {
    let mut out = String::from(
        "| model and mode | tokens per forward | tokens/s | exact answers |\n|---|---|---|---|\n",
    );
    for s in scores {
        let per_forward = s.tokens as f64 / s.passes.max(1) as f64;
        let per_second = s.tokens as f64 / s.seconds.max(1e-9);
        out.push_str(&format!(
            "| {} | {per_forward:.2} | {per_second:.0} | {} of {} |\n",
            s.what, s.exact, s.prompts
        ));
    }
    out
}
