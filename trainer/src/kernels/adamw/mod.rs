//! One AdamW update of one parameter in one pass over its weights, moments and gradient.

mod cpu;
#[cfg(feature = "gpu")]
mod gpu;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::prelude::*;

/// One AdamW update of one parameter: everything but the tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AdamwStep {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Weight decay, decoupled.
    pub decay: f32,
    /// Factor on the gradient, applied first.
    pub clip: f32,
    /// `1 - beta1^t`.
    pub correction1: f32,
    /// `1 - beta2^t`.
    pub correction2: f32,
}

/// The operation, per backend.
#[backend_extension(Flex, Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"))]
pub(crate) trait AdamwOp: Backend {
    /// See [`adamw`].
    #[fusion(meta = |w, m, v, _g, _step| (w.clone(), m.clone(), v.clone()))]
    fn adamw(
        w: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        g: FloatTensor<Self>,
        step: AdamwStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// AdamW (arXiv:1711.05101): new weights, first and second moment. All fp32 and of one shape;
/// in place unless another tensor shares the values.
pub(crate) fn adamw(
    w: Tensor<2>,
    m: Tensor<2>,
    v: Tensor<2>,
    g: Tensor<2>,
    step: AdamwStep,
) -> (Tensor<2>, Tensor<2>, Tensor<2>) {
    let (w, m, v) = <Dispatch as AdamwOp>::adamw(
        w.into_dispatch(),
        m.into_dispatch(),
        v.into_dispatch(),
        g.into_dispatch(),
        step,
    );
    (Tensor::from_dispatch(w), Tensor::from_dispatch(m), Tensor::from_dispatch(v))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::test_support::{devices, distance, random};

    #[test]
    fn adamw_equals_the_composed_form() {
        for device in devices() {
            let (w, m, g) = (
                random([37, 19], &device),
                random([37, 19], &device) * 0.1,
                random([37, 19], &device),
            );
            let v = random([37, 19], &device).square();
            let s = AdamwStep {
                lr: 1e-2,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                decay: 0.1,
                clip: 0.7,
                correction1: 0.3,
                correction2: 0.2,
            };
            let gc = g.clone() * s.clip;
            let m2 = m.clone() * s.beta1 + gc.clone() * (1.0 - s.beta1);
            let v2 = v.clone() * s.beta2 + gc.square() * (1.0 - s.beta2);
            let w2 = w.clone() * (1.0 - s.lr * s.decay)
                - m2.clone() / s.correction1 / ((v2.clone() / s.correction2).sqrt() + s.eps) * s.lr;
            let kept = w.clone();
            let before: Vec<f32> = w.clone().into_data().try_to_vec().unwrap();
            let (a, b, c) = adamw(w, m, v, g, s);
            assert!(distance(a, w2) < 1e-6 && distance(b, m2) < 1e-6 && distance(c, v2) < 1e-5);
            assert_eq!(
                kept.into_data().try_to_vec::<f32>().unwrap(),
                before,
                "weights that another tensor shares must not change"
            );
        }
    }
}
