//! What the GPU kernels share, in CubeCL: one source for CUDA and for the GPUs that wgpu drives.
//!
//! Statistics and sums are fp32 whatever the tensors' dtype. Every sum is computed by one unit or
//! one cube in one order, without atomics, so the same launch gives the same bits. No plane (warp)
//! operations are used, so nothing depends on a device's plane size.

use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// The tensor, contiguous and without another holder, so that a kernel may write over it.
pub(crate) fn owned(t: CubeTensor) -> CubeTensor {
    let t = into_contiguous(t);
    if t.can_mut() { t } else { t.copy() }
}

/// Sums the entries of `part`, one per unit; the sum is then in entry 0. `units` is a power of two.
#[cube]
pub(crate) fn join_sums(part: &mut Shared<[f32]>, unit: usize, #[comptime] units: usize) {
    sync_cube();
    let mut half = (units / 2).runtime();
    while half > 0 {
        if unit < half {
            part[unit] += part[unit + half];
        }
        sync_cube();
        half /= 2;
    }
}

/// Joins the units' maxima and their sums of exponentials relative to them; those of the whole row
/// are then in entry 0. `units` is a power of two.
#[cube]
pub(crate) fn join_softmax(
    most_of: &mut Shared<[f32]>,
    sum_of: &mut Shared<[f32]>,
    unit: usize,
    #[comptime] units: usize,
) {
    sync_cube();
    let mut half = (units / 2).runtime();
    while half > 0 {
        if unit < half {
            let a = most_of[unit];
            let b = most_of[unit + half];
            let top = max(a, b);
            sum_of[unit] = sum_of[unit] * (a - top).exp() + sum_of[unit + half] * (b - top).exp();
            most_of[unit] = top;
        }
        sync_cube();
        half /= 2;
    }
}
