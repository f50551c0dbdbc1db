//! The forward pass of decoding: the decoder on a few new tokens per row, with a cache of keys and
//! values. No gradients.
//!
//! In: token ids, and for each row the positions of the new tokens and the keys they see ([`Span`],
//! [`Order`]). Out: hidden states before the final norm, `[B·S, hidden_size]`. The keys and values
//! of the new tokens overwrite the cache at their positions: running a block again replaces it,
//! running a part of it replaces that part.
//!
//! On the CPU in fp32, attention by tiles reads the cache in place; elsewhere scores are one
//! product with a mask. Shape legend: R rows of the cache, C its positions a row, B rows of a pass,
//! S new tokens a row, K key/value heads, G query heads per key/value head, D head_dim.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::activation::softmax;

use crate::attention::{KeyRange, Tile, TilePlan, tiles};
use crate::compute::{Attention, ComputePlan};
use crate::decode::cpu::cache::PanelCache;
use crate::error::{Error, Result};
use crate::model::decoder::{AttentionPlan, Context, Decoder};
use crate::model::params::Weights;

/// Cached keys and values by row and position.
#[derive(Debug)]
pub(crate) struct KvCache {
    /// Keys and values `[R·C, K, D]` of each layer; empty before the first pass.
    layers: Vec<(Tensor<3>, Tensor<3>)>,
    rows: usize,
    positions: usize,
    limit: usize,
    id: CacheId,
    /// The native engine has made room for it.
    was_opened: bool,
    /// Keys and values on the CPU without Burn; `layers` is empty then.
    pub(super) panels: PanelCache,
}

/// Names a cache: one id is given once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CacheId(u64);

static NEXT_CACHE: AtomicU64 = AtomicU64::new(0);

impl KvCache {
    /// A cache for `rows` rows. `positions` is the initial capacity of a row in tokens; it grows up
    /// to `limit`.
    pub(crate) fn new(rows: usize, positions: usize, limit: usize) -> Self {
        let id = CacheId(NEXT_CACHE.fetch_add(1, Ordering::Relaxed));
        KvCache {
            layers: Vec::new(),
            rows,
            positions,
            limit,
            id,
            was_opened: false,
            panels: PanelCache::default(),
        }
    }

    pub(super) fn id(&self) -> CacheId {
        self.id
    }

    /// The native engine, which holds one cache, makes room for this one.
    ///
    /// # Errors
    /// [`Error::Device`] if it did so before: what it held is lost.
    pub(super) fn open_once(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.was_opened, true) {
            return Err(Error::Device(
                "the native engine holds the keys and values of one set of rows at a time, and another one has taken its place".into(),
            ));
        }
        Ok(())
    }

    /// The capacity to grow to when a row needs `needed` tokens: twice the present one, up to the
    /// limit.
    pub(crate) fn next_size(&self, needed: usize) -> usize {
        needed.max((2 * self.positions).min(self.limit))
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Capacity of a row, in tokens.
    pub(crate) fn positions(&self) -> usize {
        self.positions
    }

    /// Grows to a capacity of `positions` tokens per row and keeps what is cached.
    pub(crate) fn grow(&mut self, positions: usize) {
        let more = positions.saturating_sub(self.positions);
        if more == 0 {
            return;
        }
        for (keys, values) in &mut self.layers {
            for all in [keys, values] {
                let [_, heads, width] = all.dims();
                let empty = Tensor::<4>::zeros(
                    [self.rows, more, heads, width],
                    (&all.device(), all.dtype()),
                );
                let held = all.clone().reshape([self.rows, self.positions, heads, width]);
                *all = Tensor::cat(vec![held, empty], 1).reshape([
                    self.rows * positions,
                    heads,
                    width,
                ]);
            }
        }
        self.positions = positions;
    }
}

/// The positions of the new tokens of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// Row of the cache.
    pub row: usize,
    /// Position of the first new token.
    pub start: usize,
    /// The new tokens see positions below this, as far as [`Order`] permits.
    pub visible: usize,
}

/// Which positions at and after their own the new tokens see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// All visible ones.
    Full,
    /// Those of their own block of this many tokens, blocks counted from the first new token; 1 is
    /// causal.
    Blocks(usize),
}

/// The rows of one pass and everything that depends on their positions alone; it can be run many
/// times with other ids.
#[derive(Debug, Clone)]
pub(crate) struct Pass {
    pub(super) spans: Vec<Span>,
    pub(super) order: Order,
    pub(super) context: Context,
    /// Rows of the cache and positions of each.
    pub(super) cache: (usize, usize),
}

impl Pass {
    /// A pass over `len` new tokens in each of `spans`.
    pub(crate) fn new(
        decoder: &Decoder,
        spans: Vec<Span>,
        len: usize,
        order: Order,
        cache: &KvCache,
        compute: &ComputePlan,
    ) -> Result<Self> {
        let (dtype, device) = (compute.dtype.burn(), &compute.device.device);
        let positions: Vec<i32> = spans
            .iter()
            .flat_map(|span| (span.start..span.start + len).map(|position| position as i32))
            .collect();
        let (cos, sin) = decoder.rope_tables(&positions, spans.len(), len, dtype, device);
        let mask = if compute.attention == Attention::Tiles {
            let tiles: Vec<Tile> = spans
                .iter()
                .enumerate()
                .flat_map(|(i, span)| tiles_of(i * len, len, span, order, cache.positions))
                .collect();
            let keys = cache.rows * cache.positions;
            AttentionPlan::Tiles(Arc::new(TilePlan::new(&tiles, spans.len() * len, keys)?))
        } else {
            AttentionPlan::Dense(hidden(&spans, len, order, device))
        };
        let context = Context { batch: spans.len(), len, cos, sin, mask, dtype, gate: None };
        Ok(Pass { spans, order, context, cache: (cache.rows, cache.positions) })
    }

    /// Whether this pass is over the same positions of a cache of the same size.
    pub(crate) fn is(&self, spans: &[Span], len: usize, order: Order, cache: &KvCache) -> bool {
        self.spans == spans
            && self.context.len == len
            && self.order == order
            && self.cache == (cache.rows, cache.positions)
    }
}

/// Positions, cache slots and tiles of a pass over `len` new tokens in each of `spans`.
pub(super) fn placed(
    spans: &[Span],
    len: usize,
    order: Order,
    cache: &KvCache,
) -> (Vec<i32>, Vec<i32>, Vec<Tile>) {
    let (mut positions, mut slots, mut tiles) = (Vec::new(), Vec::new(), Vec::new());
    for (i, span) in spans.iter().enumerate() {
        let new = span.start..span.start + len;
        positions.extend(new.clone().map(|position| position as i32));
        slots.extend(new.map(|position| (span.row * cache.positions + position) as i32));
        tiles.extend(tiles_of(i * len, len, span, order, cache.positions));
    }
    (positions, slots, tiles)
}

/// The tiles of one row: queries from `query` on, keys from `row · positions` on.
fn tiles_of(query: usize, len: usize, span: &Span, order: Order, positions: usize) -> Vec<Tile> {
    let base = span.row * positions;
    let before = |first: usize| KeyRange::new(base, span.start + first);
    match order {
        Order::Full => {
            vec![Tile::new(query, len, KeyRange::new(base, 0), KeyRange::new(base, span.visible))]
        }
        Order::Blocks(1) => vec![Tile::causal(query, len, before(0), base + span.start)],
        Order::Blocks(size) => {
            let size = size.max(1);
            let tile = |first: usize| {
                let own = KeyRange::new(base + span.start + first, size.min(len - first));
                Tile::new(query + first, own.len, before(first), own)
            };
            (0..len).step_by(size).map(tile).collect()
        }
    }
}

/// The visible keys as a mask `[B, 1, S, V]` over the first V positions, true = hidden.
fn hidden(spans: &[Span], len: usize, order: Order, device: &Device) -> Tensor<4, Bool> {
    let widest = spans.iter().map(|span| span.visible).max().unwrap_or(0);
    let mut flags = Vec::with_capacity(spans.len() * len * widest);
    for span in spans {
        for query in 0..len {
            let end = match order {
                Order::Full => span.visible,
                Order::Blocks(size) => span.start + (query / size.max(1) + 1) * size.max(1),
            };
            flags.extend((0..widest).map(|key| key >= end.min(span.visible)));
        }
    }
    Tensor::from_data(TensorData::new(flags, [spans.len(), 1, len, widest]), device)
}

impl Decoder {
    /// Runs the layers on `ids` `[B·S]`, writing their keys and values into `cache`: hidden states
    /// `[B·S, hidden_size]`.
    pub(crate) fn forward_cached(
        &self,
        w: &Weights,
        ids: Tensor<1, Int>,
        pass: &Pass,
        cache: &mut KvCache,
    ) -> Tensor<2> {
        let cx = &pass.context;
        let mut x = self.embed(w, ids, cx);
        for (i, layer) in self.params.layers.iter().enumerate() {
            let (q, k, v) = self.qkv_flat(w, layer, x.clone(), cx);
            let (heads, width) = (k.dims()[1], k.dims()[2]);
            if cache.layers.len() == i {
                let zeros = || {
                    Tensor::<3>::zeros(
                        [cache.rows * cache.positions, heads, width],
                        (&k.device(), cx.dtype),
                    )
                };
                cache.layers.push((zeros(), zeros()));
            }
            let (keys, values) = &mut cache.layers[i];
            write(keys, k, pass, cache.positions);
            write(values, v, pass, cache.positions);
            let a = match &cx.mask {
                AttentionPlan::Tiles(plan) => {
                    tiles::attention(q, keys.clone(), values.clone(), plan)
                }
                AttentionPlan::Dense(mask) => dense(q, keys, values, pass, cache.rows, mask),
                AttentionPlan::Ranges(_) => unreachable!("a pass has tiles or a mask"),
            };
            let [tokens, heads, width] = a.dims();
            x = x + self.attention_out_flat(w, layer, a.reshape([tokens, heads * width]), cx);
            x = x.clone() + self.mlp(w, layer, x, cx);
        }
        x
    }
}

/// Writes `new` `[B·S, K, D]` to its rows and positions of `all` `[R·C, K, D]`.
fn write(all: &mut Tensor<3>, new: Tensor<3>, pass: &Pass, positions: usize) {
    let [_, heads, width] = new.dims();
    let len = pass.context.len;
    let empty = Tensor::<3>::zeros([1, 1, 1], (&all.device(), all.dtype()));
    // moved out, because only a tensor with one owner is changed in place
    let mut taken = std::mem::replace(all, empty);
    for (i, span) in pass.spans.iter().enumerate() {
        let at = span.row * positions + span.start;
        taken = taken
            .slice_assign([at..at + len, 0..heads, 0..width], new.clone().narrow(0, i * len, len));
    }
    *all = taken;
}

/// Attention with materialised scores under a mask: `q` `[B·S, K·G, D]`, cache `[R·C, K, D]`,
/// `mask` `[B, 1, S, V]` → `[B·S, K·G, D]`; softmax in fp32. Queries of a group share their keys by
/// reshaping to `[B, K, G·S, D]`; nothing is repeated.
fn dense(
    q: Tensor<3>,
    keys: &Tensor<3>,
    values: &Tensor<3>,
    pass: &Pass,
    rows: usize,
    mask: &Tensor<4, Bool>,
) -> Tensor<3> {
    let [_, heads_q, d] = q.dims();
    let [slots, heads, _] = keys.dims();
    let (b, s, dtype) = (pass.context.batch, pass.context.len, q.dtype());
    let (group, seen) = (heads_q / heads, mask.dims()[3]);
    let of_pass = |t: &Tensor<3>| {
        let t = t.clone().reshape([rows, slots / rows.max(1), heads, d]).narrow(1, 0, seen);
        let all = pass.spans.iter().map(|span| span.row).eq(0..rows);
        let t = match all {
            true => t,
            false => Tensor::cat(
                pass.spans.iter().map(|span| t.clone().narrow(0, span.row, 1)).collect(),
                0,
            ),
        };
        t.swap_dims(1, 2)
    };
    let (k, v) = (of_pass(keys), of_pass(values));
    let q = q.reshape([b, s, heads_q, d]).swap_dims(1, 2).reshape([b, heads, group * s, d]);
    let scores = q.matmul(k.swap_dims(2, 3)).mul_scalar(1.0 / (d as f64).sqrt());
    let scores = if dtype == DType::F32 { scores } else { scores.cast(DType::F32) };
    let scores = scores
        .reshape([b, heads_q, s, seen])
        .mask_fill(mask.clone().expand([b, heads_q, s, seen]), -1e30);
    let p = softmax(scores, 3).reshape([b, heads, group * s, seen]);
    let p = if dtype == DType::F32 { p } else { p.cast(dtype) };
    p.matmul(v).reshape([b, heads_q, s, d]).swap_dims(1, 2).reshape([b * s, heads_q, d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::{AttentionChoice, device};

    #[test]
    fn tiles_and_mask_agree() {
        let spans =
            [Span { row: 2, start: 32, visible: 96 }, Span { row: 0, start: 0, visible: 64 }];
        for order in [Order::Full, Order::Blocks(1), Order::Blocks(16), Order::Blocks(32)] {
            let (len, positions) = (64, 128);
            let flags = hidden(&spans, len, order, &Device::flex())
                .into_data()
                .iter::<bool>()
                .collect::<Vec<_>>();
            for (i, span) in spans.iter().enumerate() {
                for tile in tiles_of(i * len, len, span, order, positions) {
                    for query in 0..tile.len() {
                        let own = tile.own_seen_by(query);
                        let row = (tile.query() + query) * 96;
                        let seen = (0..96).filter(|key| !flags[row + key]).count();
                        assert_eq!(
                            seen,
                            tile.prefix().len + own,
                            "{order:?}, row {i}, query {query} of {tile:?}"
                        );
                        assert!(
                            tile.prefix().start == span.row * positions
                                && tile.own().start + own <= (span.row + 1) * positions
                        );
                    }
                }
            }
        }
    }

    /// A cache that grew between passes gives the same results as one of the full size, in every
    /// row, by tiles and by a mask.
    #[test]
    fn growing_keeps_what_is_cached() {
        let device = Device::flex();
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": true,
            "initializer_range": 0.3
        });
        let config = crate::model::ModelConfig::from_json(config).unwrap();
        let params = crate::model::Params::new(&config);
        let weights = crate::model::load::upload(
            crate::model::load::random_host(&config, &params, 3),
            &params,
            &device,
        );
        let decoder = Decoder::new(config);
        for attention in [AttentionChoice::Tiles, AttentionChoice::Dense] {
            let compute = ComputePlan::new(device::cpu(), None).with_attention(attention).unwrap();
            let pass = |cache: &mut KvCache, start: usize| {
                let spans: Vec<Span> =
                    (0..2).map(|row| Span { row, start, visible: start + 8 }).collect();
                let ids: Vec<i64> = (0..16).map(|i| (i * 7 + start as i64 * 3) % 32).collect();
                let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [16]), &device);
                let pass = Pass::new(&decoder, spans, 8, Order::Full, cache, &compute).unwrap();
                decoder
                    .forward_cached(&weights, ids, &pass, cache)
                    .into_data()
                    .iter::<f32>()
                    .collect::<Vec<_>>()
            };
            let (mut large, mut small) = (KvCache::new(2, 64, 64), KvCache::new(2, 16, 64));
            for start in [0, 8] {
                assert_eq!(pass(&mut large, start), pass(&mut small, start));
            }
            assert_eq!(small.next_size(17), 32);
            small.grow(small.next_size(17));
            assert_eq!(pass(&mut large, 16), pass(&mut small, 16), "{attention:?}");
            small.grow(small.next_size(50));
            assert_eq!((small.positions(), small.next_size(64)), (64, 64));
            assert_eq!(pass(&mut large, 24), pass(&mut small, 24));
        }
    }
}
