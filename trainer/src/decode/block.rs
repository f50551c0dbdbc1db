//! Block-diffusion decoding, greedy: Fast-dLLM v2's `batch_sample` (arXiv:2509.26328).
//!
//! In: prompts as token ids. Out: [`DecodedSequence`]s.
//!
//! The sequence is divided into blocks of `block_size` tokens from position 0, and every whole
//! block of the prompt is prefilled. A block is decoded as follows:
//!
//! 1. It starts with its known tokens (the end of the prompt, or the token that the previous commit
//!    predicted); every other position holds the mask token.
//! 2. Its sub-blocks are filled from left to right. A pass runs the whole block after the cache;
//!    the logits at position j - 1 predict token j. Every masked position of the sub-block whose
//!    most probable token is above the threshold is fixed, and at least the most probable one of
//!    them.
//! 3. The full block is run once more (the commit): its keys and values join the cache, and its
//!    last logits predict the first token of the next block.
//!
//! Each row of a batch is at its own block. A pass runs only the rows that need one of its kind, so
//! that no row waits for another.

use crate::decode::cached::{KvCache, Order, Span};
use crate::error::{Error, Result};

use super::engine::{Engine, Prediction};
use super::{Decided, DecodedSequence, Passes};

/// Options of block decoding.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(crate) struct BlockOptions {
    /// Tokens per block; should be what the model was trained with.
    pub block_size: usize,
    /// Tokens per sub-block; divides `block_size`.
    pub sub_block_size: usize,
    /// Probability above which a token is fixed.
    pub threshold: f64,
    /// Length limit in tokens, counted in whole blocks as in the published code, so that a
    /// completion may be up to a block longer or shorter. A limit that is no multiple of the block
    /// size is rounded up, and the completion is cut to it.
    pub max_new_tokens: usize,
    /// Id of the mask token; never produced.
    pub mask_id: i64,
    /// Ids that end a completion; without any it runs to its limit.
    pub stop_ids: Vec<i64>,
    /// Run only the sub-block once keys and values of the whole block are known from an earlier
    /// pass: faster in large batches, approximate.
    pub sub_block_cache: bool,
}

/// The pass that a row needs next; `sub` is the start of the sub-block within the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NextPass {
    Block { sub: usize },
    SubBlock { sub: usize },
    Commit,
}

/// One prompt and the tokens generated for it so far.
struct Row {
    ids: Vec<i64>,
    /// Number of prompt tokens.
    prompt: usize,
    /// For each token behind the prompt, how it was decided.
    decided: Vec<Decided>,
    /// First position of the current block.
    start: usize,
    /// First position of the current block that is to be decoded.
    open: usize,
    blocks_left: usize,
    /// Whether the cache holds keys and values of the whole current block.
    is_cached: bool,
    done: bool,
    passes: Passes,
}

impl Row {
    /// Opens the next block, or ends the row when no block is left or a stop token was generated.
    fn begin_block(&mut self, options: &BlockOptions) {
        let generated = self.ids.get(self.prompt..).unwrap_or_default();
        if self.blocks_left == 0 || generated.iter().any(|id| options.stop_ids.contains(id)) {
            self.done = true;
            return;
        }
        self.blocks_left -= 1;
        self.open = self.ids.len();
        self.start = self.open / options.block_size * options.block_size;
        self.ids.resize(self.start + options.block_size, options.mask_id);
        self.decided.resize(self.ids.len() - self.prompt, Decided::default());
        self.is_cached = false;
    }

    fn next_pass(&self, options: &BlockOptions) -> NextPass {
        let is_masked = |position: &usize| self.ids.get(*position) == Some(&options.mask_id);
        let Some(first) = (self.open..self.ids.len()).find(is_masked) else {
            return NextPass::Commit;
        };
        let sub = (first - self.start) / options.sub_block_size * options.sub_block_size;
        // The first token of a sub-block is predicted by the position before the sub-block, which a
        // pass over the sub-block alone does not run.
        match options.sub_block_cache && self.is_cached && !is_masked(&(self.start + sub)) {
            true => NextPass::SubBlock { sub },
            false => NextPass::Block { sub },
        }
    }

    /// Masked positions of the sub-block at `sub`, counted from the start of the block.
    fn masked(&self, sub: usize, options: &BlockOptions) -> Vec<usize> {
        let positions = sub..sub + options.sub_block_size;
        positions.filter(|at| self.ids.get(self.start + at) == Some(&options.mask_id)).collect()
    }

    /// Fixes the predictions above the threshold, and at least the most probable one. Ends the row
    /// when a stop token has no masked position before it in its block.
    fn accept(&mut self, positions: &[usize], predictions: &[Prediction], options: &BlockOptions) {
        // the first of equally probable ones
        let best = predictions.iter().enumerate().fold(
            None,
            |best: Option<(usize, f32)>, (i, prediction)| match best {
                Some((_, most)) if prediction.probability <= most => best,
                _ => Some((i, prediction.probability)),
            },
        );
        for (i, (position, prediction)) in positions.iter().zip(predictions).enumerate() {
            let is_sure = f64::from(prediction.probability) > options.threshold;
            if (is_sure || best.is_some_and(|(most, _)| most == i))
                && let Some(id) = self.ids.get_mut(self.start + position)
            {
                *id = prediction.token;
                let decided = self.decided.get_mut(self.start + position - self.prompt);
                if let Some(decided) = decided {
                    *decided = prediction.in_pass(self.passes);
                }
            }
        }
        let decoded = self.ids.get(self.open..).unwrap_or_default();
        let end =
            decoded.iter().find(|id| **id == options.mask_id || options.stop_ids.contains(id));
        self.done = end.is_some_and(|id| options.stop_ids.contains(id));
    }

    /// Adds the first token of the next block.
    fn push(&mut self, next: Prediction) {
        self.ids.push(next.token);
        self.decided.push(next.in_pass(self.passes));
    }

    /// The finished sequence. Blocks that reach past a limit inside a block are cut to it.
    fn finish(mut self, options: &BlockOptions) -> DecodedSequence {
        if !options.max_new_tokens.is_multiple_of(options.block_size) {
            self.ids.truncate(self.prompt.saturating_add(options.max_new_tokens));
            self.decided.truncate(options.max_new_tokens);
        }
        let Row { ids, prompt, decided, passes, .. } = self;
        DecodedSequence { ids, prompt, decided, stopped: false, passes }.cut(&options.stop_ids)
    }
}

impl Engine {
    /// Decodes `prompts` together in diffusion blocks; each gets the tokens it would get alone.
    pub(crate) fn block(
        &mut self,
        prompts: &[Vec<i64>],
        options: &BlockOptions,
    ) -> Result<Vec<DecodedSequence>> {
        self.check(prompts, Some(options.mask_id))?;
        let (size, small) = (options.block_size, options.sub_block_size);
        if size == 0 || small == 0 || !size.is_multiple_of(small) {
            return Err(Error::Usage(format!(
                "sub-blocks of {small} tokens do not divide blocks of {size}"
            )));
        }
        let limit = options.max_new_tokens.div_ceil(size).saturating_mul(size);
        let longest = prompts
            .iter()
            .map(|prompt| (prompt.len() / size * size).saturating_add(limit))
            .max()
            .unwrap_or(0);
        let mut cache = self.new_cache(prompts.len(), longest);
        let mut rows = Vec::with_capacity(prompts.len());
        for (at, prompt) in prompts.iter().enumerate() {
            rows.push(self.open_row(at, prompt, &mut cache, options)?);
        }
        loop {
            let next: Vec<(usize, NextPass)> = rows
                .iter()
                .enumerate()
                .filter(|(_, row)| !row.done)
                .map(|(at, row)| (at, row.next_pass(options)))
                .collect();
            if next.is_empty() {
                break;
            }
            let (small, block): (Vec<_>, Vec<_>) =
                next.into_iter().partition(|(_, pass)| matches!(pass, NextPass::SubBlock { .. }));
            self.decode_pass(&mut rows, &block, size, &mut cache, options)?;
            self.decode_pass(&mut rows, &small, options.sub_block_size, &mut cache, options)?;
        }
        Ok(rows.into_iter().map(|row| row.finish(options)).collect())
    }

    /// Prefills the whole blocks of a prompt into row `at` of the cache and opens the block after
    /// them.
    fn open_row(
        &mut self,
        at: usize,
        prompt: &[i64],
        cache: &mut KvCache,
        options: &BlockOptions,
    ) -> Result<Row> {
        let size = options.block_size;
        let mut row = Row {
            ids: prompt.to_vec(),
            prompt: prompt.len(),
            decided: Vec::new(),
            start: 0,
            open: 0,
            blocks_left: options.max_new_tokens.div_ceil(size),
            is_cached: false,
            done: false,
            passes: Passes::default(),
        };
        let whole = prompt.len() / size * size;
        if whole > 0 {
            let next = self.prefill(prompt, whole, size, cache, at, Some(options.mask_id))?;
            row.passes.prefill += 1;
            if whole == prompt.len() {
                row.push(next);
            }
        }
        row.begin_block(options);
        Ok(row)
    }

    /// Runs `len` tokens of each row in `passes`: whole blocks, or sub-blocks over the keys and
    /// values of their blocks.
    fn decode_pass(
        &mut self,
        rows: &mut [Row],
        passes: &[(usize, NextPass)],
        len: usize,
        cache: &mut KvCache,
        options: &BlockOptions,
    ) -> Result<()> {
        if passes.is_empty() {
            return Ok(());
        }
        let (mut ids, mut spans, mut predicting) = (Vec::new(), Vec::new(), Vec::new());
        for (i, &(at, pass)) in passes.iter().enumerate() {
            let row = &rows[at];
            let first = match pass {
                NextPass::SubBlock { sub } => sub,
                NextPass::Block { .. } | NextPass::Commit => 0,
            };
            ids.extend(row.ids.iter().skip(row.start + first).take(len));
            let visible = row.start + options.block_size;
            spans.push(Span { row: at, start: row.start + first, visible });
            match pass {
                // No position of the pass comes before its first token, but that token is never
                // masked: it belongs to the prompt, or the last commit or prefill predicted it, or
                // `next_pass` has chosen the whole block.
                NextPass::Block { sub } | NextPass::SubBlock { sub } => {
                    predicting.extend(
                        row.masked(sub, options)
                            .iter()
                            .map(|position| i * len + (position - first).saturating_sub(1)),
                    );
                }
                NextPass::Commit => predicting.push(i * len + len - 1),
            }
        }
        let hidden = self.pass(&ids, &spans, Order::Full, cache)?;
        let predictions = self.predict(hidden, &predicting, Some(options.mask_id))?;
        let mut predictions = predictions.as_slice();
        for &(at, pass) in passes {
            let row = &mut rows[at];
            match pass {
                NextPass::Block { sub } | NextPass::SubBlock { sub } => {
                    let positions = row.masked(sub, options);
                    let (own, rest) = predictions.split_at(positions.len().min(predictions.len()));
                    predictions = rest;
                    match pass {
                        NextPass::SubBlock { .. } => row.passes.small += 1,
                        _ => row.passes.block += 1,
                    }
                    row.is_cached = true;
                    row.accept(&positions, own, options);
                }
                NextPass::Commit => {
                    row.passes.commit += 1;
                    if let Some((next, rest)) = predictions.split_first() {
                        row.push(*next);
                        predictions = rest;
                    }
                    row.begin_block(options);
                }
            }
        }
        Ok(())
    }
}
