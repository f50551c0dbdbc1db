//! `dlm-train parity`: compare this implementation with tensors made elsewhere.
//!
//! In: a model, a case file, optionally a file of gradients. Out: the largest differences as text
//! or JSON; exit code 1 when one is out of tolerance.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::validation;
use crate::compute::{AttentionChoice, ComputeDtype, EngineChoice};
use crate::diffusion::Layout;
use crate::error::Result;
use crate::parity::{ParityOptions, ToleranceOptions};
use crate::validate::validate;

/// Arguments of `dlm-train parity` as typed.
#[derive(Args, Debug)]
pub(super) struct ParityArgs {
    /// Model: a Hugging Face folder, hf://ORG/NAME[@REV], or ORG/NAME.
    #[arg(long)]
    pub model: PathBuf,
    /// Case file (safetensors) with input_ids, labels and expected logits or loss.
    #[arg(long)]
    pub case: PathBuf,
    /// Folder of a peft adapter (LoRA) of the model; gradients are those of its tensors.
    #[arg(long)]
    pub adapter: Option<PathBuf>,
    /// Expected gradients by parameter name (safetensors).
    #[arg(long)]
    pub grads: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Tokens per block, for cases with a mask [default: 32].
    #[arg(long)]
    pub bd_size: Option<usize>,
    /// Id of the mask token [default: that of config.json, else the last id of the vocabulary].
    #[arg(long)]
    pub mask_token_id: Option<i32>,
    /// Whether the logits at position i-1 predict token i, for cases with a mask; false: those at
    /// position i [default: as the model folder says, else true].
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub token_shift: Option<bool>,
    /// Stream layout, for cases with a mask [default: saving].
    #[arg(long, value_enum)]
    pub layout: Option<LayoutName>,
    /// Dtype of activations and matrix products [default: fp32].
    #[arg(long, value_enum)]
    pub dtype: Option<ComputeDtype>,
    /// auto, cpu, cuda[:N] or wgpu [default: auto].
    #[arg(long)]
    pub device: Option<String>,
    /// Attention implementation [default: auto].
    #[arg(long, value_enum)]
    pub attention: Option<AttentionChoice>,
    /// What computes [default: auto].
    #[arg(long, value_enum)]
    pub engine: Option<EngineChoice>,
    /// Quantise linear layers online (BitLinear) whatever config.json says.
    #[arg(long)]
    pub bitlinear: bool,
    /// Run each layer again in the backward pass.
    #[arg(long, alias = "recompute")]
    pub activation_checkpointing: bool,
    /// Positions whose logits exist at one time [default: 1024].
    #[arg(long)]
    pub loss_chunk: Option<usize>,
    /// Largest absolute difference of logits [default: 2e-4; in bf16, 3 times the effect of
    /// rounding the weights to bf16].
    #[arg(long)]
    pub tol_logits: Option<f64>,
    /// Largest difference of the loss, relative to the loss or to one nat, whichever is larger
    /// [default: 2e-5; in bf16 2e-3, with BitLinear 5e-3].
    #[arg(long)]
    pub tol_loss: Option<f64>,
    /// Largest difference of a gradient, relative to the tensor's largest entry [default: 1e-4; in
    /// bf16, in relative L2 norm, 3 times the effect of rounding the weights to bf16].
    #[arg(long)]
    pub tol_grads: Option<f64>,
    /// Share of positions that must be within --tol-logits; rounding in quantised models is
    /// chaotic, use 0.25 for those [default: 1].
    #[arg(long)]
    pub logits_quantile: Option<f64>,
    /// With --logits-quantile below 1, the largest difference at any position [default: 0.5].
    #[arg(long)]
    pub tol_logits_worst: Option<f64>,
    /// Compare gradients by relative L2 norm per tensor instead of by the largest entry; always so
    /// in bf16.
    #[arg(long)]
    pub grads_l2: bool,
    /// Write the logits of every position to this file (safetensors, `logits` [rows, len, vocab]).
    #[arg(long)]
    pub dump_logits: Option<PathBuf>,
}

/// Names of the block-diffusion stream layouts.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LayoutName {
    /// Both views with a clean copy each, as in the paper.
    Reference,
    /// One clean copy for both views, blocks that nothing needs dropped.
    Saving,
}

impl From<LayoutName> for Layout {
    fn from(name: LayoutName) -> Self {
        match name {
            LayoutName::Reference => Layout::Reference,
            LayoutName::Saving => Layout::Saving,
        }
    }
}

/// Compares and prints; `Ok(false)` means out of tolerance.
pub(super) fn run(args: &ParityArgs) -> Result<bool> {
    let report = validate(&args.model, options(args))?;
    validation::print(&report, args.json)?;
    Ok(report.ok())
}

fn options(args: &ParityArgs) -> ParityOptions {
    let usual = ParityOptions::new(&args.case);
    ParityOptions {
        adapter: args.adapter.clone(),
        grads: args.grads.clone(),
        bd_size: args.bd_size.unwrap_or(usual.bd_size),
        mask_token_id: args.mask_token_id,
        token_shift: args.token_shift,
        layout: args.layout.map_or(usual.layout, Layout::from),
        device: args.device.clone().unwrap_or(usual.device),
        dtype: args.dtype.unwrap_or(usual.dtype),
        attention: args.attention.unwrap_or(usual.attention),
        engine: args.engine.unwrap_or(usual.engine),
        bitlinear: args.bitlinear,
        activation_checkpointing: args.activation_checkpointing,
        loss_chunk: args.loss_chunk.unwrap_or(usual.loss_chunk),
        tolerances: ToleranceOptions {
            logits: args.tol_logits,
            loss: args.tol_loss,
            grads: args.tol_grads,
            grads_l2: args.grads_l2,
            logits_quantile: args.logits_quantile.unwrap_or(usual.tolerances.logits_quantile),
            logits_worst: args.tol_logits_worst.unwrap_or(usual.tolerances.logits_worst),
        },
        dump_logits: args.dump_logits.clone(),
        case: usual.case,
    }
}
