//! Adapters in a forward and backward pass: what has a gradient, where a gate leaves them out, how
//! they start.

use burn::prelude::*;
use burn::tensor::DType;
use dlm_test_support::families;

use crate::compute::tensor_io::download;
use crate::compute::{ComputePlan, device};
use crate::config::LoraTarget;
use crate::diffusion::objective::{all_logits, loss_and_gradients};
use crate::diffusion::{
    DeviceBatch, DocumentMask, Layout, Objective, ObjectiveSpec, PackedRow, PassOptions,
    build_batch,
};
use crate::io::load_model::{HostModel, LoadedModel};
use crate::model::lora::ALL_TARGETS;
use crate::model::params::LoraShape;
use crate::model::{AttentionPlan, Context, Gradients, ModelConfig, Params};

const MASK: usize = families::MASK as usize;

pub(super) fn adapted(arch: &str, targets: &[LoraTarget], gated: bool) -> LoadedModel {
    let mut config = ModelConfig::from_json(families::own_config(arch)).unwrap();
    config.set_bitlinear(arch == "BitNet");
    let mut model = HostModel::new(config);
    model.draw_weights(3);
    let shape =
        LoraShape { rank: 3, alpha: 6.0, targets: targets.to_vec(), mask_token_id: MASK, gated };
    let first = |params: &Params, table: &[f32]| {
        let mut values = params.first_adapters(table, 9);
        // B is not zero, so that A has a gradient too
        for (values, spec) in values.iter_mut().zip(params.trained_specs()) {
            if spec.name.contains("lora_B") {
                values.iter_mut().enumerate().for_each(|(i, v)| *v = (i % 7) as f32 / 20.0 - 0.1);
            }
        }
        Ok(values)
    };
    model.adapted(shape, first, DType::F32, &device::cpu().device).unwrap()
}

fn row() -> PackedRow {
    let ids: Vec<i32> = (0..32).map(|i| (i * 11 + i * i) % 300).collect();
    let labels = ids.iter().enumerate().map(|(i, id)| if i < 9 { -100 } else { *id }).collect();
    PackedRow { input_ids: ids, labels, documents: vec![(0, 32)] }
}

/// Frozen weights are no leaves of the tape, and trained ones alone have a gradient: in both forms
/// of the backward pass, and with the same values.
#[test]
fn only_trained_parameters_have_gradients() {
    for arch in ["Llama", "Qwen2", "Qwen3", "BitNet"] {
        let targets = [LoraTarget::Query, LoraTarget::Down];
        let LoadedModel { decoder, weights } = adapted(arch, &targets, false);
        let trained = decoder.params.trained();
        let on_tape = weights.tracked(trained.clone());
        for (i, tensor) in on_tape.0.iter().enumerate() {
            assert_eq!(tensor.is_require_grad(), trained.contains(&i), "{arch}, {i}");
        }
        let spec = ObjectiveSpec {
            token_shift: true,
            bd_size: 8,
            mask_token_id: MASK as i32,
            complementary: true,
            document_mask: DocumentMask::Document,
        };
        let masks = [(0..32).map(|i| i % 3 == 0).collect::<Vec<bool>>()];
        let plan = ComputePlan::new(device::cpu(), None);
        let mut all = Vec::new();
        for checkpointing in [false, true] {
            let objective = Objective::BlockDiffusion(Layout::Saving);
            let batch = build_batch(objective, &[row()], &masks, &spec, plan.stream_shape);
            let inputs = DeviceBatch::upload(&decoder, &batch, &plan).unwrap();
            let pass = PassOptions {
                activation_checkpointing: checkpointing,
                loss_chunk: 5,
                distill: 0.0,
            };
            let mut found = Gradients::new(weights.0.len());
            loss_and_gradients(&decoder, &weights, &inputs, &pass, 0.1, &mut found).unwrap();
            let mut values = Vec::new();
            for (i, gradient) in found.0.iter().enumerate() {
                assert_eq!(gradient.is_some(), trained.contains(&i), "{arch}, {i}");
                if let Some(gradient) = gradient {
                    assert_eq!(gradient.dims(), weights[i].dims());
                    let of = download(gradient).unwrap();
                    assert!(of.iter().any(|v| *v != 0.0), "{arch}: gradient {i} is zero");
                    values.extend(of);
                }
            }
            all.push(values);
        }
        assert_eq!(all[0], all[1], "{arch}");
        assert_eq!(trained.len(), decoder.cfg.num_hidden_layers * 2 * 2 + 1);
    }
}

/// The same model without adapters.
fn bare(arch: &str) -> LoadedModel {
    let LoadedModel { mut decoder, weights } = adapted(arch, &[], false);
    decoder.params.lora = None;
    LoadedModel { decoder, weights }
}

/// Hidden states of a causal pass over ten tokens.
fn hidden(model: &LoadedModel, gate: Option<Vec<f32>>) -> Vec<f32> {
    let LoadedModel { decoder, weights } = model;
    let (device, len) = (device::cpu().device, 10);
    let positions: Vec<i32> = (0..len as i32).collect();
    let (cos, sin) = decoder.rope_tables(&positions, 1, len, DType::F32, &device);
    let later: Vec<bool> = (0..len * len).map(|i| i % len > i / len).collect();
    let later = Tensor::<4, Bool>::from_data(TensorData::new(later, [1, 1, len, len]), &device);
    let gate = gate
        .map(|gate| Tensor::<2>::from_data(TensorData::new(gate, [len, 1]), (&device, DType::F32)));
    let mask = AttentionPlan::Dense(later);
    let cx = Context { batch: 1, len, cos, sin, mask, dtype: DType::F32, gate };
    let ids: Vec<i32> = (0..len as i32).map(|i| i * 13 % 300).collect();
    let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [len]), &device);
    download(&decoder.hidden(weights, ids, &cx)).unwrap()
}

/// Where the gate is 0 every token gets bit for bit what the model without adapters gives it.
#[test]
fn a_gate_leaves_adapters_out() {
    for arch in ["Llama", "BitNet"] {
        let with = adapted(arch, &ALL_TARGETS, false);
        let without = bare(arch);
        let (bare, all) = (hidden(&without, None), hidden(&with, None));
        assert_ne!(bare, all);
        assert_eq!(hidden(&with, Some(vec![0.0; 10])), bare);
        assert_eq!(hidden(&with, Some(vec![1.0; 10])), all);
        // the first six tokens are the source's; the others see them and are not
        let late = (0..10).map(|i| if i < 6 { 0.0 } else { 1.0 }).collect();
        let (mixed, width) = (hidden(&with, Some(late)), with.decoder.cfg.hidden_size);
        assert_eq!(mixed[..6 * width], bare[..6 * width]);
        assert!(
            mixed[6 * width..]
                .chunks(width)
                .zip(bare[6 * width..].chunks(width))
                .all(|(a, b)| a != b)
        );
    }
}

/// In the streams of the lossless objective clean tokens have the logits of the model without
/// adapters, bit for bit, and noised ones have not.
#[test]
fn the_clean_stream_of_the_lossless_objective_is_the_source() {
    for arch in ["Llama", "Qwen2", "Qwen3", "BitNet"] {
        let (with, without) = (adapted(arch, &ALL_TARGETS, true), bare(arch));
        let spec = ObjectiveSpec {
            token_shift: true,
            bd_size: 8,
            mask_token_id: MASK as i32,
            complementary: true,
            document_mask: DocumentMask::Document,
        };
        let offsets = [(0..8).map(|o| o == 1 || o == 5).collect::<Vec<bool>>()];
        let plan = ComputePlan::new(device::cpu(), None);
        let both = [Layout::Saving, Layout::Reference];
        for (layout, taught) in both.into_iter().flat_map(|l| [(l, false), (l, true)]) {
            let objective = Objective::Lossless { layout, offsets: 2, taught };
            let batch = build_batch(objective, &[row()], &offsets, &spec, plan.stream_shape);
            let logits = |model: &LoadedModel| {
                let inputs = DeviceBatch::upload(&model.decoder, &batch, &plan).unwrap();
                download(&all_logits(&model.decoder, &model.weights, &inputs)).unwrap()
            };
            let (adapted, source) = (logits(&with), logits(&without));
            let vocab = with.decoder.cfg.vocab_size;
            let tokens = adapted.chunks(vocab).zip(source.chunks(vocab)).zip(batch.noised());
            for ((adapted, source), noised) in tokens {
                assert_eq!(adapted != source, noised == 1.0, "{arch}, {layout:?}");
            }
        }
    }
}

#[test]
fn adapters_start_as_peft_starts_them() {
    let config = ModelConfig::from_json(families::own_config("Qwen3")).unwrap();
    let shape = LoraShape {
        rank: 4,
        alpha: 8.0,
        targets: ALL_TARGETS.to_vec(),
        mask_token_id: 5,
        gated: false,
    };
    let params = Params::new(&config).with_lora(shape).unwrap();
    let table: Vec<f32> = (0..320 * 48).map(|i| i as f32).collect();
    let first = params.first_adapters(&table, 1);
    assert_eq!(first, params.first_adapters(&table, 1));
    assert_ne!(first, params.first_adapters(&table, 2));
    for (values, spec) in first.iter().zip(params.trained_specs()) {
        assert_eq!(values.len(), spec.numel(), "{}", spec.name);
        if spec.name.contains("lora_A") {
            let bound = (spec.shape[1] as f32).powf(-0.5);
            let largest = values.iter().fold(0f32, |max, v| max.max(v.abs()));
            assert!(largest <= bound && largest > 0.9 * bound, "{}: {largest}", spec.name);
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            assert!(mean.abs() < 0.25 * bound, "{}: {mean}", spec.name);
        } else if spec.name.contains("lora_B") {
            assert!(values.iter().all(|v| *v == 0.0));
        } else {
            assert_eq!(values[..], table[5 * 48..6 * 48]);
        }
    }
    // the layers' ranges are those of their adapters
    let of_layers: Vec<usize> = (0..2).flat_map(|i| params.trained_of_layer(i)).collect();
    assert_eq!(of_layers, (params.trained().start..params.trained().end - 1).collect::<Vec<_>>());
}
