//! A run that is killed at any moment and resumed ends with the weights of a run that was not.

#![allow(unsafe_code, reason = "libc::kill")]

mod common;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{losses, ok, refused, train, workplace};

/// Deterministic pseudo-random delays, so that a failure can be repeated.
fn delays(n: usize, longest: Duration) -> impl Iterator<Item = Duration> {
    (0..n as u64).map(move |i| {
        longest.mul_f64(dlm_datasets::rng::uniform(dlm_datasets::rng::key(&[i, 99]), 0))
    })
}

fn same_weights(a: &Path, b: &Path) {
    assert_eq!(losses(a), losses(b));
    assert!(
        std::fs::read(a.join("model.safetensors")).unwrap()
            == std::fs::read(b.join("model.safetensors")).unwrap(),
        "weights differ"
    );
}

#[test]
fn thirty_kills_end_in_the_same_weights() {
    let dir = workplace();
    // A checkpoint after every step, so that most kills hit the writing of one.
    let every_step = ["train.save_every=1", "conversion.total_tokens=60000", "train.dtype=fp32"];
    let t = Instant::now();
    ok(&mut train(dir.path(), "whole", &every_step));
    let whole = t.elapsed();
    let mut killed = 0;
    for delay in delays(400, whole / 14) {
        let mut child =
            train(dir.path(), "broken", &every_step).stderr(Stdio::null()).spawn().unwrap();
        let end = Instant::now() + delay;
        let mut finished = false;
        while Instant::now() < end {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success());
                finished = true;
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        if finished {
            // The run finished before its kill: it must be right, and the kills continue in a new
            // run.
            same_weights(&dir.path().join("whole"), &dir.path().join("broken"));
            std::fs::remove_dir_all(dir.path().join("broken")).unwrap();
            continue;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        killed += 1;
        if killed == 30 {
            break;
        }
    }
    ok(&mut train(dir.path(), "broken", &every_step));
    eprintln!("killed {killed} times; uninterrupted run took {whole:?}");
    assert!(killed >= 25, "only {killed} kills hit a running process");
    let (a, b) = (dir.path().join("whole"), dir.path().join("broken"));
    same_weights(&a, &b);
    // Killed writers leave no temporary files.
    let left: Vec<_> = std::fs::read_dir(b.join("checkpoints"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(left.iter().all(|n| n == "latest" || n.starts_with("step-")), "{left:?}");
}

#[test]
fn a_signal_saves_and_exits_130() {
    let dir = workplace();
    let long = ["train.save_every=0", "conversion.total_tokens=100000000"];
    let mut child = train(dir.path(), "out", &long).stderr(Stdio::piped()).spawn().unwrap();
    // Wait for the first steps.
    let metrics = dir.path().join("out/metrics.jsonl");
    let end = Instant::now() + Duration::from_secs(60);
    while std::fs::read_to_string(&metrics).map_or(0, |s| s.lines().count()) < 3 {
        assert!(Instant::now() < end, "no step in a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
    // SAFETY: the process id is that of our own child, which has not been waited for yet.
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(dir.path().join("out/checkpoints/latest").is_file());
    // Another token budget is another run: refused with the key named, unless allowed.
    refused(
        &mut train(dir.path(), "out", &["conversion.total_tokens=9000"]),
        1,
        &["conversion.total_tokens", "--allow-changes"],
    );
    let mut go_on = train(dir.path(), "out", &["conversion.total_tokens=9000"]);
    ok(go_on.arg("--allow-changes"));
}

#[test]
fn a_finished_run_is_not_trained_again_and_never_means_never() {
    let dir = workplace();
    ok(&mut train(dir.path(), "out", &[]));
    let before = losses(&dir.path().join("out"));
    ok(&mut train(dir.path(), "out", &[]));
    assert_eq!(before, losses(&dir.path().join("out")));
    let mut never = train(dir.path(), "out", &[]);
    refused(never.args(["--resume", "never"]), 2, &["--overwrite"]);
    let mut must = train(dir.path(), "elsewhere", &[]);
    refused(must.args(["--resume", "must"]), 2, &["no checkpoint"]);
}
