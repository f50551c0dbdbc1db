//! `config.json` of a Hugging Face decoder checkpoint → [`ModelConfig`].
//!
//! Reads both forms: top-level `rope_theta` / `torch_dtype` (transformers 4) and `rope_parameters`
//! / `dtype` (transformers 5). Shapes always come from this file, never from our own YAML. The raw
//! JSON is kept, so that an export changes only what it must.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::kernels::Activation;

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

/// How the ternary weights of a BitNet checkpoint are stored and used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quantization {
    /// Full-precision master weights, quantised in every forward pass (straight-through gradients).
    Online,
    /// `weight` packed four to a byte, `weight_scale` = mean|W| (linear_class `autobitlinear`).
    PackedMultiply,
    /// `weight` packed four to a byte, `weight_scale` = 1 / mean|W| (linear_class `bitlinear`).
    PackedDivide,
}

/// Llama-3 style frequency scaling of RoPE.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Llama3Scaling {
    /// Low frequencies are divided by this.
    pub factor: f64,
    /// Wavelengths above `original / low_freq_factor` are divided fully.
    pub low_freq_factor: f64,
    /// Wavelengths below `original / high_freq_factor` are not changed.
    pub high_freq_factor: f64,
    /// Context length the base model was trained with, tokens.
    pub original_max_position_embeddings: f64,
}

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
    /// Tokens per block of a model that was converted before.
    pub bd_size: Option<usize>,
    /// Mask token of a model that was converted before.
    pub mask_token_id: Option<i64>,
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
        let text = std::fs::read_to_string(&file)
            .map_err(|e| Error::io(&file, "reading the model config", e))?;
        let raw: Value = serde_json::from_str(&text)
            .map_err(|e| Error::format(&file, format!("not valid JSON: {e}")))?;
        Self::from_json(raw).map_err(|e| Error::format(&file, e.to_string()))
    }

    /// Interprets a parsed `config.json`.
    pub(crate) fn from_json(raw: Value) -> Result<Self> {
        let r = Reader { raw: &raw };
        let family = r.family()?;
        let hidden_size = r.size("hidden_size")?;
        let num_attention_heads = r.size("num_attention_heads")?;
        let num_key_value_heads = r.opt_size("num_key_value_heads")?.unwrap_or(num_attention_heads);
        if num_attention_heads % num_key_value_heads != 0 {
            return Err(Error::Model(format!(
                "num_attention_heads {num_attention_heads} is not a multiple of num_key_value_heads {num_key_value_heads}"
            )));
        }
        let head_dim = match r.opt_size("head_dim")? {
            Some(d) => d,
            None if hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
            None => {
                return Err(Error::Model(format!(
                    "hidden_size {hidden_size} is not a multiple of num_attention_heads {num_attention_heads} and there is no head_dim"
                )));
            }
        };
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
        let (rope_theta, rope_scaling) = r.rope()?;
        let activation = match r.text("hidden_act").unwrap_or("silu") {
            "silu" | "swish" => Activation::Silu,
            "relu2" => Activation::Relu2,
            other => {
                return Err(Error::Model(format!(
                    "hidden_act {other:?} is not supported; supported: silu, relu2"
                )));
            }
        };
        if r.flag("use_sliding_window", false)?
            && r.raw.get("sliding_window").is_some_and(|v| !v.is_null())
        {
            return Err(Error::Model(
                "use_sliding_window is true: sliding-window attention is not implemented; set it to false if the model is used within its window".into(),
            ));
        }
        let attention_bias = r.flag("attention_bias", false)?;
        Ok(ModelConfig {
            family,
            vocab_size: r.size("vocab_size")?,
            hidden_size,
            intermediate_size: r.size("intermediate_size")?,
            num_hidden_layers: r.size("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps: r.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            max_position_embeddings: r.opt_size("max_position_embeddings")?.unwrap_or(2048),
            tie_word_embeddings: r.flag("tie_word_embeddings", matches!(family, Family::BitNet))?,
            qkv_bias: if family == Family::Qwen2 { true } else { attention_bias },
            o_bias: if family == Family::Qwen2 { false } else { attention_bias },
            mlp_bias: r.flag("mlp_bias", false)?,
            qk_norm: family == Family::Qwen3,
            sub_norms: family == Family::BitNet,
            activation,
            quantization: r.quantization()?,
            bd_size: r.opt_size("bd_size")?,
            mask_token_id: r.raw.get("mask_token_id").and_then(Value::as_i64),
            initializer_range: r.number("initializer_range")?.unwrap_or(0.02),
            eos_token_ids: match r.raw.get("eos_token_id") {
                Some(Value::Array(v)) => v.iter().filter_map(Value::as_i64).collect(),
                Some(v) => v.as_i64().into_iter().collect(),
                None => Vec::new(),
            },
            raw: raw.clone(),
        })
    }

    /// Switches BitLinear on or off, in the raw config too, so that an export describes the model
    /// that was trained.
    pub(crate) fn set_bitlinear(&mut self, on: bool) {
        self.quantization = on.then_some(Quantization::Online);
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

impl Llama3Scaling {
    fn apply(&self, freq: f64) -> f64 {
        let wavelength = 2.0 * std::f64::consts::PI / freq;
        let low = self.original_max_position_embeddings / self.low_freq_factor;
        let high = self.original_max_position_embeddings / self.high_freq_factor;
        if wavelength > low {
            freq / self.factor
        } else if wavelength < high {
            freq
        } else {
            let smooth = (self.original_max_position_embeddings / wavelength
                - self.low_freq_factor)
                / (self.high_freq_factor - self.low_freq_factor);
            (1.0 - smooth) * freq / self.factor + smooth * freq
        }
    }
}

struct Reader<'a> {
    raw: &'a Value,
}

impl<'a> Reader<'a> {
    fn text(&self, key: &str) -> Option<&'a str> {
        self.raw.get(key).and_then(Value::as_str)
    }

    fn opt_size(&self, key: &str) -> Result<Option<usize>> {
        match self.raw.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => match v.as_u64() {
                Some(n) if n > 0 && n < (1 << 40) => Ok(Some(n as usize)),
                _ => Err(Error::Model(format!("{key} is {v}; expected a positive whole number"))),
            },
        }
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.opt_size(key)?.ok_or_else(|| Error::Model(format!("{key} is missing")))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.raw.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => v
                .as_f64()
                .map(Some)
                .ok_or_else(|| Error::Model(format!("{key} is {v}; expected a number"))),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.raw.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(v) => Err(Error::Model(format!("{key} is {v}; expected true or false"))),
        }
    }

    fn family(&self) -> Result<Family> {
        let arch = self
            .raw
            .get("architectures")
            .and_then(|v| v.get(0))
            .and_then(Value::as_str)
            .or_else(|| self.text("model_type"))
            .ok_or_else(|| Error::Model("neither architectures nor model_type is set".into()))?;
        match arch {
            "LlamaForCausalLM" | "llama" => Ok(Family::Llama),
            "Qwen2ForCausalLM" | "qwen2" | "Fast_dLLM_QwenForCausalLM" | "Fast_dLLM_Qwen" => {
                Ok(Family::Qwen2)
            }
            "Qwen3ForCausalLM" | "qwen3" => Ok(Family::Qwen3),
            "BitNetForCausalLM" | "bitnet" => Ok(Family::BitNet),
            other => Err(Error::Model(format!(
                "architecture {other:?} is not supported; supported: LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, BitNetForCausalLM"
            ))),
        }
    }

    fn rope(&self) -> Result<(f64, Option<Llama3Scaling>)> {
        let new = self.raw.get("rope_parameters").filter(|v| v.is_object());
        let old = self.raw.get("rope_scaling").filter(|v| v.is_object());
        let theta = new
            .and_then(|p| p.get("rope_theta"))
            .and_then(Value::as_f64)
            .or(self.number("rope_theta")?)
            .unwrap_or(10_000.0);
        let Some(s) = new.or(old) else {
            return Ok((theta, None));
        };
        let kind = s
            .get("rope_type")
            .or_else(|| s.get("type"))
            .and_then(Value::as_str)
            .unwrap_or("default");
        let part = |key: &str| {
            s.get(key)
                .and_then(Value::as_f64)
                .ok_or_else(|| Error::Model(format!("rope scaling {kind:?} has no number {key}")))
        };
        match kind {
            "default" => Ok((theta, None)),
            "llama3" => Ok((
                theta,
                Some(Llama3Scaling {
                    factor: part("factor")?,
                    low_freq_factor: part("low_freq_factor")?,
                    high_freq_factor: part("high_freq_factor")?,
                    original_max_position_embeddings: part("original_max_position_embeddings")?,
                }),
            )),
            other => Err(Error::Model(format!(
                "rope scaling {other:?} is not supported; supported: default, llama3"
            ))),
        }
    }

    fn quantization(&self) -> Result<Option<Quantization>> {
        let Some(q) = self.raw.get("quantization_config").filter(|v| v.is_object()) else {
            return Ok(None);
        };
        let get = |key: &str| q.get(key).and_then(Value::as_str);
        match get("quant_method") {
            Some("bitnet") => {}
            other => {
                return Err(Error::Model(format!(
                    "quantization_config.quant_method is {other:?}; only \"bitnet\" is supported, load an unquantised checkpoint instead"
                )));
            }
        }
        if q.get("use_rms_norm").and_then(Value::as_bool) == Some(true) {
            return Err(Error::Model(
                "quantization_config.use_rms_norm is true: the extra norm inside every linear is not implemented".into(),
            ));
        }
        let class = get("linear_class").unwrap_or("bitlinear");
        let mode = get("quantization_mode").unwrap_or("offline");
        match (mode, class) {
            ("online", _) => Ok(Some(Quantization::Online)),
            ("offline", "autobitlinear") => Ok(Some(Quantization::PackedMultiply)),
            ("offline", "bitlinear") => Ok(Some(Quantization::PackedDivide)),
            (m, c) => Err(Error::Model(format!(
                "quantization_config has quantization_mode {m:?} and linear_class {c:?}, which are not known"
            ))),
        }
    }
}
