//! A run that is killed at any moment and resumed ends with the weights of a run that was not.

#![allow(clippy::print_stderr, reason = "what a test measured")]
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

/// A crash while a checkpoint replaces an older one of the same step leaves the step's folder under
/// other names; a lost folder leaves `latest` naming nothing. The run continues either way.
#[test]
fn interrupted_replacement_of_a_checkpoint_is_finished_or_undone() {
    let dir = workplace();
    let more = ["train.save_every=3", "export.dtype=fp32", "train.keep_checkpoints=2"];
    ok(&mut train(dir.path(), "whole", &more));
    let whole = dir.path().join("whole");
    let name = std::fs::read_to_string(whole.join("checkpoints/latest")).unwrap();
    let replaced = ["partial", "old"].map(|kind| format!(".{name}.{kind}"));
    // which folders of the newest step the crash left, and whether the last step is taken again
    let crashes: [(&[&str], bool); 4] = [
        (&[&replaced[0], &replaced[1]], false),
        (&[&replaced[1]], false),
        (&[&name, &replaced[1]], false),
        (&[], true),
    ];
    for (left, again) in crashes {
        let run = dir.path().join("broken");
        let _ = std::fs::remove_dir_all(&run);
        ok(&mut train(dir.path(), "broken", &more));
        let checkpoints = run.join("checkpoints");
        let newest = checkpoints.join(&name);
        for folder in left {
            copy_dir(&whole.join("checkpoints").join(&name), &checkpoints.join(folder));
        }
        if !left.contains(&name.as_str()) {
            std::fs::remove_dir_all(&newest).unwrap();
        }
        let out = ok(&mut train(dir.path(), "broken", &more));
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(said.contains("warning: checkpoints/latest names"), again, "{left:?}: {said}");
        assert_eq!(said.contains("the run is complete"), !again, "{left:?}: {said}");
        same_weights(&whole, &run);
        assert!(newest.join("state.json").is_file(), "{left:?}");
    }
    // nothing left to continue from is an error, not a new start
    let checkpoints = dir.path().join("broken/checkpoints");
    for entry in std::fs::read_dir(&checkpoints).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
    refused(&mut train(dir.path(), "broken", &more), 1, &["latest", &name]);
}

/// Copy the files of a folder, if they are not there yet.
fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
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
