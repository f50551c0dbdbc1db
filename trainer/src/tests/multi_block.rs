//! Several blocks in flight, against a form that runs the whole sequence for each pass.

use crate::compute::{ComputePlan, device};
use crate::decode::multi_block::OPENING_SHARE;
use crate::decode::{BlockOptions, Engine, FinishReason, Request, RowMode};
use crate::diffusion::layout::{StreamRole, Token};
use crate::io::load_model::{LoadOptions, LoadedModel, load_model};
use crate::kernels::most_probable::MostProbable;
use crate::model::{Decoder, Weights};
use dlm_test_support::fixtures;

use super::decode_reference::decode;
use super::held_out::{all_logits, dense_batch, judged};

const MASK: i64 = 319;

fn load(model: &str) -> LoadedModel {
    let device = device::cpu().device;
    load_model(&fixtures().join(model), LoadOptions::default(), &device).unwrap()
}

/// The most probable token behind every token of `ids`, without a cache: blocks see themselves and
/// what stands before them.
fn predicted(d: &Decoder, w: &Weights, ids: &[i64], size: usize) -> Vec<MostProbable> {
    let tokens = ids.iter().enumerate().map(|(i, id)| Token {
        id: *id as i32,
        position: i as i32,
        document: 0,
        block: (i / size) as i32,
        role: StreamRole::Clean,
    });
    let logits = all_logits(d, w, &dense_batch(tokens.collect()));
    logits.iter().map(|row| judged(row, MASK as i32)).collect()
}

/// Token ids and the pass that decided each token behind the prompt.
fn slow(
    d: &Decoder,
    w: &Weights,
    request: &Request,
    options: &BlockOptions,
) -> (Vec<i64>, Vec<usize>) {
    let (size, small) = (options.block_size, options.sub_block_size);
    let shift = usize::from(options.token_shift);
    let (prompt, stops) = (request.prompt.len(), &request.stop_ids);
    let mut ids = request.prompt.clone();
    let mut decided = std::collections::BTreeMap::new();
    let mut pass = 0;
    let mut blocks_left = request.max_new_tokens.div_ceil(size);
    if shift == 0 && blocks_left > 0 {
        blocks_left = (prompt + request.max_new_tokens).div_ceil(size) - prompt / size;
    }
    // blocks before this one are full and were run when they were
    let mut settled = prompt / size;
    let predicts = shift == 1 && prompt % size == 0;
    if prompt >= size && (predicts || !options.fuse_prefill || blocks_left == 0) {
        pass = 1;
        if predicts {
            ids.push(predicted(d, w, &ids, size)[prompt - 1].token);
            decided.insert(prompt, pass);
        }
    }
    let masks = |ids: &[i64], block: usize| -> Vec<usize> {
        (block * size..(block + 1) * size).filter(|at| ids[*at] == MASK).collect()
    };
    // number of blocks in the text, the flight is settled..blocks
    let mut blocks = prompt / size;
    loop {
        let answer = &ids[prompt..];
        let hidden = answer.iter().position(|id| *id == MASK).unwrap_or(answer.len());
        let stop = answer.iter().position(|id| stops.contains(id));
        match stop {
            Some(stop) if stop < hidden || !answer.contains(&MASK) => break,
            Some(stop) => {
                blocks = blocks.min((prompt + stop) / size + 1);
                ids.truncate(blocks * size);
            }
            None => {
                while blocks_left > 0
                    && blocks - settled < options.blocks_in_flight
                    && (blocks == settled
                        || (size - masks(&ids, blocks - 1).len()) as f64
                            >= OPENING_SHARE * size as f64)
                {
                    blocks_left -= 1;
                    blocks += 1;
                    ids.resize(blocks * size, MASK);
                }
                let is_full = !ids[prompt..].contains(&MASK);
                if blocks == settled || (shift == 0 && is_full && blocks_left == 0) {
                    break;
                }
            }
        }
        pass += 1;
        let now = predicted(d, w, &ids, size);
        let before = ids.clone();
        let active = (settled..blocks).find(|block| !masks(&before, *block).is_empty());
        for block in settled..blocks {
            let masked = masks(&before, block);
            let Some(first) = masked.first() else { continue };
            let end = first / small * small + small;
            let judged: Vec<usize> = masked.iter().copied().filter(|at| *at < end).collect();
            let mut best = judged[0];
            for at in &judged {
                if now[at - shift].probability > now[best - shift].probability {
                    best = *at;
                }
            }
            for at in judged {
                let is_sure = f64::from(now[at - shift].probability) > options.threshold;
                let is_first = shift == 1 && before[block * size] == MASK;
                let forced = if is_first { block * size } else { best };
                let is_forced = Some(block) == active && at == forced;
                if is_sure || is_forced {
                    ids[at] = now[at - shift].token;
                    decided.insert(at, pass);
                }
            }
        }
        match active {
            Some(active) => settled = active,
            None if shift == 0 => settled = blocks,
            None => {
                settled = blocks;
                decided.insert(ids.len(), pass);
                ids.push(now[blocks * size - 1].token);
            }
        }
    }
    let mut len = ids.len();
    if shift == 0 || request.max_new_tokens % size != 0 {
        len = len.min(prompt + request.max_new_tokens);
    }
    if let Some(stop) = ids[prompt..len].iter().position(|id| stops.contains(id)) {
        len = prompt + stop + 1;
    }
    ids.truncate(len);
    (ids, (prompt..len).map(|at| decided[&at]).collect())
}

/// A request for the `i`-th prompt and its options.
fn request(i: usize, blocks_in_flight: usize, token_shift: bool) -> (Request, BlockOptions) {
    let (size, small) = [(8, 8), (16, 8), (32, 8), (12, 4), (1, 1), (4, 2)][i % 6];
    let threshold = [0.3, 0.5, 0.9, 0.05][i / 2 % 4];
    let len = [3, size, 2 * size + 1, 3 * size - 1, 21][i % 5];
    let options = BlockOptions {
        fuse_prefill: i % 3 != 0,
        blocks_in_flight,
        token_shift,
        ..BlockOptions::published(size, small, threshold)
    };
    let request = Request {
        prompt: (0..len).map(|j| ((i * 37 + j * 11 + j * j) % 300) as i64).collect(),
        mode: RowMode::Block(options),
        max_new_tokens: [2 * size, 3 * size, 37, 5 * size, 1, 0][(i + i / 5) % 6].min(60),
        mask_id: Some(MASK),
        stop_ids: vec![],
        sampling: None,
        stop: None,
    };
    (request, options)
}

#[test]
fn several_blocks_in_flight_give_what_whole_sequences_give() {
    whole_sequences(true);
}

#[test]
fn several_blocks_in_flight_without_the_token_shift() {
    whole_sequences(false);
}

fn whole_sequences(token_shift: bool) {
    let (mut several, mut stopped) = (0, 0);
    for model in ["qwen2_peaky", "llama_tiny"] {
        let LoadedModel { decoder, weights } = load(model);
        let mut engine = engine_of(model);
        for i in 0..30 {
            for n in [2, 3, 5] {
                let (mut request, options) = request(i, n, token_shift);
                for with_stop in [false, true] {
                    let wanted = slow(&decoder, &weights, &request, &options);
                    let prompt = request.prompt.clone();
                    let found =
                        decode(&mut engine, std::slice::from_ref(&prompt), &request).unwrap();
                    let found = &found[0];
                    let passes: Vec<usize> = found.decided.iter().map(|d| d.pass).collect();
                    assert_eq!(
                        (&found.ids, &passes),
                        (&wanted.0, &wanted.1),
                        "{model}, prompt {i}, {n} in flight, {request:?}"
                    );
                    let out_of_order = passes.windows(2).any(|two| two[1] < two[0]);
                    several += usize::from(out_of_order);
                    stopped +=
                        usize::from(with_stop && (found.finish_reason == FinishReason::StopToken));
                    // any token that the model writes can be its stop token
                    let generated = found.generated();
                    if generated.is_empty() {
                        break;
                    }
                    request.stop_ids = vec![generated[(i * 7 + n) % generated.len()]];
                }
            }
        }
    }
    assert!(several > 40 && stopped > 40, "{several} out of order, {stopped} stopped");
}

fn engine_of(model: &str) -> Engine {
    let LoadedModel { decoder, weights } = load(model);
    Engine::new(decoder, weights, ComputePlan::new(device::cpu(), None)).unwrap()
}

#[test]
fn refusals() {
    let mut engine = engine_of("qwen2_tiny");
    let (request, options) = request(1, 2, true);
    let mut refused = |options: BlockOptions| {
        let request = Request { mode: RowMode::Block(options), ..request.clone() };
        decode(&mut engine, &[vec![1, 2]], &request).unwrap_err().to_string()
    };
    assert!(refused(BlockOptions { blocks_in_flight: 0, ..options }).contains("1 or more"));
    let most = BlockOptions { blocks_in_flight: 1 << 16, ..options };
    assert!(refused(most).contains("at most 4096"));
    let cached = BlockOptions { sub_block_cache: true, ..options };
    assert!(refused(cached).contains("--sub-block-cache has no meaning with 2 blocks"));
    let fused = BlockOptions { fuse_commit: true, ..options };
    assert!(refused(fused).contains("--fuse-commit has no meaning with 2 blocks"));
}
