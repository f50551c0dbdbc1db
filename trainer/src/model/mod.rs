//! Decoder models: configuration, parameter table, weights on disk, forward pass.
//!
//! `config` reads `config.json` with `config_reader`, `family`, `rope_config`,
//! `quantization_config`, `token_ids` and `module_pattern`; `json_text` parses JSON as Python
//! writes it.
//! `params` lists the parameters; `checkpoint_file` maps safetensors files, `misfit` and
//! `folder_kind` word what does not fit, `ternary` packs and unpacks BitLinear weights, `load` fits
//! a checkpoint to the parameters and copies it to the device; `lora` adds adapters; `decoder`
//! computes; `gradients`
//! holds gradients by parameter.

pub(crate) mod checkpoint_file;
pub(crate) mod config;
mod config_reader;
pub(crate) mod decoder;
mod family;
mod folder_kind;
mod gradients;
pub(crate) mod json_text;
pub(crate) mod load;
pub(crate) mod lora;
mod misfit;
mod module_pattern;
pub(crate) mod params;
mod quantization_config;
mod rope_config;
pub(crate) mod ternary;
pub(crate) mod token_ids;

pub(crate) use checkpoint_file::Checkpoint;
pub(crate) use config::ModelConfig;
pub(crate) use decoder::{AttentionPlan, Context, Decoder};
pub(crate) use family::{SDAR, SDAR_MASK_ID};
pub(crate) use gradients::Gradients;
pub(crate) use params::{ParamKind, ParamSpec, Params, Weights};
pub(crate) use token_ids::TokenIds;
