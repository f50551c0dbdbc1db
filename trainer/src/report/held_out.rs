//! What an evaluation says beside the loss: whether hidden tokens are predicted right, and how many
//! tokens a forward pass of decoding would fix. Definitions: `docs/objective.md`.

use serde::{Deserialize, Serialize};

/// Hidden tokens of the evaluation whose most probable token is the right one.
///
/// Pairs are `[right, hidden]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Acceptance {
    /// `right / hidden`, 0 to 1.
    pub share: f64,
    /// Hidden tokens that were predicted right.
    pub right: u64,
    /// Hidden tokens, over both complementary views.
    pub hidden: u64,
    /// By the token's position in its block, `bd_size` pairs. With the token shift the first
    /// position is predicted by the block before.
    pub by_position: Vec<[u64; 2]>,
    /// By the share of mask tokens in the block that predicts: none, then tenths (0, 0.1] to
    /// (0.9, 1]; 11 pairs.
    pub by_hidden_share: Vec<[u64; 2]>,
}

/// A simulated decode of held-out completions, in which every token that a pass fixes is replaced
/// by the right one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SimulatedDecode {
    /// `tokens / passes`.
    pub tokens_per_forward: f64,
    /// Tokens of the completions.
    pub tokens: u64,
    /// Forward passes that decoding them takes, prefills and commits included.
    pub passes: u64,
    /// Completions that were decoded: the runs of tokens with a label.
    pub completions: u64,
    /// Probability above which a token is fixed.
    pub threshold: f64,
    /// Tokens per sub-block.
    pub sub_block_size: usize,
}

/// `right / all` of a pair; NaN where there is nothing to share.
pub(crate) fn share([right, all]: [u64; 2]) -> f64 {
    if all == 0 { f64::NAN } else { right as f64 / all as f64 }
}

impl Acceptance {
    /// The pairs with their sums; nothing where no token was hidden.
    pub(crate) fn of(by_position: Vec<[u64; 2]>, by_hidden_share: Vec<[u64; 2]>) -> Option<Self> {
        let [right, hidden] =
            by_position.iter().fold([0, 0], |sum, pair| [sum[0] + pair[0], sum[1] + pair[1]]);
        let share = share([right, hidden]);
        (hidden > 0).then_some(Acceptance { share, right, hidden, by_position, by_hidden_share })
    }
}

/// What a line of the console says about an evaluation, from a space on; empty without any.
pub(crate) fn in_words(
    acceptance: Option<&Acceptance>,
    decode: Option<&SimulatedDecode>,
) -> String {
    let mut words = String::new();
    if let Some(a) = acceptance {
        words.push_str(&format!(" accepted {:.1}% of {}", 100.0 * a.share, a.hidden));
    }
    if let Some(d) = decode {
        words.push_str(&format!(
            " tok/forward {:.2} ({} in {} passes at {})",
            d.tokens_per_forward, d.tokens, d.passes, d.threshold
        ));
    }
    words
}
