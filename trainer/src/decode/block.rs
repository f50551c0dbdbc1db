//! Block-diffusion decoding: Fast-dLLM v2's `batch_sample` (arXiv:2509.26328).
//!
//! In: a prompt as token ids. Out: its passes, one after another.
//!
//! The sequence is divided into blocks of `block_size` tokens from position 0, and every whole
//! block of the prompt is prefilled. A block is decoded as follows:
//!
//! 1. It starts with its known tokens (the end of the prompt, or the token that the previous commit
//!    predicted); every other position holds the mask token.
//! 2. Its sub-blocks are filled from left to right. A pass runs the whole block after the cache;
//!    the logits at position j - 1 predict token j. Every masked position of the sub-block whose
//!    token is above the threshold is fixed, and at least the most probable one of them.
//! 3. The full block is run once more (the commit): its keys and values join the cache, and its
//!    last logits predict the first token of the next block.

use super::cached::Order;
use super::engine::Prediction;
use super::row::{PassKind, Row, RowPass, RowText};
use super::{Decided, DecodedSequence};

/// Settings of block decoding.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(crate) struct BlockOptions {
    /// Tokens per block; should be what the model was trained with.
    pub block_size: usize,
    /// Tokens per sub-block; divides `block_size`.
    pub sub_block_size: usize,
    /// Probability above which a token is fixed.
    pub threshold: f64,
    /// Run only the sub-block once keys and values of the whole block are known from an earlier
    /// pass: faster in large batches, approximate.
    pub sub_block_cache: bool,
}

/// One prompt and the tokens generated for it so far.
pub(super) struct BlockRow {
    text: RowText,
    options: BlockOptions,
    mask_id: i64,
    max_new_tokens: usize,
    /// Positions whose keys and values are cached for good: whole blocks.
    cached: usize,
    /// First position of the current block.
    start: usize,
    /// First position of the current block that is to be decoded.
    open: usize,
    blocks_left: usize,
    /// Whether the cache holds keys and values of the whole current block.
    is_cached: bool,
    done: bool,
}

impl BlockRow {
    /// A row whose text holds the prompt. `max_new_tokens` is counted in whole blocks as in the
    /// published code, so that a completion may be up to a block longer or shorter; a limit that is
    /// no multiple of the block size is rounded up, and the completion is cut to it.
    pub(super) fn new(
        text: RowText,
        options: BlockOptions,
        mask_id: i64,
        max_new_tokens: usize,
    ) -> Self {
        let mut row = BlockRow {
            text,
            options,
            mask_id,
            max_new_tokens,
            cached: 0,
            start: 0,
            open: 0,
            blocks_left: max_new_tokens.div_ceil(options.block_size),
            is_cached: false,
            done: false,
        };
        if row.whole() == 0 {
            row.begin_block();
        }
        row
    }

    /// Prompt tokens in whole blocks.
    fn whole(&self) -> usize {
        self.text.prompt / self.options.block_size * self.options.block_size
    }

    /// Most tokens of the completion: without bound where whole blocks are counted.
    fn limit(&self) -> usize {
        match self.max_new_tokens.is_multiple_of(self.options.block_size) {
            true => usize::MAX,
            false => self.max_new_tokens,
        }
    }

    /// Opens the next block, or ends the row when no block is left or a stop token was generated.
    fn begin_block(&mut self) {
        let text = &mut self.text;
        if self.blocks_left == 0 || text.generated().iter().any(|id| text.stops(*id)) {
            self.done = true;
            return;
        }
        self.blocks_left -= 1;
        self.open = text.ids.len();
        self.start = self.cached;
        text.ids.resize(self.start + self.options.block_size, self.mask_id);
        text.decided.resize(text.ids.len() - text.prompt, Decided::default());
        self.is_cached = false;
    }

    fn is_masked(&self, position: usize) -> bool {
        self.text.ids.get(position) == Some(&self.mask_id)
    }

    /// Fixes the predictions above the threshold, and at least the most probable one. Ends the row
    /// when a stop token has no masked position before it in its block.
    fn accept(&mut self, pass: &RowPass, predictions: &[Prediction]) {
        // the first of equally probable ones
        let best = predictions.iter().enumerate().fold(
            None,
            |best: Option<(usize, f32)>, (i, prediction)| match best {
                Some((_, most)) if prediction.probability <= most => best,
                _ => Some((i, prediction.probability)),
            },
        );
        for (i, (judged, prediction)) in pass.judged.iter().zip(predictions).enumerate() {
            let is_sure = f64::from(prediction.probability) > self.options.threshold;
            if is_sure || best.is_some_and(|(most, _)| most == i) {
                self.text.set(pass.start + judged + 1, *prediction);
            }
        }
        let decoded = self.text.ids.get(self.open..).unwrap_or_default();
        let end = decoded.iter().find(|id| **id == self.mask_id || self.text.stops(**id));
        self.done = end.is_some_and(|id| self.text.stops(*id));
    }
}

impl Row for BlockRow {
    fn text(&self) -> &RowText {
        &self.text
    }

    fn never(&self) -> Option<i64> {
        Some(self.mask_id)
    }

    fn next_pass(&self) -> Option<RowPass> {
        let (size, small) = (self.options.block_size, self.options.sub_block_size);
        let whole = self.whole();
        if self.cached < whole {
            let predicts = whole == self.text.prompt;
            return Some(RowPass::prefill(self.cached, whole, size, predicts));
        }
        if self.done {
            return None;
        }
        let (start, visible, order) = (self.start, self.start + size, Order::Full);
        let pass =
            |kind, start, len, judged| Some(RowPass { kind, start, len, visible, order, judged });
        let Some(first) = (self.open..visible).find(|at| self.is_masked(*at)) else {
            return pass(PassKind::Commit, start, size, vec![size - 1]);
        };
        let sub = start + (first - start) / small * small;
        let masked = (sub..sub + small).filter(|at| self.is_masked(*at));
        // The first token of a sub-block is predicted by the position before the sub-block, which a
        // pass over the sub-block alone does not run. The first token of a block is never masked:
        // it belongs to the prompt, or the last commit or prefill predicted it.
        if self.options.sub_block_cache && self.is_cached && !self.is_masked(sub) {
            return pass(PassKind::Small, sub, small, masked.map(|at| at - 1 - sub).collect());
        }
        pass(PassKind::Block, start, size, masked.map(|at| at - 1 - start).collect())
    }

    fn take(&mut self, pass: &RowPass, predictions: &[Prediction]) {
        match pass.kind {
            PassKind::Prefill => {
                self.cached = pass.start + pass.len;
                if self.cached < self.whole() {
                    return;
                }
                self.text.passes.prefill += 1;
            }
            PassKind::Block => self.text.passes.block += 1,
            PassKind::Small => self.text.passes.small += 1,
            PassKind::Commit => {
                self.cached = pass.start + pass.len;
                self.text.passes.commit += 1;
            }
        }
        match pass.kind {
            PassKind::Block | PassKind::Small => {
                self.is_cached = true;
                self.accept(pass, predictions);
            }
            PassKind::Prefill | PassKind::Commit => {
                if let Some(next) = predictions.first() {
                    self.text.set(self.text.ids.len(), *next);
                }
                self.begin_block();
            }
        }
    }

    fn settled(&self) -> usize {
        let generated = self.text.generated();
        let settled = generated.iter().position(|id| *id == self.mask_id);
        settled.unwrap_or(generated.len()).min(self.limit())
    }

    fn finish(mut self: Box<Self>) -> DecodedSequence {
        let limit = self.limit();
        self.text.ids.truncate(self.text.prompt.saturating_add(limit));
        self.text.decided.truncate(limit);
        self.text.finish()
    }
}
