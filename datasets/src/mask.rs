//! Which positions of a packed row are hidden during training: one noise level per block, one draw
//! per position (Fast-dLLM v2, arXiv:2509.26328, section 3.2).
//!
//! In: the address (seed, epoch, row) and the row's shape. Out: `hidden[L]`, the positions that
//! view A hides; view B hides the others. A pure function of its address, so that masks do not
//! depend on batch shape, device, rank or resume, and `dlm-prep inspect --views` shows the very
//! masks that training draws.

use crate::rng;

/// The epoch number under which evaluation draws its masks; training never reaches it.
pub const EVAL_EPOCH: u64 = u64::MAX;

/// Smallest probability of hiding a position, where nothing else is configured.
pub const NOISE_EPS: f64 = 1e-3;

/// Draws the mask of one row of `len` tokens in blocks of `bd_size`.
///
/// Per block `t ~ U(0,1)`, `p = (1 - eps) t + eps`; every position is hidden with probability `p`.
/// The draw does not look at the labels: only labelled positions are replaced by the mask token,
/// and [`views`] or the training layout decides that.
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

/// The positions that the two complementary views show as the mask token: view A the labelled
/// positions in `hidden`, view B the other labelled ones. Prompts and padding stay visible in both.
pub fn views(hidden: &[bool], labels: &[i32]) -> [Vec<bool>; 2] {
    [true, false].map(|view_a| {
        let masked = |(&h, &label): (&bool, &i32)| label != crate::IGNORE && h == view_a;
        hidden.iter().zip(labels).map(masked).collect()
    })
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

    /// Resumed runs and `inspect` depend on these draws: they must not change between versions.
    #[test]
    fn golden() {
        let drawn: String = row_mask(42, 1, 5, 48, 16, NOISE_EPS)
            .iter()
            .map(|hidden| if *hidden { '#' } else { '.' })
            .collect();
        assert_eq!(drawn, GOLDEN);
    }
    const GOLDEN: &str = ".##.#...#.##.##.#####.########.###....##........";

    #[test]
    fn the_views_hide_every_label_exactly_once() {
        let labels: Vec<i32> =
            (0..256).map(|i| if i % 3 == 0 { crate::IGNORE } else { i }).collect();
        let [a, b] = views(&row_mask(3, 0, 0, 256, 32, NOISE_EPS), &labels);
        for i in 0..256 {
            assert_eq!(u8::from(a[i]) + u8::from(b[i]), u8::from(labels[i] != crate::IGNORE));
        }
    }
}
