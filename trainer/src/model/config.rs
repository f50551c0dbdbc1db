//! `config.json` of a Hugging Face decoder checkpoint → [`ModelConfig`].
//!
//! Reads both forms: top-level `rope_theta` / `torch_dtype` (transformers 4) and `rope_parameters`
//! / `dtype` (transformers 5). Shapes always come from this file, never from our own YAML. The raw
//! JSON is kept, so that an export changes only what it must.

use std::path::Path;

use serde_json::Value;

use super::config_reader::Reader;
use super::token_ids::TokenIds;
use super::{folder_kind, json_text, module_pattern, quantization_config, rope_config};
use crate::error::{Error, Result};
use crate::kernels::Activation;

pub(crate) use super::family::Family;
use super::family::published_mask_id;
pub(crate) use super::quantization_config::Quantization;
pub(crate) use super::rope_config::Llama3Scaling;

/// Most layers: every layer has a dozen parameters with names.
const MOST_LAYERS: usize = 4096;

/// Shape and switches of a decoder. Sizes are counts of elements.
#[derive(Clone, Debug)]
pub(crate) struct ModelConfig {
    /// Family, from `model_type` / `architectures`.
    pub family: Family,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// Key/value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; not always `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Epsilon inside every RMSNorm.
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: Option<Llama3Scaling>,
    /// Context length that the checkpoint claims, tokens.
    pub max_position_embeddings: usize,
    /// The output head shares the embedding table.
    pub tie_word_embeddings: bool,
    pub qkv_bias: bool,
    /// Bias on the attention output projection.
    pub o_bias: bool,
    pub mlp_bias: bool,
    /// RMSNorm on q and k, per head, before RoPE.
    pub qk_norm: bool,
    /// `attn_sub_norm` before o_proj and `ffn_sub_norm` before down_proj.
    pub sub_norms: bool,
    pub activation: Activation,
    /// BitLinear instead of linear in the layers.
    pub quantization: Option<Quantization>,
    /// Patterns of modules that stay linear where the others are BitLinear.
    pub not_quantized: Vec<String>,
    /// What was decided where keys contradict each other, as sentences.
    pub warnings: Vec<String>,
    /// Tokens per block of a model that was converted before.
    pub bd_size: Option<usize>,
    /// Mask token of a model that was converted before.
    pub mask_token_id: Option<i64>,
    /// Whether the logits at position i-1 predict token i; `None` where `config.json` does not say.
    pub token_shift: Option<bool>,
    /// Standard deviation of random initialisation.
    pub initializer_range: f64,
    pub eos_token_ids: Vec<i64>,
    /// The JSON as it was read.
    pub raw: Value,
}

impl ModelConfig {
    /// Reads `config.json` (the file, or a folder that contains one).
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
        if let Some(dir) = file.parent().filter(|dir| dir.is_dir() && !file.exists()) {
            return Err(Error::format(dir, folder_kind::explain(dir, "config.json")));
        }
        let text =
            json_text::read(&file).map_err(|e| Error::io(&file, "reading the model config", e))?;
        let raw = json_text::parse(&text)
            .map_err(|e| Error::format(&file, format!("not valid JSON: {e}")))?;
        Self::from_json(raw).map_err(|e| match e {
            Error::Usage(text) => Error::Usage(format!("{}: {text}", file.display())),
            other => Error::format(&file, other.to_string()),
        })
    }

    /// Interprets a parsed `config.json`.
    pub(crate) fn from_json(raw: Value) -> Result<Self> {
        let r = Reader { raw: &raw };
        let mut warnings = Vec::new();
        let family = r.family(&mut warnings)?;
        let defaults = family.defaults();
        let hidden_size = r.size("hidden_size")?;
        let num_attention_heads = r.size("num_attention_heads")?;
        let num_key_value_heads = r
            .size_or("num_key_value_heads", defaults.num_key_value_heads)?
            .unwrap_or(num_attention_heads);
        if num_attention_heads % num_key_value_heads != 0 {
            return Err(Error::Model(format!(
                "num_attention_heads {num_attention_heads} is not a multiple of num_key_value_heads {num_key_value_heads}"
            )));
        }
        let head_dim = match r.size_or("head_dim", defaults.head_dim)? {
            Some(d) => d,
            None if hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
            None => {
                return Err(Error::Model(format!(
                    "hidden_size {hidden_size} is not a multiple of num_attention_heads {num_attention_heads} and there is no head_dim"
                )));
            }
        };
        if num_attention_heads.saturating_mul(head_dim) > 1 << 28 {
            return Err(Error::Usage(format!(
                "num_attention_heads is {num_attention_heads} and head_dim {head_dim}; expected a product of at most {}",
                1 << 28
            )));
        }
        if head_dim % 2 != 0 {
            return Err(Error::Model(format!(
                "head_dim {head_dim} is odd; rotary embeddings need an even one"
            )));
        }
        if family == Family::BitNet && num_attention_heads * head_dim != hidden_size {
            return Err(Error::Model(format!(
                "a BitNet model with {num_attention_heads} heads of {head_dim} and hidden_size {hidden_size}: its norm before o_proj spans hidden_size values, so heads times head_dim must be {hidden_size}"
            )));
        }
        let num_hidden_layers = r.size("num_hidden_layers")?;
        if num_hidden_layers > MOST_LAYERS {
            return Err(Error::Usage(format!(
                "num_hidden_layers is {num_hidden_layers}; expected at most {MOST_LAYERS}"
            )));
        }
        let max_position_embeddings =
            r.opt_size("max_position_embeddings")?.unwrap_or(defaults.max_position_embeddings);
        let rope =
            rope_config::read(&r, defaults.rope_theta, max_position_embeddings, &mut warnings)?;
        r.check_window(family, num_hidden_layers, max_position_embeddings)?;
        let activation = match r.text("hidden_act").unwrap_or(defaults.hidden_act) {
            "silu" | "swish" => Activation::Silu,
            "relu2" => Activation::Relu2,
            other => {
                return Err(Error::Model(format!(
                    "hidden_act {other:?} is not supported; supported: silu, relu2"
                )));
            }
        };
        let attention_bias = r.flag("attention_bias", false)?;
        let vocab_size = r.size("vocab_size")?;
        let ids = TokenIds { file: &raw, rows: vocab_size };
        let published_mask_id =
            published_mask_id(r.text("model_type")).filter(|id| *id < vocab_size as i64);
        Ok(ModelConfig {
            family,
            vocab_size,
            hidden_size,
            intermediate_size: r.size("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps: r.number("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps),
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            max_position_embeddings,
            tie_word_embeddings: r.flag("tie_word_embeddings", false)?,
            qkv_bias: if family == Family::Qwen2 { true } else { attention_bias },
            o_bias: if family == Family::Qwen2 { false } else { attention_bias },
            mlp_bias: family == Family::Llama && r.flag("mlp_bias", false)?,
            qk_norm: family == Family::Qwen3,
            sub_norms: family == Family::BitNet,
            activation,
            quantization: quantization_config::read(&r)?,
            not_quantized: quantization_config::modules_to_not_convert(&r)?,
            warnings,
            bd_size: r.opt_size("bd_size")?,
            mask_token_id: ids.one("mask_token_id")?.or(published_mask_id),
            token_shift: r.token_shift()?,
            initializer_range: r.number("initializer_range")?.unwrap_or(0.02),
            eos_token_ids: ids.all("eos_token_id")?,
            raw: Family::as_causal_model(raw.clone()),
        })
    }

    /// Whether the logits at position i-1 predict token i, as in every model that says nothing
    /// else.
    pub(crate) fn has_token_shift(&self) -> bool {
        self.token_shift.unwrap_or(true)
    }

    /// Whether the weight `name` belongs to a module that is BitLinear where the model has any.
    pub(crate) fn may_quantize(&self, name: &str) -> bool {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        !self.not_quantized.iter().any(|pattern| module_pattern::matches(pattern, module))
    }

    /// Gives the output head a table of its own, in the raw config too.
    pub(crate) fn untie(&mut self) {
        self.tie_word_embeddings = false;
        if let Some(raw) = self.raw.as_object_mut() {
            raw.insert("tie_word_embeddings".into(), Value::Bool(false));
        }
    }

    /// Switches BitLinear on or off, in the raw config too, so that an export describes the model
    /// that was trained.
    pub(crate) fn set_bitlinear(&mut self, on: bool) {
        self.quantization = on.then_some(Quantization::Online);
        self.not_quantized.clear();
        let Some(raw) = self.raw.as_object_mut() else {
            return;
        };
        if on {
            raw.insert(
                "quantization_config".into(),
                serde_json::json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}),
            );
        } else {
            raw.remove("quantization_config");
        }
    }

    /// Inverse frequencies of RoPE, `[head_dim / 2]`, radians per position (f64, as transformers
    /// computes before rounding).
    pub(crate) fn inv_freq(&self) -> Vec<f64> {
        let half = self.head_dim / 2;
        (0..half)
            .map(|i| {
                let f = self.rope_theta.powf(-2.0 * i as f64 / self.head_dim as f64);
                match self.rope_scaling {
                    None => f,
                    Some(s) => s.apply(f),
                }
            })
            .collect()
    }
}
