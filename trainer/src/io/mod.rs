//! Files of models and runs: sources, checkpoints, exports.

pub mod checkpoint;
pub mod export;
pub mod load_model;
pub mod source;
pub mod tensors;
