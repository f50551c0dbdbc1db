//! The lossless objective: gradients of gated adapters are those of plain PyTorch, and a run trains
//! them, resumes and exports them.

#![allow(clippy::print_stdout, reason = "what a test measured")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{losses, ok, refused, train, workplace};
use dlm_test_support::{capture, fixtures};
use serde_json::Value;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The lines of a run's metrics.
fn records(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn dlm_train(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    command.current_dir(dir).args(arguments);
    command
}

/// tests/python/lossless_reference.py made the fixtures, and asserts there that the clean stream is
/// the source's bit for bit.
#[test]
fn gradients_are_those_of_the_reference() {
    compare("lossless");
}

/// The same cases with a share of the divergence from the source in the loss.
#[test]
fn distilled_gradients_are_those_of_the_reference() {
    compare("distilled");
}

fn compare(kind: &str) {
    let dir = fixtures();
    let models = [
        ("llama", "llama_tiny", "4"),
        ("qwen2", "qwen2_tiny", "8"),
        ("qwen2_untied", "qwen2_peaky", "2"),
        ("qwen3", "qwen3_tiny", "8"),
        ("bitnet", "bitnet_tiny", "32"),
        ("bitnet_online", "bitnet_tiny", "4"),
    ];
    let forms: [&[&str]; 4] = [
        &["--layout", "saving"],
        &["--layout", "reference"],
        &["--activation-checkpointing", "--attention", "dense", "--layout", "reference"],
        &["--attention", "ranges", "--loss-chunk", "7"],
    ];
    let parity = |model: &str, case: &str, bd_size: &str, more: &[&str]| {
        let file = |ending: &str| format!("{kind}_{case}{ending}");
        let adapter = format!("lossless_{case}");
        let (case, grads) = (file(".safetensors"), file("_grads.safetensors"));
        let all = ["parity", "--device", "cpu", "--json", "--mask-token-id", "319", "--model"];
        let all = [&all[..], &[model, "--adapter", &adapter, "--bd-size", bd_size]].concat();
        let all = [&all[..], &["--case", &case, "--grads", &grads], more].concat();
        capture(&mut dlm_train(&dir, &all)).unwrap()
    };
    for (case, model, bd_size) in models {
        for form in forms {
            let quantised: &[&str] = match case {
                "bitnet_online" => &["--bitlinear"],
                _ => &["--tol-grads", "1e-5"],
            };
            let report = parity(model, case, bd_size, &[form, quantised].concat()).ok().unwrap();
            let report = report.json().unwrap();
            println!("{case} {}: {report}", form.join(" "));
            assert_eq!(report["ok"], true, "{case}: {report}");
            assert_eq!(report["grads_compared"], report["parameters"], "{case}: {report}");
            assert!(report["loss_rel"].is_f64(), "{report}");
        }
    }
    // in bf16 within the bound of docs/objective.md, "Precision"
    for (case, model, bd_size) in models {
        let online: &[&str] = if case == "bitnet_online" { &["--bitlinear"] } else { &[] };
        let report = parity(model, case, bd_size, &[&["--dtype", "bf16"], online].concat());
        assert_eq!(report.ok().unwrap().json().unwrap()["ok"], true, "{case}");
    }
    // another block size is another objective
    let other = parity("llama_tiny", "llama", "8", &[]).expect(1).unwrap();
    assert_eq!(other.json().unwrap()["ok"], false);
}

const LOSSLESS: [&str; 6] = [
    "source.init=pretrained",
    "source.path=source",
    "conversion.objective=lossless",
    "conversion.lora={rank: 8}",
    "export.lora=adapter",
    "optim.lr=1e-2",
];

#[test]
fn a_run_trains_resumes_and_exports_its_proposals() {
    let dir = workplace();
    let first = ["conversion.total_tokens=2000", "export.dtype=fp32", "conversion.objective=sft"];
    ok(&mut train(dir.path(), "source", &first));
    let run = |out: &str, more: &[&str]| {
        train(dir.path(), out, &[&LOSSLESS[..], &["optim.warmup_ratio=0"], more].concat())
    };
    let evaluated = ["train.eval_every=4", "conversion.total_tokens=9000"];
    ok(&mut run("whole", &evaluated));
    ok(&mut run("pieces", &["train.eval_every=4", "conversion.total_tokens=3000"]));
    ok(&mut run("pieces", &evaluated));
    let (whole, pieces) = (dir.path().join("whole"), dir.path().join("pieces"));
    let all = losses(&whole);
    assert_eq!(all, losses(&pieces));
    let adapter = |run: &Path| fs::read(run.join("adapter_model.safetensors")).unwrap();
    assert_eq!(adapter(&whole), adapter(&pieces));
    let (begin, end) = (f64::from_bits(all[0].1), f64::from_bits(all[all.len() - 1].1));
    println!("loss {begin} to {end}");
    assert!(end < 0.9 * begin, "{begin} to {end}");
    let record = json(&whole.join("dlm_config.json"));
    assert_eq!(record["objective"], "lossless");
    assert_eq!((&record["mode"], &record["gate"]), (&"verify".into(), &"mask_token".into()));
    // the other layout trains the same
    ok(&mut run("reference", &[&evaluated[..], &["conversion.layout=reference"]].concat()));
    let other = losses(&dir.path().join("reference"));
    for (a, b) in all.iter().zip(&other) {
        let (a, b) = (f64::from_bits(a.1), f64::from_bits(b.1));
        assert!((a - b).abs() < 1e-3 * a, "{a} and {b}");
    }
    let lines = records(&whole);
    for line in &lines {
        assert_eq!(line["loss"], line["divergence"]);
        let pairs = line["proposals"]["by_distance"].as_array().unwrap();
        let sum = |i: usize| pairs.iter().map(|pair| pair[i].as_u64().unwrap()).sum::<u64>();
        assert_eq!(sum(1), line["counted"].as_u64().unwrap());
        assert_eq!(line["proposals"]["share"], sum(0) as f64 / sum(1) as f64);
    }
    let (first, last) = (&lines[0], &lines[lines.len() - 1]);
    let diverges = |line: &Value| line["divergence"].as_f64().unwrap();
    println!("divergence {} to {}", diverges(first), diverges(last));
    assert!(diverges(last) < 0.5 * diverges(first), "{first} {last}");
    assert_eq!(last["eval_loss"], last["eval_divergence"]);
    assert!(last["eval_proposals"]["tokens_per_pass"].as_f64().unwrap() > 1.0);
    let other = ["conversion.total_tokens=12000", "conversion.distill=0.25"];
    refused(&mut run("pieces", &other), 1, &["conversion.distill: was 1, is 0.25"]);
    let merged = ["export", "whole", "--lora", "merged", "--out", "merged"];
    refused(&mut dlm_train(dir.path(), &merged), 2, &["mask tokens alone", "adapter"]);
    // not an adapter for all tokens: the source's own answers, and no blocks
    let generate = |more: &[&str]| {
        let call = ["generate", "--model", "source", "--ids", "2,3", "--max-new-tokens", "20"];
        dlm_train(dir.path(), &[&call, more].concat())
    };
    let proposed = ok(&mut generate(&["--adapter", "whole"])).stdout;
    assert_eq!(proposed, ok(&mut generate(&["--mode", "ar"])).stdout);
    let blocks = ["--adapter", "whole", "--mode", "block"];
    refused(&mut generate(&blocks), 2, &["mask tokens alone", "--mode verify"]);
}

/// Workers share the steps of a run with distillation; without it nothing is said about the source
/// in a step, and the loss is the cross-entropy.
#[test]
fn workers_distil_alike_and_none_at_all_is_cross_entropy() {
    let dir = workplace();
    let first = ["conversion.total_tokens=2000", "export.dtype=fp32", "conversion.objective=sft"];
    ok(&mut train(dir.path(), "source", &first));
    let run = |out: &str, more: &[&str]| {
        let steps = ["train.max_steps=4", "train.micro_batch_rows=1"];
        let said = ok(&mut train(dir.path(), out, &[&LOSSLESS[..], &steps, more].concat()));
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        let evaluated = more.contains(&"train.eval_every=4");
        assert_eq!(said.contains("tok/pass"), evaluated, "{said}");
        records(&dir.path().join(out))
    };
    let one =
        run("one", &["conversion.distill=0.7", "report.tensorboard=true", "train.eval_every=4"]);
    let events = fs::read_dir(dir.path().join("one/tensorboard")).unwrap();
    let events: Vec<u8> = events.flat_map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
    for tag in ["train/cross_entropy", "train/divergence", "train/accepted", "eval/tokens_per_pass"]
    {
        assert!(events.windows(tag.len()).any(|bytes| bytes == tag.as_bytes()), "no {tag}");
    }
    let two = run("two", &["conversion.distill=0.7", "--devices", "2"]);
    assert_eq!(one.len(), 4);
    for (a, b) in one.iter().zip(&two) {
        let part = |key: &str| a[key].as_f64().unwrap();
        let mixture = 0.3 * part("cross_entropy") + 0.7 * part("divergence");
        assert!((mixture - part("loss")).abs() < 1e-6 * part("loss"), "{a}");
        for key in ["loss", "cross_entropy", "divergence", "grad_norm"] {
            let (a, b) = (a[key].as_f64().unwrap(), b[key].as_f64().unwrap());
            assert!((a - b).abs() < 1e-5 * b, "{key}: {a} and {b}");
        }
        assert_eq!(a["proposals"]["by_distance"][0][1], b["proposals"]["by_distance"][0][1]);
    }
    let none = run("none", &["conversion.distill=0", "train.eval_every=4"]);
    // the first step sees the same weights
    assert_eq!(
        none[0]["loss"].as_f64().unwrap() as f32,
        one[0]["cross_entropy"].as_f64().unwrap() as f32
    );
    assert!(none.iter().all(|line| line["cross_entropy"].is_null() && line["proposals"].is_null()));
    assert_eq!(none[3]["eval_loss"], none[3]["eval_cross_entropy"]);
    assert!(none[3]["eval_proposals"]["share"].is_f64());
}

#[test]
fn what_does_not_go_together_is_refused_by_name() {
    let dir = workplace();
    ok(&mut train(dir.path(), "source", &["conversion.total_tokens=400", "export.dtype=fp32"]));
    let refusals: [(&[&str], &[&str]); 8] = [
        (&["conversion.lora=null", "export.lora=merged"], &["conversion.objective", "rank: 16"]),
        (&["export.lora=merged"], &["export.lora", "mask tokens alone"]),
        (&["conversion.block_offsets=0"], &["conversion.block_offsets", "1 or more"]),
        (&["conversion.block_offsets=9"], &["conversion.block_offsets=9", "8 offsets"]),
        (&["conversion.distill=1.5"], &["conversion.distill", "0 (off) to 1"]),
        (&["conversion.distill=-0.1"], &["conversion.distill", "0 (off) to 1"]),
        (
            &["conversion.objective=block_diffusion", "conversion.distill=0"],
            &["conversion.distill", "lossless"],
        ),
        (
            &["conversion.objective=block_diffusion", "conversion.block_offsets=1"],
            &["conversion.block_offsets", "lossless"],
        ),
    ];
    for (more, words) in refusals {
        refused(&mut train(dir.path(), "run", &[&LOSSLESS[..], more].concat()), 2, words);
    }
}
