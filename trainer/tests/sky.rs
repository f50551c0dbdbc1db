//! Every task that `wf` makes is one to the real SkyPilot (PyPI skypilot, in DLM_PYTHON's
//! environment): `Task.from_yaml`, its own validation, and its command line for the launch.

use std::path::Path;
use std::process::{Command, Output};

use dlm_test_support::{python, repository, skip};
use serde_json::{Value, json};

const SCALES: [(&str, usize); 5] =
    [("dev", 1), ("small", 1), ("medium", 2), ("large", 4), ("xlarge", 8)];
const CLOUDS: [&str; 6] = ["nebius", "gcp", "aws", "runpod", "lambda", "kubernetes"];

fn wf(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wf"));
    command.current_dir(dir).args(arguments).env_clear().env("HOME", dir);
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.output().unwrap()
}

#[test]
fn every_task_is_one_to_the_real_sky_pilot() {
    // SkyPilot and W&B's client need different versions of a package, so it may have its own Python
    let own = std::env::var_os("DLM_PYTHON_SKY").map(|_| "DLM_PYTHON_SKY");
    let Some(python) = python::named(own.unwrap_or("DLM_PYTHON"), &["sky"]) else { return };
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    for folder in ["datasets/packed", "tasks", "sky-home"] {
        std::fs::create_dir_all(here.join(folder)).unwrap();
    }
    std::fs::write(here.join("datasets/packed/manifest.json"), "{}").unwrap();
    std::fs::write(here.join("program"), "").unwrap();
    let mut models: Vec<String> = std::fs::read_dir(repository().join("configs/model"))
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(".yaml").map(Into::into)
        })
        .collect();
    models.sort();
    let mut tasks = 0;
    let mut check = |arguments: &[&str], cloud: &str, gpus: Option<(&str, usize)>, nodes: usize| {
        let output = wf(here, arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {error}");
        let shown = String::from_utf8(output.stdout).unwrap();
        let command = shown.lines().last().unwrap().strip_prefix("# ").unwrap();
        let words: Vec<&str> = command.split(' ').collect();
        let accelerators = gpus.map_or(Value::Null, |(name, count)| json!({ name: count }));
        let expected = json!({
            "command": words, "cloud": cloud, "accelerators": accelerators, "nodes": nodes,
        });
        let file = here.join(format!("tasks/{tasks:04}"));
        std::fs::write(file.with_extension("yaml"), &shown).unwrap();
        std::fs::write(file.with_extension("json"), expected.to_string()).unwrap();
        tasks += 1;
    };
    for cloud in CLOUDS {
        for (i, model) in models.iter().enumerate() {
            for (j, (scale, gpus)) in SCALES.into_iter().enumerate() {
                let gpu = if (i + j) % 2 == 0 { "H100" } else { "H200" };
                let call = [
                    "dlm",
                    "-m",
                    model,
                    "-s",
                    "hf://org/checkpoint",
                    "--scale",
                    scale,
                    "--gpu",
                    gpu,
                    "-c",
                    cloud,
                    "--binary",
                    "program",
                    "--bucket",
                    "gs://b",
                    "--dry-run",
                ];
                check(&call, cloud, Some((gpu, gpus)), 1);
            }
        }
        let spot = ["--spot", "--detach", "--name", "a_b-1", "data.dir=s3://d/packed"];
        let call = ["dlm", "-m", "sample", "-c", cloud, "--binary", "program", "--dry-run"];
        check(&[&call[..], &spot].concat(), cloud, Some(("H100", 1)), 1);
        let call = [
            "prep",
            "--out",
            "gs://b/p",
            "--nodes",
            "3",
            "-c",
            cloud,
            "--binary",
            "program",
            "--dry-run",
            "--",
            "--input",
            "gs://raw/a b",
            "--tokenizer",
            "org/name",
        ];
        check(&call, cloud, None, 3);
        let call = ["smoke", "--gpu", "H200", "-c", cloud, "--binary", "program", "--dry-run"];
        check(&call, cloud, Some(("H200", 1)), 1);
    }
    // the command lines as the old launcher's users type them, from the default cloud on
    let call = ["dlm", "-m", "qwen3_4b", "-s", "hf://org/checkpoint", "--dry-run"];
    check(&call, "nebius", Some(("H100", 1)), 1);
    let call = ["dlm", "-m", "qwen3_4b", "--scale", "large", "--dry-run"];
    check(&call, "nebius", Some(("H100", 4)), 1);
    let image = ["dlm", "-m", "sample", "--image", "ghcr.io/you/dlm:1", "-c", "gcp", "--dry-run"];
    check(&image, "gcp", Some(("H100", 1)), 1);
    let output = Command::new(python)
        .arg(repository().join("tests/python/check_sky_tasks.py"))
        .args([here.join("tasks"), here.join("sky-home")])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(3) {
        return skip(error.trim());
    }
    assert!(output.status.success(), "{error}");
    let answer = String::from_utf8_lossy(&output.stdout);
    let answer: Value = serde_json::from_str(answer.lines().last().unwrap()).unwrap();
    assert_eq!(answer["tasks"], tasks);
}
