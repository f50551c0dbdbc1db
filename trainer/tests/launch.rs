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
        (&["-m", "bitnet_2b", "--bucket", "gs://b", "train.engine=burn"], "no dlm-train to send"),
    ] {
        let output = wf(dir.path(), &[&["dlm"], arguments].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}

#[test]
fn a_call_with_nothing_else_prints_the_plan_and_what_is_missing() {
    let empty = tempfile::tempdir().unwrap();
    let call = ["dlm", "-m", "qwen3_4b", "-s", "hf://org/checkpoint"];
    let output = wf(empty.path(), &call);
    let (shown, said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(2), "{said}");
    let task: Value = serde_saphyr::from_str(&shown).unwrap();
    assert_eq!(task["envs"]["SOURCE_PATH"], "hf://org/checkpoint");
    assert!(shown.lines().last().unwrap().starts_with("# sky jobs launch"), "{shown}");
    let missing: Vec<&str> = said.lines().filter(|line| line.starts_with("  - ")).collect();
    assert_eq!(missing.len(), 2, "{said}");
    assert!(said.contains("nothing was launched; missing:"), "{said}");
    assert!(missing[0].contains("data.dir=datasets/packed: no such folder"), "{said}");
    assert!(missing[1].contains("--bucket gs://NAME or set GCS_BUCKET"), "{said}");
    // the task of a dry run is whole: data, program, and a bucket to be named at its launch
    let (task, _) = dry_run(empty.path(), &call[1..]);
    assert_eq!(task["file_mounts"]["~/outputs"]["source"], "gs://${GCS_BUCKET}");
    assert!(task["envs"].as_object().unwrap().contains_key("GCS_BUCKET"));
    assert!(task["file_mounts"]["~/data"].as_str().unwrap().ends_with("datasets/packed"));
    let program = task["file_mounts"]["~/dlm/dlm-train"].as_str().unwrap();
    assert!(Path::new(program).is_file(), "the dlm-train beside wf is sent: {program}");
    assert_eq!(task["envs"]["CARGO_FEATURES"], "");
}

/// The native engine is in every build; what it does not compute takes a build with CUDA in Burn.
#[test]
fn models_that_the_native_engine_does_not_compute_are_built_with_cuda() {
    let dir = workplace();
    for (more, features) in [
        (&["-m", "qwen3_4b"][..], ""),
        (&["-m", "bitnet_2b"], ""),
        (&["-m", "qwen3_4b", "conversion.bitlinear=on"], ""),
        (&["-m", "qwen3_4b", "optim=muon"], "cuda"),
        (&["-m", "qwen3_4b", "train.engine=burn"], "cuda"),
    ] {
        let (task, _) = dry_run(dir.path(), more);
        assert_eq!(task["envs"]["CARGO_FEATURES"], features, "{more:?}");
        let is_sent = task["file_mounts"].get("~/dlm/dlm-train").is_some();
        assert_eq!(is_sent, features.is_empty() || cfg!(feature = "cuda"), "{more:?}");
    }
    // a GPU beside an ARM processor cannot run what was built here
    let (task, _) = dry_run(dir.path(), &["-m", "qwen3_4b", "--gpu", "GH200"]);
    let is_sent = task["file_mounts"].get("~/dlm/dlm-train").is_some();
    assert_eq!(is_sent, cfg!(target_arch = "aarch64"));
}

#[test]
fn a_key_for_reports_that_are_not_made_is_said() {
    let dir = workplace();
    let call = |key: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wf"));
        command.current_dir(dir.path()).args(["dlm", "--dry-run", "-m", "qwen3_4b"]);
        text(&command.env("WANDB_API_KEY", key).output().unwrap().stderr)
    };
    assert!(call("secret").contains("WANDB_API_KEY is set and not used"));
    assert!(!call("secret").contains("secret"));
    assert!(!call("").contains("WANDB_API_KEY"));
}

/// Calls `wf` with a stand-in for `sky` that prints `queue` and notes its other calls.
fn with_queue(queue: &str, arguments: &[&str]) -> (Output, String) {
    let dir = tempfile::tempdir().unwrap();
    let stand_in = dir.path().join("sky");
    std::fs::write(
        &stand_in,
        format!(
            "#!/bin/bash\ncase \"$*\" in\n{queue}\n*) echo \"$*\" >> {}/calls;; esac\n",
            dir.path().display()
        ),
    )
    .unwrap();
    Command::new("chmod").arg("+x").arg(&stand_in).status().unwrap();
    let state = dir.path().join("state/dlm-train");
    std::fs::create_dir_all(&state).unwrap();
    std::fs::write(state.join("wf-runs"), "first\n").unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_wf"));
    command.args(arguments).env("PATH", path).env("XDG_STATE_HOME", dir.path().join("state"));
    let output = command.output().unwrap();
    (output, std::fs::read_to_string(dir.path().join("calls")).unwrap_or_default())
}

const JSON: &str = r#"*queue*json*) echo '[{"job_id": 7, "job_name": "other"}, {"job_id": 6, "job_name": "first"}, {"job_id": 5, "job_name": "dlm-a-1"}, {"job_id": 4, "job_name": "dlm-a-1"}]';;"#;
const TABLE: &str = r#"*queue*json*) echo 'No such option: --output' >&2; exit 2;;
*queue*) echo 'ID  TASK  NAME     REQUESTED  SUBMITTED  STATUS'
echo '6   -     first    1x[H100:1]  2 hrs ago  SUCCEEDED'
echo '5   -     dlm-a-1  1x[H100:1]  1 day ago  FAILED';;"#;

#[test]
fn logs_are_found_through_the_queue() {
    if !bash() {
        return;
    }
    for queue in [JSON, TABLE] {
        for (name, id) in [("first", 6), ("dlm-a-1", 5), ("wf-dlm-train", 6)] {
            let (output, calls) = with_queue(queue, &["logs", name]);
            assert!(output.status.success(), "{name}: {}", text(&output.stderr));
            assert_eq!(calls, format!("jobs logs --no-follow {id}\n"), "{name}");
        }
        for command in ["logs", "cancel"] {
            let (output, calls) = with_queue(queue, &[command, "frist"]);
            let said = text(&output.stderr);
            assert_eq!((output.status.code(), calls.as_str()), (Some(2), ""), "{said}");
            assert!(said.contains("no job called frist") && said.contains("first"), "{said}");
        }
        let (output, calls) = with_queue(queue, &["cancel", "first"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(calls, "jobs cancel --yes 6\n");
        let (_, calls) = with_queue(queue, &["logs", "-f", "first"]);
        assert_eq!(calls, "jobs logs --follow 6\n");
    }
    let (output, _) = with_queue("*queue*) echo '[]';;", &["logs", "wf-dlm-train"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("the queue is empty"), "{}", text(&output.stderr));
    let (output, _) = with_queue("*queue*) echo broken >&2; exit 3;;", &["logs", "first"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("exit code 3"), "{}", text(&output.stderr));
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
    // The checkpoint with the lowest evaluation loss is copied too, and back.
    let checkpoints = home.path().join("run/first/checkpoints");
    for (step, state) in
        [("step-000000004", "kept"), ("step-1", "{\n \"best\": {\n  \"step\": 4,\n")]
    {
        std::fs::create_dir_all(checkpoints.join(step)).unwrap();
        std::fs::write(checkpoints.join(step).join("state.json"), state).unwrap();
    }
    std::fs::remove_file(remote.join("checkpoints/latest")).unwrap();
    let stay = std::fs::read_to_string(home.path().join("dlm/dlm-train")).unwrap();
    std::fs::write(home.path().join("dlm/dlm-train"), "#!/bin/bash\ntrue\n").unwrap();
    let output = script(home.path(), "", "").output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(read("checkpoints/best"), "step-000000004");
    assert_eq!(read("checkpoints/step-000000004/state.json"), "kept");
    std::fs::write(home.path().join("dlm/dlm-train"), stay).unwrap();
    // Another machine: the local disk is empty.
    std::fs::remove_dir_all(home.path().join("run")).unwrap();
    let output = script(home.path(), "", "").output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(read("checkpoints/latest"), "step-2");
    assert_eq!(read("checkpoints/step-2/state.json"), "after step-1\n");
    assert!(checkpoints.join("step-000000004/state.json").is_file());
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
