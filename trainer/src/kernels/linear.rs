//! Linear maps, with full-precision and with BitLinear weights.
//!
//! Shape legend: T tokens (batch and sequence flattened), I inputs, O outputs.

use burn::prelude::*;

use super::cast::{cast_to, to_f32};

/// `y = x Wᵀ + b` with `x` `[T, I]`, `weight` `[O, I]`, `bias` `[1, O]`.
pub(crate) fn linear(x: Tensor<2>, weight: &Tensor<2>, bias: Option<&Tensor<2>>) -> Tensor<2> {
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
/// Source: BitNet b1.58 as transformers' `AutoBitLinear` computes it online.
pub(crate) fn ternary_weight(w: Tensor<2>) -> Tensor<2> {
    let (codes, scale) = ternary_codes(w);
    codes / scale
}

/// The values -1, 0, 1 of [`ternary_weight`], and the `[1, 1]` scale `s` that they are divided by.
pub(crate) fn ternary_codes(w: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let w = to_f32(w);
    let scale = w.clone().abs().mean().clamp_min(1e-5).recip().reshape([1, 1]);
    ((w * scale.clone()).round().clamp(-1.0, 1.0), scale)
}

/// Int8 activations per token by absmax: `clamp(round(x s), -128, 127) / s` with `s = 127 /
/// max(max|x|, 1e-5)`.
pub(crate) fn int8_activation(x: Tensor<2>) -> Tensor<2> {
    let dtype = x.dtype();
    let x = to_f32(x);
    let scale = x.clone().abs().max_dim(1).clamp_min(1e-5).recip().mul_scalar(127.0);
    cast_to((x * scale.clone()).round().clamp(-128.0, 127.0) / scale, dtype)
}

/// BitLinear: [`linear`] on quantised weights and activations, both with straight-through
/// gradients.
///
/// `lambda` blends between full precision (0) and quantised (1), so that the quantisation can be
/// warmed up.
pub(crate) fn bit_linear(
    x: Tensor<2>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<2>>,
    lambda: f64,
) -> Tensor<2> {
    let x = straight_through(x, int8_activation, lambda);
    let weight = straight_through(weight.clone(), ternary_weight, lambda);
    linear(x, &weight, bias)
}

/// [`bit_linear`] on a weight that is ternary already.
pub(crate) fn ternary_linear(
    x: Tensor<2>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<2>>,
) -> Tensor<2> {
    linear(straight_through(x, int8_activation, 1.0), weight, bias)
}

/// `x + lambda · (quantise(x) - x)`, with the gradient of `x`. With `lambda` = 1 the value is
/// exactly `quantise(x)`.
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
    // the value of (x - x₀) is exactly 0, and it carries the gradient
    (x - inner.autodiff()) + q.autodiff()
}
