//! The parameters of a decoder as a flat list under their Hugging Face names, and tables of indices
//! into that list, one per layer.
//!
//! Every parameter is a rank-2 tensor on the device; vectors (norms, biases) are `[1, n]`. The
//! optimizer, the checkpoint and the export iterate over the flat list; its order is that of
//! [`Params::specs`], which depends on the configuration alone.

use std::ops::Range;

use burn::prelude::*;

use super::config::ModelConfig;
use crate::config::LoraTarget;

/// The role of a parameter; it decides initialisation, weight decay and which optimizer updates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ParamKind {
    /// Embedding table or output head, `[vocab_size, hidden_size]`.
    Embedding,
    /// Linear weight, `[out, in]`.
    Matrix,
    /// RMSNorm weight, `[n]`.
    Norm,
    /// Bias, `[n]`.
    Bias,
}

/// Name and shape of a parameter in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ParamSpec {
    /// Hugging Face tensor name.
    pub name: String,
    /// Shape in the file: one or two dimensions.
    pub shape: Vec<usize>,
    pub kind: ParamKind,
    /// Weight of a layer's linear map that BitLinear quantises where the model has any.
    pub may_quantize: bool,
}

impl ParamSpec {
    /// Shape on the device: vectors are `[1, n]`.
    pub(crate) fn shape2(&self) -> [usize; 2] {
        match self.shape[..] {
            [n] => [1, n],
            [r, c] => [r, c],
            _ => unreachable!("specs are rank 1 or 2"),
        }
    }

    pub(crate) fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Index of a parameter in the flat list.
pub(crate) type ParamIndex = usize;

/// A linear map: weight `[out, in]` and an optional bias `[out]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinearIndex {
    pub weight: ParamIndex,
    pub bias: Option<ParamIndex>,
    /// BitLinear where the model has any; false for modules that keep full precision.
    pub may_quantize: bool,
    /// The adapter beside the weight.
    pub adapter: Option<AdapterIndex>,
}

/// A low-rank adapter: A `[r, in]` and B `[out, r]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AdapterIndex {
    pub a: ParamIndex,
    pub b: ParamIndex,
}

/// Indices of the parameters of one decoder layer.
#[derive(Clone, Debug)]
pub(crate) struct LayerIndex {
    pub input_layernorm: ParamIndex,
    pub q_proj: LinearIndex,
    pub k_proj: LinearIndex,
    pub v_proj: LinearIndex,
    pub o_proj: LinearIndex,
    /// Per-head norm of queries (Qwen3).
    pub q_norm: Option<ParamIndex>,
    /// Per-head norm of keys (Qwen3).
    pub k_norm: Option<ParamIndex>,
    /// Norm before o_proj (BitNet).
    pub attn_sub_norm: Option<ParamIndex>,
    /// Norm before the MLP.
    pub post_attention_layernorm: ParamIndex,
    pub gate_proj: LinearIndex,
    pub up_proj: LinearIndex,
    pub down_proj: LinearIndex,
    /// Norm before down_proj (BitNet).
    pub ffn_sub_norm: Option<ParamIndex>,
    /// All parameters of the layer, as a range of the flat list.
    pub range: Range<ParamIndex>,
}

/// What adapters a model gets.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LoraShape {
    pub rank: usize,
    pub alpha: f64,
    pub targets: Vec<LoraTarget>,
    /// The token whose row of the embedding table is trained.
    pub mask_token_id: usize,
    /// Adapters and the trained row act on the noised tokens of a stream alone, and the table stays
    /// as it is: clean tokens get what the source gives them.
    pub gated: bool,
}

/// The parameters that adapters add to a [`Params`].
#[derive(Clone, Debug)]
pub(crate) struct Lora {
    pub shape: LoraShape,
    /// Trained parameters: A and B of each target, layer by layer, then the mask token's row.
    pub specs: Vec<ParamSpec>,
    /// The adapters of each layer.
    pub layers: Vec<Range<ParamIndex>>,
    /// The mask token's row, `[1, hidden_size]`.
    pub mask_row: ParamIndex,
}

/// The parameter table of an architecture.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    /// The model's own parameters.
    pub specs: Vec<ParamSpec>,
    /// `model.embed_tokens.weight`.
    pub embed_tokens: ParamIndex,
    pub layers: Vec<LayerIndex>,
    /// `model.norm.weight`.
    pub norm: ParamIndex,
    /// `lm_head.weight`, or the embedding table if the head is tied.
    pub lm_head: ParamIndex,
    /// Parameters of adapters, which stand behind the model's own.
    pub lora: Option<Lora>,
}

impl Params {
    /// The parameters of the architecture that `cfg` describes.
    pub(crate) fn new(cfg: &ModelConfig) -> Self {
        let mut specs: Vec<ParamSpec> = Vec::new();
        let mut add = |name: String, shape: Vec<usize>, kind: ParamKind| -> ParamIndex {
            let may_quantize = kind == ParamKind::Matrix && cfg.may_quantize(&name);
            specs.push(ParamSpec { name, shape, kind, may_quantize });
            specs.len() - 1
        };
        let d = cfg.hidden_size;
        let f = cfg.intermediate_size;
        let q = cfg.num_attention_heads * cfg.head_dim;
        let kv = cfg.num_key_value_heads * cfg.head_dim;
        let embed_tokens =
            add("model.embed_tokens.weight".into(), vec![cfg.vocab_size, d], ParamKind::Embedding);
        let mut layers = Vec::with_capacity(cfg.num_hidden_layers);
        for i in 0..cfg.num_hidden_layers {
            let p = format!("model.layers.{i}.");
            let first = add(format!("{p}input_layernorm.weight"), vec![d], ParamKind::Norm);
            let mut linear = |name: &str, out: usize, inp: usize, bias: bool| -> LinearIndex {
                let weight_name = format!("{p}{name}.weight");
                let may_quantize = cfg.may_quantize(&weight_name);
                let weight = add(weight_name, vec![out, inp], ParamKind::Matrix);
                let bias = bias.then(|| add(format!("{p}{name}.bias"), vec![out], ParamKind::Bias));
                LinearIndex { weight, bias, may_quantize, adapter: None }
            };
            let q_proj = linear("self_attn.q_proj", q, d, cfg.qkv_bias);
            let k_proj = linear("self_attn.k_proj", kv, d, cfg.qkv_bias);
            let v_proj = linear("self_attn.v_proj", kv, d, cfg.qkv_bias);
            let o_proj = linear("self_attn.o_proj", d, q, cfg.o_bias);
            let gate_proj = linear("mlp.gate_proj", f, d, cfg.mlp_bias);
            let up_proj = linear("mlp.up_proj", f, d, cfg.mlp_bias);
            let down_proj = linear("mlp.down_proj", d, f, cfg.mlp_bias);
            let mut norm =
                |name: &str, n: usize| add(format!("{p}{name}.weight"), vec![n], ParamKind::Norm);
            let q_norm = cfg.qk_norm.then(|| norm("self_attn.q_norm", cfg.head_dim));
            let k_norm = cfg.qk_norm.then(|| norm("self_attn.k_norm", cfg.head_dim));
            let attn_sub_norm = cfg.sub_norms.then(|| norm("self_attn.attn_sub_norm", q));
            let ffn_sub_norm = cfg.sub_norms.then(|| norm("mlp.ffn_sub_norm", f));
            let post_attention_layernorm = norm("post_attention_layernorm", d);
            layers.push(LayerIndex {
                input_layernorm: first,
                q_proj,
                k_proj,
                v_proj,
                o_proj,
                q_norm,
                k_norm,
                attn_sub_norm,
                post_attention_layernorm,
                gate_proj,
                up_proj,
                down_proj,
                ffn_sub_norm,
                range: first..post_attention_layernorm + 1,
            });
        }
        let norm = add("model.norm.weight".into(), vec![d], ParamKind::Norm);
        let lm_head = if cfg.tie_word_embeddings {
            embed_tokens
        } else {
            add("lm_head.weight".into(), vec![cfg.vocab_size, d], ParamKind::Embedding)
        };
        Params { specs, embed_tokens, layers, norm, lm_head, lora: None }
    }

    /// Number of elements over all parameters.
    pub(crate) fn numel(&self) -> usize {
        self.specs.iter().map(ParamSpec::numel).fold(0, usize::saturating_add)
    }
}

/// Values for every entry of [`Params::specs`], each `[rows, cols]`, then those of adapters.
#[derive(Clone, Debug)]
pub(crate) struct Weights(pub Vec<Tensor<2>>);

impl Weights {
    /// The same values on a gradient tape; those of `trained` are leaves of it.
    pub(crate) fn tracked(&self, trained: Range<ParamIndex>) -> Weights {
        let on_tape = |(i, t): (usize, &Tensor<2>)| {
            let t = t.clone().autodiff();
            if trained.contains(&i) { t.require_grad() } else { t }
        };
        Weights(self.0.iter().enumerate().map(on_tape).collect())
    }
}

impl std::ops::Index<ParamIndex> for Weights {
    type Output = Tensor<2>;

    fn index(&self, i: ParamIndex) -> &Tensor<2> {
        &self.0[i]
    }
}
