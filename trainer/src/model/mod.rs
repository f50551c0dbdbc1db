//! Decoder models: configuration, parameter table, weights on disk, forward pass.
//!
//! `config` reads `config.json`; `params` lists the parameters; `checkpoint_file` maps safetensors
//! files, `ternary` packs and unpacks BitLinear weights, `load` fits a checkpoint to the parameters
//! and copies it to the device; `decoder` computes; `gradients` holds gradients by parameter.

pub mod checkpoint_file;
pub mod config;
pub mod decoder;
mod gradients;
pub mod load;
pub mod params;
pub mod ternary;

pub use checkpoint_file::Checkpoint;
pub use config::ModelConfig;
pub use decoder::{AttentionPlan, Context, Decoder};
pub use gradients::Gradients;
pub use params::{ParamKind, Params, Weights};
