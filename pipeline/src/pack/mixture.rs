//! Which source the next conversation comes from.
//!
//! In: weights, phases and what each source has given so far. Out: a source. The one furthest
//! behind its share goes next, so that token shares are met to within one conversation at every
//! moment; phases count from where the last one ended. Decided row by row from counts alone, hence
//! the same for any number of workers.

use crate::config::recipe::{OnExhausted, Recipe};
use serde::{Deserialize, Serialize};

/// Weights and phases of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Mixture {
    /// Phases: (tokens at which it ends, weight of each source).
    phases: Vec<(u64, Vec<f64>)>,
    /// Caps.
    caps: Vec<Option<u64>>,
    stop: bool,
}

/// How far a mixture is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MixtureState {
    /// Tokens of each source.
    pub tokens: Vec<u64>,
    /// Tokens of each source when the present phase began.
    base: Vec<u64>,
    phase: usize,
}

impl Mixture {
    /// One source, everything.
    pub fn single() -> Mixture {
        Mixture { phases: vec![(u64::MAX, vec![1.0])], caps: vec![None], stop: false }
    }

    /// A recipe's; phases need a total.
    pub fn new(r: &Recipe, max_tokens: Option<u64>) -> crate::Result<Mixture> {
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

    /// Nothing given yet.
    pub fn begin(&self) -> MixtureState {
        MixtureState { tokens: vec![0; self.caps.len()], base: vec![0; self.caps.len()], phase: 0 }
    }

    /// The source of the next conversation; none when the run is over. `ended` says which sources
    /// have no more rows.
    pub fn next(&self, g: &mut MixtureState, ended: &[bool]) -> Option<usize> {
        let total: u64 = g.tokens.iter().sum();
        while g.phase + 1 < self.phases.len() && total >= self.phases[g.phase].0 {
            g.phase += 1;
            g.base.clone_from(&g.tokens);
        }
        let (_, weights) = self.phases.get(g.phase)?;
        let capped = |k: usize| self.caps[k].is_some_and(|c| g.tokens[k] >= c);
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
            let behind = (g.tokens[k] - g.base[k]) as f64 / w;
            if best.is_none_or(|(b, _)| behind < b) {
                best = Some((behind, k));
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
