//! Autoregressive decoding, causal: the baseline for the speed of block decoding.
//!
//! In: a prompt as token ids. Out: its passes, one after another. The prompt is prefilled, then
//! each pass runs one token.

use super::DecodedSequence;
use super::cached::Order;
use super::engine::Prediction;
use super::row::{PassKind, Row, RowPass, RowText};

/// One prompt and the tokens generated for it so far.
pub(super) struct ArRow {
    text: RowText,
    max_new_tokens: usize,
    /// A token that is never produced: the mask token of a converted model.
    never: Option<i64>,
    /// Positions whose keys and values are cached.
    cached: usize,
}

impl ArRow {
    pub(super) fn new(text: RowText, max_new_tokens: usize, never: Option<i64>) -> Self {
        ArRow { text, max_new_tokens, never, cached: 0 }
    }
}

impl Row for ArRow {
    fn text(&self) -> &RowText {
        &self.text
    }

    fn never(&self) -> Option<i64> {
        self.never
    }

    fn next_pass(&self) -> Option<RowPass> {
        let text = &self.text;
        let is_stopped = text.generated().last().is_some_and(|id| text.stops(*id));
        if is_stopped || text.generated().len() >= self.max_new_tokens {
            return None;
        }
        if self.cached < text.prompt {
            return Some(RowPass::prefill(self.cached, text.prompt, 1, true));
        }
        let (start, visible) = (self.cached, text.ids.len());
        let (kind, order, judged) = (PassKind::Block, Order::Full, vec![0]);
        Some(RowPass {
            kind,
            start,
            len: 1,
            visible,
            order,
            judged,
            shift: 1,
            tail: 0,
            groups: Vec::new(),
        })
    }

    fn take(&mut self, pass: &RowPass, predictions: &[Prediction]) {
        self.cached = pass.start + pass.len;
        let Some(next) = predictions.first() else { return };
        match pass.kind {
            PassKind::Prefill => self.text.passes.prefill += 1,
            _ => self.text.passes.block += 1,
        }
        self.text.set(self.text.ids.len(), *next);
    }

    fn settled(&self) -> usize {
        self.text.generated().len()
    }

    fn finish(self: Box<Self>) -> DecodedSequence {
        self.text.finish()
    }
}
