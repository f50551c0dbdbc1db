//! Weights that are not trained, beside adapters: once on the GPU, matrices and tables in the dtype
//! of the passes (two bytes a number in bf16), norms and biases in fp32.

use std::rc::Rc;

use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::options::Precision;
use crate::shape::Layout;

/// Buffers of frozen weights.
pub(crate) struct Frozen {
    /// Everything before the layout's `decayed`.
    matrices: Buffer,
    /// Everything from there on.
    vectors: Buffer,
}

/// Bytes of frozen weights in this precision.
pub(crate) fn bytes(layout: &Layout, precision: Precision) -> usize {
    precision.element() * layout.decayed + 4 * (layout.total - layout.decayed)
}

impl Frozen {
    /// Zero weights.
    pub(crate) fn new(device: &Rc<Device>, layout: &Layout, precision: Precision) -> Result<Self> {
        let zeros = |bytes: usize, what| -> Result<Buffer> {
            let buffer = device.allocate(bytes, what)?;
            device.clear(buffer.address(), buffer.bytes())?;
            Ok(buffer)
        };
        Ok(Frozen {
            matrices: zeros(precision.element() * layout.decayed, "frozen weights")?,
            vectors: zeros(4 * (layout.total - layout.decayed), "frozen norms")?,
        })
    }

    /// Address of a matrix's or a table's element of `element` bytes.
    pub(crate) fn matrix(&self, offset: usize, element: usize) -> u64 {
        self.matrices.address() + (element * offset) as u64
    }

    /// Address of an element of a norm or a bias; `decayed` is the layout's.
    pub(crate) fn vector(&self, offset: usize, decayed: usize) -> u64 {
        debug_assert!(offset >= decayed);
        self.vectors.address() + 4 * (offset - decayed) as u64
    }
}
