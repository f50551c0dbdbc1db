//! The forward pass of decoding on the CPU without Burn: weights in panels ([`panels`]), five
//! parallel phases a layer, nothing allocated that an earlier pass has allocated.
//!
//! In: token ids with the positions of a few new tokens per row. Out: hidden states before the
//! final norm, kept until the next pass, and predictions for chosen positions. The same operations
//! as the decoder of the `model` room, in fp32; results differ from it in their last bits, as sums
//! are ordered otherwise. A row's results do not depend on the rows beside it or on threads.
//!
//! Shape legend: B rows of a pass, S new tokens a row, T = B·S, K key/value heads, G query heads
//! per key/value head, D head_dim. Activations `[n / PANEL, T, PANEL]`, padded with zeros.

mod attention;
pub(super) mod cache;
mod head;
mod layer;
mod pointwise;
#[cfg(test)]
mod tests;
mod weights;

use crate::compute::WeightFormat;
use crate::decode::cached::{KvCache, Order, Span};
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
            layers: packed.layers,
            norm: packed.norm,
            head: packed.head,
            attention: Attention::new(c),
            rotary: Rotary::new(c),
            config: c.clone(),
            buffers: Buffers::default(),
        })
    }

    /// Runs `ids` `[B·S]`, S tokens in each of the B `spans`; their keys and values go into the
    /// cache.
    pub(super) fn pass(&mut self, ids: &[i64], spans: &[Span], order: Order, cache: &mut KvCache) {
        let (rows, positions) = (cache.rows(), cache.positions());
        cache.panels.fit(&self.config, rows, positions);
        let (rows, len) = (ids.len(), ids.len() / spans.len().max(1));
        let b = &mut self.buffers;
        b.rows = rows;
        b.positions.clear();
        b.positions.extend(spans.iter().flat_map(|span| span.start..span.start + len));
        self.rotary.extend(b.positions.iter().max().map_or(0, |last| last + 1));
        b.x.clear();
        b.x.resize(groups(self.hidden_size) * rows * PANEL, 0.0);
        self.embeddings.gather(ids, &self.head.matrix, self.hidden_size, &mut b.x);
        let tasks = self.attention.tasks(spans, len, order);
        Team::gather(|team| {
            for (i, layer) in self.layers.iter().enumerate() {
                let pass = layer::Pass {
                    team,
                    eps: self.eps,
                    attention: &self.attention,
                    rotary: &self.rotary,
                    spans,
                    len,
                    tasks: &tasks,
                };
                pass.run(layer, cache.panels.layer(i), &mut self.buffers);
            }
        });
    }
}
