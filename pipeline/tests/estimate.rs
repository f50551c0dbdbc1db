//! `--dry-run`: exact where it reads all of the input, close where it reads a part, with mixtures
//! and budgets. It writes nothing.

use dlm_datasets::manifest::Manifest;
use dlm_test_support::sample;
use serde_json::Value;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::{Command, Output};

struct Ground(tempfile::TempDir);

impl Ground {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn prep(&self, args: &[&str]) -> Output {
        let done = self.call(args);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        done
    }

    fn call(&self, args: &[&str]) -> Output {
        let tokenizer = sample("tokenizer");
        let mut c = Command::new(env!("CARGO_BIN_EXE_dlm-prep"));
        c.args(args)
            .arg("--tokenizer")
            .arg(tokenizer)
            .args(["--engine", "fast", "--out", "out"])
            .current_dir(self.0.path());
        c.output().unwrap()
    }

    fn estimate(&self, args: &[&str]) -> Value {
        let done = self.prep(&[args, &["--dry-run", "--json"]].concat());
        assert!(!self.path("out").exists(), "a dry run has written something");
        serde_json::from_slice(&done.stdout).unwrap()
    }

    fn run(&self, args: &[&str]) -> Manifest {
        self.prep(args);
        let m = Manifest::read(&self.path("out")).unwrap();
        std::fs::remove_dir_all(self.path("out")).unwrap();
        m
    }

    /// Rows whose kind changes along the file and then repeats, about `mb` megabytes of them.
    fn lines(&self, name: &str, mb: usize, seed: usize) {
        let mut text = String::new();
        for i in 0.. {
            if text.len() > mb << 20 {
                break;
            }
            let n = (i * 7919 + seed) % 50 + (i / 700 % 4) * 30;
            let output = if i % 97 == 0 { String::new() } else { "word by word ".repeat(n + 1) };
            let _ = writeln!(
                text,
                "{{\"input\": \"Question {i}: {}?\", \"output\": \"{output}\"}}",
                "why ".repeat(i / 700 % 4 * 20)
            );
        }
        std::fs::write(self.path(name), text).unwrap();
    }
}

fn near(e: &Value, key: &str, truth: u64, by: f64) {
    let found = e[key].as_f64().unwrap();
    assert!((found - truth as f64).abs() <= by * truth as f64, "{key}: {found} for {truth}");
}

#[test]
fn exact_for_a_small_input() {
    let g = Ground(tempfile::tempdir().unwrap());
    let sample = sample("train.parquet");
    let args = ["--input", sample.to_str().unwrap()];
    let (e, m) = (g.estimate(&args), g.run(&args));
    assert_eq!(
        (e["looked_at"].as_u64(), e["share_of_bytes"].as_f64()),
        (Some(m.counts.rows_read), Some(1.0))
    );
    for (key, truth) in [
        ("rows_read", m.counts.rows_read),
        ("rows_kept", m.counts.rows_kept),
        ("tokens", m.counts.tokens),
        ("response_tokens", m.counts.response_tokens),
        ("block_padding", m.counts.block_padding),
    ] {
        near(&e, key, truth, 1e-9);
    }
    near(&e, "packed_rows", m.packing.train_rows as u64, 0.02);
    near(&e, "bytes", m.files.iter().map(|f| f.bytes).sum(), 0.05);
    let text = String::from_utf8(g.prep(&[&args[..], &["--dry-run"]].concat()).stdout).unwrap();
    assert!(text.contains("100.0 % of the inputs"), "{text}");
}

#[test]
fn near_for_a_large_one() {
    let g = Ground(tempfile::tempdir().unwrap());
    g.lines("a.jsonl", 40, 0);
    let (e, m) = (g.estimate(&["--input", "a.jsonl"]), g.run(&["--input", "a.jsonl"]));
    assert!(e["share_of_bytes"].as_f64().unwrap() < 0.5, "{e}");
    for (key, truth) in [
        ("rows_read", m.counts.rows_read),
        ("rows_kept", m.counts.rows_kept),
        ("tokens", m.counts.tokens),
    ] {
        near(&e, key, truth, 0.05);
    }
    near(&e["dropped"], "empty_response", m.counts.dropped["empty_response"], 0.2);
    let part = g.estimate(&["--input", "a.jsonl", "--shard", "1/4"]);
    near(&part, "rows_read", m.counts.rows_read / 4, 0.05);
}

/// A problem that `--dry-run` predicts does make the run fail.
#[test]
fn a_run_that_would_fail() {
    let g = Ground(tempfile::tempdir().unwrap());
    let row = |i: usize| {
        format!(
            "{{\"input\": \"{}\", \"output\": \"a\"}}\n",
            "why ".repeat(if i % 4 == 0 { 200 } else { 2 })
        )
    };
    for (rows, fails) in [(400, true), (100, false)] {
        std::fs::write(g.path("a.jsonl"), (0..rows).map(row).collect::<String>()).unwrap();
        let args = ["--input", "a.jsonl", "--seq-len", "64"];
        assert_eq!(g.estimate(&args)["problem"].is_string(), fails, "{rows} rows");
        assert_eq!(!g.call(&args).status.success(), fails, "{rows} rows");
        std::fs::remove_dir_all(g.path("out")).unwrap();
    }
}

#[test]
fn mixture_and_budget_are_played_through() {
    let g = Ground(tempfile::tempdir().unwrap());
    g.lines("a.jsonl", 4, 0);
    g.lines("b.jsonl", 2, 1);
    let recipe = "name: two\nsources:\n  - { name: a, input: [a.jsonl], weight: 1 }\n  - { name: b, input: [b.jsonl], weight: 3 }\n";
    std::fs::write(g.path("two.yaml"), recipe).unwrap();
    let limited = ["--recipe", "two.yaml", "--max-tokens", "100000"];
    let (e, m) = (g.estimate(&limited), g.run(&limited));
    assert_eq!(e["ends_by"], "--max-tokens");
    near(&e, "tokens", m.counts.tokens, 0.01);
    let share = e["sources"][0]["tokens"].as_f64().unwrap() / e["tokens"].as_f64().unwrap();
    assert!((share - 0.25).abs() < 0.01, "{e}");
    // Without a budget, source b is exhausted first, which ends the run.
    let (e, m) = (g.estimate(&["--recipe", "two.yaml"]), g.run(&["--recipe", "two.yaml"]));
    near(&e, "tokens", m.counts.tokens, 0.01);
    assert_eq!(e["problem"], Value::Null);
}
