//! Decoding with drawn tokens against a slow form of it: every pass runs the whole sequence without
//! a cache, distributions are sorted and summed by the book, and the loops are written out.

use burn::prelude::*;
use dlm_test_support::fixtures;

use crate::compute::{ComputePlan, device};
use crate::decode::cached::{KvCache, Order, Pass, Span};
use crate::decode::sampling::by_the_book;
use crate::decode::{
    BlockOptions, DecodedSequence, Engine, Event, Request, RowMode, Sampling, decode_list,
};
use crate::io::load_model::{LoadOptions, LoadedModel, load_model};

const MASK: i64 = 319;

struct Slow {
    model: LoadedModel,
    compute: ComputePlan,
}

impl Slow {
    /// Logits after the token at `at` of `ids`, each block of `block` tokens seeing itself and what
    /// is before it.
    fn logits(&self, ids: &[i64], block: usize, at: usize) -> Vec<f32> {
        let LoadedModel { decoder, weights } = &self.model;
        let mut cache = KvCache::new(1, ids.len(), ids.len());
        let spans = vec![Span { row: 0, start: 0, visible: ids.len() }];
        let order = Order::Blocks(block);
        let pass = Pass::new(decoder, spans, ids.len(), order, &cache, &self.compute).unwrap();
        let data = TensorData::new(ids.to_vec(), [ids.len()]);
        let ids = Tensor::<1, Int>::from_data(data, &Device::flex());
        let hidden = decoder.forward_cached(weights, ids, &pass, &mut cache);
        let logits = decoder.logits(weights, hidden.narrow(0, at, 1));
        logits.into_data().try_into_vec::<f32>().unwrap()
    }

    /// The drawn token for `position` and its probability; `shift`: the logits before it decide.
    fn draw(
        &self,
        ids: &[i64],
        (block, shift): (usize, usize),
        how: &Sampling,
        position: usize,
        pass: usize,
    ) -> (i64, f64) {
        let logits = self.logits(ids, block, position - shift);
        let book = by_the_book(how, &logits, Some(MASK));
        let uniform = how.uniform(position, pass);
        let mut below = 0.0;
        let drawn = book.iter().find(|token| {
            below += token.1;
            below > uniform
        });
        *drawn.unwrap_or(&book[0])
    }

    fn ar(&self, prompt: &[i64], new: usize, how: &Sampling) -> Vec<i64> {
        let mut ids = prompt.to_vec();
        for pass in 1..=new {
            ids.push(self.draw(&ids, (1, 1), how, ids.len(), pass).0);
        }
        ids
    }

    fn block(
        &self,
        prompt: &[i64],
        blocks: usize,
        options: &BlockOptions,
        how: &Sampling,
    ) -> Vec<i64> {
        let (size, small) = (options.block_size, options.sub_block_size);
        let shift = usize::from(options.token_shift);
        let grid = (size, shift);
        let mut ids = prompt.to_vec();
        let mut pass = 0;
        if prompt.len() >= size {
            pass += 1;
            if prompt.len() % size == 0 && shift == 1 {
                ids.push(self.draw(&ids, grid, how, ids.len(), pass).0);
            }
        }
        for _ in 0..blocks {
            let start = ids.len() / size * size;
            ids.resize(start + size, MASK);
            for sub in (start..start + size).step_by(small) {
                while ids[sub..sub + small].contains(&MASK) {
                    pass += 1;
                    let open = (sub..sub + small).filter(|at| ids[*at] == MASK);
                    let draw = |at| (at, self.draw(&ids, grid, how, at, pass));
                    let drawn: Vec<(usize, (i64, f64))> = open.map(draw).collect();
                    let most = drawn.iter().map(|(_, (_, p))| *p).fold(0.0, f64::max);
                    for (at, (token, p)) in drawn {
                        if p > options.threshold || p == most {
                            ids[at] = token;
                        }
                    }
                }
            }
            pass += 1;
            if shift == 1 {
                ids.push(self.draw(&ids, grid, how, ids.len(), pass).0);
            }
        }
        ids
    }
}

fn decode(engine: &mut Engine, request: Request) -> DecodedSequence {
    let mut found = None;
    decode_list(engine, 1, vec![request], |told| {
        if let Event::Finished { sequence, .. } = told.event {
            found = Some(sequence);
        }
        Ok(true)
    })
    .unwrap();
    found.unwrap()
}

#[test]
fn drawn_tokens_are_those_of_whole_passes_by_the_book() {
    for (model, lengths) in [("qwen2_peaky", [5, 32, 45]), ("llama_tiny", [1, 31, 64])] {
        let compute = ComputePlan::new(device::cpu(), None);
        let load = || {
            load_model(&fixtures().join(model), LoadOptions::default(), &Device::flex()).unwrap()
        };
        let LoadedModel { decoder, weights } = load();
        let mut engine = Engine::new(decoder, weights, compute.clone()).unwrap();
        let slow = Slow { model: load(), compute };
        let settings = [(0.7, 1.0, 0), (1.0, 0.9, 0), (1.3, 0.8, 20), (0.2, 1.0, 3)];
        let cases = lengths.into_iter().flat_map(|length| settings.map(|how| (length, how)));
        for (seed, (length, (temperature, top_p, top_k))) in (1..).zip(cases) {
            let how = Sampling { temperature, top_p, top_k, seed };
            let prompt: Vec<i64> = (0..length).map(|i| (i * 37 + 11) % 300).collect();
            let request = Request {
                prompt: prompt.clone(),
                mode: RowMode::Ar,
                max_new_tokens: 12,
                stop_ids: Vec::new(),
                mask_id: Some(MASK),
                sampling: Some(how),
                stop: None,
            };
            let case = format!("{model}, prompt of {length}, {how:?}");
            let ar = decode(&mut engine, request.clone());
            assert_eq!(ar.ids, slow.ar(&prompt, 12, &how), "{case}");
            let options = BlockOptions::published(32, 8, 0.6);
            let mode = RowMode::Block(options);
            let block = Request { mode, max_new_tokens: 32, ..request.clone() };
            let block = decode(&mut engine, block);
            assert_eq!(block.ids, slow.block(&prompt, 1, &options, &how), "{case}");
            // two blocks; a limit that ends with the second one cuts nothing
            let options = BlockOptions { token_shift: false, ..options };
            let max_new_tokens = 64 - prompt.len() % 32;
            let found = [false, true].map(|fuse| {
                let block = BlockOptions { fuse_prefill: fuse, fuse_commit: fuse, ..options };
                let mode = RowMode::Block(block);
                decode(&mut engine, Request { mode, max_new_tokens, ..request.clone() }).ids
            });
            let wanted = slow.block(&prompt, 2, &options, &how);
            assert_eq!(found, [wanted.clone(), wanted], "{case}, without the token shift");
        }
    }
}
