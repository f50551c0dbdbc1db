//! Drawing a token from a distribution: temperature, top-k and top-p, with random numbers that
//! depend on nothing but the request.
//!
//! In: the logits of one position. Out: the drawn token with its probability in the distribution
//! that it was drawn from. Top-p as in Fast-dLLM v2's `sample_with_top_p` (arXiv:2509.26328):
//! tokens in the order of their probability are kept up to the first whose predecessors' sum
//! exceeds top-p.

use std::cmp::Ordering;

use dlm_datasets::rng;

use super::distribution::Distribution;
use super::engine::Prediction;

/// Sets this use of the random numbers apart from others under the same seed.
const PURPOSE: u64 = 0x7361_6d70_6c65;

/// Tokens that are brought into order first; more follow where these do not suffice.
const FIRST_SORTED: usize = 64;

/// What a random number of a token decides.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// Which token it is.
    Draw = 0,
    /// Which one is proposed.
    Propose = 1,
    /// Whether the proposal is accepted.
    Accept = 2,
}

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(crate) struct Sampling {
    /// Logits are divided by it; above 0.
    pub temperature: f64,
    /// Share of the probability that the kept tokens have together, 0 to 1; 1 keeps all.
    pub top_p: f64,
    /// Most tokens that are kept; 0 keeps all.
    pub top_k: usize,
    /// Seed of the request.
    pub seed: u64,
}

impl Sampling {
    /// The random number, uniform in [0, 1), that decides the token at `position` in forward pass
    /// `pass` of its row, counted from 1.
    pub(crate) fn uniform(&self, position: usize, pass: usize) -> f64 {
        self.uniform_for(Purpose::Draw, position, pass)
    }

    /// The same for another use, independent of it.
    pub(super) fn uniform_for(&self, purpose: Purpose, position: usize, pass: usize) -> f64 {
        let key = rng::key(&[self.seed, PURPOSE, position as u64, pass as u64]);
        rng::uniform(key, purpose as u64)
    }

    /// The distribution that [`Sampling::draw`] draws from. `None` as there.
    pub(super) fn distribution(&self, logits: &[f32], never: Option<i64>) -> Option<Distribution> {
        let mut tokens = ByWeight::new(logits, never, self.temperature)?;
        let kept = self.kept(&mut tokens).0;
        let weights = match kept == tokens.ids.len() {
            true => tokens.ids.iter().map(|id| (*id, tokens.weight(*id))).collect(),
            false => (0..kept).map(|rank| tokens.at(rank)).collect(),
        };
        Some(Distribution::new(weights))
    }

    /// Draws a token of `logits` `[vocab_size]` with the random number `uniform`; the token `never`
    /// is left out. `None` where a logit is NaN or the greatest is not finite; a token with the
    /// logit -inf is never drawn.
    pub(super) fn draw(
        &self,
        logits: &[f32],
        never: Option<i64>,
        uniform: f64,
    ) -> Option<Prediction> {
        let mut tokens = ByWeight::new(logits, never, self.temperature)?;
        let (kept, sum) = self.kept(&mut tokens);
        let (mut drawn, mut below) = (tokens.at(0), 0.0);
        for rank in 0..kept {
            let token = tokens.at(rank);
            // behind the last token with a weight: rounding left `sum` above their sum
            if token.1 == 0.0 {
                break;
            }
            drawn = token;
            below += token.1;
            if below > uniform * sum {
                break;
            }
        }
        let probability = (drawn.1 / sum).min(1.0) as f32;
        Some(Prediction { token: i64::from(drawn.0), probability })
    }

    /// How many tokens, by falling probability, are drawn from, and the sum of their weights.
    fn kept(&self, tokens: &mut ByWeight<'_>) -> (usize, f64) {
        let count = tokens.ids.len();
        let limit = if self.top_k == 0 { count } else { self.top_k.min(count) };
        let all: f64 = match limit == count {
            // in the order of the ids: nothing is sorted yet
            true => tokens.ids.iter().map(|id| tokens.weight(*id)).sum(),
            false => (0..limit).map(|rank| tokens.at(rank).1).sum(),
        };
        let (mut kept, mut sum) = (limit, all);
        if self.top_p < 1.0 {
            (kept, sum) = (0, 0.0);
            while kept < limit && (kept == 0 || sum <= self.top_p * all) {
                sum += tokens.at(kept).1;
                kept += 1;
            }
        }
        (kept, sum)
    }
}

/// The tokens of a vocabulary by falling probability, of equals the one with the lower id first.
/// They are sorted as far as they are asked for.
struct ByWeight<'a> {
    logits: &'a [f32],
    greatest: f32,
    temperature: f64,
    ids: Vec<u32>,
    sorted: usize,
}

impl<'a> ByWeight<'a> {
    fn new(logits: &'a [f32], never: Option<i64>, temperature: f64) -> Option<Self> {
        let never = never.and_then(|id| usize::try_from(id).ok());
        let ids = (0..logits.len()).filter(|id| Some(*id) != never).map(|id| id as u32).collect();
        let mut tokens =
            ByWeight { logits, greatest: f32::NEG_INFINITY, temperature, ids, sorted: 0 };
        for id in &tokens.ids {
            let logit = logits[*id as usize];
            if logit.is_nan() {
                return None;
            }
            tokens.greatest = tokens.greatest.max(logit);
        }
        tokens.greatest.is_finite().then_some(tokens)
    }

    /// Probability of a token but for a factor that all have in common.
    fn weight(&self, id: u32) -> f64 {
        let below = f64::from(self.logits[id as usize]) - f64::from(self.greatest);
        (below / self.temperature).exp()
    }

    /// The token at a rank, with its weight.
    fn at(&mut self, rank: usize) -> (u32, f64) {
        while self.sorted <= rank {
            let order = |a: &u32, b: &u32| {
                let (a_logit, b_logit) = (self.logits[*a as usize], self.logits[*b as usize]);
                b_logit.partial_cmp(&a_logit).unwrap_or(Ordering::Equal).then(a.cmp(b))
            };
            let end = (self.sorted * 8).max(FIRST_SORTED).min(self.ids.len());
            let rest = &mut self.ids[self.sorted..];
            let more = end - self.sorted;
            if more < rest.len() {
                rest.select_nth_unstable_by(more, order);
            }
            rest[..more].sort_unstable_by(order);
            self.sorted = end;
        }
        (self.ids[rank], self.weight(self.ids[rank]))
    }
}

/// The distribution by the book: tokens by falling probability, all sorted and all summed.
#[cfg(test)]
pub(crate) fn by_the_book(
    sampling: &Sampling,
    logits: &[f32],
    never: Option<i64>,
) -> Vec<(i64, f64)> {
    let mut tokens: Vec<(i64, f64)> = (0i64..)
        .zip(logits)
        .filter(|(id, _)| Some(*id) != never)
        .map(|(id, logit)| (id, f64::from(*logit) + 0.0))
        .collect();
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if sampling.top_k > 0 {
        tokens.truncate(sampling.top_k);
    }
    let most = tokens[0].1;
    for token in &mut tokens {
        token.1 = ((token.1 - most) / sampling.temperature).exp();
    }
    let normalise = |tokens: &mut Vec<(i64, f64)>| {
        let sum: f64 = tokens.iter().map(|token| token.1).sum();
        tokens.iter_mut().for_each(|token| token.1 /= sum);
    };
    normalise(&mut tokens);
    if sampling.top_p < 1.0 {
        let before = |i: usize| tokens[..i].iter().map(|token| token.1).sum::<f64>();
        let kept = (1..tokens.len()).find(|&i| before(i) > sampling.top_p);
        tokens.truncate(kept.unwrap_or(tokens.len()));
    }
    normalise(&mut tokens);
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(seed: u64, count: usize, spread: f32) -> Vec<f32> {
        let key = rng::key(&[seed]);
        (0..count as u64).map(|i| spread * rng::normal(key, i)).collect()
    }

    #[test]
    fn draws_are_those_by_the_book() {
        let mut seed = 0;
        for (count, spread) in
            [(1, 1.0), (7, 2.0), (300, 0.0), (300, 3.0), (5000, 0.3), (5000, 8.0)]
        {
            for temperature in [0.01, 0.7, 1.0, 3.0] {
                // no sum of equal probabilities, where rounding decides
                for top_p in [0.0, 0.1003, 0.5003, 0.9503, 1.0] {
                    for top_k in [0, 1, 3, 100, 6000] {
                        seed += 1;
                        let logits = logits(seed, count, spread);
                        let never =
                            (count > 1 && seed % 2 == 0).then_some(seed as i64 % count as i64);
                        let sampling = Sampling { temperature, top_p, top_k, seed };
                        let book = by_the_book(&sampling, &logits, never);
                        for at in 0..4 {
                            let u = sampling.uniform(at, 1);
                            let found = sampling.draw(&logits, never, u).unwrap();
                            let mut below = 0.0;
                            let wanted = book.iter().find(|token| {
                                below += token.1;
                                below > u
                            });
                            let wanted = wanted.unwrap_or(&book[0]);
                            let case = format!("{sampling:?}, {count} tokens, {found:?}");
                            assert_eq!(found.token, wanted.0, "{case}");
                            let p = f64::from(found.probability);
                            assert!((p - wanted.1).abs() < 1e-6, "{case}, expected {}", wanted.1);
                        }
                    }
                }
            }
        }
    }

    /// Pearson's test at fixed seeds: 8 tokens, 20,000 draws over positions and passes.
    #[test]
    fn frequencies_are_the_probabilities() {
        let logits = [0.0f32, 1.0, -1.0, 2.0, 0.5, -3.0, 1.5, 0.0];
        let draws = 20_000;
        for (temperature, top_p, top_k) in [(1.0, 1.0, 0), (0.7, 0.9, 0), (2.0, 1.0, 4)] {
            let sampling = Sampling { temperature, top_p, top_k, seed: 11 };
            let book = by_the_book(&sampling, &logits, Some(3));
            let mut counts = [0usize; 8];
            for i in 0..draws {
                let u = sampling.uniform(i / 100, i % 100);
                counts[sampling.draw(&logits, Some(3), u).unwrap().token as usize] += 1;
            }
            let mut chi = 0.0;
            for (token, count) in counts.iter().enumerate() {
                let p = book.iter().find(|(id, _)| *id == token as i64).map_or(0.0, |(_, p)| *p);
                match p == 0.0 {
                    true => assert_eq!(*count, 0, "token {token} is filtered out"),
                    false => chi += (*count as f64 - p * draws as f64).powi(2) / (p * draws as f64),
                }
            }
            // the 99.9 % quantile at 6 degrees of freedom, the most there are here
            assert!(chi < 22.46, "{sampling:?}: {chi}, {counts:?}");
        }
    }

    #[test]
    fn temperature_towards_zero_is_greedy_and_bad_logits_are_refused() {
        let cold = Sampling { temperature: 1e-300, top_p: 1.0, top_k: 0, seed: 1 };
        let found = cold.draw(&[1.0, 3.0, 3.0, f32::NEG_INFINITY], None, 0.999_999).unwrap();
        assert_eq!((found.token, found.probability), (2, 0.5));
        let one = Sampling { temperature: 1.0, ..cold };
        assert_eq!(one.draw(&[f32::NEG_INFINITY, 0.0], None, 0.9999).unwrap().token, 1);
        for bad in [f32::NAN, f32::INFINITY] {
            assert_eq!(one.draw(&[0.0, bad], None, 0.5), None);
        }
        assert_eq!(one.draw(&[f32::NEG_INFINITY; 2], None, 0.5), None);
        assert_eq!(one.draw(&[0.0], Some(0), 0.5), None);
    }
}
