//! The engine's types from those of this crate: shapes, roles of parameters, batches.

use dlm_engine::{Adapters, LayerRole, Options, Precision, Role, Shape, Tile};

use super::NativeOptions;
use crate::attention;
use crate::compute::ComputeDtype;
use crate::config::LoraTarget;
use crate::diffusion::Batch;
use crate::error::{Error, Result};
use crate::kernels::Activation;
use crate::model::{Decoder, ModelConfig, Params};

/// Logits that exist at one time unless a chunk is given, bytes.
const LOGITS_BYTES: usize = 2 << 30;

pub(super) fn engine_options(cfg: &ModelConfig, options: NativeOptions) -> Options {
    let row_bytes = options.dtype.size() * cfg.vocab_size.next_multiple_of(64);
    Options {
        precision: match options.dtype {
            ComputeDtype::Bf16 => Precision::Bf16,
            ComputeDtype::Fp32 => Precision::Fp32,
        },
        activation_checkpointing: options.activation_checkpointing,
        logits_bytes: options.loss_chunk.map_or(LOGITS_BYTES, |n| n.max(1) * row_bytes),
        training: options.training,
        share: dlm_engine::Share { rank: 0, of: options.gpus.max(1) },
    }
}

pub(super) fn shape(decoder: &Decoder) -> Shape {
    let cfg = &decoder.cfg;
    Shape {
        vocab_size: cfg.vocab_size,
        hidden_size: cfg.hidden_size,
        intermediate_size: cfg.intermediate_size,
        num_hidden_layers: cfg.num_hidden_layers,
        num_attention_heads: cfg.num_attention_heads,
        num_key_value_heads: cfg.num_key_value_heads,
        head_dim: cfg.head_dim,
        rms_norm_eps: cfg.rms_norm_eps,
        inv_freq: cfg.inv_freq().iter().map(|f| *f as f32).collect(),
        relu2: cfg.activation == Activation::Relu2,
        qkv_bias: cfg.qkv_bias,
        qk_norm: cfg.qk_norm,
        tie_word_embeddings: cfg.tie_word_embeddings,
        sub_norms: cfg.sub_norms,
        bit_linear: cfg.quantization.is_some(),
        adapters: adapters(&decoder.params),
    }
}

fn adapters(params: &Params) -> Option<Adapters> {
    let lora = params.lora.as_ref()?;
    Some(Adapters {
        rank: lora.shape.rank,
        scale: lora.scale() as f32,
        targets: lora.shape.targets.iter().map(|target| role_of(*target)).collect(),
        mask_token_id: lora.shape.mask_token_id,
        gated: lora.shape.gated,
    })
}

fn role_of(target: LoraTarget) -> LayerRole {
    match target {
        LoraTarget::Query => LayerRole::Query,
        LoraTarget::Key => LayerRole::Key,
        LoraTarget::Value => LayerRole::Value,
        LoraTarget::Output => LayerRole::Output,
        LoraTarget::Gate => LayerRole::Gate,
        LoraTarget::Up => LayerRole::Up,
        LoraTarget::Down => LayerRole::Down,
    }
}

/// What each parameter of the table is to the engine, those of adapters behind the others.
pub(super) fn roles(params: &Params) -> Vec<Role> {
    let mut roles = vec![Role::Embedding; params.tensors()];
    roles[params.norm] = Role::FinalNorm;
    if params.lm_head != params.embed_tokens {
        roles[params.lm_head] = Role::Head;
    }
    for (i, layer) in params.layers.iter().enumerate() {
        let mut set = |index: Option<usize>, role| {
            if let Some(index) = index {
                roles[index] = Role::Layer(i, role);
            }
        };
        set(Some(layer.input_layernorm), LayerRole::InputNorm);
        set(Some(layer.q_proj.weight), LayerRole::Query);
        set(Some(layer.k_proj.weight), LayerRole::Key);
        set(Some(layer.v_proj.weight), LayerRole::Value);
        set(layer.q_proj.bias, LayerRole::QueryBias);
        set(layer.k_proj.bias, LayerRole::KeyBias);
        set(layer.v_proj.bias, LayerRole::ValueBias);
        set(layer.q_norm, LayerRole::QueryNorm);
        set(layer.k_norm, LayerRole::KeyNorm);
        set(layer.attn_sub_norm, LayerRole::OutputNorm);
        set(layer.ffn_sub_norm, LayerRole::DownNorm);
        set(Some(layer.o_proj.weight), LayerRole::Output);
        set(Some(layer.post_attention_layernorm), LayerRole::MlpNorm);
        set(Some(layer.gate_proj.weight), LayerRole::Gate);
        set(Some(layer.up_proj.weight), LayerRole::Up);
        set(Some(layer.down_proj.weight), LayerRole::Down);
        let linears = [
            (&layer.q_proj, LayerRole::Query),
            (&layer.k_proj, LayerRole::Key),
            (&layer.v_proj, LayerRole::Value),
            (&layer.o_proj, LayerRole::Output),
            (&layer.gate_proj, LayerRole::Gate),
            (&layer.up_proj, LayerRole::Up),
            (&layer.down_proj, LayerRole::Down),
        ];
        for (linear, role) in linears {
            if let Some(adapter) = linear.adapter {
                roles[adapter.a] = Role::AdapterA(i, role);
                roles[adapter.b] = Role::AdapterB(i, role);
            }
        }
    }
    if let Some(lora) = &params.lora {
        roles[lora.mask_row] = Role::MaskRow;
    }
    roles
}

pub(super) fn convert_tile(tile: &attention::Tile) -> Tile {
    Tile {
        query: tile.query(),
        len: tile.len(),
        prefix: (tile.prefix().start, tile.prefix().len),
        own: (tile.own().start, tile.own().len),
        causal: tile.is_causal(),
    }
}

/// The batch as it is, all of whose tokens adapters act on.
pub(super) fn convert(batch: &Batch) -> dlm_engine::Batch {
    let tiles = batch.tiles.iter().filter(|tile| !tile.is_empty()).map(convert_tile);
    dlm_engine::Batch {
        input_ids: batch.ids(),
        positions: batch.positions(),
        tiles: tiles.collect(),
        predicted_at: batch.targets.iter().map(|t| t.at as i32).collect(),
        targets: batch.targets.iter().map(|t| t.id).collect(),
        teachers: batch.teachers.iter().map(|at| *at as i32).collect(),
        distill: 0.0,
        adapted: batch.tokens.len(),
    }
}

/// Tokens with some of them first, tiles staying whole.
pub(super) struct Reordered {
    /// In their new order, with queries at their new places and keys as before.
    pub tiles: Vec<Tile>,
    /// The new place of each token.
    pub place: Vec<usize>,
    /// Tokens that came first.
    pub first: usize,
}

/// Brings the tokens that `is_first` names to the front.
///
/// # Errors
/// [`Error::Device`] where a tile has tokens of both kinds.
pub(super) fn reordered(tiles: &[Tile], is_first: &[bool]) -> Result<Reordered> {
    let mut tiles = tiles.to_vec();
    // (a stable sort)
    tiles.sort_by_key(|tile| !is_first[tile.query]);
    let mut place = vec![usize::MAX; is_first.len()];
    let (mut end, mut first) = (0, 0);
    for tile in &mut tiles {
        let queries = tile.query..tile.query + tile.len;
        let leads = is_first[tile.query];
        if is_first[queries.clone()].iter().any(|is| *is != leads) {
            return Err(wrong("clean and noised tokens in", tile));
        }
        tile.query = end;
        for query in queries {
            place[query] = end;
            end += 1;
        }
        if leads {
            first = end;
        }
    }
    Ok(Reordered { tiles, place, first })
}

fn wrong(what: &str, tile: &Tile) -> Error {
    Error::Device(format!("a batch that gated adapters cannot be computed on: {what} {tile:?}"))
}

/// The values of tokens at their new places.
pub(super) fn moved<T: Copy + Default>(values: &[T], place: &[usize]) -> Vec<T> {
    let mut all = vec![T::default(); values.len()];
    for (value, at) in values.iter().zip(place) {
        all[*at] = *value;
    }
    all
}

/// The batch with its noised tokens first, as gated adapters need it, and the new place of each
/// token.
///
/// # Errors
/// [`Error::Device`] where a tile has tokens of both kinds, or keys that do not stay together.
pub(super) fn noised_first(batch: &Batch) -> Result<(dlm_engine::Batch, Vec<usize>)> {
    let plain = convert(batch);
    let noised: Vec<bool> = batch.noised().into_iter().map(|gate| gate > 0.0).collect();
    let Reordered { mut tiles, place, first } = reordered(&plain.tiles, &noised)?;
    for tile in &mut tiles {
        let keys = |(start, len): (usize, usize)| {
            let there = place.get(start).copied().unwrap_or(0);
            let together = (0..len).all(|i| place.get(start + i) == Some(&(there + i)));
            let range = (if len == 0 { 0 } else { there }, len);
            together.then_some(range).ok_or_else(|| wrong("keys apart for", tile))
        };
        (tile.prefix, tile.own) = (keys(tile.prefix)?, keys(tile.own)?);
    }
    let there = |at: &i32| place[*at as usize] as i32;
    let batch = dlm_engine::Batch {
        input_ids: moved(&plain.input_ids, &place),
        positions: moved(&plain.positions, &place),
        tiles,
        predicted_at: plain.predicted_at.iter().map(there).collect(),
        teachers: plain.teachers.iter().map(there).collect(),
        adapted: first,
        ..plain
    };
    Ok((batch, place))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::StreamShape;
    use crate::diffusion::{
        DocumentMask, Layout, Objective, ObjectiveSpec, PackedRow, build_batch,
    };

    /// Who sees whom, by the ids of the tokens: a stable name of each.
    fn seen(batch: &dlm_engine::Batch) -> Vec<(i32, Vec<i32>)> {
        let mut all = Vec::new();
        for tile in &batch.tiles {
            for i in 0..tile.len {
                let own = if tile.causal { i + 1 } else { tile.own.1 };
                let keys = (tile.prefix.0..tile.prefix.0 + tile.prefix.1)
                    .chain(tile.own.0..tile.own.0 + own);
                let mut keys: Vec<i32> = keys.map(|key| batch.input_ids[key]).collect();
                keys.sort_unstable();
                all.push((batch.input_ids[tile.query + i], keys));
            }
        }
        all.sort_unstable();
        all
    }

    #[test]
    fn noised_tokens_come_first_and_see_what_they_saw() {
        let labels = |from: i32| (0..30).map(|i| if i < from { -100 } else { i }).collect();
        let row = |from: i32| PackedRow {
            input_ids: (0..30).collect(),
            labels: labels(from),
            documents: vec![(0, 17), (17, 13)],
        };
        let spec = ObjectiveSpec {
            bd_size: 4,
            mask_token_id: 99,
            complementary: true,
            document_mask: DocumentMask::Document,
            token_shift: true,
        };
        for layout in [Layout::Saving, Layout::Reference] {
            let objective = Objective::Lossless { layout, offsets: 2, taught: true };
            let taken = vec![vec![true, false, true, false]; 2];
            let rows = [row(5), row(12)];
            let mut batch = build_batch(objective, &rows, &taken, &spec, StreamShape::Flat);
            for (i, token) in batch.tokens.iter_mut().enumerate() {
                token.id = i as i32;
            }
            let (plain, noised) = (convert(&batch), batch.noised());
            let (moved, place) = noised_first(&batch).unwrap();
            assert_eq!(seen(&plain), seen(&moved));
            let first = noised.iter().filter(|gate| **gate > 0.0).count();
            assert!(first > 0 && first < noised.len());
            assert_eq!(moved.adapted, first);
            for (old, new) in place.iter().enumerate() {
                assert_eq!(moved.input_ids[*new], plain.input_ids[old]);
                assert_eq!(moved.positions[*new], plain.positions[old]);
                assert_eq!(noised[old] > 0.0, *new < first);
            }
            let named = |batch: &dlm_engine::Batch| -> Vec<i32> {
                let at = batch.predicted_at.iter().chain(&batch.teachers);
                at.map(|at| batch.input_ids[*at as usize]).collect()
            };
            assert_eq!(moved.teachers.len(), moved.targets.len());
            assert!(moved.teachers.iter().all(|at| *at as usize >= first));
            assert_eq!((named(&plain), plain.targets), (named(&moved), moved.targets));
        }
    }
}
