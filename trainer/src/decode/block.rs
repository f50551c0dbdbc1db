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
//!
//! Without the token shift (`token_shift` false: SDAR and `conversion.token_shift=false`) the
//! logits at position j predict token j: prefill and commit predict nothing, a block begins with
//! masks alone, and there is a commit only where another block follows.
//!
//! Two passes can be saved without changing a token, since a token sees its own block and what
//! stands before it and no more. `fuse_prefill`: the first pass over a block that the prompt begins
//! runs together with the prompt's last whole blocks. `fuse_commit`: the first pass over a block
//! runs together with the commit of the block before it, for the first token that an earlier pass
//! foresaw; where the commit predicts another one, the next block's part of that pass is forgotten.
//! Without the token shift both are always possible, since the passes in front predict nothing.
//! Several blocks at a time: `multi_block.rs`.

use super::block_options::BlockOptions;
use super::cached::Order;
use super::engine::Prediction;
use super::row::{PassKind, Row, RowPass, RowText};
use super::{Decided, DecodedSequence};

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
    /// The first block was opened before the prompt's last whole blocks were run.
    is_fused: bool,
    /// What the last pass predicted behind the current block.
    foreseen: Option<i64>,
    /// The current block is full, and the next one stands behind it with its foreseen first token,
    /// to be run together with the commit.
    is_ahead: bool,
    /// Passes that were saved by running two as one.
    saved: usize,
    done: bool,
}

impl BlockRow {
    /// A row whose text holds the prompt. With the token shift `max_new_tokens` is counted in whole
    /// blocks as in the published code, so that a completion may be up to a block longer or
    /// shorter; a limit that is no multiple of the block size is rounded up, and the completion is
    /// cut to it. Without it a completion has exactly that many tokens, unless it stops.
    pub(super) fn new(
        text: RowText,
        options: BlockOptions,
        mask_id: i64,
        max_new_tokens: usize,
    ) -> Self {
        let blocks_left = options.blocks(text.prompt, max_new_tokens);
        let mut row = BlockRow {
            text,
            options,
            mask_id,
            max_new_tokens,
            cached: 0,
            start: 0,
            open: 0,
            blocks_left,
            is_cached: false,
            is_fused: false,
            foreseen: None,
            is_ahead: false,
            saved: 0,
            done: false,
        };
        // Where the prompt ends with a whole block, the prefill predicts the first token of the
        // next one, which has to be known before that block is run.
        let is_known = row.whole() < row.text.prompt || !options.token_shift;
        row.is_fused = options.fuse_prefill && is_known && row.blocks_left > 0;
        if row.whole() == 0 || row.is_fused {
            row.begin_block();
        }
        row
    }

    /// Prompt tokens in whole blocks.
    fn whole(&self) -> usize {
        self.options.in_whole_blocks(self.text.prompt)
    }

    /// Opens the next block, or ends the row when no block is left or a stop token was generated.
    fn begin_block(&mut self) {
        let whole = self.whole();
        let text = &mut self.text;
        if self.blocks_left == 0 || text.generated().iter().any(|id| text.stops(*id)) {
            self.done = true;
            return;
        }
        self.blocks_left -= 1;
        self.open = text.ids.len();
        self.start = whole.max(self.cached);
        text.ids.resize(self.start + self.options.block_size, self.mask_id);
        text.decided.resize(text.ids.len() - text.prompt, Decided::default());
        self.is_cached = false;
        self.foreseen = None;
    }

    /// Start of the current block's sub-block and its open positions; nothing for a full block.
    fn masked(&self) -> Option<(usize, Vec<usize>)> {
        let (size, small) = (self.options.block_size, self.options.sub_block_size);
        let first = (self.open..self.start + size).find(|at| self.is_masked(*at))?;
        let sub = self.start + (first - self.start) / small * small;
        Some((sub, (sub..sub + small).filter(|at| self.is_masked(*at)).collect()))
    }

    /// A pass over `len` tokens from `start` on that judges the tokens at `masked`, and with the
    /// token shift the one behind the last block of the pass if that block may be full then. No
    /// position of the pass comes before its first token, but with the token shift a block's first
    /// token is never masked: it belongs to the prompt, or the last commit or prefill predicted it.
    fn pass(&self, kind: PassKind, start: usize, len: usize, masked: Vec<usize>) -> RowPass {
        let (size, shift) = (self.options.block_size, self.options.shift());
        let order = match start + len > self.start + size || start < self.start {
            true => Order::Blocks(size),
            false => Order::Full,
        };
        let (end, behind) = (start + len, masked.last().map_or(start, |last| last + 1));
        let blocks_left = self.blocks_left - usize::from(self.is_ahead);
        let foresees = self.options.fuse_commit
            && shift == 1
            && size > 1
            && blocks_left > 0
            && end.is_multiple_of(size)
            && !(behind..end).any(|at| self.is_masked(at));
        let judged = masked.iter().map(|at| at - shift).chain(foresees.then_some(end - 1));
        let judged = judged.map(|at| at - start).collect();
        let tail = match kind {
            PassKind::Prefill => size,
            _ => 0,
        };
        let visible = end.max(self.start + size);
        RowPass { kind, start, len, visible, order, judged, shift, tail, groups: Vec::new() }
    }

    /// Puts the next block behind the full current one, with the token shift where its first token
    /// was foreseen.
    fn look_ahead(&mut self) {
        let foreseen = self.foreseen.take();
        let is_possible = match self.options.token_shift {
            true => foreseen.is_some(),
            false => self.options.fuse_commit,
        };
        if !is_possible || self.blocks_left == 0 {
            return;
        }
        let end = self.start + self.options.block_size;
        let text = &mut self.text;
        text.ids.extend(foreseen);
        text.ids.resize(end + self.options.block_size, self.mask_id);
        text.decided.resize(text.ids.len() - text.prompt, Decided::default());
        self.is_ahead = true;
    }

    /// Takes a commit: the cached block is followed by the first token of the next one, and where
    /// that one was foreseen by what the pass predicted for its block.
    fn commit(&mut self, pass: &RowPass, predictions: &[Prediction]) {
        self.cached = self.start + self.options.block_size;
        let was_ahead = std::mem::take(&mut self.is_ahead);
        let foreseen = self.text.ids.get(self.cached).copied();
        self.text.ids.truncate(self.cached);
        self.text.decided.truncate(self.cached - self.text.prompt);
        let (mut judged, mut rest) = (pass.judged.as_slice(), predictions);
        let mut is_right = true;
        if self.options.token_shift {
            let Some((next, behind)) = predictions.split_first() else { return };
            (judged, rest) = (judged.get(1..).unwrap_or_default(), behind);
            self.text.set(self.cached, *next);
            is_right = foreseen == Some(next.token);
        }
        self.begin_block();
        if was_ahead && !self.done && is_right {
            self.is_cached = true;
            self.saved += 1;
            self.accept(&RowPass { judged: judged.to_vec(), ..pass.clone() }, rest);
        }
    }

    fn is_masked(&self, position: usize) -> bool {
        self.text.ids.get(position) == Some(&self.mask_id)
    }

    /// Fixes the predictions above the threshold, and at least the most probable one. Ends the row
    /// when a stop token has no masked position before it in its block.
    fn accept(&mut self, pass: &RowPass, predictions: &[Prediction]) {
        let behind = match pass.shift {
            0 => None,
            _ => pass.judged.iter().position(|judged| judged + 1 == pass.len),
        };
        self.foreseen = behind.and_then(|i| predictions.get(i)).map(|one| one.token);
        let predictions = predictions.get(..behind.unwrap_or(predictions.len()));
        let predictions = predictions.unwrap_or_default();
        let best = most_probable(predictions);
        for (i, (judged, prediction)) in pass.judged.iter().zip(predictions).enumerate() {
            let is_sure = f64::from(prediction.probability) > self.options.threshold;
            if is_sure || best == Some(i) {
                self.text.set(pass.start + judged + pass.shift, *prediction);
            }
        }
        let decoded = self.text.ids.get(self.open..).unwrap_or_default();
        let end = decoded.iter().find(|id| **id == self.mask_id || self.text.stops(**id));
        self.done = match end {
            Some(id) => self.text.stops(*id),
            // a commit would predict nothing, and no block is left to see it
            None => !self.options.token_shift && self.blocks_left == 0,
        };
        if end.is_none() {
            self.look_ahead();
        }
    }
}

/// Index of the most probable prediction, the first of equally probable ones.
pub(super) fn most_probable(predictions: &[Prediction]) -> Option<usize> {
    let best =
        predictions.iter().enumerate().fold(None, |best: Option<(usize, f32)>, (i, prediction)| {
            match best {
                Some((_, most)) if prediction.probability <= most => best,
                _ => Some((i, prediction.probability)),
            }
        });
    best.map(|(i, _)| i)
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
            let predicts = self.options.token_shift && whole == self.text.prompt;
            let pass = RowPass::prefill(self.cached, whole, size, predicts);
            if !self.is_fused || pass.start + pass.len < whole {
                return Some(pass);
            }
            let (_, masked) = self.masked().unwrap_or_default();
            return Some(self.pass(PassKind::Prefill, pass.start, pass.len + size, masked));
        }
        if self.done {
            return None;
        }
        let start = self.start;
        let shift = self.options.shift();
        let Some((sub, masked)) = self.masked() else {
            let mut commit = self.pass(PassKind::Commit, start, size, Vec::new());
            if self.is_ahead {
                // with the token shift the next block's first token stands; the rest of the
                // sub-block behind it is open
                let first = start + size + shift;
                let sub = start + size + shift / small * small;
                let masked = (first..sub + small).collect();
                commit = self.pass(PassKind::Commit, start, 2 * size, masked);
            }
            if shift == 1 {
                commit.judged.retain(|offset| offset + 1 != size);
                commit.judged.insert(0, size - 1);
            }
            return Some(commit);
        };
        // With the token shift the first token of a sub-block is predicted by the position before
        // the sub-block, which a pass over the sub-block alone does not run. Without it the first
        // pass over a sub-block runs the whole block too, for keys and values of what was fixed.
        let is_begun = match self.options.token_shift {
            true => !self.is_masked(sub),
            false => masked.len() < small,
        };
        if self.options.sub_block_cache && self.is_cached && is_begun {
            return Some(self.pass(PassKind::Small, sub, small, masked));
        }
        Some(self.pass(PassKind::Block, start, size, masked))
    }

    fn drawn_in(&self, pass: &RowPass, offset: usize) -> usize {
        let number = self.text.passes.total() + self.saved + 1;
        let size = self.options.block_size;
        // the token behind the last block of a pass, for the commit that may follow
        let is_foreseen = self.options.token_shift && offset + 1 == pass.len;
        number
            + match pass.kind {
                PassKind::Prefill if !self.is_fused => 0,
                PassKind::Prefill => 1 + usize::from(is_foreseen),
                PassKind::Commit if offset < size => 0,
                PassKind::Commit => 1 + usize::from(is_foreseen),
                PassKind::Block | PassKind::Small => usize::from(is_foreseen),
            }
    }

    fn take(&mut self, pass: &RowPass, predictions: &[Prediction]) {
        match pass.kind {
            PassKind::Prefill => {
                self.cached = (pass.start + pass.len).min(self.whole());
                if self.cached < self.whole() {
                    return;
                }
                self.text.passes.prefill += 1;
                if pass.start + pass.len > self.cached {
                    self.is_cached = true;
                    self.saved += 1;
                    return self.accept(pass, predictions);
                }
                if let Some(next) = predictions.first() {
                    self.text.set(self.text.ids.len(), *next);
                }
                self.begin_block();
            }
            PassKind::Commit => {
                self.text.passes.commit += 1;
                self.commit(pass, predictions);
            }
            PassKind::Block | PassKind::Small => {
                match pass.kind {
                    PassKind::Small => self.text.passes.small += 1,
                    _ => self.text.passes.block += 1,
                }
                self.is_cached = true;
                self.accept(pass, predictions);
            }
        }
    }

    fn settled(&self) -> usize {
        let generated = self.text.generated();
        let settled = generated.iter().position(|id| *id == self.mask_id);
        let settled =
            settled.unwrap_or(generated.len()).min(self.options.limit(self.max_new_tokens));
        match self.is_ahead && self.options.token_shift {
            // the foreseen token may still change
            true => settled.min(self.start + self.options.block_size - self.text.prompt),
            false => settled,
        }
    }

    fn finish(mut self: Box<Self>) -> DecodedSequence {
        let limit = self.options.limit(self.max_new_tokens);
        self.text.truncate(limit);
        self.text.finish()
    }
}
