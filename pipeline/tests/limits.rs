//! The real binary at its limits: a full disk, and a line longer than the memory it may take.
//!
//! All inputs are generated here, with the sample's tokenizer; memory figures are those that the
//! program reports at its end.

#![allow(clippy::print_stdout, reason = "what a test measured")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use dlm_datasets::{Dataset, verify};
use dlm_test_support::{sample, skip};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

fn prep(input: &Path, out: &Path, more: &[&str]) -> Output {
    let tokenizer = sample("tokenizer");
    let mut c = Command::new(env!("CARGO_BIN_EXE_dlm-prep"));
    c.args([
        "--engine",
        "fast",
        "--workers",
        "2",
        "--over-long",
        "drop",
        "--max-unsupervised",
        "1",
    ])
    .args(more);
    c.arg("--input")
        .arg(input)
        .arg("--tokenizer")
        .arg(tokenizer)
        .arg("--out")
        .arg(out)
        .output()
        .unwrap()
}

fn said(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

/// The figure before "MB peak memory" in a run's last lines.
fn peak_mb(o: &Output) -> f64 {
    let text = said(o);
    let before = text
        .split(" MB peak memory")
        .next()
        .filter(|b| b.len() < text.len())
        .unwrap_or_else(|| panic!("no memory in {text}"));
    before.rsplit([' ', ',']).next().unwrap().parse().unwrap()
}

/// `rows` prompts of about 1 kB that compress badly, with short answers.
fn table(rows: usize) -> RecordBatch {
    let mut state = 1u64;
    let mut word = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        format!("{:x} ", state >> 16)
    };
    let prompts: Vec<String> = (0..rows).map(|_| (0..80).map(|_| word()).collect()).collect();
    let answers: Vec<String> = (0..rows).map(|i| format!("Answer {i}.")).collect();
    let column = |v: Vec<String>| Arc::new(StringArray::from(v)) as ArrayRef;
    RecordBatch::try_from_iter([("prompt", column(prompts)), ("completion", column(answers))])
        .unwrap()
}

/// `rows` of [`table`] in row groups of `group`.
fn parquet(path: PathBuf, rows: usize, group: usize) -> PathBuf {
    let groups = WriterProperties::builder()
        .set_max_row_group_row_count(Some(group))
        .set_compression(Compression::SNAPPY)
        .build();
    let batch = table(rows);
    let mut w =
        ArrowWriter::try_new(std::fs::File::create(&path).unwrap(), batch.schema(), Some(groups))
            .unwrap();
    (0..rows).step_by(1000).for_each(|at| w.write(&batch.slice(at, 1000.min(rows - at))).unwrap());
    let meta = w.close().unwrap();
    assert_eq!(meta.row_groups().len(), rows.div_ceil(group));
    path
}

#[test]
fn a_row_group_of_any_size_takes_no_more_memory() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, group: usize| {
        let input = parquet(dir.path().join(name), 100_000, group);
        assert!(std::fs::metadata(&input).unwrap().len() > 90_000_000);
        let done = prep(&input, &dir.path().join(format!("{name}.out")), &["--seq-len", "2048"]);
        assert!(done.status.success(), "{}", said(&done));
        peak_mb(&done)
    };
    let (many, one) = (run("many.parquet", 1_000), run("one.parquet", 100_000));
    println!("100 MB in row groups of 1 MB: {many} MB, in one: {one} MB");
    assert!(one < many + 40.0, "100 MB in row groups of 1 MB: {many} MB, in one: {one} MB");
}

#[test]
fn a_line_over_the_limit_is_dropped_by_name_and_never_held() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    let mut f = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    let good = "{\"prompt\": \"What?\", \"completion\": \"That.\"}\n";
    f.write_all(good.as_bytes()).unwrap();
    f.write_all(b"{\"prompt\": \"").unwrap();
    let stretch = vec![b'a'; 1 << 20];
    (0..160).for_each(|_| f.write_all(&stretch).unwrap());
    f.write_all(format!("\", \"completion\": \"x\"}}\n{good}").as_bytes()).unwrap();
    f.into_inner().unwrap().sync_all().unwrap();
    let done = prep(&path, &dir.path().join("out"), &[]);
    assert!(done.status.success(), "{}", said(&done));
    let ds = Dataset::open(&dir.path().join("out")).unwrap();
    let c = &ds.manifest().counts;
    assert_eq!(
        (c.rows_read, c.rows_kept, c.dropped.get("line_too_long").copied()),
        (3, 2, Some(1)),
        "{c:?}"
    );
    verify::check_dataset(&ds).unwrap();
    println!("a line of 160 MiB: {} MB", peak_mb(&done));
    // The buffer of a line grows by doubling up to the limit of 64 MiB; the whole line would take
    // twice as much.
    assert!(peak_mb(&done) < 300.0, "the line was held: {} MB", peak_mb(&done));
}

#[test]
fn a_full_disk_leaves_nothing_that_passes_for_a_dataset() {
    let dir = tempfile::tempdir().unwrap();
    let input = parquet(dir.path().join("rows.parquet"), 3_000, 3_000);
    let out = dir.path().join("small");
    std::fs::create_dir(&out).unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(&out).output();
    if !mounted.is_ok_and(|o| o.status.success()) {
        skip("a full disk: no right to mount a small file system here");
        return;
    }
    let failed = prep(&input, &out, &["--seq-len", "2048", "--shard-rows", "64"]);
    let opened = Dataset::open(&out).is_ok();
    // With more room, the same command resumes and completes.
    let grown = Command::new("mount").args(["-o", "remount,size=100m"]).arg(&out).status();
    let again = prep(&input, &out, &["--seq-len", "2048", "--shard-rows", "64"]);
    let whole = Dataset::open(&out).is_ok_and(|ds| verify::check_dataset(&ds).is_ok());
    assert!(Command::new("umount").arg(&out).status().is_ok_and(|s| s.success()));
    assert!(grown.is_ok_and(|s| s.success()));
    let text = said(&failed);
    assert_eq!(failed.status.code(), Some(1), "{text}");
    assert!(
        text.contains("small") && text.contains("No space left") && !text.contains("panicked"),
        "{text}"
    );
    assert!(!opened, "half a dataset passed for a whole one");
    assert!(again.status.success() && whole, "{}", said(&again));
}
