//! Decoding compared with the reference's own decodes: the same tokens from the same number of
//! passes of each kind.
//!
//! In: `decode_*.json` and the tiny models of tests/fixtures, described in its README.md.

use std::path::{Path, PathBuf};

use crate::compute::{ComputeDtype, ComputePlan, EngineChoice, WeightFormat, device};
use crate::decode::cached::{KvCache, Order, Pass, Span};
use crate::decode::{
    BlockOptions, DecodedSequence, Engine, Event, FinishReason, Request, RowMode, decode_list,
};
use crate::io::load_model::{HostModel, LoadOptions, LoadedModel, load_model};
use crate::kernels::linear::ternary_weight;
use crate::model::config::Quantization;
use crate::model::{Decoder, ParamKind, load};
use burn::prelude::*;
use dlm_test_support::fixtures;
use serde::Deserialize;

#[derive(Deserialize)]
pub(super) struct File {
    pub mask_id: i64,
    /// Without it the model has the token shift.
    pub token_shift: Option<bool>,
    pub cases: Vec<Case>,
}

#[derive(Deserialize)]
pub(super) struct Case {
    pub prompt: Vec<i64>,
    pub max_new_tokens: usize,
    pub block_size: usize,
    small_block_size: usize,
    threshold: f64,
    pub use_block_cache: bool,
    stop_token: Option<i64>,
    pub expected: Vec<i64>,
    pub passes: Counts,
}

#[derive(Deserialize, Debug, PartialEq)]
pub(super) struct Counts {
    pub prefill: usize,
    pub block: usize,
    pub small: usize,
    pub commit: usize,
    pub total: usize,
}

#[derive(Deserialize)]
struct BatchFile {
    mask_id: i64,
    block_size: usize,
    cases: Vec<BatchCase>,
}

#[derive(Deserialize)]
struct BatchCase {
    max_new_tokens: usize,
    threshold: f64,
    small_block_size: usize,
    stop_token: Option<i64>,
    batch_forward_passes: usize,
    rows: Vec<BatchRow>,
}

#[derive(Deserialize)]
struct BatchRow {
    prompt: Vec<i64>,
    expected: Vec<i64>,
    expected_single: Vec<i64>,
}

pub(super) fn engine(dir: &Path) -> Engine {
    engine_on(dir, ComputePlan::new(device::cpu(), None))
}

fn engine_on(dir: &Path, compute: ComputePlan) -> Engine {
    engine_by(dir, compute, EngineChoice::Auto)
}

fn engine_by(dir: &Path, compute: ComputePlan, choice: EngineChoice) -> Engine {
    let LoadedModel { decoder, weights } =
        load_model(dir, LoadOptions::default(), &compute.device.device).unwrap();
    Engine::open(decoder, weights, compute, choice, WeightFormat::Auto).unwrap()
}

/// On Burn, where the usual engine does without.
fn on_burn(dir: &Path) -> Engine {
    engine_by(dir, ComputePlan::new(device::cpu(), None), EngineChoice::Burn)
}

pub(super) fn read<T: for<'a> Deserialize<'a>>(path: PathBuf) -> T {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A request without its prompt.
pub(super) fn options(case: &Case, file: &File) -> Request {
    let block = BlockOptions {
        sub_block_cache: case.use_block_cache,
        token_shift: file.token_shift != Some(false),
        ..BlockOptions::published(case.block_size, case.small_block_size, case.threshold)
    };
    Request {
        prompt: Vec::new(),
        mode: RowMode::Block(block),
        max_new_tokens: case.max_new_tokens,
        mask_id: Some(file.mask_id),
        stop_ids: case.stop_token.into_iter().collect(),
        sampling: None,
        stop: None,
    }
}

/// Decodes prompts together.
pub(super) fn decode(
    engine: &mut Engine,
    prompts: &[Vec<i64>],
    options: &Request,
) -> crate::error::Result<Vec<DecodedSequence>> {
    let requests: Vec<Request> =
        prompts.iter().map(|ids| Request { prompt: ids.clone(), ..options.clone() }).collect();
    let mut done: Vec<Option<DecodedSequence>> = prompts.iter().map(|_| None).collect();
    decode_list(engine, prompts.len(), requests, |told| {
        if let Event::Finished { sequence, .. } = told.event {
            done[told.at] = Some(sequence);
        }
        Ok(true)
    })?;
    Ok(done.into_iter().map(Option::unwrap).collect())
}

fn check(model: &str) {
    check_file(model, &format!("decode_{model}.json"));
}

fn check_file(model: &str, file: &str) {
    let dir = fixtures();
    let file: File = read(dir.join(file));
    compare(model, engine(&dir.join(model)), &file);
    compare(model, on_burn(&dir.join(model)), &file);
    // The form of attention that other devices run.
    compare(model, on_burn(&dir.join(model)).without_tiles().unwrap(), &file);
}

fn compare(model: &str, mut engine: Engine, file: &File) {
    let mut wrong = Vec::new();
    for (i, case) in file.cases.iter().enumerate() {
        let prompt = std::slice::from_ref(&case.prompt);
        let done = decode(&mut engine, prompt, &options(case, file)).unwrap().remove(0);
        let p = done.passes;
        let counts = Counts {
            prefill: p.prefill,
            block: p.block,
            small: p.small,
            commit: p.commit,
            total: p.total(),
        };
        if done.ids != case.expected || counts != case.passes {
            wrong.push(format!(
                "case {i}: {counts:?} for {:?}, tokens {}",
                case.passes,
                done.ids == case.expected
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{model}: {} of {} differ\n{}",
        wrong.len(),
        file.cases.len(),
        wrong.join("\n")
    );
}

#[test]
fn qwen2_tiny() {
    check("qwen2_tiny");
}

#[test]
fn qwen2_peaky() {
    check("qwen2_peaky");
}

#[test]
fn llama_tiny() {
    check("llama_tiny");
}

#[test]
fn qwen3_tiny() {
    check("qwen3_tiny");
}

#[test]
fn bitnet_tiny() {
    check("bitnet_tiny");
}

#[test]
fn without_the_token_shift() {
    for model in ["qwen2_peaky", "qwen3_tiny"] {
        check_file(model, &format!("decode_noshift_{model}.json"));
    }
}

/// Rows of different lengths decoded together give what each row gives alone, in no more passes
/// than the reference's batch.
#[test]
fn batches() {
    let dir = fixtures();
    check_batches(&dir, engine(&dir.join("qwen2_peaky")));
    check_batches(&dir, on_burn(&dir.join("qwen2_peaky")));
    check_batches(&dir, on_burn(&dir.join("qwen2_peaky")).without_tiles().unwrap());
}

/// The native engine in fp32 decodes what the CPU decodes, on a card or on the stand-in driver:
/// `tests/cuda/run --exec` in front of the test, which then takes eight minutes.
#[test]
fn native_engine() {
    let compute = match device::choose("cuda") {
        Ok(device) => ComputePlan::new(device, Some(ComputeDtype::Fp32)).on_native_engine(),
        Err(error) => return dlm_test_support::skip(&format!("native engine: {error}")),
    };
    let dir = fixtures();
    let models = ["qwen2_tiny", "qwen2_peaky", "llama_tiny", "qwen3_tiny", "bitnet_tiny"];
    let files = models.map(|model| (model, format!("decode_{model}.json")));
    let shiftless = ("qwen3_tiny", "decode_noshift_qwen3_tiny.json".to_string());
    for (model, file) in files.into_iter().chain([shiftless]) {
        let file: File = read(dir.join(file));
        compare(model, engine_on(&dir.join(model), compute.clone()), &file);
    }
    check_batches(&dir, engine_on(&dir.join("qwen2_peaky"), compute));
}

fn check_batches(dir: &Path, mut engine: Engine) {
    let file: BatchFile = read(dir.join("decode_batch_qwen2_peaky.json"));
    for (i, case) in file.cases.iter().enumerate() {
        let prompts: Vec<_> = case.rows.iter().map(|row| row.prompt.clone()).collect();
        let block = BlockOptions::published(file.block_size, case.small_block_size, case.threshold);
        let options = Request {
            prompt: Vec::new(),
            mode: RowMode::Block(block),
            max_new_tokens: case.max_new_tokens,
            mask_id: Some(file.mask_id),
            stop_ids: case.stop_token.into_iter().collect(),
            sampling: None,
            stop: None,
        };
        let done = decode(&mut engine, &prompts, &options).unwrap();
        // The reference's batch decodes more blocks of short prompts than they request.
        let longer = Request { max_new_tokens: 160, ..options.clone() };
        let longer = decode(&mut engine, &prompts, &longer).unwrap();
        for (row, ((done, longer), want)) in done.iter().zip(&longer).zip(&case.rows).enumerate() {
            for reference in [&want.expected, &want.expected_single] {
                assert!(
                    longer.ids.starts_with(reference),
                    "case {i} row {row}: {:?}, expected {reference:?}",
                    longer.ids
                );
            }
            assert!(longer.ids.starts_with(&done.ids), "case {i} row {row}");
            let ends = file.block_size * (want.prompt.len() / file.block_size + 2) + 1;
            assert!(
                done.ids.len() == ends || done.finish_reason == FinishReason::StopToken,
                "case {i} row {row}: {} tokens",
                done.ids.len()
            );
            assert!(
                done.passes.total() <= case.batch_forward_passes,
                "case {i} row {row}: {:?}",
                done.passes
            );
        }
    }
}

/// With the sub-block cache, a batch gives each row what it gives alone.
#[test]
fn sub_block_cache_in_a_batch() {
    let dir = fixtures();
    let file: File = read(dir.join("decode_qwen2_peaky.json"));
    let mut engine = engine(&dir.join("qwen2_peaky"));
    let cached = |case: &&Case| {
        case.use_block_cache
            && case.small_block_size == 8
            && case.threshold == 0.9
            && case.stop_token.is_none()
    };
    let cases: Vec<&Case> = file.cases.iter().filter(cached).collect();
    let prompts: Vec<_> = cases.iter().map(|case| case.prompt.clone()).collect();
    let done = decode(&mut engine, &prompts, &options(cases[0], &file)).unwrap();
    for (i, (done, case)) in done.iter().zip(&cases).enumerate() {
        assert_eq!(done.ids, case.expected, "row {i}");
        assert_eq!(done.passes.total(), case.passes.total, "row {i}");
    }
}

/// One token per pass with the cache equals running the whole sequence again for every token, also
/// in a batch of rows of different lengths.
#[test]
fn autoregressive_equals_full_passes() {
    let dir = fixtures();
    for model in ["qwen2_peaky", "llama_tiny", "qwen3_tiny", "bitnet_tiny"] {
        let mut engine = engine(&dir.join(model));
        let prompts: Vec<Vec<i64>> = [3usize, 40, 17]
            .map(|len| (0..len as i64).map(|i| (i * 37 + 11) % 300).collect())
            .to_vec();
        let step = |stop_ids: Vec<i64>, max_new_tokens| Request {
            prompt: Vec::new(),
            mode: RowMode::Ar,
            max_new_tokens,
            stop_ids,
            mask_id: Some(319),
            sampling: None,
            stop: None,
        };
        let done = decode(&mut engine, &prompts, &step(vec![], 70)).unwrap();
        for (prompt, done) in prompts.iter().zip(&done) {
            let mut ids = prompt.clone();
            for _ in 0..70 {
                ids = decode(&mut engine, &[ids], &step(vec![], 1)).unwrap().remove(0).ids;
            }
            assert_eq!(done.ids, ids, "{model}, prompt of {}", prompt.len());
            assert_eq!((done.passes.prefill, done.passes.block), (1, 69));
            let stop = done.generated()[40];
            let cut = decode(&mut engine, std::slice::from_ref(prompt), &step(vec![stop], 70))
                .unwrap()
                .remove(0);
            let first = done.generated().iter().position(|id| *id == stop).unwrap();
            assert_eq!(
                (cut.generated(), cut.finish_reason),
                (&done.generated()[..=first], FinishReason::StopToken)
            );
        }
    }
}

/// Quantising BitNet's matrices once, before decoding, gives the same as quantising them in every
/// pass.
#[test]
fn ternary_weights_once() {
    let dir = fixtures();
    let device = Device::flex();
    let HostModel { config: mut cfg, params, values: host } =
        HostModel::read(&dir.join("bitnet_tiny")).unwrap();
    cfg.quantization = Some(Quantization::Online);
    let run = |ternary_weights: bool| {
        let mut decoder = Decoder::new(cfg.clone());
        let mut weights = load::upload(host.clone(), &params, &device);
        if ternary_weights {
            decoder.ternary_weights = true;
            for (spec, tensor) in params
                .specs
                .iter()
                .zip(&mut weights.0)
                .filter(|(spec, _)| spec.kind == ParamKind::Matrix)
            {
                assert_eq!(spec.shape.len(), 2);
                *tensor = ternary_weight(tensor.clone());
            }
        }
        let ids = Tensor::<1, Int>::from_data(
            TensorData::new((5..45i64).collect::<Vec<_>>(), [40]),
            &device,
        );
        let mut cache = KvCache::new(1, 40, 40);
        let spans = vec![Span { row: 0, start: 0, visible: 40 }];
        let pass = Pass::new(
            &decoder,
            spans,
            40,
            Order::Full,
            &cache,
            &ComputePlan::new(device::cpu(), None),
        )
        .unwrap();
        let hidden = decoder.forward_cached(&weights, ids, &pass, &mut cache);
        decoder.logits(&weights, hidden).into_data().try_into_vec::<f32>().unwrap()
    };
    assert_eq!(run(false), run(true));
}

#[test]
fn refusals() {
    let dir = fixtures();
    let mut engine = engine(&dir.join("qwen2_tiny"));
    let block = BlockOptions::published(32, 8, 0.9);
    let good = Request {
        prompt: Vec::new(),
        mode: RowMode::Block(block),
        max_new_tokens: 32,
        mask_id: Some(319),
        stop_ids: vec![],
        sampling: None,
        stop: None,
    };
    let mut refused = |prompt: Vec<i64>, options: &Request| {
        decode(&mut engine, &[vec![1], prompt], options).unwrap_err().to_string()
    };
    assert!(refused(vec![], &good).contains("prompt 1: the prompt has no tokens"));
    assert!(refused(vec![1, 320], &good).contains("token 1 of the prompt is id 320"));
    assert!(refused(vec![-1], &good).contains("id -1"));
    assert!(refused(vec![1, 2, 319], &good).contains("mask token"));
    assert!(
        refused(vec![1], &Request { mask_id: Some(320), ..good.clone() })
            .contains("mask token id is 320")
    );
    assert!(
        refused(vec![1], &Request { mask_id: None, ..good.clone() }).contains("needs a mask token")
    );
    for sub_block_size in [7, 0] {
        let mode = RowMode::Block(BlockOptions { sub_block_size, ..block });
        assert!(refused(vec![1], &Request { mode, ..good.clone() }).contains("do not divide"));
    }
}

/// A limit that is not a multiple of the block size is kept to the token.
#[test]
fn odd_limits() {
    let dir = fixtures();
    let file: File = read(dir.join("decode_qwen2_peaky.json"));
    let mut engine = engine(&dir.join("qwen2_peaky"));
    let case = &file.cases[0];
    let mut options = options(case, &file);
    for limit in [0, 1, 20, 33, 50] {
        options.max_new_tokens = limit;
        let done =
            decode(&mut engine, std::slice::from_ref(&case.prompt), &options).unwrap().remove(0);
        assert_eq!(done.ids, case.expected[..case.prompt.len() + limit], "limit {limit}");
    }
}
