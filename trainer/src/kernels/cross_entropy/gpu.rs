//! Cross-entropy as a CubeCL kernel.

use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use cubecl::prelude::*;

use super::CrossEntropyOp;
use crate::kernels::cube::{join_softmax, owned};

/// Units that share a row of logits.
const UNITS: usize = 256;

/// One cube per row: first the logarithm of the sum of exponentials, then the loss, then the
/// gradient, which is written over the logits.
#[cube(launch)]
fn cross_entropy_kernel<F: Float, I: Int>(
    logits: &mut Tensor<F>,
    targets: &Tensor<I>,
    losses: &mut Tensor<f32>,
    scale: f32,
    #[comptime] units: usize,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let row = CUBE_POS;
    let width = logits.shape(1);
    let base = row * width;
    let unit = UNIT_POS as usize;
    let mut most_of = Shared::<[f32]>::new_slice(units);
    let mut sum_of = Shared::<[f32]>::new_slice(units);

    // each unit's own maximum and sum, in one pass
    let mut most = f32::new(-1.0e30);
    let mut sum = f32::new(0.0);
    let mut i = unit;
    while i < width {
        let x = f32::cast_from(logits[base + i]);
        if x > most {
            sum = sum * (most - x).exp() + 1.0;
            most = x;
        } else {
            sum += (x - most).exp();
        }
        i += units;
    }
    most_of[unit] = most;
    sum_of[unit] = sum;
    join_softmax(&mut most_of, &mut sum_of, unit, units);
    let most = most_of[0];
    let sum = sum_of[0];
    let target = usize::cast_from(targets[row]);
    if unit == 0 {
        losses[row] = most + sum.ln() - f32::cast_from(logits[base + target]);
    }
    // the target's logit is read before any unit writes
    sync_cube();
    let mut i = unit;
    while i < width {
        let mut d = (f32::cast_from(logits[base + i]) - most).exp() / sum * scale;
        if i == target {
            d -= scale;
        }
        logits[base + i] = F::cast_from(d);
        i += units;
    }
}

impl CrossEntropyOp for CubeBackend {
    fn cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        scale: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (logits, targets) = (owned(logits), into_contiguous(targets));
        let rows = logits.meta.shape()[0];
        let (client, device) = (logits.client.clone(), logits.device.clone());
        let losses =
            empty_device_contiguous_dtype(client.clone(), device, Shape::new([rows]), DType::F32);
        let dtypes = [dtype_to_storage_type(logits.dtype), dtype_to_storage_type(targets.dtype)];
        let units = UNITS.min(client.properties().hardware.max_cube_dim.0 as usize);
        cross_entropy_kernel::launch(
            &client,
            CubeCount::Static(rows as u32, 1, 1),
            CubeDim::new_1d(units as u32),
            logits.clone().into_tensor_arg(),
            targets.into_tensor_arg(),
            losses.clone().into_tensor_arg(),
            scale as f32,
            units,
            dtypes,
        );
        (losses, logits)
    }
}
