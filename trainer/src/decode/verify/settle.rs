//! Which proposals hold: the source's own next tokens against those proposed.

use crate::decode::distribution::Distribution;
use crate::decode::engine::Prediction;

/// A proposed token.
#[derive(Debug, Clone)]
pub(super) struct Proposal {
    pub(super) token: i64,
    /// Probability of the most probable token at its mask. It must not depend on which token was
    /// drawn: what is verified would not be distributed as what was drawn.
    pub(super) sure: f64,
    /// The distribution that it was drawn from; `None` for a most probable token.
    pub(super) drawn_from: Option<Distribution>,
}

/// The tokens that the most probable ones of the source decide: proposals while they are equal to
/// them, then the source's. `source`: what follows the last decided token, and each proposal.
pub(super) fn most_probable(source: &[Prediction], proposals: &[Proposal]) -> Vec<Prediction> {
    let right = source.iter().zip(proposals).take_while(|(own, p)| own.token == p.token).count();
    source.iter().take(right + 1).copied().collect()
}

/// Random numbers, uniform in [0, 1), of the i-th token that a pass decides.
pub(super) struct Uniforms<'a> {
    /// Whether the proposal is accepted.
    pub accept: &'a dyn Fn(usize) -> f64,
    /// Which token else.
    pub draw: &'a dyn Fn(usize) -> f64,
}

/// The tokens that are drawn (speculative sampling, arXiv:2211.17192): a proposal x, drawn from q,
/// is accepted with probability min(1, p(x) / q(x)); the first that is not is replaced by a token
/// drawn from what p has more than q, and behind the last a token is drawn from p. So each token is
/// distributed as p, whatever q is. `source`: p after the last decided token, and after each
/// proposal. `None` where nothing can be drawn.
pub(super) fn drawn(
    source: &[Distribution],
    proposals: &[Proposal],
    uniforms: &Uniforms<'_>,
) -> Option<Vec<Prediction>> {
    let mut tokens = Vec::with_capacity(source.len());
    for (i, p) in source.iter().enumerate() {
        let proposal = proposals.get(i).and_then(|x| Some((x.token, x.drawn_from.as_ref()?)));
        let Some((token, q)) = proposal else {
            tokens.push(p.draw((uniforms.draw)(i))?);
            break;
        };
        let (of_p, of_q) = (p.probability(token), q.probability(token));
        if (uniforms.accept)(i) * of_q < of_p {
            tokens.push(Prediction { token, probability: of_p as f32 });
            continue;
        }
        // p is q where rounding alone refused the proposal
        let other = p.more_than(q).draw((uniforms.draw)(i)).or_else(|| p.draw(0.5))?;
        let probability = p.probability(other.token) as f32;
        tokens.push(Prediction { token: other.token, probability });
        break;
    }
    Some(tokens)
}
