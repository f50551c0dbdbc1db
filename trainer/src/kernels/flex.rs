//! Tensors of the CPU backend as slices, for the CPU forms of the operations.

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Element, TensorData};
use half::{bf16, f16};

/// Elements that a parallel task works on, approximately. The size is fixed and partial sums are
/// added in order, so results do not depend on the number of threads.
pub(crate) const CHUNK: usize = 16 * 1024;

/// The tensor, stored so that its storage holds exactly its values, in order.
pub(crate) fn plain<E: Element + bytemuck::Pod>(t: FlexTensor) -> FlexTensor {
    let t = t.to_contiguous();
    match t.as_slice::<E>() {
        Some(values) if values.len() != t.storage::<E>().len() => {
            let shape = t.layout().shape().to_vec();
            FlexTensor::from_data(TensorData::new(values.to_vec(), shape))
        }
        _ => t,
    }
}

/// Ids, whichever integer type they are stored as.
pub(crate) fn ids(t: FlexTensor) -> Vec<usize> {
    match t.dtype() {
        DType::I64 => plain::<i64>(t).storage::<i64>().iter().map(|i| *i as usize).collect(),
        _ => plain::<i32>(t).storage::<i32>().iter().map(|i| *i as usize).collect(),
    }
}

/// The tensor in fp32, [`plain`].
pub(crate) fn as_f32(t: FlexTensor) -> FlexTensor {
    let shape = t.layout().shape().to_vec();
    let values: Vec<f32> = match t.dtype() {
        DType::BF16 => plain::<bf16>(t).storage::<bf16>().iter().map(|v| v.to_f32()).collect(),
        DType::F16 => plain::<f16>(t).storage::<f16>().iter().map(|v| v.to_f32()).collect(),
        _ => return plain::<f32>(t),
    };
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// A plain fp32 tensor cast to `dtype`: the inverse of [`as_f32`].
pub(crate) fn cast_back(t: FlexTensor, dtype: DType) -> FlexTensor {
    let shape = t.layout().shape().to_vec();
    let values = t.storage::<f32>().iter();
    match dtype {
        DType::BF16 => FlexTensor::from_data(TensorData::new(
            values.map(|v| bf16::from_f32(*v)).collect::<Vec<_>>(),
            shape,
        )),
        DType::F16 => FlexTensor::from_data(TensorData::new(
            values.map(|v| f16::from_f32(*v)).collect::<Vec<_>>(),
            shape,
        )),
        _ => t,
    }
}

/// An fp32 tensor as rows over its last dimension.
pub(crate) struct Rows {
    tensor: FlexTensor,
    pub shape: Vec<usize>,
}

impl Rows {
    pub(crate) fn new(t: FlexTensor) -> Self {
        assert_eq!(t.dtype(), DType::F32, "single-pass operations on the CPU compute in fp32");
        let tensor = plain::<f32>(t);
        let shape = tensor.layout().shape().to_vec();
        Rows { tensor, shape }
    }

    pub(crate) fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    pub(crate) fn values(&self) -> &[f32] {
        self.tensor.storage()
    }
}

/// A tensor of `values`.
pub(crate) fn tensor(values: Vec<f32>, shape: &[usize]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.to_vec()))
}

/// Rows of `width` that a task of about [`CHUNK`] elements has.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}
