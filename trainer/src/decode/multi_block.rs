//! Block decoding with several blocks in flight: approximate, fewer passes.
//!
//! In: a prompt as token ids. Out: its passes, one after another.
//!
//! Blocks, sub-blocks and threshold as in `block.rs`. A pass runs all blocks in flight behind the
//! cache, each of which sees itself and what stands before it, hidden or not:
//!
//! 1. The oldest block with hidden positions is filled as in `block.rs`: what is above the
//!    threshold in its sub-block is fixed, and at least the most probable position. Its first token,
//!    where it is hidden, is fixed whatever its probability, as a commit does.
//! 2. In the sub-block of every later block only what is above the threshold is fixed.
//! 3. A block that was full before the pass, with all blocks before it, is committed by the pass:
//!    it leaves the flight, and its keys and values stay.
//! 4. A block is opened when fewer than `blocks_in_flight` are in flight and at least
//!    [`OPENING_SHARE`] of the last one is fixed; none behind a stop token. Blocks behind a stop
//!    token are dropped.
//!
//! Without the token shift (`block.rs`) no block has a first token to be fixed by force, and the
//! row ends with its last block: nothing is behind it to predict.
//!
//! Approximate, because a later block is filled while the blocks before it are not: the model was
//! trained on blocks behind full ones.

use super::block::most_probable;
use super::block_options::BlockOptions;
use super::cached::Order;
use super::engine::Prediction;
use super::row::{PassKind, Row, RowPass, RowText};
use super::{Decided, DecodedSequence};

/// Share of a block that is fixed before the next one is opened: the least of those tried that kept
/// the sample's models from losing answers (docs/decode.md).
pub(crate) const OPENING_SHARE: f64 = 0.75;

/// One prompt and the tokens generated for it so far.
pub(super) struct MultiBlockRow {
    text: RowText,
    options: BlockOptions,
    mask_id: i64,
    max_new_tokens: usize,
    /// Prompt tokens that are cached.
    cached: usize,
    /// First position of the flight; the keys and values before it are cached for good.
    start: usize,
    /// Position behind the last block in flight.
    end: usize,
    blocks_left: usize,
    done: bool,
}

impl MultiBlockRow {
    /// A row whose text holds the prompt; the limit counts as in `block.rs`.
    pub(super) fn new(
        text: RowText,
        options: BlockOptions,
        mask_id: i64,
        max_new_tokens: usize,
    ) -> Self {
        let whole = text.prompt / options.block_size * options.block_size;
        let blocks_left = options.blocks(text.prompt, max_new_tokens);
        let mut row = MultiBlockRow {
            text,
            options,
            mask_id,
            max_new_tokens,
            cached: 0,
            start: whole,
            end: whole,
            blocks_left,
            done: false,
        };
        let is_known = whole < row.text.prompt || !options.token_shift;
        let is_fused = options.fuse_prefill && is_known && row.blocks_left > 0;
        if whole == 0 || is_fused {
            row.open_blocks();
        }
        row
    }

    /// Prompt tokens in whole blocks.
    fn whole(&self) -> usize {
        self.options.in_whole_blocks(self.text.prompt)
    }

    fn is_masked(&self, position: usize) -> bool {
        self.text.ids.get(position) == Some(&self.mask_id)
    }

    /// Starts of the blocks in flight.
    fn flight(&self) -> impl DoubleEndedIterator<Item = usize> + ExactSizeIterator + use<> {
        (self.start..self.end).step_by(self.options.block_size)
    }

    /// Hidden positions of the block at `start`.
    fn hidden(&self, start: usize) -> Vec<usize> {
        (start..start + self.options.block_size).filter(|at| self.is_masked(*at)).collect()
    }

    /// The oldest block with hidden positions.
    fn active(&self) -> Option<usize> {
        self.flight().find(|start| !self.hidden(*start).is_empty())
    }

    /// Hidden positions of every block's sub-block that is being filled.
    fn open(&self) -> Vec<usize> {
        let small = self.options.sub_block_size;
        let of_block = |start: usize| {
            let hidden = self.hidden(start);
            let end = hidden
                .first()
                .map_or(start, |first| start + (first - start) / small * small + small);
            hidden.into_iter().filter(move |at| *at < end)
        };
        self.flight().flat_map(of_block).collect()
    }

    /// Opens the blocks that may be opened, and drops those behind a stop token. Ends the row where
    /// a stop token has nothing hidden before it, and where no block is left.
    fn open_blocks(&mut self) {
        let size = self.options.block_size;
        let generated = self.text.generated();
        let hidden = generated.iter().position(|id| *id == self.mask_id);
        if let Some(stop) = generated.iter().position(|id| self.text.stops(*id)) {
            self.done = hidden.is_none_or(|hidden| stop < hidden);
            self.end = self.end.min((self.text.prompt + stop) / size * size + size);
            self.text.ids.truncate(self.end.max(self.text.prompt + stop + 1));
            self.text.decided.truncate(self.text.ids.len() - self.text.prompt);
            return;
        }
        while self.blocks_left > 0 && self.flight().len() < self.options.blocks_in_flight {
            let fixed = self.flight().next_back().map(|last| size - self.hidden(last).len());
            if fixed.is_some_and(|fixed| (fixed as f64) < OPENING_SHARE * size as f64) {
                break;
            }
            self.blocks_left -= 1;
            self.end += size;
            self.text.ids.resize(self.end, self.mask_id);
            self.text.decided.resize(self.end - self.text.prompt, Decided::default());
        }
        let is_full = || self.active().is_none() && self.blocks_left == 0;
        self.done = self.start == self.end || (!self.options.token_shift && is_full());
    }

    /// Fixes what a pass predicted for the positions that it judged.
    fn accept(&mut self, pass: &RowPass, predictions: &[Prediction]) {
        let size = self.options.block_size;
        let positions = || pass.judged.iter().map(|offset| pass.start + offset + pass.shift);
        let Some(active) = self.active() else {
            // every block is full: the token behind them
            if let Some(next) = predictions.first() {
                self.text.set(self.end, *next);
            }
            return;
        };
        // the active block's positions come first, for those before it are full
        let own = positions().take_while(|at| *at < active + size).count().min(predictions.len());
        let forced = match self.options.token_shift && self.is_masked(active) {
            true => Some(0),
            false => most_probable(&predictions[..own]),
        };
        for (i, (at, prediction)) in positions().zip(predictions).enumerate() {
            let is_sure = f64::from(prediction.probability) > self.options.threshold;
            if is_sure || forced == Some(i) {
                self.text.set(at, *prediction);
            }
        }
    }
}

impl Row for MultiBlockRow {
    fn text(&self) -> &RowText {
        &self.text
    }

    fn never(&self) -> Option<i64> {
        Some(self.mask_id)
    }

    fn next_pass(&self) -> Option<RowPass> {
        let (size, whole) = (self.options.block_size, self.whole());
        let is_opened = self.start < self.end;
        let shift = self.options.shift();
        let judged = |start: usize| self.open().into_iter().map(|at| at - shift - start).collect();
        if self.cached < whole {
            let predicts = shift == 1 && whole == self.text.prompt;
            let mut pass =
                RowPass { shift, ..RowPass::prefill(self.cached, whole, size, predicts) };
            if is_opened && pass.start + pass.len == whole {
                pass.tail = self.end - whole;
                pass.len += pass.tail;
                pass.visible = self.end;
                pass.judged = judged(pass.start);
            }
            return Some(pass);
        }
        if self.done {
            return None;
        }
        let (start, len) = (self.start, self.end - self.start);
        let (kind, judged) = match self.active() {
            None if shift == 0 => (PassKind::Commit, Vec::new()),
            None => (PassKind::Commit, vec![len - 1]),
            Some(active) if active > start => (PassKind::Commit, judged(start)),
            Some(_) => (PassKind::Block, judged(start)),
        };
        Some(RowPass {
            kind,
            start,
            len,
            visible: self.end,
            order: Order::Blocks(size),
            judged,
            shift,
            tail: 0,
            groups: Vec::new(),
        })
    }

    fn take(&mut self, pass: &RowPass, predictions: &[Prediction]) {
        let whole = self.whole();
        match pass.kind {
            PassKind::Prefill => {
                self.cached = (pass.start + pass.len).min(whole);
                if self.cached < whole {
                    return;
                }
                self.text.passes.prefill += 1;
                if self.start == self.end {
                    // no block was opened before: the prefill predicts the first token, if any
                    if let Some(next) = predictions.first() {
                        self.text.set(self.text.ids.len(), *next);
                    }
                    return self.open_blocks();
                }
            }
            PassKind::Commit => self.text.passes.commit += 1,
            PassKind::Block | PassKind::Small => self.text.passes.block += 1,
        }
        // blocks that were full in this pass are cached for good
        let settled = self.active().unwrap_or(self.end);
        self.accept(pass, predictions);
        self.start = settled;
        self.open_blocks();
    }

    fn settled(&self) -> usize {
        let generated = self.text.generated();
        let settled = generated.iter().position(|id| *id == self.mask_id);
        settled.unwrap_or(generated.len()).min(self.options.limit(self.max_new_tokens))
    }

    fn finish(mut self: Box<Self>) -> DecodedSequence {
        let limit = self.options.limit(self.max_new_tokens);
        self.text.truncate(limit);
        self.text.finish()
    }
}
