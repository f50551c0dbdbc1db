//! The forward pass of decoding on the CPU without Burn: weights in panels ([`panels`]), five
//! parallel phases a layer, nothing allocated that an earlier pass has allocated.
//!
//! In: token ids and where they stand, a few new tokens per row. Out: hidden states before the
//! final norm, kept until the next pass, and predictions for chosen positions. The same operations
//! as the decoder of the `model` room, in fp32; results differ from it in their last bits, as sums
//! are ordered otherwise. A row's results do not depend on the rows beside it or on threads.
//!
//! Adapters that act on mask tokens alone are computed beside the weights, for those tokens only
//! (`low_rank.rs`).
//!
//! Shape legend: T tokens of a pass, K key/value heads, G query heads
//! per key/value head, D head_dim. Activations `[n / PANEL, T, PANEL]`, padded with zeros.

mod attention;
pub(super) mod cache;
#[cfg(test)]
mod gated_tests;
mod head;
mod layer;
mod low_rank;
mod pointwise;
#[cfg(test)]
mod tests;
mod weights;

use crate::compute::WeightFormat;
use crate::decode::cached::KvCache;
use crate::decode::placed::Placed;
use crate::decode::verify::options::TokenCost;
use crate::error::Result;
use crate::kernels::panels::{PANEL, groups};
use crate::kernels::team::Team;
use crate::model::{Decoder, ModelConfig, Weights};

use attention::Attention;
use layer::Buffers;
use pointwise::Rotary;
use weights::{Embeddings, Layer, Linear};

pub(super) use weights::unsupported;

/// A model with everything that its passes use.
pub(super) struct CpuModel {
    /// Width of the hidden states.
    hidden_size: usize,
    vocab_size: usize,
    eps: f32,
    embeddings: Embeddings,
    /// Embedding of the masks of adapters that act on them alone.
    mask_row: Option<Vec<f32>>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Linear,
    attention: Attention,
    rotary: Rotary,
    config: ModelConfig,
    buffers: Buffers,
}

impl CpuModel {
    /// Packs a model's weights; they are dropped one by one.
    ///
    /// # Errors
    /// When a weight cannot be read. For models that [`unsupported`] names it panics or computes
    /// something else.
    pub(super) fn new(decoder: &Decoder, weights: Weights, format: WeightFormat) -> Result<Self> {
        let c = &decoder.cfg;
        let packed = weights::pack(decoder, weights, format)?;
        Ok(CpuModel {
            hidden_size: c.hidden_size,
            vocab_size: c.vocab_size,
            eps: c.rms_norm_eps as f32,
            embeddings: packed.embeddings,
            mask_row: packed.mask_row,
            layers: packed.layers,
            norm: packed.norm,
            head: packed.head,
            attention: Attention::new(c),
            rotary: Rotary::new(c),
            config: c.clone(),
            buffers: Buffers::default(),
        })
    }

    /// What a further token of a pass costs: the fewer bytes the weights have, the more it is
    /// (docs/decode.md).
    pub(super) fn token_cost(&self) -> TokenCost {
        let share = match self.layers.first().map(|layer| layer.down.matrix.format()) {
            Some(WeightFormat::Bf16) => 0.08,
            Some(WeightFormat::Int8) => 0.19,
            _ => 0.03,
        };
        TokenCost { share, together: layer::TOGETHER }
    }

    /// Runs `ids` `[T]`, which stand as `tokens` say, those of a row together; their keys and
    /// values go into the cache. Masks have the trained embedding and the adapters, whatever their
    /// id.
    pub(super) fn pass(
        &mut self,
        ids: &[i64],
        tokens: impl Iterator<Item = Placed>,
        cache: &mut KvCache,
    ) {
        let (rows, positions) = (cache.rows(), cache.positions());
        cache.panels.fit(&self.config, rows, positions);
        let rows = ids.len();
        let b = &mut self.buffers;
        b.rows = rows;
        b.tokens.clear();
        b.tokens.extend(tokens);
        let masks = (0..rows).filter(|token| b.tokens[*token].own.is_some());
        b.masks.rows.clear();
        b.masks.rows.extend(masks);
        let last = b.tokens.iter().map(|token| token.position).max();
        self.rotary.extend(last.map_or(0, |last| last + 1));
        b.x.clear();
        b.x.resize(groups(self.hidden_size) * rows * PANEL, 0.0);
        self.embeddings.gather(ids, &self.head.matrix, self.hidden_size, &mut b.x);
        if let Some(embedding) = &self.mask_row {
            for row in &b.masks.rows {
                pointwise::scatter(&mut b.x, rows, *row, 0, embedding);
            }
        }
        let tasks = self.attention.tasks(&b.tokens);
        Team::gather(|team| {
            for (i, layer) in self.layers.iter().enumerate() {
                let pass = layer::Pass {
                    team,
                    eps: self.eps,
                    attention: &self.attention,
                    rotary: &self.rotary,
                    tasks: &tasks,
                };
                pass.run(layer, cache.panels.layer(i), &mut self.buffers);
            }
        });
    }
}
