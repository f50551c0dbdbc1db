//! Numbers without sense end with exit code 2 and a sentence: no abort, no lack of memory.

mod common;

use std::fs;
use std::path::Path;

use common::{refused, train, workplace};
use dlm_test_support::fixtures;
use serde_json::{Value, json};

const MOST: &str = "18446744073709551615";

#[test]
fn settings_have_an_upper_bound() {
    let dir = workplace();
    for key in ["train.batch_rows", "train.prefetch"] {
        for value in ["0", "1099511627776", MOST] {
            let setting = format!("{key}={value}");
            refused(&mut train(dir.path(), "out", &[&setting]), 2, &[key, "expected 1 to"]);
        }
    }
    assert!(!dir.path().join("out").exists());
}

#[test]
fn shapes_have_an_upper_bound() {
    let dir = workplace();
    let path = dir.path().join("config.json");
    let original: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, value, words) in [
        ("num_hidden_layers", json!(1u64 << 35), "num_hidden_layers"),
        ("num_hidden_layers", json!(5000), "at most 4096"),
        ("hidden_size", json!(1u64 << 39), "hidden_size"),
        ("vocab_size", json!(1u64 << 60), "vocab_size"),
        ("intermediate_size", json!(1u64 << 28), "GiB of memory are free"),
        ("head_dim", json!(1u64 << 27), "a product of at most"),
        ("rms_norm_eps", json!("Infinity"), "rms_norm_eps"),
    ] {
        let mut config = original.clone();
        config[key] = value;
        fs::write(&path, config.to_string()).unwrap();
        refused(&mut train(dir.path(), "out", &[]), 2, &[words]);
    }
}

#[test]
fn options_have_an_upper_bound() {
    let model = fixtures().join("qwen2_tiny");
    let case = fixtures().join("obj_qwen2_bd8.safetensors");
    let program = || dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    for value in ["0", "1099511627776", MOST] {
        let mut generate = program();
        generate.args(["generate", "--device", "cpu", "--ids", "3", "--mask-token-id", "319"]);
        generate.arg("--model").arg(&model).args(["--block-size", value]);
        refused(&mut generate, 2, &["--block-size", "expected 1 to"]);
        let mut parity = program();
        parity.args(["parity", "--device", "cpu", "--bd-size", value, "--model"]).arg(&model);
        refused(parity.arg("--case").arg(&case), 2, &["--bd-size", "expected 1 to"]);
    }
    for (option, value) in [("--seq", "1099511627776"), ("--batch", MOST)] {
        let mut bench = program();
        bench.args(["bench", "train", "--device", "cpu", "--preset", "tiny_llama", option, value]);
        refused(&mut bench, 2, &["do not fit into memory"]);
    }
}

/// Files of a model folder that are larger than any real one are refused before they are in memory.
#[test]
fn files_have_an_upper_bound() {
    let dir = workplace();
    let folder = dir.path().join("model");
    let source = ["source.init=pretrained", "source.path=model"];
    let fresh = || {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        for entry in fs::read_dir(fixtures().join("qwen2_tiny")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
    };
    // sparse: the length alone is large
    let huge = |name: &str| {
        fs::File::create(folder.join(name)).unwrap().set_len(1 << 40).unwrap();
    };
    for (name, most) in [
        ("config.json", "more than 8 MiB"),
        ("generation_config.json", "more than 8 MiB"),
        ("model.safetensors.index.json", "more than 64 MiB"),
    ] {
        fresh();
        if name.ends_with("index.json") {
            fs::remove_file(folder.join("model.safetensors")).unwrap();
        }
        huge(name);
        let mut generate = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
        generate.current_dir(dir.path()).args(["generate", "--model", "model", "--device", "cpu"]);
        generate.args(["--ids", "3", "--mask-token-id", "319"]);
        refused(&mut generate, 2, &[name, most]);
        if name != "generation_config.json" {
            refused(&mut train(dir.path(), "out", &source), 2, &[name, most]);
        }
    }
    // a header within the file that is too long, and one that is longer than the file
    for (length, code, words) in [
        (100_000_001u64, 2, "announce a safetensors header of 100000001 bytes"),
        (1 << 40, 1, "not a whole safetensors file"),
        (u64::MAX, 1, "not a whole safetensors file"),
    ] {
        fresh();
        let path = folder.join("model.safetensors");
        fs::write(&path, length.to_le_bytes()).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(100_001_000).unwrap();
        let parity = |model: &Path, case: &Path| {
            let mut command = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
            command.args(["parity", "--device", "cpu", "--model"]).arg(model);
            command.arg("--case").arg(case);
            command
        };
        let case = fixtures().join("obj_qwen2_bd8.safetensors");
        refused(&mut parity(&folder, &case), code, &["model.safetensors", words]);
        refused(&mut parity(&fixtures().join("qwen2_tiny"), &path), code, &[words]);
    }
}
