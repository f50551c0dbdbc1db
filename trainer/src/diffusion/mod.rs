//! The block-diffusion objective, from packed rows to loss and gradient.
//!
//! `spec` says what is trained; `layout` makes token streams of a row and its mask, `batch` joins
//! the streams of several rows, `device_batch` copies a batch to the device, `objective` computes
//! the loss and its gradient.

pub mod batch;
pub mod device_batch;
pub mod layout;
pub mod objective;
pub mod spec;

pub use batch::{Batch, build_batch, count_targets};
pub use device_batch::DeviceBatch;
pub use objective::PassOptions;
pub use spec::{DocumentMask, IGNORE, Layout, Objective, ObjectiveSpec, PackedRow};
