//! Failure at every file operation: a run that is killed, or that meets a failing or full disk, at
//! any of its file operations, ends with the same files as an undisturbed one when the same command
//! is given again, and leaves nothing over.
//!
//! The failures are injected by `tests/attack/failing_files.c`, which is built here with `cc` and
//! loaded with `LD_PRELOAD`; without `cc`, or on another system than Linux, the tests are skipped.
//! Each test takes every operation and every way to fail once. With `DLM_ATTACK_SECONDS` it goes on
//! for that many seconds with runs that fail, fail again when they are repeated, and end the third
//! time.

#![cfg(target_os = "linux")]
#![allow(clippy::print_stdout, reason = "the counts of a long run")]

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dlm_datasets::rng;
use dlm_test_support::{command, families, repository, sample, skip};
use serde_json::Value;

/// A command that writes into the folder `out`.
struct Work {
    name: &'static str,
    /// The command, to be run in the given folder.
    command: fn(&Path) -> Command,
    /// Prepares what the command reads, in the folder above.
    inputs: fn(&Path),
}

/// One operation that fails, and how.
#[derive(Clone)]
struct Failure {
    at: usize,
    how: &'static str,
    /// Call and path, for messages.
    operation: String,
}

/// A run that fails, and may fail again when it is repeated.
struct Case {
    first: Failure,
    /// Its operation is a number only: a repeated run has others.
    second: Option<Failure>,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Failure { at, how, operation } = &self.first;
        write!(f, "{how} at {at} ({operation})")?;
        self.second.as_ref().map_or(Ok(()), |then| write!(f, ", then {} at {}", then.how, then.at))
    }
}

/// Builds the library; `None`, with a line that says so, where that is not possible.
fn library(dir: &Path) -> Option<PathBuf> {
    let (source, built) =
        (repository().join("tests/attack/failing_files.c"), dir.join("failing_files.so"));
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&built).arg(source).arg("-ldl");
    match cc.output() {
        Ok(done) if done.status.success() => Some(built),
        Ok(done) => {
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            skip(&format!("failure injection: cc cannot build the library: {said}"));
            None
        }
        Err(error) => {
            skip(&format!("failure injection: no C compiler: cc: {error}"));
            None
        }
    }
}

/// Files and folders below `dir` with what must be equal in two runs: all bytes, except for
/// seconds and speeds.
fn tree(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            if path.is_dir() {
                found.insert(name, "folder".into());
                folders.push(path);
            } else {
                found.insert(name, content(&path));
            }
        }
    }
    found
}

fn content(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap();
    let json = |text: &[u8]| serde_json::from_slice::<Value>(text).unwrap_or_default();
    match path.file_name().unwrap().to_str().unwrap() {
        "state.json" => {
            let mut state = json(&bytes);
            state["state"]["seconds"] = Value::Null;
            state.to_string()
        }
        "metrics.jsonl" => {
            let line = |line: &[u8]| {
                let line = json(line);
                ["step", "tokens", "loss", "lr", "grad_norm"].map(|key| line[key].to_string())
            };
            format!("{:?}", bytes.split(|b| *b == b'\n').map(line).collect::<Vec<_>>())
        }
        _ => dlm_datasets::hash::sha256(&bytes),
    }
}

/// Every failure of every operation in a log.
fn failures(log: &str) -> Vec<Failure> {
    let mut all = Vec::new();
    for line in log.lines() {
        let (number, operation) = line.split_once(' ').unwrap();
        let mut hows = vec!["kill-before", "kill-after", "eio", "enospc"];
        if operation.starts_with("write") {
            hows.extend(["short", "full"]);
        } else if operation.starts_with("create") || operation.starts_with("mkdir") {
            hows.push("full");
        }
        let at = number.parse().unwrap();
        all.extend(hows.into_iter().map(|how| Failure { at, how, operation: operation.into() }));
    }
    all
}

/// Case `k`: first every failure once, then pairs that the number chooses.
fn case(all: &[Failure], k: usize) -> Case {
    if let Some(first) = all.get(k) {
        return Case { first: first.clone(), second: None };
    }
    let chosen = |salt: u64| {
        &all[(rng::uniform(rng::key(&[k as u64, salt]), 0) * all.len() as f64) as usize]
    };
    Case { first: chosen(1).clone(), second: Some(chosen(2).clone()) }
}

struct Ground {
    dir: tempfile::TempDir,
    library: PathBuf,
    expected: BTreeMap<String, String>,
}

impl Ground {
    /// The command in a new folder, with this operation failing.
    fn command(&self, work: &Work, folder: &str) -> (Command, PathBuf) {
        let dir = self.dir.path().join(folder);
        std::fs::create_dir_all(&dir).unwrap();
        let mut command = (work.command)(&dir);
        command.env("RAYON_NUM_THREADS", "1").stdin(Stdio::null());
        (command, dir.canonicalize().unwrap())
    }

    fn disturbed(&self, work: &Work, folder: &str) -> (Command, PathBuf) {
        let (mut command, dir) = self.command(work, folder);
        command.env("LD_PRELOAD", &self.library).env("FAIL_BELOW", dir.join("out"));
        (command, dir)
    }

    /// Runs a case; the error says what went wrong.
    fn check(&self, work: &Work, k: usize, case: &Case) -> Result<(), String> {
        let (folder, mut told) = (k.to_string(), Vec::new());
        for failure in std::iter::once(&case.first).chain(&case.second) {
            let mut run = self.disturbed(work, &folder).0;
            run.env("FAIL_AT", failure.at.to_string()).env("FAIL_HOW", failure.how);
            let run = run.output().unwrap();
            let said = String::from_utf8_lossy(&run.stderr).into_owned();
            let ended = run.status.signal() == Some(9)
                || matches!(run.status.code(), Some(0 | 1)) && !said.contains("panicked");
            if !ended {
                return Err(format!("the failing run: {:?}: {said}", run.status));
            }
            told.push(format!("{:?}: {said}", run.status));
        }
        let dir = self.dir.path().join(&folder);
        let again = self.command(work, &folder).0.output().unwrap();
        if again.status.code() != Some(0) {
            let again_said = String::from_utf8_lossy(&again.stderr);
            return Err(format!("the run after it: {:?}: {again_said}", again.status));
        }
        let found = tree(&dir);
        let names = self.expected.keys().chain(found.keys());
        let differ = names.filter(|name| self.expected.get(*name) != found.get(*name));
        let differences: Vec<String> = differ
            .map(|name| match (self.expected.get(name), found.get(name)) {
                (Some(_), Some(_)) => format!("{name} differs"),
                (Some(_), None) => format!("{name} is missing"),
                (None, _) => format!("{name} is left over"),
            })
            .collect();
        if !differences.is_empty() {
            return Err(format!("{differences:?} after {told:?}"));
        }
        std::fs::remove_dir_all(&dir).unwrap();
        Ok(())
    }
}

fn survives(work: &Work) {
    // in memory where that is possible: what is tested is the order of operations, not the disk
    let in_memory = tempfile::tempdir_in("/dev/shm").and_then(|dir| {
        std::fs::write(dir.path().join("room"), vec![0; 64 << 20])?;
        std::fs::remove_file(dir.path().join("room"))?;
        Ok(dir)
    });
    let dir = in_memory.or_else(|_| tempfile::tempdir()).unwrap();
    // memory may be mounted so that nothing in it can be run
    let home = tempfile::tempdir().unwrap();
    let Some(library) = library(home.path()) else { return };
    (work.inputs)(dir.path());
    let mut ground = Ground { dir, library, expected: BTreeMap::new() };
    let (mut whole, dir) = ground.disturbed(work, "whole");
    let log = ground.dir.path().join("operations");
    let done = whole.env("FAIL_LOG", &log).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    ground.expected = tree(&dir);
    let log = std::fs::read_to_string(log).unwrap();
    let all = failures(&log);
    assert!(log.lines().count() > 20, "the library does not see the operations: {log}");
    let longer = std::env::var("DLM_ATTACK_SECONDS").ok().map(|text| text.parse().unwrap());
    let longer = Duration::from_secs(longer.unwrap_or(0));
    let (next, problems, begin) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Instant::now());
    let done = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let k = next.fetch_add(1, Ordering::Relaxed);
                    if k >= all.len() && begin.elapsed() >= longer {
                        break;
                    }
                    let case = case(&all, k);
                    if let Err(problem) = ground.check(work, k, &case) {
                        problems.lock().unwrap().push(format!("{case}: {problem}"));
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let problems = problems.into_inner().unwrap();
    let done = done.into_inner();
    println!(
        "{}: {} operations, all {} failures and {} pairs of them tried, {} wrong",
        work.name,
        log.lines().count(),
        all.len(),
        done.saturating_sub(all.len()),
        problems.len()
    );
    assert!(problems.is_empty(), "{} of {done}:\n{}", problems.len(), problems.join("\n"));
}

/// Conversations enough for several data files of two rows.
fn conversations(dir: &Path) {
    let text = |i: usize| -> String {
        let words = ["the", "name", "of", "a", "town", "is", "on", "map", "and", "in", "it"];
        let word = |k: usize| words[(i * 7 + k * (i % 5 + 1)) % words.len()];
        (0..12 + i % 9).map(word).collect::<Vec<_>>().join(" ")
    };
    let turn = |role: &str, i: usize| serde_json::json!({"role": role, "content": text(i)});
    let line = |i: usize| {
        let messages = [turn("user", i), turn("assistant", i + 3)];
        serde_json::json!({ "messages": messages }).to_string()
    };
    let lines: Vec<String> = (0..40).map(line).collect();
    std::fs::write(dir.join("in.jsonl"), lines.join("\n") + "\n").unwrap();
}

fn prepare(dir: &Path, out: &str, more: &[&str]) -> Command {
    let mut c = command("dlm-prep", dir).unwrap();
    c.args(["--input", "../in.jsonl", "--out", out, "--seq-len", "128", "--bd-size", "16"]);
    c.arg("--tokenizer").arg(sample("tokenizer"));
    c.args(["--shard-rows", "3", "--eval-fraction", "0.2", "--workers", "1"]).args(more);
    c
}

#[test]
fn preparing_survives_a_failure_at_any_file_operation() {
    survives(&Work {
        name: "dlm-prep",
        command: |dir| prepare(dir, "out", &["--dedup"]),
        inputs: conversations,
    });
}

#[test]
fn merging_survives_a_failure_at_any_file_operation() {
    survives(&Work {
        name: "dlm-prep merge",
        command: |dir| {
            let mut c = command("dlm-prep", dir).unwrap();
            c.args(["merge", "../part0", "../part1", "--out", "out"]);
            c
        },
        inputs: |dir| {
            conversations(dir);
            std::fs::create_dir(dir.join("x")).unwrap();
            for part in ["0", "1"] {
                let (out, shard) = (format!("../part{part}"), format!("{part}/2"));
                let mut c = prepare(&dir.join("x"), &out, &["--shard", &shard]);
                let done = c.output().unwrap();
                assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            }
        },
    });
}

fn train(dir: &Path, out: &str) -> Command {
    let mut c = command("dlm-train", dir).unwrap();
    c.args(["--data", "../data", "--device", "cpu", "model.name=t", "source.init=random"]);
    c.args(["source.config=../config.json", "train.batch_rows=2", "train.save_every=2"]);
    c.args(["train.max_steps=6", "train.keep_checkpoints=2", "train.eval_every=0"]);
    c.args(["optim.lr=1e-3", "conversion.total_tokens=100000"]).arg(format!("output.dir={out}"));
    c
}

fn data_and_config(dir: &Path) {
    families::dataset(&dir.join("data"), families::MASK, 16);
    let config = families::own_config("Llama");
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn training_with_three_checkpoints_survives_a_failure_at_any_file_operation() {
    survives(&Work {
        name: "dlm-train",
        command: |dir| train(dir, "out"),
        inputs: data_and_config,
    });
}

#[test]
fn exporting_survives_a_failure_at_any_file_operation() {
    survives(&Work {
        name: "dlm-train export",
        command: |dir| {
            let mut c = command("dlm-train", dir).unwrap();
            c.args(["export", "../run", "--out", "out"]);
            c
        },
        inputs: |dir| {
            data_and_config(dir);
            std::fs::create_dir(dir.join("x")).unwrap();
            let done = train(&dir.join("x"), "../run").output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        },
    });
}
