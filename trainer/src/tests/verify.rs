//! Decoding that verifies proposals gives the source's own tokens: every family, adapters that are
//! wrong and adapters that are right, alone and beside rows that come and go.

use burn::prelude::*;
use burn::tensor::DType;
use dlm_datasets::rng;
use dlm_test_support::fixtures;

use crate::compute::{ComputePlan, EngineChoice, WeightFormat, device};
use crate::decode::continuous::{Continuous, RowId};
use crate::decode::sampling::by_the_book;
use crate::decode::{
    DecodedSequence, Engine, Event, Request, RowMode, Sampling, StopStrings, VerifyOptions,
    decode_list,
};
use crate::io::adapter::Adapter;
use crate::io::load_model::{HostModel, LoadOptions, LoadedModel, load_model};
use crate::model::lora::ALL_TARGETS;
use crate::model::params::LoraShape;
use crate::model::{ParamKind, Params};
use crate::tests::text_stream::sample;

const MASK: i64 = 319;

/// Fixtures of every family with their adapters.
const MODELS: [(&str, &str); 5] = [
    ("llama_tiny", "lossless_llama"),
    ("qwen2_tiny", "lossless_qwen2"),
    ("qwen2_peaky", "lossless_qwen2_untied"),
    ("qwen3_tiny", "lossless_qwen3"),
    ("bitnet_tiny", "lossless_bitnet"),
];

fn open(model: LoadedModel, choice: EngineChoice, format: WeightFormat) -> Engine {
    let compute = ComputePlan::new(device::cpu(), None);
    Engine::open(model.decoder, model.weights, compute, choice, format).unwrap()
}

fn source(model: &str) -> LoadedModel {
    load_model(&fixtures().join(model), LoadOptions::default(), &device::cpu().device).unwrap()
}

/// The fixture's own adapter, which was not trained.
fn with_adapter(model: &str, adapter: &str) -> LoadedModel {
    let host = HostModel::read(&fixtures().join(model)).unwrap();
    let rows = host.config.vocab_size;
    let adapter = Adapter::read(&fixtures().join(adapter)).unwrap();
    let device = device::cpu().device;
    adapter.attach(host, Some(MASK), true, DType::F32, &device).unwrap().with_vocabulary(rows)
}

/// Adapters whose products are B = `size` times random numbers, and a mask token that is embedded
/// as `row`.
fn with_random(model: &str, size: f32, row: Option<i64>) -> LoadedModel {
    let host = HostModel::read(&fixtures().join(model)).unwrap();
    let targets = ALL_TARGETS.to_vec();
    let mask_token_id = MASK as usize;
    let shape = LoraShape { rank: 3, alpha: 6.0, targets, mask_token_id, gated: true };
    let first = |params: &Params, table: &[f32]| {
        let mut values = params.first_adapters(table, 9);
        let width = params.specs[params.embed_tokens].shape[1];
        for (i, (values, spec)) in values.iter_mut().zip(params.trained_specs()).enumerate() {
            let key = rng::key(&[5, i as u64]);
            match (spec.kind, row) {
                (ParamKind::Embedding, Some(id)) => {
                    values.copy_from_slice(&table[id as usize * width..][..width]);
                }
                _ if spec.name.contains("lora_B") => {
                    let random = |(v, at): (&mut f32, u64)| *v = size * rng::normal(key, at);
                    values.iter_mut().zip(0..).for_each(random);
                }
                _ => {}
            }
        }
        Ok(values)
    };
    host.adapted(shape, first, DType::F32, &device::cpu().device).unwrap()
}

/// Requests in `ar` mode: prompts of one token to several chunks, with ends of every kind.
fn requests(count: u64, never: Option<i64>) -> Vec<Request> {
    let codec = sample();
    let request = |i: u64| {
        let key = rng::key(&[40, i]);
        let below = |at: u64, n: usize| (rng::uniform(key, at) * n as f64) as usize;
        let len = if i % 9 == 4 { 600 } else { 1 + below(0, 70) };
        let stop = StopStrings { codec: codec.clone(), strings: vec!["e".into(), ": ".into()] };
        Request {
            prompt: (0..len as u64).map(|at| below(9 + at, 300) as i64).collect(),
            mode: RowMode::Ar,
            max_new_tokens: [0, 1, 2, 3, 17, 40, 41, 60][below(1, 8)],
            stop_ids: (0..below(2, 3) * 4).map(|at| below(1000 + at as u64, 300) as i64).collect(),
            mask_id: never,
            sampling: None,
            stop: (i % 4 == 3).then_some(stop),
        }
    };
    (0..count).map(request).collect()
}

fn verifying(request: &Request, propose: usize) -> Request {
    let options = VerifyOptions { propose, most_masks: 6, mask_id: MASK };
    Request { mode: RowMode::Verify(options), ..request.clone() }
}

fn decode(engine: &mut Engine, requests: &[Request], slots: usize) -> Vec<DecodedSequence> {
    let mut found: Vec<Option<DecodedSequence>> = vec![None; requests.len()];
    let mut told = vec![Vec::new(); requests.len()];
    decode_list(engine, slots, requests.to_vec(), |event| {
        match event.event {
            Event::Tokens { ids, .. } => told[event.at].extend(ids),
            Event::Finished { sequence, .. } => found[event.at] = Some(sequence),
        }
        Ok(true)
    })
    .unwrap();
    let found: Vec<DecodedSequence> = found.into_iter().flatten().collect();
    for (sequence, told) in found.iter().zip(told) {
        assert_eq!(sequence.generated(), told, "what was told is what there is");
    }
    found
}

/// Tokens, their probabilities to the last bit, and ends of `found` are those of `expected`.
fn assert_same(found: &[DecodedSequence], expected: &[DecodedSequence], case: &str) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.ids, expected.ids, "{case}, request {i}");
        assert_eq!(found.finish_reason, expected.finish_reason, "{case}, request {i}");
        assert_eq!(found.text_end, expected.text_end, "{case}, request {i}");
        let bits = |of: &DecodedSequence| -> Vec<u32> {
            of.decided.iter().map(|decided| decided.probability.to_bits()).collect()
        };
        assert_eq!(bits(found), bits(expected), "{case}, request {i}");
    }
}

#[test]
fn tokens_are_those_of_the_source_in_every_family() {
    for (model, adapter) in MODELS {
        let mut own = open(source(model), EngineChoice::Auto, WeightFormat::Auto);
        let models = [with_adapter(model, adapter), with_random(model, 0.3, None)];
        let asked = requests(18, None);
        let expected = decode(&mut own, &asked, 1);
        for (i, adapted) in models.into_iter().enumerate() {
            let mut engine = open(adapted, EngineChoice::Auto, WeightFormat::Auto);
            assert_same(&decode(&mut engine, &asked, 3), &expected, "ar beside adapters");
            for (propose, slots) in [(1, 1), (4, 1), (12, 1), (7, 16)] {
                let case = format!("{model}, adapter {i}, {propose} in {slots} slots");
                let asked: Vec<Request> = asked.iter().map(|r| verifying(r, propose)).collect();
                let found = decode(&mut engine, &asked, slots);
                assert_same(&found, &expected, &case);
                for (found, request) in found.iter().zip(&asked) {
                    let (tokens, passes) = (found.generated().len(), found.passes.total());
                    assert!(passes <= tokens.max(1) && tokens <= request.max_new_tokens, "{case}");
                }
            }
        }
    }
}

/// Weights in other forms round the source; the tokens are those of the source so rounded.
#[test]
fn tokens_are_those_of_rounded_weights() {
    for (model, adapter) in [MODELS[2], MODELS[3], MODELS[4]] {
        for format in [WeightFormat::Fp32, WeightFormat::Bf16, WeightFormat::Int8] {
            let mut own = open(source(model), EngineChoice::Auto, format);
            let mut engine = open(with_adapter(model, adapter), EngineChoice::Auto, format);
            let asked = requests(8, Some(MASK));
            let expected = decode(&mut own, &asked, 1);
            let asked: Vec<Request> = asked.iter().map(|r| verifying(r, 6)).collect();
            assert_same(&decode(&mut engine, &asked, 4), &expected, &format!("{model}, {format}"));
        }
    }
}

/// On Burn's tensors, by tiles and by a mask, tokens are the same; sums may be ordered otherwise.
#[test]
fn tokens_are_those_of_the_source_on_burn() {
    for (model, adapter) in MODELS {
        let asked = requests(8, None);
        let mut own = open(source(model), EngineChoice::Burn, WeightFormat::Auto);
        let expected = decode(&mut own, &asked, 1);
        let engine = || open(with_adapter(model, adapter), EngineChoice::Burn, WeightFormat::Auto);
        for mut engine in [engine(), engine().without_tiles().unwrap()] {
            let asked: Vec<Request> = asked.iter().map(|r| verifying(r, 6)).collect();
            for (found, expected) in decode(&mut engine, &asked, 4).iter().zip(&expected) {
                assert_eq!(found.ids, expected.ids, "{model}");
            }
        }
    }
}

/// Where the source says one token again and again, a mask embedded as that token is right.
#[test]
fn right_proposals_are_accepted_and_save_passes() {
    let mut repeating = 0;
    for (model, _) in MODELS {
        let mut own = open(source(model), EngineChoice::Auto, WeightFormat::Auto);
        for token in 0..300 {
            let first =
                Request { max_new_tokens: 1, ..endless(vec![token; 12], RowMode::Ar, None) };
            if decode(&mut own, &[first], 1)[0].generated() != [token] {
                continue;
            }
            let request =
                Request { max_new_tokens: 60, ..endless(vec![token; 12], RowMode::Ar, None) };
            let expected = decode(&mut own, std::slice::from_ref(&request), 1);
            if expected[0].generated().iter().any(|id| *id != token) {
                continue;
            }
            repeating += 1;
            let adapted = with_random(model, 0.0, Some(token));
            let mut engine = open(adapted, EngineChoice::Auto, WeightFormat::Auto);
            let found = decode(&mut engine, &[verifying(&request, 11)], 1);
            assert_same(&found, &expected, model);
            let (passes, proposals) = (found[0].passes.total(), found[0].proposals.unwrap());
            assert_eq!(proposals.accepted, proposals.verified, "{model}, {token}");
            assert!(passes <= 40 && proposals.accepted >= 20, "{model}: {passes}, {proposals:?}");
            break;
        }
    }
    assert!(repeating >= 1, "{repeating} of {} models repeat a token", MODELS.len());
}

fn endless(prompt: Vec<i64>, mode: RowMode, sampling: Option<Sampling>) -> Request {
    let (max_new_tokens, stop_ids, mask_id, stop) = (30, Vec::new(), None, None);
    Request { prompt, mode, max_new_tokens, stop_ids, mask_id, sampling, stop }
}

/// Rows of verify and `ar` mode, greedy and drawn, in one batch that rows leave in the middle:
/// each gets what it gets alone.
#[test]
fn rows_beside_cancelled_ones_get_what_they_get_alone() {
    for (model, adapter) in [MODELS[0], MODELS[2], MODELS[4]] {
        let mut engine = open(with_adapter(model, adapter), EngineChoice::Auto, WeightFormat::Auto);
        let mut asked = requests(24, None);
        for (i, request) in asked.iter_mut().enumerate() {
            let (temperature, top_k) = ([0.5, 1.0, 1.7][i % 3], [0, 5][i % 2]);
            let sampling = Sampling { temperature, top_p: 0.95, top_k, seed: i as u64 };
            request.sampling = (i % 5 > 2).then_some(sampling);
            if i % 4 > 0 {
                *request = verifying(request, 3 + i % 9);
            }
        }
        let alone: Vec<DecodedSequence> = asked
            .iter()
            .map(|request| decode(&mut engine, std::slice::from_ref(request), 1).remove(0))
            .collect();
        let mut rows = Continuous::new(5, 1300);
        let mut ids: Vec<RowId> = Vec::new();
        let (mut removed, mut checked, mut steps) = (Vec::new(), 0, 0);
        while ids.len() < asked.len() || !rows.is_empty() {
            if rows.free_slots() > 0 && ids.len() < asked.len() {
                ids.push(rows.add(&engine, asked[ids.len()].clone()).unwrap());
            }
            steps += 1;
            if steps % 7 == 0 {
                let id = ids[ids.len() * 2 / 3];
                rows.remove(id);
                removed.push(id);
            }
            for event in rows.step(&mut engine).unwrap() {
                let Event::Finished { row, sequence } = event else { continue };
                let at = ids.iter().position(|id| *id == row).unwrap();
                assert_eq!(sequence, alone[at], "{model}, request {at}");
                checked += 1;
            }
        }
        assert!(checked > 12 && removed.len() > 2, "{checked}, {removed:?}");
    }
}

/// Joint frequencies of three drawn tokens are the products of the source's probabilities:
/// Pearson's test over all outcomes, at fixed seeds.
#[test]
fn drawn_tokens_have_the_source_s_distribution() {
    const TOKENS: usize = 3;
    const DRAWS: u64 = 3000;
    let how = |seed| Sampling { temperature: 2.5, top_p: 1.0, top_k: 3, seed };
    let prompt: Vec<i64> = vec![5, 81, 33, 7, 19];
    let LoadedModel { decoder, weights } = source("qwen2_peaky");
    let logits = |ids: &[i64]| {
        let compute = ComputePlan::new(device::cpu(), None);
        let mut cache = crate::decode::cached::KvCache::new(1, ids.len(), ids.len());
        let spans = vec![crate::decode::cached::Span { row: 0, start: 0, visible: ids.len() }];
        let order = crate::decode::cached::Order::Blocks(1);
        let pass =
            crate::decode::cached::Pass::new(&decoder, spans, ids.len(), order, &cache, &compute);
        let data = TensorData::new(ids.to_vec(), [ids.len()]);
        let tensor = Tensor::<1, Int>::from_data(data, &Device::flex());
        let hidden = decoder.forward_cached(&weights, tensor, &pass.unwrap(), &mut cache);
        let last = hidden.narrow(0, ids.len() - 1, 1);
        decoder.logits(&weights, last).into_data().try_into_vec::<f32>().unwrap()
    };
    let mut outcomes: Vec<(Vec<i64>, f64)> = vec![(Vec::new(), 1.0)];
    for _ in 0..TOKENS {
        let longer = |(tokens, p): &(Vec<i64>, f64)| {
            let book = by_the_book(&how(0), &logits(&[&prompt[..], tokens].concat()), None);
            let (tokens, p) = (tokens.clone(), *p);
            book.into_iter().map(move |(id, own)| ([&tokens[..], &[id]].concat(), p * own))
        };
        outcomes = outcomes.iter().flat_map(longer).collect();
    }
    assert_eq!(outcomes.len(), 27);
    for size in [0.0, 0.4] {
        let adapted = with_random("qwen2_peaky", size, None);
        let mut engine = open(adapted, EngineChoice::Auto, WeightFormat::Auto);
        let request = |seed| {
            let request = endless(prompt.clone(), RowMode::Ar, Some(how(seed)));
            verifying(&Request { max_new_tokens: 8, ..request }, 6)
        };
        let asked: Vec<Request> = (0..DRAWS).map(request).collect();
        let mut counts = vec![0usize; outcomes.len()];
        let mut accepted = 0;
        for found in decode(&mut engine, &asked, 24) {
            let tokens = &found.generated()[..TOKENS];
            let at = outcomes.iter().position(|(outcome, _)| outcome == tokens);
            counts[at.expect("a token that top-k leaves out")] += 1;
            accepted += found.proposals.unwrap().accepted;
        }
        let terms = outcomes.iter().zip(&counts).map(|((_, p), count)| {
            let expected = p * DRAWS as f64;
            (*count as f64 - expected).powi(2) / expected
        });
        let chi: f64 = terms.sum();
        // the 99.9 % quantile at 26 degrees of freedom
        assert!(chi < 54.05, "{size}: {chi}, {counts:?}");
        assert!(accepted > 100, "{accepted} proposals accepted");
    }
}
