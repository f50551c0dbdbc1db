//! `dlm-train parity` against the reference tensors of the shared fixtures: logits, loss and
//! gradients, both layouts.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use dlm_tests::{repository, run, shared};
use serde_json::Value;

fn parity(model: &Path, case: &Path, grads: &Path, more: &[&str]) -> Result<Value> {
    let mut arguments = vec!["parity", "--device", "cpu", "--json", "--model"];
    arguments.push(model.to_str().context("path")?);
    arguments.extend(["--case", case.to_str().context("path")?]);
    if grads.is_file() {
        arguments.extend(["--grads", grads.to_str().context("path")?]);
    }
    arguments.extend(more);
    let run = run("dlm-train", &repository(), &arguments)?;
    // exit code and message of a failed comparison both matter: show them
    let run = run.ok()?;
    let report = run.json()?;
    ensure!(report["ok"] == true, "{}: {report}", run.call);
    Ok(report)
}

fn number(report: &Value, key: &str) -> Result<f64> {
    report[key].as_f64().with_context(|| format!("no {key} in {report}"))
}

#[test]
fn causal_models_match() -> Result<()> {
    let Some(fixtures) = shared("fixtures") else {
        return Ok(());
    };
    for model in ["llama_tiny", "qwen2_tiny", "qwen3_tiny", "bitnet_tiny"] {
        let case = fixtures.join(format!("causal_{model}.safetensors"));
        let grads = fixtures.join(format!("causal_{model}_grads.safetensors"));
        let report = parity(&fixtures.join(model), &case, &grads, &[])?;
        ensure!(number(&report, "logits_max_abs")? < 2e-4, "{model}: {report}");
        ensure!(number(&report, "grads_max_rel")? < 1e-4, "{model}: {report}");
    }
    Ok(())
}

#[test]
fn objective_matches_in_both_layouts() -> Result<()> {
    let Some(fixtures) = shared("fixtures") else {
        return Ok(());
    };
    let cases: Value =
        serde_json::from_str(&std::fs::read_to_string(fixtures.join("objective.json"))?)?;
    let mut checked = 0;
    for (name, case) in cases.as_object().context("objective.json is no object")? {
        // the entry of the mask drawings is no case
        if case.get("mask_id").is_none() {
            continue;
        }
        // quantised models need the laxer comparison of the fixtures' README; ragged documents are
        // optional there
        if name.contains("online") || name.contains("ragged") {
            continue;
        }
        let text = |key: &str| {
            case[key].as_u64().map(|n| n.to_string()).with_context(|| format!("{name}: no {key}"))
        };
        let (block, mask) = (text("block_size")?, text("mask_id")?);
        let model = fixtures.join(case["model"].as_str().context("model")?);
        let file = fixtures.join(format!("obj_{name}.safetensors"));
        let grads = fixtures.join(format!("obj_{name}_grads.safetensors"));
        for layout in ["reference", "saving"] {
            let more = ["--bd-size", &block, "--mask-token-id", &mask, "--layout", layout];
            let report = parity(&model, &file, &grads, &more)?;
            ensure!(number(&report, "loss_abs")? < 2e-4, "{name}, {layout}: {report}");
            ensure!(number(&report, "grads_max_rel")? < 1e-4, "{name}, {layout}: {report}");
            checked += 1;
        }
    }
    ensure!(checked >= 12, "only {checked} comparisons were made");
    Ok(())
}

/// The comparison must be able to fail: another model's tensors, and a wrong block size.
#[test]
fn a_wrong_model_or_block_size_is_told() -> Result<()> {
    let Some(fixtures) = shared("fixtures") else {
        return Ok(());
    };
    let path = |name: &str| fixtures.join(name).to_str().map(str::to_string).context("path");
    let (model, case) = (path("qwen2_tiny")?, path("obj_qwen2_bd8.safetensors")?);
    let wrong = [
        "parity",
        "--device",
        "cpu",
        "--json",
        "--model",
        &model,
        "--case",
        &case,
        "--mask-token-id",
        "319",
        "--bd-size",
        "16",
    ];
    let report = run("dlm-train", &repository(), &wrong)?.expect(1)?.json()?;
    ensure!(report["ok"] == false, "{report}");
    let (model, case) = (path("qwen3_tiny")?, path("causal_qwen2_tiny.safetensors")?);
    let report = run(
        "dlm-train",
        &repository(),
        &["parity", "--device", "cpu", "--json", "--model", &model, "--case", &case],
    )?;
    ensure!(report.expect(1)?.json()?["ok"] == false);
    Ok(())
}
