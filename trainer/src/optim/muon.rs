//! Muon for the layers' matrices: momentum, then orthogonalisation by Newton-Schulz.
//!
//! In: a gradient `[out, in]` and its momentum. Out: the step direction, with singular values near
//! 1, scaled by `0.2 · sqrt(max(out, in))` so that its RMS matches AdamW's (Moonlight,
//! arXiv:2502.16982, section 2.2). Polynomial coefficients of the quintic iteration: K. Jordan,
//! "Muon", 2024.

use burn::prelude::*;

const COEFFICIENTS: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);
const STEPS: usize = 5;

/// New momentum and step direction (Nesterov form).
pub(crate) fn direction(grad: Tensor<2>, momentum: Tensor<2>, mu: f64) -> (Tensor<2>, Tensor<2>) {
    let momentum = momentum * mu + grad.clone();
    let ahead = grad + momentum.clone() * mu;
    let [out, inp] = ahead.dims();
    let scale = 0.2 * (out.max(inp) as f64).sqrt();
    (momentum, orthogonalise(ahead) * scale)
}

/// Approximate `U Vᵀ` of the singular value decomposition `U S Vᵀ`.
pub(crate) fn orthogonalise(g: Tensor<2>) -> Tensor<2> {
    let [out, inp] = g.dims();
    let flip = out > inp;
    let g = if flip { g.transpose() } else { g };
    let norm = g.clone().square().sum().sqrt().add_scalar(1e-7).reshape([1, 1]);
    let mut x = g / norm;
    let (a, b, c) = COEFFICIENTS;
    for _ in 0..STEPS {
        let s = x.clone().matmul(x.clone().transpose());
        let p = s.clone() * b + s.clone().matmul(s) * c;
        x = x.clone() * a + p.matmul(x);
    }
    if flip { x.transpose() } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Distribution;

    #[test]
    fn singular_values_come_near_one() {
        let device = Device::flex();
        device.seed(5);
        let g = Tensor::<2>::random([24, 10], Distribution::Normal(0.0, 3.0), &device);
        let x = orthogonalise(g);
        // XᵀX is near the identity: the iteration leaves singular values in about [0.7, 1.2]
        let gram =
            x.clone().transpose().matmul(x).try_into_data().unwrap().try_into_vec::<f32>().unwrap();
        for i in 0..10 {
            for j in 0..10 {
                let v = gram[i * 10 + j];
                if i == j {
                    assert!((0.4..1.6).contains(&v), "diagonal {v}");
                } else {
                    assert!(v.abs() < 0.35, "off-diagonal {v}");
                }
            }
        }
    }
}
