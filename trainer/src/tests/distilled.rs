//! Distillation in the lossless objective: losses, counts and gradients beside a slow, plain
//! computation from the logits of every stream position.

use dlm_test_support::families;

use super::adapters::adapted;
use crate::compute::tensor_io::download;
use crate::compute::{AttentionChoice, ComputePlan, device};
use crate::config::Config;
use crate::diffusion::distill::losses;
use crate::diffusion::objective::{all_logits, interruptible, loss_sum};
use crate::diffusion::{
    Batch, DeviceBatch, DocumentMask, IGNORE, Layout, Losses, Objective, ObjectiveSpec, PackedRow,
    PassOptions, build_batch,
};
use crate::estimate::{Gpus, Shapes, estimate};
use crate::io::load_model::LoadedModel;
use crate::model::Gradients;
use crate::model::lora::ALL_TARGETS;
use std::sync::atomic::AtomicBool;

const MASK: i32 = families::MASK;
const BD: usize = 8;

fn spec() -> ObjectiveSpec {
    ObjectiveSpec {
        token_shift: true,
        bd_size: BD,
        mask_token_id: MASK,
        complementary: true,
        document_mask: DocumentMask::Document,
    }
}

/// Two rows of two documents each, with prompts, gaps and padding.
fn rows() -> Vec<PackedRow> {
    let row = |salt: i32| {
        let input_ids: Vec<i32> = (0..48).map(|i| (i * 11 + i * i + salt) % 300).collect();
        let is_label = |i: usize| (7..20).contains(&i) || (28..31).contains(&i) || i > 32;
        let label = |(i, id): (usize, &i32)| if is_label(i) && i < 44 { *id } else { IGNORE };
        let labels = input_ids.iter().enumerate().map(label).collect();
        PackedRow { input_ids, labels, documents: vec![(0, 24), (24, 20)] }
    };
    vec![row(0), row(77)]
}

fn batch(rows: &[PackedRow], layout: Layout, plan: &ComputePlan) -> Batch {
    let offsets: Vec<Vec<bool>> =
        rows.iter().map(|_| (0..BD).map(|o| [1, 4, 6].contains(&o)).collect()).collect();
    let objective = Objective::Lossless { layout, offsets: 3, taught: true };
    build_batch(objective, rows, &offsets, &spec(), plan.stream_shape)
}

/// What the definition says, from all logits: each mask beside the clean token of its document and
/// position.
fn slow(model: &LoadedModel, batch: &Batch, plan: &ComputePlan, share: f64) -> Losses {
    let inputs = DeviceBatch::upload(&model.decoder, batch, plan).unwrap();
    let logits = download(&all_logits(&model.decoder, &model.weights, &inputs)).unwrap();
    let vocab = model.decoder.cfg.vocab_size;
    let row = |at: usize| logits[at * vocab..(at + 1) * vocab].iter().map(|v| f64::from(*v));
    let log_softmax = |at: usize| -> Vec<f64> {
        let sum: f64 = row(at).map(f64::exp).sum();
        row(at).map(|v| v - sum.ln()).collect()
    };
    let best = |at: usize| {
        let others = log_softmax(at).into_iter().enumerate().filter(|(id, _)| *id != MASK as usize);
        others.fold((0, f64::MIN), |a, b| if b.1 > a.1 { b } else { a }).0
    };
    let clean = |mask: usize| {
        let (stream, own) = (mask / batch.len, &batch.tokens[mask]);
        // a stream has one clean copy of a document; in a flat batch the nearest before the masks
        let is_clean = |at: &usize| {
            let token = &batch.tokens[*at];
            batch.noised()[*at] == 0.0
                && (token.document, token.position) == (own.document, own.position)
        };
        (stream * batch.len..mask).rev().find(is_clean).unwrap()
    };
    let mut found = Losses { taught: Some(Default::default()), ..Losses::default() };
    let taught = found.taught.as_mut().unwrap();
    for target in &batch.targets {
        let (own, source) = (log_softmax(target.at), log_softmax(clean(target.at)));
        let cross_entropy = -own[target.id as usize];
        let divergence: f64 = source.iter().zip(&own).map(|(s, o)| s.exp() * (s - o)).sum();
        taught.cross_entropy += cross_entropy;
        taught.divergence += divergence;
        found.sum += (1.0 - share) * cross_entropy + share * divergence;
        found.sure += usize::from(cross_entropy < -(0.9f64.ln()));
        // how many masks of the run come before
        let mask = &batch.tokens[target.at];
        let distance = (mask.position - mask.block) as usize;
        taught.proposals.count(distance, best(target.at) == best(clean(target.at)));
    }
    found
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-5 * b.abs().max(1.0)
}

/// In both layouts and chunks of every size, with and without gradients.
#[test]
fn losses_and_counts_are_those_of_the_plain_computation() {
    for arch in ["Llama", "Qwen2", "Qwen3", "BitNet"] {
        let model = adapted(arch, &ALL_TARGETS, true);
        for attention in [AttentionChoice::Auto, AttentionChoice::Dense] {
            let plan = ComputePlan::new(device::cpu(), None).with_attention(attention).unwrap();
            for (layout, chunk) in
                [(Layout::Saving, 1000), (Layout::Saving, 5), (Layout::Reference, 13)]
            {
                let batch = batch(&rows(), layout, &plan);
                assert_eq!(batch.teachers.len(), batch.targets.len());
                for share in [0.0, 0.4, 1.0] {
                    let expected = slow(&model, &batch, &plan, share);
                    let inputs = DeviceBatch::upload(&model.decoder, &batch, &plan).unwrap();
                    let pass = PassOptions {
                        activation_checkpointing: chunk == 5,
                        loss_chunk: chunk,
                        distill: share,
                    };
                    let (decoder, weights) = (&model.decoder, &model.weights);
                    let mut gradients = Gradients::new(weights.0.len());
                    let stop = AtomicBool::new(false);
                    let into = &mut gradients;
                    let trained =
                        interruptible(decoder, weights, &inputs, &pass, 0.1, into, &stop).unwrap();
                    let alone = losses(decoder, weights, &inputs, &pass).unwrap();
                    assert_eq!(alone.sum, loss_sum(decoder, weights, &inputs, &pass).unwrap());
                    for found in [trained, alone] {
                        assert!(close(found.sum, expected.sum), "{found:?} {expected:?}");
                        assert_eq!(found.sure, expected.sure);
                        let (a, b) = (found.taught.unwrap(), expected.taught.clone().unwrap());
                        assert!(close(a.cross_entropy, b.cross_entropy), "{a:?} {b:?}");
                        assert!(close(a.divergence, b.divergence), "{a:?} {b:?}");
                        assert_eq!(a.proposals, b.proposals, "{arch} {layout:?} {chunk}");
                    }
                }
            }
        }
    }
}

/// Layouts, and the rows of a batch one by one, have the gradients of all together.
#[test]
fn gradients_do_not_depend_on_layout_or_micro_batches() {
    for arch in ["Qwen2", "BitNet"] {
        let LoadedModel { decoder, weights } = adapted(arch, &ALL_TARGETS, true);
        let plan = ComputePlan::new(device::cpu(), None);
        let gradients = |layout: Layout, at_a_time: usize, chunk: usize| {
            let pass =
                PassOptions { activation_checkpointing: false, loss_chunk: chunk, distill: 0.6 };
            let mut all = Gradients::new(weights.0.len());
            let mut sum = Losses::default();
            for rows in rows().chunks(at_a_time) {
                let batch = batch(rows, layout, &plan);
                let inputs = DeviceBatch::upload(&decoder, &batch, &plan).unwrap();
                let stop = AtomicBool::new(false);
                let of_rows =
                    interruptible(&decoder, &weights, &inputs, &pass, 0.02, &mut all, &stop);
                sum.add(&of_rows.unwrap());
            }
            let values: Vec<Vec<f32>> =
                all.0.iter().flatten().map(|gradient| download(gradient).unwrap()).collect();
            (sum, values)
        };
        let (sum, whole) = gradients(Layout::Saving, 2, 1000);
        for (layout, at_a_time, chunk) in
            [(Layout::Saving, 1, 1000), (Layout::Reference, 2, 7), (Layout::Saving, 2, 3)]
        {
            let (other, values) = gradients(layout, at_a_time, chunk);
            assert!(close(other.sum, sum.sum));
            assert!(close(
                other.taught.unwrap().divergence,
                sum.taught.clone().unwrap().divergence
            ));
            assert_eq!(values.len(), whole.len());
            for (a, b) in whole.iter().zip(&values) {
                let largest = a.iter().fold(0f32, |m, v| m.max(v.abs()));
                let far = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                // 8-bit activations may round to the neighbour
                let tolerance = if arch == "BitNet" { 2e-2 } else { 1e-4 };
                assert!(far <= tolerance * largest, "{arch} {layout:?}: {far} of {largest}");
            }
        }
    }
}

/// The native engine holds the logits of the source beside those of the proposals.
#[test]
fn plans_count_what_the_source_says() {
    let of = |distill: &str| {
        let keys = ["model=qwen3_4b", "conversion.objective=lossless", "export.lora=adapter"];
        let more = ["conversion.lora={rank: 16}", "train.micro_batch_rows=1", distill];
        let all: Vec<String> = keys.iter().chain(&more).map(|key| key.to_string()).collect();
        let cfg = Config::load(None, &all).unwrap();
        let shapes = Shapes::built_in(&cfg).unwrap().unwrap();
        estimate(&cfg, shapes, &Gpus::parse("H100").unwrap(), 512).unwrap()
    };
    let (plain, taught) = (of("conversion.distill=0"), of("conversion.distill=null"));
    if !cfg!(feature = "native") {
        assert_eq!(taught.engine, "burn");
        return;
    }
    assert_eq!((plain.engine, taught.engine), ("native", "native"));
    // in bf16 for two offsets of 512 positions: logits, hidden states and those behind the norm
    let source = 2 * 512 * 2 * (151_936 + 2 * 2560);
    let more = taught.activation_bytes.unwrap() - plain.activation_bytes.unwrap();
    assert!((source..source + (1 << 20)).contains(&more), "{more}, not {source}");
}
