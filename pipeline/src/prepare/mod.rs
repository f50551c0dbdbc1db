//! Preparing a dataset from beginning to end.

pub mod estimate;
pub mod plan;
