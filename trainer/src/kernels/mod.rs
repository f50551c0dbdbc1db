//! Operations of the training step that Burn has only as long chains, or slowly: one pass each, on
//! the CPU and on GPUs.
//!
//! | operation | in | out |
//! |---|---|---|
//! | [`cross_entropy`] | logits `[N, V]`, targets `[N]` | losses `[N]` fp32 and `scale ·` their gradient `[N, V]` |
//! | [`add_rows`] | table `[R, D]` fp32, rows `[N, D]`, which row goes where | the table with the rows added |
//! | [`adamw`] | weights, moments, gradient | new weights and moments |
//!
//! None of them stands on a gradient tape: their callers work with gradients already. `cpu.rs`
//! holds the CPU forms, `gpu.rs` the CubeCL kernels (CUDA, and wgpu in fp32). The obvious forms
//! that all of them are held against are in the tests below.

pub(crate) mod cpu;
pub mod fused;
mod fused_cpu;
#[cfg(feature = "gpu")]
pub(crate) mod gpu;
pub mod ops;
pub(crate) mod simd;

use std::sync::Arc;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::prelude::*;
#[cfg(feature = "gpu")]
use burn::{backend::fusion::custom::TensorSpec, tensor::DType};

/// Rows that are added up in one go; a token that occurs often (the mask) has several pieces.
const PIECE: usize = 64;

/// One AdamW update of one parameter: everything but the tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwStep {
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
    /// Put on the gradient first.
    pub clip: f32,
    /// `1 - beta1^t`.
    pub correction1: f32,
    /// `1 - beta2^t`.
    pub correction2: f32,
}

/// Which source rows go to which row of a table, sorted so that every sum has one owner and one
/// order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowGroups {
    /// Source rows by destination.
    order: Vec<i32>,
    /// Pieces of `order`: at most [`PIECE`] rows, one destination. One more entry than there are
    /// pieces.
    pieces: Vec<i32>,
    /// Destinations' first pieces. One more entry than there are destinations.
    firsts: Vec<i32>,
    /// Destinations, ascending.
    rows: Vec<i32>,
}

impl RowGroups {
    /// Source row `i` goes to row `destinations[i]`.
    fn new(destinations: &[i32]) -> Self {
        let mut order: Vec<i32> = (0..destinations.len() as i32).collect();
        order.sort_by_key(|&i| destinations[i as usize]);
        let mut plan = RowGroups { order, ..Default::default() };
        for at in 0..plan.order.len() {
            let row = destinations[plan.order[at] as usize];
            if plan.rows.last() != Some(&row) {
                plan.rows.push(row);
                plan.firsts.push(plan.pieces.len() as i32);
                plan.pieces.push(at as i32);
            } else if plan.pieces.last().is_some_and(|first| at - *first as usize >= PIECE) {
                plan.pieces.push(at as i32);
            }
        }
        plan.firsts.push(plan.pieces.len() as i32);
        plan.pieces.push(plan.order.len() as i32);
        plan
    }

    /// `order | pieces | firsts | rows`.
    fn flat(&self) -> Vec<i32> {
        [&self.order[..], &self.pieces, &self.firsts, &self.rows].concat()
    }
}

/// A [`RowGroups`] on the host and on a device.
#[derive(Clone, Debug)]
pub struct RowIndex {
    plan: Arc<RowGroups>,
    index: Tensor<1, Int>,
}

impl RowIndex {
    /// Source row `i` goes to row `destinations[i]`.
    pub fn new(destinations: &[i32], device: &Device) -> Self {
        let plan = RowGroups::new(destinations);
        let flat = plan.flat();
        let n = flat.len();
        RowIndex {
            plan: Arc::new(plan),
            index: Tensor::from_data(TensorData::new(flat, [n]), device),
        }
    }
}

/// The operations, per backend.
#[backend_extension(Flex, Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"))]
pub trait Kernels: Backend {
    /// See [`cross_entropy`].
    #[fusion(meta = |logits, _targets, _scale| (losses_of(logits), logits.clone()))]
    fn cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        scale: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`add_rows`].
    #[fusion(dtype = table, shape = table)]
    fn add_rows(
        table: FloatTensor<Self>,
        source: FloatTensor<Self>,
        index: IntTensor<Self>,
        plan: Arc<RowGroups>,
    ) -> FloatTensor<Self>;

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

#[cfg(feature = "gpu")]
fn losses_of(logits: &TensorSpec) -> TensorSpec {
    TensorSpec::new([logits.shape[0]].into(), DType::F32)
}

impl Kernels for Flex {
    fn cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        scale: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        cpu::cross_entropy(logits, targets, scale)
    }

    fn add_rows(
        table: FloatTensor<Self>,
        source: FloatTensor<Self>,
        _index: IntTensor<Self>,
        plan: Arc<RowGroups>,
    ) -> FloatTensor<Self> {
        cpu::add_rows(table, source, &plan)
    }

    fn adamw(
        w: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        g: FloatTensor<Self>,
        step: AdamwStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        cpu::adamw(w, m, v, g, step)
    }
}

/// Cross-entropy of every row of `logits` `[N, V]` (any float dtype, statistics in fp32) against
/// `targets` `[N]`: the losses `[N]` in fp32, and `scale · (softmax(logits) - onehot(targets))` in
/// the logits' dtype, written over the logits where nobody else holds them.
pub fn cross_entropy(
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    scale: f64,
) -> (Tensor<1>, Tensor<2>) {
    let (losses, gradient) = <Dispatch as Kernels>::cross_entropy(
        logits.into_dispatch(),
        targets.into_dispatch(),
        scale,
    );
    (Tensor::from_dispatch(losses), Tensor::from_dispatch(gradient))
}

/// `table[destination of i] += source[i]` for every row i of `source` `[N, D]` (any float dtype);
/// `table` `[R, D]` is fp32. Sums are taken in one fixed order.
pub fn add_rows(table: Tensor<2>, source: Tensor<2>, rows: &RowIndex) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as Kernels>::add_rows(
        table.into_dispatch(),
        source.into_dispatch(),
        rows.index.clone().into_dispatch(),
        rows.plan.clone(),
    ))
}

/// AdamW (arXiv:1711.05101): new weights, first and second moment. All fp32, one shape; in place
/// where nobody else holds a tensor.
pub fn adamw(
    w: Tensor<2>,
    m: Tensor<2>,
    v: Tensor<2>,
    g: Tensor<2>,
    step: AdamwStep,
) -> (Tensor<2>, Tensor<2>, Tensor<2>) {
    let (w, m, v) = <Dispatch as Kernels>::adamw(
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
    use crate::compute::device;
    use burn::tensor::activation::log_softmax;
    use burn::tensor::{DType, Distribution, IndexingUpdateOp};
    use std::io::Write as _;

    /// The CPU, and a GPU where this build and machine have one.
    fn devices() -> Vec<Device> {
        let mut out = vec![device::choose("cpu").unwrap().device];
        for name in ["cuda", "wgpu"] {
            match device::choose(name) {
                Ok(d) => out.push(d.device),
                Err(e) => {
                    drop(std::io::stderr().write_all(format!("SKIP: {name}: {e}\n").as_bytes()))
                }
            }
        }
        out
    }

    fn random(shape: [usize; 2], device: &Device) -> Tensor<2> {
        Tensor::random(shape, Distribution::Normal(0.0, 2.0), (device, DType::F32))
    }

    fn ids(values: &[i32], device: &Device) -> Tensor<1, Int> {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
    }

    fn far<const N: usize>(a: Tensor<N>, b: Tensor<N>) -> f32 {
        (a.cast(DType::F32) - b.cast(DType::F32)).abs().max().into_scalar::<f32>()
    }

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
                assert!(far(losses, slow.inner().reshape([n])) < 2e-5);
                assert!(far(gradient, leaf.grad_remove(&mut grads).unwrap()) < 1e-6);
                assert_eq!(far(kept, logits), 0.0, "logits that are still held must not change");
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
        assert!(losses.into_scalar::<f32>().is_nan(), "a NaN must not be swallowed");
    }

    #[test]
    fn half_precision_logits_are_as_good_as_their_rounding() {
        for device in devices().into_iter().filter(|d| d.supports_dtype(DType::BF16)) {
            let logits = random([9, 130], &device).cast(DType::BF16);
            let targets = ids(&[0, 3, 129, 5, 5, 5, 77, 100, 1], &device);
            let (exact, d_exact) =
                cross_entropy(logits.clone().cast(DType::F32), targets.clone(), 0.5);
            let (losses, d) = cross_entropy(logits, targets, 0.5);
            assert!(far(losses, exact) < 1e-5);
            assert_eq!(d.dtype(), DType::BF16);
            assert!(far(d, d_exact) < 0.5 / 256.0);
        }
    }

    #[test]
    fn rows_are_added_where_they_belong() {
        for device in devices() {
            for (n, r, d) in [(1, 1, 1), (40, 7, 12), (500, 31, 33), (1000, 3, 64)] {
                let to: Vec<i32> =
                    (0..n).map(|i| if i % 3 == 0 { 0 } else { ((i * i + 5) % r) as i32 }).collect();
                let (table, source) = (random([r, d], &device), random([n, d], &device));
                let slow = table.clone().select_assign(
                    0,
                    ids(&to, &device),
                    source.clone(),
                    IndexingUpdateOp::Add,
                );
                let fast = add_rows(table.clone(), source.clone(), &RowIndex::new(&to, &device));
                assert!(far(fast, slow) < 2e-4, "{n} rows to {r}");
                let again = add_rows(table.clone(), source.clone(), &RowIndex::new(&to, &device));
                assert_eq!(
                    far(again, add_rows(table, source, &RowIndex::new(&to, &device))),
                    0.0,
                    "one fixed order"
                );
            }
        }
    }

    #[test]
    fn plans_have_one_owner_for_every_row() {
        let plan = RowGroups::new(&[5; 130]);
        assert_eq!(
            (plan.rows.as_slice(), plan.firsts.as_slice(), plan.pieces.as_slice()),
            (&[5][..], &[0, 3][..], &[0, 64, 128, 130][..])
        );
        let plan = RowGroups::new(&[2, 0, 2]);
        assert_eq!(
            (plan.order.as_slice(), plan.rows.as_slice(), plan.firsts.as_slice()),
            (&[1, 0, 2][..], &[0, 2][..], &[0, 1, 2][..])
        );
        let plan = RowGroups::new(&[]);
        assert_eq!(plan.flat(), [0, 0]);
    }

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
            assert!(far(a, w2) < 1e-6 && far(b, m2) < 1e-6 && far(c, v2) < 1e-5);
            assert_eq!(
                kept.into_data().try_to_vec::<f32>().unwrap(),
                before,
                "weights that are still held must not change"
            );
        }
    }
}
