//! Block-diffusion training, export and decoding of Hugging Face decoder checkpoints, on Burn.
//!
//! Read in this order: `config` (what was asked for) → `model` (the decoder and its weights) →
//! `diffusion` (the objective, on the single-pass operations of `kernels`) → `optim` → `train` (the
//! loop) → `checkpoint` → `export` → `decode`. `commands` are the subcommands of `dlm-train`.

pub mod attention;
pub mod bench;
pub mod cli;
pub mod compute;
pub mod config;
pub mod decode;
pub mod diffusion;
pub mod error;
pub mod io;
pub mod kernels;
pub mod launch;
pub mod model;
pub mod optim;
pub mod parity;
pub mod report;
pub mod train;

pub use error::{Error, Result};

#[cfg(test)]
mod tests;
