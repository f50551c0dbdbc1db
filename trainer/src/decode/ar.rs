//! Autoregressive decoding, greedy and causal: the baseline for the speed of block decoding.
//!
//! In: prompts as token ids. Out: [`DecodedSequence`]s. The prompt is prefilled, then each pass
//! runs one token per row.

use crate::decode::cached::{Order, Span};
use crate::error::Result;

use super::engine::{Engine, Prediction};
use super::{Decided, DecodedSequence, Passes};

/// Options of autoregressive decoding.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct ArOptions {
    /// Length limit of a completion in tokens.
    pub max_new_tokens: usize,
    /// Ids that end a completion; without any it runs to its limit.
    pub stop_ids: Vec<i64>,
    /// A token that is never produced: the mask token of a converted model.
    pub mask_id: Option<i64>,
}

/// One prompt and the tokens generated for it so far.
struct Row {
    ids: Vec<i64>,
    prompt: usize,
    decided: Vec<Decided>,
    passes: Passes,
}

impl Row {
    fn push(&mut self, next: Prediction) {
        self.ids.push(next.token);
        self.decided.push(next.in_pass(self.passes));
    }

    fn is_done(&self, options: &ArOptions) -> bool {
        self.ids.len() - self.prompt >= options.max_new_tokens
            || self.ids.last().is_some_and(|id| options.stop_ids.contains(id))
    }
}

impl Engine {
    /// Decodes `prompts` together, one token per pass; each gets the tokens it would get alone.
    pub(crate) fn autoregressive(
        &mut self,
        prompts: &[Vec<i64>],
        options: &ArOptions,
    ) -> Result<Vec<DecodedSequence>> {
        self.check(prompts, options.mask_id)?;
        let longest =
            prompts.iter().map(Vec::len).max().unwrap_or(0).saturating_add(options.max_new_tokens);
        let mut cache = self.new_cache(prompts.len(), longest);
        let mut rows: Vec<Row> = Vec::with_capacity(prompts.len());
        for (at, prompt) in prompts.iter().enumerate() {
            let mut row = Row {
                ids: prompt.clone(),
                prompt: prompt.len(),
                decided: Vec::new(),
                passes: Passes::default(),
            };
            if options.max_new_tokens > 0 {
                let next =
                    self.prefill(prompt, prompt.len(), 1, &mut cache, at, options.mask_id)?;
                row.passes.prefill += 1;
                row.push(next);
            }
            rows.push(row);
        }
        let mut live: Vec<usize> = (0..rows.len()).collect();
        loop {
            live.retain(|&at| !rows[at].is_done(options));
            if live.is_empty() {
                break;
            }
            let ids: Vec<i64> =
                live.iter().filter_map(|&at| rows[at].ids.last().copied()).collect();
            let span = |&at: &usize| {
                let visible = rows[at].ids.len();
                Span { row: at, start: visible - 1, visible }
            };
            let spans: Vec<Span> = live.iter().map(span).collect();
            let hidden = self.pass(&ids, &spans, Order::Full, &mut cache)?;
            let positions: Vec<usize> = (0..live.len()).collect();
            let predictions = self.predict(hidden, &positions, options.mask_id)?;
            for (&at, prediction) in live.iter().zip(predictions) {
                rows[at].passes.block += 1;
                rows[at].push(prediction);
            }
        }
        let finished = |row: Row| {
            let Row { ids, prompt, decided, passes } = row;
            DecodedSequence { ids, prompt, decided, stopped: false, passes }.cut(&options.stop_ids)
        };
        Ok(rows.into_iter().map(finished).collect())
    }
}
