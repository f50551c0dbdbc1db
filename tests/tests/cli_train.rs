//! dlm-train as a user calls it: a tiny run, kill -9 and resume, exit codes, wrong keys, data that
//! does not fit.

#![allow(clippy::print_stdout, reason = "what a test measured")]

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dlm_test_support::{Run, capture, command, repository, run};
use dlm_tests::samples;
use serde_json::Value;

const STEPS: &str = "train.max_steps=36";

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().context("a path that is no text")?.to_string())
}

/// Step and loss of every line of metrics.jsonl, the loss as text: equal text means equal bits.
fn losses(out: &str) -> Result<Vec<(u64, String)>> {
    let metrics = fs::read_to_string(Path::new(out).join("metrics.jsonl"))?;
    let parse = |line: &str| -> Result<(u64, String)> {
        let value: Value = serde_json::from_str(line)?;
        Ok((value["step"].as_u64().context("step")?, value["loss"].to_string()))
    };
    metrics.lines().map(parse).collect()
}

fn settings(conversion: &'static str) -> Vec<&'static str> {
    vec![
        "model=sample",
        conversion,
        "source.init=random",
        STEPS,
        "train.batch_rows=2",
        "train.save_every=5",
        "train.log_every=1",
        "train.eval_every=0",
    ]
}

fn interrupted_and_not(conversion: &'static str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = samples::pack(dir.path(), "data", &["--max-rows", "400", "--seq-len", "128"])?;
    let (whole, broken) = (text(&dir.path().join("whole"))?, text(&dir.path().join("broken"))?);
    let train = |out: &str| -> Result<std::process::Command> {
        let mut command = command("dlm-train", &repository())?;
        command
            .args(["--data", &data, "--device", "cpu"])
            .args(settings(conversion))
            .arg(format!("output.dir={out}"));
        Ok(command)
    };
    capture(&mut train(&whole)?)?.ok()?;
    let expected = losses(&whole)?;
    ensure!(expected.len() == 36, "{} steps", expected.len());

    // Killed at two moments that do not depend on when checkpoints are written.
    for kill_after in [7, 16] {
        let mut child = train(&broken)?.stderr(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let started = Instant::now();
        while losses(&broken).map_or(0, |l| l.len()) < kill_after {
            ensure!(child.try_wait()?.is_none(), "the run ended before it was killed");
            ensure!(
                started.elapsed() < Duration::from_secs(300),
                "no {kill_after} steps in five minutes"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill()?;
        child.wait()?;
    }
    let resumed = capture(&mut train(&broken)?)?.ok()?;
    ensure!(resumed.stderr.contains("resumed"), "{}", resumed.stderr);
    let found = losses(&broken)?;
    for (expected, found) in expected.iter().zip(&found) {
        ensure!(
            expected == found,
            "after kill -9 and resume: step {} has loss {}, without {}",
            found.0,
            found.1,
            expected.1
        );
    }
    ensure!(found.len() == expected.len());
    let file = |out: &str| fs::read(Path::new(out).join("model.safetensors"));
    ensure!(file(&whole)? == file(&broken)?, "the exported weights differ");

    // A finished run is not trained again.
    let again = capture(&mut train(&whole)?)?.ok()?;
    ensure!(losses(&whole)? == expected, "{}", again.stderr);
    Ok(())
}

#[test]
fn kill_and_resume_is_exact_for_block_diffusion() -> Result<()> {
    interrupted_and_not("conversion=sample_diffusion")
}

#[test]
fn kill_and_resume_is_exact_for_sft() -> Result<()> {
    interrupted_and_not("conversion=sample_ar")
}

#[test]
fn a_tiny_run_exports_a_folder_that_generates() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = samples::pack(
        dir.path(),
        "data",
        &["--max-rows", "300", "--seq-len", "128", "--bd-size", "16"],
    )?;
    let out = text(&dir.path().join("model"))?;
    let trained = samples::train(
        &data,
        &out,
        &["conversion.objective=block_diffusion", "conversion.total_tokens=3000"],
    )?
    .ok()?;
    // The saving layout runs the decoder on at most 60 % of the tokens of the published form, on
    // the sample as it is packed.
    let (before, _) = trained
        .stderr
        .split_once(" % of the 4L form's tokens")
        .context("no share of the 4L form in the last line")?;
    let share: f64 = before.rsplit(' ').next().context("a number")?.parse()?;
    println!("{share} % of the 4L form's tokens");
    ensure!(share > 0.0 && share <= 60.0, "{share} % of the 4L form's tokens were processed");
    for name in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "dlm_config.json",
    ] {
        ensure!(Path::new(&out).join(name).is_file(), "no {name} in the export");
    }
    let config: Value =
        serde_json::from_str(&fs::read_to_string(Path::new(&out).join("dlm_config.json"))?)?;
    ensure!(config["bd_size"] == 16 && config["training_method"] == "fast-dllm-v2-sft", "{config}");
    for mode in ["block", "ar"] {
        let arguments = [
            "generate",
            "--model",
            &out,
            "--prompt",
            "Write as JSON:\nitem=lamp",
            "--mode",
            mode,
            "--max-new-tokens",
            "32",
            "--json",
        ];
        let answer = run("dlm-train", &repository(), &arguments)?.ok()?.json()?;
        ensure!(answer["mode"] == mode && answer["passes"]["total"].as_u64() > Some(0), "{answer}");
        let mask = &config["mask_token_id"];
        ensure!(
            !answer["completion_ids"].as_array().context("ids")?.contains(mask),
            "the mask token was generated: {answer}"
        );
        texts_agree(&out, mode)?;
    }
    Ok(())
}

/// Whole text and text that is printed as it becomes final, prompts alone and in a batch, texts
/// with and without a stop string.
fn texts_agree(model: &str, mode: &str) -> Result<()> {
    let prompts = ["Write as JSON:\nitem=lamp", "q", "Write as text:\npet=Ginger; kind=mouse"];
    let generate = |prompts: &[&str], more: &[&str]| -> Result<Run> {
        let mut arguments = vec!["generate", "--model", model, "--mode", mode];
        arguments.extend(["--max-new-tokens", "32", "--temperature", "1"]);
        arguments.extend(prompts.iter().flat_map(|prompt| ["--prompt", *prompt]));
        arguments.extend(more);
        run("dlm-train", &repository(), &arguments)?.ok()
    };
    let batch =
        generate(&prompts, &["--json", "--batch-size", "2", "--seed", "5"])?.json_lines()?;
    ensure!(batch.len() == 3, "{batch:?}");
    let mut texts = String::new();
    for (i, (prompt, whole)) in prompts.iter().zip(&batch).enumerate() {
        let seed = (5 + i).to_string();
        let alone = generate(&[prompt], &["--json", "--seed", &seed])?.json()?;
        for key in ["completion_ids", "token_logprobs", "text", "finish_reason", "seed"] {
            ensure!(alone[key] == whole[key], "{mode}, prompt {i}, {key}: {alone} and {whole}");
        }
        let text = whole["text"].as_str().context("text")?;
        texts.push_str(&format!("{text}\n"));
        // a piece of the text itself ends it
        let stop: String = text.chars().skip(2).take(2).collect();
        if stop.is_empty() || stop.starts_with('-') {
            continue;
        }
        let cut = generate(&[prompt], &["--json", "--seed", &seed, "--stop", &stop])?.json()?;
        ensure!(cut["finish_reason"] == "stop_string", "{mode}, {stop:?} in {text:?}: {cut}");
        ensure!(cut["text"].as_str() == text.split(&stop).next(), "{stop:?} in {text:?}: {cut}");
    }
    let whole = ["--batch-size", "2", "--seed", "5"];
    for more in [whole.to_vec(), [whole.as_slice(), &["--stream"]].concat()] {
        let printed = generate(&prompts, &more)?;
        ensure!(printed.stdout == texts, "{mode}, {more:?}: {:?}, {texts:?}", printed.stdout);
    }
    for (wrong, words) in [
        (["--temperature", "-1"].as_slice(), "temperature -1"),
        (&["--top-p", "0.9"], "--temperature"),
        (&["--temperature", "1", "--top-p", "2"], "top-p 2"),
        (&["--stop", ""], "empty stop string"),
        (&["--stream", "--json"], "cannot be used with"),
    ] {
        let arguments =
            [["generate", "--model", model, "--prompt", "q"].as_slice(), wrong].concat();
        let refused = run("dlm-train", &repository(), &arguments)?.expect(2)?;
        ensure!(refused.stderr.contains(words), "{wrong:?}: {}", refused.stderr);
    }
    Ok(())
}

#[test]
fn wrong_calls_end_with_2_and_say_what_is_meant() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = samples::pack(dir.path(), "data", &["--max-rows", "100", "--seq-len", "128"])?;
    let out = text(&dir.path().join("model"))?;
    let typo = samples::train(&data, &out, &["optim.lrr=1e-3"])?.expect(2)?;
    ensure!(typo.stderr.contains("optim.lr"), "no nearest key: {}", typo.stderr);
    let group = samples::train(&data, &out, &["optim=adamv"])?.expect(2)?;
    ensure!(group.stderr.contains("adamw"), "no choices: {}", group.stderr);
    let value = samples::train(&data, &out, &["train.batch_rows=many"])?.expect(2)?;
    ensure!(value.stderr.contains("train.batch_rows"), "{}", value.stderr);
    let block = samples::train(&data, &out, &["conversion.bd_size=16"])?;
    ensure!(
        matches!(block.code, Some(1 | 2))
            && block.stderr.contains("16")
            && block.stderr.contains("32"),
        "{block:?}"
    );
    let missing = samples::train("no/such/data", &out, &[])?;
    ensure!(
        matches!(missing.code, Some(1 | 2)) && missing.stderr.contains("no/such/data"),
        "{missing:?}"
    );
    ensure!(!Path::new(&out).join("dlm_config.json").exists(), "an export after refused calls");
    Ok(())
}

/// Data of another tokenizer than the model's is refused before training.
#[test]
fn a_tokenizer_that_does_not_fit_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = samples::pack(dir.path(), "data", &["--max-rows", "100", "--seq-len", "128"])?;
    let first = text(&dir.path().join("first"))?;
    samples::train(&data, &first, &["train.max_steps=1", "train.batch_rows=2"])?.ok()?;
    // The exported model with a tokenizer in which two words have swapped ids.
    let other = dir.path().join("other");
    fs::create_dir(&other)?;
    for entry in fs::read_dir(&first)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), other.join(entry.file_name()))?;
        }
    }
    let path = other.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    let vocab = tokenizer["model"]["vocab"].as_object_mut().context("vocab")?;
    let last: Vec<String> = vocab.keys().rev().take(2).cloned().collect();
    let (a, b) = (vocab[&last[0]].clone(), vocab[&last[1]].clone());
    vocab.insert(last[0].clone(), b);
    vocab.insert(last[1].clone(), a);
    fs::write(&path, tokenizer.to_string())?;
    let source = format!("source.path={}", text(&other)?);
    let out = text(&dir.path().join("second"))?;
    let refused = samples::train(
        &data,
        &out,
        &["source.init=pretrained", &source, "train.max_steps=1", "train.batch_rows=2"],
    )?;
    ensure!(
        matches!(refused.code, Some(1 | 2)),
        "trained with a tokenizer that is not the data's: {}",
        refused.stderr
    );
    Ok(())
}

#[test]
fn cuda_says_what_is_missing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = samples::pack(dir.path(), "data", &["--max-rows", "50", "--seq-len", "128"])?;
    let out = text(&dir.path().join("model"))?;
    let output = format!("output.dir={out}");
    let arguments =
        ["--data", &data, "--device", "cuda:7", "model=sample", "conversion=sample_ar", &output];
    let said = run("dlm-train", &repository(), &arguments)?;
    ensure!(matches!(said.code, Some(1 | 2)) && said.stderr.contains("cuda"), "{said:?}");
    ensure!(said.stderr.trim().lines().count() <= 3, "more than a line or two: {}", said.stderr);
    Ok(())
}
