//! Damaged and hostile files of model folders, made from tiny ones: each ends with an error that
//! names what is wrong, or has no effect; none ends by a signal or a panic, and none takes memory
//! for sizes that a file only claims.

#![cfg(unix)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::damage::{Case, copy, every_key, noise, pipe_instead, try_all};
use common::ok;
use dlm_test_support::fixtures;
use serde_json::{Value, json};

/// Decodes two tokens with the model in `dir`.
fn generate(dir: &Path) -> Command {
    let mut c = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    c.args(["generate", "--device", "cpu", "--ids", "3,4", "--max-new-tokens", "2", "--mode"]);
    c.args(["ar", "--model"]).arg(dir);
    c
}

fn model() -> (PathBuf, Value) {
    let folder = fixtures().join("qwen2_tiny");
    let config = fs::read(folder.join("config.json")).unwrap();
    (folder, serde_json::from_slice(&config).unwrap())
}

#[test]
fn configs_of_any_content() {
    let (folder, config) = model();
    let mut cases = every_key(&config, 3);
    cases.extend(noise(config.to_string().as_bytes(), config.to_string().len(), 20));
    for (key, value, word) in [
        ("vocab_size", json!(0), "vocab_size"),
        ("vocab_size", json!("320"), "vocab_size"),
        ("hidden_size", json!(1u64 << 40), "hidden_size"),
        ("num_hidden_layers", json!(-1), "num_hidden_layers"),
        ("num_key_value_heads", json!(3), "num_key_value_heads"),
        ("eos_token_id", json!("318"), "eos_token_id"),
        ("eos_token_id", json!([318, 4_294_967_296u64]), "4294967296"),
        ("eos_token_id", json!(320), "320 rows"),
        ("mask_token_id", json!("319"), "mask_token_id"),
        ("mask_token_id", json!(319.0), "319.0"),
        ("mask_token_id", json!(-1), "-1"),
        ("mask_token_id", json!([319]), "[319]"),
        ("mask_token_id", json!(true), "true"),
        ("mask_token_id", json!(320), "320 rows"),
        ("mask_token_id", json!(1u64 << 32), "4294967296"),
        ("rope_scaling", json!("linear"), "rope_scaling"),
        ("layer_types", json!({}), "layer_types"),
    ] {
        let mut changed = config.clone();
        changed[key] = value;
        cases.push(Case::refused(format!("{key} = {}", changed[key]), changed.to_string(), word));
    }
    let deep = format!("{{\"a\": {}1{}}}", "[".repeat(200_000), "]".repeat(200_000));
    cases.push(Case::refused("deep", deep, "config.json"));
    cases.push(Case::refused("long", format!("[{}0]", "0,".repeat(5_000_000)), "more than 8 MiB"));
    for text in ["", "null", "[]", "7", "\"x\"", "\u{feff}", "{\"a\": NaN}"] {
        cases.push(Case::refused(format!("{text:?}"), text, "config.json"));
    }
    cases.push(Case::refused("not text", [0xff, 0xfe, 0, 1], "config.json"));
    try_all(&folder, "config.json", &cases, generate);
}

#[test]
fn safetensors_headers_of_any_content() {
    let (folder, _) = model();
    let file = fs::read(folder.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let data = &file[8 + length..];
    let with = |header: &str| {
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
        bytes.to_vec()
    };
    const NAME: &str = "model.embed_tokens.weight";
    let [start, end] = [0, 1].map(|i| header[NAME]["data_offsets"][i].as_u64().unwrap());
    let mut cases = noise(&file, 8 + length, 40);
    for (key, value) in [
        ("dtype", json!("F64")),
        ("dtype", json!("I8")),
        ("dtype", json!("X")),
        ("dtype", json!(3)),
        ("shape", json!([320])),
        ("shape", json!([])),
        ("shape", json!([64, 320, 1])),
        ("shape", json!([u64::MAX, 2])),
        ("shape", json!([1u64 << 40, 1u64 << 40])),
        ("shape", json!(-1)),
        ("data_offsets", json!([end, start])),
        ("data_offsets", json!([start, end + 4])),
        ("data_offsets", json!([start, end - 4])),
        ("data_offsets", json!([start, u64::MAX])),
        ("data_offsets", json!([-1, end])),
        ("data_offsets", json!([start])),
        ("data_offsets", json!(null)),
    ] {
        let mut changed = header.clone();
        changed[NAME][key] = value;
        let name = format!("{key} = {}", changed[NAME][key]);
        cases.push(Case::refused(name, with(&changed.to_string()), ""));
    }
    let text = header.to_string();
    let mut extra = header.clone();
    extra["model.more"] = extra[NAME].clone();
    cases.push(Case::refused("two at one place", with(&extra.to_string()), "safetensors"));
    cases.push(Case::refused("no tensors", with("{}"), "safetensors"));
    cases.push(Case::refused("a list", with("[]"), "safetensors"));
    let deep = format!("{{\"__metadata__\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    cases.push(Case::refused("deep", with(&deep), "safetensors"));
    for claimed in [0u64, 1, 7, text.len() as u64 - 1, 1 << 27, 1 << 40, 1 << 63, u64::MAX] {
        let bytes = [&claimed.to_le_bytes(), text.as_bytes(), data].concat();
        cases.push(Case::refused(format!("a header of {claimed}"), bytes, "safetensors"));
    }
    for bytes in [0, 1, 7, 8, 9, 100] {
        let cut = file[..bytes].to_vec();
        cases.push(Case::refused(format!("{bytes} bytes"), cut, "safetensors"));
    }
    try_all(&folder, "model.safetensors", &cases, generate);
}

#[test]
fn shard_indexes_of_any_content() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, _) = model();
    let sharded = dir.path().join("model");
    copy(&folder, &sharded);
    let shard = "model-00001-of-00001.safetensors";
    fs::rename(sharded.join("model.safetensors"), sharded.join(shard)).unwrap();
    let file = fs::read(sharded.join(shard)).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let names = header.as_object().unwrap().keys().filter(|name| *name != "__metadata__");
    let map: serde_json::Map<String, Value> =
        names.map(|name| (name.clone(), json!(shard))).collect();
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    let (text, first) = (index.to_string(), map.keys().next().unwrap().clone());
    let mut cases = noise(text.as_bytes(), text.len(), 20);
    for value in [json!(null), json!(3), json!([]), json!({}), json!("x")] {
        let changed = json!({"weight_map": value});
        cases.push(Case::refused(changed.to_string(), changed.to_string(), "index.json"));
    }
    for value in [
        json!("../model.safetensors"),
        json!("/etc/passwd"),
        json!(".."),
        json!("absent.safetensors"),
        json!("."),
        json!(""),
        json!(7),
        json!(null),
    ] {
        let mut changed = index.clone();
        changed["weight_map"][&first] = value;
        let name = format!("{first} in {}", changed["weight_map"][&first]);
        cases.push(Case::refused(name, changed.to_string(), "safetensors"));
    }
    let mut more = index.clone();
    more["weight_map"]["model.absent"] = json!(shard);
    cases.push(Case::refused("a tensor too many", more.to_string(), "model.absent"));
    try_all(&sharded, "model.safetensors.index.json", &cases, generate);
}

#[test]
fn small_files_of_any_content() {
    let (folder, _) = model();
    let generation = json!({"eos_token_id": 318, "pad_token_id": 0, "temperature": 0.5});
    let mut cases = every_key(&generation, 8);
    for (value, word) in [
        (json!("318"), "318"),
        (json!([318, "x"]), "\"x\""),
        (json!(320), "320 rows"),
        (json!(-1), "generation_config.json"),
        (json!(1u64 << 40), "1099511627776"),
        (json!({"id": 3}), "eos_token_id"),
    ] {
        let changed = json!({ "eos_token_id": value });
        cases.push(Case::refused(changed.to_string(), changed.to_string(), word));
    }
    try_all(&folder, "generation_config.json", &cases, generate);
    let record = json!({"bd_size": 8, "mask_token": "|<MASK>|", "mask_token_id": 319, "assistant_opening_ids": [3]});
    let mut cases = every_key(&record, 5);
    for (key, value, word) in [
        ("bd_size", json!("8"), "bd_size"),
        ("bd_size", json!(0), "bd_size"),
        ("bd_size", json!(u64::MAX), "bd_size"),
        ("mask_token_id", json!("319"), "mask_token_id"),
        ("mask_token_id", json!(319.5), "319.5"),
        ("mask_token_id", json!(320), "320 rows"),
        ("mask_token_id", json!([]), "mask_token_id"),
        ("mask_token_id", json!(false), "false"),
        ("assistant_opening_ids", json!([1, 1u64 << 40]), "1099511627776"),
        ("assistant_opening_ids", json!(["3"]), "assistant_opening_ids"),
    ] {
        let mut changed = record.clone();
        changed[key] = value;
        cases.push(Case::refused(format!("{key} = {}", changed[key]), changed.to_string(), word));
    }
    cases.push(Case::refused("a list", "[1]", "dlm_config.json"));
    try_all(&folder, "dlm_config.json", &cases, generate);
}

/// Opening a pipe that nobody writes to waits for ever.
#[test]
fn pipes_instead_of_files_are_refused() {
    let names = ["config.json", "model.safetensors", "generation_config.json", "dlm_config.json"];
    for name in names {
        let dir = tempfile::tempdir().unwrap();
        copy(&model().0, &dir.path().join("model"));
        pipe_instead(&dir.path().join("model").join(name));
        let mut run = generate(&dir.path().join("model"));
        let out = run.output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(matches!(out.status.code(), Some(1 | 2)), "{name}: {:?}", out.status);
        let folder = name == "model.safetensors" && said.contains("no model.safetensors");
        assert!(said.contains(name) && (folder || said.contains("expected a file")), "{said}");
    }
}

/// The mask token's id in the three files that can have it.
#[test]
fn contradictory_mask_ids_are_refused_with_both() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, mut config) = model();
    let model = dir.path().join("model");
    copy(&folder, &model);
    let record = |id: i64| json!({"mask_token": "|<MASK>|", "mask_token_id": id}).to_string();
    let tokenizer = |id: i64| {
        let token = json!({"id": id, "content": "|<MASK>|"});
        json!({"added_tokens": [token], "model": {"vocab": {"a": 0}}}).to_string()
    };
    config["mask_token_id"] = json!(319);
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    fs::write(model.join("tokenizer.json"), tokenizer(319)).unwrap();
    let refused = |words: &[&str]| common::refused(&mut generate(&model), 1, words);
    fs::write(model.join("dlm_config.json"), record(319)).unwrap();
    ok(&mut generate(&model));
    fs::write(model.join("dlm_config.json"), record(318)).unwrap();
    refused(&["dlm_config.json says mask_token_id 318", "config.json says 319"]);
    fs::write(model.join("dlm_config.json"), record(319)).unwrap();
    fs::write(model.join("tokenizer.json"), tokenizer(317)).unwrap();
    refused(&["has id 319", "the tokenizer says 317"]);
}
