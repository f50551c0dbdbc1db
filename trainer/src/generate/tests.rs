//! What a model folder's files make of a call.

use super::*;
use crate::decode::RowMode;

const SHAPES: &str = include_str!("../../../configs/model/sample.json");

fn text() -> [Prompt; 1] {
    [Prompt::Text("hello".into())]
}

fn options() -> GenerateOptions {
    GenerateOptions::default()
}

/// A model folder with shapes only.
fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, ModelFiles) {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in [&[("config.json", SHAPES)], files].concat() {
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    let files = ModelFiles::open(dir.path()).unwrap();
    (dir, files)
}

#[test]
fn text_without_a_tokenizer_is_a_wrong_call() {
    let (_dir, files) = folder(&[]);
    let error = files.encode(&text(), &options()).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("no tokenizer.json"), "{error}");
}

#[test]
fn an_unreadable_tokenizer_is_a_failure_for_text_alone() {
    let (_dir, files) = folder(&[("tokenizer.json", "{\"damaged")]);
    let error = files.encode(&text(), &options()).unwrap_err();
    assert_eq!(error.exit_code(), 1, "{error}");
    let ids = files.encode(&[Prompt::Ids(vec![3, 1])], &options()).unwrap();
    assert_eq!(ids, [[3, 1]]);
}

#[test]
fn the_folder_fills_in_what_the_options_leave_open() {
    let record = r#"{"bd_size": 12, "mask_token_id": 7}"#;
    let (_dir, files) = folder(&[
        ("dlm_config.json", record),
        ("generation_config.json", r#"{"eos_token_id": [5, 6]}"#),
    ]);
    let block = |options: &GenerateOptions| {
        let request = files.request(options).unwrap();
        match request.mode {
            RowMode::Block(block) => (block, request.mask_id, request.stop_ids),
            RowMode::Ar | RowMode::Verify(_) => panic!("block mode is the default"),
        }
    };
    let (usual, mask_id, stop_ids) = block(&options());
    assert_eq!((usual.block_size, usual.sub_block_size, mask_id), (12, 12, Some(7)));
    assert_eq!(stop_ids, [5, 6]);
    let (other, _, stop_ids) = block(&GenerateOptions {
        block_size: Some(16),
        stop_token_ids: Some(Vec::new()),
        ..options()
    });
    assert_eq!((other.block_size, other.sub_block_size), (16, 8));
    assert!(stop_ids.is_empty());
}

#[test]
fn warnings_name_block_size_and_positions() {
    let stop = ("generation_config.json", r#"{"eos_token_id": 5}"#);
    let (_dir, files) = folder(&[("dlm_config.json", r#"{"bd_size": 32}"#), stop]);
    let prompts = [vec![1, 2]];
    assert!(files.warnings(&prompts, &options()).is_empty());
    let odd = GenerateOptions { block_size: Some(16), max_new_tokens: 1_000_000, ..options() };
    let warnings = files.warnings(&prompts, &odd);
    assert!(warnings[0].contains("trained with blocks of 32"), "{warnings:?}");
    assert!(warnings[1].contains("1000002 tokens"), "{warnings:?}");
    let causal = GenerateOptions { mode: DecodeMode::Ar, max_new_tokens: 4, ..odd };
    assert!(files.warnings(&prompts, &causal).is_empty());
}

#[test]
fn the_end_of_text_of_the_tokenizer_stops_and_none_at_all_is_said() {
    let prompts = [vec![1, 2]];
    let (_dir, files) = folder(&[]);
    let warnings = files.warnings(&prompts, &options());
    assert!(warnings[0].contains("names no end of text"), "{warnings:?}");
    assert!(warnings[0].contains("--stop-token-id"), "{warnings:?}");
    let none = GenerateOptions { stop_token_ids: Some(Vec::new()), ..options() };
    assert!(files.warnings(&prompts, &none).is_empty());
    let tokenizer = r#"{"eos_token": "<e>", "added_tokens_decoder": {"2": {"content": "<e>"}}}"#;
    let (_dir, files) = folder(&[("tokenizer_config.json", tokenizer)]);
    assert_eq!(files.folder.stop_ids, [2]);
    assert!(files.warnings(&prompts, &options()).is_empty());
    let generation = ("generation_config.json", r#"{"eos_token_id": [0, 2]}"#);
    let (_dir, files) = folder(&[("tokenizer_config.json", tokenizer), generation]);
    assert_eq!(files.folder.stop_ids, [0, 2]);
}

#[test]
fn options_that_cannot_be_used_are_wrong_calls() {
    let (_dir, files) = folder(&[("dlm_config.json", r#"{"mask_token_id": 7}"#)]);
    let (_other, plain) = folder(&[]);
    let code = |files: &ModelFiles, options| files.request(&options).unwrap_err().exit_code();
    assert_eq!(code(&files, GenerateOptions { threshold: 1.5, ..options() }), 2);
    assert_eq!(code(&files, GenerateOptions { batch_size: 0, ..options() }), 2);
    assert_eq!(code(&plain, options()), 2);
}
