//! The forward pass without Burn compared with Burn's on models of every family.

use serde_json::{Value, json};

use crate::compute::{ComputePlan, EngineChoice, WeightFormat, device};
use crate::decode::cached::{KvCache, Order, Pass, Span};
use crate::decode::placed::of_spans;
use crate::model::{Decoder, ModelConfig, Params, Weights, load};
use burn::prelude::*;

use super::CpuModel;

/// Shapes that no panel divides, and every switch that a family has.
pub(super) fn configs() -> Vec<(&'static str, Value)> {
    let base = json!({
        "vocab_size": 75, "hidden_size": 40, "intermediate_size": 52, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "rms_norm_eps": 1e-5,
        "rope_theta": 1e4, "initializer_range": 0.3,
    });
    let with = |more: Value| {
        let mut config = base.clone();
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    };
    vec![
        (
            "llama, tied, biases",
            with(json!({
                "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": true,
                "attention_bias": true, "mlp_bias": true,
            })),
        ),
        (
            "llama, aligned",
            with(json!({
                "architectures": ["LlamaForCausalLM"], "hidden_size": 96, "intermediate_size": 64,
                "head_dim": 32, "num_attention_heads": 3, "num_key_value_heads": 3,
            })),
        ),
        ("qwen2", with(json!({"architectures": ["Qwen2ForCausalLM"]}))),
        ("qwen3", with(json!({"architectures": ["Qwen3ForCausalLM"]}))),
        (
            "bitnet",
            with(json!({
                "architectures": ["BitNetForCausalLM"], "hidden_size": 60, "hidden_act": "relu2",
                "num_hidden_layers": 1,
                "quantization_config": {
                    "quant_method": "bitnet", "linear_class": "autobitlinear",
                    "quantization_mode": "online",
                },
            })),
        ),
    ]
}

pub(super) fn model(config: Value) -> (Decoder, Vec<Vec<f32>>, Params) {
    let config = ModelConfig::from_json(config).unwrap();
    let params = Params::new(&config);
    let mut host = load::random_host(&config, &params, 3);
    // norms and biases are not all ones and zeros in a trained model
    for (spec, values) in params.specs.iter().zip(&mut host) {
        if spec.shape.len() == 1 {
            let shift = |(i, v): (usize, &mut f32)| *v += ((i * 37 % 19) as f32 - 9.0) * 0.02;
            values.iter_mut().enumerate().for_each(shift);
        }
    }
    (Decoder::new(config), host, params)
}

pub(super) fn upload(host: &[Vec<f32>], params: &Params) -> Weights {
    load::upload(host.to_vec(), params, &Device::flex())
}

/// Logits of every token of a few passes, `[T, vocab_size]` each: prompts of two rows, blocks that
/// run twice, a part of a block, single tokens; the cache grows in between.
struct Passes {
    list: Vec<(Vec<Span>, usize, Order)>,
}

impl Passes {
    fn new() -> Self {
        let span = |row, start, visible| Span { row, start, visible };
        Passes {
            list: vec![
                (vec![span(0, 0, 40)], 40, Order::Blocks(8)),
                (vec![span(1, 0, 7)], 7, Order::Blocks(1)),
                (vec![span(0, 40, 48), span(1, 7, 15)], 8, Order::Full),
                (vec![span(0, 40, 48), span(1, 7, 15)], 8, Order::Full),
                (vec![span(1, 11, 15), span(0, 44, 48)], 4, Order::Full),
                (vec![span(0, 48, 49)], 1, Order::Full),
                (vec![span(0, 49, 85)], 36, Order::Blocks(36)),
                (vec![span(0, 85, 86), span(1, 15, 16)], 1, Order::Full),
            ],
        }
    }

    fn ids(i: usize, count: usize) -> Vec<i64> {
        (0..count).map(|t| ((t * 29 + i * 11 + 3) % 75) as i64).collect()
    }

    fn by_burn(&self, decoder: &Decoder, weights: &Weights) -> Vec<Vec<f32>> {
        let compute = ComputePlan::new(device::cpu(), None);
        let mut cache = KvCache::new(2, 96, 96);
        let run = |(i, (spans, len, order)): (usize, &(Vec<Span>, usize, Order))| {
            let ids = Self::ids(i, spans.len() * len);
            let ids = Tensor::<1, Int>::from_data(
                TensorData::new(ids, [spans.len() * len]),
                &Device::flex(),
            );
            let pass = Pass::new(decoder, spans.clone(), *len, *order, &cache, &compute).unwrap();
            let hidden = decoder.forward_cached(weights, ids, &pass, &mut cache);
            decoder.logits(weights, hidden).into_data().try_into_vec::<f32>().unwrap()
        };
        self.list.iter().enumerate().map(run).collect()
    }

    fn by_us(&self, model: &mut CpuModel) -> Vec<Vec<f32>> {
        let mut cache = KvCache::new(2, 48, 96);
        let run = |(i, (spans, len, order)): (usize, &(Vec<Span>, usize, Order))| {
            if spans.iter().any(|span| span.visible > 48) {
                cache.grow(96);
            }
            let ids = Self::ids(i, spans.len() * len);
            model.pass(&ids, of_spans(spans, *len, *order), &mut cache);
            model.logits(&(0..ids.len()).collect::<Vec<_>>())
        };
        self.list.iter().enumerate().map(run).collect()
    }
}

/// Largest difference, relative to the largest logit.
pub(super) fn distance(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let size = theirs.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    ours.iter().zip(theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs() / size))
}

#[test]
fn logits_of_every_family_equal_those_of_burn() {
    for (name, config) in configs() {
        let (decoder, host, params) = model(config);
        assert_eq!(super::unsupported(&decoder), None, "{name}");
        let passes = Passes::new();
        let theirs = passes.by_burn(&decoder, &upload(&host, &params));
        let mut ours = CpuModel::new(&decoder, upload(&host, &params), WeightFormat::Auto).unwrap();
        let logits = passes.by_us(&mut ours);
        for (i, (ours, theirs)) in logits.iter().zip(&theirs).enumerate() {
            let far = ours.chunks(75).zip(theirs.chunks(75)).map(|(a, b)| distance(a, b));
            let far: Vec<f32> = far.collect();
            let worst = far.iter().fold(0f32, |m, v| m.max(*v));
            // where BitLinear rounds its input, the last bits decide between two integers
            let near = far.iter().filter(|far| **far < 1e-5).count();
            match name {
                "bitnet" => assert!(
                    near * 10 >= far.len() * 8 && worst < 0.05,
                    "{name}, pass {i}: {near} of {}, {worst}",
                    far.len()
                ),
                _ => assert!(worst < 2e-5, "{name}, pass {i}: {worst}"),
            }
        }
        // weights that bf16 holds exactly give the same from bf16
        let short = |v: &Vec<f32>| v.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
        let host: Vec<Vec<f32>> = host.iter().map(short).collect();
        let [auto, fp32] = [WeightFormat::Auto, WeightFormat::Fp32].map(|format| {
            passes.by_us(&mut CpuModel::new(&decoder, upload(&host, &params), format).unwrap())
        });
        if name != "bitnet" {
            assert_eq!(auto, fp32, "{name}: bf16 holds the same weights");
        }
    }
}

/// Rounded weights change logits by what rounding may change, not more.
#[test]
fn rounded_weights_stay_near() {
    let (_, mut config) = configs().swap_remove(1);
    config["initializer_range"] = json!(0.1);
    let (decoder, host, params) = model(config);
    let passes = Passes::new();
    let exact = passes.by_burn(&decoder, &upload(&host, &params));
    for (format, bound) in [(WeightFormat::Bf16, 0.03), (WeightFormat::Int8, 0.06)] {
        let mut model = CpuModel::new(&decoder, upload(&host, &params), format).unwrap();
        for (ours, exact) in passes.by_us(&mut model).iter().zip(&exact) {
            let far = distance(ours, exact);
            assert!(far < bound && far > 1e-6, "{format}: {far}");
        }
    }
}

/// A row has the same bits alone and beside others, and its prediction is the largest logit.
#[test]
fn predictions_are_those_of_the_logits() {
    let (_, config) = configs().swap_remove(0);
    let (decoder, host, params) = model(config);
    let mut model = CpuModel::new(&decoder, upload(&host, &params), WeightFormat::Auto).unwrap();
    let ids = Passes::ids(1, 27);
    let spans: Vec<Span> = (0..3).map(|row| Span { row, start: 0, visible: 9 }).collect();
    model.pass(&ids, of_spans(&spans, 9, Order::Blocks(3)), &mut KvCache::new(3, 32, 32));
    let at: Vec<usize> = (0..27).rev().collect();
    let logits = model.logits(&at);
    let plain = model.predict(&at, None);
    let never = plain[4].0;
    let without = model.predict(&at, Some(never));
    for (i, logits) in logits.chunks(75).enumerate() {
        for (never, (token, probability)) in [(None, plain[i]), (Some(never), without[i])] {
            let allowed = |t: &usize| Some(*t as i64) != never;
            let best = (0..75).filter(allowed).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
            assert_eq!(best, Some(token as usize), "position {i}");
            let sum: f64 = (0..75)
                .filter(allowed)
                .map(|t| f64::from(logits[t] - logits[token as usize]).exp())
                .sum();
            assert!((f64::from(probability) - 1.0 / sum).abs() < 1e-6, "position {i}");
        }
    }
    let mut alone = CpuModel::new(&decoder, upload(&host, &params), WeightFormat::Auto).unwrap();
    let mut cache = KvCache::new(1, 64, 64);
    alone.pass(&ids[9..18], of_spans(&spans[..1], 9, Order::Blocks(3)), &mut cache);
    let same: Vec<usize> = (0..9).rev().collect();
    assert_eq!(alone.logits(&same), logits[9 * 75..18 * 75]);
    assert_eq!(alone.predict(&same, None), plain[9..18]);
}

#[test]
fn models_that_mix_kinds_of_maps_are_left_to_burn() {
    let (_, mut config) = configs().pop().unwrap();
    config["quantization_config"]["modules_to_not_convert"] = json!(["lm_head", "v_proj"]);
    let (decoder, host, params) = model(config);
    assert!(super::unsupported(&decoder).unwrap().contains("BitLinear"));
    let compute = || ComputePlan::new(device::cpu(), None);
    let open = |decoder: &Decoder, choice, format| {
        let weights = upload(&host, &params);
        crate::decode::Engine::open(decoder.clone(), weights, compute(), choice, format)
    };
    let engine = |format| open(&decoder, EngineChoice::Auto, format);
    assert!(engine(WeightFormat::Auto).is_ok());
    let error = engine(WeightFormat::Int8).err().unwrap();
    assert!(error.to_string().contains("some are BitLinear and some are not"), "{error}");
    let mut plain = decoder.clone();
    plain.cfg.quantization = None;
    assert!(open(&plain, EngineChoice::Auto, WeightFormat::Int8).is_ok());
    let error = open(&plain, EngineChoice::Burn, WeightFormat::Int8).err().unwrap();
    assert!(error.to_string().contains("--engine burn"), "{error}");
}
