//! Casts that leave a tensor of the right dtype as it is.

use burn::prelude::*;
use burn::tensor::DType;

/// The tensor in fp32.
pub(crate) fn to_f32<const N: usize>(x: Tensor<N>) -> Tensor<N> {
    cast_to(x, DType::F32)
}

/// The tensor in `dtype`.
pub(crate) fn cast_to<const N: usize>(x: Tensor<N>, dtype: DType) -> Tensor<N> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}
