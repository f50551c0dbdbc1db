//! Where and how a run computes: the device, the dtype, the attention implementation and the shape
//! of the token streams, resolved once into a [`ComputePlan`].

mod card;
pub(crate) mod device;
mod dtype;
pub(crate) mod mapped_files;
pub(crate) mod memory;
mod plan;
pub(crate) mod tensor_io;

pub(crate) use device::{ComputeDevice, DeviceKind};
pub use dtype::{ComputeDtype, WeightFormat};
pub(crate) use plan::{Attention, ComputePlan, StreamShape};
pub use plan::{AttentionChoice, EngineChoice};
