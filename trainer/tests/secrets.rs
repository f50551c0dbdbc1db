//! No secret leaves the environment: not into tasks, command lines, process lists, logs, errors or
//! the output of a crash. Every variable that can hold one holds a marker, and everything that the
//! programs write is searched for it.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{train, workplace};
use dlm_test_support::{binaries, python, skip};

const MARK: &str = "m4rk3ds3cr3t";

/// Variables that hold a secret; W&B's key has a form that its client accepts.
const SECRETS: [&str; 12] = [
    "WANDB_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_CLIENT_SECRET",
    "DLM_API_KEY",
    "DLM_GOOGLE_CREDENTIALS",
];

/// A command with a marker in every variable, and a file of Google's with one.
fn marked<'a>(command: &'a mut Command, dir: &Path) -> &'a mut Command {
    for name in SECRETS {
        command.env(name, format!("{MARK}{:0>28}", name.len()));
    }
    let google = dir.join("google.json");
    let text = format!(r#"{{"type": "service_account", "private_key": "{MARK}"}}"#);
    std::fs::write(&google, text).unwrap();
    command.env("GOOGLE_APPLICATION_CREDENTIALS", google).env("RUST_BACKTRACE", "full");
    command.env("HOME", dir).env("HF_HOME", dir.join("hf")).env("AWS_REGION", "eu-1")
}

/// Ends the test if what a command printed has a marker; returns it.
fn printed(output: &Output, what: &str) -> String {
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!text.contains(MARK), "{what}: {text}");
    text
}

/// Ends the test if a file below `dir` has a marker.
fn search(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap().filter_map(Result::ok) {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            search(&path);
        } else if kind.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            let found = bytes.windows(MARK.len()).any(|window| window == MARK.as_bytes());
            assert!(!found, "{} has a secret", path.display());
        }
    }
}

/// A stand-in for sky that notes its command line, the task, all processes, and which variables it
/// was given.
const SKY: &str = r#"#!/bin/bash
{
  echo "arguments: $@"
  for last in "$@"; do :; done
  if [ -f "$last" ]; then cat "$last"; fi
  cat /proc/[0-9]*/cmdline | tr '\0' ' '
  for ((i = 1; i <= $#; i++)); do
    if [ "${!i}" = --secret ]; then j=$((i + 1)); name=${!j}; [ -n "${!name}" ] && echo "has $name"; fi
  done
} >> "$HOME/seen" 2>/dev/null
if [ "$2" = queue ]; then echo "failed" >&2; exit 1; fi
"#;

#[test]
fn wf_passes_names_and_never_values() {
    if Command::new("bash").arg("--version").output().is_err() {
        skip("no bash to run a stand-in for sky with");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    let write = |name: &str, text: &str| std::fs::write(here.join(name), text).unwrap();
    write("sky", SKY);
    write("program", "");
    Command::new("chmod").arg("+x").arg(here.join("sky")).status().unwrap();
    let path = format!("{}:{}", here.display(), std::env::var("PATH").unwrap());
    let call = |line: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wf"));
        command.current_dir(here).args(line.split(' ')).env_clear().env("PATH", &path);
        let output = marked(&mut command, here).output().unwrap();
        printed(&output, line);
        (output.status.code(), std::fs::read_to_string(here.join("seen")).unwrap_or_default())
    };
    let dlm = "dlm -m smollm2_135m --binary program --bucket gs://b -s s3://c/m data.dir=az://d/p";
    let (code, seen) = call(dlm);
    assert_eq!(code, Some(0), "{seen}");
    for name in [
        "DLM_GOOGLE_CREDENTIALS",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "HF_TOKEN",
        "WANDB_API_KEY",
    ] {
        assert!(seen.contains(&format!("has {name}")), "{name} does not arrive: {seen}");
    }
    // the task of a bucket has the keys of that bucket alone
    std::fs::remove_file(here.join("seen")).unwrap();
    let (code, seen) = call("prep --out gs://b/p --binary program -- --input gs://r");
    assert_eq!(code, Some(0), "{seen}");
    assert!(seen.contains("has HF_TOKEN") && !seen.contains("has AWS_"), "{seen}");
    for line in [
        &format!("{dlm} --dry-run")[..],
        "dlm -m nothing",
        "dlm -m smollm2_135m --bucket x",
        "prep --out gs://b/p -- --input program",
        "smoke --cloud gcp --binary program --dry-run",
        "logs first",
        "runs",
    ] {
        call(line);
    }
    let seen = std::fs::read_to_string(here.join("seen")).unwrap();
    assert!(seen.contains("jobs launch") && seen.contains("run: |"), "{seen}");
    assert!(!seen.contains(MARK), "a value reached a command line or a task");
    std::fs::remove_file(here.join("google.json")).unwrap();
    search(here);
}

/// A server that refuses every request and repeats the headers in its answer. Returns its address.
fn echoing() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut request = vec![0; 16384];
            let n = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..n]).into_owned();
            let token = request
                .lines()
                .find(|line| line.to_lowercase().starts_with("authorization"))
                .unwrap_or_default();
            let answer = format!(
                "HTTP/1.1 403 Forbidden\r\nX-Error-Message: {token}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{request}",
                request.len()
            );
            // a client that has gone away does not read it
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

#[test]
fn errors_do_not_repeat_what_a_server_was_sent() {
    let bin = binaries::build().unwrap();
    let dir = workplace();
    let server = echoing();
    for (program, line) in [
        ("dlm-train", "plan model=qwen3_4b source.path=hf://org/name"),
        ("dlm-train", "--data data model=smollm2_135m --device cpu"),
        ("dlm-train", "--data data model=smollm2_135m --device cpu source.path=s3://b/model"),
        ("dlm-train", "--data s3://b/data model=smollm2_135m --device cpu"),
        ("dlm-train", "generate --model hf://org/name --prompt x"),
        ("dlm-prep", "--dataset org/name --tokenizer org/name --out out"),
        ("dlm-prep", "--input s3://b/rows --tokenizer org/name --out out"),
    ] {
        let mut command = Command::new(bin.join(program));
        command.current_dir(dir.path()).args(line.split(' ')).env("HF_ENDPOINT", &server);
        command.env("AWS_ENDPOINT_URL", &server).env("AWS_ALLOW_HTTP", "true");
        let output = marked(&mut command, dir.path()).output().unwrap();
        let said = printed(&output, line);
        assert!(!output.status.success(), "{line}: {said}");
    }
    std::fs::remove_file(dir.path().join("google.json")).unwrap();
    search(dir.path());
}

#[test]
fn training_keeps_secrets_to_itself() {
    let dir = workplace();
    let start = |more: &[&str]| {
        let mut command = train(dir.path(), "run", more);
        command.env("WANDB_MODE", "offline").stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(python) = python::with(&["wandb"]) {
            command.env("DLM_PYTHON", python);
        }
        marked(&mut command, dir.path()).spawn().unwrap()
    };
    let mut training = start(&["train.max_steps=600", "report.tensorboard=true"]);
    let mut lines = String::new();
    while training.try_wait().unwrap().is_none() {
        // command lines of all processes: that beside the training, and what it starts
        for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            lines += &String::from_utf8_lossy(&line);
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(!lines.contains(MARK), "a secret is on a command line");
    let output = training.wait_with_output().unwrap();
    printed(&output, "training");
    assert!(output.status.success());
    // a run that ends in an error, and one that is aborted
    let damaged = std::fs::read_dir(dir.path().join("data")).unwrap().filter_map(Result::ok);
    for entry in damaged.filter(|entry| entry.path().extension().is_some_and(|e| e == "arrow")) {
        std::fs::write(entry.path(), "damaged").unwrap();
    }
    let output =
        start(&["train.max_steps=2", "--resume", "never", "--overwrite"]).wait_with_output();
    let output = output.unwrap();
    printed(&output, "a damaged dataset");
    assert!(!output.status.success());
    std::fs::remove_file(dir.path().join("google.json")).unwrap();
    search(dir.path());
}
