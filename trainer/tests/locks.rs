//! Two processes never write to the same folder.

#![allow(unsafe_code, reason = "libc::kill")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{losses, ok, refused, train, workplace};

/// A budget that is not used up before the test ends the run.
const LONG: &str = "conversion.total_tokens=100000000";

/// Starts a run and waits for its first steps.
fn started(dir: &Path) -> Child {
    let child = train(dir, "out", &[LONG]).stderr(Stdio::null()).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(dir.join("out/metrics.jsonl")).map_or(0, |s| s.lines().count()) < 3 {
        assert!(Instant::now() < end, "no step in a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

#[test]
fn the_second_of_two_runs_names_the_first_and_ends() {
    let dir = workplace();
    let mut first = started(dir.path());
    let holder = format!("process {} on ", first.id());
    let words = [holder.as_str(), "out", "is writing to this folder"];
    refused(&mut train(dir.path(), "out", &[LONG]), 2, &words);
    let mut overwrite = train(dir.path(), "out", &[LONG]);
    refused(overwrite.args(["--resume", "never", "--overwrite"]), 2, &words);
    let mut export = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    // the first run is not disturbed, and its folder is free afterwards
    // SAFETY: the process id is that of our own child, which has not been waited for yet.
    unsafe { libc::kill(first.id() as i32, libc::SIGTERM) };
    assert_eq!(first.wait().unwrap().code(), Some(130));
    assert!(!dir.path().join("out/.lock").exists());
    ok(export.current_dir(dir.path()).args(["export", "out", "--out", "exported"]));
    assert!(!dir.path().join("exported/.lock").exists());
}

#[test]
fn an_export_is_refused_while_the_run_writes_there() {
    let dir = workplace();
    ok(&mut train(dir.path(), "out", &["conversion.total_tokens=300"]));
    fs::remove_dir_all(dir.path().join("out/checkpoints")).unwrap();
    fs::remove_file(dir.path().join("out/metrics.jsonl")).unwrap();
    let saving = ["train.save_every=1", LONG];
    let mut first = train(dir.path(), "out", &saving).stderr(Stdio::null()).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while !dir.path().join("out/checkpoints/latest").is_file() {
        assert!(Instant::now() < end, "no checkpoint in a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut export = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    export.current_dir(dir.path()).args(["export", "out"]);
    refused(&mut export, 2, &[&format!("process {} on ", first.id())]);
    first.kill().unwrap();
    first.wait().unwrap();
}

#[test]
fn the_lock_of_a_killed_run_is_taken_over() {
    let dir = workplace();
    let mut first = started(dir.path());
    first.kill().unwrap();
    first.wait().unwrap();
    let left = fs::read_to_string(dir.path().join("out/.lock")).unwrap();
    assert!(left.contains(&format!("process {} on", first.id())), "{left}");
    ok(&mut train(dir.path(), "out", &[]));
    assert!(!losses(&dir.path().join("out")).is_empty());
    assert!(!dir.path().join("out/.lock").exists());
    let mut must = train(dir.path(), "elsewhere", &[]);
    refused(must.args(["--resume", "must"]), 2, &["no checkpoint"]);
    assert!(!dir.path().join("elsewhere").exists(), "a refused run leaves no folder");
}

/// dlm-prep locks its folder in the same way.
#[test]
fn a_dataset_is_prepared_by_one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("packed");
    let row = r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#;
    fs::write(dir.path().join("rows.jsonl"), row).unwrap();
    let prepare = || {
        dlm_prep::Prepare::new(dlm_test_support::sample("tokenizer"))
            .input(dir.path().join("rows.jsonl"))
            .seq_len(64)
            .bd_size(8)
            .run(&out)
    };
    let merge = || dlm_prep::merge(&[&out], dir.path().join("merged"));
    let lock = dlm_datasets::fs::lock_dir(&out).unwrap();
    let error = prepare().err().unwrap();
    assert_eq!(error.exit_code(), 2, "{error}");
    assert!(error.to_string().contains(&format!("process {} on", std::process::id())), "{error}");
    drop(lock);
    prepare().unwrap();
    assert!(!out.join(".lock").exists());
    let lock = dlm_datasets::fs::lock_dir(&dir.path().join("merged")).unwrap();
    assert_eq!(merge().err().unwrap().exit_code(), 2);
    drop(lock);
    merge().unwrap();
    assert!(!dir.path().join("merged/.lock").exists());
    let export = || dlm_prep::export_hf(&out, dir.path().join("exported"));
    let lock = dlm_datasets::fs::lock_dir(&dir.path().join("exported")).unwrap();
    assert_eq!(export().err().unwrap().exit_code(), 2);
    drop(lock);
    export().unwrap();
    assert!(!dir.path().join("exported/.lock").exists());
}
