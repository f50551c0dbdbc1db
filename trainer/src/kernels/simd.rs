//! Exponentials over slices, compiled for the vectors of the machine that runs: AVX-512, AVX2, or
//! what every x86-64 has.
//!
//! In and out: fp32 slices. The arithmetic is the same on every machine (sums in sixteen lanes,
//! products never fused), so the bits are, too. Not-a-number stays not-a-number.

use crate::kernels::AdamwStep;
use crate::model::config::Activation;

const LANES: usize = 16;

/// Compiles a function's body for several instruction sets and takes the widest that the machine
/// has.
macro_rules! widest {
    ($(#[doc = $doc:literal])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[doc = $doc])*
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
                let wide_there = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl");
                if wide_there && is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512bw") {
                    // SAFETY: the machine has the instructions.
                    return unsafe { wide($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: as above.
                    return unsafe { medium($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    };
}

/// e^x for x ≤ 0, to about 2 ulp: range reduction by ln 2 and a polynomial, free of branches and
/// calls so that it vectorises.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // 1.5 · 2^23: adding it rounds to a whole number, which then stands in the low bits.
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
pub fn sigmoid(x: f32) -> f32 {
    let s = 1.0 / (1.0 + exp(-x.abs()));
    if x >= 0.0 { s } else { 1.0 - s }
}

/// Softmax of a row, in place.
pub fn softmax(row: &mut [f32]) {
    scaled_softmax(row, 1.0, &mut 0.0);
}

widest! {
    /// `scale · softmax` of a row, in place; `log_sum` becomes the logarithm of the sum of the
    /// exponentials.
    pub fn scaled_softmax(row: &mut [f32], scale: f32, log_sum: &mut f32) {
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

widest! {
    /// One AdamW update of a stretch of weights and moments, in place.
    pub fn adamw(w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], s: AdamwStep) {
        let keep = 1.0 - s.lr * s.decay;
        for ((w, g), (m, v)) in w.iter_mut().zip(g).zip(m.iter_mut().zip(v)) {
            let g = g * s.clip;
            *m = *m * s.beta1 + g * (1.0 - s.beta1);
            *v = *v * s.beta2 + g * g * (1.0 - s.beta2);
            let denominator = (*v / s.correction2).sqrt() + s.eps;
            *w = *w * keep - *m / s.correction1 / denominator * s.lr;
        }
    }
}

widest! {
    /// `out = act(gate) · up`.
    pub fn gate(out: &mut [f32], gate: &[f32], up: &[f32], activation: Activation) {
        let each = out.iter_mut().zip(gate.iter().zip(up));
        match activation {
            Activation::Silu => each.for_each(|(o, (g, u))| *o = g * sigmoid(*g) * u),
            Activation::Relu2 => each.for_each(|(o, (g, u))| {
                let r = if *g < 0.0 { 0.0 } else { *g };
                *o = r * r * u;
            }),
        }
    }
}

widest! {
    /// Gradients of `gate` and `up` for the gradient `grad` of `act(gate) · up`.
    pub fn gate_backward(d_gate: &mut [f32], d_up: &mut [f32], gate: &[f32], up: &[f32], grad: &[f32], activation: Activation) {
        let each = d_gate.iter_mut().zip(d_up).zip(gate.iter().zip(up).zip(grad));
        match activation {
            Activation::Silu => each.for_each(|((dg, du), ((g, u), d))| {
                let s = sigmoid(*g);
                *dg = d * u * (s * (1.0 + g * (1.0 - s)));
                *du = d * (g * s);
            }),
            Activation::Relu2 => each.for_each(|((dg, du), ((g, u), d))| {
                let r = if *g < 0.0 { 0.0 } else { *g };
                *dg = d * u * (2.0 * r);
                *du = d * (r * r);
            }),
        }
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
            let (found, exact) = (f64::from(exp(x)), f64::from(x).exp());
            worst = worst.max((found - exact).abs() / exact);
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
            for (found, exact) in row.iter().zip(&exact) {
                assert!((f64::from(*found) - exact / sum).abs() < 1e-6);
            }
        }
        let mut row = vec![1.0, f32::NAN, 2.0];
        softmax(&mut row);
        assert!(row.iter().any(|v| v.is_nan()), "a NaN must not be swallowed");
    }
}
