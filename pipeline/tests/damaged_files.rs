//! Damaged files through the program: exit code 1 and the file's name, for a preparation, an
//! estimate, and the choice of the engine, which reads a sample. `src/tests/damaged_files.rs` has
//! many more kinds of damage.

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::ipc::writer::{FileWriter, StreamWriter};
use parquet::arrow::ArrowWriter;
use std::io::Write;
use std::process::Command;
use std::sync::Arc;

fn files() -> Vec<(&'static str, Vec<u8>)> {
    let column = |k: &str| -> ArrayRef {
        Arc::new((0..40).map(|i| Some(format!("{k} {i}"))).collect::<StringArray>())
    };
    let columns = [("input", column("Q")), ("output", column("A"))];
    let table = RecordBatch::try_from_iter(columns).unwrap();
    let mut parquet = Vec::new();
    let mut w = ArrowWriter::try_new(&mut parquet, table.schema(), None).unwrap();
    w.write(&table).unwrap();
    w.close().unwrap();
    let mut arrow = Vec::new();
    let mut w = FileWriter::try_new(&mut arrow, &table.schema()).unwrap();
    w.write(&table).unwrap();
    w.finish().unwrap();
    drop(w);
    let mut stream = Vec::new();
    let mut w = StreamWriter::try_new(&mut stream, &table.schema()).unwrap();
    w.write(&table).unwrap();
    w.finish().unwrap();
    drop(w);
    let lines = "{\"prompt\": \"Q\", \"completion\": \"A\"}\n".repeat(40);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(lines.as_bytes()).unwrap();
    let gz = gz.finish().unwrap();
    // Without a checksum, which is optional, zstd cannot tell changed text from what was written.
    let mut zst = zstd::Encoder::new(Vec::new(), 1).unwrap();
    zst.include_checksum(true).unwrap();
    zst.write_all(lines.as_bytes()).unwrap();
    let zst = zst.finish().unwrap();
    vec![
        ("a.parquet", parquet),
        ("b.arrow", arrow),
        ("c.arrow", stream),
        ("d.jsonl.gz", gz),
        ("e.jsonl.zst", zst),
    ]
}

#[test]
fn every_way_of_reading_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (mut runs, mut k) = (0, 0);
    for (name, bytes) in files() {
        // Cut off, and 0xff over the length of a page, a message, or what is compressed.
        let (mut cut, mut flipped) = (bytes.clone(), bytes.clone());
        cut.truncate(bytes.len() - bytes.len() / 3);
        let at = if name.starts_with(['a', 'b']) { bytes.len() - 8 } else { 12 };
        flipped[at..].iter_mut().take(6).for_each(|b| *b = 0xff);
        for damaged in [cut, flipped] {
            for more in [&["--engine", "fast"][..], &["--engine", "auto"], &["--dry-run"]] {
                k += 1;
                let path = dir.path().join(name);
                std::fs::write(&path, &damaged).unwrap();
                let done = Command::new(env!("CARGO_BIN_EXE_dlm-prep"))
                    .arg("--input")
                    .arg(&path)
                    .arg("--tokenizer")
                    .arg(dlm_test_support::sample("tokenizer"))
                    .arg("--out")
                    .arg(dir.path().join(format!("out{k}")))
                    .args(more)
                    .output()
                    .unwrap();
                let said = String::from_utf8_lossy(&done.stderr);
                assert_eq!(done.status.code(), Some(1), "{name} {more:?}: {said}");
                let last = said.lines().rfind(|l| l.starts_with("error: ")).unwrap_or_default();
                assert!(
                    last.contains(name) && !said.contains("panicked"),
                    "{name} {more:?}: {said}"
                );
                runs += 1;
            }
        }
    }
    assert_eq!(runs, 30);
}
