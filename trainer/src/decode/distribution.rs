//! A distribution over tokens, kept whole: what speculative sampling compares.

use super::engine::Prediction;

/// Weights of tokens; all others have none.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Distribution {
    /// Tokens with a weight of 0 or more, each once.
    tokens: Vec<(u32, f64)>,
    sum: f64,
}

impl Distribution {
    pub(super) fn new(tokens: Vec<(u32, f64)>) -> Self {
        let sum = tokens.iter().map(|(_, weight)| weight).sum();
        Distribution { tokens, sum }
    }

    /// Probability of a token.
    pub(super) fn probability(&self, token: i64) -> f64 {
        let found = self.tokens.iter().find(|(id, _)| i64::from(*id) == token);
        found.map_or(0.0, |(_, weight)| weight / self.sum)
    }

    /// Largest probability of a token.
    pub(super) fn largest(&self) -> f64 {
        self.tokens.iter().fold(0f64, |most, (_, weight)| most.max(*weight)) / self.sum
    }

    /// A token with the random number `uniform`; `None` where no token has a weight.
    pub(super) fn draw(&self, uniform: f64) -> Option<Prediction> {
        let mut below = 0.0;
        let mut drawn = None;
        for (token, weight) in self.tokens.iter().filter(|(_, weight)| *weight > 0.0) {
            drawn = Some((*token, *weight));
            below += weight;
            if below > uniform * self.sum {
                break;
            }
        }
        let (token, weight) = drawn?;
        Some(Prediction { token: i64::from(token), probability: (weight / self.sum) as f32 })
    }

    /// What this distribution gives tokens more than `other` does: max(0, p - q).
    pub(super) fn more_than(&self, other: &Distribution) -> Distribution {
        let rest = |(token, weight): &(u32, f64)| {
            let more = weight / self.sum - other.probability(i64::from(*token));
            (*token, more.max(0.0))
        };
        Distribution::new(self.tokens.iter().map(rest).collect())
    }
}
