//! The tasks' scripts with the real programs and a folder for the bucket: data prepared on three
//! nodes, training on a machine that is taken away, and on the next one.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use dlm_test_support::{binaries, sample, skip};
use serde_json::Value;

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Setup and run of a task on a machine whose home is `home`, with the task's variables and then
/// `envs`.
fn machine(file: &str, home: &Path, envs: &[(&str, &str)]) -> Child {
    let programs = binaries::build().unwrap();
    std::fs::create_dir_all(home.join("dlm/bin")).unwrap();
    for name in ["dlm-prep", "dlm-train"] {
        let link = home.join("dlm/bin").join(name);
        if !link.exists() {
            std::os::unix::fs::symlink(programs.join(name), link).unwrap();
        }
    }
    let path = dlm_test_support::repository().join("configs/launch").join(file);
    let task: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let part = |name: &str| task[name].as_str().unwrap().to_string();
    let script = format!("(\n{}\n) || exit\n{}", part("setup"), part("run"));
    let mut command = Command::new("bash");
    command.args(["-c", &script]).current_dir(home).env_clear().env("HOME", home);
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    for section in ["envs", "secrets"] {
        for (name, value) in task[section].as_object().unwrap() {
            command.env(name, value.as_str().unwrap());
        }
    }
    command.envs(envs.iter().copied()).env("DEVICE", "cpu").env("POLL_SECONDS", "0.2");
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Losses by step.
fn losses(file: &Path) -> Vec<(u64, f64)> {
    let text = std::fs::read_to_string(file).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.map(|v| (v["step"].as_u64().unwrap(), v["loss"].as_f64().unwrap())).collect()
}

#[test]
fn data_goes_to_the_bucket_and_a_run_survives_its_machine() {
    let programs = binaries::build().unwrap();
    let config = Command::new(programs.join("dlm-train")).arg("--print-config").output().unwrap();
    if !text(&config).contains("\n  remote:") {
        skip("this dlm-train has no output.remote");
        return;
    }
    if Command::new("bash").arg("--version").output().is_err() {
        skip("no bash to run the scripts with");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bucket = dir.path().join("bucket");
    std::fs::create_dir_all(&bucket).unwrap();
    let address = format!("file://{}", bucket.display());
    let data = format!("{address}/packed");
    let arguments = format!(
        "--input {} --tokenizer {} --seq-len 256 --bd-size 32 --max-rows 40",
        sample("train.parquet").display(),
        sample("tokenizer").display()
    );
    let node = |rank: &str| {
        let envs = [
            ("ARGUMENTS", &arguments[..]),
            ("OUT", &data),
            ("SKYPILOT_NUM_NODES", "3"),
            ("SKYPILOT_NODE_RANK", rank),
        ];
        machine("dlm_prep.yaml", &dir.path().join(format!("node{rank}")), &envs)
    };
    // the first node waits for the others
    let first = node("0");
    for rank in ["1", "2"] {
        let output = node(rank).wait_with_output().unwrap();
        assert!(output.status.success(), "node {rank}: {}", text(&output));
    }
    let output = first.wait_with_output().unwrap();
    assert!(output.status.success(), "node 0: {}", text(&output));
    let overrides = "conversion=smoke train.max_steps=24 train.save_every=2 train.eval_every=0 conversion.total_tokens=1e9";
    let train = |home: &str| {
        let envs = [
            ("MODEL", "sample"),
            ("RUN_NAME", "first"),
            ("DATA", &data[..]),
            ("REMOTE", &address),
            ("HYDRA_OVERRIDES", overrides),
        ];
        machine("dlm_train.yaml", &dir.path().join(home), &envs)
    };
    let remote = bucket.join("dlm/sample/first");
    let taken_away = train("a");
    let started = Instant::now();
    while !remote.join("latest").exists() {
        assert!(started.elapsed() < Duration::from_secs(120), "no checkpoint in the bucket");
        std::thread::sleep(Duration::from_millis(5));
    }
    Command::new("kill").arg("-TERM").arg(taken_away.id().to_string()).status().unwrap();
    let output = taken_away.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    let output = train("b").wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("fetching the checkpoint of step"), "{}", text(&output));
    // the same as a run that nobody disturbed
    let mut undisturbed = Command::new(programs.join("dlm-train"));
    undisturbed.current_dir(dir.path()).args(["--data", &data, "--device", "cpu", "model=sample"]);
    undisturbed.args(overrides.split(' ')).args(["output.dir=alone", "report.wandb=off"]);
    let output = undisturbed.env("HOME", dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let whole = losses(&dir.path().join("alone/metrics.jsonl"));
    assert_eq!(whole.len(), 24);
    assert_eq!(losses(&remote.join("final/metrics.jsonl")), whole);
    let weights = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert!(weights(&remote.join("final")) == weights(&dir.path().join("alone")));
}
