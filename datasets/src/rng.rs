//! Counter-based random numbers: a value is a pure function of a key and a counter.
//!
//! Masks, row order and initial weights are drawn from (seed, epoch, row, block, …), so they do not
//! depend on batch shape, device, rank or resume. The mixer is SplitMix64's finaliser (Steele et
//! al., 2014) applied twice.

/// The finalizer of SplitMix64: a bijection of 64-bit values with good avalanche.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Folds the parts of an address (seed, epoch, row, …) into one key. The order of the parts
/// matters.
pub fn key(parts: &[u64]) -> u64 {
    parts.iter().fold(0x243F_6A88_85A3_08D3, |k, p| mix(k ^ mix(*p)))
}

/// 64 random bits for `counter` under `key`.
pub fn bits(key: u64, counter: u64) -> u64 {
    mix(key ^ mix(counter.wrapping_mul(0xD134_2543_DE82_EF95)))
}

/// Uniform in [0, 1) with 53 bits.
pub fn uniform(key: u64, counter: u64) -> f64 {
    (bits(key, counter) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// A standard normal number (Box–Muller transform), fp32.
pub fn normal(key: u64, counter: u64) -> f32 {
    let u = 1.0 - uniform(key, counter * 2);
    let v = uniform(key, counter * 2 + 1);
    ((-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_is_even_and_keys_are_independent() {
        let n = 100_000;
        let k = key(&[42, 0, 7]);
        let mean: f64 = (0..n).map(|i| uniform(k, i)).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 5e-3, "{mean}");
        let other = key(&[42, 0, 8]);
        let corr: f64 =
            (0..n).map(|i| (uniform(k, i) - 0.5) * (uniform(other, i) - 0.5)).sum::<f64>()
                / n as f64;
        assert!(corr.abs() < 2e-3, "{corr}");
        let var: f64 = (0..n).map(|i| f64::from(normal(k, i)).powi(2)).sum::<f64>() / n as f64;
        assert!((var - 1.0).abs() < 2e-2, "{var}");
    }
}
