//! Attention with materialised scores under a dense mask, on any device and dtype.
//!
//! Shape legend: B rows, S stream length, H query heads, K key/value heads, D head_dim.

use burn::prelude::*;
use burn::tensor::activation::softmax;

use crate::kernels::cast::{cast_to, to_f32};

/// The reference implementation that tests compare the other two with.
///
/// `q` `[B, H, S, D]`, `k`, `v` `[B, K, S', D]`, `hidden` `[B, 1, S, S']` true where the key is
/// hidden from the query. Every query must see at least one key. Returns `[B, H, S, D]`.
pub(crate) fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    hidden: &Tensor<4, Bool>,
) -> Tensor<4> {
    let [b, h, s, d] = q.dims();
    let [_, kv, s2, _] = k.dims();
    let dtype = q.dtype();
    let (k, v) = (repeat_heads(k, h / kv), repeat_heads(v, h / kv));
    let scores = q.matmul(k.swap_dims(2, 3)).mul_scalar(1.0 / (d as f64).sqrt());
    let scores = to_f32(scores).mask_fill(hidden.clone().expand([b, h, s, s2]), -1e30);
    let p = softmax(scores, 3);
    cast_to(p, dtype).matmul(v)
}

/// Repeat each key/value head `n` times: `[B, K, S, D]` → `[B, K·n, S, D]`.
pub(crate) fn repeat_heads(x: Tensor<4>, n: usize) -> Tensor<4> {
    if n == 1 {
        return x;
    }
    let [b, k, s, d] = x.dims();
    x.unsqueeze_dim::<5>(2).expand([b, k, n, s, d]).reshape([b, k * n, s, d])
}
