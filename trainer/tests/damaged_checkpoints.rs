//! Damaged and hostile files of model folders, checkpoints and datasets, made from tiny ones: each
//! ends with an error that names what is wrong, or has no effect; none ends by a signal or a panic,
//! and none takes memory for sizes that a file only claims.

#![cfg(unix)]
#![allow(unsafe_code, reason = "libc::setrlimit and libc::getrusage")]
#![allow(clippy::print_stdout, reason = "the number of cases")]

mod common;

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{ok, train, workplace};
use dlm_datasets::rng;
use dlm_test_support::fixtures;
use serde_json::{Value, json};

/// Address space of a child, bytes. The allocator reserves some GiB that it does not use.
const MOST_ADDRESSES: u64 = 16 << 30;
/// Resident memory of a child, KiB.
const MOST_RESIDENT: i64 = 400 << 10;

/// What must come of a case.
#[derive(Clone, Copy, PartialEq)]
enum Expected {
    /// An error whose text holds the case's word.
    Refused,
    /// An error, or nothing: the damage may be where nobody looks.
    Survived,
}

/// A file with other content.
struct Case {
    name: String,
    content: Vec<u8>,
    word: String,
    expected: Expected,
}

impl Case {
    /// Content that must be refused with this word.
    fn refused(name: impl Into<String>, content: impl Into<Vec<u8>>, word: &str) -> Self {
        let expected = Expected::Refused;
        Case { name: name.into(), content: content.into(), word: word.into(), expected }
    }

    /// Content that may have no effect.
    fn any(name: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        Case { expected: Expected::Survived, ..Case::refused(name, content, "") }
    }
}

/// Copies the files of `from` and of its folders into a new folder.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}

/// Tries every case: `original` is copied to a new folder, `file` in it gets the case's content,
/// and `command` is run there.
fn try_all(original: &Path, file: &str, cases: &[Case], command: impl Fn(&Path) -> Command + Sync) {
    let (next, problems) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = tempfile::tempdir().unwrap();
    let try_one = |number: usize, case: &Case| -> Result<(), String> {
        let dir = work.path().join(number.to_string());
        copy(original, &dir);
        fs::write(dir.join(file), &case.content).unwrap();
        let mut command = command(&dir);
        // SAFETY: setrlimit is safe to call between fork and exec.
        unsafe {
            command.pre_exec(|| {
                let limit = libc::rlimit { rlim_cur: MOST_ADDRESSES, rlim_max: MOST_ADDRESSES };
                libc::setrlimit(libc::RLIMIT_AS, &limit);
                Ok(())
            })
        };
        let done = command.env("RAYON_NUM_THREADS", "1").output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        fs::remove_dir_all(&dir).unwrap();
        if done.status.signal().is_some() || said.contains("panicked") {
            return Err(format!("{:?}: {said}", done.status));
        }
        let refused = matches!(done.status.code(), Some(1 | 2)) && !said.trim().is_empty();
        match case.expected {
            Expected::Refused if refused && said.contains(&case.word) => Ok(()),
            Expected::Survived if refused || done.status.code() == Some(0) => Ok(()),
            _ => Err(format!("{:?}, expected {:?} in: {said}", done.status, case.word)),
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(number) else { break };
                    if let Err(problem) = try_one(number, case) {
                        problems.lock().unwrap().push(format!("{}: {problem}", case.name));
                    }
                }
            });
        }
    });
    let problems = problems.into_inner().unwrap();
    println!("{file}: {} cases", cases.len());
    assert!(problems.is_empty(), "{} of {}:\n{}", problems.len(), cases.len(), problems.join("\n"));
    // SAFETY: rusage is a plain C struct; the call only writes into it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    assert!(usage.ru_maxrss < MOST_RESIDENT, "{} KiB of memory", usage.ru_maxrss);
}

/// Decodes two tokens with the model in `dir`.
fn generate(dir: &Path) -> Command {
    let mut c = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    c.args(["generate", "--device", "cpu", "--ids", "3,4", "--max-new-tokens", "2", "--mode"]);
    c.args(["ar", "--model"]).arg(dir);
    c
}

/// Values that a key may have and should not.
fn values() -> Vec<Value> {
    vec![
        json!("x"),
        json!(-1),
        json!(0),
        json!(1.5),
        json!(1e308),
        json!(1u64 << 28),
        json!(u64::MAX),
        json!([]),
        json!({"a": [[[1]]]}),
        json!(true),
        json!([4_294_967_296u64, "7"]),
    ]
}

/// Some of the values for every key of an object, in turn.
fn every_key(original: &Value, values_of_a_key: usize) -> Vec<Case> {
    let values = values();
    let mut cases = Vec::new();
    for (k, key) in original.as_object().unwrap().keys().enumerate() {
        for i in 0..values_of_a_key {
            let value = &values[(k * values_of_a_key + i) % values.len()];
            let mut changed = original.clone();
            changed[key] = value.clone();
            cases.push(Case::any(format!("{key} = {value}"), changed.to_string()));
        }
    }
    cases
}

/// The text cut off and with single bytes changed, at places that a seed gives.
fn noise(original: &[u8], end: usize, count: u64) -> Vec<Case> {
    let place = |i: u64, salt: u64| {
        let share = rng::uniform(rng::key(&[i, salt]), 0);
        (share * end as f64) as usize
    };
    (0..count)
        .map(|i| {
            let (at, mut bytes) = (place(i, 1), original.to_vec());
            if i % 3 == 0 {
                bytes.truncate(at);
            } else {
                bytes[at] ^= 1 << (i % 8);
            }
            Case::any(format!("noise {i} at {at}"), bytes)
        })
        .collect()
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
    for value in [json!(null), json!(3), json!([]), json!({}), json!("x"), json!({"a": "b"})] {
        let changed = json!({"weight_map": value});
        cases.push(Case::refused(changed.to_string(), changed.to_string(), "safetensors"));
    }
    for value in [
        json!("../model.safetensors"),
        json!("/etc/passwd"),
        json!(".."),
        json!("absent.safetensors"),
        json!(""),
        json!(7),
        json!(null),
    ] {
        let mut changed = index.clone();
        changed["weight_map"][&first] = value;
        let name = format!("{first} in {}", changed["weight_map"][&first]);
        cases.push(Case::refused(name, changed.to_string(), "model"));
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
    with(&|v| v["bd_size"] = json!(16), "multiples of 16");
    with(&|v| v["mask_token_id"] = json!(64), "mask_token_id 64");
    with(&|v| v["mask_token_id"] = json!("63"), "manifest");
    with(&|v| v["vocab_size"] = json!(1u64 << 40), "ids");
    with(&|v| v["sources"] = json!([]), "source");
    try_all(dir.path(), file, &cases, short);
}
