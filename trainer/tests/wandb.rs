//! Weights & Biases by its own client, offline: the same run across a resume, every step once, and
//! nothing lost when the process beside the training is killed. (PyPI wandb, in DLM_PYTHON's
//! environment.)

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{ok, train, workplace};
use dlm_test_support::{python, repository};
use serde_json::Value;

/// A training run that reports to W&B offline, with `more` settings.
fn reporting(dir: &Path, python: &Path, more: &[&str]) -> Command {
    let mut command = train(dir, "run", &["conversion.total_tokens=1e9", "train.save_every=5"]);
    command.args(more).env("DLM_PYTHON", python).env("WANDB_MODE", "offline");
    command.env("WANDB_PROJECT", "p").env("HOME", dir);
    for name in ["WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_NAME", "WANDB_ENTITY", "WANDB_DISABLED"] {
        command.env_remove(name);
    }
    command
}

/// What the client wrote, one object a session.
fn sessions(dir: &Path, python: &Path) -> Vec<Value> {
    let script = repository().join("tests/python/read_wandb.py");
    let output = ok(Command::new(python).arg(script).arg(dir.join("run")));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Step → record of metrics.jsonl.
fn metrics(dir: &Path) -> BTreeMap<u64, Value> {
    let text = std::fs::read_to_string(dir.join("run/metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.map(|record| (record["step"].as_u64().unwrap(), record)).collect()
}

/// Every step arrived exactly once, in one run, with its values.
fn check_whole(dir: &Path, python: &Path) -> Vec<Value> {
    let sessions = sessions(dir, python);
    let expected = metrics(dir);
    let mut found = BTreeMap::new();
    for session in &sessions {
        assert_eq!(session["id"], sessions[0]["id"]);
        assert_eq!((&session["project"], &session["name"]), (&"p".into(), &"run".into()));
        for (step, values) in session["steps"].as_object().unwrap() {
            let step: u64 = step.parse().unwrap();
            assert!(found.insert(step, values.clone()).is_none(), "step {step} twice");
        }
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (step, record) in &expected {
        let values = &found[step];
        for (theirs, ours) in [
            ("train/loss", "loss"),
            ("train/tokens", "tokens"),
            ("train/lr", "lr"),
            ("train/lr_adam", "lr"),
            ("train/grad_norm", "grad_norm"),
            ("train/grad_norm_raw", "grad_norm"),
            ("train/tokens_per_second", "tok_s"),
            ("train/step_time", "seconds"),
            ("train/step", "step"),
        ] {
            assert_eq!(values[theirs].as_f64(), record[ours].as_f64(), "step {step}: {theirs}");
        }
        assert_eq!(values["eval/loss"].as_f64(), record["eval_loss"].as_f64(), "step {step}");
    }
    sessions
}

#[test]
fn a_resumed_run_is_the_same_run() {
    let Some(python) = python::with(&["wandb"]) else { return };
    let dir = workplace();
    ok(&mut reporting(dir.path(), &python, &["train.max_steps=6", "train.eval_every=3"]));
    let whole = check_whole(dir.path(), &python);
    assert_eq!((whole.len(), metrics(dir.path()).len()), (1, 6));
    assert_eq!(whole[0]["config"]["train"]["max_steps"], 6);
    assert!(whole[0]["steps"]["3"]["eval/loss"].is_f64());
    ok(&mut reporting(dir.path(), &python, &["train.max_steps=13"]));
    let whole = check_whole(dir.path(), &python);
    assert_eq!((whole.len(), metrics(dir.path()).len()), (2, 13));
    // what is already there is not sent again
    let script = dir.path().join("run/wandb/sync.py");
    let by_hand = || {
        let mut command = Command::new(&python);
        ok(command.arg(&script).env("WANDB_MODE", "offline").env("HOME", dir.path()));
    };
    by_hand();
    check_whole(dir.path(), &python);
    // another run in the same folder is another run there
    ok(&mut reporting(
        dir.path(),
        &python,
        &["train.max_steps=2", "--resume", "never", "--overwrite"],
    ));
    let ids: Vec<_> = sessions(dir.path(), &python).iter().map(|s| s["id"].to_string()).collect();
    assert_ne!(ids.first(), ids.last());
}

#[test]
fn without_a_key_and_without_asking_nothing_is_started() {
    let dir = workplace();
    let mut command = reporting(dir.path(), Path::new("no-such-python"), &["train.max_steps=1"]);
    ok(command.env_remove("WANDB_MODE"));
    assert!(!dir.path().join("run/wandb").exists());
}

#[test]
fn training_does_not_need_the_client() {
    let dir = workplace();
    // an interpreter that is not there
    let output =
        ok(&mut reporting(dir.path(), Path::new("no-such-python"), &["train.max_steps=1"]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("Weights & Biases gets nothing now"), "{said}");
    assert!(said.contains("run/wandb/sync.py` sends what is missing"), "{said}");
    // one without the package
    let Some(plain) = python::with(&["sys"]) else { return };
    let without = dir.path().join("python");
    std::fs::write(&without, format!("#!/bin/sh\nexec {} -S -I \"$@\"\n", plain.display()))
        .unwrap();
    ok(Command::new("chmod").arg("+x").arg(&without));
    let output = ok(&mut reporting(
        dir.path(),
        &without,
        &["train.max_steps=400", "--resume", "never", "--overwrite"],
    ));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("Weights & Biases"), "{said}");
    assert_eq!(metrics(dir.path()).len(), 400);
}

/// The process beside the training, once it has begun to write.
fn beside(dir: &Path, sessions: usize) -> Option<u32> {
    let script: PathBuf = dir.join("run/wandb/sync.py").canonicalize().ok()?;
    let begun = std::fs::read_dir(script.parent()?)
        .ok()?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("offline-run-"))
        .count();
    if begun < sessions {
        return None;
    }
    let processes = std::fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    let mut ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.find(|id| {
        let Ok(words) = std::fs::read(format!("/proc/{id}/cmdline")) else { return false };
        let folder = std::fs::read_link(format!("/proc/{id}/cwd")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        words.any(|word| folder.join(&*word).canonicalize().is_ok_and(|path| path == script))
    })
}

#[test]
fn killing_the_process_loses_nothing() {
    let Some(python) = python::with(&["wandb"]) else { return };
    let dir = workplace();
    let mut command =
        reporting(dir.path(), &python, &["train.max_steps=2500", "train.save_every=0"]);
    let mut training = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut killed = 0;
    let started = Instant::now();
    while training.try_wait().unwrap().is_none() && killed < 2 {
        assert!(started.elapsed() < Duration::from_secs(300), "training does not end");
        if let Some(id) = beside(dir.path(), killed + 1) {
            // while it has written a part of the steps
            std::thread::sleep(Duration::from_millis(100));
            ok(Command::new("kill").arg("-9").arg(id.to_string()));
            killed += 1;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = training.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && killed > 0, "{said}");
    assert!(said.contains("it is started again"), "{said}");
    // the second time it would come back after ten seconds; by hand it is there at once
    let mut by_hand = Command::new(&python);
    by_hand.arg(dir.path().join("run/wandb/sync.py")).env("HOME", dir.path());
    ok(&mut by_hand);
    let found = check_whole_with_gaps_closed(dir.path(), &python);
    assert_eq!(found, 2500);
}

/// Every step arrived; one that a killed process had written, but not closed, may be there twice.
fn check_whole_with_gaps_closed(dir: &Path, python: &Path) -> usize {
    let mut found = BTreeMap::new();
    for session in sessions(dir, python) {
        for (step, values) in session["steps"].as_object().unwrap() {
            found.insert(step.parse::<u64>().unwrap(), values["train/loss"].as_f64());
        }
    }
    for (step, record) in metrics(dir) {
        assert_eq!(found.get(&step), Some(&record["loss"].as_f64()), "step {step}");
    }
    found.len()
}
