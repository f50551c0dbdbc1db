//! The block-diffusion objective: noise → layout → batch → loss and gradient.

pub mod batch;
pub mod layout;
pub mod noise;
pub mod objective;

pub use batch::Batch;
pub use layout::{DocumentMask, PackedRow, Spec};
pub use objective::{Attention, Layout, Objective, PassOptions, Shape};
