//! The cards of a model and of a dataset, read by huggingface_hub's own classes.

use anyhow::{Context, Result, ensure};
use dlm_test_support::{capture, python, repository, run};
use dlm_tests::samples;
use std::process::Command;

#[test]
fn cards_parse_with_the_classes_of_huggingface_hub() -> Result<()> {
    let Some(python) = python::with(&["huggingface_hub", "yaml"]) else {
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let data = samples::pack(dir.path(), "data", &["--max-rows", "300", "--seq-len", "128"])?;
    let out = dir.path().join("model");
    let out = out.to_str().context("path")?;
    samples::train(&data, out, &["conversion.total_tokens=2000", "train.batch_rows=4"])?.ok()?;
    run("dlm-train", &repository(), &["export", out, "--data", &data, "--card"])?.ok()?;
    run("dlm-prep", &repository(), &["push", &data, "me/packed", "--card"])?.ok()?;
    let (model, dataset) = (format!("{out}/README.md"), format!("{data}/README.md"));
    let check = |pairs: &[&str]| {
        let mut command = Command::new(&python);
        command.arg(repository().join("tests/python/check_cards.py")).args(pairs);
        capture(command.env("HF_HUB_OFFLINE", "1"))
    };
    let headers = check(&["model", &model, "dataset", &dataset])?.ok()?.json()?;
    ensure!(headers[0]["pipeline_tag"] == "text-generation", "{headers}");
    ensure!(headers[1]["pretty_name"] == "packed", "{headers}");
    ensure!(headers[1]["configs"][0]["data_files"][0]["path"] == "train-*.arrow", "{headers}");
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(format!("{data}/manifest.json"))?)?;
    let loaded = &headers[1]["rows"]["train"];
    ensure!(loaded.is_null() || *loaded == manifest["packing"]["train_rows"], "{headers}");

    // The check must be able to fail: a header that is no YAML, a row that is too long.
    let good = std::fs::read_to_string(&model)?;
    std::fs::write(&model, good.replacen("tags: [", "tags: [[", 1))?;
    ensure!(check(&["model", &model])?.ok().is_err());
    std::fs::write(&model, good.replacen("| seed |", "| seed | |", 1))?;
    ensure!(check(&["model", &model])?.ok().is_err());
    Ok(())
}
