//! The scripts of configs/launch do what they say: run here with bash and stand-ins for the
//! programs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use dlm_test_support::{repository, skip};
use serde_json::Value;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn bash() -> bool {
    let there = Command::new("bash").arg("--version").output().is_ok();
    if !there {
        skip("no bash to run the scripts with");
    }
    there
}

/// A home folder whose `dlm/bin` has a stand-in that notes its arguments and environment.
fn home(program: &str, more: &str) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("dlm/bin");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join(program);
    let note = "if [ \"$1\" = --version ]; then echo 'stand-in 1'; exit; fi\n\
                printf '%s\\n' \"$@\" >> ~/arguments; echo -- >> ~/arguments; env > ~/environment\n";
    std::fs::write(&file, format!("#!/bin/bash\n{note}{more}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    let environment = "export PATH=\"$HOME/dlm/bin:$PATH\"\n";
    std::fs::write(home.path().join("dlm/environment"), environment).unwrap();
    home
}

/// A script of a file in configs/launch, with the variables that the file sets and then `envs`.
fn script(file: &str, part: &str, home: &Path, envs: &[(&str, &str)]) -> Command {
    let path = repository().join("configs/launch").join(file);
    let task: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut command = Command::new("bash");
    command.arg("-c").arg(task[part].as_str().unwrap()).current_dir(home).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", home);
    for section in ["envs", "secrets"] {
        for (name, value) in task[section].as_object().unwrap() {
            command.env(name, value.as_str().unwrap());
        }
    }
    command.envs(envs.iter().copied());
    command
}

fn ok(mut command: Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    output
}

fn read(home: &Path, name: &str) -> String {
    std::fs::read_to_string(home.join(name)).unwrap_or_default()
}

const RUN: [(&str, &str); 4] =
    [("MODEL", "sample"), ("RUN_NAME", "first"), ("REMOTE", "s3://b/x"), ("DEVICE", "cpu")];

#[test]
fn training_gets_what_the_task_says() {
    if !bash() {
        return;
    }
    let home = home("dlm-train", "");
    let more = [
        ("DATA", "gs://d/packed"),
        ("SOURCE_PATH", "hf://a/b"),
        ("HYDRA_OVERRIDES", "optim.lr=1e-5 'model.name=a b'"),
        ("HF_TOKEN", "token"),
        ("WANDB_PROJECT", "p"),
    ];
    ok(script("dlm_train.yaml", "run", home.path(), &[&RUN[..], &more].concat()));
    let expected = "--data gs://d/packed --device cpu --devices 1 --resume auto model=sample source.path=hf://a/b optim.lr=1e-5 model.name=a_b output.dir=run/first output.remote=s3://b/x/dlm/sample/first --";
    let given: Vec<String> =
        read(home.path(), "arguments").lines().map(|line| line.replace(' ', "_")).collect();
    assert_eq!(given.join(" "), expected);
    let environment = read(home.path(), "environment");
    let has = |line: &str| environment.lines().any(|other| other == line);
    assert!(
        has("WANDB_RUN_ID=dlm-sample-first") && has("WANDB_PROJECT=p") && has("HF_TOKEN=token")
    );
    for unset in ["WANDB_API_KEY=", "WANDB_ENTITY=", "GOOGLE_APPLICATION_CREDENTIALS="] {
        assert!(!environment.contains(&format!("\n{unset}")), "{unset}: {environment}");
    }
    // the old launcher's variable for the bucket, the default source
    let more = [("REMOTE", ""), ("GCS_BUCKET", "mine")];
    ok(script("dlm_train.yaml", "run", home.path(), &[&RUN[..], &more].concat()));
    let given = read(home.path(), "arguments");
    assert!(given.contains("output.remote=gs://mine/dlm/sample/first\n"), "{given}");
    assert_eq!(given.matches("source.path").count(), 1, "{given}");
    let nowhere = script("dlm_train.yaml", "run", home.path(), &[("REMOTE", "")]).output().unwrap();
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(text(&nowhere.stdout).contains("would be lost with the machine"));
}

#[test]
fn credentials_go_to_a_file_of_their_user() {
    if !bash() {
        return;
    }
    for (file, program) in [("dlm_train.yaml", "dlm-train"), ("dlm_prep.yaml", "dlm-prep")] {
        let home = home(program, "");
        let secret = r#"{"private_key": "marked \n ' $HOME"}"#;
        let more = [("DLM_GOOGLE_CREDENTIALS", secret), ("ARGUMENTS", "--input x"), ("OUT", "y")];
        let output = ok(script(file, "run", home.path(), &[&RUN[..], &more].concat()));
        assert!(
            !text(&output.stdout).contains("marked") && !text(&output.stderr).contains("marked")
        );
        let written = home.path().join("dlm/google.json");
        assert_eq!(std::fs::read_to_string(&written).unwrap(), secret);
        assert_eq!(std::fs::metadata(&written).unwrap().permissions().mode() & 0o777, 0o600);
        let environment = read(home.path(), "environment");
        assert!(environment.contains("GOOGLE_APPLICATION_CREDENTIALS=/"), "{environment}");
        assert!(!environment.contains("marked"), "{file}");
    }
}

#[test]
fn the_code_and_signals_are_those_of_the_program() {
    if !bash() {
        return;
    }
    for code in [2, 1, 130] {
        let home = home("dlm-train", &format!("exit {code}"));
        let output = script("dlm_train.yaml", "run", home.path(), &RUN).output().unwrap();
        assert_eq!(output.status.code(), Some(code));
    }
    let home = home(
        "dlm-train",
        "trap 'echo saved > ~/saved; exit 130' TERM; touch ~/ready; while :; do sleep 0.05; done",
    );
    let mut child = script("dlm_train.yaml", "run", home.path(), &RUN).spawn().unwrap();
    let started = Instant::now();
    while !home.path().join("ready").exists() {
        assert!(started.elapsed() < Duration::from_secs(60), "the stand-in did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    Command::new("kill").arg("-TERM").arg(child.id().to_string()).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(read(home.path(), "saved"), "saved\n");
}

#[test]
fn nodes_prepare_their_parts_and_the_first_joins_them() {
    if !bash() {
        return;
    }
    let call = |nodes: &str, node: &str, exits: &str| {
        let home = home("dlm-prep", exits);
        let envs = [
            ("ARGUMENTS", "--input 'gs://raw/a b' --tokenizer x/y"),
            ("OUT", "gs://b/p"),
            ("POLL_SECONDS", "0"),
            ("SKYPILOT_NUM_NODES", nodes),
            ("SKYPILOT_NODE_RANK", node),
        ];
        let output = script("dlm_prep.yaml", "run", home.path(), &envs).output().unwrap();
        (output.status.code(), read(home.path(), "arguments").replace(' ', "_").replace('\n', " "))
    };
    let prepare = "--input gs://raw/a_b --tokenizer x/y";
    assert_eq!(call("1", "0", ""), (Some(0), format!("{prepare} --out gs://b/p -- ")));
    let part = |node| format!("{prepare} --shard {node}/3 --out gs://b/p.parts/{node} -- ");
    assert_eq!(call("3", "2", ""), (Some(0), part(2)));
    // node 1 is late: what is asked twice is whether its part is whole
    let late = "if [ \"$1 $2\" = 'stats gs://b/p.parts/1' ] && [ ! -e ~/asked ]; then touch ~/asked; exit 1; fi";
    let whole = |node| format!("stats gs://b/p.parts/{node} -- ");
    let merge = "merge gs://b/p.parts/0 gs://b/p.parts/1 gs://b/p.parts/2 --out gs://b/p -- ";
    let expected = [part(0), whole(0), whole(1), whole(1), whole(2), merge.to_string()].concat();
    assert_eq!(call("3", "0", late), (Some(0), expected));
    assert_eq!(call("3", "0", "exit 5"), (Some(5), part(0)), "a part that failed is not joined");
}

/// A folder with a stand-in for a program of the machine.
fn program(folder: &Path, name: &str, body: &str) -> PathBuf {
    std::fs::create_dir_all(folder).unwrap();
    let file = folder.join(name);
    std::fs::write(&file, format!("#!/bin/bash\n{body}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    file
}

#[test]
fn setup_takes_the_program_that_was_sent_and_says_what_is_missing() {
    if !bash() {
        return;
    }
    for (file, name) in [
        ("dlm_train.yaml", "dlm-train"),
        ("dlm_prep.yaml", "dlm-prep"),
        ("smoke.yaml", "dlm-train"),
    ] {
        let home = home(name, "");
        // the bits of a file that was copied
        let sent = home.path().join("dlm/bin").join(name);
        std::fs::set_permissions(&sent, std::fs::Permissions::from_mode(0o644)).unwrap();
        let output = ok(script(file, "setup", home.path(), &[("DEVICE", "cpu")]));
        assert!(text(&output.stdout).contains("stand-in 1"), "{}", text(&output.stdout));
        // an older glibc
        std::fs::write(&sent, "#!/bin/bash\necho 'GLIBC_2.39 not found' >&2; exit 1\n").unwrap();
        let output = script(file, "setup", home.path(), &[("DEVICE", "cpu")]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{file}");
        std::fs::remove_file(&sent).unwrap();
        let output = script(file, "setup", home.path(), &[("DEVICE", "cpu")]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{file}: nothing builds unless asked to");
        assert!(text(&output.stdout).contains("launch with wf"), "{}", text(&output.stdout));
    }
}

#[test]
fn setup_installs_only_what_the_machine_lacks() {
    if !bash() {
        return;
    }
    let setup = |cuda: &str, libraries: &str, wandb: bool| {
        let home = home("dlm-train", "");
        let bin = home.path().join("stand-ins");
        program(&bin, "nvidia-smi", &format!("echo 'NVIDIA-SMI 1  CUDA Version: {cuda}  |'"));
        program(&bin, "ldconfig", &format!("printf '%b' '{libraries}'"));
        program(&bin, "ls", "exit 1");
        program(
            &bin,
            "python3",
            "if [ \"$1\" = -c ]; then exit 1; fi\nmkdir -p \"$3/bin\"; cp ~/stand-ins/pip \"$3/bin/pip\"",
        );
        program(&bin, "pip", "echo \"$@\" > ~/packages");
        let key = if wandb { "marked" } else { "" };
        let mut command = script("dlm_train.yaml", "setup", home.path(), &[("WANDB_API_KEY", key)]);
        command.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()));
        let output = ok(command);
        assert!(!text(&output.stdout).contains("marked"));
        let packages = read(home.path(), "packages");
        packages.split_whitespace().skip(3).collect::<Vec<_>>().join(" ")
    };
    let both = "libnvrtc.so.12 => /x\\nlibcublas.so.12 => /y\\n";
    assert_eq!(setup("12.8", both, false), "");
    assert_eq!(setup("12.8", both, true), "wandb");
    assert_eq!(
        setup("12.8", "", false),
        "nvidia-cuda-nvrtc-cu12==12.8.* nvidia-cublas-cu12==12.8.*"
    );
    // what setup leaves for the run
    let home = home("dlm-train", "");
    std::fs::remove_file(home.path().join("dlm/environment")).unwrap();
    ok(script("dlm_train.yaml", "setup", home.path(), &[("DEVICE", "cpu")]));
    ok(script("dlm_train.yaml", "run", home.path(), &RUN));
    assert!(!read(home.path(), "environment").contains("\nHF_TOKEN="));
    let packages = home.path().join("dlm/python/lib/python3.12/site-packages/nvidia/cu13/lib");
    std::fs::create_dir_all(&packages).unwrap();
    program(&home.path().join("dlm/python/bin"), "python3", "exit 0");
    ok(script("dlm_train.yaml", "run", home.path(), &RUN));
    let environment = read(home.path(), "environment");
    assert!(environment.contains(&format!("LD_LIBRARY_PATH={}", packages.display())));
    assert!(environment.contains("DLM_PYTHON=/"), "{environment}");
    let files = ["dlm_train.yaml", "smoke.yaml"].map(|file| {
        let path = repository().join("configs/launch").join(file);
        let text = std::fs::read_to_string(path).unwrap();
        serde_saphyr::from_str::<Value>(&text).unwrap()["setup"].clone()
    });
    assert_eq!(files[0], files[1], "smoke is tried on machines as training finds them");
    let lacking = "libnvrtc.so.13 => /x\\n";
    assert_eq!(setup("13.0", lacking, true), "wandb nvidia-cuda-nvrtc==13.0.* nvidia-cublas");
}

#[test]
fn smoke_on_a_machine_is_smoke_as_here() {
    if !bash() {
        return;
    }
    let home = home("wf", "");
    ok(script("smoke.yaml", "run", home.path(), &[("MODEL", "smollm2_135m")]));
    let given = read(home.path(), "arguments").replace('\n', " ");
    assert_eq!(given, "smoke -m smollm2_135m --device cuda -- ");
}
