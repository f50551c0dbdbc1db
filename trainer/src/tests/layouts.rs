//! The saving layout compared with the reference layout, and tiles with dense masks, on random
//! packed rows.

use crate::compute::tensor_io::download;
use crate::compute::{Attention, ComputePlan, StreamShape, device};
use crate::diffusion::{
    Batch, DeviceBatch, DocumentMask, IGNORE, Layout, Objective, ObjectiveSpec, PackedRow,
    PassOptions, batch::Order, build_batch, count_targets, layout, objective, runs,
};
use crate::error::Error;
use crate::model::{Decoder, Gradients, ModelConfig, Params, Weights, load};
use proptest::prelude::*;
use std::sync::atomic::AtomicBool;

const VOCAB: usize = 40;
pub(super) const MASK: i32 = 39;

pub(super) fn decoder(arch: &str, quantised: bool) -> (Decoder, Weights) {
    let mut raw = serde_json::json!({
        "architectures": [arch], "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rope_theta": 1e4, "rms_norm_eps": 1e-6,
        "hidden_act": if arch.starts_with("BitNet") { "relu2" } else { "silu" }, "tie_word_embeddings": true,
        "initializer_range": 0.2
    });
    if quantised {
        raw["quantization_config"] = serde_json::json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"});
    }
    let cfg = ModelConfig::from_json(raw).unwrap();
    let params = Params::new(&cfg);
    let host = load::random_host(&cfg, &params, 3);
    let w = load::upload(host, &params, &device::choose("cpu").unwrap().device);
    (Decoder::new(cfg), w)
}

/// A packed row of documents of whole blocks, with runs of labels that start and stop anywhere,
/// block borders included.
pub(super) fn arb_row(bd: usize) -> impl Strategy<Value = PackedRow> {
    let document = (1usize..4).prop_flat_map(move |blocks| {
        let n = blocks * bd;
        (
            proptest::collection::vec(0..MASK, n),
            proptest::collection::vec(0u8..3, n.div_ceil(3)),
            0..n,
        )
    });
    (proptest::collection::vec(document, 1..4), 0usize..2).prop_map(move |(documents, tail)| {
        let mut row = PackedRow::default();
        for (ids, pattern, first) in documents {
            let start = row.input_ids.len();
            row.documents.push((start, ids.len()));
            for (i, id) in ids.iter().enumerate() {
                // Runs of three positions, with labels or without.
                let on = i >= first && pattern[i / 3] != 0;
                row.input_ids.push(*id);
                row.labels.push(if on { *id } else { IGNORE });
            }
        }
        row.input_ids.resize(row.input_ids.len() + tail * bd, 0);
        row.labels.resize(row.input_ids.len(), IGNORE);
        row
    })
}

pub(super) fn pad_to_same(rows: &mut [PackedRow]) {
    let len = rows.iter().map(|r| r.input_ids.len()).max().unwrap_or(0);
    for r in rows {
        r.input_ids.resize(len, 0);
        r.labels.resize(len, IGNORE);
    }
}

struct Run {
    loss: f64,
    grads: Vec<Vec<f32>>,
    processed: usize,
}

fn run(
    d: &Decoder,
    w: &Weights,
    rows: &[PackedRow],
    masks: &[Vec<bool>],
    spec: &ObjectiveSpec,
    how: (Objective, Attention, StreamShape, bool),
) -> Run {
    let (objective, attention, shape, recompute) = how;
    let compute = ComputePlan { attention, ..ComputePlan::new(device::cpu(), None) };
    let counted: usize =
        rows.iter().zip(masks).map(|(r, m)| count_targets(r, spec, objective, Some(m))).sum();
    let batch = build_batch(objective, rows, masks, spec, shape);
    assert_eq!(batch.targets.len(), counted, "the denominator is the number of targets");
    let inputs = DeviceBatch::upload(d, &batch, &compute).unwrap();
    let opts = PassOptions { activation_checkpointing: recompute, loss_chunk: 5, distill: 0.0 };
    let mut grads = Gradients::new(w.0.len());
    let sum = objective::loss_and_gradients(
        d,
        w,
        &inputs,
        &opts,
        1.0 / counted.max(1) as f64,
        &mut grads,
    )
    .unwrap();
    let (stop, mut unused) = (AtomicBool::new(true), Gradients::new(w.0.len()));
    let given_up = objective::interruptible(d, w, &inputs, &opts, 1.0, &mut unused, &stop);
    let interrupted = matches!(given_up, Err(Error::Interrupted(_)));
    assert!(counted == 0 || interrupted, "{given_up:?}");
    let alone = objective::loss_sum(d, w, &inputs, &opts).unwrap();
    assert!(
        (sum - alone).abs() <= 1e-4 * sum.abs().max(1.0),
        "loss with gradients {sum}, without {alone}"
    );
    Run {
        loss: sum / counted.max(1) as f64,
        grads: grads
            .0
            .iter()
            .zip(&d.params.specs)
            .map(|(g, s)| g.as_ref().map_or(vec![0.0; s.numel()], |g| download(g).unwrap()))
            .collect(),
        processed: batch.processed,
    }
}

fn assert_close(a: &Run, b: &Run, what: &str) {
    assert!(
        (a.loss - b.loss).abs() < 1e-5 * a.loss.abs().max(1.0),
        "{what}: loss {} vs {}",
        a.loss,
        b.loss
    );
    for (i, (x, y)) in a.grads.iter().zip(&b.grads).enumerate() {
        let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        let diff = x.iter().zip(y).map(|(p, q)| (p - q).abs()).fold(0f32, f32::max);
        assert!(
            diff <= 1e-5 * largest.max(1.0) + 1e-6,
            "{what}: parameter {i} differs by {diff}, largest entry {largest}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Loss and gradients depend neither on the layout nor on the kind of attention nor on
    /// activation checkpointing.
    #[test]
    fn all_forms_of_the_objective_agree(
        mut rows in proptest::collection::vec(arb_row(4), 1..3),
        seed in 0u64..1000,
        extreme in 0u8..4,
        hub in any::<bool>(),
        token_shift in any::<bool>(),
    ) {
        pad_to_same(&mut rows);
        let len = rows[0].input_ids.len();
        let masks: Vec<Vec<bool>> = (0..rows.len())
            .map(|r| match extreme {
                0 => vec![true; len],  // view B hides nothing
                1 => vec![false; len], // view A hides nothing
                _ => dlm_datasets::mask::row_mask(seed, 0, r as u64, len, 4, 1e-3),
            })
            .collect();
        let spec = ObjectiveSpec {
            bd_size: 4,
            mask_token_id: MASK,
            complementary: true,
            document_mask: if hub { DocumentMask::None } else { DocumentMask::Document },
            token_shift,
        };
        let (d, w) = decoder("Qwen3ForCausalLM", false);
        let rect = StreamShape::Rectangular { multiple: 1 };
        let reference = run(&d, &w, &rows, &masks, &spec, (Objective::BlockDiffusion(Layout::Reference), Attention::Dense, rect, false));
        for how in [
            (Objective::BlockDiffusion(Layout::Saving), Attention::Dense, StreamShape::Rectangular { multiple: 8 }, false),
            (Objective::BlockDiffusion(Layout::Saving), Attention::Tiles, StreamShape::Flat, false),
            (Objective::BlockDiffusion(Layout::Saving), Attention::Tiles, StreamShape::Flat, true),
            (Objective::BlockDiffusion(Layout::Reference), Attention::Tiles, rect, false),
        ] {
            let other = run(&d, &w, &rows, &masks, &spec, how);
            prop_assert!(other.processed <= reference.processed);
            assert_close(&reference, &other, &format!("{how:?}"));
        }
        let causal = run(&d, &w, &rows, &masks, &spec, (Objective::Sft, Attention::Dense, rect, false));
        let tiles = run(&d, &w, &rows, &masks, &spec, (Objective::Sft, Attention::Tiles, StreamShape::Flat, true));
        assert_close(&causal, &tiles, "causal");
    }

    /// Tiles allow exactly the pairs that the predicate allows, padding included.
    #[test]
    fn tiles_are_the_mask(
        rows in proptest::collection::vec(arb_row(4), 1..3),
        seed in 0u64..1000,
        hub in any::<bool>(),
        token_shift in any::<bool>(),
    ) {
        let spec = ObjectiveSpec {
            bd_size: 4,
            mask_token_id: MASK,
            complementary: true,
            document_mask: if hub { DocumentMask::None } else { DocumentMask::Document },
            token_shift,
        };
        let mut streams = Vec::new();
        let (mut causal, mut proposals) = (Vec::new(), Vec::new());
        for (r, row) in rows.iter().enumerate() {
            let m = dlm_datasets::mask::row_mask(seed, 0, r as u64, row.input_ids.len(), 4, 1e-3);
            streams.extend(layout::reference(row, &m, &spec));
            streams.push(layout::saving(row, &m, &spec));
            causal.push(layout::causal(row, &spec));
            let offsets: Vec<bool> = (0..4).map(|o| (seed >> o) % 2 == 0).collect();
            proposals.extend(runs::reference(row, &offsets, &spec, true));
            proposals.push(runs::saving(row, &offsets, &spec, hub));
        }
        for (streams, order) in
            [(&streams, Order::Blocks), (&causal, Order::Causal), (&proposals, Order::Runs)]
        {
            let batch = Batch::rectangular(streams, 8, order);
            prop_assert_eq!(batch.dense_mask(), batch.dense_mask_from_tiles());
            // Every token is covered by exactly one tile.
            let covered: usize = batch.tiles.iter().map(|t| t.len()).sum();
            prop_assert_eq!(covered, batch.tokens.len());
        }
    }
}

/// Packed documents give the same loss as each document alone.
#[test]
fn documents_do_not_see_each_other() {
    let (d, w) = decoder("Qwen2ForCausalLM", false);
    let spec = ObjectiveSpec {
        bd_size: 4,
        mask_token_id: MASK,
        complementary: true,
        document_mask: DocumentMask::Document,
        token_shift: true,
    };
    let doc = |seed: i32, n: usize| -> (Vec<i32>, Vec<i32>) {
        let ids: Vec<i32> = (0..n as i32).map(|i| (i * 7 + seed) % MASK).collect();
        let labels =
            ids.iter().enumerate().map(|(i, id)| if i >= n / 2 { *id } else { IGNORE }).collect();
        (ids, labels)
    };
    let (a, b) = (doc(3, 12), doc(11, 8));
    let mask: Vec<bool> = (0..20).map(|i| i % 3 == 0).collect();
    let alone: f64 = [(&a, 0..12), (&b, 12..20)]
        .into_iter()
        .map(|((ids, labels), span)| {
            let row = PackedRow {
                input_ids: ids.clone(),
                labels: labels.clone(),
                documents: vec![(0, ids.len())],
            };
            let r = run(
                &d,
                &w,
                &[row],
                &[mask[span].to_vec()],
                &spec,
                (
                    Objective::BlockDiffusion(Layout::Saving),
                    Attention::Tiles,
                    StreamShape::Flat,
                    false,
                ),
            );
            r.loss * ids.len() as f64 / 2.0
        })
        .sum();
    let row = PackedRow {
        input_ids: [a.0, b.0].concat(),
        labels: [a.1, b.1].concat(),
        documents: vec![(0, 12), (12, 8)],
    };
    let packed = run(
        &d,
        &w,
        &[row],
        &[mask],
        &spec,
        (Objective::BlockDiffusion(Layout::Saving), Attention::Tiles, StreamShape::Flat, false),
    );
    assert!((packed.loss * 10.0 - alone).abs() < 1e-5, "{} {}", packed.loss * 10.0, alone);
}

/// With BitLinear both layouts give the same loss, within what rounding to 8 bits allows.
#[test]
fn bitlinear_trains_in_both_layouts() {
    let (d, w) = decoder("BitNetForCausalLM", true);
    let spec = ObjectiveSpec {
        bd_size: 4,
        mask_token_id: MASK,
        complementary: true,
        document_mask: DocumentMask::Document,
        token_shift: true,
    };
    let ids: Vec<i32> = (0..16).map(|i| i * 5 % MASK).collect();
    let row = PackedRow {
        labels: ids.iter().enumerate().map(|(i, t)| if i > 5 { *t } else { IGNORE }).collect(),
        input_ids: ids,
        documents: vec![(0, 16)],
    };
    let mask: Vec<bool> = (0..16).map(|i| i % 2 == 0).collect();
    let rect = StreamShape::Rectangular { multiple: 1 };
    let a = run(
        &d,
        &w,
        std::slice::from_ref(&row),
        std::slice::from_ref(&mask),
        &spec,
        (Objective::BlockDiffusion(Layout::Reference), Attention::Dense, rect, false),
    );
    let b = run(
        &d,
        &w,
        &[row],
        &[mask],
        &spec,
        (Objective::BlockDiffusion(Layout::Saving), Attention::Tiles, StreamShape::Flat, true),
    );
    assert!((a.loss - b.loss).abs() < 5e-3, "{} {}", a.loss, b.loss);
    assert!(a.grads.iter().flatten().all(|v| v.is_finite()));
    assert!(a.grads.iter().flatten().any(|v| *v != 0.0));
}
