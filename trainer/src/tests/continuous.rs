//! Rows that come and go at random: each gets exactly what it gets alone.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use dlm_datasets::rng;
use dlm_test_support::fixtures;

use crate::compute::{ComputeDtype, ComputePlan, device};
use crate::decode::continuous::{Continuous, RowId};
use crate::decode::prompt::PromptCodec;
use crate::decode::{
    BlockOptions, Decided, DecodedSequence, Engine, Event, FinishReason, Request, RowMode,
    Sampling, StopStrings, decode_list,
};
use crate::io::load_model::{LoadOptions, LoadedModel, load_model};
use crate::tests::text_stream::{sample, sentence_piece};

const MASK: i64 = 319;

fn engine_on(dir: &Path, compute: ComputePlan) -> Engine {
    let LoadedModel { decoder, weights } =
        load_model(dir, LoadOptions::default(), &compute.device.device).unwrap();
    Engine::new(decoder, weights, compute).unwrap()
}

fn engine(model: &str) -> Engine {
    engine_on(&fixtures().join(model), ComputePlan::new(device::cpu(), None))
}

/// Random numbers: one function of seed and count.
struct Random {
    key: u64,
    drawn: u64,
    codec: Arc<PromptCodec>,
}

impl Random {
    fn new(seed: u64) -> Self {
        Random { key: rng::key(&[seed]), drawn: 0, codec: sample() }
    }

    fn below(&mut self, n: usize) -> usize {
        self.drawn += 1;
        (rng::uniform(self.key, self.drawn) * n as f64) as usize
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// A request of any mode, mostly with a short prompt, sometimes with one of several chunks.
    fn request(&mut self, most_new: usize) -> Request {
        let len = match self.below(6) {
            0 => 1 + self.below(1100),
            1 => 32 * (1 + self.below(3)),
            _ => 1 + self.below(90),
        };
        let prompt = (0..len).map(|_| self.below(300) as i64).collect();
        let mode = match self.below(3) {
            0 => RowMode::Ar,
            _ => {
                let (block_size, sub_block_size) =
                    self.of(&[(32, 8), (32, 8), (32, 32), (16, 8), (8, 8), (12, 4), (1, 1)]);
                let threshold = self.of(&[0.3, 0.5, 0.9, 1.0]);
                let blocks_in_flight = self.of(&[1, 1, 2, 3]);
                let is_one = blocks_in_flight == 1;
                RowMode::Block(BlockOptions {
                    sub_block_cache: is_one && self.below(2) == 0,
                    fuse_prefill: self.below(2) == 0,
                    fuse_commit: is_one && self.below(2) == 0,
                    blocks_in_flight,
                    token_shift: self.below(3) > 0,
                    ..BlockOptions::published(block_size, sub_block_size, threshold)
                })
            }
        };
        let stop_ids = (0..self.of(&[0, 0, 2, 12])).map(|_| self.below(320) as i64);
        let stop_ids: Vec<i64> = stop_ids.filter(|id| *id != MASK).collect();
        // `None` and another id than the mask token's lead to several predictions in one pass
        let mask_id = match &mode {
            RowMode::Ar => self.of(&[None, Some(MASK)]),
            RowMode::Block(_) | RowMode::Verify(_) => Some(MASK),
        };
        let sampling = (self.below(2) == 0).then(|| Sampling {
            temperature: self.of(&[0.3, 0.8, 1.0, 1.5]),
            top_p: self.of(&[0.5, 0.9, 1.0]),
            top_k: self.of(&[0, 5]),
            seed: self.below(1000) as u64,
        });
        let stop = (self.below(2) == 0).then(|| StopStrings {
            codec: self.codec.clone(),
            strings: vec!["e".into(), ": ".into()],
        });
        let max_new_tokens = self.below(most_new);
        Request { prompt, mode, max_new_tokens, stop_ids, mask_id, sampling, stop }
    }
}

fn alone(engine: &mut Engine, request: &Request) -> DecodedSequence {
    let mut found = None;
    decode_list(engine, 1, vec![request.clone()], |told| {
        if let Event::Finished { sequence, .. } = told.event {
            found = Some(sequence);
        }
        Ok(true)
    })
    .unwrap();
    found.unwrap()
}

/// What was told of a row so far.
#[derive(Default)]
struct Told {
    ids: Vec<i64>,
    decided: Vec<Decided>,
    sequence: Option<DecodedSequence>,
    is_removed: bool,
}

/// Whether two completions have the same tokens from the same passes, and probabilities that
/// differ by no more than `tolerance`.
fn is_same(one: &DecodedSequence, other: &DecodedSequence, tolerance: f32) -> bool {
    let near = |(one, other): (&Decided, &Decided)| {
        one.pass == other.pass && (one.probability - other.probability).abs() <= tolerance
    };
    one.decided.iter().zip(&other.decided).all(near)
        && DecodedSequence { decided: other.decided.clone(), ..one.clone() } == *other
}

/// Adds, removes and steps at random until `count` requests have come and gone; every row must
/// have been told what it is told alone.
fn come_and_go(
    engine: &mut Engine,
    (seed, tolerance): (u64, f32),
    slots: usize,
    count: usize,
    most_new: usize,
) {
    let mut random = Random::new(seed);
    let mut rows = Continuous::new(slots, 1300);
    let mut asked: Vec<(RowId, Request)> = Vec::new();
    let mut told: HashMap<RowId, Told> = HashMap::new();
    while asked.len() < count || !rows.is_empty() {
        while rows.free_slots() > 0 && asked.len() < count && random.below(2) == 0 {
            let request = random.request(most_new);
            let id = rows.add(engine, request.clone()).unwrap();
            told.insert(id, Told::default());
            asked.push((id, request));
        }
        if random.below(40) == 0 && !asked.is_empty() {
            let id = asked[random.below(asked.len())].0;
            rows.remove(id);
            let told = told.get_mut(&id).unwrap();
            told.is_removed = told.sequence.is_none();
        }
        for event in rows.step(engine).unwrap() {
            let (Event::Tokens { row, .. } | Event::Finished { row, .. }) = &event;
            let told = told.get_mut(row).unwrap();
            assert!(!told.is_removed && told.sequence.is_none(), "{row:?} was told of too late");
            match event {
                Event::Tokens { ids, decided, .. } => {
                    assert!(!ids.is_empty() && ids.len() == decided.len());
                    told.ids.extend(ids);
                    told.decided.extend(decided);
                }
                Event::Finished { sequence, .. } => told.sequence = Some(sequence),
            }
        }
    }
    let mut removed = 0;
    for (id, request) in &asked {
        let told = &told[id];
        let alone = alone(engine, request);
        let case = || format!("seed {seed}, {id:?}: {:?}, {request:?}", request.prompt.len());
        if told.is_removed {
            removed += 1;
            assert!(alone.generated().starts_with(&told.ids), "{}", case());
            continue;
        }
        let sequence = told.sequence.as_ref().unwrap();
        assert_eq!(told.ids, sequence.generated(), "{}", case());
        assert_eq!(told.decided, sequence.decided, "{}", case());
        assert!(is_same(sequence, &alone, tolerance), "{}: {sequence:?}, {alone:?}", case());
    }
    assert!(removed < count / 2, "{removed} of {count} rows were removed");
}

/// Both modes, several block sizes, prompts of one to several chunks, caches that grow, slots that
/// are used again, rows that are removed in the middle: tokens, probabilities and passes are those
/// of each row alone.
#[test]
fn rows_that_come_and_go_get_what_they_get_alone() {
    for (model, seed) in [("qwen2_peaky", 1), ("llama_tiny", 2), ("bitnet_tiny", 3)] {
        come_and_go(&mut engine(model), (seed, 0.0), 3, 24, 70);
    }
    come_and_go(&mut engine("qwen3_tiny"), (4, 0.0), 6, 24, 40);
    // a masked product is as wide as the longest row, which changes the order of its sums
    let mut masked = engine("qwen2_peaky").without_tiles().unwrap();
    come_and_go(&mut masked, (5, 1e-4), 3, 16, 50);
}

/// A row with stop strings is the row without them, cut behind the first token with which one of
/// them is in the text.
#[test]
fn stop_strings_cut_a_row_and_change_nothing_before() {
    let mut engine = engine("qwen2_peaky");
    let mut random = Random::new(7);
    let mut cut = 0;
    for case in 0..60 {
        let request = Request { stop: None, ..random.request(70) };
        let free = alone(&mut engine, &request);
        let text_of = |tokens: usize| random.codec.decode(&free.generated()[..tokens]).unwrap();
        let strings: Vec<String> = vec!["e".into(), "i".into(), ": ".into()];
        let start = |text: &str| strings.iter().filter_map(|stop| text.find(stop)).min();
        let stop = StopStrings { codec: random.codec.clone(), strings: strings.clone() };
        let found = alone(&mut engine, &Request { stop: Some(stop), ..request.clone() });
        let first = (1..=free.generated().len()).find(|end| start(&text_of(*end)).is_some());
        let Some(first) = first else {
            assert_eq!(found, free, "case {case}");
            continue;
        };
        cut += 1;
        assert_eq!(found.finish_reason, FinishReason::StopString, "case {case}");
        assert_eq!(found.generated(), &free.generated()[..first], "case {case}");
        assert_eq!(found.decided, free.decided[..first], "case {case}");
        assert_eq!(found.text_end, start(&text_of(first)), "case {case}");
        assert!(found.passes.total() <= free.passes.total(), "case {case}");
    }
    assert!(cut > 20, "{cut}");
}

/// A stop string that only the end of the row makes sure of is found: its last token is a byte,
/// which another byte could undo.
#[test]
fn a_stop_string_at_the_limit_is_found() {
    let mut engine = engine("llama_tiny");
    let codec = sentence_piece();
    let mut late = 0;
    for max_new_tokens in 1..40 {
        let request = Request {
            prompt: vec![9, 4, 30],
            mode: RowMode::Ar,
            max_new_tokens,
            stop_ids: Vec::new(),
            mask_id: None,
            sampling: Some(Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, seed: 3 }),
            stop: None,
        };
        let free = alone(&mut engine, &request);
        let text = codec.decode(free.generated()).unwrap();
        let Some(last) = text.chars().last().map(String::from) else { continue };
        let stop = Some(StopStrings { codec: codec.clone(), strings: vec![last.clone()] });
        let found = alone(&mut engine, &Request { stop, ..request });
        assert_eq!(found.finish_reason, FinishReason::StopString, "{last:?} in {text:?}");
        late += usize::from(found.ids == free.ids);
        let own = codec.decode(found.generated()).unwrap();
        assert_eq!(found.text_end, own.find(&last), "{last:?} in {text:?}");
    }
    assert!(late > 3, "{late}");
}

/// A pass that was prepared for one cache is not used with another one of the same rows and
/// positions.
#[test]
fn caches_of_different_size_follow_each_other() {
    let mut random = Random::new(21);
    let requests: Vec<Request> = (0..2)
        .map(|_| Request {
            prompt: (0..9).map(|_| random.below(300) as i64).collect(),
            mode: RowMode::Block(BlockOptions::published(32, 8, 0.9)),
            max_new_tokens: 32,
            stop_ids: Vec::new(),
            mask_id: Some(MASK),
            sampling: None,
            stop: None,
        })
        .collect();
    let mut used = engine("qwen2_peaky");
    let events = |engine: &mut Engine, longest: usize, steps: usize| {
        let mut rows = Continuous::new(2, longest);
        for request in &requests {
            rows.add(engine, request.clone()).unwrap();
        }
        (0..steps).map(|_| rows.step(engine).unwrap()).collect::<Vec<_>>()
    };
    events(&mut used, 64, 1);
    assert_eq!(events(&mut used, 96, 40), events(&mut engine("qwen2_peaky"), 96, 40));
}

/// A row gets a token in every step while long prompts arrive beside it, and these get theirs
/// after as many steps as their prompts have chunks.
#[test]
fn a_long_prompt_does_not_stop_the_others() {
    let mut engine = engine("llama_tiny");
    let request = |prompt: usize, max_new_tokens| Request {
        prompt: vec![5; prompt],
        mode: RowMode::Ar,
        max_new_tokens,
        stop_ids: Vec::new(),
        mask_id: None,
        sampling: None,
        stop: None,
    };
    let mut rows = Continuous::new(4, 1200);
    let short = rows.add(&engine, request(3, 100)).unwrap();
    rows.step(&mut engine).unwrap();
    let long = rows.add(&engine, request(700, 2)).unwrap();
    let medium = rows.add(&engine, request(40, 2)).unwrap();
    let told = |events: &[Event], id: RowId| {
        events.iter().any(|event| matches!(event, Event::Tokens { row, .. } if *row == id))
    };
    for step in 1..=8 {
        let events = rows.step(&mut engine).unwrap();
        assert!(told(&events, short), "step {step}");
        // 5 chunks of 128 tokens, the rest of 60, and beside that the other prompt of 40
        assert_eq!(told(&events, long), step == 6 || step == 7, "step {step}");
        assert_eq!(told(&events, medium), step == 6 || step == 7, "step {step}");
    }
    assert_eq!(rows.free_slots(), 3);
    assert!(rows.add(&engine, request(1199, 2)).unwrap_err().to_string().contains("1201"));
    for _ in 0..3 {
        rows.add(&engine, request(3, 2)).unwrap();
    }
    let error = rows.add(&engine, request(3, 2)).unwrap_err();
    assert!(error.to_string().contains("all 4 rows are taken"), "{error}");
}

/// With blocks of one token the token behind each block is known when the block begins, so that
/// decoding is autoregressive.
#[test]
fn blocks_of_one_token_are_autoregressive() {
    let mut engine = engine("qwen2_peaky");
    let ar = Request {
        prompt: vec![5, 6, 7, 8, 9],
        mode: RowMode::Ar,
        max_new_tokens: 30,
        stop_ids: Vec::new(),
        mask_id: Some(MASK),
        sampling: None,
        stop: None,
    };
    let one = BlockOptions::published(1, 1, 0.9);
    let block = Request { mode: RowMode::Block(one), max_new_tokens: 29, ..ar.clone() };
    assert_eq!(alone(&mut engine, &block).ids, alone(&mut engine, &ar).ids);
}

/// The same on the native engine, on a card or on the stand-in driver: `tests/cuda/run --exec` in
/// front of the test.
#[test]
fn rows_that_come_and_go_on_the_native_engine() {
    let compute = match device::choose("cuda") {
        Ok(device) => ComputePlan::new(device, Some(ComputeDtype::Fp32)).on_native_engine(),
        Err(error) => return dlm_test_support::skip(&format!("native engine: {error}")),
    };
    let mut engine = engine_on(&fixtures().join("qwen2_peaky"), compute);
    come_and_go(&mut engine, (6, 1e-4), 3, 6, 20);
}
