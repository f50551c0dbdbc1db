//! Decoder models: configuration, parameter table, weights on disk, forward pass.
//!
//! `config` reads `config.json`; `params` lays out the parameters; `weights` moves them between
//! safetensors and the device, `ternary` packs those of BitLinear; `ops` and `decoder` compute.

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
