//! The decoder on a few new tokens behind a cache of keys and values: the forward pass of decoding.
//!
//! In: token ids and positions of the new tokens, a [`KvCache`] of finished ones, and what the new tokens see of each other
//! ([`Own`]). Out: hidden states before the final norm, `[B·S, hidden_size]`, and the keys and values of the new tokens
//! ([`Fresh`]); the cache itself changes only through [`KvCache::append`]. No gradients.
//!
//! Shape legend: B rows, S new tokens a row, P cached tokens of the longest row, K key/value heads, G query heads per
//! key/value head, D head_dim. Queries of one group share their keys by reshaping to `[B, K, G·S, D]`: nothing is repeated.

use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::activation::softmax;

use super::decoder::{AttentionPlan, Context, Decoder};
use super::params::Weights;

/// Keys and values of some tokens: for each layer two tensors `[B, K, S, D]`.
#[derive(Clone, Debug)]
pub struct Fresh {
    layers: Vec<(Tensor<4>, Tensor<4>)>,
}

/// Keys and values of finished tokens; rows may differ in length.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// For each layer `[B, K, P, D]`; empty while nothing is cached.
    layers: Vec<(Tensor<4>, Tensor<4>)>,
    /// Cached tokens of each row.
    lens: Vec<usize>,
    /// `[B, 1, 1, P]`, true beyond a row's length; none when all rows are equally long.
    hidden: Option<Tensor<4, Bool>>,
}

/// What the new tokens see besides the cache.
#[derive(Clone, Debug)]
pub enum Own<'a> {
    /// Each other, in both directions.
    All,
    /// Each other, but for `[1, 1, S, S]`, true = hidden.
    Masked(&'a Tensor<4, Bool>),
    /// These earlier tokens and each other; the new keys and values are put behind them.
    After(&'a Fresh),
    /// These tokens, of which the new ones replace S from the given place on, one place a row.
    Over(&'a Fresh, &'a [usize]),
}

impl Fresh {
    /// The keys and values of some rows.
    pub fn rows(&self, rows: &[usize]) -> Fresh {
        let pick = |t: &Tensor<4>| match rows {
            [row] => t.clone().narrow(0, *row, 1),
            _ => Tensor::cat(rows.iter().map(|&row| t.clone().narrow(0, row, 1)).collect(), 0),
        };
        Fresh {
            layers: self.layers.iter().map(|(k, v)| (pick(k), pick(v))).collect(),
        }
    }

    /// Rows of several, one below the other.
    pub fn stack(parts: &[Fresh]) -> Fresh {
        let layers = parts.first().map_or(0, |part| part.layers.len());
        let cat = |i: usize, get: fn(&(Tensor<4>, Tensor<4>)) -> Tensor<4>| {
            Tensor::cat(parts.iter().map(|part| get(&part.layers[i])).collect(), 0)
        };
        Fresh {
            layers: (0..layers).map(|i| (cat(i, |kv| kv.0.clone()), cat(i, |kv| kv.1.clone()))).collect(),
        }
    }
}

impl KvCache {
    /// Nothing cached for `rows` rows.
    pub fn new(rows: usize) -> Self {
        KvCache {
            layers: Vec::new(),
            lens: vec![0; rows],
            hidden: None,
        }
    }

    /// Cached tokens of each row.
    pub fn lens(&self) -> &[usize] {
        &self.lens
    }

    /// Puts keys and values behind what is cached of `rows`; row i of `fresh` belongs to `rows[i]`.
    pub fn append(&mut self, rows: &[usize], fresh: &Fresh) {
        let Some((first, _)) = fresh.layers.first() else {
            return;
        };
        let [_, heads, added, width] = first.dims();
        let before = self.width();
        let uniform = self.lens.iter().all(|len| *len == before);
        for &row in rows {
            self.lens[row] += added;
        }
        if uniform && rows.iter().copied().eq(0..self.lens.len()) {
            let join = |old: Tensor<4>, new: &Tensor<4>| Tensor::cat(vec![old, new.clone()], 2);
            let old = std::mem::take(&mut self.layers);
            self.layers = match old.is_empty() {
                true => fresh.layers.clone(),
                false => old.into_iter().zip(&fresh.layers).map(|(a, b)| (join(a.0, &b.0), join(a.1, &b.1))).collect(),
            };
            return;
        }
        let (after, count, device, dtype) = (self.width(), self.lens.len(), first.device(), first.dtype());
        let zeros = |len: usize| Tensor::<4>::zeros([count, heads, len, width], (&device, dtype));
        let put = |old: Option<Tensor<4>>, new: &Tensor<4>| {
            let mut all = match old {
                None => zeros(after),
                Some(old) if after > before => Tensor::cat(vec![old, zeros(after - before)], 2),
                Some(old) => old,
            };
            for (i, &row) in rows.iter().enumerate() {
                let place = [row..row + 1, 0..heads, self.lens[row] - added..self.lens[row], 0..width];
                all = all.slice_assign(place, new.clone().narrow(0, i, 1));
            }
            all
        };
        let mut old = std::mem::take(&mut self.layers).into_iter();
        let next = |new: &(Tensor<4>, Tensor<4>)| {
            let (k, v) = old.next().unzip();
            (put(k, &new.0), put(v, &new.1))
        };
        self.layers = fresh.layers.iter().map(next).collect();
        self.hide();
    }

    /// Keeps the given rows, in that order.
    pub fn keep(&mut self, rows: &[usize]) {
        let kept = Fresh {
            layers: std::mem::take(&mut self.layers),
        };
        self.lens = rows.iter().map(|row| self.lens[*row]).collect();
        let len = self.width();
        if len > 0 {
            let cut = |t: Tensor<4>| t.narrow(2, 0, len);
            self.layers = kept.rows(rows).layers.into_iter().map(|(k, v)| (cut(k), cut(v))).collect();
        }
        self.hide();
    }

    fn width(&self) -> usize {
        self.lens.iter().copied().max().unwrap_or(0)
    }

    fn hide(&mut self) {
        let width = self.width();
        self.hidden = None;
        if let Some((k, _)) = self.layers.first()
            && self.lens.iter().any(|len| *len != width)
        {
            let flags: Vec<bool> = self.lens.iter().flat_map(|len| (0..width).map(move |i| i >= *len)).collect();
            let shape = [self.lens.len(), 1, 1, width];
            self.hidden = Some(Tensor::from_data(TensorData::new(flags, shape), &k.device()));
        }
    }
}

/// Rotary tables and shape of one pass.
#[derive(Clone, Debug)]
pub struct Pass {
    /// Rows B.
    pub batch: usize,
    /// New tokens a row S.
    pub len: usize,
    /// Cosines `[B, 1, S, D]`, compute dtype.
    pub cos: Tensor<4>,
    /// Sines `[B, 1, S, D]`.
    pub sin: Tensor<4>,
}

impl Decoder {
    /// Runs the layers on `ids` `[B·S]` behind `cache`. Returns the hidden states before the final norm, `[B·S, hidden_size]`,
    /// and the keys and values that `own` describes: of the new tokens, or of those they were put behind or into.
    pub fn forward_cached(&self, w: &Weights, ids: Tensor<1, Int>, pass: &Pass, cache: &KvCache, own: &Own) -> (Tensor<2>, Fresh) {
        let dtype = pass.cos.dtype();
        let cx = Context {
            batch: pass.batch,
            len: pass.len,
            cos: pass.cos.clone(),
            sin: pass.sin.clone(),
            mask: AttentionPlan::Dense(Tensor::from_data(TensorData::new(vec![false], [1, 1, 1, 1]), &pass.cos.device())),
            dtype,
        };
        let mut x = self.embed(w, ids, dtype);
        let mut layers = Vec::with_capacity(self.params.layers.len());
        for (i, layer) in self.params.layers.iter().enumerate() {
            let (q, k, v) = self.qkv(w, layer, x.clone(), &cx);
            let (k, v) = match own {
                Own::All | Own::Masked(_) => (k, v),
                Own::After(old) => {
                    let (old_k, old_v) = old.layers[i].clone();
                    (Tensor::cat(vec![old_k, k], 2), Tensor::cat(vec![old_v, v], 2))
                }
                Own::Over(old, places) => (replace(&old.layers[i].0, k, places), replace(&old.layers[i].1, v, places)),
            };
            let mask = match own {
                Own::Masked(mask) => Some(*mask),
                _ => None,
            };
            let a = attend(q, &k, &v, mask, cache.layers.get(i), cache.hidden.as_ref());
            x = x + self.attention_out(w, layer, a);
            x = x.clone() + self.mlp_block(w, layer, x);
            layers.push((k, v));
        }
        (x, Fresh { layers })
    }
}

/// `new` `[B, K, S, D]` written into `old` `[B, K, S', D]` from `places[b]` on in row b.
fn replace(old: &Tensor<4>, new: Tensor<4>, places: &[usize]) -> Tensor<4> {
    let [_, heads, len, width] = new.dims();
    let mut all = old.clone();
    for (row, &at) in places.iter().enumerate() {
        let place = [row..row + 1, 0..heads, at..at + len, 0..width];
        all = all.slice_assign(place, new.clone().narrow(0, row, 1));
    }
    all
}

/// Attention over the cache and the tokens of the pass, without joining the two: `q` `[B, K·G, S, D]`, `k`, `v`
/// `[B, K, S', D]`, `mask` `[1, 1, S, S']` true = hidden, cache `[B, K, P, D]` with `hidden` `[B, 1, 1, P]`.
/// Returns `[B, K·G, S, D]`; softmax in fp32.
fn attend(
    q: Tensor<4>,
    k: &Tensor<4>,
    v: &Tensor<4>,
    mask: Option<&Tensor<4, Bool>>,
    cache: Option<&(Tensor<4>, Tensor<4>)>,
    hidden: Option<&Tensor<4, Bool>>,
) -> Tensor<4> {
    const NEVER: f32 = -1e30;
    let [b, h, s, d] = q.dims();
    let [_, heads, own, _] = k.dims();
    let (group, dtype) = (h / heads, q.dtype());
    let q = q.reshape([b, heads, group * s, d]);
    let scores = |keys: &Tensor<4>| {
        let scores = q.clone().matmul(keys.clone().swap_dims(2, 3)).mul_scalar(1.0 / (d as f64).sqrt());
        if dtype == DType::F32 { scores } else { scores.cast(DType::F32) }
    };
    let mut near = scores(k);
    if let Some(mask) = mask {
        let wide = near.reshape([b, h, s, own]).mask_fill(mask.clone().expand([b, h, s, own]), NEVER);
        near = wide.reshape([b, heads, group * s, own]);
    }
    let weights = |p: Tensor<4>| if dtype == DType::F32 { p } else { p.cast(dtype) };
    let out = match cache {
        None => weights(softmax(near, 3)).matmul(v.clone()),
        Some((old_k, old_v)) => {
            let mut far = scores(old_k);
            let past = old_k.dims()[2];
            if let Some(hidden) = hidden {
                far = far.mask_fill(hidden.clone().expand([b, heads, group * s, past]), NEVER);
            }
            let p = weights(softmax(Tensor::cat(vec![far, near], 3), 3));
            p.clone().narrow(3, 0, past).matmul(old_v.clone()) + p.narrow(3, past, own).matmul(v.clone())
        }
    };
    out.reshape([b, h, s, d])
}
