//! A GPU compared with the CPU: the same tiny run has the same losses, and the trained model gives
//! the same tokens, both in fp32. `DLM_TEST_DEVICE=cuda cargo test --release --test gpu`; skipped
//! with a message without that. `DLM_FEATURES=dlm-train/wgpu DLM_TEST_DEVICE=wgpu` builds for wgpu.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use dlm_test_support::{Run, repository, run, skip};
use dlm_tests::samples;
use serde_json::Value;

/// Relative tolerance of a loss: fp32 on both sides, but sums are taken in another order.
const LOSS: f64 = 2e-3;

fn train(data: &str, out: &str, device: &str, conversion: &str, steps: usize) -> Result<Run> {
    let (out, steps) = (format!("output.dir={out}"), format!("train.max_steps={steps}"));
    let mut arguments = vec![
        "--data",
        data,
        "--device",
        device,
        "model=sample",
        conversion,
        "source.init=random",
        &out,
        &steps,
    ];
    arguments.extend([
        "train.batch_rows=2",
        "train.log_every=1",
        "train.dtype=fp32",
        "train.eval_every=0",
        "train.save_every=0",
    ]);
    run("dlm-train", &repository(), &arguments)
}

fn losses(out: &str) -> Result<Vec<f64>> {
    let metrics = fs::read_to_string(Path::new(out).join("metrics.jsonl"))?;
    metrics
        .lines()
        .map(|l| serde_json::from_str::<Value>(l)?["loss"].as_f64().context("loss"))
        .collect()
}

#[test]
fn the_same_on_a_card() -> Result<()> {
    let Ok(device) = std::env::var("DLM_TEST_DEVICE") else {
        skip("gpu: DLM_TEST_DEVICE names no device (cuda, wgpu)");
        return Ok(());
    };
    let device = device.as_str();
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let data = samples::pack(dir.path(), "data", &["--max-rows", "400", "--seq-len", "128"])?;
    let probe = train(&data, &path("probe"), device, "conversion=sample_ar", 1)?;
    if probe.code != Some(0)
        && (probe.stderr.contains("built without") || probe.stderr.contains("no NVIDIA driver"))
    {
        skip(&format!("gpu: {}", probe.stderr.lines().last().unwrap_or_default()));
        return Ok(());
    }
    probe.ok()?;
    for conversion in ["conversion=sample_ar", "conversion=sample_diffusion"] {
        let (card, cpu) = (path(&format!("{conversion}-card")), path(&format!("{conversion}-cpu")));
        train(&data, &card, device, conversion, 12)?.ok()?;
        train(&data, &cpu, "cpu", conversion, 12)?.ok()?;
        let (a, b) = (losses(&card)?, losses(&cpu)?);
        ensure!(a.len() == b.len() && a.len() == 12, "{} and {} steps", a.len(), b.len());
        for (step, (a, b)) in a.iter().zip(&b).enumerate() {
            ensure!(
                (a - b).abs() <= LOSS * b.abs(),
                "{conversion}, step {}: loss {a} on the card, {b} on the CPU",
                step + 1
            );
        }
        // One model, decoded on both devices.
        let mode = if conversion.ends_with("ar") { "ar" } else { "block" };
        let answers = |on: &str| -> Result<Vec<Value>> {
            let arguments = [
                "generate",
                "--model",
                &cpu,
                "--ids",
                "1,2,3,4,5,6,7",
                "--mode",
                mode,
                "--max-new-tokens",
                "24",
                "--json",
                "--dtype",
                "fp32",
                "--device",
                on,
            ];
            let lines = run("dlm-train", &repository(), &arguments)?.ok()?.stdout;
            lines
                .lines()
                .map(|l| Ok(serde_json::from_str::<Value>(l)?["completion_ids"].clone()))
                .collect()
        };
        ensure!(answers(device)? == answers("cpu")?, "{conversion}: other tokens on the card");
    }
    Ok(())
}
