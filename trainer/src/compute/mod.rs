//! Where and how a run computes: the device, the dtype, the attention implementation and the shape
//! of the token streams, resolved once into a [`ComputePlan`].

mod card;
pub mod device;
mod dtype;
pub mod memory;
mod plan;
pub mod tensor_io;

pub use device::{ComputeDevice, DeviceKind};
pub use dtype::ComputeDtype;
pub use plan::{Attention, AttentionChoice, ComputePlan, StreamShape};
