//! `dlm-train eval --tasks` as a program: its counts are those of `generate` on the same prompts,
//! the baseline stands beside them, and an evaluation that was killed goes on where it was.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::sample_tasks::sample_tasks;
use common::{ok, refused, train};
use dlm_test_support::on_the_cpu;
use serde_json::Value;

/// Held-out prompts of the sample that are evaluated.
const TASKS: usize = 12;

/// A folder with a model trained for a moment on the sample (`ar`), its conversion (`out`), and
/// `tasks.jsonl`.
fn models(dir: &Path) {
    sample_tasks(dir, 64, TASKS, 16);
    let budget = "conversion.total_tokens=12000";
    ok(&mut train(dir, "ar", &["conversion.objective=sft", budget]));
    let mut convert = on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    convert.current_dir(dir).args(["--data", "data", "--device", "cpu", "source.path=ar"]);
    ok(convert.args(["output.dir=out", "conversion.total_tokens=6000"]));
}

fn eval(dir: &Path, more: &[&str]) -> Command {
    let mut command = on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    command.current_dir(dir).args(["eval", "--model", "out", "--tasks", "tasks.jsonl"]);
    command.args(["--device", "cpu", "--max-new-tokens", "48"]).args(more);
    command
}

fn report(command: &mut Command) -> Value {
    serde_json::from_slice(&ok(command).stdout).unwrap()
}

fn run_of<'a>(report: &'a Value, name: &str) -> &'a Value {
    let runs = report["runs"].as_array().unwrap();
    runs.iter().find(|run| run["name"] == name).unwrap_or_else(|| panic!("{name}: {report}"))
}

/// Right answers, tokens and passes by `generate`, one call without `eval`.
fn by_generate(dir: &Path, model: &str, more: &[&str]) -> (u64, u64, u64) {
    let mut command = on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    command.current_dir(dir).args(["generate", "--model", model, "--input", "tasks.jsonl"]);
    command.args(["--device", "cpu", "--max-new-tokens", "48", "--json"]).args(more);
    let out = String::from_utf8(ok(&mut command).stdout).unwrap();
    let tasks = fs::read_to_string(dir.join("tasks.jsonl")).unwrap();
    let mut sums = (0, 0, 0);
    for (task, line) in tasks.lines().zip(out.lines()) {
        let task: Value = serde_json::from_str(task).unwrap();
        let line: Value = serde_json::from_str(line).unwrap();
        let text = line["text"].as_str().unwrap().trim();
        sums.0 += u64::from(text == task["expected"].as_str().unwrap().trim());
        sums.1 += line["completion_ids"].as_array().unwrap().len() as u64;
        sums.2 += line["passes"]["total"].as_u64().unwrap();
    }
    sums
}

#[test]
fn counts_are_those_of_generate_and_a_killed_evaluation_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    models(dir);
    let sweep = ["--threshold", "0.3,0.9", "--sub-block-size", "8,16", "--json"];
    let whole = report(&mut eval(dir, &sweep));
    assert_eq!(whole["runs"].as_array().unwrap().len(), 6, "{whole}");
    for (name, model, options) in [
        ("source ar", "ar", &["--mode", "ar"][..]),
        ("ar", "out", &["--mode", "ar"]),
        ("block 0.3/8", "out", &["--threshold", "0.3"]),
        ("block 0.9/16", "out", &["--threshold", "0.9", "--sub-block-size", "16"]),
    ] {
        let run = run_of(&whole, name);
        let counts = ["right", "tokens", "passes"].map(|key| run[key].as_u64().unwrap());
        let (right, tokens, passes) = by_generate(dir, model, options);
        assert_eq!(counts, [right, tokens, passes], "{name}");
    }
    // batches change nothing but the time
    let batched = report(&mut eval(dir, &[&sweep[..], &["--batch-size", "5"]].concat()));
    for run in whole["runs"].as_array().unwrap() {
        let name = run["name"].as_str().unwrap();
        for key in ["right", "tokens", "passes", "kinds", "interval"] {
            assert_eq!(run[key], run_of(&batched, name)[key], "{name} {key}");
        }
    }

    let flights = ["--threshold", "0.3", "--blocks-in-flight", "1,2", "--mode", "block", "--json"];
    let flights = report(&mut eval(dir, &flights));
    assert_eq!(flights["runs"].as_array().unwrap().len(), 3, "{flights}");
    for (name, flight) in [("block 0.3/8", "1"), ("block 0.3/8 x2", "2")] {
        let run = run_of(&flights, name);
        let counts = ["right", "tokens", "passes"].map(|key| run[key].as_u64().unwrap());
        let by_hand = ["--threshold", "0.3", "--blocks-in-flight", flight];
        let (right, tokens, passes) = by_generate(dir, "out", &by_hand);
        assert_eq!(counts, [right, tokens, passes], "{name}");
        assert_eq!(run["blocks_in_flight"].to_string(), flight);
    }

    // kept answers: those of the first tasks are not made again, a line cut by a kill is
    let kept = [&sweep[..], &["--out", "kept"]].concat();
    report(&mut eval(dir, &[&kept[..], &["--limit", "5"]].concat()));
    let path = dir.join("kept/answers.jsonl");
    let before = fs::read_to_string(&path).unwrap();
    fs::write(&path, &before[..before.len() - 20]).unwrap();
    let output = ok(&mut eval(dir, &kept));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("1 lines hold no answer"), "{said}");
    assert!(said.contains("ar: 7 of 12 answers to find"), "{said}");
    assert!(said.contains("block 0.9/16: 8 of 12 answers to find"), "{said}");
    let resumed: Value = serde_json::from_slice(&output.stdout).unwrap();
    for run in whole["runs"].as_array().unwrap() {
        let name = run["name"].as_str().unwrap();
        for key in ["right", "tokens", "passes"] {
            assert_eq!(run[key], run_of(&resumed, name)[key], "{name} {key}");
        }
    }
    let again = ok(&mut eval(dir, &kept));
    let said = String::from_utf8(again.stderr).unwrap();
    assert!(said.contains("12 answers from before") && !said.contains("loaded"), "{said}");
    let page = fs::read_to_string(dir.join("kept/report.html")).unwrap();
    assert!(page.contains("block 0.9/16") && page.contains("<svg"), "no plot in the page");
    let judged = fs::read_to_string(dir.join("kept/judged.jsonl")).unwrap();
    assert_eq!(judged.lines().count(), 6 * TASKS);

    // other weights under the same name are another model
    let weights: PathBuf = dir.join("out/model.safetensors");
    fs::copy(dir.join("ar/model.safetensors"), &weights).unwrap();
    let said = String::from_utf8(ok(&mut eval(dir, &kept)).stderr).unwrap();
    assert!(said.contains("block 0.9/16: 12 of 12 answers to find"), "{said}");

    // what cannot be used is said before the weights are read
    for (options, code, words) in [
        (&["--mode", "ar", "--threshold", "0.5"][..], 2, &["no meaning with --mode ar"][..]),
        (&["--extract", "("], 2, &["--extract (", "not a regular expression"]),
        (&["--threshold", "1.5"], 2, &["threshold 1.5"]),
        (&["--limit", "0"], 2, &["--limit 0"]),
        (&["--split", "eval"], 2, &["--split", "cannot be used with"]),
        (&["--source", "nowhere/at/all"], 2, &["nowhere/at/all"]),
    ] {
        refused(&mut eval(dir, options), code, words);
    }
    let mut losses = on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    let losses = losses.current_dir(dir).args(["eval", "--model", "out", "--data", "data"]);
    refused(losses.args(["--limit", "3"]), 2, &["--limit", "cannot be used with"]);
    let mut neither = on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    refused(neither.args(["eval", "--model", "out"]), 2, &["--data", "--tasks"]);
}

/// A model without the token shift has no autoregressive mode: it is asked in block mode alone, and
/// is no baseline.
#[test]
fn a_model_without_the_token_shift_answers_in_block_mode_alone() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    models(dir);
    fs::rename(dir.join("out"), dir.join("shifted")).unwrap();
    let mut convert = on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    convert.current_dir(dir).args(["--data", "data", "--device", "cpu", "source.path=ar"]);
    convert.args(["output.dir=out", "conversion.total_tokens=3000"]);
    let said = String::from_utf8(ok(convert.arg("conversion.token_shift=false")).stderr).unwrap();
    assert!(said.contains("ar predicts each token from the position before it"), "{said}");
    let found = report(&mut eval(dir, &["--threshold", "0.9", "--json"]));
    let names: Vec<&str> =
        found["runs"].as_array().unwrap().iter().map(|run| run["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["source ar", "block 0.9/8"]);
    let run = run_of(&found, "block 0.9/8");
    let counts = ["right", "tokens", "passes"].map(|key| run[key].as_u64().unwrap());
    let (right, tokens, passes) = by_generate(dir, "out", &["--threshold", "0.9"]);
    assert_eq!(counts, [right, tokens, passes]);
    refused(&mut eval(dir, &["--mode", "ar"]), 2, &["without the token shift"]);
    let output = ok(&mut eval(dir, &["--threshold", "0.9", "--source", "out", "--limit", "2"]));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("has no baseline") && said.contains("--source MODEL"), "{said}");
}
