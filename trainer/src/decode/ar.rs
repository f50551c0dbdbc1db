//! Autoregressive decoding, greedy and causal: the baseline that block decoding is measured
//! against.
//!
//! In: prompts. Out: completions. The prompt is prefilled, then each pass runs one token a row.

use crate::decode::cached::{Order, Span};
use crate::error::Result;

use super::engine::Engine;
use super::{Completion, Passes};

/// How to decode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArOptions {
    /// Length limit.
    pub max_new_tokens: usize,
    /// Ids that end a completion; none: it runs to its limit.
    pub stop_ids: Vec<i64>,
    /// A token never to produce: the mask of a converted model.
    pub mask_id: Option<i64>,
}

impl Engine {
    /// Decodes `prompts` together, one token a pass; each gets what it would get alone.
    pub fn autoregressive(
        &mut self,
        prompts: &[Vec<i64>],
        options: &ArOptions,
    ) -> Result<Vec<Completion>> {
        self.check(prompts, options.mask_id)?;
        let longest =
            prompts.iter().map(Vec::len).max().unwrap_or(0).saturating_add(options.max_new_tokens);
        let mut cache = self.new_cache(prompts.len(), longest);
        let mut rows: Vec<(Vec<i64>, Passes)> = Vec::with_capacity(prompts.len());
        for (row, prompt) in prompts.iter().enumerate() {
            let (mut ids, mut passes) = (prompt.clone(), Passes::default());
            if options.max_new_tokens > 0 {
                ids.push(
                    self.prefill(prompt, prompt.len(), 1, &mut cache, row, options.mask_id)?.token,
                );
                passes.prefill += 1;
            }
            rows.push((ids, passes));
        }
        let done = |row: usize, ids: &[i64]| {
            let generated = ids.len() - prompts[row].len();
            generated >= options.max_new_tokens
                || ids.last().is_some_and(|id| options.stop_ids.contains(id))
        };
        let mut live: Vec<usize> = (0..rows.len()).collect();
        loop {
            live.retain(|&row| !done(row, &rows[row].0));
            if live.is_empty() {
                break;
            }
            let ids: Vec<i64> =
                live.iter().filter_map(|&row| rows[row].0.last().copied()).collect();
            let span = |&row: &usize| {
                let visible = rows[row].0.len();
                Span { row, start: visible - 1, visible }
            };
            let spans: Vec<Span> = live.iter().map(span).collect();
            let hidden = self.pass(&ids, &spans, Order::Full, &mut cache)?;
            let asked: Vec<usize> = (0..live.len()).collect();
            for (&row, verdict) in live.iter().zip(self.judge(hidden, &asked, options.mask_id)?) {
                rows[row].0.push(verdict.token);
                rows[row].1.block += 1;
            }
        }
        let finish = |((ids, passes), prompt): ((Vec<i64>, Passes), &Vec<i64>)| {
            let whole = Completion { ids, prompt: prompt.len(), stopped: false, passes };
            whole.cut(&options.stop_ids)
        };
        Ok(rows.into_iter().zip(prompts).map(finish).collect())
    }
}
