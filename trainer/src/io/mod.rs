//! Files of models and runs: sources, loading, checkpoints, exports.

pub mod checkpoint;
pub mod checkpoint_store;
pub mod export;
pub mod json;
pub mod load_model;
pub mod safetensors_file;
pub mod source;
