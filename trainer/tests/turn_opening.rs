//! A model is prompted as it was trained: where the template of the data opens the assistant's turn
//! with more than it writes behind a prompt, the export records it and `generate` writes it.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{ok, train};
use dlm_prep::{ChatFormat, Message, Prepare};
use dlm_test_support::sample;
use serde_json::{Value, json};

/// The template of a model that can think: an empty shell before the last answer, none behind a
/// prompt.
const TEMPLATE: &str = "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}{%- if message.role == 'assistant' and loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{{- message.content + '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}";

/// Prepares conversations, trains on them, and returns the export's record and the prompt that
/// `generate` makes of a question.
fn run(dir: &Path, template: &str) -> (Value, Vec<i64>) {
    let tokenizer = dir.join("tokenizer");
    fs::create_dir(&tokenizer).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(sample("tokenizer").join(file), tokenizer.join(file)).unwrap();
    }
    fs::write(tokenizer.join("chat_template.jinja"), template).unwrap();
    let row = |i: usize| {
        json!({"messages": [
            {"role": "user", "content": format!("question {i}")},
            {"role": "assistant", "content": format!("answer {}", i * 7)},
        ]})
        .to_string()
    };
    fs::write(dir.join("rows.jsonl"), (0..40).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    Prepare::new(&tokenizer)
        .input(dir.join("rows.jsonl"))
        .seq_len(64)
        .bd_size(8)
        .run(dir.join("data"))
        .unwrap();
    let config = fs::read(sample("../../configs/model/sample.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    for (key, value) in [("hidden_size", 32), ("intermediate_size", 64), ("num_hidden_layers", 1)] {
        config[key] = json!(value);
    }
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    ok(&mut train(dir, "out", &["conversion.total_tokens=300"]));
    let record = fs::read(dir.join("out/dlm_config.json")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dlm-train"));
    command.current_dir(dir).args(["generate", "--model", "out", "--device", "cpu", "--json"]);
    let out = ok(command.args(["--prompt", "question 1", "--max-new-tokens", "4"]));
    let object: Value = serde_json::from_slice(&out.stdout).unwrap();
    (
        serde_json::from_slice(&record).unwrap(),
        serde_json::from_value(object["prompt_ids"].clone()).unwrap(),
    )
}

#[test]
fn generate_opens_the_turn_as_the_training_data_does() {
    let ids = |dir: &Path, opening: &str| -> Vec<i64> {
        let format = ChatFormat::load(dir.join("data/tokenizer")).unwrap();
        let prompt = format.encode_messages(&[Message::new("user", "question 1")]).unwrap();
        let shell = format.encode_text(opening).unwrap();
        prompt.into_iter().chain(shell).map(i64::from).collect()
    };
    let dir = tempfile::tempdir().unwrap();
    let (record, prompt) = run(dir.path(), TEMPLATE);
    assert_eq!(prompt, ids(dir.path(), "<think>\n\n</think>\n\n"), "{record}");
    assert!(record["assistant_opening_ids"].is_array(), "{record}");
    // a template that opens the turn as it asks for it needs no record
    let plain = TEMPLATE.replace("<think>\n\n</think>\n\n", "");
    let dir = tempfile::tempdir().unwrap();
    let (record, prompt) = run(dir.path(), &plain);
    assert_eq!(prompt, ids(dir.path(), ""), "{record}");
    assert!(record.get("assistant_opening_ids").is_none(), "{record}");
}
