//! Passes that run together: the tokens of the reference's decodes from fewer passes.

use crate::decode::continuous::Continuous;
use crate::decode::sampling::Sampling;
use crate::decode::{BlockOptions, Event, Request, RowMode};
use dlm_test_support::fixtures;

use super::decode_reference::{Case, File, decode, engine, options, read};

const MODELS: [&str; 5] = ["qwen2_tiny", "qwen2_peaky", "llama_tiny", "qwen3_tiny", "bitnet_tiny"];

/// Passes of each case that fusing saves, with tokens compared.
fn saved(fuse_prefill: bool, fuse_commit: bool, mut check: impl FnMut(&Case, [usize; 4])) {
    let mut compared = 0;
    for model in MODELS {
        let dir = fixtures();
        let file: File = read(dir.join(format!("decode_{model}.json")));
        let engines = [engine(&dir.join(model)), engine(&dir.join(model)).without_tiles().unwrap()];
        for mut engine in engines {
            for (i, case) in file.cases.iter().enumerate() {
                let mut request = options(case, &file);
                let RowMode::Block(block) = request.mode else { unreachable!() };
                request.mode = RowMode::Block(BlockOptions { fuse_prefill, fuse_commit, ..block });
                let prompt = std::slice::from_ref(&case.prompt);
                let done = decode(&mut engine, prompt, &request).unwrap().remove(0);
                assert_eq!(done.ids, case.expected, "{model}, case {i}");
                let (was, is) = (&case.passes, done.passes);
                check(
                    case,
                    [
                        was.prefill - is.prefill,
                        was.block - is.block,
                        was.small - is.small,
                        was.commit - is.commit,
                    ],
                );
                assert!(done.decided.iter().all(|d| (1..=is.total()).contains(&d.pass)));
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 2 * 198);
}

#[test]
fn a_first_pass_that_prefills_too_saves_one_pass_and_changes_no_token() {
    let mut fused = 0;
    saved(true, false, |case, saved| {
        let size = case.block_size;
        let is_fused = case.prompt.len() > size && case.prompt.len() % size != 0;
        assert_eq!(saved, [0, usize::from(is_fused), 0, 0], "prompt of {}", case.prompt.len());
        fused += usize::from(is_fused);
    });
    assert!(fused > 100, "{fused}");
}

#[test]
fn a_commit_that_begins_the_next_block_saves_passes_and_changes_no_token() {
    let (mut total, mut commits) = (0, 0);
    saved(false, true, |case, [prefill, block, small, commit]| {
        assert_eq!((prefill, small, commit), (0, 0, 0));
        assert!(block <= case.passes.commit);
        total += block;
        commits += case.passes.commit;
    });
    assert!(total > commits / 10 && total < commits, "{total} passes saved of {commits} commits");
    saved(true, true, |_, _| ());
}

/// Without the token shift the first pass over a block always runs with what precedes it: the
/// prefill, or the commit of the block before it.
#[test]
fn without_the_token_shift_every_prefill_and_commit_begins_a_block() {
    let (mut prefills, mut commits) = (0, 0);
    for model in ["qwen2_peaky", "qwen3_tiny"] {
        let dir = fixtures();
        let file: File = read(dir.join(format!("decode_noshift_{model}.json")));
        let engines = [engine(&dir.join(model)), engine(&dir.join(model)).without_tiles().unwrap()];
        for mut engine in engines {
            for (i, case) in file.cases.iter().enumerate() {
                for (fuse_prefill, fuse_commit) in [(true, false), (false, true), (true, true)] {
                    let mut request = options(case, &file);
                    let RowMode::Block(block) = request.mode else { unreachable!() };
                    request.mode =
                        RowMode::Block(BlockOptions { fuse_prefill, fuse_commit, ..block });
                    let prompt = std::slice::from_ref(&case.prompt);
                    let done = decode(&mut engine, prompt, &request).unwrap().remove(0);
                    assert_eq!(done.ids, case.expected, "{model}, case {i}");
                    let (was, is) = (&case.passes, done.passes);
                    let fused = usize::from(fuse_prefill) * was.prefill
                        + usize::from(fuse_commit) * was.commit;
                    assert_eq!(
                        (is.prefill, is.block, is.small, is.commit),
                        (was.prefill, was.block - fused, was.small, was.commit),
                        "{model}, case {i}"
                    );
                    prefills += was.prefill;
                    commits += was.commit;
                }
            }
        }
    }
    assert!(prefills > 100 && commits > 100, "{prefills} prefills, {commits} commits");
}

/// A token that the commit does not confirm is forgotten: a limit of one block leaves nothing to
/// foresee, and completions are never longer than those of the published passes.
#[test]
fn limits_are_kept_with_fused_passes() {
    let dir = fixtures();
    let file: File = read(dir.join("decode_qwen2_peaky.json"));
    let mut engine = engine(&dir.join("qwen2_peaky"));
    let case = &file.cases[0];
    for limit in [0, 1, 20, 31, 32, 33, 50, 64] {
        for len in [case.prompt.len(), 32, 64, 5] {
            let prompt: Vec<i64> = case.prompt.iter().cycle().take(len).copied().collect();
            let mut found = [false, true].map(|fuse| {
                let mut request = options(case, &file);
                let RowMode::Block(block) = request.mode else { unreachable!() };
                request.mode =
                    RowMode::Block(BlockOptions { fuse_prefill: fuse, fuse_commit: fuse, ..block });
                request.max_new_tokens = limit;
                decode(&mut engine, std::slice::from_ref(&prompt), &request).unwrap().remove(0)
            });
            let [published, fused] = &mut found;
            assert_eq!(published.ids, fused.ids, "limit {limit}, prompt of {len}");
            assert!(fused.passes.total() <= published.passes.total());
        }
    }
}

/// Drawn tokens too: a token is drawn by the number of the pass in which decoding pass by pass
/// would draw it.
#[test]
fn fused_passes_draw_the_same_tokens() {
    let dir = fixtures();
    let file: File = read(dir.join("decode_qwen2_peaky.json"));
    let mut engine = engine(&dir.join("qwen2_peaky"));
    let mut saved = 0;
    for (i, case) in file.cases.iter().enumerate().step_by(3) {
        let found = [false, true].map(|fuse| {
            let mut request = options(case, &file);
            let RowMode::Block(block) = request.mode else { unreachable!() };
            request.mode = RowMode::Block(BlockOptions {
                fuse_prefill: fuse,
                fuse_commit: fuse,
                threshold: 0.3,
                ..block
            });
            let (temperature, seed) = ([0.3, 0.7, 1.0][i / 3 % 3], i as u64);
            request.sampling = Some(Sampling { temperature, top_p: 0.95, top_k: 0, seed });
            decode(&mut engine, std::slice::from_ref(&case.prompt), &request).unwrap().remove(0)
        });
        assert_eq!(found[0].ids, found[1].ids, "case {i}");
        assert_ne!(found[0].ids, case.expected, "case {i}: nothing was drawn");
        saved += found[0].passes.total() - found[1].passes.total();
    }
    assert!(saved > 10, "{saved}");
}

/// A prompt that is cut into passes of 128 tokens because other rows are decoded beside it takes
/// the passes that it takes alone.
#[test]
fn a_fused_prompt_takes_the_same_passes_beside_others() {
    let mut engine = engine(&fixtures().join("llama_tiny"));
    let prompt = |len: usize| (0..len as i64).map(|i| (i * 31 + 7) % 300).collect();
    let other = one_after_another(vec![5, 6, 7], 200);
    for size in [16, 32] {
        for blocks_in_flight in [1, 2] {
            let mode = RowMode::Block(BlockOptions {
                fuse_prefill: true,
                blocks_in_flight,
                ..BlockOptions::published(size, 8, 0.5)
            });
            for len in [33, 127, 129, 150, 161, 300, 513, 530, 545] {
                let request = Request { mode, ..one_after_another(prompt(len), 33) };
                let prompts = std::slice::from_ref(&request.prompt);
                let alone = decode(&mut engine, prompts, &request).unwrap().remove(0);
                let mut rows = Continuous::new(2, 700);
                rows.add(&engine, other.clone()).unwrap();
                rows.step(&mut engine).unwrap();
                let id = rows.add(&engine, request).unwrap();
                let beside = loop {
                    let events = rows.step(&mut engine).unwrap();
                    let finished = events.into_iter().find_map(|event| match event {
                        Event::Finished { row, sequence } if row == id => Some(sequence),
                        _ => None,
                    });
                    if let Some(sequence) = finished {
                        break sequence;
                    }
                };
                assert_eq!(
                    (&alone.ids, alone.passes),
                    (&beside.ids, beside.passes),
                    "prompt of {len}, blocks of {size}"
                );
                assert_eq!(alone.passes.prefill, 1);
            }
        }
    }
}

fn one_after_another(prompt: Vec<i64>, max_new_tokens: usize) -> Request {
    Request {
        prompt,
        mode: RowMode::Ar,
        max_new_tokens,
        mask_id: Some(319),
        stop_ids: vec![],
        sampling: None,
        stop: None,
    }
}
