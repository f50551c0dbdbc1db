//! Block-diffusion training, export and decoding of Hugging Face decoder checkpoints, on Burn.
//!
//! The library has three calls, which the commands of `dlm-train` use as well:
//!
//! * [`convert`] trains: a [`Conversion`] and a dataset packed by `dlm-prep` in, a Hugging Face
//!   folder out.
//! * [`validate`] checks a model folder: against tensors of another implementation (parity), or
//!   against a packed dataset (tokenizer, mask token, block size, losses).
//! * [`Model::load`] and [`Model::generate`] complete prompts, in diffusion blocks or one token at
//!   a time.
//!
//! Everything else is internal. Its rooms, each of which may use those before it: `config`
//! (settings) → `compute` (device, dtype, attention) → `report` (metrics and plots) → `kernels` →
//! `attention` → `model` (the decoder and its weights) → `diffusion` (the objective) → `optim` →
//! `native` (the CUDA engine) → `io` (sources, checkpoints, export) → `decode` → `train` (the loop)
//! → `parity`, `bench` → `publish` (cards, a hub) → the calls above and `estimate` (memory and time
//! of a run) → `tasks` (answers to tasks) → `serve` (HTTP) → `launch` → `cli`.

mod attention;
mod bench;
mod cli;
mod compute;
mod config;
mod conversion;
mod decode;
mod diffusion;
mod error;
mod estimate;
mod generate;
mod io;
mod kernels;
mod launch;
mod model;
mod native;
mod optim;
mod parity;
mod publish;
mod report;
mod serve;
mod tasks;
mod train;
mod validate;

use std::process::ExitCode;

pub use compute::{AttentionChoice, ComputeDtype, EngineChoice, WeightFormat};
pub use config::ConfigError;
pub use conversion::{Conversion, Converted, Resume, convert};
pub use decode::{Decided, Passes};
pub use diffusion::Layout;
pub use dlm_datasets::Split;
pub use dlm_prep::Message;
pub use error::{Error, Result};
pub use generate::{
    Completion, DecodeMode, FinishReason, GenerateOptions, Model, ModelOptions, Prompt, Proposals,
};
pub use parity::{ParityOptions, ParityReport, ToleranceOptions, Tolerances};
pub use report::held_out::{Acceptance, SimulatedDecode};
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
