//! One decoder for every family: embedding, layers, final norm and head. Weights and attention plan
//! are arguments.
//!
//! In: token ids of a *stream* (for the diffusion objective: clean and noised copies side by side),
//! positions, and which keys each token sees. Out: hidden states `[T, hidden_size]`, and logits for
//! the rows asked for. Noise and blocks are not known here; `diffusion` handles them.
//!
//! Shape legend: B rows, S stream length, T = B·S, H query heads, K key/value heads, D head_dim.

use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::DType;

use super::config::ModelConfig;
use super::lora;
use super::params::{LayerIndex, LinearIndex, Params, Weights};
use crate::attention::{TilePlan, dense, ranges, tiles};
use crate::kernels::cast::{cast_to, to_f32};
use crate::kernels::{gate, linear, rms_norm, rope};

/// Architecture and parameter table. The weights are passed to each call, so that the same code
/// runs with and without a gradient tape.
#[derive(Clone, Debug)]
pub(crate) struct Decoder {
    pub cfg: ModelConfig,
    pub params: Params,
    /// Share of BitLinear quantisation: 0 off, 1 full. Ignored unless the config has BitNet
    /// quantisation.
    pub quant_lambda: f64,
    /// The layers' matrices are already ternary (where they are not trained they are quantised
    /// once), so that only activations are quantised.
    pub ternary_weights: bool,
}

/// What every layer of one forward pass shares.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// B.
    pub batch: usize,
    /// S.
    pub len: usize,
    /// Cosines, `[B, 1, S, D]`, compute dtype.
    pub cos: Tensor<4>,
    /// Sines, `[B, 1, S, D]`.
    pub sin: Tensor<4>,
    /// Which keys each token sees.
    pub mask: AttentionPlan,
    /// Compute dtype of activations and matmuls.
    pub dtype: DType,
    /// Factors on the output of adapters, one for each token, `[T, 1]`. Without them adapters act
    /// everywhere, and those that act on masks alone nowhere.
    pub gate: Option<Tensor<2>>,
}

/// Which keys each query sees, in the form that the attention implementation needs.
#[derive(Clone, Debug)]
pub(crate) enum AttentionPlan {
    /// A mask `[B, 1, S, S]`, true = hidden ([`dense`]).
    Dense(Tensor<4, Bool>),
    /// Key ranges per query, `[B · S · 4]` ([`ranges::table`]).
    Ranges(Tensor<1, Int>),
    /// Key ranges per run of queries, over the streams end to end (CPU and fp32 only, [`tiles`]).
    Tiles(Arc<TilePlan>),
}

impl Context {
    /// The same context, for tensors on a gradient tape.
    pub(crate) fn tracked(&self) -> Context {
        Context {
            batch: self.batch,
            len: self.len,
            cos: self.cos.clone().autodiff(),
            sin: self.sin.clone().autodiff(),
            mask: match &self.mask {
                AttentionPlan::Dense(m) => AttentionPlan::Dense(m.clone().autodiff()),
                AttentionPlan::Ranges(r) => AttentionPlan::Ranges(r.clone().autodiff()),
                AttentionPlan::Tiles(plan) => AttentionPlan::Tiles(plan.clone()),
            },
            dtype: self.dtype,
            gate: self.gate.clone().map(Tensor::autodiff),
        }
    }

    /// Whether the single-pass operations of [`crate::kernels`] can run: like tiles, they need the
    /// CPU and fp32.
    fn fused(&self) -> bool {
        matches!(self.mask, AttentionPlan::Tiles(_))
    }
}

impl Decoder {
    pub(crate) fn new(cfg: ModelConfig) -> Self {
        let params = Params::new(&cfg);
        Decoder { cfg, params, quant_lambda: 1.0, ternary_weights: false }
    }

    /// Embeddings of token ids `[T]` → `[T, hidden_size]` in the compute dtype; with a gate the
    /// trained row at the tokens where it is 1.
    pub(crate) fn embed(&self, w: &Weights, ids: Tensor<1, Int>, cx: &Context) -> Tensor<2> {
        let x = cast_to(w[self.params.embed_tokens].clone().select(0, ids), cx.dtype);
        match (&self.params.lora, &cx.gate) {
            (Some(lora), Some(gate)) if lora.shape.gated => {
                let row = cast_to(w[lora.mask_row].clone(), cx.dtype);
                let others = gate.clone().neg().add_scalar(1.0);
                x * others + row * gate.clone()
            }
            _ => x,
        }
    }

    /// One decoder layer, `[T, hidden_size]` → `[T, hidden_size]`.
    pub(crate) fn layer(&self, w: &Weights, i: usize, x: Tensor<2>, cx: &Context) -> Tensor<2> {
        let l = &self.params.layers[i];
        let x = x.clone() + self.attention_block(w, l, x, cx);
        x.clone() + self.mlp(w, l, x, cx)
    }

    /// Queries, keys and values after norm and RoPE: `[B, H, S, D]`, `[B, K, S, D]`, `[B, K, S,
    /// D]`.
    pub(crate) fn qkv(
        &self,
        w: &Weights,
        l: &LayerIndex,
        x: Tensor<2>,
        cx: &Context,
    ) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
        let (q, k, v) = self.qkv_flat(w, l, x, cx);
        let rows = |t: Tensor<3>| {
            let [_, n, d] = t.dims();
            t.reshape([cx.batch, cx.len, n, d]).swap_dims(1, 2)
        };
        (rows(q), rows(k), rows(v))
    }

    /// Queries, keys and values after norm and RoPE, in stream order: `[T, H, D]`, `[T, K, D]`,
    /// `[T, K, D]`.
    pub(crate) fn qkv_flat(
        &self,
        w: &Weights,
        l: &LayerIndex,
        x: Tensor<2>,
        cx: &Context,
    ) -> (Tensor<3>, Tensor<3>, Tensor<3>) {
        let c = &self.cfg;
        let (t, d) = (cx.batch * cx.len, c.head_dim);
        let fused = cx.fused();
        let h = self.norm(x, &w[l.input_layernorm], fused);
        let (cos, sin) = (cx.cos.clone().reshape([t, 1, d]), cx.sin.clone().reshape([t, 1, d]));
        let heads = |y: Tensor<2>, n: usize, norm: Option<usize>| {
            let y = match norm {
                Some(p) => self.norm(y.reshape([t * n, d]), &w[p], fused),
                None => y,
            };
            y.reshape([t, n, d])
        };
        let q = heads(self.project(w, &l.q_proj, h.clone(), cx), c.num_attention_heads, l.q_norm);
        let k = heads(self.project(w, &l.k_proj, h.clone(), cx), c.num_key_value_heads, l.k_norm);
        let v = heads(self.project(w, &l.v_proj, h, cx), c.num_key_value_heads, None);
        let rotate = |x| {
            if fused { rope::fused(x, &cos, &sin) } else { rope::composed(x, &cos, &sin) }
        };
        (rotate(q), rotate(k), v)
    }

    fn attention_block(
        &self,
        w: &Weights,
        l: &LayerIndex,
        x: Tensor<2>,
        cx: &Context,
    ) -> Tensor<2> {
        match &cx.mask {
            AttentionPlan::Dense(hidden) => {
                let (q, k, v) = self.qkv(w, l, x, cx);
                self.attention_out(w, l, dense::attention(q, k, v, hidden), cx)
            }
            AttentionPlan::Ranges(table) => {
                let (q, k, v) = self.qkv(w, l, x, cx);
                self.attention_out(w, l, ranges::attention(q, k, v, table), cx)
            }
            AttentionPlan::Tiles(plan) => {
                let (q, k, v) = self.qkv_flat(w, l, x, cx);
                let a = tiles::attention(q, k, v, plan);
                let [t, h, d] = a.dims();
                self.attention_out_flat(w, l, a.reshape([t, h * d]), cx)
            }
        }
    }

    /// Output projection of attention, `[B, H, S, D]` → `[T, hidden_size]`.
    fn attention_out(&self, w: &Weights, l: &LayerIndex, a: Tensor<4>, cx: &Context) -> Tensor<2> {
        let [b, h, s, d] = a.dims();
        self.attention_out_flat(w, l, a.swap_dims(1, 2).reshape([b * s, h * d]), cx)
    }

    pub(crate) fn attention_out_flat(
        &self,
        w: &Weights,
        l: &LayerIndex,
        a: Tensor<2>,
        cx: &Context,
    ) -> Tensor<2> {
        let a = match l.attn_sub_norm {
            Some(p) => rms_norm::composed(a, &w[p], self.cfg.rms_norm_eps),
            None => a,
        };
        self.project(w, &l.o_proj, a, cx)
    }

    fn norm(&self, x: Tensor<2>, weight: &Tensor<2>, fused: bool) -> Tensor<2> {
        let eps = self.cfg.rms_norm_eps;
        if fused { rms_norm::fused(x, weight, eps) } else { rms_norm::composed(x, weight, eps) }
    }

    /// The norm and the gated MLP of a layer, `[T, hidden_size]` → `[T, hidden_size]`.
    pub(crate) fn mlp(&self, w: &Weights, l: &LayerIndex, x: Tensor<2>, cx: &Context) -> Tensor<2> {
        let fused = cx.fused();
        let h = self.norm(x, &w[l.post_attention_layernorm], fused);
        let gated = self.project(w, &l.gate_proj, h.clone(), cx);
        let up = self.project(w, &l.up_proj, h, cx);
        let a = if fused {
            gate::fused(gated, up, self.cfg.activation)
        } else {
            gate::composed(gated, up, self.cfg.activation)
        };
        let a = match l.ffn_sub_norm {
            Some(p) => self.norm(a, &w[p], fused),
            None => a,
        };
        self.project(w, &l.down_proj, a, cx)
    }

    /// A linear map with its adapter, which reads the input as it is, not quantised.
    fn project(&self, w: &Weights, l: &LinearIndex, x: Tensor<2>, cx: &Context) -> Tensor<2> {
        match (&self.params.lora, l.adapter) {
            (Some(lora), Some(at)) if cx.gate.is_some() || !lora.shape.gated => {
                let own = self.linear(w, l, x.clone());
                own + lora::adapted(x, &w[at.a], &w[at.b], lora.scale(), cx.gate.as_ref())
            }
            _ => self.linear(w, l, x),
        }
    }

    fn linear(&self, w: &Weights, l: &LinearIndex, x: Tensor<2>) -> Tensor<2> {
        let bias = l.bias.map(|b| &w[b]);
        match (self.cfg.quantization.is_some() && l.may_quantize, self.ternary_weights) {
            (false, _) => linear::linear(x, &w[l.weight], bias),
            (true, true) => linear::ternary_linear(x, &w[l.weight], bias),
            (true, false) => linear::bit_linear(x, &w[l.weight], bias, self.quant_lambda),
        }
    }

    /// Final norm and head, `[N, hidden_size]` → fp32 logits `[N, vocab_size]`.
    pub(crate) fn logits(&self, w: &Weights, h: Tensor<2>) -> Tensor<2> {
        to_f32(linear::linear(self.final_norm(w, h), &w[self.params.lm_head], None))
    }

    /// The norm before the head, `[N, hidden_size]` → `[N, hidden_size]`.
    pub(crate) fn final_norm(&self, w: &Weights, h: Tensor<2>) -> Tensor<2> {
        rms_norm::composed(h, &w[self.params.norm], self.cfg.rms_norm_eps)
    }

    /// All layers in order, `[T, hidden_size]` → `[T, hidden_size]` (before the final norm).
    pub(crate) fn hidden(&self, w: &Weights, ids: Tensor<1, Int>, cx: &Context) -> Tensor<2> {
        self.layers(w, self.embed(w, ids, cx), cx)
    }

    /// All layers in order on embeddings, `[T, hidden_size]` → `[T, hidden_size]`.
    pub(crate) fn layers(&self, w: &Weights, x: Tensor<2>, cx: &Context) -> Tensor<2> {
        (0..self.params.layers.len()).fold(x, |x, i| self.layer(w, i, x, cx))
    }

    /// Cosine and sine tables for the positions of all stream tokens, `batch · len` of them: two
    /// `[B, 1, S, D]` tensors in `dtype`.
    pub(crate) fn rope_tables(
        &self,
        positions: &[i32],
        batch: usize,
        len: usize,
        dtype: DType,
        device: &Device,
    ) -> (Tensor<4>, Tensor<4>) {
        let d = self.cfg.head_dim;
        let half = d / 2;
        let inv: Vec<f32> = self.cfg.inv_freq().iter().map(|f| *f as f32).collect();
        let (mut cos, mut sin) = (vec![0f32; positions.len() * d], vec![0f32; positions.len() * d]);
        for (t, &p) in positions.iter().enumerate() {
            let (c, s) = (&mut cos[t * d..(t + 1) * d], &mut sin[t * d..(t + 1) * d]);
            for i in 0..half {
                // an fp32 product as in transformers, so that large positions round the same way
                let angle = p as f32 * inv[i];
                let (sn, cs) = (angle as f64).sin_cos();
                c[i] = cs as f32;
                s[i] = sn as f32;
            }
            c.copy_within(0..half, half);
            s.copy_within(0..half, half);
        }
        let up = |v: Vec<f32>| {
            let t = Tensor::<4>::from_data(
                TensorData::new(v, [batch, 1, len, d]),
                (device, DType::F32),
            );
            if dtype == DType::F32 { t } else { t.cast(dtype) }
        };
        (up(cos), up(sin))
    }
}
