//! A small packed dataset, a small model config, and runs of the real binary, for the tests in this
//! folder.
#![allow(dead_code)]

#[cfg(unix)]
pub(crate) mod damage;
pub(crate) mod sample_tasks;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dlm_datasets::manifest::Manifest;
use dlm_datasets::reader::Document;
use dlm_datasets::writer::DatasetWriter;
use dlm_datasets::{IGNORE, Split};

pub(crate) const VOCAB: usize = 64;
pub(crate) const MASK: i32 = 63;
pub(crate) const SEQ: usize = 64;
pub(crate) const BD: usize = 8;

/// Rows of two documents whose responses repeat their prompts, so that there is something to learn.
pub(crate) fn dataset(dir: &Path, rows: usize, mask: i32, vocab: usize) {
    let manifest = Manifest::new(SEQ, BD, vocab, mask, 0, 1);
    let mut writer = DatasetWriter::create(dir, manifest).unwrap();
    for (split, n, salt) in [(Split::Train, rows, 0), (Split::Eval, 4, 1000)] {
        for r in 0..n {
            let (mut ids, mut labels, mut documents) = (Vec::new(), Vec::new(), Vec::new());
            for d in 0..2 {
                let start = ids.len();
                let prompt: Vec<i32> = (0..12)
                    .map(|i| 2 + ((r + salt) * 31 + d * 17 + i * 7 + i * i) as i32 % 50)
                    .collect();
                ids.extend(&prompt);
                labels.extend(vec![IGNORE; 12]);
                ids.extend(&prompt);
                labels.extend(&prompt);
                ids.push(1);
                labels.push(1);
                while ids.len() % BD != 0 {
                    ids.push(mask);
                    labels.push(IGNORE);
                }
                documents.push(Document { start, length: ids.len() - start, source: 0 });
            }
            ids.resize(SEQ, 0);
            labels.resize(SEQ, IGNORE);
            writer.push(split, &ids, &labels, &documents).unwrap();
        }
    }
    writer.finish().unwrap();
    let tokenizer = dir.join("tokenizer");
    std::fs::create_dir_all(&tokenizer).unwrap();
    std::fs::write(tokenizer.join("tokenizer.json"), "{}").unwrap();
}

/// A llama of a few ten thousand parameters.
pub(crate) fn model_config(dir: &Path) -> PathBuf {
    let path = dir.join("config.json");
    let json = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rope_theta": 1e4,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": true, "initializer_range": 0.1, "eos_token_id": 1
    });
    std::fs::write(&path, json.to_string()).unwrap();
    path
}

/// A folder with `data/` and `config.json`.
pub(crate) fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"), 24, MASK, VOCAB);
    model_config(dir.path());
    dir
}

/// `dlm-train` on the workplace's data with random weights, plus `more`.
pub(crate) fn train(dir: &Path, out: &str, more: &[&str]) -> Command {
    let mut c = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    c.current_dir(dir)
        .args([
            "--data",
            "data",
            "--device",
            "cpu",
            "model.name=t",
            "source.init=random",
            "source.config=config.json",
        ])
        .args([
            "optim.lr=3e-3",
            "train.batch_rows=4",
            "train.eval_every=0",
            "train.log_every=1000",
            "conversion.total_tokens=6000",
        ])
        .arg(format!("output.dir={out}"))
        .args(more);
    c
}

/// Runs a command that must succeed.
pub(crate) fn ok(command: &mut Command) -> Output {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out
}

/// Runs a command that must end with `code` and print `words` in its error, without a panic.
pub(crate) fn refused(command: &mut Command, code: i32, words: &[&str]) {
    let out = command.output().unwrap();
    let err = String::from_utf8_lossy(&out.stderr).to_string();
    assert_eq!(out.status.code(), Some(code), "{err}");
    assert!(!err.contains("panicked"), "{err}");
    for w in words {
        assert!(err.contains(w), "no {w:?} in: {err}");
    }
}

/// (step, loss bits, gradient norm bits) of every step in a run's metrics.
pub(crate) fn losses(run: &Path) -> Vec<(u64, u64, u64)> {
    std::fs::read_to_string(run.join("metrics.jsonl"))
        .unwrap()
        .lines()
        .map(|l| {
            let v: serde_json::Value = serde_json::from_str(l).unwrap();
            (
                v["step"].as_u64().unwrap(),
                v["loss"].as_f64().unwrap().to_bits(),
                v["grad_norm"].as_f64().unwrap().to_bits(),
            )
        })
        .collect()
}
