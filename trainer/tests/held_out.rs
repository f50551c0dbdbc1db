//! What a run's metrics say beside the loss: acceptance and a simulated decode of held-out rows, in
//! metrics.jsonl, on the console and by `dlm-train eval`.

mod common;

use std::path::Path;
use std::process::Output;

use common::{BD, MASK, VOCAB, dataset, losses, ok, train, workplace};
use serde_json::Value;

/// Labelled tokens of the four rows of the eval split: two documents of 13 each.
const HIDDEN: u64 = 4 * 2 * 13;

fn records(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn sum(pairs: &Value) -> [u64; 2] {
    let pairs: Vec<[u64; 2]> = serde_json::from_value(pairs.clone()).unwrap();
    assert!(pairs.iter().all(|[right, hidden]| right <= hidden), "{pairs:?}");
    pairs.iter().fold([0, 0], |sum, pair| [sum[0] + pair[0], sum[1] + pair[1]])
}

#[test]
fn an_evaluation_counts_hidden_tokens_and_decodes() {
    let dir = workplace();
    let every = ["train.max_steps=6", "conversion.total_tokens=1000000", "train.log_every=1"];
    let with = [&every[..], &["train.eval_every=3", "train.save_every=0"]].concat();
    let output = ok(&mut train(dir.path(), "with", &with));
    let all = records(&dir.path().join("with"));
    assert_eq!(all.len(), 6);
    for r in &all {
        assert!(r["sure"].as_u64().unwrap() <= r["counted"].as_u64().unwrap());
        let (a, d) = (&r["eval_acceptance"], &r["eval_decode"]);
        if r["step"].as_u64().unwrap() % 3 != 0 {
            assert!(a.is_null() && d.is_null() && r["eval_loss"].is_null());
            continue;
        }
        // both views hide every labelled token once
        assert_eq!(a["hidden"], HIDDEN);
        assert_eq!(sum(&a["by_position"]), [a["right"].as_u64().unwrap(), HIDDEN]);
        assert_eq!(sum(&a["by_hidden_share"]), [a["right"].as_u64().unwrap(), HIDDEN]);
        assert_eq!(a["by_position"].as_array().unwrap().len(), BD);
        assert_eq!(a["by_hidden_share"].as_array().unwrap().len(), 11);
        let share = a["right"].as_f64().unwrap() / HIDDEN as f64;
        assert_eq!(a["share"].as_f64().unwrap(), share);
        // one row of the four is decoded
        assert_eq!((&d["tokens"], &d["completions"]), (&26.into(), &2.into()), "{d}");
        assert_eq!((d["threshold"].as_f64(), d["sub_block_size"].as_u64()), (Some(0.9), Some(8)));
        let passes = d["passes"].as_u64().unwrap();
        // two commits, and between one pass a sub-block and one a token
        assert!((2 * (2 + 2)..=2 * (2 + 11)).contains(&passes), "{d}");
        assert_eq!(d["tokens_per_forward"].as_f64().unwrap(), 26.0 / passes as f64);
    }
    let said = stderr(&output);
    let accepted = format!("% of {HIDDEN} tok/forward ");
    assert!(said.contains(" accepted ") && said.contains(&accepted), "{said}");

    // evaluations leave the run as it is, bit by bit
    ok(&mut train(dir.path(), "without", &[&every[..], &["train.save_every=0"]].concat()));
    assert_eq!(losses(&dir.path().join("with")), losses(&dir.path().join("without")));

    // the exported model says the same of the same rows, under the same masks
    let eval = |more: &[&str]| {
        let mut c = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
        c.current_dir(dir.path());
        c.args(["eval", "--model", "with", "--data", "data", "--device", "cpu"]).args(more);
        String::from_utf8(ok(&mut c).stdout).unwrap()
    };
    let report: Value = serde_json::from_str(&eval(&["--json"])).unwrap();
    assert_eq!(report["acceptance"]["hidden"], HIDDEN);
    assert_eq!(report["decode"]["tokens"], 26);
    assert!(eval(&[]).contains(&accepted));
}

#[test]
fn the_causal_objective_hides_nothing() {
    let dir = workplace();
    let sft = ["conversion.objective=sft", "train.max_steps=2", "train.eval_every=1"];
    let output = ok(&mut train(dir.path(), "out", &sft));
    for r in records(&dir.path().join("out")) {
        assert!(r["eval_loss"].is_f64() && r["sure"].is_u64());
        assert!(r.get("eval_acceptance").is_none() && r.get("eval_decode").is_none());
    }
    assert!(!stderr(&output).contains("accepted"));
}

#[test]
fn what_is_learnt_by_heart_is_accepted_and_decoded_in_few_passes() {
    let dir = workplace();
    // the eval rows are those that are trained on: one row, many times
    std::fs::remove_dir_all(dir.path().join("data")).unwrap();
    dataset(&dir.path().join("data"), 1, MASK, VOCAB);
    ok(&mut train(
        dir.path(),
        "out",
        &["train.max_steps=300", "conversion.total_tokens=1000000", "train.save_every=0"],
    ));
    let mut c = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    c.current_dir(dir.path()).args(["eval", "--model", "out", "--data", "data", "--json"]);
    let output = ok(c.args(["--split", "train", "--device", "cpu"]));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["acceptance"]["share"].as_f64().unwrap() > 0.95, "{report}");
    // 13 tokens each: a pass for each of two sub-blocks at least, two commits
    let per_forward = report["decode"]["tokens_per_forward"].as_f64().unwrap();
    assert!(per_forward > 2.5 && per_forward <= 13.0 / 4.0, "{report}");
    let last = records(&dir.path().join("out")).pop().unwrap();
    assert!(last["sure"].as_f64().unwrap() > 0.9 * last["counted"].as_f64().unwrap(), "{last}");
}
