//! The block-diffusion objective: noise → layout → batch → loss and gradient.

pub mod batch;
pub mod device_batch;
pub mod layout;
pub mod objective;
pub mod spec;

pub use batch::{Batch, build_batch, count_targets};
pub use device_batch::DeviceBatch;
pub use objective::PassOptions;
pub use spec::{DocumentMask, IGNORE, Layout, Objective, ObjectiveSpec, PackedRow};
