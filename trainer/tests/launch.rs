//! `wf`: the task that it prints is the file in configs/launch with its values filled in.

use std::path::Path;
use std::process::{Command, Output};

use dlm_test_support::{repository, skip};
use serde_json::Value;

/// `wf` in `dir`, which is its home too, without credentials of this machine.
fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wf"));
    command.current_dir(dir).args(arguments).env_clear().env("HOME", dir);
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

fn wf(dir: &Path, arguments: &[&str]) -> Output {
    command(dir, arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder with what wf looks for: a packed dataset's manifest, a program to send, a model, and
/// Google's credentials.
fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("datasets/packed/manifest.json", "{}");
    write("dlm-train", "");
    write("dlm-prep", "");
    write(".config/gcloud/application_default_credentials.json", "{}");
    std::fs::create_dir_all(dir.path().join("ckpt")).unwrap();
    dir
}

fn template(name: &str) -> Value {
    let path = repository().join("configs/launch").join(name);
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn read(output: &Output) -> (Value, String) {
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    let command = shown.lines().last().unwrap().strip_prefix("# ").unwrap().to_string();
    (serde_saphyr::from_str(&shown).unwrap(), command)
}

fn dry_run(dir: &Path, more: &[&str]) -> (Value, String) {
    read(&wf(dir, &[&["dlm", "--dry-run"], more].concat()))
}

#[test]
fn the_task_keeps_what_the_file_says() {
    let dir = workplace();
    let (task, command) = dry_run(
        dir.path(),
        &["-m", "smollm2_135m", "--bucket", "gs://b/", "--binary", "dlm-train", "--name", "first"],
    );
    let template = template("dlm_train.yaml");
    for key in ["setup", "run", "secrets"] {
        assert_eq!(task[key], template[key], "{key}");
    }
    assert_eq!(task["resources"]["disk_size"], template["resources"]["disk_size"]);
    assert_eq!(task["resources"]["job_recovery"], template["resources"]["job_recovery"]);
    assert_eq!(task["resources"]["accelerators"], "H100:1");
    assert_eq!(task["resources"]["infra"], "nebius", "the default cloud");
    assert_eq!(task["resources"]["use_spot"], false);
    assert_eq!(task["name"], "dlm-smollm2-135m-first");
    assert_eq!(task["envs"]["MODEL"], "smollm2_135m");
    assert_eq!(task["envs"]["RUN_NAME"], "first");
    assert_eq!(task["envs"]["REMOTE"], "gs://b");
    assert_eq!(task["envs"]["DATA"], "data");
    assert_eq!(task["envs"]["BUILD_FEATURES"], "-");
    assert!(task["file_mounts"]["~/data"].as_str().unwrap().ends_with("datasets/packed"));
    let program = task["file_mounts"]["~/dlm/bin/dlm-train"].as_str().unwrap();
    assert!(Path::new(program).is_absolute() && program.ends_with("dlm-train"), "{program}");
    assert!(task.get("workdir").is_none(), "a program is sent, so the repository is not");
    assert!(
        command.starts_with("sky jobs launch --yes --name dlm-smollm2-135m-first ")
            && command.ends_with("dlm-smollm2-135m-first.yaml"),
        "{command}"
    );
    assert!(command.contains("--secret DLM_GOOGLE_CREDENTIALS"), "{command}");
}

/// Every variable of a task is read by its scripts, and every one that they read is set.
#[test]
fn variables_of_the_files_are_read() {
    for file in ["dlm_train.yaml", "dlm_prep.yaml", "smoke.yaml"] {
        let task = template(file);
        let scripts = format!("{}{}", task["run"], task["setup"]);
        for section in ["envs", "secrets"] {
            for name in task[section].as_object().unwrap().keys() {
                let read = scripts.contains(&format!("${name}"))
                    || scripts.contains(&format!("${{{name}"))
                    || scripts.contains(&format!(" {name}"));
                assert!(read, "{file}: {name} is set but never read");
            }
        }
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
            "gcp/us-central1",
            "--spot",
            "--gpu",
            "H200",
            "--detach",
            "--bucket",
            "s3://b",
            "--image",
            "ghcr.io/you/dlm:1",
            "conversion=paper_7b",
            "data.dir=gs://d/packed",
            "optim.lr=1e-5",
        ],
    );
    assert_eq!(task["resources"]["infra"], "gcp/us-central1");
    assert_eq!(task["resources"]["use_spot"], true);
    assert_eq!(task["resources"]["accelerators"], "H200:1");
    assert_eq!(task["resources"]["image_id"], "docker:ghcr.io/you/dlm:1");
    assert_eq!(task["resources"]["disk_size"], 300, "checkpoints of a model of 4B");
    assert_eq!(task["envs"]["SOURCE_PATH"], "hf://Qwen/Qwen3-4B@main");
    assert_eq!(task["envs"]["HYDRA_OVERRIDES"], "conversion=paper_7b optim.lr=1e-5");
    assert_eq!(task["envs"]["DATA"], "gs://d/packed");
    assert_eq!(task.get("file_mounts"), None, "the machine reads buckets itself");
    assert!(command.contains(" --detach-run "), "{command}");
    let name = task["name"].as_str().unwrap();
    assert!(
        name.starts_with("dlm-qwen3-4b-") && name.len() > "dlm-qwen3-4b-".len(),
        "names differ from run to run: {name}"
    );
    let (task, _) = dry_run(dir.path(), &["-m", "qwen3_4b", "-s", "ckpt"]);
    assert_eq!(task["envs"]["SOURCE_PATH"], "source");
    assert!(task["file_mounts"]["~/source"].as_str().unwrap().ends_with("ckpt"));
    for source in ["gs://c/model", "az://c/model", "s3://c"] {
        let (task, _) = dry_run(dir.path(), &["-m", "bitnet_2b", "-s", source]);
        assert_eq!(task["envs"]["SOURCE_PATH"], source);
    }
    let (task, _) = dry_run(dir.path(), &["-m", "qwen3_4b", "--cloud", "any"]);
    assert_eq!(task["resources"].get("infra"), None);
}

#[test]
fn refusals() {
    let dir = workplace();
    let sent = ["-m", "qwen3_4b", "--binary", "dlm-train", "--bucket", "gs://b"];
    let with = |more: &[&'static str]| [&sent, more].concat();
    for (arguments, words) in [
        (with(&["--scale", "medium", "optim=muon"]), "1 would be paid for and idle"),
        (with(&["--scale", "large", "train.batch_rows=3"]), "1 would be paid for and idle"),
        (with(&["--scale", "xlarge", "--gpu", "H200", "train.engine=burn"]), "rents 8 H200"),
        (with(&["--cloud", "nebuis"]), "nebius, gcp, aws, runpod, lambda, kubernetes"),
        (vec!["-m", "qwen3_5b", "--dry-run"], "did you mean `qwen3_4b`?"),
        (with(&["--dry-run", "train.sead=1"]), "did you mean `train.seed`?"),
        (with(&["--dry-run", "output.dir=x"]), "--bucket and --name"),
        (with(&["--dry-run", "output.remote=gs://x"]), "--bucket and --name"),
        (with(&["--dry-run", "source.path=x"]), "use -s"),
        (with(&["--dry-run", "-s", "./nowhere"]), "no such folder"),
        (with(&["--dry-run", "-s", "a/b/c"]), "no such folder"),
        (vec!["-m", "qwen3_4b", "--dry-run", "--bucket", "b"], "gs://NAME"),
        (with(&["--dry-run", "--name", "a b"]), "letters and digits"),
        (with(&["--dry-run", "--name", "a---b"]), "letters and digits"),
        (with(&["--dry-run", "--build-on-machine"]), "three different ways"),
        (vec!["-m", "qwen3_4b", "--dry-run", "--build-on-machine"], "call wf inside it"),
        (vec!["-m", "qwen3_4b", "--dry-run", "--binary", "nowhere"], "no such file"),
        (vec!["-m", "qwen3_4b", "--binary", "dlm-train"], "no bucket"),
        (with(&["data.dir=nowhere"]), "written by dlm-prep"),
        (with(&["data.dir=ckpt"]), "no manifest.json"),
        (with(&["train.micro_batch_rows=64"]), "does not fit H100"),
        (vec!["-m", "qwen3_4b", "--bucket", "gs://b", "train.engine=burn"], "--features cuda"),
        (
            vec!["-m", "qwen3_4b", "--bucket", "gs://b", "--gpu", "GH200"],
            "another kind of processor",
        ),
        (
            vec!["-m", "qwen3_4b", "--binary", "dlm-train", "--bucket", "s3://b"],
            "AWS_ACCESS_KEY_ID",
        ),
        (vec!["-m", "qwen3_4b", "--binary", "dlm-train", "--bucket", "az://b"], "AZURE_STORAGE"),
    ] {
        if words == "another kind of processor" && cfg!(target_arch = "aarch64") {
            continue;
        }
        let output = wf(dir.path(), &[&["dlm"], &arguments[..]].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
    // what one may want all the same
    let large = [&["--scale", "large", "--dry-run"], &sent[..]].concat();
    let output = wf(dir.path(), &[&["dlm"], &large[..]].concat());
    assert!(!text(&output.stderr).contains("would be refused"), "{}", text(&output.stderr));
    let task = read(&output).0;
    assert_eq!(task["resources"]["accelerators"], "H100:4");
    assert_eq!(task["envs"]["DEVICES"], "4");
    let idle = [&large[..], &["--allow-idle", "train.batch_rows=2"]].concat();
    let output = wf(dir.path(), &[&["dlm"], &idle[..]].concat());
    assert!(!text(&output.stderr).contains("would be refused"), "{}", text(&output.stderr));
    assert_eq!(read(&output).0["envs"]["DEVICES"], "2");
}

/// The command lines that the old launcher's users type, up to the machine.
#[test]
fn a_call_with_nothing_else_prints_the_plan_and_what_is_in_the_way() {
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
    assert!(said.contains("nothing was launched; in the way:"), "{said}");
    assert!(missing[0].contains("data.dir=datasets/packed: no such folder"), "{said}");
    assert!(missing[1].contains("--bucket gs://NAME or set GCS_BUCKET"), "{said}");
    // the estimate comes first, of shapes that need no network
    assert!(said.contains("those of hf://org/checkpoint are read on the machine"), "{said}");
    assert!(said.contains("memory: fits H100"), "{said}");
    let program = task["file_mounts"]["~/dlm/bin/dlm-train"].as_str().unwrap();
    assert!(Path::new(program).is_file(), "the dlm-train beside wf is sent: {program}");
    // the task of a dry run is whole, with a bucket to be named at its launch
    let scale = [&call[..], &["--scale", "large", "--no-detach", "--dry-run"]].concat();
    let output = wf(empty.path(), &scale);
    assert!(!text(&output.stderr).contains("--scale large"), "{}", text(&output.stderr));
    let (task, _) = read(&output);
    assert_eq!(task["envs"]["DEVICES"], "4");
    assert_eq!(task["resources"]["accelerators"], "H100:4");
    assert_eq!(task["envs"]["REMOTE"], "");
    let mut with_bucket = command(empty.path(), &scale);
    let (task, _) = read(&with_bucket.env("GCS_BUCKET", "mine").output().unwrap());
    assert_eq!(task["envs"]["REMOTE"], "gs://mine");
}

#[test]
fn prep_shares_the_rows_between_nodes() {
    let dir = workplace();
    let prep = |more: &[&str]| wf(dir.path(), &[&["prep", "--dry-run"], more].concat());
    let output = prep(&[
        "--out",
        "gs://b/packed",
        "--nodes",
        "4",
        "--cloud",
        "aws",
        "--binary",
        "dlm-prep",
        "-n",
        "r1",
        "--",
        "--input",
        "s3://raw/a b.parquet",
        "gs://raw/c",
        "--tokenizer",
        "Qwen/Qwen3-4B",
    ]);
    let (task, command) = read(&output);
    assert_eq!((&task["num_nodes"], &task["resources"]["infra"]), (&4.into(), &"aws".into()));
    assert_eq!(task["name"], "prep-packed-r1");
    assert_eq!(task["envs"]["OUT"], "gs://b/packed");
    assert_eq!(
        task["envs"]["ARGUMENTS"],
        "--input 's3://raw/a b.parquet' gs://raw/c --tokenizer Qwen/Qwen3-4B"
    );
    assert_eq!(task["resources"].get("accelerators"), None);
    assert!(task["file_mounts"]["~/dlm/bin/dlm-prep"].is_string());
    assert!(command.contains("--secret DLM_GOOGLE_CREDENTIALS"), "{command}");
    let input = ["--", "--input", "gs://raw/c"];
    for (more, words) in [
        (&[&["--out", "packed"], &input[..]].concat()[..], "gs://NAME"),
        (&[&["--out", "gs://b/p", "--nodes", "0"], &input[..]].concat(), "1 or more"),
        (&["--out", "gs://b/p", "--", "--tokenizer", "x/y"], "something to prepare"),
        (&["--out", "gs://b/p", "--", "--input", "gs://r", "--out", "x"], "--out before the --"),
        (&["--out", "gs://b/p", "--", "--input=gs://r", "--shard=0/2"], "--nodes"),
    ] {
        let output = prep(more);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {said}");
        assert!(said.contains(words), "{more:?}: {said}");
    }
    let output = prep(&["--out", "gs://b/p", "--", "--input", "datasets"]);
    assert!(text(&output.stderr).contains("would be refused: --input datasets is on this machine"));
}

/// The native engine is in every build; what it does not compute takes a build with CUDA in Burn.
#[test]
fn a_build_on_the_machine_is_asked_for_by_name() {
    let repository = repository();
    for (more, features) in [
        (&["-m", "qwen3_4b"][..], ""),
        (&["-m", "bitnet_2b"], ""),
        (&["-m", "qwen3_4b", "optim=muon"], "dlm-train/cuda"),
        (&["-m", "qwen3_4b", "train.engine=burn"], "dlm-train/cuda"),
    ] {
        let (task, _) = dry_run(&repository, &[&["--build-on-machine"], more].concat());
        assert_eq!(task["envs"]["BUILD_FEATURES"], features, "{more:?}");
        assert_eq!(task["workdir"].as_str().map(Path::new), Some(&*repository), "{more:?}");
        let (task, _) = dry_run(&repository, more);
        assert_eq!(task["envs"]["BUILD_FEATURES"], "-", "{more:?}");
        assert_eq!(task.get("workdir"), None, "{more:?}");
    }
}

#[test]
fn where_weights_and_biases_puts_a_run_is_passed_on() {
    let dir = workplace();
    let call = |more: &[&str]| {
        let mut command =
            command(dir.path(), &[&["dlm", "--dry-run", "-m", "qwen3_4b"], more].concat());
        command.env("WANDB_API_KEY", "marked").env("WANDB_PROJECT", "p").env("WANDB_ENTITY", "e");
        let output = command.output().unwrap();
        assert!(
            !text(&output.stdout).contains("marked") && !text(&output.stderr).contains("marked")
        );
        read(&output)
    };
    let (task, command) = call(&[]);
    assert_eq!(
        (&task["envs"]["WANDB_PROJECT"], &task["envs"]["WANDB_ENTITY"]),
        (&"p".into(), &"e".into())
    );
    assert!(command.contains("--secret WANDB_API_KEY"), "{command}");
    let (task, command) = call(&["report.wandb=off"]);
    assert_eq!(task["envs"]["WANDB_PROJECT"], "");
    assert!(!command.contains("WANDB_API_KEY"), "{command}");
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
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let output = command(dir.path(), arguments).env("PATH", path).output().unwrap();
    (output, std::fs::read_to_string(dir.path().join("calls")).unwrap_or_default())
}

const JSON: &str = r#"*queue*json*) echo '[{"job_id": 8, "job_name": "other"}, {"job_id": 7, "job_name": "prep-b-first"}, {"job_id": 6, "job_name": "dlm-b-first"}, {"job_id": 5, "job_name": "dlm-a-1"}, {"job_id": 4, "job_name": "dlm-a-1"}]';;"#;
const TABLE: &str = r#"*queue*json*) echo 'No such option: --output' >&2; exit 2;;
*queue*) echo 'ID  TASK  NAME     REQUESTED  SUBMITTED  STATUS'
echo '8   -     other    1x[H100:1]  2 hrs ago  SUCCEEDED'
echo '7   -     prep-b-first    1x[H100:1]  2 hrs ago  SUCCEEDED'
echo '6   -     dlm-b-first    1x[H100:1]  2 hrs ago  SUCCEEDED'
echo '5   -     dlm-a-1  1x[H100:1]  1 day ago  FAILED';;"#;

#[test]
fn logs_are_found_through_the_queue() {
    if Command::new("bash").arg("--version").output().is_err() {
        skip("no bash to run a stand-in for sky with");
        return;
    }
    for queue in [JSON, TABLE] {
        for (name, id) in [
            (&["dlm-b-first"][..], 6),
            (&["dlm-a-1"], 5),
            (&["a-1"], 5),
            (&["first"], 7),
            (&["other"], 8),
            (&["wf-dlm-train"], 6),
            (&[], 6),
        ] {
            let (output, calls) = with_queue(queue, &[&["logs"], name].concat());
            assert!(output.status.success(), "{name:?}: {}", text(&output.stderr));
            assert_eq!(calls, format!("jobs logs --no-follow {id}\n"), "{name:?}");
        }
        for command in ["logs", "cancel"] {
            let (output, calls) = with_queue(queue, &[command, "frist"]);
            let said = text(&output.stderr);
            assert_eq!((output.status.code(), calls.as_str()), (Some(2), ""), "{said}");
            assert!(said.contains("no job called frist") && said.contains("dlm-b-first"), "{said}");
        }
        let (output, calls) = with_queue(queue, &["cancel", "dlm-b-first"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(calls, "jobs cancel --yes 6\n");
        let (_, calls) = with_queue(queue, &["logs", "-f", "dlm-b-first"]);
        assert_eq!(calls, "jobs logs --follow 6\n");
    }
    let (_, calls) = with_queue(JSON, &["runs", "-n", "3"]);
    assert_eq!(calls, "jobs queue --limit 3\n");
    let (output, _) = with_queue("*queue*) echo '[]';;", &["logs", "wf-dlm-train"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("the queue is empty"), "{}", text(&output.stderr));
    let (output, _) = with_queue("*queue*) echo broken >&2; exit 3;;", &["logs", "first"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("exit code 3"), "{}", text(&output.stderr));
}
