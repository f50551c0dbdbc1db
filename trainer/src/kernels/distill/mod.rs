//! Cross-entropy towards tokens and towards another model's distributions (the teacher's), with the
//! gradient of their mixture; it is not part of a gradient tape.

mod cpu;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::prelude::*;
use burn::tensor::{DType, IndexingUpdateOp, activation::log_softmax};

use crate::kernels::cast::{cast_to, to_f32};

/// What rows of logits are compared with, and how much each comparison counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mixture {
    /// Share of the divergence from the teacher in the loss, 0 to 1; the cross-entropy has the
    /// rest.
    pub teacher: f64,
    /// Factor on the gradient.
    pub scale: f64,
    /// A token that counts as the most probable one on neither side.
    pub never: usize,
}

/// The operation, per backend.
#[backend_extension(Flex)]
pub(crate) trait DistillOp: Backend {
    /// See [`fused`].
    fn distill(
        logits: FloatTensor<Self>,
        teacher: FloatTensor<Self>,
        rows: IntTensor<Self>,
        targets: IntTensor<Self>,
        mixture: Mixture,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// [`composed`] in a single pass over memory: CPU and fp32 only. The gradient is written over the
/// logits unless another tensor shares them.
pub(crate) fn fused(
    logits: Tensor<2>,
    teacher: Tensor<2>,
    rows: Tensor<1, Int>,
    targets: Tensor<1, Int>,
    mixture: Mixture,
) -> (Tensor<2>, Tensor<2>) {
    let (judged, gradient) = <Dispatch as DistillOp>::distill(
        logits.into_dispatch(),
        teacher.into_dispatch(),
        rows.into_dispatch(),
        targets.into_dispatch(),
        mixture,
    );
    (Tensor::from_dispatch(judged), Tensor::from_dispatch(gradient))
}

/// Compares row i of `logits` `[N, V]` with token `targets[i]` and with row `rows[i]` of `teacher`
/// `[U, V]` (any float dtype, statistics in fp32).
///
/// Out: `[N, 3]` in fp32 with the cross-entropy, the divergence KL(teacher ‖ logits), and 1 where
/// both have the same most probable token (the first of equal ones), else 0; and `scale ·` the
/// gradient of `(1 - w) · cross-entropy + w · divergence`, which is
/// `softmax(logits) - (1 - w) onehot(target) - w softmax(teacher)`, in the logits' dtype.
pub(crate) fn composed(
    logits: Tensor<2>,
    teacher: Tensor<2>,
    rows: Tensor<1, Int>,
    targets: Tensor<1, Int>,
    mixture: Mixture,
) -> (Tensor<2>, Tensor<2>) {
    let ([n, _], dtype) = (logits.dims(), logits.dtype());
    let targets = targets.reshape([n, 1]);
    let best = |logits: Tensor<2>| {
        let [count, vocab] = logits.dims();
        let floor = Tensor::full([count, 1], -1e30, (&logits.device(), DType::F32));
        match mixture.never < vocab {
            true => logits.slice_assign([0..count, mixture.never..mixture.never + 1], floor),
            false => logits,
        }
        .argmax(1)
    };
    let (logits, teacher) = (to_f32(logits), to_f32(teacher).select(0, rows));
    let same = best(logits.clone()).equal(best(teacher.clone())).float().cast(DType::F32);
    let (own, wanted) = (log_softmax(logits, 1), log_softmax(teacher, 1));
    let probable = wanted.clone().exp();
    let cross_entropy = own.clone().gather(1, targets.clone()).neg();
    let divergence = (probable.clone() * (wanted - own.clone())).sum_dim(1);
    let Mixture { teacher: share, scale, .. } = mixture;
    let of_token = Tensor::full([n, 1], -(1.0 - share) * scale, (&own.device(), DType::F32));
    let gradient = (own.exp() - probable.mul_scalar(share)).mul_scalar(scale).scatter(
        1,
        targets,
        of_token,
        IndexingUpdateOp::Add,
    );
    (Tensor::cat(vec![cross_entropy, divergence, same], 1), cast_to(gradient, dtype))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cross_entropy;
    use crate::kernels::test_support::{devices, distance, ids, leaf, random};

    /// Targets, and rows of the teacher of which some serve several rows and the last none.
    fn inputs(n: usize, vocab: usize, device: &Device) -> [Tensor<1, Int>; 2] {
        let numbers = |f: fn(usize) -> usize, below: usize| -> Vec<i32> {
            (0..n).map(|i| (f(i) % below) as i32).collect()
        };
        [ids(&numbers(|i| i * 7919, vocab), device), ids(&numbers(|i| i * i, n), device)]
    }

    /// Against the definition, differentiated by the tape.
    #[test]
    fn the_composed_form_is_the_definition() {
        for device in devices() {
            for (n, vocab, share) in [(1, 5, 1.0), (7, 320, 0.0), (33, 137, 0.3)] {
                let (logits, teacher) =
                    (random([n, vocab], &device) * 2.0, random([n, vocab], &device) * 2.0);
                let [targets, rows] = inputs(n, vocab, &device);
                let on_tape = leaf(&logits);
                let own = log_softmax(on_tape.clone(), 1);
                let wanted = log_softmax(teacher.clone().select(0, rows.clone()), 1).autodiff();
                let token = targets.clone().autodiff().reshape([n, 1]);
                let ce = own.clone().gather(1, token).neg();
                let kl = (wanted.clone().exp() * (wanted - own)).sum_dim(1);
                let loss = ce.clone() * (1.0 - share) + kl.clone() * share;
                let mut grads = (loss.sum() * 0.25).backward();
                let mixture = Mixture { teacher: share, scale: 0.25, never: vocab };
                let (judged, gradient) = composed(logits, teacher, rows, targets, mixture);
                assert!(distance(judged.clone().narrow(1, 0, 1), ce.inner()) < 2e-5);
                assert!(distance(judged.narrow(1, 1, 1), kl.inner()) < 2e-5);
                assert!(distance(gradient, on_tape.grad_remove(&mut grads).unwrap()) < 1e-6);
            }
        }
    }

    #[test]
    fn the_fused_form_equals_the_composed_one() {
        let device = Device::flex();
        for (n, vocab, share) in [(1, 5, 1.0), (7, 320, 0.0), (33, 1037, 0.5), (9, 16, 0.9)] {
            let (logits, teacher) =
                (random([n, vocab], &device) * 3.0, random([n, vocab], &device) * 3.0);
            // some rows are the teacher's own
            let logits = logits.clone().mask_where(
                logits.clone().narrow(1, 0, 1).greater_elem(1.0).expand([n, vocab]),
                teacher.clone(),
            );
            let [targets, rows] = inputs(n, vocab, &device);
            for never in [3, vocab] {
                let mixture = Mixture { teacher: share, scale: 0.25, never };
                let all = (teacher.clone(), rows.clone(), targets.clone());
                let (judged, gradient) =
                    composed(logits.clone(), all.0.clone(), all.1.clone(), all.2.clone(), mixture);
                let kept = logits.clone() + 0.0;
                let (fast, d_fast) = fused(logits.clone(), all.0, all.1, all.2, mixture);
                assert!(distance(fast, judged) < 4e-5, "{n} {vocab} {share}");
                assert!(distance(d_fast, gradient) < 1e-6, "{n} {vocab} {share}");
                assert_eq!(distance(kept, logits.clone()), 0.0, "shared logits must not change");
            }
        }
    }

    /// Without a share for the teacher it is cross-entropy, bit for bit.
    #[test]
    fn no_share_is_cross_entropy() {
        let device = Device::flex();
        let (logits, teacher) = (random([12, 77], &device), random([12, 77], &device));
        let [targets, rows] = inputs(12, 77, &device);
        let mixture = Mixture { teacher: 0.0, scale: 0.5, never: 77 };
        let (losses, gradient) = cross_entropy(logits.clone(), targets.clone(), 0.5);
        let (judged, d_judged) = fused(logits, teacher, rows, targets, mixture);
        assert_eq!(distance(judged.narrow(1, 0, 1).reshape([12]), losses), 0.0);
        assert_eq!(distance(d_judged, gradient), 0.0);
    }

    #[test]
    fn equal_logits_diverge_by_nothing_and_the_first_of_equal_ones_counts() {
        let device = Device::flex();
        let rows_of = |values: Vec<f32>| {
            Tensor::<2>::from_data(TensorData::new(values, [2, 3]), (&device, DType::F32))
        };
        let logits = rows_of(vec![2.0, 2.0, 1.0, 0.5, 300.0, f32::NAN]);
        let teacher = rows_of(vec![2.0, 1.0, 2.0, 0.5, 0.0, 1.0]);
        let at = || ids(&[0, 1], &device);
        let mixture = Mixture { teacher: 0.5, scale: 1.0, never: 9 };
        let (judged, _) = fused(logits.clone(), logits.clone(), at(), at(), mixture);
        let judged: Vec<f32> = judged.into_data().try_to_vec().unwrap();
        assert!(judged[1].abs() < 1e-6 && judged[2] == 1.0, "{judged:?}");
        assert!(judged[3].is_nan() && judged[4].is_nan(), "NaN must stay NaN: {judged:?}");
        for form in [fused, composed] {
            let (judged, _) = form(logits.clone(), teacher.clone(), at(), at(), mixture);
            let judged: Vec<f32> = judged.into_data().try_to_vec().unwrap();
            assert_eq!(judged[2], 1.0);
        }
        // without token 0 the first row's are tokens 1 and 2
        let mixture = Mixture { never: 0, ..mixture };
        for form in [fused, composed] {
            let (judged, _) = form(logits.clone(), teacher.clone(), at(), at(), mixture);
            let judged: Vec<f32> = judged.into_data().try_to_vec().unwrap();
            assert_eq!(judged[2], 0.0);
        }
    }
}
