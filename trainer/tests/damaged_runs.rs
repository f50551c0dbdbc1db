//! Damaged and hostile checkpoints of runs and manifests of datasets, made from tiny ones: each
//! ends with an error that names what is wrong, or has no effect; none ends by a signal or a panic,
//! and none takes memory for sizes that a file only claims.

#![cfg(unix)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::damage::{Case, every_key, noise, pipe_instead, try_all};
use common::{ok, train, workplace};
use serde_json::{Value, json};

/// A run whose newest checkpoint is not the end.
fn run() -> tempfile::TempDir {
    let dir = workplace();
    ok(&mut train(dir.path(), "out", &["train.save_every=2", "train.max_steps=4"]));
    dir
}

fn resume(dir: &Path) -> Command {
    train(dir, "out", &["train.save_every=2", "train.max_steps=5"])
}

#[test]
fn checkpoint_states_of_any_content() {
    let dir = run();
    let file = "out/checkpoints/step-000000004/state.json";
    let state: Value = serde_json::from_slice(&fs::read(dir.path().join(file)).unwrap()).unwrap();
    let text = state.to_string();
    let mut cases = noise(text.as_bytes(), text.len(), 16);
    for (key, value) in [
        ("step", json!(u64::MAX)),
        ("step", json!(-1)),
        ("cursor", json!(u64::MAX)),
        ("updates", json!(u64::MAX)),
        ("tokens", json!("7")),
        ("micro_batch_rows", json!(0)),
        ("micro_batch_rows", json!(u64::MAX)),
        ("loss_mean", json!("x")),
        ("seconds", json!(-1e308)),
        ("zclip", json!([])),
        ("best", json!({"step": u64::MAX, "eval_loss": 0.0})),
    ] {
        let mut changed = state.clone();
        changed["state"][key] = value;
        let name = format!("state.{key} = {}", changed["state"][key]);
        cases.push(Case::any(name, changed.to_string()));
    }
    let mut with = |edit: &dyn Fn(&mut Value), word: &str| {
        let mut changed = state.clone();
        edit(&mut changed);
        cases.push(Case::refused(format!("{word} {}", cases.len()), changed.to_string(), word));
    };
    with(&|v| v["format_version"] = json!(2), "format_version");
    with(&|v| v["files"] = json!({}), "sha256");
    with(&|v| drop(v["files"].as_object_mut().unwrap().remove("optimizer.safetensors")), "sha256");
    with(&|v| drop(v["files"].as_object_mut().unwrap().remove("model.safetensors")), "sha256");
    with(&|v| v["files"]["../../../data/manifest.json"] = json!("0"), "expected names of files");
    with(&|v| v["files"]["absent"] = json!("0"), "absent");
    with(&|v| v["files"]["config.json"] = json!("0"), "config.json");
    with(&|v| v["identity"] = json!({}), "differs from this call");
    with(&|v| v["identity"] = json!([]), "state.json");
    with(&|v| *v = json!([]), "state.json");
    try_all(dir.path(), file, &cases, resume);
}

#[test]
fn manifests_of_any_content() {
    let dir = workplace();
    let file = "data/manifest.json";
    let original: Value =
        serde_json::from_slice(&fs::read(dir.path().join(file)).unwrap()).unwrap();
    let short = |dir: &Path| train(dir, "out", &["train.max_steps=1"]);
    let mut cases = every_key(&original, 2);
    let text = original.to_string();
    cases.extend(noise(text.as_bytes(), text.len(), 16));
    let mut with = |edit: &dyn Fn(&mut Value), word: &str| {
        let mut changed = original.clone();
        edit(&mut changed);
        cases.push(Case::refused(format!("{word} {}", cases.len()), changed.to_string(), word));
    };
    let twice = |v: &mut Value| {
        let entry = v["files"][0].clone();
        v["files"].as_array_mut().unwrap().push(entry);
    };
    with(&twice, "twice");
    with(&|v| v["files"][0]["path"] = json!("../config.json"), "own folder");
    with(&|v| v["files"][0]["rows"] = json!(u64::MAX), "rows");
    with(&|v| v["files"][0]["bytes"] = json!(u64::MAX), "bytes");
    with(&|v| v["files"] = json!([]), "no training rows");
    with(&|v| v["seq_len"] = json!(1u64 << 30), "train-00000.arrow");
    with(&|v| v["seq_len"] = json!(0), "seq_len");
    with(&|v| v["bd_size"] = json!(0), "bd_size");
    with(&|v| v["bd_size"] = json!(64), "multiples of 64");
    with(&|v| v["mask_token_id"] = json!(64), "mask_token_id 64");
    with(&|v| v["mask_token_id"] = json!("63"), "manifest");
    with(&|v| v["vocab_size"] = json!(1u64 << 40), "ids");
    with(&|v| v["sources"] = json!([]), "source");
    try_all(dir.path(), file, &cases, short);
}

/// Opening a pipe that nobody writes to waits for ever.
#[test]
fn pipes_instead_of_data_are_refused() {
    for file in ["data/manifest.json", "data/train-00000.arrow"] {
        let dir = workplace();
        pipe_instead(&dir.path().join(file));
        let name = Path::new(file).file_name().unwrap().to_str().unwrap();
        let out = train(dir.path(), "out", &["train.max_steps=1"]).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{said}");
        assert!(said.contains(name) && said.contains("expected a file"), "{said}");
    }
    let dir = run();
    let latest = dir.path().join("out/checkpoints/step-000000004/optimizer.safetensors");
    pipe_instead(&latest);
    let out = resume(dir.path()).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("optimizer.safetensors"), "{said}");
}
