//! `dlm-train generate --json` against the reference's greedy decodes: the same tokens from the
//! same number of passes.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use dlm_tests::{repository, run, shared};
use serde_json::{Value, json};

/// Decodes every case of `decode_<model>.json` and returns how many there were.
fn check(model: &str) -> Result<usize> {
    let Some(fixtures) = shared("fixtures") else {
        return Ok(usize::MAX);
    };
    let file: Value =
        serde_json::from_str(&fs::read_to_string(fixtures.join(format!("decode_{model}.json")))?)?;
    let mask = file["mask_id"].to_string();
    // one call for all cases with the same options, its prompts in a file
    let mut groups: BTreeMap<Vec<String>, Vec<&Value>> = BTreeMap::new();
    for case in file["cases"].as_array().context("cases")? {
        let text = |key: &str| case[key].to_string();
        let stop =
            if case["stop_token"].is_null() { "none".to_string() } else { text("stop_token") };
        let mut options: Vec<String> = [
            ("--max-new-tokens", text("max_new_tokens")),
            ("--block-size", text("block_size")),
            ("--sub-block-size", text("small_block_size")),
            ("--threshold", text("threshold")),
            ("--stop-token-id", stop),
        ]
        .into_iter()
        .flat_map(|(key, value)| [key.to_string(), value])
        .collect();
        if case["use_block_cache"] == true {
            options.push("--sub-block-cache".into());
        }
        groups.entry(options).or_default().push(case);
    }
    let dir = tempfile::tempdir()?;
    let prompts = dir.path().join("prompts.jsonl");
    let (model_dir, prompt_file) = (fixtures.join(model), prompts.to_str().context("path")?);
    let mut checked = 0;
    for (options, cases) in &groups {
        let lines: String =
            cases.iter().map(|c| format!("{}\n", json!({"ids": c["prompt"]}))).collect();
        fs::write(&prompts, lines)?;
        let mut arguments = vec![
            "generate",
            "--device",
            "cpu",
            "--json",
            "--model",
            model_dir.to_str().context("path")?,
        ];
        arguments.extend(["--input", prompt_file, "--mask-token-id", &mask]);
        arguments.extend(options.iter().map(String::as_str));
        let answers = run("dlm-train", &repository(), &arguments)?.ok()?.json_lines()?;
        ensure!(
            answers.len() == cases.len(),
            "{} answers to {} prompts",
            answers.len(),
            cases.len()
        );
        for (answer, case) in answers.iter().zip(cases) {
            let prompt = case["prompt"].as_array().context("prompt")?;
            let expected = &case["expected"].as_array().context("expected")?[prompt.len()..];
            ensure!(
                answer["prompt_ids"] == case["prompt"],
                "{options:?}: prompt {}",
                answer["prompt_ids"]
            );
            ensure!(
                answer["completion_ids"] == json!(expected),
                "{options:?}, prompt {prompt:?}: {} instead of {expected:?}",
                answer["completion_ids"]
            );
            ensure!(
                answer["passes"] == case["passes"],
                "{options:?}, prompt {prompt:?}: passes {} instead of {}",
                answer["passes"],
                case["passes"]
            );
            checked += 1;
        }
    }
    Ok(checked)
}

#[test]
fn qwen2_tiny() -> Result<()> {
    ensure!(check("qwen2_tiny")? >= 40);
    Ok(())
}

#[test]
fn qwen2_peaky() -> Result<()> {
    ensure!(check("qwen2_peaky")? >= 100);
    Ok(())
}

#[test]
fn llama_tiny() -> Result<()> {
    ensure!(check("llama_tiny")? >= 10);
    Ok(())
}
