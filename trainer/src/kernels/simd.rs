//! Exponentials over fp32 slices, compiled for the widest vectors of the machine at hand: AVX-512,
//! AVX2, or the baseline of every x86-64.
//!
//! The arithmetic is the same on every machine (sums in sixteen lanes, products never fused), so
//! the results are equal bit for bit. NaN stays NaN.

const LANES: usize = 16;

/// Compiles a function's body for several instruction sets and runs the widest that the machine
/// supports.
macro_rules! widest {
    ($(#[doc = $doc:literal])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[doc = $doc])*
        #[allow(unsafe_code, reason = "calls of functions with target features")]
        $vis fn $name($($arg: $ty),*) {
            #[inline(always)]
            fn plain($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw")]
                fn wide($($arg: $ty),*) {
                    plain($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn medium($($arg: $ty),*) {
                    plain($($arg),*)
                }
                let has_avx512 = is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512bw");
                if has_avx512 {
                    // SAFETY: the four features that `wide` is compiled for were detected above.
                    return unsafe { wide($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the feature that `medium` is compiled for was detected.
                    return unsafe { medium($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    };
}
pub(crate) use widest;

/// e^x for x ≤ 0, to about 2 ulp: range reduction by ln 2 and a polynomial, without branches and
/// calls so that it vectorises.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // 1.5 · 2^23: adding it rounds to a whole number, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let power =
        f32::from_bits((shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127)) << 23);
    // ln 2 in two parts, so that the product with n is exact
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 0.166_666_65;
    let p = p * r + 0.5;
    (p * r * r + r + 1.0) * power
}

/// 1 / (1 + e^-x), from an exponential of a non-positive argument.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    let s = 1.0 / (1.0 + exp(-x.abs()));
    if x >= 0.0 { s } else { 1.0 - s }
}

/// Softmax of a row, in place.
pub(crate) fn softmax(row: &mut [f32]) {
    scaled_softmax(row, 1.0, &mut 0.0);
}

widest! {
    /// `scale · softmax` of a row, in place; `log_sum` becomes the logarithm of the sum of the
    /// exponentials.
    pub(crate) fn scaled_softmax(row: &mut [f32], scale: f32, log_sum: &mut f32) {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let mut most = f32::NEG_INFINITY;
        let chunks = row.chunks_exact(LANES);
        for v in chunks.remainder() {
            most = if *v > most { *v } else { most };
        }
        for chunk in chunks {
            for (lane, v) in lanes.iter_mut().zip(chunk) {
                *lane = if *v > *lane { *v } else { *lane };
            }
        }
        let most = lanes.iter().fold(most, |most, v| if *v > most { *v } else { most });
        let mut sums = [0f32; LANES];
        let mut chunks = row.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            for (sum, v) in sums.iter_mut().zip(chunk) {
                *v = exp(*v - most);
                *sum += *v;
            }
        }
        let mut sum = 0f32;
        for v in chunks.into_remainder() {
            *v = exp(*v - most);
            sum += *v;
        }
        let sum = sum + sums.iter().sum::<f32>();
        *log_sum = most + sum.ln();
        let scale = scale / sum;
        row.iter_mut().for_each(|v| *v *= scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_below_zero() {
        let mut worst = 0f64;
        for i in 0..200_000 {
            let x = -(i as f32) * 4.3e-4;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            worst = worst.max((ours - exact).abs() / exact);
        }
        assert!(worst < 3e-7, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(f32::NAN).is_nan());
    }

    #[test]
    fn softmax_of_every_length() {
        for len in 1..70 {
            let values: Vec<f32> =
                (0..len).map(|i| ((i * 37 + 11) % 23) as f32 * 0.7 - 9.0).collect();
            let mut row = values.clone();
            softmax(&mut row);
            let exact: Vec<f64> = values.iter().map(|v| f64::from(*v).exp()).collect();
            let sum: f64 = exact.iter().sum();
            for (ours, exact) in row.iter().zip(&exact) {
                assert!((f64::from(*ours) - exact / sum).abs() < 1e-6);
            }
        }
        let mut row = vec![1.0, f32::NAN, 2.0];
        softmax(&mut row);
        assert!(row.iter().any(|v| v.is_nan()), "NaN must stay NaN");
    }
}
