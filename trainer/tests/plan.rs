//! `dlm-train plan`: what a run will take, from the command line.

use std::path::Path;
use std::process::Command;

use dlm_test_support::fixtures;
use serde_json::Value;

fn plan(dir: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dlm-train"));
    command.current_dir(dir).arg("plan").args(arguments).env("HF_HUB_OFFLINE", "1");
    command.env("HF_HOME", dir.join("hf"));
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_plan_says_what_a_run_will_take() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    let (code, shown, said) =
        plan(here, &["model=qwen3_4b", "--gpu", "H100", "--price-per-hour", "12"]);
    assert_eq!(code, Some(0), "{said}");
    for words in [
        "memory: fits H100",
        "7596 source tokens/s, measured on one NVIDIA H100 80GB HBM3",
        "commit bd28cc4",
        "at 12 an hour",
        "disk: 257 GB",
    ] {
        assert!(shown.contains(words), "no {words:?} in {shown}");
    }
    let (code, shown, _) = plan(here, &["model=qwen3_4b", "--gpu", "H200", "--json"]);
    let object: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        (code, &object["tokens_per_s"], &object["hours"]),
        (Some(0), &Value::Null, &Value::Null)
    );
    assert_eq!(object["fits"], true);
    // shapes of a folder, another length of row, a card that is not known
    let model = format!("source.path={}", fixtures().join("qwen3_tiny").display());
    let small =
        ["model=qwen3_0_6b", &model, "--seq-len", "2048", "--gpu", "L4", "--gpu-memory", "20"];
    let (code, shown, said) = plan(here, &small);
    assert_eq!(code, Some(0), "{said}");
    assert!(shown.contains("fits L4 (20 GiB free)") && shown.contains("not measured"), "{shown}");
    for (arguments, code, words) in [
        (&["model=qwen3_5b"][..], 2, "did you mean"),
        (&["model=qwen3_4b", "--gpu", "H100:0"], 2, "how many"),
        (&["model=qwen3_4b", "--gpu-memory=-1"], 2, "--gpu-memory"),
        (&["model=qwen3_4b", "--price-per-hour", "nan"], 2, "above 0"),
        (&["model=qwen3_4b", "--seq-len", "0"], 2, "--seq-len 0"),
        (&["model=qwen3_4b", "--data", "nowhere"], 1, "nowhere"),
        (&["model=qwen3_4b", "source.path=hf://org/other"], 1, "org/other"),
    ] {
        let (found, _, said) = plan(here, arguments);
        assert_eq!(found, Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}
