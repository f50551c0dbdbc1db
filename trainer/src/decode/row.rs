//! One prompt while it is decoded: what it needs of the next forward pass and what it makes of the
//! predictions. `block.rs` and `ar.rs` are the two kinds; `continuous.rs` runs rows of both.

use super::cached::Order;
use super::distribution::Distribution;
use super::engine::Prediction;
use super::placed::Group;
use super::sampling::Sampling;
use super::{Decided, DecodedSequence, FinishReason, Passes};

/// Most prompt tokens of one prefill pass, unless a block is longer: bounds the memory of its
/// attention scores.
pub(super) const PREFILL_TOKENS: usize = 512;

/// Most prompt tokens of a step in which other rows are decoded, unless a block is longer: bounds
/// how long they wait. A pass of few tokens costs more per token.
pub(super) const PREFILL_TOKENS_BESIDE: usize = 128;

/// What a pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PassKind {
    /// Over prompt tokens.
    Prefill,
    /// Over a block that is being decoded, or over one token in autoregressive mode.
    Block,
    /// Over a sub-block, with the keys and values of the rest of its block as they are cached.
    Small,
    /// Over a finished block.
    Commit,
}

/// The tokens of one row in a forward pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RowPass {
    pub kind: PassKind,
    /// Position of the first token of the pass in the row.
    pub start: usize,
    /// Tokens of the pass.
    pub len: usize,
    /// They see positions below this, as far as `order` permits.
    pub visible: usize,
    pub order: Order,
    /// Offsets in the pass whose logits are wanted.
    pub judged: Vec<usize>,
    /// The logits at an offset predict the token this many positions behind it: 1, or 0 for models
    /// that were trained without the token shift.
    pub shift: usize,
    /// Tokens at the end that must not be left to a pass of their own: an open block that runs
    /// together with prompt tokens.
    pub tail: usize,
    /// Groups of mask tokens at the end, whose masks see as [`Group`] says.
    pub groups: Vec<Group>,
}

impl RowPass {
    /// The pass over prompt tokens from `start` on, at most to `end`, in blocks of `block` tokens
    /// (1: causal). The token behind `end` is predicted if `predicts` says so, which takes a model
    /// with the token shift.
    pub(super) fn prefill(start: usize, end: usize, block: usize, predicts: bool) -> Self {
        let len = (end - start).min(PREFILL_TOKENS.next_multiple_of(block));
        let judged = match predicts && start + len == end {
            true => vec![len - 1],
            false => Vec::new(),
        };
        let (visible, order) = (start + len, Order::Blocks(block));
        let (kind, shift, tail, groups) = (PassKind::Prefill, 1, 0, Vec::new());
        RowPass { kind, start, len, visible, order, judged, shift, tail, groups }
    }

    /// Tokens before the groups.
    pub(super) fn clean(&self) -> usize {
        self.len - self.groups.iter().map(|group| group.len).sum::<usize>()
    }

    /// The same pass over the first `most` tokens of it, and over whole blocks. The last block of
    /// the prompt stays with an open block behind it, so that passes are counted alike whatever
    /// other rows there are.
    pub(super) fn shortened(mut self, most: usize) -> Self {
        let block = match self.order {
            Order::Blocks(block) => block.max(1),
            Order::Full => return self,
        };
        let len = most.next_multiple_of(block);
        let kept = if self.tail > 0 { self.tail + block } else { 0 };
        if len >= self.len || self.len <= kept {
            return self;
        }
        self.len = len.min(self.len - kept);
        self.visible = self.visible.min(self.start + self.len);
        self.judged.retain(|offset| *offset < self.len);
        self.groups.clear();
        self
    }
}

/// Tokens of a row and how they came about.
pub(super) struct RowText {
    /// Prompt and completion; the mask token where nothing is decided yet.
    pub ids: Vec<i64>,
    /// Number of prompt tokens.
    pub prompt: usize,
    /// For each token behind the prompt, how it was decided.
    pub decided: Vec<Decided>,
    pub passes: Passes,
    pub stop_ids: Vec<i64>,
    /// `None` takes the most probable tokens.
    pub sampling: Option<Sampling>,
}

impl RowText {
    pub(super) fn new(prompt: Vec<i64>, stop_ids: Vec<i64>, sampling: Option<Sampling>) -> Self {
        let (passes, decided) = (Passes::default(), Vec::new());
        RowText { prompt: prompt.len(), ids: prompt, decided, passes, stop_ids, sampling }
    }

    pub(super) fn generated(&self) -> &[i64] {
        self.ids.get(self.prompt..).unwrap_or_default()
    }

    pub(super) fn stops(&self, id: i64) -> bool {
        self.stop_ids.contains(&id)
    }

    /// Decides the token at `position`, which is one that exists or the one behind the last.
    pub(super) fn set(&mut self, position: usize, prediction: Prediction) {
        let decided = prediction.in_pass(self.passes);
        let at = position.saturating_sub(self.prompt);
        match (self.ids.get_mut(position), self.decided.get_mut(at)) {
            (Some(id), Some(how)) => {
                *id = prediction.token;
                *how = decided;
            }
            _ => {
                self.ids.push(prediction.token);
                self.decided.push(decided);
            }
        }
    }

    /// Cuts the completion to `tokens` tokens.
    pub(super) fn truncate(&mut self, tokens: usize) {
        self.ids.truncate(self.prompt.saturating_add(tokens));
        self.decided.truncate(tokens);
    }

    /// The sequence, cut after the first stop token of the completion.
    pub(super) fn finish(self) -> DecodedSequence {
        let RowText { ids, prompt, decided, passes, stop_ids, .. } = self;
        let finish_reason = FinishReason::Length;
        DecodedSequence {
            ids,
            prompt,
            decided,
            finish_reason,
            text_end: None,
            passes,
            proposals: None,
        }
        .cut(&stop_ids)
    }
}

/// A prompt that is being completed.
pub(super) trait Row: Send {
    fn text(&self) -> &RowText;

    /// A token that is never predicted.
    fn never(&self) -> Option<i64>;

    /// A token that is never predicted at an offset of a pass.
    fn never_at(&self, _pass: &RowPass, _offset: usize) -> Option<i64> {
        self.never()
    }

    /// The pass that the row needs next; `None` if it is finished.
    fn next_pass(&self) -> Option<RowPass>;

    /// The forward pass, counted from 1, in which decoding pass by pass would predict behind
    /// `offset` of `pass`, the last answer of [`Row::next_pass`]: tokens are drawn by its number.
    fn drawn_in(&self, _pass: &RowPass, _offset: usize) -> usize {
        self.text().passes.total() + 1
    }

    /// Token ids of `pass`, the last answer of [`Row::next_pass`], which may have been shortened.
    fn ids_of(&self, pass: &RowPass) -> Vec<i64> {
        self.text().ids.iter().skip(pass.start).take(pass.len).copied().collect()
    }

    /// How to draw behind `offset` of `pass`, where the row does so itself and takes the
    /// distributions.
    fn draws_from(&self, _pass: &RowPass, _offset: usize) -> Option<Sampling> {
        None
    }

    /// Takes the distributions at the judged offsets of `pass`, as [`Row::draws_from`] says. `None`
    /// where nothing can be drawn from them.
    fn take_distributions(&mut self, _pass: &RowPass, _all: Vec<Distribution>) -> Option<()> {
        None
    }

    /// Takes what `pass`, the last answer of [`Row::next_pass`], predicted at its judged offsets. A
    /// pass over prompt tokens may have been shortened.
    fn take(&mut self, pass: &RowPass, predictions: &[Prediction]);

    /// Completion tokens from the first on that will not change any more. Some of them may lie
    /// behind the end at which the completion is cut.
    fn settled(&self) -> usize;

    /// The finished row as a sequence.
    fn finish(self: Box<Self>) -> DecodedSequence;
}
