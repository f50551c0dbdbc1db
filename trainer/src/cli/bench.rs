//! `dlm-train bench train`: training throughput at true shapes with random weights and synthetic
//! packed rows; `dlm-train bench decode`: times of decoding passes.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};

use super::place::PlaceArgs;
use crate::bench::{self, BenchLayout, TrainBenchOptions, TrainBenchReport};
use crate::bench::{DecodeBenchOptions, DecodeBenchReport, Measured};
use crate::compute::{AttentionChoice, ComputeDtype, EngineChoice};
use crate::error::{Error, Result};
use crate::generate::ModelOptions;
use crate::report::console;

/// What to measure.
#[derive(Subcommand, Debug)]
pub(super) enum BenchCommand {
    /// Optimizer steps.
    Train(TrainBench),
    /// Forward passes of decoding, by the number of their tokens.
    Decode(DecodeBench),
}

/// Arguments of `bench decode` as typed.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("measured").required(true).args(["model", "preset"])))]
pub(super) struct DecodeBench {
    /// Model: a Hugging Face folder, hf://ORG/NAME[@REV], or ORG/NAME.
    #[arg(long)]
    pub model: Option<PathBuf>,
    /// Model shapes with random weights, as for bench train.
    #[arg(long)]
    pub preset: Option<String>,
    /// New tokens of a pass, separated by commas.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1usize, 8, 16, 32])]
    pub tokens: Vec<usize>,
    /// Tokens before them.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub context: usize,
    /// Passes of each kind.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub rounds: usize,
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bench train` as typed.
#[derive(Args, Debug)]
pub(super) struct TrainBench {
    /// Model shapes: tiny_llama, tiny_qwen3, demo_5m, smollm2_135m, qwen2.5_0.5b, qwen3_0.6b,
    /// qwen3_4b or bitnet_2b.
    #[arg(long)]
    pub preset: String,
    /// Rows per optimizer step [default: 8].
    #[arg(long)]
    pub batch: Option<usize>,
    /// Rows per forward pass [default: all rows of the step].
    #[arg(long)]
    pub micro: Option<usize>,
    /// Tokens per row [default: 512].
    #[arg(long)]
    pub seq: Option<usize>,
    /// Tokens per block [default: 32].
    #[arg(long)]
    pub bd_size: Option<usize>,
    /// Counted steps [default: 10].
    #[arg(long)]
    pub steps: Option<usize>,
    /// Steps before counting starts [default: 3].
    #[arg(long)]
    pub warmup: Option<usize>,
    /// Objective and stream layout [default: saving].
    #[arg(long, value_enum)]
    pub layout: Option<BenchLayout>,
    /// Dtype of activations and matrix products; master weights are fp32 [default: fp32].
    #[arg(long, value_enum)]
    pub dtype: Option<ComputeDtype>,
    /// Attention implementation [default: auto].
    #[arg(long, value_enum)]
    pub attention: Option<AttentionChoice>,
    /// auto, cpu, cuda[:N] or wgpu [default: auto].
    #[arg(long)]
    pub device: Option<String>,
    /// Documents per row, isolated from each other [default: 1].
    #[arg(long)]
    pub docs_per_row: Option<usize>,
    /// Share of each document, from its start, without labels [default: 0.3].
    #[arg(long)]
    pub prompt_fraction: Option<f64>,
    /// Run each layer again in the backward pass.
    #[arg(long, alias = "recompute")]
    pub activation_checkpointing: bool,
    /// Positions whose logits exist at one time [default: 1024; natively as many as 2 GiB hold].
    #[arg(long)]
    pub loss_chunk: Option<usize>,
    /// Train adapters (LoRA) of this rank beside all matrices of the layers instead of the weights.
    #[arg(long, value_name = "R")]
    pub lora_rank: Option<usize>,
    /// What computes [default: auto].
    #[arg(long, value_enum)]
    pub engine: Option<EngineChoice>,
    /// Measure the time of every kernel in one more step (native engine).
    #[arg(long)]
    pub profile: bool,
    /// Round stream lengths up to a multiple of this, with attention dense or ranges [default: 32].
    #[arg(long)]
    pub multiple: Option<usize>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Measures and prints.
pub(super) fn run(command: &BenchCommand) -> Result<bool> {
    let line = match command {
        BenchCommand::Train(args) => {
            let report = bench::measure(&options(args))?;
            if args.json { json(&report)? } else { summary(&report) }
        }
        BenchCommand::Decode(args) => {
            let report = bench::measure_decoding(&decode_options(args)?)?;
            if args.json { json(&report)? } else { decode_summary(&report) }
        }
    };
    console::result(line)?;
    Ok(true)
}

fn json(report: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(report)
        .map_err(|e| Error::format("stdout", format!("the report is no JSON: {e}")))
}

fn decode_options(args: &DecodeBench) -> Result<DecodeBenchOptions> {
    const MOST: usize = 1 << 16;
    let sizes = args.tokens.iter().chain([&args.rounds]);
    if sizes.clone().any(|n| !(1..=MOST).contains(n)) || args.context > MOST {
        return Err(Error::Usage(format!(
            "--tokens {:?} --context {} --rounds {}: expected at least 1 token and 1 round, and at most {MOST} of each",
            args.tokens, args.context, args.rounds
        )));
    }
    let measured = match (&args.model, &args.preset) {
        (Some(model), _) => Measured::Model(model.clone()),
        (None, preset) => Measured::Preset(preset.clone().unwrap_or_default()),
    };
    let ModelOptions { device, dtype, engine, weights } = args.place.options();
    Ok(DecodeBenchOptions {
        measured,
        tokens: args.tokens.clone(),
        context: args.context,
        rounds: args.rounds,
        device,
        dtype,
        engine,
        weights,
    })
}

fn decode_summary(report: &DecodeBenchReport) -> String {
    let DecodeBenchReport { device, dtype, weights, threads, context, passes, prefill } = report;
    let one = passes.first().map_or(f64::NAN, |cost| cost.ms_least);
    let mut lines = vec![format!(
        "{dtype} on {device}, weights {weights}, {threads} threads, {context} tokens before"
    )];
    for cost in passes {
        lines.push(format!(
            "pass over {:>4} tokens: {:>8.2} ms (median {:.2}), {:.2} of the first",
            cost.tokens,
            cost.ms_least,
            cost.ms_median,
            cost.ms_least / one
        ));
    }
    lines.extend(prefill.iter().map(|cost| {
        let rate = cost.tokens as f64 / cost.ms_least * 1e3;
        format!(
            "prefill of {:>3} tokens: {:>8.2} ms, {rate:.0} tokens/s",
            cost.tokens, cost.ms_least
        )
    }));
    lines.join("\n")
}

fn options(args: &TrainBench) -> TrainBenchOptions {
    let usual = TrainBenchOptions::new(&args.preset);
    TrainBenchOptions {
        batch: args.batch.unwrap_or(usual.batch),
        micro: args.micro,
        seq: args.seq.unwrap_or(usual.seq),
        bd_size: args.bd_size.unwrap_or(usual.bd_size),
        steps: args.steps.unwrap_or(usual.steps),
        warmup: args.warmup.unwrap_or(usual.warmup),
        layout: args.layout.unwrap_or(usual.layout),
        dtype: args.dtype.unwrap_or(usual.dtype),
        attention: args.attention.unwrap_or(usual.attention),
        device: args.device.clone().unwrap_or(usual.device),
        docs_per_row: args.docs_per_row.unwrap_or(usual.docs_per_row),
        prompt_fraction: args.prompt_fraction.unwrap_or(usual.prompt_fraction),
        activation_checkpointing: args.activation_checkpointing,
        loss_chunk: args.loss_chunk,
        lora_rank: args.lora_rank,
        engine: args.engine.unwrap_or(usual.engine),
        profile: args.profile,
        multiple: args.multiple.unwrap_or(usual.multiple),
        preset: usual.preset,
    }
}

fn summary(report: &TrainBenchReport) -> String {
    let layout = match report.layout {
        BenchLayout::Saving => "saving",
        BenchLayout::Reference => "reference",
        BenchLayout::Sft => "sft",
        BenchLayout::Lossless => "lossless",
    };
    format!(
        "{} {layout} {} on {}: {:.0} source tok/s (median step {:.1} ms: data {:.1}, passes {:.1}, optimizer {:.1}), {:.0} % of 4L processed, {:.3} useful TFLOP/s, loss {:.4} → {:.4}, {} MiB",
        report.preset,
        report.dtype,
        report.device,
        report.tokens_per_s_median,
        report.ms_per_step_median,
        report.ms.data,
        report.ms.forward_backward,
        report.ms.optimizer,
        100.0 * report.processed_share_of_4l,
        report.useful_tflops_per_s,
        report.loss_first.unwrap_or(0.0),
        report.loss_last,
        report.peak_rss_mib,
    )
}
