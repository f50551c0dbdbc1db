//! `wf`: the task that it prints is the template in configs/launch with its values filled in, and
//! the template's run script does what it says (run here with bash, a stand-in for dlm-train, and a
//! folder for the bucket).

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use dlm_test_support::{repository, skip};
use serde_json::Value;

fn wf(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wf"));
    command.current_dir(dir).args(arguments).env_remove("GCS_BUCKET").env_remove("HF_TOKEN");
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder with what wf looks for: a packed dataset's manifest and a program to send.
fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("datasets/packed")).unwrap();
    std::fs::write(dir.path().join("datasets/packed/manifest.json"), "{}").unwrap();
    std::fs::write(dir.path().join("dlm-train"), "").unwrap();
    std::fs::create_dir_all(dir.path().join("ckpt")).unwrap();
    dir
}

fn template() -> Value {
    let path = repository().join("configs/launch/dlm_train.yaml");
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn dry_run(dir: &Path, more: &[&str]) -> (Value, String) {
    let mut arguments = vec!["dlm", "--dry-run"];
    arguments.extend(more);
    let output = wf(dir, &arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    let command = shown.lines().last().unwrap().strip_prefix("# ").unwrap().to_string();
    (serde_saphyr::from_str(&shown).unwrap(), command)
}

#[test]
fn the_task_keeps_what_the_template_says() {
    let dir = workplace();
    let (task, command) = dry_run(
        dir.path(),
        &["-m", "smollm2_135m", "--bucket", "gs://b/", "--binary", "dlm-train", "--name", "first"],
    );
    let template = template();
    for key in ["setup", "run", "secrets"] {
        assert_eq!(task[key], template[key], "{key}");
    }
    assert_eq!(task["resources"]["disk_size"], template["resources"]["disk_size"]);
    assert_eq!(task["resources"]["job_recovery"], template["resources"]["job_recovery"]);
    assert_eq!(task["resources"]["accelerators"], "H100:1");
    assert_eq!(task["resources"]["use_spot"], false);
    assert_eq!(task["name"], "first");
    assert_eq!(task["envs"]["MODEL"], "smollm2_135m");
    assert_eq!(task["envs"]["RUN_NAME"], "first");
    assert_eq!(task["file_mounts"]["~/outputs"]["source"], "gs://b");
    assert!(task["file_mounts"]["~/data"].as_str().unwrap().ends_with("datasets/packed"));
    assert!(task.get("workdir").is_none(), "a program is sent, so the repository is not");
    assert!(
        command.starts_with("sky jobs launch --yes --name first ")
            && command.ends_with("first.yaml"),
        "{command}"
    );
    let envs = task["envs"].as_object().unwrap();
    let script = format!("{}{}", task["run"], task["setup"]);
    for name in envs.keys() {
        assert!(
            script.contains(&format!("${name}")) || script.contains(&format!("${{{name}")),
            "{name} is set but never read"
        );
    }
}

#[test]
fn options_reach_the_task() {
    let dir = workplace();
    let (task, command) = dry_run(
        dir.path(),
        &[
            "-m",
            "qwen3_4b",
            "-s",
            "hf://Qwen/Qwen3-4B@main",
            "--cloud",
            "nebius",
            "--spot",
            "--gpu",
            "H200",
            "--detach",
            "--bucket",
            "s3://b",
            "--binary",
            "dlm-train",
            "conversion=paper_7b",
            "data.dir=gs://d/packed",
            "optim.lr=1e-5",
        ],
    );
    assert_eq!(task["resources"]["infra"], "nebius");
    assert_eq!(task["resources"]["use_spot"], true);
    assert_eq!(task["resources"]["accelerators"], "H200:1");
    assert_eq!(task["envs"]["SOURCE_PATH"], "hf://Qwen/Qwen3-4B@main");
    assert_eq!(task["envs"]["HYDRA_OVERRIDES"], "conversion=paper_7b optim.lr=1e-5");
    assert_eq!(
        task["file_mounts"]["~/data"],
        serde_json::json!({"source": "gs://d/packed", "mode": "COPY"})
    );
    assert!(command.contains(" --detach-run "), "{command}");
    let name = task["name"].as_str().unwrap();
    assert!(
        name.starts_with("dlm-qwen3-4b-") && name.len() > "dlm-qwen3-4b-".len(),
        "names differ from run to run: {name}"
    );
    let (task, _) = dry_run(dir.path(), &["-m", "qwen3_4b", "-s", "ckpt"]);
    assert_eq!(task["envs"]["SOURCE_PATH"], "source");
    assert!(task["file_mounts"]["~/source"].as_str().unwrap().ends_with("ckpt"));
    let (task, _) = dry_run(dir.path(), &["-m", "bitnet_2b", "-s", "gs://c/model"]);
    assert_eq!(task["file_mounts"]["~/source"]["source"], "gs://c/model");
}

#[test]
fn refusals() {
    let dir = workplace();
    for (arguments, words) in [
        (&["-m", "qwen3_4b", "--scale", "medium", "--dry-run"][..], "dlm-train uses one"),
        (&["-m", "qwen3_4b", "--scale", "xlarge", "--dry-run"], "rents 8 GPUs"),
        (&["-m", "qwen3_5b", "--dry-run"], "did you mean `qwen3_4b`?"),
        (&["-m", "qwen3_4b", "--dry-run", "train.sead=1"], "did you mean `train.seed`?"),
        (&["-m", "qwen3_4b", "--dry-run", "output.dir=x"], "--bucket and --name"),
        (&["-m", "qwen3_4b", "--dry-run", "source.path=x"], "use -s"),
        (&["-m", "qwen3_4b", "--dry-run", "-s", "./nowhere"], "no such folder"),
        (&["-m", "qwen3_4b", "--dry-run", "--bucket", "b"], "gs://NAME"),
        (&["-m", "qwen3_4b", "--dry-run", "--name", "a b"], "letters, digits"),
        (&["-m", "qwen3_4b", "--dry-run", "--binary", "nowhere"], "no such file"),
        (&["-m", "qwen3_4b", "--binary", "dlm-train"], "no bucket"),
        (
            &["-m", "qwen3_4b", "--binary", "dlm-train", "--bucket", "gs://b", "data.dir=nowhere"],
            "written by dlm-prep",
        ),
        (
            &["-m", "qwen3_4b", "--binary", "dlm-train", "--bucket", "gs://b", "data.dir=ckpt"],
            "no manifest.json",
        ),
        (&["-m", "qwen3_4b", "--bucket", "gs://b"], "no dlm-train to send"),
    ] {
        let output = wf(dir.path(), &[&["dlm"], arguments].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}

/// A home folder with a stand-in for dlm-train: each call adds a step to the checkpoint that it
/// finds, writes an export, and can wait for a signal.
fn home(trainer: &str) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(home.path().join("dlm")).unwrap();
    std::fs::create_dir_all(home.path().join("outputs")).unwrap();
    let program = home.path().join("dlm/dlm-train");
    std::fs::write(&program, format!("#!/bin/bash\n{STAND_IN}\n{trainer}\n")).unwrap();
    Command::new("chmod").arg("+x").arg(&program).status().unwrap();
    home
}

const STAND_IN: &str = r#"
printf '%s\n' "$@" > ~/arguments
for argument in "$@"; do case $argument in output.dir=*) out=${argument#output.dir=};; esac; done
last=$(cat "$out/checkpoints/latest" 2>/dev/null || echo step-0)
save() {
  step=step-$((${last#step-} + 1))
  mkdir -p "$out/checkpoints/$step"
  echo "after $last" > "$out/checkpoints/$step/state.json"
  printf %s "$step" > "$out/checkpoints/latest"
}
"#;

fn script(home: &Path, overrides: &str, source: &str) -> Command {
    let run = template()["run"].as_str().unwrap().to_string();
    let mut command = Command::new("bash");
    command
        .arg("-c")
        .arg(run)
        .env("HOME", home)
        .env("MODEL", "sample")
        .env("RUN_NAME", "first")
        .env("DEVICE", "cpu");
    command
        .env("SOURCE_PATH", source)
        .env("HYDRA_OVERRIDES", overrides)
        .env("UPLOAD_SECONDS", "0.2");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn bash() -> bool {
    let there = Command::new("bash").arg("--version").output().is_ok();
    if !there {
        skip("no bash to run the script with");
    }
    there
}

#[test]
fn the_script_trains_copies_and_continues() {
    if !bash() {
        return;
    }
    let home = home(
        "save; mkdir -p \"$out/sub\"; echo weights > \"$out/model.safetensors\"; echo x > \"$out/sub/y\"; echo m >> \"$out/metrics.jsonl\"",
    );
    let output =
        script(home.path(), "optim.lr=1e-5 'model.name=a b'", "hf://org/name").output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let arguments = std::fs::read_to_string(home.path().join("arguments")).unwrap();
    let expected = [
        "--data",
        "--device\ncpu",
        "--resume\nauto",
        "\nmodel=sample\nsource.path=hf://org/name\noptim.lr=1e-5\nmodel.name=a b\noutput.dir=",
    ];
    for part in expected {
        assert!(arguments.contains(part), "{part:?} in {arguments}");
    }
    let remote = home.path().join("outputs/dlm/sample/first");
    let read = |name: &str| std::fs::read_to_string(remote.join(name)).unwrap_or_default();
    assert_eq!(
        (read("checkpoints/latest"), read("model.safetensors"), read("sub/y")),
        ("step-1".into(), "weights\n".into(), "x\n".into())
    );
    // Another machine: the local disk is empty.
    std::fs::remove_dir_all(home.path().join("run")).unwrap();
    let output = script(home.path(), "", "").output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(read("checkpoints/latest"), "step-2");
    assert_eq!(read("checkpoints/step-2/state.json"), "after step-1\n");
    assert_eq!(read("metrics.jsonl"), "m\nm\n");
    assert!(
        !std::fs::read_to_string(home.path().join("arguments")).unwrap().contains("source.path")
    );
}

#[test]
fn the_script_tells_failure() {
    if !bash() {
        return;
    }
    for (trainer, code) in [("exit 2", 2), ("save; exit 1", 1), ("save; kill -9 $$", 137)] {
        let home = home(trainer);
        let output = script(home.path(), "", "").output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(code),
            "{trainer}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        let latest = std::fs::read_to_string(
            home.path().join("outputs/dlm/sample/first/checkpoints/latest"),
        )
        .ok();
        assert_eq!(latest.is_some(), trainer.starts_with("save"), "{trainer}");
    }
}

#[test]
fn the_script_hands_a_signal_on_and_copies_what_was_saved() {
    if !bash() {
        return;
    }
    let home = home("trap 'save; exit 130' TERM; touch ~/ready; while :; do sleep 0.05; done");
    let mut child = script(home.path(), "", "").spawn().unwrap();
    let started = Instant::now();
    while !home.path().join("ready").exists() {
        assert!(started.elapsed() < Duration::from_secs(60), "the stand-in did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    Command::new("kill").arg("-TERM").arg(child.id().to_string()).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let latest =
        std::fs::read_to_string(home.path().join("outputs/dlm/sample/first/checkpoints/latest"))
            .unwrap();
    assert_eq!(latest, "step-1");
}
