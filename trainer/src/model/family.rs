//! The families of decoders and what each of them is where `config.json` does not say.

use serde_json::Value;

/// `model_type` of SDAR's models: Qwen3's layers, trained without the token shift.
pub(crate) const SDAR: &str = "sdar";

/// Mask token id of SDAR's models, which their engines have built in.
pub(crate) const SDAR_MASK_ID: i64 = 151_669;

/// That of the published Fast-dLLM v2 checkpoints, which have Qwen2.5's tokenizer.
const FAST_DLLM_MASK_ID: i64 = 151_665;

/// Mask token id of the published checkpoints of a `model_type`, which state it in no file.
pub(super) fn published_mask_id(model_type: Option<&str>) -> Option<i64> {
    match model_type {
        Some("Fast_dLLM_Qwen") => Some(FAST_DLLM_MASK_ID),
        Some(SDAR) => Some(SDAR_MASK_ID),
        _ => None,
    }
}

/// The decoder family of a checkpoint; families differ only in the switches of [`ModelConfig`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Llama and SmolLM2.
    Llama,
    /// Qwen2 and Qwen2.5: biases on q, k, v.
    Qwen2,
    /// Qwen3: RMS-normed q and k per head, explicit `head_dim`.
    Qwen3,
    /// BitNet b1.58: ReLU² gate, sub-norms before the output projections.
    BitNet,
}

/// What transformers 5 takes where `config.json` does not have a key.
#[derive(Clone, Copy)]
pub(super) struct Defaults {
    pub num_key_value_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub hidden_act: &'static str,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
}

impl Family {
    /// The family of a `model_type`, or of the part of an architecture's name before `ForCausalLM`,
    /// in lower case.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "llama" => Some(Family::Llama),
            "qwen2" | "fast_dllm_qwen" => Some(Family::Qwen2),
            "qwen3" | SDAR => Some(Family::Qwen3),
            "bitnet" => Some(Family::BitNet),
            _ => None,
        }
    }

    pub(super) fn defaults(self) -> Defaults {
        let of_llama = Defaults {
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: "silu",
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
        };
        let of_qwen = Defaults { max_position_embeddings: 32_768, ..of_llama };
        match self {
            Family::Llama => of_llama,
            Family::Qwen2 => Defaults { num_key_value_heads: Some(32), ..of_qwen },
            Family::Qwen3 => {
                Defaults { num_key_value_heads: Some(32), head_dim: Some(128), ..of_qwen }
            }
            Family::BitNet => Defaults {
                num_key_value_heads: Some(5),
                hidden_act: "relu2",
                rms_norm_eps: 1e-5,
                rope_theta: 500_000.0,
                ..of_llama
            },
        }
    }

    /// The config of a model with an output head: the architecture of a base model (`Qwen2Model`)
    /// becomes that with a head, which is what is trained and exported.
    pub(super) fn as_causal_model(mut raw: Value) -> Value {
        let name = raw.pointer_mut("/architectures/0");
        if let Some(Value::String(name)) = name
            && let Some(stem) = name.strip_suffix("Model")
        {
            *name = format!("{stem}ForCausalLM");
        }
        raw
    }
}
