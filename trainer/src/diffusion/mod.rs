//! The block-diffusion objective, from packed rows to loss and gradient.
//!
//! `spec` says what is trained, `noise` draws what is hidden; `layout` and `runs` make token
//! streams of a row and its mask, `batch` joins the streams of several rows, `device_batch` copies
//! a batch to the device, `objective` computes the loss (`losses`) and its gradient, `distill`
//! compares proposals with what the source says, `scored` computes the loss and what is predicted.

pub(crate) mod batch;
pub(crate) mod device_batch;
pub(crate) mod distill;
pub(crate) mod layout;
pub(crate) mod losses;
pub(crate) mod noise;
pub(crate) mod objective;
pub(crate) mod runs;
pub(crate) mod scored;
pub(crate) mod spec;

pub(crate) use batch::{Batch, build_batch, count_targets};
pub(crate) use device_batch::DeviceBatch;
pub(crate) use losses::{Losses, PassOptions};
pub(crate) use scored::Scored;
pub use spec::Layout;
pub(crate) use spec::{DocumentMask, IGNORE, Objective, ObjectiveSpec, PackedRow};
