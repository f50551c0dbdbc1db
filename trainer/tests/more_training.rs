//! "Train it some more" and "give me the best": larger budgets, the checkpoint with the lowest
//! evaluation loss, sources under other names.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::{losses, ok, refused, train, workplace};
use dlm_datasets::Split;
use dlm_datasets::manifest::Manifest;
use dlm_datasets::writer::DatasetWriter;
use serde_json::Value;

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn export(dir: &Path, more: &[&str]) -> Command {
    let mut command = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    command.current_dir(dir).arg("export").args(more);
    command
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_complete_run_goes_on_under_a_larger_budget() {
    let dir = workplace();
    let weights = |out: &str| fs::read(dir.path().join(out).join("model.safetensors")).unwrap();
    // a constant rate, so that the pieces are the whole
    let train = |out: &str, more: &[&str]| {
        train(dir.path(), out, &[&["optim.warmup_ratio=0"], more].concat())
    };
    ok(&mut train("once", &["conversion.total_tokens=12000"]));
    ok(&mut train("twice", &[]));
    let out = ok(&mut train("twice", &["conversion.total_tokens=12000"]));
    let words = "conversion.total_tokens: was 6000, is 12000";
    assert!(said(&out).contains(words), "{}", said(&out));
    assert_eq!(losses(&dir.path().join("twice")), losses(&dir.path().join("once")));
    assert_eq!(weights("twice"), weights("once"));
    let again = ok(&mut train("twice", &["conversion.total_tokens=12000"]));
    assert!(said(&again).contains("the run is complete"), "{}", said(&again));
    // steps: from few to more, and to no limit
    let steps = |value: &str| format!("train.max_steps={value}");
    for (value, count) in [("3", 3), ("5", 5), ("null", losses(&dir.path().join("once")).len())] {
        let more = [&*steps(value), "conversion.total_tokens=12000"];
        ok(&mut train("steps", &more));
        assert_eq!(losses(&dir.path().join("steps")).len(), count, "{value}");
    }
    assert_eq!(weights("steps"), weights("once"));
    // less is not more, and other settings stay as they are
    refused(
        &mut train("twice", &["conversion.total_tokens=9000"]),
        1,
        &["conversion.total_tokens: was 12000, is 9000"],
    );
    refused(
        &mut train("twice", &["conversion.total_tokens=20000", "optim.lr=1e-3"]),
        1,
        &["optim.lr"],
    );
}

#[test]
fn an_early_stop_can_be_followed_by_more() {
    let dir = workplace();
    let stall = [
        "optim.lr=1e-9",
        "train.eval_every=2",
        "train.early_stop_patience=2",
        "train.early_stop_min_delta=0.01",
    ];
    ok(&mut train(dir.path(), "out", &stall));
    assert_eq!(losses(&dir.path().join("out")).len(), 6);
    let more = [&stall[..], &["conversion.total_tokens=9000"]].concat();
    ok(&mut train(dir.path(), "out", &more));
    assert_eq!(losses(&dir.path().join("out")).len(), 10, "two more evaluations without gain");
}

/// A learning rate that grows until the model gets worse.
const WORSENS: [&str; 6] = [
    "optim.lr=1.0",
    "optim.warmup_ratio=1.0",
    "train.eval_every=1",
    "train.keep_checkpoints=1",
    "export.dtype=fp32",
    "train.save_every=0",
];

#[test]
fn the_best_checkpoint_is_kept_and_exported() {
    let dir = workplace();
    ok(&mut train(dir.path(), "last", &WORSENS));
    let run = dir.path().join("last");
    let records = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let evals: Vec<f64> = records
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["eval_loss"].as_f64().unwrap())
        .collect();
    let lowest = evals.iter().copied().fold(f64::MAX, f64::min);
    let best = 1 + evals.iter().position(|loss| *loss == lowest).unwrap();
    assert!(best < evals.len(), "the last step is no test: {evals:?}");
    let mut names: Vec<_> = fs::read_dir(run.join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("step-"))
        .collect();
    names.sort();
    assert_eq!(names, [format!("step-{best:09}"), format!("step-{:09}", evals.len())]);

    // the same run, told to export the best one
    let which = [&WORSENS[..], &["export.which=best"]].concat();
    ok(&mut train(dir.path(), "best", &which));
    ok(&mut export(dir.path(), &["last", "--which", "best", "--out", "exported"]));
    let weights = |out: &str| fs::read(dir.path().join(out).join("model.safetensors")).unwrap();
    assert_eq!(weights("best"), weights("exported"));
    assert_ne!(weights("best"), weights("last"));
    let checkpoint = run.join("checkpoints").join(format!("step-{best:09}"));
    let kept = fs::read(checkpoint.join("model.safetensors")).unwrap();
    assert!(kept.len() > weights("best").len() / 2);
    let record = json(&dir.path().join("best/dlm_config.json"));
    assert_eq!(record["steps"], best);
    assert_eq!(record["eval_loss"], lowest);
    ok(&mut export(dir.path(), &["best", "--which", "last", "--out", "again"]));
    assert_eq!(weights("again"), weights("last"));
    // a run that goes on keeps its best; one that is lost is said
    let more = [&WORSENS[..], &["conversion.total_tokens=7000"]].concat();
    ok(&mut train(dir.path(), "last", &more));
    assert!(checkpoint.is_dir());
    fs::remove_dir_all(&checkpoint).unwrap();
    let mut lost = export(dir.path(), &["last", "--which", "best", "--out", "lost"]);
    refused(&mut lost, 1, &["lowest evaluation loss", "is missing", "export.which=last"]);
}

#[test]
fn without_evaluations_there_is_no_best_and_no_patience() {
    let dir = workplace();
    for setting in ["train.early_stop_patience=3", "export.which=best"] {
        let key = setting.split('=').next().unwrap();
        refused(&mut train(dir.path(), "out", &[setting]), 2, &[key, "train.eval_every is 0"]);
    }
    ok(&mut train(dir.path(), "out", &[]));
    let mut best = export(dir.path(), &["out", "--which", "best", "--out", "best"]);
    refused(&mut best, 2, &["no evaluation loss", "export.which=last"]);
    // rows to train on, none to evaluate
    let manifest = Manifest::new(common::SEQ, common::BD, common::VOCAB, common::MASK, 0, 1);
    let rows = dlm_datasets::Dataset::open(&dir.path().join("data")).unwrap();
    let mut writer = DatasetWriter::create(&dir.path().join("few"), manifest).unwrap();
    for i in 0..8 {
        let row = rows.row(Split::Train, i).unwrap();
        writer.push(Split::Train, row.input_ids, row.labels, &row.documents).unwrap();
    }
    writer.finish().unwrap();
    fs::create_dir(dir.path().join("few/tokenizer")).unwrap();
    fs::write(dir.path().join("few/tokenizer/tokenizer.json"), "{}").unwrap();
    for setting in ["train.early_stop_patience=3", "export.which=best"] {
        let mut run = train(dir.path(), "few-out", &["train.eval_every=2", setting]);
        run.args(["--data", "few"]);
        let typed: Vec<_> = run.get_args().map(|a| a.to_os_string()).collect();
        let mut again = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
        again.current_dir(dir.path()).args(&typed[2..]);
        refused(&mut again, 2, &[setting, "has no eval rows", "--eval-fraction"]);
    }
}

#[test]
fn a_source_is_known_by_its_files_and_not_by_its_name() {
    let dir = workplace();
    ok(&mut train(dir.path(), "source", &["conversion.total_tokens=300", "export.dtype=fp32"]));
    let from = |source: &str, more: &[&str]| {
        let path = format!("source.path={source}");
        let all = [&["source.init=pretrained", &path], more].concat();
        train(dir.path(), "run", &all)
    };
    ok(&mut from("source", &[]));
    let record = fs::read(dir.path().join("run/dlm_config.json")).unwrap();
    let absolute = dir.path().join("source").display().to_string();
    for name in ["./source", "source/", &absolute] {
        let out = ok(&mut from(name, &[]));
        assert!(said(&out).contains("the run is complete"), "{}", said(&out));
    }
    assert_eq!(fs::read(dir.path().join("run/dlm_config.json")).unwrap(), record);
    // the same files elsewhere are the same source; other files under the same name are not
    fs::rename(dir.path().join("source"), dir.path().join("moved")).unwrap();
    ok(&mut from("moved", &[]));
    ok(&mut train(dir.path(), "source", &["conversion.total_tokens=600", "export.dtype=fp32"]));
    refused(&mut from("source", &[]), 1, &["source_hash", "weights of the source are others"]);
    let config = dir.path().join("moved/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"rms_norm_eps\": 0.00001", "\"rms_norm_eps\": 0.000001"))
        .unwrap();
    assert_ne!(fs::read_to_string(&config).unwrap(), text);
    refused(&mut from("moved", &[]), 1, &["source_hash"]);
    ok(from("moved", &[]).arg("--allow-changes"));
    // a checkpoint of an older version has no hash: the path without links decides
    fs::remove_dir_all(dir.path().join("run")).unwrap();
    ok(&mut from("moved", &[]));
    let latest = fs::read_to_string(dir.path().join("run/checkpoints/latest")).unwrap();
    let path = dir.path().join("run/checkpoints").join(latest).join("state.json");
    let mut state = json(&path);
    state["identity"].as_object_mut().unwrap().remove("source_hash").unwrap();
    fs::write(&path, state.to_string()).unwrap();
    ok(&mut from("./moved", &[]));
    fs::write(&path, state.to_string()).unwrap();
    refused(&mut from("source", &[]), 1, &["source: was moved, is source"]);
}

/// The configuration of a run that an older version trained lacks the keys that came later.
#[test]
fn a_run_of_an_older_version_is_exported() {
    let dir = workplace();
    ok(&mut train(dir.path(), "run", &[]));
    let file = dir.path().join("run/config.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let older: Vec<&str> = text
        .lines()
        .filter(|line| !["which:", "engine:"].iter().any(|key| line.trim().starts_with(key)))
        .collect();
    assert_eq!(older.len() + 2, text.lines().count());
    fs::write(&file, older.join("\n")).unwrap();
    ok(&mut export(dir.path(), &["run", "--out", "exported"]));
}
