//! Passes with masks: clean tokens have the bits that the source alone gives them one at a time,
//! masks what Burn computes, whatever the form of the weights.
#![allow(clippy::print_stdout, reason = "what a test measured")]

use super::tests::{configs, distance, model, upload};
use super::*;
use crate::compute::{ComputeDtype, ComputePlan, EngineChoice, device};
use crate::decode::Engine;
use crate::decode::cached::{Order, Pass, Span};
use crate::decode::placed::{Branches, Group, of_branches, of_spans};
use crate::model::lora::ALL_TARGETS;
use crate::model::params::LoraShape;
use crate::model::{ParamKind, Params, load};
use burn::prelude::*;
use burn::tensor::DType;
use dlm_datasets::rng;

/// A model with adapters on its masks alone, of no small effect.
fn gated(config: serde_json::Value, targets: usize) -> (Decoder, Vec<Vec<f32>>) {
    let (mut decoder, mut host, params) = model(config);
    let targets = ALL_TARGETS[..targets].to_vec();
    let shape = LoraShape { rank: 5, alpha: 7.5, targets, mask_token_id: 3, gated: true };
    decoder.params = params.with_lora(shape).unwrap();
    let first = decoder.params.first_adapters(&host[decoder.params.embed_tokens], 4);
    for (i, (mut values, spec)) in first.into_iter().zip(decoder.params.trained_specs()).enumerate()
    {
        if spec.kind == ParamKind::Embedding || spec.name.contains("lora_B") {
            let key = rng::key(&[77, i as u64]);
            values.iter_mut().zip(0..).for_each(|(v, at)| *v = 0.2 * rng::normal(key, at));
        }
        host.push(values);
    }
    decoder.ternary_weights = decoder.cfg.quantization.is_some();
    (decoder, host)
}

fn weights(decoder: &Decoder, host: &[Vec<f32>]) -> Weights {
    let quantized = decoder.cfg.quantization.is_some();
    let device = Device::flex();
    load::upload_frozen(host.to_vec(), &decoder.params, quantized, DType::F32, &device)
}

/// Two rows of 11 and 9 tokens with 5 and 7 new clean ones: as many tokens with masks or fewer.
fn rows() -> [Branches; 2] {
    let group = |position, len| Group { position, len };
    [
        Branches { row: 1, start: 11, clean: 3, groups: vec![group(12, 2), group(14, 4)] },
        Branches { row: 0, start: 9, clean: 1, groups: vec![group(10, 8)] },
    ]
}

fn ids(row: usize, positions: std::ops::Range<usize>) -> Vec<i64> {
    positions.map(|at| ((row * 31 + at * at * 7 + at) % 75) as i64).collect()
}

/// The ids of a pass over `rows`, with a token that stands for masks.
fn pass_ids(rows: &[Branches], mask: i64) -> Vec<i64> {
    let of = |row: &Branches| {
        let mut ids = ids(row.row, row.start..row.start + row.clean);
        ids.resize(row.len(), mask);
        ids
    };
    rows.iter().flat_map(of).collect()
}

/// The prompts in front of the passes.
const BEFORE: [Span; 2] =
    [Span { row: 0, start: 0, visible: 9 }, Span { row: 1, start: 0, visible: 11 }];

fn by_us(model: &mut CpuModel, rows: &[Branches], mask: i64) -> Vec<f32> {
    let mut cache = KvCache::new(2, 64, 64);
    for span in BEFORE {
        let spans = [span];
        let tokens = of_spans(&spans, span.visible, Order::Blocks(1));
        model.pass(&ids(span.row, 0..span.visible), tokens, &mut cache);
    }
    model.pass(&pass_ids(rows, mask), of_branches(rows), &mut cache);
    let all: usize = rows.iter().map(Branches::len).sum();
    model.logits(&(0..all).collect::<Vec<_>>())
}

fn by_burn(decoder: &Decoder, weights: &Weights, rows: &[Branches]) -> Vec<f32> {
    let compute = ComputePlan::new(device::cpu(), None);
    let mut cache = KvCache::new(2, 64, 64);
    let run = |ids: Vec<i64>, pass: Pass, cache: &mut KvCache| {
        let count = ids.len();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), &Device::flex());
        let hidden = decoder.forward_cached(weights, ids, &pass, cache);
        decoder.logits(weights, hidden).into_data().try_into_vec::<f32>().unwrap()
    };
    for span in BEFORE {
        let (len, order) = (span.visible, Order::Blocks(1));
        let pass = Pass::new(decoder, vec![span], len, order, &cache, &compute).unwrap();
        run(ids(span.row, 0..len), pass, &mut cache);
    }
    let pass = Pass::of_branches(decoder, rows, &cache, &compute).unwrap();
    run(pass_ids(rows, 0), pass, &mut cache)
}

#[test]
fn masks_get_what_burn_computes() {
    for (name, config) in configs() {
        for targets in [2, 7] {
            let (decoder, host) = gated(config.clone(), targets);
            assert_eq!(super::unsupported(&decoder), None, "{name}");
            let rows = rows();
            assert_eq!(rows[0].len(), rows[1].len());
            let theirs = by_burn(&decoder, &weights(&decoder, &host), &rows);
            let source = weights(&decoder, &host);
            let mut ours = CpuModel::new(&decoder, source, WeightFormat::Auto).unwrap();
            let ours = by_us(&mut ours, &rows, 0);
            let far = ours.chunks(75).zip(theirs.chunks(75)).map(|(a, b)| distance(a, b));
            let far: Vec<f32> = far.collect();
            let worst = far.iter().fold(0f32, |m, v| m.max(*v));
            // where BitLinear rounds its input, the last bits decide between two integers
            let bound = if name == "bitnet" { 0.05 } else { 2e-5 };
            assert!(worst < bound, "{name}, {targets} targets: {far:?}");
        }
    }
}

/// Logits of clean tokens by the source alone, one token a pass, and beside masks: bit for bit.
#[test]
fn clean_tokens_have_the_bits_of_the_source_alone() {
    for (name, config) in configs() {
        for format in [WeightFormat::Auto, WeightFormat::Bf16, WeightFormat::Int8] {
            let (decoder, host) = gated(config.clone(), 7);
            let mut plain = decoder.clone();
            plain.params = Params::new(&plain.cfg);
            plain.ternary_weights = false;
            let own = plain.params.specs.len();
            let source = upload(&host[..own], &plain.params);
            let mut source = CpuModel::new(&plain, source, format).unwrap();
            let adapted = weights(&decoder, &host);
            let mut adapted = CpuModel::new(&decoder, adapted, format).unwrap();
            let rows = rows();
            let beside = by_us(&mut adapted, &rows, 5);
            assert_eq!(beside, by_us(&mut adapted, &rows, 70), "{name}: a mask's id is not read");
            let mut first = 0;
            for row in &rows {
                // behind a prompt that was run token by token, too
                let mut cache = KvCache::new(2, 64, 64);
                for at in 0..row.start + row.clean {
                    let span = [Span { row: row.row, start: at, visible: at + 1 }];
                    let tokens = of_spans(&span, 1, Order::Full);
                    source.pass(&ids(row.row, at..at + 1), tokens, &mut cache);
                    if at >= row.start {
                        let alone = source.logits(&[0]);
                        let i = first + at - row.start;
                        let same = beside[i * 75..(i + 1) * 75]
                            .iter()
                            .zip(&alone)
                            .all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{name}, {format}: position {at} of row {}", row.row);
                    }
                }
                first += row.len();
            }
        }
    }
}

/// The native engine in fp32 computes the same, on a card or on the stand-in driver:
/// `tests/cuda/run --exec` in front of the test. Rows may have different numbers of tokens there.
#[test]
fn the_native_engine_computes_the_same() {
    let compute = match device::choose("cuda") {
        Ok(device) => ComputePlan::new(device, Some(ComputeDtype::Fp32)).on_native_engine(),
        Err(error) => return dlm_test_support::skip(&format!("native engine: {error}")),
    };
    let mut ragged = rows();
    ragged[1].groups.truncate(0);
    for (name, mut config) in configs() {
        for (key, size) in [("hidden_size", 96), ("intermediate_size", 64), ("head_dim", 16)] {
            config[key] = size.into();
        }
        (config["num_attention_heads"], config["num_key_value_heads"]) = (6.into(), 2.into());
        config["mlp_bias"] = false.into();
        config["attention_bias"] = false.into();
        let (decoder, host) = gated(config, 7);
        let source = weights(&decoder, &host);
        let mut cpu = CpuModel::new(&decoder, source.clone(), WeightFormat::Auto).unwrap();
        let (choice, format) = (EngineChoice::Native, WeightFormat::Auto);
        let mut engine = Engine::open(decoder, source, compute.clone(), choice, format).unwrap();
        for rows in [&rows()[..], &ragged] {
            let theirs = by_us(&mut cpu, rows, 0);
            let mut cache = engine.new_cache(2, 64);
            for span in BEFORE {
                let prompt = ids(span.row, 0..span.visible);
                engine.pass(&prompt, &[span], Order::Blocks(1), &mut cache).unwrap();
            }
            let hidden = engine.pass_branches(&pass_ids(rows, 3), rows, &mut cache).unwrap();
            let all: Vec<usize> = (0..rows.iter().map(Branches::len).sum()).collect();
            let ours = engine.logits(&hidden, &all).unwrap();
            let far = ours.chunks(75).zip(theirs.chunks(75)).map(|(a, b)| distance(a, b));
            let worst = far.fold(0f32, f32::max);
            let bound = if name == "bitnet" { 0.05 } else { 1e-4 };
            println!("{name}: differs by at most {worst:e}");
            assert!(worst < bound, "{name}: {worst}");
        }
    }
}
