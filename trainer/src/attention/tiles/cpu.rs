//! Attention by tiles on the CPU: one tile and one head at a time, matrix products by the `gemm`
//! crate.
//!
//! Tensors are row-major `[T, heads, D]` fp32. A task is a group of tiles in one key/value head and
//! its query heads. It alone writes the outputs of its queries and the key and value gradients of
//! its keys, because a [`TilePlan`] covers every query once and its groups share no keys.
#![allow(unsafe_code, reason = "tasks write disjoint parts of one buffer through raw pointers")]

use std::sync::Arc;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::TileAttentionOp;
use crate::attention::plan::{KeyRange, Tile, TilePlan};
use crate::kernels::flex::{Rows, tensor};
use crate::kernels::simd;

impl TileAttentionOp for Flex {
    fn tile_attention(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        plan: Arc<TilePlan>,
    ) -> FlexTensor {
        forward(&Inputs::new(q, k, v, &plan))
    }

    fn tile_attention_backward(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        grad: FlexTensor,
        plan: Arc<TilePlan>,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let grad = Rows::new(grad);
        let inputs = Inputs::new(q, k, v, &plan);
        assert_eq!(grad.shape, inputs.q.shape, "the gradient has the shape of the output");
        backward(&inputs, &grad)
    }
}

/// Queries, keys and values that fit each other and the plan.
struct Inputs<'a> {
    q: Rows,
    k: Rows,
    v: Rows,
    plan: &'a TilePlan,
    kv_heads: usize,
    /// Query heads per key/value head.
    group: usize,
    scale: f32,
}

impl<'a> Inputs<'a> {
    fn new(q: FlexTensor, k: FlexTensor, v: FlexTensor, plan: &'a TilePlan) -> Self {
        let (q, k, v) = (Rows::new(q), Rows::new(k), Rows::new(v));
        let (heads, kv_heads, dim) = (q.shape[1], k.shape[1], q.shape[2]);
        assert_eq!(q.shape[0], plan.queries(), "queries of q and of the plan");
        assert_eq!(k.shape, [plan.keys(), kv_heads, dim], "k is [keys of the plan, K, D of q]");
        assert_eq!(v.shape, k.shape, "k and v have the same shape");
        assert!(kv_heads > 0 && heads % kv_heads == 0, "{heads} heads, {kv_heads} of keys");
        let (group, scale) = (heads / kv_heads, 1.0 / (dim as f32).sqrt());
        Inputs { q, k, v, plan, kv_heads, group, scale }
    }

    /// Runs `task` for every group of tiles and key/value head, in parallel; it gets the tiles, the
    /// key/value head, its query heads and scratch space.
    fn for_each_task(
        &self,
        task: impl Fn(&[Tile], usize, std::ops::Range<usize>, &mut Scratch) + Sync + Send,
    ) {
        let groups = self.plan.groups();
        let tasks: Vec<(usize, usize)> =
            (0..groups.len()).flat_map(|g| (0..self.kv_heads).map(move |kv| (g, kv))).collect();
        tasks.into_par_iter().for_each_init(Scratch::default, |scratch, (g, kv)| {
            task(&groups[g], kv, kv * self.group..(kv + 1) * self.group, scratch);
        });
    }
}

/// A matrix inside a buffer, strides in elements. Every constructor checks that all `rows × cols`
/// elements lie inside the buffer it was made from.
#[derive(Clone, Copy)]
struct Matrix {
    ptr: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: isize,
    col_stride: isize,
}

impl Matrix {
    fn transposed(self) -> Matrix {
        Matrix {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// The columns `first..first + cols` of a row-major matrix.
    fn columns(self, first: usize, cols: usize) -> Matrix {
        assert!(first + cols <= self.cols && self.col_stride == 1);
        // SAFETY: the assertion keeps the pointer inside the first row, or one past its end where
        // `cols` is 0.
        Matrix { ptr: unsafe { self.ptr.add(first) }, cols, ..self }
    }
}

/// `dst = [dst +] alpha · a · b`. Nothing is written where a dimension is 0.
///
/// # Safety
/// The buffers of the matrices are live, `dst` is writable and overlaps neither `a` nor `b`, and no
/// other thread accesses `dst` or writes `a` or `b` meanwhile.
unsafe fn matmul(dst: Matrix, accumulate: bool, a: Matrix, b: Matrix, alpha: f32) {
    let (m, n, k) = (dst.rows, dst.cols, a.cols);
    assert!(a.rows == m && b.rows == k && b.cols == n, "shapes of a matrix product");
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    // SAFETY: a `Matrix` lies inside its buffer, the assertion makes the shapes fit, and the caller
    // guarantees that the buffers are live and `dst` is not shared.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.ptr,
            dst.col_stride,
            dst.row_stride,
            accumulate,
            a.ptr.cast_const(),
            a.col_stride,
            a.row_stride,
            b.ptr.cast_const(),
            b.col_stride,
            b.row_stride,
            1.0,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// A buffer of `[tokens, heads, dim]` that tasks access at the same time.
#[derive(Clone, Copy)]
struct Shared {
    ptr: *mut f32,
    tokens: usize,
    heads: usize,
    dim: usize,
}

// SAFETY: a `Shared` is a pointer and sizes. All accesses through it are in `matmul`, whose callers
// guarantee that no two threads write, or read and write, the same elements.
unsafe impl Send for Shared {}
// SAFETY: as for `Send`.
unsafe impl Sync for Shared {}

impl Shared {
    /// An input; it is never written, although the pointer would allow it.
    fn input(rows: &Rows) -> Shared {
        let ptr = rows.values().as_ptr().cast_mut();
        Shared { ptr, tokens: rows.shape[0], heads: rows.shape[1], dim: rows.shape[2] }
    }

    /// An output in the shape of `rows`.
    fn output(values: &mut [f32], rows: &Rows) -> Shared {
        assert_eq!(values.len(), rows.values().len());
        Shared { ptr: values.as_mut_ptr(), ..Shared::input(rows) }
    }

    /// One head of `len` tokens from `first` on, `[len, dim]`.
    fn head(&self, first: usize, len: usize, head: usize) -> Matrix {
        assert!(first + len <= self.tokens && head < self.heads);
        Matrix {
            // By the assertion all `len` rows are inside the buffer of tokens · heads · dim
            // elements. Without rows the pointer may be past the end, hence `wrapping_add`.
            ptr: self.ptr.wrapping_add((first * self.heads + head) * self.dim),
            rows: len,
            cols: self.dim,
            row_stride: (self.heads * self.dim) as isize,
            col_stride: 1,
        }
    }

    /// One head of a range of keys, `[len, dim]`.
    fn keys(&self, range: KeyRange, head: usize) -> Matrix {
        self.head(range.start, range.len, head)
    }
}

/// Buffers that a thread uses again for each of its tiles.
#[derive(Default)]
struct Scratch {
    p: Vec<f32>,
    dp: Vec<f32>,
}

/// A row-major `rows × cols` matrix at the start of `buffer`, which grows if needed.
fn scratch_matrix(buffer: &mut Vec<f32>, rows: usize, cols: usize) -> Matrix {
    if buffer.len() < rows * cols {
        buffer.resize(rows * cols, 0.0);
    }
    Matrix { ptr: buffer.as_mut_ptr(), rows, cols, row_stride: cols as isize, col_stride: 1 }
}

/// `a · prefixᵀ | a · ownᵀ` into the `len × keys` matrix `dst`.
///
/// # Safety
/// As for [`matmul`].
unsafe fn times_keys(dst: Matrix, a: Matrix, keys: &Shared, tile: &Tile, kv: usize, alpha: f32) {
    let (prefix, own) = (tile.prefix(), tile.own());
    // SAFETY: passed on from the caller; the two column ranges of `dst` are apart.
    unsafe {
        let part = dst.columns(0, prefix.len);
        matmul(part, false, a, keys.keys(prefix, kv).transposed(), alpha);
        let part = dst.columns(prefix.len, own.len);
        matmul(part, false, a, keys.keys(own, kv).transposed(), alpha);
    }
}

/// `dst = alpha · (a of the prefix · prefix + a of the own keys · own)` for a `len × keys` matrix.
///
/// # Safety
/// As for [`matmul`].
unsafe fn over_keys(dst: Matrix, a: Matrix, keys: &Shared, tile: &Tile, kv: usize, alpha: f32) {
    let (prefix, own) = (tile.prefix(), tile.own());
    // SAFETY: passed on from the caller.
    unsafe {
        matmul(dst, false, a.columns(0, prefix.len), keys.keys(prefix, kv), alpha);
        let own_part = a.columns(prefix.len, own.len);
        matmul(dst, prefix.len > 0, own_part, keys.keys(own, kv), alpha);
    }
}

/// Adds `alpha · aᵀ · rows` to the gradients of both key ranges, for a `len × keys` matrix.
///
/// # Safety
/// As for [`matmul`].
unsafe fn add_to_keys(keys: &Shared, tile: &Tile, kv: usize, a: Matrix, rows: Matrix, alpha: f32) {
    let (prefix, own) = (tile.prefix(), tile.own());
    // SAFETY: passed on from the caller.
    unsafe {
        let part = a.columns(0, prefix.len).transposed();
        matmul(keys.keys(prefix, kv), true, part, rows, alpha);
        let part = a.columns(prefix.len, own.len).transposed();
        matmul(keys.keys(own, kv), true, part, rows, alpha);
    }
}

/// `softmax(scale · Q Kᵀ)` of one tile and head, a `len × keys` matrix in `buffer`.
fn probabilities(
    tile: &Tile,
    queries: Matrix,
    keys: &Shared,
    kv: usize,
    scale: f32,
    buffer: &mut Vec<f32>,
) -> Matrix {
    let p = scratch_matrix(buffer, tile.len(), tile.keys());
    // SAFETY: `queries` and `keys` are inputs, which are only read while tasks run; `p` is scratch
    // space of this thread.
    unsafe { times_keys(p, queries, keys, tile, kv, scale) };
    let rows = buffer[..tile.len() * tile.keys()].chunks_exact_mut(tile.keys());
    for (i, row) in rows.enumerate() {
        let (visible, hidden) = row.split_at_mut(tile.prefix().len + tile.own_seen_by(i));
        simd::softmax(visible);
        hidden.fill(0.0);
    }
    p
}

/// `[T, H, D]` attention output.
fn forward(inputs: &Inputs) -> FlexTensor {
    let mut out = vec![0f32; inputs.q.values().len()];
    let o = Shared::output(&mut out, &inputs.q);
    let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(Shared::input);
    inputs.for_each_task(|tiles, kv, heads, scratch| {
        for tile in tiles {
            for head in heads.clone() {
                let queries = q.head(tile.query(), tile.len(), head);
                let p = probabilities(tile, queries, &k, kv, inputs.scale, &mut scratch.p);
                let dst = o.head(tile.query(), tile.len(), head);
                // SAFETY: `v` is an input, `p` is scratch space of this thread, and only this task
                // writes the outputs of its tiles' queries in its heads: `TilePlan::new` checked
                // that every query belongs to one tile.
                unsafe { over_keys(dst, p, &v, tile, kv, 1.0) };
            }
        }
    });
    tensor(out, &inputs.q.shape)
}

/// Gradients of q, k and v.
fn backward(inputs: &Inputs, grad: &Rows) -> (FlexTensor, FlexTensor, FlexTensor) {
    let Inputs { q, k, v, scale, .. } = inputs;
    let [mut dq, mut dk, mut dv] = [q, k, v].map(|rows| vec![0f32; rows.values().len()]);
    let (dqs, dks, dvs) =
        (Shared::output(&mut dq, q), Shared::output(&mut dk, k), Shared::output(&mut dv, v));
    let [qs, ks, vs, gs] = [q, k, v, grad].map(Shared::input);
    inputs.for_each_task(|tiles, kv, heads, scratch| {
        for tile in tiles {
            for head in heads.clone() {
                let queries = qs.head(tile.query(), tile.len(), head);
                let p = probabilities(tile, queries, &ks, kv, *scale, &mut scratch.p);
                let d_out = gs.head(tile.query(), tile.len(), head);
                let dp = scratch_matrix(&mut scratch.dp, tile.len(), tile.keys());
                // dP = dO Vᵀ, dV += Pᵀ dO
                // SAFETY: `vs` and `gs` are inputs and `p` and `dp` are scratch space of this
                // thread. Only this task writes the gradients of its group's keys in its key/value
                // head: `TilePlan::new` checked that groups share no keys.
                unsafe {
                    times_keys(dp, d_out, &vs, tile, kv, 1.0);
                    add_to_keys(&dvs, tile, kv, p, d_out, 1.0);
                }
                // dS = P ∘ (dP - rowsum(P ∘ dP)), in place of dP
                let n = tile.len() * tile.keys();
                let rows = scratch.p[..n].chunks_exact(tile.keys());
                for (p, dp) in rows.zip(scratch.dp[..n].chunks_exact_mut(tile.keys())) {
                    let dot: f32 = p.iter().zip(dp.iter()).map(|(a, b)| a * b).sum();
                    dp.iter_mut().zip(p).for_each(|(b, a)| *b = a * (*b - dot));
                }
                // dQ = scale · dS K, dK += scale · dSᵀ Q
                let dst = dqs.head(tile.query(), tile.len(), head);
                // SAFETY: as above; only this task writes the gradients of its tiles' queries in
                // its heads.
                unsafe {
                    over_keys(dst, dp, &ks, tile, kv, *scale);
                    add_to_keys(&dks, tile, kv, dp, queries, *scale);
                }
            }
        }
    });
    (tensor(dq, &q.shape), tensor(dk, &k.shape), tensor(dv, &v.shape))
}
