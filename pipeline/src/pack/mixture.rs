//! Chooses the source of the next conversation.
//!
//! In: weights, phases and the tokens taken from each source so far. Out: a source. The source that
//! is furthest behind its share is next, so at every moment the token shares are met to within one
//! conversation; in a phase only the tokens since its start count. The choice depends on counts
//! alone, so it is the same for any number of workers.

use crate::config::recipe::{OnExhausted, Recipe};
use serde::{Deserialize, Serialize};

/// Weights, phases and limits of the sources of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Mixture {
    /// For each phase: (number of tokens at which it ends, weight of each source).
    phases: Vec<(u64, Vec<f64>)>,
    /// Largest number of tokens from each source.
    caps: Vec<Option<u64>>,
    /// Whether the run ends when a source does.
    stop: bool,
}

/// Progress of a mixture.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MixtureState {
    /// Tokens taken from each source.
    pub tokens: Vec<u64>,
    /// Tokens taken from each source when the current phase began.
    base: Vec<u64>,
    phase: usize,
}

impl Mixture {
    /// The mixture of a run without recipe: all rows of one source.
    pub(crate) fn single() -> Mixture {
        Mixture { phases: vec![(u64::MAX, vec![1.0])], caps: vec![None], stop: false }
    }

    /// The mixture of a recipe. Phases are shares of `max_tokens`, which is required for them.
    pub(crate) fn new(r: &Recipe, max_tokens: Option<u64>) -> crate::Result<Mixture> {
        let caps = r.sources.iter().map(|s| s.max_tokens).collect();
        let stop = r.on_exhausted == OnExhausted::Stop;
        if r.phases.is_empty() {
            return Ok(Mixture {
                phases: vec![(u64::MAX, r.sources.iter().map(|s| s.weight).collect())],
                caps,
                stop,
            });
        }
        let total = max_tokens.ok_or_else(|| {
            crate::Error::Usage(format!(
                "recipe {} has phases, which are shares of a total: give --max-tokens",
                r.name
            ))
        })?;
        let mut end = 0.0;
        let phases = r.phases.iter().map(|p| {
            end += p.tokens;
            let weights =
                r.sources.iter().map(|s| p.weights.get(&s.name).copied().unwrap_or(0.0)).collect();
            ((total as f64 * end).round() as u64, weights)
        });
        Ok(Mixture { phases: phases.collect(), caps, stop })
    }

    /// The state before the first row.
    pub(crate) fn begin(&self) -> MixtureState {
        MixtureState { tokens: vec![0; self.caps.len()], base: vec![0; self.caps.len()], phase: 0 }
    }

    /// Index of the source of the next conversation; none when the run is over. `ended` says which
    /// sources have no more rows.
    pub(crate) fn next(&self, state: &mut MixtureState, ended: &[bool]) -> Option<usize> {
        let total: u64 = state.tokens.iter().sum();
        while state.phase + 1 < self.phases.len() && total >= self.phases[state.phase].0 {
            state.phase += 1;
            state.base.clone_from(&state.tokens);
        }
        let (_, weights) = self.phases.get(state.phase)?;
        let capped = |k: usize| self.caps[k].is_some_and(|c| state.tokens[k] >= c);
        let mut best: Option<(f64, usize)> = None;
        for (k, &w) in weights.iter().enumerate() {
            if w <= 0.0 || capped(k) {
                continue;
            }
            if ended[k] {
                if self.stop && self.caps.len() > 1 {
                    return None;
                }
                continue;
            }
            let progress = (state.tokens[k] - state.base[k]) as f64 / w;
            if best.is_none_or(|(b, _)| progress < b) {
                best = Some((progress, k));
            }
        }
        best.map(|(_, k)| k)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_phases_caps_and_ends() {
        let m = Mixture {
            phases: vec![(1000, vec![1.0, 0.0]), (4000, vec![0.25, 0.75])],
            caps: vec![None, None],
            stop: true,
        };
        let mut g = m.begin();
        let sizes = [37u64, 91];
        while g.tokens.iter().sum::<u64>() < 4000 {
            let k = m.next(&mut g, &[false, false]).unwrap();
            g.tokens[k] += sizes[k];
        }
        let first = g.base[0];
        assert!((1000..1037).contains(&first) && g.base[1] == 0);
        let (a, b) = ((g.tokens[0] - first) as f64, g.tokens[1] as f64);
        assert!((a / (a + b) - 0.25).abs() < 0.03, "{a} {b}");
        assert_eq!(m.next(&mut g, &[true, false]), None);
        let m = Mixture { stop: false, ..m };
        assert_eq!(m.next(&mut g, &[true, false]), Some(1));
        let m = Mixture { caps: vec![Some(0), None], ..m };
        assert_eq!(m.next(&mut g, &[false, true]), None);
    }
}
