//! Useful floating-point operations of a batch, for MFU: those of the layout in use, recomputation
//! not counted.
//!
//! In: decoder shapes and a batch. Out: 6 · (weights of the layers) per processed token, 6 ·
//! (weights of the head) per counted target, and for attention 12 · head_dim · heads · layers per
//! visible (query, key) pair (QKᵀ and PV, forward and twice that backward). Norms, activations and
//! the embedding lookup are not counted, as is usual. With adapters the weights have no gradient: 4
//! instead of 6 for each, and 6 · (adapters) per processed token; the source's own logits, which
//! distillation reads, are not counted.

use crate::diffusion::Batch;
use crate::model::{Decoder, ParamKind, ParamSpec};

/// Floating-point operations of one forward and backward pass over a batch.
pub(crate) fn useful(decoder: &Decoder, batch: &Batch) -> f64 {
    let params = &decoder.params;
    let numel = |specs: &[ParamSpec]| -> usize {
        specs.iter().filter(|s| s.kind == ParamKind::Matrix).map(|s| s.numel()).sum()
    };
    let (of_weight, adapters) = match &params.lora {
        None => (6.0, 0),
        Some(lora) => (4.0, numel(&lora.specs)),
    };
    let head = decoder.cfg.vocab_size * decoder.cfg.hidden_size;
    let pairs: f64 = batch.tiles.iter().map(|t| t.pairs() as f64).sum();
    let heads = (decoder.cfg.num_attention_heads
        * decoder.cfg.head_dim
        * decoder.cfg.num_hidden_layers) as f64;
    (of_weight * numel(&params.specs) as f64 + 6.0 * adapters as f64) * batch.processed as f64
        + of_weight * head as f64 * batch.targets.len() as f64
        + 12.0 * heads * pairs
}
