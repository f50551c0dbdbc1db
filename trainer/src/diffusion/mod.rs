//! The block-diffusion objective: noise → layout → batch → loss and gradient.

pub mod batch;
pub mod layout;
pub mod objective;

pub use batch::Batch;
pub use layout::{DocumentMask, ObjectiveSpec, PackedRow};
pub use objective::{Attention, Layout, Objective, PassOptions, StreamShape};
