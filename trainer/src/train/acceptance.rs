//! Counting the hidden tokens of a batch that are predicted right, by position in the block and by
//! how much of the block is hidden.
//!
//! In: batches with what was predicted for their targets. Out: [`Acceptance`].

use crate::diffusion::{Batch, ObjectiveSpec};
use crate::kernels::most_probable::MostProbable;
use crate::report::held_out::Acceptance;

/// Counts over the batches so far, `[right, hidden]` each.
pub(crate) struct Tally {
    by_position: Vec<[u64; 2]>,
    /// No mask token in the block, then tenths.
    by_hidden_share: Vec<[u64; 2]>,
}

impl Tally {
    pub(crate) fn new(bd_size: usize) -> Self {
        Tally { by_position: vec![[0; 2]; bd_size], by_hidden_share: vec![[0; 2]; 11] }
    }

    /// Adds a batch of noised and clean blocks; `best` is one prediction for each of its targets.
    pub(crate) fn add(&mut self, batch: &Batch, best: &[MostProbable], spec: &ObjectiveSpec) {
        for (target, best) in batch.targets.iter().zip(best) {
            let Some(predicts) = batch.tokens.get(target.at) else { continue };
            let right = u64::from(best.token == i64::from(target.id));
            let at = (predicts.position as usize + spec.shift()) % spec.bd_size;
            let (masked, len) = masked_of_block(batch, target.at, spec);
            let tenth = (10 * masked).div_ceil(len);
            let pairs = [self.by_position.get_mut(at), self.by_hidden_share.get_mut(tenth)];
            for [all_right, hidden] in pairs.into_iter().flatten() {
                *all_right += right;
                *hidden += 1;
            }
        }
    }

    /// The counts; nothing where no token was hidden.
    pub(crate) fn finish(self) -> Option<Acceptance> {
        Acceptance::of(self.by_position, self.by_hidden_share)
    }
}

/// Mask tokens in the copy of a block that position `at` belongs to, and its length.
fn masked_of_block(batch: &Batch, at: usize, spec: &ObjectiveSpec) -> (usize, usize) {
    let own = &batch.tokens[at];
    // a copy of a block is whole, and its positions follow each other
    let first = own.position - own.position % spec.bd_size as i32;
    let start = at.saturating_sub((own.position - first) as usize);
    let copy = batch.tokens.iter().skip(start).zip(first..).take(spec.bd_size);
    let copy = copy.take_while(|(token, position)| {
        token.position == *position && (token.document, token.role) == (own.document, own.role)
    });
    copy.fold((0, 0), |(masked, len), (token, _)| {
        (masked + usize::from(token.id == spec.mask_token_id), len + 1)
    })
}
