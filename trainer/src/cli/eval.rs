//! `dlm-train eval --model DIR`: with `--data DIR` the mean loss of a model on a packed dataset
//! under fixed masks, with `--tasks FILE` its answers to tasks with known answers.
//!
//! Out: the block-diffusion loss and the causal loss, each the mean over counted tokens in nats; or
//! a table of exact matches, tokens per forward pass and tokens per second (`tasks.rs`).

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, ValueEnum};
use dlm_datasets::Split;

use super::tasks::{self, TaskArgs};
use super::validation;
use crate::compute::{ComputeDtype, EngineChoice};
use crate::error::Result;
use crate::generate::ModelOptions;
use crate::validate::{DatasetOptions, validate};

/// Arguments of `dlm-train eval` as typed.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("against").required(true).args(["data", "tasks"])))]
pub(super) struct EvalArgs {
    /// Model: a Hugging Face folder, hf://ORG/NAME[@REV], or ORG/NAME.
    #[arg(long)]
    pub model: PathBuf,
    /// Folder of an adapter (LoRA) of the model, as export.lora=adapter or peft writes it.
    #[arg(long, value_name = "DIR", conflicts_with = "data")]
    pub adapter: Option<PathBuf>,
    /// Packed dataset: a folder written by dlm-prep.
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// JSONL file of tasks: a prompt as for generate --input, or a question, with answer, answers
    /// or expected, or a last message of the assistant; GSM8K's files are read as they are.
    #[arg(long, value_name = "FILE")]
    pub tasks: Option<PathBuf>,
    /// Split to evaluate [default: eval where the dataset has one, else train].
    #[arg(long, value_enum, conflicts_with = "tasks")]
    pub split: Option<SplitName>,
    /// Evaluate at most this many rows, from the first on [default: all].
    #[arg(long, conflicts_with = "tasks")]
    pub rows: Option<usize>,
    /// Evaluate documents that are longer than the model has positions [default: refused].
    #[arg(long, conflicts_with = "tasks")]
    pub allow_long_documents: bool,
    /// Rows per forward pass [default: 8].
    #[arg(long, alias = "micro-rows", conflicts_with = "tasks")]
    pub micro_batch_rows: Option<usize>,
    /// Seed of the masks [default: 42].
    #[arg(long, conflicts_with = "tasks")]
    pub seed: Option<u64>,
    /// Dtype of activations and matrix products [default: fp32; with --tasks bf16 on CUDA].
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
    #[command(flatten)]
    pub with_tasks: TaskArgs,
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
    let Some(data) = &args.data else {
        let usual = ModelOptions::default();
        let place = ModelOptions {
            device: args.device.clone().unwrap_or(usual.device),
            dtype: args.dtype,
            engine: args.engine.unwrap_or(usual.engine),
            weights: args.with_tasks.weights.unwrap_or_default(),
        };
        let file = args.tasks.clone().unwrap_or_default();
        let model = (args.model.clone(), args.adapter.clone());
        return tasks::run(&args.with_tasks, model, file, place, args.json);
    };
    let report = validate(&args.model, options(args, data))?;
    validation::print(&report, args.json)?;
    Ok(report.ok())
}

fn options(args: &EvalArgs, data: &Path) -> DatasetOptions {
    let usual = DatasetOptions::new(data);
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
