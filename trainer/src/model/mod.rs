//! Decoder models: configuration, parameter table, weights on disk, forward pass.
//!
//! `config` reads `config.json`; `params` lays out the parameters; `weights` moves them between
//! safetensors and the device, `ternary` packs those of BitLinear; `ops` and `decoder` compute.

pub mod config;
pub mod decoder;
pub mod load;
pub mod params;
pub mod ternary;

pub use config::ModelConfig;
pub use decoder::{AttentionPlan, Context, Decoder};
pub use params::{ParamKind, Params, Weights};
