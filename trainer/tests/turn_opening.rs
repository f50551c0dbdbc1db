//! A model is prompted as it was trained: where the template of the data opens the assistant's turn
//! with more than it writes behind a prompt, the export records it and `generate` writes it.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{ok, refused, train};
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
    (
        serde_json::from_slice(&record).unwrap(),
        prompt_ids(&mut generate(dir, &["--prompt", "question 1"])),
    )
}

fn generate(dir: &Path, more: &[&str]) -> Command {
    let mut command = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    command.current_dir(dir).args(["generate", "--model", "out", "--device", "cpu", "--json"]);
    command.args(["--max-new-tokens", "4"]).args(more);
    command
}

fn prompt_ids(command: &mut Command) -> Vec<i64> {
    let object: Value = serde_json::from_slice(&ok(command).stdout).unwrap();
    serde_json::from_value(object["prompt_ids"].clone()).unwrap()
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
    // what is recorded is what stands in the rows of the dataset before the answers
    let format = ChatFormat::load(dir.path().join("data/tokenizer")).unwrap();
    let shell = format.encode_text("<think>\n\n</think>\n\n").unwrap();
    assert_eq!(record["assistant_opening_ids"], json!(shell));
    let data = dlm_datasets::Dataset::open(&dir.path().join("data")).unwrap();
    let row = data.row(dlm_datasets::Split::Train, 0).unwrap();
    let first = row.labels.iter().position(|label| *label != dlm_datasets::IGNORE).unwrap();
    assert!(row.input_ids[..first].ends_with(&shell), "{:?}", &row.input_ids[..first]);
    // a template that opens the turn as it asks for it needs no record
    let plain = TEMPLATE.replace("<think>\n\n</think>\n\n", "");
    let dir = tempfile::tempdir().unwrap();
    let (record, prompt) = run(dir.path(), &plain);
    assert_eq!(prompt, ids(dir.path(), ""), "{record}");
    assert!(record.get("assistant_opening_ids").is_none(), "{record}");
}

/// A template that asks for an answer as `enable_thinking` says, and reads tools.
const VARIABLES: &str = "{%- if tools %}{{- '<|im_start|>system\n' + tools[0].function.name + '<|im_end|>\n' }}{%- endif %}{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}{%- if message.role == 'assistant' and loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{{- message.content + '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}";

#[test]
fn variables_tools_and_parts_reach_the_template() {
    let dir = tempfile::tempdir().unwrap();
    let (_, trained) = run(dir.path(), VARIABLES);
    let format = ChatFormat::load(dir.path().join("data/tokenizer")).unwrap();
    let ids = |text: &str| -> Vec<i64> {
        format.encode_text(text).unwrap().into_iter().map(i64::from).collect()
    };
    let asked = "<|im_start|>user\nquestion 1<|im_end|>\n<|im_start|>assistant\n";
    let shell = "<think>\n\n</think>\n\n";
    assert_eq!(trained, ids(&format!("{asked}{shell}")));
    let with = |kwargs: &str| {
        let more = ["--prompt", "question 1", "--template-kwargs", kwargs];
        prompt_ids(&mut generate(dir.path(), &more))
    };
    // once, not twice; and not at all where thoughts are wanted
    assert_eq!(with(r#"{"enable_thinking": false}"#), trained);
    assert_eq!(with(r#"{"enable_thinking": true}"#), ids(asked));
    assert_eq!(with("{}"), trained);
    let more = ["--prompt", "question 1", "--template-kwargs", r#"{"enable_thinkin": true}"#];
    let out = ok(&mut generate(dir.path(), &more));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.contains("the chat template does not read enable_thinkin"), "{said}");
    for (kwargs, words) in [
        ("enable_thinking", "expected a JSON object"),
        ("[1]", "expected a JSON object"),
        (r#"{"messages": []}"#, "set by generate itself"),
    ] {
        let more = ["--prompt", "q", "--template-kwargs", kwargs];
        refused(&mut generate(dir.path(), &more), 2, &["--template-kwargs", words]);
    }
    let more = ["--ids", "1,2", "--template-kwargs", "{}"];
    refused(&mut generate(dir.path(), &more), 2, &["cannot be used with"]);

    let line = |text: &str| {
        let file = dir.path().join("prompts.jsonl");
        fs::write(&file, text).unwrap();
        prompt_ids(&mut generate(dir.path(), &["--input", "prompts.jsonl"]))
    };
    let parts = r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "question"}, {"type": "text", "text": " 1"}]}]}"#;
    assert_eq!(line(parts), trained);
    let tools = r#"{"messages": [{"role": "user", "content": "question 1"}], "tools": [{"type": "function", "function": {"name": "look"}}]}"#;
    assert_eq!(line(tools), ids(&format!("<|im_start|>system\nlook<|im_end|>\n{asked}{shell}")));
    // a control token in a declaration is text, as in training data
    let odd = line(&tools.replace("look", "<|im_end|>"));
    let ends = |ids: &[i64]| ids.iter().filter(|id| **id == format_id(&format)).count();
    assert_eq!(ends(&odd), ends(&line(tools)));
}

/// Id of `<|im_end|>`.
fn format_id(format: &ChatFormat) -> i64 {
    i64::from(format.encode_text("<|im_end|>").unwrap()[0])
}
