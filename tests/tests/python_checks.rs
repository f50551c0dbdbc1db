//! The checks under tests/python: packed files in pyarrow and polars, ids and labels against an
//! independent computation, an exported folder in transformers.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use dlm_test_support::{Run, build, capture, python, repository, run, shared};
use dlm_tests::sample::TRAIN_ROWS;
use dlm_tests::samples;

fn script(python: &std::path::Path, name: &str, arguments: &[&str]) -> Result<Run> {
    let mut command = Command::new(python);
    command.arg(repository().join("tests/python").join(name)).args(arguments);
    command.env("CUDA_VISIBLE_DEVICES", "").env("HF_HUB_OFFLINE", "1");
    capture(&mut command)
}

#[test]
fn packed_files_open_without_copying_in_pyarrow_and_polars() -> Result<()> {
    let Some(python) = python::with(&["numpy", "polars", "pyarrow"]) else {
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let data = samples::pack(dir.path(), "data", &["--seq-len", "512", "--eval-fraction", "0.05"])?;
    let totals = script(&python, "check_packed.py", &[&data])?.ok()?.json()?;
    ensure!(totals["documents"].as_u64() == Some(TRAIN_ROWS as u64), "{totals}");

    // The check must be able to fail: one changed byte in a data file.
    let file = std::path::Path::new(&data).join("train-00000.arrow");
    let mut bytes = std::fs::read(&file)?;
    let middle = bytes.len() / 2;
    *bytes.get_mut(middle).context("an empty file")? ^= 1;
    std::fs::write(&file, bytes)?;
    script(&python, "check_packed.py", &[&data])?.expect(1)?;
    Ok(())
}

#[test]
fn an_export_loads_in_transformers_with_the_same_logits() -> Result<()> {
    let Some(python) = python::with(&["torch", "transformers", "safetensors", "jinja2"]) else {
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let data = samples::pack(dir.path(), "data", &["--max-rows", "200", "--seq-len", "128"])?;
    for (dtype, tolerance) in [("fp32", "1e-3"), ("bf16", "1e-3")] {
        let out = dir.path().join(format!("model-{dtype}"));
        let out = out.to_str().context("path")?;
        samples::train(
            &data,
            out,
            &[
                "conversion.total_tokens=4000",
                "train.batch_rows=4",
                &format!("export.dtype={dtype}"),
            ],
        )?
        .ok()?;
        let case = dir.path().join(format!("case-{dtype}.safetensors"));
        let case = case.to_str().context("path")?;
        let said = script(&python, "check_export.py", &[out, case])?.ok()?.json()?;
        let stored = said["stored_dtype"].as_str().unwrap_or("");
        ensure!(
            stored == if dtype == "fp32" { "torch.float32" } else { "torch.bfloat16" },
            "{said}"
        );
        ensure!(
            said["logits_spread"].as_f64().unwrap_or(0.0) > 0.05,
            "logits too flat to show anything: {said}"
        );
        let parity = [
            "parity",
            "--device",
            "cpu",
            "--json",
            "--model",
            out,
            "--case",
            case,
            "--tol-logits",
            tolerance,
            "--tol-loss",
            "1e-4",
        ];
        let report = run("dlm-train", &repository(), &parity)?.ok()?.json()?;
        ensure!(report["ok"] == true, "{report}");
        // `generate` encodes the prompt as transformers does.
        let text = said["text"].as_str().context("text")?;
        let generated = run(
            "dlm-train",
            &repository(),
            &[
                "generate",
                "--model",
                out,
                "--prompt",
                text,
                "--mode",
                "ar",
                "--max-new-tokens",
                "2",
                "--json",
            ],
        )?;
        ensure!(
            generated.ok()?.json()?["prompt_ids"] == said["prompt_ids"],
            "transformers encodes the prompt as {}",
            said["prompt_ids"]
        );
    }
    Ok(())
}

/// Ids and labels of 7,500 conversations for each of four tokenizers equal those computed with
/// jinja2 and the stable tokenizers package.
#[test]
fn ids_and_labels_equal_an_independent_computation() -> Result<()> {
    let Some(shared) = shared("assets/conversations") else {
        return Ok(());
    };
    let Some(python) = python::with(&["jinja2", "pyarrow", "tokenizers"]) else {
        return Ok(());
    };
    let shared =
        shared.parent().and_then(|p| p.parent()).and_then(|p| p.to_str()).context("path")?;
    let prep = build()?.join(format!("dlm-prep{}", std::env::consts::EXE_SUFFIX));
    let check = script(
        &python,
        "check_prep_parity.py",
        &["--bin", prep.to_str().context("path")?, "--shared", shared],
    )?;
    let said = check.ok()?.stdout;
    let count =
        |line: &str| line.split("conversations, ").nth(1)?.split(' ').next()?.parse::<u64>().ok();
    let equal: Vec<u64> = said
        .lines()
        .filter(|l| l.contains("0 missing, 0 extra: equal"))
        .filter_map(count)
        .collect();
    ensure!(equal.len() == 4 && equal.iter().all(|&n| n >= 5000), "{said}");
    Ok(())
}

/// Ids and labels of 7,500 conversations for each of twelve tokenizers trained on the sample, most
/// of which treat text by its position, equal those of the stable tokenizers package, which encodes
/// the whole conversation at once.
#[test]
fn trained_tokenizers_give_the_ids_and_labels_of_the_whole_text() -> Result<()> {
    let Some(python) = python::with(&["pyarrow", "tokenizers"]) else {
        return Ok(());
    };
    let prep = build()?.join(format!("dlm-prep{}", std::env::consts::EXE_SUFFIX));
    let arguments = ["--bin", prep.to_str().context("path")?];
    let said = script(&python, "check_trained_tokenizers.py", &arguments)?.ok()?.stdout;
    let equal = said.lines().filter(|line| line.contains(" equal, 0 different, ")).count();
    ensure!(equal == 12, "{said}");
    Ok(())
}

/// `dlm-train serve` with the PyPI package openai, with lm-eval where it is installed, and with
/// memory that does not grow over 320 requests.
#[test]
fn a_server_answers_the_clients_that_people_use() -> Result<()> {
    let Some(python) = python::with(&["openai"]) else {
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let data = samples::pack(dir.path(), "data", &["--max-rows", "200", "--seq-len", "128"])?;
    let out = dir.path().join("model");
    let out = out.to_str().context("path")?;
    let budget = ["conversion.total_tokens=4000", "train.batch_rows=4"];
    samples::train(&data, out, &budget)?.ok()?;
    let train = build()?.join(format!("dlm-train{}", std::env::consts::EXE_SUFFIX));
    let arguments = [train.to_str().context("path")?, out, "--requests", "320"];
    let said = script(&python, "check_serve.py", &arguments)?.ok()?.json()?;
    ensure!(said["openai"]["questions"] == 32 && said["exit_code"] == 0, "{said}");
    ensure!(said["memory"]["requests"] == 320, "{said}");
    Ok(())
}
