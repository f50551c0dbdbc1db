//! Model shapes by name. Benchmarks use them with random weights, so that nothing is downloaded.

use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Names that [`config`] accepts.
const NAMES: [&str; 9] = [
    "tiny_llama",
    "tiny_qwen3",
    "demo_5m",
    "smollm2_135m",
    "qwen2.5_0.5b",
    "qwen2.5_1.5b",
    "qwen3_0.6b",
    "qwen3_4b",
    "bitnet_2b",
];

#[allow(clippy::too_many_arguments)]
fn shape(
    arch: &str,
    vocab: usize,
    hidden: usize,
    mlp: usize,
    layers: usize,
    heads: usize,
    kv: usize,
    head_dim: usize,
    theta: f64,
) -> Value {
    json!({
        "architectures": [arch], "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": mlp,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": head_dim,
        "rope_theta": theta, "rms_norm_eps": if arch.starts_with("Llama") || arch.starts_with("BitNet") { 1e-5 } else { 1e-6 },
        "hidden_act": if arch.starts_with("BitNet") { "relu2" } else { "silu" },
        "tie_word_embeddings": true, "max_position_embeddings": 8192,
    })
}

/// The `config.json` of a preset.
pub(crate) fn config(name: &str) -> Result<Value> {
    Ok(match name {
        "tiny_llama" => shape("LlamaForCausalLM", 512, 96, 256, 3, 6, 3, 16, 1e5),
        "tiny_qwen3" => shape("Qwen3ForCausalLM", 512, 64, 128, 2, 4, 2, 32, 1e6),
        "demo_5m" => shape("LlamaForCausalLM", 2048, 256, 768, 5, 4, 2, 64, 1e4),
        "smollm2_135m" => shape("LlamaForCausalLM", 49152, 576, 1536, 30, 9, 3, 64, 1e5),
        "qwen2.5_0.5b" => shape("Qwen2ForCausalLM", 151_936, 896, 4864, 24, 14, 2, 64, 1e6),
        "qwen2.5_1.5b" => shape("Qwen2ForCausalLM", 151_936, 1536, 8960, 28, 12, 2, 128, 1e6),
        "qwen3_0.6b" => shape("Qwen3ForCausalLM", 151_936, 1024, 3072, 28, 16, 8, 128, 1e6),
        "qwen3_4b" => shape("Qwen3ForCausalLM", 151_936, 2560, 9728, 36, 32, 8, 128, 1e6),
        "bitnet_2b" => {
            // 64 rows more than the source's 128,256, for the mask token
            let mut v = shape("BitNetForCausalLM", 128_320, 2560, 6912, 30, 20, 5, 128, 5e5);
            if let Some(o) = v.as_object_mut() {
                o.insert(
                    "quantization_config".into(),
                    json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}),
                );
            }
            v
        }
        other => {
            return Err(Error::Usage(format!(
                "--preset {other:?} is not known; known: {}",
                NAMES.join(", ")
            )));
        }
    })
}

/// The preset with the shapes of a choice of configs/model, where there is one.
pub(crate) fn of_model(model: &str) -> Option<&'static str> {
    NAMES.into_iter().find(|name| name.replace('.', "_") == model)
}
