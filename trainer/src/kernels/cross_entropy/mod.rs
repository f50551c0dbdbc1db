//! Cross-entropy of logits with its gradient in the same pass; it is not part of a gradient tape.

mod cpu;
#[cfg(feature = "gpu")]
mod gpu;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::prelude::*;
use burn::tensor::activation::log_softmax;
#[cfg(feature = "gpu")]
use burn::{backend::fusion::custom::TensorSpec, tensor::DType};

/// The operation, per backend.
#[backend_extension(Flex, Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"))]
pub(crate) trait CrossEntropyOp: Backend {
    /// See [`cross_entropy`].
    #[fusion(meta = |logits, _targets, _scale| (losses_of(logits), logits.clone()))]
    fn cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        scale: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

#[cfg(feature = "gpu")]
fn losses_of(logits: &TensorSpec) -> TensorSpec {
    TensorSpec::new([logits.shape[0]].into(), DType::F32)
}

/// Cross-entropy of every row of `logits` `[N, V]` (any float dtype, statistics in fp32) against
/// `targets` `[N]`: the losses `[N]` in fp32, and `scale · (softmax(logits) - onehot(targets))` in
/// the logits' dtype, written over the logits unless another tensor shares them.
pub(crate) fn cross_entropy(
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    scale: f64,
) -> (Tensor<1>, Tensor<2>) {
    let (losses, gradient) = <Dispatch as CrossEntropyOp>::cross_entropy(
        logits.into_dispatch(),
        targets.into_dispatch(),
        scale,
    );
    (Tensor::from_dispatch(losses), Tensor::from_dispatch(gradient))
}

/// The composed form, for losses alone: the sum of the cross-entropies of fp32 `logits` `[N, V]`
/// against `targets` `[N]`.
pub(crate) fn cross_entropy_sum(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let [n, _] = logits.dims();
    log_softmax(logits, 1).gather(1, targets.reshape([n, 1])).sum().neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::test_support::{devices, distance, ids, random};
    use burn::tensor::DType;

    #[test]
    fn cross_entropy_equals_the_composed_form() {
        for device in devices() {
            for (n, v) in [(1, 5), (7, 320), (33, 1037)] {
                let logits = random([n, v], &device) * 3.0;
                let at: Vec<i32> = (0..n).map(|i| ((i * 7919) % v) as i32).collect();
                let targets = ids(&at, &device);
                let leaf = logits.clone().autodiff().require_grad();
                let slow = log_softmax(leaf.clone(), 1)
                    .gather(1, targets.clone().autodiff().reshape([n, 1]))
                    .neg();
                let mut grads = (slow.clone().sum() * 0.25).backward();
                let kept = logits.clone();
                let (losses, gradient) = cross_entropy(logits.clone(), targets.clone(), 0.25);
                assert!(distance(losses, slow.inner().reshape([n])) < 2e-5);
                assert!(distance(gradient, leaf.grad_remove(&mut grads).unwrap()) < 1e-6);
                assert_eq!(
                    distance(kept, logits),
                    0.0,
                    "logits that another tensor shares must not change"
                );
            }
        }
    }

    #[test]
    fn cross_entropy_of_extreme_logits() {
        for device in devices() {
            let logits = Tensor::<2>::from_data(
                TensorData::new(vec![300f32, -300.0, 0.0, 1e-3, 0.0, 0.0], [2, 3]),
                (&device, DType::F32),
            );
            let (losses, gradient) = cross_entropy(logits, ids(&[1, 0], &device), 1.0);
            let losses: Vec<f32> = losses.into_data().try_to_vec().unwrap();
            assert!(
                (losses[0] - 600.0).abs() < 1e-3 && (losses[1] - 1.098).abs() < 1e-2,
                "{losses:?}"
            );
            let gradient: Vec<f32> = gradient.into_data().try_to_vec().unwrap();
            assert!(
                (gradient[0] - 1.0).abs() < 1e-6 && (gradient[1] + 1.0).abs() < 1e-6,
                "{gradient:?}"
            );
        }
        let device = &devices()[0];
        let logits = Tensor::<2>::from_data(
            TensorData::new(vec![1.0, f32::NAN, 0.0], [1, 3]),
            (device, DType::F32),
        );
        let (losses, _) = cross_entropy(logits, ids(&[0], device), 1.0);
        assert!(losses.into_scalar::<f32>().is_nan(), "NaN must stay NaN");
    }

    #[test]
    fn half_precision_logits_are_as_good_as_their_rounding() {
        for device in devices().into_iter().filter(|d| d.supports_dtype(DType::BF16)) {
            let logits = random([9, 130], &device).cast(DType::BF16);
            let targets = ids(&[0, 3, 129, 5, 5, 5, 77, 100, 1], &device);
            let (exact, d_exact) =
                cross_entropy(logits.clone().cast(DType::F32), targets.clone(), 0.5);
            let (losses, d) = cross_entropy(logits, targets, 0.5);
            assert!(distance(losses, exact) < 1e-5);
            assert_eq!(d.dtype(), DType::BF16);
            assert!(distance(d, d_exact) < 0.5 / 256.0);
        }
    }
}
