//! Devices, random tensors and differences for the tests of fast operations.

use burn::prelude::*;
use burn::tensor::{DType, Distribution};

use crate::compute::device;

/// The CPU, and the GPUs on which Burn can compute in this build and on this machine.
pub(crate) fn devices() -> Vec<Device> {
    let mut out = vec![device::cpu().device];
    for name in ["cuda", "wgpu"] {
        let usable = device::choose(name).and_then(|d| device::check_burn(&d).map(|()| d));
        match usable {
            Ok(d) => out.push(d.device),
            Err(e) => dlm_test_support::skip(&format!("{name}: {e}")),
        }
    }
    out
}

pub(crate) fn random<const N: usize>(shape: [usize; N], device: &Device) -> Tensor<N> {
    Tensor::random(shape, Distribution::Normal(0.0, 2.0), (device, DType::F32))
}

pub(crate) fn ids(values: &[i32], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

/// A copy at the start of a gradient tape.
pub(crate) fn leaf<const N: usize>(t: &Tensor<N>) -> Tensor<N> {
    t.clone().autodiff().require_grad()
}

/// Largest absolute difference, in fp32.
pub(crate) fn distance<const N: usize>(a: Tensor<N>, b: Tensor<N>) -> f32 {
    (a.cast(DType::F32) - b.cast(DType::F32)).abs().max().into_scalar::<f32>()
}

/// Insists that two tensors are equal up to rounding.
pub(crate) fn close<const N: usize>(a: Tensor<N>, b: Tensor<N>, name: &str) {
    let far = distance(a, b);
    assert!(far < 2e-5, "{name}: {far}");
}
