//! The CPU kernels of [`super::tiles`]: one tile, one head at a time, matrix products by the `gemm`
//! crate.
//!
//! Tensors are row-major `[T, heads, D]` fp32. A task is (group of tiles, key/value head): it alone
//! writes the outputs of its queries and the key and value gradients of its keys, which is what
//! makes the shared writes below sound and the result independent of the thread count.

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, TensorData};
use rayon::prelude::*;

use super::tiles::{Tile, TilePlan};
use crate::kernels::simd;

/// A matrix inside a buffer: `rows × cols` with strides in elements.
#[derive(Clone, Copy)]
struct View {
    ptr: *mut f32,
    row: isize,
    col: isize,
}

impl View {
    fn t(self) -> View {
        View { ptr: self.ptr, row: self.col, col: self.row }
    }
}

/// `dst (m×n) = [dst +] alpha · a (m×k) · b (k×n)`.
///
/// # Safety
/// The views must lie inside live buffers, and nothing else may touch `dst` meanwhile.
#[allow(clippy::too_many_arguments)]
unsafe fn matmul(
    m: usize,
    n: usize,
    k: usize,
    dst: View,
    accumulate: bool,
    a: View,
    b: View,
    alpha: f32,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    // SAFETY: passed on from the caller.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.ptr,
            dst.col,
            dst.row,
            accumulate,
            a.ptr.cast_const(),
            a.col,
            a.row,
            b.ptr.cast_const(),
            b.col,
            b.row,
            1.0,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// A buffer of `[T, heads, D]` that tasks write disjoint parts of.
#[derive(Clone, Copy)]
struct Shared {
    ptr: *mut f32,
    heads: usize,
    dim: usize,
}

// SAFETY: tasks touch disjoint rows and heads (see the module text); reads of inputs are shared and
// never written.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// The rows from `first` on of one head, as a `· × D` matrix.
    fn at(&self, first: usize, head: usize) -> View {
        // SAFETY: `first` and `head` are within the tensor by the plan's construction.
        View {
            ptr: unsafe { self.ptr.add((first * self.heads + head) * self.dim) },
            row: (self.heads * self.dim) as isize,
            col: 1,
        }
    }
}

struct Input {
    tensor: FlexTensor,
    tokens: usize,
    heads: usize,
    dim: usize,
}

impl Input {
    fn new(t: FlexTensor) -> Self {
        let t = t.to_contiguous();
        let shape = t.layout().shape();
        let (tokens, heads, dim) = (shape[0], shape[1], shape[2]);
        assert_eq!(t.dtype(), DType::F32, "tile attention computes in fp32");
        Input { tensor: t, tokens, heads, dim }
    }

    fn shared(&self) -> Shared {
        let values: &[f32] = self.tensor.storage();
        Shared { ptr: values.as_ptr().cast_mut(), heads: self.heads, dim: self.dim }
    }
}

/// Scratch of one task.
#[derive(Default)]
struct Scratch {
    p: Vec<f32>,
    dp: Vec<f32>,
}

fn scratch_view(buffer: &mut Vec<f32>, rows: usize, cols: usize) -> View {
    if buffer.len() < rows * cols {
        buffer.resize(rows * cols, 0.0);
    }
    View { ptr: buffer.as_mut_ptr(), row: cols as isize, col: 1 }
}

fn columns(v: View, first: usize) -> View {
    // SAFETY: callers stay within the row length of the scratch matrix.
    View { ptr: unsafe { v.ptr.add(first) }, ..v }
}

/// `p = softmax(scale · Q Kᵀ)` of one tile and head; returns the `len × keys` matrix in `buffer`.
///
/// # Safety
/// The tile lies inside the tensors.
unsafe fn probabilities(
    tile: &Tile,
    q: &Shared,
    k: &Shared,
    head: usize,
    kv: usize,
    scale: f32,
    buffer: &mut Vec<f32>,
) -> (View, usize) {
    let keys = tile.prefix.1 + tile.own.1;
    let p = scratch_view(buffer, tile.len, keys);
    let queries = q.at(tile.query, head);
    // SAFETY: inputs are only read; `p` is this task's scratch.
    unsafe {
        matmul(
            tile.len,
            tile.prefix.1,
            q.dim,
            p,
            false,
            queries,
            k.at(tile.prefix.0, kv).t(),
            scale,
        );
        matmul(
            tile.len,
            tile.own.1,
            q.dim,
            columns(p, tile.prefix.1),
            false,
            queries,
            k.at(tile.own.0, kv).t(),
            scale,
        );
    }
    for (i, row) in buffer[..tile.len * keys].chunks_exact_mut(keys).enumerate() {
        let seen = if tile.causal { tile.prefix.1 + i + 1 } else { keys };
        simd::softmax(&mut row[..seen]);
        row[seen..].fill(0.0);
    }
    (p, keys)
}

fn tasks(plan: &TilePlan, kv_heads: usize) -> Vec<(usize, usize)> {
    (0..plan.groups.len()).flat_map(|g| (0..kv_heads).map(move |h| (g, h))).collect()
}

fn output(values: Vec<f32>, tokens: usize, heads: usize, dim: usize) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, [tokens, heads, dim]))
}

/// `[T, H, D]` attention output.
pub fn forward(q: FlexTensor, k: FlexTensor, v: FlexTensor, plan: &TilePlan) -> FlexTensor {
    let (q, k, v) = (Input::new(q), Input::new(k), Input::new(v));
    assert_eq!(q.tokens, plan.tokens, "the plan covers {} tokens, q has {}", plan.tokens, q.tokens);
    let mut out = vec![0f32; q.tokens * q.heads * q.dim];
    let o = Shared { ptr: out.as_mut_ptr(), heads: q.heads, dim: q.dim };
    let (qs, ks, vs) = (q.shared(), k.shared(), v.shared());
    let scale = 1.0 / (q.dim as f32).sqrt();
    let group = q.heads / k.heads;
    tasks(plan, k.heads).into_par_iter().for_each_init(Scratch::default, |scratch, (g, kv)| {
        for tile in &plan.groups[g] {
            for head in kv * group..(kv + 1) * group {
                // SAFETY: this task alone writes the rows of its tiles' queries in this head.
                unsafe {
                    let (p, _) = probabilities(tile, &qs, &ks, head, kv, scale, &mut scratch.p);
                    let dst = o.at(tile.query, head);
                    matmul(
                        tile.len,
                        q.dim,
                        tile.prefix.1,
                        dst,
                        false,
                        p,
                        vs.at(tile.prefix.0, kv),
                        1.0,
                    );
                    matmul(
                        tile.len,
                        q.dim,
                        tile.own.1,
                        dst,
                        tile.prefix.1 > 0,
                        columns(p, tile.prefix.1),
                        vs.at(tile.own.0, kv),
                        1.0,
                    );
                }
            }
        }
    });
    output(out, q.tokens, q.heads, q.dim)
}

/// Gradients of q, k, v.
pub fn backward(
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    grad: FlexTensor,
    plan: &TilePlan,
) -> (FlexTensor, FlexTensor, FlexTensor) {
    let (q, k, v, g) = (Input::new(q), Input::new(k), Input::new(v), Input::new(grad));
    let mut dq = vec![0f32; q.tokens * q.heads * q.dim];
    let mut dk = vec![0f32; k.tokens * k.heads * k.dim];
    let mut dv = vec![0f32; v.tokens * v.heads * v.dim];
    let dqs = Shared { ptr: dq.as_mut_ptr(), heads: q.heads, dim: q.dim };
    let dks = Shared { ptr: dk.as_mut_ptr(), heads: k.heads, dim: k.dim };
    let dvs = Shared { ptr: dv.as_mut_ptr(), heads: v.heads, dim: v.dim };
    let (qs, ks, vs, gs) = (q.shared(), k.shared(), v.shared(), g.shared());
    let scale = 1.0 / (q.dim as f32).sqrt();
    let group = q.heads / k.heads;
    let d = q.dim;
    tasks(plan, k.heads).into_par_iter().for_each_init(Scratch::default, |scratch, (at, kv)| {
        for tile in &plan.groups[at] {
            for head in kv * group..(kv + 1) * group {
                // SAFETY: this task alone writes the query rows of its tiles in this head and, in
                // this key/value head, the key rows of its group.
                unsafe {
                    let (p, keys) = probabilities(tile, &qs, &ks, head, kv, scale, &mut scratch.p);
                    let go = gs.at(tile.query, head);
                    let dp = scratch_view(&mut scratch.dp, tile.len, keys);
                    let (pre, own) = (tile.prefix, tile.own);
                    // dP = dO Vᵀ
                    matmul(tile.len, pre.1, d, dp, false, go, vs.at(pre.0, kv).t(), 1.0);
                    matmul(
                        tile.len,
                        own.1,
                        d,
                        columns(dp, pre.1),
                        false,
                        go,
                        vs.at(own.0, kv).t(),
                        1.0,
                    );
                    // dV += Pᵀ dO
                    matmul(pre.1, d, tile.len, dvs.at(pre.0, kv), true, p.t(), go, 1.0);
                    matmul(
                        own.1,
                        d,
                        tile.len,
                        dvs.at(own.0, kv),
                        true,
                        columns(p, pre.1).t(),
                        go,
                        1.0,
                    );
                    // dS = P ∘ (dP - rowsum(P ∘ dP)), in place of dP
                    let n = tile.len * keys;
                    for (pr, dr) in scratch.p[..n]
                        .chunks_exact(keys)
                        .zip(scratch.dp[..n].chunks_exact_mut(keys))
                    {
                        let dot: f32 = pr.iter().zip(dr.iter()).map(|(a, b)| a * b).sum();
                        dr.iter_mut().zip(pr).for_each(|(b, a)| *b = a * (*b - dot));
                    }
                    // dQ = scale · dS K, dK += scale · dSᵀ Q
                    let dst = dqs.at(tile.query, head);
                    matmul(tile.len, d, pre.1, dst, false, dp, ks.at(pre.0, kv), scale);
                    matmul(
                        tile.len,
                        d,
                        own.1,
                        dst,
                        pre.1 > 0,
                        columns(dp, pre.1),
                        ks.at(own.0, kv),
                        scale,
                    );
                    let queries = qs.at(tile.query, head);
                    matmul(pre.1, d, tile.len, dks.at(pre.0, kv), true, dp.t(), queries, scale);
                    matmul(
                        own.1,
                        d,
                        tile.len,
                        dks.at(own.0, kv),
                        true,
                        columns(dp, pre.1).t(),
                        queries,
                        scale,
                    );
                }
            }
        }
    });
    (
        output(dq, q.tokens, q.heads, d),
        output(dk, k.tokens, k.heads, d),
        output(dv, v.tokens, v.heads, d),
    )
}
