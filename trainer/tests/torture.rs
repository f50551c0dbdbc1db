//! Damaged, missing and mismatched input: each gives a clear error, and nothing half-written is
//! taken for complete.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use dlm_test_support::skip;

use common::{BD, MASK, VOCAB, dataset, ok, refused, train, workplace};

/// Trains an export to be the source of further runs.
fn source(dir: &Path) -> PathBuf {
    ok(&mut train(dir, "source", &["export.dtype=fp32", "conversion.total_tokens=500"]));
    dir.join("source")
}

fn from_source(dir: &Path, more: &[&str]) -> std::process::Command {
    let mut all = vec!["source.init=pretrained", "source.path=source"];
    all.extend(more);
    train(dir, "out", &all)
}

#[test]
fn damaged_weights_are_refused_with_their_name() {
    let dir = workplace();
    let file = source(dir.path()).join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 100]).unwrap();
    refused(&mut from_source(dir.path(), &[]), 1, &["model.safetensors", "whole"]);
    let mut bad = whole.clone();
    bad[3] = 0xff; // header length
    fs::write(&file, &bad).unwrap();
    refused(&mut from_source(dir.path(), &[]), 1, &["model.safetensors"]);
    let mut bad = whole.clone();
    bad[12] ^= 0x55; // inside the header
    fs::write(&file, &bad).unwrap();
    refused(&mut from_source(dir.path(), &[]), 1, &["model.safetensors"]);
    fs::remove_file(&file).unwrap();
    refused(&mut from_source(dir.path(), &[]), 1, &["no model.safetensors"]);
}

#[test]
fn missing_unused_and_misshapen_tensors_are_listed() {
    let dir = workplace();
    let folder = source(dir.path());
    let config = folder.join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    let edit = |key: &str, value: serde_json::Value| {
        let mut v: serde_json::Value = serde_json::from_str(&text).unwrap();
        v[key] = value;
        fs::write(&config, v.to_string()).unwrap();
    };
    edit("num_hidden_layers", 3.into());
    refused(&mut from_source(dir.path(), &[]), 1, &["missing", "model.layers.2."]);
    edit("num_hidden_layers", 1.into());
    refused(&mut from_source(dir.path(), &[]), 1, &["not used", "model.layers.1."]);
    edit("intermediate_size", 65.into());
    refused(&mut from_source(dir.path(), &[]), 1, &["wrong shape", "[64, 32]", "[65, 32]"]);
    edit("architectures", serde_json::json!(["MambaForCausalLM"]));
    refused(&mut from_source(dir.path(), &[]), 1, &["MambaForCausalLM", "LlamaForCausalLM"]);
    edit("hidden_size", "many".into());
    refused(&mut from_source(dir.path(), &[]), 1, &["hidden_size", "many"]);
    fs::write(&config, "{").unwrap();
    refused(&mut from_source(dir.path(), &[]), 1, &["config.json", "not valid JSON"]);
}

#[test]
fn flipped_bits_in_our_own_checkpoints_are_found() {
    let dir = workplace();
    ok(&mut train(dir.path(), "out", &["train.save_every=3"]));
    let name = fs::read_to_string(dir.path().join("out/checkpoints/latest")).unwrap();
    let at = dir.path().join("out/checkpoints").join(name.trim());
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let path = at.join(file);
        let whole = fs::read(&path).unwrap();
        for position in [whole.len() - 1, whole.len() / 2, 9] {
            let mut bad = whole.clone();
            bad[position] ^= 1;
            fs::write(&path, &bad).unwrap();
            refused(&mut train(dir.path(), "out", &["train.save_every=3"]), 1, &[file, "sha256"]);
        }
        fs::write(&path, &whole).unwrap();
    }
    fs::write(at.join("state.json"), "{\"format_version\": 1").unwrap();
    refused(&mut train(dir.path(), "out", &["train.save_every=3"]), 1, &["state.json"]);
    fs::write(dir.path().join("out/checkpoints/latest"), "../../etc").unwrap();
    refused(&mut train(dir.path(), "out", &["train.save_every=3"]), 1, &["latest", "step-N"]);
}

#[test]
fn data_that_does_not_fit_the_model_names_both_values() {
    let dir = workplace();
    source(dir.path());
    dataset(&dir.path().join("other"), 4, MASK - 1, VOCAB);
    let mut c = from_source(dir.path(), &["data.dir=other"]);
    c.args(["--data", "other"]);
    // The flag is given twice, which clap refuses.
    assert_eq!(c.output().unwrap().status.code(), Some(2));
    fs::rename(dir.path().join("data"), dir.path().join("old")).unwrap();
    fs::rename(dir.path().join("other"), dir.path().join("data")).unwrap();
    refused(&mut from_source(dir.path(), &[]), 1, &["62", "63", "mask"]);
    fs::remove_dir_all(dir.path().join("data")).unwrap();
    dataset(&dir.path().join("data"), 4, MASK, VOCAB * 4);
    refused(&mut from_source(dir.path(), &[]), 1, &["256", "64", "tokenizer"]);
    fs::remove_dir_all(dir.path().join("data")).unwrap();
    fs::rename(dir.path().join("old"), dir.path().join("data")).unwrap();
    refused(&mut from_source(dir.path(), &["conversion.bd_size=16"]), 1, &["16", &BD.to_string()]);
}

#[test]
fn vanished_and_damaged_data_files_are_errors() {
    let dir = workplace();
    let file = dir.path().join("data/train-00000.arrow");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    refused(&mut train(dir.path(), "out", &[]), 1, &["train-00000.arrow"]);
    fs::remove_file(&file).unwrap();
    refused(&mut train(dir.path(), "out", &[]), 1, &["train-00000.arrow"]);
    fs::remove_file(dir.path().join("data/manifest.json")).unwrap();
    refused(
        &mut train(dir.path(), "out", &[]),
        2,
        &["--data data", "manifest.json", "dlm-prep --out data"],
    );
    fs::remove_dir_all(dir.path().join("data")).unwrap();
    refused(&mut train(dir.path(), "out", &[]), 2, &["--data data", "no such folder"]);
}

#[test]
fn a_typo_in_the_config_names_the_nearest_key() {
    let dir = workplace();
    refused(&mut train(dir.path(), "out", &["optim.lrr=1"]), 2, &["optim.lrr", "optim.lr"]);
    refused(
        &mut train(dir.path(), "out", &["train.batch_rows=many"]),
        2,
        &["train.batch_rows", "many"],
    );
    refused(&mut train(dir.path(), "out", &["model=qwen9"]), 2, &["qwen9"]);
    // a key that was renamed
    refused(
        &mut train(dir.path(), "out", &["train.micro_rows=2"]),
        2,
        &["train.micro_rows", "train.micro_batch_rows"],
    );
    refused(
        &mut train(dir.path(), "out", &["source.path=hf:/x", "source.init=pretrained"]),
        2,
        &["source.path"],
    );
    let mut device = train(dir.path(), "out", &[]);
    device.args(["--device", "tpu"]);
    assert_eq!(device.output().unwrap().status.code(), Some(2));
}

/// A run into a full file system: the error names the file, the last complete checkpoint stays, and
/// there is no export.
#[test]
fn a_full_disk_leaves_nothing_that_passes_for_whole() {
    let dir = workplace();
    let out = dir.path().join("small");
    fs::create_dir(&out).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=400k", "tmpfs"])
        .arg(&out)
        .output();
    if !mounted.is_ok_and(|o| o.status.success()) {
        skip("a full disk: no right to mount a small file system here");
        return;
    }
    let run = train(dir.path(), "small", &["train.save_every=2"]).output().unwrap();
    let err = String::from_utf8_lossy(&run.stderr).to_string();
    let exported = out.join("dlm_config.json").exists();
    let latest = fs::read_to_string(out.join("checkpoints/latest"));
    let whole = latest
        .as_ref()
        .map(|n| out.join("checkpoints").join(n.trim()).join("state.json").is_file());
    let unmounted = std::process::Command::new("umount").arg(&out).status();
    assert!(unmounted.is_ok_and(|s| s.success()));
    assert_eq!(run.status.code(), Some(1), "{err}");
    assert!(err.contains("small") && !err.contains("panicked"), "{err}");
    assert!(!exported, "an export on a full disk");
    assert!(whole.unwrap_or(true), "latest names a checkpoint that is not whole");
}
