//! Decoder models: configuration, parameter table, weights on disk, forward pass.
//!
//! `config` reads `config.json`; `params` lists the parameters; `checkpoint_file` maps safetensors
//! files, `ternary` packs and unpacks BitLinear weights, `load` fits a checkpoint to the parameters
//! and copies it to the device; `decoder` computes; `gradients` holds gradients by parameter.

pub(crate) mod checkpoint_file;
pub(crate) mod config;
pub(crate) mod decoder;
mod gradients;
pub(crate) mod load;
pub(crate) mod params;
pub(crate) mod ternary;

pub(crate) use checkpoint_file::Checkpoint;
pub(crate) use config::ModelConfig;
pub(crate) use decoder::{AttentionPlan, Context, Decoder};
pub(crate) use gradients::Gradients;
pub(crate) use params::{ParamKind, Params, Weights};
