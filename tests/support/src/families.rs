//! A config of each model family and a small packed dataset with a tokenizer, both with the ids of
//! the models under tests/fixtures; reading what an export holds.
//!
//! Like test code, these functions panic when something fails.

use std::path::{Path, PathBuf};

use dlm_datasets::writer::DatasetWriter;
use dlm_datasets::{Document, Manifest, Split};
use serde_json::{Value, json};

/// Size of the fixture models' vocabulary.
pub const VOCAB: usize = 320;
/// Their mask token.
pub const MASK: i32 = 319;
/// Their end-of-text token.
pub const EOS: i32 = 318;
/// Tokens per packed row.
pub const SEQ_LEN: usize = 64;

/// A config.json for a model of `arch` (Llama, Qwen2, Qwen3 or BitNet) with random weights.
pub fn own_config(arch: &str) -> Value {
    json!({
        "architectures": [format!("{arch}ForCausalLM")], "model_type": arch.to_lowercase(), "vocab_size": VOCAB, "hidden_size": 48,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": if arch == "BitNet" { 12 } else { 16 },
        "rope_theta": 1e4, "rms_norm_eps": 1e-6, "hidden_act": if arch == "BitNet" { "relu2" } else { "silu" },
        "max_position_embeddings": 512, "tie_word_embeddings": false, "initializer_range": 0.2, "torch_dtype": "float32"
    })
}

/// A dataset of 12 train and 2 eval rows, each of two conversations of whole blocks and some
/// padding behind them.
pub fn dataset(dir: &Path, mask: i32, bd_size: usize) -> PathBuf {
    let tokenizer = dir.join("tokenizer");
    std::fs::create_dir_all(&tokenizer).unwrap();
    let special = |id: i32, text: &str| json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let name = |id: i32| match id {
        EOS => "<eos>".to_string(),
        _ if id == mask => "|<MASK>|".to_string(),
        _ => format!("w{id}"),
    };
    let vocab: serde_json::Map<String, Value> =
        (0..VOCAB as i32).map(|id| (name(id), json!(id))).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special(EOS.min(mask), &name(EOS.min(mask))), special(EOS.max(mask), &name(EOS.max(mask)))],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}
    });
    let file = tokenizer.join("tokenizer.json");
    std::fs::write(&file, json.to_string()).unwrap();
    std::fs::write(
        tokenizer.join("tokenizer_config.json"),
        json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "mask_token": "|<MASK>|"}).to_string(),
    )
    .unwrap();
    let vocab = VOCAB.max(mask as usize + 1);
    let mut manifest = Manifest::new(SEQ_LEN, bd_size, vocab, mask, 0, EOS);
    manifest.tokenizer_sha256 = dlm_datasets::hash::sha256_file(&file).unwrap();
    let mut writer = DatasetWriter::create(dir, manifest).unwrap();
    for row in 0..14usize {
        let (mut ids, mut labels, mut documents) = (Vec::new(), Vec::new(), Vec::new());
        for (d, blocks) in [SEQ_LEN / bd_size / 2, SEQ_LEN / bd_size / 4].into_iter().enumerate() {
            let (start, length) = (ids.len(), blocks * bd_size);
            for i in 0..length {
                let id = ((row * 31 + d * 17 + i * 7) % 300) as i32 + 1;
                // a third of prompt, then the response with its end-of-turn, two of padding
                let (id, supervised) = if i + 2 >= length {
                    (mask, false)
                } else if i + 3 == length {
                    (EOS, true)
                } else {
                    (id, i >= length / 3)
                };
                ids.push(id);
                labels.push(if supervised { id } else { -100 });
            }
            documents.push(Document { start, length, source: 0 });
        }
        ids.resize(SEQ_LEN, 0);
        labels.resize(SEQ_LEN, -100);
        writer
            .push(if row < 12 { Split::Train } else { Split::Eval }, &ids, &labels, &documents)
            .unwrap();
    }
    writer.finish().unwrap();
    dir.to_path_buf()
}

/// Reads a JSON file.
#[track_caller]
pub fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// Name → (dtype, shape) of the tensors in a model folder's `model.safetensors`.
pub fn tensors(dir: &Path) -> std::collections::BTreeMap<String, (String, Vec<usize>)> {
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let st = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    st.iter()
        .map(|(n, v)| (n.to_string(), (format!("{:?}", v.dtype()), v.shape().to_vec())))
        .collect()
}
