//! From gradients to new weights: learning-rate schedule → clipping → AdamW (and Muon for
//! matrices).
//!
//! State is kept in fp32 in the order of [`crate::model::Params::specs`] and saved by parameter
//! name, never by a process-random id.

pub mod adamw;
pub mod clip;
pub mod muon;
pub mod schedule;

pub use adamw::Optimizer;
