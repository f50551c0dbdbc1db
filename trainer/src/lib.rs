//! Block-diffusion training, export and decoding of Hugging Face decoder checkpoints, on Burn.
//!
//! The library answers four questions:
//!
//! * [`convert`] turns a model into a block-diffusion model: a [`Conversion`] and a dataset packed
//!   by `dlm-prep` in, a Hugging Face folder out.
//!
//! The stages, in the order in which they may use each other: `config` (settings) → `compute`
//! (device and dtype) → `report` (metrics and plots) → `kernels` and `attention` → `model` (the
//! decoder and its weights) → `diffusion` (the objective) → `optim` → `io` (sources, checkpoints,
//! export) → `decode` → `train` (the loop) → `parity` and `bench` → the library calls above → `cli`.
//! docs/architecture.md draws them.

pub mod attention;
pub mod bench;
pub mod cli;
pub mod compute;
pub mod config;
pub mod conversion;
pub mod decode;
pub mod diffusion;
pub mod error;
pub mod generate;
pub mod io;
pub mod kernels;
pub mod launch;
pub mod model;
pub mod optim;
pub mod parity;
pub mod report;
pub mod train;
pub mod validate;

use std::process::ExitCode;

pub use compute::{AttentionChoice, ComputeDtype};
pub use config::ConfigError;
pub use conversion::{Conversion, Converted, Resume, convert};
pub use decode::Passes;
pub use diffusion::Layout;
pub use dlm_datasets::Split;
pub use error::{Error, Result};
pub use generate::{Completion, DecodeMode, GenerateOptions, Model, ModelOptions, Prompt};
pub use parity::{ParityOptions, ParityReport, ToleranceOptions, Tolerances};
pub use validate::{DatasetOptions, DatasetReport, Reference, ValidationReport, validate};

/// The program `dlm-train`: runs the command line of this process.
#[doc(hidden)]
pub fn cli_main() -> ExitCode {
    cli::main()
}

/// The program `wf`: runs the command line of this process.
#[doc(hidden)]
pub fn wf_main() -> ExitCode {
    cli::wf::main()
}

#[cfg(test)]
mod tests;
