//! From gradients to new weights: learning-rate schedule, clipping, then AdamW or, for the layers'
//! matrices, Muon.
//!
//! State is fp32, in the order of [`crate::model::Params::specs`], and saved by parameter name.

pub(crate) mod adamw;
pub(crate) mod clip;
pub(crate) mod muon;
pub(crate) mod schedule;

pub(crate) use adamw::{Optimizer, State, Update, UpdateFactors};
