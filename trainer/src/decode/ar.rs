//! Autoregressive decoding, greedy and causal: the baseline that block decoding is measured against.
//!
//! In: prompts. Out: completions. The prompt is prefilled, then each pass runs one token a row. New keys and values are kept
//! in a short tail and join the cache every [`TAIL`] tokens, so that the cache is not copied for each token.

use crate::error::Result;
use crate::model::cached::{Fresh, KvCache, Own};

use super::engine::Engine;
use super::{Completion, Passes};

/// Tokens after which the tail joins the cache.
const TAIL: usize = 32;

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
    pub fn autoregressive(&mut self, prompts: &[Vec<i64>], options: &ArOptions) -> Result<Vec<Completion>> {
        self.check(prompts, options.mask_id)?;
        let mut cache = KvCache::new(prompts.len());
        let mut rows: Vec<(Vec<i64>, Passes)> = Vec::with_capacity(prompts.len());
        for (slot, prompt) in prompts.iter().enumerate() {
            let (mut ids, mut passes) = (prompt.clone(), Passes::default());
            if options.max_new_tokens > 0 {
                ids.push(self.prefill(prompt, prompt.len(), 1, &mut cache, slot, options.mask_id)?.token);
                passes.prefill += 1;
            }
            rows.push((ids, passes));
        }
        let done = |row: usize, ids: &[i64]| {
            let stop = ids.last().is_some_and(|id| options.stop_ids.contains(id)) && ids.len() > prompts[row].len();
            stop || ids.len() >= prompts[row].len() + options.max_new_tokens
        };
        let mut slots: Vec<usize> = (0..rows.len()).collect();
        let mut tail: Option<(usize, Fresh)> = None;
        loop {
            let live: Vec<usize> = (0..slots.len()).filter(|&slot| !done(slots[slot], &rows[slots[slot]].0)).collect();
            if live.is_empty() {
                break;
            }
            if live.len() < slots.len() {
                cache.keep(&live);
                slots = live.iter().map(|&slot| slots[slot]).collect();
                tail = tail.map(|(len, fresh)| (len, fresh.rows(&live)));
            }
            let ids: Vec<i64> = slots.iter().filter_map(|&row| rows[row].0.last().copied()).collect();
            let positions: Vec<i32> = slots.iter().map(|&row| rows[row].0.len() as i32 - 1).collect();
            let own = tail.as_ref().map_or(Own::All, |(_, fresh)| Own::After(fresh));
            let (hidden, fresh) = self.pass(&ids, &positions, slots.len(), &cache, &own);
            let asked: Vec<usize> = (0..slots.len()).collect();
            let verdicts = self.judge(hidden, &asked, options.mask_id)?;
            let len = tail.map_or(0, |(len, _)| len) + 1;
            tail = if len == TAIL {
                cache.append(&asked, &fresh);
                None
            } else {
                Some((len, fresh))
            };
            for (&row, verdict) in slots.iter().zip(verdicts) {
                rows[row].0.push(verdict.token);
                rows[row].1.block += 1;
            }
        }
        let finish = |((ids, passes), prompt): ((Vec<i64>, Passes), &Vec<i64>)| {
            let whole = Completion {
                ids,
                prompt: prompt.len(),
                stopped: false,
                passes,
            };
            whole.cut(&options.stop_ids)
        };
        Ok(rows.into_iter().zip(prompts).map(finish).collect())
    }
}
