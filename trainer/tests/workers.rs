//! Data parallelism: several workers on the CPU train the model that one trains.

#![allow(clippy::print_stderr, reason = "what a test measured")]

mod common;

use std::path::Path;

use common::{losses, ok, refused, train, workplace};
use serde_json::Value;

/// Steps of a run.
const STEPS: usize = 12;

fn settings<'a>(optimizer: &'a str, steps: &'a str) -> Vec<&'a str> {
    let shared = ["conversion.total_tokens=1000000", "train.batch_rows=8", "train.save_every=4"];
    [&shared[..], &["train.dtype=fp32", "train.micro_batch_rows=2", optimizer, steps]].concat()
}

/// Loss, gradient norm and tokens of every step.
fn curve(run: &Path) -> Vec<(f64, f64, u64)> {
    let tokens = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let tokens = tokens
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["tokens"].as_u64().unwrap());
    let of = |(_, loss, norm): (u64, u64, u64)| (f64::from_bits(loss), f64::from_bits(norm));
    losses(run).into_iter().map(of).zip(tokens).map(|((l, n), t)| (l, n, t)).collect()
}

fn seconds(run: &Path) -> f64 {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let mut of_steps: Vec<f64> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["seconds"].as_f64().unwrap())
        .collect();
    of_steps.sort_by(f64::total_cmp);
    of_steps[of_steps.len() / 2]
}

/// Every step of `a` is that of `b` up to the order of sums.
#[track_caller]
fn alike(a: &Path, b: &Path) {
    let (a, b) = (curve(a), curve(b));
    assert_eq!((a.len(), b.len()), (STEPS, STEPS));
    for (step, (x, y)) in a.iter().zip(&b).enumerate() {
        let far = |x: f64, y: f64| (x - y).abs() > 1e-5 * y.abs().max(1.0);
        assert!(!far(x.0, y.0) && !far(x.1, y.1), "step {}: {x:?} and {y:?}", step + 1);
        assert_eq!(x.2, y.2, "other rows in step {}", step + 1);
    }
}

#[test]
fn one_two_and_four_workers_have_the_same_losses() {
    let dir = workplace();
    let path = |name: &str| dir.path().join(name);
    for optimizer in ["optim=adamw", "optim=muon"] {
        let with = |workers: &'static str, out: &str| {
            let run = [&settings(optimizer, "train.max_steps=12")[..], &["--devices", workers]];
            ok(&mut train(dir.path(), out, &run.concat()))
        };
        for workers in ["1", "2", "4"] {
            let out = format!("{optimizer}-{workers}");
            let said = String::from_utf8_lossy(&with(workers, &out).stderr).into_owned();
            assert_eq!(said.contains(&format!("{workers} workers")), workers != "1", "{said}");
            alike(&path(&out), &path(&format!("{optimizer}-1")));
            let ratio = seconds(&path(&out)) / seconds(&path(&format!("{optimizer}-1")));
            eprintln!("{optimizer}, {workers} workers: a step takes {ratio:.2} times as long");
            // equal runs have equal bits
            let again = format!("{out}-again");
            with(workers, &again);
            assert_eq!(losses(&path(&out)), losses(&path(&again)));
            let weights = |run: &str| std::fs::read(path(run).join("model.safetensors")).unwrap();
            assert!(weights(&out) == weights(&again), "{out}: other weights the second time");
        }
        // without the flag there is one
        ok(&mut train(dir.path(), "plain", &settings(optimizer, "train.max_steps=12")));
        assert_eq!(losses(&path("plain")), losses(&path(&format!("{optimizer}-1"))));
        std::fs::remove_dir_all(path("plain")).unwrap();
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_workers() {
    let dir = workplace();
    let path = |name: &str| dir.path().join(name);
    let optimizer = "optim=adamw";
    let run = |out: &str, steps: &'static str, workers: &'static str| {
        let settings = [&settings(optimizer, steps)[..], &["--devices", workers]].concat();
        ok(&mut train(dir.path(), out, &settings));
    };
    run("whole", "train.max_steps=12", "1");
    // 4 steps by two workers, 4 by one, 4 by four
    run("changed", "train.max_steps=4", "2");
    run("changed", "train.max_steps=8", "1");
    run("changed", "train.max_steps=12", "4");
    let (a, b) = (curve(&path("changed")), curve(&path("whole")));
    assert_eq!(
        a.iter().map(|s| s.2).collect::<Vec<_>>(),
        b.iter().map(|s| s.2).collect::<Vec<_>>()
    );
    // the schedule depends on the step a run was to end with, so losses are compared without it
    let constant = ["optim.schedule=constant_with_warmup", "optim.warmup_ratio=0"];
    let run = |out: &str, steps: &'static str, workers: &'static str| {
        let settings =
            [&settings(optimizer, steps)[..], &constant, &["--devices", workers]].concat();
        ok(&mut train(dir.path(), out, &settings));
    };
    run("whole-c", "train.max_steps=12", "1");
    run("changed-c", "train.max_steps=4", "2");
    run("changed-c", "train.max_steps=8", "1");
    run("changed-c", "train.max_steps=12", "4");
    alike(&path("changed-c"), &path("whole-c"));
}

#[test]
fn what_cannot_be_split_is_refused_and_a_bad_row_ends_the_step_of_all() {
    let dir = workplace();
    let few = settings("optim=adamw", "train.max_steps=1");
    let with = |more: &[&str]| train(dir.path(), "out", &[&few[..], more].concat());
    refused(&mut with(&["--devices", "9"]), 2, &["train.batch_rows=8", "9"]);
    refused(&mut with(&["--devices", "0"]), 2, &["1 or more"]);
    // a learning rate that throws the weights out of range: the next step has no finite loss
    let wild = ["optim.lr=1e30", "optim.clip_norm=null", "train.max_steps=6", "--devices", "4"];
    refused(&mut with(&wild), 1, &["the weights were not touched"]);
}
