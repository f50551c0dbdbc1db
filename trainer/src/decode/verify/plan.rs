//! What a pass verifies, and where it asks for new proposals.
//!
//! In: how sure the proposals are, how far proposals usually reach, and what a token of a pass
//! costs. Out: a [`Plan`] with the most to expect of it.
//!
//! With k proposals verified, of which proposal i is right with probability a_i where all before it
//! were, exactly j are accepted with probability P_j = a_1 … a_j (1 - a_{j+1}), all of them with
//! P_k = a_1 … a_k.
//! Each verified proposal adds a_1 … a_i tokens. A group of g masks behind j accepted ones is used
//! with probability P_j; mask i of it adds s_i tokens to the pass after this one. Masks go where
//! they add most, as long as they add more than they cost: their own place in this pass, and that
//! of the proposal in the next.

use super::options::{TokenCost, VerifyOptions};

/// How far proposals reach before anything is known of a row: of a group, proposal i is accepted
/// with this to the power of i.
const USUAL: f64 = 0.75;

/// Share of the newest proposals in what is known of a row.
const NEWEST: f64 = 0.2;

/// Share of the newest proposal in what is known of how sure the proposals say they are, and of how
/// many of them are accepted.
const NEWEST_JUDGED: f64 = 0.05;

/// The tokens of a pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Proposals that are verified.
    pub verified: usize,
    /// Masks behind the last decided token, behind the first proposal, and so on.
    pub masks: Vec<usize>,
}

/// What is known of a row's proposals.
#[derive(Debug, Clone)]
pub(super) struct Experience {
    /// Probability that the first i + 1 proposals of a group are accepted.
    survival: Vec<f64>,
    /// Tokens that a pass gives, and what it costs, in passes over one token.
    gain: f64,
    cost: f64,
    /// How sure proposals said they were, and the share of them that was accepted.
    said: f64,
    held: f64,
}

impl Experience {
    pub(super) fn new(options: &VerifyOptions) -> Self {
        let survival = (1..=options.most_masks).map(|i| USUAL.powi(i as i32)).collect();
        Experience { survival, gain: 1.0, cost: 1.0, said: USUAL, held: USUAL }
    }

    /// How probable it is that a proposal which says that it is `sure` is accepted. Models may
    /// say too much or too little: a power of what they say that is right on the whole.
    pub(super) fn accepted(&self, sure: f64) -> f64 {
        let [said, held] = [self.said, self.held].map(|share| share.clamp(0.001, 0.999).ln());
        sure.clamp(0.0, 1.0).powf(held / said)
    }

    /// Takes into account that a proposal which said it was `sure` was accepted or not.
    pub(super) fn judge(&mut self, sure: f64, is_accepted: bool) {
        self.said += NEWEST_JUDGED * (sure - self.said);
        self.held += NEWEST_JUDGED * (f64::from(u8::from(is_accepted)) - self.held);
    }

    /// Takes the proposals of a group into account, and a pass that gave `tokens` and cost `cost`.
    pub(super) fn learn(&mut self, sure: impl Iterator<Item = f64>, tokens: usize, cost: f64) {
        let mut product = 1.0;
        for (known, sure) in self.survival.iter_mut().zip(sure) {
            product *= sure;
            *known += NEWEST * (product - *known);
        }
        let mut most = 1.0;
        for known in &mut self.survival {
            *known = known.min(most);
            most = *known;
        }
        self.gain += NEWEST * (tokens as f64 - self.gain);
        self.cost += NEWEST * (cost - self.cost);
    }

    /// Tokens that have to be expected of a place in a pass for it to pay.
    fn threshold(&self, token_cost: f64) -> f64 {
        token_cost * (self.gain / self.cost).max(1.0)
    }
}

/// The plan for a pass of at most `room` tokens of a row that takes `left` tokens yet. `sure`:
/// probability of each proposal to be accepted where those before it are.
pub(super) fn plan(
    options: &VerifyOptions,
    experience: &Experience,
    sure: &[f64],
    room: usize,
    left: usize,
    cost: TokenCost,
) -> Plan {
    let most = sure.len().min(room.saturating_sub(1)).min(left.saturating_sub(1));
    let price = experience.threshold(cost.share);
    let (mut best, mut best_value) = (Plan { verified: 0, masks: vec![0] }, f64::NEG_INFINITY);
    let (mut reached, mut accepted) = (1.0, 0.0);
    let mut exactly: Vec<f64> = Vec::with_capacity(most + 1);
    for verified in 0..=most {
        if verified > 0 {
            // what was left to the last of them ends with the next one's failure
            exactly[verified - 1] = reached * (1.0 - sure[verified - 1]);
            reached *= sure[verified - 1];
            accepted += reached;
        }
        exactly.push(reached);
        let mut masks = vec![0usize; verified + 1];
        let mut value = accepted - price * verified as f64;
        let mut tokens = verified + 1;
        // a mask behind j accepted proposals speaks of what follows the token behind them
        let best_mask = |masks: &[usize], price: f64| {
            let gain = |j: usize| {
                let mask = masks[j];
                let useful = left.saturating_sub(j + 2).min(options.most_masks);
                let survives = experience.survival.get(mask).filter(|_| mask < useful)?;
                Some(exactly[j] * (survives - price) - price)
            };
            let gains = (0..=verified).filter_map(|j| Some((j, gain(j)?)));
            gains.max_by(|a, b| a.1.total_cmp(&b.1))
        };
        while tokens < room
            && let Some((j, gain)) = best_mask(&masks, price)
        {
            // without any mask nothing would be proposed again
            if gain <= 0.0 && masks.iter().any(|masks| *masks > 0) {
                break;
            }
            masks[j] += 1;
            tokens += 1;
            value += gain;
        }
        // what is computed together costs nothing more
        let together = tokens.next_multiple_of(cost.together.max(1)).min(room);
        while tokens < together
            && let Some((j, gain)) = best_mask(&masks, 0.0)
        {
            masks[j] += 1;
            tokens += 1;
            value += gain;
        }
        if value > best_value {
            (best, best_value) = (Plan { verified, masks }, value);
        }
    }
    best
}
