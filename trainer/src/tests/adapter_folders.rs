//! Folders of adapters that cannot be used: each is refused, and says what was found.

use std::path::Path;

use burn::tensor::DType;
use dlm_test_support::fixtures;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::compute::device;
use crate::error::{Error, Result};
use crate::io::adapter::{Adapter, CONFIG, WEIGHTS};
use crate::io::load_model::HostModel;

/// A copy of an adapter of qwen2_tiny: rank 3 on q_proj, v_proj and down_proj.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in [CONFIG, WEIGHTS] {
        std::fs::copy(fixtures().join("lora_qwen2").join(name), dir.path().join(name)).unwrap();
    }
    dir
}

fn with(key: &str, value: Value) -> tempfile::TempDir {
    let dir = folder();
    let path = dir.path().join(CONFIG);
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(&path, config.to_string()).unwrap();
    dir
}

/// The adapter beside its base model.
fn attach(dir: &Path) -> Result<()> {
    let model = HostModel::read(&fixtures().join("qwen2_tiny")).unwrap();
    let device = device::cpu().device;
    Adapter::read(dir)?.attach(model, None, false, DType::F32, &device).map(|_| ())
}

#[track_caller]
fn refused(dir: &Path, words: &[&str]) {
    let error = attach(dir).expect_err("should be refused");
    assert!(matches!(error, Error::Format { .. } | Error::Usage(_)), "{error:?}");
    for word in words {
        assert!(error.to_string().contains(word), "no {word:?} in: {error}");
    }
}

#[test]
fn an_adapter_of_peft_is_read() {
    attach(folder().path()).unwrap();
    // what changes nothing in a forward pass
    for (key, value) in [
        ("lora_dropout", json!(0.1)),
        ("inference_mode", json!(false)),
        ("a_key_of_later_versions", Value::Null),
        ("use_rslora", json!(true)),
        ("trainable_token_indices", json!([319])),
    ] {
        attach(with(key, value).path()).unwrap();
    }
}

#[test]
fn settings_that_are_not_computed_are_refused_by_name() {
    for (key, value, words) in [
        ("peft_type", json!("IA3"), &["IA3", "LORA"][..]),
        ("peft_type", Value::Null, &["null", "LORA"]),
        ("use_dora", json!(true), &["use_dora is true"]),
        ("bias", json!("all"), &["bias", "all"]),
        ("modules_to_save", json!(["lm_head"]), &["modules_to_save", "lm_head"]),
        ("rank_pattern", json!({"q_proj": 2}), &["rank_pattern"]),
        ("layers_to_transform", json!([0]), &["layers_to_transform"]),
        ("fan_in_fan_out", json!(true), &["fan_in_fan_out"]),
        ("a_key_of_later_versions", json!(3), &["a_key_of_later_versions is 3"]),
        ("r", json!(0), &["r is 0", "1 or more"]),
        ("r", json!(-3), &["r is -3"]),
        ("r", json!("3"), &["r is \"3\""]),
        ("r", json!(4), &["lora_A.weight is [3, 64], expected [4, 64]"]),
        ("r", json!(40), &["rank 40", "v_proj.weight is 32 x 64"]),
        ("lora_alpha", json!(0), &["lora_alpha is 0"]),
        ("lora_alpha", json!("2"), &["lora_alpha"]),
        ("target_modules", json!(["q_prj"]), &["target_modules", "q_prj", "q_proj"]),
        ("target_modules", json!(".*"), &["target_modules", "all-linear"]),
        ("target_modules", json!([]), &["target_modules"]),
        ("target_modules", json!(["q_proj"]), &["no adapter of this base model", "lora_"]),
        ("target_modules", json!("all-linear"), &["no tensor", "k_proj.lora_A"]),
        ("trainable_token_indices", json!({"wte": [1]}), &["trainable_token_indices", "wte"]),
        ("trainable_token_indices", json!([-1]), &["trainable_token_indices"]),
        ("trainable_token_indices", json!([1, 2]), &["is [1, 64], expected [2, 64]"]),
        ("trainable_token_indices", json!([2_000_000_000]), &["token 320", "320 rows"]),
        ("trainable_token_indices", Value::Null, &["trainable_tokens_delta"]),
    ] {
        refused(with(key, value).path(), words);
    }
}

#[test]
fn damaged_folders_are_refused() {
    refused(tempfile::tempdir().unwrap().path(), &[CONFIG, "peft adapter"]);
    let dir = folder();
    std::fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
    refused(dir.path(), &[WEIGHTS, "tensors of the adapter"]);
    let dir = folder();
    std::fs::write(dir.path().join(CONFIG), "[1]").unwrap();
    refused(dir.path(), &[CONFIG]);
    std::fs::write(dir.path().join(CONFIG), "{\"peft_type\": ").unwrap();
    refused(dir.path(), &[CONFIG]);
    let whole = std::fs::read(fixtures().join("lora_qwen2").join(WEIGHTS)).unwrap();
    for length in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        let dir = folder();
        std::fs::write(dir.path().join(WEIGHTS), &whole[..length]).unwrap();
        refused(dir.path(), &[WEIGHTS]);
    }
    // values that are no numbers, in any of the tensors
    let file = SafeTensors::deserialize(&whole).unwrap();
    for damaged in ["down_proj.lora_B", "trainable_tokens_delta"] {
        let mut data: Vec<(String, Vec<usize>, Vec<u8>)> = file
            .iter()
            .map(|(name, view)| (name.to_string(), view.shape().to_vec(), view.data().to_vec()))
            .collect();
        let (_, _, bytes) = data.iter_mut().find(|(name, ..)| name.contains(damaged)).unwrap();
        bytes[8..12].copy_from_slice(&f32::NAN.to_le_bytes());
        let dir = folder();
        let views = data.iter().map(|(name, shape, bytes)| {
            (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &dir.path().join(WEIGHTS)).unwrap();
        refused(dir.path(), &[damaged, "NaN at 2"]);
    }
}
