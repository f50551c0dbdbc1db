//! The real binary over a small packed dataset whose figures are known.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dlm_datasets::writer::DatasetWriter;
use dlm_datasets::{Document, Manifest, Split};

const S: usize = 16;
const MASK: i32 = 9;

/// Three training rows and one held-out row; each has a conversation of 8 tokens (3 with a label, 2
/// of padding) and one of 4 (1 with a label).
fn dataset(dir: &Path) -> PathBuf {
    let out = dir.join("packed");
    let mut writer = DatasetWriter::create(&out, Manifest::new(S, 4, 10, MASK, 0, 8)).unwrap();
    for row in 0..4 {
        let mut ids = vec![1, 2, 3, 4, 5, 8, MASK, MASK, 1, 2, 3, 8];
        let mut labels = vec![-100, -100, -100, 4, 5, 8, -100, -100, -100, -100, -100, 8];
        ids.resize(S, 0);
        labels.resize(S, -100);
        let documents = [
            Document { start: 0, length: 8, source: 0 },
            Document { start: 8, length: 4, source: 0 },
        ];
        writer
            .push(if row < 3 { Split::Train } else { Split::Eval }, &ids, &labels, &documents)
            .unwrap();
    }
    writer.finish().unwrap();
    out
}

fn inspect(arguments: &[&str]) -> Output {
    let out = Command::new(env!("CARGO_BIN_EXE_dlm-inspect")).args(arguments).output().unwrap();
    assert!(!String::from_utf8_lossy(&out.stderr).contains("panicked"), "{arguments:?}");
    out
}

fn lines(dir: &Path, query: &str) -> Vec<serde_json::Value> {
    let out = inspect(&[dir.to_str().unwrap(), "--json", "--sql", query]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout)
        .unwrap()
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

#[test]
fn the_summary_counts_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let out = inspect(&[data.to_str().unwrap(), "--json"]);
    let line: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    for (key, n) in [
        ("documents", 8),
        ("tokens", 40),
        ("loss_tokens", 16),
        ("padding", 8),
        ("shortest", 4),
        ("longest", 6),
    ] {
        assert_eq!(line[key], n, "{key} in {line}");
    }
    assert_eq!(line["loss_share"], 0.4);
    let table =
        String::from_utf8(inspect(&[data.to_str().unwrap(), "--by", "category"]).stdout).unwrap();
    assert!(table.contains("3 train and 1 eval rows of 16 tokens in blocks of 4"), "{table}");
}

#[test]
fn queries_see_rows_and_documents() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let splits = lines(&data, "SELECT split, COUNT(*) AS n FROM packed GROUP BY split ORDER BY n");
    assert_eq!(
        splits,
        [
            serde_json::json!({"split": "eval", "n": 1}),
            serde_json::json!({"split": "train", "n": 3})
        ]
    );
    let row = &lines(&data, "SELECT input_ids, labels FROM packed LIMIT 1")[0];
    assert_eq!((row["input_ids"][5].as_i64(), row["labels"][2].as_i64()), (Some(8), Some(-100)));
    let documents =
        lines(&data, "SELECT start, tokens FROM documents WHERE split = 'eval' ORDER BY start");
    assert_eq!(
        documents,
        [
            serde_json::json!({"start": 0, "tokens": 6}),
            serde_json::json!({"start": 8, "tokens": 4})
        ]
    );
}

#[test]
fn what_cannot_be_answered_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    for (query, word) in [
        ("SELECT * FROM rows", "packed and documents"),
        ("SELECT nope FROM documents", "nope"),
        ("SELEC", "SELEC"),
    ] {
        let out = inspect(&[data.to_str().unwrap(), "--sql", query]);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{said}");
        assert!(said.contains(word), "{said}");
    }
    let out = inspect(&[dir.path().join("nowhere").to_str().unwrap()]);
    assert!(
        !out.status.success() && String::from_utf8_lossy(&out.stderr).contains("manifest.json")
    );
}
