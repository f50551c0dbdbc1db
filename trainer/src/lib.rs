//! Block-diffusion training, export and decoding of Hugging Face decoder checkpoints, on Burn.
//!
//! Read in this order: `config` (what was asked for) → `model` (the decoder and its weights) → `diffusion` (the objective, on the single-pass operations of `kernels`)
//! → `optim` → `train` (the loop) → `checkpoint` → `export` → `decode`. `commands` are the subcommands of `dlm-train`.

pub mod checkpoint;
pub mod commands;
pub mod config;
pub mod decode;
pub mod device;
pub mod diffusion;
pub mod error;
pub mod export;
pub mod kernels;
pub mod launch;
pub mod model;
pub mod optim;
pub mod rng;
pub mod train;

pub use error::{Error, Result};
