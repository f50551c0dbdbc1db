//! A real checkpoint, SmolLM2-135M, against transformers: logits, the objective's loss and
//! gradients, greedy completions. The checkpoint comes from a package of the Python registry and
//! takes 540 MB in fp32; prints `SKIP` where it cannot be had.

#![allow(clippy::print_stdout, reason = "what a test measured")]

use std::fs;
use std::path::Path;
use std::process::Command;

use dlm_test_support::{capture, python, shared, skip};
use serde_json::{Value, json};

/// Of 30 layers in fp32, gradients of the first keep three digits.
const OBJECTIVE: &[&str] = &["--bd-size", "32", "--mask-token-id", "7", "--tol-grads", "1e-3"];

fn program(model: &Path, command: &str) -> Command {
    let mut program = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    program.arg(command).args(["--device", "cpu", "--json", "--model"]).arg(model);
    program
}

#[test]
fn smollm2_is_what_transformers_computes() {
    let Some(script) = shared("real/smollm2.py") else { return };
    let real = script.parent().unwrap();
    let place = tempfile::tempdir().unwrap();
    let model = place.path().join("smollm2");
    let Some(python) = python::with(&["numpy", "gguf", "safetensors"]) else { return };
    let made = Command::new(&python).arg(&script).arg(&model).output();
    match made {
        Ok(made) if made.status.success() => {}
        Ok(made) => {
            let reason = String::from_utf8_lossy(&made.stderr).into_owned();
            return skip(&format!("SmolLM2-135M cannot be had: {reason}"));
        }
        Err(error) => {
            return skip(&format!("SmolLM2-135M cannot be had: {}: {error}", python.display()));
        }
    }
    for (case, more) in [("causal_smollm2", &[][..]), ("obj_smollm2_bd32", OBJECTIVE)] {
        let mut parity = program(&model, "parity");
        parity.arg("--case").arg(real.join(format!("{case}.safetensors"))).args(more);
        let grads = real.join(format!("{case}_grads.safetensors"));
        if grads.is_file() {
            parity.arg("--grads").arg(grads);
        }
        let report = capture(&mut parity).unwrap().ok().unwrap().json().unwrap();
        println!("{case}: {report}");
        assert_eq!(report["ok"], true, "{case}: {report}");
        if case.starts_with("obj") {
            assert_eq!(report["grads_compared"], 6, "the file holds six of the gradients");
        }
    }
    let reference = fs::read(real.join("reference.json")).unwrap();
    let reference: Value = serde_json::from_slice(&reference).unwrap();
    let greedy = reference["greedy"].as_array().unwrap();
    assert_eq!(greedy.len(), 6);
    let prompts: Vec<String> =
        greedy.iter().map(|case| json!({"ids": case["prompt_ids"]}).to_string()).collect();
    let input = place.path().join("prompts.jsonl");
    fs::write(&input, prompts.join("\n")).unwrap();
    let longest = greedy.iter().map(|case| case["completion_ids"].as_array().unwrap().len()).max();
    let limit = longest.unwrap().to_string();
    let mut generate = program(&model, "generate");
    generate.args(["--mode", "ar", "--max-new-tokens", &limit, "--input"]).arg(&input);
    let out = capture(&mut generate).unwrap().ok().unwrap();
    for (line, case) in out.stdout.lines().zip(greedy) {
        let completion: Value = serde_json::from_str(line).unwrap();
        assert_eq!(completion["completion_ids"], case["completion_ids"], "{}", case["question"]);
    }
    assert_eq!(out.stdout.lines().count(), 6);
}
