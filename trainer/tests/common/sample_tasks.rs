//! Tasks of the sample with known answers, and a model that learns from them in seconds.

use std::fs;
use std::path::Path;

use dlm_prep::Prepare;
use dlm_test_support::sample;
use serde_json::{Value, json};

/// In `dir`: `data`, the first `rows` held-out prompts of the sample with their answers, packed in
/// blocks of `bd_size` tokens; `tasks.jsonl` with the first `tasks` of them; and `config.json` of a
/// model with one layer.
pub(crate) fn sample_tasks(dir: &Path, rows: usize, tasks: usize, bd_size: usize) {
    let all = fs::read_to_string(sample("heldout.jsonl")).unwrap();
    let all: Vec<Value> =
        all.lines().take(rows).map(|line| serde_json::from_str(line).unwrap()).collect();
    let trained: Vec<String> = all
        .iter()
        .map(|row| {
            let mut messages = row["messages"].as_array().unwrap().clone();
            messages.push(json!({"role": "assistant", "content": row["expected"]}));
            json!({"messages": messages}).to_string()
        })
        .collect();
    fs::write(dir.join("rows.jsonl"), trained.join("\n")).unwrap();
    let tasks: Vec<String> = all.iter().take(tasks).map(Value::to_string).collect();
    fs::write(dir.join("tasks.jsonl"), tasks.join("\n")).unwrap();
    let prepare = Prepare::new(sample("tokenizer")).input(dir.join("rows.jsonl"));
    prepare.seq_len(128).bd_size(bd_size).run(dir.join("data")).unwrap();
    let config = fs::read(sample("../../configs/model/sample.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    for (key, value) in [("hidden_size", 64), ("intermediate_size", 128), ("num_hidden_layers", 1)]
    {
        config[key] = json!(value);
    }
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
}
