//! Fifty steps whose losses are kept in a file: a change of numerics anywhere in the trainer shows
//! here.
//!
//! To write the files again after an intended change: `DLM_WRITE_GOLDEN=1 cargo test --release
//! --test golden_loss`, with the reason in docs/log.md. The tolerance is 2e-3 relative: matrix
//! kernels differ between processors, and fifty steps amplify the difference.

#![allow(clippy::print_stderr, reason = "what a test measured")]

mod common;

use dlm_test_support::repository;

use common::{ok, train, workplace};

fn check(name: &str, overrides: &[&str]) {
    let dir = workplace();
    let mut all =
        vec!["train.max_steps=50", "conversion.total_tokens=1000000", "train.save_every=0"];
    all.extend(overrides);
    ok(&mut train(dir.path(), "out", &all));
    let found: Vec<f64> = common::losses(&dir.path().join("out"))
        .iter()
        .map(|(_, l, _)| f64::from_bits(*l))
        .collect();
    assert_eq!(found.len(), 50);
    let file = repository().join(format!("trainer/tests/golden/{name}.txt"));
    if std::env::var_os("DLM_WRITE_GOLDEN").is_some() {
        let text: String = found.iter().map(|l| format!("{l:.6}\n")).collect();
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
        return;
    }
    let expected: Vec<f64> =
        std::fs::read_to_string(&file).unwrap().lines().map(|l| l.parse().unwrap()).collect();
    for (step, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() <= 2e-3 * b.abs(), "{name}, step {}: loss {a}, golden {b}", step + 1);
    }
    assert!(found[49] < 0.8 * found[0], "nothing was learnt: {} → {}", found[0], found[49]);
}

#[test]
fn block_diffusion_adamw() {
    check("block_diffusion_adamw", &[]);
}

#[test]
fn reference_layout_is_the_same_curve() {
    check(
        "block_diffusion_adamw",
        &[
            "conversion.layout=reference",
            "train.micro_batch_rows=1",
            "train.activation_checkpointing=layer",
            "train.loss_chunk=7",
        ],
    );
}

#[test]
fn sft_muon_cosine() {
    check(
        "sft_muon_cosine",
        &[
            "conversion.objective=sft",
            "optim=muon",
            "optim.muon_lr=0.01",
            "optim.schedule=cosine",
            "optim.lr=3e-3",
        ],
    );
}

/// The memory of a run of 500 steps does not grow.
#[test]
fn memory_is_flat() {
    let dir = workplace();
    ok(&mut train(
        dir.path(),
        "out",
        &["train.max_steps=500", "conversion.total_tokens=100000000", "train.save_every=0"],
    ));
    let text = std::fs::read_to_string(dir.path().join("out/metrics.jsonl")).unwrap();
    let rss: Vec<u64> = text
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["rss_mib"].as_u64().unwrap())
        .collect();
    let early = rss[50..100].iter().max().unwrap();
    let late = rss[450..].iter().max().unwrap();
    eprintln!("resident memory: {early} MiB in steps 51-100, {late} MiB in steps 451-500");
    assert!(*late <= early + early / 5 + 8, "memory grew from {early} to {late} MiB");
}
