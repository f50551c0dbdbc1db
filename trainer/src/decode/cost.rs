//! What a forward pass of decoding costs by the number of its tokens.
//!
//! In: an engine and the context that precedes the tokens. Out: wall time of passes over 1, 8, 16 …
//! new tokens of one row, with the prediction of some of them, and of a prefill of the context.

use std::time::Instant;

use crate::decode::cached::{Order, Span};
use crate::error::Result;

use super::Engine;

/// Positions of a pass that are predicted, as many as a sub-block has by default.
const JUDGED: usize = 8;

/// Times of a pass over some new tokens.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct PassCost {
    /// New tokens.
    pub tokens: usize,
    /// Least wall time, milliseconds.
    pub ms_least: f64,
    /// Median of the wall times, milliseconds.
    pub ms_median: f64,
}

impl Engine {
    /// Times `rounds` passes over each of `lens` new tokens behind `context` tokens, in turn, and
    /// as the last of the list as many prefills of the context.
    ///
    /// # Errors
    /// As for a pass: memory, logits that are not finite.
    pub(crate) fn cost_of_passes(
        &mut self,
        context: usize,
        lens: &[usize],
        rounds: usize,
    ) -> Result<Vec<PassCost>> {
        let longest = lens.iter().max().copied().unwrap_or(0);
        let mut cache = self.new_cache(1, context + longest);
        let vocab = self.vocab_size() as i64;
        let ids = |count: usize| (0..count as i64).map(|i| (i * 7919 + 13) % vocab).collect();
        let mut times = vec![Vec::with_capacity(rounds); lens.len() + 1];
        for round in 0..=rounds {
            for (len, times) in lens.iter().chain([&0]).zip(&mut times) {
                let (start, new) = if *len == 0 { (0, context) } else { (context, *len) };
                let order = if *len == 0 { Order::Blocks(1) } else { Order::Full };
                let ids: Vec<i64> = ids(new);
                let judged: Vec<usize> = match len {
                    0 => (new.saturating_sub(1)..new).collect(),
                    len => (0..(*len).min(JUDGED)).collect(),
                };
                if new == 0 {
                    continue;
                }
                let span = Span { row: 0, start, visible: start + new };
                let began = Instant::now();
                let hidden = self.pass(&ids, &[span], order, &mut cache)?;
                self.predict(&hidden, &judged, None)?;
                // the first round only fills the cache and the buffers
                if round > 0 {
                    times.push(began.elapsed().as_secs_f64() * 1e3);
                }
            }
        }
        let cost = |(tokens, mut times): (usize, Vec<f64>)| {
            times.sort_by(f64::total_cmp);
            let at = |i: usize| times.get(i).copied().unwrap_or(f64::NAN);
            PassCost { tokens, ms_least: at(0), ms_median: at(times.len() / 2) }
        };
        Ok(lens.iter().copied().chain([context]).zip(times).map(cost).collect())
    }
}
