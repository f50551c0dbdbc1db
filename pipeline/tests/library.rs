//! The library as a Rust program uses it, and the example.

#![allow(clippy::print_stderr, reason = "what a test measured")]

use dlm_prep::{
    Error, InspectOptions, MaskViews, OverLong, Prepare, ProcessingCounters, Progress, inspect,
    verify,
};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../datasets/sample");

fn sample() -> Prepare {
    Prepare::new(format!("{SAMPLE}/tokenizer"))
        .input(format!("{SAMPLE}/train.parquet"))
        .seq_len(256)
        .engine(dlm_prep::EngineChoice::Fast)
}

/// Collects notices and stops the run when rows are read.
#[derive(Default)]
struct Recorder {
    notices: Mutex<Vec<String>>,
    stop: Option<Arc<AtomicBool>>,
    finished: AtomicBool,
}

impl Progress for Recorder {
    fn notice(&self, line: &str) {
        self.notices.lock().unwrap().push(line.to_string());
    }
    fn processing_started(&self) {
        if let Some(stop) = &self.stop {
            stop.store(true, Ordering::Relaxed);
        }
    }
    fn processing(&self, counters: &ProcessingCounters) {
        assert!(counters.tokens >= counters.rows);
    }
    fn finished(&self) {
        self.finished.store(true, Ordering::Relaxed);
    }
}

#[test]
fn prepare_verify_inspect() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("data");
    let recorder = Arc::new(Recorder::default());
    let prepare = sample().eval_fraction(0.05).progress(recorder.clone());
    let estimate = prepare.estimate().unwrap();
    assert!(!out.exists());
    let prepared = prepare.run(&out).unwrap();
    let (m, c) = (&prepared.manifest, prepared.counts());
    assert_eq!((m.seq_len, estimate.rows_read), (256, c.rows_read as f64));
    assert!(!prepared.already_prepared && prepared.resumed_after == 0);
    assert!(prepared.seconds >= prepared.load_seconds && prepared.peak_memory_mb > 1.0);
    assert!(prepared.text_bytes > 0 && recorder.finished.load(Ordering::Relaxed));
    assert!(recorder.notices.lock().unwrap().iter().any(|l| l.starts_with("tokenizer")));
    let report = verify(&out).unwrap();
    assert_eq!((report.tokens, report.documents), (c.tokens, c.documents));
    assert!(report.eval_rows > 0 && report.zero_copy);
    let text = inspect(&out, &InspectOptions { rows: 2, ..Default::default() }).unwrap();
    assert!(text.contains("row 1 of the train split"), "{text}");
    let views = Some(MaskViews { seed: 1, epoch: 0, noise_eps: 1e-3 });
    let text = inspect(&out, &InspectOptions { views, ..Default::default() }).unwrap();
    assert!(text.contains("view A") && text.contains('▒'), "{text}");
    // The same call finds its work done; another one is refused.
    assert!(prepare.run(&out).unwrap().already_prepared);
    let other = sample().over_long(OverLong::Drop).run(&out).unwrap_err();
    assert!(matches!(&other, Error::Output { .. }) && other.exit_code() == 1, "{other}");
    sample().over_long(OverLong::Drop).overwrite(true).run(&out).unwrap();
}

#[test]
fn wrong_calls_and_the_stop_flag() {
    let dir = tempfile::tempdir().unwrap();
    for wrong in [
        Prepare::new(format!("{SAMPLE}/tokenizer")),
        sample().recipe("nemotron"),
        sample().seq_len(100),
        sample().shard((2, 2)),
        sample().now("noon"),
    ] {
        let e = wrong.run(dir.path().join("wrong")).unwrap_err();
        assert!(matches!(e, Error::Usage(_)), "{e}");
    }
    let out = dir.path().join("stopped");
    let stop = Arc::new(AtomicBool::new(false));
    let recorder = Recorder { stop: Some(stop.clone()), ..Default::default() };
    let stopped = sample().progress(Arc::new(recorder)).stop_flag(stop).run(&out);
    assert!(matches!(stopped, Err(Error::Interrupted)));
    assert!(verify(&out).is_err());
    sample().run(&out).unwrap();
    verify(&out).unwrap();
}

/// `cargo test` builds the examples; `cargo test --test library` alone does not.
#[test]
fn the_example_runs() {
    let test = std::env::current_exe().unwrap();
    let example = test.ancestors().nth(2).unwrap().join("examples/prepare");
    if !example.exists() {
        eprintln!("SKIP: {} is not built", example.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("data");
    let done = Command::new(example).arg(&out).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(String::from_utf8_lossy(&done.stdout).contains("conversations in"));
    verify(&out).unwrap();
}
