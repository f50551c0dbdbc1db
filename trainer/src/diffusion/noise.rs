//! What is drawn for a row in an epoch: which positions are hidden, or where blocks begin.
//!
//! In: seed, epoch and row, so that a draw depends on nothing else. Out: flags, which
//! [`super::build_batch`] takes beside the row.

use dlm_datasets::{mask, rng};

use super::spec::{Objective, ObjectiveSpec};

/// Draws for row `row` of `len` tokens: `hidden[len]`, or for [`Objective::Lossless`] which offsets
/// of blocks are taken, `[bd_size]`. `noise_eps` is the smallest share of a block that is hidden.
pub(crate) fn draw(
    objective: Objective,
    spec: &ObjectiveSpec,
    (seed, epoch, row): (u64, u64, u64),
    len: usize,
    noise_eps: f64,
) -> Vec<bool> {
    let Objective::Lossless { offsets, .. } = objective else {
        return mask::row_mask(seed, epoch, row, len, spec.bd_size, noise_eps);
    };
    // evenly spaced from a random one on
    let bd_size = spec.bd_size;
    let drawn = rng::uniform(rng::key(&[seed, 0x6f66_6673, epoch, row]), 0);
    let first = (drawn * bd_size as f64) as usize;
    let mut taken = vec![false; bd_size];
    for i in 0..offsets.clamp(1, bd_size) {
        taken[(first + i * bd_size / offsets.max(1)) % bd_size] = true;
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{DocumentMask, Layout};

    #[test]
    fn offsets_are_as_many_as_asked_for_and_all_come_up() {
        let spec = ObjectiveSpec {
            token_shift: true,
            bd_size: 8,
            mask_token_id: 1,
            complementary: true,
            document_mask: DocumentMask::Document,
        };
        for offsets in 1..=8 {
            let objective = Objective::Lossless { layout: Layout::Saving, offsets, taught: false };
            let mut times = [0usize; 8];
            for row in 0..400 {
                let taken = draw(objective, &spec, (3, 0, row), 64, 0.0);
                assert_eq!(taken.len(), 8);
                assert_eq!(taken.iter().filter(|taken| **taken).count(), offsets);
                assert_eq!(taken, draw(objective, &spec, (3, 0, row), 32, 0.5));
                times.iter_mut().zip(&taken).for_each(|(n, taken)| *n += usize::from(*taken));
            }
            assert!(times.iter().all(|n| *n > 30 * offsets), "{times:?}");
        }
        let objective = Objective::BlockDiffusion(Layout::Saving);
        let hidden = draw(objective, &spec, (3, 1, 2), 64, 0.1);
        assert_eq!(hidden, mask::row_mask(3, 1, 2, 64, 8, 0.1));
    }
}
