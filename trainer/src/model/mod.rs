//! Decoder models: configuration, parameter table, weights on disk, forward pass.
//!
//! `config` reads `config.json`; `params` lays out the parameters; `weights` moves them between safetensors and the
//! device, `ternary` packs those of BitLinear; `ops` and `decoder` compute.

pub mod cached;
pub mod config;
pub mod decoder;
pub mod fused;
mod fused_cpu;
pub mod ops;
pub mod params;
pub mod ranges;
pub(crate) mod simd;
pub mod ternary;
pub mod tiles;
mod tiles_cpu;
pub mod weights;

pub use config::ModelConfig;
pub use decoder::{AttentionPlan, Context, Decoder};
pub use params::{ParamKind, Params, Weights};
