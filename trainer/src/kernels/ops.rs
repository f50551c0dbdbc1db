//! The small operations a decoder is made of, in their plain form: RMSNorm, RoPE, linear,
//! BitLinear, masked attention.
//!
//! Shape legend: T tokens (batch and sequence flattened), B rows, S stream length, H query heads, K
//! key/value heads, D head_dim, I inputs, O outputs. Statistics (norms, softmax) are computed in
//! fp32 whatever the compute dtype.

use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::activation::{relu, silu, softmax};

use crate::model::config::Activation;

/// RMSNorm over the last dimension: `x / sqrt(mean(x²) + eps) * weight`.
///
/// `x_TI` is `[T, I]`, `weight` is `[1, I]`. The result has the dtype of `x_TI`.
pub fn rms_norm(x: Tensor<2>, weight: &Tensor<2>, eps: f64) -> Tensor<2> {
    let dtype = x.dtype();
    let x = to_f32(x);
    let scale = x.clone().square().mean_dim(1).add_scalar(eps).sqrt().recip();
    cast_to(x * scale * to_f32(weight.clone()), dtype)
}

/// `y = x Wᵀ + b` with `x` `[T, I]`, `weight` `[O, I]`, `bias` `[1, O]`.
pub fn linear(x: Tensor<2>, weight: &Tensor<2>, bias: Option<&Tensor<2>>) -> Tensor<2> {
    let dtype = x.dtype();
    let y = x.matmul(cast_to(weight.clone(), dtype).transpose());
    match bias {
        Some(b) => y + cast_to(b.clone(), dtype),
        None => y,
    }
}

/// Ternary weights by absmean: `clamp(round(W s), -1, 1) / s` with `s = 1 / max(mean|W|, 1e-5)`,
/// rounding half to even.
///
/// Source: the BitNet b1.58 recipe as transformers' `AutoBitLinear` computes it online.
pub fn ternary_weight(w: Tensor<2>) -> Tensor<2> {
    let (codes, scale) = ternary_codes(w);
    codes / scale
}

/// The values -1, 0, 1 of [`ternary_weight`] and the `[1, 1]` scale `s` they are divided by.
pub fn ternary_codes(w: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let w = to_f32(w);
    let scale = w.clone().abs().mean().clamp_min(1e-5).recip().reshape([1, 1]);
    ((w * scale.clone()).round().clamp(-1.0, 1.0), scale)
}

/// Int8 activations per token by absmax: `clamp(round(x s), -128, 127) / s` with `s = 127 /
/// max(max|x|, 1e-5)`.
pub fn int8_activation(x: Tensor<2>) -> Tensor<2> {
    let dtype = x.dtype();
    let x = to_f32(x);
    let scale = x.clone().abs().max_dim(1).clamp_min(1e-5).recip().mul_scalar(127.0);
    cast_to((x * scale.clone()).round().clamp(-128.0, 127.0) / scale, dtype)
}

/// BitLinear: [`linear`] on quantised weights and activations, both straight-through in the
/// backward pass.
///
/// `lambda` blends between full precision (0) and quantised (1), for a warm-up of the quantisation.
pub fn bit_linear(
    x: Tensor<2>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<2>>,
    lambda: f64,
) -> Tensor<2> {
    let x = straight_through(x, int8_activation, lambda);
    let weight = straight_through(weight.clone(), ternary_weight, lambda);
    linear(x, &weight, bias)
}

/// `x + lambda · (quantise(x) - x)` whose gradient is that of `x`.
///
/// With `lambda` = 1 the value is exactly `quantise(x)`; untracked tensors skip the detour.
fn straight_through(
    x: Tensor<2>,
    quantise: impl Fn(Tensor<2>) -> Tensor<2>,
    lambda: f64,
) -> Tensor<2> {
    if lambda <= 0.0 {
        return x;
    }
    if !x.is_autodiff() {
        let q = quantise(x.clone());
        return if lambda >= 1.0 { q } else { x.clone() + (q - x) * lambda };
    }
    let inner = x.clone().inner();
    let q = quantise(inner.clone());
    let q = if lambda >= 1.0 { q } else { inner.clone() + (q - inner.clone()) * lambda };
    // (x - x₀) is exactly zero in value and carries the gradient.
    (x - inner.autodiff()) + q.autodiff()
}

/// The MLP's gate, `act(gate) * up`, all `[T, n]`.
pub fn gate(gate: Tensor<2>, up: Tensor<2>, activation: Activation) -> Tensor<2> {
    match activation {
        Activation::Silu => silu(gate) * up,
        Activation::Relu2 => relu(gate).square() * up,
    }
}

/// Rotary embedding, rotate-half form, over the last dimension D of `x`; `cos` and `sin` broadcast
/// against it.
pub fn rope<const N: usize>(x: Tensor<N>, cos: &Tensor<N>, sin: &Tensor<N>) -> Tensor<N> {
    let half = x.dims()[N - 1] / 2;
    let first = x.clone().narrow(N - 1, 0, half);
    let second = x.clone().narrow(N - 1, half, half);
    let rotated = Tensor::cat(vec![second.neg(), first], N - 1);
    x * cos.clone() + rotated * sin.clone()
}

/// Attention with materialised scores: the obvious form that faster paths are held against.
///
/// `q` `[B, H, S, D]`, `k`, `v` `[B, K, S', D]`, `hidden` `[B, 1, S, S']` true where a key must not
/// be seen. Every query must see at least one key. Returns `[B, H, S, D]`.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, hidden: &Tensor<4, Bool>) -> Tensor<4> {
    let [b, h, s, d] = q.dims();
    let [_, kv, s2, _] = k.dims();
    let dtype = q.dtype();
    let (k, v) = (repeat_heads(k, h / kv), repeat_heads(v, h / kv));
    let scores = q.matmul(k.swap_dims(2, 3)).mul_scalar(1.0 / (d as f64).sqrt());
    let scores = to_f32_4(scores).mask_fill(hidden.clone().expand([b, h, s, s2]), -1e30);
    let p = softmax(scores, 3);
    let p = if p.dtype() == dtype { p } else { p.cast(dtype) };
    p.matmul(v)
}

/// Repeat each key/value head `n` times: `[B, K, S, D]` → `[B, K·n, S, D]`.
pub fn repeat_heads(x: Tensor<4>, n: usize) -> Tensor<4> {
    if n == 1 {
        return x;
    }
    let [b, k, s, d] = x.dims();
    x.unsqueeze_dim::<5>(2).expand([b, k, n, s, d]).reshape([b, k * n, s, d])
}

/// fp32 copy, or the tensor itself where it is fp32.
pub fn to_f32(x: Tensor<2>) -> Tensor<2> {
    cast_to(x, DType::F32)
}

fn to_f32_4(x: Tensor<4>) -> Tensor<4> {
    if x.dtype() == DType::F32 { x } else { x.cast(DType::F32) }
}

/// The tensor in `dtype`.
pub fn cast_to(x: Tensor<2>, dtype: DType) -> Tensor<2> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}
