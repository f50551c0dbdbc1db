//! Sums that are right: steps without targets, batches and budgets that do not fit the dataset,
//! documents that are longer than the model's positions, files that must agree with an export.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use common::{BD, MASK, SEQ, VOCAB, ok, refused, train, workplace};
use dlm_datasets::manifest::Manifest;
use dlm_datasets::reader::Document;
use dlm_datasets::writer::DatasetWriter;
use dlm_datasets::{IGNORE, Split};
use serde_json::{Value, json};

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// A dataset in which two of three rows have a single label: where one view of each row is trained
/// on, its mask hides that label or nothing.
fn sparse(dir: &Path) {
    let mut writer = DatasetWriter::create(dir, Manifest::new(SEQ, BD, VOCAB, MASK, 0, 1)).unwrap();
    for row in 0..24 {
        let ids: Vec<i32> = (0..SEQ as i32).map(|i| 2 + (row * 7 + i * 3) % 50).collect();
        let mut labels = vec![IGNORE; SEQ];
        labels[1] = ids[1];
        if row % 3 == 0 {
            labels[1..].copy_from_slice(&ids[1..]);
        }
        let documents = [Document { start: 0, length: SEQ, source: 0 }];
        writer.push(Split::Train, &ids, &labels, &documents).unwrap();
    }
    writer.finish().unwrap();
    fs::create_dir_all(dir.join("tokenizer")).unwrap();
    fs::write(dir.join("tokenizer/tokenizer.json"), "{}").unwrap();
}

#[test]
fn a_step_without_targets_changes_nothing_but_the_cursor() {
    let dir = workplace();
    fs::remove_dir_all(dir.path().join("data")).unwrap();
    sparse(&dir.path().join("data"));
    let more = ["conversion.complementary=false", "train.batch_rows=1", "train.max_steps=24"];
    let out = ok(&mut train(dir.path(), "out", &more));
    let metrics = fs::read_to_string(dir.path().join("out/metrics.jsonl")).unwrap();
    let records: Vec<Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let empty = records.iter().filter(|r| r["counted"] == 0).count();
    assert!(records.len() == 24 && empty > 2 && empty < 17, "{empty} of {}", records.len());
    assert_eq!(said(&out).matches("nothing is learnt from it").count(), empty, "{}", said(&out));
    let state = dir.path().join("out/checkpoints/step-000000024/state.json");
    let state: Value = serde_json::from_slice(&fs::read(state).unwrap()).unwrap();
    assert_eq!(state["state"]["updates"], 24 - empty);
    assert_eq!(state["state"]["step"], 24);
    // such a step has no loss of its own: the record repeats that of the step before
    for pair in records.windows(2).filter(|pair| pair[1]["counted"] == 0) {
        assert_eq!(pair[0]["loss"], pair[1]["loss"]);
    }
    let mean = state["state"]["loss_mean"].as_f64().unwrap();
    let losses = records.iter().filter(|r| r["counted"] != 0).map(|r| r["loss"].as_f64().unwrap());
    let (least, most) = losses.fold((f64::MAX, 0f64), |(a, b), l| (a.min(l), b.max(l)));
    assert!((least..=most).contains(&mean), "{mean} of {least} to {most}");
}

#[test]
fn batches_and_budgets_that_do_not_fit_the_dataset_are_said() {
    let dir = workplace();
    let out = ok(&mut train(dir.path(), "wide", &["train.batch_rows=64"]));
    assert!(said(&out).contains("train.batch_rows=64 is more than the 24 training rows"));
    let out = ok(&mut train(dir.path(), "short", &["conversion.total_tokens=1"]));
    assert!(said(&out).contains("conversion.total_tokens=1 is no more than one step"));
    let out = ok(&mut train(dir.path(), "usual", &[]));
    assert!(!said(&out).contains("warning"), "{}", said(&out));
}

#[test]
fn documents_longer_than_the_positions_are_refused_unless_told() {
    let dir = workplace();
    let config = dir.path().join("config.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    json["max_position_embeddings"] = json!(16);
    fs::write(&config, json.to_string()).unwrap();
    let words = ["train row 0", "16 positions", "--seq-len 16", "data.allow_long_documents=true"];
    refused(&mut train(dir.path(), "out", &[]), 1, &words);
    ok(&mut train(dir.path(), "out", &["data.allow_long_documents=true"]));
    let eval = |more: &[&str]| {
        let mut command = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
        command.current_dir(dir.path()).args(["eval", "--model", "out", "--data", "data"]);
        command.args(["--device", "cpu"]).args(more);
        command
    };
    refused(&mut eval(&[]), 1, &["16 positions", "--allow-long-documents"]);
    ok(&mut eval(&["--allow-long-documents", "--micro-batch-rows", "18446744073709551615"]));
}

#[test]
fn files_of_the_export_agree_with_it() {
    let dir = workplace();
    ok(&mut train(dir.path(), "source", &["conversion.total_tokens=300"]));
    let path = dir.path().join("source/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["dtype"] = json!("float16");
    config["torch_dtype"] = json!("float16");
    fs::write(&path, config.to_string()).unwrap();
    fs::remove_file(dir.path().join("source/tokenizer.json")).unwrap();
    fs::write(dir.path().join("source/tokenizer.model"), "").unwrap();
    let templates = "data/tokenizer/additional_chat_templates";
    fs::create_dir(dir.path().join(templates)).unwrap();
    fs::write(dir.path().join(templates).join("tool_use.jinja"), "{{ tools }}").unwrap();
    let more = ["source.init=pretrained", "source.path=source", "export.dtype=bf16"];
    let out = ok(&mut train(dir.path(), "out", &more));
    let words = "has no tokenizer.json, only tokenizer.model";
    assert!(
        said(&out).contains(words) && said(&out).contains("cannot be checked"),
        "{}",
        said(&out)
    );
    let path = dir.path().join("out/config.json");
    let config: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!(
        (&config["dtype"], &config["torch_dtype"]),
        (&json!("bfloat16"), &json!("bfloat16"))
    );
    let template = dir.path().join("out/additional_chat_templates/tool_use.jinja");
    assert_eq!(fs::read_to_string(template).unwrap(), "{{ tools }}");
}

/// A source whose tokenizer has more ids than its table has rows: the table grows where the dataset
/// has the same tokenizer, and only there.
#[test]
fn rows_grow_to_the_ids_of_the_models_own_tokenizer() {
    let dir = workplace();
    ok(&mut train(dir.path(), "source", &["conversion.total_tokens=300", "export.dtype=fp32"]));
    for key in ["bd_size", "mask_token_id"] {
        let path = dir.path().join("source/config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config.as_object_mut().unwrap().remove(key);
        fs::write(&path, config.to_string()).unwrap();
    }
    fs::remove_file(dir.path().join("source/dlm_config.json")).unwrap();
    common::dataset(&dir.path().join("wide"), 24, 79, 80);
    let vocabulary = |ids: usize| {
        let map: serde_json::Map<_, _> = (0..ids).map(|i| (format!("t{i}"), json!(i))).collect();
        json!({"model": {"vocab": map}}).to_string()
    };
    let tokenizers = |of_model: &str, of_data: &str| {
        fs::write(dir.path().join("source/tokenizer.json"), of_model).unwrap();
        fs::write(dir.path().join("wide/tokenizer/tokenizer.json"), of_data).unwrap();
    };
    let more = ["source.init=pretrained", "source.path=source", "export.dtype=fp32"];
    let run = |out: &str| {
        let mut command = train(dir.path(), out, &more);
        let typed: Vec<_> = command.get_args().skip(2).map(|a| a.to_os_string()).collect();
        command = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
        command.current_dir(dir.path()).args(["--data", "wide"]).args(typed);
        command
    };
    tokenizers("{}", &vocabulary(80));
    refused(&mut run("out"), 1, &["80 ids", "64 rows", "this model's tokenizer"]);
    tokenizers(&vocabulary(70), &vocabulary(80));
    refused(&mut run("out"), 1, &["another tokenizer", "t70"]);
    tokenizers(&vocabulary(80), &vocabulary(80));
    let out = ok(&mut run("out"));
    assert!(
        said(&out).contains("80 ids and the embedding table 64 rows: 64 rows"),
        "{}",
        said(&out)
    );
    let path = dir.path().join("out/config.json");
    let config: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!(config["vocab_size"], 128);
    ok(&mut run("out"));
}
