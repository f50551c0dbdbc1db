//! From gradients to new weights: learning-rate schedule, clipping, then AdamW or, for the layers'
//! matrices, Muon.
//!
//! State is fp32, in the order of [`crate::model::Params::specs`], and saved by parameter name.

pub mod adamw;
pub mod clip;
pub mod muon;
pub mod schedule;

pub use adamw::Optimizer;
