//! Arguments that say where and in which formats a model decodes, shared by the commands.

use clap::Args;

use crate::compute::{ComputeDtype, EngineChoice, WeightFormat};
use crate::generate::ModelOptions;

/// Where a model is loaded to, as typed.
#[derive(Args, Debug)]
pub(super) struct PlaceArgs {
    /// Dtype of activations and matrix products [default: bf16 on CUDA, fp32 elsewhere].
    #[arg(long, value_enum)]
    pub dtype: Option<ComputeDtype>,
    /// Format of the weights on the CPU [default: auto].
    #[arg(long, value_enum)]
    pub weights: Option<WeightFormat>,
    /// What computes [default: auto].
    #[arg(long, value_enum)]
    pub engine: Option<EngineChoice>,
    /// auto, cpu, cuda[:N] or wgpu [default: auto].
    #[arg(long)]
    pub device: Option<String>,
}

impl PlaceArgs {
    pub(super) fn options(&self) -> ModelOptions {
        let usual = ModelOptions::default();
        ModelOptions {
            device: self.device.clone().unwrap_or(usual.device),
            dtype: self.dtype,
            engine: self.engine.unwrap_or(usual.engine),
            weights: self.weights.unwrap_or(usual.weights),
        }
    }
}
