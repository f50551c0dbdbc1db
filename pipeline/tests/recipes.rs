//! Recipes end to end: shares as requested, phases, renamed columns, the same bytes for any number
//! of workers; merging of shards; an export that the Python package `datasets` loads (skipped with
//! a message where it is missing).

use dlm_datasets::manifest::Manifest;
use dlm_datasets::{Dataset, Split, verify};
use dlm_test_support::{python, sample};
use std::path::PathBuf;
use std::process::{Command, Output};

struct Ground(tempfile::TempDir);

impl Ground {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn prep(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_dlm-prep"))
            .args(args)
            .current_dir(self.0.path())
            .output()
            .unwrap()
    }

    fn build(&self, out: &str, args: &[&str]) -> Manifest {
        let tokenizer = sample("tokenizer");
        let tokenizer = tokenizer.to_string_lossy().into_owned();
        let done = self
            .prep(&[&["--tokenizer", &tokenizer, "--engine", "fast", "--out", out], args].concat());
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let ds = Dataset::open(&self.path(out)).unwrap();
        verify::check_dataset(&ds).unwrap();
        ds.manifest().clone()
    }
}

/// Two sources of 3,000 rows with answers of different lengths; the second has its own column
/// names.
fn ground() -> Ground {
    let g = Ground(tempfile::tempdir().unwrap());
    let (mut a, mut b) = (String::new(), String::new());
    for i in 0..3000 {
        a.push_str(&format!("{{\"input\": \"Question {i}?\", \"output\": \"Answer {i}.\", \"category\": \"short\"}}\n"));
        b.push_str(&format!(
            "{{\"problem\": \"Problem {i}\", \"solution\": \"{}\"}}\n",
            "step by step ".repeat(1 + i % 9)
        ));
    }
    std::fs::write(g.path("a.jsonl"), a).unwrap();
    std::fs::write(g.path("b.jsonl"), b).unwrap();
    g
}

const TWO: &str = "name: two
sources:
  - { name: a, input: [a.jsonl], weight: 1 }
  - { name: b, input: [b.jsonl], weight: 3, licence: mine, columns: { prompt: problem, completion: solution } }
";

#[test]
fn shares_are_met_and_recorded() {
    let g = ground();
    std::fs::write(g.path("two.yaml"), TWO).unwrap();
    let m = g.build("one", &["--recipe", "two.yaml", "--max-tokens", "60000", "--workers", "1"]);
    assert_eq!(m.mixture.len(), 2);
    assert!((m.mixture[0].share - 0.25).abs() < 0.003, "{:?}", m.mixture);
    assert_eq!(m.mixture.iter().map(|s| s.tokens).sum::<u64>(), m.counts.tokens);
    assert_eq!(m.sources[1].licences, ["mine"]);
    assert_eq!(m.sources[0].category.as_deref(), Some("short"));
    let files = |out: &str| std::fs::read(g.path(out).join("manifest.json")).unwrap();
    g.build("seven", &["--recipe", "two.yaml", "--max-tokens", "60000", "--workers", "7"]);
    assert_eq!(files("one"), files("seven"));
    // Without a budget the run ends when the first source is exhausted, with the shares still as
    // requested.
    let m = g.build("all", &["--recipe", "two.yaml"]);
    assert!((m.mixture[0].share - 0.25).abs() < 0.003, "{:?}", m.mixture);
    assert!(m.counts.rows_read < 6000);
    std::fs::write(g.path("go.yaml"), format!("{TWO}on_exhausted: continue\n")).unwrap();
    assert_eq!(g.build("go", &["--recipe", "go.yaml"]).counts.rows_read, 6000);
}

#[test]
fn phases_come_one_after_the_other() {
    let g = ground();
    std::fs::write(
        g.path("p.yaml"),
        format!("{TWO}phases:\n  - {{ tokens: 0.5, weights: {{ a: 1 }} }}\n  - {{ tokens: 0.5, weights: {{ b: 1 }} }}\n"),
    )
    .unwrap();
    let m = g.build("p", &["--recipe", "p.yaml", "--max-tokens", "40000", "--pack-window", "8"]);
    assert!((m.mixture[0].share - 0.5).abs() < 0.005, "{:?}", m.mixture);
    let ds = Dataset::open(&g.path("p")).unwrap();
    let first = ds.row(Split::Train, 0).unwrap().documents[0].source;
    let last = ds.row(Split::Train, ds.rows(Split::Train) - 1).unwrap().documents[0].source;
    assert_eq!((first, last), (0, 1));
    let done = g.prep(&["--recipe", "p.yaml", "--tokenizer", ".", "--out", "x"]);
    assert_eq!(done.status.code(), Some(2), "phases without a total are a wrong call");
}

#[test]
fn parts_make_a_whole() {
    let g = ground();
    std::fs::create_dir(g.path("in")).unwrap();
    std::fs::copy(g.path("a.jsonl"), g.path("in/a.jsonl")).unwrap();
    for part in ["0/2", "1/2"] {
        g.build(
            &format!("part{}", &part[..1]),
            &["--input", "in", "--shard", part, "--eval-fraction", "0.1"],
        );
    }
    let done = g.prep(&["merge", "part0", "part1", "--out", "merged"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let ds = Dataset::open(&g.path("merged")).unwrap();
    verify::check_dataset(&ds).unwrap();
    let whole = g.build("whole", &["--input", "in", "--eval-fraction", "0.1"]);
    let (a, b) = (&ds.manifest().counts, &whole.counts);
    assert_eq!(
        (a.rows_read, a.tokens, a.response_tokens, a.documents),
        (b.rows_read, b.tokens, b.response_tokens, b.documents)
    );
    assert_eq!(ds.manifest().sources.len(), 1);
    let done = g.prep(&["merge", "part0", "part0", "--out", "again"]);
    assert_eq!(done.status.code(), Some(2), "the same part twice");
}

#[test]
fn python_loads_the_export() {
    let g = ground();
    g.build("d", &["--input", "a.jsonl", "--eval-fraction", "0.2", "--shard-rows", "40"]);
    let done = g.prep(&["export-hf", "d", "--out", "hf"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let Some(python) = python::with(&["datasets"]) else { return };
    let script = "import datasets, sys; d = datasets.load_from_disk('hf'); print(len(d['train']), len(d['eval']), sum(sum(r) for r in d['train'].with_format('numpy')['input_ids'][:]), d['train'][0]['documents'][0]['start'])";
    let said = Command::new(&python)
        .args(["-c", script])
        .current_dir(g.0.path())
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let ds = Dataset::open(&g.path("d")).unwrap();
    let sum: i64 = ds
        .split(Split::Train)
        .iter()
        .map(|r| r.unwrap().input_ids.iter().map(|&i| i64::from(i)).sum::<i64>())
        .sum();
    let want = format!("{} {} {sum} 0", ds.rows(Split::Train), ds.rows(Split::Eval));
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), want);
}
