//! Runs that train adapters (`conversion.lora`): what they train, what they write, that they resume
//! exactly, and that gradients are those of the Python library `peft`.

#![allow(clippy::print_stdout, reason = "what a test measured")]

mod common;
mod families;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{losses, ok, refused, train, workplace};
use dlm_test_support::{capture, fixtures, python, repository};
use safetensors::SafeTensors;
use serde_json::Value;

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn dlm_train(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    command.current_dir(dir).args(arguments);
    command
}

/// A workplace with a trained model `source`.
fn with_source() -> tempfile::TempDir {
    let dir = workplace();
    ok(&mut train(dir.path(), "source", &["conversion.total_tokens=2000", "export.dtype=fp32"]));
    dir
}

const ADAPTERS: [&str; 5] = [
    "source.init=pretrained",
    "source.path=source",
    "conversion.lora={rank: 4, alpha: 8}",
    "export.dtype=fp32",
    "optim.lr=1e-2",
];

/// A run of adapters on `source`.
fn adapters(dir: &Path, out: &str, more: &[&str]) -> Command {
    train(dir, out, &[&ADAPTERS, more].concat())
}

/// Names, shapes and values of the tensors of a file.
fn tensors(path: &Path) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> = file
        .iter()
        .map(|(name, view)| {
            let floats = view.data().chunks_exact(4);
            let floats = floats.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            (name.to_string(), view.shape().to_vec(), floats)
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn checkpoint(run: &Path) -> std::path::PathBuf {
    let latest = fs::read_to_string(run.join("checkpoints/latest")).unwrap();
    run.join("checkpoints").join(latest.trim())
}

/// Loss and gradients of one step equal those of torch and peft, for every family, in every form of
/// the passes; tests/python/lora_reference.py made the fixtures.
#[test]
fn gradients_are_those_of_peft() {
    let dir = fixtures();
    let models = [
        ("llama", "llama_tiny", 43),
        ("qwen2", "qwen2_tiny", 13),
        ("qwen2_untied", "qwen2_peaky", 29),
        ("qwen3", "qwen3_tiny", 29),
        ("bitnet", "bitnet_tiny", 29),
        ("bitnet_online", "bitnet_tiny", 29),
    ];
    let forms: [&[&str]; 4] = [
        &["--layout", "saving"],
        &["--layout", "reference"],
        &["--activation-checkpointing", "--attention", "dense"],
        &["--attention", "ranges", "--loss-chunk", "7"],
    ];
    let parity = |model: &str, adapter: &str, case: &str, more: &[&str]| {
        let file = |ending: &str| format!("lora_{case}{ending}");
        let (case_file, grads) = (file(".safetensors"), file("_grads.safetensors"));
        let adapter = format!("lora_{adapter}");
        let all = ["parity", "--device", "cpu", "--json", "--bd-size", "8", "--mask-token-id"];
        let all = [&all[..], &["319", "--model", model, "--adapter", &adapter]].concat();
        let all = [&all[..], &["--case", &case_file, "--grads", &grads], more].concat();
        capture(&mut dlm_train(&dir, &all)).unwrap()
    };
    for (case, model, tensors) in models {
        for form in forms {
            let quantised: &[&str] = match case {
                // rounding activations to 8 bits is a step function (tests/fixtures/README.md)
                "bitnet_online" => &["--bitlinear"],
                _ => &["--tol-grads", "1e-5"],
            };
            let report = parity(model, case, case, &[form, quantised].concat()).ok().unwrap();
            let report = report.json().unwrap();
            println!("{case} {}: {report}", form.join(" "));
            assert_eq!(report["ok"], true, "{case}: {report}");
            assert_eq!(report["grads_compared"], tensors, "{case}: {report}");
            assert!(report["loss_rel"].is_f64(), "{report}");
        }
    }
    // in bf16 within the bound of docs/objective.md, "Precision"
    for (case, model, _) in models {
        let online: &[&str] = if case == "bitnet_online" { &["--bitlinear"] } else { &[] };
        let report = parity(model, case, case, &[&["--dtype", "bf16"], online].concat());
        let report = report.ok().unwrap().json().unwrap();
        println!("{case} in bf16: {report}");
        assert_eq!(report["ok"], true, "{case}: {report}");
    }
    // the comparison can fail: another adapter of the same shapes
    let other = parity("bitnet_tiny", "bitnet_online", "bitnet", &[]).expect(1).unwrap();
    assert_eq!(other.json().unwrap()["ok"], false);
}

#[test]
fn only_adapters_and_the_mask_row_are_trained_and_kept() {
    let dir = with_source();
    let out = ok(&mut adapters(dir.path(), "run", &["conversion.total_tokens=3000"]));
    // 2 layers of 7 targets: q and o 32x32, k and v 16x32, gate, up 64x32, down 32x64; and 32
    let per_layer = 4 * (2 * 64 + 2 * 48 + 3 * 96);
    let trained = 2 * per_layer + 32;
    let line = format!("{trained} of ");
    assert!(said(&out).contains(&line) && said(&out).contains("rank 4"), "{}", said(&out));
    assert!(said(&out).contains("MB of optimizer state instead of"), "{}", said(&out));
    let saved = checkpoint(&dir.path().join("run"));
    let mut names: Vec<_> = fs::read_dir(&saved)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["adapter_model.safetensors", "optimizer.safetensors", "state.json"]);
    let numbers = |file: &str| -> usize {
        tensors(&saved.join(file)).iter().map(|(_, shape, _)| shape.iter().product::<usize>()).sum()
    };
    assert_eq!(numbers("adapter_model.safetensors"), trained);
    assert_eq!(numbers("optimizer.safetensors"), 2 * trained);
    let identity = &json(&saved.join("state.json"))["identity"];
    assert_eq!(identity["source_hash"].as_str().unwrap().len(), 64, "{identity}");
    // what has no adapter is as in the source, bit for bit; what has one is not
    let (source, run) = (dir.path().join("source"), dir.path().join("run"));
    let (before, after) = (source.join("model.safetensors"), run.join("model.safetensors"));
    for (old, new) in tensors(&before).into_iter().zip(tensors(&after)) {
        assert_eq!((&old.0, &old.1), (&new.0, &new.1));
        if old.0.ends_with("_proj.weight") {
            assert_ne!(old.2, new.2, "{} has an adapter", old.0);
        } else if old.0 == "model.embed_tokens.weight" {
            let mask = common::MASK as usize * 32;
            assert_eq!(old.2[..mask], new.2[..mask]);
            assert_ne!(old.2[mask..mask + 32], new.2[mask..mask + 32]);
        } else {
            assert_eq!(old.2, new.2, "{} is frozen", old.0);
        }
    }
    let first = losses(&run);
    assert!(f64::from_bits(first[first.len() - 1].1) < f64::from_bits(first[0].1), "{first:?}");
    let record = json(&run.join("dlm_config.json"));
    assert_eq!(record["lora"]["rank"], 4);
    assert_eq!(record["lora"]["merged"], true);
    assert_eq!(record["source_sha256"], identity["source_hash"]);
}

#[test]
fn killed_runs_end_in_the_same_adapters() {
    let dir = with_source();
    let more = ["train.save_every=1", "conversion.total_tokens=20000"];
    let begun = Instant::now();
    ok(&mut adapters(dir.path(), "whole", &more));
    let whole = begun.elapsed();
    let (mut killed, mut resumed) = (0, 0);
    for i in 0..12u64 {
        resumed += u64::from(dir.path().join("broken/checkpoints/latest").is_file());
        let mut child =
            adapters(dir.path(), "broken", &more).stderr(Stdio::null()).spawn().unwrap();
        let part = dlm_datasets::rng::uniform(dlm_datasets::rng::key(&[i, 7]), 0) * 0.4;
        let end = Instant::now() + whole.mul_f64(part);
        while Instant::now() < end && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if child.try_wait().unwrap().is_some() {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        killed += 1;
    }
    assert!(killed >= 3 && resumed >= 2, "killed {killed} times, {resumed} checkpoints found");
    ok(&mut adapters(dir.path(), "broken", &more));
    println!("killed {killed} times, resumed {resumed} times");
    let (a, b) = (dir.path().join("whole"), dir.path().join("broken"));
    assert_eq!(losses(&a), losses(&b));
    let merged = |run: &Path| fs::read(run.join("model.safetensors")).unwrap();
    assert_eq!(merged(&a), merged(&b));
    for file in ["adapter_model.safetensors", "optimizer.safetensors"] {
        let (a, b) = (checkpoint(&a).join(file), checkpoint(&b).join(file));
        assert_eq!(fs::read(a).unwrap(), fs::read(b).unwrap(), "{file}");
    }
}

/// In two pieces, with another budget, from the best checkpoint, and with layers recomputed.
#[test]
fn more_training_and_the_best_checkpoint() {
    let dir = with_source();
    let weights = |out: &str| fs::read(dir.path().join(out).join("model.safetensors")).unwrap();
    let constant = ["optim.warmup_ratio=0", "train.eval_every=2", "train.save_every=3"];
    let run =
        |out: &str, more: &[&str]| ok(&mut adapters(dir.path(), out, &[&constant, more].concat()));
    run("once", &["conversion.total_tokens=6000"]);
    run("twice", &["conversion.total_tokens=2000"]);
    let again = run("twice", &["conversion.total_tokens=6000"]);
    assert!(said(&again).contains("larger budget"), "{}", said(&again));
    assert_eq!(losses(&dir.path().join("once")), losses(&dir.path().join("twice")));
    assert_eq!(weights("once"), weights("twice"));
    // a rate at which the loss soon rises
    let worsens = ["optim.lr=0.5", "conversion.total_tokens=6000"];
    run("last", &worsens);
    run("best", &[&worsens[..], &["export.which=best"]].concat());
    assert_ne!(weights("last"), weights("best"));
    let state = &json(&checkpoint(&dir.path().join("last")).join("state.json"))["state"];
    assert_eq!(json(&dir.path().join("best/dlm_config.json"))["steps"], state["best"]["step"]);
    ok(&mut dlm_train(dir.path(), &["export", "last", "--which", "best", "--out", "again"]));
    assert_eq!(weights("again"), weights("best"));
    // the merged export at the end is that of the checkpoint
    ok(&mut dlm_train(dir.path(), &["export", "best", "--which", "last", "--out", "end"]));
    assert_eq!(weights("end"), weights("last"));
}

/// The merged model computes what the source computes with the adapter beside it.
#[test]
fn merged_equals_unmerged() {
    let dir = with_source();
    ok(&mut adapters(dir.path(), "run", &["conversion.total_tokens=3000"]));
    ok(&mut dlm_train(dir.path(), &["export", "run", "--lora", "adapter", "--out", "adapter"]));
    // into the folder of the run as well, which then is no model any more
    let names = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(dir.path().join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let adapter = names("adapter");
    for name in ["adapter_config.json", "adapter_model.safetensors", "dlm_config.json"] {
        assert!(adapter.contains(&name.to_string()), "no {name} in {adapter:?}");
    }
    assert!(!adapter.iter().any(|name| name == "config.json" || name == "model.safetensors"));
    let ids: Vec<u8> = (0..48i64).flat_map(|i| ((i * 7 + i * i) % 63).to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I64, vec![2, 24], &ids);
    let case = dir.path().join("case.safetensors");
    safetensors::serialize_to_file([("input_ids", view.unwrap())], None, &case).unwrap();
    let logits = |file: &str, more: &[&str]| {
        let all =
            ["parity", "--device", "cpu", "--case", "case.safetensors", "--dump-logits", file];
        ok(&mut dlm_train(dir.path(), &[&all, more].concat()));
        tensors(&dir.path().join(file)).remove(0).2
    };
    let merged = logits("merged", &["--model", "run"]);
    let beside = logits("beside", &["--model", "source", "--adapter", "adapter"]);
    let source = logits("bare", &["--model", "source"]);
    let far =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    let largest = merged.iter().fold(0f32, |max, v| max.max(v.abs()));
    println!("merged and unmerged differ by {} of {largest}", far(&merged, &beside));
    assert!(far(&merged, &beside) < 1e-5 * largest.max(1.0));
    assert!(far(&merged, &source) > 0.1, "the adapter changes nothing");
    // decoding: the same tokens from the merged folder and from the source with the adapter
    let decode = |more: &[&str]| -> Value {
        let all = ["generate", "--device", "cpu", "--json", "--ids", "2,3,4,5,6,7,8,9"];
        let out = ok(&mut dlm_train(dir.path(), &[&all, more].concat()));
        let value: Value = serde_json::from_slice(&out.stdout).unwrap();
        value["completion_ids"].clone()
    };
    let merged = decode(&["--model", "run"]);
    assert_eq!(merged, decode(&["--model", "source", "--adapter", "adapter"]));
    assert_ne!(merged, decode(&["--model", "source", "--mask-token-id", "63"]));
    // an export of the other kind into the same folder leaves one kind
    ok(&mut dlm_train(dir.path(), &["export", "run", "--out", "adapter"]));
    let now = names("adapter");
    assert!(now.iter().any(|name| name == "model.safetensors"), "{now:?}");
    assert!(!now.iter().any(|name| name.starts_with("adapter")), "{now:?}");
}

/// Passes in bf16 read frozen weights in bf16; what is exported is the source's own, not rounded.
#[test]
fn frozen_weights_are_rounded_for_passes_alone() {
    let dir = with_source();
    let bf16 = ["train.dtype=bf16", "conversion.total_tokens=3000"];
    ok(&mut adapters(dir.path(), "run", &bf16));
    let all = losses(&dir.path().join("run"));
    assert!(f64::from_bits(all[all.len() - 1].1) < f64::from_bits(all[0].1), "{all:?}");
    let of = |folder: &str| tensors(&dir.path().join(folder).join("model.safetensors"));
    for (old, new) in of("source").into_iter().zip(of("run")) {
        let mask = common::MASK as usize * 32;
        if old.0 == "model.embed_tokens.weight" {
            assert_eq!(old.2[..mask], new.2[..mask]);
            assert_ne!(old.2[mask..], new.2[mask..]);
        } else if !old.0.ends_with("_proj.weight") {
            assert_eq!(old.2, new.2, "{}", old.0);
        }
    }
    ok(&mut dlm_train(dir.path(), &["export", "run", "--out", "again"]));
    assert_eq!(of("again"), of("run"));
    // in two pieces
    let constant = ["train.dtype=bf16", "optim.warmup_ratio=0"];
    let run = |out: &str, tokens: &str| {
        ok(&mut adapters(dir.path(), out, &[&constant[..], &[tokens]].concat()))
    };
    run("once", "conversion.total_tokens=3000");
    run("twice", "conversion.total_tokens=1500");
    run("twice", "conversion.total_tokens=3000");
    assert_eq!(of("once"), of("twice"));
}

#[test]
fn another_source_is_refused() {
    let dir = with_source();
    ok(&mut adapters(dir.path(), "run", &[]));
    // the source is needed again
    fs::rename(dir.path().join("source"), dir.path().join("gone")).unwrap();
    refused(&mut dlm_train(dir.path(), &["export", "run", "--out", "out"]), 2, &["source"]);
    // other weights under the same name
    ok(&mut train(dir.path(), "source", &["conversion.total_tokens=900", "export.dtype=fp32"]));
    let words = ["sha256", "model they were trained with"];
    refused(&mut dlm_train(dir.path(), &["export", "run", "--out", "out"]), 1, &words);
    let more = ["conversion.total_tokens=9000"];
    refused(&mut adapters(dir.path(), "run", &more), 1, &["source_hash", "source are others"]);
    // an adapter of a model of other shapes
    let adapter = fixtures().join("lora_llama");
    let adapter = adapter.to_str().unwrap();
    let call = ["generate", "--model", "gone", "--ids", "2,3", "--adapter", adapter];
    refused(&mut dlm_train(dir.path(), &call), 1, &["adapter's base model?"]);
}

#[test]
fn what_does_not_go_together_is_refused_by_name() {
    let dir = with_source();
    let refusals: [(&[&str], &[&str]); 12] = [
        (&["conversion.lora={rank: 0}"], &["conversion.lora.rank", "1 or more"]),
        (&["conversion.lora={rank: 17}"], &["k_proj.weight is 16 x 32", "at most 16"]),
        (&["conversion.lora={rank: 4, targets: [q_prj]}"], &["targets", "q_prj", "q_proj, k_proj"]),
        (&["conversion.lora={rank: 4, targets: []}"], &["conversion.lora.targets", "q_proj"]),
        (&["conversion.lora.targets=q_proj,q_proj"], &["conversion.lora.targets", "once"]),
        (&["conversion.lora.alpha=0"], &["conversion.lora.alpha", "above 0"]),
        (&["conversion.lora={alpha: 3}"], &["conversion.lora.rank"]),
        (&["conversion.lora=yes"], &["conversion.lora", "rank, alpha, targets"]),
        (&["conversion.lora.ranks=3"], &["conversion.lora.ranks", "rank"]),
        (&["optim=muon"], &["optim.name", "adamw"]),
        (&["conversion.lora=null", "export.lora=adapter"], &["export.lora", "conversion.lora"]),
        (&["export.lora=adapter", "export.format=fast-dllm"], &["export.format", "peft"]),
    ];
    for (more, words) in refusals {
        let mut all: Vec<&str> = ADAPTERS.to_vec();
        if more[0].starts_with("conversion.lora={alpha") {
            all.retain(|setting| !setting.starts_with("conversion.lora"));
        }
        let code = 2;
        refused(&mut train(dir.path(), "run", &[&all, more].concat()), code, words);
        assert!(!dir.path().join("run/checkpoints").exists());
    }
    let random = ["conversion.lora={rank: 2}"];
    refused(&mut train(dir.path(), "run", &random), 2, &["source.init", "pretrained"]);
    let native = ["train.engine=native"];
    refused(&mut adapters(dir.path(), "run", &native), 2, &["native engine", "NVIDIA GPU"]);
}

/// BitNet: ternary weights take no adapter into themselves, so that it is exported alone.
#[test]
fn ternary_sources() {
    let dir = workplace();
    let bitlinear = "conversion.bitlinear=on";
    let first = ["conversion.total_tokens=2000", "export.dtype=fp32", bitlinear];
    ok(&mut train(dir.path(), "source", &first));
    let merged = ["BitLinear", "export.lora=adapter", "q_proj"];
    refused(&mut adapters(dir.path(), "run", &[]), 2, &merged);
    ok(&mut adapters(dir.path(), "run", &["export.lora=adapter"]));
    let record = losses(&dir.path().join("run"));
    assert!(f64::from_bits(record[record.len() - 1].1) < f64::from_bits(record[0].1));
    assert!(!dir.path().join("run/config.json").exists());
    refused(&mut dlm_train(dir.path(), &["export", "run", "--lora", "merged"]), 2, &merged);
    let call = ["generate", "--device", "cpu", "--json", "--model", "source", "--ids", "2,3,4,5"];
    let beside = [&call[..], &["--adapter", "run"]].concat();
    let out = ok(&mut dlm_train(dir.path(), &beside));
    let with: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(!with["completion_ids"].as_array().unwrap().is_empty(), "{with}");
}

/// A model of tests/fixtures whose tables end before the mask token's row.
fn without_mask_row(model: &str, to: &Path) -> std::path::PathBuf {
    let (from, rows) = (fixtures().join(model), families::MASK as usize);
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let cut = file.iter().map(|(name, view)| {
        let (mut shape, mut data) = (view.shape().to_vec(), view.data());
        if name.contains("embed_tokens") || name.contains("lm_head") {
            shape[0] = rows;
            data = &data[..rows * shape[1] * 4];
        }
        (name.to_string(), safetensors::tensor::TensorView::new(view.dtype(), shape, data).unwrap())
    });
    fs::create_dir(to).unwrap();
    safetensors::serialize_to_file(cut, None, &to.join("model.safetensors")).unwrap();
    let mut config = json(&from.join("config.json"));
    config["vocab_size"] = rows.into();
    fs::write(to.join("config.json"), config.to_string()).unwrap();
    to.to_path_buf()
}

/// The exported folder in `peft` itself: tied and untied heads, and a table that grew.
#[test]
fn peft_loads_the_exported_folder() {
    let packages = ["peft", "torch", "transformers", "safetensors"];
    let Some(python) = python::with(&packages) else { return };
    let dir = tempfile::tempdir().unwrap();
    let ids: Vec<u8> = (0..48i64).flat_map(|i| ((i * 7 + i * i) % 300).to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I64, vec![2, 24], &ids);
    let case = dir.path().join("ids.safetensors");
    safetensors::serialize_to_file([("input_ids", view.unwrap())], None, &case).unwrap();
    let mut cases = Vec::new();
    let data = families::dataset(&dir.path().join("data"), families::MASK, 8);
    for (name, model, grows) in [
        ("tied", "llama_tiny", false),
        ("untied", "qwen2_peaky", false),
        ("untied and grown", "qwen2_peaky", true),
        ("tied and grown", "qwen3_tiny", true),
    ] {
        let out = dir.path().join(name);
        let source = match grows {
            false => fixtures().join(model),
            true => without_mask_row(model, &dir.path().join(format!("{name} source"))),
        };
        let path = format!("source.path={}", source.display());
        let settings = [&path, "conversion.lora={rank: 4, targets: [q_proj, o_proj, up_proj]}"];
        let more = ["export.lora=adapter", "optim.lr=2e-2"];
        families::train(&data, &out, &[settings, more].concat()).ok().unwrap();
        let logits = dir.path().join(format!("{name}.safetensors"));
        let call = ["parity", "--device", "cpu", "--case", case.to_str().unwrap(), "--dump-logits"];
        let call = [&call[..], &[logits.to_str().unwrap(), "--model", source.to_str().unwrap()]];
        let call = [&call.concat()[..], &["--adapter", out.to_str().unwrap()]].concat();
        ok(&mut dlm_train(dir.path(), &call));
        cases.push(serde_json::json!({
            "name": name, "source": source, "adapter": out, "ids": case, "logits": logits
        }));
    }
    let file = dir.path().join("cases.json");
    fs::write(&file, serde_json::to_vec(&cases).unwrap()).unwrap();
    let script = repository().join("tests/python/check_lora.py");
    let out = Command::new(&python).arg(script).arg(&file).output().unwrap();
    println!("{}", String::from_utf8_lossy(&out.stdout));
    assert!(out.status.success(), "{}", said(&out));
}
