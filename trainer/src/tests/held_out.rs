//! What an evaluation says beside the loss, against slow forms: acceptance against one row and view
//! at a time with full logits, the simulated decode against a decode that runs the whole sequence
//! for each pass, and against decoding itself.

use crate::attention::{KeyRange, Tile};
use crate::compute::tensor_io::download;
use crate::compute::{Attention, ComputePlan, StreamShape, device};
use crate::decode::{BlockOptions, Engine, FinishReason, Request, RowMode};
use crate::diffusion::layout::{Stream, StreamRole, Token};
use crate::diffusion::scored::scored;
use crate::diffusion::{
    Batch, DeviceBatch, DocumentMask, IGNORE, Layout, Objective, ObjectiveSpec, PackedRow,
    PassOptions, batch::Order, build_batch, objective,
};
use crate::io::load_model::{LoadOptions, LoadedModel, load_model};
use crate::kernels::most_probable::MostProbable;
use crate::model::{Decoder, Gradients, Weights};
use crate::report::held_out::{Acceptance, SimulatedDecode};
use crate::train::acceptance::Tally;
use crate::train::simulated_decode::{THRESHOLD, simulate};
use dlm_test_support::fixtures;
use proptest::prelude::*;
use std::sync::atomic::AtomicBool;

use super::decode_reference::decode;
use super::layouts::{MASK, arb_row, decoder, pad_to_same};

const OPTIONS: PassOptions =
    PassOptions { activation_checkpointing: false, loss_chunk: 7, distill: 0.0 };

fn spec(bd_size: usize, document_mask: DocumentMask, token_shift: bool) -> ObjectiveSpec {
    let mask_token_id = MASK;
    ObjectiveSpec { bd_size, mask_token_id, complementary: true, document_mask, token_shift }
}

/// A model whose predictions are sure enough for the threshold, now and then.
fn peaky() -> (Decoder, Weights) {
    let (d, mut w) = decoder("LlamaForCausalLM", false);
    w.0[d.params.norm] = w.0[d.params.norm].clone() * 6.0;
    (d, w)
}

/// The most probable token of a row of logits and its probability, by a loop.
pub(super) fn judged(logits: &[f32], mask: i32) -> MostProbable {
    let mut token = usize::from(mask == 0);
    for (i, logit) in logits.iter().enumerate() {
        if i as i32 != mask && *logit > logits[token] {
            token = i;
        }
    }
    let others = logits.iter().enumerate().filter(|(i, _)| *i as i32 != mask);
    let sum: f64 = others.map(|(_, l)| f64::from(*l - logits[token]).exp()).sum();
    MostProbable { token: token as i64, probability: (1.0 / sum) as f32 }
}

/// Logits of every position of a stream under dense attention, a row of the vocabulary each.
pub(super) fn all_logits(d: &Decoder, w: &Weights, batch: &Batch) -> Vec<Vec<f32>> {
    let dense =
        ComputePlan { attention: Attention::Dense, ..ComputePlan::new(device::cpu(), None) };
    let inputs = DeviceBatch::upload(d, batch, &dense).unwrap();
    let flat = download(&objective::all_logits(d, w, &inputs)).unwrap();
    flat.chunks(d.cfg.vocab_size).map(<[f32]>::to_vec).collect()
}

fn fast(d: &Decoder, w: &Weights, batch: &Batch, mask: i32) -> (f64, Vec<MostProbable>) {
    let inputs = DeviceBatch::upload(d, batch, &ComputePlan::new(device::cpu(), None)).unwrap();
    let found = scored(d, w, &inputs, &OPTIONS, i64::from(mask)).unwrap();
    assert_eq!(
        found.loss_sum,
        objective::loss_sum(d, w, &inputs, &OPTIONS).unwrap(),
        "predictions change no bit of the loss"
    );
    (found.loss_sum, found.best)
}

/// Acceptance from the definition: each view of each document alone, `[noised ; clean]`.
fn slow_acceptance(
    d: &Decoder,
    w: &Weights,
    rows: &[PackedRow],
    masks: &[Vec<bool>],
    spec: &ObjectiveSpec,
) -> Option<Acceptance> {
    let (size, shift) = (spec.bd_size, usize::from(spec.token_shift));
    let (mut by_position, mut by_share) = (vec![[0u64; 2]; size], vec![[0u64; 2]; 11]);
    for (row, mask) in rows.iter().zip(masks) {
        for (id, start, n) in spec.documents(row) {
            for view in 0..2u8 {
                let is_hidden =
                    |j: usize| row.labels[start + j] != IGNORE && mask[start + j] == (view == 0);
                if id < 0 || !(shift..n).any(is_hidden) {
                    continue;
                }
                let copy = |role: StreamRole| {
                    (0..n).map(move |j| Token {
                        id: match role {
                            StreamRole::Noised(_) if is_hidden(j) => MASK,
                            _ => row.input_ids[start + j],
                        },
                        position: j as i32,
                        document: 0,
                        block: (j / size) as i32,
                        role,
                    })
                };
                let tokens: Vec<Token> =
                    copy(StreamRole::Noised(0)).chain(copy(StreamRole::Clean)).collect();
                let logits = all_logits(d, w, &dense_batch(tokens.clone()));
                for j in (shift..n).filter(|j| is_hidden(*j)) {
                    let at = j - shift;
                    let right =
                        judged(&logits[at], MASK).token == i64::from(row.input_ids[start + j]);
                    let block = at / size * size;
                    let block = &tokens[block..n.min(block + size)];
                    let masked = block.iter().filter(|t| t.id == MASK).count();
                    let tenth = (masked as f64 / block.len() as f64 * 10.0 - 1e-9).ceil() as usize;
                    for pair in [&mut by_position[j % size], &mut by_share[tenth]] {
                        *pair = [pair[0] + u64::from(right), pair[1] + 1];
                    }
                }
            }
        }
    }
    Acceptance::of(by_position, by_share)
}

/// A batch for dense attention, which reads no tiles.
pub(super) fn dense_batch(tokens: Vec<Token>) -> Batch {
    let n = tokens.len();
    let tiles = vec![Tile::new(0, n, KeyRange::new(0, 0), KeyRange::new(0, n))];
    Batch::flat(
        &[Stream { tokens, tiles, targets: Vec::new(), teachers: Vec::new() }],
        1,
        Order::Blocks,
    )
}

/// Tokens, passes and completions of a decode of one document that runs everything up to the end of
/// the block for each pass, with the right tokens in place of the fixed ones.
fn slow_decode(
    d: &Decoder,
    w: &Weights,
    ids: &[i32],
    labels: &[i32],
    size: usize,
    sub: usize,
    (mask, shift): (i32, usize),
) -> [u64; 3] {
    let (mut tokens, mut passes, mut completions) = (0, 0, 0);
    let mut at = 1;
    while at < ids.len() {
        if labels[at] == IGNORE {
            at += 1;
            continue;
        }
        let first = at;
        while at < ids.len() && labels[at] != IGNORE {
            at += 1;
        }
        completions += 1;
        tokens += (at - first) as u64;
        let mut text = ids[..first].to_vec();
        if shift == 1 && first >= size && first % size == 0 {
            passes += 1;
            text.push(ids[first]);
        }
        while text.len() < at {
            let block = text.len() / size * size;
            text.resize(block + size, mask);
            // fixed positions, which hold what the model sees
            while let Some(open) = (block..at.min(block + size)).find(|j| text[*j] == mask) {
                let from = (open - block) / sub * sub + block;
                let stream = text.iter().enumerate().map(|(j, id)| Token {
                    id: *id,
                    position: j as i32,
                    document: 0,
                    block: (j / size) as i32,
                    role: StreamRole::Clean,
                });
                let logits = all_logits(d, w, &dense_batch(stream.collect()));
                passes += 1;
                let masked: Vec<usize> = (from..from + sub).filter(|j| text[*j] == mask).collect();
                let judged: Vec<MostProbable> =
                    masked.iter().map(|j| judged(&logits[j - shift], mask)).collect();
                let most = judged.iter().map(|one| one.probability).fold(0.0, f32::max);
                let mut is_first = true;
                for (j, one) in masked.iter().zip(&judged) {
                    let is_most = is_first && one.probability == most;
                    is_first &= !is_most;
                    if is_most || f64::from(one.probability) > THRESHOLD {
                        text[*j] = if *j < at { ids[*j] } else { one.token as i32 };
                    }
                }
            }
            if text.len() < at {
                passes += 1;
                if shift == 1 {
                    text.push(ids[text.len()]);
                }
            }
        }
    }
    [tokens, passes, completions]
}

#[test]
fn sure_targets_are_those_whose_right_token_has_more_than_the_threshold() {
    let (d, w) = peaky();
    let row = PackedRow {
        input_ids: (0..64).map(|i| (i * 7 + i / 5) % MASK).collect(),
        labels: (0..64).map(|i| (i * 7 + i / 5) % MASK).collect(),
        documents: vec![(0, 64)],
    };
    let spec = spec(8, DocumentMask::Document, true);
    let masks = [dlm_datasets::mask::row_mask(3, 0, 0, 64, 8, 1e-3)];
    let objective_of = Objective::BlockDiffusion(Layout::Saving);
    let mut batch = build_batch(objective_of, &[row], &masks, &spec, StreamShape::Flat);
    let logits = all_logits(&d, &w, &batch);
    // half of the targets are what the model takes for most probable, so that some are sure
    for target in batch.targets.iter_mut().step_by(2) {
        target.id = judged(&logits[target.at], MASK).token as i32;
    }
    let slow = batch.targets.iter().filter(|target| {
        let row = &logits[target.at];
        let most = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|l| f64::from(*l - most).exp()).sum();
        f64::from(row[target.id as usize] - most).exp() / sum > 0.9
    });
    let slow = slow.count();
    assert!(slow > 3 && slow < batch.targets.len() / 2 + 3, "{slow} of {}", batch.targets.len());
    let inputs = DeviceBatch::upload(&d, &batch, &ComputePlan::new(device::cpu(), None)).unwrap();
    let (mut gradients, go_on) = (Gradients::new(w.0.len()), AtomicBool::new(false));
    let found =
        objective::interruptible(&d, &w, &inputs, &OPTIONS, 1.0, &mut gradients, &go_on).unwrap();
    assert_eq!(found.sure, slow);
}

fn counts(found: Option<SimulatedDecode>) -> [u64; 3] {
    found.map_or([0; 3], |f| [f.tokens, f.passes, f.completions])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn acceptance_is_that_of_each_view_alone(
        rows in proptest::collection::vec(arb_row(8), 1..3),
        seed in 0u64..1000,
        token_shift: bool,
    ) {
        let mut rows = rows;
        pad_to_same(&mut rows);
        let (d, w) = decoder("LlamaForCausalLM", false);
        let spec = spec(8, DocumentMask::Document, token_shift);
        let masks: Vec<Vec<bool>> = rows
            .iter()
            .enumerate()
            .map(|(i, r)| {
                dlm_datasets::mask::row_mask(seed, 0, i as u64, r.input_ids.len(), 8, 1e-3)
            })
            .collect();
        let slow = slow_acceptance(&d, &w, &rows, &masks, &spec);
        for (layout, shape) in [
            (Layout::Saving, StreamShape::Flat),
            (Layout::Saving, StreamShape::Rectangular { multiple: 16 }),
            (Layout::Reference, StreamShape::Flat),
        ] {
            let objective = Objective::BlockDiffusion(layout);
            let batch = build_batch(objective, &rows, &masks, &spec, shape);
            let mut tally = Tally::new(8);
            tally.add(&batch, &fast(&d, &w, &batch, MASK).1, &spec);
            prop_assert_eq!(&tally.finish(), &slow, "{:?}", layout);
        }
    }

    #[test]
    fn simulated_decode_counts_what_whole_sequences_need(
        rows in proptest::collection::vec(arb_row(16), 1..3),
        at_a_time in 1usize..3,
        one_document: bool,
        token_shift: bool,
    ) {
        let (d, w) = peaky();
        let mask = if one_document { DocumentMask::None } else { DocumentMask::Document };
        let spec = spec(16, mask, token_shift);
        let mut slow = [0; 3];
        for row in &rows {
            for (id, start, n) in spec.documents(row).into_iter().filter(|d| d.0 >= 0) {
                let (ids, labels) = (&row.input_ids[start..][..n], &row.labels[start..][..n]);
                let how = (MASK, usize::from(token_shift));
                let one = slow_decode(&d, &w, ids, labels, 16, 8, how);
                slow = [slow[0] + one[0], slow[1] + one[1], slow[2] + one[2]];
                let _ = id;
            }
        }
        for shape in [StreamShape::Flat, StreamShape::Rectangular { multiple: 16 }] {
            let predict = |batch: &Batch| Ok(fast(&d, &w, batch, MASK).1);
            let found = simulate(&rows, at_a_time, &spec, shape, predict).unwrap();
            prop_assert_eq!(counts(found), slow);
        }
    }
}

#[test]
fn a_simulated_decode_of_the_models_own_completions_takes_the_passes_that_decoding_took() {
    for (token_shift, some) in [(true, 4), (false, 2)] {
        let (compared, many) = own_completions(token_shift);
        assert!(compared >= 12, "{compared} decodes");
        assert!(many >= some, "{many} with several tokens a pass");
    }
}

/// How many were compared, and how many of them had passes that fixed several tokens.
fn own_completions(token_shift: bool) -> (usize, usize) {
    let dir = fixtures().join("qwen2_peaky");
    let compute = || ComputePlan::new(device::cpu(), None);
    let load = || load_model(&dir, LoadOptions::default(), &compute().device.device).unwrap();
    let LoadedModel { decoder, weights } = load();
    let mut engine = Engine::new(decoder, weights, compute()).unwrap();
    let LoadedModel { decoder, weights } = load();
    let vocab = decoder.cfg.vocab_size as i64;
    let mask = vocab - 1;
    let (size, mut compared, mut many) = (8, 0, 0);
    for seed in 0..24i64 {
        let prompt: Vec<i64> =
            (0..3 + seed % 19).map(|i| (seed * 31 + i * 7 + i * i) % (vocab - 2)).collect();
        let mut complete = |stop_ids: Vec<i64>| {
            let options = Request {
                prompt: Vec::new(),
                mode: RowMode::Block(BlockOptions {
                    fuse_prefill: true,
                    token_shift,
                    ..BlockOptions::published(size, size, THRESHOLD)
                }),
                max_new_tokens: 24,
                mask_id: Some(mask),
                stop_ids,
                sampling: None,
                stop: None,
            };
            decode(&mut engine, std::slice::from_ref(&prompt), &options).unwrap().remove(0)
        };
        // any token that the model writes can be its stop token
        let free = complete(vec![]);
        let stop = free.generated()[(seed as usize * 5) % free.generated().len()];
        let done = complete(vec![stop]);
        if done.finish_reason != FinishReason::StopToken {
            continue;
        }
        let ids: Vec<i32> = done.ids.iter().map(|id| *id as i32).collect();
        let labels =
            ids.iter().enumerate().map(|(i, id)| if i < prompt.len() { IGNORE } else { *id });
        let row = PackedRow {
            labels: labels.collect(),
            documents: vec![(0, ids.len())],
            input_ids: ids.clone(),
        };
        let spec = ObjectiveSpec {
            bd_size: size,
            mask_token_id: mask as i32,
            complementary: true,
            document_mask: DocumentMask::Document,
            token_shift,
        };
        let predict = |batch: &Batch| Ok(fast(&decoder, &weights, batch, mask as i32).1);
        let found = simulate(&[row], 1, &spec, StreamShape::Flat, predict).unwrap().unwrap();
        let tokens = done.generated().len() as u64;
        assert_eq!(
            (found.tokens, found.passes, found.completions),
            (tokens, done.passes.total() as u64, 1),
            "prompt {prompt:?}, {:?}",
            done.passes
        );
        assert_eq!(found.tokens_per_forward, tokens as f64 / done.passes.total() as f64);
        compared += 1;
        many += usize::from(done.passes.block < tokens as usize - 1);
    }
    (compared, many)
}
