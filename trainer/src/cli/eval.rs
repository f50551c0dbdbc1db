//! `dlm-train eval --model DIR --data DIR`: mean loss of a model on a packed dataset under fixed
//! masks.
//!
//! Out: the block-diffusion loss and the causal loss, each the mean over counted tokens in nats.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use dlm_datasets::Split;

use super::validation;
use crate::compute::{ComputeDtype, EngineChoice};
use crate::error::Result;
use crate::validate::{DatasetOptions, validate};

/// Arguments of `dlm-train eval` as typed.
#[derive(Args, Debug)]
pub(super) struct EvalArgs {
    /// Model: a Hugging Face folder, hf://ORG/NAME[@REV], or ORG/NAME.
    #[arg(long)]
    pub model: PathBuf,
    /// Packed dataset: a folder written by dlm-prep.
    #[arg(long)]
    pub data: PathBuf,
    /// Split to evaluate [default: eval where the dataset has one, else train].
    #[arg(long, value_enum)]
    pub split: Option<SplitName>,
    /// Evaluate at most this many rows, from the first on [default: all].
    #[arg(long)]
    pub rows: Option<usize>,
    /// Evaluate documents that are longer than the model has positions [default: refused].
    #[arg(long)]
    pub allow_long_documents: bool,
    /// Rows per forward pass [default: 8].
    #[arg(long, alias = "micro-rows")]
    pub micro_batch_rows: Option<usize>,
    /// Seed of the masks [default: 42].
    #[arg(long)]
    pub seed: Option<u64>,
    /// Dtype of activations and matrix products [default: fp32].
    #[arg(long, value_enum)]
    pub dtype: Option<ComputeDtype>,
    /// What computes [default: auto].
    #[arg(long, value_enum)]
    pub engine: Option<EngineChoice>,
    /// auto, cpu, cuda[:N] or wgpu [default: auto].
    #[arg(long)]
    pub device: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Names of the splits.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SplitName {
    /// The rows that training reads.
    Train,
    /// The held-out rows.
    Eval,
}

impl From<SplitName> for Split {
    fn from(name: SplitName) -> Self {
        match name {
            SplitName::Train => Split::Train,
            SplitName::Eval => Split::Eval,
        }
    }
}

/// Evaluates and prints.
pub(super) fn run(args: &EvalArgs) -> Result<bool> {
    let report = validate(&args.model, options(args))?;
    validation::print(&report, args.json)?;
    Ok(report.ok())
}

fn options(args: &EvalArgs) -> DatasetOptions {
    let usual = DatasetOptions::new(&args.data);
    DatasetOptions {
        split: args.split.map(Split::from),
        rows: args.rows,
        allow_long_documents: args.allow_long_documents,
        micro_batch_rows: args.micro_batch_rows.unwrap_or(usual.micro_batch_rows),
        seed: args.seed.unwrap_or(usual.seed),
        dtype: args.dtype.unwrap_or(usual.dtype),
        engine: args.engine.unwrap_or(usual.engine),
        device: args.device.clone().unwrap_or(usual.device),
        data: usual.data,
    }
}
