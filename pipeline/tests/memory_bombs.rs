//! Small files that stand for much memory: the program stays within a fixed number of addresses.

use arrow::array::{ArrayRef, DictionaryArray, Int32Array, RecordBatch, StringArray};
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions};
use parquet::arrow::ArrowWriter;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

/// Prepares a file with at most `megabytes` of addresses.
fn prep(input: &Path, megabytes: usize) -> Output {
    let limited = format!("ulimit -v {}; ulimit -c 0; exec \"$@\"", megabytes << 10);
    let out = input.with_extension("out");
    Command::new("sh")
        .args(["-c", &limited, "sh", env!("CARGO_BIN_EXE_dlm-prep"), "--input"])
        .arg(input)
        .arg("--tokenizer")
        .arg(dlm_test_support::sample("tokenizer"))
        .arg("--out")
        .arg(out)
        .args(["--engine", "fast", "--workers", "2", "--over-long", "drop"])
        .args(["--max-unsupervised", "1"])
        .output()
        .unwrap()
}

fn said(done: &Output) -> String {
    String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr)
}

const GOOD: &str = "{\"prompt\": \"Hi\", \"completion\": \"Hello there\"}\n";

/// One line of 1 GB in a gzip file of 1 MB, and a row with two million values.
#[test]
fn long_lines_and_many_values_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl.gz");
    let mut gz =
        flate2::write::GzEncoder::new(File::create(&path).unwrap(), flate2::Compression::fast());
    gz.write_all(GOOD.as_bytes()).unwrap();
    gz.write_all(b"{\"prompt\": \"").unwrap();
    let block = vec![b'x'; 1 << 20];
    for _ in 0..1_000 {
        gz.write_all(&block).unwrap();
    }
    gz.write_all(b"\"}\n").unwrap();
    gz.write_all(format!("{{\"prompt\": [{}0]}}\n", "0,".repeat(2_000_000)).as_bytes()).unwrap();
    gz.write_all(GOOD.as_bytes()).unwrap();
    gz.finish().unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() < 20 << 20);
    let done = prep(&path, 1_000);
    assert!(done.status.success(), "{}", said(&done));
    assert!(said(&done).contains("2 line_too_long"), "{}", said(&done));
}

/// A dictionary with one text of 1 MB that 300 rows have: 300 MB once it is written out.
fn bomb() -> RecordBatch {
    let long = "word ".repeat(200_000);
    let values: ArrayRef = Arc::new(StringArray::from(vec![long.as_str(), "Hi"]));
    let keys = Int32Array::from_iter_values((0..300).map(|i| i32::from(i % 100 == 0)));
    let prompts: ArrayRef = Arc::new(DictionaryArray::try_new(keys, values).unwrap());
    let answers: ArrayRef = Arc::new(StringArray::from(vec!["Hello"; 300]));
    RecordBatch::try_from_iter([("prompt", prompts), ("completion", answers)]).unwrap()
}

#[test]
fn dictionaries_are_written_out_piece_by_piece() {
    let dir = tempfile::tempdir().unwrap();
    let table = bomb();
    let arrow = dir.path().join("a.arrow");
    let mut w = FileWriter::try_new(File::create(&arrow).unwrap(), &table.schema()).unwrap();
    w.write(&table).unwrap();
    w.finish().unwrap();
    let parquet = dir.path().join("b.parquet");
    let mut w =
        ArrowWriter::try_new(File::create(&parquet).unwrap(), table.schema(), None).unwrap();
    w.write(&table).unwrap();
    w.close().unwrap();
    for path in [arrow, parquet] {
        assert!(std::fs::metadata(&path).unwrap().len() < 5 << 20);
        let done = prep(&path, 1_000);
        assert!(done.status.success(), "{}: {}", path.display(), said(&done));
    }
}

/// A cell of 200 MB in a file of a few kB is dropped by name.
#[test]
fn huge_cells_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let long = "x".repeat(200 << 20);
    let prompts: ArrayRef = Arc::new(StringArray::from(vec!["Hi", long.as_str(), "Ho"]));
    let answers: ArrayRef = Arc::new(StringArray::from(vec!["Hello"; 3]));
    let columns = [("prompt", prompts), ("completion", answers)];
    let table = RecordBatch::try_from_iter(columns).unwrap();
    let path = dir.path().join("a.arrow");
    let options = IpcWriteOptions::default();
    let options = options.try_with_compression(Some(CompressionType::ZSTD)).unwrap();
    let file = File::create(&path).unwrap();
    let mut w = FileWriter::try_new_with_options(file, &table.schema(), options).unwrap();
    w.write(&table).unwrap();
    w.finish().unwrap();
    let done = prep(&path, 1_500);
    assert!(done.status.success(), "{}", said(&done));
    assert!(said(&done).contains("1 line_too_long"), "{}", said(&done));
}
