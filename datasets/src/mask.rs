//! Which positions are hidden: one noise level per block, one coin per position (Fast-dLLM v2,
//! section 3.2).
//!
//! In: (seed, epoch, row) and the row's shape. Out: `hidden[L]`, the positions that view A hides;
//! view B hides the rest. A pure function of its address, so that masks do not depend on batch
//! shape, device, rank or resume.

use crate::rng;

/// Draw the mask of one row of `len` tokens in blocks of `bd_size`.
///
/// Per block `t ~ U(0,1)`, `p = (1 - eps) t + eps`; every position is hidden with probability `p`.
/// Whether a position carries a label at all is the layout's business, so the draw does not depend
/// on the labels.
pub fn row_mask(
    seed: u64,
    epoch: u64,
    row: u64,
    len: usize,
    bd_size: usize,
    eps: f64,
) -> Vec<bool> {
    let mut hidden = Vec::with_capacity(len);
    for block in 0..len.div_ceil(bd_size) {
        let key = rng::key(&[seed, 0x6e6f_6973, epoch, row, block as u64]);
        let t = rng::uniform(key, 0);
        let p = (1.0 - eps) * t + eps;
        let in_block = bd_size.min(len - block * bd_size);
        hidden.extend((0..in_block).map(|i| rng::uniform(key, 1 + i as u64) < p));
    }
    hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_level_is_uniform_per_block() {
        // Over many blocks the share hidden has the mean of p and, because p differs per block, far
        // more spread than a fixed p would give.
        let bd = 32;
        let m = row_mask(7, 0, 3, bd * 4000, bd, 1e-3);
        let shares: Vec<f64> =
            m.chunks(bd).map(|b| b.iter().filter(|h| **h).count() as f64 / bd as f64).collect();
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        let var = shares.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / shares.len() as f64;
        assert!((mean - 0.5005).abs() < 0.02, "{mean}");
        assert!((var - (1.0 / 12.0 + 1.0 / 6.0 / bd as f64)).abs() < 0.01, "{var}");
    }

    #[test]
    fn draw_depends_on_every_part_of_the_address() {
        let base = row_mask(1, 2, 3, 256, 32, 1e-3);
        assert_eq!(base, row_mask(1, 2, 3, 256, 32, 1e-3));
        assert_ne!(base, row_mask(2, 2, 3, 256, 32, 1e-3));
        assert_ne!(base, row_mask(1, 3, 3, 256, 32, 1e-3));
        assert_ne!(base, row_mask(1, 2, 4, 256, 32, 1e-3));
        // a longer row begins like a shorter one
        assert_eq!(base[..128], row_mask(1, 2, 3, 128, 32, 1e-3)[..]);
    }
}
